/**
 * Moving anonymous pages between frames and devices. Linux: mm/migrate_device.c, migrate_vma_setup(), migrate_vma_pages(),
 * migrate_vma_finalize(); mm/migrate.c, remove_migration_ptes().
 *
 * Three steps.
 *   collect   Under mmapLock for reading, in a range of the mapping: pages get locked, and a migration entry takes the
 *             place of each entry that maps one, first here, then in every other space. A page that somebody holds a
 *             reference to besides stays where it is.
 *   copy      With no lock but those of the pages: the device's agent copies them. Whoever accesses one waits.
 *   finish    Space by space, under mmapLock for reading, migration entries are replaced by ones of the new page; of the
 *             old one, where the page refused or the copy failed.
 *
 *   step                              event                          owner
 *   collect, the mapping itself       MIGRATE over the range         the device's
 *   collect, every other mapping      CLEAR, one page                -
 *   finish, where no page was         MIGRATE from the first such    the device's
 *
 * Invariants
 *   M1  A migration entry belongs to whoever has the lock of its page, and holds no mapping: whoever unmaps it just
 *       empties it, whoever moves it moves it.
 *   M2  SP_MIGRATING of a space counts who has such entries in it; fork waits until it is 0.
 *   M3  The page's anon_vma keeps a use until the page is found again: nothing else keeps it while nothing maps the page.
 *
 * Lock order: folio locks of the pages (tried only) are held over waits for mmapLock, one space's at a time; so nobody
 * waits for a folio lock of an anonymous page under mmapLock.
 */
import { isMmError, MmError } from "../errors.ts";
import { PG_ANON, PG_LAZYFREE, PG_UPTODATE, ZERO_PFN } from "../memory/index.ts";
import { endOpenRange, makeRange, MmuNotifierEvent, openRange, type OpenRange } from "../notifier/index.ts";
import {
  type Message,
  MSG_ARG0,
  MSG_ARG1,
  MSG_ARG2,
  MSG_RESULT,
  type Op,
  start,
  waitOp,
  wakeQueue,
} from "../sched/index.ts";
import { LockRank, lockdepAcquire, lockdepRelease, lockReadOp, unlockRead } from "../sync/index.ts";
import { askOp } from "./ask.ts";
import { textOf } from "./fileIo.ts";
import { anonMappingsAt, dropAnon, holdAnonOf } from "./anonTree.ts";
import { prepareAnon } from "./anonVma.ts";
import { type CopyPair, copyInOp, copyOutOp, type DeviceCore, deviceOf } from "./device.ts";
import {
  type AnonVma,
  BROUGHT_NO_FRAMES,
  CT_EVENTS,
  MESSAGE_BRING_HOME,
  type Pte,
  type Space,
  SP_FAULTQ,
  SP_MIGRATING,
  SP_MMAP_LOCK,
  SP_SPECIAL,
  VM_PROT,
  VM_SHARED,
  VM_WRITE,
  type Vma,
} from "./layout.ts";
import { joinSpace, unuseSpace, usingOp } from "./lifetime.ts";
import type { Mm } from "./mm.ts";
import {
  busyOf,
  busySlot,
  isBusy,
  isValid,
  kindOfPte,
  makeSpecial,
  pfnOfPte,
  PTE_DEVICE_PRIVATE,
  PTE_EXCLUSIVE,
  PTE_MIGRATION,
  PTE_POISON,
  PTE_SOFT_DIRTY,
  PTE_WRITE,
  revivePte,
} from "./pte.ts";
import { radixFind } from "./radix.ts";
import { ensureEntry, loadPte, noTables, ownTables } from "./pageTables.ts";
import { allocFrameOp } from "./reclaim.ts";
import { releaseMappings } from "./rmap.ts";
import { awaitAcksOp, markRange } from "./shootdown.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { isAway } from "./trackers.ts";
import { fileIndexOf, findVma, vmaEnd, vmaFile, vmaFlags, vmaStart } from "./vma.ts";
import { takeRangeOp } from "./zap.ts";

/** A page on its way. */
export interface Moving {
  /** Where it was found; -1 if it was found by its number. */
  readonly vpn: number;
  /** The page, locked and with a reference; 0: there is none, or the zero page. */
  readonly old: number;
  readonly anon: AnonVma;
  readonly index: number;
  /** Where it goes, with a reference; 0: it stays. */
  fresh: number;
}

