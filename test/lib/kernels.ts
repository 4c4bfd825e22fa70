/** Kernels for the tests of a GPU MMU: their sources, and how to run them and get their answers. */
import type { GpuMmu, GpuRun, GpuRunOptions } from "../../src/mirrors/webgpu/index.ts";

/** One word for each invocation: `out[i] = load(addresses[i])`. */
export const GATHER = `
@group(0) @binding(0) var<storage, read> addresses: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (!bifolio_begin(id.x)) { return; }
  let word = bifolio_load_u32_at(addresses[id.x]);
  if (bifolio_finish()) { out[id.x] = word; }
}`;

/** `store(addresses[i], values[i])`. */
export const SCATTER = `
@group(0) @binding(0) var<storage, read> addresses: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> values: array<u32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (!bifolio_begin(id.x)) { return; }
  bifolio_store_u32_at(addresses[id.x], values[id.x]);
  _ = bifolio_finish();
}`;

/** `add(addresses[i], values[i])` in place, and `values[i]` becomes what was there. */
export const ADD = `
@group(0) @binding(0) var<storage, read> addresses: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> values: array<u32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (!bifolio_begin(id.x)) { return; }
  let at = addresses[id.x];
  let before = bifolio_load_u32_at(at);
  let here = bifolio_prepare_store_at(at);
  if (!bifolio_finish()) { return; }
  bifolio_store_u32_at(at, before + values[id.x]);
  values[id.x] = before;
}`;

/** Loads every address in each invocation, without bifolio_begin(): `out[0]` is their sum. */
export const SUM = `
@group(0) @binding(0) var<storage, read> addresses: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(1) fn main() {
  var sum = 0u;
  for (var k = 0u; k < arrayLength(&addresses); k++) { sum += bifolio_load_u32_at(addresses[k]); }
  if (!bifolio_missed()) { out[0] = sum; }
}`;

export const low = (address: number): number => address % 2 ** 32;
export const high = (address: number): number => Math.floor(address / 2 ** 32);

export interface Kernel {
  /** Runs it over addresses; `values` go in and come out. */
  (
    addresses: readonly number[],
    values?: readonly number[],
    options?: GpuRunOptions,
  ): Promise<GpuRun & { words: number[] }>;
}

const { ceil, max } = Math;

/** Compiles a kernel with the MMU's functions. */
export function kernelOf(device: GPUDevice, mmu: GpuMmu, source: string): Kernel {
  const module = device.createShaderModule({ code: mmu.wgsl + source });
  const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
  return async (addresses, values = [], options) => {
    const { COPY_DST, COPY_SRC, MAP_READ, STORAGE } = GPUBufferUsage;
    const size = max(4 * addresses.length, 4);
    const made = [
      device.createBuffer({ size: 2 * size, usage: STORAGE | COPY_DST }),
      device.createBuffer({ size, usage: STORAGE | COPY_DST | COPY_SRC }),
      device.createBuffer({ size, usage: MAP_READ | COPY_DST }),
    ];
    const [places, words, back] = made as [GPUBuffer, GPUBuffer, GPUBuffer];
    try {
      device.queue.writeBuffer(places, 0, new Uint32Array(addresses.flatMap((a) => [low(a), high(a)])));
      device.queue.writeBuffer(words, 0, new Uint32Array(values));
      const bindGroup = device.createBindGroup({
        layout: pipeline.getBindGroupLayout(0),
        entries: [
          { binding: 0, resource: { buffer: places } },
          { binding: 1, resource: { buffer: words } },
        ],
      });
      const run = await mmu.dispatch({
        pipeline,
        bindGroups: [bindGroup],
        workgroups: source.includes("bifolio_begin") ? ceil(addresses.length / 64) : 1,
        ...(source.includes("bifolio_begin") && { invocations: addresses.length }),
        ...options,
      });
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(words, 0, back, 0, size);
      device.queue.submit([encoder.finish()]);
      await back.mapAsync(GPUMapMode.READ);
      return { ...run, words: [...new Uint32Array(back.getMappedRange().slice(0))] };
    } finally {
      for (const buffer of made) buffer.destroy();
    }
  };
}
