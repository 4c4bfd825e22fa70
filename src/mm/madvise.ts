/**
 * madvise. Linux: mm/madvise.c.
 *
 *   what            advice                                                            mmapLock   event
 *   pages go        dontneed, dontneed-locked, free                                   read       CLEAR, each vma
 *   guards          guard-install (where something is mapped), guard-remove           read       CLEAR, each vma; none
 *   pages come      populate-read, populate-write, willneed                           none       as faults
 *   file hole       remove                                                            none       as punchHole()
 *   reclaim         cold, pageout                                                     read       none; CLEAR, each page
 *   flags           normal, sequential, random, dontfork, dofork, dontdump, dodump,
 *                   wipeonfork, keeponfork                                            write      none
 *
 * A hole is skipped, and ENOMEM at the end; a vma that refuses ends the call. What was done before stays.
 *
 * Lock order: mmapLock > folio lock > file lock > heap.
 */
import { arenaFull, MmError } from "../errors.ts";
import { PG_ANON, PG_LAZYFREE, ZERO_PFN } from "../memory/index.ts";
import { MmuNotifierEvent } from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import { type Advice, adviceName, type AdviceName } from "./advice.ts";
import { prepareAnon } from "./anonVma.ts";
import { batchFreed, drainBatches } from "./batches.ts";
import { eachFilePartOp } from "./fileParts.ts";
import {
  type File,
  type Pte,
  VM_DONTCOPY,
  VM_DONTDUMP,
  VM_LOCKED,
  VM_MAYBE_GUARD,
  VM_RAND_READ,
  VM_SEQ_READ,
  VM_SHARED,
  VM_WIPEONFORK,
  VMA_FLAGS,
} from "./layout.ts";
import { usingOp } from "./lifetime.ts";
import { fileAt } from "./pageCache.ts";
import { readAheadOp } from "./pageIn.ts";
import { punchHoleOp } from "./truncate.ts";
import { populateAdviceOp } from "./populate.ts";
import { isValid, pfnOfPte, PTE_ACCESSED, PTE_DIRTY, PTE_GUARD, PTE_WRITE } from "./pte.ts";
import { radixFind, radixRun, radixStretches } from "./radix.ts";
import { ensureEntry, noTables, ownTables } from "./pageTables.ts";
import {
  close,
  extentOf,
  firstPart,
  notMapped,
  openOp,
  type Part,
  readingOp,
  setFlagsLocked,
  writingOp,
} from "./ranges.ts";
import { evictPageOp } from "./reclaim.ts";
import { unmapFreedOp } from "./rmap.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { fileIndexOf, vmaFile, vmaFlags } from "./vma.ts";
import { changeRangeOp, clearGuards, forgetAccesses, zapRangeOp } from "./zap.ts";

/** What each advice about flags sets and clears. */
const FLAGS: Partial<Record<AdviceName, { readonly set: number; readonly clear: number }>> = {
  normal: { set: 0, clear: VM_SEQ_READ | VM_RAND_READ },
  sequential: { set: VM_SEQ_READ, clear: VM_RAND_READ },
  random: { set: VM_RAND_READ, clear: VM_SEQ_READ },
  dontfork: { set: VM_DONTCOPY, clear: 0 },
  dofork: { set: 0, clear: VM_DONTCOPY },
  dontdump: { set: VM_DONTDUMP, clear: 0 },
  dodump: { set: 0, clear: VM_DONTDUMP },
  wipeonfork: { set: VM_WIPEONFORK, clear: 0 },
  keeponfork: { set: 0, clear: VM_WIPEONFORK },
};

export function* madviseOp(space: SpaceCore, address: number, length: number, advice: Advice): Op<void> {
  const name = adviceName(advice);
  const { start, end } = extentOf(space, "madvise", address, length, { wraps: "EINVAL" });
  const flags = FLAGS[name];
  if (start === end) return;
  if (flags) {
    yield* writingOp(space, "madvise", () =>
      eachPartOp(space, start, end, (part) => changeFlags(space, part, name, flags.set, flags.clear)),
    );
    return;
  }
  switch (name) {
    case "populate-read":
    case "populate-write":
      yield* usingOp(space, "madvise", () => populateAdviceOp(space, start, end, name === "populate-write"));
      return;
    case "willneed":
    case "remove":
      yield* usingOp(space, "madvise", () => filePartsOp(space, start, end, name));
      return;
    case "dontneed":
    case "dontneed-locked":
      return yield* readingPartsOp(space, start, end, (part) => dontneedOp(space, part, name));
    case "free":
      return yield* readingPartsOp(space, start, end, (part) => freeOp(space, part));
    case "guard-install":
      return yield* readingPartsOp(space, start, end, (part) => installGuardsOp(space, part));
    case "guard-remove":
      return yield* readingPartsOp(space, start, end, (part) => removeGuards(space, part));
    case "cold":
      return yield* readingPartsOp(space, start, end, (part) => age(space, part));
    case "pageout":
      return yield* readingPartsOp(space, start, end, (part) => pageoutOp(space, part));
    default:
      throw new MmError(
        "EINVAL",
        "madvise",
        `"${name}" needs what this memory does not have: merged or huge pages`,
      );
  }
}

