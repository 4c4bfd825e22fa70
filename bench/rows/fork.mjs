/** fork, and the first write after it, beside fork(2). */
import { performance } from "node:perf_hooks";
import { besideKernel, overlap } from "../lib/besideKernel.mjs";
import { MIB, openMemory, PAGE } from "../lib/memory.mjs";

/** Frames for the pages that are copied after a fork, and some more. */
const SPARE_MIB = 16;
/** Pages that are copied after the first one, which is timed: a path that is hot, as in a program at work. */
const COPIED_BYTES = 8 * MIB;
/** Forks before the first that counts: a fork is a microsecond or two of this code, and its compilation many times that. */
const WARM_UPS = 10_000;
const SIZES = [
  { what: "64 MiB", mib: 64 },
  { what: "1 GiB", mib: 1024 },
];

async function caseOf({ what, mib }) {
  const { memory, space } = await openMemory(mib + SPARE_MIB);
  await overlap(space);
  const address = space.sync.mmap({ length: mib * MIB, prot: "rw", share: "private" });
  for (let k = 0; k < WARM_UPS; k++) {
    space.setUint32(address, k);
    const child = space.sync.fork();
    child.getUint32(address);
    child.sync.exit();
  }
  const forked = () => {
    // As in a process that was at work: all of its pages are there, and its own.
    for (let at = address; at < address + mib * MIB; at += PAGE) space.setUint32(at, at);
    const begin = performance.now();
    const child = space.sync.fork();
    const between = performance.now();
    space.setUint32(address, 1);
    const end = performance.now();
    for (let at = address + PAGE; at < address + COPIED_BYTES; at += PAGE) space.setUint32(at, at);
    child.sync.exit();
    return [(between - begin) * 1e6, (end - between) * 1e6];
  };
  return {
    memory,
    run: forked,
    native: ["fork", mib],
    lines: [
      { what: `${what} resident`, unit: "us", goal: "at most 0.005 x" },
      { what: `first write after it, ${what}`, unit: "us" },
    ],
  };
}

export default {
  measures: "fork of a space whose private pages are all there, against fork(2)",
  async run({ repetitions }) {
    const cases = [];
    for (const size of SIZES) cases.push(await caseOf(size));
    const result = await besideKernel(cases, { repetitions });
    for (const { memory } of cases) await memory.close();
    return result;
  },
};
