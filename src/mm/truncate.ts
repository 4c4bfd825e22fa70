/**
 * Changing where a file ends and where it has holes. Linux: mm/truncate.c, mm/shmem.c.
 *
 * One at a time for each file, under its mutex. The size changes first, so that no fault maps what goes; then the pages
 * are unmapped, and taken out of the cache. A fault that came in between is unmapped by the second walk, or keeps the
 * page's folio lock until it sees the new size.
 *
 * Lock order: file mutex > mmapLock (read, one space at a time) > folio lock.
 */
import { MmError } from "../errors.ts";
import { PG_DIRTY, PG_UNUSED } from "../memory/index.ts";
import { MmuNotifierEvent } from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import {
  lockdepAcquire,
  lockdepRelease,
  LockRank,
  lockMutexOp,
  lockReadOp,
  unlockMutex,
  unlockRead,
} from "../sync/index.ts";
import { BACKING_MEMORY, FL_MUTEX, FL_SIZE, SP_MMAP_LOCK } from "./layout.ts";
import { Pieces, truncateBackingOp, writeLockedOp } from "./fileIo.ts";
import { type FileCore, mappingsOf, mapsFilePage, tryGetPage } from "./pageCache.ts";
import { getPageOp } from "./pageIn.ts";
import { INDEX_END } from "./radix.ts";
import { close, firstPart, openOp } from "./ranges.ts";
import { dropPagesOp } from "./removal.ts";
import { noteFileWrite, releaseMappings } from "./rmap.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { fileIndexOf, vmaFile } from "./vma.ts";
import { zapRangeOp } from "./zap.ts";

/** Runs `body` while nobody else changes the file's extent. */
function* resizingOp<T>(file: FileCore, body: () => Op<T>): Op<T> {
  const { agent } = file.mm;
  if (agent.debug) lockdepAcquire(agent, LockRank.fileMutex);
  try {
    yield* lockMutexOp(agent, file.slot + FL_MUTEX, `the extent of file ${file.id}`);
    try {
      return yield* body();
    } finally {
      unlockMutex(agent, file.slot + FL_MUTEX);
    }
  } finally {
    if (agent.debug) lockdepRelease(agent, LockRank.fileMutex);
  }
}

/** Runs `body` with the file `size` bytes long; if it fails, the file has the size it had. Preconditions: the file's mutex. */
function* sizedOp(file: FileCore, size: number, body: () => Op<void>): Op<void> {
  const { doubles } = file.mm.agent;
  const at = (file.slot + FL_SIZE) >> 1;
  const old = doubles[at]!;
  doubles[at] = size;
  try {
    yield* body();
  } catch (error) {
    doubles[at] = old;
    throw error;
  }
}

function checkChange(file: FileCore, operation: string, what: string, ...bytes: number[]): void {
  for (const n of bytes) {
    if (!Number.isInteger(n) || n < 0 || n >= 2 ** 63)
      throw new MmError("EINVAL", operation, `${what} must be whole numbers of bytes, not negative`);
  }
  const end = bytes.reduce((sum, n) => sum + n, 0);
  if (end > INDEX_END * file.mm.pageSize)
    throw new MmError("EFBIG", operation, `no file can have ${end} bytes with pages of ${file.mm.pageSize}`);
}

function checkWritable(file: FileCore, operation: string): void {
  if (!file.writable) throw new MmError("EACCES", operation, "the file was opened read-only");
}

function checkResizable(file: FileCore, operation: string): void {
  if (!file.resizable)
    throw new MmError("ENOTSUP", operation, "the backing cannot change its size: it has no truncate()");
}

// ---- unmapping ------------------------------------------------------------------------------------------------------

/**
 * Unmaps pages `[first, end)` of a file everywhere, one CLEAR for each vma; private copies too with `copies`.
 * Linux: unmap_mapping_range(). Preconditions: no lock held but the file's mutex.
 */
function* unmapFileOp(file: FileCore, first: number, end: number, copies: boolean): Op<void> {
  const { mm } = file;
  const mappings = mappingsOf(file, first, end - first);
  try {
    for (const { space: slot, vpn, pages } of mappings) {
      const space = mm.spaceAt(slot);
      const lock = slot + SP_MMAP_LOCK;
      yield* lockReadOp(mm.agent, lock, LockRank.mmapLock, "mmapLock");
      try {
        yield* unmapPartsOp(space, file, vpn, vpn + pages, first, copies);
      } finally {
        unlockRead(mm.agent, lock, LockRank.mmapLock);
      }
    }
  } finally {
    releaseMappings(file.mm, mappings);
  }
}

/** Of `[vpn, end)` what maps the file from page `first` on: it may have changed since we looked. */
function* unmapPartsOp(
  space: SpaceCore,
  file: FileCore,
  vpn: number,
  end: number,
  first: number,
  copies: boolean,
): Op<void> {
  const { pageSize } = file.mm;
  for (let at = vpn; at < end;) {
    const part = firstPart(space, at * pageSize, end * pageSize);
    if (!part) return;
    const from = part.start / pageSize;
    at = part.end / pageSize;
    if (vmaFile(space, part.vma) !== file.slot || fileIndexOf(space, part.vma, from) < first) continue;
    const range = yield* openOp(space, part.start, part.end, MmuNotifierEvent.Clear, true);
    try {
      yield* zapRangeOp(space, from, at, copies ? undefined : (pte) => mapsFilePage(file.mm, pte));
    } finally {
      close(space, range);
    }
  }
}

/**
 * Zeroes bytes `[from, to)` of one page, if the cache has it; it is read in first with `read`, and written back at once
 * with `write`.
 */
