/** Pins: pages of a space that stay where they are. Linux: pin_user_pages(), unpin_user_pages(). */
import type { Span } from "./access.ts";
import type { Mm } from "./mm.ts";

/**
 * Pages that are held in place, in pieces that lie together: for whoever uses their bytes beyond the turn, such as I/O or
 * another thread. They live until the pin is given back, or the agent that has it leaves or dies, whatever becomes of the
 * mapping: after unmapping they are the pin's alone. Reclaim passes them over, and fork copies them for the child.
 *
 * A pin for writing has the very pages of the mapping, and keeps them: no later store of the space is made in a copy. One
 * for reading shows what is there now; a private page that others still have, or that has never been written, is
 * replaced in the mapping by the next store.
 */
export class Pin implements AsyncDisposable {
  readonly #mm: Mm;
  readonly #epoch: number;
  readonly #runs: number[] = [];
  #spans: Span[] = [];

  /** @internal */
  constructor(mm: Mm) {
    this.#mm = mm;
    this.#epoch = mm.pins.epoch;
  }

  /** The bytes in order of address; none once the pin has been given back, when the old ones are others' bytes. */
  get spans(): readonly Span[] {
    return this.#spans;
  }

  /** @internal Takes a span whose run is in the log of pins. */
  hold(span: Span, run: number): void {
    this.#spans.push(span);
    this.#runs.push(run);
  }

  /**
   * Gives the pages back; those of files count as written if the pin was for writing. Once: later calls do nothing. Never
   * waits.
   */
  unpin(): void {
    const runs = this.#runs.splice(0);
    this.#spans = [];
    const { pins } = this.#mm;
    // The agent has left: then they are given back already.
    if (pins.epoch !== this.#epoch) return;
    for (const run of runs) pins.drop(run);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.unpin();
  }
}
