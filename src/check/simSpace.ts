/**
 * A simulated address space: a page table of a few pages, operations that change it in the order that the contract asks,
 * with scheduling points between their steps, and the real notifier core in between. Its frames know to whom they belong,
 * so every use of a translation can be judged.
 *
 * Two sets of names. The operations (`munmap`, `dontneed`, `fault`, …) keep the contract and are for scenarios of somebody's
 * secondary MMU. The entries (`entry`, `setEntry`, `clearEntry`) and the frames of the world are for scenarios that
 * bring their own primary MMU; they notify nobody.
 *
 * Each operation of a page does, in this order: start; change the entry; tell secondary TLBs; copy or free; end. `munmap`
 * and `exit` free after the end, the others before it: a subscriber must rely on neither.
 */
import { isMmError, MmError, SegvError } from "../errors.ts";
import {
  checkSubscriptions,
  invalidateSecondaryTlbs,
  MmuNotifierEvent,
  type MmuNotifierRange,
  type Notifiers,
  type NotifierSpace,
} from "../notifier/index.ts";
import { type Op, waitOp } from "../sched/index.ts";
import type { Call } from "./call.ts";
import type { Device } from "./device.ts";
import { SimRwLock } from "./locks.ts";
import { Point } from "./run.ts";
import { type FillCheck, eventName, rangeText, SimNotifiers } from "./simNotifiers.ts";
import type { World } from "./world.ts";

/** Bytes of a page of a simulated space. */
export const PAGE = 4096;

/** What a page-table entry says, and what a fault gives. */
export interface Translation {
  readonly pfn: number;
  readonly write: boolean;
}

interface Entry {
  pfn: number;
  write: boolean;
  dirty: boolean;
  accessed: boolean;
}

export interface SpaceOptions {
  readonly name?: string;
  /** Pages of the one mapping, from address 0 on; default 1. */
  readonly pages?: number;
  /** False: no page is there before somebody touches it. Default true. */
  readonly populate?: boolean;
  /** Pages are shared with somebody, as after a fork: the first write copies. */
  readonly copyOnWrite?: boolean;
  /**
   * Pages are writable and clean: whoever writes through them has to say so with markDirty(). Default false, as in an
   * AddressSpace, where what is writable is dirty already.
   */
  readonly clean?: boolean;
}

/** What a fault leaves to the caller. */
export interface FaultOptions {
  /** False: the page stays clean; the device has dirty bits of its own, to be handed over with markDirty(). Default true. */
  readonly dirty?: boolean;
}

/** How an operation is started. */
export interface OperationOptions {
  /** False: its range may not wait, as in the `try` forms; it answers false where a subscriber refuses. Default true. */
  readonly blockable?: boolean;
}

const hex = (n: number): string => `0x${n.toString(16)}`;

export class SimSpace {
  readonly world: World;
  readonly id: number;
  readonly name: string;
  readonly pages: number;
  readonly notifiers: SimNotifiers;
  /** Held for writing by munmap, protect and exit, for reading by fault. */
  readonly mmapLock: SimRwLock;
  /** @internal */
  readonly devices: Device[] = [];
  /** @internal By the actor that asked. */
  readonly checks: Map<number, FillCheck> = new Map();
  readonly #entries: (Entry | undefined)[];
  /** A frame will follow: the entry is between two. */
  readonly #busy: boolean[];
  readonly #mapped: boolean[];
  readonly #writable: boolean[];
  readonly #shared: boolean[];
  /** The write that readers of a page must see. */
  readonly #version: number[];
  readonly #usedByDevice: boolean[];
  readonly #location: number;
  readonly #notifierLocation: number;
  readonly #real: (thread: number) => Notifiers;
  #released = false;

