/**
 * Telling those who keep copies of pages which have been written since, and keeping accesses away from pages whose newest
 * bytes are elsewhere. Linux: userfaultfd's asynchronous write protection with PAGEMAP_SCAN (PM_SCAN_WP_MATCHING), and
 * device-exclusive entries.
 *
 * A store through a translation that exists tells nobody. So whoever copied a page has its write permission taken away, and
 * the fault of the next store sets the page's bit in each tracker that covers it. That is independent of the soft-dirty bits, of
 * other trackers, and of who stores: an agent through this space, another space that maps the same page of a file, or
 * file.write(). What changes without a store is the notifiers' business: a tracker's owner also has an interval over
 * its range, and marks there what an invalidation takes.
 *
 * Tracker: a record in the space's list, with two bits a page.
 *
 *   W1  A page whose `written` bit is 0 was readable when the bit was cleared, and nothing can be written to it without a fault: no
 *       entry for it is writable, in any space, no TLB says so, and no view or pin for writing holds it.
 *   W2  `written` bits are cleared under mmapLock for writing, those of a page of a file under its folio lock too. They are set before
 *       the store becomes possible, under mmapLock for reading or the folio lock.
 *   W3  A page whose `away` bit is 1 is an anonymous page of its mapping's own, and its entry is valid and neither readable nor
 *       writable. The bit is set under mmapLock for writing. It is cleared by the owner once the bytes are in the frame; by the first fault
 *       at a page that is not mapped any more, where the owner has died.
 *   W4  The list changes under mmapLock for writing; who walks it has mmapLock, or protects the space.
 *
 * A fault at a page that is away raises PROTECTION_PAGE for it: the owner's interval hears it and brings the bytes home
 * before it answers. Linux raises CLEAR where a device's exclusive access ends; a device of this kind has a copy, which it may
 * keep for reading.
 *
 * Lock order: mmapLock > folio lock (tried only).
 */
import { isMmError } from "../errors.ts";
import { PG_DIRTY, ZERO_PFN } from "../memory/index.ts";
import { makeRange, MmuNotifierEvent, type OpenRange, type OwnerId } from "../notifier/index.ts";
import { type Op, runAsync } from "../sched/index.ts";
import { runsOf, type Slot } from "../units.ts";
import { MM_OWNERS, MM_TRACKERS, SP_TRACKERS, VM_WRITE } from "./layout.ts";
import type { Mm } from "./mm.ts";
import { type FileCore, fileAt, mapsFilePage } from "./pageCache.ts";
import {
  isValid,
  pfnOfPte,
  PTE_DIRTY,
  PTE_EXCLUSIVE,
  PTE_READ,
  PTE_SOFT_DIRTY,
  PTE_VALID,
  PTE_WRITE,
} from "./pte.ts";
import { loadPte } from "./pageTables.ts";
import { radixFind } from "./radix.ts";
import { close, extentOf, open, writingOp, writingPlainOp } from "./ranges.ts";
import { protectPagesOp } from "./rmap.ts";
import { awaitAcksOp, markRange, type PendingAck } from "./shootdown.ts";
import type { SpaceCore } from "./spaceCore.ts";
import {
  awayAt,
  isAway,
  setWritten,
  TR_BITS,
  TR_FIRST,
  TR_NEXT,
  TR_PAGES,
  TR_SENT,
  TR_CHANGES,
  trackerWords,
} from "./trackers.ts";
import { anyHeldRuns } from "./views.ts";
import { fileIndexOf, findVma, vmaFile, vmaFlags } from "./vma.ts";

type Tracker = Slot<"tracker">;

/** Pages of a file that are protected together at most. */
const RUN_PAGES = 256;

/** What a page has that may go to a device. */
const OWN: number = PTE_VALID | PTE_EXCLUSIVE;

/**
 * Which pages of one range have been written. Pages are numbered from the range's first. For the agent that made it; the
 * bits may be set by any.
 */
export class WriteTracker {
  readonly pages: number;
  /** Who the EXCLUSIVE ranges of sendAway() are by: its owner leaves them out. */
  readonly owner: OwnerId;
  readonly #space: SpaceCore;
  readonly #at: Tracker;
  readonly #first: number;
  #removed = false;

