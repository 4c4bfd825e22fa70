/**
 * Taking page-table entries away, and reducing them: the change, the shootdown, and what follows it or undoes it.
 * Linux: zap_pte_range(), change_pte_range(), mmu_gather.
 *
 * Taken entries are busy until the last acknowledgement: a fault waits for them, so no different frame appears before.
 * If the acknowledgements cannot be waited for, everything is put back, and nothing has happened.
 *
 * Entries of pages on devices, exclusive to them or on their way (pte.ts) are taken with the others where a range is taken
 * whole, and only there; nobody has a translation of them, but a device may, which has heard of the range.
 *
 * Where many entries are taken to be dropped, kernels do both: what the entries were lies in the arena then, a stretch
 * for each table, until the stretch is settled. An agent that dies meanwhile loses these words; the entries are settled
 * by the reaper.
 */
import { allocWords, PG_DIRTY, ZERO_PFN } from "../memory/index.ts";
import { type Op, waitOp, wakeQueue } from "../sched/index.ts";
import { WORD_BYTES } from "../units.ts";
import { SP_FAULTQ, SP_SPECIAL } from "./layout.ts";
import {
  busyOf,
  busySlot,
  isBusy,
  isValid,
  pfnOfPte,
  PTE_ACCESSED,
  PTE_BUSY,
  PTE_DIRTY,
  PTE_EXCLUSIVE,
  PTE_GUARD,
  PTE_PFN,
  PTE_PFN_SHIFT,
  isSpecial,
  kindOfPte,
  PTE_KEPT,
  PTE_MIGRATION,
  settleBusy,
} from "./pte.ts";
import { INDEX_END, LEAF_ENTRIES, radixFind, radixStretches } from "./radix.ts";
import { awaitAcksOp, markRange, markTlbs, NO_ACKS, type PendingAck } from "./shootdown.ts";
import type { SpaceCore } from "./spaceCore.ts";

/** Entries that were changed, and what they were. */
export interface Changed {
  readonly entries: number[];
  readonly olds: number[];
}

/** Entries of one table that a kernel took: `count` from `entry` on; what they were from word `olds` of the arena on. */
interface Stretch {
  readonly entry: number;
  readonly count: number;
  /** 0 for an entry that was not taken. Whoever settles the stretch frees it. */
  readonly olds: number;
}

/** From this many entries in a stretch on, a Wasm kernel is faster than a loop here. */
const KERNEL_ENTRIES = 8;

/** Which valid entries an operation means. */
export type Wants = (pte: number, vpn: number) => boolean;

interface Taken extends Changed {
  readonly stretches: Stretch[];
  /** Some entries were busy with another operation. */
  blocked: boolean;
}

const isAny = (taken: Taken): boolean => taken.entries.length > 0 || taken.stretches.length > 0;

/** Arena words that one operation holds at most for what entries were: those of 256 MiB of pages of 4 KiB. */
const MOST_OLDS = 65536;

/** Takes a stretch with a kernel. False: the arena has no room for what the entries were. */
function takeStretch(space: SpaceCore, taken: Taken, entry: number, count: number): boolean {
  const { agent, mm } = space;
  const held = taken.stretches.length * LEAF_ENTRIES;
  const olds = held < MOST_OLDS ? allocWords(agent, mm.heap, count) : 0;
  if (olds === 0) return false;
  const n = mm.frames.kernels.takeRange(
    entry * WORD_BYTES,
    count,
    PTE_PFN,
    busyOf(0, agent.slot),
    PTE_BUSY,
    olds * WORD_BYTES,
  );
  // It passed over entries of other kinds, if some came in meanwhile.
  if (n < 0 || maySpecial(space)) taken.blocked = true;
  if (n === 0 || n === -1) mm.free(olds, count);
  else taken.stretches.push({ entry, count, olds });
  return true;
}

/** True if there may be entries of pages on devices or on their way, which no kernel knows of. */
export const maySpecial = (space: SpaceCore): boolean =>
  Atomics.load(space.agent.words, space.slot + SP_SPECIAL) !== 0;