/** What one operation has under way. */
class Moves {
  readonly mm: Mm;
  readonly list: Moving[] = [];
  /** Spaces with migration entries of it, which it uses. */
  readonly spaces: Set<Space> = new Set();
  /** Why pages stay where they are that nobody refuses. */
  failure: unknown;

  constructor(mm: Mm) {
    this.mm = mm;
  }

  /** Counts the operation in a space before it puts a migration entry there. Preconditions: mmapLock; a use of the space. */
  enter(space: SpaceCore): void {
    if (this.spaces.has(space.slot)) return;
    this.spaces.add(space.slot);
    joinSpace(space);
    Atomics.store(space.agent.words, space.slot + SP_SPECIAL, 1);
    Atomics.add(space.agent.words, space.slot + SP_MIGRATING, 1);
  }
}

/** Waits for whatever happens to page `pfn`, until `done`. */
export function* waitMovedOp(mm: Mm, pfn: number, done: () => boolean): Op<void> {
  const { frames } = mm;
  yield* waitOp(frames.queueOf(pfn), done, `page ${pfn}, which is being moved`, () => frames.folioOwner(pfn));
}

/** Waits until no operation has migration entries in a space. Preconditions: mmapLock is not held. */
export function* waitSettledOp(space: SpaceCore): Op<void> {
  const { words } = space.agent;
  yield* waitOp(
    space.slot + SP_FAULTQ,
    () => Atomics.load(words, space.slot + SP_MIGRATING) === 0,
    "pages of the space that are being moved",
  );
}

/**
 * Runs an operation as a task of its own and waits for its end: what it has begun cannot be taken back where the caller may
 * not wait so long. Then it goes on, and the caller gets EAGAIN.
 */
export function* detachedOp<T>(mm: Mm, what: string, op: Op<T>): Op<T> {
  const { agent } = mm;
  const queue = mm.frames.queueOf(0);
  let outcome: { value: unknown } | { error: unknown } | undefined;
  start(agent, op, (settled) => {
    outcome = settled;
    wakeQueue(agent.words, queue);
  });
  yield* waitOp(
    queue,
    () => outcome !== undefined,
    what,
    () => agent.ownerId,
  );
  if ("error" in outcome!) throw outcome.error as Error;
  return outcome!.value as T;
}

/** The lock of a page is no lock of this task's: it is held while the task waits for others. */
export function lockMoving(mm: Mm, pfn: number): boolean {
  if (!mm.frames.tryLockFolio(pfn)) return false;
  if (mm.agent.debug) lockdepRelease(mm.agent, LockRank.folioLock);
  return true;
}

export function unlockMoving(mm: Mm, pfn: number): void {
  if (mm.agent.debug) lockdepAcquire(mm.agent, LockRank.folioLock);
  mm.frames.unlockFolio(pfn);
}

/** Runs `body` under mmapLock for reading, also in a space that exits. Preconditions: a use of the space. */
export function* lockedOp<T>(space: SpaceCore, body: () => Op<T>): Op<T> {
  const { agent } = space;
  const lock = space.slot + SP_MMAP_LOCK;
  yield* lockReadOp(agent, lock, LockRank.mmapLock, "mmapLock");
  try {
    return yield* body();
  } finally {
    unlockRead(agent, lock, LockRank.mmapLock);
  }
}

/** Runs `body` inside a range of pages. */
export function* rangeOp(
  space: SpaceCore,
  first: number,
  end: number,
  event: MmuNotifierEvent,
  owner: number | undefined,
  body: () => Op<void>,
): Op<void> {
  const { mm } = space;
  const c = space.notifiers.context;
  const blockable = mm.agent.current?.mode !== "try";
  const range: OpenRange = makeRange(
    c.space,
    first * mm.pageSize,
    end * mm.pageSize,
    event,
    blockable,
    owner as never,
  );
  const rest = openRange(c, range, false);
  if (rest) yield* rest;
  mm.count(CT_EVENTS + event);
  try {
    yield* body();
  } finally {
    endOpenRange(c, range);
  }
}

// ---- collect --------------------------------------------------------------------------------------------------------