function* zeroOp(file: FileCore, from: number, to: number, read: boolean, write = false): Op<void> {
  const { frames, pageSize } = file.mm;
  const index = Math.floor(from / pageSize);
  if (from >= to || index >= file.pages) return;
  const pfn = tryGetPage(file, index) || (read ? yield* getPageOp(file, index, from) : 0);
  if (pfn === 0) return;
  try {
    yield* frames.lockFolioOp(pfn);
    try {
      frames.bytesOf(pfn).fill(0, from - index * pageSize, to - index * pageSize);
      frames.setFlags(pfn, PG_DIRTY);
      noteFileWrite(file, index);
      if (write) yield* writeLockedOp(file, onePiece(file, index, pfn));
    } finally {
      frames.unlockFolio(pfn);
    }
  } finally {
    frames.put(pfn);
  }
}

function onePiece(file: FileCore, index: number, pfn: number): Pieces {
  const pieces = new Pieces();
  pieces.add(file, index, pfn);
  return pieces;
}

// ---- the operations -------------------------------------------------------------------------------------------------

/** Linux: ftruncate(). */
export function* truncateOp(file: FileCore, size: number): Op<void> {
  checkChange(file, "truncate", "size", size);
  checkWritable(file, "truncate");
  checkResizable(file, "truncate");
  yield* resizingOp(file, () => resizeOp(file, size));
}

function* resizeOp(file: FileCore, size: number): Op<void> {
  const { pageSize } = file.mm;
  const old = file.size;
  const memory = file.kind === BACKING_MEMORY;
  const first = Math.ceil(size / pageSize);
  // Memory has nothing beyond its end. For a file on disk Linux makes sure each time.
  const walks = !memory || first < Math.ceil(old / pageSize);
  const unmapOp = function* (): Op<void> {
    if (walks) yield* unmapFileOp(file, first, INDEX_END, true);
  };
  yield* sizedOp(file, size, unmapOp);
  if (size < old) {
    yield* dropPagesOp(file, first, INDEX_END);
    if (size < first * pageSize) yield* zeroOp(file, size, first * pageSize, false);
  }
  yield* unmapOp();
  if (!memory) yield* truncateBackingOp(file);
}

/** Zeroes `[offset, offset + length)`; whole pages are given up. Linux: fallocate(PUNCH_HOLE | KEEP_SIZE). */
export function* punchHoleOp(file: FileCore, offset: number, length: number): Op<void> {
  checkExtent(file, "punchHole", offset, length);
  yield* resizingOp(file, () => punchOp(file, offset, offset + length));
}

function checkExtent(file: FileCore, operation: string, offset: number, length: number): void {
  checkChange(file, operation, "offset and length", offset, length);
  if (length === 0) throw new MmError("EINVAL", operation, "length must be above 0");
  checkWritable(file, operation);
}

function* punchOp(file: FileCore, from: number, to: number): Op<void> {
  const { pageSize } = file.mm;
  const [first, last] = [Math.ceil(from / pageSize), Math.floor(to / pageSize)];
  if (first < last) yield* unmapFileOp(file, first, last, false);
  const memory = file.kind === BACKING_MEMORY;
  if (last < first) yield* zeroOp(file, from, to, !memory);
  else {
    yield* zeroOp(file, from, first * pageSize, !memory);
    yield* zeroOp(file, last * pageSize, to, !memory);
  }
  if (memory) yield* dropPagesOp(file, first, Math.max(first, last));
  else {
    // Written back at once: backings have no holes.
    const end = Math.min(last, file.pages);
    for (let k = first; k < end; k++) yield* zeroOp(file, k * pageSize, (k + 1) * pageSize, true, true);
  }
}

/** Makes room: afterwards `[offset, offset + length)` can be written. Linux: fallocate(0 or KEEP_SIZE). */
export function* allocateOp(file: FileCore, offset: number, length: number, keepSize: boolean): Op<void> {
  checkExtent(file, "allocate", offset, length);
  const { pageSize } = file.mm;
  const end = offset + length;
  const allocate = function* (): Op<void> {
    const last = Math.min(Math.ceil(end / pageSize), file.pages);
    for (let k = Math.floor(offset / pageSize); k < last; k++) yield* allocatePageOp(file, k);
  };
  yield* resizingOp(file, function* () {
    if (!keepSize && end > file.size) {
      checkResizable(file, "allocate");
      yield* extendOp(file, end, allocate);
    } else if (file.kind === BACKING_MEMORY) yield* allocate();
  });
}

/** Makes the file longer: its backing, or for memory what `inMemory` does. Preconditions: the file's mutex. */
const extendOp = (file: FileCore, size: number, inMemory: () => Op<void>): Op<void> =>
  sizedOp(file, size, file.kind === BACKING_MEMORY ? inMemory : () => truncateBackingOp(file));

/** Brings a page of zeros in that stays, as one that was written. */
function* allocatePageOp(file: FileCore, index: number): Op<void> {
  const { frames, pageSize } = file.mm;
  const isNew = file.frameOf(index) === 0;
  const pfn = yield* getPageOp(file, index, index * pageSize);
  frames.setFlags(pfn, isNew ? PG_DIRTY | PG_UNUSED : PG_DIRTY);
  frames.put(pfn);
}

/** Makes the file at least `size` bytes long, for a write that goes beyond its end. */
export function* growOp(file: FileCore, size: number): Op<void> {
  checkChange(file, "write", "offset and length", size);
  checkResizable(file, "write");
  yield* resizingOp(file, function* () {
    if (size > file.size) yield* extendOp(file, size, function* () {});
  });
}
