/**
 * The smallest complete secondary MMU: a table of frame numbers over one range of a space, filled on demand and kept
 * across accesses. What a driver does in Linux with mmu_interval_notifier and hmm_range_fault().
 *
 * Invariants
 *   M1  An entry is 0, or names the frame that the page tables mapped there when no invalidation of it was under way
 *       since. It comes with a fill that nothing overtook: readBegin(), rangeFault(), then readRetry() and the install.
 *   M2  Between readRetry() and the last store of the install there is no safepoint, so no callback of this agent: the
 *       agent itself is the lock that Linux's contract wants around both.
 *   M3  invalidate() calls setSeq() whatever the event, also where the table has no entry yet: a fill may be under way.
 *   M4  An invalidator changes nothing before invalidate() has returned, and that runs at safepoints of this agent only.
 *       So bytes behind an entry stay the page's until the next safepoint after the lookup: no reference is needed, and
 *       whoever uses them passes none (no operation, no memory.poll(), no await) from read() to the last byte.
 */
import { isMmError, MmError } from "../errors.ts";
import { hmmPfn, type RangeFault, rangeFault } from "../hmm/index.ts";
import { type AddressSpace, type PhysicalMemory, presentPages } from "../mm/index.ts";
import type { IntervalNotifier, MmuNotifierRange } from "../notifier/index.ts";
import { asAccess } from "./accessError.ts";

export interface TableMirrorOptions {
  readonly memory: PhysicalMemory;
  readonly space: AddressSpace;
  /** Bytes, page aligned; `length` above 0. */
  readonly start: number;
  readonly length: number;
  /** Most bytes that one fill asks for; default 256 KiB. Must fit the budget, with what others need at the same time. */
  readonly fillBytes?: number;
}

export interface MirrorCounts {
  /** Page accesses that the table answered. */
  readonly hits: number;
  /** Calls of rangeFault(). */
  readonly fills: number;
  /** Those of them that an invalidation overtook. */
  readonly retries: number;
  /** Calls of invalidate(). */
  readonly invalidations: number;
}

const DEFAULT_FILL_BYTES = 256 * 1024;
/**
 * A fill that keeps being overtaken gives up after this. Linux: HMM_RANGE_DEFAULT_TIMEOUT, 1 s; more here, because
 * an agent may wait for its turn on a processor as long as that.
 */
const FILL_TIMEOUT_MS = 10_000;

/** One attempt after another to fill a stretch of the table. */
interface Fill {
  readonly page: number;
  pages: number;
  readonly deadline: number;
}

export class TableMirror implements AsyncDisposable {
  readonly pageSize: number;
  /** Pages of the range. */
  readonly pages: number;
  readonly #memory: PhysicalMemory;
  readonly #space: AddressSpace;
  readonly #start: number;
  readonly #interval: IntervalNotifier;
  /** One word a page, as rangeFault() gives it; 0 = none. */
  readonly #entries: Int32Array;
  /** Where rangeFault() writes, until readRetry() has allowed the install. */
  readonly #snapshot: Int32Array;
  /** Pages that read() gave out, and calls that found none: the page asked for is given out after a fill. */
  #accesses = 0;
  #misses = 0;
  #fills = 0;
  #retries = 0;
  #invalidations = 0;

