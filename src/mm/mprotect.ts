/** mprotect. Linux: mm/mprotect.c. */
import { MmError } from "../errors.ts";
import { MmuNotifierEvent } from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import { VM_ACCOUNT, VM_LOCKED, VM_NORESERVE, VM_PROT, VM_SHARED, VM_WRITE, type Vma } from "./layout.ts";
import { fileAt } from "./pageCache.ts";
import { populateMappingOp } from "./populate.ts";
import { PTE_READ, PTE_WRITE } from "./pte.ts";
import { hasTables, ownTables } from "./pageTables.ts";
import {
  applyFlags,
  close,
  extentOf,
  notMapped,
  openOp,
  type Prot,
  protFlags,
  reserveCuts,
  writingOp,
} from "./ranges.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { findVma, freeVma, vmaAnon, vmaEnd, vmaFile, vmaFlags } from "./vma.ts";
import { changeRangeOp } from "./zap.ts";

/** As in Linux, vmas before a hole or a forbidden one are changed before it fails. */
export function* mprotectOp(space: SpaceCore, address: number, length: number, prot: Prot): Op<void> {
  const { start, end } = extentOf(space, "mprotect", address, length, { beyond: "ENOMEM" });
  if (start === end) return;
  const flags = protFlags(prot, "mprotect");
  for (let at = start; at < end;) {
    // Without the lock where it populates, and at once: what comes next may be refused.
    const { from, to } = yield* writingOp(space, "mprotect", () => protectLockedOp(space, at, end, flags));
    if (from < to) yield* populateMappingOp(space, from, to);
    at = to;
  }
}

/**
 * Changes vmas from `at` on, to `end` or to the end of the first that is locked and becomes writable: `from` to `to` is
 * brought in then, so that nothing of it has to be copied later.
 */
function* protectLockedOp(
  space: SpaceCore,
  at: number,
  end: number,
  prot: number,
): Op<{ from: number; to: number }> {
  while (at < end) {
    const vma = findVma(space, at);
    if (vma === 0) throw notMapped("mprotect", at, end);
    const from = at;
    at = Math.min(end, vmaEnd(space, vma));
    const old = vmaFlags(space, vma);
    yield* protectVmaLockedOp(space, vma, from, at, prot);
    const gains = (old & (VM_WRITE | VM_SHARED | VM_LOCKED)) === VM_LOCKED && (prot & VM_WRITE) !== 0;
    if (gains) return { from, to: at };
  }
  return { from: end, to: end };
}

/** Accounting: what can be written is charged, and what cannot and has no pages of its own no longer is. */
function accounted(space: SpaceCore, vma: Vma, flags: number): number {
  if ((flags & VM_WRITE) !== 0)
    return (flags & (VM_SHARED | VM_NORESERVE)) === 0 ? flags | VM_ACCOUNT : flags;
  const unused = vmaFile(space, vma) === 0 && vmaAnon(space, vma) === 0;
  return unused ? flags & ~VM_ACCOUNT : flags;
}

function* protectVmaLockedOp(space: SpaceCore, vma: Vma, start: number, end: number, prot: number): Op<void> {
  const { mm } = space;
  const old = vmaFlags(space, vma);
  if ((old & VM_PROT) === prot) return;
  const file = vmaFile(space, vma);
  if (file !== 0 && (old & VM_SHARED) !== 0 && (prot & VM_WRITE) !== 0 && !fileAt(mm, file).writable) {
    throw new MmError("EACCES", "mprotect", "the file was opened read-only", { range: { start, end } });
  }
  const next = accounted(space, vma, (old & ~VM_PROT) | prot);
  const spares = reserveCuts(space, "mprotect", start, end);
  try {
    const [first, last] = [start / mm.pageSize, end / mm.pageSize];
    // Where there is not even a table nobody has a translation, and Linux tells nobody.
    if (!hasTables(space, first, last)) {
      applyFlags(space, start, end, next, spares);
      return;
    }
    ownTables(space, "mprotect", first, last);
    const range = yield* openOp(space, start, end, MmuNotifierEvent.ProtectionVma);
    try {
      const clear = ((prot & VM_WRITE) === 0 ? PTE_WRITE : 0) | (prot === 0 ? PTE_READ : 0);
      const set = prot === 0 ? 0 : PTE_READ;
      yield* changeRangeOp(space, first, last, clear, set, file !== 0);
      applyFlags(space, start, end, next, spares);
    } finally {
      close(space, range);
    }
  } finally {
    for (const spare of spares) freeVma(space, spare);
  }
}
