/**
 * The page tables of a space: a radix tree whose lowest tables it may share with other spaces after fork, and which parts
 * of it Linux would have freed.
 *
 * Sharing. A table (1024 entries) whose pages are all private and anonymous is not copied by fork: parent and child point
 * to the same one, both pointers with TABLE_SHARED. What an entry permits is the AND over both levels: nothing can be
 * written through such a pointer, and no frame counts as a mapping's own. Frames count one mapping for the table, however
 * many spaces it has. Who changes anything but by clearing it for all makes the table his own first: by taking it
 * over where the others are gone, else by copying it, as if fork had done so.
 *
 *   S1  The note beside a table is the number of its spaces, where it was ever shared.
 *   S2  With more than one, each pointer to it has TABLE_SHARED.
 *   S3  Entries of a table are not changed through a pointer with TABLE_SHARED, but for WRITE and EXCLUSIVE, which go when
 *       it is copied or taken over, and by the reaper of a dead agent.
 *   S4  SP_SHARED of a space is 0 only if none of its pointers has TABLE_SHARED.
 *
 *   pointer           changes                                                             under
 *   0 -> table        the first page of a stretch                                         mmapLock (read)
 *   table -> shared   fork, which waits for the acknowledgements of all agents            mmapLock (write)
 *   0 -> shared       fork, in the child                                                  nobody else uses it
 *   shared -> own     the first change                                                    mmapLock (read), the table's lock
 *   shared -> 0       exit                                                                mmapLock (write)
 *
 * Walks take no lock. The walk of an access reads the pointer again after it has stored a translation, and drops it if it is
 * another; it writes nothing through a shared pointer. The walk from a file to its mappings keeps a space protected
 * while it goes: a table is freed only when no such walk is left that may be in it. Other tables live as long as their space.
 *
 * Linux frees the tables of a stretch without any mapping, and mprotect tells nobody where there are none; so each entry of
 * the top table can be marked as cold.
 *
 * Lock order: mmapLock > a table's spinlock > heap.
 */
import { MmError } from "../errors.ts";
import { allocWords, blockNote, freeWords, HEAP_PAGE_WORDS } from "../memory/index.ts";
import { WORD_BYTES } from "../units.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import { MM_TABLE_LOCKS, type Pte, SP_COLD, SP_COLD_COUNT, SP_SHARED, TABLE_LOCK_COUNT } from "./layout.ts";
import { unuseSpace, useSpace } from "./lifetime.ts";
import type { Mm } from "./mm.ts";
import { isBusy, isValid, pfnOfPte, PTE_EXCLUSIVE, PTE_PFN_SHIFT, PTE_WRITE, settleBusy } from "./pte.ts";
import {
  entryIn,
  INDEX_END,
  LEAF_ENTRIES,
  radixEnsure,
  radixEnsurePointer,
  radixPointer,
  radixStretches,
  TABLE_SHARED,
  TOP_STRETCH,
} from "./radix.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { firstVma } from "./vma.ts";

/** What a shared table keeps from every mapping. */
const NOT_SHARED: number = PTE_WRITE | PTE_EXCLUSIVE;

/** Anonymous pages are never written out. */
const NEVER_DIRTY = { shift: PTE_PFN_SHIFT, mask: 0, want: 1 };

export const noTables = (operation: string): MmError =>
  new MmError(
    "ENOMEM",
    operation,
    "the arena has no room for page tables; create the memory with a larger arena",
  );

/** The entry of a page, its tables made where missing, and this space's own; 0 if the arena is full. Preconditions: mmapLock. */
export function ensureEntry(space: SpaceCore, vpn: number): Pte {
  const { agent, mm, slot } = space;
  const w = agent.words;
  // Plain: it changes under mmapLock for writing, but for other faults that come by here.
  if (w[slot + SP_COLD_COUNT] !== 0) warm(space, Math.floor(vpn / TOP_STRETCH));
  if (w[slot + SP_SHARED] !== 0) {
    const at = radixPointer(w, space.pgd, vpn);
    if (at !== 0 && !own(space, at)) return 0 as Pte;
  }
  return radixEnsure(agent, mm.heap, space.pgd, vpn);
}

