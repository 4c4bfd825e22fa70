/**
 * The allocator of arena blocks: records, page-table pages, and larger tables.
 * Linux: mm/slub.c for the records, mm/page_alloc.c for the pages they are cut from.
 *
 * The heap is a grid of pages of 1024 words, 4 KiB aligned in the arena. Three kinds of block:
 *   - up to 512 words: a record in a slab page. A slab page holds records of one size class; the classes are
 *     the multiples of 4 words up to 64, then 1024 divided by 15, 14 ... 2, so a page has no tail worth a record
 *   - 513 to 1024 words: one page, without waste at 1024 (page-table pages)
 *   - more: a run of whole pages, exactly as many as needed
 * Free runs are merged with their neighbours at once and kept in one list per power of two of their length:
 * any member of a list above the wanted length fits, so the search is short. A block wastes less than a page.
 * (A buddy system would merge with less bookkeeping, but waste up to half of a run.)
 *
 * All bookkeeping is in the page map, none in the blocks: a free record keeps its last contents, so a reader
 * that came too late sees old values, never a list link. Because every record has its own bit, freeing twice or
 * with the wrong size is always noticed and throws; HEAP_DEBUG also fills freed blocks with a pattern.
 *
 * Pages at and above HEAP_HIGH were never used: they are not cleared on allocation, and their memory is not
 * touched before, so the operating system does not commit it.
 *
 * Invariants (checkHeap() verifies them)
 *   H1  The pages below HEAP_HIGH are covered by free runs, blocks and slab pages, side by side.
 *   H2  No two free runs touch; a free run is marked at its first and at its last page.
 *   H3  A page where nothing begins, and where no free run ends, says PAGE_NONE.
 *   H4  A free run is in the list of its length, and in no other; HEAP_BINS_SET has a bit for each non-empty list.
 *   H5  A slab page has at least one record in use, its bits agree with PAGE_IN_USE, and only records below
 *       PAGE_TOUCHED were ever handed out since the page was new.
 *   H6  A slab page is in the list of its class if and only if it has a free record.
 *   H7  HEAP_USED is the sum of all blocks.
 *
 * Lock order: the heap's spinlock is innermost; nothing is taken while it is held.
 */
import type { Arena, LockOwner } from "../sched/index.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";

// Access key:  C  constant once the heap exists    L  under HEAP_LOCK
//              R  under HEAP_LOCK to write; read by any (a word does not tear, and is old news in any case)

// Heap header.
export const HEAP_LOCK = 0; //          spinlock
export const HEAP_DEBUG = 1; //      R  1: freed blocks are filled with POISON
export const HEAP_MAP = 2; //        C  word index of the page map
export const HEAP_BASE = 3; //       C  word index of page 0
export const HEAP_PAGES = 4; //      C  pages of the heap
export const HEAP_HIGH = 5; //       L  pages below were used at least once
export const HEAP_USED = 6; //       R  words in blocks handed out
export const HEAP_BINS_SET = 7; //   L  bit b: HEAP_BINS + b is not empty
export const HEAP_BINS = 8; //       L  BIN_COUNT lists of free runs; list b: 2^b to 2^(b+1) - 1 pages
const BIN_COUNT = 22; //         word indices have 31 bits, a page 10
export const HEAP_PARTIAL = 30; //   L  CLASS_COUNT lists of slab pages with a free record
const CLASS_COUNT = 30;
/** Words of a heap header. */
export const SLAB_HEADER_WORDS = 60;

