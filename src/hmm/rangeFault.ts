/**
 * Reading the page tables for a secondary MMU. Linux: mm/hmm.c, hmm_range_fault().
 *
 * What comes back is a snapshot that an invalidation may have overtaken: the caller installs it only after
 * interval.readRetry(seq) says no, under the lock that its invalidate() takes.
 *
 *   state of the page                 no fault requested        fault requested
 *   no mapping, or not readable       HMM_ERROR                 EFAULT
 *   nothing there                     0                         a fault
 *   there                             frame, VALID (WRITE)      the same; a fault if it is to be written and is not writable
 *   on the caller's own device        its page, VALID (WRITE)   the same, whatever is requested
 *   on another device                 0                         a fault: it is brought back
 *   exclusive to a device             0                         a fault: it is taken back
 *   being moved or changed            0                         waits
 *   a guard, or lost                  0                         EFAULT
 *
 * Where one page needs a fault, what follows it in the mapping, up to the next multiple of 512 pages, is faulted the same
 * way, whether it was requested or not; but nothing is brought back from the caller's own device for that.
 *
 * Lock order: mmapLock (read) while it looks, none while it faults.
 */
import { isMmError, MmError, SegvError } from "../errors.ts";
import {
  type AddressSpace,
  deviceOf,
  type DeviceCore,
  faultOp,
  findVma,
  isValid,
  kindOfPte,
  loadPte,
  type PhysicalMemory,
  pfnOfPte,
  PTE_DEVICE_PRIVATE,
  PTE_GUARD,
  PTE_MIGRATION,
  PTE_POISON,
  PTE_READ,
  PTE_WRITE,
  readingPlainOp,
  VM_READ,
  VM_WRITE,
  vmaEnd,
  vmaFlags,
} from "../mm/index.ts";
import type { IntervalNotifier, OwnerId } from "../notifier/index.ts";
import { type Op, runAsync, runBlocking, runTry } from "../sched/index.ts";

/** The entry holds a page that may be read. */
export const HMM_VALID = 0x1;
/** It may be written too. */
export const HMM_WRITE = 0x2;
/** Nothing is there, and nothing can be. */
export const HMM_ERROR = 0x4;
/** In an entry that comes in, and in `defaultFlags`: the page must be there. Linux: HMM_PFN_REQ_FAULT. */
export const HMM_REQ_FAULT: number = HMM_VALID;
/** With HMM_REQ_FAULT: it must be writable; without, nothing. Linux: HMM_PFN_REQ_WRITE. */
export const HMM_REQ_WRITE: number = HMM_WRITE;
/** The driver's own: kept from the entry that comes in. Linux: HMM_PFN_DMA_MAPPED, HMM_PFN_P2PDMA, HMM_PFN_P2PDMA_BUS. */
export const HMM_DMA_MAPPED = 0x8;
export const HMM_P2PDMA = 0x10;
export const HMM_P2PDMA_BUS = 0x20;
const HMM_STICKY: number = HMM_DMA_MAPPED | HMM_P2PDMA | HMM_P2PDMA_BUS;
const HMM_PFN_SHIFT = 7;

/** The number of the page of an entry with HMM_VALID: of a frame, or of a page of a device. */
export const hmmPfn = (entry: number): number => entry >>> HMM_PFN_SHIFT;

export interface RangeFault {
  readonly memory: PhysicalMemory;
  readonly space: AddressSpace;
  /** From interval.readBegin(). */
  readonly seq: number;
  /** Bytes, page aligned, inside the interval. */
  readonly start: number;
  readonly length: number;
  /** One entry a page: filled with page number << 7 | HMM_*. With `flagsMask`, requests come in them. */
  readonly entries: Int32Array;
  /** What the device will do with all pages: "r" is HMM_REQ_FAULT as `defaultFlags`, "rw" both requests. "r" if all three are left out. */
  readonly access?: "r" | "rw";
  /** HMM_REQ_*, for every page. 0: a snapshot, nothing is faulted in. */
  readonly defaultFlags?: number;
  /** HMM_REQ_*: what of an entry that comes in is a request for its page. Default 0. */
  readonly flagsMask?: number;
  /** Pages on devices of this owner are given out as they are. Linux: dev_private_owner. */
  readonly owner?: OwnerId;
}

