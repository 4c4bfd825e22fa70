/** msync. Linux: mm/msync.c. */
import { MmError } from "../errors.ts";
import type { Op } from "../sched/index.ts";
import { unuseFile, useFile } from "./files.ts";
import { VM_LOCKED, VM_SHARED } from "./layout.ts";
import { usingOp } from "./lifetime.ts";
import { fileAt } from "./pageCache.ts";
import { extentOf, firstPart, notMapped, readingPlainOp } from "./ranges.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { fileIndexOf, vmaFile, vmaFlags } from "./vma.ts";
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
  yield* usingOp(space, "msync", () => partsOp(space, start, end, flags));
}

function* partsOp(space: SpaceCore, start: number, end: number, flags: MsyncFlags): Op<void> {
  const { mm } = space;
  let hole = false;
  for (let at = start; at < end;) {
    // Only while we look: the file is written without the lock, and kept by a use of its own.
    const found = yield* readingPlainOp(space, "msync", () => {
      const part = firstPart(space, at, end);
      if (!part) return undefined;
      const { vma } = part;
      if (flags.invalidate && (vmaFlags(space, vma) & VM_LOCKED) !== 0)
        throw new MmError("EBUSY", "msync", "a mapping is locked", { range: { start: at, end: part.end } });
      const shared = (vmaFlags(space, vma) & VM_SHARED) !== 0 && !flags.async;
      const file = vmaFile(space, vma);
      if (shared && file !== 0) useFile(mm, file);
      const index = fileIndexOf(space, vma, part.start / mm.pageSize);
      return { part, file: shared ? file : 0, index };
    });
    if (!found) {
      hole = true;
      break;
    }
    const { part, file, index } = found;
    hole ||= part.start > at;
    at = part.end;
    if (file === 0) continue;
    const slot = file as Parameters<typeof unuseFile>[1];
    try {
      yield* syncFileOp(fileAt(mm, slot), index, index + (part.end - part.start) / mm.pageSize);
    } finally {
      unuseFile(mm, slot);
    }
  }
  if (hole) throw notMapped("msync", start, end);
}
