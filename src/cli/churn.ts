/**
 * The churn agent: changes the mapping of the mirrored file and of the scratch pages while others mirror them, from a
 * seeded mix, and says on the board what each stretch shows from then on. See board.ts for the states.
 *
 * Everything is undone after a while, so that the hashers get to see the file; one agent does it all, so that what it
 * publishes is true.
 */
import type { MappedFile } from "../mm/index.ts";
import {
  type Board,
  ELSEWHERE,
  FOREIGN,
  GAP,
  PAGE_GAP,
  PAGE_UNSTEADY,
  SHOWS_FILE,
  UNKNOWN,
  UNSTEADY,
  versionOf,
  WRITTEN,
} from "./board.ts";
import { WRITTEN_PAGES } from "./hasher.ts";
import type { ChurnPlan, Plan, Surroundings } from "./plan.ts";
import { Random } from "./random.ts";
import { STAMP_SCRATCH, STAMP_WRITTEN, stampedPage, tagOf } from "./stamps.ts";

/** How long a window stays changed, at most, and how long it is left alone afterwards, at least. */
const MOST_AWAY_MS = 15;
const REST_MS = 2;
/** Windows changed at the same time, at most: hashers wait for them. */
const MOST_AWAY = 4;
/** Scratch pages changed together, at most, and how often. */
const MOST_RUN = 4;
const MOST_BURST = 4;
/** How long to lie in wait for a fill. */
const AMBUSH_MS = 0.5;
/** Who falls behind by more than this does not catch up. */
const MOST_BEHIND_MS = 100;
/** Longest sleep: the last windows must come back, and the end be noticed. */
const SLEEP_MS = 50;

/** What is to be undone, and when. */
interface Away {
  readonly due: number;
  readonly window: number;
  readonly comeBack: () => void;
}

interface Window {
  readonly window: number;
  /** Bytes. */
  readonly address: number;
  readonly length: number;
  /** Of the file. */
  readonly page: number;
  readonly pages: number;
}

export class Churn {
  readonly #at: Surroundings;
  readonly #plan: Plan;
  readonly #churn: ChurnPlan;
  readonly #board: Board;
  readonly #random: Random;
  readonly #file: MappedFile;
  readonly #foreign: MappedFile;
  readonly #scratch: MappedFile;
  readonly #pageSize: number;
  readonly #filePages: number;
  readonly #away = new Map<number, Away>();
  readonly #restedAt = new Map<number, number>();
  /** For each scratch page, which of its two places in the file is mapped, and whether a private copy hides that. */
  readonly #side: Uint8Array;
  readonly #copied: Uint8Array;
  #gap = -1;
  #writes = 0;
  readonly #windowOperations: readonly ((w: Window) => void)[];
  readonly #scratchOperations: readonly ((first: number, pages: number) => void)[];

