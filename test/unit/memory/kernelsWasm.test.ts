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
    getRange(ENTRIES * WORD, count, -0x100 | 3, (pfn << 8) | 3, 0x100, 8, COUNTERS * WORD, STRIDE);
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