  /** @internal */
  constructor(world: World, id: number, options: SpaceOptions, real: (thread: number) => Notifiers) {
    const { pages = 1, populate = true, copyOnWrite = false, clean = false } = options;
    this.world = world;
    this.id = id;
    this.name = options.name ?? (id === 1 ? "space" : `space ${id}`);
    this.pages = pages;
    this.#real = real;
    this.#location = world.run.newLocations(pages);
    this.#notifierLocation = world.run.newLocations(1);
    this.mmapLock = new SimRwLock(world.locks, `${this.name}.mmapLock`);
    this.#entries = Array.from({ length: pages }, () => undefined);
    this.#busy = Array.from({ length: pages }, () => false);
    this.#mapped = Array.from({ length: pages }, () => true);
    this.#writable = Array.from({ length: pages }, () => true);
    this.#shared = Array.from({ length: pages }, () => copyOnWrite);
    this.#version = Array.from({ length: pages }, () => 0);
    this.#usedByDevice = Array.from({ length: pages }, () => false);
    this.notifiers = new SimNotifiers(this);
    if (populate) {
      for (let vpn = 0; vpn < pages; vpn++) {
        const pfn = world.frames.alloc(this.ownerOf(vpn));
        const frame = world.frames.write(pfn);
        frame.mapped = true;
        frame.shared = copyOnWrite;
        frame.dirty = !clean && !copyOnWrite;
        this.#entries[vpn] = { pfn, write: !copyOnWrite, dirty: frame.dirty, accessed: false };
      }
    }
  }

  /** Whose the frame of a page is, as frames say it. */
  ownerOf(vpn: number): string {
    return `${this.name} page ${vpn}`;
  }

  /** @internal */
  realNotifiers(): Notifiers {
    return this.#real(this.world.run.agent.slot);
  }

  /** @internal */
  threadNotifiers(thread: number): Notifiers {
    return this.#real(thread);
  }

  /** @internal What callbacks find in `range.space`. */
  asNotifierSpace(): NotifierSpace {
    return this as unknown as NotifierSpace;
  }

  /** @internal */
  touchNotifiers(write: boolean): void {
    this.world.run.touch(this.#notifierLocation, write);
    this.world.run.touchMessages();
  }

  #touch(vpn: number, write: boolean): void {
    this.world.run.touch(this.#location + vpn, write);
  }

  #vpn(address: number, operation: string): number {
    const vpn = Math.floor(address / PAGE);
    if (!(vpn >= 0 && vpn < this.pages))
      throw new MmError("EINVAL", operation, `${this.name} has ${this.pages} pages, from address 0 on`);
    return vpn;
  }

