/** Taking pages out of the page cache for good: the file goes, or this part of it. Linux: truncate_inode_pages(). */
import { PG_DIRTY } from "../memory/index.ts";
import { type Op, waitOp } from "../sched/index.ts";
import { dropLockedPage, type FileCore } from "./pageCache.ts";
import { radixStretches } from "./radix.ts";
import { unmapPagesOp } from "./rmap.ts";

/** Takes pages `[first, end)` out of the cache. What a fault mapped meanwhile is unmapped. */
export function* dropPagesOp(file: FileCore, first: number, end: number): Op<void> {
  const { frames, agent } = file.mm;
  const indices: number[] = [];
  radixStretches(agent.words, file.root, first, end, (entry, index, count) => {
    for (let k = 0; k < count; k++) if (Atomics.load(agent.words, entry + k) !== 0) indices.push(index + k);
  });
  for (const index of indices) {
    for (let pfn = file.frameOf(index); pfn !== 0; pfn = file.frameOf(index)) {
      if (!frames.tryGet(pfn)) {
        // Being evicted; the last that its evictor does with this file is to clear the entry.
        const evicted = pfn;
        yield* waitOp(
          frames.queueOf(pfn),
          () => file.frameOf(index) !== evicted,
          `the eviction of frame ${pfn}`,
          () => frames.folioOwner(evicted),
        );
        continue;
      }
      try {
        yield* frames.lockFolioOp(pfn);
      } catch (error) {
        frames.put(pfn);
        throw error;
      }
      if (file.frameOf(index) !== pfn) frames.unlockFolio(pfn);
      else {
        try {
          // Again, if it was being moved to another address.
          while (frames.mapcount(pfn) !== 0) yield* unmapPagesOp(file, index, 1);
        } catch (error) {
          frames.unlockFolio(pfn);
          frames.put(pfn);
          throw error;
        }
        frames.clearFlags(pfn, PG_DIRTY);
        dropLockedPage(file, index, pfn);
      }
      frames.put(pfn);
    }
  }
}
