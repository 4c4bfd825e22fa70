/** Bringing pages in ahead of use: populate(), MAP_POPULATE, mlock. Linux: mm/gup.c, populate_vma_page_range(). */
import { isMmError, MmError } from "../errors.ts";
import type { Op } from "../sched/index.ts";
import { drainBatches } from "./batches.ts";
import { faultOp } from "./fault.ts";
import { VM_LOCKONFAULT, VM_PROT, VM_SHARED, VM_WRITE } from "./layout.ts";
import { usingOp } from "./lifetime.ts";
import { isValid, PTE_READ, PTE_WRITE } from "./pte.ts";
import { loadPte } from "./pageTables.ts";
import { extentOf, notMapped, readingPlainOp } from "./ranges.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { findVma, vmaEnd, vmaFlags } from "./vma.ts";

/** Faults every page in that is not there for this access. */
export function* populateOp(space: SpaceCore, address: number, length: number, access: "r" | "rw"): Op<void> {
  const { start, end } = extentOf(space, "populate", address, length, { beyond: "ENOMEM" });
  yield* usingOp(space, "populate", () => faultPagesOp(space, start, end, access === "rw"));
}

/** Faults in every page of `[start, end)` (bytes, page aligned) that is not there for this access. Preconditions: they can be mapped. */
export function* faultPagesOp(space: SpaceCore, start: number, end: number, write: boolean): Op<void> {
  const { mm } = space;
  const wanted = write ? PTE_WRITE : PTE_READ;
  for (let vpn = start / mm.pageSize; vpn < end / mm.pageSize; vpn++) {
    for (;;) {
      const pte = loadPte(space, vpn);
      if (isValid(pte) && (pte & wanted) !== 0) break;
      yield* faultOp(space, vpn, write);
    }
  }
}

/** Where a part of a range ends, and what its mapping allows. */
function* lookOp(
  space: SpaceCore,
  operation: string,
  at: number,
): Op<{ end: number; flags: number } | undefined> {
  return yield* readingPlainOp(space, operation, () => {
    const vma = findVma(space, at);
    return vma === 0 ? undefined : { end: vmaEnd(space, vma), flags: vmaFlags(space, vma) };
  });
}

/**
 * Brings a mapping in as far as that is possible: for writing where it is private and writable, so that no copy is to be
 * made later. Linux: mm_populate(). What could not be had faults later; returns the error that told of it.
 */
export function* populateMappingOp(space: SpaceCore, start: number, end: number): Op<MmError | undefined> {
  try {
    for (let at = start; at < end;) {
      const part = yield* lookOp(space, "populate", at);
      if (!part) return notMapped("populate", at, end);
      const to = Math.min(end, part.end);
      if ((part.flags & (VM_PROT | VM_LOCKONFAULT)) === 0) {
        return new MmError("EACCES", "populate", "the mapping allows no access", {
          range: { start: at, end: to },
        });
      }
      if ((part.flags & VM_LOCKONFAULT) === 0)
        yield* faultPagesOp(space, at, to, (part.flags & (VM_WRITE | VM_SHARED)) === VM_WRITE);
      at = to;
    }
  } catch (error) {
    if (!isMmError(error) || error.code === "ESRCH") throw error;
    return error;
  } finally {
    drainBatches(space.mm);
  }
  return undefined;
}

/** Linux: MADV_POPULATE_READ, MADV_POPULATE_WRITE. What came before an error stays. */
export function* populateAdviceOp(space: SpaceCore, start: number, end: number, write: boolean): Op<void> {
  for (let at = start; at < end;) {
    const part = yield* lookOp(space, "madvise", at);
    if (!part) throw notMapped("madvise", at, end);
    const to = Math.min(end, part.end);
    if ((part.flags & (write ? VM_WRITE : VM_PROT)) === 0) {
      throw new MmError("EINVAL", "madvise", "the mapping does not allow this access", {
        range: { start: at, end: to },
      });
    }
    try {
      yield* faultPagesOp(space, at, to, write);
    } catch (error) {
      if (!isMmError(error)) throw error;
      if (error.name !== "BusError" && error.name !== "SegvError") throw error;
      throw new MmError("EFAULT", "madvise", "a page of the range cannot be brought in", {
        range: { start: at, end: to },
        cause: error,
      });
    }
    at = to;
  }
}