/** What an access may make of a page, 0 if nothing is there. Needs no lock. */
export function loadPte(space: SpaceCore, vpn: number): number {
  const w = space.agent.words;
  for (;;) {
    const at = radixPointer(w, space.pgd, vpn);
    const pointer = at === 0 ? 0 : Atomics.load(w, at);
    if (pointer === 0) return 0;
    const pte = Atomics.load(w, entryIn(pointer, vpn));
    // Else the table may have been freed before we came to it.
    if (Atomics.load(w, at) !== pointer) continue;
    return (pointer & TABLE_SHARED) !== 0 && isValid(pte) ? pte & ~NOT_SHARED : pte;
  }
}

// ---- sharing --------------------------------------------------------------------------------------------------------

const lockOf = (mm: Mm, table: number): number =>
  mm.header + MM_TABLE_LOCKS + ((table / HEAP_PAGE_WORDS) & (TABLE_LOCK_COUNT - 1));

const spacesOf = (mm: Mm, table: number): number => blockNote(mm.agent, mm.heap, table);

/** True if other spaces have the table, too, that a page is in. Preconditions: mmapLock, or an answer that may be old. */
export function inSharedTable(space: SpaceCore, vpn: number): boolean {
  const { agent, mm } = space;
  const w = agent.words;
  if (Atomics.load(w, space.slot + SP_SHARED) === 0) return false;
  const at = radixPointer(w, space.pgd, vpn);
  const pointer = at === 0 ? 0 : Atomics.load(w, at);
  return (pointer & TABLE_SHARED) !== 0 && Atomics.load(w, spacesOf(mm, pointer & ~TABLE_SHARED)) > 1;
}

/**
 * Makes the table behind a pointer this space's own. False if the arena is full. Translations stay good: the frames are
 * the same, and none was writable. Preconditions: mmapLock.
 */
function own(space: SpaceCore, at: number): boolean {
  const { agent, mm } = space;
  const w = agent.words;
  const pointer = w[at]!; // plain: fork marks it under mmapLock for writing, and below it is looked at again
  if ((pointer & TABLE_SHARED) === 0) return true;
  const table = pointer & ~TABLE_SHARED;
  const lock = lockOf(mm, table);
  for (let fresh = 0; ;) {
    lockSpin(agent, lock);
    // Under the lock: as long as our pointer is there, the table is, too.
    const mine = Atomics.load(w, at) === pointer;
    const spaces = mine ? Atomics.load(w, spacesOf(mm, table)) : 0;
    const done = !mine || spaces <= 1 || fresh !== 0;
    if (mine && done) {
      if (spaces > 1) {
        copyTable(mm, table, fresh);
        Atomics.store(w, spacesOf(mm, table), spaces - 1);
      } else mm.frames.kernels.protectRange(table * WORD_BYTES, LEAF_ENTRIES, ~NOT_SHARED, 0);
      Atomics.store(w, at, spaces > 1 ? fresh : table);
      Atomics.sub(w, space.slot + SP_SHARED, 1);
      if (spaces > 1) fresh = 0;
    }
    unlockSpin(agent, lock);
    if (done) {
      if (fresh !== 0) freeWords(agent, mm.heap, fresh, HEAP_PAGE_WORDS);
      return true;
    }
    fresh = allocWords(agent, mm.heap, HEAP_PAGE_WORDS);
    if (fresh === 0) return false;
  }
}