  private constructor(space: SpaceCore, at: Tracker, first: number, pages: number) {
    this.#space = space;
    this.#at = at;
    this.#first = first;
    this.pages = pages;
    this.owner = Atomics.add(space.agent.words, space.mm.header + MM_OWNERS, 1) + 1;
  }

  /** Begins to track `[start, start + length)` (bytes, page aligned); every page counts as written. May wait. Errors: EINVAL, ENOMEM, ESRCH. */
  static create(space: SpaceCore, start: number, length: number): Promise<WriteTracker> {
    return runAsync(space.agent, WriteTracker.#createOp(space, start, length));
  }

  static *#createOp(space: SpaceCore, start: number, length: number): Op<WriteTracker> {
    const { mm, agent } = space;
    const w = agent.words;
    const extent = extentOf(space, "trackWrites", start, length, { beyond: "EINVAL" });
    const first = extent.start / mm.pageSize;
    const pages = extent.end / mm.pageSize - first;
    return yield* writingPlainOp(space, "trackWrites", () => {
      const at = mm.alloc(trackerWords(pages), "trackWrites");
      Atomics.store(w, at + TR_FIRST, first);
      Atomics.store(w, at + TR_PAGES, pages);
      Atomics.store(w, at + TR_NEXT, Atomics.load(w, space.slot + SP_TRACKERS));
      Atomics.add(w, mm.header + MM_TRACKERS, 1);
      Atomics.store(w, space.slot + SP_TRACKERS, at);
      const tracker = new WriteTracker(space, at as Tracker, first, pages);
      tracker.mark(0, pages);
      return tracker;
    });
  }

