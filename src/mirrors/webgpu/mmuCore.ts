/**
 * What keeps the pool of a GPU MMU coherent: making translations, taking them away, bringing bytes home.
 *
 * Invariants
 *   P1  A translation comes with a fill that nothing overtook: readBegin(), rangeFault(), then readRetry(), and copy and
 *       install with no safepoint in between.
 *   P2  The device's table changes between dispatches only: what invalidate() takes away here is gone with the next
 *       submission, which writes the table first. A dispatch that was submitted before reads the copies in the pool, as
 *       before the change; and nobody puts other bytes there before the queue has it behind it.
 *   P3  Bytes that the GPU wrote are in the frame before invalidate() has answered. While a dispatch runs, every page that it
 *       may store to counts as written until the answer has come back.
 *   P4  A page that may be written, or is on its way home, is never given to another page of the space.
 *
 * The agent itself is the lock that the contract wants; it may not block, so invalidate() may return a promise.
 */
import { isMmError, MmError } from "../../errors.ts";
import { runsOf } from "../../units.ts";
import { HMM_VALID, HMM_WRITE, hmmPfn, rangeFault } from "../../hmm/index.ts";
import { type AddressSpace, COPY_DOUBTFUL, COPY_WATCHED, copyHolds, copyWorth } from "../../mm/index.ts";
import {
  type IntervalNotifier,
  type MaybeOp,
  MmuNotifierEvent,
  type MmuNotifierRange,
} from "../../notifier/index.ts";
import { asAccess } from "../accessError.ts";
import { DeviceLost, type MmuDevice, STAGING_PAGES } from "./mmuDevice.ts";
import { MmuMemory } from "./mmuMemory.ts";
import {
  MmuPool,
  SLOT_DIRTY,
  SLOT_DOUBTFUL,
  SLOT_LEAVING,
  SLOT_REFERENCED,
  SLOT_WATCHED,
  SLOT_WRITABLE,
} from "./mmuPool.ts";
import type { MmuLayout } from "./mmuShader.ts";
import { MmuTable } from "./mmuTable.ts";
import type { YoungPages } from "./youngPages.ts";

/** A page that a kernel missed. */
export interface Wanted {
  readonly vpn: number;
  readonly write: boolean;
  /** An invocation really wants it: that it cannot be had is an error. */
  readonly firm: boolean;
  /** So is that it cannot be had for writing. */
  readonly firmWrite: boolean;
}

/** Bytes, end exclusive. */
export interface GpuRange {
  readonly start: number;
  readonly end: number;
}

/** What has been done since the MMU was made. */
export interface MmuCounts {
  uploadedPages: number;
  writtenBackPages: number;
  evictedPages: number;
  invalidations: number;
  refusals: number;
}

/** Pages that are faulted in at once. */
const FILL_PAGES = 256;
/** Bytes that go to the device by one call, at most. */
const UPLOAD_BYTES = 1024 * 1024;
/** Linux: HMM_RANGE_DEFAULT_TIMEOUT, 1 s; more here, because an agent may wait for a processor as long as that. */
const FILL_TIMEOUT_MS = 10_000;
/** A fill gives the event loop a turn that often: others may wait for what only it can deliver. */
const TURN_MS = 16;

const nextTurn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve));

/** Collects pages for neighbouring slots, so that they go up together. */
export class Uploader {
  readonly #gpu: MmuDevice;
  readonly #pageSize: number;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  #first = 0;
  #count = 0;

  constructor(gpu: MmuDevice, pageSize: number) {
    this.#gpu = gpu;
    this.#pageSize = pageSize;
    this.#bytes = new Uint8Array(UPLOAD_BYTES);
  }

  add(slot: number, frame: Uint8Array): void {
    if (slot !== this.#first + this.#count || (this.#count + 1) * this.#pageSize > UPLOAD_BYTES) {
      this.flush();
      this.#first = slot;
    }
    this.#bytes.set(frame, this.#count * this.#pageSize);
    this.#count++;
  }

