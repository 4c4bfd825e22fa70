/**
 * mremap: shrinking, growing and moving mappings with their pages. Linux: mm/mremap.c.
 *
 * A move unmaps the target, takes every entry of the old range, waits until all agents have acknowledged, makes the new
 * vma, and puts the entries there.
 *
 *   shrink                     UNMAP of the tail
 *   grow in place              -
 *   move                       UNMAP of the target, if something is there; of the tail, if it shrinks; of the source, whose
 *                              entries move; of the source, whose vma goes (not with dontUnmap)
 *   length 0                   UNMAP of the target: the shared pages are mapped a second time, by faults
 *
 * Lock order: mmapLock (write) > folio lock > file lock > heap.
 */
import { MmError } from "../errors.ts";
import { MmuNotifierEvent } from "../notifier/index.ts";
import { type Op, wakeQueue } from "../sched/index.ts";
import { unuseFile } from "./files.ts";
import { type File, SP_FAULTQ, VM_LOCKED, VM_LOCKONFAULT, VM_SHARED, type Vma, VMA_FLAGS } from "./layout.ts";
import type { Mm } from "./mm.ts";
import { unmapLockedOp } from "./mmap.ts";
import { populateMappingOp } from "./populate.ts";
import { mapsFilePage } from "./pageCache.ts";
import { PTE_GUARD, PTE_POISON, PTE_SOFT_DIRTY, PTE_WRITE } from "./pte.ts";
import { INDEX_END, radixFind, radixRun, radixStretches } from "./radix.ts";
import { ensureEntry, noTables, ownTables } from "./pageTables.ts";
import { close, extentOf, firstPart, openOp, type Part, writingOp } from "./ranges.ts";
import { LAST_VPN, type SpaceCore } from "./spaceCore.ts";
import {
  changeVmas,
  fileIndexOf,
  findFree,
  findVma,
  firstVma,
  forgetAnon,
  freeVma,
  growVma,
  insertVma,
  kindOf,
  mergeVmas,
  reserveVma,
  vmaEnd,
  vmaFile,
  vmaFlags,
  vmaStart,
} from "./vma.ts";
import { type Changed, takeRangeOp } from "./zap.ts";

export interface MoveOptions {
  /** The mapping may be moved. */
  readonly mayMove?: boolean;
  /** Where to, page aligned; what is mapped there is unmapped. Needs `mayMove`. Linux: MREMAP_FIXED. */
  readonly to?: number;
  /** The old mapping stays, empty. Needs `mayMove` and equal lengths. Linux: MREMAP_DONTUNMAP. */
  readonly dontUnmap?: boolean;
}

const invalid = (sentence: string): MmError => new MmError("EINVAL", "mremap", sentence);

/** Errors are those of Linux, in its order. */
export function* mremapOp(
  space: SpaceCore,
  address: number,
  oldLength: number,
  newLength: number,
  { mayMove = false, to, dontUnmap = false }: MoveOptions,
): Op<number> {
  const { mm } = space;
  if ((to !== undefined || dontUnmap) && !mayMove) throw invalid("to and dontUnmap need mayMove");
  const old = extentOf(space, "mremap", address, oldLength, { wraps: "EINVAL" });
  const wanted = extentOf(space, "mremap", to ?? 0, newLength, { beyond: "EINVAL" });
  const [oldBytes, bytes] = [old.end - old.start, wanted.end - wanted.start];
  if (bytes === 0) throw invalid("the new length must be above 0");
  if (dontUnmap && oldBytes !== bytes) throw invalid("dontUnmap needs equal lengths");
  if (to !== undefined) {
    if (to < old.end && to + bytes > old.start) throw invalid("the old and the new range overlap");
    if (to === 0) throw new MmError("EPERM", "mremap", "the first page of a space cannot be mapped");
  }
  const unused: File[] = [];
  const toPopulate: [number, number][] = [];
  try {
    return yield* writingOp(space, "mremap", () => {
      const request = { start: old.start, oldBytes, bytes, to, mayMove, dontUnmap, unused, toPopulate };
      return to === undefined && !dontUnmap ? resizeOp(space, request) : relocateOp(space, request);
    });
  } finally {
    for (const slot of unused) unuseFile(mm, slot);
    for (const [from, end] of toPopulate) yield* populateMappingOp(space, from, end);
  }
}

interface Request {
  readonly start: number;
  readonly oldBytes: number;
  readonly bytes: number;
  readonly to: number | undefined;
  readonly mayMove: boolean;
  readonly dontUnmap: boolean;
  /** Files whose vmas go. */
  readonly unused: File[];
  /** New parts of locked mappings. */
  readonly toPopulate: [number, number][];
}

