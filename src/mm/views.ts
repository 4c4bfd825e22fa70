/**
 * Views: frame references that an agent holds until its turn ends or it polls. Linux: the pins of get_user_pages().
 *
 * The log lies in the arena, written by its agent only, so that what a dead agent held can be given back. An entry is
 * a run of frames: the number of the first shifted left, and how many. Bit 0 says writable: such a view writes through no
 * translation, so nobody can stop it, and the frames count as dirty again when it is dropped.
 */
import { HEAP_PAGE_WORDS, PG_ANON, PG_DIRTY, ZERO_PFN } from "../memory/index.ts";
import { MM_VIEWS, MM_WRITABLE_VIEWS } from "./layout.ts";
import type { Mm } from "./mm.ts";

const BLOCK_NEXT = 0;
/** Entries in use. */
const BLOCK_COUNT = 1;
const BLOCK_ENTRIES = 2;
const RUN_FIRST = 0;
const RUN_PAGES = 1;
const RUN_WORDS = 2;
const BLOCK_LIMIT: number = (HEAP_PAGE_WORDS - BLOCK_ENTRIES) / RUN_WORDS;

const entryOf = (pfn: number, writable: boolean): number => (pfn << 1) | (writable ? 1 : 0);
const runAt = (block: number, k: number): number => block + BLOCK_ENTRIES + k * RUN_WORDS;

/**
 * True if any agent has a view for writing. What an agent has taken before it acknowledged is seen; a view that begins
 * later needs translations for writing.
 */
export function anyWritableViews(mm: Mm): boolean {
  for (let slot = 0; slot < mm.maxAgents; slot++)
    if (Atomics.load(mm.agent.words, mm.header + MM_WRITABLE_VIEWS + slot) !== 0) return true;
  return false;
}

export class Views {
  /** Counts dropAll(): references taken before are gone. */
  epoch = 0;
  readonly #mm: Mm;
  readonly #head: number;
  readonly #writable: number;

  constructor(mm: Mm, slot: number) {
    this.#mm = mm;
    this.#head = mm.header + MM_VIEWS + slot;
    this.#writable = mm.header + MM_WRITABLE_VIEWS + slot;
  }

  /**
   * Takes a reference to each of `pages` frames that lie together, the zero page excepted, which needs none.
   * Preconditions: the caller has translations, and no safepoint since.
   */
  add(first: number, pages: number, writable: boolean): void {
    const { agent, frames } = this.#mm;
    const w = agent.words;
    let block = Atomics.load(w, this.#head);
    let count = block === 0 ? BLOCK_LIMIT : Atomics.load(w, block + BLOCK_COUNT);
    if (count === BLOCK_LIMIT) {
      const fresh = this.#mm.alloc(HEAP_PAGE_WORDS, "spans");
      Atomics.store(w, fresh + BLOCK_NEXT, block);
      Atomics.store(w, this.#head, fresh);
      block = fresh;
      count = 0;
    }
    if (writable) Atomics.add(w, this.#writable, 1);
    for (let k = 0; k < pages; k++) if (first + k !== ZERO_PFN) frames.get(first + k);
    Atomics.store(w, runAt(block, count) + RUN_FIRST, entryOf(first, writable));
    Atomics.store(w, runAt(block, count) + RUN_PAGES, pages);
    Atomics.store(w, block + BLOCK_COUNT, count + 1);
  }

  /** Adds `pages` frames to the newest run, to which the caller has taken references. Preconditions: add() just before. */
  extend(pages: number): void {
    const w = this.#mm.agent.words;
    const block = Atomics.load(w, this.#head);
    Atomics.add(w, runAt(block, Atomics.load(w, block + BLOCK_COUNT) - 1) + RUN_PAGES, pages);
  }

  /** Gives a run back, the newest of its kind. Preconditions: taken as such, and no dropAll() since. */
  drop(first: number, pages: number, writable: boolean): void {
    const w = this.#mm.agent.words;
    const entry = entryOf(first, writable);
    for (let block = Atomics.load(w, this.#head); block !== 0; block = Atomics.load(w, block + BLOCK_NEXT)) {
      for (let k = Atomics.load(w, block + BLOCK_COUNT) - 1; k >= 0; k--) {
        const run = runAt(block, k);
        if (Atomics.load(w, run + RUN_FIRST) !== entry || Atomics.load(w, run + RUN_PAGES) !== pages)
          continue;
        this.#give(run);
        this.#trim();
        return;
      }
    }
  }

  #give(run: number): void {
    const { agent, frames } = this.#mm;
    const entry = Atomics.load(agent.words, run + RUN_FIRST);
    // Uncounted first: after a death in between references leak, which is better than one given back twice.
    const pages = Atomics.exchange(agent.words, run + RUN_PAGES, 0);
    const first = entry >>> 1;
    if ((entry & 1) !== 0) {
      for (let pfn = first; pfn < first + pages; pfn++) {
        if ((frames.flags(pfn) & PG_ANON) === 0) frames.setFlags(pfn, PG_DIRTY);
      }
    }
    if ((entry & 1) !== 0 && pages > 0) Atomics.sub(agent.words, this.#writable, 1);
    if (first === ZERO_PFN) frames.putRun(first + 1, pages - 1);
    else frames.putRun(first, pages);
  }

  /** Takes runs that have been given back off the end. */
  #trim(): void {
    const w = this.#mm.agent.words;
    for (let block = Atomics.load(w, this.#head); block !== 0; block = Atomics.load(w, this.#head)) {
      let count = Atomics.load(w, block + BLOCK_COUNT);
      while (count > 0 && Atomics.load(w, runAt(block, count - 1) + RUN_PAGES) === 0) count--;
      Atomics.store(w, block + BLOCK_COUNT, count);
      if (count > 0) return;
      Atomics.store(w, this.#head, Atomics.load(w, block + BLOCK_NEXT));
      this.#mm.free(block, HEAP_PAGE_WORDS);
    }
  }

  /** Gives everything back. */
  dropAll(): void {
    const w = this.#mm.agent.words;
    this.epoch++;
    for (let block = Atomics.load(w, this.#head); block !== 0; block = Atomics.load(w, this.#head)) {
      for (let k = Atomics.load(w, block + BLOCK_COUNT) - 1; k >= 0; k--) this.#give(runAt(block, k));
      this.#trim();
    }
  }

  /** The frame of each reference held; the zero page needs none. */
  frames(): number[] {
    const w = this.#mm.agent.words;
    const frames: number[] = [];
    for (let block = Atomics.load(w, this.#head); block !== 0; block = Atomics.load(w, block + BLOCK_NEXT)) {
      const count = Atomics.load(w, block + BLOCK_COUNT);
      for (let k = 0; k < count; k++) {
        const first = Atomics.load(w, runAt(block, k) + RUN_FIRST) >>> 1;
        const end = first + Atomics.load(w, runAt(block, k) + RUN_PAGES);
        for (let pfn = first; pfn < end; pfn++) if (pfn !== ZERO_PFN) frames.push(pfn);
      }
    }
    return frames;
  }
}
