/** memory/: segments, the control arena and its allocator, frames, the interval tree, Wasm kernels. */
export { type ArenaOptions, createArena, createLocalArena, heapOf, MIN_FRAMES } from "./create.ts";
export { Frames, POISON_BYTE } from "./frames.ts";
export {
  checkIntervalTree,
  IT_WORDS,
  itEmpty,
  itFind,
  itFirst,
  itInsert,
  itLast,
  itLinked,
  itLowest,
  itNext,
  itPredecessor,
  itRemove,
  itSet,
  itStart,
  itSuccessor,
  itUpdate,
} from "./intervalTree.ts";
export {
  CLUSTER_BYTES,
  MEM_CLOCK_HAND,
  MEM_FAULT_AROUND,
  MEM_FRAMES,
  MEM_MM,
  MEM_PAGE_SHIFT,
  MEM_READ_AHEAD,
  MEM_PEAK,
  MEM_TLB_ENTRIES,
  PG_ANON,
  PG_BATCH_MASK,
  PG_BATCH_SHIFT,
  PG_BATCHED,
  PG_DIRTY,
  PG_ERROR,
  PG_LAZYFREE,
  PG_RECLAIM,
  PG_UNUSED,
  PG_LOCK_MASK,
  PG_REFERENCED,
  PG_RESERVED,
  PG_UPTODATE,
  PG_WRITEBACK,
  ZERO_PFN,
} from "./layout.ts";
export { instantiateKernels, type Kernels, type MemoryHandle, plainKernels } from "./segments.ts";
export { allocWords, checkHeap, freeWords, HEAP_PAGE_WORDS, heapFreeWords, heapUsedWords } from "./slab.ts";