function vmaAt(space: SpaceCore, address: number): Vma {
  const vma = findVma(space, address);
  if (vma === 0)
    throw new MmError("EFAULT", "mremap", "nothing is mapped there", {
      range: { start: address, end: address + 1 },
    });
  return vma;
}

/** What Linux asks of a vma that is to grow or to be mapped elsewhere. */
function checkVma(space: SpaceCore, vma: Vma, { start, oldBytes, bytes }: Request): void {
  const { pageSize } = space.mm;
  if (oldBytes === 0 && (vmaFlags(space, vma) & VM_SHARED) === 0)
    throw invalid("only a shared mapping can be mapped a second time: the old length must be above 0");
  if (start + oldBytes > vmaEnd(space, vma)) {
    throw new MmError("EFAULT", "mremap", "the old range reaches beyond one mapping", {
      range: { start, end: start + oldBytes },
    });
  }
  if (
    bytes > oldBytes &&
    vmaFile(space, vma) !== 0 &&
    fileIndexOf(space, vma, start / pageSize) + bytes / pageSize > INDEX_END
  )
    throw invalid("the file cannot be mapped so far");
}

/** Without a target: shrinks or grows in place, or moves to a place of its own choice. */
function* resizeOp(space: SpaceCore, request: Request): Op<number> {
  const { start, oldBytes, bytes, mayMove, unused, toPopulate } = request;
  const vma = vmaAt(space, start);
  if (oldBytes === 0 && (vmaFlags(space, vma) & VM_SHARED) === 0)
    throw invalid("only a shared mapping can be mapped a second time: the old length must be above 0");
  if (oldBytes >= bytes) {
    if (oldBytes > bytes) unused.push(...(yield* unmapLockedOp(space, start + bytes, start + oldBytes)));
    return start;
  }
  checkVma(space, vma, request);
  const end = vmaEnd(space, vma);
  const free = firstVma(space, end, start + bytes) === 0 && extendable(space, start + bytes);
  if (oldBytes > 0 && end === start + oldBytes && free) {
    if ((vmaFlags(space, vma) & (VM_LOCKED | VM_LOCKONFAULT)) === VM_LOCKED)
      toPopulate.push([end, start + bytes]);
    changeVmas(space, () => {
      growVma(space, vma, start + bytes);
      mergeVmas(space, end, start + bytes);
    });
    return start;
  }
  const to = mayMove ? findFree(space, bytes) : -1;
  if (to < 0) throw new MmError("ENOMEM", "mremap", "there is no room to grow; pass { mayMove: true }");
  return yield* moveOp(space, { ...request, to }, partOf(space, start, oldBytes));
}

const extendable = (space: SpaceCore, end: number): boolean => end <= LAST_VPN * space.mm.pageSize;

const partOf = (space: SpaceCore, start: number, bytes: number): Part => ({
  vma: vmaAt(space, start),
  start,
  end: start + bytes,
});

/** To a target, or with dontUnmap. */
function* relocateOp(space: SpaceCore, request: Request): Op<number> {
  const { start, oldBytes, bytes } = request;
  const vma = vmaAt(space, start);
  const to = request.to ?? findFree(space, bytes);
  if (to < 0) throw new MmError("ENOMEM", "mremap", "there is no free stretch of this length");
  if (request.to !== undefined && oldBytes === bytes) return yield* moveAllOp(space, { ...request, to });
  const kept = Math.min(oldBytes, bytes);
  checkVma(space, vma, { ...request, oldBytes: kept });
  if (request.to !== undefined) request.unused.push(...(yield* unmapLockedOp(space, to, to + bytes)));
  if (oldBytes > bytes)
    request.unused.push(...(yield* unmapLockedOp(space, start + bytes, start + oldBytes)));
  return yield* moveOp(space, { ...request, to }, partOf(space, start, kept));
}

/** A move of everything as it is may span several vmas and holes: one after the other, each to its own target. */
function* moveAllOp(space: SpaceCore, request: Request & { readonly to: number }): Op<number> {
  const { start, bytes, to, unused } = request;
  for (
    let part = firstPart(space, start, start + bytes);
    part;
    part = firstPart(space, part.end, start + bytes)
  ) {
    const target = to + (part.start - start);
    const length = part.end - part.start;
    unused.push(...(yield* unmapLockedOp(space, target, target + length)));
    yield* moveOp(
      space,
      { ...request, oldBytes: length, bytes: length, to: target },
      { ...part, vma: vmaAt(space, part.start) },
    );
  }
  return to;
}

