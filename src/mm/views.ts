/**
 * Views and pins: frame references that an agent holds. Linux: the pins of get_user_pages().
 *
 *   views   until the turn ends or the agent polls: spans()
 *   pins    until they are given back, or the agent leaves: pin.ts
 *
 * Both logs lie in the arena, written by their agent only, so that what a dead agent held can be given back. An entry is
 * a run of frames: the number of the first shifted left, and how many. Bit 0 says writable: such a view writes through no
 * translation, so nobody can stop it, and the frames count as dirty again when it is dropped.
 *
 * Invariants (checkMemory() verifies them)
 *   V1  Each frame of a run, but the zero page, has a reference for it.
 *   V2  MM_HELD_RUNS of an agent is the number of its pins and of its views for writing, or higher while one is being
 *       added or given back: who finds 0 there, after the agent has acknowledged that it may not write any more, knows
 *       that no page has to stay the one of its mapping.
 */
import { HEAP_PAGE_WORDS, PG_ANON, PG_DIRTY, ZERO_PFN } from "../memory/index.ts";
import { MM_PINS, MM_VIEWS, MM_HELD_RUNS } from "./layout.ts";
import type { Mm } from "./mm.ts";

const BLOCK_NEXT = 0;
/** Entries in use, given back ones among them. */
const BLOCK_COUNT = 1;
const BLOCK_ENTRIES = 2;
const RUN_FIRST = 0;
const RUN_PAGES = 1; // 0: given back
const RUN_WORDS = 2;
const BLOCK_LIMIT: number = (HEAP_PAGE_WORDS - BLOCK_ENTRIES) / RUN_WORDS;

const entryOf = (pfn: number, writable: boolean): number => (pfn << 1) | (writable ? 1 : 0);
const runAt = (block: number, k: number): number => block + BLOCK_ENTRIES + k * RUN_WORDS;

/**
 * True if any agent has a run that is counted. What an agent has taken before it acknowledged is seen; a run that begins
 * later needs translations for writing, or is a pin.
 */
export function anyHeldRuns(mm: Mm): boolean {
  const top = mm.agent.top();
  for (let slot = 0; slot < top; slot++)
    if (Atomics.load(mm.agent.words, mm.header + MM_HELD_RUNS + slot) !== 0) return true;
  return false;
}

/** What views and pins have in common. */
class RunLog {
  /** Counts dropAll(): references taken before are gone. */
  epoch = 0;
  protected readonly mm: Mm;
  protected readonly head: number;
  readonly #held: number;
  readonly #countsAll: boolean;

  /** `log`: MM_VIEWS or MM_PINS. */
  constructor(mm: Mm, slot: number, log: number) {
    this.mm = mm;
    this.head = mm.header + log + slot;
    this.#held = mm.header + MM_HELD_RUNS + slot;
    this.#countsAll = log === MM_PINS;
  }

