/**
 * Faults: making a page-table entry that permits an access. Linux: mm/memory.c, handle_mm_fault().
 *
 * tryFault() is the fast path, a plain function under mmapLock for reading; it says what it lacks. faultOp() gets that
 * with no lock held (a page from its file, a free frame) and tries again. faultNow() is the fast path of an access that
 * may block: it also tells subscribers, and hands a range that is open over to an operation where somebody has to be
 * waited for.
 *
 *   access          entry      mapping              what happens                               event
 *   read            none       anonymous            the zero page, read-only                   -
 *   write           none       anonymous            a frame of zeros                           -
 *   read            none       file                 the cache's frame, and its neighbours      -
 *   write           none       file, shared         the cache's frame, writable, dirty         -
 *   write           none       file, private        a copy of the cache's frame                -
 *   write           read-only  file, shared         the entry becomes writable, frame dirty    -
 *   write           read-only  private, exclusive   the entry becomes writable                 -
 *   write           read-only  private, sole owner  the entry becomes writable and exclusive   -
 *   write           read-only  private              copy-on-write                              CLEAR, one page
 *   any             guard      any                  SegvError                                  -
 *   any             poison     any                  BusError                                   -
 *   any             exclusive to a device           the entry becomes valid, see exclusive.ts  CLEAR, one page
 *   any             on a device                     it is brought back, see migrate.ts         MIGRATE, its neighbours too
 *   any             on its way                      waits                                      -
 *   any             no rights  away in a device     its owner brings the bytes home            PROTECTION_PAGE, one page
 *
 * Lock order: mmapLock (read) > folio lock (tried only) > heap.
 */
import { BusError, isMmError, MmError, SegvError } from "../errors.ts";
import {
  MOST_MAPPINGS,
  PG_ANON,
  PG_DIRTY,
  PG_RECLAIM,
  PG_UNUSED,
  PG_UPTODATE,
  ZERO_PFN,
} from "../memory/index.ts";
import {
  beginRange,
  endOpenRange,
  endRange,
  makeRange,
  MmuNotifierEvent,
  openRange,
  type OpenRange,
} from "../notifier/index.ts";
import { type Op, waitOp, wakeQueue } from "../sched/index.ts";
import { adoptRead, LockRank, lockReadOp, passRead, tryLockRead, unlockRead } from "../sync/index.ts";
import type { Pfn } from "../units.ts";
import {
  CT_COW,
  CT_EVENTS,
  CT_MINOR,
  type File,
  type Pte,
  SP_FAULTQ,
  SP_MMAP_LOCK,
  SP_TRACKERS,
  VM_LOCKED,
  VM_PROT,
  VM_SHARED,
  VM_WRITE,
  type Vma,
} from "./layout.ts";
import { prepareAnon } from "./anonVma.ts";
import { batchReplaced, isBatched } from "./batches.ts";
import { unuseFile, useFile } from "./files.ts";
import { joinSpace, unuseSpace, useSpace } from "./lifetime.ts";
import { takeBackOp } from "./exclusive.ts";
import { isRefusal, textOf } from "./fileIo.ts";
import { bringHomeOp, plain, rangeOp, waitMovedOp } from "./migrate.ts";
import { type FileCore, fileAt, markUsed, tryGetPage } from "./pageCache.ts";
import { getPageOp } from "./pageIn.ts";
import {
  busyOf,
  busySlot,
  isBusy,
  isSpecial,
  isValid,
  kindOfPte,
  makePte,
  pfnOfPte,
  PTE_ACCESSED,
  PTE_DEVICE_EXCLUSIVE,
  PTE_DEVICE_PRIVATE,
  PTE_EXCLUSIVE,
  PTE_GUARD,
  PTE_MIGRATION,
  PTE_POISON,
  PTE_READ,
  PTE_VALID,
  PTE_WRITE,
  PTE_WRITTEN,
} from "./pte.ts";
import { radixFind } from "./radix.ts";
import { ensureEntry, loadPte, noTables } from "./pageTables.ts";
import { allocFrameOp } from "./reclaim.ts";
import { noteFileWrite } from "./rmap.ts";
import { markRange } from "./shootdown.ts";
import { FIRST_VPN, LAST_VPN, type SpaceCore } from "./spaceCore.ts";
import { forgetAway, isAway, noteWrite, timesSent } from "./trackers.ts";
import { fileIndexOf, findVma, vmaEnd, vmaFile, vmaFlags, vmaStart } from "./vma.ts";
import { takeRangeOp } from "./zap.ts";

