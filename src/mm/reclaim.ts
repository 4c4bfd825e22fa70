/**
 * Making frames free: a clock over the frame table with a second chance. Linux: mm/vmscan.c.
 *
 * The hand moves over clusters. File pages that lie together in memory and in their file are aged, unmapped, written
 * and freed as one run, so that a secondary MMU hears of it once. Anonymous pages stay: there is no swap.
 *
 * No lock is held when it begins. Locks taken: folio locks (tried, never waited for), then file locks.
 */
import { isMmError, MmError } from "../errors.ts";
import {
  MEM_CLOCK_HAND,
  PG_ANON,
  PG_DIRTY,
  PG_ERROR,
  PG_REFERENCED,
  PG_RESERVED,
  PG_UPTODATE,
} from "../memory/index.ts";
import { type Op, waitOp } from "../sched/index.ts";
import type { Pfn } from "../units.ts";
import { BACKING_MEMORY, CT_EVICTIONS, type File, FL_PAGES } from "./layout.ts";
import type { Mm } from "./mm.ts";
import { isRefusal, writeLockedOp } from "./fileIo.ts";
import { type FileCore, fileAt } from "./pageCache.ts";
import { agePages, unmapPagesOp } from "./rmap.ts";

/** A fault that finds no frame frees this share of all, so that the next ones find some. */
const BATCH_SHARE = 1 / 16;
const MAX_BATCH_FRAMES = 1024;
/** Longest run in clusters: 4 MiB of pages. Each is one invalidation, and secondary MMUs in other agents answer it. */
const MAX_RUN_CLUSTERS = 64;
/** With more than this share free, but in pieces, a cluster is put together from pieces. */
const SCATTERED_SHARE = 1 / 8;
/** Rounds of the hand before giving up: one clears accessed bits, the next finds the page old, one for good measure. */
const ROUNDS = 3;

const batchOf = (mm: Mm): number =>
  Math.max(mm.frames.clusterFrames, Math.min(MAX_BATCH_FRAMES, Math.floor(mm.frames.count * BATCH_SHARE)));

/**
 * A frame with one reference, reclaiming if none is free. Preconditions: no lock held.
 * Errors: ENOMEM if everything is pinned, anonymous or refused; nothing is lost then.
 */
export function* allocFrameOp(mm: Mm, zeroed: boolean): Op<Pfn> {
  const { frames } = mm;
  for (let dry = 0; ;) {
    const free = frames.tryAlloc(zeroed);
    if (free !== 0) return free;
    // Whoever cannot do without a frame takes one that is in use, too: from an agent that runs by waiting for it.
    const freed = yield* reclaimOp(mm, batchOf(mm), dry > 0);
    if (freed > 0 || mm.frames.free > 0) continue;
    if (++dry >= ROUNDS) {
      throw new MmError(
        "ENOMEM",
        "allocate",
        `all ${mm.frames.count} frames are in use and none can be reclaimed; use a larger budget, or unmap something`,
      );
    }
    // Another agent may be about to give frames back: one whose pages are being read, written or taken.
    const pfn = frames.findLocked();
    if (pfn < 0) continue;
    dry--;
    yield* waitOp(
      frames.queueOf(pfn),
      () => !frames.isLocked(pfn),
      "frames that others hold",
      () => frames.folioOwner(pfn),
    );
  }
}

/**
 * A whole cluster of frames that lie together, with a reference each; 0 if there is none. While little is free it
 * reclaims for it: a cluster of the file in scattered frames makes short runs, and each run is an invalidation once it is
 * reclaimed. Preconditions: no lock held.
 */
export function* allocClusterOp(mm: Mm): Op<Pfn> {
  const { frames } = mm;
  const cluster = frames.tryAllocCluster();
  if (cluster !== 0 || frames.free > frames.count * SCATTERED_SHARE) return cluster;
  try {
    yield* reclaimOp(mm, batchOf(mm));
  } catch (error) {
    if (!isRefusal(error)) throw error;
  }
  return frames.tryAllocCluster();
}

/**
 * Frees at least `want` frames if it can, `young` ones too; returns how many.
 * Errors: EAGAIN, EDEADLK if only a wait that this driver refuses would help.
 */