/** What is done with a part; nothing more to do where it returns nothing. */
type Visit = (part: Part) => Op<void> | undefined | void;

/** For what changes entries. */
const readingPartsOp = (space: SpaceCore, start: number, end: number, visit: Visit): Op<void> =>
  readingOp(space, "madvise", () => {
    ownTables(space, "madvise", start / space.mm.pageSize, end / space.mm.pageSize);
    return eachPartOp(space, start, end, visit);
  });

/** Visits what is mapped; ENOMEM at the end if something is not. Preconditions: mmapLock. */
function* eachPartOp(space: SpaceCore, start: number, end: number, visit: Visit): Op<void> {
  let hole = false;
  let at = start;
  for (let part = firstPart(space, at, end); part; part = firstPart(space, at, end)) {
    hole ||= part.start > at;
    const rest = visit(part);
    if (rest) yield* rest;
    at = part.end;
  }
  if (hole || at < end) throw notMapped("madvise", start, end);
}

function refuse(part: Part, why: string, code: "EINVAL" | "EACCES" = "EINVAL"): MmError {
  return new MmError(code, "madvise", why, { range: { start: part.start, end: part.end } });
}

function refuseLocked(space: SpaceCore, part: Part): void {
  if ((vmaFlags(space, part.vma) & VM_LOCKED) !== 0) throw refuse(part, "the mapping is locked in memory");
}

function changeFlags(space: SpaceCore, part: Part, name: AdviceName, set: number, clear: number): void {
  const flags = vmaFlags(space, part.vma);
  if (name === "wipeonfork" && (vmaFile(space, part.vma) !== 0 || (flags & VM_SHARED) !== 0))
    throw refuse(part, "only private anonymous memory can be wiped on fork");
  setFlagsLocked(space, "madvise", part.start, part.end, (flags & ~clear) | set);
}

// ---- pages that go --------------------------------------------------------------------------------------------------

function* dontneedOp(space: SpaceCore, part: Part, name: AdviceName): Op<void> {
  if (name === "dontneed") refuseLocked(space, part);
  yield* clearPartOp(space, part);
}

/** Drops the pages of a part, whose mapping stays. */
function* clearPartOp(space: SpaceCore, part: Part): Op<void> {
  const { pageSize } = space.mm;
  const range = yield* openOp(space, part.start, part.end, MmuNotifierEvent.Clear);
  try {
    yield* zapRangeOp(space, part.start / pageSize, part.end / pageSize);
  } finally {
    close(space, range);
  }
}

/** Clean and not writable: pageout may drop such a page, until it is written again. Linux: lazyfree. */
function* freeOp(space: SpaceCore, part: Part): Op<void> {
  const { pageSize } = space.mm;
  refuseLocked(space, part);
  if (vmaFile(space, part.vma) !== 0) throw refuse(part, "only private anonymous memory can be freed");
  drainBatches(space.mm);
  const range = yield* openOp(space, part.start, part.end, MmuNotifierEvent.Clear);
  try {
    const [first, end] = [part.start / pageSize, part.end / pageSize];
    yield* changeRangeOp(space, first, end, PTE_WRITE | PTE_DIRTY | PTE_ACCESSED, 0, false);
    batchFreed(space, first, end);
  } finally {
    close(space, range);
  }
}

// ---- guards ---------------------------------------------------------------------------------------------------------

function* installGuardsOp(space: SpaceCore, part: Part): Op<void> {
  refuseLocked(space, part);
  if (prepareAnon(space, part.vma) === 0) throw arenaFull("madvise");
  Atomics.or(space.agent.words, part.vma + VMA_FLAGS, VM_MAYBE_GUARD);
  while (!tryInstallGuards(space, part)) yield* clearPartOp(space, part);
}