/** What a fault came to, or lacks. */
export const FAULT_DONE = 0;
export const FAULT_MAPERR = 1; //   nothing is mapped there
export const FAULT_ACCERR = 2; //   the mapping forbids the access
export const FAULT_BUS = 3; //      the file ends before
export const FAULT_BUSY = 4; //     the entry is being changed
export const FAULT_FRAME = 5; //    no free frame
export const FAULT_ARENA = 6; //    no room for page tables
export const FAULT_PAGE = 7; //     the page is not in the cache; see `need`
export const FAULT_LOCKED = 8; //   the page is locked; see `need`
export const FAULT_COW = 9; //      needs copy-on-write, which waits
export const FAULT_CONTENDED = 10; // mmapLock is taken
export const FAULT_MAPPED = 11; //  the page is mapped as often as can be counted
export const FAULT_POISON = 12; //  the page is lost
export const FAULT_EXCLUSIVE = 13; // a device has the page for its own
export const FAULT_DEVICE = 14; //  the page is on a device
export const FAULT_MOVING = 15; //  the page is on its way to a device or back
export const FAULT_AWAY = 16; //    its newest bytes are in a device

/**
 * Which page FAULT_PAGE and FAULT_LOCKED mean; what the copy of FAULT_COW is to name. Filled by the last tryFault() of this
 * thread, read at once.
 */
const need: { file: FileCore | undefined; index: number; pfn: number; anon: number; locked: boolean } = {
  file: undefined,
  index: 0,
  pfn: 0,
  anon: 0,
  locked: false,
};

const NEW_ANON: number = PTE_VALID | PTE_READ | PTE_WRITTEN | PTE_EXCLUSIVE;

/** Tries to resolve a fault without waiting. */
export function tryFault(space: SpaceCore, vpn: number, write: boolean): number {
  const { agent } = space;
  if (!tryLockRead(agent, space.slot + SP_MMAP_LOCK, LockRank.mmapLock)) return FAULT_CONTENDED;
  let result = faultLocked(space, vpn, write);
  if (result === FAULT_COW) result = tryCopyOnWrite(space, vpn);
  unlockRead(agent, space.slot + SP_MMAP_LOCK, LockRank.mmapLock);
  return result;
}

/** Preconditions: mmapLock held for reading. */
function faultLocked(space: SpaceCore, vpn: number, write: boolean): number {
  const { agent, mm } = space;
  if (vpn < FIRST_VPN || vpn >= LAST_VPN) return FAULT_MAPERR;
  const vma = findVma(space, vpn * mm.pageSize);
  if (vma === 0) return FAULT_MAPERR;
  const flags = vmaFlags(space, vma);
  if ((flags & (write ? VM_WRITE : VM_PROT)) === 0) return FAULT_ACCERR;
  const entry = ensureEntry(space, vpn);
  if (entry === 0) return FAULT_ARENA;
  const pte = agent.words[entry]!; // plain: every change from here on is a compare-exchange
  if (isBusy(pte)) return FAULT_BUSY;
  if (agent.words[space.slot + SP_TRACKERS] !== 0) {
    if (isAway(space, vpn)) {
      if (isValid(pte)) return FAULT_AWAY;
      forgetAway(space, vpn); // unmapped since, and its owner has died
    }
    // Before the store becomes possible: who collects what was written holds mmapLock for writing.
    if (write) noteWrite(space, vpn);
  }
  if (pte === PTE_GUARD) return FAULT_MAPERR;
  if (isSpecial(pte)) return lackOf(pte);
  mm.count(CT_MINOR);
  if (isValid(pte))
    return write ? faultWriteProtected(space, vma, vpn, entry, pte, flags) : setBits(space, entry, pte, 0);
  const file = vmaFile(space, vma);
  if (file === 0) return faultAnonymous(space, vma, vpn, entry, write);
  return faultFile(space, vma, vpn, entry, fileAt(mm, file), flags, write);
}

