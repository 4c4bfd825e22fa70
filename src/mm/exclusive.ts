/**
 * Pages that one device has for its own: no access through the page tables reaches them until it is taken back. Linux:
 * mm/rmap.c make_device_exclusive(), mm/memory.c remove_device_exclusive_entry().
 *
 *   taken        EXCLUSIVE, one page, the caller's owner   the entry becomes device-exclusive; the page stays in its frame
 *   given back   CLEAR, one page                           the next access, or fork, puts the entry back, not accessed
 *
 * Invariants
 *   X1  While the driver has the page locked nobody takes it back: it sets its device up in that time. Accesses and fork wait;
 *       Linux's fork fails.
 *   X2  Such an entry counts as the one mapping of its page, which is private and anonymous.
 *
 * Lock order: mmapLock (read) > folio lock (tried only).
 */
import { MmError } from "../errors.ts";
import { PG_ANON, ZERO_PFN } from "../memory/index.ts";
import { MmuNotifierEvent } from "../notifier/index.ts";
import { type Op, waitOp, wakeQueue } from "../sched/index.ts";
import { SP_FAULTQ, SP_SPECIAL, VM_PROT, VM_WRITE } from "./layout.ts";
import { ensureEntry, loadPte } from "./pageTables.ts";
import { lockedOp, lockMoving, plain, rangeOp, unlockMoving } from "./migrate.ts";
import type { Mm } from "./mm.ts";
import {
  isValid,
  kindOfPte,
  makeSpecial,
  pfnOfPte,
  PTE_DEVICE_EXCLUSIVE,
  PTE_EXCLUSIVE,
  PTE_WRITE,
  revivePte,
} from "./pte.ts";
import { INDEX_END, radixFind, radixStretches } from "./radix.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { findVma, vmaFlags } from "./vma.ts";
import { takeRangeOp } from "./zap.ts";

/**
 * Makes the page of a writable entry device-exclusive. Returns its frame, locked and with a reference, both for
 * releaseExclusive(); 0 if the entry is not writable or the page is locked: the caller makes it so, or waits.
 * Errors: ENOTSUP unless it is private and anonymous. Preconditions: mmapLock held for reading.
 */
export function* takeExclusiveOp(space: SpaceCore, vpn: number, owner: number | undefined): Op<number> {
  const { mm, agent } = space;
  const { frames } = mm;
  const writable = (pte: number): boolean => isValid(pte) && (pte & PTE_WRITE) !== 0;
  const pte = loadPte(space, vpn);
  const pfn = pfnOfPte(pte);
  if (!writable(pte)) return 0;
  if (pfn === ZERO_PFN || (frames.flags(pfn) & PG_ANON) === 0) {
    throw new MmError(
      "ENOTSUP",
      "makeDeviceExclusive",
      "only private anonymous pages can be a device's own",
      {
        range: { start: vpn * mm.pageSize, end: (vpn + 1) * mm.pageSize },
      },
    );
  }
  if (!frames.tryGet(pfn)) return 0;
  if (!lockMoving(mm, pfn)) {
    frames.put(pfn);
    return 0;
  }
  let done = false;
  try {
    yield* rangeOp(space, vpn, vpn + 1, MmuNotifierEvent.Exclusive, owner, function* () {
      Atomics.store(agent.words, space.slot + SP_SPECIAL, 1);
      const same = (now: number): boolean => writable(now) && pfnOfPte(now) === pfn;
      if (ensureEntry(space, vpn) === 0) return;
      const { entries, olds } = yield* takeRangeOp(space, vpn, vpn + 1, same);
      if (entries.length === 0) return;
      Atomics.store(agent.words, entries[0]!, makeSpecial(pfn, PTE_DEVICE_EXCLUSIVE, olds[0]!));
      wakeQueue(agent.words, space.slot + SP_FAULTQ);
      done = true;
    });
  } finally {
    if (!done) releaseExclusive(mm, pfn);
  }
  return done ? pfn : 0;
}

/** Gives back what takeExclusiveOp() returned: from here on the page can be taken back by an access. */
export function releaseExclusive(mm: Mm, pfn: number): void {
  unlockMoving(mm, pfn);
  mm.frames.put(pfn);
}

/** Puts a valid entry in the place of a device-exclusive one. Preconditions: mmapLock; the folio lock; an open range. */
function restore(space: SpaceCore, vpn: number, entry: number, pte: number): void {
  const { words } = space.agent;
  const flags = vmaFlags(space, findVma(space, vpn * space.mm.pageSize));
  const writable = (flags & VM_WRITE) !== 0 && (pte & PTE_EXCLUSIVE) !== 0;
  const valid = revivePte(pfnOfPte(pte), pte, (flags & VM_PROT) !== 0, writable);
  Atomics.compareExchange(words, entry, pte, valid);
}

/** Takes a page back for an access. Waits for its lock. Preconditions: no lock is held. */
export function* takeBackOp(space: SpaceCore, vpn: number): Op<void> {
  const { mm, agent } = space;
  const { frames } = mm;
  const found = loadPte(space, vpn);
  const pfn = pfnOfPte(found);
  if (kindOfPte(found) !== PTE_DEVICE_EXCLUSIVE || !frames.tryGet(pfn)) return;
  let mine = false;
  try {
    yield* waitOp(
      frames.queueOf(pfn),
      () => (mine = lockMoving(mm, pfn)),
      `page ${vpn} of space ${space.id}, which a device is taking for its own`,
      () => frames.folioOwner(pfn),
    );
    const takeBack = plain(() => {
      const entry = radixFind(agent.words, space.pgd, vpn);
      const pte = entry === 0 ? 0 : Atomics.load(agent.words, entry);
      if (kindOfPte(pte) === PTE_DEVICE_EXCLUSIVE && pfnOfPte(pte) === pfn) restore(space, vpn, entry, pte);
    });
    yield* lockedOp(space, () => rangeOp(space, vpn, vpn + 1, MmuNotifierEvent.Clear, undefined, takeBack));
  } finally {
    if (mine) unlockMoving(mm, pfn);
    frames.put(pfn);
  }
}

/** Calls `visit` for each device-exclusive entry of `[first, end)`. */
function eachExclusive(
  space: SpaceCore,
  first: number,
  end: number,
  visit: (pte: number, vpn: number, entry: number) => void,
): void {
  const w = space.agent.words;
  radixStretches(w, space.pgd, first, end, (entry, vpn, count) => {
    for (let k = 0; k < count; k++) {
      const pte = Atomics.load(w, entry + k);
      if (kindOfPte(pte) === PTE_DEVICE_EXCLUSIVE) visit(pte, vpn + k, entry + k);
    }
  });
}

/** The frame of a device-exclusive page that somebody has locked, 0 if there is none. Preconditions: mmapLock. */
export function lockedExclusive(space: SpaceCore): number {
  let locked = 0;
  eachExclusive(space, 0, INDEX_END, (pte) => {
    if (space.mm.frames.isLocked(pfnOfPte(pte))) locked = pfnOfPte(pte);
  });
  return locked;
}

/**
 * Takes all pages of `[first, end)` back for fork, which tells of them itself. Preconditions: mmapLock for writing, since
 * lockedExclusive() was 0: whoever has locked one since is waiting for mmapLock to take it back; an open range.
 */
export function takeAllBack(space: SpaceCore, first: number, end: number): void {
  eachExclusive(space, first, end, (pte, vpn, entry) => restore(space, vpn, entry, pte));
}
