/**
 * mprotect. Linux: mm/mprotect.c.
 *
 * Each step is a plain function that goes as far as it can, and returns the rest as an operation where somebody has to
 * be waited for; so that a call which waits for nobody costs one generator.
 */
import { MmError } from "../errors.ts";
import { MmuNotifierEvent, type OpenRange } from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import { LockRank, tryLockWrite, unlockWrite } from "../sync/index.ts";
import {
  SP_MMAP_LOCK,
  VM_ACCOUNT,
  VM_LOCKED,
  VM_NORESERVE,
  VM_PROT,
  VM_SHARED,
  VM_WRITE,
  type Vma,
} from "./layout.ts";
import { joinSpace } from "./lifetime.ts";
import { fileAt } from "./pageCache.ts";
import { populateMappingOp } from "./populate.ts";
import { PTE_READ, PTE_WRITE } from "./pte.ts";
import { hasTables, ownTables } from "./pageTables.ts";
import {
  applyFlags,
  beginWriting,
  close,
  endWriting,
  extentOf,
  newRange,
  notMapped,
  open,
  type Prot,
  protFlags,
  reserveCutsOf,
} from "./ranges.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { findVma, freeVma, vmaAnon, vmaEnd, vmaFile, vmaFlags } from "./vma.ts";
import { changeRange } from "./zap.ts";

/** As in Linux, vmas before a hole or a forbidden one are changed before it fails. */
export function* mprotectOp(space: SpaceCore, address: number, length: number, prot: Prot): Op<void> {
  const { start, end } = extentOf(space, "mprotect", address, length, { beyond: "ENOMEM" });
  if (start === end) return;
  const flags = protFlags(prot, "mprotect");
  for (let at = start; at < end;) {
    const wait = beginWriting(space, "mprotect");
    if (wait) yield* wait;
    let from = at;
    let gains = false;
    try {
      while (at < end && !gains) {
        const vma = findVma(space, at);
        if (vma === 0) throw notMapped("mprotect", at, end);
        from = at;
        at = Math.min(end, vmaEnd(space, vma));
        gains =
          (vmaFlags(space, vma) & (VM_WRITE | VM_SHARED | VM_LOCKED)) === VM_LOCKED &&
          (flags & VM_WRITE) !== 0;
        const rest = protectVmaLocked(space, vma, from, at, flags);
        if (rest) yield* rest;
      }
    } finally {
      endWriting(space);
    }
    // What is locked and becomes writable is brought in, so that nothing of it has to be copied later: without the lock,
    // and at once, because what comes next may be refused.
    if (gains) yield* populateMappingOp(space, from, at);
  }
}

/**
 * As mprotectOp(), as far as that needs no wait, for a part of one vma in a space that this turn has used, whose record
 * stays without being counted. Returns undefined if it is done, else what is left, which may have mmapLock and an open
 * range: the caller runs it at once with runBlocking().
 * Preconditions: the agent may block, and is not in a callback.
 */
export function mprotectNow(
  space: SpaceCore,
  address: number,
  length: number,
  prot: Prot,
): Op<void> | undefined {
  const { agent } = space;
  const lock = space.slot + SP_MMAP_LOCK;
  const { start, end } = extentOf(space, "mprotect", address, length, { beyond: "ENOMEM" });
  if (start === end) return undefined;
  const flags = protFlags(prot, "mprotect");
  agent.checkUsable("mprotect");
  if (agent.wanted) agent.safepoint();
  // Debug mode knows which task has which lock.
  if (agent.debug || !space.active || !tryLockWrite(agent, lock, LockRank.mmapLock))
    return mprotectOp(space, address, length, prot);
  let handedOver = false;
  try {
    const vma = space.stillLive ? findVma(space, start) : (0 as Vma);
    if (vma === 0 || end > vmaEnd(space, vma) || (vmaFlags(space, vma) & VM_LOCKED) !== 0)
      return mprotectOp(space, address, length, prot);
    const rest = protectVmaLocked(space, vma, start, end, flags);
    if (!rest) return undefined;
    handedOver = true;
    joinSpace(space);
    return takeOverProtectOp(space, rest);
  } finally {
    if (!handedOver) unlockWrite(agent, lock, LockRank.mmapLock);
  }
}

