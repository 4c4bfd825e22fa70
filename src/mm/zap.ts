/**
 * Taking page-table entries away, and reducing them: the change, the shootdown, and what follows it or undoes it.
 * Linux: zap_pte_range(), change_pte_range(), mmu_gather.
 *
 * Taken entries are busy until the last acknowledgement: a fault waits for them, so no different frame appears before.
 * If the acknowledgements cannot be waited for, everything is put back, and nothing has happened.
 */
import { PG_DIRTY, ZERO_PFN } from "../memory/index.ts";
import { type Op, waitOp, wakeQueue } from "../sched/index.ts";
import { WORD_BYTES } from "../units.ts";
import { SP_FAULTQ } from "./layout.ts";
import {
  busyOf,
  busySlot,
  isBusy,
  isValid,
  pfnOfPte,
  PTE_ACCESSED,
  PTE_DIRTY,
  PTE_EXCLUSIVE,
  PTE_GUARD,
  settleBusy,
} from "./pte.ts";
import { INDEX_END, radixStretches } from "./radix.ts";
import { awaitAcksOp, markRange, markTlbs } from "./shootdown.ts";
import type { SpaceCore } from "./spaceCore.ts";

/** Entries that were changed, and what they were. */
export interface Changed {
  readonly entries: number[];
  readonly olds: number[];
}

/** From this many entries in a stretch on, a Wasm kernel is faster than a loop here. */
const KERNEL_ENTRIES = 8;

/** Which valid entries an operation means. */
export type Wants = (pte: number, vpn: number) => boolean;

interface Taken extends Changed {
  /** Some entries were busy with another operation. */
  blocked: boolean;
}

function takeEntries(space: SpaceCore, start: number, end: number, wants: Wants | undefined): Taken {
  const w = space.agent.words;
  const { kernels } = space.mm.frames;
  const taken: Taken = { entries: [], olds: [], blocked: false };
  // Without mmapLock: see pageTables.ts.
  if (wants) space.mm.protect(space.slot);
  radixStretches(w, space.pgd, start, end, (first, vpn, count) => {
    if (count >= KERNEL_ENTRIES && kernels.orRange(first * WORD_BYTES, count) === 0) return; // nothing is mapped
    for (let k = 0; k < count; k++) {
      const entry = first + k;
      for (let pte = Atomics.load(w, entry); pte !== 0;) {
        if (isBusy(pte)) taken.blocked = true;
        if (!isValid(pte) || (wants && !wants(pte, vpn + k))) break;
        const seen = Atomics.compareExchange(w, entry, pte, busyOf(pte, space.agent.slot));
        if (seen === pte) {
          taken.entries.push(entry);
          taken.olds.push(pte);
          break;
        }
        pte = seen;
      }
    }
  });
  if (wants) space.mm.unprotect();
  return taken;
}

/** Puts back what was taken. */
export function putBack(space: SpaceCore, taken: Changed): void {
  const w = space.agent.words;
  taken.entries.forEach((entry, k) => Atomics.store(w, entry, taken.olds[k]!));
  wakeQueue(w, space.slot + SP_FAULTQ);
}

/**
 * Makes the entries of `[start, end)` (pages) busy and waits until nobody uses the old translations. The caller gives
 * the result to dropTaken(). Preconditions: an open range that covers it; mmapLock, or the folio locks of the pages.
 */
export function* takeRangeOp(space: SpaceCore, start: number, end: number, wants?: Wants): Op<Changed> {
  for (;;) {
    const taken = takeEntries(space, start, end, wants);
    try {
      if (taken.entries.length > 0) yield* awaitAcksOp(space, markRange(space, start, end));
    } catch (error) {
      putBack(space, taken);
      throw error;
    }
    if (!taken.blocked) return taken;
    // Settle ours before waiting for theirs: two that hold each other's would wait for ever. Where the wait may be
    // refused, by putting everything back; else by going ahead, so that two that meet do not start over for ever.
    if (space.agent.current?.mode === "try") putBack(space, taken);
    else dropTaken(space, taken);
    yield* waitWhileBusyOp(space, start, end);
  }
}

function* waitWhileBusyOp(space: SpaceCore, start: number, end: number): Op<void> {
  yield* waitOp(
    space.slot + SP_FAULTQ,
    () => firstBusy(space, start, end) === 0,
    "a busy page-table entry",
    () => space.agent.ownerAt(busySlot(firstBusy(space, start, end))),
  );
}

/** The first busy entry of a range, 0 if there is none. */
function firstBusy(space: SpaceCore, start: number, end: number): number {
  const w = space.agent.words;
  let busy = 0;
  radixStretches(w, space.pgd, start, end, (first, _vpn, count) => {
    for (let k = 0; k < count && busy === 0; k++) {
      const pte = Atomics.load(w, first + k);
      if (isBusy(pte)) busy = pte;
    }
  });
  return busy;
}

