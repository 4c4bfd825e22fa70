/**
 * Records of the mm row: spaces, vmas, files, and the row's header.
 *
 * Access key: A any agent, Atomics only · C constant while allocated · M under the space's mmapLock for writing,
 * read under it or by sequence count · F under the file's lock · Y under the family's lock · O written by the owning agent
 * only.
 */
import { IT_WORDS, MOST_MAPPINGS } from "../memory/index.ts";
import { QUEUE_WORDS } from "../sched/index.ts";
import { MUTEX_WORDS, rwSemWords } from "../sync/index.ts";
import type { Slot } from "../units.ts";

// Header of the row; found by MEM_MM.
export const MM_LOCK = 0; //     A  spinlock over the lists of spaces and files, and over anon_vmas that come and go
export const MM_SPACES = 1; //   A (stored under MM_LOCK)  newest space
export const MM_FILES = 2; //    A (stored under MM_LOCK)  newest file
export const MM_IDS = 3; //      A  source of space and file ids
export const MM_OWNERS = 4; //   A  source of owner ids
export const MM_CLOSED = 5; //   A  1: close() has begun
export const MM_DRAINS = 6; //   A  how often Linux would have emptied its batches of pages: see batches.ts
export const MM_SPACE_COUNT = 7; // A  spaces, those that exit included
/** Most spaces: an anonymous page is mapped once in each at most, so that its mappings can always be counted. */
export const MOST_SPACES: number = MOST_MAPPINGS;
export const MM_TABLE_LOCKS = 8; // A  spinlocks of shared page-table pages, hashed: see pageTables.ts
export const TABLE_LOCK_COUNT = 8; // power of two
export const MM_VIEWS = 16; //   O (reaper once)  per agent: newest block of its log of views
export const MM_PINS: number = MM_VIEWS + 64; // O (reaper once)  per agent: newest block of its log of pins
export const MM_HELD_RUNS: number = MM_PINS + 64; // O (reaper once)  per agent: runs of its logs that fork must know of: see views.ts
export const MM_PROTECTED: number = MM_HELD_RUNS + 64; // O (reaper once)  per agent: the space it is about to use, 0 = none
export const FUTEX_BUCKETS = 64;
export const MM_FUTEXES: number = MM_PROTECTED + 64; // A  buckets of two words: see futex.ts
export const MM_DEVICES: number = MM_FUTEXES + 2 * FUTEX_BUCKETS; // A (stored under MM_LOCK)  newest device
export const MM_TRACKERS: number = MM_DEVICES + 2; // A  write trackers of all spaces: see trackers.ts
export const MM_COUNTERS: number = MM_TRACKERS + 16; // O  per agent: COUNTER_WORDS counters
export const COUNTER_WORDS = 32;
export const mmWords = (maxAgents: number): number => MM_COUNTERS + maxAgents * COUNTER_WORDS;

// Counters of an agent.
export const CT_MINOR = 0;
export const CT_MAJOR = 1;
export const CT_COW = 2;
export const CT_EVICTIONS = 3;
export const CT_WRITEBACKS = 4;
export const CT_FLUSHES = 5;
export const CT_EVENTS = 8; // eight: one per MmuNotifierEvent
export const EVENT_COUNT = 8;