/** What an access lacks that finds an entry of a page nobody can get at as it is. */
function lackOf(pte: number): number {
  if (pte === PTE_POISON) return FAULT_POISON;
  const kind = kindOfPte(pte);
  return kind === PTE_DEVICE_PRIVATE
    ? FAULT_DEVICE
    : kind === PTE_DEVICE_EXCLUSIVE
      ? FAULT_EXCLUSIVE
      : FAULT_MOVING;
}

/** Adds bits to a valid entry. If it changed meanwhile the access simply faults again. */
function setBits(space: SpaceCore, entry: Pte, pte: number, bits: number): number {
  Atomics.compareExchange(space.agent.words, entry, pte, pte | PTE_READ | PTE_ACCESSED | bits);
  return FAULT_DONE;
}

function faultWriteProtected(
  space: SpaceCore,
  vma: Vma,
  vpn: number,
  entry: Pte,
  pte: number,
  flags: number,
): number {
  const { mm, agent } = space;
  const pfn = pfnOfPte(pte);
  if ((flags & VM_SHARED) === 0) {
    if ((pte & PTE_EXCLUSIVE) !== 0) return setBits(space, entry, pte, PTE_WRITTEN);
    // The others that a fork gave it to are gone: only we refer to it, and nobody can come to it but through us.
    if (
      pfn !== ZERO_PFN &&
      (mm.frames.flags(pfn) & PG_ANON) !== 0 &&
      mm.frames.refcount(pfn) === 1 &&
      !isBatched(mm, pfn)
    ) {
      const anon = prepareAnon(space, vma);
      if (mm.frames.mapping(pfn) !== anon) moveAnon(space, entry, pte, anon);
      return setBits(space, entry, pte, PTE_WRITTEN | PTE_EXCLUSIVE);
    }
    need.anon = prepareAnon(space, vma);
    need.index = fileIndexOf(space, vma, vpn);
    need.locked = (flags & VM_LOCKED) !== 0;
    return need.anon === 0 ? FAULT_ARENA : FAULT_COW;
  }
  const file = fileAt(mm, vmaFile(space, vma));
  // Under the folio lock: write-back clears the dirty bits under it, and ours must come before or after. With a reference,
  // because reclaim may take the page from the entry and give it to another, who has a lock of his own on it.
  if (!mm.frames.tryGet(pfn)) return FAULT_DONE;
  if (!mm.frames.tryLockFolio(pfn)) {
    mm.frames.put(pfn);
    return locked(file, fileIndexOf(space, vma, vpn), pfn);
  }
  if (Atomics.load(agent.words, entry) === pte) {
    mm.frames.setFlags(pfn, PG_DIRTY);
    noteFileWrite(file, fileIndexOf(space, vma, vpn));
    setBits(space, entry, pte, PTE_WRITTEN);
  }
  mm.frames.unlockFolio(pfn);
  mm.frames.put(pfn);
  return FAULT_DONE;
}

/** Makes a page that only its entry maps one of `anon`: no mapping above need be looked at for it. Linux: folio_move_anon_rmap(). */
function moveAnon(space: SpaceCore, entry: Pte, pte: number, anon: number): void {
  const { frames } = space.mm;
  const pfn = pfnOfPte(pte);
  // With a reference: another agent may take the page from the entry, and its frame become another's.
  if (!frames.tryGet(pfn)) return;
  if (Atomics.load(space.agent.words, entry) === pte) frames.setMapping(pfn, anon, frames.index(pfn));
  frames.put(pfn);
}

function locked(file: FileCore, index: number, pfn: number): number {
  need.file = file;
  need.index = index;
  need.pfn = pfn;
  return FAULT_LOCKED;
}