  constructor(at: Surroundings, plan: Plan, churn: ChurnPlan) {
    this.#at = at;
    this.#plan = plan;
    this.#churn = churn;
    this.#board = at.board;
    this.#random = new Random(churn.seed);
    this.#file = at.memory.file(plan.file.id);
    this.#foreign = at.memory.file(churn.foreign.id);
    this.#scratch = at.memory.file(churn.scratch.id);
    this.#pageSize = at.memory.pageSize;
    this.#filePages = Math.ceil(plan.file.bytes / this.#pageSize);
    this.#side = new Uint8Array(churn.scratch.pages);
    this.#copied = new Uint8Array(churn.scratch.pages);
    this.#windowOperations = [
      (w) => this.#dontneed(w),
      (w) => this.#mapAgain(w),
      (w) => this.#remap(w),
      (w) => this.#flip(w),
      (w) => this.#unmapForAWhile(w),
      (w) => this.#forbidForAWhile(w),
      (w) => this.#showForeign(w),
      (w) => this.#showElsewhere(w),
      (w) => this.#write(w),
    ];
    this.#scratchOperations = [
      (first, pages) => this.#swap(first, pages),
      (first, pages) => this.#swap(first, pages),
      (first, pages) => this.#writeCopies(first, pages),
      (first, pages) => this.#dropCopies(first, pages),
      (first, pages) => this.#rewrite(first, pages),
      (first) => this.#unmapPage(first),
    ];
  }

  /** Until the board says that the last hasher is done. */
  run(): void {
    const { memory } = this.#at;
    const board = this.#board;
    const gapMs = 1000 / this.#churn.operationsPerSecond;
    let next = performance.now();
    while (!board.churnEnded) {
      const now = performance.now();
      for (const away of [...this.#away.values()]) if (away.due <= now) this.#bringBack(away);
      if (now < next) {
        const due = Math.min(next, ...Array.from(this.#away.values(), (away) => away.due));
        memory.sync.wait(board.words, board.churnEndIndex, 0, Math.min(SLEEP_MS, Math.max(0, due - now)));
        continue;
      }
      const before = board.churnOperations;
      this.#step(now);
      next = Math.max(next, now - MOST_BEHIND_MS) + (board.churnOperations - before) * gapMs;
    }
  }

  #step(now: number): void {
    if (this.#random.chance(0.5)) {
      const { pages } = this.#churn.scratch;
      const first = this.#random.below(pages);
      const run = Math.min(1 + this.#random.below(MOST_RUN), pages - first);
      // At once again and again: whoever fills its mirror after the first change is overtaken by the next.
      for (let n = 1 + this.#random.below(MOST_BURST); n > 0; n--) {
        this.#random.pick(this.#scratchOperations)(first, run);
      }
      return;
    }
    const operation = this.#random.pick(this.#windowOperations);
    const window = this.#pickWindow();
    if (this.#away.has(window) || now - (this.#restedAt.get(window) ?? 0) < REST_MS) {
      // Taken: something that changes nothing that anybody could see.
      this.#dontneed(this.#windowAt(this.#random.below(this.#board.shape.windows)));
    } else operation(this.#windowAt(window));
  }

  /** Often one that a hasher is filling its mirror for, or is at, or comes to next: there the races are. */
  #pickWindow(): number {
    const { hashers, windows } = this.#board.shape;
    if (this.#random.chance(0.2)) return this.#random.below(windows);
    const filling = this.#random.chance(0.7) ? this.#awaitFill() : -1;
    if (filling >= 0) return Math.floor(filling / this.#plan.windowPages);
    const page = this.#board.progress(this.#random.below(hashers)) % this.#filePages;
    return (Math.floor(page / this.#plan.windowPages) + this.#random.below(2)) % windows;
  }

  /** The page that some hasher begins to fill its mirror for within a moment, or -1. */
  #awaitFill(): number {
    const { hashers } = this.#board.shape;
    const until = performance.now() + AMBUSH_MS;
    const first = this.#random.below(hashers);
    do {
      for (let k = 0; k < hashers; k++) {
        const page = this.#board.filling((first + k) % hashers);
        if (page >= 0) return page;
      }
    } while (performance.now() < until);
    return -1;
  }

  #windowAt(window: number): Window {
    const { file, windowPages } = this.#plan;
    const page = window * windowPages;
    const pages = Math.min(windowPages, this.#filePages - page);
    return {
      window,
      page,
      pages,
      address: file.address + page * this.#pageSize,
      length: pages * this.#pageSize,
    };
  }

  // ---- single operations, counted ----------------------------------------------------------------------------------

  #mapAt(address: number, pages: number, file: MappedFile, page: number): void {
    this.#at.space.sync.mmap({
      address,
      fixed: true,
      length: pages * this.#pageSize,
      prot: "rw",
      share: "private",
      file,
      offset: page * this.#pageSize,
    });
    this.#board.countChurn();
  }

  #unmapAt(address: number, pages: number): void {
    this.#at.space.sync.munmap(address, pages * this.#pageSize);
    this.#board.countChurn();
  }

  #protectAt(w: Window, prot: "none" | "r" | "rw"): void {
    this.#at.space.sync.mprotect(w.address, w.length, prot);
    this.#board.countChurn();
  }

  #dropAt(address: number, pages: number): void {
    this.#at.space.sync.madvise(address, pages * this.#pageSize, "dontneed");
    this.#board.countChurn();
  }

  #writeAt(address: number, bytes: Uint8Array): void {
    this.#at.space.sync.write(address, bytes);
    this.#board.countChurn();
  }

  /** Shows the file in a window again. */
  #mapFile(w: Window): void {
    this.#mapAt(w.address, w.pages, this.#file, w.page);
  }

  // ---- windows: nothing changes for those who read ----------------------------------------------------------------

  /** Some of its pages; a window that shows private copies is left alone. */
  #dontneed(w: Window): void {
    if (this.#away.has(w.window)) return;
    const first = this.#random.below(w.pages);
    this.#dropAt(w.address + first * this.#pageSize, 1 + this.#random.below(w.pages - first));
  }

  #mapAgain(w: Window): void {
    this.#mapFile(w);
  }

  #flip(w: Window): void {
    this.#protectAt(w, "r");
    this.#protectAt(w, "rw");
  }

  #remap(w: Window): void {
    this.#board.publish(w.window, UNSTEADY);
    this.#unmapAt(w.address, w.pages);
    this.#mapFile(w);
    this.#board.publish(w.window, SHOWS_FILE);
  }

  // ---- windows: something else for a while -------------------------------------------------------------------------

  /** Changes a window, publishes what it shows, and changes it back later; `between` is what it shows meanwhile. */
  #takeAway(
    w: Window,
    between: number,
    change: () => void,
    shows: number,
    detail: number,
    undo: () => void,
  ): void {
    if (this.#away.size >= Math.max(1, Math.min(MOST_AWAY, this.#board.shape.windows >>> 3))) return;
    this.#board.publish(w.window, between);
    change();
    this.#board.publish(w.window, shows, detail);
    const comeBack = (): void => {
      this.#board.publish(w.window, between);
      undo();
      this.#board.publish(w.window, SHOWS_FILE);
    };
    const due = performance.now() + this.#random.next() * MOST_AWAY_MS;
    this.#away.set(w.window, { due, window: w.window, comeBack });
  }

  #bringBack(away: Away): void {
    this.#away.delete(away.window);
    away.comeBack();
    this.#restedAt.set(away.window, performance.now());
  }

  #unmapForAWhile(w: Window): void {
    const unmap = (): void => this.#unmapAt(w.address, w.pages);
    this.#takeAway(w, UNSTEADY, unmap, GAP, 0, () => this.#mapFile(w));
  }

  #forbidForAWhile(w: Window): void {
    const forbid = (): void => this.#protectAt(w, "none");
    this.#takeAway(w, UNSTEADY, forbid, GAP, 0, () => this.#protectAt(w, "rw"));
  }

  #showForeign(w: Window): void {
    const from = this.#random.below(this.#churn.foreign.pages - w.pages + 1);
    const show = (): void => this.#mapAt(w.address, w.pages, this.#foreign, from);
    this.#takeAway(w, UNKNOWN, show, FOREIGN, from, () => this.#mapFile(w));
  }

  #showElsewhere(w: Window): void {
    const from = this.#random.below(this.#filePages - w.pages + 1);
    const show = (): void => this.#mapAt(w.address, w.pages, this.#file, from);
    this.#takeAway(w, UNKNOWN, show, ELSEWHERE, from, () => this.#mapFile(w));
  }

  #write(w: Window): void {
    const pages = Math.min(w.pages, WRITTEN_PAGES);
    const version = ++this.#writes;
    const stamp = stampedPage(this.#pageSize, tagOf(STAMP_WRITTEN, 0), version);
    const write = (): void => {
      for (let k = 0; k < pages; k++) this.#writeAt(w.address + k * this.#pageSize, stamp);
    };
    this.#takeAway(w, UNKNOWN, write, WRITTEN, version, () => this.#dropAt(w.address, pages));
  }

  // ---- scratch pages: each change makes a new version -------------------------------------------------------------

  #eachPage(first: number, pages: number, change: (page: number, version: number) => void): void {
    for (let page = first; page < first + pages; page++) change(page, versionOf(this.#board.page(page)) + 1);
  }

  #scratchAddress(page: number): number {
    return this.#churn.scratch.address + page * this.#pageSize;
  }

  /** Writes a version to one of a page's two places in the file, through one of two ways. */
  #store(page: number, side: number, version: number): void {
    const { alias, pages } = this.#churn.scratch;
    const offset = (page + side * pages) * this.#pageSize;
    const stamp = stampedPage(this.#pageSize, tagOf(STAMP_SCRATCH, page), version);
    if (this.#random.chance(0.5)) this.#writeAt(alias + offset, stamp);
    else {
      this.#at.memory.sync.write(this.#scratch, offset, stamp);
      this.#board.countChurn();
    }
  }

  #publish(first: number, pages: number): void {
    this.#eachPage(first, pages, (page, version) => this.#board.publishPage(page, version));
  }

  /** Maps the other place of some pages, which has a newer version by then. */
  #swap(first: number, pages: number): void {
    this.#endGap();
    const side = 1 - this.#side[first]!;
    this.#eachPage(first, pages, (page, version) => this.#store(page, side, version));
    this.#mapScratch(first, pages, side);
    this.#publish(first, pages);
  }

  #mapScratch(first: number, pages: number, side: number): void {
    const from = first + side * this.#churn.scratch.pages;
    this.#mapAt(this.#scratchAddress(first), pages, this.#scratch, from);
    this.#side.fill(side, first, first + pages);
    this.#copied.fill(0, first, first + pages);
  }

  /** Writes to private copies: copy-on-write, where there is no copy yet. */
  #writeCopies(first: number, pages: number): void {
    this.#endGap();
    this.#eachPage(first, pages, (page, version) => {
      const stamp = stampedPage(this.#pageSize, tagOf(STAMP_SCRATCH, page), version);
      this.#writeAt(this.#scratchAddress(page), stamp);
      this.#copied[page] = 1;
    });
    this.#publish(first, pages);
  }

  /** Drops private copies; the file shows through, and has a newer version by then. */
  #dropCopies(first: number, pages: number): void {
    this.#endGap();
    this.#eachPage(first, pages, (page, version) => this.#store(page, this.#side[page]!, version));
    this.#dropAt(this.#scratchAddress(first), pages);
    this.#copied.fill(0, first, first + pages);
    this.#publish(first, pages);
  }

  /** Writes to the file; no mapping changes, and who maps it sees the new version. */
  #rewrite(first: number, pages: number): void {
    this.#endGap();
    this.#eachPage(first, pages, (page, version) => {
      if (this.#copied[page] === 1) return;
      this.#store(page, this.#side[page]!, version);
      this.#board.publishPage(page, version);
    });
  }

  /** Unmaps a page until the next change of the scratch pages. */
  #unmapPage(page: number): void {
    this.#endGap();
    const version = versionOf(this.#board.page(page));
    this.#board.publishPage(page, version, PAGE_UNSTEADY);
    this.#unmapAt(this.#scratchAddress(page), 1);
    this.#board.publishPage(page, version, PAGE_GAP);
    this.#gap = page;
  }

  #endGap(): void {
    const page = this.#gap;
    if (page < 0) return;
    this.#gap = -1;
    const version = versionOf(this.#board.page(page));
    const side = this.#side[page]!;
    this.#store(page, side, version + 1);
    this.#board.publishPage(page, version, PAGE_UNSTEADY);
    this.#mapScratch(page, 1, side);
    this.#board.publishPage(page, version + 1);
  }
}