/** Copies a shared table as fork copies entries: each frame has one mapping more, and is nobody's own. */
function copyTable(mm: Mm, from: number, to: number): void {
  const { frames } = mm;
  const w = mm.agent.words;
  const others = frames.shareEntries(from, to, LEAF_ENTRIES, ~NOT_SHARED, PTE_PFN_SHIFT);
  if (!isBusy(others)) return;
  // Left behind by an agent that has died; its reaper settles those of the other table.
  for (let k = 0; k < LEAF_ENTRIES; k++) {
    const pte = w[to + k]!;
    if (!isBusy(pte)) continue;
    frames.addMapping(pfnOfPte(pte));
    Atomics.store(w, to + k, settleBusy(pte, false) & ~NOT_SHARED);
  }
}

/** Makes the tables of `[start, end)` (pages) this space's own, before their entries are changed. Errors: ENOMEM. Preconditions: mmapLock. */
export function ownTables(space: SpaceCore, operation: string, start: number, end: number): void {
  const w = space.agent.words;
  if (w[space.slot + SP_SHARED] === 0) return; // plain: it goes up under mmapLock for writing
  radixStretches(w, space.pgd, start, end, (_entry, _vpn, _count, at) => {
    if (!own(space, at)) throw noTables(operation);
  });
}

/**
 * Takes write permission from a space in the tables of `[first, end)` (pages). Adds to `marked` where the pointers are to
 * those that had it. Preconditions: mmapLock for writing.
 */
export function markShared(space: SpaceCore, first: number, end: number, marked: number[]): void {
  const w = space.agent.words;
  const before = marked.length;
  radixStretches(w, space.pgd, first, end, (_entry, _vpn, _count, at) => {
    if ((w[at]! & TABLE_SHARED) !== 0) return;
    Atomics.or(w, at, TABLE_SHARED);
    marked.push(at);
  });
  Atomics.add(w, space.slot + SP_SHARED, marked.length - before);
}

/** Undoes markShared() in one table, which no other space has got meanwhile. Preconditions: as there, under the same lock. */
export function unmarkShared(space: SpaceCore, at: number): void {
  const w = space.agent.words;
  Atomics.and(w, at, ~TABLE_SHARED);
  Atomics.sub(w, space.slot + SP_SHARED, 1);
}

/** Undoes markShared() where no other space has got the table, and it has not been undone yet. */
export function unmarkUnshared(space: SpaceCore, marked: readonly number[]): void {
  const w = space.agent.words;
  for (const at of marked) {
    const pointer = w[at]!;
    if ((pointer & TABLE_SHARED) === 0) continue;
    if (Atomics.load(w, spacesOf(space.mm, pointer & ~TABLE_SHARED)) <= 1) unmarkShared(space, at);
  }
}

/**
 * Lets a child have the tables of `[first, end)` (pages) behind marked pointers of its parent's, too. Errors: ENOMEM.
 * Preconditions: mmapLock of the parent for writing; nobody uses the child yet.
 */
export function shareTables(space: SpaceCore, child: SpaceCore, first: number, end: number): void {
  const { agent, mm } = space;
  const w = agent.words;
  let shared = 0;
  try {
    radixStretches(w, space.pgd, first, end, (_entry, vpn, _count, at) => {
      const pointer = w[at]!;
      if ((pointer & TABLE_SHARED) === 0) return; // copied: somebody has a view
      const to = radixEnsurePointer(agent, mm.heap, child.pgd, vpn);
      if (to === 0) throw noTables("fork");
      const note = spacesOf(mm, pointer & ~TABLE_SHARED);
      // Only spaces that have the table change the number, and the parent has it: it cannot come to 0 meanwhile.
      if (w[note]! > 1) Atomics.add(w, note, 1);
      else w[note] = 2;
      w[to] = pointer;
      shared++;
    });
  } finally {
    Atomics.add(w, child.slot + SP_SHARED, shared);
  }
}

/** Where in a space its pointers to shared tables are, and what they were. */
export type Detached = readonly { readonly at: number; readonly pointer: number }[];