// Space. Linux: mm_struct.
export const SP_ID = 0; //        C
export const SP_STATE = 1; //     A  SPACE_*
export const SP_NEXT = 2; //      A (stored under MM_LOCK)
export const SP_PGD = 3; //       C  root of the page table
export const SP_SUBS = 4; //      C
export const SP_VMAS = 5; //      M  root of the tree of vmas, keyed by address
export const SP_VMA_SEQ = 6; //   A (stored under M)  sequence count over the tree
export const SP_COLD_COUNT = 7; // A (set under M)  bits of SP_COLD
export const SP_FAULTQ = 8; //    A  wait queue: a busy entry has been settled
export const SP_COLD: number = SP_FAULTQ + QUEUE_WORDS; // A (set under M)  a bit for each entry of the top table: see pageTables.ts
export const SP_SHARED: number = SP_COLD + 64; // A (set under M)  tables shared with other spaces, at most: see pageTables.ts
export const SP_SPECIAL: number = SP_COLD + 65; // A  1: there may be entries of pages on devices, or on their way: see pte.ts
export const SP_MIGRATING: number = SP_COLD + 66; // A  operations that have put migration entries in it
export const SP_TRACKERS: number = SP_COLD + 67; // M  newest write tracker: see trackers.ts
export const SP_SPARE_VMA: number = SP_COLD + 68; // M  blank records of vmas, linked by VMA_SPACE: see vma.ts
export const SP_MMAP_LOCK: number = SP_COLD + 70;
/** Each agent's TLB of this space, 0 = none. */
export const spTlbAt = (space: number, maxAgents: number, slot: number): number =>
  space + SP_MMAP_LOCK + rwSemWords(maxAgents) + slot; // A (stored by the owner)
/** The table that the agent takes up when it drops all its translations at once, 0 = none. */
export const spSpareTlbAt = (space: number, maxAgents: number, slot: number): number =>
  spTlbAt(space, maxAgents, maxAgents) + slot; // A (stored by the owner)
/** Each agent's uses of this space: see lifetime.ts. */
export const spUsersAt = (space: number, maxAgents: number, slot: number): number =>
  spSpareTlbAt(space, maxAgents, maxAgents) + slot; // A (stored by the owner, its reaper)
export const spaceWords = (maxAgents: number): number => SP_MMAP_LOCK + rwSemWords(maxAgents) + 3 * maxAgents;

// NEW -> LIVE the end of fork(); LIVE -> EXITING exit() by compare-exchange; EXITING -> EXITED its end; EXITED -> FREE the last use, under MM_LOCK.
export const SPACE_FREE = 0;
export const SPACE_LIVE = 1;
export const SPACE_EXITING = 2;
export const SPACE_EXITED = 3;
/** A child that fork still fills: nobody finds it by its id. */
export const SPACE_NEW = 4;

// Vma. Linux: vm_area_struct. The node in the space's tree comes first.
export const VMA_FILE_NODE: number = IT_WORDS; //        F  node in the file's tree, keyed by file offset
export const VMA_ANON_NODE: number = 2 * IT_WORDS; //    Y  node in the tree of the anon_vma's family, keyed by page offset
export const VMA_SPACE: number = 3 * IT_WORDS; //        C
export const VMA_FILE: number = 3 * IT_WORDS + 1; //     C  0 = anonymous
export const VMA_FLAGS: number = 3 * IT_WORDS + 2; //    M  VM_*
export const VMA_PGOFF: number = 3 * IT_WORDS + 3; //    M  page of the file at its start; anonymous: see vma.ts
export const VMA_ANON: number = 3 * IT_WORDS + 4; //     A (set once by faults, else M)  its anon_vma; 0 = none
export const VMA_WORDS: number = 3 * IT_WORDS + 6;

// Anon_vma: see anonTree.ts.
export const AV_ROOT = 0; //   C  the first of its family
export const AV_PARENT = 1; // C  the one that fork put it below, 0 = none
export const AV_HOME = 2; //   C  what pages name that are made in it
export const AV_DEPTH = 3; //  C  how many are above it
export const AV_USES = 4; //   A  vmas that have it, and records below it
export const AV_LOCK = 5; //   A  spinlock of the family, in its first
export const AV_VMAS = 6; //   Y  root of the family's tree of vmas, in its first
export const AV_WORDS = 8;