/** Which pages an operation takes: anonymous ones in frames, or those of a device. */
export type Source = "frames" | DeviceCore;

const takes = (mm: Mm, source: Source, pte: number): boolean =>
  source === "frames"
    ? isValid(pte) && pfnOfPte(pte) !== ZERO_PFN && (mm.frames.flags(pfnOfPte(pte)) & PG_ANON) !== 0
    : kindOfPte(pte) === PTE_DEVICE_PRIVATE && source.has(pfnOfPte(pte));

/**
 * Takes the pages of `[first, end)` that are to move out of this space. With frames as the source, pages that an anonymous
 * mapping does not have yet come along. Preconditions: mmapLock held for reading; one vma.
 */
function* collectOp(moves: Moves, space: SpaceCore, first: number, end: number, source: Source): Op<void> {
  const { mm, agent } = space;
  const w = agent.words;
  const { frames } = mm;
  const vma = findVma(space, first * mm.pageSize);
  const fillsHoles =
    source === "frames" && vmaFile(space, vma) === 0 && (vmaFlags(space, vma) & VM_SHARED) === 0;
  ownTables(space, "migrate", first, end);
  Atomics.store(w, space.slot + SP_SPECIAL, 1);
  const taken: { entry: Pte; pte: number; vpn: number }[] = [];
  const restore = (entry: Pte, pte: number): void => {
    Atomics.store(w, entry, pte);
    unlockMoving(mm, pfnOfPte(pte));
    frames.put(pfnOfPte(pte));
  };
  for (let vpn = first; vpn < end; vpn++) {
    const entry = radixFind(w, space.pgd, vpn);
    const pte = entry === 0 ? 0 : Atomics.load(w, entry);
    if (fillsHoles && (pte === 0 || (isValid(pte) && pfnOfPte(pte) === ZERO_PFN)))
      moves.list.push({ vpn, old: 0, anon: 0 as AnonVma, index: 0, fresh: 0 });
    // Away though its mirror has heard of the range: that has died, and nobody has the bytes.
    if (!takes(mm, source, pte) || isAway(space, vpn)) continue;
    const pfn = pfnOfPte(pte);
    if (!frames.tryGet(pfn)) continue;
    if (!lockMoving(mm, pfn)) {
      frames.put(pfn);
      continue;
    }
    if (Atomics.compareExchange(w, entry, pte, busyOf(pte, agent.slot)) === pte)
      taken.push({ entry, pte, vpn });
    else {
      unlockMoving(mm, pfn);
      frames.put(pfn);
    }
  }
  if (taken.length === 0) return;
  try {
    if (source === "frames") yield* awaitAcksOp(space, markRange(space, first, end));
  } catch (error) {
    for (const { entry, pte } of taken) restore(entry, pte);
    wakeQueue(w, space.slot + SP_FAULTQ);
    throw error;
  }
  moves.enter(space);
  for (const { entry, pte, vpn } of taken) {
    const pfn = pfnOfPte(pte);
    const anon = holdAnonOf(mm, pfn);
    moves.list.push({ vpn, old: pfn, anon, index: frames.index(pfn), fresh: 0 });
    Atomics.store(w, entry, makeSpecial(pfn, PTE_MIGRATION, pte));
    frames.putMapped(pfn);
  }
  wakeQueue(w, space.slot + SP_FAULTQ);
}

/** Takes a page out of every space that still maps it. False: somebody has it in use, or has taken it up again. */
function* unmapEverywhereOp(moves: Moves, page: Moving): Op<boolean> {
  const { mm } = moves;
  const { frames } = mm;
  if (frames.mapcount(page.old) !== 0) {
    const mappings = anonMappingsAt(mm, page.anon, page.index);
    try {
      for (const { space, vpn } of mappings) {
        if (frames.mapcount(page.old) === 0) break;
        yield* lockedOp(mm.spaceAt(space), () => unmapOneOp(moves, mm.spaceAt(space), vpn, page.old));
      }
    } finally {
      releaseMappings(mm, mappings);
    }
  }
  return frames.refcount(page.old) === 1;
}