  flush(): void {
    if (this.#count > 0)
      this.#gpu.writePages(this.#first, this.#bytes.subarray(0, this.#count * this.#pageSize));
    this.#count = 0;
  }
}

export class MmuCore {
  readonly space: AddressSpace;
  readonly layout: MmuLayout;
  readonly pageSize: number;
  readonly pool: MmuPool;
  readonly table: MmuTable;
  readonly young: YoungPages;
  readonly counts: MmuCounts = {
    uploadedPages: 0,
    writtenBackPages: 0,
    evictedPages: 0,
    invalidations: 0,
    refusals: 0,
  };
  /** Pages that live in the pool. */
  readonly memory: MmuMemory;
  interval!: IntervalNotifier;
  /** Undefined while the device is lost. */
  gpu: MmuDevice | undefined;
  /** The space has begun to exit. */
  ended = false;
  /** Written by the GPU and lost with it, since the last recovery. */
  lost: GpuRange[] = [];
  /** Settles when the answer of the dispatch that runs has been taken in; never rejects. */
  flight: Promise<void> | undefined;
  readonly #snapshot = new Int32Array(FILL_PAGES);

  constructor(space: AddressSpace, layout: MmuLayout, young: YoungPages, gpu: MmuDevice) {
    this.space = space;
    this.layout = layout;
    this.pageSize = 2 ** layout.pageShift;
    this.pool = new MmuPool(layout.pages);
    this.table = new MmuTable(layout.tableShift);
    this.young = young;
    this.gpu = gpu;
    this.memory = new MmuMemory(this);
  }

  rangeOf(vpn: number, pages = 1): GpuRange {
    return { start: vpn * this.pageSize, end: (vpn + pages) * this.pageSize };
  }

  /** Slots of the pages that a range of bytes touches. */
  slotsIn(start: number, end: number): number[] {
    return this.pool.inRange(Math.floor(start / this.pageSize), Math.ceil(end / this.pageSize));
  }

  /** The device to work with. Errors: EIO while it is lost, ESRCH once the space exits. */
  usableGpu(operation: string): MmuDevice {
    if (this.ended) throw new MmError("ESRCH", operation, "the space is exiting or has exited");
    if (!this.gpu) throw new MmError("EIO", operation, "the device is lost; call recover() with another one");
    return this.gpu;
  }

  // ---- taking away ---------------------------------------------------------------------------------------------------

  readonly invalidate = (
    interval: IntervalNotifier,
    range: MmuNotifierRange,
    curSeq: number,
  ): MaybeOp<boolean> => {
    const { pool, memory } = this;
    if (memory.ignores(range)) return true;
    const slots = this.slotsIn(range.start, range.end);
    const written = new Set(slots.filter((slot) => this.#mayBeWritten(slot)));
    const here = memory.translated(
      Math.floor(range.start / this.pageSize),
      Math.ceil(range.end / this.pageSize),
    );
    // What lives here moves with its bytes; but a dispatch must not go on to store to what is shared from now on.
    const stores = this.flight !== undefined && here.some((vpn) => memory.isWritable(vpn));
    this.counts.invalidations++;
    if ((written.size > 0 || stores) && !range.blockable) {
      this.counts.refusals++;
      return false; // before setSeq(): nothing has changed, nothing will
    }
    interval.setSeq(curSeq);
    if (range.event === MmuNotifierEvent.Release) this.ended = true;
    // What is mapped there later has not been used. The space's end needs no such care.
    else if (range.event === MmuNotifierEvent.Unmap && !this.ended) {
      this.young.test(Math.floor(range.start / this.pageSize), Math.ceil(range.end / this.pageSize), true);
    }
    for (const slot of slots) {
      if (!pool.has(slot, SLOT_LEAVING)) this.table.remove(pool.vpnOf(slot));
      if (written.has(slot)) pool.add(slot, SLOT_LEAVING);
      else pool.release(slot);
    }
    for (const vpn of here) memory.forget(vpn);
    return (written.size === 0 && !stores) || this.#giveUp([...written]);
  };

  #mayBeWritten(slot: number): boolean {
    const { pool } = this;
    return (
      pool.has(slot, SLOT_DIRTY | SLOT_LEAVING) ||
      (this.flight !== undefined && pool.has(slot, SLOT_WRITABLE))
    );
  }

  /** Brings home what leaving pages have, and frees them. */
  async #giveUp(slots: readonly number[]): Promise<boolean> {
    const { pool } = this;
    const leaving = slots.map((slot) => ({ slot, generation: pool.generationOf(slot) }));
    const left = ({ slot, generation }: { slot: number; generation: number }): boolean =>
      pool.generationOf(slot) === generation;
    await this.flight;
    await this.home(leaving.filter((of) => left(of)).map(({ slot }) => slot));
    for (const of of leaving) if (left(of)) pool.release(of.slot);
    return true;
  }