/** False if something is mapped there. */
function tryInstallGuards(space: SpaceCore, part: Part): boolean {
  const { agent, mm } = space;
  const w = agent.words;
  const [first, end] = [part.start / mm.pageSize, part.end / mm.pageSize];
  let free = true;
  radixStretches(w, space.pgd, first, end, (entry, _vpn, count) => {
    for (let k = 0; k < count; k++) {
      const pte = Atomics.load(w, entry + k);
      if (pte !== 0 && pte !== PTE_GUARD) free = false;
    }
  });
  if (!free) return false;
  for (let vpn = first; vpn < end;) {
    const entry = ensureEntry(space, vpn);
    if (entry === 0) throw noTables("madvise");
    const count = Math.min(radixRun(vpn), end - vpn);
    for (let k = 0; k < count; k++) {
      const seen = Atomics.compareExchange(w, entry + k, 0, PTE_GUARD);
      if (seen !== 0 && seen !== PTE_GUARD) return false;
    }
    vpn += count;
  }
  return true;
}

function removeGuards(space: SpaceCore, part: Part): void {
  const { pageSize } = space.mm;
  clearGuards(space, part.start / pageSize, part.end / pageSize);
}

// ---- reclaim --------------------------------------------------------------------------------------------------------

function age(space: SpaceCore, part: Part): void {
  refuseLocked(space, part);
  drainBatches(space.mm);
  forgetAccesses(space, part.start / space.mm.pageSize, part.end / space.mm.pageSize);
}

/** Pages that only this mapping has go, if there is where to get them again. */
function* pageoutOp(space: SpaceCore, part: Part): Op<void> {
  const { mm } = space;
  refuseLocked(space, part);
  drainBatches(mm);
  const file = vmaFile(space, part.vma);
  const end = part.end / mm.pageSize;
  for (let vpn = part.start / mm.pageSize; vpn < end; vpn++) {
    const entry = radixFind(space.agent.words, space.pgd, vpn);
    if (entry === 0) {
      vpn += radixRun(vpn) - 1;
      continue;
    }
    const pte = Atomics.load(space.agent.words, entry);
    const pfn = pfnOfPte(pte);
    if (!isValid(pte) || pfn === ZERO_PFN || mm.frames.mapcount(pfn) !== 1) continue;
    if ((mm.frames.flags(pfn) & PG_ANON) !== 0) {
      if ((mm.frames.flags(pfn) & PG_LAZYFREE) !== 0) yield* dropFreedOp(space, entry, pfn);
    } else if (file !== 0) yield* evictPageOp(fileAt(mm, file), fileIndexOf(space, part.vma, vpn), pfn);
  }
}

/**
 * Drops the anonymous page of an entry that was given up, unless it was written since; then it is as any other again. Left
 * alone if somebody else is about to. Preconditions: mmapLock.
 */
function* dropFreedOp(space: SpaceCore, entry: Pte, pfn: number): Op<void> {
  const { mm, agent } = space;
  const { frames } = mm;
  if (!frames.tryGet(pfn)) return;
  let locked = false;
  try {
    // Others may have dropped it, and the frame be another's, until we had the reference and looked again.
    const pte = Atomics.load(agent.words, entry);
    if (!isValid(pte) || pfnOfPte(pte) !== pfn || frames.mapcount(pfn) !== 1) return;
    locked = frames.tryLockFolio(pfn);
    if (locked && (yield* unmapFreedOp(mm, pfn)) === "written") frames.clearFlags(pfn, PG_LAZYFREE);
  } finally {
    if (locked) frames.unlockFolio(pfn);
    frames.put(pfn);
  }
}

// ---- files ----------------------------------------------------------------------------------------------------------

/** "willneed" and "remove". */
function* filePartsOp(space: SpaceCore, start: number, end: number, name: "willneed" | "remove"): Op<void> {
  const { pageSize } = space.mm;
  const choose = (part: Part): File => {
    const file = vmaFile(space, part.vma);
    if (name === "remove") checkRemovable(space, part, file, vmaFlags(space, part.vma));
    return file;
  };
  yield* eachFilePartOp(space, "madvise", start, end, choose, (file, index, pages) =>
    name === "remove"
      ? punchHoleOp(file, index * pageSize, pages * pageSize)
      : readAheadOp(file, index, pages),
  );
}

function checkRemovable(space: SpaceCore, part: Part, file: File, flags: number): void {
  refuseLocked(space, part);
  if (file === 0) throw refuse(part, "there is no file behind the mapping");
  if ((flags & VM_SHARED) === 0 || !fileAt(space.mm, file).writable)
    throw refuse(part, "needs a shared mapping of a file that was opened for writing", "EACCES");
}
