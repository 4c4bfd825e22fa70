/**
 * A device in plain memory that mirrors a whole space and has memory of its own: the test device of Linux
 * (lib/test_hmm.c), whose commands have the same names here.
 */
import {
  createDeviceMemory,
  type DeviceCopy,
  type DeviceMemory,
  type ExclusivePage,
  HMM_ERROR,
  HMM_REQ_FAULT,
  HMM_REQ_WRITE,
  HMM_VALID,
  HMM_WRITE,
  hmmPfn,
  makeDeviceExclusive,
  migrateToDevice,
  migrateToMemory,
  rangeFault,
} from "../../src/hmm/index.ts";
import { isMmError, MmError } from "../../src/errors.ts";
import type { AddressSpace, PhysicalMemory } from "../../src/mm/index.ts";
import {
  type IntervalNotifier,
  MmuNotifierEvent,
  type MmuNotifierRange,
  type OwnerId,
} from "../../src/notifier/index.ts";

const PAGE = 4096;
/** Pages that one fault of the device asks for. */
const CHUNK = 64;
const TIMEOUT_MS = 5000;

/** What snapshot() says of a page. */
export const SNAP_NONE = 0;
export const SNAP_READ = 1;
export const SNAP_WRITE = 2;
export const SNAP_ZERO = 0x10;
export const SNAP_LOCAL = 0x20;
export const SNAP_ERROR = 0xff;

/** An entry of the device's table. */
interface Mirrored {
  readonly pfn: number;
  readonly writable: boolean;
  readonly atomic: boolean;
}

export interface PlainDeviceOptions {
  readonly pages?: number;
  /** Copies that wait for a timer. */
  readonly slow?: boolean;
  readonly owner?: OwnerId;
  readonly around?: number;
}

const soon = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1));

export class PlainDevice {
  readonly memory: PhysicalMemory;
  readonly space: AddressSpace;
  readonly device: DeviceMemory;
  readonly bytes: Uint8Array;
  /** Called before each copy: a test's wrench. */
  onCopy: ((out: boolean) => void) | undefined;
  /** Invalidations heard, and how many of these were its own moves. */
  invalidations = 0;
  own = 0;
  /** Pages brought back. */
  copiedOut = 0;
  /** Rounds of faults of the last command. */
  faults = 0;
  /** Broken on purpose: keeps its entries of pages that go. */
  forgetful = false;
  readonly #table = new Map<number, Mirrored>();
  /** All that mirror spaces with this memory of a device. */
  readonly #mirrors: PlainDevice[];
  #interval: IntervalNotifier | undefined;

  /** `shared`: memory of a device that is there already, mirrored for another space. */
  constructor(
    memory: PhysicalMemory,
    space: AddressSpace,
    options: PlainDeviceOptions = {},
    shared?: PlainDevice,
  ) {
    this.memory = memory;
    this.space = space;
    this.#mirrors = shared ? shared.#mirrors : [];
    this.#mirrors.push(this);
    const pages = options.pages ?? 256;
    this.bytes = shared?.bytes ?? new Uint8Array(Math.ceil(pages / 32) * 32 * PAGE);
    const copyIn = (list: readonly DeviceCopy[]): void => this.#copy(list, false);
    const copyOut = (list: readonly DeviceCopy[]): void => this.#copy(list, true);
    this.device =
      shared?.device ??
      createDeviceMemory(memory, {
        bytes: pages * PAGE,
        ...(options.owner === undefined ? {} : { owner: options.owner }),
        ...(options.around === undefined ? {} : { around: options.around }),
        ...(options.slow
          ? {
              copyIn: async (list) => {
                await soon();
                copyIn(list);
                await soon();
              },
              copyOut: async (list) => {
                await soon();
                copyOut(list);
                await soon();
              },
            }
          : { copyInSync: copyIn, copyOutSync: copyOut }),
      });
  }

  #copy(list: readonly DeviceCopy[], out: boolean): void {
    this.onCopy?.(out);
    if (out && !this.forgetful) {
      const going = new Set(list.map(({ page }) => page));
      for (const mirror of this.#mirrors) mirror.#forget(going);
    }
    for (const { page, bytes } of list) {
      const here = this.#page(page);
      if (!out) {
        if (bytes) here.set(bytes);
        else here.fill(0);
      } else {
        bytes!.set(here);
        here.fill(0xdd); // whoever reads it later sees that it is gone
        this.copiedOut++;
      }
    }
  }

