/**
 * The page tables of a space: a radix tree, and which parts of it Linux would have freed.
 *
 * Here tables are freed with their space only, since walks take no lock. Linux frees those of a stretch without any
 * mapping, and mprotect tells nobody where there are none; so each entry of the top table can be marked as cold.
 */
import { SP_COLD, SP_COLD_COUNT, type Pte } from "./layout.ts";
import { unuseSpace, useSpace } from "./lifetime.ts";
import { isValid } from "./pte.ts";
import { radixEnsure, radixFind, TOP_STRETCH } from "./radix.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { firstVma } from "./vma.ts";

/** The entry of a page, its tables made where missing; 0 if the arena is full. Preconditions: mmapLock. */
export function ensureEntry(space: SpaceCore, vpn: number): Pte {
  const { agent, mm, slot } = space;
  // Plain: it changes under mmapLock for writing, but for other faults that come by here.
  if (agent.words[slot + SP_COLD_COUNT] !== 0) warm(space, Math.floor(vpn / TOP_STRETCH));
  return radixEnsure(agent, mm.heap, space.pgd, vpn);
}

function warm(space: SpaceCore, top: number): void {
  const w = space.agent.words;
  const bit = 1 << (top & 31);
  if ((Atomics.and(w, space.slot + SP_COLD + (top >>> 5), ~bit) & bit) !== 0)
    Atomics.sub(w, space.slot + SP_COLD_COUNT, 1);
}

/** Marks the tables around `[start, end)` (pages) where nothing is mapped any more. Preconditions: mmapLock for writing. */
export function chill(space: SpaceCore, start: number, end: number): void {
  const w = space.agent.words;
  const { pageSize } = space.mm;
  for (let top = Math.floor(start / TOP_STRETCH); top * TOP_STRETCH < end; top++) {
    const bit = 1 << (top & 31);
    if (Atomics.load(w, space.pgd + top) === 0) continue;
    if (firstVma(space, top * TOP_STRETCH * pageSize, (top + 1) * TOP_STRETCH * pageSize) !== 0) continue;
    if ((Atomics.or(w, space.slot + SP_COLD + (top >>> 5), bit) & bit) === 0)
      Atomics.add(w, space.slot + SP_COLD_COUNT, 1);
  }
}

/** True if some of `[start, end)` (pages) has a table that Linux would have too. Preconditions: mmapLock. */
export function hasTables(space: SpaceCore, start: number, end: number): boolean {
  const w = space.agent.words;
  for (let top = Math.floor(start / TOP_STRETCH); top * TOP_STRETCH < end; top++) {
    const cold = (Atomics.load(w, space.slot + SP_COLD + (top >>> 5)) & (1 << (top & 31))) !== 0;
    if (!cold && Atomics.load(w, space.pgd + top) !== 0) return true;
  }
  return false;
}

/** How many of the pages from `vpn` on, `most` at most, are mapped one after the other. A hint; never waits. */
export function presentPages(space: SpaceCore, vpn: number, most: number): number {
  const w = space.agent.words;
  useSpace(space, "mirror");
  try {
    for (let k = 0; k < most; k++) {
      const entry = radixFind(w, space.pgd, vpn + k);
      if (entry === 0 || !isValid(Atomics.load(w, entry))) return k;
    }
    return most;
  } finally {
    unuseSpace(space);
  }
}