/** Preconditions: mmapLock. */
function* unmapOneOp(moves: Moves, space: SpaceCore, vpn: number, pfn: number): Op<void> {
  const { mm, agent } = space;
  const w = agent.words;
  const pte = loadPte(space, vpn);
  const maps = isValid(pte) || kindOfPte(pte) === PTE_DEVICE_PRIVATE;
  if (!maps || pfnOfPte(pte) !== pfn) return;
  ownTables(space, "migrate", vpn, vpn + 1);
  yield* rangeOp(space, vpn, vpn + 1, MmuNotifierEvent.Clear, undefined, function* () {
    moves.enter(space);
    if (mm.frames.isDevice(pfn)) {
      const entry = radixFind(w, space.pgd, vpn);
      for (
        let now = Atomics.load(w, entry);
        kindOfPte(now) === PTE_DEVICE_PRIVATE && pfnOfPte(now) === pfn;
      ) {
        const seen = Atomics.compareExchange(w, entry, now, makeSpecial(pfn, PTE_MIGRATION, now));
        if (seen === now) {
          mm.frames.putMapped(pfn);
          break;
        }
        now = seen;
      }
      return;
    }
    const { entries, olds } = yield* takeRangeOp(space, vpn, vpn + 1, (now) => pfnOfPte(now) === pfn);
    entries.forEach((entry, k) => {
      Atomics.store(w, entry, makeSpecial(pfn, PTE_MIGRATION, olds[k]!));
      mm.frames.putMapped(pfn);
    });
    wakeQueue(w, space.slot + SP_FAULTQ);
  });
}

/** Takes the collected pages out of the other spaces. What stays, or cannot be taken, keeps `fresh` 0. */
function* isolateOp(moves: Moves): Op<Moving[]> {
  const ready: Moving[] = [];
  for (const page of moves.list) {
    if (page.old === 0) {
      ready.push(page);
      continue;
    }
    try {
      if (yield* unmapEverywhereOp(moves, page)) ready.push(page);
    } catch (error) {
      moves.failure ??= error;
    }
  }
  return ready;
}

// ---- finish ---------------------------------------------------------------------------------------------------------

/** What an entry of the page becomes. */
function settledPte(space: SpaceCore, vma: Vma, to: number, migration: number): number {
  if (space.mm.frames.isDevice(to)) return makeSpecial(to, PTE_DEVICE_PRIVATE, migration);
  const flags = vmaFlags(space, vma);
  const own = (migration & PTE_EXCLUSIVE) !== 0;
  // What mprotect took away meanwhile is gone from the entry, too.
  const writable = own && (migration & PTE_WRITE) !== 0;
  return revivePte(to, migration, (flags & VM_PROT) !== 0, writable);
}

/** Replaces the migration entry of a page, if there is one. Preconditions: mmapLock held for reading. */
function* settleEntryOp(space: SpaceCore, vpn: number, page: Moving): Op<void> {
  const { mm, agent } = space;
  const { frames } = mm;
  const w = agent.words;
  const to = page.fresh === 0 ? page.old : page.fresh;
  for (;;) {
    const entry = radixFind(w, space.pgd, vpn);
    const pte = entry === 0 ? 0 : Atomics.load(w, entry);
    if (isBusy(pte)) {
      // Being unmapped by somebody without mmapLock, who may put it back.
      yield* waitOp(
        space.slot + SP_FAULTQ,
        () => Atomics.load(w, entry) !== pte,
        "a busy page-table entry",
        () => agent.ownerAt(busySlot(pte)),
      );
      continue;
    }
    if (kindOfPte(pte) !== PTE_MIGRATION || pfnOfPte(pte) !== page.old) return;
    const vma = findVma(space, vpn * mm.pageSize);
    frames.addMapping(to);
    if (Atomics.compareExchange(w, entry, pte, settledPte(space, vma, to, pte)) === pte) return;
    // Not the last: the operation has a reference.
    frames.putMapped(to);
  }
}

