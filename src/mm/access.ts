/**
 * Loads and stores through a space. A hit in the agent's TLB is a few plain loads; everything else is a miss: it
 * begins the turn, walks the page table, or faults.
 *
 * An address that is an int32 takes the fast path; one above 2 GiB goes through the miss path and the same TLB.
 * Between finding a TLB entry and using it there is no safepoint, so the entry is good for exactly that access.
 */
import { isMmError, MmError, SegvError } from "../errors.ts";
import { ZERO_PFN } from "../memory/index.ts";
import type { Notifiers } from "../notifier/index.ts";
import { type Op, runBlocking } from "../sched/index.ts";
import { FAULT_DONE, faultNow, faultOp, tryFault } from "./fault.ts";
import type { Space } from "./layout.ts";
import type { Mm } from "./mm.ts";
import { makePte, PTE_ACCESSED, PTE_PFN, PTE_READ, PTE_VALID } from "./pte.ts";
import { entryIn, radixPointer, radixRun, TABLE_SHARED } from "./radix.ts";
import { FIRST_VPN, LAST_VPN, SpaceCore, TLB_FLAGS } from "./spaceCore.ts";
import type { Pins, Views } from "./views.ts";

/** Bytes of frames that lie together; also the memory they are in. Valid until the turn ends or memory.poll(). */
export interface Span extends Uint8Array {
  memory: WebAssembly.Memory;
}

/** A span whose frames are in a log, as a run of it. */
interface TakenSpan {
  readonly span: Span;
  readonly pfn: number;
  readonly pages: number;
  readonly run: number;
}

/** Pages that one span covers at most. */
const SPAN_PAGES = 256;

/** What an access lacked that ended with EAGAIN: run() brings it in. */
interface Missing {
  readonly space: SpaceAccess;
  readonly vpn: number;
  readonly write: boolean;
}
const missing = new WeakMap<object, Missing>();
export const missingOf = (error: object): Missing | undefined => missing.get(error);

/** Holds one value that straddles two pages. */
const scratch: DataView<ArrayBuffer> = new DataView(new ArrayBuffer(8));
const scratchBytes: Uint8Array = new Uint8Array(scratch.buffer);

export class SpaceAccess extends SpaceCore {
  readonly #shift: number;
  readonly #pageMask: number;
  readonly #u8: Uint8Array;
  readonly #i8: Int8Array;
  readonly #u16: Uint16Array;
  readonly #i16: Int16Array;
  readonly #u32: Uint32Array;
  readonly #i32: Int32Array;
  readonly #f32: Float32Array;
  readonly #f64: Float64Array;
  /** Results of #place(). */
  #at: number = Number.NaN; // a double from the start: a change of representation would deoptimise every accessor
  #low: Uint8Array = scratchBytes;
  #high: Uint8Array = scratchBytes;

  constructor(mm: Mm, slot: Space, makeNotifiers: (space: SpaceCore) => Notifiers) {
    super(mm, slot, makeNotifiers);
    this.#shift = mm.pageShift;
    this.#pageMask = mm.pageSize - 1;
    this.#u8 = mm.near.u8;
    this.#i8 = mm.near.i8;
    this.#u16 = mm.near.u16;
    this.#i16 = mm.near.i16;
    this.#u32 = mm.near.u32;
    this.#i32 = mm.agent.words;
    this.#f32 = mm.near.f32;
    this.#f64 = mm.agent.doubles;
  }

  // ---- translation ----------------------------------------------------------------------------------------------------