  /**
   * Takes a reference to each of `pages` frames that lie together, the zero page excepted, which needs none; returns the
   * run. Preconditions: the caller has translations, and no safepoint since. Errors: ENOMEM; then none is held.
   */
  add(first: number, pages: number, writable: boolean): number {
    const { agent, frames } = this.mm;
    const w = agent.words;
    let taken = 0;
    let run: number;
    try {
      for (; taken < pages; taken++) if (first + taken !== ZERO_PFN) frames.get(first + taken);
      run = this.place();
    } catch (error) {
      this.#putRun(first, taken);
      throw error;
    }
    // Counted before anybody can write through it.
    if (this.counts(writable)) Atomics.store(w, this.#held, w[this.#held]! + 1);
    Atomics.store(w, run + RUN_FIRST, entryOf(first, writable));
    Atomics.store(w, run + RUN_PAGES, pages);
    return run;
  }

  /** Adds `pages` frames to a run, to which the caller has taken references. Preconditions: add() just before. */
  extend(run: number, pages: number): void {
    Atomics.add(this.mm.agent.words, run + RUN_PAGES, pages);
  }

  /** True for a run whose pages fork must not share. */
  counts(writable: boolean): boolean {
    return writable || this.#countsAll;
  }

  /** A run of no pages, at the end of the log. */
  protected place(): number {
    const w = this.mm.agent.words;
    let block = Atomics.load(w, this.head);
    let count = block === 0 ? BLOCK_LIMIT : Atomics.load(w, block + BLOCK_COUNT);
    if (count === BLOCK_LIMIT) {
      const fresh = this.mm.alloc(HEAP_PAGE_WORDS, "spans");
      Atomics.store(w, fresh + BLOCK_NEXT, block);
      Atomics.store(w, this.head, fresh);
      block = fresh;
      count = 0;
    }
    Atomics.store(w, runAt(block, count) + RUN_PAGES, 0);
    Atomics.store(w, block + BLOCK_COUNT, count + 1);
    return runAt(block, count);
  }

  protected give(run: number): void {
    const { agent, frames } = this.mm;
    const w = agent.words;
    const entry = Atomics.load(w, run + RUN_FIRST);
    // Uncounted first: after a death in between references leak, which is better than one given back twice.
    const pages = Atomics.exchange(w, run + RUN_PAGES, 0);
    if (pages === 0) return;
    const first = entry >>> 1;
    const writable = (entry & 1) !== 0;
    if (writable) {
      for (let pfn = first; pfn < first + pages; pfn++) {
        if ((frames.flags(pfn) & PG_ANON) === 0) frames.setFlags(pfn, PG_DIRTY);
      }
    }
    this.#putRun(first, pages);
    if (this.counts(writable)) Atomics.store(w, this.#held, w[this.#held]! - 1);
  }

  #putRun(first: number, pages: number): void {
    const { frames } = this.mm;
    if (first !== ZERO_PFN) frames.putRun(first, pages);
    else if (pages > 1) frames.putRun(first + 1, pages - 1);
  }

  /** Takes runs that have been given back off the end. */
  protected trim(): void {
    const w = this.mm.agent.words;
    for (let block = Atomics.load(w, this.head); block !== 0; block = Atomics.load(w, this.head)) {
      let count = Atomics.load(w, block + BLOCK_COUNT);
      while (count > 0 && Atomics.load(w, runAt(block, count - 1) + RUN_PAGES) === 0) count--;
      Atomics.store(w, block + BLOCK_COUNT, count);
      if (count > 0) return;
      Atomics.store(w, this.head, Atomics.load(w, block + BLOCK_NEXT));
      this.mm.free(block, HEAP_PAGE_WORDS);
    }
  }

  /** Gives everything back. */
  dropAll(): void {
    const w = this.mm.agent.words;
    this.epoch++;
    for (let block = Atomics.load(w, this.head); block !== 0; block = Atomics.load(w, this.head)) {
      for (let k = Atomics.load(w, block + BLOCK_COUNT) - 1; k >= 0; k--) this.give(runAt(block, k));
      this.trim();
    }
  }

  /** Calls `visit` for each run. */
  eachRun(visit: (first: number, pages: number, writable: boolean) => void): void {
    const w = this.mm.agent.words;
    for (let block = Atomics.load(w, this.head); block !== 0; block = Atomics.load(w, block + BLOCK_NEXT)) {
      const count = Atomics.load(w, block + BLOCK_COUNT);
      for (let k = 0; k < count; k++) {
        const entry = Atomics.load(w, runAt(block, k) + RUN_FIRST);
        const pages = Atomics.load(w, runAt(block, k) + RUN_PAGES);
        if (pages !== 0) visit(entry >>> 1, pages, (entry & 1) !== 0);
      }
    }
  }
}

export class Views extends RunLog {
  constructor(mm: Mm, slot: number) {
    super(mm, slot, MM_VIEWS);
  }

  /** Gives a run back, the newest of its kind. Preconditions: taken as such, and no dropAll() since. */
  drop(first: number, pages: number, writable: boolean): void {
    const w = this.mm.agent.words;
    const entry = entryOf(first, writable);
    for (let block = Atomics.load(w, this.head); block !== 0; block = Atomics.load(w, block + BLOCK_NEXT)) {
      for (let k = Atomics.load(w, block + BLOCK_COUNT) - 1; k >= 0; k--) {
        const run = runAt(block, k);
        if (Atomics.load(w, run + RUN_FIRST) !== entry || Atomics.load(w, run + RUN_PAGES) !== pages)
          continue;
        this.give(run);
        this.trim();
        return;
      }
    }
  }
}

export class Pins extends RunLog {
  /** Runs inside the log that were given back, to be used again: pins end in any order. */
  readonly #free: number[] = [];
  #held = 0;

  constructor(mm: Mm, slot: number) {
    super(mm, slot, MM_PINS);
  }

  protected override place(): number {
    const run = this.#free.pop() ?? super.place();
    this.#held++;
    return run;
  }

  /** Gives a run back. Preconditions: held, and no dropAll() since. */
  drop(run: number): void {
    this.give(run);
    if (--this.#held > 0) {
      this.#free.push(run);
      return;
    }
    this.#free.length = 0;
    this.trim();
  }

  override dropAll(): void {
    this.#free.length = 0;
    this.#held = 0;
    super.dropAll();
  }
}

/** Gives all views and pins of a dead agent back. */
export function dropDead(mm: Mm, slot: number): void {
  new Views(mm, slot).dropAll();
  new Pins(mm, slot).dropAll();
  // It may have died between counting and adding.
  Atomics.store(mm.agent.words, mm.header + MM_HELD_RUNS + slot, 0);
}

/** The frame of each reference that an agent holds by views and pins; the zero page needs none. */
export function viewedFrames(mm: Mm, slot: number): number[] {
  const frames: number[] = [];
  for (const log of [new Views(mm, slot), new Pins(mm, slot)])
    log.eachRun((first, pages) => {
      for (let pfn = first; pfn < first + pages; pfn++) if (pfn !== ZERO_PFN) frames.push(pfn);
    });
  return frames;
}

/** V2; undefined if it holds. */
export function checkHeldRuns(mm: Mm, slot: number): string | undefined {
  let runs = 0;
  for (const log of [new Views(mm, slot), new Pins(mm, slot)])
    log.eachRun((_first, _pages, writable) => {
      if (log.counts(writable)) runs++;
    });
  const counted = Atomics.load(mm.agent.words, mm.header + MM_HELD_RUNS + slot);
  return counted === runs
    ? undefined
    : `V2: agent ${slot} has ${runs} runs that fork must know of, counted ${counted}`;
}
