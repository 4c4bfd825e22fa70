/**
 * When Linux may take a page that was shared by fork for its own again: it collects some pages in batches, which hold a
 * reference to each until they are emptied. Till then such a page is copied, though nobody else has it.
 *
 *   what goes in a batch                                    what empties it
 *   a page that madvise free gives up                       madvise free, cold, pageout
 *   a page that a locked mapping loses to unmapping         mlock, munlock, populating
 *   or to copy-on-write                                     exit
 *
 * A frame's flags say in which batch it is, by the low bits of how often they were emptied. A page that stays until the
 * count comes round counts as collected again, and is copied once more than need be.
 */
import {
  PG_ANON,
  PG_BATCH_MASK,
  PG_BATCH_SHIFT,
  PG_BATCHED,
  PG_LAZYFREE,
  ZERO_PFN,
} from "../memory/index.ts";
import { MM_DRAINS, VM_LOCKED } from "./layout.ts";
import type { Mm } from "./mm.ts";
import { isValid, pfnOfPte } from "./pte.ts";
import { inSharedTable } from "./pageTables.ts";
import { radixStretches } from "./radix.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { firstVma, nextVma, vmaEnd, vmaFlags, vmaStart } from "./vma.ts";

/** Linux: lru_add_drain(). */
export function drainBatches(mm: Mm): void {
  Atomics.add(mm.agent.words, mm.header + MM_DRAINS, 1);
}

/** What the flags of a page say that is in the batch now. */
const currentOf = (mm: Mm): number =>
  PG_BATCHED | ((Atomics.load(mm.agent.words, mm.header + MM_DRAINS) << PG_BATCH_SHIFT) & PG_BATCH_MASK);

/** Puts a mapped anonymous page in the batch. */
function batch(mm: Mm, pfn: number): void {
  mm.frames.clearFlags(pfn, PG_BATCH_MASK);
  mm.frames.setFlags(pfn, currentOf(mm));
}

/** Calls `visit` with the frame of each entry of `[first, end)` (pages) that maps an anonymous page. */
function eachAnonymous(
  space: SpaceCore,
  first: number,
  end: number,
  visit: (pfn: number, vpn: number) => void,
): void {
  const { agent, mm } = space;
  radixStretches(agent.words, space.pgd, first, end, (entry, vpn, count) => {
    for (let k = 0; k < count; k++) {
      const pte = Atomics.load(agent.words, entry + k);
      const pfn = pfnOfPte(pte);
      if (isValid(pte) && pfn !== ZERO_PFN && (mm.frames.flags(pfn) & PG_ANON) !== 0) visit(pfn, vpn + k);
    }
  });
}

/** Marks the anonymous pages of `[first, end)` (pages) as given up by madvise free. Preconditions: mmapLock. */
export function batchFreed(space: SpaceCore, first: number, end: number): void {
  const { mm } = space;
  eachAnonymous(space, first, end, (pfn) => {
    if ((mm.frames.setFlags(pfn, PG_LAZYFREE) & PG_LAZYFREE) === 0) batch(mm, pfn);
  });
}

/** Notes which pages locked mappings of `[start, end)` (bytes) are about to lose. Preconditions: mmapLock. */
export function batchLocked(space: SpaceCore, start: number, end: number): void {
  const { mm } = space;
  for (let vma = firstVma(space, start, end); vma !== 0; vma = nextVma(space, vma, start, end)) {
    if ((vmaFlags(space, vma) & VM_LOCKED) === 0) continue;
    const first = Math.max(start, vmaStart(space, vma)) / mm.pageSize;
    const last = Math.min(end, vmaEnd(space, vma)) / mm.pageSize;
    eachAnonymous(space, first, last, (pfn, vpn) => {
      // Else it is gone with the mapping.
      if (mm.frames.mapcount(pfn) > 1 || inSharedTable(space, vpn)) batch(mm, pfn);
    });
  }
}

/** Notes that copy-on-write takes a page from a locked mapping. Preconditions: mmapLock; still mapped. */
export function batchReplaced(mm: Mm, pfn: number): void {
  if ((mm.frames.flags(pfn) & PG_ANON) !== 0 && mm.frames.mapcount(pfn) >= 2) batch(mm, pfn);
}

export const isBatched = (mm: Mm, pfn: number): boolean =>
  (mm.frames.flags(pfn) & (PG_BATCHED | PG_BATCH_MASK)) === currentOf(mm);
