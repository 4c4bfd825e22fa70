import { describe, expect, test } from "vitest";
import type { LockOwner } from "../../../src/sched/index.ts";
import {
  allocWords,
  blockWords,
  checkHeap,
  freeWords,
  HEAP_BASE,
  HEAP_BINS_SET,
  HEAP_HIGH,
  HEAP_LOCK,
  HEAP_MAP,
  HEAP_PAGE_WORDS,
  HEAP_PAGES,
  HEAP_PARTIAL,
  HEAP_USED,
  heapFreeWords,
  heapUsedWords,
  initHeap,
  PAGE_BITS,
  PAGE_FREE,
  PAGE_IN_USE,
  PAGE_KIND,
  PAGE_RUN,
  PAGE_TOUCHED,
  setHeapDebug,
  SLAB_HEADER_WORDS,
} from "../../../src/memory/slab.ts";

const HEAP = 8;
const FIRST = HEAP + SLAB_HEADER_WORDS;
const ENTRY_WORDS = 16;
const GARBAGE = 0x1234_5678;

/** An agent with a heap of `pages` pages in an arena of its own. */
function makeHeap(pages: number): LockOwner {
  // One page for header, map and alignment.
  const buffer = new SharedArrayBuffer((pages + 1) * HEAP_PAGE_WORDS * 4);
  const agent = { words: new Int32Array(buffer), doubles: new Float64Array(buffer), ownerId: 1 };
  initHeap(agent, HEAP, FIRST, agent.words.length);
  expect(agent.words[HEAP + HEAP_PAGES]).toBe(pages);
  return agent;
}

const entryAt = (a: LockOwner, page: number): number => a.words[HEAP + HEAP_MAP]! + page * ENTRY_WORDS;
const block = (a: LockOwner, at: number, words: number): number[] => [...a.words.subarray(at, at + words)];
const zeros = (words: number): number[] => Array.from({ length: words }, () => 0);

describe("layout of the heap", () => {
  test("pages are 4 KiB aligned in the arena and end before its end", () => {
    for (const first of [1, 7, 900, 1024, 5000]) {
      for (const end of [first + 3000, first + 20_001, 65_536]) {
        const a = { words: new Int32Array(end), doubles: new Float64Array(0) };
        initHeap(a, 0, Math.max(first, SLAB_HEADER_WORDS), end);
        const base = a.words[HEAP_BASE]!;
        const pages = a.words[HEAP_PAGES]!;
        const map = a.words[HEAP_MAP]!;
        expect(base % HEAP_PAGE_WORDS).toBe(0);
        expect(map).toBeGreaterThanOrEqual(first);
        expect(base).toBeGreaterThanOrEqual(map + pages * ENTRY_WORDS);
        expect(base + pages * HEAP_PAGE_WORDS).toBeLessThanOrEqual(end);
      }
    }
  });

  test("a region too small for a page makes a heap that is exhausted", () => {
    const a = { words: new Int32Array(500), doubles: new Float64Array(250), ownerId: 1 };
    initHeap(a, HEAP, FIRST, 500);
    expect(heapFreeWords(a, HEAP)).toBe(0);
    expect(allocWords(a, HEAP, 4)).toBe(0);
    expect(allocWords(a, HEAP, 1024)).toBe(0);
    expect(checkHeap(a, HEAP)).toBeUndefined();
  });

  test("every length has a block that holds it, aligned, and a bounded waste", () => {
    for (let words = 1; words <= 3 * HEAP_PAGE_WORDS; words++) {
      const got = blockWords(words);
      expect(got).toBeGreaterThanOrEqual(words);
      expect(got % 4).toBe(0);
      if (words <= 64) expect(got).toBeLessThan(words + 4);
      else if (words <= 256) expect(got).toBeLessThan(words * 1.28);
      else expect(got - words).toBeLessThan(words <= 1024 ? words : HEAP_PAGE_WORDS);
    }
    for (const exact of [4, 12, 16, 64, 128, 256, 512, 1024, 2048, 5120])
      expect(blockWords(exact)).toBe(exact);
  });
});

