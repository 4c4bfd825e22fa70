/**
 * Pages that live in the pool of a GPU MMU and nowhere else: its device memory, which their frames are free of. Linux:
 * device-private pages of a driver.
 *
 * A page of the device memory has a slot of the pool while something refers to it. Translations of it are made by fills, from
 * what rangeFault() says, like all others, and go with every event, the MIGRATE events of its own moves included.
 *
 *   N1  A page of the device memory that is in use has a slot, but while it is being filled.
 *   N2  Nobody is told when a page is used no more: its slot is taken up again when room is wanted.
 */
import { MmError } from "../../errors.ts";
import {
  createDeviceMemory,
  type DeviceCopy,
  type DeviceMemory,
  type LostRange,
  makeDeviceExclusive,
  migrateToDevice,
  migrateToMemory,
} from "../../hmm/index.ts";
import { MmuNotifierEvent, type MmuNotifierRange, type OwnerId } from "../../notifier/index.ts";
import type { MmuCore, Uploader } from "./mmuCore.ts";
import { STAGING_PAGES } from "./mmuDevice.ts";
import { SLOT_DIRTY, SLOT_REFERENCED, SLOT_WRITABLE } from "./mmuPool.ts";

/** A translation of a page that lives here. */
interface Here {
  readonly slot: number;
  readonly writable: boolean;
}

/** Share of the pool that is left for pages that live in frames. */
const LEFT_FOR_PAGING = 1 / 8;
/** Bytes that one access of an agent brings back, as far as they follow each other. */
const AROUND_BYTES = 65536;

export class MmuMemory {
  /** What events are known by that the MMU raises itself. */
  readonly owner: OwnerId;
  readonly #core: MmuCore;
  #device: DeviceMemory | undefined;
  /** Slot of each page of the device memory; -1: none. */
  #slots: Int32Array = new Int32Array(0);
  /** By page of the space. */
  readonly #here: Map<number, Here> = new Map();
  /** Settles when what a lost device had is poisoned. */
  #losing: Promise<readonly LostRange[]> = Promise.resolve([]);

  constructor(core: MmuCore) {
    this.#core = core;
    this.owner = core.space.memory.newOwnerId();
  }

  /** The device memory, made when it is first wanted. Errors: ENOMEM. */
  #open(): DeviceMemory {
    if (this.#device) return this.#device;
    const { space, pool, pageSize } = this.#core;
    const device = createDeviceMemory(space.memory, {
      bytes: Math.min(pool.pages, space.mm.frames.devicePages) * pageSize,
      owner: this.owner,
      around: Math.max(pageSize, AROUND_BYTES),
      copyIn: (pages) => this.#copyIn(pages),
      copyOut: (pages) => this.#copyOut(pages),
    });
    this.#slots = new Int32Array(device.pages).fill(-1);
    this.#device = device;
    return device;
  }

  /** Pages that live here. */
  get pages(): number {
    return this.#device ? this.#device.pages - this.#device.free : 0;
  }

  // ---- translations ---------------------------------------------------------------------------------------------------

  /** True for an event that changes nothing here: a page becomes this MMU's own. */
  ignores(range: MmuNotifierRange): boolean {
    return range.event === MmuNotifierEvent.Exclusive && range.owner === this.owner;
  }

