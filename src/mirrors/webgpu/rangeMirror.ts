/**
 * A range of an address space as one GPUBuffer. Linux: what a driver does with mmu_interval_notifier and hmm_range_fault(),
 * but for a device that cannot reach the frames: it has a copy of each page, and a copy of a page becomes stale by a store,
 * too, of which no notifier tells. So beside the interval there is a write tracker (mm/writeTracker.ts).
 *
 * Not here: how bytes come home (awayPages.ts); buffers smaller than what is mirrored, faults of the GPU.
 *
 *   page      meaning                                            becomes
 *   stale     the tracker counts it as written: the buffer's     same, by sync()
 *             bytes may be old
 *   same      buffer and space agree, and the tracker will       stale, by a store of anybody, or invalidate()
 *             notice a store                                     away, by markWritten()
 *   away      the newest bytes are in the buffer; the CPUs have  same, by an access, invalidate(), bringHome();
 *             no access                                          stale too where the mapping changes
 *   lost      away on a device that is lost                      stale, by recover(); the bytes of the last time home
 *
 * Invariants
 *   G1  A page is taken by the tracker before its bytes are copied: a store that the copy misses makes it stale again.
 *   G2  Bytes are uploaded that were copied after readBegin() and before a readRetry() that said no, with no safepoint
 *       between the copy and readRetry(); what invalidate() of this agent says in between counts.
 *   G3  invalidate() calls setSeq() whatever the event, but for the EXCLUSIVE of its own tracker, and marks pages stale before it
 *       returns, unless the event leaves the bytes as they are.
 *   G4  Taking, uploading, sending away and recovering are one at a time (#enqueue()). Bringing home is not: invalidate() does it
 *       while an operation of this mirror may be waiting for the very lock that the invalidator holds.
 */
import { isMmError, MmError } from "../../errors.ts";
import { NO_FRAME, snapshotPages } from "../../hmm/index.ts";
import { type AddressSpace, WriteTracker } from "../../mm/index.ts";
import { type IntervalNotifier, MmuNotifierEvent, type MmuNotifierRange } from "../../notifier/index.ts";
import { AwayPages } from "./awayPages.ts";
import type { ByteRange } from "./byteRanges.ts";
import { type MadeBuffer, makeBuffer } from "./gpuBuffer.ts";
import { runsOf } from "../../units.ts";
import { readBack } from "./readBack.ts";

export interface RangeMirrorOptions {
  /**
   * "r" (default): the GPU reads the buffer. "rw": it also writes to it, and markWritten() tells where; needs an agent that does not
   * block.
   */
  readonly access?: "r" | "rw";
  /** GPUBufferUsage flags of the buffer, besides COPY_SRC and COPY_DST; default STORAGE. */
  readonly usage?: number;
  /** Label of the buffer. */
  readonly label?: string;
}

/** What a mirror has done since it was made. */
export interface RangeMirrorCounts {
  /** Calls of sync() that found stale pages. */
  readonly syncs: number;
  /** Pages and bytes uploaded, and calls of writeBuffer(). */
  readonly pages: number;
  readonly bytes: number;
  readonly writes: number;
  /** Copies that an invalidation overtook, so that nothing of them was uploaded. */
  readonly retries: number;
  /** Calls of invalidate(). */
  readonly invalidations: number;
  /** Bytes that came back from the GPU. */
  readonly bytesHome: number;
}

type Counts = { -readonly [K in keyof RangeMirrorCounts]: RangeMirrorCounts[K] };

// By number: the globals of WebGPU are missing in Node.
const COPY_SRC = 0x4;
const COPY_DST = 0x8;
const STORAGE = 0x80;

/** Bytes that are copied and checked at once. Larger pieces are no faster. */
const BATCH_BYTES = 1024 * 1024;
/** A sync() that keeps being overtaken gives up after this: see TableMirror. */
const SYNC_TIMEOUT_MS = 10_000;

const DONE: Promise<void> = Promise.resolve();

type Ended = "the mirror has been removed" | "the space is exiting or has exited";