export function* reclaimOp(mm: Mm, want: number, young = false): Op<number> {
  const { frames, agent } = mm;
  const clusters = Math.ceil(frames.count / frames.clusterFrames);
  let freed = 0;
  let refused: unknown;
  for (let scanned = 0; freed < want && scanned < clusters * ROUNDS;) {
    const cluster = (Atomics.add(agent.words, frames.header + MEM_CLOCK_HAND, 1) >>> 0) % clusters;
    scanned++;
    try {
      const run = { pfn: cluster * frames.clusterFrames, pages: 0 };
      for (let pfn = run.pfn; pfn < Math.min(frames.count, (cluster + 1) * frames.clusterFrames);) {
        const pages = lockRun(mm, pfn, clusters);
        if (pages === 0) {
          pfn++;
          continue;
        }
        const beyond = Math.floor((pfn + pages - 1) / frames.clusterFrames) - cluster;
        if (beyond > 0) {
          // The run went on into the next clusters: the hand follows.
          Atomics.add(agent.words, frames.header + MEM_CLOCK_HAND, beyond);
          scanned += beyond;
        }
        freed += yield* reclaimRunOp(mm, pfn, pages, young);
        pfn += pages;
      }
    } catch (error) {
      if (!isMmError(error, "EAGAIN") && !isMmError(error, "EDEADLK")) throw error;
      refused = error;
      // Where nobody may wait, the next run would be refused as well, and its own subscribers told for nothing.
      if (agent.current?.mode === "try") break;
    }
  }
  if (freed === 0 && refused !== undefined) throw refused as Error;
  return freed;
}

/** True for a frame that reclaim may look at: a page of a file that somebody can bring back, with no more than `extra` references. */
function reclaimable(mm: Mm, pfn: number, extra: number): boolean {
  const { frames } = mm;
  const flags = frames.flags(pfn);
  const unfit = (flags & (PG_ANON | PG_RESERVED)) !== 0 || (flags & PG_UPTODATE) === 0;
  const failing = (flags & (PG_DIRTY | PG_ERROR)) === (PG_DIRTY | PG_ERROR);
  if (unfit || failing || frames.mapping(pfn) === 0) return false;
  return frames.refcount(pfn) === 1 + extra + frames.mapcount(pfn);
}

/** Locks the longest run of reclaimable pages from `first` on, that is one in memory and in its file; returns its length. */
function lockRun(mm: Mm, first: number, clusters: number): number {
  const { frames } = mm;
  const limit = Math.min(MAX_RUN_CLUSTERS, Math.max(1, clusters >>> 3)) * frames.clusterFrames;
  let pages = 0;
  for (let pfn = first; pages < limit && pfn < frames.count; pfn++, pages++) {
    if (!reclaimable(mm, pfn, 0) || (pages > 0 && !frames.adjacent(pfn - 1, pfn))) break;
    // A reference, so that what we lock is not freed and given to another, who has a lock of his own on it.
    if (!frames.tryGet(pfn)) break;
    if (!frames.tryLockFolio(pfn)) {
      frames.put(pfn);
      break;
    }
    const fits =
      reclaimable(mm, pfn, 1) &&
      fileAt(mm, frames.mapping(pfn) as File).kind !== BACKING_MEMORY &&
      (pages === 0 ||
        (frames.mapping(pfn) === frames.mapping(first) && frames.index(pfn) === frames.index(first) + pages));
    if (!fits) frames.unlockFolio(pfn);
    frames.put(pfn); // the file's own reference goes under the lock only
    if (!fits) break;
  }
  return pages;
}

/** Ages, unmaps, writes and frees a locked run, a young one only on demand; unlocks it. Returns the frames freed. */
function* reclaimRunOp(mm: Mm, pfn: number, pages: number, evenYoung: boolean): Op<number> {
  const { frames } = mm;
  const file = fileAt(mm, frames.mapping(pfn) as File);
  const index = frames.index(pfn);
  let locked = pages;
  let freed = 0;
  try {
    let referenced = 0;
    let mapped = 0;
    for (let k = 0; k < pages; k++) {
      referenced |= frames.clearFlags(pfn + k, PG_REFERENCED) & PG_REFERENCED;
      mapped |= frames.mapcount(pfn + k);
    }
    const young = mapped !== 0 && agePages(file, index, pages);
    if ((young || referenced !== 0) && !evenYoung) return 0;
    if (mapped !== 0) yield* unmapPagesOp(file, index, pages);
    const members = new Map<number, number>();
    for (let k = 0; k < pages; k++) members.set(index + k, pfn + k);
    yield* writeLockedOp(file, members);
    while (locked > 0) {
      locked--;
      if (evict(file, index + locked, pfn + locked)) freed++;
    }
    mm.count(CT_EVICTIONS, freed);
    return freed;
  } finally {
    while (locked > 0) frames.unlockFolio(pfn + --locked);
  }
}

/** Frees a locked page if nobody else refers to it and it is clean; unlocks it in any case. */
function evict(file: FileCore, index: number, pfn: number): boolean {
  const { frames, agent } = file.mm;
  if ((frames.flags(pfn) & PG_DIRTY) !== 0 || !frames.tryFreeze(pfn)) {
    frames.unlockFolio(pfn);
    return false;
  }
  Atomics.sub(agent.words, file.slot + FL_PAGES, 1);
  // From here on the file may go: see destroyOp().
  Atomics.store(agent.words, file.entryOf(index), 0);
  frames.unlockFolio(pfn);
  frames.freeFrozen(pfn);
  return true;
}