function faultAnonymous(space: SpaceCore, vma: Vma, vpn: number, entry: Pte, write: boolean): number {
  const { mm, agent } = space;
  const w = agent.words;
  if (!write) {
    Atomics.compareExchange(w, entry, 0, makePte(ZERO_PFN, PTE_VALID | PTE_READ | PTE_ACCESSED));
    return FAULT_DONE;
  }
  const anon = prepareAnon(space, vma);
  if (anon === 0) return FAULT_ARENA;
  const pfn = mm.frames.tryAlloc(true);
  if (pfn === 0) return FAULT_FRAME;
  installAnonymous(space, entry, pfn, anon, fileIndexOf(space, vma, vpn));
  return FAULT_DONE;
}

/** Maps an own frame in an empty entry, or gives it back if somebody was faster. */
function installAnonymous(space: SpaceCore, entry: Pte, pfn: number, anon: number, index: number): void {
  const { frames } = space.mm;
  frames.initMapped(pfn, PG_ANON | PG_UPTODATE, anon, index);
  if (Atomics.compareExchange(space.agent.words, entry, 0, makePte(pfn, NEW_ANON)) !== 0) {
    frames.putMapped(pfn);
  }
}

function faultFile(
  space: SpaceCore,
  vma: Vma,
  vpn: number,
  entry: Pte,
  file: FileCore,
  flags: number,
  write: boolean,
): number {
  const { frames } = space.mm;
  const index = fileIndexOf(space, vma, vpn);
  const copies = write && (flags & VM_SHARED) === 0;
  const anon = copies ? prepareAnon(space, vma) : 0;
  if (copies && anon === 0) return FAULT_ARENA;
  // First: a page beyond the end that is still in the cache is on its way out.
  if (index >= file.pages) {
    if (!write) faultAround(space, vma, vpn, entry, file, index);
    return FAULT_BUS;
  }
  const page = tryGetPage(file, index);
  if (page === 0) {
    need.file = file;
    need.index = index;
    return FAULT_PAGE;
  }
  if (!frames.tryLockFolio(page)) {
    frames.put(page);
    return locked(file, index, page);
  }
  markUsed(file, page);
  if (copies) {
    const copy = index < file.pages ? frames.tryAlloc(false) : 0;
    if (copy !== 0) {
      frames.copyFrame(copy, page);
      installAnonymous(space, entry, copy, anon, index);
    }
    frames.unlockFolio(page);
    frames.put(page);
    return copy === 0 ? FAULT_FRAME : FAULT_DONE;
  }
  const result = mapLocked(space, entry, file, index, page, write ? PTE_WRITTEN : PTE_ACCESSED);
  if (!write) faultAround(space, vma, vpn, entry, file, index);
  return result;
}

/** Maps a locked page of the cache with its reference; unlocks it. FAULT_DONE also where the access is to look again. */
function mapLocked(
  space: SpaceCore,
  entry: Pte,
  file: FileCore,
  index: number,
  pfn: number,
  bits: number,
): number {
  const { frames } = space.mm;
  // It may have left the cache between our reference and our lock, or be about to: the file has become shorter.
  if (file.frameOf(index) !== pfn || index >= file.pages) {
    frames.unlockFolio(pfn);
    frames.put(pfn);
    return FAULT_DONE;
  }
  if ((bits & PTE_WRITE) !== 0) {
    frames.setFlags(pfn, PG_DIRTY);
    noteFileWrite(file, index);
  }
  const counted = frames.tryMap(pfn);
  const pte = makePte(pfn, PTE_VALID | PTE_READ | bits);
  const mapped = counted && Atomics.compareExchange(space.agent.words, entry, 0, pte) === 0;
  if (counted && !mapped) frames.unmap(pfn);
  frames.unlockFolio(pfn);
  if (!mapped) frames.put(pfn);
  return counted ? FAULT_DONE : FAULT_MAPPED;
}

