/**
 * From a page to the entries that map it: unmapping, cleaning, aging. Linux: mm/rmap.c.
 *
 * Preconditions of everything here: the folio locks of the pages are held, so that no new mapping of a file's page appears.
 * Raises one range for each space and stretch, as one large folio does in Linux.
 */
import { endOpenRange, makeRange, MmuNotifierEvent, openRange } from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import { WORD_BYTES } from "../units.ts";
import { type AnonMapping, anonMappingsOf } from "./anonTree.ts";
import { CT_EVENTS, MM_TRACKERS, SP_TRACKERS, type Space } from "./layout.ts";
import { unuseSpace } from "./lifetime.ts";
import type { Mm } from "./mm.ts";
import { type FileCore, type FileMapping, mappingsOf, mapsFilePage } from "./pageCache.ts";
import { loadPte } from "./pageTables.ts";
import { isValid, pfnOfPte, PTE_ACCESSED, PTE_DIRTY, PTE_WRITE } from "./pte.ts";
import { radixStretches } from "./radix.ts";
import { heldByRunning, markTlbs } from "./shootdown.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { noteWrite } from "./trackers.ts";
import { changeRangeOp, dropTaken, takeRangeOp, type Wants } from "./zap.ts";

export function releaseMappings(mm: Mm, mappings: readonly { readonly space: Space }[]): void {
  for (const { space } of mappings) unuseSpace(mm.spaceAt(space));
}

/** True for entries that map the very page of the file, not a private copy of it. */
function mapsPageOf(file: FileCore, mapping: FileMapping): Wants {
  return (pte, vpn) => pfnOfPte(pte) === file.frameOf(mapping.index + (vpn - mapping.vpn));
}

/** Does `body` in each space that may map the pages, between a start and its end. Gives the uses of the spaces back. */
function* eachMappingOp<M extends FileMapping | AnonMapping>(
  mm: Mm,
  mappings: readonly M[],
  event: MmuNotifierEvent,
  body: (space: SpaceCore, mapping: M) => Op<void>,
  done: () => boolean = () => false,
): Op<void> {
  try {
    for (const mapping of mappings) {
      if (done()) break;
      const space = mm.spaceAt(mapping.space);
      const c = space.notifiers.context;
      const range = makeRange(
        c.space,
        mapping.vpn * mm.pageSize,
        (mapping.vpn + mapping.pages) * mm.pageSize,
        event,
        mm.agent.current?.mode !== "try",
      );
      const rest = openRange(c, range, true);
      if (rest) yield* rest;
      mm.count(CT_EVENTS + event);
      try {
        yield* body(space, mapping);
      } finally {
        endOpenRange(c, range);
      }
    }
  } finally {
    releaseMappings(mm, mappings);
  }
}

/** Takes pages of a file out of every page table; their dirtiness goes to the frames. Linux: try_to_unmap(). */
export function* unmapPagesOp(file: FileCore, index: number, pages: number): Op<void> {
  const unmap = function* (space: SpaceCore, mapping: FileMapping): Op<void> {
    const end = mapping.vpn + mapping.pages;
    dropTaken(space, yield* takeRangeOp(space, mapping.vpn, end, mapsPageOf(file, mapping)));
  };
  // As in Linux, those who come after the last that mapped one hear nothing.
  const done = (): boolean => {
    for (let k = index; k < index + pages; k++)
      if (file.mm.frames.mapcount(file.frameOf(k)) !== 0) return false;
    return true;
  };
  yield* eachMappingOp(file.mm, mappingsOf(file, index, pages), MmuNotifierEvent.Clear, unmap, done);
}

/**
 * Takes an anonymous page that madvise free gave up out of the page tables, unless it has been written since, or somebody
 * refers to it besides; says what became of it. The caller has a reference. Spaces that come before the one that maps it in the
 * order of the family hear of it, too. Linux: try_to_unmap_one(), lazyfree.
 * Preconditions: mmapLock of the one space that maps it, which it is to be mapped by once.
 */
export function* unmapFreedOp(mm: Mm, pfn: number): Op<"unmapped" | "written" | "referred to"> {
  const { frames } = mm;
  let kept: "written" | "referred to" | undefined;
  const wants: Wants = (pte) => {
    if (pfnOfPte(pte) !== pfn) return false;
    if ((pte & (PTE_DIRTY | PTE_WRITE)) !== 0) kept = "written";
    else if (frames.refcount(pfn) !== frames.mapcount(pfn) + 1) kept = "referred to";
    return kept === undefined;
  };
  const unmap = function* (space: SpaceCore, { vpn }: AnonMapping): Op<void> {
    dropTaken(space, yield* takeRangeOp(space, vpn, vpn + 1, wants));
  };
  const done = (): boolean => kept !== undefined || frames.mapcount(pfn) === 0;
  yield* eachMappingOp(mm, anonMappingsOf(mm, pfn), MmuNotifierEvent.Clear, unmap, done);
  return kept ?? "unmapped";
}