/** Replaces all migration entries, and gives up what the pages that moved were in. Waits, and cannot fail. */
function* finishOp(moves: Moves): Op<void> {
  const { mm } = moves;
  const { frames, agent } = mm;
  for (const slot of moves.spaces) {
    const space = mm.spaceAt(slot);
    yield* lockedOp(space, function* () {
      for (const page of moves.list) {
        if (page.old === 0) continue;
        // Under the lock: none of this space's mappings moves.
        const mappings = anonMappingsAt(mm, page.anon, page.index);
        try {
          for (const { space: other, vpn } of mappings)
            if (other === slot) yield* settleEntryOp(space, vpn, page);
        } finally {
          releaseMappings(mm, mappings);
        }
      }
    });
    Atomics.sub(agent.words, slot + SP_MIGRATING, 1);
    wakeQueue(agent.words, slot + SP_FAULTQ);
    unuseSpace(space);
  }
  moves.spaces.clear();
  for (const page of moves.list) {
    if (page.old === 0) continue;
    unlockMoving(mm, page.old);
    frames.put(page.old);
    dropAnon(mm, page.anon);
  }
  // The operation's own reference; what nothing maps any more goes with it.
  for (const page of moves.list) if (page.fresh !== 0) frames.put(page.fresh);
}

/** Makes the destinations what the pages were. */
function adopt(moves: Moves): void {
  const { frames } = moves.mm;
  for (const page of moves.list) {
    if (page.old === 0 || page.fresh === 0) continue;
    const lazy = frames.flags(page.old) & PG_LAZYFREE;
    frames.setFlags(page.fresh, PG_ANON | PG_UPTODATE | lazy);
    frames.setMapping(page.fresh, frames.mapping(page.old), page.index);
  }
}

/** Gives pages that were not there yet their place in the mapping, unless somebody was faster. Linux: migrate_vma_insert_page(). */
function* insertOp(space: SpaceCore, pages: readonly Moving[], owner: number): Op<Moving[]> {
  const { mm, agent } = space;
  const { frames } = mm;
  const w = agent.words;
  const inserted: Moving[] = [];
  if (pages.length === 0) return inserted;
  yield* lockedOp(space, function* () {
    if (!space.live) return;
    const last = pages.at(-1)!.vpn + 1;
    yield* rangeOp(space, pages[0]!.vpn, last, MmuNotifierEvent.Migrate, owner, function* () {
      for (const page of pages) {
        const vma = findVma(space, page.vpn * mm.pageSize);
        if (vma === 0 || vmaFile(space, vma) !== 0 || (vmaFlags(space, vma) & VM_SHARED) !== 0) continue;
        const entry = ensureEntry(space, page.vpn);
        const anon = entry === 0 ? 0 : prepareAnon(space, vma);
        if (anon === 0) throw noTables("migrate");
        const pte = Atomics.load(w, entry);
        const zero = isValid(pte) && pfnOfPte(pte) === ZERO_PFN;
        if (pte !== 0 && !zero) continue;
        const busy = busyOf(0, agent.slot);
        if (Atomics.compareExchange(w, entry, pte, busy) !== pte) continue;
        try {
          if (zero) yield* awaitAcksOp(space, markRange(space, page.vpn, page.vpn + 1));
        } catch (error) {
          Atomics.store(w, entry, pte);
          wakeQueue(w, space.slot + SP_FAULTQ);
          throw error;
        }
        const { fresh } = page;
        frames.setFlags(fresh, PG_ANON | PG_UPTODATE);
        frames.setMapping(fresh, anon, fileIndexOf(space, vma, page.vpn));
        frames.addMapping(fresh);
        const writable = (vmaFlags(space, vma) & VM_WRITE) !== 0 ? PTE_WRITE : 0;
        Atomics.store(
          w,
          entry,
          makeSpecial(fresh, PTE_DEVICE_PRIVATE, PTE_EXCLUSIVE | PTE_SOFT_DIRTY | writable),
        );
        wakeQueue(w, space.slot + SP_FAULTQ);
        inserted.push(page);
      }
    });
  });
  return inserted;
}

// ---- the operations -------------------------------------------------------------------------------------------------

/** What a migration came to, page by page. */
export interface Moved {
  readonly vpn: number;
  /** The number of the page that it is in now. */
  readonly pfn: number;
}

export interface ToDevice {
  /** False: the page stays where it is. */
  readonly accepts: ((vpn: number) => boolean) | undefined;
  /** The pages of the device are filled and about to be mapped; nobody can take them away meanwhile. */
  readonly filled: ((pages: readonly Moved[]) => void) | undefined;
}

