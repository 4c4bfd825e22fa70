/**
 * What the operations on mappings have in common: their arguments, the lock, ranges of the notifiers, and records that
 * are reserved before anything changes.
 *
 * Each operation: reserve records, take mmapLock, tell the notifiers, change page-table entries and wait for the
 * acknowledgements, change the vmas, end. Whatever can fail comes before the vmas change, so that a refused or unwound
 * operation leaves everything as it was.
 *
 * Lock order: mmapLock > folio lock > file lock > heap.
 */
import { MmError, type MmErrorCode } from "../errors.ts";
import {
  endOpenRange,
  makeRange,
  type MmuNotifierEvent,
  openRange,
  type OpenRange,
} from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import {
  beginWrite,
  endWrite,
  LockRank,
  lockReadOp,
  lockWriteOp,
  tryLockWrite,
  unlockRead,
  unlockWrite,
} from "../sync/index.ts";
import { checkLive } from "./fault.ts";
import {
  CT_EVENTS,
  SP_MMAP_LOCK,
  SP_VMA_SEQ,
  VM_EXEC,
  VM_PROT,
  VM_READ,
  VM_WRITE,
  type Vma,
  VMA_FLAGS,
} from "./layout.ts";
import { unuseSpace, useSpace } from "./lifetime.ts";
import { LAST_VPN, type SpaceCore } from "./spaceCore.ts";
import {
  carveVma,
  findVma,
  firstVma,
  freeVma,
  mergeVmas,
  nextVma,
  reserveVma,
  vmaEnd,
  vmaFlags,
  vmaStart,
} from "./vma.ts";

/** "r", "rw" …, or PROT_READ 1 | PROT_WRITE 2 | PROT_EXEC 4. */
export type Prot = "none" | "r" | "w" | "rw" | "rx" | "rwx" | number;

const PROTS: ReadonlyMap<string, number> = new Map([
  ["none", 0],
  ["r", VM_READ],
  ["w", VM_WRITE],
  ["rw", VM_READ | VM_WRITE],
  ["rx", VM_READ | VM_EXEC],
  ["rwx", VM_READ | VM_WRITE | VM_EXEC],
]);

export function protFlags(prot: Prot, operation: string): number {
  const flags = typeof prot === "number" ? prot : PROTS.get(prot);
  if (flags === undefined || !Number.isInteger(flags) || flags < 0 || (flags & ~VM_PROT) !== 0) {
    throw new MmError(
      "EINVAL",
      operation,
      `prot must be "none", "r", "w", "rw", "rx", "rwx" or a number from 0 to 7`,
    );
  }
  return flags;
}

/** Where the 64-bit addresses of Linux wrap around. */
const WRAP = 2 ** 64;

export interface Extent {
  readonly start: number;
  readonly end: number;
}

/**
 * The pages of `[address, address + length)`, length rounded up; empty for length 0. Each operation of Linux has an
 * answer of its own to a range that is too long: `beyond`, or `wraps` if only one that wraps around is refused at once.
 */
export function extentOf(
  space: SpaceCore,
  operation: string,
  address: number,
  length: number,
  limit: { readonly beyond: MmErrorCode } | { readonly wraps: MmErrorCode },
): Extent {
  const { pageSize } = space.mm;
  // The low bits of any integer: `&` takes them modulo 2^32.
  if (
    typeof address !== "number" ||
    !Number.isInteger(address) ||
    address < 0 ||
    (address & (pageSize - 1)) !== 0
  ) {
    throw new MmError(
      "EINVAL",
      operation,
      `address must be a multiple of the page size (${pageSize}), not ${address}`,
    );
  }
  if (typeof length !== "number" || !Number.isInteger(length) || length < 0) {
    throw new MmError("EINVAL", operation, `length must be a whole number of bytes, not ${length}`);
  }
  const end = address + Math.ceil(length / pageSize) * pageSize;
  const most = "beyond" in limit ? LAST_VPN * pageSize : WRAP - pageSize;
  if (end > most) {
    const code = "beyond" in limit ? limit.beyond : limit.wraps;
    throw new MmError(code, operation, "the range goes beyond the end of the address space", {
      range: { start: address, end },
    });
  }
  return { start: address, end };
}