/** Pages of one page table in Linux: fault-around stays in it. */
const TABLE_PAGES = 512;

/** Maps the neighbours that the cache has, as not accessed: they are guesses. Linux: do_fault_around(). */
function faultAround(
  space: SpaceCore,
  vma: Vma,
  vpn: number,
  entry: Pte,
  file: FileCore,
  index: number,
): void {
  const { mm, agent } = space;
  const { frames } = mm;
  const around = mm.faultAroundPages;
  if (around <= 1) return;
  const vmaFirst = vmaStart(space, vma) / mm.pageSize;
  const table = Math.floor(vpn / TABLE_PAGES) * TABLE_PAGES;
  const first = Math.max(Math.floor(vpn / around) * around, vmaFirst, table);
  const end = Math.min(first + around, vmaEnd(space, vma) / mm.pageSize, table + TABLE_PAGES);
  for (let neighbour = first; neighbour < end; neighbour++) {
    const at = (entry + (neighbour - vpn)) as Pte;
    if (Atomics.load(agent.words, at) !== 0) continue;
    const page = tryGetPage(file, index + (neighbour - vpn));
    if (page === 0) continue;
    if ((frames.flags(page) & (PG_RECLAIM | PG_UNUSED)) === 0 && frames.tryLockFolio(page))
      mapLocked(space, at, file, index + (neighbour - vpn), page, 0);
    else frames.put(page);
  }
}

// ---- the slow path -------------------------------------------------------------------------------------------------

/**
 * Makes an access possible, waiting for what it lacks; holds no lock while it waits for files and frames.
 * Errors: SegvError, BusError, ENOMEM, ESRCH once the space exits.
 */
export function* faultOp(
  space: SpaceCore,
  vpn: number,
  write: boolean,
  address: number = vpn * space.mm.pageSize,
): Op<void> {
  useSpace(space, "access");
  try {
    yield* faultPageOp(space, vpn, write, address);
  } finally {
    unuseSpace(space);
  }
}

function* faultPageOp(space: SpaceCore, vpn: number, write: boolean, address: number): Op<void> {
  const { agent, mm } = space;
  const lock = space.slot + SP_MMAP_LOCK;
  let held = 0;
  const files: File[] = [];
  try {
    for (;;) {
      yield* lockReadOp(agent, lock, LockRank.mmapLock, "mmapLock");
      let result: number;
      try {
        checkLive(space, "access");
        result = faultLocked(space, vpn, write);
        if (result === FAULT_COW) result = yield* copyOnWriteOp(space, vpn);
        // The mapping keeps the file while the lock is held; from then on we do.
        if (result === FAULT_PAGE && !files.includes(need.file!.slot)) {
          useFile(mm, need.file!.slot);
          files.push(need.file!.slot);
        }
      } finally {
        unlockRead(agent, lock, LockRank.mmapLock);
      }
      // Kept while a frame for its copy is sought: else reclaim would give us the frame of the very page, and so for ever.
      if (held !== 0 && result !== FAULT_FRAME) {
        mm.frames.put(held);
        held = 0;
      }
      if (result === FAULT_DONE) return;
      if (result === FAULT_MAPERR) throw new SegvError("access", address, "SEGV_MAPERR");
      if (result === FAULT_ACCERR) throw new SegvError("access", address, "SEGV_ACCERR");
      if (result === FAULT_BUS) throw new BusError("access", address, "the file ends before this page");
      if (result === FAULT_ARENA) throw noTables("access");
      if (result === FAULT_MAPPED) {
        throw new MmError(
          "ENOMEM",
          "access",
          `the page of the file is mapped ${MOST_MAPPINGS} times, which is the most; unmap it elsewhere`,
        );
      }
      if (result === FAULT_POISON)
        throw new BusError("access", address, "the page is lost: the device that had it is gone");
      if (result === FAULT_BUSY) yield* waitWhileBusyOp(space, vpn);
      else if (result === FAULT_MOVING) yield* waitWhileMovingOp(space, vpn);
      else if (result === FAULT_EXCLUSIVE) yield* takeBackOp(space, vpn);
      else if (result === FAULT_DEVICE) yield* broughtHomeOp(space, vpn, address);
      // Reserved by freeing it again: the next try takes it at once, or somebody was faster and we go round.
      else if (result === FAULT_FRAME) mm.frames.put(yield* allocFrameOp(mm, false));
      // The reference keeps the page from being reclaimed before we have mapped it.
      else if (result === FAULT_PAGE) held = yield* getPageOp(need.file!, need.index, address);
      else if (result === FAULT_LOCKED) yield* waitUnlockedOp(space, need.pfn);
      else if (result === FAULT_AWAY) yield* fetchAwayOp(space, vpn, address);
    }
  } finally {
    if (held !== 0) mm.frames.put(held);
    for (const file of files) unuseFile(mm, file);
  }
}

