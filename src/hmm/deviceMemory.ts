/**
 * Memory of a device in which pages of address spaces can live, and moving them there and back. Linux: device-private
 * memory (MEMORY_DEVICE_PRIVATE), migrate_vma_setup() to migrate_vma_finalize(), dev_pagemap_ops.
 *
 * A page that has moved leaves its frame to others. Its mappings keep it: an access by any agent brings it back, as a
 * fault; fork shares it; unmapping frees it. The device reads and writes it through its own tables, which it fills
 * from rangeFault() with its owner id, and empties in its notifier: MIGRATE events with its own owner id tell of its own
 * moves, which it knows of already.
 */
import { MmError } from "../errors.ts";
import {
  type AddressSpace,
  createDevice,
  destroyDevice,
  detachedOp,
  type DeviceCopy,
  type DeviceCore,
  type DeviceOps,
  evictDeviceOp,
  type PhysicalMemory,
  poisonOp,
  toDeviceOp,
  toMemoryOp,
  waitMovedOp,
} from "../mm/index.ts";
import type { OwnerId } from "../notifier/index.ts";
import { type Op, runAsync, runBlocking, runTry } from "../sched/index.ts";
import { parseBytes, runsOf } from "../units.ts";

export type { DeviceCopy, DeviceOps };

export interface DeviceMemoryOptions extends DeviceOps {
  /** Bytes, or "64 MiB"; rounded up to 32 pages. Part of the memory's `deviceMemory`. */
  readonly bytes: number | string;
  /** What the device's notifiers know its own moves by; default: a new one. Devices of one driver may have the same. */
  readonly owner?: OwnerId;
  /** Bytes of neighbours that one access brings back along, a power of two; default: the page alone. */
  readonly around?: number;
}

/** Bytes of a space, page aligned, in one mapping. */
export interface MigrateRange {
  readonly start: number;
  readonly length: number;
}

export interface MigrateToDevice extends MigrateRange {
  /** False: the page at this address stays where it is. */
  readonly accept?: (address: number) => boolean;
  /**
   * Called once, when the pages that were there before are on the device and before anybody can get at them: the driver
   * fills its own table. Never waits. A throw leaves everything where it was. Linux: between migrate_vma_pages() and
   * migrate_vma_finalize().
   */
  readonly filled?: (pages: readonly DevicePage[]) => void;
}

/** A page of a space that is on a device. */
export interface DevicePage {
  readonly address: number;
  /** Which of the device's pages, from 0 on. */
  readonly page: number;
}

/** Bytes of a space that are lost. */
export interface LostRange {
  readonly space: number;
  readonly start: number;
  readonly end: number;
}

/** Memory of a device. Belongs to the agent that made it; accesses by others ask that agent. */
export class DeviceMemory implements AsyncDisposable {
  readonly memory: PhysicalMemory;
  readonly owner: OwnerId;
  /** How many pages it has. */
  readonly pages: number;
  /** @internal */
  readonly core: DeviceCore;
  #closed = false;

  /** @internal */
  constructor(memory: PhysicalMemory, core: DeviceCore) {
    this.memory = memory;
    this.core = core;
    this.owner = core.owner;
    this.pages = core.pages;
  }

  /** Pages that hold nothing. */
  get free(): number {
    return this.#closed ? 0 : this.core.free;
  }

  /** Which of this device's pages a page number of rangeFault() is, from 0 on; -1 for a frame, or another device's page. */
  pageOf(pfn: number): number {
    return this.core.has(pfn) ? pfn - this.core.first : -1;
  }

