/**
 * The board: the words that the agents of one run share, in the arena. What is written there is a promise about the
 * space, published after the operation that made it true has returned; a mirror that shows anything else is stale.
 *
 * A window is a stretch of the mirrored file, and what happens to it the business of the churn agent alone. Its state:
 *
 *   shows         an access gives                                             hashed   from -> to
 *   SHOWS_FILE    the file's bytes                                            yes      -> UNSTEADY, UNKNOWN
 *   UNSTEADY      the file's bytes, or a SegvError                            yes      -> SHOWS_FILE, GAP
 *   GAP           a SegvError: no mirror has an entry                         no       -> UNSTEADY
 *   UNKNOWN       anything: being changed                                     no       -> any but GAP
 *   FOREIGN       pages of the other file, from `detail` on                   no       -> UNKNOWN
 *   ELSEWHERE     the file's bytes, but from page `detail` on                 no       -> UNKNOWN
 *   WRITTEN       stamps of version `detail` in the first pages               no       -> UNKNOWN
 *
 * A state word is `generation * 8 + shows`; the generation grows with each word published, so that a word seen twice
 * means that nothing was published in between. `detail` is stored before the word that gives it a meaning.
 *
 * A scratch page has one word, `version * 4 + flags`: an access gives this version or a newer one. PAGE_UNSTEADY: or a
 * SegvError. PAGE_GAP: a SegvError in any case, no mirror has an entry.
 *
 * Access key:  A  any agent, Atomics only     M  written by the main thread     C  written by the churn agent
 *              H  written by the hasher that it belongs to
 */
const STOP = 0; //              A  1: give up, somebody failed or the user wants it
const GO = 1; //                M  1: everybody is there, begin
const CHURN_END = 2; //         M  1: the last hasher is done
const CHURN_OPERATIONS = 3; //  C
const CLAIMED = 4; //           A  windows, of all passes, that somebody has begun to bring in
const BROUGHT_IN = 5; //        A  and that are there, as far as they still are
const HEADER_WORDS = 6;
// then, per hasher:            H  pages hashed, of all passes; page of the file that it is filling + 1
const HASHER_WORDS = 2;
// then, per window:            C  state word, detail
const WINDOW_WORDS = 2;
// then, per scratch page:      C  version word

export const SHOWS_FILE = 0;
export const UNSTEADY = 1;
export const GAP = 2;
export const UNKNOWN = 3;
export const FOREIGN = 4;
export const ELSEWHERE = 5;
export const WRITTEN = 6;
const SHOWS_MASK = 0x7;
const GENERATION = 8;

export const PAGE_UNSTEADY = 0x1;
export const PAGE_GAP = 0x2;
const VERSION_SHIFT = 2;

export interface BoardShape {
  readonly hashers: number;
  readonly windows: number;
  readonly scratchPages: number;
}

export const boardBytes = (shape: BoardShape): number =>
  4 * (HEADER_WORDS + shape.hashers * HASHER_WORDS + shape.windows * WINDOW_WORDS + shape.scratchPages);

export const showsOf = (state: number): number => state & SHOWS_MASK;
export const versionOf = (word: number): number => word >> VERSION_SHIFT;

export class Board {
  /** All of it, for memory.wait(): see the index functions. */
  readonly words: Int32Array;
  readonly shape: BoardShape;
  readonly #windows: number;
  readonly #scratch: number;

  /** `words`: from memory.allocShared(boardBytes(shape)), or where another agent has them. */
  constructor(words: Int32Array, shape: BoardShape) {
    this.words = words;
    this.shape = shape;
    this.#windows = HEADER_WORDS + shape.hashers * HASHER_WORDS;
    this.#scratch = this.#windows + shape.windows * WINDOW_WORDS;
  }

  // ---- the run -------------------------------------------------------------------------------------------------

  get stopped(): boolean {
    return Atomics.load(this.words, STOP) !== 0;
  }

  /** Makes every agent give up soon. */
  stop(): void {
    Atomics.store(this.words, STOP, 1);
    this.go();
    this.endChurn();
  }

  get gone(): boolean {
    return Atomics.load(this.words, GO) !== 0;
  }

  go(): void {
    Atomics.store(this.words, GO, 1);
    Atomics.notify(this.words, GO);
  }

  readonly goIndex: number = GO;

  get churnEnded(): boolean {
    return Atomics.load(this.words, CHURN_END) !== 0;
  }

  endChurn(): void {
    Atomics.store(this.words, CHURN_END, 1);
    Atomics.notify(this.words, CHURN_END);
  }

  readonly churnEndIndex: number = CHURN_END;

  get churnOperations(): number {
    return Atomics.load(this.words, CHURN_OPERATIONS);
  }

  countChurn(): void {
    Atomics.add(this.words, CHURN_OPERATIONS, 1);
  }

  /** Pages that a hasher has hashed, of all passes. */
  progress(hasher: number): number {
    return Atomics.load(this.words, HEADER_WORDS + hasher * HASHER_WORDS);
  }

  advance(hasher: number, pages: number): void {
    Atomics.add(this.words, HEADER_WORDS + hasher * HASHER_WORDS, pages);
  }

  /** Page of the file that a hasher is filling its mirror for, -1 for none. */
  filling(hasher: number): number {
    return Atomics.load(this.words, HEADER_WORDS + hasher * HASHER_WORDS + 1) - 1;
  }

  setFilling(hasher: number, page: number): void {
    Atomics.store(this.words, HEADER_WORDS + hasher * HASHER_WORDS + 1, page + 1);
  }

  /** The next window to bring in, counted through all passes, if it comes before `limit`; else -1. One hasher gets it. */
  claimWindow(limit: number): number {
    const next = Atomics.load(this.words, CLAIMED);
    return next < limit && Atomics.compareExchange(this.words, CLAIMED, next, next + 1) === next ? next : -1;
  }

  /** Says that a claimed window is there. */
  broughtIn(window: number): void {
    for (let known = this.windowsBroughtIn; known <= window;) {
      known = Atomics.compareExchange(this.words, BROUGHT_IN, known, window + 1);
    }
  }

  get windowsBroughtIn(): number {
    return Atomics.load(this.words, BROUGHT_IN);
  }

  // ---- windows --------------------------------------------------------------------------------------------------

  stateIndex(window: number): number {
    return this.#windows + window * WINDOW_WORDS;
  }

  state(window: number): number {
    return Atomics.load(this.words, this.stateIndex(window));
  }

  /** Meaningful as long as the state word stays the same. */
  detail(window: number): number {
    return Atomics.load(this.words, this.stateIndex(window) + 1);
  }

  /** Says what a window shows from now on. */
  publish(window: number, shows: number, detail = 0): void {
    const at = this.stateIndex(window);
    const generation = Math.floor(this.state(window) / GENERATION) + 1;
    Atomics.store(this.words, at + 1, detail);
    Atomics.store(this.words, at, (generation * GENERATION + shows) | 0);
    Atomics.notify(this.words, at);
  }

  // ---- scratch pages ----------------------------------------------------------------------------------------------

  /** See versionOf() and the PAGE_ flags. */
  page(page: number): number {
    return Atomics.load(this.words, this.#scratch + page);
  }

  publishPage(page: number, version: number, flags = 0): void {
    Atomics.store(this.words, this.#scratch + page, (version << VERSION_SHIFT) | flags);
  }
}
