/** Sequence counts: readers never wait and look again if a writer was there. Linux: seqcount_t. Writers hold a lock. */
import type { Arena } from "../sched/index.ts";

/** Opens a write section: the count is odd until endWrite(). */
export function beginWrite(a: Arena, seq: number): void {
  Atomics.add(a.words, seq, 1);
}

export function endWrite(a: Arena, seq: number): void {
  Atomics.add(a.words, seq, 1);
}

/** The count to give to readChanged(); odd while a writer is inside. */
export function readSequence(a: Arena, seq: number): number {
  return Atomics.load(a.words, seq);
}

/** True if what was read since readSequence() may be torn. */
export function readChanged(a: Arena, seq: number, seen: number): boolean {
  return (seen & 1) === 1 || Atomics.load(a.words, seq) !== seen;
}