/** Empties taken entries and gives their frames' references back. Never waits. */
export function dropTaken(space: SpaceCore, taken: Changed): void {
  const w = space.agent.words;
  const { frames } = space.mm;
  for (let k = 0; k < taken.entries.length; k++) {
    const old = taken.olds[k]!;
    Atomics.store(w, taken.entries[k]!, 0);
    const pfn = pfnOfPte(old);
    if (pfn === ZERO_PFN) continue;
    if ((old & PTE_DIRTY) !== 0 && (old & PTE_EXCLUSIVE) === 0) frames.setFlags(pfn, PG_DIRTY);
    frames.addMapcount(pfn, -1);
    frames.put(pfn);
  }
  if (taken.entries.length > 0) wakeQueue(w, space.slot + SP_FAULTQ);
}

/**
 * Changes the bits of valid entries of `[start, end)` (pages): those in `clear` go, those in `set` come. Waits for the
 * acknowledgements if anything went, and puts it back if they cannot be waited for.
 *
 * `contended`: others change entries of the range meanwhile, as write-back and reclaim do, which hold other locks.
 * Then an entry that they have reduced may still be in use, and one that they have made busy may come back as it was.
 */
export function* changeRangeOp(
  space: SpaceCore,
  start: number,
  end: number,
  clear: number,
  set: number,
  contended: boolean,
  wants?: Wants,
): Op<void> {
  const changed: Changed = { entries: [], olds: [] };
  try {
    for (;;) {
      const reduced = changeEntries(space, start, end, clear, set, changed, wants);
      if (reduced || (contended && clear !== 0)) yield* awaitAcksOp(space, markRange(space, start, end));
      if (!contended || clear === 0 || firstBusy(space, start, end) === 0) return;
      yield* waitWhileBusyOp(space, start, end);
    }
  } catch (error) {
    restoreBits(space, changed, clear, set);
    throw error;
  }
}

/** Clears the accessed bits of `[start, end)` (pages), in the TLBs when their agents come to it. Never waits. */
export function forgetAccesses(space: SpaceCore, start: number, end: number): void {
  changeEntries(space, start, end, PTE_ACCESSED, 0, { entries: [], olds: [] }, undefined);
  markTlbs(space, start, end);
}

/** True if an entry may have lost a bit. Adds what the changed entries were to `changed`, where that may matter. */
function changeEntries(
  space: SpaceCore,
  start: number,
  end: number,
  clear: number,
  set: number,
  changed: Changed,
  wants: Wants | undefined,
): boolean {
  const w = space.agent.words;
  const { kernels } = space.mm.frames;
  // Only where the acknowledgements may be refused does it matter what the entries were.
  const remembers = space.agent.current?.mode === "try";
  let reduced = false;
  if (wants) space.mm.protect(space.slot);
  radixStretches(w, space.pgd, start, end, (first, vpn, count) => {
    if (!wants && !remembers && count >= KERNEL_ENTRIES) {
      // The OR of all old entries: a bit of an entry that is not valid may be among them, which costs a needless flush.
      if ((kernels.protectRange(first * WORD_BYTES, count, ~clear, set) & clear) !== 0) reduced = true;
      return;
    }
    for (let k = 0; k < count; k++) {
      const entry = first + k;
      for (let pte = Atomics.load(w, entry); isValid(pte);) {
        if (wants && !wants(pte, vpn + k)) break;
        const next = (pte & ~clear) | set;
        if (next === pte) break;
        const seen = Atomics.compareExchange(w, entry, pte, next);
        if (seen === pte) {
          reduced ||= (pte & clear) !== 0;
          changed.entries.push(entry);
          changed.olds.push(pte);
          break;
        }
        pte = seen;
      }
    }
  });
  if (wants) space.mm.unprotect();
  return reduced;
}

function restoreBits(space: SpaceCore, changed: Changed, clear: number, set: number): void {
  const w = space.agent.words;
  changed.entries.forEach((entry, k) => {
    const old = changed.olds[k]!;
    for (let pte = Atomics.load(w, entry); isValid(pte) && pfnOfPte(pte) === pfnOfPte(old);) {
      // Bits that came in since stay; the rest is as it was.
      const seen = Atomics.compareExchange(w, entry, pte, (pte & ~(set & ~old)) | (old & clear));
      if (seen === pte) break;
      pte = seen;
    }
  });
}

/** Takes the guards out of `[start, end)` (pages). Preconditions: mmapLock. */
export function clearGuards(space: SpaceCore, start: number, end: number): void {
  const w = space.agent.words;
  const { kernels } = space.mm.frames;
  radixStretches(w, space.pgd, start, end, (first, _vpn, count) => {
    if ((kernels.orRange(first * WORD_BYTES, count) & PTE_GUARD) === 0) return;
    for (let k = 0; k < count; k++) Atomics.compareExchange(w, first + k, PTE_GUARD, 0);
  });
}

/** Settles the entries that a dead agent left busy: as it was before, but for rights that the next fault gives back. */
export function settleDead(space: SpaceCore, slot: number): void {
  const w = space.agent.words;
  radixStretches(w, space.pgd, 0, INDEX_END, (first, _vpn, count) => {
    for (let k = 0; k < count; k++) {
      const pte = Atomics.load(w, first + k);
      if (isBusy(pte) && busySlot(pte) === slot) Atomics.compareExchange(w, first + k, pte, settleBusy(pte));
    }
  });
  wakeQueue(w, space.slot + SP_FAULTQ);
}