/** Checks that `[first, end)` lies in one vma. Errors: EINVAL. Preconditions: mmapLock. */
function checkOneVma(space: SpaceCore, first: number, end: number): void {
  const { pageSize } = space.mm;
  const vma = findVma(space, first * pageSize);
  if (vma !== 0 && vmaStart(space, vma) <= first * pageSize && vmaEnd(space, vma) >= end * pageSize) return;
  throw new MmError("EINVAL", "migrate", "the range must lie in one mapping", {
    range: { start: first * pageSize, end: end * pageSize },
  });
}

/** Moves anonymous pages of a range into a device, as far as it has room. Returns those that moved. */
export const toDeviceOp = (
  space: SpaceCore,
  first: number,
  end: number,
  device: DeviceCore,
  { accepts, filled }: ToDevice,
): Op<Moved[]> =>
  usingOp(space, "migrate", function* () {
    const { mm } = space;
    const { frames } = mm;
    const moves = new Moves(mm);
    const moved: Moved[] = [];
    yield* lockedOp(space, function* () {
      if (!space.live) throw new MmError("ESRCH", "migrate", "the space is exiting or has exited");
      checkOneVma(space, first, end);
      yield* rangeOp(space, first, end, MmuNotifierEvent.Migrate, device.owner, () =>
        collectOp(moves, space, first, end, "frames"),
      );
    });
    try {
      const ready = (yield* isolateOp(moves)).filter((page) => accepts?.(page.vpn) ?? true);
      for (const page of ready) page.fresh = frames.tryAllocDevice(device.first, device.pages);
      const going = ready.filter((page) => page.fresh !== 0);
      try {
        if (going.length > 0) yield* copyInOp(device, going.map(pairOf));
        filled?.(going.filter((page) => page.old !== 0).map((page) => ({ vpn: page.vpn, pfn: page.fresh })));
      } catch (error) {
        moves.failure ??= error;
        giveUp(moves);
      }
      const holes = moves.list.filter((page) => page.old === 0 && page.fresh !== 0);
      try {
        for (const page of yield* insertOp(space, holes, device.owner))
          moved.push({ vpn: page.vpn, pfn: page.fresh });
      } catch (error) {
        moves.failure ??= error;
      }
      adopt(moves);
      for (const page of moves.list)
        if (page.old !== 0 && page.fresh !== 0) moved.push({ vpn: page.vpn, pfn: page.fresh });
    } finally {
      yield* finishOp(moves);
    }
    if (moved.length === 0 && moves.failure !== undefined) throw moves.failure as Error;
    return moved.sort((a, b) => a.vpn - b.vpn);
  });

const pairOf = ({ old, fresh }: Moving): CopyPair => ({ device: fresh, frame: old });

/** What was to move stays. */
function giveUp(moves: Moves): void {
  for (const page of moves.list) {
    if (page.fresh === 0) continue;
    moves.mm.frames.put(page.fresh);
    page.fresh = 0;
  }
}

/** Copies isolated pages of a device to frames and puts these in their place. Frames left over are given back. */
function* bringBackOp(moves: Moves, device: DeviceCore, held: number[]): Op<number> {
  const { frames } = moves.mm;
  let moved = 0;
  try {
    for (const page of yield* isolateOp(moves)) page.fresh = held.pop() ?? 0;
    const going = moves.list.filter((page) => page.fresh !== 0);
    try {
      if (going.length > 0)
        yield* copyOutOp(
          device,
          going.map(({ old, fresh }) => ({ device: old, frame: fresh })),
        );
    } catch (error) {
      moves.failure ??= error;
      giveUp(moves);
    }
    adopt(moves);
    moved = moves.list.filter((page) => page.fresh !== 0).length;
  } finally {
    for (const pfn of held.splice(0)) frames.put(pfn);
    yield* finishOp(moves);
  }
  return moved;
}

/** Frames for `count` pages; fewer, but at least one, where no more can be had. Errors: ENOMEM. */
function* allocFramesOp(mm: Mm, count: number): Op<number[]> {
  const held: number[] = [];
  try {
    while (held.length < count) held.push(yield* allocFrameOp(mm, false));
  } catch (error) {
    if (held.length === 0) throw error;
  }
  return held;
}

/** Pages that are brought back at a time: so many frames are needed besides. */
const BATCH = 256;

