/**
 * Making frames free: a clock over the frame table with a second chance. Linux: mm/vmscan.c.
 *
 * The hand moves over clusters of frames. Of an old cluster that it finds, and of what follows that in its file and is
 * old too, it makes one run, which is unmapped, written and freed at once, so that a secondary MMU hears of it once.
 * Anonymous pages stay: there is no swap.
 *
 * No lock is held when it begins. Locks taken: folio locks (tried, never waited for), then file locks.
 */
import { isMmError, MmError } from "../errors.ts";
import {
  MEM_CLOCK_HAND,
  PG_ANON,
  PG_DIRTY,
  PG_ERROR,
  PG_RECLAIM,
  PG_REFERENCED,
  PG_RESERVED,
  PG_UPTODATE,
} from "../memory/index.ts";
import { type Op, waitOp } from "../sched/index.ts";
import { lockdepMap } from "../sync/index.ts";
import type { Pfn } from "../units.ts";
import { BACKING_MEMORY, CT_EVICTIONS, type File, FL_PAGES } from "./layout.ts";
import type { Mm } from "./mm.ts";
import { isRefusal, Pieces, writeLockedOp } from "./fileIo.ts";
import { type FileCore, fileAt } from "./pageCache.ts";
import { accessedPages, agePages, pagesBeforeLocked, unmapPagesOp } from "./rmap.ts";

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
  const { frames, agent } = mm;
  // Also where a frame is free: next time none is.
  if (agent.debug) lockdepMap(agent, "an allocation");
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
  if (agent.debug) lockdepMap(agent, "reclaim");
  const clusters = Math.ceil(frames.count / frames.clusterFrames);
  const longest = Math.min(MAX_RUN_CLUSTERS, Math.max(1, clusters >>> 3)) * frames.clusterFrames;
  let freed = 0;
  let refused: unknown;
  for (let scanned = 0; freed < want && scanned < clusters * ROUNDS;) {
    const cluster = (Atomics.add(agent.words, frames.header + MEM_CLOCK_HAND, 1) >>> 0) % clusters;
    scanned++;
    try {
      const end = Math.min(frames.count, (cluster + 1) * frames.clusterFrames);
      for (let pfn = cluster * frames.clusterFrames; pfn < end;) {
        const run: number[] = [];
        if (reclaimable(mm, pfn, 0)) lockRun(mm, pfn, frames.clusterFrames, run);
        const first = pfn++;
        if (run.length === 0) continue;
        // What was looked at once is not looked at again: it has just lost its accessed bits.
        while (run[pfn - first] === pfn) pfn++;
        const most = Math.min(longest, Math.max(frames.clusterFrames, want - freed));
        freed += yield* reclaimRunOp(mm, run, most, young);
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

/**
 * Locks a page and the reclaimable ones that follow it in its file, wherever they lie in memory, `most` at most, and adds
 * their frames to `run`.
 */
function lockRun(mm: Mm, first: number, most: number, run: number[]): void {
  const file = mm.frames.mapping(first) as File;
  const index = mm.frames.index(first);
  for (let k = 0, pfn = first; tryLockPage(mm, pfn, file, index + k);) {
    run.push(pfn);
    if (++k === most) break;
    pfn = fileAt(mm, file).frameOf(index + k);
  }
}

/** Locks a frame if it is this page of this file, and reclaimable. */
function tryLockPage(mm: Mm, pfn: number, file: File, index: number): boolean {
  const { frames } = mm;
  if (pfn === 0 || !reclaimable(mm, pfn, 0)) return false;
  // A reference, so that what we lock is not freed and given to another, who has a lock of his own on it.
  if (!frames.tryGet(pfn)) return false;
  let fits = frames.tryLockFolio(pfn);
  if (fits) {
    fits =
      reclaimable(mm, pfn, 1) &&
      frames.mapping(pfn) === file &&
      frames.index(pfn) === index &&
      fileAt(mm, file).kind !== BACKING_MEMORY;
    if (!fits) frames.unlockFolio(pfn);
  }
  frames.put(pfn); // the file's own reference goes under the lock only
  return fits;
}

/**
 * Ages a locked run (the frames of pages that follow each other in a file), adds to it what follows and is old too, up
 * to `most` pages; unmaps, writes and frees it. A young one only on demand. Unlocks it. Returns the frames freed.
 */
function* reclaimRunOp(mm: Mm, run: number[], most: number, evenYoung: boolean): Op<number> {
  const { frames } = mm;
  const file = fileAt(mm, frames.mapping(run[0]!) as File);
  const index = frames.index(run[0]!);
  let freed = 0;
  try {
    if (age(file, index, run, 0) && !evenYoung) return 0;
    extend(file, index, run, most);
    if (isMapped(mm, run)) {
      const before = pagesBeforeLocked(file, index, run.length);
      while (run.length > before) frames.unlockFolio(run.pop()!);
      if (before === 0) return 0;
      yield* unmapPagesOp(file, index, run.length);
    }
    const pieces = new Pieces();
    for (let k = 0; k < run.length; k++) pieces.add(file, index + k, run[k]!);
    yield* writeLockedOp(file, pieces);
    while (run.length > 0) if (evict(file, index + run.length - 1, run.pop()!)) freed++;
    mm.count(CT_EVICTIONS, freed);
    return freed;
  } finally {
    for (const pfn of run) frames.unlockFolio(pfn);
  }
}

const isMapped = (mm: Mm, run: readonly number[]): boolean =>
  run.some((pfn) => mm.frames.mapcount(pfn) !== 0);

/** Tests and clears the accessed state of a run from its `from`-th page on; true if any was young. */
function age(file: FileCore, index: number, run: readonly number[], from: number): boolean {
  const { frames } = file.mm;
  let referenced = 0;
  let mapped = 0;
  for (let k = from; k < run.length; k++) {
    referenced |= frames.clearFlags(run[k]!, PG_REFERENCED) & PG_REFERENCED;
    mapped |= frames.mapcount(run[k]!);
  }
  return (mapped !== 0 && agePages(file, index + from, run.length - from)) || referenced !== 0;
}

/**
 * Locks what follows a run in its file, a cluster at a time, as long as it is old: one long run is one invalidation.
 * Young pages are left as they are: their turn to be aged comes when the hand is there.
 */
function extend(file: FileCore, index: number, run: number[], most: number): void {
  const { mm } = file;
  const { frames } = mm;
  const before = run.length;
  while (run.length < most) {
    const from = run.length;
    const next = file.frameOf(index + from);
    if (next === 0) break;
    lockRun(mm, next, Math.min(frames.clusterFrames, most - from), run);
    const fits =
      run.length > from &&
      frames.mapping(run[from]!) === file.slot &&
      frames.index(run[from]!) === index + from;
    if (!fits || looksYoung(file, index, run, from)) {
      while (run.length > from) frames.unlockFolio(run.pop()!);
      break;
    }
  }
  // For good, and with the secondary MMUs.
  if (run.length > before && age(file, index, run, before))
    while (run.length > before) frames.unlockFolio(run.pop()!);
}

/** True if a page of the run from its `from`-th on has been used lately, as far as this is known without asking others. */
function looksYoung(file: FileCore, index: number, run: readonly number[], from: number): boolean {
  const { frames } = file.mm;
  for (let k = from; k < run.length; k++) if ((frames.flags(run[k]!) & PG_REFERENCED) !== 0) return true;
  return accessedPages(file, index + from, run.length - from);
}

/**
 * Unmaps one page of a file and frees it if it is clean: it can be read again, or was never written. Left alone
 * if it is not that page any more, or mapped more than once. Linux: MADV_PAGEOUT, for one folio.
 */
export function* evictPageOp(file: FileCore, index: number, pfn: number): Op<void> {
  const { frames } = file.mm;
  if (!frames.tryGet(pfn)) return;
  if (!frames.tryLockFolio(pfn)) {
    frames.put(pfn);
    return;
  }
  let locked = true;
  try {
    if (file.frameOf(index) !== pfn || frames.mapcount(pfn) !== 1) return;
    yield* unmapPagesOp(file, index, 1);
    if (frames.mapcount(pfn) !== 0) return;
    frames.put(pfn);
    locked = false;
    const waits = (frames.flags(pfn) & PG_DIRTY) !== 0 && file.kind !== BACKING_MEMORY;
    if (waits) frames.setFlags(pfn, PG_RECLAIM);
    if (evict(file, index, pfn)) file.mm.count(CT_EVICTIONS, 1);
  } finally {
    if (locked) {
      frames.unlockFolio(pfn);
      frames.put(pfn);
    }
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
