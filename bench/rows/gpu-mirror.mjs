/**
 * A mirrored range on the GPU: what sync() takes after some pages have been stored to, beside what users of WebGPU do today
 * from an array of their own. Bytes are counted by a wrapper around the queue.
 */
import { performance } from "node:perf_hooks";
import { mirrorRange } from "../../.test-build/webgpu.js";
import { countUploads, openDevice } from "../lib/gpu.mjs";
import { interleave, lineOf } from "../lib/interleave.mjs";
import { filledMapping, MIB, openMemory, PAGE } from "../lib/memory.mjs";

const BYTES = 64 * MIB;
const PAGES = BYTES / PAGE;
const IDLE_SYNCS = 20_000;
/** How many runs of pages lie apart where they are clustered. */
const CLUSTERS = 4;

/** Pages in no order that repeats, but the same in each run. */
function scattered(count) {
  const pages = new Set();
  for (let state = 12345; pages.size < count;) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    pages.add((state >>> 8) % PAGES);
  }
  return [...pages].sort((a, b) => a - b);
}

function clustered(count) {
  const each = Math.ceil(count / CLUSTERS);
  const apart = Math.floor(PAGES / CLUSTERS);
  const pages = Array.from({ length: count }, (_, k) => Math.floor(k / each) * apart + (k % each));
  return [...new Set(pages)].filter((page) => page < PAGES);
}

const CASES = [
  { name: "0.1 % of the pages, scattered", pages: scattered(Math.round(PAGES / 1000)) },
  { name: "0.1 % of the pages, clustered", pages: clustered(Math.round(PAGES / 1000)) },
  { name: "1 % of the pages, scattered", pages: scattered(Math.round(PAGES / 100)), goal: true },
  { name: "1 % of the pages, clustered", pages: clustered(Math.round(PAGES / 100)) },
  { name: "10 % of the pages, scattered", pages: scattered(Math.round(PAGES / 10)) },
  { name: "10 % of the pages, clustered", pages: clustered(Math.round(PAGES / 10)) },
  { name: "100 % of the pages", pages: Array.from({ length: PAGES }, (_, page) => page) },
];

/** As three.js keeps them: the ranges that were noted, merged where they touch. */
function mergedRanges(pages) {
  const ranges = pages.map((page) => ({ start: page * PAGE, count: PAGE })).sort((a, b) => a.start - b.start);
  let last = 0;
  for (let k = 1; k < ranges.length; k++) {
    const [before, range] = [ranges[last], ranges[k]];
    if (range.start <= before.start + before.count)
      before.count = Math.max(before.count, range.start + range.count - before.start);
    else ranges[++last] = range;
  }
  return ranges.slice(0, last + 1);
}

export default {
  measures:
    "sync() of a mirrored range of 64 MiB, until the GPU has it, after a store to each of some pages, against uploads from a plain array",
  async run({ repetitions }) {
    const { device, name, why } = await openDevice();
    if (why) return { notes: [`not measured: ${why}`], lines: [] };
    const { queue } = device;
    const counted = countUploads(device);
    const { memory, space } = await openMemory(BYTES / MIB + 16);
    const start = filledMapping(space, BYTES, "private");
    const mirror = await mirrorRange(space, device, start, BYTES);
    await mirror.sync();
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST;
    const plain = device.createBuffer({ size: BYTES, usage });
    const array = new Uint8Array(BYTES).fill(7);
    // What several threads write to: WebGPU takes no shared memory.
    const shared = new Uint8Array(new SharedArrayBuffer(BYTES)).fill(7);

    const timed = async (work) => {
      await queue.onSubmittedWorkDone();
      const begin = performance.now();
      await work();
      await queue.onSubmittedWorkDone();
      return (performance.now() - begin) * 1000;
    };
    const lines = [];
    const notes = [`on ${name}`];
    for (const { name: what, pages, goal } of CASES) {
      let value = 0;
      const storeTimes = [];
      const variants = {
        bifolio: async () => {
          value++;
          const begin = performance.now();
          for (const page of pages) space.setUint32(start + page * PAGE + 64, value);
          storeTimes.push(((performance.now() - begin) * 1e6) / pages.length);
          memory.poll();
          const before = counted.bytes;
          const us = await timed(() => mirror.sync());
          if (counted.bytes - before !== pages.length * PAGE)
            throw new Error(`${counted.bytes - before} bytes uploaded for ${pages.length} stale pages`);
          return us;
        },
        full: () => timed(() => queue.writeBuffer(plain, 0, array)),
        copied: () =>
          timed(() => {
            array.set(shared);
            queue.writeBuffer(plain, 0, array);
          }),
        eachPage: () =>
          timed(() => {
            for (const page of pages) queue.writeBuffer(plain, page * PAGE, array, page * PAGE, PAGE);
          }),
        ranges: () =>
          timed(() => {
            for (const { start: at, count } of mergedRanges(pages))
              queue.writeBuffer(plain, at, array, at, count);
          }),
      };
      // Small ones run in the interpreter at first.
      const warmUps = pages.length < PAGES / 50 ? 25 : 3;
      const samples = await interleave(variants, { repetitions, warmUps });
      const line = (alternative, of, target) =>
        lineOf({
          what,
          unit: "us",
          bifolio: samples.bifolio,
          alternative: { name: alternative, samples: of },
          ...(target && { goal: target }),
        });
      lines.push(line("one full writeBuffer", samples.full, goal && "at most 0.04 x"));
      lines.push(line("the same, copied from shared memory", samples.copied));
      lines.push(line("one writeBuffer a page", samples.eachPage));
      lines.push(line("update ranges, merged", samples.ranges));
      const uploaded = (pages.length * PAGE) / BYTES;
      notes.push(
        `${what}: ${pages.length} stores, ${storeTimes.sort((a, b) => a - b)[storeTimes.length >> 1].toFixed(0)} ns each with its fault; ${(uploaded * 100).toFixed(1)} % of the bytes uploaded`,
      );
    }
    const idle = [];
    for (let k = 0; k < repetitions; k++) {
      const begin = performance.now();
      for (let n = 0; n < IDLE_SYNCS; n++) await mirror.sync();
      idle.push(((performance.now() - begin) * 1000) / IDLE_SYNCS);
    }
    lines.push(
      lineOf({ what: "sync() with nothing stale", unit: "us", bifolio: idle, goal: "at most 5 us" }),
    );
    await mirror.remove();
    await memory.close();
    device.destroy();
    return { notes, lines };
  },
};