/** Brings the pages of a range back that the device has. Returns how many came. Errors: EINVAL, ENOMEM, those of the device. */
export const toMemoryOp = (space: SpaceCore, first: number, end: number, device: DeviceCore): Op<number> =>
  usingOp(space, "migrate", function* () {
    let moved = 0;
    for (let vpn = first; vpn < end; vpn += BATCH) {
      const last = Math.min(end, vpn + BATCH);
      const { count, failure } = yield* bringRangeOp(space, vpn, last, device, true);
      moved += count;
      if (failure !== undefined) throw failure as Error;
    }
    return moved;
  });

function* bringRangeOp(
  space: SpaceCore,
  first: number,
  end: number,
  device: DeviceCore,
  strict: boolean,
): Op<{ count: number; failure: unknown }> {
  const { mm } = space;
  const moves = new Moves(mm);
  let there = 0;
  for (let vpn = first; vpn < end; vpn++) if (takes(mm, device, loadPte(space, vpn))) there++;
  const held = there === 0 ? [] : yield* allocFramesOp(mm, there);
  let begun = false;
  try {
    yield* lockedOp(space, function* () {
      if (!space.live) throw new MmError("ESRCH", "migrate", "the space is exiting or has exited");
      if (strict) checkOneVma(space, first, end);
      yield* rangeOp(space, first, end, MmuNotifierEvent.Migrate, device.owner, () =>
        collectOp(moves, space, first, end, device),
      );
    });
    begun = true;
  } finally {
    if (!begun) for (const pfn of held) mm.frames.put(pfn);
  }
  const count = yield* bringBackOp(moves, device, held);
  return { count, failure: moves.failure };
}

/**
 * Brings pages of a device back wherever they are mapped. Returns how many came. Linux: migrate_device_range().
 * Errors: ENOMEM, those of the device; what has come by then stays.
 */
export function* evictDeviceOp(mm: Mm, device: DeviceCore, numbers: readonly number[]): Op<number> {
  const { frames } = mm;
  let moved = 0;
  for (let k = 0; k < numbers.length; k += BATCH) {
    const moves = new Moves(mm);
    for (const pfn of numbers.slice(k, k + BATCH)) {
      if (!frames.tryGet(pfn)) continue;
      const locked = lockMoving(mm, pfn);
      const anon = locked ? holdAnonOf(mm, pfn) : (0 as AnonVma);
      if (anon !== 0) moves.list.push({ vpn: -1, old: pfn, anon, index: frames.index(pfn), fresh: 0 });
      else {
        if (locked) unlockMoving(mm, pfn);
        frames.put(pfn);
      }
    }
    let held: number[] = [];
    try {
      held = yield* allocFramesOp(mm, moves.list.length);
    } catch (error) {
      yield* finishOp(moves);
      throw error;
    }
    moved += yield* bringBackOp(moves, device, held);
    if (moves.failure !== undefined) throw moves.failure as Error;
  }
  return moved;
}

/**
 * Makes room for an access to a page of a device: brings it back, with its neighbours, or poisons it if its device is lost.
 * Preconditions: no lock held. Errors: ENOMEM, those of the device.
 */
export function* bringHomeOp(space: SpaceCore, vpn: number): Op<void> {
  yield* detachedOp(
    space.mm,
    `page ${vpn} of space ${space.id}, which is on a device`,
    usingOp(space, "access", () => bringPageOp(space, vpn)),
  );
}

function* bringPageOp(space: SpaceCore, vpn: number): Op<void> {
  const { mm } = space;
  const { frames } = mm;
  const pte = loadPte(space, vpn);
  const pfn = pfnOfPte(pte);
  if (kindOfPte(pte) !== PTE_DEVICE_PRIVATE || !frames.tryGet(pfn)) return;
  let device: DeviceCore;
  try {
    if (kindOfPte(loadPte(space, vpn)) !== PTE_DEVICE_PRIVATE || pfnOfPte(loadPte(space, vpn)) !== pfn)
      return;
    device = deviceOf(mm, pfn);
    if (device.lost) {
      yield* poisonOp(mm, pfn);
      return;
    }
    // Being moved already: whoever does it has its lock.
    if (frames.isLocked(pfn)) {
      yield* waitMovedOp(mm, pfn, () => !frames.isLocked(pfn));
      return;
    }
  } finally {
    frames.put(pfn);
  }
  if (!device.mine) {
    const result = yield* askOp(mm, {
      owner: device.opener,
      kind: MESSAGE_BRING_HOME,
      args: [space.slot, space.id, vpn, 0],
      what: `a page from device ${device.id}`,
      because: `has device ${device.id}`,
    });
    if (result === BROUGHT_NO_FRAMES) throw noFrames();
    return;
  }
  const vma = findVmaRange(space, vpn);
  const first = Math.max(vma.first, Math.floor(vpn / device.around) * device.around);
  const end = Math.min(vma.end, first + device.around);
  const { failure } = yield* bringRangeOp(space, Math.min(first, vpn), Math.max(end, vpn + 1), device, false);
  if (failure !== undefined) throw failure as Error;
}

