/** A set of bytes, as ranges in ascending order that neither overlap nor touch. Imported by the mirrors of this folder. */

export interface ByteRange {
  readonly start: number;
  /** Exclusive. */
  readonly end: number;
}

export class ByteRanges {
  #ranges: ByteRange[] = [];

  get empty(): boolean {
    return this.#ranges.length === 0;
  }

  list(): ByteRange[] {
    return [...this.#ranges];
  }

  add(start: number, end: number): void {
    if (start >= end) return;
    const before = this.#ranges.filter((range) => range.end < start);
    const after = this.#ranges.filter((range) => range.start > end);
    const touched = this.#ranges.slice(before.length, this.#ranges.length - after.length);
    const first = Math.min(start, touched[0]?.start ?? start);
    const last = Math.max(end, touched.at(-1)?.end ?? end);
    this.#ranges = [...before, { start: first, end: last }, ...after];
  }

  /** The parts that lie in `[start, end)`. */
  within(start: number, end: number): ByteRange[] {
    return this.#ranges
      .filter((range) => range.start < end && range.end > start)
      .map((range) => ({ start: Math.max(start, range.start), end: Math.min(end, range.end) }));
  }

  /** Takes the parts that lie in `[start, end)` out, and returns them. */
  take(start: number, end: number): ByteRange[] {
    const taken = this.within(start, end);
    if (taken.length === 0) return taken;
    this.#ranges = this.#ranges.flatMap((range) =>
      [
        { start: range.start, end: Math.min(range.end, start) },
        { start: Math.max(range.start, end), end: range.end },
      ].filter((part) => part.start < part.end),
    );
    return taken;
  }
}