/**
 * Has a page brought home from the device that has its newest bytes, and may keep them for reading: see writeTracker.ts.
 * Preconditions: no lock held. Errors: ECALLBACK; BusError if nobody has them any more.
 */
function* fetchAwayOp(space: SpaceCore, vpn: number, address: number): Op<void> {
  const before = protecting(space, () => timesSent(space, vpn));
  const nothing = plain(() => {});
  yield* rangeOp(space, vpn, vpn + 1, MmuNotifierEvent.ProtectionPage, undefined, nothing);
  // It may have been sent away again: the access tries once more.
  if (protecting(space, () => isAway(space, vpn) && timesSent(space, vpn) === before))
    throw new BusError("access", address, "its newest bytes were in a device whose agent has ended");
}

/** Keeps what hangs on a space's record while `look` does. */
function protecting<T>({ mm, slot }: SpaceCore, look: () => T): T {
  mm.protect(slot);
  try {
    return look();
  } finally {
    mm.unprotect();
  }
}

/** Preconditions: mmapLock; without it the answer may be old. */
export function checkLive(space: SpaceCore, operation: string): void {
  space.agent.checkUsable(operation);
  if (!space.stillLive) throw new MmError("ESRCH", operation, "the space is exiting or has exited");
}

function* waitWhileBusyOp(space: SpaceCore, vpn: number): Op<void> {
  yield* waitOp(
    space.slot + SP_FAULTQ,
    () => !isBusy(loadPte(space, vpn)),
    "a busy page-table entry",
    () => space.agent.ownerAt(busySlot(loadPte(space, vpn))),
  );
}

function* waitWhileMovingOp(space: SpaceCore, vpn: number): Op<void> {
  const pte = loadPte(space, vpn);
  const pfn = pfnOfPte(pte);
  if (kindOfPte(pte) !== PTE_MIGRATION) return;
  yield* waitMovedOp(space.mm, pfn, () => loadPte(space, vpn) !== pte || !space.mm.frames.isLocked(pfn));
}

/** Errors: BusError if the device cannot deliver the page. */
function* broughtHomeOp(space: SpaceCore, vpn: number, address: number): Op<void> {
  try {
    yield* bringHomeOp(space, vpn);
  } catch (error) {
    if (isRefusal(error) || isMmError(error, "ESRCH") || isMmError(error, "ENOMEM")) throw error;
    throw new BusError(
      "access",
      address,
      `the device that has the page did not deliver it: ${textOf(error)}`,
      error,
    );
  }
}

function* waitUnlockedOp(space: SpaceCore, pfn: number): Op<void> {
  const { frames } = space.mm;
  yield* waitOp(
    frames.queueOf(pfn),
    () => !frames.isLocked(pfn),
    `the lock of frame ${pfn}`,
    () => frames.folioOwner(pfn),
  );
}

const needsCopy = (pte: number): boolean => (pte & (PTE_WRITE | PTE_EXCLUSIVE)) === 0;

/** The copy that is to be made of a page. */
interface Copy {
  /** Its frame, with a reference of its own. */
  readonly fresh: Pfn;
  /** What it is to name. */
  readonly anon: number;
  readonly index: number;
  /** The mapping is. */
  readonly locked: boolean;
}

