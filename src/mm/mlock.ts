/** mlock and munlock. Linux: mm/mlock.c. */
import { MmError } from "../errors.ts";
import type { Op } from "../sched/index.ts";
import { drainBatches } from "./batches.ts";
import { VM_LOCKED, VM_LOCKONFAULT } from "./layout.ts";
import { populateMappingOp } from "./populate.ts";
import { firstPart, notMapped, setFlagsLocked, extentOf, writingPlainOp } from "./ranges.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { vmaFlags } from "./vma.ts";

/** Sets what is locked, up to the first hole. Errors: ENOMEM at a hole; what comes before it is done. */
function* setLockedOp(
  space: SpaceCore,
  operation: string,
  start: number,
  end: number,
  flags: number,
): Op<void> {
  yield* writingPlainOp(space, operation, () => {
    for (let at = start; at < end;) {
      const part = firstPart(space, at, end);
      if (!part || part.start > at) throw notMapped(operation, at, end);
      const old = vmaFlags(space, part.vma);
      const now = (old & ~(VM_LOCKED | VM_LOCKONFAULT)) | flags;
      if (((old ^ now) & VM_LOCKED) !== 0) drainBatches(space.mm);
      setFlagsLocked(space, operation, part.start, part.end, now);
      at = part.end;
    }
  });
}

/** The pages that `[address, address + length)` touches: here an address need not be aligned. */
function touched(
  space: SpaceCore,
  operation: string,
  address: number,
  length: number,
): ReturnType<typeof extentOf> {
  const within = Number.isInteger(address) && address >= 0 ? address % space.mm.pageSize : 0;
  return extentOf(space, operation, address - within, length + within, { wraps: "EINVAL" });
}

/** Locks pages in memory and brings them in, or with `onFault` as they are used. */
export function* mlockOp(space: SpaceCore, address: number, length: number, onFault: boolean): Op<void> {
  const { start, end } = touched(space, "mlock", address, length);
  if (start === end) return;
  yield* setLockedOp(space, "mlock", start, end, VM_LOCKED | (onFault ? VM_LOCKONFAULT : 0));
  const failure = yield* populateMappingOp(space, start, end);
  if (!failure) return;
  throw new MmError("ENOMEM", "mlock", "the range is locked, but part of it cannot be brought in", {
    range: { start, end },
    cause: failure,
  });
}

export function* munlockOp(space: SpaceCore, address: number, length: number): Op<void> {
  const { start, end } = touched(space, "munlock", address, length);
  if (start < end) yield* setLockedOp(space, "munlock", start, end, 0);
}