// Page map entry: one cache line for each page.
export const PAGE_KIND = 0; //     L  PAGE_*
export const PAGE_RUN = 1; //      L  pages of the free run (in its first and last entry) or of the block (first entry)
export const PAGE_NEXT = 2; //     L  next entry of the list that this free run or slab page is in, 0 = last
export const PAGE_PREV = 3; //     L  previous entry, 0 = first
export const PAGE_CLASS = 4; //    L  size class of a slab page
export const PAGE_IN_USE = 5; //   L  records handed out
export const PAGE_TOUCHED = 6; //  L  records below may hold old data, records from here on are still zero
export const PAGE_NOTE = 7; //     A  a word of whoever has the block of whole pages that begins here; see blockNote()
export const PAGE_BITS = 8; //     L  a bit for each record, set = handed out
const BITS_WORDS = 8;
const ENTRY_WORDS = 16;
const ENTRY_SHIFT = 4;

export const PAGE_NONE = 0;
export const PAGE_FREE = 1; //  first or last page of a free run
export const PAGE_BLOCK = 2; // first page of a block of whole pages
export const PAGE_SLAB = 3;

/** Words of a heap page; also the size of a page-table page. */
export const HEAP_PAGE_WORDS = 1024;
const HEAP_PAGE_SHIFT = 10;
/** Blocks start at multiples of this many words. */
export const BLOCK_ALIGN_WORDS = 4;
const BLOCK_ALIGN_SHIFT = 2;
const LARGEST_RECORD = 512;
const FINE_CLASSES = 16; // 4, 8 ... 64 words
const FIRST_DIVISOR = 15; // then a page divided by 15, by 14 ... by 2
const WORD_BITS = 32;
const WORD_BITS_SHIFT = 5;
const NO_PAGE = -1;
/** What debug mode leaves in freed blocks: odd, negative, and no plausible slot. */
const POISON: number = 0x9bad_f7ed | 0;

/** Words of a record, by size class. */
const CLASS_WORDS: Int32Array = Int32Array.from({ length: CLASS_COUNT }, (_, n) =>
  n < FINE_CLASSES
    ? (n + 1) * BLOCK_ALIGN_WORDS
    : alignDown(Math.floor(HEAP_PAGE_WORDS / (FIRST_DIVISOR - (n - FINE_CLASSES))), BLOCK_ALIGN_WORDS),
);
/** Size class, by length in units of BLOCK_ALIGN_WORDS. */
const CLASS_OF: Uint8Array = Uint8Array.from(
  { length: (LARGEST_RECORD >> BLOCK_ALIGN_SHIFT) + 1 },
  (_, units) => CLASS_WORDS.findIndex((words) => words >= units * BLOCK_ALIGN_WORDS),
);
const CLASS_CAPACITY: Int32Array = CLASS_WORDS.map((words) => Math.floor(HEAP_PAGE_WORDS / words));
const ZERO_PAGE: Int32Array = new Int32Array(HEAP_PAGE_WORDS);

function alignDown(n: number, unit: number): number {
  return n - (n % unit);
}

function alignUp(n: number, unit: number): number {
  return alignDown(n + unit - 1, unit);
}

// Plain accesses: every word of header and page map is touched under HEAP_LOCK only, whose Atomics order them,
// or (R) is a statistic. A block's words belong to whoever allocated it.
const load = (words: Int32Array, at: number): number => words[at] as number;

const classOf = (words: number): number =>
  CLASS_OF[(words + BLOCK_ALIGN_WORDS - 1) >> BLOCK_ALIGN_SHIFT] as number;
const pagesOf = (words: number): number => (words + HEAP_PAGE_WORDS - 1) >>> HEAP_PAGE_SHIFT;
const entryAt = (words: Int32Array, heap: number, page: number): number =>
  load(words, heap + HEAP_MAP) + (page << ENTRY_SHIFT);
const pageOfEntry = (words: Int32Array, heap: number, entry: number): number =>
  (entry - load(words, heap + HEAP_MAP)) >> ENTRY_SHIFT;
const pageStart = (words: Int32Array, heap: number, page: number): number =>
  load(words, heap + HEAP_BASE) + (page << HEAP_PAGE_SHIFT);

const lowestBit = (bits: number): number => WORD_BITS - 1 - Math.clz32(bits & -bits);
const floorLog2 = (n: number): number => WORD_BITS - 1 - Math.clz32(n);
const ceilLog2 = (n: number): number => WORD_BITS - Math.clz32(n - 1);

