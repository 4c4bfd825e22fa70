/**
 * Radix trees over 31-bit indices with 32-bit entries: page tables, and the page caches of files.
 * Three levels: 2048 x 1024 x 1024 entries. Linux: pgd/pmd/pte, and the xarray.
 *
 * Tables are added by compare-exchange, by any agent, without a lock; they are freed with their tree only, so a walk
 * never meets a freed one. Entries are the callers' business.
 *
 * The pointers to tables are read with plain loads: each changes once, from 0, by compare-exchange. A stale 0 sends the
 * reader to a slower path that looks again with Atomics; a pointer that is seen leads to a table that was zeroed before.
 */
import { allocWords, freeWords, HEAP_PAGE_WORDS } from "../memory/index.ts";
import type { Agent } from "../sched/index.ts";
import type { Pte } from "./layout.ts";

const LEAF_BITS = 10;
const LEAF_ENTRIES = 1024;
const LEAF_MASK: number = LEAF_ENTRIES - 1;
const TOP_SHIFT = 20;
const TOP_ENTRIES = 2048;
/** Indices that one entry of the top table stands for. */
export const TOP_STRETCH: number = 2 ** TOP_SHIFT;

/** Indices below this one exist. */
export const INDEX_END: number = 2 ** 31;

/** A new tree, or 0 if the arena is full. */
export function createRadix(agent: Agent, heap: number): number {
  return allocWords(agent, heap, TOP_ENTRIES);
}

/** The entry of an index, or 0 if no table covers it. */
export function radixFind(w: Int32Array, root: number, index: number): Pte {
  const middle = w[root + (index >>> TOP_SHIFT)]!;
  if (middle === 0) return 0 as Pte;
  const leaf = w[middle + ((index >>> LEAF_BITS) & LEAF_MASK)]!;
  return (leaf === 0 ? 0 : leaf + (index & LEAF_MASK)) as Pte;
}

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

/** The entry of an index, its tables made where missing; 0 if the arena is full. */
export function radixEnsure(agent: Agent, heap: number, root: number, index: number): Pte {
  const middle = ensureTable(agent, heap, root + (index >>> TOP_SHIFT));
  if (middle === 0) return 0 as Pte;
  const leaf = ensureTable(agent, heap, middle + ((index >>> LEAF_BITS) & LEAF_MASK));
  return (leaf === 0 ? 0 : leaf + (index & LEAF_MASK)) as Pte;
}

/** Calls `visit(first entry, its index, entries)` for each stretch of `[start, end)` that has a table. */
export function radixStretches(
  w: Int32Array,
  root: number,
  start: number,
  end: number,
  visit: (entry: Pte, index: number, count: number) => void,
): void {
  for (let index = start; index < end;) {
    const middle = Atomics.load(w, root + (index >>> TOP_SHIFT));
    if (middle === 0) {
      index = ((index >>> TOP_SHIFT) + 1) * 2 ** TOP_SHIFT;
      continue;
    }
    const leaf = Atomics.load(w, middle + ((index >>> LEAF_BITS) & LEAF_MASK));
    const next = Math.min(end, ((index >>> LEAF_BITS) + 1) * LEAF_ENTRIES);
    if (leaf !== 0) visit((leaf + (index & LEAF_MASK)) as Pte, index, next - index);
    index = next;
  }
}

/** Entries from `index` to the end of its table. */
export const radixRun = (index: number): number => LEAF_ENTRIES - (index & LEAF_MASK);

/** Frees all tables and the tree. Preconditions: nobody walks it any more. */
export function destroyRadix(agent: Agent, heap: number, root: number): void {
  const w = agent.words;
  for (let top = 0; top < TOP_ENTRIES; top++) {
    const middle = Atomics.load(w, root + top);
    if (middle === 0) continue;
    for (let k = 0; k < LEAF_ENTRIES; k++) {
      const leaf = Atomics.load(w, middle + k);
      if (leaf !== 0) freeWords(agent, heap, leaf, HEAP_PAGE_WORDS);
    }
    freeWords(agent, heap, middle, HEAP_PAGE_WORDS);
  }
  freeWords(agent, heap, root, TOP_ENTRIES);
}