  /**
   * Writes what the GPU wrote to these pages into their frames. Returns the pages. If the device is lost meanwhile they are
   * reported as lost. Never throws.
   */
  async home(slots: readonly number[]): Promise<number> {
    const { pool, gpu } = this;
    const dirty = slots.filter((slot) => pool.has(slot, SLOT_DIRTY)).sort((a, b) => a - b);
    let pages = 0;
    for (let k = 0; gpu && k < dirty.length; k += STAGING_PAGES) {
      const chunk = dirty.slice(k, k + STAGING_PAGES);
      const generations = chunk.map((slot) => pool.generationOf(slot));
      let bytes: Uint8Array;
      try {
        bytes = await gpu.readPages(chunk);
      } catch (error) {
        if (gpu === this.gpu) this.loseDevice(error);
        return pages;
      }
      chunk.forEach((slot, n) => {
        // Else its bytes came home another way, and the frame may be another's.
        if (pool.generationOf(slot) !== generations[n] || !pool.has(slot, SLOT_DIRTY)) return;
        this.space.memory
          .frame(pool.pfnOf(slot))
          .set(bytes.subarray(n * this.pageSize, (n + 1) * this.pageSize));
        pool.drop(slot, SLOT_DIRTY);
        pages++;
      });
    }
    this.counts.writtenBackPages += pages;
    return pages;
  }

  /** Forgets what the GPU has of a page, unless it has written it. */
  forgetCopy(vpn: number): void {
    const slot = this.pool.byPage.get(vpn);
    if (slot !== undefined && !this.pool.has(slot, SLOT_DIRTY | SLOT_LEAVING)) this.#forget(slot);
  }

  /** Forgets a page whose bytes are at home. */
  #forget(slot: number): void {
    this.table.remove(this.pool.vpnOf(slot));
    this.pool.release(slot);
  }

  /**
   * Forgets the pages that somebody may have stored to since they were copied. Pages that the GPU has written stay: their
   * bytes are the newer ones.
   */
  revalidate(): void {
    const { pool, space } = this;
    for (const slot of pool.withFlags(SLOT_WATCHED | SLOT_DOUBTFUL)) {
      if (pool.has(slot, SLOT_DIRTY | SLOT_LEAVING)) continue;
      if (pool.has(slot, SLOT_WATCHED) && copyHolds(space, pool.vpnOf(slot), pool.pfnOf(slot))) continue;
      this.#forget(slot);
    }
  }

  /** Makes `count` pages of the pool free, as far as that is possible; returns how many were given up for it. */
  async makeRoom(count: number, touched: boolean): Promise<number> {
    const { pool, memory } = this;
    if (pool.free < count) memory.reap();
    if (pool.free >= count) return 0;
    const victims = pool
      .chooseVictims(count - pool.free, touched)
      .map((slot) => ({ slot, generation: pool.generationOf(slot) }));
    await this.home(victims.map(({ slot }) => slot));
    let given = 0;
    for (const { slot, generation } of victims) {
      if (pool.generationOf(slot) !== generation || pool.has(slot, SLOT_LEAVING | SLOT_DIRTY)) continue;
      this.#forget(slot);
      given++;
    }
    this.counts.evictedPages += given;
    // Without `touched` somebody asks who can do with less: what lives here stays.
    if (touched && pool.free < count) await memory.evict(count - pool.free);
    return given;
  }

