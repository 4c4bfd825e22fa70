/** What tests do with buffers of a GPU besides what is tested: read them, write to them by shaders, count what is uploaded. */

/** The bytes of a buffer once everything submitted so far is done. */
export async function readBuffer(
  device: GPUDevice,
  buffer: GPUBuffer,
  offset = 0,
  length: number = buffer.size - offset,
): Promise<Uint8Array> {
  const back = device.createBuffer({
    size: length,
    usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
  });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, offset, back, 0, length);
  device.queue.submit([encoder.finish()]);
  await back.mapAsync(GPUMapMode.READ);
  const bytes = new Uint8Array(back.getMappedRange().slice(0));
  back.destroy();
  return bytes;
}

export interface Uploads {
  /** Ranges of bytes of a buffer, in order of the calls. */
  readonly calls: { readonly buffer: GPUBuffer; readonly start: number; readonly end: number }[];
  readonly bytes: number;
  /** Forgets what has been. */
  reset(): void;
}

/** Counts what goes through writeBuffer() of a device's queue, whoever calls it. */
export function countUploads(device: GPUDevice): Uploads {
  const { queue } = device;
  const plain = queue.writeBuffer.bind(queue);
  const calls: { buffer: GPUBuffer; start: number; end: number }[] = [];
  queue.writeBuffer = (buffer, offset, data, dataOffset = 0, size?: number) => {
    const unit = "BYTES_PER_ELEMENT" in data ? Number(data.BYTES_PER_ELEMENT) : 1;
    const length = size === undefined ? data.byteLength - dataOffset * unit : size * unit;
    calls.push({ buffer, start: offset, end: offset + length });
    plain(buffer, offset, data, dataOffset, size);
    return undefined;
  };
  return {
    calls,
    get bytes() {
      return calls.reduce((sum, { start, end }) => sum + end - start, 0);
    },
    reset: () => void (calls.length = 0),
  };
}

/** A shader that adds to each word of a buffer; `run(first, words, by)` submits it for a part of the words. */
export function makeAdder(device: GPUDevice): {
  run(buffer: GPUBuffer, first: number, words: number, by: number): void;
} {
  const module = device.createShaderModule({
    code: `
      struct Part { first: u32, words: u32, by: u32, unused: u32 }
      @group(0) @binding(0) var<storage, read_write> data: array<u32>;
      @group(0) @binding(1) var<uniform> part: Part;
      @compute @workgroup_size(64) fn add(@builtin(global_invocation_id) id: vec3u) {
        if (id.x < part.words) { data[part.first + id.x] += part.by; }
      }`,
  });
  const pipeline = device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "add" } });
  return {
    run(buffer, first, words, by) {
      const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
      const part = device.createBuffer({ size: 16, usage, mappedAtCreation: true });
      new Uint32Array(part.getMappedRange()).set([first, words, by, 0]);
      part.unmap();
      const group = device.createBindGroup({
        layout: pipeline.getBindGroupLayout(0),
        entries: [
          { binding: 0, resource: { buffer } },
          { binding: 1, resource: { buffer: part } },
        ],
      });
      const encoder = device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(Math.ceil(words / 64));
      pass.end();
      device.queue.submit([encoder.finish()]);
    },
  };
}
