/**
 * The memory row's header and the record of a frame.
 *
 * Access key: A any agent, Atomics only · O written by the owning agent only · C constant once the memory exists · F under the folio lock,
 * readable by any with Atomics · R as A, meaningful only while a reference is held.
 */
import { QUEUE_WORDS } from "../sched/index.ts";
import type { Pfn, Slot } from "../units.ts";

// Header; found by HDR_ROOT.
export const MEM_PAGE_SHIFT = 0; //    C
export const MEM_FRAMES = 1; //        C  frames, the zero page included; numbers 0 to MEM_FRAMES - 1
export const MEM_SEGMENT0 = 2; //      C  how many of them lie in segment 0
export const MEM_SEGMENT_FRAMES = 3; // C frames in each further segment
export const MEM_FRAME_BASE = 4; //    C  page of segment 0 at which frame 0 lies
export const MEM_FOLIOS = 5; //        C  slot of the frame table
export const MEM_FREE_BITS = 6; //     C  slot of the bitmap of free frames, 32 a word
export const MEM_ZERO_BITS = 7; //     C  slot of the bitmap of free frames known to hold zeros
export const MEM_FREE_HINT = 9; //     A  group in which a frame was freed last
export const MEM_PEAK = 10; //         A  most frames in use, as seen whenever an agent takes a new group
export const MEM_CLOCK_HAND = 11; //   A  where reclaim looks next, a cluster number
export const MEM_CLUSTER_SHIFT = 12; // C  log2 of frames in a cluster
export const MEM_READ_AHEAD = 8; //     C  pages that a read of a file brings in, a power of two
export const MEM_TLB_ENTRIES = 13; //  C  entries of an agent's TLB, power of two
export const MEM_MM = 14; //           C  slot of the mm row's header
export const MEM_FAULT_AROUND = 15; // C  pages
export const MEM_HEAP = 16; //         the heap header (SLAB_HEADER_WORDS) stands here, see slab.ts
export const MEM_AGENTS = 80; //       O  per agent: the group it allocates from + 1
export const AGENT_LIMIT_WORDS = 64;
/** Per agent: frames it took less frames it gave back, so that neither costs an atomic operation. */
export const MEM_USED: number = MEM_AGENTS + AGENT_LIMIT_WORDS; // O
export const MEM_FOLIO_QUEUES: number = MEM_USED + AGENT_LIMIT_WORDS; // A  wait queues for folio locks, hashed by frame
export const FOLIO_QUEUE_COUNT = 64; // power of two
/** Pages of devices have numbers behind those of frames, and records, but no bytes here. */
export const MEM_DEVICE_FIRST: number = MEM_FOLIO_QUEUES + FOLIO_QUEUE_COUNT * QUEUE_WORDS; // C  the first number, a multiple of 32
export const MEM_DEVICE_PAGES: number = MEM_DEVICE_FIRST + 1; // C  how many there can be
export const MEM_DEVICE_END: number = MEM_DEVICE_FIRST + 2; // A  behind the last that a device ever had
export const MEM_WORDS: number = MEM_DEVICE_FIRST + 4;

/** Bytes of a file that are read, kept together in memory and reclaimed as one. */
export const CLUSTER_BYTES = 65536;

// Frame record.
export const FOLIO_FLAGS = 0; //    A  PG_*, and the lock holder's slot + 1 in the top byte
export const FOLIO_COUNT = 1; //    A  references and mappings, below; 0 = free
export const FOLIO_MAPPING = 2; //  F  slot of the file whose page it is, with PG_ANON of the anon_vma; 0 = none
export const FOLIO_INDEX = 3; //    F  page index in that file, or page offset in that anon_vma
export const FOLIO_WORDS = 4;

// FOLIO_COUNT: one atomic operation maps a page or takes it from its last entry.
/** Page-table entries that map it, each with a reference. */
export const MAP_SHIFT = 18;
export const MAP_ONE: number = 1 << MAP_SHIFT;
/** References besides those of mappings. */
export const REFS_MASK: number = MAP_ONE - 1;
/** Most of them: the rest is for those who take one at the same time before they see it. */
export const MOST_REFS: number = 1 << (MAP_SHIFT - 1);
/** Most mappings, likewise; 13 bits are theirs. */
export const MOST_MAPPINGS = 8000;

export const PG_UPTODATE = 0x1; //   contents are what the backing holds, or newer
export const PG_DIRTY = 0x2; //      contents are newer than the backing
export const PG_WRITEBACK = 0x4; //  being written to the backing
export const PG_REFERENCED = 0x8; // used since reclaim last looked, other than through a page table
export const PG_ANON = 0x10; //      private to one space
export const PG_RESERVED = 0x20; //  the zero page: never freed, never written
export const PG_ERROR = 0x40; //     the backing could not deliver or take it
export const PG_LAZYFREE = 0x80; //  anonymous, and given up by madvise free unless it is written again
export const PG_BATCHED = 0x400; //  anonymous, and PG_BATCH_MASK says in which batch: see mm/batches.ts
export const PG_RECLAIM = 0x100; //  reclaim has unmapped it, and it is free once it is written back
export const PG_UNUSED = 0x200; //   allocated ahead, and not read or written since: not in core yet for mincore and fault-around
export const PG_BATCH_SHIFT = 12;
export const PG_BATCH_MASK: number = 0xfff << 12;
export const PG_LOCK_SHIFT = 24;
export const PG_LOCK_MASK: number = 0x7f << 24;

/** The frame of zeros that read faults on anonymous memory map. */
export const ZERO_PFN: Pfn = 0 as Pfn;

export type Folio = Slot<"folio">;