/** What one call of sync() has come to. */
interface Sync {
  readonly deadline: number;
  /** The first thing that went wrong with a page. */
  failure: MmError | undefined;
  readonly uploads: { readonly pages: readonly number[]; readonly invalid: Promise<GPUError | null> }[];
}

/**
 * One GPUBuffer that has the bytes of a range of a space. Made by mirrorRange(). For the agent that made it.
 *
 * What `await sync()` promises: each byte of the buffer is the byte that the range had at some moment during sync(), and no
 * store is missing that came before the call: of this agent, or of another that this one knew of, by a message or an
 * atomic. A store during sync() is in the buffer, or makes its page stale again. For all bytes of one moment while others
 * store, fork() the space and mirror the child.
 */
export class RangeMirror implements AsyncDisposable {
  /** Bytes. */
  readonly start: number;
  readonly length: number;
  readonly access: "r" | "rw";
  readonly pageSize: number;
  readonly #space: AddressSpace;
  readonly #descriptor: GPUBufferDescriptor;
  readonly #tracker: WriteTracker;
  readonly #interval: IntervalNotifier;
  readonly #first: number;
  readonly #pages: number;
  readonly #staging: Uint8Array<ArrayBuffer>;
  readonly #frames: Int32Array;
  readonly #counts: Counts = {
    syncs: 0,
    pages: 0,
    bytes: 0,
    writes: 0,
    retries: 0,
    invalidations: 0,
    bytesHome: 0,
  };
  #device: GPUDevice;
  #buffer: GPUBuffer;
  /** Why the device is lost, undefined while it is not. */
  #lost: string | undefined;
  /** Why the mirror cannot be used any more. */
  #ended: Ended | undefined;
  /** tracker.changes when a sync() had found and taken all that was written; NaN: look. */
  #seen = Number.NaN;
  #tail: Promise<void> = DONE;
  readonly #away: AwayPages;

  /** @internal */
  constructor(
    space: AddressSpace,
    made: MadeBuffer,
    tracker: WriteTracker,
    start: number,
    length: number,
    access: "r" | "rw",
  ) {
    this.start = start;
    this.length = length;
    this.access = access;
    this.pageSize = space.mm.pageSize;
    this.#space = space;
    this.#device = made.device;
    this.#buffer = made.buffer;
    this.#descriptor = made.descriptor;
    this.#tracker = tracker;
    this.#first = start / this.pageSize;
    this.#pages = length / this.pageSize;
    const batch = Math.min(this.#pages, BATCH_BYTES / this.pageSize);
    this.#staging = new Uint8Array(batch * this.pageSize);
    this.#frames = new Int32Array(batch);
    this.#away = new AwayPages({
      space,
      tracker,
      pageSize: this.pageSize,
      source: () => ({ device: this.#device, buffer: this.#buffer }),
      isLive: () => this.#ended === undefined,
      readError: (cause, ranges) => this.#readError(cause, ranges),
      countHome: (bytes) => void (this.#counts.bytesHome += bytes),
    });
    this.#watch(made.device);
    this.#interval = space.notifiers.sync.insert(
      { invalidate: (interval, range, curSeq) => this.#invalidate(interval, range, curSeq) },
      start,
      length,
    );
  }

  /** Byte k of it is byte `start + k` of the space. Another one after recover(). */
  get buffer(): GPUBuffer {
    return this.#buffer;
  }

  get device(): GPUDevice {
    return this.#device;
  }

  get counts(): RangeMirrorCounts {
    return { ...this.#counts };
  }

  #watch(device: GPUDevice): void {
    void device.lost.then(({ reason, message }) => {
      if (device !== this.#device) return;
      this.#lost = message || reason;
      this.#seen = Number.NaN;
    });
  }

  // ---- what the space tells -------------------------------------------------------------------------------------------

  #invalidate(
    interval: IntervalNotifier,
    range: MmuNotifierRange,
    curSeq: number,
  ): boolean | Promise<boolean> {
    const { event } = range;
    // The pages are sent away by ourselves: nothing changes for the buffer.
    if (event === MmuNotifierEvent.Exclusive && range.owner === this.#tracker.owner) return true;
    interval.setSeq(curSeq); // G3
    this.#counts.invalidations++;
    if (this.#ended !== undefined) return true;
    if (event === MmuNotifierEvent.Release) {
      this.#end("the space is exiting or has exited");
      return true;
    }
    const first = Math.max(0, Math.floor(range.start / this.pageSize) - this.#first);
    const end = Math.min(this.#pages, Math.ceil(range.end / this.pageSize) - this.#first);
    // Both only take write permission, which a copy has not: its bytes stay right.
    const keeps = event === MmuNotifierEvent.ProtectionPage || event === MmuNotifierEvent.SoftDirty;
    if (!this.#away.isOut(first, end)) {
      if (!keeps) this.#tracker.mark(first, end);
      return true;
    }
    if (!range.blockable) return false;
    if (!keeps) this.#tracker.mark(first, end);
    if (this.#lost === undefined) return this.#away.bringHome(first, end).then(() => true);
    if (event !== MmuNotifierEvent.Unmap) throw this.#lostError(first, end);
    this.#away.loseUnmapped(first, end); // not waited for: recover() tells of it
    return true;
  }

  #end(why: Ended): void {
    this.#ended = why;
    this.#seen = Number.NaN;
    this.#away.clear(this.#pages);
  }

  // ---- to the GPU -----------------------------------------------------------------------------------------------------

  /**
   * Uploads the pages that are stale, and no others: one writeBuffer() for each run of them, at most 1 MiB. See the class for
   * what it promises. Pages that are not in memory are brought in; what is away and stale comes home first. A view or a pin
   * for writing keeps its pages stale. May wait; where nothing is stale it returns at once.
   *
   * Errors: SegvError and BusError as an access for the first page that cannot be read (it stays stale; all others are uploaded);
   * EIO where the device is lost (see recover()), or refuses the upload; EBUSY where invalidations overtook it for
   * 10 seconds; ENOMEM, ESRCH.
   */
  sync(): Promise<void> {
    if (this.#tracker.changes === this.#seen) return DONE;
    return this.#enqueue(() => this.#syncNow());
  }

  /** Runs `work` after what was enqueued before, and not in the caller's turn: views that the caller has are dropped by then. */
  #enqueue<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(work);
    this.#tail = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }

  #checkEnded(operation: string): void {
    if (this.#ended !== undefined) throw new MmError("ESRCH", operation, this.#ended);
  }

  #check(operation: string): void {
    this.#checkEnded(operation);
    if (this.#lost !== undefined)
      throw new MmError(
        "EIO",
        operation,
        `the device is lost (${this.#lost}); go on with recover(newDevice)`,
        {
          range: { start: this.start, end: this.start + this.length },
        },
      );
  }

  async #syncNow(): Promise<void> {
    this.#check("sync");
    const { changes } = this.#tracker;
    const stale = this.#tracker.written(0, this.#pages);
    if (stale.length === 0) {
      this.#seen = changes;
      return;
    }
    this.#seen = Number.NaN;
    this.#counts.syncs++;
    const sync: Sync = {
      deadline: performance.now() + SYNC_TIMEOUT_MS,
      failure: undefined,
      uploads: [],
    };
    try {
      for (let k = 0; k < stale.length; k += this.#frames.length)
        await this.#upload(stale.slice(k, k + this.#frames.length), sync);
    } finally {
      await this.#settleUploads(sync);
    }
    if (sync.failure !== undefined) throw sync.failure;
    // What could not be taken, or is stale again, has to be looked for.
    if (this.#tracker.written(0, this.#pages).length === 0) this.#seen = changes;
  }

  /** Uploads pages that can be read. */
  async #upload(stale: readonly number[], sync: Sync): Promise<void> {
    if (this.#away.isOut(stale[0]!, stale.at(-1)! + 1))
      for (const { first, end } of runsOf(stale)) await this.#away.bringHome(first, end);
    const pages = await this.#bringIn(stale, sync);
    if (pages.length === 0) return;
    await this.#tracker.take(pages); // G1
    try {
      await this.#uploadTaken(pages, sync);
    } catch (error) {
      this.#mark(pages);
      throw error;
    }
  }

  async #uploadTaken(pages: readonly number[], sync: Sync): Promise<void> {
    for (;;) {
      const seq = this.#interval.tryReadBegin() ?? (await this.#interval.readBegin());
      // Pages have gone again: fewer at a time need fewer frames.
      if (snapshotPages(this.#space, this.#first, pages, this.#frames) > 0) {
        this.#checkDeadline(pages, sync);
        const half = Math.max(1, pages.length >>> 1);
        await this.#upload(pages.slice(0, half), sync);
        if (half < pages.length) await this.#upload(pages.slice(half), sync);
        return;
      }
      this.#copy(pages);
      if (!this.#interval.readRetry(seq)) break; // G2: nothing but the upload follows
      this.#counts.retries++;
      this.#checkDeadline(pages, sync);
    }
    sync.uploads.push({ pages, invalid: this.#write(pages) });
  }

  /** Hears what the device says to the uploads: what it refused stays stale. */
  async #settleUploads(sync: Sync): Promise<void> {
    for (const { pages, invalid } of sync.uploads) {
      const error = await invalid;
      if (!error) continue;
      this.#mark(pages);
      sync.failure ??= new MmError("EIO", "sync", `the device refused the upload: ${error.message}`, {
        range: this.#rangeOf(pages[0]!, pages.at(-1)! + 1),
      });
    }
    // A device that is lost has refused nothing, and has nothing.
    if (sync.uploads.length > 0) this.#check("sync");
  }

  #mark(pages: readonly number[]): void {
    if (this.#ended === undefined) for (const page of pages) this.#tracker.mark(page, page + 1);
  }

  #checkDeadline(pages: readonly number[], { deadline }: Sync): void {
    if (performance.now() < deadline) return;
    throw new MmError(
      "EBUSY",
      "sync",
      `invalidations overtook every attempt of ${SYNC_TIMEOUT_MS / 1000} s; change mappings less often, or use a larger budget`,
      { range: this.#rangeOf(pages[0]!, pages.at(-1)! + 1) },
    );
  }

  /** Faults in what is missing. Returns the pages that can be read; of the others it notes the first error. */
  async #bringIn(pages: readonly number[], sync: Sync): Promise<readonly number[]> {
    const frames = this.#frames;
    if (snapshotPages(this.#space, this.#first, pages, frames) === 0) return pages;
    const missing = pages.filter((_, k) => frames[k] === NO_FRAME);
    const refused = new Set<number>();
    for (const { first, end } of runsOf(missing)) {
      // What comes before an error has been brought in: it goes on after the page that is refused.
      for (let page = first; page < end; page++) {
        try {
          await this.#space.populate(this.#addressOf(page), (end - page) * this.pageSize, "r");
          break;
        } catch (error) {
          if (!isMmError(error) || !("address" in error)) throw error;
          page = Math.floor(Number(error.address) / this.pageSize) - this.#first;
          refused.add(page);
          this.#mark([page]);
          sync.failure ??= error;
        }
      }
    }
    return refused.size === 0 ? pages : pages.filter((page) => !refused.has(page));
  }

  /** Copies the pages of the snapshot together, those whose frames lie together at once. */
  #copy(pages: readonly number[]): void {
    const { pageSize } = this;
    const frames = this.#frames;
    for (let k = 0; k < pages.length;) {
      let n = 1;
      while (k + n < pages.length && frames[k + n] === frames[k]! + n) n++;
      const bytes = this.#space.memory.frame(frames[k]!, n);
      this.#staging.set(bytes, k * pageSize);
      k += bytes.length / pageSize;
    }
  }

  /** Uploads what #copy() put together; resolves with what the device has against it. */
  #write(pages: readonly number[]): Promise<GPUError | null> {
    const { pageSize } = this;
    const device = this.#device;
    device.pushErrorScope("validation");
    let at = 0;
    for (const { first, end } of runsOf(pages)) {
      const bytes = (end - first) * pageSize;
      // The ArrayBuffer itself: Dawn takes a view half as long again.
      device.queue.writeBuffer(this.#buffer, first * pageSize, this.#staging.buffer, at, bytes);
      at += bytes;
      this.#counts.writes++;
    }
    this.#counts.pages += pages.length;
    this.#counts.bytes += at;
    // Popped in the same turn: scopes are a stack that others use, too.
    return device.popErrorScope().catch(() => null);
  }

  // ---- from the GPU ---------------------------------------------------------------------------------------------------

  /**
   * Says that work which has been submitted writes to bytes `[start, start + length)` of the space (addresses, not offsets in the
   * buffer), in the buffer. Call it right after queue.submit(), in the same turn; from `await markWritten()` on every agent sees
   * what the GPU wrote: the pages are taken from the CPUs, and the first access, msync(), fork(), or other change of the
   * mapping brings the bytes home first. Pages of files, pages that are shared after a fork and pages that a
   * view or pin holds come home at once, as a store of this agent. What others store to the same bytes between sync() and here is
   * overwritten; bytes beside the range are not.
   *
   * Errors: EPERM for a mirror with access "r"; EINVAL for bytes outside it; SegvError where a page can no longer be written
   * (the others are done); EIO with the range where the device is lost; ENOMEM, ESRCH.
   */
  markWritten(start: number, length: number): Promise<void> {
    try {
      this.#check("markWritten");
      this.#checkRange("markWritten", start, length);
      if (this.access !== "rw")
        throw new MmError("EPERM", "markWritten", 'the mirror is read-only; make it with access: "rw"');
    } catch (error) {
      return Promise.reject(error as Error);
    }
    return this.#enqueue(() => this.#sendAway(start - this.start, start - this.start + length));
  }

  #checkRange(operation: string, start: number, length: number): void {
    const whole = Number.isSafeInteger(start) && Number.isSafeInteger(length) && length >= 0;
    if (!whole || start < this.start || start + length > this.start + this.length)
      throw new MmError(
        "EINVAL",
        operation,
        "start and length must be whole numbers of bytes that lie inside the mirror",
        Number.isFinite(start + length) ? { range: { start, end: start + length } } : {},
      );
  }

  /** `[start, end)`: bytes of the buffer. */
  async #sendAway(start: number, end: number): Promise<void> {
    if (start === end) return;
    this.#check("markWritten");
    const { pageSize } = this;
    const [first, last] = [Math.floor(start / pageSize), Math.ceil(end / pageSize)];
    await this.#away.settled(first, last);
    const add = (page: number): void =>
      this.#away.add(Math.max(start, page * pageSize), Math.min(end, (page + 1) * pageSize));
    // Not those that are away: an access may have brought one home again meanwhile, and have stored to it.
    const remaining = new Set(Array.from({ length: last - first }, (_, k) => first + k));
    const sent = (page: number, pfn: number): void => {
      this.#away.sent(page, pfn);
      add(page);
      remaining.delete(page);
    };
    const left = (): number[] => [...remaining];
    for (const page of left()) {
      if (!this.#away.has(page)) continue;
      add(page);
      remaining.delete(page);
    }
    await this.#tracker.sendAway(left(), sent);
    let failure: unknown;
    for (const run of runsOf(left())) {
      try {
        await this.#space.populate(this.#addressOf(run.first), (run.end - run.first) * pageSize, "rw");
      } catch (error) {
        failure ??= error;
      }
    }
    // Whatever becomes of them: the buffer has bytes there that the space may never have.
    this.#mark(left());
    await this.#tracker.sendAway(left(), sent);
    const rest = runsOf(left()).map((run) => ({
      start: Math.max(start, run.first * pageSize),
      end: Math.min(end, run.end * pageSize),
    }));
    try {
      await this.#storeAll(rest);
    } catch (error) {
      failure ??= error;
    }
    if (failure !== undefined) throw failure as Error;
  }

  /** Brings bytes home at once, and stores them as this agent. Goes on after a page that cannot be written. */
  async #storeAll(ranges: readonly ByteRange[]): Promise<void> {
    const pieces: { readonly start: number; readonly bytes: Uint8Array }[] = [];
    try {
      await readBack(this.#device, this.#buffer, ranges, (start, bytes) =>
        pieces.push({ start, bytes: bytes.slice() }),
      );
    } catch (cause) {
      throw this.#readError(cause, ranges);
    }
    let failure: unknown;
    const { pageSize } = this;
    for (const { start, bytes } of pieces) {
      this.#counts.bytesHome += bytes.length;
      for (let at = 0; at < bytes.length;) {
        const n = Math.min(bytes.length - at, pageSize - ((start + at) % pageSize));
        try {
          await this.#space.write(this.start + start + at, bytes.subarray(at, at + n));
        } catch (error) {
          failure ??= error;
        }
        at += n;
      }
    }
    if (failure !== undefined) throw failure as Error;
  }

  #readError(cause: unknown, ranges: readonly ByteRange[]): MmError {
    const range = {
      start: this.start + (ranges[0]?.start ?? 0),
      end: this.start + (ranges.at(-1)?.end ?? this.length),
    };
    const why = this.#lost ?? (cause instanceof Error ? cause.message : String(cause));
    return new MmError("EIO", "mirror", `bytes that the GPU wrote could not be read back: ${why}`, {
      range,
      cause,
    });
  }

  /**
   * Brings the bytes of `[start, start + length)` home that the GPU wrote, all by default, before somebody needs them. The pages stay the same in
   * buffer and space. May wait. Errors: EINVAL; EIO with the range where the device is lost; ESRCH.
   */
  bringHome(start: number = this.start, length: number = this.length): Promise<void> {
    try {
      this.#check("bringHome");
      this.#checkRange("bringHome", start, length);
    } catch (error) {
      return Promise.reject(error as Error);
    }
    const [from, to] = [start - this.start, start - this.start + length];
    return this.#away.bringHome(Math.floor(from / this.pageSize), Math.ceil(to / this.pageSize));
  }

  /** Address ranges whose newest bytes are on the GPU, ascending. Never waits. */
  get writtenRanges(): { readonly start: number; readonly end: number }[] {
    return this.#addressesOf(this.#away.list());
  }

  // ---- when the device is gone ----------------------------------------------------------------------------------------

  #lostError(first: number, end: number): MmError {
    const [lost] = this.#addressesOf(this.#away.within(first, end));
    const range = lost ?? this.#rangeOf(first, end);
    return new MmError(
      "EIO",
      "mirror",
      `the only copy of these bytes was on a device that is lost (${this.#lost}); recover(newDevice) gives the older ones back`,
      { range },
    );
  }

  /**
   * Goes on with another device, on which everything is stale. Returns what is lost for good: address ranges that only the
   * lost device had; the space has there what it had when they were last home. Until then an access to their pages fails
   * with ECALLBACK, whose cause is an EIO with the range; everything else in the space works on. Works for a device that is not lost, too: then nothing is lost.
   * May wait. Errors: as mirrorRange(), after which the mirror is as it was; ESRCH.
   */
  recover(device: GPUDevice): Promise<{ readonly start: number; readonly end: number }[]> {
    return this.#enqueue(() => this.#recoverNow(device));
  }

  async #recoverNow(device: GPUDevice): Promise<{ readonly start: number; readonly end: number }[]> {
    this.#checkEnded("recover");
    const made = await makeBuffer(device, this.#descriptor, "recover");
    if (this.#lost === undefined) {
      try {
        await this.#away.bringHome(0, this.#pages);
      } catch (error) {
        if (this.#lost === undefined) {
          made.buffer.destroy();
          throw error;
        }
      }
    }
    await this.#away.settled(0, this.#pages);
    if (this.#ended !== undefined) made.buffer.destroy();
    this.#checkEnded("recover");
    const lost = this.#addressesOf(this.#away.takeLost(this.#pages));
    this.#buffer.destroy();
    this.#device = device;
    this.#buffer = made.buffer;
    this.#lost = undefined;
    this.#seen = Number.NaN;
    this.#watch(device);
    this.#tracker.mark(0, this.#pages);
    return lost;
  }

  /**
   * Brings everything home, unsubscribes and destroys the buffer. Afterwards the mirror is not to be used. May wait. Errors: EIO with the
   * first range that was lost with its device: the mirror is removed all the same.
   */
  async remove(): Promise<void> {
    await this.#enqueue(() => this.#removeNow());
  }

  async #removeNow(): Promise<void> {
    if (this.#ended === "the mirror has been removed") return;
    let failure: unknown;
    if (this.#ended === undefined) {
      try {
        if (this.#away.isOut(0, this.#pages) && this.#lost !== undefined)
          throw this.#lostError(0, this.#pages);
        await this.#away.bringHome(0, this.#pages);
      } catch (error) {
        failure = error;
      }
      await this.#away.settled(0, this.#pages);
      if (this.#ended === undefined) this.#away.takeLost(this.#pages);
    }
    this.#end("the mirror has been removed");
    await this.#interval.remove();
    await this.#tracker.remove();
    this.#buffer.destroy();
    if (failure !== undefined) throw failure as Error;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.remove();
  }

  #addressOf(page: number): number {
    return this.start + page * this.pageSize;
  }

  /** Ranges of the buffer as addresses. */
  #addressesOf(ranges: readonly ByteRange[]): { start: number; end: number }[] {
    return ranges.map(({ start, end }) => ({ start: this.start + start, end: this.start + end }));
  }

  #rangeOf(first: number, end: number): { start: number; end: number } {
    return { start: this.#addressOf(first), end: this.#addressOf(end) };
  }
}

/**
 * Mirrors `[start, start + length)` of a space in a GPUBuffer of `device`. Nothing is uploaded before the first sync(). The
 * range is of addresses: it needs no mapping yet, and does not follow mremap(). Any number of mirrors of any devices may share a
 * space. `start` and `length` in bytes, page aligned. May wait.
 *
 * Errors, after which nothing has changed: EINVAL; EFBIG where a buffer of the device cannot be so large (maxBufferSize);
 * ENOMEM where the GPU or the arena has no room; EIO where the device is lost; ENOTSUP for access "rw" in an agent that may block,
 * because it must wait for the GPU where others wait for it; ESRCH.
 */
export async function mirrorRange(
  space: AddressSpace,
  device: GPUDevice,
  start: number,
  length: number,
  options: RangeMirrorOptions = {},
): Promise<RangeMirror> {
  const { access = "r", usage = STORAGE, label = "bifolio: mirrored range" } = options;
  const { pageSize } = space.mm;
  if (access !== "r" && access !== "rw")
    throw new MmError("EINVAL", "mirrorRange", 'access must be "r" or "rw"');
  if (!Number.isSafeInteger(start) || start < 0 || start % pageSize !== 0)
    throw new MmError(
      "EINVAL",
      "mirrorRange",
      `start must be a multiple of the page size (${pageSize}), not ${start}`,
    );
  if (!Number.isSafeInteger(length) || length <= 0 || length % pageSize !== 0)
    throw new MmError(
      "EINVAL",
      "mirrorRange",
      `length must be a multiple of the page size (${pageSize}) and above 0, not ${length}`,
    );
  if (access === "rw" && space.agent.mayBlock)
    throw new MmError(
      "ENOTSUP",
      "mirrorRange",
      'access "rw" needs an agent that does not block: attach this thread with mayBlock: false',
    );
  const descriptor = { label, size: length, usage: usage | COPY_SRC | COPY_DST };
  const made = await makeBuffer(device, descriptor, "mirrorRange");
  let tracker: WriteTracker | undefined;
  try {
    tracker = await WriteTracker.create(space, start, length);
    return new RangeMirror(space, made, tracker, start, length, access);
  } catch (error) {
    made.buffer.destroy();
    await tracker?.remove().catch(() => {});
    throw isMmError(error) ? error : new MmError("EINVAL", "mirrorRange", String(error), { cause: error });
  }
}