/**
 * Makes a heap of the words `[firstWord, endWord)`, with its header at `heap`.
 *
 * Preconditions: the header and the words are zero and nobody uses them; `firstWord` > 0. What is left after
 *   the page map is cut to whole pages, none if there is no room for one.
 */
export function initHeap(a: Arena, heap: number, firstWord: number, endWord: number): void {
  const map = alignUp(firstWord, ENTRY_WORDS);
  let pages = Math.max(0, Math.floor((endWord - map) / (HEAP_PAGE_WORDS + ENTRY_WORDS)));
  let base = alignUp(map + pages * ENTRY_WORDS, HEAP_PAGE_WORDS);
  // Aligning the first page may have cost the last one.
  if (pages > 0 && base + pages * HEAP_PAGE_WORDS > endWord) {
    pages--;
    base = alignUp(map + pages * ENTRY_WORDS, HEAP_PAGE_WORDS);
  }
  a.words[heap + HEAP_MAP] = map;
  a.words[heap + HEAP_BASE] = base;
  a.words[heap + HEAP_PAGES] = pages;
}

/** Fills freed blocks with a pattern from now on, or stops doing so. */
export function setHeapDebug(a: Arena, heap: number, on: boolean): void {
  Atomics.store(a.words, heap + HEAP_DEBUG, on ? 1 : 0);
}

/**
 * Takes a zeroed block of at least `words` words, aligned to 16 bytes (from 513 words on: to 4 KiB).
 * Answers its word index, or 0 when there is no room for it; then nothing has changed.
 *
 * Preconditions: the heap's lock is not held by this agent; `words` is a positive integer.
 */
export function allocWords(agent: LockOwner, heap: number, words: number): number {
  return words <= LARGEST_RECORD ? allocRecord(agent, heap, words) : allocPages(agent, heap, words);
}

/**
 * Gives a block back. `words` is what it was allocated with.
 * Throws, and changes nothing, if no block of that size is in use at `at`: freed twice, wrong size, wrong place.
 */
export function freeWords(agent: LockOwner, heap: number, at: number, words: number): void {
  const w = agent.words;
  lockSpin(agent, heap + HEAP_LOCK);
  const wrong = whyNotFreeableLocked(w, heap, at, words);
  if (wrong === undefined) {
    if (load(w, heap + HEAP_DEBUG) !== 0) w.fill(POISON, at, at + blockWords(words));
    w[heap + HEAP_USED] = load(w, heap + HEAP_USED) - blockWords(words);
    if (words <= LARGEST_RECORD) freeRecordLocked(w, heap, at);
    else freePagesLocked(w, heap, at, pagesOf(words));
  }
  unlockSpin(agent, heap + HEAP_LOCK);
  if (wrong !== undefined) throw new Error(`freeWords: ${words} words at 0x${at.toString(16)}: ${wrong}`);
}

/**
 * A word beside a block of whole pages, 0 when it is handed out: its owner's, for what does not fit in the block.
 * Preconditions: the block is in use.
 */
export const blockNote = (a: Arena, heap: number, at: number): number =>
  entryAt(a.words, heap, (at - load(a.words, heap + HEAP_BASE)) >> HEAP_PAGE_SHIFT) + PAGE_NOTE;

/** Words of all blocks handed out, each counted with the size of its class or of its pages. */
export function heapUsedWords(a: Arena, heap: number): number {
  return Atomics.load(a.words, heap + HEAP_USED);
}

/**
 * Words of the heap that are in no block. A block of that size need not fit: they are scattered over runs of
 * pages and over the slab pages of the classes.
 */
export function heapFreeWords(a: Arena, heap: number): number {
  return load(a.words, heap + HEAP_PAGES) * HEAP_PAGE_WORDS - heapUsedWords(a, heap);
}

