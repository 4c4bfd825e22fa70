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
import { endOpenRange, makeRange, MmuNotifierEvent, openRange } from "../notifier/index.ts";
import { type Op, waitOp, wakeQueue } from "../sched/index.ts";
import { LockRank, lockdepAcquire, lockdepRelease } from "../sync/index.ts";
import { CT_EVENTS, SP_FAULTQ, SP_SPECIAL, VM_PROT, VM_WRITE } from "./layout.ts";
import { ensureEntry, loadPte } from "./pageTables.ts";
import type { Mm } from "./mm.ts";
import {
  isValid,
  kindOfPte,
  makePte,
  makeSpecial,
  pfnOfPte,
  PTE_DEVICE_EXCLUSIVE,
  PTE_DIRTY,
  PTE_EXCLUSIVE,
  PTE_KEPT,
  PTE_READ,
  PTE_VALID,
  PTE_WRITE,
} from "./pte.ts";
import { INDEX_END, radixFind, radixStretches } from "./radix.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { findVma, vmaFlags } from "./vma.ts";
import { takeRangeOp } from "./zap.ts";

/** Opens a range of one page; the caller ends it. */
function* openPageOp(
  space: SpaceCore,
  vpn: number,
  event: MmuNotifierEvent,
  owner: number | undefined,
): Op<() => void> {
  const { mm } = space;
  const c = space.notifiers.context;
  const blockable = mm.agent.current?.mode !== "try";
  const range = makeRange(
    c.space,
    vpn * mm.pageSize,
    (vpn + 1) * mm.pageSize,
    event,
    blockable,
    owner as never,
  );
  const rest = openRange(c, range, false);
  if (rest) yield* rest;
  mm.count(CT_EVENTS + event);
  return () => endOpenRange(c, range);
}

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
  if (!frames.tryLockFolio(pfn)) {
    frames.put(pfn);
    return 0;
  }
  let done = false;
  try {
    const end = yield* openPageOp(space, vpn, MmuNotifierEvent.Exclusive, owner);
    try {
      Atomics.store(agent.words, space.slot + SP_SPECIAL, 1);
      const same = (now: number): boolean => writable(now) && pfnOfPte(now) === pfn;
      if (ensureEntry(space, vpn) === 0) return 0;
      const { entries, olds } = yield* takeRangeOp(space, vpn, vpn + 1, same);
      if (entries.length === 0) return 0;
      Atomics.store(agent.words, entries[0]!, makeSpecial(pfn, PTE_DEVICE_EXCLUSIVE, olds[0]!));
      wakeQueue(agent.words, space.slot + SP_FAULTQ);
      done = true;
    } finally {
      end();
    }
  } finally {
    if (!done) {
      frames.unlockFolio(pfn);
      frames.put(pfn);
    }
  }
  // Held beyond the operation, by the driver: no lock of this task's any more.
  if (agent.debug) lockdepRelease(agent, LockRank.folioLock);
  return pfn;
}

/** Gives back what takeExclusiveOp() returned: from here on the page can be taken back by an access. */
export function releaseExclusive(mm: Mm, pfn: number): void {
  if (mm.agent.debug) lockdepAcquire(mm.agent, LockRank.folioLock);
  mm.frames.unlockFolio(pfn);
  mm.frames.put(pfn);
}

/** Puts a valid entry in the place of a device-exclusive one. Preconditions: mmapLock; the folio lock; an open range. */
function restore(space: SpaceCore, vpn: number, entry: number, pte: number): void {
  const { words } = space.agent;
  const flags = vmaFlags(space, findVma(space, vpn * space.mm.pageSize));
  const writable = (flags & VM_WRITE) !== 0 && (pte & PTE_EXCLUSIVE) !== 0;
  const valid = makePte(
    pfnOfPte(pte),
    PTE_VALID |
      PTE_DIRTY |
      (pte & PTE_KEPT & ~PTE_WRITE) |
      ((flags & VM_PROT) !== 0 ? PTE_READ : 0) |
      (writable ? PTE_WRITE : 0),
  );
  Atomics.compareExchange(words, entry, pte, valid);
}

/** Takes a page back for an access. Waits for its lock. Preconditions: no lock is held but mmapLock, which `locked` takes. */
export function* takeBackOp(
  space: SpaceCore,
  vpn: number,
  locked: (body: () => Op<void>) => Op<void>,
): Op<void> {
  const { mm, agent } = space;
  const { frames } = mm;
  const found = loadPte(space, vpn);
  const pfn = pfnOfPte(found);
  if (kindOfPte(found) !== PTE_DEVICE_EXCLUSIVE || !frames.tryGet(pfn)) return;
  let mine = false;
  try {
    yield* waitOp(
      frames.queueOf(pfn),
      () => (mine = frames.tryLockFolio(pfn)),
      `page ${vpn} of space ${space.id}, which a device is taking for its own`,
      () => frames.folioOwner(pfn),
    );
    if (agent.debug) lockdepRelease(agent, LockRank.folioLock);
    yield* locked(function* () {
      const end = yield* openPageOp(space, vpn, MmuNotifierEvent.Clear, undefined);
      const entry = radixFind(agent.words, space.pgd, vpn);
      const pte = entry === 0 ? 0 : Atomics.load(agent.words, entry);
      if (kindOfPte(pte) === PTE_DEVICE_EXCLUSIVE && pfnOfPte(pte) === pfn) restore(space, vpn, entry, pte);
      end();
    });
  } finally {
    if (mine) {
      if (agent.debug) lockdepAcquire(agent, LockRank.folioLock);
      frames.unlockFolio(pfn);
    }
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
