/** The host's half of a GPU MMU, without a GPU: page table, pool, accessed pages, the shader's text. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { runsOf } from "../../../../src/units.ts";
import {
  MmuPool,
  SLOT_LEAVING,
  SLOT_REFERENCED,
  SLOT_TOUCHED,
} from "../../../../src/mirrors/webgpu/mmuPool.ts";
import { makeLayout, makeWgsl, TABLE_SLOT, TABLE_WRITE } from "../../../../src/mirrors/webgpu/mmuShader.ts";
import { MmuTable } from "../../../../src/mirrors/webgpu/mmuTable.ts";
import { YoungPages } from "../../../../src/mirrors/webgpu/youngPages.ts";

describe("the page table", () => {
  /** What a shader finds in a copy of the words: as bifolio_translate(). */
  function find(words: Uint32Array, shift: number, vpn: number): number | undefined {
    const mask = 2 ** shift - 1;
    for (let at = Math.imul(vpn + 1, 0x9e3779b1) >>> (32 - shift); ; at = (at + 1) & mask) {
      if (words[at * 2] === vpn + 1) return words[at * 2 + 1]!;
      if (words[at * 2] === 0) return undefined;
    }
  }

  test("after any changes the device's copy has what was set, and nothing else", () => {
    const vpn = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 2 ** 31 - 2 }));
    const change = fc.record({ vpn, slot: fc.nat(31), write: fc.boolean(), remove: fc.boolean() });
    const step = fc.record({ changes: fc.array(change, { maxLength: 40 }), flush: fc.boolean() });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 20 }), (steps) => {
        const shift = 6;
        const table = new MmuTable(shift);
        const device = new Uint32Array(2 * 2 ** shift);
        const model = new Map<number, number>();
        for (const { changes, flush } of [...steps, { changes: [], flush: true }]) {
          for (const { vpn: page, slot, write, remove } of changes) {
            if (remove) {
              model.delete(page);
              table.remove(page);
            } else if (model.has(page) || model.size < 32) {
              model.set(page, (write ? TABLE_WRITE | slot : slot) >>> 0);
              table.set(page, slot, write);
            }
          }
          if (flush) table.flush((word, count) => device.set(table.words.subarray(word, word + count), word));
        }
        for (const [page, value] of model) {
          expect(find(device, shift, page)).toBe(value);
          expect(table.slotOf(page)).toBe(value & TABLE_SLOT);
        }
        const keys = device.filter((key, at) => at % 2 === 0 && key !== 0);
        expect([...keys].sort((a, b) => a - b)).toEqual(
          [...model.keys()].map((k) => k + 1).sort((a, b) => a - b),
        );
      }),
    );
  });

  test("nothing changed is nothing written", () => {
    const table = new MmuTable(6);
    const written: number[] = [];
    table.set(7, 3, false);
    table.flush((_, count) => written.push(count));
    table.flush((_, count) => written.push(count));
    expect(written).toEqual([64]);
    table.clear();
    table.flush((_, count) => written.push(count));
    expect(written).toEqual([64, 128]);
    expect(table.slotOf(7)).toBe(-1);
  });
});

describe("the pool", () => {
  const full = (pages: number, flags = 0): MmuPool => {
    const pool = new MmuPool(pages);
    for (let slot = 0; slot < pages; slot++) pool.install(slot, 100 + slot, 1, flags);
    return pool;
  };

  test("the clock gives pages that were used a second chance", () => {
    const pool = full(4, SLOT_REFERENCED);
    pool.drop(2, SLOT_REFERENCED);
    expect(pool.chooseVictims(1, false)).toEqual([2]);
    pool.add(2, SLOT_REFERENCED);
    expect(pool.chooseVictims(1, false)).toEqual([0]); // the hand has taken the marks of 3, 0 and 1; it goes round
  });

  test("what the last round touched goes last, and only where it may", () => {
    const pool = full(4, SLOT_TOUCHED);
    pool.drop(3, SLOT_TOUCHED);
    expect(pool.chooseVictims(4, false)).toEqual([3]);
    expect(pool.chooseVictims(4, true).toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3]);
  });

  test("what leaves is not chosen", () => {
    const pool = full(2);
    pool.add(0, SLOT_LEAVING);
    expect(pool.chooseVictims(2, true)).toEqual([1]);
  });

  test("finds the pages of a range, small or large", () => {
    const pool = full(8);
    expect(pool.inRange(102, 104)).toEqual([2, 3]);
    expect(pool.inRange(0, 2 ** 40)).toHaveLength(8);
    expect(pool.inRange(104, 2 ** 40)).toEqual([4, 5, 6, 7]);
    pool.release(5);
    expect(pool.inRange(104, 2 ** 40)).toEqual([4, 6, 7]);
    expect(pool.takeFree(3)).toEqual([5]);
    expect(pool.check()).toBeUndefined();
  });
});