/** Words of memory that a block of `words` words takes. */
export function blockWords(words: number): number {
  return words <= LARGEST_RECORD ? (CLASS_WORDS[classOf(words)] as number) : pagesOf(words) * HEAP_PAGE_WORDS;
}

function allocRecord(agent: LockOwner, heap: number, words: number): number {
  const w = agent.words;
  const sizeClass = classOf(words);
  const size = CLASS_WORDS[sizeClass] as number;
  lockSpin(agent, heap + HEAP_LOCK);
  let entry = load(w, heap + HEAP_PARTIAL + sizeClass);
  if (entry === 0) {
    entry = newSlabLocked(w, heap, sizeClass);
    if (entry === 0) {
      unlockSpin(agent, heap + HEAP_LOCK);
      return 0;
    }
  }
  const record = takeRecordLocked(w, entry);
  const inUse = load(w, entry + PAGE_IN_USE) + 1;
  w[entry + PAGE_IN_USE] = inUse;
  if (inUse === CLASS_CAPACITY[sizeClass]) removeLocked(w, heap + HEAP_PARTIAL + sizeClass, entry);
  // The lowest free record is taken, so an untouched one is the first of the untouched.
  const untouched = record === load(w, entry + PAGE_TOUCHED);
  if (untouched) w[entry + PAGE_TOUCHED] = record + 1;
  w[heap + HEAP_USED] = load(w, heap + HEAP_USED) + size;
  const at = pageStart(w, heap, pageOfEntry(w, heap, entry)) + record * size;
  unlockSpin(agent, heap + HEAP_LOCK);
  if (!untouched) zero(agent, at, words);
  return at;
}

function allocPages(agent: LockOwner, heap: number, words: number): number {
  const w = agent.words;
  const pages = pagesOf(words);
  lockSpin(agent, heap + HEAP_LOCK);
  const high = load(w, heap + HEAP_HIGH);
  const page = takeRunLocked(w, heap, pages);
  if (page === NO_PAGE) {
    unlockSpin(agent, heap + HEAP_LOCK);
    return 0;
  }
  const entry = entryAt(w, heap, page);
  w[entry + PAGE_KIND] = PAGE_BLOCK;
  w[entry + PAGE_RUN] = pages;
  w[entry + PAGE_NOTE] = 0;
  w[heap + HEAP_USED] = load(w, heap + HEAP_USED) + pages * HEAP_PAGE_WORDS;
  const at = pageStart(w, heap, page);
  unlockSpin(agent, heap + HEAP_LOCK);
  // Pages from `high` on were untouched until now.
  zero(agent, at, Math.min(words, Math.max(0, high - page) * HEAP_PAGE_WORDS));
  return at;
}

/** Zeroes `words` words, rounded up to the alignment: a block is never smaller than that. */
function zero(a: Arena, at: number, words: number): void {
  const doubles = a.doubles;
  let from = at;
  // Copying zeros is the fastest way to clear shared memory by the page, a loop of doubles to clear less.
  for (; from + HEAP_PAGE_WORDS <= at + words; from += HEAP_PAGE_WORDS) a.words.set(ZERO_PAGE, from);
  const end = (at + words + 1) >> 1;
  for (let n = from >> 1; n < end; n++) doubles[n] = 0;
}