export const VM_READ = 0x1;
export const VM_WRITE = 0x2;
export const VM_EXEC = 0x4;
export const VM_PROT = 0x7;
export const VM_SHARED = 0x8;
export const VM_LOCKED = 0x10; //      mlock: stays in memory
export const VM_LOCKONFAULT = 0x20; // and is brought in by faults only
export const VM_SEQ_READ = 0x40; //    madvise sequential
export const VM_RAND_READ = 0x80; //   madvise random
export const VM_DONTCOPY = 0x100; //   madvise dontfork
export const VM_WIPEONFORK = 0x200;
export const VM_DONTDUMP = 0x400;
export const VM_NORESERVE = 0x800;
export const VM_ACCOUNT = 0x1000; //   private and writable once: would be charged
/** Guards may be in it, or have been: fork copies its entries. Does not keep mappings apart; both have it once they merge. */
export const VM_MAYBE_GUARD = 0x4000;
/** Not a property of the mapping: its anon_vma came by fork, and the parent has one in its chain. */
export const VM_FORK_CHILD = 0x2000;

// File: the page cache object of a backing. Linux: inode + address_space.
export const FL_ID = 0; //       C
export const FL_STATE = 1; //    A  FILE_*
export const FL_NEXT = 2; //     A (stored under MM_LOCK)
export const FL_ROOT = 3; //     C  radix tree: page index -> frame + 1
export const FL_SIZE = 4; //     A double, stored under FL_MUTEX
export const FL_VMAS = 6; //     F  root of the tree of vmas, keyed by file offset
export const FL_LOCK = 7; //     A  spinlock
export const FL_KIND = 8; //     C  BACKING_*
export const FL_OPENER = 9; //   C  owner id of the agent that opened it
export const FL_DESCRIPTOR = 10; // C  block with the descriptor as UTF-8 JSON
export const FL_DESCRIPTOR_BYTES = 11; // C
export const FL_WRITABLE = 12; // C  FILE_WRITABLE, FILE_RESIZABLE
export const FL_ERROR = 13; //   A  1: a write-back failed since the last report
export const FL_PAGES = 14; //   A  frames in the cache
export const FL_USERS = 15; //   A  vmas and open handles
export const FL_MUTEX = 16; //   A  held while the file's extent changes
export const FL_WORDS: number = FL_MUTEX + MUTEX_WORDS;

/** Write-back is possible. */
export const FILE_WRITABLE = 1;
/** So is another size. */
export const FILE_RESIZABLE = 2;

export const FILE_FREE = 0;
export const FILE_LIVE = 1;

// Device: memory that only a device can address. Linux: dev_pagemap.
export const DV_ID = 0; //     C
export const DV_NEXT = 1; //   A (stored under MM_LOCK)
export const DV_STATE = 2; //  A  DEVICE_*
export const DV_FIRST = 3; //  C  number of its first page
export const DV_PAGES = 4; //  C
export const DV_OPENER = 5; // C  owner id of the agent that has it
export const DV_OWNER = 6; //  C  what its notifiers know it by
export const DV_AROUND = 7; // C  most pages that one access brings back
export const DV_WORDS = 8;

export const DEVICE_LIVE = 0;
/** Its pages cannot be had any more. */
export const DEVICE_LOST = 1;

/** Bytes live in frames and nowhere else; they are never reclaimed. */
export const BACKING_MEMORY = 1;
/** Every agent opens its own from the descriptor. */
export const BACKING_DESCRIPTOR = 2;
/** The opener serves the others. */
export const BACKING_SERVED = 3;

// Kinds of message of this row.
export const MESSAGE_READ = 16; //  ARG0 file, ARG1 first frame, ARG2 frames, ARG3 page index
export const MESSAGE_WRITE = 17; // the same
export const MESSAGE_FLUSH = 18; // ARG0 file
export const MESSAGE_TRUNCATE = 19; // ARG0 file; to the size that its record has
export const MESSAGE_BRING_HOME = 20; // ARG0 space, ARG1 its id, ARG2 page; RESULT BROUGHT_*
/** No frames are left for the page. */
export const BROUGHT_NO_FRAMES = 1;

export type Space = Slot<"space">;
export type Vma = Slot<"vma">;
export type File = Slot<"file">;
export type Device = Slot<"device">;
export type AnonVma = Slot<"anonVma">;
/** Word index of a page-table entry, or of an entry of a file's radix tree. */
export type Pte = Slot<"pte">;
