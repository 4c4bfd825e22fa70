/**
 * mmap, munmap, mprotect, madvise, populate, exit. Linux: mm/mmap.c, mm/vma.c, mm/mprotect.c, mm/madvise.c.
 *
 * Each operation: reserve records, take mmapLock, tell the notifiers, change page-table entries and wait for the
 * acknowledgements, change the vmas, end. Whatever can fail comes before the vmas change, so that a refused or unwound
 * operation leaves everything as it was.
 *
 * Lock order: mmapLock (write; read for madvise) > file lock > heap.
 */
import { isMmError, MmError } from "../errors.ts";
import { endOpenRange, makeRange, MmuNotifierEvent, openRange, type OpenRange } from "../notifier/index.ts";
import { type Op, start } from "../sched/index.ts";
import { LockRank, lockReadOp, lockWriteOp, unlockRead, unlockWrite } from "../sync/index.ts";
import { ADDRESS_END, addressOf } from "../units.ts";
import { checkLive, faultOp } from "./fault.ts";
import { createMemoryFile, unuseFile } from "./files.ts";
import {
  CT_EVENTS,
  type File,
  SP_MMAP_LOCK,
  SP_STATE,
  SPACE_EXITING,
  SPACE_EXITED,
  SPACE_LIVE,
  VM_EXEC,
  VM_PROT,
  VM_READ,
  VM_SHARED,
  VM_WRITE,
  VMA_FLAGS,
  type Vma,
} from "./layout.ts";
import { freeIfUnused, unuseSpace, useSpace, usingOp } from "./lifetime.ts";
import { type FileCore, fileAt } from "./pageCache.ts";
import { isValid, PTE_READ, PTE_WRITE } from "./pte.ts";
import { INDEX_END, radixFind } from "./radix.ts";
import { awaitAcksOp, markRange } from "./shootdown.ts";
import { LAST_VPN, type SpaceCore } from "./spaceCore.ts";
import {
  allVmas,
  changeVmas,
  findFree,
  findVma,
  firstVma,
  freeVma,
  insertVma,
  mergeVmas,
  nextVma,
  removeVma,
  reserveVma,
  splitVma,
  vmaEnd,
  vmaFile,
  vmaFlags,
  vmaStart,
} from "./vma.ts";
import { changeRangeOp, dropTaken, takeRangeOp } from "./zap.ts";

/** "r", "rw" …, or PROT_READ 1 | PROT_WRITE 2 | PROT_EXEC 4. */
export type Prot = "none" | "r" | "w" | "rw" | "rx" | "rwx" | number;

/** What this version's madvise knows. */
export type Advice = "dontneed";

export interface MapRequest {
  /** Bytes, rounded up to pages. */
  readonly length: number;
  /** A hint, or with `fixed` the address itself; page aligned. */
  readonly address?: number;
  /** True: whatever is mapped there is unmapped. "noreplace": then EEXIST. */
  readonly fixed?: boolean | "noreplace";
  readonly prot: Prot;
  readonly share: "private" | "shared";
  readonly file?: { readonly id: number };
  /** Bytes, page aligned. */
  readonly offset?: number;
  /** Fault everything in before returning. */
  readonly populate?: boolean;
}

const PROTS: Readonly<Record<string, number>> = {
  none: 0,
  r: VM_READ,
  w: VM_WRITE,
  rw: VM_READ | VM_WRITE,
  rx: VM_READ | VM_EXEC,
  rwx: VM_READ | VM_WRITE | VM_EXEC,
};

function protFlags(prot: Prot, operation: string): number {
  const flags = typeof prot === "number" ? prot : PROTS[prot];
  if (flags === undefined || !Number.isInteger(flags) || flags < 0 || (flags & ~VM_PROT) !== 0) {
    throw new MmError(
      "EINVAL",
      operation,
      `prot must be "none", "r", "w", "rw", "rx", "rwx" or a number from 0 to 7`,
    );
  }
  return flags;
}

