/**
 * Views: frame references that an agent holds until its turn ends or it polls. Linux: the pins of get_user_pages().
 *
 * The log lies in the arena, written by its agent only, so that what a dead agent held can be given back. An entry is
 * the frame number shifted left; bit 0 says writable: such a view writes through no translation, so nobody can stop it,
 * and the frame counts as dirty again when it is dropped.
 */
import { HEAP_PAGE_WORDS, PG_ANON, PG_DIRTY } from "../memory/index.ts";
import { MM_VIEWS } from "./layout.ts";
import type { Mm } from "./mm.ts";

const BLOCK_NEXT = 0;
const BLOCK_COUNT = 1;
const BLOCK_ENTRIES = 2;
const BLOCK_LIMIT: number = HEAP_PAGE_WORDS - BLOCK_ENTRIES;

export class Views {
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
    frames.get(pfn);
    Atomics.store(w, block + BLOCK_ENTRIES + count, (pfn << 1) | (writable ? 1 : 0));
    Atomics.store(w, block + BLOCK_COUNT, count + 1);
  }

  /** Gives the newest `pages` references back. */
  drop(pages: number): void {
    const { agent, frames } = this.#mm;
    const w = agent.words;
    for (let left = pages; left > 0;) {
      const block = Atomics.load(w, this.#head);
      if (block === 0) return;
      let count = Atomics.load(w, block + BLOCK_COUNT);
      while (left > 0 && count > 0) {
        count--;
        left--;
        const entry = Atomics.load(w, block + BLOCK_ENTRIES + count);
        // Uncounted first: after a death in between a reference leaks, which is better than one given back twice.
        Atomics.store(w, block + BLOCK_COUNT, count);
        const pfn = entry >>> 1;
        if ((entry & 1) !== 0 && (frames.flags(pfn) & PG_ANON) === 0) frames.setFlags(pfn, PG_DIRTY);
        frames.put(pfn);
      }
      if (count > 0) return;
      Atomics.store(w, this.#head, Atomics.load(w, block + BLOCK_NEXT));
      this.#mm.free(block, HEAP_PAGE_WORDS);
    }
  }

  /** Gives everything back. */
  dropAll(): void {
    if (Atomics.load(this.#mm.agent.words, this.#head) !== 0) this.drop(Number.MAX_SAFE_INTEGER);
  }

  /** References held. */
  get count(): number {
    const w = this.#mm.agent.words;
    let count = 0;
    for (let block = Atomics.load(w, this.#head); block !== 0; block = Atomics.load(w, block + BLOCK_NEXT)) {
      count += Atomics.load(w, block + BLOCK_COUNT);
    }
    return count;
  }
}
