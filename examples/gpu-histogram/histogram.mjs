/**
 * Counts the bytes of a mapped range on the GPU, and makes a picture of it, a pixel a page, whatever its size: the pages come
 * to the GPU as the kernel wants them. Works in Node and in browsers.
 */
import { createGpuMmu } from "bifolio/webgpu";

const GROUP = 64;

/** One page for each invocation. */
const kernel = (pageSize) => `
struct Job { base: vec2<u32>, pages: u32, row: u32 }
@group(0) @binding(0) var<uniform> job: Job;
@group(0) @binding(1) var<storage, read_write> histogram: array<atomic<u32>, 256>;
@group(0) @binding(2) var<storage, read_write> picture: array<u32>;
var<workgroup> counts: array<atomic<u32>, 256>;

@compute @workgroup_size(${GROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let page = id.y * job.row + id.x;
  let here = bifolio_element(job.base, page, ${pageSize}u);
  // Counts only what is counted once: an invocation that missed its page comes again.
  if (bifolio_begin(page)) {
    _ = bifolio_load_u32_at(here);
    if (bifolio_finish()) {
      var sum = 0u;
      for (var at = 0u; at < ${pageSize}u; at += 16u) {
        var words = bifolio_load_vec4u_at(vec2<u32>(here.x + at, here.y));
        for (var k = 0u; k < 4u; k++) {
          for (var n = 0u; n < 32u; n += 8u) {
            let byte = (words[k] >> n) & 0xffu;
            atomicAdd(&counts[byte], 1u);
            sum += byte;
          }
        }
      }
      picture[page] = sum / ${pageSize}u;
    }
  }
  workgroupBarrier();
  for (var byte = local; byte < 256u; byte += ${GROUP}u) {
    let count = atomicLoad(&counts[byte]);
    if (count > 0u) { atomicAdd(&histogram[byte], count); }
  }
}`;

/**
 * Returns { histogram, picture, run, stats }: 256 counts, the mean of each page, and what it took. `budget`: bytes of GPU memory
 * for pages.
 */
export async function histogramOf(device, { space, pageSize, start, length, budget }) {
  const pages = length / pageSize;
  const mmu = await createGpuMmu(space, device, { budget, start, length });
  const { COPY_DST, COPY_SRC, MAP_READ, STORAGE, UNIFORM } = GPUBufferUsage;
  const make = (size, usage) => device.createBuffer({ size, usage });
  const job = make(16, UNIFORM | COPY_DST);
  const histogram = make(1024, STORAGE | COPY_SRC);
  const picture = make(4 * pages, STORAGE | COPY_SRC);
  const back = make(1024 + 4 * pages, MAP_READ | COPY_DST);
  try {
    // No dimension of a dispatch may have more than 65535 groups.
    const groups = Math.ceil(pages / GROUP);
    const across = Math.min(groups, 1024);
    const address = [start % 2 ** 32, Math.floor(start / 2 ** 32)];
    device.queue.writeBuffer(job, 0, new Uint32Array([...address, pages, across * GROUP]));
    const module = device.createShaderModule({ code: mmu.wgsl + kernel(pageSize) });
    const pipeline = await device.createComputePipelineAsync({ layout: "auto", compute: { module } });
    const bindGroup = device.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: [job, histogram, picture].map((buffer, binding) => ({ binding, resource: { buffer } })),
    });
    const run = await mmu.dispatch({
      pipeline,
      bindGroups: [bindGroup],
      workgroups: [across, Math.ceil(groups / across)],
      invocations: pages,
    });
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(histogram, 0, back, 0, 1024);
    encoder.copyBufferToBuffer(picture, 0, back, 1024, 4 * pages);
    device.queue.submit([encoder.finish()]);
    await back.mapAsync(GPUMapMode.READ);
    const words = new Uint32Array(back.getMappedRange().slice(0));
    return { histogram: words.slice(0, 256), picture: words.slice(256), run, stats: mmu.stats() };
  } finally {
    for (const buffer of [job, histogram, picture, back]) buffer.destroy();
    await mmu.remove();
  }
}

/** The same answer, by the CPU: `bytes` are whole pages, counted into what is there. */
export function countBytes(bytes, pageSize, histogram, picture, firstPage) {
  for (let at = 0; at < bytes.length; at += pageSize) {
    let sum = 0;
    for (let k = at; k < at + pageSize; k++) {
      histogram[bytes[k]]++;
      sum += bytes[k];
    }
    picture[firstPage + at / pageSize] = Math.floor(sum / pageSize);
  }
}