/** Says what is wrong with freeing `words` words at `at`, or undefined. Preconditions: HEAP_LOCK held. */
function whyNotFreeableLocked(w: Int32Array, heap: number, at: number, words: number): string | undefined {
  const offset = at - load(w, heap + HEAP_BASE);
  const page = offset >> HEAP_PAGE_SHIFT;
  if (offset < 0 || page >= load(w, heap + HEAP_HIGH)) return "never was a block of this heap";
  const entry = entryAt(w, heap, page);
  const kind = load(w, entry + PAGE_KIND);
  if (kind === PAGE_FREE || kind === PAGE_NONE) return "not allocated (double free?)";
  if (kind === PAGE_BLOCK) {
    const pages = load(w, entry + PAGE_RUN);
    if (words <= LARGEST_RECORD || pages !== pagesOf(words))
      return `wrong size: the block there has ${pages} pages`;
    return pageStart(w, heap, page) === at ? undefined : "inside a block, not its start";
  }
  const sizeClass = load(w, entry + PAGE_CLASS);
  const size = CLASS_WORDS[sizeClass] as number;
  if (words > LARGEST_RECORD || classOf(words) !== sizeClass)
    return `wrong size: the blocks there have ${size} words`;
  const inPage = offset & (HEAP_PAGE_WORDS - 1);
  if (inPage % size !== 0) return "inside a block, not its start";
  const record = inPage / size;
  const bits = load(w, entry + PAGE_BITS + (record >> WORD_BITS_SHIFT));
  return (bits >>> (record & (WORD_BITS - 1))) & 1 ? undefined : "not allocated (double free?)";
}

/** Preconditions: HEAP_LOCK held; a record is in use at `at`. */
function freeRecordLocked(w: Int32Array, heap: number, at: number): void {
  const offset = at - load(w, heap + HEAP_BASE);
  const page = offset >> HEAP_PAGE_SHIFT;
  const entry = entryAt(w, heap, page);
  const sizeClass = load(w, entry + PAGE_CLASS);
  const list = heap + HEAP_PARTIAL + sizeClass;
  const record = (offset & (HEAP_PAGE_WORDS - 1)) / (CLASS_WORDS[sizeClass] as number);
  const bitsAt = entry + PAGE_BITS + (record >> WORD_BITS_SHIFT);
  w[bitsAt] = load(w, bitsAt) & ~(1 << (record & (WORD_BITS - 1)));
  const inUse = load(w, entry + PAGE_IN_USE);
  w[entry + PAGE_IN_USE] = inUse - 1;
  if (inUse === 1) {
    removeLocked(w, list, entry); // it is there: a page holds two records at least
    w[entry + PAGE_KIND] = PAGE_NONE;
    putRunLocked(w, heap, page, 1);
  } else if (inUse === CLASS_CAPACITY[sizeClass]) {
    pushLocked(w, list, entry);
  }
}

/** Preconditions: HEAP_LOCK held; a block of `pages` pages is in use at `at`. */
function freePagesLocked(w: Int32Array, heap: number, at: number, pages: number): void {
  const page = (at - load(w, heap + HEAP_BASE)) >> HEAP_PAGE_SHIFT;
  w[entryAt(w, heap, page) + PAGE_KIND] = PAGE_NONE;
  putRunLocked(w, heap, page, pages);
}

/** Makes a page a slab page of free records; answers its entry, or 0. Preconditions: HEAP_LOCK held. */
function newSlabLocked(w: Int32Array, heap: number, sizeClass: number): number {
  const high = load(w, heap + HEAP_HIGH);
  const page = takeRunLocked(w, heap, 1);
  if (page === NO_PAGE) return 0;
  const entry = entryAt(w, heap, page);
  w[entry + PAGE_KIND] = PAGE_SLAB;
  w[entry + PAGE_CLASS] = sizeClass;
  w[entry + PAGE_IN_USE] = 0;
  w[entry + PAGE_TOUCHED] = page >= high ? 0 : (CLASS_CAPACITY[sizeClass] as number);
  for (let n = 0; n < BITS_WORDS; n++) w[entry + PAGE_BITS + n] = 0;
  pushLocked(w, heap + HEAP_PARTIAL + sizeClass, entry);
  return entry;
}

/** Takes the lowest free record of a slab page. Preconditions: HEAP_LOCK held; there is one. */
function takeRecordLocked(w: Int32Array, entry: number): number {
  let at = entry + PAGE_BITS;
  let bits = load(w, at);
  while (bits === -1) bits = load(w, ++at);
  const bit = lowestBit(~bits);
  w[at] = bits | (1 << bit);
  return ((at - entry - PAGE_BITS) << WORD_BITS_SHIFT) + bit;
}

