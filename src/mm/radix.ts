/**
 * Radix trees over 31-bit indices with 32-bit entries: page tables, and the page caches of files.
 * Three levels: 2048 x 1024 x 1024 entries. Linux: pgd/pmd/pte, and the xarray.
 *
 * Tables are added by compare-exchange, by any agent, without a lock. Entries are the callers' business.
 *
 * The pointers to tables are read with plain loads: a stale 0 sends the reader to a slower path that looks again with
 * Atomics; a pointer that is seen leads to a table that was zeroed before. Those of a page cache change once, from 0. Those
 * of a page table may also be taken over from another space and changed again: pageTables.ts has the rules for these, and
 * the meaning of TABLE_SHARED in them.
 */
import { allocWords, freeWords, HEAP_PAGE_WORDS } from "../memory/index.ts";
import type { Agent } from "../sched/index.ts";
import type { Pte } from "./layout.ts";

const LEAF_BITS = 10;
/** Entries of a table of the lowest level. */
export const LEAF_ENTRIES = 1024;
const LEAF_MASK: number = LEAF_ENTRIES - 1;
const TOP_SHIFT = 20;
const TOP_ENTRIES = 2048;
/** Indices that one entry of the top table stands for. */
export const TOP_STRETCH: number = 2 ** TOP_SHIFT;

/** Indices below this one exist. */
export const INDEX_END: number = 2 ** 31;

/** In a pointer to a table of the lowest level; tables begin at multiples of 1024 words. */
export const TABLE_SHARED = 1;

/** A new tree, or 0 if the arena is full. */
export function createRadix(agent: Agent, heap: number): number {
  return allocWords(agent, heap, TOP_ENTRIES);
}

/** The entry of an index, or 0 if no table covers it. */
export function radixFind(w: Int32Array, root: number, index: number): Pte {
  const middle = w[root + (index >>> TOP_SHIFT)]!;
  if (middle === 0) return 0 as Pte;
  const leaf = w[middle + ((index >>> LEAF_BITS) & LEAF_MASK)]! & ~TABLE_SHARED;
  return (leaf === 0 ? 0 : leaf + (index & LEAF_MASK)) as Pte;
}

/** Where the pointer to the lowest table of an index is, or 0 if there is no table above it. */
export function radixPointer(w: Int32Array, root: number, index: number): number {
  const middle = w[root + (index >>> TOP_SHIFT)]!;
  return middle === 0 ? 0 : middle + ((index >>> LEAF_BITS) & LEAF_MASK);
}

/** The entry of an index in the table that a pointer means, which is not 0. */
export const entryIn = (pointer: number, index: number): Pte =>
  ((pointer & ~TABLE_SHARED) + (index & LEAF_MASK)) as Pte;

function ensureTable(agent: Agent, heap: number, at: number): number {
  const w = agent.words;
  const table = w[at]!;
  if (table !== 0) return table;
  const fresh = allocWords(agent, heap, HEAP_PAGE_WORDS);
  if (fresh === 0) return 0;
  const winner = Atomics.compareExchange(w, at, 0, fresh);
  if (winner === 0) return fresh;
  freeWords(agent, heap, fresh, HEAP_PAGE_WORDS);
  return winner;
}

/** Where the pointer to the lowest table of an index is, the table above it made where missing; 0 if the arena is full. */
export function radixEnsurePointer(agent: Agent, heap: number, root: number, index: number): number {
  const middle = ensureTable(agent, heap, root + (index >>> TOP_SHIFT));
  return middle === 0 ? 0 : middle + ((index >>> LEAF_BITS) & LEAF_MASK);
}

/** The entry of an index, its tables made where missing; 0 if the arena is full. */
export function radixEnsure(agent: Agent, heap: number, root: number, index: number): Pte {
  const at = radixEnsurePointer(agent, heap, root, index);
  const leaf = at === 0 ? 0 : ensureTable(agent, heap, at);
  return leaf === 0 ? (0 as Pte) : entryIn(leaf, index);
}

/** Calls `visit(first entry, its index, entries, its pointer)` for each stretch of `[start, end)` that has a table. */
export function radixStretches(
  w: Int32Array,
  root: number,
  start: number,
  end: number,
  visit: (entry: Pte, index: number, count: number, pointer: number) => void,
): void {
  for (let top = start >>> TOP_SHIFT; top * TOP_STRETCH < end; top++) {
    const middle = w[root + top]!;
    if (middle === 0) continue;
    const base = top * TOP_STRETCH;
    const last = Math.min(end - base, TOP_STRETCH);
    for (let k = Math.max(start - base, 0) >>> LEAF_BITS; k * LEAF_ENTRIES < last; k++) {
      const leaf = w[middle + k]!;
      if (leaf === 0) continue;
      const first = Math.max(start, base + k * LEAF_ENTRIES);
      visit(entryIn(leaf, first), first, Math.min(last, (k + 1) * LEAF_ENTRIES) + base - first, middle + k);
    }
  }
}

/** Entries from `index` to the end of its table. */
export const radixRun = (index: number): number => LEAF_ENTRIES - (index & LEAF_MASK);

/** Frees all tables and the tree. Preconditions: nobody walks it any more; no table is shared. */
export function destroyRadix(agent: Agent, heap: number, root: number): void {
  const w = agent.words;
  for (let top = 0; top < TOP_ENTRIES; top++) {
    const middle = w[root + top]!;
    if (middle === 0) continue;
    for (let k = 0; k < LEAF_ENTRIES; k++) {
      const leaf = w[middle + k]!;
      if (leaf !== 0) freeWords(agent, heap, leaf, HEAP_PAGE_WORDS);
    }
    freeWords(agent, heap, middle, HEAP_PAGE_WORDS);
  }
  freeWords(agent, heap, root, TOP_ENTRIES);
}
