/** mmap and munmap. Linux: mm/mmap.c, mm/vma.c. */
import { MmError } from "../errors.ts";
import { batchLocked } from "./batches.ts";
import { MmuNotifierEvent } from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import { checkLive } from "./fault.ts";
import { createMemoryFile, unuseFile } from "./files.ts";
import {
  type AnonVma,
  type File,
  VM_ACCOUNT,
  VM_LOCKED,
  VM_NORESERVE,
  VM_SHARED,
  VM_WRITE,
} from "./layout.ts";
import type { FileCore } from "./pageCache.ts";
import { populateMappingOp } from "./populate.ts";
import {
  beginWriting,
  close,
  cutAt,
  emptyLength,
  endWriting,
  extentOf,
  newRange,
  open,
  type Prot,
  protFlags,
  reserveCuts,
} from "./ranges.ts";
import { chill, ownTables } from "./pageTables.ts";
import { INDEX_END } from "./radix.ts";
import type { SpaceCore } from "./spaceCore.ts";
import {
  changeVmas,
  findFree,
  firstVma,
  freeVma,
  insertVma,
  mergeVmas,
  removeVma,
  reserveVma,
  type VmaKind,
} from "./vma.ts";
import { clearGuards, zapRange } from "./zap.ts";

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
  /** As mlock(), from the beginning. */
  readonly locked?: boolean;
  /** As MAP_NORESERVE: shown by vmas(), and keeps mappings apart; memory is never reserved here. */
  readonly noreserve?: boolean;
}

/** Linux: mmap(). */
export function* mmapOp(space: SpaceCore, m: MapRequest, file: FileCore | undefined): Op<number> {
  const { mm } = space;
  const { pageSize } = mm;
  checkLive(space, "mmap");
  const prot = protFlags(m.prot, "mmap");
  if (m.share !== "private" && m.share !== "shared") {
    throw new MmError("EINVAL", "mmap", 'share must be "private" or "shared"');
  }
  const shared = m.share === "shared";
  const fixed = m.fixed === true || m.fixed === "noreplace";
  if (fixed && m.address === undefined) throw new MmError("EINVAL", "mmap", "fixed needs an address");
  const { start: hint, end: hintEnd } = extentOf(space, "mmap", m.address ?? 0, m.length, {
    beyond: "ENOMEM",
  });
  const length = hintEnd - hint;
  if (length === 0) throw emptyLength("mmap");
  const pgoff = pageOffsetOf(m.offset ?? 0, length, pageSize);
  if (fixed && hint === 0) throw new MmError("EPERM", "mmap", "the first page of a space cannot be mapped");
  const flags =
    prot |
    (shared ? VM_SHARED : (prot & VM_WRITE) !== 0 && !m.noreserve ? VM_ACCOUNT : 0) |
    (m.noreserve ? VM_NORESERVE : 0) |
    (m.locked ? VM_LOCKED : 0);
  const own = file ?? (shared ? createMemoryFile(mm, length) : undefined);
  const unused: File[] = file || !own ? [] : [own.slot];
  const kind = {
    flags,
    file: (own?.slot ?? 0) as File,
    pgoff: file ? pgoff : own ? 0 : -1,
    anon: 0 as AnonVma,
  };
  const readOnly = file !== undefined && !file.writable;
  let address = -1;
  try {
    const wait = beginWriting(space, "mmap");
    if (wait) yield* wait;
    try {
      address = yield* placeLockedOp(space, kind, hint, length, m.fixed ?? false, readOnly, unused);
    } finally {
      endWriting(space);
    }
  } finally {
    for (const slot of unused) unuseFile(mm, slot);
  }
  if (m.populate || m.locked) yield* populateMappingOp(space, address, address + length);
  return address;
}