/** The pages of `[address, address + length)`, length rounded up. Errors: EINVAL, ENOMEM beyond the address space. */
export function checkRange(
  space: SpaceCore,
  operation: string,
  address: number,
  length: number,
): { start: number; end: number } {
  const { pageSize, pageShift } = space.mm;
  if (typeof address !== "number" || !Number.isInteger(address) || address < 0 || address % pageSize !== 0) {
    throw new MmError(
      "EINVAL",
      operation,
      `address must be a multiple of the page size (${pageSize}), not ${address}`,
    );
  }
  if (typeof length !== "number" || !Number.isInteger(length) || length <= 0) {
    throw new MmError("EINVAL", operation, `length must be a whole number of bytes above 0, not ${length}`);
  }
  const end = address + Math.ceil(length / pageSize) * pageSize;
  if (end > addressOf(LAST_VPN, pageShift)) {
    throw new MmError("ENOMEM", operation, "the range goes beyond the end of the address space", {
      range: { start: address, end },
    });
  }
  return { start: address, end };
}

/** Opens a range of this space's and counts the event. */
function* openOp(
  space: SpaceCore,
  start: number,
  end: number,
  event: MmuNotifierEvent,
  proceed = false,
): Op<OpenRange> {
  const c = space.notifiers.context;
  const range = makeRange(c.space, start, end, event, space.agent.current?.mode !== "try");
  const rest = openRange(c, range, proceed);
  if (rest) yield* rest;
  space.mm.count(CT_EVENTS + event);
  return range;
}

const close = (space: SpaceCore, range: OpenRange): void => endOpenRange(space.notifiers.context, range);

/** Runs `body` under mmapLock for writing. */
function* writingOp<T>(space: SpaceCore, operation: string, body: () => Op<T>): Op<T> {
  const lock = space.slot + SP_MMAP_LOCK;
  useSpace(space, operation);
  try {
    yield* lockWriteOp(space.agent, lock, LockRank.mmapLock, "mmapLock");
    try {
      checkLive(space, operation);
      return yield* body();
    } finally {
      unlockWrite(space.agent, lock, LockRank.mmapLock);
    }
  } finally {
    unuseSpace(space);
  }
}

// ---- mmap --------------------------------------------------------------------------------------------------------------