  /** Moves on whenever a page becomes written. Unchanged means: none has, of which this agent could know. One load. */
  get changes(): number {
    return Atomics.load(this.#space.agent.words, this.#at + TR_CHANGES);
  }

  /** Counts pages `[first, end)` as written. Allowed in callbacks. */
  mark(first: number, end: number): void {
    const w = this.#space.agent.words;
    for (let page = first; page < end; page++) setWritten(w, this.#at, page);
  }

  /** The written pages of `[first, end)` in ascending order. Never waits. */
  written(first: number, end: number): number[] {
    return this.#bitsOf(this.#at + TR_BITS, first, end);
  }

  /** The pages of `[first, end)` that are away, in ascending order. Never waits. */
  away(first: number, end: number): number[] {
    return this.#bitsOf(awayAt(this.#at, this.pages), first, end);
  }

  #bitsOf(bits: number, first: number, end: number): number[] {
    const w = this.#space.agent.words;
    const found: number[] = [];
    for (let word = first >>> 5; word * 32 < end; word++) {
      for (let rest = Atomics.load(w, bits + word); rest !== 0; rest &= rest - 1) {
        const page = word * 32 + (31 - Math.clz32(rest & -rest));
        if (page >= first && page < end) found.push(page);
      }
    }
    return found;
  }

  /**
   * Takes write permission from pages (ascending), and counts them as not written from one moment on: a store before it
   * is in the bytes, a store after it sets the bit again. Pages stay written that cannot be read as they are, or that somebody
   * may go on to write to: their lock is taken, or a view or a pin holds them. Raises one
   * PROTECTION_PAGE from the first to the last that was writable, as PAGEMAP_SCAN does. May wait. Errors: ECALLBACK, ESRCH.
   */
  take(pages: readonly number[]): Promise<void> {
    return runAsync(this.#space.agent, this.takeOp(pages));
  }

  /** @internal */
  takeOp(pages: readonly number[]): Op<void> {
    const space = this.#space;
    return writingOp(space, "trackWrites", () => this.#takeLockedOp(space.mm, space, pages));
  }

  *#takeLockedOp(mm: Mm, space: SpaceCore, pages: readonly number[]): Op<void> {
    const own: { readonly page: number; readonly pfn: number }[] = [];
    const writable: number[] = [];
    const files: FilePage[] = [];
    for (const page of pages) {
      const vpn = this.#first + page;
      const pte = loadPte(space, vpn);
      // Not readable: it cannot be copied, or is away.
      if (!isValid(pte) || (pte & PTE_READ) === 0) continue;
      const pfn = pfnOfPte(pte);
      if (mapsFilePage(mm, pte)) {
        const vma = findVma(space, vpn * mm.pageSize);
        files.push({ file: fileAt(mm, vmaFile(space, vma)), index: fileIndexOf(space, vma, vpn), page, pfn });
        continue;
      }
      own.push({ page, pfn });
      if ((pte & PTE_WRITE) !== 0) writable.push(vpn);
    }
    // Pages that are away in between would be brought home for nothing.
    const apart =
      writable.length > 1 && this.away(writable[0]! - this.#first, writable.at(-1)! - this.#first).length > 0;
    yield* reduceOp(space, writable, PTE_WRITE, apart, MmuNotifierEvent.ProtectionPage);
    const held = anyHeldRuns(mm);
    for (const { page, pfn } of own) {
      if (held && pfn !== ZERO_PFN && mm.frames.refcount(pfn) > mm.frames.mapcount(pfn)) continue;
      this.#clear(page);
    }
    for (let k = 0; k < files.length;) k += yield* this.#takeFileRunOp(mm, files, k);
  }

  /** The pages of `files` from `k` on that follow each other in their file. Returns how many these are. */
  *#takeFileRunOp(mm: Mm, files: readonly FilePage[], k: number): Op<number> {
    const { frames } = mm;
    const { file, index } = files[k]!;
    const locked: FilePage[] = [];
    let n = 0;
    try {
      for (; k + n < files.length && n < RUN_PAGES; n++) {
        const next = files[k + n]!;
        if (next.file !== file || next.index !== index + n) break;
        if (!frames.tryGet(next.pfn)) continue;
        // Who has the lock may be about to take the page away, or to write to it: it stays written.
        const isLocked = frames.tryLockFolio(next.pfn);
        if (isLocked && file.frameOf(next.index) === next.pfn) {
          locked.push(next);
          continue;
        }
        if (isLocked) frames.unlockFolio(next.pfn);
        frames.put(next.pfn);
      }
      // What is clean is writable nowhere.
      const dirty = locked.filter(({ pfn }) => (frames.flags(pfn) & PG_DIRTY) !== 0);
      for (let from = 0; from < dirty.length;) {
        let to = from + 1;
        while (to < dirty.length && dirty[to]!.index === dirty[to - 1]!.index + 1) to++;
        yield* protectPagesOp(file, dirty[from]!.index, to - from);
        from = to;
      }
      const held = anyHeldRuns(mm);
      for (const { page, pfn } of locked) {
        const pte = loadPte(this.#space, this.#first + page);
        // Besides the mappings: the cache's reference and ours.
        if (held && frames.refcount(pfn) > frames.mapcount(pfn) + 2) continue;
        if (isValid(pte) && pfnOfPte(pte) === pfn) this.#clear(page);
      }
    } finally {
      for (const { pfn } of locked) {
        frames.unlockFolio(pfn);
        frames.put(pfn);
      }
    }
    return n;
  }

  #clear(page: number): void {
    Atomics.and(this.#space.agent.words, this.#at + TR_BITS + (page >>> 5), ~(1 << (page & 31)));
  }

  /**
   * Takes pages (ascending) from the CPUs: the next access of any agent raises PROTECTION_PAGE for the page, and goes on once
   * comeHome() has been called for it. Calls `sent` for each page for which that is so, before anybody can see it, with
   * the frame, which stays the page's as long as it is away. Not possible for pages of files, for pages that may not be written or are not the
   * mapping's own yet (populate() for writing first), and for what a view or a pin holds. The pages count as dirty. Raises EXCLUSIVE, with
   * `owner`. May wait. Errors: ECALLBACK, ESRCH.
   */
  sendAway(pages: readonly number[], sent: (page: number, pfn: number) => void): Promise<void> {
    return runAsync(this.#space.agent, this.sendAwayOp(pages, sent));
  }

  /** @internal */
  sendAwayOp(pages: readonly number[], sent: (page: number, pfn: number) => void): Op<void> {
    const space = this.#space;
    return writingOp(space, "trackWrites", () => this.#sendAwayLockedOp(space, pages, sent));
  }

  *#sendAwayLockedOp(
    space: SpaceCore,
    pages: readonly number[],
    sent: (page: number, pfn: number) => void,
  ): Op<void> {
    const { mm } = space;
    const w = space.agent.words;
    const vpns = pages
      .map((page) => this.#first + page)
      .filter((vpn) => (loadPte(space, vpn) & OWN) === OWN && isWritable(space, vpn) && !isAway(space, vpn));
    yield* reduceOp(space, vpns, PTE_READ | PTE_WRITE, true, MmuNotifierEvent.Exclusive, this.owner);
    const held = anyHeldRuns(mm);
    const bits = awayAt(this.#at, this.pages);
    for (const vpn of vpns) {
      const entry = radixFind(w, space.pgd, vpn);
      const pfn = pfnOfPte(Atomics.or(w, entry, PTE_DIRTY | PTE_SOFT_DIRTY));
      // What cannot go gets its rights back by the next fault.
      if (held && mm.frames.refcount(pfn) > mm.frames.mapcount(pfn)) continue;
      const page = vpn - this.#first;
      sent(page, pfn);
      Atomics.add(w, this.#at + TR_SENT, 1);
      Atomics.or(w, bits + (page >>> 5), 1 << (page & 31));
    }
  }

  /** Lets the CPUs have pages `[first, end)` again. Allowed in callbacks. Preconditions: their bytes are in the frames, or given up. */
  comeHome(first: number, end: number): void {
    const bits = awayAt(this.#at, this.pages);
    for (let page = first; page < end; page++)
      Atomics.and(this.#space.agent.words, bits + (page >>> 5), ~(1 << (page & 31)));
  }

  /** Stops tracking; nothing may be away. May wait. Once the space has exited it does nothing: the record is gone. */
  remove(): Promise<void> {
    if (this.#removed || !this.#space.live) return Promise.resolve();
    this.#removed = true;
    return runAsync(this.#space.agent, this.#removeOp());
  }

  *#removeOp(): Op<void> {
    const space = this.#space;
    const { mm } = space;
    const w = space.agent.words;
    try {
      yield* writingPlainOp(space, "trackWrites", () => {
        let link = space.slot + SP_TRACKERS;
        while (Atomics.load(w, link) !== this.#at) link = Atomics.load(w, link) + TR_NEXT;
        Atomics.store(w, link, Atomics.load(w, this.#at + TR_NEXT));
        Atomics.sub(w, mm.header + MM_TRACKERS, 1);
      });
    } catch (error) {
      if (isMmError(error, "ESRCH")) return; // it goes with the space
      this.#removed = false;
      throw error;
    }
    mm.awaitUnprotected(space.slot);
    mm.free(this.#at, trackerWords(this.pages));
  }
}

const isWritable = (space: SpaceCore, vpn: number): boolean =>
  (vmaFlags(space, findVma(space, vpn * space.mm.pageSize)) & VM_WRITE) !== 0;

interface FilePage {
  readonly file: FileCore;
  readonly index: number;
  readonly page: number;
  readonly pfn: number;
}

/**
 * Takes rights from pages (ascending) between a start and its end, one for each run with `apart`, and waits until nobody
 * uses them any more. Preconditions: mmapLock for writing; pages that only operations under it change.
 */
function* reduceOp(
  space: SpaceCore,
  vpns: readonly number[],
  clear: number,
  apart: boolean,
  event: MmuNotifierEvent,
  owner?: OwnerId,
): Op<void> {
  if (vpns.length === 0) return;
  const { pageSize } = space.mm;
  const runs = runsOf(vpns);
  const told = apart ? runs : [{ first: runs[0]!.first, end: runs.at(-1)!.end }];
  const ranges: OpenRange[] = [];
  try {
    // All open at once, as fork's are: one wait for the acknowledgements of all.
    for (const { first, end } of told) {
      const blockable = space.agent.current?.mode !== "try";
      const { space: subject } = space.notifiers.context;
      const range = makeRange(subject, first * pageSize, end * pageSize, event, blockable, owner);
      const rest = open(space, range);
      if (rest) yield* rest;
      ranges.push(range);
    }
    const acks: PendingAck[] = [];
    for (const { first, end } of runs) {
      for (let vpn = first; vpn < end; vpn++) clearBits(space, vpn, clear);
      acks.push(...markRange(space, first, end));
    }
    yield* awaitAcksOp(space, acks);
  } finally {
    for (const range of ranges.reverse()) close(space, range);
  }
}

function clearBits(space: SpaceCore, vpn: number, clear: number): void {
  const w = space.agent.words;
  const entry = radixFind(w, space.pgd, vpn);
  for (let pte = Atomics.load(w, entry); isValid(pte);) {
    const seen = Atomics.compareExchange(w, entry, pte, pte & ~clear);
    if (seen === pte) return;
    pte = seen;
  }
}
