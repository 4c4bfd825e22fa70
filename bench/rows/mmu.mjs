/** What an address space does to its pages, beside the kernel. */
import { performance } from "node:perf_hooks";
import { fileBacking } from "../../.test-build/testing.js";
import { besideKernel, overlap } from "../lib/besideKernel.mjs";
import { keep, lineOf, nsPerOperation } from "../lib/interleave.mjs";
import { MIB, openMemory, PAGE } from "../lib/memory.mjs";
import { temporaryFile } from "../lib/temporaryFile.mjs";

// As in mmuOperations.c.
const PAGES = 8192;
const BYTES = PAGES * PAGE;
const CALLS = 10_000;
const LONG_CALLS = 200;

const FILE_BYTES = 64 * MIB;
const FILE_PAGES = FILE_BYTES / PAGE;
const WORD_BYTES = 4;
/** Of each frame, besides its record: whether it is free, and whether it is zeroed. */
const FRAME_BITS = 2;

const WRITABLE = { prot: "rw", share: "private" };

function touch(space, address, pages) {
  for (let n = 0; n < pages; n++) space.setUint32(address + n * PAGE, n);
}

/** Cases that work in one mapping of resident pages. */
function casesOfPages(space) {
  const address = space.sync.mmap({ length: BYTES, ...WRITABLE });
  touch(space, address, PAGES);
  const inside = address + BYTES / 4;

  const anonymousFault = () => {
    space.sync.madvise(address, BYTES, "dontneed");
    return [nsPerOperation(PAGES, () => touch(space, address, PAGES))];
  };
  const copyOnWriteFault = () => {
    touch(space, address, PAGES);
    const child = space.sync.fork();
    const ns = nsPerOperation(PAGES, () => touch(space, address, PAGES));
    child.sync.exit();
    return [ns];
  };
  const mprotect = (pages, calls) => () => {
    touch(space, inside, pages);
    const flips = () => {
      for (let n = 0; n < calls; n++) {
        space.sync.mprotect(inside, pages * PAGE, "r");
        space.sync.mprotect(inside, pages * PAGE, "rw");
      }
    };
    return [nsPerOperation(2 * calls, flips)];
  };
  const dontneed = (pages) => () => {
    let ms = 0;
    for (let n = 0; n < LONG_CALLS; n++) {
      touch(space, inside, pages);
      const begin = performance.now();
      space.sync.madvise(inside, pages * PAGE, "dontneed");
      ms += performance.now() - begin;
    }
    return [(ms * 1e6) / LONG_CALLS];
  };
  return [
    {
      run: anonymousFault,
      native: ["anon-fault"],
      lines: [{ what: "anonymous fault, write", goal: "at most 0.4 x" }],
    },
    {
      run: copyOnWriteFault,
      native: ["cow-fault"],
      lines: [{ what: "copy-on-write fault after fork", goal: "at most 0.4 x" }],
    },
    {
      run: mprotect(1, CALLS),
      native: ["mprotect", 1],
      lines: [{ what: "mprotect, 1 page", goal: "at most 0.1 x" }],
    },
    {
      run: mprotect(1000, LONG_CALLS),
      native: ["mprotect", 1000],
      lines: [{ what: "mprotect, 1,000 pages", goal: "at most 0.2 x" }],
    },
    {
      run: dontneed(1000),
      native: ["dontneed", 1000],
      lines: [{ what: "madvise dontneed, 1,000 pages", goal: "at most 0.15 x" }],
    },
  ];
}

/** Cases of one page that is unmapped and mapped again. */
function casesOfRemapping(space) {
  const address = space.sync.mmap({ length: 3 * PAGE, ...WRITABLE }) + PAGE;
  const request = { address, length: PAGE, fixed: true, ...WRITABLE };
  const remap = () => {
    for (let n = 0; n < CALLS; n++) {
      space.sync.munmap(address, PAGE);
      space.sync.mmap(request);
    }
  };
  const remapAndTouch = () => {
    for (let n = 0; n < CALLS; n++) {
      space.sync.munmap(address, PAGE);
      space.sync.mmap(request);
      space.setUint32(address, n);
    }
  };
  return [
    {
      run: () => [nsPerOperation(CALLS, remap)],
      native: ["remap"],
      lines: [{ what: "munmap and mmap of 1 page" }],
    },
    {
      run: () => [nsPerOperation(CALLS, remapAndTouch)],
      native: ["remap", "touch"],
      lines: [{ what: "munmap and mmap of 1 page, and a write" }],
    },
  ];
}

/** The case of a mapped file that the page cache has. */
async function caseOfFile(memory, space) {
  const path = temporaryFile(FILE_BYTES);
  const file = await memory.openFile(fileBacking(path));
  const mapping = { length: FILE_BYTES, prot: "r", share: "shared", file };
  const faults = () => {
    const address = space.sync.mmap(mapping);
    let sum = 0;
    const ns = nsPerOperation(FILE_PAGES, () => {
      for (let n = 0; n < FILE_PAGES; n++) sum ^= space.getUint32(address + n * PAGE);
    });
    keep(sum);
    space.sync.munmap(address, FILE_BYTES);
    return [ns];
  };
  return {
    run: faults,
    native: ["file-fault", path],
    lines: [{ what: "file fault, per page, 64 KiB around", goal: "at most 350 ns" }],
  };
}

/** Bytes of records for each page that is resident: its frame's, and what grows in the arena. Not a matter of time. */
async function bookkeeping() {
  const { memory, space } = await openMemory((2 * FILE_BYTES) / MIB + 16);
  await overlap(space);
  const file = await memory.openFile(fileBacking(temporaryFile(FILE_BYTES)));
  const { frames } = memory.mm;
  const record = (frames.folioAt(1) - frames.folioAt(0)) * WORD_BYTES + FRAME_BITS / 8;
  const perPage = (use) => {
    const before = memory.stats().arenaBytes;
    use();
    return [record + (memory.stats().arenaBytes - before) / FILE_PAGES];
  };
  // What each agent and each space has once is no matter of pages.
  touch(space, space.sync.mmap({ length: PAGE, ...WRITABLE }), 1);
  const anonymous = perPage(() => {
    touch(space, space.sync.mmap({ length: FILE_BYTES, ...WRITABLE }), FILE_PAGES);
  });
  const cached = perPage(() => {
    const address = space.sync.mmap({ length: FILE_BYTES, prot: "r", share: "shared", file });
    for (let n = 0; n < FILE_PAGES; n++) keep(space.getUint32(address + n * PAGE));
  });
  await memory.close();
  const goal = "at most 24 bytes";
  return [
    lineOf({ what: "bookkeeping, an anonymous page", unit: "bytes", bifolio: anonymous, goal }),
    lineOf({ what: "bookkeeping, a page of a file", unit: "bytes", bifolio: cached, goal }),
  ];
}

export default {
  measures: "faults and operations on mappings, per page or per call, against the kernel's own",
  async run({ repetitions }) {
    const { memory, space } = await openMemory((FILE_BYTES + 3 * BYTES) / MIB);
    await overlap(space);
    const cases = [...casesOfPages(space), ...casesOfRemapping(space), await caseOfFile(memory, space)];
    const { notes, lines } = await besideKernel(cases, { repetitions });
    await memory.close();
    return { notes, lines: [...lines, ...(await bookkeeping())] };
  },
};