  /** Subscribes this agent to the range. Never waits. Errors: as Notifiers.insert(). */
  constructor(options: TableMirrorOptions) {
    const { memory, space, start, length } = options;
    const { pageSize } = memory;
    if (start % pageSize !== 0 || length % pageSize !== 0) {
      throw new MmError(
        "EINVAL",
        "TableMirror",
        `start and length must be multiples of the page size (${pageSize})`,
      );
    }
    this.#memory = memory;
    this.#space = space;
    this.#start = start;
    this.pageSize = pageSize;
    this.pages = length / pageSize;
    this.#entries = new Int32Array(this.pages);
    this.#snapshot = new Int32Array(
      Math.max(1, Math.floor((options.fillBytes ?? DEFAULT_FILL_BYTES) / pageSize)),
    );
    const invalidate = (interval: IntervalNotifier, range: MmuNotifierRange, curSeq: number): boolean => {
      interval.setSeq(curSeq); // M3
      this.#drop(range);
      return true;
    };
    this.#interval = space.notifiers.sync.insert({ invalidate }, start, length);
  }

  #drop(range: MmuNotifierRange): void {
    this.#invalidations++;
    const first = Math.max(0, Math.floor((range.start - this.#start) / this.pageSize));
    const end = Math.min(this.pages, Math.ceil((range.end - this.#start) / this.pageSize));
    this.#entries.fill(0, first, Math.max(first, end));
  }

  get counts(): MirrorCounts {
    return {
      hits: this.#accesses - this.#misses,
      fills: this.#fills,
      retries: this.#retries,
      invalidations: this.#invalidations,
    };
  }

  /** How many of the pages `[page, page + limit)` have entries, counted from the first to the first gap. */
  present(page: number, limit: number): number {
    const end = Math.min(page + limit, this.pages);
    let at = page;
    while (at < end && this.#entries[at] !== 0) at++;
    return at - page;
  }

  /**
   * Calls `use` with the bytes of the pages from `page` on that have entries, up to the first gap, at most `limit`;
   * each time as many as lie together in memory. Returns how many pages that were; 0: fill() is needed.
   * The bytes are good until the caller's next safepoint (M4); `use` itself must not pass one.
   */
  read(page: number, limit: number, use: (bytes: Uint8Array, page: number) => void): number {
    const entries = this.#entries;
    const end = page + this.present(page, limit);
    for (let at = page; at < end;) {
      const pfn = hmmPfn(entries[at]!);
      let count = 1;
      while (at + count < end && hmmPfn(entries[at + count]!) === pfn + count) count++;
      const bytes = this.#memory.frame(pfn, count);
      use(bytes, at);
      // Frames whose numbers follow each other lie in two segments where one segment ends.
      at += bytes.length / this.pageSize;
    }
    const pages = end - page;
    if (pages === 0) this.#misses++;
    this.#accesses += pages;
    return pages;
  }

  /**
   * Gets an entry for `page`, and for those after it up to the next multiple of `fillBytes` as far as they can be had.
   * An entry may be gone again when this returns: read() tells. May wait. Errors: SegvError and BusError as an access,
   * EBUSY if invalidations overtook it again and again.
   */
  async fill(page: number): Promise<void> {
    const fill = this.#begin(page);
    for (;;) {
      const seq = await this.#interval.readBegin();
      let error: unknown;
      try {
        await rangeFault(this.#interval, this.#rangeOf(fill, seq));
      } catch (thrown) {
        error = thrown;
      }
      if (this.#finish(fill, seq, error)) return;
    }
  }

  /** As fill(), in an agent that may block. */
  fillSync(page: number): void {
    const fill = this.#begin(page);
    for (;;) {
      const seq = this.#interval.sync.readBegin();
      let error: unknown;
      try {
        rangeFault.sync(this.#interval, this.#rangeOf(fill, seq));
      } catch (thrown) {
        error = thrown;
      }
      if (this.#finish(fill, seq, error)) return;
    }
  }

  /**
   * As fill(), once, without waiting, and for pages only that are resident: a fill ahead of need, after which an access is
   * a hit. False: not even `page` is, or that needs a wait, or was overtaken; the table is as it was.
   */
  tryFill(page: number): boolean {
    const seq = this.#interval.tryReadBegin();
    if (seq === undefined) return false;
    const fill = this.#begin(page);
    // A fault that has to make room would fail after all, but only after it has told everybody that it was about to.
    fill.pages = presentPages(this.#space, this.#addressOf(page) / this.pageSize, fill.pages);
    if (fill.pages === 0) return false;
    try {
      rangeFault.try(this.#interval, this.#rangeOf(fill, seq));
    } catch (error) {
      if (!isMmError(error)) throw error;
      if (error.code === "EBUSY") this.#retries++;
      return false;
    }
    const installed = this.#install(fill, seq);
    if (!installed) this.#retries++;
    return installed;
  }

  #begin(page: number): Fill {
    const most = this.#snapshot.length;
    const pages = Math.min(most - (page % most), this.pages - page);
    return { page, pages, deadline: performance.now() + FILL_TIMEOUT_MS };
  }

  #rangeOf(fill: Fill, seq: number): RangeFault {
    this.#fills++;
    return {
      memory: this.#memory,
      space: this.#space,
      seq,
      start: this.#addressOf(fill.page),
      length: fill.pages * this.pageSize,
      entries: this.#snapshot,
    };
  }

  #addressOf(page: number): number {
    return this.#start + page * this.pageSize;
  }

  /** What follows rangeFault(). True: the entries are in the table; false: once more, from readBegin() on. */
  #finish(fill: Fill, seq: number, error: unknown): boolean {
    if (error === undefined) {
      if (this.#install(fill, seq)) return true;
    } else if (!isMmError(error, "EBUSY")) {
      this.#shorten(fill, error);
      return false;
    }
    this.#retries++;
    // A shorter stretch is less likely to be overtaken, and needs fewer frames at once.
    fill.pages = Math.max(1, fill.pages >>> 1);
    if (performance.now() < fill.deadline) return false;
    throw new MmError(
      "EBUSY",
      "fill",
      `invalidations overtook every attempt of ${FILL_TIMEOUT_MS / 1000} s; change mappings less often, or use a larger budget`,
      { range: { start: this.#addressOf(fill.page), end: this.#addressOf(fill.page + 1) } },
    );
  }

  /** Puts the snapshot into the table, unless an invalidation overtook it. */
  #install(fill: Fill, seq: number): boolean {
    // Reading the file may have taken long. Whoever has been waiting for this agent is served before the install: what
    // they invalidate would be used once more otherwise, and they would wait for that.
    this.#memory.poll();
    if (this.#interval.readRetry(seq)) return false;
    // M2: nothing between the check and here.
    this.#entries.set(this.#snapshot.subarray(0, fill.pages), fill.page);
    return true;
  }

  /** Leaves out what cannot be had. Throws if that is the page itself: the others are a bonus. */
  #shorten(fill: Fill, error: unknown): void {
    const failure = asAccess(error);
    const { address } = failure as { address?: unknown };
    const before =
      typeof address === "number" ? Math.floor((address - this.#addressOf(fill.page)) / this.pageSize) : 0;
    if (before <= 0 || before >= fill.pages) throw failure;
    fill.pages = before;
  }

  /** Unsubscribes; afterwards the mirror is not to be used. */
  async remove(): Promise<void> {
    this.#entries.fill(0);
    await this.#interval.remove();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.remove();
  }
}