  /** The device is gone: nothing is translated, and what only it had is reported. Once. */
  loseDevice(cause: unknown): void {
    const { pool, space } = this;
    if (!this.gpu) return;
    this.gpu = undefined;
    const gone = [...pool.byPage]
      .filter(([, slot]) => this.#mayBeWritten(slot))
      .map(([vpn]) => vpn)
      .sort((a, b) => a - b);
    this.table.clear();
    for (const slot of pool.byPage.values()) pool.release(slot);
    this.memory.lose(cause);
    for (const { first, end } of runsOf(gone)) {
      const range = this.rangeOf(first, end - first);
      this.lost.push(range);
      space.agent.report(
        new MmError(
          "EIO",
          "GpuMmu",
          "the device was lost with what it had written here; the space has the bytes from before",
          { range, cause },
        ),
      );
    }
  }

  // ---- making --------------------------------------------------------------------------------------------------------

  /**
   * Brings pages into free slots, as many as there are; `wanted` in order of address. Returns how many. Pages that cannot
   * be had are left out, or an error if they are firm. May wait. Errors: SegvError and BusError as an access, EBUSY if
   * invalidations overtook it again and again, ENOMEM, DeviceLost.
   */
  async fill(wanted: readonly Wanted[]): Promise<number> {
    const gpu = this.usableGpu("run");
    const slots = this.pool.takeFree(wanted.length);
    const uploader = this.uploader(gpu);
    const before = this.counts.uploadedPages;
    let turn = performance.now();
    try {
      for (let k = 0; k < slots.length;) {
        k += await this.#fillStretch(wanted, k, slots, uploader);
        if (performance.now() - turn < TURN_MS) continue;
        await nextTurn();
        turn = performance.now();
      }
    } finally {
      uploader.flush();
    }
    return this.counts.uploadedPages - before;
  }

  /** Makes a page the MMU's own. Preconditions: a free slot. Errors: as MmuMemory.takeExclusive(), EBUSY, ENOMEM. */
  async own(vpn: number): Promise<void> {
    const deadline = performance.now() + FILL_TIMEOUT_MS;
    for (;;) {
      const [slot] = this.pool.takeFree(1);
      if (slot === undefined)
        throw new MmError("ENOMEM", "exclusive", "the pool has no room for more pages; use a larger budget");
      const uploader = this.uploader(this.usableGpu("exclusive"));
      const done = await this.memory.takeExclusive(vpn, slot, uploader);
      uploader.flush();
      if (done) return;
      if (performance.now() >= deadline) throw this.#overtaken("exclusive", vpn);
    }
  }

  #overtaken(operation: string, vpn: number): MmError {
    return new MmError(
      "EBUSY",
      operation,
      `invalidations overtook every attempt of ${FILL_TIMEOUT_MS / 1000} s; change mappings less often, or use a larger budget of the memory`,
      { range: this.rangeOf(vpn) },
    );
  }