/** Takes the shared tables out of a space that ends. Translations from them may still be in use. Preconditions: mmapLock for writing. */
export function detachTables(space: SpaceCore): Detached {
  const w = space.agent.words;
  const detached: { at: number; pointer: number }[] = [];
  if (Atomics.load(w, space.slot + SP_SHARED) === 0) return detached;
  radixStretches(w, space.pgd, 0, INDEX_END, (_entry, _vpn, _count, at) => {
    const pointer = Atomics.load(w, at);
    if ((pointer & TABLE_SHARED) === 0) return;
    Atomics.store(w, at, 0);
    detached.push({ at, pointer });
  });
  return detached;
}

export function reattachTables(space: SpaceCore, detached: Detached): void {
  for (const { at, pointer } of detached) Atomics.store(space.agent.words, at, pointer);
}

/** Gives detached tables up; what no other space has is freed, with its pages. Preconditions: nobody uses the translations. */
export function releaseTables(space: SpaceCore, detached: Detached): void {
  const { agent, mm } = space;
  const w = agent.words;
  const unused: number[] = [];
  for (const { pointer } of detached) {
    const table = pointer & ~TABLE_SHARED;
    lockSpin(agent, lockOf(mm, table));
    const left = Atomics.load(w, spacesOf(mm, table)) - 1;
    Atomics.store(w, spacesOf(mm, table), Math.max(left, 1));
    unlockSpin(agent, lockOf(mm, table));
    if (left <= 0) unused.push(table);
  }
  Atomics.sub(w, space.slot + SP_SHARED, detached.length);
  if (unused.length > 0) mm.awaitUnprotected();
  for (const table of unused) {
    mm.frames.dropMapped(table, table, LEAF_ENTRIES, NEVER_DIRTY);
    freeWords(agent, mm.heap, table, HEAP_PAGE_WORDS);
  }
}

// ---- what Linux would have freed --------------------------------------------------------------------------------------

function warm(space: SpaceCore, top: number): void {
  const w = space.agent.words;
  const bit = 1 << (top & 31);
  if ((Atomics.and(w, space.slot + SP_COLD + (top >>> 5), ~bit) & bit) !== 0)
    Atomics.sub(w, space.slot + SP_COLD_COUNT, 1);
}

/** Marks the tables around `[start, end)` (pages) where nothing is mapped any more. Preconditions: mmapLock for writing. */
export function chill(space: SpaceCore, start: number, end: number): void {
  const w = space.agent.words;
  const { pageSize } = space.mm;
  for (let top = Math.floor(start / TOP_STRETCH); top * TOP_STRETCH < end; top++) {
    const bit = 1 << (top & 31);
    if (Atomics.load(w, space.pgd + top) === 0) continue;
    if (firstVma(space, top * TOP_STRETCH * pageSize, (top + 1) * TOP_STRETCH * pageSize) !== 0) continue;
    if ((Atomics.or(w, space.slot + SP_COLD + (top >>> 5), bit) & bit) === 0)
      Atomics.add(w, space.slot + SP_COLD_COUNT, 1);
  }
}

/** True if some of `[start, end)` (pages) has a table that Linux would have too. Preconditions: mmapLock for writing. */
export function hasTables(space: SpaceCore, start: number, end: number): boolean {
  const w = space.agent.words;
  for (let top = Math.floor(start / TOP_STRETCH); top * TOP_STRETCH < end; top++) {
    // Plain: faults change these under mmapLock.
    const cold = (w[space.slot + SP_COLD + (top >>> 5)]! & (1 << (top & 31))) !== 0;
    if (!cold && w[space.pgd + top] !== 0) return true;
  }
  return false;
}

/** How many of the pages from `vpn` on, `most` at most, are mapped one after the other. A hint; never waits. */
export function presentPages(space: SpaceCore, vpn: number, most: number): number {
  useSpace(space, "mirror");
  try {
    for (let k = 0; k < most; k++) if (!isValid(loadPte(space, vpn + k))) return k;
    return most;
  } finally {
    unuseSpace(space);
  }
}
