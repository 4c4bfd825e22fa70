/** The kernels as kernels.wat exports them; what the memory row makes of them has its own test. */
import { beforeEach, describe, expect, test } from "vitest";
import { KERNELS_WASM } from "../../../src/memory/kernelsWasm.ts";

const PAGE = 65536;
const WORD = 4;

interface Kernels {
  fill: (dst: number, byte: number, len: number) => void;
  copy: (dst: number, src: number, len: number) => void;
  protectRange: (ptr: number, count: number, andMask: number, orMask: number) => number;
  orRange: (ptr: number, count: number) => number;
  maskedCount: (ptr: number, count: number, mask: number, value: number) => number;
}

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

  test("orRange and maskedCount", () => {
    words.set([0b001, 0b011, 0b100, 0b101], 16);
    expect(kernels.orRange(16 * WORD, 4)).toBe(0b111);
    expect(kernels.orRange(17 * WORD, 1)).toBe(0b011);
    expect(kernels.maskedCount(16 * WORD, 4, 0b001, 0b001)).toBe(3);
    expect(kernels.maskedCount(16 * WORD, 4, 0b101, 0b100)).toBe(1);
    expect(kernels.maskedCount(16 * WORD, 4, 0, 0)).toBe(4);
  });

  test("a count of zero touches nothing, not even the address", () => {
    expect(kernels.protectRange(0xffff_fffc, 0, 0, -1)).toBe(0);
    expect(kernels.orRange(0xffff_fffc, 0)).toBe(0);
    expect(kernels.maskedCount(0xffff_fffc, 0, 0, 0)).toBe(0);
  });
});
