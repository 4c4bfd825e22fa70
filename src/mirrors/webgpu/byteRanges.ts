/** A set of bytes, as ranges in ascending order that neither overlap nor touch. Imported by the mirrors of this folder. */

export interface ByteRange {
  readonly start: number;
  /** Exclusive. */
  readonly end: number;
}

export class ByteRanges {
  readonly #ranges: ByteRange[] = [];

  get empty(): boolean {
    return this.#ranges.length === 0;
  }

  list(): ByteRange[] {
    return [...this.#ranges];
  }

  /** Index of the first range that ends at `at` or later. */
  #from(at: number): number {
    let [low, high] = [0, this.#ranges.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#ranges[middle]!.end < at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  add(start: number, end: number): void {
    if (start >= end) return;
    const ranges = this.#ranges;
    const first = this.#from(start);
    let last = first;
    while (last < ranges.length && ranges[last]!.start <= end) last++;
    const whole =
      last === first
        ? { start, end }
        : {
            start: Math.min(start, ranges[first]!.start),
            end: Math.max(end, ranges[last - 1]!.end),
          };
    ranges.splice(first, last - first, whole);
  }

  /** The parts that lie in `[start, end)`. */
  within(start: number, end: number): ByteRange[] {
    const ranges = this.#ranges;
    const parts: ByteRange[] = [];
    if (start >= end) return parts;
    for (let k = this.#from(start + 1); k < ranges.length && ranges[k]!.start < end; k++)
      parts.push({ start: Math.max(start, ranges[k]!.start), end: Math.min(end, ranges[k]!.end) });
    return parts;
  }

  /** Takes the parts that lie in `[start, end)` out, and returns them. */
  take(start: number, end: number): ByteRange[] {
    const taken = this.within(start, end);
    if (taken.length === 0) return taken;
    const first = this.#from(start + 1);
    const before = { start: this.#ranges[first]!.start, end: start };
    const after = { start: end, end: this.#ranges[first + taken.length - 1]!.end };
    const rest = [before, after].filter((part) => part.start < part.end);
    this.#ranges.splice(first, taken.length, ...rest);
    return taken;
  }
}