/**
 * Takes `pages` pages in a row that are marked PAGE_NONE; answers the first, or NO_PAGE.
 * Used pages are preferred to new ones. Preconditions: HEAP_LOCK held.
 */
function takeRunLocked(w: Int32Array, heap: number, pages: number): number {
  if (pages > load(w, heap + HEAP_PAGES)) return NO_PAGE;
  const entry = findRunLocked(w, heap, pages);
  if (entry !== 0) {
    const page = pageOfEntry(w, heap, entry);
    const run = load(w, entry + PAGE_RUN);
    removeRunLocked(w, heap, page, run);
    if (run > pages) addRunLocked(w, heap, page + pages, run - pages);
    return page;
  }
  // New pages, together with a free run that ends where they begin.
  const high = load(w, heap + HEAP_HIGH);
  const below = freeRunEndingAt(w, heap, high);
  const page = high - below;
  if (page + pages > load(w, heap + HEAP_PAGES)) return NO_PAGE;
  if (below > 0) removeRunLocked(w, heap, page, below);
  w[heap + HEAP_HIGH] = page + pages;
  return page;
}

/** Answers the entry of a free run of at least `pages` pages, or 0. Preconditions: HEAP_LOCK held. */
function findRunLocked(w: Int32Array, heap: number, pages: number): number {
  const fits = load(w, heap + HEAP_BINS_SET) & (-1 << ceilLog2(pages));
  if (fits !== 0) return load(w, heap + HEAP_BINS + lowestBit(fits));
  // The list of about this length may hold a run that is just long enough.
  let entry = load(w, heap + HEAP_BINS + floorLog2(pages));
  while (entry !== 0 && load(w, entry + PAGE_RUN) < pages) entry = load(w, entry + PAGE_NEXT);
  return entry;
}

/** Makes pages free and merges them with free neighbours. Preconditions: HEAP_LOCK held; marked PAGE_NONE. */
function putRunLocked(w: Int32Array, heap: number, page: number, pages: number): void {
  let first = page;
  let end = page + pages;
  const before = freeRunEndingAt(w, heap, first);
  if (before > 0) {
    first -= before;
    removeRunLocked(w, heap, first, before);
  }
  const after = entryAt(w, heap, end);
  // Past HEAP_HIGH there are entries that were never written, or none at all.
  if (end < load(w, heap + HEAP_HIGH) && load(w, after + PAGE_KIND) === PAGE_FREE) {
    const run = load(w, after + PAGE_RUN);
    removeRunLocked(w, heap, end, run);
    end += run;
  }
  addRunLocked(w, heap, first, end - first);
}

/** Pages of the free run that ends right before `page`, or 0. Preconditions: HEAP_LOCK held. */
function freeRunEndingAt(w: Int32Array, heap: number, page: number): number {
  if (page === 0) return 0;
  const last = entryAt(w, heap, page - 1);
  return load(w, last + PAGE_KIND) === PAGE_FREE ? load(w, last + PAGE_RUN) : 0;
}

/** Marks a free run at both ends and puts it on its list. Preconditions: HEAP_LOCK held. */
function addRunLocked(w: Int32Array, heap: number, page: number, pages: number): void {
  const first = entryAt(w, heap, page);
  const last = entryAt(w, heap, page + pages - 1);
  const bin = floorLog2(pages);
  w[first + PAGE_KIND] = PAGE_FREE;
  w[first + PAGE_RUN] = pages;
  w[last + PAGE_KIND] = PAGE_FREE;
  w[last + PAGE_RUN] = pages;
  pushLocked(w, heap + HEAP_BINS + bin, first);
  w[heap + HEAP_BINS_SET] = load(w, heap + HEAP_BINS_SET) | (1 << bin);
}