  /** True for a page that lives in the pool: kernels store to it there. Errors: EBUSY. */
  async #livesHere(vpn: number): Promise<boolean> {
    const { interval, space, memory: here, pageSize: length } = this;
    if (here.pages === 0) return false;
    const { memory } = space;
    const { owner } = here;
    const entries = new Int32Array(1);
    const seq = await interval.readBegin();
    const { start } = this.rangeOf(vpn);
    await rangeFault(interval, { memory, space, seq, start, length, entries, defaultFlags: 0, owner });
    return (entries[0]! & HMM_VALID) !== 0 && here.has(hmmPfn(entries[0]!));
  }

  uploader(gpu: MmuDevice): Uploader {
    return new Uploader(gpu, this.pageSize);
  }

  /** Fills what lies together from `wanted[k]` on, or leaves it out; returns how many pages that were. */
  async #fillStretch(
    wanted: readonly Wanted[],
    k: number,
    slots: readonly number[],
    uploader: Uploader,
  ): Promise<number> {
    const { interval, space, pageSize, memory: here } = this;
    const { memory } = space;
    const { owner } = here;
    const { vpn, firm, firmWrite } = wanted[k]!;
    let { write } = wanted[k]!;
    let ownable = true;
    const { start } = this.rangeOf(vpn);
    const most = Math.min(FILL_PAGES, slots.length - k);
    let pages = 1;
    while (pages < most && wanted[k + pages]!.vpn === vpn + pages && wanted[k + pages]!.write === write)
      pages++;
    const deadline = performance.now() + FILL_TIMEOUT_MS;
    for (;;) {
      if (this.gpu === undefined) throw new DeviceLost("the device was lost while pages were brought in");
      const length = pages * pageSize;
      try {
        if (write && ownable && !(await this.#livesHere(vpn))) {
          if (await here.takeExclusive(vpn, slots[k]!, uploader)) return 1;
          if (performance.now() >= deadline) throw this.#overtaken("run", vpn);
          continue;
        }
        // First: each page that is copied on write is an invalidation of its own, which would overtake the fill.
        // But it would bring back what lives here.
        if (write && here.pages === 0) await space.populate(start, length, "rw");
        const seq = interval.tryReadBegin() ?? (await interval.readBegin());
        const access = write ? "rw" : "r";
        await rangeFault(interval, {
          memory,
          space,
          seq,
          start,
          length,
          entries: this.#snapshot,
          access,
          owner,
        });
        if (!interval.readRetry(seq)) {
          // P1: nothing between the check and here.
          let shared = -1;
          for (let n = 0; n < pages && shared < 0; n++) {
            const entry = this.#snapshot[n]!;
            const writable = (entry & HMM_WRITE) !== 0;
            if (!here.has(hmmPfn(entry)))
              this.#install(vpn + n, hmmPfn(entry), write, slots[k + n]!, uploader);
            else if (write && !writable) shared = n;
            else here.install(vpn + n, hmmPfn(entry), writable);
          }
          if (shared < 0) return pages;
          if (shared > 0) return shared;
          // It lives here, and a child of fork has it, too: it is copied in frames.
          await here.migrateBack(vpn, vpn + 1);
          pages = 1;
          continue;
        }
      } catch (thrown) {
        const error = asAccess(thrown);
        if (!isMmError(error, "EBUSY")) {
          if (write && ownable && isMmError(error, "ENOTSUP")) {
            ownable = false; // shared, or of a file
            continue;
          }
          if (!isBadAccess(error)) throw error as Error;
          const good = Math.min(pages - 1, Math.floor((error.address - start) / pageSize));
          if (good > 0) pages = good;
          else if (write && !firmWrite) write = false;
          else if (firm) throw error;
          else return 1;
          continue;
        }
      }
      pages = Math.max(1, pages >>> 1);
      if (performance.now() >= deadline) throw this.#overtaken("run", vpn);
    }
  }

  #install(vpn: number, pfn: number, write: boolean, slot: number, uploader: Uploader): void {
    const { pool, space } = this;
    const before = pool.byPage.get(vpn);
    // It was there for reading only. One that may be written is not missed, and one that leaves keeps readBegin() waiting.
    if (before !== undefined) this.#forget(before);
    const worth = copyWorth(space, vpn, pfn);
    pool.install(
      slot,
      vpn,
      pfn,
      SLOT_REFERENCED |
        (write ? SLOT_WRITABLE : 0) |
        (worth === COPY_DOUBTFUL ? SLOT_DOUBTFUL : worth === COPY_WATCHED ? SLOT_WATCHED : 0),
    );
    this.table.set(vpn, slot, write);
    uploader.add(slot, space.memory.frame(pfn));
    this.young.mark(vpn);
    this.counts.uploadedPages++;
  }

  /** The first broken invariant, or undefined. */
  check(): string | undefined {
    const { pool, table } = this;
    for (const [vpn, slot] of pool.byPage) {
      const mapped = table.slotOf(vpn);
      const wants = pool.has(slot, SLOT_LEAVING) ? -1 : slot;
      if (mapped !== wants) return `page ${vpn} is in slot ${slot}, the table says ${mapped}`;
    }
    return this.memory.check() ?? pool.check();
  }
}

const isBadAccess = (error: unknown): error is MmError & { address: number } =>
  isMmError(error) && typeof (error as { address?: unknown }).address === "number";