/** Linux: mmap(). */
export function* mmapOp(space: SpaceCore, m: MapRequest, file: FileCore | undefined): Op<number> {
  const { mm } = space;
  const { pageSize } = mm;
  checkLive(space, "mmap");
  const prot = protFlags(m.prot, "mmap");
  if (m.share !== "private" && m.share !== "shared") {
    throw new MmError("EINVAL", "mmap", 'share must be "private" or "shared"');
  }
  const fixed = m.fixed === true || m.fixed === "noreplace";
  if (fixed && m.address === undefined) throw new MmError("EINVAL", "mmap", "fixed needs an address");
  const { start: hint, end: hintEnd } = checkRange(space, "mmap", m.address ?? 0, m.length);
  const length = hintEnd - hint;
  const offset = m.offset ?? 0;
  if (!Number.isSafeInteger(offset) || offset < 0 || offset % pageSize !== 0) {
    throw new MmError(
      "EINVAL",
      "mmap",
      `offset must be a multiple of the page size (${pageSize}), not ${offset}`,
    );
  }
  const pgoff = offset / pageSize;
  if (pgoff + length / pageSize > INDEX_END)
    throw new MmError("EOVERFLOW", "mmap", "the offset is too large");
  if (fixed && hint === 0) throw new MmError("EPERM", "mmap", "the first page of a space cannot be mapped");
  const shared = m.share === "shared";
  if (file && shared && (prot & VM_WRITE) !== 0 && !file.writable) {
    throw new MmError(
      "EACCES",
      "mmap",
      "the file was opened read-only; map it private, or open it with { writable: true }",
    );
  }
  const own = file ?? (shared ? createMemoryFile(mm, length) : undefined);
  const unused: File[] = file || !own ? [] : [own.slot];
  let address = -1;
  try {
    address = yield* writingOp(space, "mmap", function* () {
      let at = hint;
      if (m.fixed === "noreplace" && firstVma(space, at, at + length) !== 0) {
        throw new MmError("EEXIST", "mmap", "something is mapped there", {
          range: { start: at, end: at + length },
        });
      }
      if (!fixed && (at === 0 || firstVma(space, at, at + length) !== 0)) at = findFree(space, length);
      if (at < 0)
        throw new MmError("ENOMEM", "mmap", `no free stretch of ${length} bytes in the address space`);
      const vma = reserveVma(space, "mmap");
      try {
        if (fixed) unused.push(...(yield* unmapLockedOp(space, at, at + length)));
      } catch (error) {
        freeVma(space, vma);
        throw error;
      }
      changeVmas(space, () => {
        insertVma(
          space,
          vma,
          at,
          at + length,
          prot | (shared ? VM_SHARED : 0),
          (own?.slot ?? 0) as File,
          file ? pgoff : 0,
        );
        mergeVmas(space, at, at + length);
      });
      // As an int32 where it is one: arithmetic on it stays integer in the caller's loops.
      return at === (at | 0) ? at | 0 : at;
    });
  } finally {
    for (const slot of unused) unuseFile(mm, slot);
  }
  if (m.populate) {
    try {
      yield* populateOp(space, address, length, (prot & VM_WRITE) !== 0 && !shared ? "rw" : "r");
    } catch (error) {
      // As MAP_POPULATE: the mapping stands, what could not be brought in faults later.
      if (!isMmError(error)) throw error;
    }
  }
  return address;
}

// ---- munmap -------------------------------------------------------------------------------------------------------------

/** Linux: munmap(). Holes are fine. */
export function* munmapOp(space: SpaceCore, address: number, length: number): Op<void> {
  const { start, end } = checkRange(space, "munmap", address, length);
  const unused = yield* writingOp(space, "munmap", () => unmapLockedOp(space, start, end));
  for (const slot of unused) unuseFile(space.mm, slot);
}

/** Unmaps `[start, end)`; returns the files of the vmas, whose uses the caller gives back. One UNMAP range for all vmas and holes. */
function* unmapLockedOp(space: SpaceCore, start: number, end: number): Op<File[]> {
  const { pageSize } = space.mm;
  const first = firstVma(space, start, end);
  if (first === 0) return [];
  const spares = reserveCuts(space, "munmap", start, end);
  try {
    const range = yield* openOp(space, start, end, MmuNotifierEvent.Unmap);
    try {
      dropTaken(space, yield* takeRangeOp(space, start / pageSize, end / pageSize));
      // From here on nothing waits and nothing fails.
      const files: File[] = [];
      changeVmas(space, () => {
        cutAt(space, start, spares);
        cutAt(space, end, spares);
        for (let vma = firstVma(space, start, end); vma !== 0; vma = firstVma(space, start, end)) {
          const file = removeVma(space, vma);
          if (file !== 0) files.push(file);
        }
      });
      return files;
    } finally {
      close(space, range);
    }
  } finally {
    for (const spare of spares) freeVma(space, spare);
  }
}

/** Reserves a record for each edge of `[start, end)` that cuts a vma: none is needed to unmap where the arena is full. */
function reserveCuts(space: SpaceCore, operation: string, start: number, end: number): Vma[] {
  const spares: Vma[] = [];
  try {
    for (const at of [start, end]) {
      const vma = findVma(space, at);
      if (vma !== 0 && vmaStart(space, vma) < at) spares.push(reserveVma(space, operation));
    }
  } catch (error) {
    for (const spare of spares) freeVma(space, spare);
    throw error;
  }
  return spares;
}