test("neighbours in the pool are one transfer", () => {
  expect(runsOf([3, 4, 5, 9, 11, 12])).toEqual([
    { first: 3, end: 6 },
    { first: 9, end: 10 },
    { first: 11, end: 13 },
  ]);
});

describe("young pages", () => {
  const PAGE = 4096;
  test.each([
    ["of a space without a bitmap", undefined],
    ["in a bitmap", { start: 10 * PAGE, length: 100 * PAGE, bits: new Int32Array(4) }],
  ])("%s", (_, bitmap) => {
    const young = new YoungPages(bitmap, PAGE);
    for (const vpn of [10, 40, 41, 109]) young.mark(vpn);
    expect(young.test(11, 40, false)).toBe(false);
    expect(young.test(0, 2 ** 31, false)).toBe(true);
    expect(young.test(40, 41, true)).toBe(true);
    expect(young.test(40, 41, true)).toBe(false);
    expect(young.test(41, 42, false)).toBe(true);
    expect(young.test(0, 2 ** 31, true)).toBe(true);
    expect(young.test(0, 2 ** 31, true)).toBe(false);
  });
});

test("the module's text depends on pages, pool and group only", () => {
  const layout = makeLayout(65536, 1000);
  expect(layout).toMatchObject({ pageShift: 16, tableShift: 11, missShift: 11 });
  expect(makeWgsl(layout, 2)).toBe(makeWgsl(makeLayout(65536, 1000), 2));
  expect(makeWgsl(layout, 2)).toContain("@group(2) @binding(2)");
  const functions = [...makeWgsl(layout, 2).matchAll(/^fn (bifolio_\w+)/gm)].map(([, name]) => name);
  expect(functions).toMatchInlineSnapshot(`
    [
      "bifolio_hash",
      "bifolio_key",
      "bifolio_record",
      "bifolio_translate",
      "bifolio_begin",
      "bifolio_missed",
      "bifolio_finish",
      "bifolio_add",
      "bifolio_element",
      "bifolio_load_u32",
      "bifolio_store_u32",
      "bifolio_load_i32",
      "bifolio_store_i32",
      "bifolio_load_f32",
      "bifolio_store_f32",
      "bifolio_load_vec2u",
      "bifolio_store_vec2u",
      "bifolio_load_vec4u",
      "bifolio_store_vec4u",
      "bifolio_load_vec2f",
      "bifolio_store_vec2f",
      "bifolio_load_vec4f",
      "bifolio_store_vec4f",
      "bifolio_load_u8",
      "bifolio_load_u16",
      "bifolio_prepare_store",
      "bifolio_load_u32_at",
      "bifolio_store_u32_at",
      "bifolio_load_i32_at",
      "bifolio_store_i32_at",
      "bifolio_load_f32_at",
      "bifolio_store_f32_at",
      "bifolio_load_vec2u_at",
      "bifolio_store_vec2u_at",
      "bifolio_load_vec4u_at",
      "bifolio_store_vec4u_at",
      "bifolio_load_vec2f_at",
      "bifolio_store_vec2f_at",
      "bifolio_load_vec4f_at",
      "bifolio_store_vec4f_at",
      "bifolio_load_u8_at",
      "bifolio_load_u16_at",
      "bifolio_prepare_store_at",
    ]
  `);
});
