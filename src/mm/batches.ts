/**
 * When Linux may take a page that was shared by fork for its own again: it collects pages that madvise free gave up in a
 * batch, which holds a reference to each until it is emptied. Till then such a page is copied, though nobody else has it.
 */
import { PG_LAZYFREE } from "../memory/index.ts";
import { MM_DRAINS } from "./layout.ts";
import type { Mm } from "./mm.ts";

/** Linux: lru_add_drain(). */
export function drainBatches(mm: Mm): void {
  Atomics.add(mm.agent.words, mm.header + MM_DRAINS, 1);
}

const batchOf = (mm: Mm): number => Atomics.load(mm.agent.words, mm.header + MM_DRAINS);

/** Puts a mapped anonymous page into the batch, for good: its frame's index says which one it was. */
export function batchFreed(mm: Mm, pfn: number): void {
  if ((mm.frames.setFlags(pfn, PG_LAZYFREE) & PG_LAZYFREE) === 0) mm.frames.setMapping(pfn, 0, batchOf(mm));
}

export const isBatched = (mm: Mm, pfn: number): boolean =>
  (mm.frames.flags(pfn) & PG_LAZYFREE) !== 0 && mm.frames.index(pfn) === batchOf(mm);
