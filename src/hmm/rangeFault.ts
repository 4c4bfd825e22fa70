/**
 * Reading the page tables for a secondary MMU. Linux: mm/hmm.c, hmm_range_fault().
 *
 * What comes back is a snapshot that an invalidation may have overtaken: the caller installs it only after
 * interval.readRetry(seq) says no, under the lock that its invalidate() takes.
 */
import { MmError } from "../errors.ts";
import {
  type AddressSpace,
  faultOp,
  isValid,
  type PhysicalMemory,
  pfnOfPte,
  PTE_READ,
  PTE_WRITE,
  loadPte,
  usingOp,
} from "../mm/index.ts";
import type { IntervalNotifier } from "../notifier/index.ts";
import { type Op, runAsync, runBlocking, runTry } from "../sched/index.ts";

/** The entry holds a frame that may be read. */
export const HMM_VALID = 0x1;
/** It may be written too. */
export const HMM_WRITE = 0x2;
const HMM_PFN_SHIFT = 7;

/** The frame number of an entry with HMM_VALID. */
export const hmmPfn = (entry: number): number => entry >>> HMM_PFN_SHIFT;

export interface RangeFault {
  readonly memory: PhysicalMemory;
  readonly space: AddressSpace;
  /** From interval.readBegin(). */
  readonly seq: number;
  /** Bytes, page aligned, inside the interval. */
  readonly start: number;
  readonly length: number;
  /** One entry a page: filled with frame number << 7 | HMM_*. */
  readonly entries: Int32Array;
  /** What the device will do; "r" by default. Pages are faulted in for it. */
  readonly access?: "r" | "rw";
}

/** One variant for each driver, as everywhere. */
export interface RangeFaultVariants {
  (interval: IntervalNotifier, range: RangeFault): Promise<void>;
  sync(interval: IntervalNotifier, range: RangeFault): void;
  try(interval: IntervalNotifier, range: RangeFault): void;
}

/** Linux: hmm_range_fault(). */
export function* rangeFaultOp(interval: IntervalNotifier, range: RangeFault): Op<void> {
  const { space, start, length, entries, memory } = range;
  const { pageSize } = memory;
  if (start % pageSize !== 0 || length <= 0 || length % pageSize !== 0) {
    throw new MmError(
      "EINVAL",
      "rangeFault",
      `start and length must be multiples of the page size (${pageSize})`,
    );
  }
  if (start < interval.start || start + length - 1 > interval.last) {
    throw new MmError("EINVAL", "rangeFault", "the range is not inside the interval", {
      range: { start, end: start + length },
    });
  }
  const pages = length / pageSize;
  if (entries.length < pages)
    throw new MmError("EINVAL", "rangeFault", `entries has room for ${entries.length} pages of ${pages}`);
  yield* usingOp(space, "rangeFault", () => fillOp(interval, range, pages));
}

function* fillOp(interval: IntervalNotifier, range: RangeFault, pages: number): Op<void> {
  const { space, seq, start, length, entries, memory } = range;
  const write = range.access === "rw";
  const first = start / memory.pageSize;
  const needed = write ? PTE_READ | PTE_WRITE : PTE_READ;
  for (let k = 0; k < pages;) {
    if (interval.checkRetry(seq)) throw busy(start, length);
    const pte = loadPte(space, first + k);
    if (!isValid(pte) || (pte & needed) !== needed) {
      yield* faultOp(space, first + k, write);
      continue;
    }
    entries[k] = (pfnOfPte(pte) << HMM_PFN_SHIFT) | HMM_VALID | ((pte & PTE_WRITE) !== 0 ? HMM_WRITE : 0);
    k++;
  }
}

const busy = (start: number, length: number): MmError =>
  new MmError("EBUSY", "rangeFault", "the range was invalidated meanwhile; begin again with readBegin()", {
    range: { start, end: start + length },
  });

/**
 * Fills `entries` with the frames of a range, faulting in what is missing. May wait (`rangeFault.sync` blocks,
 * `rangeFault.try` never waits). Errors: EBUSY if the interval was invalidated since readBegin(), SegvError and BusError
 * as an access, EINVAL, EAGAIN. Linux: hmm_range_fault().
 *
 * With access "rw" each page that has to be copied first (a zero page, a private page of a file) is an invalidation of
 * its own, hence one EBUSY a page; `space.populate(start, length, "rw")` before readBegin() spares them.
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
