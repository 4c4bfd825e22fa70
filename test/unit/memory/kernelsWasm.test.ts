/** The kernels as kernels.wat exports them; what the memory row makes of them has its own test. */
import { beforeEach, describe, expect, test } from "vitest";
import { KERNELS_WASM } from "../../../src/memory/kernelsWasm.ts";
import { type Kernels, plainKernels } from "../../../src/memory/segments.ts";

const PAGE = 65536;
const WORD = 4;

const memory = new WebAssembly.Memory({ initial: 2, maximum: 2, shared: true });
const kernels = new WebAssembly.Instance(
  new WebAssembly.Module(Uint8Array.from(atob(KERNELS_WASM), (char) => char.charCodeAt(0))),
  { env: { memory } },
).exports as unknown as Kernels;
const bytes = new Uint8Array(memory.buffer);
const words = new Int32Array(memory.buffer);

beforeEach(() => void bytes.fill(0));

/** Writes words at word 16, runs, gives back the word before, the words, and the word after. */
function around(values: readonly number[], run: (ptr: number, count: number) => void): number[] {
  words.set([-1, ...values, -1], 15);
  run(16 * WORD, values.length);
  return [...words.subarray(15, 17 + values.length)];
}

describe("fill and copy", () => {
  test("fill sets exactly the bytes asked for", () => {
    kernels.fill(3, 0x1ab, 5);
    expect([...bytes.subarray(0, 10)]).toEqual([0, 0, 0, 0xab, 0xab, 0xab, 0xab, 0xab, 0, 0]);
  });

  test("copy is right where the ranges overlap, in both directions", () => {
    bytes.set([1, 2, 3, 4, 5], 10);
    kernels.copy(12, 10, 5);
    expect([...bytes.subarray(10, 17)]).toEqual([1, 2, 1, 2, 3, 4, 5]);
    kernels.copy(10, 12, 5);
    expect([...bytes.subarray(10, 17)]).toEqual([1, 2, 3, 4, 5, 4, 5]);
  });

  test("a range that leaves the memory traps and changes nothing", () => {
    const end = 2 * PAGE;
    expect(() => kernels.fill(end - 4, 7, 8)).toThrow(WebAssembly.RuntimeError);
    expect(() => kernels.copy(end - 4, 0, 8)).toThrow(WebAssembly.RuntimeError);
    expect([...bytes.subarray(end - 4)]).toEqual([0, 0, 0, 0]);
    kernels.fill(end, 7, 0);
  });

  test("addresses above 2 GiB are unsigned", () => {
    const high = 0x8000_0000;
    expect(() => kernels.fill(high, 0, 1)).toThrow(WebAssembly.RuntimeError);
    const large = new WebAssembly.Memory({
      initial: high / PAGE + 1,
      maximum: high / PAGE + 1,
      shared: true,
    });
    const bytesOfLarge = new Uint8Array(large.buffer);
    const { exports } = new WebAssembly.Instance(
      new WebAssembly.Module(Uint8Array.from(atob(KERNELS_WASM), (char) => char.charCodeAt(0))),
      { env: { memory: large } },
    );
    const { fill, orRange } = exports as unknown as Kernels;
    fill(high + 4, 0xff, 4);
    expect([...bytesOfLarge.subarray(high + 3, high + 9)]).toEqual([0, 255, 255, 255, 255, 0]);
    expect(orRange(high, 2)).toBe(-1);
  });
});

describe("word kernels", () => {
  test("protectRange changes valid words only and answers the OR of all old words", () => {
    let seen = 0;
    const after = around([0b0111, 0b1_0110, 0b0011, 0], (ptr, count) => {
      seen = kernels.protectRange(ptr, count, ~0b0100, 0b1000);
    });
    expect(after).toEqual([-1, 0b1011, 0b1_0110, 0b1011, 0, -1]);
    expect(seen).toBe(0b1_0111);
  });

  test("protectRange can take the valid bit away, and keeps the sign bit", () => {
    expect(around([-1, 1], (ptr, count) => kernels.protectRange(ptr, count, ~1, 0))).toEqual([-1, -2, 0, -1]);
  });

  test("orRange", () => {
    words.set([0b001, 0b011, 0b100, 0b101], 16);
    expect(kernels.orRange(16 * WORD, 4)).toBe(0b111);
    expect(kernels.orRange(17 * WORD, 1)).toBe(0b011);
  });

  test("a count of zero touches nothing, not even the address", () => {
    expect(kernels.protectRange(0xffff_fffc, 0, 0, -1)).toBe(0);
    expect(kernels.orRange(0xffff_fffc, 0)).toBe(0);
  });
});

