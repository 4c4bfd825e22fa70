/** A GPU that pages on demand: scans and random walks beyond its pool, and what a load costs that finds its page. */
import { performance } from "node:perf_hooks";
import { createGpuMmu, createMemory } from "../../.test-build/testing.js";
import { openDevice, settle } from "../lib/gpu.mjs";
import { interleave, lineOf } from "../lib/interleave.mjs";
import { MIB, PAGE } from "../lib/memory.mjs";

const POOL = 8 * MIB;
const WALKERS = 512;
const STEPS = 4;
/** Loads for each invocation of the comparison of loads. */
const LOADS = 1024;
/** Tens of milliseconds to seconds each on a GPU in software, so fewer than elsewhere. */
const REPETITIONS = 5;

const BINDINGS = `
struct Job { base: u32, pages: u32 }
@group(0) @binding(0) var<uniform> job: Job;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;`;
const PLAIN = `@group(0) @binding(2) var<storage, read> words: array<u32>;`;

/** Kernels over pages and over a plain buffer; `load` is the expression of a load at byte `a` of the range. */
const forms = [
  { name: "mmu", bindings: "", load: (a) => `bifolio_load_u32(job.base + ${a})`, begin: true },
  { name: "plain", bindings: PLAIN, load: (a) => `words[(${a}) >> 2u]`, begin: false },
];

/** Sums 64 words of a page. */
const scan = ({ load, begin, bindings }) => `${BINDINGS}${bindings}
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (${begin ? "!bifolio_begin(id.x)" : "id.x >= job.pages"}) { return; }
  var sum = ${load(`id.x * ${PAGE}u`)};
  ${begin ? "if (bifolio_missed()) { return; }" : ""}
  for (var k = 1u; k < 64u; k++) { sum += ${load(`id.x * ${PAGE}u + k * 64u`)}; }
  if (${begin ? "bifolio_finish()" : "true"}) { out[id.x] = sum; }
}`;

/** Follows page numbers from page to page. */
const walk = ({ load, begin, bindings }) => `${BINDINGS}${bindings}
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (${begin ? "!bifolio_begin(id.x)" : `id.x >= ${WALKERS}u`}) { return; }
  var page = (id.x * 40503u) % job.pages;
  for (var k = 0u; k < ${STEPS}u; k++) {
    page = ${load(`page * ${PAGE}u`)};
    ${begin ? "if (bifolio_missed()) { return; }" : ""}
  }
  if (${begin ? "bifolio_finish()" : "true"}) { out[id.x] = page; }
}`;

/** Many loads of what is there, one word after the other or all over the place. */
const loads =
  (at) =>
  ({ load, bindings }) => `${BINDINGS}${bindings}
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  var sum = job.pages;
  for (var k = 0u; k < ${LOADS}u; k++) { sum += ${load(at)}; }
  out[id.x] = sum;
}`;
const inOrder = loads(`(id.x * ${LOADS}u + k) * 4u`);
const allOver = loads(`((id.x * ${LOADS}u + k) * 2654435761u) % (job.pages * ${PAGE / 4}u) * 4u`);