/** Fills the frame of a copy, and puts it in the place of the one that a busy entry had. */
function installCopy(space: SpaceCore, entry: Pte, old: number, copy: Copy): void {
  const { fresh, anon, index, locked } = copy;
  const { agent, mm } = space;
  const { frames } = mm;
  if (old === ZERO_PFN) frames.zeroFrame(fresh);
  else frames.copyFrame(fresh, old);
  frames.initMapped(fresh, PG_ANON | PG_UPTODATE, anon, index);
  Atomics.store(agent.words, entry, makePte(fresh, NEW_ANON));
  wakeQueue(agent.words, space.slot + SP_FAULTQ);
  if (old !== ZERO_PFN) {
    if (locked) batchReplaced(mm, old);
    frames.putMapped(old);
  }
  mm.count(CT_COW);
}

/** What tryCopy() came to. */
const COPIED: number = 0;
const NOT_NEEDED: number = 1; // somebody else did it: the access tries again
const WAITS: number = 2; //      for another agent, or for whoever changes the entry; nothing is changed

/** Copies the page of an entry if nobody has to be waited for. Preconditions: an open range; mmapLock. */
function tryCopy(space: SpaceCore, vpn: number, copy: Copy): number {
  const { agent } = space;
  const w = agent.words;
  const entry = radixFind(w, space.pgd, vpn);
  const pte = w[entry]!; // plain: it is compared when it is exchanged
  if (isBusy(pte)) return WAITS;
  if (!isValid(pte) || !needsCopy(pte)) return NOT_NEEDED;
  if (Atomics.compareExchange(w, entry, pte, busyOf(pte, agent.slot)) !== pte) return WAITS;
  if (markRange(space, vpn, vpn + 1).length === 0) {
    installCopy(space, entry, pfnOfPte(pte), copy);
    return COPIED;
  }
  Atomics.store(w, entry, pte);
  wakeQueue(w, space.slot + SP_FAULTQ);
  return WAITS;
}

/**
 * The fast path of copyOnWriteOp(): where no notifier listens and no other agent that runs has the page in its TLB.
 * Preconditions: mmapLock held for reading.
 */
function tryCopyOnWrite(space: SpaceCore, vpn: number): number {
  const { mm } = space;
  const c = space.notifiers.context;
  let result = FAULT_COW;
  if (beginRange(c, vpn * mm.pageSize, (vpn + 1) * mm.pageSize)) {
    const fresh = mm.frames.tryAlloc(false);
    const { anon, index, locked } = need;
    const outcome = fresh === 0 ? WAITS : tryCopy(space, vpn, { fresh, anon, index, locked });
    if (outcome === COPIED) mm.count(CT_EVENTS + MmuNotifierEvent.Clear);
    else if (fresh !== 0) mm.frames.put(fresh);
    result = fresh === 0 ? FAULT_FRAME : outcome === WAITS ? FAULT_COW : FAULT_DONE;
  }
  endRange(c);
  return result;
}

/** A copy-on-write under way. */
interface OpenCopy extends Copy {
  readonly range: OpenRange;
  /** What is left of opening the range; undefined: it is open. */
  readonly rest: Op<void> | undefined;
}

/** Reserves a frame and begins to tell the subscribers. Undefined: no frame is free, and nobody has been told. */
function openCopy(space: SpaceCore, vpn: number, blockable: boolean): OpenCopy | undefined {
  const { mm } = space;
  const { pageSize } = mm;
  const { anon, index, locked } = need;
  const fresh = mm.frames.tryAlloc(false);
  if (fresh === 0) return undefined;
  const c = space.notifiers.context;
  const range = makeRange(c.space, vpn * pageSize, (vpn + 1) * pageSize, MmuNotifierEvent.Clear, blockable);
  try {
    const rest = openRange(c, range, false);
    if (!rest) mm.count(CT_EVENTS + MmuNotifierEvent.Clear);
    return { range, rest, fresh, anon, index, locked };
  } catch (error) {
    mm.frames.put(fresh);
    throw error;
  }
}

