/**
 * Which pages a device has used since somebody asked last. Where the range is known and not too large the bits lie in
 * shared memory, so that other agents can test and clear them in place; else they are this agent's.
 */
import type { AccessedBitmap } from "../../notifier/index.ts";

export class YoungPages {
  readonly #bitmap: { bits: Int32Array; firstPage: number; pages: number } | undefined;
  readonly #pages = new Set<number>();

  constructor(bitmap: AccessedBitmap | undefined, pageSize: number) {
    if (!bitmap) return;
    const { bits, start, length } = bitmap;
    this.#bitmap = { bits, firstPage: start / pageSize, pages: length / pageSize };
  }

  mark(vpn: number): void {
    const map = this.#bitmap;
    if (!map) {
      this.#pages.add(vpn);
      return;
    }
    const k = vpn - map.firstPage;
    const bit = 1 << (k & 31);
    if ((Atomics.load(map.bits, k >>> 5) & bit) === 0) Atomics.or(map.bits, k >>> 5, bit);
  }

  /** True if one of the pages `[first, end)` is young; `clear`: none of them is from then on. */
  test(first: number, end: number, clear: boolean): boolean {
    return this.#bitmap ? this.#testBits(first, end, clear) : this.#testSet(first, end, clear);
  }

  #testBits(first: number, end: number, clear: boolean): boolean {
    const { bits, firstPage, pages } = this.#bitmap!;
    let young = false;
    for (let k = Math.max(0, first - firstPage); k < Math.min(pages, end - firstPage); k++) {
      const bit = 1 << (k & 31);
      if ((Atomics.load(bits, k >>> 5) & bit) === 0) continue;
      young = true;
      if (!clear) break;
      Atomics.and(bits, k >>> 5, ~bit);
    }
    return young;
  }

  #testSet(first: number, end: number, clear: boolean): boolean {
    let young = false;
    const see = (vpn: number): void => {
      young = true;
      if (clear) this.#pages.delete(vpn);
    };
    if (end - first <= this.#pages.size) {
      for (let vpn = first; vpn < end; vpn++) if (this.#pages.has(vpn)) see(vpn);
    } else {
      for (const vpn of this.#pages) if (vpn >= first && vpn < end) see(vpn);
    }
    return young;
  }
}
