/** Backings that pages make: asynchronous, as everything in a page that reads files is. */
import type { Backing } from "../../../src/index.ts";

export interface CountingBacking extends Backing {
  readonly bytes: Uint8Array;
  readonly counts: { reads: number; writes: number; flushes: number };
  /** From here on reads fail. */
  broken: boolean;
}

/** The byte that a file made by asyncBacking() has at an offset. */
export const byteAt = (offset: number): number => (Math.imul(offset + 1, 0x9e3779b1) >>> 24) & 0xff;

/** A file of `size` bytes whose reads and writes take a turn of the event loop. */
export function asyncBacking(size: number): CountingBacking {
  const bytes = Uint8Array.from({ length: size }, (_, offset) => byteAt(offset));
  const counts = { reads: 0, writes: 0, flushes: 0 };
  const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));
  return {
    size,
    bytes,
    counts,
    broken: false,
    async read(offset, into) {
      counts.reads++;
      await turn();
      if (this.broken) throw new Error("the network is gone");
      const part = bytes.subarray(offset, offset + into.length);
      into.set(part);
      return part.length;
    },
    async write(offset, from) {
      counts.writes++;
      await turn();
      bytes.set(from, offset);
    },
    async flush() {
      counts.flushes++;
      await turn();
    },
  };
}