  /** Begins the turn if need be, and lets hits happen. */
  #begin(): void {
    const { agent, mm } = this;
    agent.checkUsable("access");
    agent.checkNotInCallback("access");
    if (!this.stillLive) throw new MmError("ESRCH", "access", "the space is exiting or has exited");
    agent.enter();
    if (agent.wanted) agent.safepoint();
    if (!this.active) {
      this.activate();
      mm.activeSpaces.push(this);
    }
  }

  /** Frame of a page for this access, in the TLB already or by a walk; -1 if it takes a fault. No safepoint. */
  peek(vpn: number, write: boolean): number {
    const hit = this.lookup(vpn, write);
    if (hit >= 0) return hit;
    return this.refill(vpn, write) ? this.lookup(vpn, write) : -1;
  }

  /** As peek(), with a fault that needs no wait. A safepoint. */
  tryLocate(vpn: number, write: boolean): number {
    this.#begin();
    for (;;) {
      const pfn = this.peek(vpn, write);
      if (pfn >= 0) return pfn;
      if (!this.agent.fastPaths || tryFault(this, vpn, write) !== FAULT_DONE) return -1;
    }
  }

  /** Frame of a page, faulting in place; blocks where the agent may, else EAGAIN where it would have to. A safepoint. */
  locate(vpn: number, write: boolean, address: number): number {
    this.#begin();
    for (;;) {
      const pfn = this.peek(vpn, write);
      if (pfn >= 0) return pfn;
      try {
        const rest = faultNow(this, vpn, write, address);
        if (!rest) continue;
        runBlocking(this.agent, rest);
      } catch (error) {
        if (isMmError(error, "EAGAIN")) missing.set(error, { space: this, vpn, write });
        throw error;
      }
      this.#begin();
    }
  }

  #checkAddress(address: number): number {
    const vpn = Math.floor(address / this.mm.pageSize);
    // Pages outside have the tags of nothing: they must not be looked for in the TLB.
    if (!Number.isInteger(address) || !(vpn >= FIRST_VPN && vpn < LAST_VPN)) {
      throw new SegvError("access", address, "SEGV_MAPERR");
    }
    return vpn;
  }

  /**
   * Where a value of `size` bytes lies, after a miss: a view, and `#at` in it. A value that straddles two pages is
   * gathered in the scratch view; a store puts it back with #spread(). Both pages are checked before either is touched.
   */
  #place(address: number, size: number, write: boolean): DataView {
    const { frames, pageSize } = this.mm;
    const vpn = this.#checkAddress(address);
    const within = address - vpn * pageSize;
    let low = this.locate(vpn, write, address);
    if (within + size <= pageSize) {
      this.#at = frames.offsetOf(low) + within;
      return frames.segmentViews[frames.segmentOf(low)]!;
    }
    let high: number;
    for (;;) {
      // With a reference: where frames are few, bringing one page in must not take the other away, and so for ever.
      if (low !== ZERO_PFN) frames.get(low);
      try {
        high = this.locate(vpn + 1, write, (vpn + 1) * pageSize);
      } finally {
        frames.put(low);
      }
      // The second may have passed a safepoint: is the first still good?
      const again = this.peek(vpn, write);
      if (again === low) break;
      low = this.locate(vpn, write, address);
    }
    const first = pageSize - within;
    this.#low = frames.bytesOf(low).subarray(within);
    this.#high = frames.bytesOf(high).subarray(0, size - first);
    scratchBytes.set(this.#low);
    scratchBytes.set(this.#high, first);
    this.#at = 0;
    return scratch;
  }

  /** Stores what was written to the scratch view. No safepoint since #place(). */
  #spread(view: DataView): void {
    if (view !== scratch) return;
    this.#low.set(scratchBytes.subarray(0, this.#low.length));
    this.#high.set(scratchBytes.subarray(this.#low.length, this.#low.length + this.#high.length));
  }

  // ---- loads and stores: little-endian, any alignment -----------------------------------------------------------------

  /*
   * Each pair is spelled out: the hit path must be small enough to be inlined into the caller's loop. A hit needs an
   * int32 address, a matching tag (tags of near frames are the page numbers themselves), and natural alignment, so that
   * the value lies in one page. Flags below the alignment of the base vanish in the shift.
   */

  getUint8(address: number): number {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    if (i === address && this.tlb[k] === vpn) {
      return this.#u8[((this.tlb[k + 1]! & ~TLB_FLAGS) + (i & this.#pageMask)) >>> 0]!;
    }
    return this.#place(address, 1, false).getUint8(this.#at);
  }

  setUint8(address: number, value: number): void {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    const base = this.tlb[k + 1]!;
    if (i === address && this.tlb[k] === vpn && (base & 1) === 1) {
      this.#u8[((base & ~TLB_FLAGS) + (i & this.#pageMask)) >>> 0] = value;
      return;
    }
    const view = this.#place(address, 1, true);
    view.setUint8(this.#at, value);
    this.#spread(view);
  }

  getInt8(address: number): number {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    if (i === address && this.tlb[k] === vpn) {
      return this.#i8[((this.tlb[k + 1]! & ~TLB_FLAGS) + (i & this.#pageMask)) >>> 0]!;
    }
    return this.#place(address, 1, false).getInt8(this.#at);
  }

  setInt8(address: number, value: number): void {
    this.setUint8(address, value);
  }

  getUint16(address: number): number {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    if (i === address && this.tlb[k] === vpn && (i & 1) === 0) {
      return this.#u16[(this.tlb[k + 1]! + (i & this.#pageMask)) >>> 1]!;
    }
    return this.#place(address, 2, false).getUint16(this.#at, true);
  }

  setUint16(address: number, value: number): void {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    const base = this.tlb[k + 1]!;
    if (i === address && this.tlb[k] === vpn && (base & 1) === 1 && (i & 1) === 0) {
      this.#u16[(base + (i & this.#pageMask)) >>> 1] = value;
      return;
    }
    const view = this.#place(address, 2, true);
    view.setUint16(this.#at, value, true);
    this.#spread(view);
  }

  getInt16(address: number): number {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    if (i === address && this.tlb[k] === vpn && (i & 1) === 0) {
      return this.#i16[(this.tlb[k + 1]! + (i & this.#pageMask)) >>> 1]!;
    }
    return this.#place(address, 2, false).getInt16(this.#at, true);
  }

  setInt16(address: number, value: number): void {
    this.setUint16(address, value);
  }

  getUint32(address: number): number {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    if (i === address && this.tlb[k] === vpn && (i & 3) === 0) {
      return this.#u32[(this.tlb[k + 1]! + (i & this.#pageMask)) >>> 2]!;
    }
    return this.#place(address, 4, false).getUint32(this.#at, true);
  }

  setUint32(address: number, value: number): void {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    const base = this.tlb[k + 1]!;
    if (i === address && this.tlb[k] === vpn && (base & 1) === 1 && (i & 3) === 0) {
      this.#u32[(base + (i & this.#pageMask)) >>> 2] = value;
      return;
    }
    const view = this.#place(address, 4, true);
    view.setUint32(this.#at, value, true);
    this.#spread(view);
  }

  getInt32(address: number): number {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    if (i === address && this.tlb[k] === vpn && (i & 3) === 0) {
      return this.#i32[(this.tlb[k + 1]! + (i & this.#pageMask)) >>> 2]!;
    }
    return this.#place(address, 4, false).getInt32(this.#at, true);
  }

  setInt32(address: number, value: number): void {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    const base = this.tlb[k + 1]!;
    if (i === address && this.tlb[k] === vpn && (base & 1) === 1 && (i & 3) === 0) {
      this.#i32[(base + (i & this.#pageMask)) >>> 2] = value;
      return;
    }
    const view = this.#place(address, 4, true);
    view.setInt32(this.#at, value, true);
    this.#spread(view);
  }

  getFloat32(address: number): number {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    if (i === address && this.tlb[k] === vpn && (i & 3) === 0) {
      return this.#f32[(this.tlb[k + 1]! + (i & this.#pageMask)) >>> 2]!;
    }
    return this.#place(address, 4, false).getFloat32(this.#at, true);
  }

  setFloat32(address: number, value: number): void {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    const base = this.tlb[k + 1]!;
    if (i === address && this.tlb[k] === vpn && (base & 1) === 1 && (i & 3) === 0) {
      this.#f32[(base + (i & this.#pageMask)) >>> 2] = value;
      return;
    }
    const view = this.#place(address, 4, true);
    view.setFloat32(this.#at, value, true);
    this.#spread(view);
  }

  getFloat64(address: number): number {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    if (i === address && this.tlb[k] === vpn && (i & 7) === 0) {
      return this.#f64[(this.tlb[k + 1]! + (i & this.#pageMask)) >>> 3]!;
    }
    return this.#place(address, 8, false).getFloat64(this.#at, true);
  }

  setFloat64(address: number, value: number): void {
    const i = address | 0;
    const vpn = i >> this.#shift;
    const k = (vpn & this.tlbMask) << 1;
    const base = this.tlb[k + 1]!;
    if (i === address && this.tlb[k] === vpn && (base & 1) === 1 && (i & 7) === 0) {
      this.#f64[(base + (i & this.#pageMask)) >>> 3] = value;
      return;
    }
    const view = this.#place(address, 8, true);
    view.setFloat64(this.#at, value, true);
    this.#spread(view);
  }

  getBigInt64(address: number): bigint {
    return this.#place(address, 8, false).getBigInt64(this.#at, true);
  }

  setBigInt64(address: number, value: bigint): void {
    const view = this.#place(address, 8, true);
    view.setBigInt64(this.#at, value, true);
    this.#spread(view);
  }

  getBigUint64(address: number): bigint {
    return this.#place(address, 8, false).getBigUint64(this.#at, true);
  }

  setBigUint64(address: number, value: bigint): void {
    const view = this.#place(address, 8, true);
    view.setBigUint64(this.#at, value, true);
    this.#spread(view);
  }

  /** The word that holds an aligned int32, for Atomics: in which view, at which index. A safepoint. */
  atomicWord(address: number, write: boolean): { words: Int32Array; index: number } {
    const vpn = this.#checkAddress(address);
    if (address % 4 !== 0) throw new MmError("EINVAL", "atomics", "the address must be a multiple of 4");
    return this.#wordOf(this.locate(vpn, write, address), address);
  }

  /** As atomicWord(), for loading, where that takes no fault; else undefined. No safepoint. */
  peekWord(address: number): { words: Int32Array; index: number } | undefined {
    const pfn = this.active ? this.peek(Math.floor(address / this.mm.pageSize), false) : -1;
    return pfn < 0 ? undefined : this.#wordOf(pfn, address);
  }

  #wordOf(pfn: number, address: number): { words: Int32Array; index: number } {
    const { frames, pageSize } = this.mm;
    const index = (frames.offsetOf(pfn) + (address % pageSize)) >>> 2;
    const segment = frames.segmentOf(pfn);
    return { words: segment === 0 ? this.#i32 : new Int32Array(frames.memories[segment]!.buffer), index };
  }

  // ---- bulk -----------------------------------------------------------------------------------------------------------------

  /** Copies between a buffer and the space; bytes before a fault are copied. */
  *copyOp(operation: string, address: number, bytes: Uint8Array, write: boolean): Op<void> {
    const { frames, pageSize } = this.mm;
    if (!(bytes instanceof Uint8Array)) throw new MmError("EINVAL", operation, "needs a Uint8Array");
    for (let done = 0; done < bytes.length;) {
      const at = address + done;
      const vpn = this.#checkAddress(at);
      const pfn = this.tryLocate(vpn, write);
      if (pfn < 0) {
        yield* faultOp(this, vpn, write, at);
        continue;
      }
      const within = at - vpn * pageSize;
      const wanted = Math.ceil((within + bytes.length - done) / pageSize);
      const limit = Math.min(wanted, SPAN_PAGES);
      const more = write ? this.#together(vpn, pfn, limit) - 1 : this.#getMapped(vpn + 1, pfn + 1, limit - 1);
      const n = Math.min(bytes.length - done, (1 + more) * pageSize - within);
      const frame = frames.bytesOf(pfn, 1 + more).subarray(within, within + n);
      if (write) frame.set(bytes.subarray(done, done + n));
      else {
        bytes.set(frame, done);
        frames.putRun(pfn + 1, more);
      }
      done += n;
    }
  }

  /** How many pages from `vpn` on lie together in memory and can be written at once. No safepoint. */
  #together(vpn: number, pfn: number, limit: number): number {
    const { frames } = this.mm;
    let pages = 1;
    while (pages < limit && frames.adjacent(pfn + pages - 1, this.peek(vpn + pages, true))) pages++;
    return pages;
  }

  /**
   * Takes references to the frames from `pfn` on, as far as they are mapped from `vpn` on and may be read. They need no
   * translation: a view that only reads shows what was there when it was taken.
   */
  #getMapped(vpn: number, pfn: number, limit: number): number {
    const { frames } = this.mm;
    const count = Math.min(limit, radixRun(vpn), frames.untilSegmentEnd(pfn - 1) - 1);
    const w = this.agent.words;
    const at = count > 0 ? radixPointer(w, this.pgd, vpn) : 0;
    const pointer = at === 0 ? 0 : Atomics.load(w, at);
    if (pointer === 0 || pfn === ZERO_PFN + 1) return 0; // frames beside the zero page are nobody's
    const rights = PTE_VALID | PTE_READ;
    const got = frames.getMapped(pfn, entryIn(pointer, vpn), count, {
      mask: PTE_PFN | rights,
      want: makePte(pfn, rights),
      step: makePte(1, 0),
      soft: (pointer & TABLE_SHARED) === 0 ? PTE_ACCESSED : 0,
    });
    // A shared table that has been replaced says what was, as a refill from it would.
    if (Atomics.load(w, at) === pointer) return got;
    frames.putRun(pfn, got);
    return 0;
  }

  /** The next span of `[address, end)`, its frames in the log of views. A safepoint. */
  takeSpan(address: number, end: number, write: boolean): TakenSpan {
    const vpn = this.#checkAddress(address);
    return this.#takeFrom(this.locate(vpn, write, address), address, end, write, this.mm.views);
  }

  /** As takeSpan(), with the frames in the given log, bringing the first page in as an operation does. */
  *takeSpanOp(address: number, end: number, write: boolean, log: Views | Pins): Op<TakenSpan> {
    const vpn = this.#checkAddress(address);
    for (;;) {
      const pfn = this.tryLocate(vpn, write);
      if (pfn >= 0) return this.#takeFrom(pfn, address, end, write, log);
      yield* faultOp(this, vpn, write, address);
    }
  }

  /** A span from a page on that is in frame `pfn`. Preconditions: its translation is this agent's; no safepoint since. */
  #takeFrom(pfn: number, address: number, end: number, write: boolean, log: Views | Pins): TakenSpan {
    const { frames, pageSize } = this.mm;
    const vpn = Math.floor(address / pageSize);
    const within = address - vpn * pageSize;
    const wanted = Math.ceil((within + end - address) / pageSize);
    const limit = Math.min(wanted, SPAN_PAGES);
    let pages = write ? this.#together(vpn, pfn, limit) : 1;
    const run = log.add(pfn, pages, write);
    if (!write) {
      const more = this.#getMapped(vpn + 1, pfn + 1, limit - 1);
      log.extend(run, more);
      pages += more;
    }
    const length = Math.min(end - address, pages * pageSize - within);
    const span = frames.bytesOf(pfn, pages).subarray(within, within + length) as Span;
    span.memory = frames.memories[frames.segmentOf(pfn)]!;
    return { span, pfn, pages, run };
  }
}
