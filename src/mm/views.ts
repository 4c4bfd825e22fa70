/**
 * Views: frame references that an agent holds until its turn ends or it polls. Linux: the pins of get_user_pages().
 *
 * The log lies in the arena, written by its agent only, so that what a dead agent held can be given back. An entry is
 * the frame number shifted left; bit 0 says writable: such a view writes through no translation, so nobody can stop it,
 * and the frame counts as dirty again when it is dropped.
 */
import { HEAP_PAGE_WORDS, PG_ANON, PG_DIRTY, ZERO_PFN } from "../memory/index.ts";
import { MM_VIEWS } from "./layout.ts";
import type { Mm } from "./mm.ts";

const BLOCK_NEXT = 0;
const BLOCK_COUNT = 1;
const BLOCK_ENTRIES = 2;
const BLOCK_LIMIT: number = HEAP_PAGE_WORDS - BLOCK_ENTRIES;

const entryOf = (pfn: number, writable: boolean): number => (pfn << 1) | (writable ? 1 : 0);
/** A reference that has been given back while newer ones were held; also one to the zero page, which needs none. */
const BLANK = 0;

export class Views {
  /** Counts dropAll(): references taken before are gone. */
  epoch = 0;
  readonly #mm: Mm;
  readonly #head: number;

  constructor(mm: Mm, slot: number) {
    this.#mm = mm;
    this.#head = mm.header + MM_VIEWS + slot;
  }

  /** Takes a reference to a frame. Preconditions: the caller has a translation, and no safepoint since. */
  add(pfn: number, writable: boolean): void {
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
    if (pfn !== ZERO_PFN) frames.get(pfn);
    Atomics.store(w, block + BLOCK_ENTRIES + count, entryOf(pfn, writable));
    Atomics.store(w, block + BLOCK_COUNT, count + 1);
  }

  /** Gives one reference to each of `pages` frames back, the newest of each. Preconditions: no dropAll() since add(). */
  drop(first: number, pages: number, writable: boolean): void {
    for (let pfn = first + pages - 1; pfn >= first; pfn--) {
      this.#forget(entryOf(pfn, writable));
      this.#put(entryOf(pfn, writable));
      this.#trim();
    }
  }

  /** Blanks the newest entry with this value. */
  #forget(entry: number): void {
    const w = this.#mm.agent.words;
    for (let block = Atomics.load(w, this.#head); block !== 0; block = Atomics.load(w, block + BLOCK_NEXT)) {
      for (let k = Atomics.load(w, block + BLOCK_COUNT) - 1; k >= 0; k--) {
        if (Atomics.load(w, block + BLOCK_ENTRIES + k) !== entry) continue;
        // Uncounted first: after a death in between a reference leaks, which is better than one given back twice.
        Atomics.store(w, block + BLOCK_ENTRIES + k, BLANK);
        return;
      }
    }
  }

  #put(entry: number): void {
    const { frames } = this.#mm;
    const pfn = entry >>> 1;
    if (pfn === ZERO_PFN) return;
    if ((entry & 1) !== 0 && (frames.flags(pfn) & PG_ANON) === 0) frames.setFlags(pfn, PG_DIRTY);
    frames.put(pfn);
  }

  /** Takes blank entries off the end. */
  #trim(): void {
    const w = this.#mm.agent.words;
    for (let block = Atomics.load(w, this.#head); block !== 0; block = Atomics.load(w, this.#head)) {
      let count = Atomics.load(w, block + BLOCK_COUNT);
      while (count > 0 && Atomics.load(w, block + BLOCK_ENTRIES + count - 1) === BLANK) count--;
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
      for (let k = Atomics.load(w, block + BLOCK_COUNT) - 1; k >= 0; k--) {
        const entry = Atomics.load(w, block + BLOCK_ENTRIES + k);
        Atomics.store(w, block + BLOCK_COUNT, k);
        this.#put(entry);
      }
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
        const pfn = Atomics.load(w, block + BLOCK_ENTRIES + k) >>> 1;
        if (pfn !== ZERO_PFN) frames.push(pfn);
      }
    }
    return frames;
  }
}
