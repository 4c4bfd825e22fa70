/**
 * Bringing pages of a file into the cache. Linux: mm/filemap.c, mm/readahead.c.
 *
 * A read brings in a whole cluster of the file, into frames that lie together where there are any, so that reclaim and
 * spans find it in one piece. No lock is held when it begins; the pages are locked while they are read.
 */
import { arenaFull, BusError } from "../errors.ts";
import { PG_UPTODATE } from "../memory/index.ts";
import { type Op, start, waitOp } from "../sched/index.ts";
import { LockRank, lockdepAcquire, lockdepRelease } from "../sync/index.ts";
import { BACKING_MEMORY, BACKING_SERVED, CT_MAJOR, FL_OPENER, FL_PAGES, MESSAGE_READ } from "./layout.ts";
import { allocClusterOp, allocFrameOp } from "./reclaim.ts";
import { radixEnsure } from "./radix.ts";
import { isRefusal, NONE_MISSING, Pieces, textOf, transferOp } from "./fileIo.ts";
import { dropLockedPage, type FileCore, tryGetPage } from "./pageCache.ts";

/**
 * The frame of a page, up to date, with a reference that the caller gives back. Reads it in if need be.
 * Errors: BusError beyond the end of the file or where the backing fails, ENOMEM.
 */
export function* getPageOp(file: FileCore, index: number, address: number): Op<number> {
  const { frames, agent } = file.mm;
  for (;;) {
    const present = tryGetPage(file, index);
    if (present !== 0) return present;
    if (index >= file.pages) throw new BusError("access", address, "the file ends before this page");
    const entry = radixEnsure(agent, file.mm.heap, file.root, index);
    if (entry === 0) throw arenaFull("access");
    const value = Atomics.load(agent.words, entry);
    if (value === 0) {
      yield* readAroundOp(file, index, address);
      continue;
    }
    // Being read, reclaimed or removed by somebody: its lock says when that is over.
    const pfn = value - 1;
    yield* waitOp(
      frames.queueOf(pfn),
      () =>
        Atomics.load(agent.words, entry) !== value ||
        !frames.isLocked(pfn) ||
        (frames.flags(pfn) & PG_UPTODATE) !== 0,
      `page ${index} of file ${file.id}`,
      () => frames.folioOwner(pfn),
    );
  }
}

/** Brings pages `[index, index + pages)` in, as far as there are frames. Linux: readahead. */
export function* readAheadOp(file: FileCore, index: number, pages: number): Op<void> {
  if (file.kind === BACKING_MEMORY) return;
  for (let at = index; at < Math.min(index + pages, file.pages); at++) {
    if (file.frameOf(at) === 0) file.mm.frames.put(yield* getPageOp(file, at, at * file.mm.pageSize));
  }
}

/** Reads the missing pages around `index`, an aligned stretch of them. */
function* readAroundOp(file: FileCore, index: number, address: number): Op<void> {
  const { mm } = file;
  const { frames } = mm;
  const window = Math.max(frames.clusterFrames, mm.readAheadPages);
  const first = file.kind === BACKING_MEMORY ? index : Math.floor(index / window) * window;
  const end = file.kind === BACKING_MEMORY ? index + 1 : Math.min(first + window, file.pages);
  const pages = yield* claimPagesOp(file, first, end, index);
  if (pages.list.length === 0) return;
  mm.count(CT_MAJOR);
  const { failure, missing } = readsAtOnce(file)
    ? yield* readClaimedOp(file, pages)
    : yield* awaitReadOp(file, pages);
  if (isRefusal(failure)) throw failure as Error;
  if (failure !== undefined) {
    throw new BusError("access", address, `reading the file failed: ${textOf(failure)}`, failure);
  }
  if (missing.has(index))
    throw new BusError("access", address, "the file is shorter than when it was opened");
}

/** What came of reading claimed pages: why none could be read, or which ones the backing no longer has. */
interface ReadOutcome {
  readonly failure: unknown;
  readonly missing: ReadonlySet<number>;
}

/** True if reading a file's pages cannot be refused by a driver. */
function readsAtOnce(file: FileCore): boolean {
  if (file.kind === BACKING_MEMORY) return true;
  try {
    return file.backing()?.readSync !== undefined;
  } catch {
    return true; // readClaimedOp() finds out why
  }
}