/** Splits the vma that has `at` inside it, with one of the reserved records. */
function cutAt(space: SpaceCore, at: number, spares: Vma[]): void {
  const vma = findVma(space, at);
  if (vma !== 0 && vmaStart(space, vma) < at) splitVma(space, vma, at, spares.pop()!);
}

// ---- mprotect ------------------------------------------------------------------------------------------------------------

/**
 * Linux: mprotect(). As there, vmas before a hole or a forbidden one are changed before it fails.
 */
export function* mprotectOp(space: SpaceCore, address: number, length: number, prot: Prot): Op<void> {
  const flags = protFlags(prot, "mprotect");
  const { start, end } = checkRange(space, "mprotect", address, length);
  yield* writingOp(space, "mprotect", function* () {
    let at = start;
    while (at < end) {
      const vma = findVma(space, at);
      if (vma === 0) {
        throw new MmError("ENOMEM", "mprotect", "part of the range is not mapped", {
          range: { start: at, end },
        });
      }
      const to = Math.min(end, vmaEnd(space, vma));
      yield* protectVmaLockedOp(space, vma, at, to, flags);
      at = to;
    }
  });
}

function* protectVmaLockedOp(space: SpaceCore, vma: Vma, start: number, end: number, prot: number): Op<void> {
  const { mm } = space;
  const old = vmaFlags(space, vma);
  if ((old & VM_PROT) === prot) return;
  const file = vmaFile(space, vma);
  if (file !== 0 && (old & VM_SHARED) !== 0 && (prot & VM_WRITE) !== 0 && !fileAt(mm, file).writable) {
    throw new MmError("EACCES", "mprotect", "the file was opened read-only", { range: { start, end } });
  }
  const spares = reserveCuts(space, "mprotect", start, end);
  try {
    const range = yield* openOp(space, start, end, MmuNotifierEvent.ProtectionVma);
    try {
      const clear = ((prot & VM_WRITE) === 0 ? PTE_WRITE : 0) | (prot === 0 ? PTE_READ : 0);
      const set = prot === 0 ? 0 : PTE_READ;
      yield* changeRangeOp(space, start / mm.pageSize, end / mm.pageSize, clear, set, file !== 0);
      changeVmas(space, () => {
        cutAt(space, start, spares);
        cutAt(space, end, spares);
        Atomics.store(space.agent.words, findVma(space, start) + VMA_FLAGS, (old & ~VM_PROT) | prot);
        mergeVmas(space, start, end);
      });
    } finally {
      close(space, range);
    }
  } finally {
    for (const spare of spares) freeVma(space, spare);
  }
}

// ---- madvise, populate ------------------------------------------------------------------------------------------------------

/** Linux: madvise(MADV_DONTNEED): drops the pages; the mapping stays. One CLEAR range for each vma. */
export function* madviseOp(space: SpaceCore, address: number, length: number, advice: Advice): Op<void> {
  if (advice !== "dontneed") {
    throw new MmError(
      "ENOTSUP",
      "madvise",
      `this version knows the advice "dontneed" only, not ${String(advice)}`,
    );
  }
  const { start, end } = checkRange(space, "madvise", address, length);
  yield* usingOp(space, "madvise", () => dontneedOp(space, start, end));
}

function* dontneedOp(space: SpaceCore, start: number, end: number): Op<void> {
  const { agent, mm } = space;
  const lock = space.slot + SP_MMAP_LOCK;
  yield* lockReadOp(agent, lock, LockRank.mmapLock, "mmapLock");
  try {
    checkLive(space, "madvise");
    let covered = start;
    let hole = false;
    for (let vma = firstVma(space, start, end); vma !== 0; vma = nextVma(space, vma, start, end)) {
      const from = Math.max(start, vmaStart(space, vma));
      const to = Math.min(end, vmaEnd(space, vma));
      hole ||= from > covered;
      covered = to;
      const range = yield* openOp(space, from, to, MmuNotifierEvent.Clear);
      try {
        dropTaken(space, yield* takeRangeOp(space, from / mm.pageSize, to / mm.pageSize));
      } finally {
        close(space, range);
      }
    }
    // As in Linux: what is mapped has been done, and a hole is an error all the same.
    if (hole || covered < end) {
      throw new MmError("ENOMEM", "madvise", "part of the range is not mapped", { range: { start, end } });
    }
  } finally {
    unlockRead(agent, lock, LockRank.mmapLock);
  }
}