/** `whole`: the caller has no use for the entries one by one, so kernels may take them. */
function takeEntries(
  space: SpaceCore,
  start: number,
  end: number,
  whole: boolean,
  wants: Wants | undefined,
): Taken {
  const w = space.agent.words;
  const { kernels } = space.mm.frames;
  const taken: Taken = { entries: [], olds: [], stretches: [], blocked: false };
  const special = !wants && maySpecial(space);
  // Without mmapLock: see pageTables.ts.
  if (wants) space.mm.protect(space.slot);
  radixStretches(w, space.pgd, start, end, (first, vpn, count) => {
    if (count >= KERNEL_ENTRIES && kernels.orRange(first * WORD_BYTES, count) === 0) return; // nothing is mapped
    if (whole && !wants && !special && count >= KERNEL_ENTRIES && takeStretch(space, taken, first, count))
      return;
    for (let k = 0; k < count; k++) {
      const entry = first + k;
      for (let pte = Atomics.load(w, entry); pte !== 0;) {
        if (isBusy(pte)) taken.blocked = true;
        if (!isValid(pte) && !(special && isSpecial(pte))) break;
        if (wants && !wants(pte, vpn + k)) break;
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
function putBack(space: SpaceCore, taken: Taken): void {
  const w = space.agent.words;
  taken.entries.forEach((entry, k) => Atomics.store(w, entry, taken.olds[k]!));
  for (const { entry, count, olds } of taken.stretches.splice(0)) {
    for (let k = 0; k < count; k++) if (w[olds + k] !== 0) Atomics.store(w, entry + k, w[olds + k]!);
    space.mm.free(olds, count);
  }
  wakeQueue(w, space.slot + SP_FAULTQ);
}

/**
 * Makes the entries of `[start, end)` (pages) busy and waits until nobody uses the old translations. The caller gives
 * the result to dropTaken(). Preconditions: an open range that covers it; mmapLock, or the folio locks of the pages.
 */
export const takeRangeOp = (space: SpaceCore, start: number, end: number, wants?: Wants): Op<Changed> =>
  takeOp(space, start, end, false, wants);

/** As takeRangeOp(), and empties the entries. True if there were some that nobody else was taking away. */
export function* zapRangeOp(space: SpaceCore, start: number, end: number, wants?: Wants): Op<boolean> {
  const taken = yield* takeOp(space, start, end, true, wants);
  const any = isAny(taken);
  drop(space, taken);
  return any;
}

/** As zapRangeOp(). Undefined where nobody had to be waited for, else the rest, which the caller yields at once. */
export function zapRange(space: SpaceCore, start: number, end: number): Op<void> | undefined {
  const taken = takeEntries(space, start, end, true, undefined);
  const acks = isAny(taken) ? markRange(space, start, end) : NO_ACKS;
  if (acks.length > 0 || taken.blocked) return finishZapOp(space, start, end, taken, acks);
  drop(space, taken);
  return undefined;
}

function* finishZapOp(
  space: SpaceCore,
  start: number,
  end: number,
  taken: Taken,
  acks: readonly PendingAck[],
): Op<void> {
  if (!(yield* settleTakenOp(space, start, end, taken, acks))) yield* zapRangeOp(space, start, end);
  else drop(space, taken);
}

function* takeOp(
  space: SpaceCore,
  start: number,
  end: number,
  whole: boolean,
  wants: Wants | undefined,
): Op<Taken> {
  for (;;) {
    const taken = takeEntries(space, start, end, whole, wants);
    const acks = isAny(taken) ? markRange(space, start, end) : NO_ACKS;
    if (yield* settleTakenOp(space, start, end, taken, acks)) return taken;
  }
}

/** Waits for the acknowledgements of what was taken. False: others were taking entries away, and it has to be done again. */
function* settleTakenOp(
  space: SpaceCore,
  start: number,
  end: number,
  taken: Taken,
  acks: readonly PendingAck[],
): Op<boolean> {
  try {
    yield* awaitAcksOp(space, acks);
  } catch (error) {
    putBack(space, taken);
    throw error;
  }
  if (!taken.blocked) return true;
  // Settle ours before waiting for theirs: two that hold each other's would wait for ever. Where the wait may be
  // refused, by putting everything back; else by going ahead, so that two that meet do not start over for ever.
  if (space.agent.current?.mode === "try") putBack(space, taken);
  else drop(space, taken);
  yield* waitWhileBusyOp(space, start, end);
  return false;
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

/** Which old values say that the frame must be marked as dirty: an anonymous one that is exclusive is never written out. */
const DIRTY = { shift: PTE_PFN_SHIFT, mask: PTE_DIRTY | PTE_EXCLUSIVE, want: PTE_DIRTY };

function drop(space: SpaceCore, taken: Taken): void {
  dropTaken(space, taken);
  if (taken.stretches.length === 0) return;
  for (const { entry, count, olds } of taken.stretches.splice(0)) {
    space.mm.frames.dropMapped(entry, olds, count, DIRTY);
    space.mm.free(olds, count);
  }
  wakeQueue(space.agent.words, space.slot + SP_FAULTQ);
}

/** Empties taken entries and gives their frames' references back. Never waits. */
export function dropTaken(space: SpaceCore, taken: Changed): void {
  const w = space.agent.words;
  const { frames } = space.mm;
  for (let k = 0; k < taken.entries.length; k++) {
    const old = taken.olds[k]!;
    Atomics.store(w, taken.entries[k]!, 0);
    const pfn = pfnOfPte(old);
    // What is on its way has given its mapping up before; who moves it sees that the entry is gone.
    if (pfn === ZERO_PFN || kindOfPte(old) === PTE_MIGRATION) continue;
    if (isValid(old) && (old & PTE_DIRTY) !== 0 && (old & PTE_EXCLUSIVE) === 0)
      frames.setFlags(pfn, PG_DIRTY);
    frames.putMapped(pfn);
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
  const rest = changeRange(space, start, end, clear, set, contended, wants);
  if (rest) yield* rest;
}

/** As changeRangeOp(). Undefined where nobody had to be waited for, else the rest, which the caller yields at once. */
export function changeRange(
  space: SpaceCore,
  start: number,
  end: number,
  clear: number,
  set: number,
  contended: boolean,
  wants?: Wants,
): Op<void> | undefined {
  const changed: Changed = { entries: [], olds: [] };
  const reduced = changeEntries(space, start, end, clear, set, changed, wants);
  const rivals = contended && clear !== 0;
  const acks = reduced || rivals ? markRange(space, start, end) : NO_ACKS;
  if (acks.length === 0 && !(rivals && firstBusy(space, start, end) !== 0)) return undefined;
  return settleChangeOp(space, start, end, clear, set, rivals, changed, acks, wants);
}

function* settleChangeOp(
  space: SpaceCore,
  start: number,
  end: number,
  clear: number,
  set: number,
  rivals: boolean,
  changed: Changed,
  acks: readonly PendingAck[],
  wants: Wants | undefined,
): Op<void> {
  try {
    for (let pending = acks; ; pending = markRange(space, start, end)) {
      yield* awaitAcksOp(space, pending);
      if (!rivals || firstBusy(space, start, end) === 0) return;
      yield* waitWhileBusyOp(space, start, end);
      changeEntries(space, start, end, clear, set, changed, wants);
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
  if (end - start === 1 && !wants) {
    const entry = radixFind(w, space.pgd, start);
    return entry !== 0 && changeEntry(space, entry, start, clear, set, changed, wants);
  }
  // Only where the acknowledgements may be refused does it matter what the entries were.
  const remembers = space.agent.current?.mode === "try";
  const special = maySpecial(space);
  let reduced = false;
  if (wants) space.mm.protect(space.slot);
  radixStretches(w, space.pgd, start, end, (first, vpn, count) => {
    if (!wants && !remembers && !special && count >= KERNEL_ENTRIES) {
      // The OR of all old entries: a bit of an entry that is not valid may be among them, which costs a needless flush.
      if ((kernels.protectRange(first * WORD_BYTES, count, ~clear, set) & clear) !== 0) reduced = true;
      return;
    }
    for (let k = 0; k < count; k++) {
      if (changeEntry(space, first + k, vpn + k, clear, set, changed, wants)) reduced = true;
    }
  });
  if (wants) space.mm.unprotect();
  return reduced;
}

/** True if the entry has lost a bit. */
function changeEntry(
  space: SpaceCore,
  entry: number,
  vpn: number,
  clear: number,
  set: number,
  changed: Changed,
  wants: Wants | undefined,
): boolean {
  const w = space.agent.words;
  // Plain: what is seen is compared when it is exchanged.
  let pte = w[entry]!;
  if (!wants && kindOfPte(pte) !== 0) reduceSpecial(space, entry, clear & PTE_KEPT);
  while (isValid(pte)) {
    if (wants && !wants(pte, vpn)) return false;
    const next = (pte & ~clear) | set;
    if (next === pte) return false;
    const seen = Atomics.compareExchange(w, entry, pte, next);
    if (seen === pte) {
      changed.entries.push(entry);
      changed.olds.push(pte);
      return (pte & clear) !== 0;
    }
    pte = seen;
  }
  return false;
}

/** Takes what an entry keeps of a valid one from a page that no agent can get at, so that it does not come back with it. */
function reduceSpecial(space: SpaceCore, entry: number, clear: number): void {
  const w = space.agent.words;
  for (let pte = Atomics.load(w, entry); kindOfPte(pte) !== 0 && (pte & clear) !== 0;) {
    const seen = Atomics.compareExchange(w, entry, pte, pte & ~clear);
    if (seen === pte) return;
    pte = seen;
  }
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
      if (!isBusy(pte) || busySlot(pte) !== slot) continue;
      Atomics.compareExchange(w, first + k, pte, settleBusy(pte, space.mm.frames.isDevice(pfnOfPte(pte))));
    }
  });
  wakeQueue(w, space.slot + SP_FAULTQ);
}