export const emptyLength = (operation: string): MmError =>
  new MmError("EINVAL", operation, "length must be above 0");

export const notMapped = (
  operation: string,
  start: number,
  end: number,
  code: MmErrorCode = "ENOMEM",
): MmError => new MmError(code, operation, "part of the range is not mapped", { range: { start, end } });

/** A range of this space's, still to be opened. */
export const newRange = (space: SpaceCore, start: number, end: number, event: MmuNotifierEvent): OpenRange =>
  makeRange(space.notifiers.context.space, start, end, event, space.agent.current?.mode !== "try");

/**
 * Opens a range and counts the event. Returns undefined where that needed no wait, else the rest of it, which the caller
 * yields at once. `proceed`: it goes on whatever a callback throws. Errors: as openRange().
 */
export function open(space: SpaceCore, range: OpenRange, proceed = false): Op<void> | undefined {
  const rest = openRange(space.notifiers.context, range, proceed);
  if (rest) return countedOp(space, range, rest);
  space.mm.count(CT_EVENTS + range.event);
  return undefined;
}

function* countedOp(space: SpaceCore, range: OpenRange, rest: Op<void>): Op<void> {
  yield* rest;
  space.mm.count(CT_EVENTS + range.event);
}

/** As open(), with a new range. */
export function* openOp(
  space: SpaceCore,
  start: number,
  end: number,
  event: MmuNotifierEvent,
  proceed = false,
): Op<OpenRange> {
  const range = newRange(space, start, end, event);
  const rest = open(space, range, proceed);
  if (rest) yield* rest;
  return range;
}

export const close = (space: SpaceCore, range: OpenRange): void =>
  endOpenRange(space.notifiers.context, range);

/** A body that waits for nothing. */
// eslint-disable-next-line require-yield
function* plainOp<T>(body: () => T): Op<T> {
  return body();
}

/** As writingOp(), for what waits for nothing once it has the lock. */
export const writingPlainOp = <T>(space: SpaceCore, operation: string, body: () => T): Op<T> =>
  writingOp(space, operation, () => plainOp(body));

/** As readingOp(), for what waits for nothing once it has the lock. */
export const readingPlainOp = <T>(space: SpaceCore, operation: string, body: () => T): Op<T> =>
  readingOp(space, operation, () => plainOp(body));

/** Takes mmapLock for writing if it is free, else returns the wait for it; the caller yields it at once. Errors: ESRCH. */
export function beginWriting(space: SpaceCore, operation: string): Op<void> | undefined {
  const { agent } = space;
  const lock = space.slot + SP_MMAP_LOCK;
  useSpace(space, operation);
  try {
    if (!tryLockWrite(agent, lock, LockRank.mmapLock)) return waitWritingOp(space, operation);
    checkLiveLocked(space, operation);
    return undefined;
  } catch (error) {
    unuseSpace(space);
    throw error;
  }
}

function* waitWritingOp(space: SpaceCore, operation: string): Op<void> {
  try {
    yield* lockWriteOp(space.agent, space.slot + SP_MMAP_LOCK, LockRank.mmapLock, "mmapLock");
    checkLiveLocked(space, operation);
  } catch (error) {
    unuseSpace(space);
    throw error;
  }
}

/** Gives the lock back if the space has ended. */
function checkLiveLocked(space: SpaceCore, operation: string): void {
  try {
    checkLive(space, operation);
  } catch (error) {
    unlockWrite(space.agent, space.slot + SP_MMAP_LOCK, LockRank.mmapLock);
    throw error;
  }
}

/** Ends what beginWriting() began. */
export function endWriting(space: SpaceCore): void {
  unlockWrite(space.agent, space.slot + SP_MMAP_LOCK, LockRank.mmapLock);
  unuseSpace(space);
}

/** Runs `body` under mmapLock for writing. */
export function* writingOp<T>(space: SpaceCore, operation: string, body: () => Op<T>): Op<T> {
  const wait = beginWriting(space, operation);
  if (wait) yield* wait;
  try {
    return yield* body();
  } finally {
    endWriting(space);
  }
}