/** Faults every page in that is not there for this access. */
export function* populateOp(space: SpaceCore, address: number, length: number, access: "r" | "rw"): Op<void> {
  const { start, end } = checkRange(space, "populate", address, length);
  yield* usingOp(space, "populate", () => populatePagesOp(space, start, end, access));
}

function* populatePagesOp(space: SpaceCore, start: number, end: number, access: "r" | "rw"): Op<void> {
  const { mm, agent } = space;
  const wanted = access === "rw" ? PTE_WRITE : PTE_READ;
  for (let vpn = start / mm.pageSize; vpn < end / mm.pageSize; vpn++) {
    for (;;) {
      const entry = radixFind(agent.words, space.pgd, vpn);
      const pte = entry === 0 ? 0 : Atomics.load(agent.words, entry);
      if (isValid(pte) && (pte & wanted) !== 0) break;
      yield* faultOp(space, vpn, access === "rw");
    }
  }
}

// ---- exit ----------------------------------------------------------------------------------------------------------------------

/**
 * Linux: exit_mmap(). Notifiers get release first; then everything is unmapped, of which only interval notifiers still
 * hear. Once: later calls return at once. It cannot be taken back: where this driver may not wait, the rest runs by itself.
 */
export function* exitOp(space: SpaceCore): Op<void> {
  const { agent, mm, slot } = space;
  agent.checkUsable("exit");
  mm.protect(slot);
  const mine =
    space.live &&
    Atomics.compareExchange(agent.words, slot + SP_STATE, SPACE_LIVE, SPACE_EXITING) === SPACE_LIVE;
  mm.unprotect();
  if (!mine) return;
  try {
    if (agent.current?.mode !== "try") {
      yield* finishExitOp(space);
      return;
    }
  } catch (error) {
    if (!isMmError(error, "EDEADLK")) throw error;
  }
  start(agent, finishExitOp(space), (outcome) => {
    if ("error" in outcome)
      agent.report(new MmError("ECALLBACK", "exit", "a space could not be ended", { cause: outcome.error }));
  });
}

/** Preconditions: the space is exiting, on behalf of this agent. Can be begun again. */
function* finishExitOp(space: SpaceCore): Op<void> {
  const { agent, mm } = space;
  const w = agent.words;
  yield* space.notifiers.releaseOp();
  const lock = space.slot + SP_MMAP_LOCK;
  yield* lockWriteOp(agent, lock, LockRank.mmapLock, "mmapLock");
  const files: File[] = [];
  try {
    const vmas = allVmas(space);
    if (vmas.length > 0) {
      const range = yield* openOp(space, 0, ADDRESS_END, MmuNotifierEvent.Unmap, true);
      try {
        dropTaken(space, yield* takeRangeOp(space, 0, LAST_VPN));
        changeVmas(space, () => {
          for (const vma of vmas) {
            const file = removeVma(space, vma);
            if (file !== 0) files.push(file);
          }
        });
      } finally {
        close(space, range);
      }
    }
  } finally {
    unlockWrite(agent, lock, LockRank.mmapLock);
  }
  for (const slot of files) unuseFile(mm, slot);
  // No valid entry is left, so no agent makes a TLB entry any more; let each forget its table.
  mm.awaitUnprotected(space.slot);
  yield* awaitAcksOp(space, markRange(space, 0, INDEX_END - 1));
  Atomics.store(w, space.slot + SP_STATE, SPACE_EXITED);
  freeIfUnused(space);
}