/** One variant for each driver, as everywhere. */
export interface RangeFaultVariants {
  (interval: IntervalNotifier, range: RangeFault): Promise<void>;
  sync(interval: IntervalNotifier, range: RangeFault): void;
  try(interval: IntervalNotifier, range: RangeFault): void;
}

/** Pages of one page table in Linux, which faults come in. */
const CHUNK_PAGES = 512;

/** A range under way. */
interface Walk {
  readonly interval: IntervalNotifier;
  readonly range: RangeFault;
  readonly first: number;
  readonly end: number;
  readonly defaults: number;
  readonly mask: number;
  /** Devices whose pages were met. */
  readonly devices: DeviceCore[];
}

/** What has to be faulted in before a walk goes on from its first page. */
interface Lack {
  readonly first: number;
  readonly end: number;
  readonly write: boolean;
}

/** Linux: hmm_range_fault(). */
export function* rangeFaultOp(interval: IntervalNotifier, range: RangeFault): Op<void> {
  const { space, start, length, entries, memory, access } = range;
  const { pageSize } = memory;
  const invalid = (sentence: string): MmError =>
    new MmError("EINVAL", "rangeFault", sentence, { range: { start, end: start + length } });
  if (!(start % pageSize === 0 && length > 0 && length % pageSize === 0)) {
    throw new MmError(
      "EINVAL",
      "rangeFault",
      `start and length must be multiples of the page size (${pageSize})`,
    );
  }
  if (start < interval.start || start + length - 1 > interval.last)
    throw invalid("the range is not inside the interval");
  const pages = length / pageSize;
  if (entries.length < pages) throw invalid(`entries has room for ${entries.length} pages of ${pages}`);
  const given = range.defaultFlags !== undefined || range.flagsMask !== undefined;
  if (given && access !== undefined) throw invalid("access says the same as defaultFlags; give one of them");
  const all = HMM_REQ_FAULT | HMM_REQ_WRITE;
  const defaults = given ? (range.defaultFlags ?? 0) : access === "rw" ? all : HMM_REQ_FAULT;
  const mask = range.flagsMask ?? 0;
  if (((defaults | mask) & ~all) !== 0)
    throw invalid("defaultFlags and flagsMask are made of HMM_REQ_FAULT and HMM_REQ_WRITE");
  const first = start / pageSize;
  const walk: Walk = { interval, range, first, end: first + pages, defaults, mask, devices: [] };
  for (let at = first; at < walk.end;) {
    if (interval.checkRetry(range.seq)) throw busy(range);
    const from = at;
    let lack: Lack | undefined;
    yield* readingPlainOp(space, "rangeFault", () => {
      lack = look(walk, from);
    });
    if (!lack) return;
    at = lack.first;
    yield* faultInOp(walk, lack);
  }
}

const busy = ({ start, length }: RangeFault): MmError =>
  new MmError("EBUSY", "rangeFault", "the range was invalidated meanwhile; begin again with readBegin()", {
    range: { start, end: start + length },
  });

const refused = (
  code: "EFAULT" | "EPERM",
  range: RangeFault,
  vpn: number,
  why: string,
  cause?: unknown,
): MmError =>
  new MmError(code, "rangeFault", why, {
    range: { start: vpn * range.memory.pageSize, end: (vpn + 1) * range.memory.pageSize },
    cause,
  });

/** Fills entries from page `from` on, up to one that has to be faulted in first. Preconditions: mmapLock. */
function look(walk: Walk, from: number): Lack | undefined {
  const { range, first, end, defaults, mask } = walk;
  const { space, entries, memory } = range;
  const { pageSize } = memory;
  for (let at = from; at < end;) {
    const vma = findVma(space, at * pageSize);
    const flags = vma === 0 ? 0 : vmaFlags(space, vma);
    const last = vma === 0 ? at + 1 : Math.min(end, vmaEnd(space, vma) / pageSize);
    for (; at < last; at++) {
      const came = entries[at - first]!;
      const request = (came & mask) | defaults;
      const faults = (request & HMM_REQ_FAULT) !== 0;
      const writes = faults && (request & HMM_REQ_WRITE) !== 0;
      if ((flags & VM_READ) === 0) {
        if (faults && vma === 0) throw new SegvError("rangeFault", at * pageSize, "SEGV_MAPERR");
        if (faults) throw refused("EFAULT", range, at, "the mapping cannot be read");
        entries[at - first] = (came & HMM_STICKY) | HMM_ERROR;
        continue;
      }
      const entry = describe(walk, at);
      const lacks = (entry & HMM_VALID) === 0 || (writes && (entry & HMM_WRITE) === 0);
      if (faults && lacks && !isOwn(walk, at)) {
        if (writes && (flags & VM_WRITE) === 0)
          throw refused("EPERM", range, at, "the mapping cannot be written");
        const chunk = (Math.floor(at / CHUNK_PAGES) + 1) * CHUNK_PAGES;
        return { first: at, end: Math.min(chunk, last), write: writes };
      }
      entries[at - first] = (came & HMM_STICKY) | entry;
    }
  }
  return undefined;
}