  /** What moves on its own behalf it hears nothing else of: see copyOut. */
  #forget(pages: ReadonlySet<number>): void {
    for (const [vpn, { pfn }] of this.#table) if (pages.has(this.device.pageOf(pfn))) this.#table.delete(vpn);
  }

  #page(page: number): Uint8Array {
    return this.bytes.subarray(page * PAGE, (page + 1) * PAGE);
  }

  /** Begins to mirror the space. */
  async open(): Promise<this> {
    const invalidate = (interval: IntervalNotifier, range: MmuNotifierRange, seq: number): boolean => {
      this.invalidations++;
      // What it does itself: it has dropped what goes, or is about to enter what came.
      const mine = range.event === MmuNotifierEvent.Migrate || range.event === MmuNotifierEvent.Exclusive;
      if (mine && range.owner === this.device.owner) {
        this.own++;
        return true;
      }
      interval.setSeq(seq);
      for (const vpn of [...this.#table.keys()])
        if (vpn >= range.start / PAGE && vpn < range.end / PAGE) this.#table.delete(vpn);
      return true;
    };
    this.#interval = await this.space.notifiers.insert({ invalidate }, 0, 2 ** 42);
    return this;
  }

  async close(): Promise<void> {
    await this.#interval!.remove();
    this.#table.clear();
  }

  /** Bytes of a mirrored page; undefined without an entry that allows the access. */
  #reach(vpn: number, write: boolean): Uint8Array | undefined {
    const entry = this.#table.get(vpn);
    if (!entry || (write && !entry.writable)) return undefined;
    const page = this.device.pageOf(entry.pfn);
    return page < 0 ? this.memory.frame(entry.pfn) : this.#page(page);
  }

  #ownsReadOnly(vpn: number): boolean {
    const entry = this.#table.get(vpn);
    return entry !== undefined && !entry.writable && this.device.pageOf(entry.pfn) >= 0;
  }

  /** Makes entries for pages, a chunk at a time. */
  async #fault(first: number, end: number, write: boolean): Promise<void> {
    for (let at = first; at < end; at += CHUNK) await this.#faultChunk(at, Math.min(end, at + CHUNK), write);
    this.faults++;
  }

  async #faultChunk(first: number, end: number, write: boolean): Promise<void> {
    const interval = this.#interval!;
    const entries = new Int32Array(end - first);
    const deadline = performance.now() + TIMEOUT_MS;
    for (;;) {
      if (performance.now() > deadline) throw new MmError("EBUSY", "fault", "overtaken again and again");
      const seq = await interval.readBegin();
      try {
        await rangeFault(interval, {
          memory: this.memory,
          space: this.space,
          seq,
          start: first * PAGE,
          length: (end - first) * PAGE,
          entries,
          defaultFlags: HMM_REQ_FAULT | (write ? HMM_REQ_WRITE : 0),
          owner: this.device.owner,
        });
      } catch (error) {
        if (isMmError(error, "EBUSY")) continue;
        throw error;
      }
      if (interval.readRetry(seq)) continue;
      entries.forEach((entry, k) =>
        this.#table.set(first + k, {
          pfn: hmmPfn(entry),
          writable: (entry & HMM_WRITE) !== 0,
          atomic: false,
        }),
      );
      return;
    }
  }

  /** READ: the bytes of pages, faulting in what the device's table lacks. */
  async read(start: number, pages: number): Promise<Uint8Array> {
    const into = new Uint8Array(pages * PAGE);
    const first = start / PAGE;
    this.faults = 0;
    for (let k = 0; k < pages;) {
      const bytes = this.#reach(first + k, false);
      if (!bytes) {
        await this.#fault(first + k, first + pages, false);
        continue;
      }
      into.set(bytes, k * PAGE);
      k++;
    }
    return into;
  }

  /** WRITE: as read(), for writing. */
  async write(start: number, from: Uint8Array): Promise<void> {
    const first = start / PAGE;
    const pages = from.length / PAGE;
    this.faults = 0;
    for (let k = 0; k < pages;) {
      const bytes = this.#reach(first + k, true);
      if (!bytes) {
        // A page of its own that fork shared comes as it is, read-only: in memory it can be copied.
        if (this.#ownsReadOnly(first + k)) await this.bringBack((first + k) * PAGE, 1);
        await this.#fault(first + k, first + pages, true);
        continue;
      }
      bytes.set(from.subarray(k * PAGE, (k + 1) * PAGE));
      k++;
    }
  }

  /** MIGRATE_TO_DEV: moves pages here and enters them; then reads them without a fault. ENOENT where some did not come. */
  async migrate(start: number, pages: number): Promise<Uint8Array> {
    for (let at = start; at < start + pages * PAGE;) {
      const vma = this.space.vmas().find((v) => v.start <= at && v.end > at);
      // Linux's test device asks for a mapping that can be read.
      if (!vma || vma.prot === "---")
        throw new MmError("EINVAL", "migrate", "nothing that can be read is mapped there");
      const end = Math.min(vma.end, start + pages * PAGE);
      const writable = vma.prot.includes("w");
      const enter = (address: number, page: number): void =>
        void this.#table.set(address / PAGE, { pfn: this.device.core.first + page, writable, atomic: false });
      const moved = await migrateToDevice(this.device, this.space, { start: at, length: end - at });
      for (const { address, page } of moved) enter(address, page);
      at = end;
    }
    const into = new Uint8Array(pages * PAGE);
    for (let k = 0; k < pages; k++) {
      const entry = this.#table.get(start / PAGE + k);
      if (!entry || this.device.pageOf(entry.pfn) < 0)
        throw new MmError("ENOENT", "migrate", "not all pages came");
      into.set(this.#page(this.device.pageOf(entry.pfn)), k * PAGE);
    }
    return into;
  }

  /** MIGRATE_TO_SYS. */
  async bringBack(start: number, pages: number): Promise<number> {
    for (let k = 0; k < pages; k++) this.#table.delete(start / PAGE + k);
    return migrateToMemory(this.device, this.space, { start, length: pages * PAGE });
  }

  /** SNAPSHOT: what each page is to this device; nothing is faulted in. */
  async snapshot(start: number, pages: number): Promise<number[]> {
    const interval = this.#interval!;
    const entries = new Int32Array(pages);
    for (;;) {
      const seq = await interval.readBegin();
      await rangeFault(interval, {
        memory: this.memory,
        space: this.space,
        seq,
        start,
        length: pages * PAGE,
        entries,
        defaultFlags: 0,
        owner: this.device.owner,
      });
      if (!interval.readRetry(seq)) break;
    }
    return [...entries].map((entry) => {
      if ((entry & HMM_ERROR) !== 0) return SNAP_ERROR;
      if ((entry & HMM_VALID) === 0) return SNAP_NONE;
      const rights = (entry & HMM_WRITE) !== 0 ? SNAP_WRITE : SNAP_READ;
      const pfn = hmmPfn(entry);
      return rights | (this.device.pageOf(pfn) >= 0 ? SNAP_LOCAL : pfn === 0 ? SNAP_ZERO : 0);
    });
  }

  /** EXCLUSIVE: has pages for itself, and reads them. */
  async exclusive(start: number, pages: number): Promise<Uint8Array> {
    const interval = this.#interval!;
    for (let k = 0; k < pages; k++) {
      const address = start + k * PAGE;
      for (;;) {
        // What has to be copied or taken back first raises events of its own, which would overtake the rest.
        await this.space.populate(address, PAGE, "rw");
        const seq = await interval.readBegin();
        const page: ExclusivePage = await makeDeviceExclusive({
          memory: this.memory,
          space: this.space,
          address,
          owner: this.device.owner,
        });
        const late = interval.readRetry(seq);
        if (!late) this.#table.set(address / PAGE, { pfn: page.pfn, writable: true, atomic: true });
        page.release();
        if (!late) break;
      }
    }
    const into = new Uint8Array(pages * PAGE);
    for (let k = 0; k < pages; k++) into.set(this.#reach(start / PAGE + k, false)!, k * PAGE);
    return into;
  }

  /** CHECK_EXCLUSIVE: how many of the pages it still has for itself. */
  stillExclusive(start: number, pages: number): number {
    let count = 0;
    for (let k = 0; k < pages; k++) if (this.#table.get(start / PAGE + k)?.atomic) count++;
    return count;
  }

  /** How many entries its table has. */
  get entries(): number {
    return this.#table.size;
  }
}