/** Takes a free run off its list and unmarks it. Preconditions: HEAP_LOCK held. */
function removeRunLocked(w: Int32Array, heap: number, page: number, pages: number): void {
  const first = entryAt(w, heap, page);
  const bin = floorLog2(pages);
  removeLocked(w, heap + HEAP_BINS + bin, first);
  if (load(w, heap + HEAP_BINS + bin) === 0) {
    w[heap + HEAP_BINS_SET] = load(w, heap + HEAP_BINS_SET) & ~(1 << bin);
  }
  w[first + PAGE_KIND] = PAGE_NONE;
  w[entryAt(w, heap, page + pages - 1) + PAGE_KIND] = PAGE_NONE;
}

/** Puts an entry at the head of a list. Preconditions: HEAP_LOCK held; it is in no list. */
function pushLocked(w: Int32Array, list: number, entry: number): void {
  const next = load(w, list);
  w[entry + PAGE_NEXT] = next;
  w[entry + PAGE_PREV] = 0;
  if (next !== 0) w[next + PAGE_PREV] = entry;
  w[list] = entry;
}

/** Preconditions: HEAP_LOCK held; the entry is in that list. */
function removeLocked(w: Int32Array, list: number, entry: number): void {
  const next = load(w, entry + PAGE_NEXT);
  const prev = load(w, entry + PAGE_PREV);
  if (prev === 0) w[list] = next;
  else w[prev + PAGE_NEXT] = next;
  if (next !== 0) w[next + PAGE_PREV] = prev;
}

/**
 * Names the first broken invariant, or answers undefined.
 * Preconditions: no other agent uses the heap meanwhile.
 */
export function checkHeap(a: Arena, heap: number): string | undefined {
  const w = a.words;
  const high = load(w, heap + HEAP_HIGH);
  if (high > load(w, heap + HEAP_PAGES)) return `H1: HEAP_HIGH is ${high}, beyond the last page`;
  let used = 0;
  let freeRuns = 0;
  let partial = 0;
  let afterFree = false;
  for (let page = 0; page < high;) {
    const entry = entryAt(w, heap, page);
    const kind = load(w, entry + PAGE_KIND);
    const run = kind === PAGE_SLAB ? 1 : load(w, entry + PAGE_RUN);
    if (kind === PAGE_NONE) return `H1: page ${page} belongs to nothing`;
    if (run < 1 || page + run > high)
      return `H1: the run at page ${page} has ${run} pages, HEAP_HIGH is ${high}`;
    if (kind === PAGE_SLAB) {
      const wrong = whySlabBroken(w, entry);
      if (wrong !== undefined) return `H5: slab page ${page}: ${wrong}`;
      const sizeClass = load(w, entry + PAGE_CLASS);
      const inUse = load(w, entry + PAGE_IN_USE);
      used += inUse * (CLASS_WORDS[sizeClass] as number);
      if (inUse < (CLASS_CAPACITY[sizeClass] as number)) partial++;
    } else if (kind === PAGE_BLOCK) {
      used += run * HEAP_PAGE_WORDS;
    } else if (kind === PAGE_FREE) {
      if (afterFree) return `H2: the free run at page ${page} is not merged with the one before`;
      const last = entryAt(w, heap, page + run - 1);
      if (load(w, last + PAGE_KIND) !== PAGE_FREE || load(w, last + PAGE_RUN) !== run) {
        return `H2: the free run at page ${page} is not marked at its last page`;
      }
      freeRuns++;
    } else {
      return `H1: page ${page} is of unknown kind ${kind}`;
    }
    for (let inner = page + 1; inner < page + run; inner++) {
      const isEnd = kind === PAGE_FREE && inner === page + run - 1;
      if (!isEnd && load(w, entryAt(w, heap, inner) + PAGE_KIND) !== PAGE_NONE) {
        return `H3: page ${inner}, inside the run at page ${page}, is marked`;
      }
    }
    afterFree = kind === PAGE_FREE;
    page += run;
  }
  if (heapUsedWords(a, heap) !== used)
    return `H7: HEAP_USED is ${heapUsedWords(a, heap)}, the blocks have ${used}`;
  return checkRunLists(w, heap, freeRuns) ?? checkSlabLists(w, heap, partial);
}

