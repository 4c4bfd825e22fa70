/**
 * Memory that only a device can address: its pages, who copies them, and what is left of them when it is gone. Linux:
 * struct dev_pagemap with MEMORY_DEVICE_PRIVATE, struct page of ZONE_DEVICE.
 *
 * A page of a device has a number behind those of frames and a record like theirs, but no bytes here. It is mapped by
 * device-private entries. Only the agent that made the device moves its pages; others ask that one, and hold nothing
 * meanwhile: an agent that dies while it waits for a page takes nothing with it.
 *
 * Invariants
 *   D1  Devices have disjoint numbers. A device's record stays while one of its pages is in use.
 *   D2  Whoever has a reference to a page of a device finds the device.
 *
 * Lock order: mmapLock > folio lock > MM_LOCK.
 */
import { MmError } from "../errors.ts";
import { type HostEffect, loopOf, type Op } from "../sched/index.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import {
  type Device,
  DEVICE_LIVE,
  DEVICE_LOST,
  DV_AROUND,
  DV_FIRST,
  DV_ID,
  DV_NEXT,
  DV_OPENER,
  DV_OWNER,
  DV_PAGES,
  DV_STATE,
  DV_WORDS,
  MM_DEVICES,
  MM_LOCK,
} from "./layout.ts";
import type { Mm } from "./mm.ts";

/** One page that is copied. */
export interface DeviceCopy {
  /** Which of the device's pages, from 0 on. */
  readonly page: number;
  /** The frame's bytes, one page; into a device undefined for a page of zeros. Used until the copy is done, never later. */
  readonly bytes: Uint8Array | undefined;
}

/**
 * How pages get into a device and out of it. Each in one form at least; the one that waits can be used only where the
 * agent that has the device does not block. A failure leaves the pages where they were. copyOut() drops the device's own
 * translations of the pages before it copies them: nothing else tells the device that they go. Linux: what a driver does between
 * migrate_vma_setup() and migrate_vma_pages(), and dev_pagemap_ops.migrate_to_ram.
 */
export interface DeviceOps {
  readonly copyIn?: (pages: readonly DeviceCopy[]) => Promise<void>;
  readonly copyInSync?: (pages: readonly DeviceCopy[]) => void;
  readonly copyOut?: (pages: readonly DeviceCopy[]) => Promise<void>;
  readonly copyOutSync?: (pages: readonly DeviceCopy[]) => void;
}

/** Pages of devices come in groups of so many: one word of the bitmap of free ones. */
const GROUP = 32;

/** One agent's way to a device. */
export class DeviceCore {
  readonly mm: Mm;
  readonly slot: Device;
  readonly id: number;
  /** Number of its first page. */
  readonly first: number;
  readonly pages: number;
  readonly owner: number;
  /** Most pages that one access brings back. */
  readonly around: number;

  constructor(mm: Mm, slot: Device) {
    const field = (k: number): number => Atomics.load(mm.agent.words, slot + k);
    this.mm = mm;
    this.slot = slot;
    this.id = field(DV_ID);
    this.first = field(DV_FIRST);
    this.pages = field(DV_PAGES);
    this.owner = field(DV_OWNER);
    this.around = field(DV_AROUND);
  }

  has(pfn: number): boolean {
    return pfn >= this.first && pfn < this.first + this.pages;
  }

  /** Owner id of the agent that made it. */
  get opener(): number {
    return Atomics.load(this.mm.agent.words, this.slot + DV_OPENER);
  }

  get mine(): boolean {
    return this.opener === this.mm.agent.ownerId;
  }

  get lost(): boolean {
    return Atomics.load(this.mm.agent.words, this.slot + DV_STATE) === DEVICE_LOST;
  }

  set lost(lost: boolean) {
    Atomics.store(this.mm.agent.words, this.slot + DV_STATE, lost ? DEVICE_LOST : DEVICE_LIVE);
  }

  get free(): number {
    return this.mm.frames.freeDevicePages(this.first, this.pages);
  }

  /** Numbers of the pages that are in use now. */
  used(): number[] {
    const { frames } = this.mm;
    const numbers: number[] = [];
    for (let pfn = this.first; pfn < this.first + this.pages; pfn++)
      if (frames.refcount(pfn) !== 0) numbers.push(pfn);
    return numbers;
  }
}

/** Makes a device of `pages` pages, rounded up to a multiple of 32, that this agent has. Errors: ENOMEM. */
export function createDevice(
  mm: Mm,
  { pages, owner, around, ops }: { pages: number; owner: number; around: number; ops: DeviceOps },
): DeviceCore {
  const { agent, frames } = mm;
  const w = agent.words;
  const wanted = Math.ceil(pages / GROUP) * GROUP;
  const slot = mm.alloc(DV_WORDS, "createDeviceMemory") as Device;
  lockSpin(agent, mm.header + MM_LOCK);
  const first = findNumbers(mm, wanted);
  if (first !== 0) {
    Atomics.store(w, slot + DV_ID, mm.nextId());
    Atomics.store(w, slot + DV_STATE, DEVICE_LIVE);
    Atomics.store(w, slot + DV_FIRST, first);
    Atomics.store(w, slot + DV_PAGES, wanted);
    Atomics.store(w, slot + DV_OPENER, agent.ownerId);
    Atomics.store(w, slot + DV_OWNER, owner);
    Atomics.store(w, slot + DV_AROUND, around);
    frames.addDevicePages(first, wanted);
    Atomics.store(w, slot + DV_NEXT, Atomics.load(w, mm.header + MM_DEVICES));
    Atomics.store(w, mm.header + MM_DEVICES, slot);
  }
  unlockSpin(agent, mm.header + MM_LOCK);
  if (first === 0) {
    mm.free(slot, DV_WORDS);
    throw new MmError(
      "ENOMEM",
      "createDeviceMemory",
      `there are not ${wanted} pages left for devices; create the memory with a larger deviceMemory`,
    );
  }
  mm.deviceOps.set(slot, ops);
  // Others may ask for pages at any time.
  loopOf(agent).listen();
  return new DeviceCore(mm, slot);
}