describe.each([
  ["WebAssembly", kernels],
  ["plain JavaScript", plainKernels(memory)],
])("references, in %s", (_name, { getRange, putRange }) => {
  // Entries: frame number from bit 8, rights in bits 0 and 1, "accessed" in bit 3. Counters: every third word.
  const ENTRIES = 16;
  const COUNTERS = 64;
  const STRIDE = 3 * WORD;
  const get = (count: number, pfn: number): number =>
    getRange(ENTRIES * WORD, count, -0x100 | 3, (pfn << 8) | 3, 0x100, 8, COUNTERS * WORD, STRIDE, 0xff, 200);
  const counters = (n: number): number[] => Array.from({ length: n }, (_, k) => words[COUNTERS + 3 * k]!);
  const setCounters = (values: readonly number[]): void => {
    for (const [k, value] of values.entries()) words[COUNTERS + 3 * k] = value;
  };

  test("getRange takes a reference to each frame that follows, and marks its entry", () => {
    words.set([0x703, 0x80b, 0x907, 0xa03], ENTRIES);
    setCounters([1, 2, 3, 4]);
    expect(get(3, 7)).toBe(3);
    expect(counters(4)).toEqual([2, 3, 4, 4]);
    expect([...words.subarray(ENTRIES, ENTRIES + 4)]).toEqual([0x70b, 0x80b, 0x90f, 0xa03]);
  });

  test.each([
    ["another frame", 0xb03],
    ["no rights", 0x801],
    ["nothing", 0],
  ])("getRange stops at an entry with %s", (_what, entry) => {
    words.set([0x703, entry, 0x903], ENTRIES);
    setCounters([1, 1, 1]);
    expect(get(3, 7)).toBe(1);
    expect(counters(3)).toEqual([2, 1, 1]);
    expect(words[ENTRIES + 1]).toBe(entry);
  });

  test("getRange stops at a frame that is free", () => {
    words.set([0x703, 0x803], ENTRIES);
    setCounters([1, 0]);
    expect(get(2, 7)).toBe(1);
    expect(counters(2)).toEqual([2, 0]);
  });

  test("getRange stops at a frame with too many references", () => {
    words.set([0x703, 0x803, 0x903], ENTRIES);
    setCounters([0xfc7, 0xfc8, 1]);
    expect(get(3, 7)).toBe(1);
    expect(counters(3)).toEqual([0xfc8, 0xfc8, 1]);
  });

  test("frame numbers use every bit above the rights", () => {
    words[ENTRIES] = (0xabcdef << 8) | 3;
    words[ENTRIES + 1] = (0xabcdf0 << 8) | 3;
    setCounters([1, 1]);
    expect(get(2, 0xabcdef)).toBe(2);
  });

  test("putRange says where a counter ran out", () => {
    setCounters([2, 3, 1, 5]);
    const put = (first: number, count: number): number =>
      putRange((COUNTERS + 3 * first) * WORD, count, STRIDE);
    expect(put(0, 4)).toBe(~3);
    expect(put(3, 1)).toBe(1);
    expect(counters(4)).toEqual([1, 2, 0, 4]);
    expect(put(0, 1)).toBe(~1);
    expect(put(0, 0)).toBe(0);
  });
});