/**
 * Moves one vma's part to a free target and makes it `bytes` long there. With old length 0 no entry moves.
 * Preconditions: mmapLock held for writing; nothing is mapped at the target.
 */
function* moveOp(space: SpaceCore, request: Request & { readonly to: number }, part: Part): Op<number> {
  const { mm } = space;
  const { pageSize } = mm;
  const { to, bytes, dontUnmap, unused, toPopulate } = request;
  const { start, end } = part;
  const source = kindOf(space, part.vma, start / pageSize);
  // What has no pages of its own is counted from where it stands, so that it merges with its new neighbours.
  const blank = source.file === 0 && source.anon === 0;
  const kind = blank ? { ...source, pgoff: to / pageSize } : source;
  if ((kind.flags & (VM_LOCKED | VM_LOCKONFAULT)) === VM_LOCKED && bytes > end - start)
    toPopulate.push([to + (end - start), to + bytes]);
  const fresh = reserveVma(space, "mremap");
  let entered = false;
  const enter = (): void => {
    entered = true;
    changeVmas(space, () => {
      insertVma(space, fresh, to, to + bytes, kind);
      mergeVmas(space, to, to + bytes);
    });
  };
  try {
    if (start === end) {
      enter();
      return to;
    }
    ownTables(space, "mremap", start / pageSize, end / pageSize);
    reserveTables(space, start / pageSize, end / pageSize, (to - start) / pageSize);
    const range = yield* openOp(space, start, end, MmuNotifierEvent.Unmap);
    try {
      const taken = yield* takeRangeOp(space, start / pageSize, end / pageSize);
      // The vma first: whoever looks for a page through its file finds the target. From here on nothing waits.
      enter();
      moveEntries(space, taken, start / pageSize, end / pageSize, (to - start) / pageSize);
    } finally {
      close(space, range);
    }
  } finally {
    if (!entered) freeVma(space, fresh);
  }
  if (dontUnmap) leaveBehind(space, start, end);
  else unused.push(...(yield* unmapLockedOp(space, start, end)));
  return to;
}

/** Makes sure that there are tables for what is to move. Errors: ENOMEM. */
function reserveTables(space: SpaceCore, first: number, end: number, shift: number): void {
  const { agent } = space;
  radixStretches(agent.words, space.pgd, first, end, (_entry, vpn, count) => {
    for (let at = vpn + shift; at < vpn + shift + count; at += radixRun(at)) {
      if (ensureEntry(space, at) === 0) throw noTables("mremap");
    }
  });
}

/** Puts taken entries, and the guards, `shift` pages further. */
function moveEntries(space: SpaceCore, taken: Changed, first: number, end: number, shift: number): void {
  const { agent, mm } = space;
  const w = agent.words;
  let next = 0;
  radixStretches(w, space.pgd, first, end, (entry, vpn, count) => {
    for (let k = 0; k < count; k++) {
      if (entry + k === taken.entries[next]) {
        Atomics.store(w, radixFind(w, space.pgd, vpn + k + shift), movedEntry(mm, taken.olds[next]!));
        Atomics.store(w, entry + k, 0);
        next++;
      } else if (Atomics.compareExchange(w, entry + k, PTE_GUARD, 0) === PTE_GUARD)
        Atomics.store(w, radixFind(w, space.pgd, vpn + k + shift), PTE_GUARD);
    }
  });
  wakeQueue(w, space.slot + SP_FAULTQ);
}

/**
 * A page of a file comes read-only: write-back that looked for its entries before the move must not miss one through
 * which the page is written; the next store tells of it.
 */
function movedEntry(mm: Mm, pte: number): number {
  if (pte === PTE_POISON) return pte;
  return (mapsFilePage(mm, pte) ? pte & ~PTE_WRITE : pte) | PTE_SOFT_DIRTY;
}

/** The old mapping of dontUnmap: empty and not locked; without an anon_vma if nothing of it is left elsewhere. */
function leaveBehind(space: SpaceCore, start: number, end: number): void {
  const w = space.agent.words;
  const vma = findVma(space, start);
  changeVmas(space, () => {
    Atomics.and(w, vma + VMA_FLAGS, ~(VM_LOCKED | VM_LOCKONFAULT));
    if (vmaStart(space, vma) === start && vmaEnd(space, vma) === end) forgetAnon(space, vma);
  });
}