  /** @internal Errors: ESRCH, EPERM. */
  check(operation: string): void {
    if (this.#closed) throw new MmError("ESRCH", operation, "the device memory is closed");
    if (!this.core.mine)
      throw new MmError(
        "EPERM",
        operation,
        "only the agent that made the device memory may move pages to it",
      );
    if (this.core.lost) throw new MmError("EIO", operation, "the device is lost");
  }

  /**
   * Brings `most` of its pages back, all by default. Returns how many. May wait. Errors: ENOMEM where there are no frames for
   * them, those of copyOut(); what has come by then stays. Linux: migrate_device_range().
   */
  evict(most: number = this.pages): Promise<number> {
    this.check("evict");
    return runAsync(this.memory.agent, this.#evictOp(most));
  }

  *#evictOp(most: number): Op<number> {
    const { mm } = this.memory;
    let moved = 0;
    for (let used = this.core.used(); used.length > 0 && moved < most; used = this.core.used()) {
      const pfn = used[0]!;
      if (mm.frames.isLocked(pfn)) yield* waitMovedOp(mm, pfn, () => !mm.frames.isLocked(pfn));
      moved += yield* evictDeviceOp(mm, this.core, used.slice(0, most - moved));
    }
    return moved;
  }

  /**
   * The device is gone, with everything in it: each page that is there is lost, and an access to it a BusError until it is
   * unmapped. Says which they are. May wait, for pages that are on their way. Later calls of recover() make it usable again.
   */
  lose(): Promise<LostRange[]> {
    if (this.#closed) throw new MmError("ESRCH", "lose", "the device memory is closed");
    this.core.lost = true;
    return runAsync(this.memory.agent, this.#loseOp());
  }

  *#loseOp(): Op<LostRange[]> {
    const { mm, pageSize } = this.memory;
    const found = new Map<number, number[]>();
    for (let used = this.core.used(); used.length > 0; used = this.core.used()) {
      for (const pfn of used) {
        if (mm.frames.isLocked(pfn)) yield* waitMovedOp(mm, pfn, () => !mm.frames.isLocked(pfn));
        for (const { space, vpn } of yield* poisonOp(mm, pfn)) {
          const pages = found.get(space);
          if (pages) pages.push(vpn);
          else found.set(space, [vpn]);
        }
      }
    }
    return [...found].flatMap(([space, pages]) =>
      runsOf(pages.sort((a, b) => a - b)).map(({ first, end }) => ({
        space,
        start: first * pageSize,
        end: end * pageSize,
      })),
    );
  }

  /** Takes a device that was lost in use again, empty. Errors: EBUSY before lose() is done. */
  recover(): void {
    if (this.core.used().length > 0)
      throw new MmError("EBUSY", "recover", "pages of the device are in use; await lose() first");
    this.core.lost = false;
  }

  /** Brings all pages back and ends it. Errors: as evict(); then it is as it was. Once: later calls do nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    if (this.core.lost) await this.lose();
    else await this.evict();
    this.#closed = true;
    destroyDevice(this.core);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * Makes memory of a device that this agent has. Never waits. Errors: EINVAL, ENOMEM where the memory has not been made with
 * enough `deviceMemory`. Linux: request_free_mem_region(), memremap_pages().
 */
export function createDeviceMemory(memory: PhysicalMemory, options: DeviceMemoryOptions): DeviceMemory {
  const { pageSize } = memory;
  memory.agent.checkUsable("createDeviceMemory");
  const invalid = (sentence: string): MmError => new MmError("EINVAL", "createDeviceMemory", sentence);
  const bytes = parseBytes(options.bytes);
  if (!Number.isFinite(bytes) || bytes <= 0)
    throw invalid(`bytes must be bytes or a size such as "64 MiB", not ${String(options.bytes)}`);
  const around = (options.around ?? pageSize) / pageSize;
  if (!Number.isInteger(Math.log2(around)))
    throw invalid("around must be a power of two bytes, at least a page");
  const copies = (["copyIn", "copyInSync", "copyOut", "copyOutSync"] as const).filter(
    (name) => options[name],
  );
  if (!copies.some((name) => name.startsWith("copyIn")) || !copies.some((name) => name.startsWith("copyOut")))
    throw invalid("needs copyIn or copyInSync, and copyOut or copyOutSync");
  const core = createDevice(memory.mm, {
    pages: Math.ceil(bytes / pageSize),
    owner: options.owner ?? memory.newOwnerId(),
    around,
    ops: options,
  });
  return new DeviceMemory(memory, core);
}

/** One variant for each driver, as everywhere. */
export interface Variants<Args extends unknown[], R> {
  (...args: Args): Promise<R>;
  sync(...args: Args): R;
  try(...args: Args): R;
}

/**
 * `sync` and `try` run the operation as a task of its own: what it has begun cannot be taken back where they may not wait so
 * long.
 */
function variantsOf<Args extends unknown[], R>(
  what: string,
  memoryOf: (...args: Args) => PhysicalMemory,
  op: (...args: Args) => Op<R>,
): Variants<Args, R> {
  const detached = (...args: Args): Op<R> => detachedOp(memoryOf(...args).mm, what, op(...args));
  return Object.assign((...args: Args) => runAsync(memoryOf(...args).agent, op(...args)), {
    sync: (...args: Args) => runBlocking(memoryOf(...args).agent, detached(...args)),
    try: (...args: Args) => runTry(memoryOf(...args).agent, detached(...args)),
  });
}

function pagesOf(
  memory: PhysicalMemory,
  operation: string,
  { start, length }: MigrateRange,
): [number, number] {
  const { pageSize } = memory;
  const aligned = Number.isSafeInteger(start) && start >= 0 && start % pageSize === 0;
  if (!aligned || !Number.isSafeInteger(length) || length <= 0 || length % pageSize !== 0) {
    throw new MmError(
      "EINVAL",
      operation,
      `start and length must be multiples of the page size (${pageSize}), and length above 0`,
    );
  }
  return [start / pageSize, (start + length) / pageSize];
}

function* migrateToDeviceOp(
  device: DeviceMemory,
  space: AddressSpace,
  range: MigrateToDevice,
): Op<DevicePage[]> {
  device.check("migrateToDevice");
  const { pageSize } = device.memory;
  const [first, end] = pagesOf(device.memory, "migrateToDevice", range);
  const { accept, filled } = range;
  const pageAt = ({ vpn, pfn }: { vpn: number; pfn: number }): DevicePage => ({
    address: vpn * pageSize,
    page: device.pageOf(pfn),
  });
  const moved = yield* toDeviceOp(space, first, end, device.core, {
    accepts: accept && ((vpn) => accept(vpn * pageSize)),
    filled: filled && ((pages) => filled(pages.map(pageAt))),
  });
  return moved.map(pageAt);
}

function* migrateToMemoryOp(device: DeviceMemory, space: AddressSpace, range: MigrateRange): Op<number> {
  device.check("migrateToMemory");
  const [first, end] = pagesOf(device.memory, "migrateToMemory", range);
  return yield* toMemoryOp(space, first, end, device.core);
}

/**
 * Moves private anonymous pages of a range to a device, those that were never touched too, as far as it has room. What somebody
 * uses by a view or a pin stays where it is, as do pages that are on their way, and those that `accept` refuses. Returns those that
 * moved, by address. May wait. Errors: EINVAL unless the range lies in one mapping, EPERM in another agent, ESRCH, those of copyIn()
 * and of callbacks if nothing moved. Linux: migrate_vma_setup(), migrate_vma_pages(), migrate_vma_finalize().
 */
export const migrateToDevice: Variants<[DeviceMemory, AddressSpace, MigrateToDevice], DevicePage[]> =
  variantsOf("a migration to a device", (device) => device.memory, migrateToDeviceOp);

/**
 * Brings the pages of a range back that the device has. Returns how many came. May wait. Errors: EINVAL, EPERM, ESRCH, ENOMEM,
 * those of copyOut().
 */
export const migrateToMemory: Variants<[DeviceMemory, AddressSpace, MigrateRange], number> = variantsOf(
  "a migration from a device",
  (device) => device.memory,
  migrateToMemoryOp,
);