/** Takes write permission and dirtiness from every entry of these pages. Linux: folio_mkclean(). */
export const cleanPagesOp = (file: FileCore, index: number, pages: number): Op<void> =>
  reducePagesOp(file, index, pages, PTE_WRITE | PTE_DIRTY);

/** Takes write permission from every entry of these pages, in every space. */
export const protectPagesOp = (file: FileCore, index: number, pages: number): Op<void> =>
  reducePagesOp(file, index, pages, PTE_WRITE);

function* reducePagesOp(file: FileCore, index: number, pages: number, clear: number): Op<void> {
  const { mm } = file;
  const mappings = mappingsOf(file, index, pages);
  // A private mapping never has a page of the file writable.
  const shared = mappings.filter((mapping) => mapping.shared);
  releaseMappings(
    mm,
    mappings.filter((mapping) => !mapping.shared),
  );
  yield* eachMappingOp(mm, shared, MmuNotifierEvent.ProtectionPage, function* (space, mapping) {
    const end = mapping.vpn + mapping.pages;
    yield* changeRangeOp(space, mapping.vpn, end, clear, 0, true, mapsPageOf(file, mapping));
  });
}

/**
 * Tells the trackers of every space that maps a page of a file that it is written. The bytes have been written, or cannot
 * be before the folio lock is given back. Never waits.
 */
export function noteFileWrite(file: FileCore, index: number): void {
  const { mm } = file;
  const w = mm.agent.words;
  if (Atomics.load(w, mm.header + MM_TRACKERS) === 0) return;
  const mappings = mappingsOf(file, index, 1);
  for (const { space: slot, vpn } of mappings) {
    if (Atomics.load(w, slot + SP_TRACKERS) === 0) continue;
    const space = mm.spaceAt(slot);
    mm.protect(slot);
    const pte = loadPte(space, vpn);
    // A private copy is another page.
    if (!isValid(pte) || mapsFilePage(mm, pte)) noteWrite(space, vpn);
    mm.unprotect();
  }
  releaseMappings(mm, mappings);
}

/**
 * Tests and clears the accessed state of pages in every space, secondary MMUs included; true if any was young. Marks
 * TLBs without waiting; a page in the TLB of an agent that runs counts as young. Never waits. Linux: folio_referenced().
 */
export function agePages(file: FileCore, index: number, pages: number): boolean {
  const { mm } = file;
  const w = mm.agent.words;
  const mappings = mappingsOf(file, index, pages);
  let young = false;
  for (const mapping of mappings) {
    const space = mm.spaceAt(mapping.space);
    const end = mapping.vpn + mapping.pages;
    const wants = mapsPageOf(file, mapping);
    let mapped = false;
    mm.protect(space.slot);
    radixStretches(w, space.pgd, mapping.vpn, end, (first, vpn, count) => {
      for (let k = 0; k < count; k++) {
        for (let pte = Atomics.load(w, first + k); isValid(pte) && wants(pte, vpn + k);) {
          mapped = true;
          if ((pte & PTE_ACCESSED) === 0) break;
          young = true;
          const seen = Atomics.compareExchange(w, first + k, pte, pte & ~PTE_ACCESSED);
          if (seen === pte) break;
          pte = seen;
        }
      }
    });
    mm.unprotect();
    if (!mapped) continue;
    if (heldByRunning(space, mapping.vpn, end)) young = true;
    markTlbs(space, mapping.vpn, end);
    if (space.notifiers.clearFlushYoung(mapping.vpn * mm.pageSize, end * mm.pageSize)) young = true;
  }
  releaseMappings(mm, mappings);
  return young;
}

/** How many of these pages come before the first that is locked in memory by a mapping. Linux: mlock_future, VM_LOCKED. */
export function pagesBeforeLocked(file: FileCore, index: number, pages: number): number {
  const { mm } = file;
  const mappings = mappingsOf(file, index, pages);
  let before = pages;
  for (const mapping of mappings) if (mapping.locked) before = Math.min(before, mapping.index - index);
  releaseMappings(mm, mappings);
  return before;
}

/** True if a page-table entry that maps one of these pages says that it was accessed, or may say so. Clears nothing. */
export function accessedPages(file: FileCore, index: number, pages: number): boolean {
  const { mm } = file;
  const w = mm.agent.words;
  const mappings = mappingsOf(file, index, pages);
  let bits = 0;
  for (const { space, vpn, pages: mapped } of mappings) {
    radixStretches(w, mm.spaceAt(space).pgd, vpn, vpn + mapped, (first, _vpn, count) => {
      bits |= mm.frames.kernels.orRange(first * WORD_BYTES, count);
    });
  }
  releaseMappings(mm, mappings);
  return (bits & PTE_ACCESSED) !== 0;
}