/** A number that looks random. */
function nextOf(page) {
  let x = Math.imul(page + 1, 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** A range of a space whose pages hold the numbers of others, for reading only. */
async function openRange(device, bytes) {
  const memory = await createMemory({ budget: bytes + 8 * MIB, mayBlock: false });
  const space = await memory.createSpace();
  const base = await space.mmap({ length: bytes, prot: "rw", share: "private" });
  const pages = bytes / PAGE;
  const words = new Uint32Array(bytes / 4).map((_, k) => Math.imul(k, 2654435761) >>> 0);
  for (let k = 0; k < pages; k++) words[(k * PAGE) / 4] = nextOf(k) % pages;
  await space.write(base, new Uint8Array(words.buffer));
  await space.mprotect(base, bytes, "r");
  const mmu = await createGpuMmu(space, device, { budget: POOL, start: base, length: bytes });
  return { memory, space, base, bytes, pages, words, mmu };
}

/** What one kernel needs besides its code. */
function prepare(device, range, code, extra = []) {
  const { STORAGE, UNIFORM, COPY_DST } = GPUBufferUsage;
  const job = device.createBuffer({ size: 8, usage: UNIFORM | COPY_DST });
  const out = device.createBuffer({ size: Math.max(4 * range.pages, 4 * WALKERS), usage: STORAGE });
  device.queue.writeBuffer(job, 0, new Uint32Array([range.base, range.pages]));
  const module = device.createShaderModule({ code });
  const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
  const layout = pipeline.getBindGroupLayout(0);
  const entries = [job, out, ...extra].map((buffer, binding) => ({ binding, resource: { buffer } }));
  return { pipeline, bindGroup: device.createBindGroup({ layout, entries }) };
}

/** Takes all translations away, so that the GPU begins with nothing. */
async function forget({ space, base, bytes }) {
  await space.mprotect(base, bytes, "rw");
  await space.mprotect(base, bytes, "r");
}

async function ms(work) {
  const begin = performance.now();
  await work();
  return performance.now() - begin;
}

function submit(device, { pipeline, bindGroup }, workgroups) {
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, bindGroup);
  pass.dispatchWorkgroups(workgroups);
  pass.end();
  device.queue.submit([encoder.finish()]);
}

/** One kernel over a range of `times` the pool, and the same after an upload of all of it. */
async function oversubscribed(device, times, what, kernel, invocationsOf, repetitions) {
  const range = await openRange(device, times * POOL);
  const { mmu, space, base, bytes } = range;
  const { STORAGE, COPY_DST } = GPUBufferUsage;
  const whole = device.createBuffer({ size: bytes, usage: STORAGE | COPY_DST });
  const [paged, plain] = forms;
  const onDemand = prepare(device, range, mmu.wgsl + kernel(paged));
  const reupload = prepare(device, range, kernel(plain), [whole]);
  const staging = new Uint8Array(bytes);
  const invocations = invocationsOf(range.pages);
  const workgroups = Math.ceil(invocations / 64);
  const rounds = [];
  const pages = [];
  const samples = await interleave(
    {
      mmu: async () => {
        await forget(range);
        return ms(async () => {
          const bindGroups = [onDemand.bindGroup];
          const run = await mmu.dispatch({
            pipeline: onDemand.pipeline,
            bindGroups,
            workgroups,
            invocations,
          });
          rounds.push(run.rounds);
          pages.push(run.pages);
        });
      },
      whole: () =>
        ms(async () => {
          await space.read(base, staging);
          device.queue.writeBuffer(whole, 0, staging);
          submit(device, reupload, workgroups);
          await settle(device);
        }),
    },
    { repetitions, warmUps: 1 },
  );
  await mmu.remove();
  whole.destroy();
  await range.memory.close();
  const name = `${what} of ${times} x the pool`;
  return [
    lineOf({
      what: name,
      unit: "ms",
      bifolio: samples.mmu,
      alternative: { name: `upload of all ${bytes / MIB} MiB`, samples: samples.whole },
    }),
    lineOf({ what: `${name}: rounds`, unit: "", bifolio: rounds.slice(1) }),
    lineOf({
      what: `${name}: MiB uploaded`,
      unit: "MiB",
      bifolio: pages.slice(1).map((count) => (count * PAGE) / MIB),
      alternative: { name: "all", samples: pages.slice(1).map(() => bytes / MIB) },
    }),
  ];
}

/** Loads that find their page, against loads of a plain buffer. */
async function hits(device, what, kernel, repetitions) {
  const range = await openRange(device, POOL / 2);
  const { mmu, bytes, words } = range;
  const { STORAGE, COPY_DST } = GPUBufferUsage;
  const whole = device.createBuffer({ size: bytes, usage: STORAGE | COPY_DST });
  device.queue.writeBuffer(whole, 0, words);
  const [paged, plain] = forms;
  const onDemand = prepare(device, range, mmu.wgsl + kernel(paged));
  const direct = prepare(device, range, kernel(plain), [whole]);
  const workgroups = bytes / 4 / LOADS / 64;
  const count = bytes / 4;
  const perLoad = async (work) => ((await ms(work)) * 1e6) / count;
  const samples = await interleave(
    {
      // One round: everything is there after the first.
      mmu: () =>
        perLoad(() =>
          mmu.dispatch({ pipeline: onDemand.pipeline, bindGroups: [onDemand.bindGroup], workgroups }),
        ),
      plain: () =>
        perLoad(async () => {
          submit(device, direct, workgroups);
          await settle(device);
        }),
    },
    { repetitions },
  );
  await mmu.remove();
  whole.destroy();
  await range.memory.close();
  return lineOf({
    what: `load at a hit, ${what}`,
    unit: "ns",
    bifolio: samples.mmu,
    alternative: { name: "storage buffer", samples: samples.plain },
  });
}

export default {
  measures:
    "GPU demand paging with a pool of 8 MiB, against uploading the whole range first; its loads, against a storage buffer's",
  async run({ repetitions }) {
    const found = await openDevice();
    if (found.why) return { notes: [found.why], lines: [] };
    const { device, name } = found;
    const few = Math.min(repetitions, REPETITIONS);
    const lines = [];
    for (const times of [2, 8]) {
      lines.push(...(await oversubscribed(device, times, "scan", scan, (pages) => pages, few)));
      lines.push(...(await oversubscribed(device, times, "random walk", walk, () => WALKERS, few)));
    }
    lines.push(await hits(device, "one after the other", inOrder, few));
    lines.push(await hits(device, "all over", allOver, few));
    return {
      notes: [
        `on ${name}`,
        `a scan loads 64 words of each page; a walk is ${WALKERS} invocations that follow ${STEPS} pages each, and has all of them at the same time`,
      ],
      lines,
    };
  },
};