/** What a page is to the caller now: 0, or its number with HMM_VALID and HMM_WRITE. */
function describe(walk: Walk, vpn: number): number {
  const pte = loadPte(walk.range.space, vpn);
  const readable = isValid(pte) ? (pte & PTE_READ) !== 0 : isOwn(walk, vpn);
  if (!readable) return 0;
  return (pfnOfPte(pte) << HMM_PFN_SHIFT) | HMM_VALID | ((pte & PTE_WRITE) !== 0 ? HMM_WRITE : 0);
}

/** True for a page on a device of the caller's. Preconditions: mmapLock, which keeps the page. */
function isOwn({ range, devices }: Walk, vpn: number): boolean {
  if (range.owner === undefined) return false;
  const pte = loadPte(range.space, vpn);
  if (kindOfPte(pte) !== PTE_DEVICE_PRIVATE) return false;
  const pfn = pfnOfPte(pte);
  let device = devices.find((known) => known.has(pfn));
  if (!device) {
    device = deviceOf(range.memory.mm, pfn);
    devices.push(device);
  }
  return device.owner === range.owner;
}

/** Faults in what a walk lacks, one page after the other. Raises invalidations where pages are copied or moved. */
function* faultInOp(walk: Walk, { first, end, write }: Lack): Op<void> {
  const { range } = walk;
  const { space } = range;
  const needed = write ? PTE_READ | PTE_WRITE : PTE_READ;
  for (let vpn = first; vpn < end; vpn++) {
    const pte = loadPte(space, vpn);
    if (isValid(pte) && (pte & needed) === needed) continue;
    if (
      vpn > first &&
      kindOfPte(pte) === PTE_DEVICE_PRIVATE &&
      walk.devices.some((d) => d.has(pfnOfPte(pte)) && d.owner === range.owner)
    )
      continue;
    if (pte === PTE_GUARD || pte === PTE_POISON) {
      if (vpn > first) return; // not requested, or found by the walk that comes next
      throw refused("EFAULT", range, vpn, pte === PTE_GUARD ? "the page is a guard" : "the page is lost");
    }
    try {
      yield* faultOp(space, vpn, write);
    } catch (error) {
      if (vpn > first && !isMmError(error, "EAGAIN")) return;
      if (isMmError(error, "EIO")) throw refused("EFAULT", range, vpn, "the page cannot be had", error);
      throw error;
    }
    // What was on its way is looked at again: the invalidation that it came with has made the caller's number stale.
    if (kindOfPte(pte) === PTE_MIGRATION) return;
  }
}

/**
 * Fills `entries` with the pages of a range, faulting in what is requested and missing. May wait (`rangeFault.sync`
 * blocks, `rangeFault.try` never waits). Errors: EBUSY if the interval was invalidated since readBegin(); EFAULT where a
 * requested page cannot be there (with the BusError as its cause where it could not be read; a SegvError where nothing is
 * mapped); EPERM where it is to be written and its mapping is read-only; EINVAL, EAGAIN, ENOMEM, ESRCH. Entries before
 * the one that failed are filled. Linux: hmm_range_fault().
 *
 * With writes requested each page that has to be copied first (a zero page, a private page of a file) is an invalidation
 * of its own, hence an EBUSY for the range; `space.populate(start, length, "rw")` before readBegin() spares it.
 */
export const rangeFault: RangeFaultVariants = Object.assign(
  (interval: IntervalNotifier, range: RangeFault): Promise<void> =>
    runAsync(range.memory.agent, rangeFaultOp(interval, range)),
  {
    sync: (interval: IntervalNotifier, range: RangeFault): void =>
      runBlocking(range.memory.agent, rangeFaultOp(interval, range)),
    try: (interval: IntervalNotifier, range: RangeFault): void =>
      runTry(range.memory.agent, rangeFaultOp(interval, range)),
  },
);