/** Runs `body` under mmapLock for reading. */
export function* readingOp<T>(space: SpaceCore, operation: string, body: () => Op<T>): Op<T> {
  const lock = space.slot + SP_MMAP_LOCK;
  useSpace(space, operation);
  try {
    yield* lockReadOp(space.agent, lock, LockRank.mmapLock, "mmapLock");
    try {
      checkLive(space, operation);
      return yield* body();
    } finally {
      unlockRead(space.agent, lock, LockRank.mmapLock);
    }
  } finally {
    unuseSpace(space);
  }
}

/** Reserves a record for each edge of `[start, end)` that cuts a vma: none is needed to unmap where the arena is full. */
export function reserveCuts(space: SpaceCore, operation: string, start: number, end: number): Vma[] {
  return reserve(space, operation, +isCut(space, start) + +isCut(space, end));
}

function reserve(space: SpaceCore, operation: string, count: number): Vma[] {
  const spares: Vma[] = [];
  try {
    while (spares.length < count) spares.push(reserveVma(space, operation));
  } catch (error) {
    for (const spare of spares) freeVma(space, spare);
    throw error;
  }
  return spares;
}

function isCut(space: SpaceCore, at: number): boolean {
  const vma = findVma(space, at);
  return vma !== 0 && vmaStart(space, vma) < at;
}

/** Splits the vma that has `at` inside it, with one of the reserved records. */
export function cutAt(space: SpaceCore, at: number, spares: Vma[]): void {
  const vma = findVma(space, at);
  if (vma !== 0 && vmaStart(space, vma) < at) carveVma(space, vma, at, vmaEnd(space, vma), spares);
}

/** One vma's part of a range. */
export interface Part {
  readonly vma: Vma;
  readonly start: number;
  readonly end: number;
}

/** The first part of `[start, end)` that is mapped. */
export function firstPart(space: SpaceCore, start: number, end: number): Part | undefined {
  const vma = start < end ? firstVma(space, start, end) : (0 as Vma);
  if (vma === 0) return undefined;
  return { vma, start: Math.max(start, vmaStart(space, vma)), end: Math.min(end, vmaEnd(space, vma)) };
}

/** True if every byte of `[start, end)` is mapped. */
export function isCovered(space: SpaceCore, start: number, end: number): boolean {
  let at = start;
  for (let vma = firstVma(space, start, end); vma !== 0 && at < end; vma = nextVma(space, vma, start, end)) {
    if (vmaStart(space, vma) > at) return false;
    at = vmaEnd(space, vma);
  }
  return at >= end;
}

/** Gives `[start, end)`, all of one vma, other flags; splits and merges. Preconditions: mmapLock held for writing. */
export function setFlagsLocked(
  space: SpaceCore,
  operation: string,
  start: number,
  end: number,
  flags: number,
): void {
  const vma = findVma(space, start);
  if (vmaFlags(space, vma) === flags) return;
  applyFlags(space, vma, start, end, flags, reserveCutsOf(space, operation, vma, start, end));
}

/** As reserveCuts(), for `[start, end)` inside one vma. */
export function reserveCutsOf(
  space: SpaceCore,
  operation: string,
  vma: Vma,
  start: number,
  end: number,
): Vma[] {
  return reserve(space, operation, +(vmaStart(space, vma) < start) + +(end < vmaEnd(space, vma)));
}

/** As setFlagsLocked(), with records that reserveCutsOf() gave. Cannot fail. */
export function applyFlags(
  space: SpaceCore,
  vma: Vma,
  start: number,
  end: number,
  flags: number,
  spares: Vma[],
): void {
  const { agent } = space;
  beginWrite(agent, space.slot + SP_VMA_SEQ);
  // What is cut from each other is not alike.
  const first = vmaStart(space, vma) < start ? start + 1 : start;
  const last = end < vmaEnd(space, vma) ? end - 1 : end;
  const part = carveVma(space, vma, start, end, spares);
  agent.words[part + VMA_FLAGS] = flags; // plain: read under mmapLock, or by the sequence count
  if (first === start || last === end) mergeVmas(space, first, last);
  endWrite(agent, space.slot + SP_VMA_SEQ);
}
