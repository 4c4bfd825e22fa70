/**
 * One agent's part of a run: it hashes the file's bytes through its mirror, again and again, and looks at every other
 * page that the board says something about. The bytes never come through the agent's TLB, nor through read().
 *
 * Written once, as a generator that yields what may be a safepoint; a worker does it blocking, the main thread with
 * await. So the rule of M4 (mirrors/tableMirror.ts) reads: between two yields bytes behind the mirror stay the page's.
 * And the board's: what a state word says when it is loaded holds for the entries found until the next yield, because
 * an operation that ends it waits for this agent's callback.
 */
import { createHash, type Hash } from "node:crypto";
import { SegvError } from "../errors.ts";
import type { TableMirror } from "../mirrors/index.ts";
import type { Backing } from "../mm/index.ts";
import {
  type Board,
  ELSEWHERE,
  FOREIGN,
  GAP,
  PAGE_GAP,
  PAGE_UNSTEADY,
  SHOWS_FILE,
  showsOf,
  UNSTEADY,
  versionOf,
  WRITTEN,
} from "./board.ts";
import { isStamped, STAMP_FOREIGN, STAMP_SCRATCH, STAMP_WRITTEN, tagOf } from "./stamps.ts";

/** What a hasher asks of whoever drives it. All are safepoints. */
export type Need =
  | { readonly kind: "poll" }
  | { readonly kind: "fill"; readonly mirror: TableMirror; readonly page: number }
  /** Whether or not that succeeds. */
  | { readonly kind: "tryFill"; readonly mirror: TableMirror; readonly page: number }
  /** Until word `index` of the board is no longer `value`, or for a while. */
  | { readonly kind: "wait"; readonly index: number; readonly value: number };

/** Work in progress; it ends by throwing Stopped when the board says stop. */
export type Work<T> = Generator<Need, T, void>;

/** The run was given up. */
export class Stopped extends Error {
  override readonly name: string = "Stopped";
}

export interface HasherSetup {
  readonly index: number;
  readonly board: Board;
  /** Over the mapping of the file. */
  readonly mirror: TableMirror;
  /** Over the scratch mapping; undefined where there is no churn. */
  readonly scratch: TableMirror | undefined;
  /** The file itself, for windows that show another part of it. */
  readonly file: Backing;
  readonly windowPages: number;
  readonly passes: number;
}

export interface Findings {
  /** One of each pass. */
  readonly sha256: readonly string[];
  readonly staleBytes: number;
}

/** Bytes used between two safepoints. Others may be waiting for this agent meanwhile: some 70 us of hashing. */
const PIECE_BYTES = 128 * 1024;
/** Windows that are brought in before a hasher needs them. */
const WINDOWS_AHEAD = 2;
/** Pages looked at in a window that shows something else. */
const SAMPLE_PAGES = 8;
/** Stamped pages at the start of a window that was written to. */
export const WRITTEN_PAGES = 4;
const POLL: Need = { kind: "poll" };

export class Hasher {
  readonly #setup: HasherSetup;
  readonly #piecePages: number;
  readonly #scratchPerPiece: number;
  #staleBytes = 0;
  #nextScratch: number;