function whySlabBroken(w: Int32Array, entry: number): string | undefined {
  const sizeClass = load(w, entry + PAGE_CLASS);
  if (sizeClass < 0 || sizeClass >= CLASS_COUNT) return `size class ${sizeClass} does not exist`;
  let bitsSet = 0;
  let highest = -1;
  for (let record = 0; record < BITS_WORDS * WORD_BITS; record++) {
    const bits = load(w, entry + PAGE_BITS + (record >> WORD_BITS_SHIFT));
    if (((bits >>> (record & (WORD_BITS - 1))) & 1) === 0) continue;
    bitsSet++;
    highest = record;
  }
  const inUse = load(w, entry + PAGE_IN_USE);
  const capacity = CLASS_CAPACITY[sizeClass] as number;
  const touched = load(w, entry + PAGE_TOUCHED);
  if (bitsSet !== inUse) return `PAGE_IN_USE is ${inUse}, ${bitsSet} bits are set`;
  if (inUse === 0) return "no record is in use";
  if (touched > capacity) return `PAGE_TOUCHED is ${touched} of ${capacity} records`;
  if (highest >= touched) return `record ${highest} is in use, PAGE_TOUCHED is ${touched}`;
  return undefined;
}

function checkRunLists(w: Int32Array, heap: number, freeRuns: number): string | undefined {
  let found = 0;
  for (let bin = 0; bin < BIN_COUNT; bin++) {
    const list = heap + HEAP_BINS + bin;
    const marked = ((load(w, heap + HEAP_BINS_SET) >>> bin) & 1) !== 0;
    if (marked !== (load(w, list) !== 0)) return `H4: HEAP_BINS_SET is wrong about list ${bin}`;
    let prev = 0;
    for (let entry = load(w, list); entry !== 0; prev = entry, entry = load(w, entry + PAGE_NEXT)) {
      const page = pageOfEntry(w, heap, entry);
      if (load(w, entry + PAGE_KIND) !== PAGE_FREE) return `H4: page ${page} in list ${bin} is not free`;
      if (floorLog2(load(w, entry + PAGE_RUN)) !== bin)
        return `H4: the run at page ${page} is in list ${bin}`;
      if (load(w, entry + PAGE_PREV) !== prev) return `H4: list ${bin} is badly linked at page ${page}`;
      if (++found > freeRuns) return `H4: the lists have more than the ${freeRuns} free runs`;
    }
  }
  return found === freeRuns ? undefined : `H4: ${freeRuns - found} free runs are in no list`;
}

function checkSlabLists(w: Int32Array, heap: number, partial: number): string | undefined {
  let found = 0;
  for (let sizeClass = 0; sizeClass < CLASS_COUNT; sizeClass++) {
    const list = heap + HEAP_PARTIAL + sizeClass;
    let prev = 0;
    for (let entry = load(w, list); entry !== 0; prev = entry, entry = load(w, entry + PAGE_NEXT)) {
      const page = pageOfEntry(w, heap, entry);
      if (load(w, entry + PAGE_KIND) !== PAGE_SLAB || load(w, entry + PAGE_CLASS) !== sizeClass) {
        return `H6: page ${page} does not belong in the list of class ${sizeClass}`;
      }
      if (load(w, entry + PAGE_IN_USE) >= (CLASS_CAPACITY[sizeClass] as number)) {
        return `H6: slab page ${page} is full and still in a list`;
      }
      if (load(w, entry + PAGE_PREV) !== prev) return `H6: list ${sizeClass} is badly linked at page ${page}`;
      if (++found > partial) return `H6: the lists have more than the ${partial} slab pages with room`;
    }
  }
  return found === partial ? undefined : `H6: ${partial - found} slab pages with room are in no list`;
}