describe.each([
  ["WebAssembly", kernels],
  ["plain JavaScript", plainKernels(memory)],
])(
  "entries taken away and shared, in %s",
  (_name, { takeRange, dropRange, freeRange, heldRange, shareRange }) => {
    // Entries: frame number from bit 8, valid in bit 0, busy in bit 1, dirty in bit 4, exclusive in bit 6.
    const ENTRIES = 16;
    const OLDS = 40;
    // Frames: flags, references and mappings from bit 8, two more words.
    const FRAMES = 64;
    const STRIDE = 4 * WORD;
    const ONE = 0x100;
    const field = (k: number): number => (FRAMES + k) * WORD;
    const FREE = 1024;
    const ZERO = 1040;
    const take = (count: number): number =>
      takeRange(ENTRIES * WORD, count, -0x100, 0x2 | (33 << 2), 0x2, OLDS * WORD);
    const dropped = (count: number): number =>
      dropRange(ENTRIES * WORD, OLDS * WORD, count, 8, 0x50, 0x10, STRIDE, field(0), 0x1000, field(1), ONE);
    const free = (list: readonly number[]): number => {
      words.set(list, OLDS);
      return freeRange(
        OLDS * WORD,
        list.length,
        STRIDE,
        field(0),
        field(2),
        field(3),
        FREE * WORD,
        ZERO * WORD,
      );
    };
    const frame = (pfn: number): number[] => [...words.subarray(FRAMES + 4 * pfn, FRAMES + 4 * pfn + 4)];
    const words16 = (at: number, n: number): number[] => [...words.subarray(at, at + n)];

    test("takeRange makes valid words busy and keeps what they were", () => {
      words.set([0x703, 0, 0x80, 0xfffff_f7f | 0, -1], ENTRIES);
      words.set([9, 9, 9, 9, 9], OLDS);
      expect(take(4)).toBe(2);
      expect(words16(ENTRIES, 5)).toEqual([0x786, 0, 0x80, 0xfffff_f00 | 0x86 | 0, -1]);
      expect(words16(OLDS, 5)).toEqual([0x703, 0, 0, 0xfffff_f7f | 0, 9]);
    });

    test("takeRange says that a word was busy, and leaves it", () => {
      words.set([0x703, 0x806], ENTRIES);
      expect(take(2)).toBe(~1);
      expect(words16(ENTRIES, 2)).toEqual([0x786, 0x806]);
      expect(words16(OLDS, 2)).toEqual([0x703, 0]);
      expect(take(0)).toBe(0);
    });

    test("dropRange empties what was taken, and lists the frames that ran out", () => {
      for (const pfn of [1, 2, 3]) words.set([0x5, pfn === 2 ? ONE + 1 : ONE, 7, 7], FRAMES + 4 * pfn);
      words.set([0x186, 0x286, 0x80, 0x86, 0x386], ENTRIES);
      words.set([0x153, 0x203, 0, 0x003, 0x313], OLDS);
      expect(dropped(5)).toBe(2);
      expect(words16(ENTRIES, 5)).toEqual([0, 0, 0x80, 0, 0]);
      expect(words16(OLDS, 2)).toEqual([1, 3]);
      // Exclusive: not marked as dirty; clean; the frame of zeros, which nobody counts; dirty.
      expect(frame(1)).toEqual([0x5, 0, 7, 7]);
      expect(frame(2)).toEqual([0x5, 1, 7, 7]);
      expect(frame(0)).toEqual([0, 0, 0, 0]);
      expect(frame(3)).toEqual([0x1005, 0, 7, 7]);
      expect(dropped(0)).toBe(0);
    });

    test("dropRange takes the words themselves for what they were", () => {
      words.set([0x5, ONE, 7, 7], FRAMES + 4);
      words.set([0x80, 0x153, 0x203, 0x286, 0x003], ENTRIES);
      words.set([0x5, 3 * ONE, 7, 7], FRAMES + 4 * 2);
      const at = ENTRIES * WORD;
      const ended = dropRange(at, at, 5, 8, 0, 1, STRIDE, field(0), 0x1000, field(1), ONE);
      expect([ended, words[ENTRIES]]).toEqual([1, 1]);
      expect(frame(1)).toEqual([0x5, 0, 7, 7]);
      expect(frame(2)).toEqual([0x5, ONE, 7, 7]);
    });

    test("heldRange finds a frame with references besides its mappings", () => {
      words.set([0x5, 9, 7, 7], FRAMES);
      words.set([0x5, 2 * ONE, 7, 7], FRAMES + 4);
      words.set([0x5, 2 * ONE + 1, 7, 7], FRAMES + 8);
      words.set([0x103, 0x80, 0, 0x003, 0x286, 0x203], ENTRIES);
      const any = (count: number): number => heldRange(ENTRIES * WORD, count, field(1), STRIDE, 8, 0xff);
      expect([0, 1, 5, 6].map(any)).toEqual([0, 0, 0, 1]);
    });

    test("shareRange copies words, and counts each frame once more", () => {
      for (const pfn of [1, 2]) words.set([0x5, pfn * ONE, 7, 7], FRAMES + 4 * pfn);
      words.set([0, 0, 0, 0], FRAMES);
      words.set([0x147, 0x80, 0, 0x103, 0x247, 0x04f, 0x186], ENTRIES);
      words.set([9, 9, 9, 9, 9, 9, 9, 9], OLDS);
      const share = (count: number): number =>
        shareRange(ENTRIES * WORD, OLDS * WORD, count, ~0x44, field(1), STRIDE, 8, ONE);
      expect(share(7)).toBe(0x80 | 0x186);
      const wanted = [0x103, 0x80, 0, 0x103, 0x203, 0x00b, 0x186];
      expect(words16(ENTRIES, 7)).toEqual(wanted);
      expect(words16(OLDS, 8)).toEqual([...wanted, 9]);
      expect([frame(0), frame(1), frame(2)]).toEqual([
        [0, 0, 0, 0],
        [0x5, 3 * ONE, 7, 7],
        [0x5, 3 * ONE, 7, 7],
      ]);
      expect(share(0)).toBe(0);
      expect(frame(1)).toEqual([0x5, 3 * ONE, 7, 7]);
    });

    test("freeRange clears the records and sets the bits, those of a group together or not", () => {
      for (const pfn of [1, 31, 32, 40, 2]) words.set([1, 0, 1, 1], FRAMES + 4 * pfn);
      words[FREE] = 0x10;
      words[ZERO] = -1;
      words[ZERO + 1] = 0x3;
      expect(free([1, 31, 32, 40, 2])).toBe(0);
      expect(words16(FREE, 2)).toEqual([0x10 | 0b110 | (1 << 31), 0x101]);
      expect(words16(ZERO, 2)).toEqual([~(0b110 | (1 << 31)), 0x2]);
      for (const pfn of [1, 31, 32, 40, 2]) expect(frame(pfn)).toEqual([0, 0, 0, 0]);
      expect(free([])).toBe(0);
    });

    test("freeRange names a frame that was free", () => {
      words[FREE + 1] = 0x8;
      expect(free([34, 35])).toBe(35);
      expect(words16(FREE, 2)).toEqual([0, 0xc]);
    });
  },
);

describe.each([
  ["WebAssembly", kernels],
  ["plain JavaScript", plainKernels(memory)],
])("tags, in %s", (_name, { dropTags }) => {
  const FAR = 1 << 31;
  const NONE = FAR;
  // On an odd word: tables are aligned to words only.
  const TABLE = 17;
  const table = (pairs: number): number[] => [...words.subarray(TABLE - 1, TABLE + 2 * pairs + 1)];

  test("dropTags takes near and far tags of the numbers, and no other", () => {
    words.set([6, 60, 5, 50, 2 | FAR, 20, 7, 70], TABLE);
    dropTags(TABLE * WORD, 3, 2, 3, FAR, NONE);
    expect(table(4)).toEqual([0, 6, 60, 5, 50, NONE, 20, 7, 70, 0]);
    // From the end of the table on to its beginning.
    dropTags(TABLE * WORD, 3, 3, 3, FAR, NONE);
    expect(table(4)).toEqual([0, 6, 60, NONE, 50, NONE, 20, 7, 70, 0]);
    dropTags(TABLE * WORD, 3, 6, 0, FAR, NONE);
    expect(table(1)).toEqual([0, 6, 60, NONE]);
  });
});
