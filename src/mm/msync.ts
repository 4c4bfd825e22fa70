/** msync. Linux: mm/msync.c. */
import { MmError } from "../errors.ts";
import type { Op } from "../sched/index.ts";
import { eachFilePartOp } from "./fileParts.ts";
import { type File, VM_LOCKED, VM_SHARED } from "./layout.ts";
import { usingOp } from "./lifetime.ts";
import { extentOf, type Part } from "./ranges.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { vmaFile, vmaFlags } from "./vma.ts";
import { syncFileOp } from "./writeback.ts";

export interface MsyncFlags {
  /** Nothing is waited for: dirty pages are written in time anyway. */
  readonly async?: boolean;
  /** Mappings always show the file as it is; but EBUSY where one is locked, as in Linux. */
  readonly invalidate?: boolean;
}

/** Writes what is dirty of the shared files behind the range. A hole is skipped, and ENOMEM at the end. */
export function* msyncOp(space: SpaceCore, address: number, length: number, flags: MsyncFlags): Op<void> {
  const { start, end } = extentOf(space, "msync", address, length, { wraps: "ENOMEM" });
  const choose = ({ vma, start: from, end: to }: Part): File => {
    const vmFlags = vmaFlags(space, vma);
    if (flags.invalidate && (vmFlags & VM_LOCKED) !== 0)
      throw new MmError("EBUSY", "msync", "a mapping is locked", { range: { start: from, end: to } });
    return (vmFlags & VM_SHARED) === 0 || flags.async ? (0 as File) : vmaFile(space, vma);
  };
  yield* usingOp(space, "msync", () =>
    eachFilePartOp(space, "msync", start, end, choose, (file, index, pages) =>
      syncFileOp(file, index, index + pages),
    ),
  );
}