/** Goes on with what mprotectNow() has begun: its mmapLock, its use of the space. */
function* takeOverProtectOp(space: SpaceCore, rest: Op<void>): Op<void> {
  try {
    yield* rest;
  } finally {
    endWriting(space);
  }
}

/** Accounting: what can be written is charged, and what cannot and has no pages of its own no longer is. */
function accounted(space: SpaceCore, vma: Vma, flags: number): number {
  if ((flags & VM_WRITE) !== 0)
    return (flags & (VM_SHARED | VM_NORESERVE)) === 0 ? flags | VM_ACCOUNT : flags;
  const unused = vmaFile(space, vma) === 0 && vmaAnon(space, vma) === 0;
  return unused ? flags & ~VM_ACCOUNT : flags;
}

/** What is done to one vma's part of the range. */
interface Protection {
  readonly vma: Vma;
  readonly range: OpenRange;
  readonly clear: number;
  readonly set: number;
  /** Flags of the vma afterwards. */
  readonly flags: number;
  readonly contended: boolean;
  readonly spares: Vma[];
}

/** Changes `[start, end)`, all of one vma. Returns undefined where nobody has to be waited for, else the rest of it. */
function protectVmaLocked(
  space: SpaceCore,
  vma: Vma,
  start: number,
  end: number,
  prot: number,
): Op<void> | undefined {
  const { mm } = space;
  const old = vmaFlags(space, vma);
  if ((old & VM_PROT) === prot) return undefined;
  const file = vmaFile(space, vma);
  if (file !== 0 && (old & VM_SHARED) !== 0 && (prot & VM_WRITE) !== 0 && !fileAt(mm, file).writable) {
    throw new MmError("EACCES", "mprotect", "the file was opened read-only", { range: { start, end } });
  }
  const flags = accounted(space, vma, (old & ~VM_PROT) | prot);
  const spares = reserveCutsOf(space, "mprotect", vma, start, end);
  let waits = false;
  try {
    const [first, last] = [start / mm.pageSize, end / mm.pageSize];
    // Where there is not even a table nobody has a translation, and Linux tells nobody.
    if (!hasTables(space, first, last)) {
      applyFlags(space, vma, start, end, flags, spares);
      return undefined;
    }
    ownTables(space, "mprotect", first, last);
    const range = newRange(space, start, end, MmuNotifierEvent.ProtectionVma);
    const clear = ((prot & VM_WRITE) === 0 ? PTE_WRITE : 0) | (prot === 0 ? PTE_READ : 0);
    const set = prot === 0 ? 0 : PTE_READ;
    const protection: Protection = { vma, range, clear, set, flags, contended: file !== 0, spares };
    const opening = open(space, range);
    const rest = opening ? openAndProtectOp(space, protection, opening) : protectOpen(space, protection);
    waits = rest !== undefined;
    return rest;
  } finally {
    if (!waits) freeSpares(space, spares);
  }
}

function freeSpares(space: SpaceCore, spares: readonly Vma[]): void {
  for (const spare of spares) freeVma(space, spare);
}

function* openAndProtectOp(space: SpaceCore, protection: Protection, opening: Op<void>): Op<void> {
  let rest: Op<void> | undefined;
  try {
    yield* opening;
    rest = protectOpen(space, protection);
  } catch (error) {
    freeSpares(space, protection.spares);
    throw error;
  }
  if (rest) yield* rest;
  else freeSpares(space, protection.spares);
}

/** Changes entries and vma, and closes the range; or returns the rest of that, which also frees the spares. */
function protectOpen(space: SpaceCore, protection: Protection): Op<void> | undefined {
  const { vma, range, clear, set, flags, contended, spares } = protection;
  const { pageSize } = space.mm;
  let waits = false;
  try {
    const rest = changeRange(space, range.start / pageSize, range.end / pageSize, clear, set, contended);
    if (rest) {
      waits = true;
      return settleProtectOp(space, protection, rest);
    }
    applyFlags(space, vma, range.start, range.end, flags, spares);
    return undefined;
  } finally {
    if (!waits) close(space, range);
  }
}

function* settleProtectOp(space: SpaceCore, protection: Protection, rest: Op<void>): Op<void> {
  const { vma, range, flags, spares } = protection;
  try {
    yield* rest;
    applyFlags(space, vma, range.start, range.end, flags, spares);
  } finally {
    close(space, range);
    freeSpares(space, spares);
  }
}