  /** Pages of a range, clipped to the space. */
  #range(address: number, length: number, operation: string): readonly [first: number, end: number] {
    const first = this.#vpn(address, operation);
    return [first, Math.min(this.pages, Math.max(first + 1, Math.ceil((address + length) / PAGE)))];
  }

  // ---- the entries: for scenarios that bring a primary MMU of their own ----------------------------------------------

  /** What the page table says now. One atomic look; nothing is faulted in. */
  entry(address: number): Translation | undefined {
    const vpn = this.#vpn(address, "entry");
    this.#touch(vpn, false);
    const entry = this.#entries[vpn];
    return entry && { pfn: entry.pfn, write: entry.write };
  }

  /** Lets the page table say that; the frame that was there before is not freed. */
  setEntry(address: number, pfn: number, options: { write?: boolean } = {}): void {
    const vpn = this.#vpn(address, "setEntry");
    this.#touch(vpn, true);
    const frame = this.world.frames.write(pfn);
    if (frame.owner === undefined)
      throw new MmError("EINVAL", "setEntry", `frame ${pfn} is free; take it with world.frames.alloc()`);
    const old = this.#entries[vpn];
    if (old && old.pfn !== pfn) this.world.frames.write(old.pfn).mapped = false;
    frame.mapped = true;
    this.#entries[vpn] = { pfn, write: options.write ?? true, dirty: false, accessed: false };
    if (this.world.run.tracing) this.world.run.note(`${this.#pageName(vpn)} -> frame ${pfn}`);
  }

  /** Empties the entry; the frame that was there is given back and not freed: see world.frames.free(). */
  clearEntry(address: number): number | undefined {
    const vpn = this.#vpn(address, "clearEntry");
    this.#touch(vpn, true);
    const old = this.#entries[vpn];
    this.#entries[vpn] = undefined;
    if (this.world.run.tracing) this.world.run.note(`${this.#pageName(vpn)} -> none`);
    return old?.pfn;
  }

  /** Takes write permission from an entry, or gives it. */
  setWritable(address: number, write: boolean): void {
    const vpn = this.#vpn(address, "setWritable");
    this.#touch(vpn, true);
    const entry = this.#entries[vpn];
    if (entry) entry.write = write;
  }

  /** A frame for the page at `address`, not mapped yet. */
  allocFrame(address: number, value = 0): number {
    return this.world.frames.alloc(this.ownerOf(this.#vpn(address, "allocFrame")), value);
  }

  /** Copies contents, with what readers must see. */
  copyFrame(from: number, to: number): void {
    const { frames } = this.world;
    const source = frames.read(from);
    const target = frames.write(to);
    target.value = source.value;
    target.version = source.version;
    target.dirty ||= source.dirty;
    target.unsaved ||= source.unsaved;
  }

  // ---- operations -----------------------------------------------------------------------------------------------------

  /** The mapping goes, with its pages. False: a subscriber refused. */
  munmap(address: number, length: number, options: OperationOptions = {}): Call<boolean> {
    return this.world.call("munmap", () =>
      this.#zapOp("munmap", MmuNotifierEvent.Unmap, address, length, options, true),
    );
  }

  /** Pages go, the mapping stays: the next touch finds a new page. Linux: madvise(MADV_DONTNEED). */
  dontneed(address: number, length: number, options: OperationOptions = {}): Call<boolean> {
    return this.world.call("dontneed", () =>
      this.#zapOp("dontneed", MmuNotifierEvent.Clear, address, length, options, false),
    );
  }

  *#zapOp(
    name: string,
    event: MmuNotifierEvent,
    address: number,
    length: number,
    { blockable = true }: OperationOptions,
    unmaps: boolean,
  ): Op<boolean> {
    const { world } = this;
    const [first, end] = this.#range(address, length, name);
    const point = new Point(`${name} ${rangeText(first * PAGE, end * PAGE)}: start`);
    yield point;
    world.guardOperation(name);
    if (unmaps) yield* this.mmapLock.writeOp();
    try {
      const range = yield* this.#startOp(first, end, event, blockable);
      if (!range) return false;
      const gone: number[] = [];
      try {
        for (let vpn = first; vpn < end; vpn++) {
          yield point.at(`${name}: clears ${hex(vpn * PAGE)}`);
          yield* this.#notBusyOp(vpn);
          this.#touch(vpn, true);
          const old = this.#entries[vpn];
          this.#entries[vpn] = undefined;
          if (unmaps) this.#mapped[vpn] = false;
          if (!old) continue;
          gone.push(old.pfn);
        }
        yield* this.#flushOp(first, end);
        if (!unmaps && gone.length > 0) yield point.at(`${name}: frees`);
        if (!unmaps) this.#drop(gone);
        yield point.at(`${name}: end`);
      } finally {
        this.notifiers.invalidateRangeEnd(range);
      }
      if (unmaps && gone.length > 0) yield point.at(`${name}: frees`);
      if (unmaps) this.#drop(gone);
    } finally {
      if (unmaps) this.mmapLock.writeUnlock();
    }
    return true;
  }

  #drop(gone: readonly number[]): void {
    for (const pfn of gone) this.world.frames.unmapped(pfn);
  }

  /** Undefined where a subscriber refused a range that may not wait. */
  *#startOp(
    first: number,
    end: number,
    event: MmuNotifierEvent,
    blockable: boolean,
  ): Op<MmuNotifierRange | undefined> {
    try {
      return yield* this.notifiers.startOp({ start: first * PAGE, end: end * PAGE, event }, blockable);
    } catch (error) {
      if (blockable || !isMmError(error, "EAGAIN")) throw error;
      if (this.world.run.tracing) this.world.run.note("refused: EAGAIN");
      return undefined;
    }
  }

  /** Whoever walks the page tables itself is told, and has answered when this returns. */
  *#flushOp(first: number, end: number): Op<void> {
    if (this.notifiers.walkers === 0) return;
    yield new Point("tells secondary TLBs");
    this.touchNotifiers(true);
    const { agent } = this.world.run;
    const asked: [slot: number, request: number][] = [];
    invalidateSecondaryTlbs(this.realNotifiers().context, first * PAGE, end * PAGE, (slot) => {
      if (asked.every(([known]) => known !== slot)) asked.push([slot, agent.mark(slot, this.id, first, end)]);
    });
    for (const [slot, request] of asked)
      yield* waitOp(0, () => agent.flushed(slot, request), `secondary TLBs of thread ${slot}`);
  }

  *#notBusyOp(vpn: number): Op<void> {
    if (this.#isBusy(vpn)) yield* waitOp(0, () => !this.#isBusy(vpn), `the frame of ${this.#pageName(vpn)}`);
  }

  #isBusy(vpn: number): boolean {
    this.#touch(vpn, false);
    return this.#busy[vpn] === true;
  }

  /** Changes what the mapping allows. */
  protect(address: number, length: number, prot: "r" | "rw", options: OperationOptions = {}): Call<boolean> {
    return this.world.call("protect", () => this.#protectOp(address, length, prot === "rw", options));
  }

  *#protectOp(
    address: number,
    length: number,
    write: boolean,
    { blockable = true }: OperationOptions,
  ): Op<boolean> {
    const [first, end] = this.#range(address, length, "protect");
    const point = new Point(`protect ${rangeText(first * PAGE, end * PAGE)} ${write ? "rw" : "r"}: start`);
    yield point;
    this.world.guardOperation("protect");
    yield* this.mmapLock.writeOp();
    try {
      const range = yield* this.#startOp(first, end, MmuNotifierEvent.ProtectionVma, blockable);
      if (!range) return false;
      try {
        for (let vpn = first; vpn < end; vpn++) {
          yield point.at(`protect: changes ${hex(vpn * PAGE)}`);
          yield* this.#notBusyOp(vpn);
          this.#touch(vpn, true);
          this.#writable[vpn] = write;
          const entry = this.#entries[vpn];
          if (entry) entry.write = write && !this.#shared[vpn];
        }
        yield* this.#flushOp(first, end);
        yield point.at("protect: end");
      } finally {
        this.notifiers.invalidateRangeEnd(range);
      }
      return true;
    } finally {
      this.mmapLock.writeUnlock();
    }
  }

  /** Moves a page to another frame, contents and all; the old one is free. False: there is no page. */
  migrate(address: number, options: OperationOptions = {}): Call<boolean> {
    return this.world.call("migrate", () =>
      this.#replaceOp("migrate", this.#vpn(address, "migrate"), options, false),
    );
  }

  /** Preconditions of a copy-on-write: the page is shared. */
  *#replaceOp(
    name: string,
    vpn: number,
    { blockable = true }: OperationOptions,
    copies: boolean,
  ): Op<boolean> {
    const { frames } = this.world;
    const point = new Point(`${name} ${hex(vpn * PAGE)}: start`);
    yield point;
    this.world.guardOperation(name);
    const range = yield* this.#startOp(vpn, vpn + 1, MmuNotifierEvent.Clear, blockable);
    if (!range) return false;
    try {
      yield point.at(`${name}: takes the entry away`);
      yield* this.#notBusyOp(vpn);
      this.#touch(vpn, true);
      const old = this.#entries[vpn];
      if (!old || (copies && !this.#shared[vpn])) return copies;
      this.#entries[vpn] = undefined;
      this.#busy[vpn] = true;
      try {
        yield* this.#flushOp(vpn, vpn + 1);
        yield point.at(`${name}: copies, sets the new entry`);
      } catch (error) {
        this.#entries[vpn] = old;
        throw error;
      } finally {
        this.#touch(vpn, true);
        this.#busy[vpn] = false;
      }
      const pfn = this.allocFrame(vpn * PAGE);
      this.copyFrame(old.pfn, pfn);
      frames.write(pfn).mapped = true;
      if (copies) this.#shared[vpn] = false;
      this.#entries[vpn] = {
        pfn,
        write: this.#writable[vpn]! && !this.#shared[vpn],
        dirty: old.dirty,
        accessed: true,
      };
      if (this.world.run.tracing) this.world.run.note(`${this.#pageName(vpn)} -> frame ${pfn}`);
      yield point.at(`${name}: gives up frame ${old.pfn}`);
      frames.unmapped(old.pfn);
      yield point.at(`${name}: end`);
    } finally {
      this.notifiers.invalidateRangeEnd(range);
    }
    return true;
  }

  /**
   * What a secondary MMU's fault asks: the translation of a page, which is made present and, for "rw", writable and dirty.
   * What comes back may be out of date at once: that is what readRetry() is for. Errors: SegvError.
   */
  fault(address: number, access: "r" | "rw" = "rw", options: FaultOptions = {}): Call<Translation> {
    return this.world.call("fault", () =>
      this.#faultForDeviceOp(address, access === "rw", options.dirty ?? true),
    );
  }

  *#faultForDeviceOp(address: number, write: boolean, dirty: boolean): Op<Translation> {
    const translation = yield* this.#faultOp("fault", address, write, dirty);
    // Between the look into the page table and whatever the caller does with it others may run.
    yield new Point("fault returns");
    return translation;
  }

  *#faultOp(name: string, address: number, write: boolean, dirty = true): Op<Translation> {
    const vpn = this.#vpn(address, name);
    yield new Point(`${name} ${hex(vpn * PAGE)} ${write ? "rw" : "r"}`);
    if (this.world.run.callback !== undefined) {
      this.world.run.violate(
        "waiting-call-in-callback",
        `${this.world.run.callback} faults at ${hex(vpn * PAGE)}`,
      );
    }
    this.world.guardOperation(name);
    for (;;) {
      yield* this.mmapLock.readOp();
      try {
        yield* this.#notBusyOp(vpn);
        this.#touch(vpn, false);
        if (!this.#mapped[vpn]) throw new SegvError(name, address, "SEGV_MAPERR");
        if (write && !this.#writable[vpn]) throw new SegvError(name, address, "SEGV_ACCERR");
        let entry = this.#entries[vpn];
        if (!entry) {
          this.#touch(vpn, true);
          const pfn = this.allocFrame(vpn * PAGE);
          this.world.frames.write(pfn).mapped = true;
          this.#shared[vpn] = false;
          this.#version[vpn] = 0;
          entry = { pfn, write: this.#writable[vpn]!, dirty: false, accessed: true };
          this.#entries[vpn] = entry;
        }
        if (!write || entry.write) {
          if (write && dirty) {
            this.#touch(vpn, true);
            entry.dirty = true;
            this.world.frames.write(entry.pfn).dirty = true;
            this.world.frames.write(entry.pfn).unsaved = false;
          }
          if (this.world.run.tracing) this.world.run.note(`frame ${entry.pfn}`);
          return { pfn: entry.pfn, write: entry.write };
        }
        if (!this.#shared[vpn]) {
          // Clean after a write-back: permission comes back without an event.
          this.#touch(vpn, true);
          entry.write = true;
          continue;
        }
      } finally {
        this.mmapLock.readUnlock();
      }
      yield* this.#replaceOp("copy-on-write", vpn, {}, true);
    }
  }

  /** The CPU reads a page: its value. Errors: SegvError. */
  read(address: number): Call<number> {
    return this.world.call("read", () => this.#readOp(address));
  }

  *#readOp(address: number): Op<number> {
    const { pfn } = yield* this.#faultOp("read", address, false);
    const { value } = this.world.frames.read(pfn);
    if (this.world.run.tracing) this.world.run.note(`= ${value}`);
    return value;
  }

  /** The CPU writes to a page; it is copied first where it is shared. Errors: SegvError. */
  write(address: number, value: number): Call<void> {
    return this.world.call("write", () => this.#writeOp(address, value));
  }

  *#writeOp(address: number, value: number): Op<void> {
    const vpn = this.#vpn(address, "write");
    const { pfn } = yield* this.#faultOp("write", address, true);
    this.cpuStore(vpn, pfn, value);
  }

  /** The CPU writes through the entry as it is now, as a store that hits the TLB: false where that does not allow it. */
  store(address: number, value: number): boolean {
    const vpn = this.#vpn(address, "store");
    this.#touch(vpn, true);
    const entry = this.#entries[vpn];
    if (!entry?.write) return false;
    entry.dirty = true;
    this.cpuStore(vpn, entry.pfn, value);
    return true;
  }

  /** @internal */
  cpuStore(vpn: number, pfn: number, value: number): void {
    this.#touch(vpn, true);
    const frame = this.world.frames.write(pfn);
    frame.value = value;
    frame.dirty = true;
    frame.version = ++this.world.clock;
    this.#version[vpn] = frame.version;
    if (this.world.run.tracing) this.world.run.note(`frame ${pfn} = ${value}`);
  }

  /** What a load by the CPU gives through the entry as it is now; undefined where there is none. */
  load(address: number): number | undefined {
    const vpn = this.#vpn(address, "load");
    this.#touch(vpn, false);
    const entry = this.#entries[vpn];
    if (!entry) return undefined;
    return this.world.frames.read(entry.pfn).value;
  }

  /** Writes dirty pages of a range to where they come from and cleans them: device and CPU lose write permission. */
  writeback(address: number, length: number, options: OperationOptions = {}): Call<boolean> {
    return this.world.call("writeback", () => this.#writebackOp(address, length, options));
  }

  *#writebackOp(address: number, length: number, { blockable = true }: OperationOptions): Op<boolean> {
    const [first, end] = this.#range(address, length, "writeback");
    const point = new Point(`writeback ${rangeText(first * PAGE, end * PAGE)}: start`);
    yield point;
    this.world.guardOperation("writeback");
    const range = yield* this.#startOp(first, end, MmuNotifierEvent.ProtectionPage, blockable);
    if (!range) return false;
    try {
      for (let vpn = first; vpn < end; vpn++) {
        yield point.at(`writeback: cleans ${hex(vpn * PAGE)}`);
        yield* this.#notBusyOp(vpn);
        this.#touch(vpn, true);
        const entry = this.#entries[vpn];
        if (!entry) continue;
        entry.write = false;
        yield* this.#flushOp(vpn, vpn + 1);
        this.#save(vpn, entry.pfn, "is written back");
        entry.dirty = false;
      }
      yield point.at("writeback: end");
    } finally {
      this.notifiers.invalidateRangeEnd(range);
    }
    return true;
  }

  /** The contents of a frame go to their file, if it is known that they have changed. */
  #save(vpn: number, pfn: number, what: string): void {
    const frame = this.world.frames.write(pfn);
    if (frame.unsaved && !frame.dirty)
      this.world.run.violate(
        "lost-dirty",
        `${this.#pageName(vpn)} ${what} as if it were clean; the device has written to frame ${pfn}`,
      );
    frame.dirty = false;
    frame.unsaved = false;
  }

  /** Asks whether the device has used the range, and clears that. Linux: mmu_notifier_clear_flush_young(). */
  age(address: number, length: number): Call<boolean> {
    return this.world.call("age", () => this.#ageOp(...this.#range(address, length, "age")));
  }

  *#ageOp(first: number, end: number): Op<boolean> {
    yield new Point(`asks whether ${rangeText(first * PAGE, end * PAGE)} is young`);
    this.world.guardOperation("age");
    return this.notifiers.clearFlushYoung(first * PAGE, end * PAGE);
  }

  /** @internal What was answered about a range, and whether the answer has cleared the accessed state. */
  judgeAge(start: number, end: number, young: boolean, clears: boolean): void {
    const { run } = this.world;
    if (run.tracing) run.note(young ? "young" : "old");
    const last = Math.min(this.pages, Math.ceil(end / PAGE));
    for (let vpn = Math.max(0, Math.floor(start / PAGE)); vpn < last; vpn++) {
      this.#touch(vpn, true);
      if (this.#usedByDevice[vpn] && !young && this.notifiers.aging > 0)
        run.violate(
          "wrong-age",
          `${rangeText(start, end)} is reported old; the device has used ${this.#pageName(vpn)}`,
        );
      if (clears) this.#usedByDevice[vpn] = false;
    }
  }

  /** Reclaim: takes pages that nobody has used, after having written them back. False: they are young, or refused. */
  reclaim(address: number, length: number, options: OperationOptions = {}): Call<boolean> {
    return this.world.call("reclaim", () => this.#reclaimOp(address, length, options));
  }

  *#reclaimOp(address: number, length: number, { blockable = true }: OperationOptions): Op<boolean> {
    const [first, end] = this.#range(address, length, "reclaim");
    if (this.notifiers.aging > 0 && (yield* this.#ageOp(first, end))) return false;
    const point = new Point(`reclaim ${rangeText(first * PAGE, end * PAGE)}: start`);
    yield point;
    this.world.guardOperation("reclaim");
    const range = yield* this.#startOp(first, end, MmuNotifierEvent.Clear, blockable);
    if (!range) return false;
    try {
      for (let vpn = first; vpn < end; vpn++) {
        yield point.at(`reclaim: clears ${hex(vpn * PAGE)}`);
        yield* this.#notBusyOp(vpn);
        this.#touch(vpn, true);
        const old = this.#entries[vpn];
        if (!old) continue;
        this.#entries[vpn] = undefined;
        yield* this.#flushOp(vpn, vpn + 1);
        this.#save(vpn, old.pfn, "is reclaimed");
        this.world.frames.unmapped(old.pfn);
      }
      yield point.at("reclaim: end");
    } finally {
      this.notifiers.invalidateRangeEnd(range);
    }
    return true;
  }

  /** The space ends: release, then everything is unmapped. */
  exit(): Call<void> {
    return this.world.call("exit", () => this.#exitOp());
  }

  *#exitOp(): Op<void> {
    yield* this.notifiers.releaseOp();
    this.#released = true;
    yield* this.#zapOp("exit", MmuNotifierEvent.Unmap, 0, this.pages * PAGE, {}, true);
  }

  get released(): boolean {
    return this.#released;
  }

  // ---- what devices do ------------------------------------------------------------------------------------------------

  /**
   * A device reads the page at `address` through frame `pfn`, at once: the value. The oracle of stale and freed
   * translations. For devices that keep their own table; see world.device() for one with a table.
   */
  deviceRead(address: number, pfn: number, device: string = "the device"): number {
    return this.access("read", address, pfn, device, false, 0);
  }

  /** As deviceRead(), writing. */
  deviceWrite(address: number, pfn: number, value: number, device: string = "the device"): void {
    this.access("write", address, pfn, device, false, value);
  }

  /** Marks the frame of a page dirty: what a driver does with what its device has written. */
  markDirty(address: number, pfn: number): void {
    const vpn = this.#vpn(address, "markDirty");
    this.touchPage(address, pfn, "marks dirty");
    const frame = this.world.frames.write(pfn);
    frame.dirty = true;
    frame.unsaved = false;
    const entry = this.#entries[vpn];
    if (entry?.pfn === pfn) entry.dirty = true;
  }

  /** A driver looks into, or changes, what the primary MMU knows of the frame of a page: allowed while it is that. */
  touchPage(address: number, pfn: number, what: string = "touches"): void {
    const vpn = this.#vpn(address, "touchPage");
    const { run, frames } = this.world;
    this.#touch(vpn, false);
    const { owner } = frames.write(pfn);
    if (owner !== this.ownerOf(vpn))
      run.violate(
        "use-after-free",
        `${run.who} ${what} frame ${pfn} for ${this.#pageName(vpn)}, which is ${owner ?? "free"} by now`,
      );
    if (run.tracing) run.note(`${what} frame ${pfn}`);
  }

  /** @internal */
  access(
    kind: "read" | "write",
    address: number,
    pfn: number,
    device: string,
    walks: boolean,
    value: number,
  ): number {
    const vpn = this.#vpn(address, kind);
    const { run, frames } = this.world;
    this.#touch(vpn, kind === "write");
    const frame = kind === "write" ? frames.write(pfn) : frames.read(pfn);
    const entry = this.#entries[vpn];
    const what = `${device} ${kind}s ${this.#pageName(vpn)} through frame ${pfn}`;
    if (run.tracing)
      run.note(`${kind === "write" ? `writes ${value} to` : "reads"} ${hex(address)} through frame ${pfn}`);
    if (frame.owner !== this.ownerOf(vpn)) {
      const whose = frame.owner === undefined ? "is free" : `belongs to ${frame.owner}`;
      run.violate("use-after-free", `${what}, which ${whose}`);
    } else if (walks) this.#judgeWalker(kind, vpn, pfn, what);
    else if (entry?.pfn !== pfn) {
      const now = entry ? `is in frame ${entry.pfn}` : "has no translation";
      run.violate(kind === "read" ? "stale-read" : "stale-write", `${what}; the page ${now}`);
    } else if (kind === "write" && !entry.write)
      run.violate("stale-write", `${what}; the page is read-only by now`);
    else if (frame.references === 0) this.#judgeOpen(kind, vpn, what); // a pin needs no notification
    if (kind === "write") {
      frame.value = value;
      frame.version = ++this.world.clock;
      if (frame.owner === this.ownerOf(vpn)) {
        this.#version[vpn] = frame.version;
        if (!frame.dirty) frame.unsaved = true;
      }
    }
    this.#usedByDevice[vpn] = true;
    return frame.value;
  }

  /** Who walks the page tables itself may use an old entry until it is told; but nothing may go back in time. */
  #judgeWalker(kind: "read" | "write", vpn: number, pfn: number, what: string): void {
    const entry = this.#entries[vpn];
    if (!entry || entry.pfn === pfn) return;
    const { frames, run } = this.world;
    if (kind === "write") run.violate("stale-write", `${what}; the page is in frame ${entry.pfn}`);
    else if (frames.read(pfn).version < this.#version[vpn]!)
      run.violate("stale-read", `${what}; what was written since is in frame ${entry.pfn}`);
  }

  #judgeOpen(kind: "read" | "write", vpn: number, what: string): void {
    const opened = this.#openRangeOver(vpn);
    if (!opened) return;
    const { event } = opened.range;
    const downgrade =
      event === MmuNotifierEvent.ProtectionPage ||
      event === MmuNotifierEvent.ProtectionVma ||
      event === MmuNotifierEvent.SoftDirty;
    if (kind === "read" && downgrade) return;
    this.world.run.violate(
      "use-while-open",
      `${what}, although ${opened.by} has started a ${eventName(event)} range over it`,
    );
  }

  #openRangeOver(vpn: number): { range: MmuNotifierRange; by: string } | undefined {
    this.touchNotifiers(false);
    return this.notifiers.opened.find(
      ({ range, returned }) =>
        returned && range.owner === undefined && range.start < (vpn + 1) * PAGE && range.end > vpn * PAGE,
    );
  }

  /** @internal A device's table gets an entry. */
  judgeInstall(address: number, pfn: number, write: boolean, device: string): void {
    const vpn = this.#vpn(address, "map");
    const { run } = this.world;
    this.#touch(vpn, false);
    const entry = this.#entries[vpn];
    const what = `${device} gets frame ${pfn} for ${this.#pageName(vpn)}`;
    const opened = this.#openRangeOver(vpn);
    if (opened)
      run.violate(
        "install-while-open",
        `${what}, although ${opened.by} has started a ${eventName(opened.range.event)} range over it`,
      );
    if (entry?.pfn !== pfn)
      run.violate("stale-install", `${what}; the page ${entry ? `is in frame ${entry.pfn}` : "is gone"}`);
    else if (write && !entry.write) run.violate("stale-install", `${what}, writable; the page is read-only`);
    const check = this.checks.get(run.actorIndex);
    if (!check || address < check.interval.start || address > check.interval.last) return;
    if (check.answer === "overtaken") run.violate("retry-ignored", what);
    else if (
      check.answer === "valid" &&
      check.step !== run.choices.length &&
      !this.world.locks.heldSince(check.step)
    )
      run.violate("check-apart-from-install", `${what} after readRetry(), and others ran in between`);
  }

  // ---- reports ----------------------------------------------------------------------------------------------------------

  #pageName(vpn: number): string {
    return `${hex(vpn * PAGE)}${this.id === 1 ? "" : ` of ${this.name}`}`;
  }

  /** Pages and sequence, for a trace. */
  describe(): string {
    const pages = this.#entries.map((entry, vpn) => {
      const state = this.#busy[vpn]
        ? "busy"
        : entry
          ? `f${entry.pfn}${entry.write ? "w" : "r"}${entry.dirty ? "d" : ""}`
          : this.#mapped[vpn]
            ? "-"
            : "unmapped";
      return `${vpn}:${state}`;
    });
    const open = this.notifiers.opened.length;
    const name = this.id === 1 ? "" : `${this.name} `;
    return `${name}${pages.join(" ")} seq ${this.notifiers.seq}${open > 0 ? ` open ${open}` : ""}`;
  }

  /** @internal At rest. */
  judge(): void {
    this.notifiers.judge();
    const { run, frames } = this.world;
    if (this.notifiers.opened.length === 0) {
      const broken = checkSubscriptions(this.#real(0).context);
      if (broken !== undefined) run.violate("core", broken);
    }
    const left = frames.referenced();
    if (this.#released && left.length > 0)
      run.violate("leak", `${this.name} has been released; referenced are still ${left.join(", ")}`);
  }
}