/** Reads claimed pages and unlocks them, those that could not be read out of the cache. */
function* readClaimedOp(file: FileCore, pages: Pieces): Op<ReadOutcome> {
  const { frames } = file.mm;
  let failure: unknown;
  let missing = NONE_MISSING;
  try {
    if (file.kind !== BACKING_MEMORY) missing = yield* transferOp(file, pages, MESSAGE_READ);
  } catch (error) {
    failure = error;
  }
  pages.forEach((at, pfn) => {
    if (failure !== undefined || missing.has(at)) dropLockedPage(file, at, pfn);
    else {
      frames.setFlags(pfn, PG_UPTODATE);
      frames.unlockFolio(pfn);
    }
  });
  return { failure, missing };
}

/**
 * Has claimed pages read by a task of their own. Whoever reads them, this agent's host or another agent, cannot be told
 * to stop; so the pages stay locked until it has answered, also if the caller may not wait so long.
 */
function* awaitReadOp(file: FileCore, pages: Pieces): Op<ReadOutcome> {
  const { agent, frames } = file.mm;
  const w = agent.words;
  let outcome: ReadOutcome | undefined;
  if (agent.debug) pages.forEach(() => lockdepRelease(agent, LockRank.folioLock));
  start(
    agent,
    (function* (): Op<ReadOutcome> {
      if (agent.debug) pages.forEach(() => lockdepAcquire(agent, LockRank.folioLock));
      return yield* readClaimedOp(file, pages);
    })(),
    (settled) => {
      outcome =
        "error" in settled
          ? { failure: settled.error, missing: NONE_MISSING }
          : (settled.value as ReadOutcome);
    },
  );
  yield* waitOp(
    frames.queueOf(pages.list[0]!.pfn),
    () => outcome !== undefined,
    `a read of file ${file.id}`,
    () =>
      file.kind === BACKING_SERVED && !file.backing()
        ? Atomics.load(w, file.slot + FL_OPENER)
        : agent.ownerId,
  );
  return outcome!;
}

/** Puts locked frames into the cache for the pages of `[first, end)` that are not there; `wanted` among them if possible. */
function* claimPagesOp(file: FileCore, first: number, end: number, wanted: number): Op<Pieces> {
  const { mm } = file;
  const { frames, agent } = mm;
  const claimed = new Pieces();
  const n = frames.clusterFrames;
  const whole = n > 1 && end - first === n && clusterIsEmpty(file, first, end);
  let cluster = whole ? yield* allocClusterOp(mm) : 0;
  // Only what is wanted may wait for memory; its neighbours are a bonus.
  const single = cluster === 0 ? yield* allocFrameOp(mm, file.kind === BACKING_MEMORY) : 0;
  if (single !== 0 && whole) {
    // Reclaim may just have made a whole cluster free.
    cluster = frames.tryAllocCluster();
    if (cluster !== 0) frames.put(single);
  }
  for (let index = first; index < end; index++) {
    const entry = radixEnsure(agent, mm.heap, file.root, index);
    let pfn = cluster !== 0 ? cluster + (index - first) : index === wanted ? single : 0;
    if (pfn === 0 && entry !== 0 && Atomics.load(agent.words, entry) === 0 && file.kind !== BACKING_MEMORY) {
      pfn = frames.tryAlloc(false);
    }
    if (pfn === 0) continue;
    if (!frames.tryLockFolio(pfn)) {
      // Reclaim takes it for what it was before, and is about to see that it is not.
      frames.put(pfn);
      continue;
    }
    frames.setMapping(pfn, file.slot, index);
    if (entry !== 0 && Atomics.compareExchange(agent.words, entry, 0, pfn + 1) === 0) {
      Atomics.add(agent.words, file.slot + FL_PAGES, 1);
      claimed.add(file, index, pfn);
    } else {
      frames.setMapping(pfn, 0, 0);
      frames.unlockFolio(pfn);
      frames.put(pfn);
    }
  }
  return claimed;
}

function clusterIsEmpty(file: FileCore, first: number, end: number): boolean {
  for (let index = first; index < end; index++) if (file.frameOf(index) !== 0) return false;
  return true;
}