describe("allocWords", () => {
  test("gives zeroed, aligned blocks that do not overlap, for each length", () => {
    const a = makeHeap(40);
    const taken = new Uint8Array(a.words.length);
    for (const words of [
      1, 3, 4, 5, 16, 63, 64, 65, 100, 129, 200, 300, 500, 512, 513, 1000, 1024, 1025, 5000,
    ]) {
      const at = allocWords(a, HEAP, words);
      expect(at).toBeGreaterThan(FIRST);
      expect(at % (words > 512 ? HEAP_PAGE_WORDS : 4)).toBe(0);
      expect(block(a, at, words)).toEqual(zeros(words));
      expect(taken.subarray(at, at + words).every((x) => x === 0)).toBe(true);
      taken.fill(1, at, at + words);
      a.words.fill(-1, at, at + words);
      expect(checkHeap(a, HEAP)).toBeUndefined();
    }
  });

  test("1024-word blocks fill the whole heap without waste", () => {
    const a = makeHeap(33);
    for (let n = 0; n < 33; n++) expect(allocWords(a, HEAP, 1024) % 1024).toBe(0);
    expect(heapFreeWords(a, HEAP)).toBe(0);
    expect(allocWords(a, HEAP, 1)).toBe(0);
    expect(checkHeap(a, HEAP)).toBeUndefined();
  });

  test("records fill a page without waste worth a record", () => {
    const a = makeHeap(1);
    for (let n = 0; n < 64; n++) expect(allocWords(a, HEAP, 16)).not.toBe(0);
    expect(heapFreeWords(a, HEAP)).toBe(0);
    expect(allocWords(a, HEAP, 16)).toBe(0);
  });

  test("a block that was used before comes back zeroed", () => {
    const a = makeHeap(8);
    for (const words of [4, 7, 60, 400, 1023, 1024, 2500, 8192]) {
      const at = allocWords(a, HEAP, words);
      a.words.fill(-1, at, at + words);
      freeWords(a, HEAP, at, words);
      const again = allocWords(a, HEAP, words);
      expect(block(a, again, words)).toEqual(zeros(words));
      freeWords(a, HEAP, again, words);
    }
  });

  test("a block of used and new pages comes zeroed", () => {
    const a = makeHeap(4);
    const at = allocWords(a, HEAP, 2048);
    a.words.fill(-1, at, at + 2048);
    freeWords(a, HEAP, at, 2048);
    const whole = allocWords(a, HEAP, 4096);
    expect(whole).toBe(at);
    expect(block(a, whole, 4096)).toEqual(zeros(4096));
  });

  test("memory that was never used is neither read nor written before it is needed", () => {
    const a = makeHeap(8);
    const base = a.words[HEAP + HEAP_BASE]!;
    // Against the precondition of initHeap(): so one sees that nobody clears it again.
    a.words.fill(GARBAGE, base, base + 8 * HEAP_PAGE_WORDS);
    const record = allocWords(a, HEAP, 16);
    const next = allocWords(a, HEAP, 16);
    const page = allocWords(a, HEAP, 1024);
    for (const at of [record, next, page]) expect(a.words[at]).toBe(GARBAGE);
    expect(a.words[HEAP + HEAP_HIGH]).toBe(2);
    expect(entryAt(a, 2)).toBeLessThan(base);
    expect(block(a, entryAt(a, 2), ENTRY_WORDS)).toEqual(zeros(ENTRY_WORDS));
  });

  test("used pages are preferred to new ones", () => {
    const a = makeHeap(8);
    const first = allocWords(a, HEAP, 1024);
    const second = allocWords(a, HEAP, 1024);
    freeWords(a, HEAP, first, 1024);
    expect(allocWords(a, HEAP, 300)).toBe(first);
    freeWords(a, HEAP, second, 1024);
    expect(allocWords(a, HEAP, 1024)).toBe(second);
    expect(a.words[HEAP + HEAP_HIGH]).toBe(2);
  });

  test("an allocation that fails changes nothing", () => {
    const a = makeHeap(4);
    const blocks = [1, 2, 3, 4].map(() => allocWords(a, HEAP, 1024));
    freeWords(a, HEAP, blocks[0]!, 1024);
    freeWords(a, HEAP, blocks[2]!, 1024);
    const before = a.words.slice();
    for (const words of [1025, 2048, 4096, 5000, 1 << 30, 2 ** 31 - 1])
      expect(allocWords(a, HEAP, words)).toBe(0);
    expect(a.words).toEqual(before);
    expect(allocWords(a, HEAP, 1024)).not.toBe(0);
    expect(allocWords(a, HEAP, 8)).not.toBe(0);
    expect(allocWords(a, HEAP, 1024)).toBe(0);
  });

  test("a run of the right list that is too short is passed over for one that is long enough", () => {
    const a = makeHeap(20);
    // Free runs of 5 and of 7 pages, both in the list for 4 to 7 pages, the shorter one first.
    const long = allocWords(a, HEAP, 7 * 1024);
    allocWords(a, HEAP, 1024);
    const short = allocWords(a, HEAP, 5 * 1024);
    allocWords(a, HEAP, 7 * 1024);
    expect(heapFreeWords(a, HEAP)).toBe(0);
    freeWords(a, HEAP, long, 7 * 1024);
    freeWords(a, HEAP, short, 5 * 1024);
    expect(allocWords(a, HEAP, 6 * 1024)).toBe(long);
    expect(checkHeap(a, HEAP)).toBeUndefined();
  });
});

