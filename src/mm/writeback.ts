/**
 * Writing dirty pages of a file back. Linux: mm/page-writeback.c, fsync().
 *
 * Clean, acknowledge, then write: a store that comes after the acknowledgement makes the page dirty again.
 */
import { isMmError, MmError } from "../errors.ts";
import { PG_DIRTY } from "../memory/index.ts";
import { type Op } from "../sched/index.ts";
import { BACKING_MEMORY, FL_ERROR } from "./layout.ts";
import { radixStretches } from "./radix.ts";
import { cleanPagesOp } from "./rmap.ts";
import { flushOp, Pieces, textOf, writeLockedOp } from "./fileIo.ts";
import { type FileCore, tryGetPage } from "./pageCache.ts";

/**
 * Writes every dirty page of `[first, end)` to the backing and flushes it. What was stored before it began is written.
 * Errors: EIO if this or an earlier write-back failed; reported once.
 */
export function* syncFileOp(file: FileCore, first: number, end: number): Op<void> {
  const { frames, agent } = file.mm;
  const w = agent.words;
  if (file.kind === BACKING_MEMORY) return;
  const dirty: number[] = [];
  radixStretches(w, file.root, first, end, (entry, index, count) => {
    for (let k = 0; k < count; k++) {
      const pfn = Atomics.load(w, entry + k) - 1;
      if (pfn > 0 && (frames.flags(pfn) & PG_DIRTY) !== 0) dirty.push(index + k);
    }
  });
  const window = frames.clusterFrames;
  for (let k = 0; k < dirty.length;) {
    let n = 1;
    while (k + n < dirty.length && n < window && dirty[k + n] === dirty[k]! + n) n++;
    yield* syncRunOp(file, dirty[k]!, n);
    k += n;
  }
  if (file.writable) {
    try {
      yield* flushOp(file);
    } catch (cause) {
      if (isMmError(cause)) throw cause;
      throw new MmError("EIO", "sync", `flushing file ${file.id} failed: ${textOf(cause)}`, { cause });
    }
  }
  if (Atomics.exchange(w, file.slot + FL_ERROR, 0) !== 0) {
    throw new MmError("EIO", "sync", `writing to file ${file.id} failed; the pages stay dirty and in memory`);
  }
}

/** Cleans and writes a run of pages. */
function* syncRunOp(file: FileCore, index: number, pages: number): Op<void> {
  const { frames } = file.mm;
  const locked = new Pieces();
  const mapped: number[] = [];
  let reached = 0;
  try {
    for (; reached < pages; reached++) {
      const pfn = tryGetPage(file, index + reached);
      if (pfn === 0) continue;
      try {
        // Only the first is waited for: two agents that each hold half of a run would wait for each other.
        if (locked.list.length === 0) yield* frames.lockFolioOp(pfn);
        else if (!frames.tryLockFolio(pfn)) {
          frames.put(pfn);
          break;
        }
      } catch (error) {
        frames.put(pfn);
        throw error;
      }
      locked.add(file, index + reached, pfn);
    }
    // As in Linux, nobody hears of a page that is not mapped. It stays so: new mappings need its lock.
    locked.forEach((at, pfn) => {
      if (frames.mapcount(pfn) !== 0) mapped.push(at);
    });
    for (let k = 0; k < mapped.length;) {
      let n = 1;
      while (mapped[k + n] === mapped[k]! + n) n++;
      yield* cleanPagesOp(file, mapped[k]!, n);
      k += n;
    }
    yield* writeLockedOp(file, locked);
  } finally {
    locked.forEach((_index, pfn) => {
      frames.unlockFolio(pfn);
      frames.put(pfn);
    });
  }
  if (reached < pages) yield* syncRunOp(file, index + reached, pages - reached);
}