/** Goes on with a copy-on-write to its end. Preconditions: mmapLock held for reading. */
function* finishCopyOp(space: SpaceCore, vpn: number, copy: OpenCopy): Op<void> {
  const { mm } = space;
  let used = false;
  try {
    if (copy.rest) {
      yield* copy.rest;
      mm.count(CT_EVENTS + MmuNotifierEvent.Clear);
    }
    try {
      const taken = yield* takeRangeOp(space, vpn, vpn + 1, needsCopy);
      if (taken.entries.length === 0) return; // somebody else did it: the access tries again
      used = true;
      installCopy(space, taken.entries[0]! as Pte, pfnOfPte(taken.olds[0]!), copy);
    } finally {
      endOpenRange(space.notifiers.context, copy.range);
    }
  } finally {
    if (!used) mm.frames.put(copy.fresh);
  }
}

/**
 * Gives a page of its own to a private mapping. Linux: wp_page_copy(). The copy is made after everybody has given up
 * the old translation: no agent sees the two frames in an order that no memory could show.
 * Preconditions: mmapLock held for reading.
 */
function* copyOnWriteOp(space: SpaceCore, vpn: number): Op<number> {
  const copy = openCopy(space, vpn, space.agent.current?.mode !== "try");
  if (!copy) return FAULT_FRAME;
  yield* finishCopyOp(space, vpn, copy);
  return FAULT_DONE;
}

// ---- faults of an access that may block ----------------------------------------------------------------------------

/**
 * Resolves a fault as far as that needs no wait, subscribers of this agent that answer at once included. Returns
 * undefined if the access can try again, else what is left: the caller runs it at once with runBlocking(), because it
 * may have mmapLock and an open range.
 * Preconditions: in a turn, not in a callback.
 * Errors, after which nothing is changed: ECALLBACK, and EAGAIN where the agent may not block.
 */
export function faultNow(
  space: SpaceCore,
  vpn: number,
  write: boolean,
  address: number,
): Op<void> | undefined {
  const { agent } = space;
  const lock = space.slot + SP_MMAP_LOCK;
  if (!agent.fastPaths || !tryLockRead(agent, lock, LockRank.mmapLock))
    return faultOp(space, vpn, write, address);
  let handedOver = false;
  try {
    const result = faultLocked(space, vpn, write);
    if (result === FAULT_DONE) return undefined;
    // Subscribers of a space that exits have had its release: nobody tells them more.
    const copy = result === FAULT_COW && space.stillLive ? openCopy(space, vpn, agent.mayBlock) : undefined;
    if (!copy) return faultOp(space, vpn, write, address);
    if (!copy.rest && tryFinishCopy(space, vpn, copy)) return undefined;
    handedOver = true;
    joinSpace(space);
    passRead(agent, LockRank.mmapLock);
    return takeOverCopyOp(space, vpn, copy);
  } finally {
    if (!handedOver) unlockRead(agent, lock, LockRank.mmapLock);
  }
}

/** As finishCopyOp(), for an open range. False: it has to wait, and the range is still open. */
function tryFinishCopy(space: SpaceCore, vpn: number, copy: OpenCopy): boolean {
  let outcome = NOT_NEEDED;
  try {
    outcome = tryCopy(space, vpn, copy);
  } finally {
    if (outcome === NOT_NEEDED) space.mm.frames.put(copy.fresh);
    if (outcome !== WAITS) endOpenRange(space.notifiers.context, copy.range);
  }
  return outcome !== WAITS;
}

/** Goes on with what faultNow() has begun: its range, its share of mmapLock, its use of the space. */
function* takeOverCopyOp(space: SpaceCore, vpn: number, copy: OpenCopy): Op<void> {
  const { agent } = space;
  adoptRead(agent, LockRank.mmapLock);
  try {
    yield* finishCopyOp(space, vpn, copy);
  } finally {
    unlockRead(agent, space.slot + SP_MMAP_LOCK, LockRank.mmapLock);
    unuseSpace(space);
  }
}