  /** Pages of `[first, end)` with a translation here. */
  translated(first: number, end: number): number[] {
    return [...this.#here.keys()].filter((vpn) => vpn >= first && vpn < end);
  }

  isWritable(vpn: number): boolean {
    return this.#here.get(vpn)?.writable === true;
  }

  forget(vpn: number): void {
    this.#core.table.remove(vpn);
    this.#here.delete(vpn);
  }

  /** True for a page number of rangeFault() that lives here. */
  has(pfn: number): boolean {
    return this.#device !== undefined && this.#device.pageOf(pfn) >= 0;
  }

  /** Makes a translation of a page that lives here. Preconditions: P1. */
  install(vpn: number, pfn: number, writable: boolean): void {
    const slot = this.#slots[this.#device!.pageOf(pfn)]!;
    this.#here.set(vpn, { slot, writable });
    this.#core.table.set(vpn, slot, writable);
  }

  // ---- moves ----------------------------------------------------------------------------------------------------------

  /** Moves pages of a range here that are in frames, as far as there is room. Returns how many. */
  async migrate(first: number, end: number): Promise<number> {
    const core = this.#core;
    const { space, pool } = core;
    const device = this.#open();
    let moved = 0;
    for (const vma of space.vmas()) {
      const [low, high] = [vma.start / core.pageSize, vma.end / core.pageSize];
      if (vma.share === "shared") continue;
      for (let vpn = Math.max(first, low); vpn < Math.min(end, high); vpn += STAGING_PAGES) {
        const last = Math.min(end, high, vpn + STAGING_PAGES);
        this.reap();
        let room = Math.floor(pool.pages * (1 - LEFT_FOR_PAGING)) - this.pages;
        if (room <= 0) return moved;
        const { start } = core.rangeOf(vpn);
        const length = (last - vpn) * core.pageSize;
        // What was never touched has no frame to give up.
        const there = space
          .pagemap(start, length)
          .map(({ present, zero, file }) => present && !zero && !file);
        if (!there.includes(true)) continue;
        await core.makeRoom(Math.min(room, there.filter(Boolean).length), false);
        room = Math.min(room, pool.free);
        const accept = (address: number): boolean => there[(address - start) / core.pageSize]! && room-- > 0;
        moved += (await migrateToDevice(device, space, { start, length, accept })).length;
      }
    }
    return moved;
  }

  /** Brings the pages of a range back to frames. Returns how many. Errors: ENOMEM. */
  async migrateBack(first: number, end: number): Promise<number> {
    const core = this.#core;
    if (!this.#device) return 0;
    let moved = 0;
    for (const vma of core.space.vmas()) {
      const low = Math.max(first, vma.start / core.pageSize);
      const high = Math.min(end, vma.end / core.pageSize);
      if (low < high && vma.share === "private")
        moved += await migrateToMemory(this.#device, core.space, {
          start: low * core.pageSize,
          length: (high - low) * core.pageSize,
        });
    }
    this.reap();
    return moved;
  }

  /** Frees slots by bringing pages back to frames; as many as can be had. */
  async evict(count: number): Promise<void> {
    try {
      await this.#device?.evict(count);
    } catch {
      // No frames for them: then there is no room.
    }
    this.reap();
  }

  /** Frees the slots of pages that nothing refers to any more (N2). */
  reap(): void {
    const { pool, space } = this.#core;
    const device = this.#device;
    if (!device) return;
    const { frames } = space.mm;
    this.#slots.forEach((slot, page) => {
      if (slot < 0 || frames.refcount(device.core.first + page) !== 0) return;
      pool.release(slot);
      this.#slots[page] = -1;
    });
  }

  async #copyIn(pages: readonly DeviceCopy[]): Promise<void> {
    const core = this.#core;
    const { pool } = core;
    const gpu = core.usableGpu("migrate");
    this.reap();
    // A page that is used anew before its slot was taken up again keeps it.
    const without = pages.filter(({ page }) => this.#slots[page]! < 0);
    await core.makeRoom(without.length, false);
    const slots = pool.takeFree(without.length);
    if (slots.length < without.length)
      throw new MmError("ENOMEM", "migrate", "the pool has no room for more pages; use a larger budget");
    without.forEach(({ page }, k) => {
      this.#slots[page] = slots[k]!;
      pool.hold(slots[k]!, this.#device!.core.first + page);
    });
    const uploader = core.uploader(gpu);
    for (const { page, bytes } of [...pages].sort((a, b) => this.#slots[a.page]! - this.#slots[b.page]!))
      uploader.add(this.#slots[page]!, bytes ?? new Uint8Array(core.pageSize));
    uploader.flush();
  }

  async #copyOut(pages: readonly DeviceCopy[]): Promise<void> {
    const core = this.#core;
    const gpu = core.usableGpu("access");
    const sorted = [...pages].sort((a, b) => this.#slots[a.page]! - this.#slots[b.page]!);
    for (let k = 0; k < sorted.length; k += STAGING_PAGES) {
      const chunk = sorted.slice(k, k + STAGING_PAGES);
      let bytes: Uint8Array;
      try {
        bytes = await gpu.readPages(chunk.map(({ page }) => this.#slots[page]!));
      } catch (error) {
        core.loseDevice(error);
        throw error;
      }
      chunk.forEach((copy, n) => copy.bytes!.set(bytes.subarray(n * core.pageSize, (n + 1) * core.pageSize)));
    }
  }

  // ---- pages of its own -----------------------------------------------------------------------------------------------

  /**
   * Makes a page the MMU's own, in a free slot: its frame stays, and an access by an agent takes it back, after what the GPU stored
   * there has come home. False if an invalidation overtook it. Preconditions: what the pool has of the page is at home.
   * Errors: ENOTSUP unless the page is private and anonymous, those of a write access.
   */
  async takeExclusive(vpn: number, slot: number, uploader: Uploader): Promise<boolean> {
    const core = this.#core;
    const { space, interval, pool } = core;
    const address = vpn * core.pageSize;
    // First: a page that is copied on write, or has to be taken back, is an invalidation of its own.
    await space.populate(address, core.pageSize, "rw");
    const seq = interval.tryReadBegin() ?? (await interval.readBegin());
    const page = await makeDeviceExclusive({ memory: space.memory, space, address, owner: this.owner });
    try {
      if (interval.readRetry(seq)) return false;
      // P1: nothing between the check and here.
      core.forgetCopy(vpn);
      pool.install(slot, vpn, page.pfn, SLOT_REFERENCED | SLOT_WRITABLE);
      core.table.set(vpn, slot, true);
      uploader.add(slot, space.memory.frame(page.pfn));
      core.young.mark(vpn);
      core.counts.uploadedPages++;
      return true;
    } finally {
      page.release();
    }
  }

  // ---- the end --------------------------------------------------------------------------------------------------------

  /** The device is gone, with every page that lives here. Reports where they were. Once. */
  lose(cause: unknown): void {
    const core = this.#core;
    const device = this.#device;
    for (const vpn of [...this.#here.keys()]) this.forget(vpn);
    this.#slots.forEach((slot, page) => {
      if (slot >= 0) core.pool.release(slot);
      this.#slots[page] = -1;
    });
    if (!device) return;
    this.#losing = device.lose().then((ranges) => {
      for (const { space, start, end } of ranges) {
        if (space === core.space.id) core.lost.push({ start, end });
        core.space.agent.report(
          new MmError("EIO", "GpuMmu", `the device was lost with pages of space ${space} that lived on it`, {
            range: { start, end },
            cause,
          }),
        );
      }
      return ranges;
    });
  }

  /** Waits until what a lost device had is known. */
  async lost(): Promise<void> {
    await this.#losing;
  }

  /** Goes on with another device. Preconditions: lost(). */
  recover(): void {
    this.#device?.recover();
  }

  /** Brings all pages back. Errors: ENOMEM; then they are where they were. */
  async close(): Promise<void> {
    await this.#losing;
    await this.#device?.close();
    this.#device = undefined;
  }

  /** The first broken invariant, or undefined. */
  check(): string | undefined {
    const { pool, table, space } = this.#core;
    for (const [vpn, { slot }] of this.#here)
      if (table.slotOf(vpn) !== slot)
        return `page ${vpn} lives in slot ${slot}, the table says ${table.slotOf(vpn)}`;
    for (let page = 0; page < this.#slots.length; page++) {
      const slot = this.#slots[page]!;
      const used =
        this.#device !== undefined && space.mm.frames.refcount(this.#device.core.first + page) !== 0;
      if (used && slot < 0) return `N1: page ${page} of the device memory is in use, without a slot`;
      if (slot >= 0 && (!pool.isHeld(slot) || pool.has(slot, SLOT_DIRTY)))
        return `slot ${slot} should hold page ${page} of the device memory`;
    }
    return undefined;
  }
}