describe("freeWords", () => {
  test("merges neighbours in any order, so that the whole heap is one block again", () => {
    for (const order of [
      [0, 1, 2, 3],
      [3, 2, 1, 0],
      [0, 2, 1, 3],
      [1, 3, 0, 2],
    ]) {
      const a = makeHeap(8);
      const blocks = [1024, 3000, 1500, 2000].map((words) => ({ words, at: allocWords(a, HEAP, words) }));
      for (const n of order) {
        freeWords(a, HEAP, blocks[n]!.at, blocks[n]!.words);
        expect(checkHeap(a, HEAP)).toBeUndefined();
      }
      expect(heapUsedWords(a, HEAP)).toBe(0);
      expect(allocWords(a, HEAP, 8 * 1024)).not.toBe(0);
    }
  });

  test("the last record of a page gives the page back", () => {
    const a = makeHeap(1);
    const records = Array.from({ length: 256 }, () => allocWords(a, HEAP, 4));
    expect(new Set(records).size).toBe(256);
    expect(allocWords(a, HEAP, 4)).toBe(0);
    for (const at of records) {
      expect(allocWords(a, HEAP, 1024)).toBe(0);
      freeWords(a, HEAP, at, 4);
    }
    expect(allocWords(a, HEAP, 1024)).not.toBe(0);
  });

  test("a freed record keeps its contents until it is handed out again", () => {
    const a = makeHeap(2);
    allocWords(a, HEAP, 16);
    const at = allocWords(a, HEAP, 16);
    a.words.fill(7, at, at + 16);
    freeWords(a, HEAP, at, 16);
    expect(block(a, at, 16)).toEqual(zeros(16).map(() => 7));
  });

  test("debug mode fills what was freed with a pattern", () => {
    const a = makeHeap(8);
    setHeapDebug(a, HEAP, true);
    for (const words of [16, 1024, 2500]) {
      const at = allocWords(a, HEAP, words);
      freeWords(a, HEAP, at, words);
      expect(a.words[at]).not.toBe(0);
      expect(new Set(block(a, at, words)).size).toBe(1);
      const again = allocWords(a, HEAP, words);
      expect(block(a, again, words)).toEqual(zeros(words));
    }
    setHeapDebug(a, HEAP, false);
  });

  test.for([
    ["a record twice", 16, 16, /double free/],
    ["a page twice", 1024, 1024, /double free/],
    ["a run twice", 4000, 4000, /double free/],
  ] as const)("freeing %s throws and changes nothing", ([, words, again, message]) => {
    const a = makeHeap(16);
    const keep = allocWords(a, HEAP, words);
    const at = allocWords(a, HEAP, words);
    freeWords(a, HEAP, at, words);
    const before = a.words.slice();
    expect(() => freeWords(a, HEAP, at, again)).toThrow(message);
    expect(a.words).toEqual(before);
    freeWords(a, HEAP, keep, words);
    // Now the page itself is free.
    expect(() => freeWords(a, HEAP, keep, words)).toThrow(/double free/);
    expect(checkHeap(a, HEAP)).toBeUndefined();
  });

  test.for([
    ["a record as a bigger one", 16, 20, 0, /wrong size: the blocks there have 16 words/],
    ["a record as a page", 16, 1024, 0, /wrong size: the blocks there have 16 words/],
    ["a run as a shorter one", 4000, 2000, 0, /wrong size: the block there has 4 pages/],
    ["a page as a record", 1024, 16, 0, /wrong size: the block there has 1 pages/],
    ["the middle of a record", 16, 16, 4, /inside a block/],
    ["the middle of a page", 1024, 1024, 512, /inside a block/],
    ["the middle of a run", 4000, 4000, 1024, /not allocated/],
    ["what lies before the heap", 16, 16, -4096, /never was a block/],
    ["what was never handed out", 16, 16, 8 * 1024, /never was a block/],
  ] as const)("freeing %s throws and changes nothing", ([, words, asWords, offset, message]) => {
    const a = makeHeap(16);
    const at = allocWords(a, HEAP, words);
    const before = a.words.slice();
    expect(() => freeWords(a, HEAP, at + offset, asWords)).toThrow(message);
    expect(a.words).toEqual(before);
    expect(a.words[HEAP + HEAP_LOCK]).toBe(0);
    freeWords(a, HEAP, at, words);
  });
});