/** Finds a place and makes the mapping there; files of what it replaces are added to `unused`. `kind.pgoff` -1: anonymous, counted from the place. Preconditions: mmapLock for writing. */
function* placeLockedOp(
  space: SpaceCore,
  kind: VmaKind,
  hint: number,
  length: number,
  fixed: boolean | "noreplace",
  readOnly: boolean,
  unused: File[],
): Op<number> {
  const taken = hint !== 0 && firstVma(space, hint, hint + length) !== 0;
  if (fixed === "noreplace" && taken) {
    throw new MmError("EEXIST", "mmap", "something is mapped there", {
      range: { start: hint, end: hint + length },
    });
  }
  if (readOnly && (kind.flags & (VM_SHARED | VM_WRITE)) === (VM_SHARED | VM_WRITE)) {
    throw new MmError(
      "EACCES",
      "mmap",
      "the file was opened read-only; map it private, or open it with { writable: true }",
    );
  }
  const free = !fixed && (hint === 0 || taken);
  const at = free ? findFree(space, length) : hint;
  if (at < 0) throw new MmError("ENOMEM", "mmap", `no free stretch of ${length} bytes in the address space`);
  const placed = kind.pgoff < 0 ? { ...kind, pgoff: at / space.mm.pageSize } : kind;
  const vma = reserveVma(space, "mmap");
  try {
    if (fixed && taken) unused.push(...(yield* unmapLockedOp(space, at, at + length)));
  } catch (error) {
    freeVma(space, vma);
    throw error;
  }
  changeVmas(space, () => {
    insertVma(space, vma, at, at + length, placed);
    mergeVmas(space, at, at + length);
  });
  // As an int32 where it is one: arithmetic on it stays integer in the caller's loops.
  return at === (at | 0) ? at | 0 : at;
}

function pageOffsetOf(offset: number, length: number, pageSize: number): number {
  if (!Number.isInteger(offset) || offset < 0 || offset % pageSize !== 0) {
    throw new MmError(
      "EINVAL",
      "mmap",
      `offset must be a multiple of the page size (${pageSize}), not ${offset}`,
    );
  }
  if (offset / pageSize + length / pageSize > INDEX_END)
    throw new MmError("EOVERFLOW", "mmap", "the offset is too large");
  return offset / pageSize;
}

/** Linux: munmap(). Holes are fine. */
export function* munmapOp(space: SpaceCore, address: number, length: number): Op<void> {
  const { start, end } = extentOf(space, "munmap", address, length, { beyond: "EINVAL" });
  if (start === end) throw emptyLength("munmap");
  const wait = beginWriting(space, "munmap");
  if (wait) yield* wait;
  let unused: File[];
  try {
    unused = yield* unmapLockedOp(space, start, end);
  } finally {
    endWriting(space);
  }
  for (const slot of unused) unuseFile(space.mm, slot);
}

/**
 * Unmaps `[start, end)`; returns the files of the vmas, whose uses the caller gives back. One UNMAP range for all vmas
 * and holes. Preconditions: mmapLock held for writing.
 */
export function* unmapLockedOp(space: SpaceCore, start: number, end: number): Op<File[]> {
  const { pageSize } = space.mm;
  if (firstVma(space, start, end) === 0) return [];
  ownTables(space, "munmap", start / pageSize, end / pageSize);
  batchLocked(space, start, end);
  const spares = reserveCuts(space, "munmap", start, end);
  try {
    const range = newRange(space, start, end, MmuNotifierEvent.Unmap);
    const opening = open(space, range);
    if (opening) yield* opening;
    try {
      const rest = zapRange(space, start / pageSize, end / pageSize);
      if (rest) yield* rest;
      // From here on nothing waits and nothing fails.
      clearGuards(space, start / pageSize, end / pageSize);
      const files = removeVmas(space, start, end, spares);
      chill(space, start / pageSize, end / pageSize);
      return files;
    } finally {
      close(space, range);
    }
  } finally {
    for (const spare of spares) freeVma(space, spare);
  }
}

/** Takes the vmas of a range out. Returns their files. */
function removeVmas(
  space: SpaceCore,
  start: number,
  end: number,
  spares: ReturnType<typeof reserveCuts>,
): File[] {
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
}