const noFrames = (): MmError =>
  new MmError(
    "ENOMEM",
    "access",
    "no frame is left for a page that is on a device; use a larger budget, or unmap something",
  );

/** Brings pages home for other agents, from the devices that this agent has. */
export function serveDevices(mm: Mm, begin: (op: Op<void>, settled: (error: unknown) => void) => void): void {
  const { agent } = mm;
  const w = agent.words;
  agent.handle(MESSAGE_BRING_HOME, (m: Message): true => {
    const slot = Atomics.load(w, m + MSG_ARG0) as Space;
    const id = Atomics.load(w, m + MSG_ARG1);
    const vpn = Atomics.load(w, m + MSG_ARG2);
    const bring = function* (): Op<void> {
      // Whoever asked uses the space; but it may have died since, and the record be another's.
      mm.protect(slot);
      const space = mm.allSpaces().includes(slot) ? mm.spaceAt(slot) : undefined;
      mm.unprotect();
      if (space?.id === id) yield* usingOp(space, "access", () => bringPageOp(space, vpn));
    };
    begin(bring(), (error) => {
      if (isMmError(error, "ENOMEM")) Atomics.store(w, m + MSG_RESULT, BROUGHT_NO_FRAMES);
      else if (error !== undefined && !isMmError(error, "ESRCH")) agent.setMessageText(m, textOf(error));
      agent.finishMessage(m);
    });
    return true;
  });
}

/** Where the mapping of a page reaches, as far as that can be said without a lock; it is looked at again under it. */
function findVmaRange(space: SpaceCore, vpn: number): { first: number; end: number } {
  const { pageSize } = space.mm;
  const vma = findVma(space, vpn * pageSize);
  if (vma === 0) return { first: vpn, end: vpn + 1 };
  return { first: vmaStart(space, vma) / pageSize, end: vmaEnd(space, vma) / pageSize };
}

/** Where a lost page was. */
export interface LostPage {
  readonly space: number;
  readonly vpn: number;
}

/** Puts poison in the place of a page that nobody can get any more, wherever it is mapped. Says where. */
export function* poisonOp(mm: Mm, pfn: number): Op<LostPage[]> {
  const { frames, agent } = mm;
  const w = agent.words;
  const lost: LostPage[] = [];
  const anon = holdAnonOf(mm, pfn);
  if (anon === 0) return lost;
  const mappings = anonMappingsAt(mm, anon, frames.index(pfn));
  try {
    for (const { space: slot, vpn } of mappings) {
      const space = mm.spaceAt(slot);
      yield* lockedOp(space, function* () {
        const entry = radixFind(w, space.pgd, vpn);
        const pte = entry === 0 ? 0 : Atomics.load(w, entry);
        if (kindOfPte(pte) !== PTE_DEVICE_PRIVATE || pfnOfPte(pte) !== pfn) return;
        yield* rangeOp(
          space,
          vpn,
          vpn + 1,
          MmuNotifierEvent.Clear,
          undefined,
          plain(() => {
            if (Atomics.compareExchange(w, entry, pte, PTE_POISON) !== pte) return;
            frames.putMapped(pfn);
            lost.push({ space: space.id, vpn });
          }),
        );
      });
    }
  } finally {
    releaseMappings(mm, mappings);
    dropAnon(mm, anon);
  }
  return lost;
}

/** A body that waits for nothing. */
export const plain = (body: () => void): (() => Op<void>) =>
  // eslint-disable-next-line require-yield
  function* () {
    body();
  };
