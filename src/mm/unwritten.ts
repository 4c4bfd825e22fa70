/**
 * Whether a page could have been stored to without an event for those who keep copies of it. A translation that allows
 * stores says nothing when it is used; so a copy is known to be good only where there is none.
 */
import { PG_ANON, ZERO_PFN } from "../memory/index.ts";
import { FILE_WRITABLE, FL_WRITABLE } from "./layout.ts";
import { isValid, pfnOfPte, PTE_WRITE } from "./pte.ts";
import { loadPte } from "./pageTables.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { anyHeldRuns } from "./views.ts";

/** The page may have been, or be, stored to by somebody who need not tell. */
export const COPY_DOUBTFUL = 0;
/** Nobody stores to it before its page-table entry becomes writable: copyHolds() tells. */
export const COPY_WATCHED = 1;
/** Nobody stores to it without an event: a page of a file that was opened for reading, or the zero page. */
export const COPY_SAFE = 2;

/**
 * What a copy of a page that is taken now is worth until the next event. Preconditions: the entry of `vpn` maps `pfn`, and no
 * safepoint of this agent since that was found. Never waits.
 */
export function copyWorth(space: SpaceCore, vpn: number, pfn: number): number {
  const { frames } = space.mm;
  if (pfn === ZERO_PFN) return COPY_SAFE;
  if ((frames.flags(pfn) & PG_ANON) === 0) {
    // The page of a file that can be written changes by other mappings of it, and by write().
    const file = frames.mapping(pfn);
    if (file === 0) return COPY_DOUBTFUL;
    return (Atomics.load(space.agent.words, file + FL_WRITABLE) & FILE_WRITABLE) === 0
      ? COPY_SAFE
      : COPY_DOUBTFUL;
  }
  // A pin or a writable view goes on storing after the entry has lost its permission.
  return copyHolds(space, vpn, pfn) && !anyHeldRuns(space.mm) ? COPY_WATCHED : COPY_DOUBTFUL;
}

/**
 * True if a copy that was COPY_WATCHED is still good. Preconditions: no event for the page since. Never waits.
 * An entry that was writable in between is writable still, because its permission goes with an event only.
 */
export function copyHolds(space: SpaceCore, vpn: number, pfn: number): boolean {
  const pte = loadPte(space, vpn);
  return isValid(pte) && pfnOfPte(pte) === pfn && (pte & PTE_WRITE) === 0;
}