  constructor(setup: HasherSetup) {
    const { mirror, scratch, windowPages } = setup;
    this.#setup = setup;
    this.#piecePages = Math.max(1, Math.floor(PIECE_BYTES / mirror.pageSize));
    const pieces = Math.max(1, Math.ceil(windowPages / this.#piecePages));
    // Every scratch page once a window, but for very short windows.
    this.#scratchPerPiece = scratch
      ? Math.min(scratch.pages, this.#piecePages, Math.ceil(scratch.pages / pieces))
      : 0;
    this.#nextScratch = scratch ? (setup.index * 7) % scratch.pages : 0;
  }

  /** All passes over the file. */
  *run(): Work<Findings> {
    const { board, passes } = this.#setup;
    const sha256: string[] = [];
    for (let pass = 0; pass < passes; pass++) {
      const hash = createHash("sha256");
      for (let window = 0; window < board.shape.windows; window++)
        yield* this.#hashWindow(hash, pass, window);
      sha256.push(hash.digest("hex"));
    }
    return { sha256, staleBytes: this.#staleBytes };
  }

  *#hashWindow(hash: Hash, pass: number, window: number): Work<void> {
    const { board, file, index, mirror, windowPages } = this.#setup;
    const { windows } = board.shape;
    const first = window * windowPages;
    const end = Math.min(first + windowPages, mirror.pages);
    const use = (bytes: Uint8Array, page: number): void => {
      const left = file.size - page * mirror.pageSize;
      hash.update(bytes.length <= left ? bytes : bytes.subarray(0, left));
    };
    const claimed = board.claimWindow(
      Math.min(this.#setup.passes * windows, pass * windows + window + 1 + WINDOWS_AHEAD),
    );
    if (claimed >= 0) yield* this.#bringIn(claimed);
    for (let page = first; page < end;) {
      if (board.stopped) throw new Stopped();
      const state = board.state(window);
      const shows = showsOf(state);
      if (shows !== SHOWS_FILE && shows !== UNSTEADY) {
        yield* this.#lookAtWindow(window, first, end, state);
        yield { kind: "wait", index: board.stateIndex(window), value: state };
        continue;
      }
      const pages = mirror.read(page, Math.min(this.#piecePages, end - page), use);
      if (pages > 0) {
        page += pages;
        board.advance(index, pages);
        yield POLL;
        yield* this.#fillAhead(pass, page);
        if (this.#scratchPerPiece > 0) yield* this.#lookAtScratch();
      } else if (
        !(yield* this.#tryFill(mirror, page, () => board.state(window) !== state || shows === UNSTEADY))
      ) {
        yield { kind: "wait", index: board.stateIndex(window), value: state };
      }
    }
  }

  /**
   * Has a window read before anybody needs it. One hasher does this for all: hashers that run side by side would wait for
   * each other at each page that one of them reads.
   */
  *#bringIn(claimed: number): Work<void> {
    const { board, mirror, windowPages } = this.#setup;
    const window = claimed % board.shape.windows;
    const first = window * windowPages;
    const end = Math.min(first + windowPages, mirror.pages);
    for (let page = first; page < end;) {
      if (showsOf(board.state(window)) !== SHOWS_FILE) break;
      page += mirror.present(page, end - page);
      // A fault here is no finding: whoever needs the page will meet it again.
      if (page < end && !(yield* this.#tryFill(mirror, page, () => true))) break;
    }
    board.broughtIn(claimed);
  }

  /**
   * Fills the table for the next window's length, where somebody has just brought that in: so that a fill that would have
   * to wait, because something is being invalidated, is not needed at once.
   */
  *#fillAhead(pass: number, page: number): Work<void> {
    const { board, mirror, windowPages } = this.#setup;
    const next = page + mirror.present(page, windowPages);
    if (next === page + windowPages || next >= mirror.pages) return;
    const window = Math.floor(next / windowPages);
    const lead = board.windowsBroughtIn - (pass * board.shape.windows + window);
    // What was brought in long ago is gone by now.
    if (lead < 1 || lead > WINDOWS_AHEAD) return;
    if (showsOf(board.state(window)) === SHOWS_FILE) yield { kind: "tryFill", mirror, page: next };
  }

  /** False: the page cannot be accessed now. Throws what the access throws, unless `mayFault` says that this is no wonder. */
  *#tryFill(mirror: TableMirror, page: number, mayFault: () => boolean): Work<boolean> {
    const { board, index } = this.#setup;
    if (mirror === this.#setup.mirror) board.setFilling(index, page);
    try {
      yield { kind: "fill", mirror, page };
      return true;
    } catch (error) {
      if (!(error instanceof SegvError) || !mayFault()) throw error;
      return false;
    } finally {
      board.setFilling(index, -1);
    }
  }

  // ---- windows that do not show the file now ---------------------------------------------------------------------

  *#lookAtWindow(window: number, first: number, end: number, state: number): Work<void> {
    const { board, mirror, file } = this.#setup;
    const { pageSize } = mirror;
    const detail = board.detail(window);
    const holds = (): boolean => board.state(window) === state;
    if (!holds()) return;
    switch (showsOf(state)) {
      case GAP: {
        for (let page = first; page < end; page++) this.#expect(mirror.present(page, 1) === 0, pageSize);
        return;
      }
      case FOREIGN: {
        yield* this.#sample(first, end, holds, (bytes, page) =>
          isStamped(bytes, tagOf(STAMP_FOREIGN, detail + (page - first)), 0),
        );
        return;
      }
      case WRITTEN: {
        const last = Math.min(end, first + WRITTEN_PAGES);
        yield* this.#sample(first, last, holds, (bytes) => isStamped(bytes, tagOf(STAMP_WRITTEN, 0), detail));
        return;
      }
      case ELSEWHERE: {
        const truth = Buffer.alloc(pageSize);
        yield* this.#sample(first, end, holds, (bytes, page) => {
          const read = file.readSync!((detail + (page - first)) * pageSize, truth);
          return truth.fill(0, read).equals(bytes);
        });
        return;
      }
    }
  }

  /** Looks at some pages of `[first, end)` through the mirror, as long as the board's promise holds. */
  *#sample(
    first: number,
    end: number,
    holds: () => boolean,
    isRight: (bytes: Uint8Array, page: number) => boolean,
  ): Work<void> {
    const { mirror } = this.#setup;
    const stride = Math.max(1, Math.floor((end - first) / SAMPLE_PAGES));
    for (let page = first; page < end; page += stride) {
      const use = (bytes: Uint8Array, at: number): void => this.#expect(isRight(bytes, at), bytes.length);
      while (holds() && mirror.read(page, 1, use) === 0) {
        yield* this.#tryFill(mirror, page, () => !holds());
      }
    }
  }

  // ---- scratch pages -----------------------------------------------------------------------------------------------

  /** Looks at the next few scratch pages. */
  *#lookAtScratch(): Work<void> {
    const { board } = this.#setup;
    const scratch = this.#setup.scratch!;
    for (let n = 0; n < this.#scratchPerPiece; n++) {
      const page = this.#nextScratch;
      this.#nextScratch = (page + 1) % scratch.pages;
      // First what is promised, then what the mirror shows.
      const promised = board.page(page);
      if ((promised & PAGE_GAP) !== 0) {
        this.#expect(scratch.present(page, 1) === 0, scratch.pageSize);
        continue;
      }
      const use = (bytes: Uint8Array): void =>
        this.#expect(isStamped(bytes, tagOf(STAMP_SCRATCH, page), versionOf(promised)), bytes.length);
      while (scratch.read(page, 1, use) === 0) {
        const mayFault = (): boolean => board.page(page) !== promised || (promised & PAGE_UNSTEADY) !== 0;
        if (!(yield* this.#tryFill(scratch, page, mayFault))) break;
      }
    }
    yield POLL;
  }

  #expect(right: boolean, bytes: number): void {
    if (!right) this.#staleBytes += bytes;
  }
}