/** Numbers that no device has, 0 if there are not that many. Preconditions: MM_LOCK held. */
function findNumbers(mm: Mm, pages: number): number {
  const w = mm.agent.words;
  const { deviceFirst, devicePages } = mm.frames;
  const taken = listDevices(mm)
    .map((slot) => [Atomics.load(w, slot + DV_FIRST), Atomics.load(w, slot + DV_PAGES)] as const)
    .sort((a, b) => a[0] - b[0]);
  let at = deviceFirst;
  for (const [first, count] of taken) {
    if (at + pages <= first) break;
    at = first + count;
  }
  return at + pages <= deviceFirst + devicePages ? at : 0;
}

function listDevices(mm: Mm): Device[] {
  const w = mm.agent.words;
  const slots: Device[] = [];
  for (let slot = Atomics.load(w, mm.header + MM_DEVICES); slot !== 0; slot = Atomics.load(w, slot + DV_NEXT))
    slots.push(slot as Device);
  return slots;
}

/** Ends a device. Preconditions: this agent made it, and none of its pages is in use. */
export function destroyDevice(device: DeviceCore): void {
  const { mm, slot } = device;
  const { agent } = mm;
  const w = agent.words;
  lockSpin(agent, mm.header + MM_LOCK);
  let at = mm.header + MM_DEVICES;
  while (Atomics.load(w, at) !== slot) at = Atomics.load(w, at) + DV_NEXT;
  Atomics.store(w, at, Atomics.load(w, slot + DV_NEXT));
  mm.frames.removeDevicePages(device.first, device.pages);
  unlockSpin(agent, mm.header + MM_LOCK);
  mm.deviceOps.delete(slot);
  loopOf(agent).release();
  mm.free(slot, DV_WORDS);
}

/** The device that has a page. Preconditions: D2. */
export function deviceOf(mm: Mm, pfn: number): DeviceCore {
  const { agent } = mm;
  lockSpin(agent, mm.header + MM_LOCK);
  const found = listDevices(mm)
    .map((slot) => new DeviceCore(mm, slot))
    .find((device) => device.has(pfn));
  unlockSpin(agent, mm.header + MM_LOCK);
  return found!;
}

/** Pages of all devices that hold something. */
export function usedDevicePages(mm: Mm): number {
  const { agent } = mm;
  lockSpin(agent, mm.header + MM_LOCK);
  const used = listDevices(mm).map((slot) => {
    const device = new DeviceCore(mm, slot);
    return device.pages - device.free;
  });
  unlockSpin(agent, mm.header + MM_LOCK);
  return used.reduce((sum, pages) => sum + pages, 0);
}

/** Who asks finds the devices of an agent that has died lost. */
export function reapDevices(mm: Mm, ownerId: number): void {
  const { agent } = mm;
  lockSpin(agent, mm.header + MM_LOCK);
  for (const slot of listDevices(mm))
    if (Atomics.load(agent.words, slot + DV_OPENER) === ownerId)
      Atomics.store(agent.words, slot + DV_STATE, DEVICE_LOST);
  unlockSpin(agent, mm.header + MM_LOCK);
}

// ---- copies ---------------------------------------------------------------------------------------------------------

/** A page of a device and the frame that its bytes come from or go to; 0: zeros. */
export interface CopyPair {
  readonly device: number;
  readonly frame: number;
}

function copyEffect(device: DeviceCore, pairs: readonly CopyPair[], out: boolean): HostEffect {
  const { mm } = device;
  const ops = mm.deviceOps.get(device.slot)!;
  const pages = pairs.map((pair) => ({
    page: pair.device - device.first,
    bytes: pair.frame === 0 ? undefined : mm.frames.bytesOf(pair.frame),
  }));
  const sync = out ? ops.copyOutSync : ops.copyInSync;
  const start = out ? ops.copyOut : ops.copyIn;
  return {
    kind: "host",
    what: `a copy ${out ? "from" : "to"} device ${device.id}`,
    sync: sync && ((): void => sync(pages)),
    start: async () => (start ? start(pages) : sync!(pages)),
  };
}

/** Copies frames to pages of a device. Errors: those of the device, as they are. Preconditions: the device is this agent's. */
export function* copyInOp(device: DeviceCore, pairs: readonly CopyPair[]): Op<void> {
  yield copyEffect(device, pairs, false);
}

/** Copies pages of a device to frames. Errors: those of the device, as they are; EIO if it is lost. Preconditions: as copyInOp(). */
export function* copyOutOp(device: DeviceCore, pairs: readonly CopyPair[]): Op<void> {
  if (device.lost) throw new MmError("EIO", "access", `device ${device.id} is lost`);
  yield copyEffect(device, pairs, true);
}