describe("checkHeap", () => {
  /** A heap with a slab page (0), a block (1), a free run (2, 3), a block (4), a full slab page (5). */
  function busyHeap(): LockOwner {
    const a = makeHeap(8);
    allocWords(a, HEAP, 16);
    allocWords(a, HEAP, 16);
    allocWords(a, HEAP, 1024);
    const hole = allocWords(a, HEAP, 2048);
    allocWords(a, HEAP, 1024);
    const tail = allocWords(a, HEAP, 1024);
    freeWords(a, HEAP, hole, 2048);
    // Fills page 5: page 2 would be taken first.
    const filler = allocWords(a, HEAP, 2048);
    freeWords(a, HEAP, tail, 1024);
    allocWords(a, HEAP, 512);
    allocWords(a, HEAP, 512);
    freeWords(a, HEAP, filler, 2048);
    return a;
  }

  test("finds nothing wrong with a busy heap", () => {
    const a = busyHeap();
    expect(checkHeap(a, HEAP)).toBeUndefined();
    expect(a.words[entryAt(a, 2) + PAGE_KIND]).toBe(PAGE_FREE);
    expect(a.words[entryAt(a, 5) + PAGE_IN_USE]).toBe(2);
    expect(heapUsedWords(a, HEAP)).toBe(2 * 16 + 2 * 1024 + 2 * 512);
  });

  const CLASS_OF_16 = 3;
  test.for<[string, (a: LockOwner) => number, number]>([
    ["H1: HEAP_HIGH is 9", () => HEAP + HEAP_HIGH, 9],
    ["H1: page 1 belongs to nothing", (a) => entryAt(a, 1) + PAGE_KIND, 0],
    ["H1: page 1 is of unknown kind", (a) => entryAt(a, 1) + PAGE_KIND, 9],
    ["H1: the run at page 4 has 0 pages", (a) => entryAt(a, 4) + PAGE_RUN, 0],
    ["H1: the run at page 4 has 7 pages", (a) => entryAt(a, 4) + PAGE_RUN, 7],
    ["H2: the free run at page 2 is not merged", (a) => entryAt(a, 1) + PAGE_KIND, PAGE_FREE],
    ["H2: the free run at page 2 is not marked", (a) => entryAt(a, 3) + PAGE_RUN, 1],
    ["H3: page 5, inside the run at page 4", (a) => entryAt(a, 4) + PAGE_RUN, 2],
    ["H4: HEAP_BINS_SET is wrong about list 0", () => HEAP + HEAP_BINS_SET, 3],
    ["H5: slab page 0: PAGE_IN_USE is 3", (a) => entryAt(a, 0) + PAGE_IN_USE, 3],
    ["H5: slab page 0: PAGE_IN_USE is 2, 3 bits", (a) => entryAt(a, 0) + PAGE_BITS, 7],
    ["H5: slab page 0: record 1 is in use", (a) => entryAt(a, 0) + PAGE_TOUCHED, 1],
    ["H5: slab page 0: PAGE_TOUCHED is 65 of 64", (a) => entryAt(a, 0) + PAGE_TOUCHED, 65],
    ["H6: 1 slab pages with room are in no list", () => HEAP + HEAP_PARTIAL + CLASS_OF_16, 0],
    ["H6: page 5 does not belong in the list", () => HEAP + HEAP_PARTIAL + CLASS_OF_16, -5],
    ["H7: HEAP_USED is 99", () => HEAP + HEAP_USED, 99],
  ])("names %s", ([message, where, value]) => {
    const a = busyHeap();
    // A negative value stands for the entry of that page.
    a.words[where(a)] = value < 0 ? entryAt(a, -value) : value;
    expect(checkHeap(a, HEAP)).toContain(message);
  });
});
