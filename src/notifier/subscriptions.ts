/**
 * The state machine of a space's subscriptions: open ranges, the sequence, the frozen tree, deferred edits.
 * Linux: mm/mmu_notifier.c, the mmu_interval_* half and mn_itree_*.
 *
 * Not here: calling anybody (delivery.ts).
 *
 *   state               open ranges   SUBS_SEQ   tree
 *   idle                0             even       mutable
 *   partially excluded  > 0           even       mutable: no open range hits an interval
 *   fully excluded      > 0           odd        frozen: edits are deferred to the last end
 *
 * Invariants (checkSubscriptions() verifies those that can be seen at rest)
 *   S1  An interval's own sequence is odd; it equals SUBS_SEQ only while an invalidation is open.
 *   S2  No open range implies SUBS_SEQ even and no deferred edit, outside SUBS_LOCK.
 *   S3  The tree changes only while SUBS_SEQ is even, or in the step that makes it even, or in the insert that makes it odd.
 *   S4  SUBS_SEQ never decreases.
 *
 * Open ranges are counted per agent without the lock, so that a range without subscribers costs one atomic add.
 * Two pairs make that safe. A start counts itself and then looks at SUBS_ANY; a first registration sets SUBS_ANY and
 * then counts the open ranges. An end uncounts itself and then looks at SUBS_SEQ and SUBS_PENDING; whoever makes
 * these odd or non-empty counts the open ranges afterwards, and closes the epoch itself if there are none.
 *
 * Lock order: SUBS_LOCK is a spinlock inside everything but the heap; no callback runs under it.
 */
import { arenaFull, MmError } from "../errors.ts";
import {
  allocWords,
  checkIntervalTree,
  freeWords,
  itFirst,
  itInsert,
  itLinked,
  itLowest,
  itNext,
  itRemove,
  itSet,
  itSuccessor,
} from "../memory/index.ts";
import { type Agent, type Op, waitOp, wakeQueue } from "../sched/index.ts";
import { lockSpin, reapSrcu, unlockSpin } from "../sync/index.ts";
import {
  FIRST_SEQ,
  GONE_ID,
  INTERVAL_FREE,
  INTERVAL_INSERTING,
  INTERVAL_ORPHANED,
  INTERVAL_REMOVING,
  INTERVAL_TREE,
  type Interval,
  IV_DEFERRED,
  IV_GENERATION,
  IV_OWNER,
  IV_SEQ,
  IV_STATE,
  IV_SUBS,
  IV_WORDS,
  LIST_LINKED,
  LIST_PENDING,
  LIST_UNLINKED,
  type ListNotifier,
  LN_NEXT,
  LN_OP_SECONDARY_TLBS,
  LN_OPS,
  LN_OWNER,
  LN_STATE,
  LN_WORDS,
  type Subs,
  SUBS_ANY,
  SUBS_DEFERRED,
  SUBS_GENERATION,
  SUBS_ID,
  SUBS_INTERVALS,
  SUBS_LIST,
  SUBS_LIVE,
  SUBS_LOCK,
  SUBS_OWNED,
  SUBS_PENDING,
  SUBS_QUEUE,
  SUBS_RELEASED,
  SUBS_SECONDARY_TLBS,
  SUBS_SEQ,
  SUBS_SRCU,
  SUBS_STATE,
  SUBS_TREE,
  subsFreedAt,
  subsListedAt,
  subsOpenAt,
  subsPutAt,
  subsWords,
} from "./layout.ts";

/** One agent's way to the subscriptions of one space. */
export interface SubsContext {
  readonly agent: Agent;
  readonly subs: Subs;
  /** SUBS_ID, when this way to them was made. */
  readonly id: number;
  readonly maxAgents: number;
  readonly heap: number;
}

/** Makes the record of a new space. Returns 0 if the arena is full. */
export function createSubscriptions(agent: Agent, heap: number, maxAgents: number, id: number): Subs {
  const subs = allocWords(agent, heap, subsWords(maxAgents)) as Subs;
  if (subs === 0) return subs;
  Atomics.store(agent.words, subs + SUBS_SEQ, FIRST_SEQ);
  Atomics.store(agent.words, subs + SUBS_ID, id);
  Atomics.store(agent.words, subs + SUBS_OWNED, 1);
  return subs;
}

/**
 * The space is gone, or whoever made the notifiers has no more use for them: the record goes with its last subscription.
 * Linux: mm_count, of which each registration holds one.
 */
export function disownSubscriptions(c: SubsContext): void {
  dropUse(c, c.subs + SUBS_OWNED);
}

/** Takes one from a count of uses; the last use of all frees the record. */
function dropUse(c: SubsContext, count: number): void {
  const { agent, subs } = c;
  lockSpin(agent, subs + SUBS_LOCK);
  Atomics.sub(agent.words, count, 1);
  const last = isUnusedLocked(c);
  if (last) Atomics.store(agent.words, subs + SUBS_ID, GONE_ID);
  unlockSpin(agent, subs + SUBS_LOCK);
  if (last) freeWords(agent, c.heap, subs, subsWords(c.maxAgents));
}

function isUnusedLocked(c: SubsContext): boolean {
  const { subs, maxAgents } = c;
  const w = c.agent.words;
  if (Atomics.load(w, subs + SUBS_OWNED) !== 0 || Atomics.load(w, subs + SUBS_INTERVALS) !== 0) return false;
  for (let slot = 0; slot < maxAgents; slot++)
    if (Atomics.load(w, subsListedAt(subs, maxAgents, slot)) !== 0) return false;
  return true;
}

/** Ranges that are open now, of all agents. Linux: active_invalidate_ranges. */
export function openRanges(c: SubsContext): number {
  const top = c.agent.top();
  let open = 0;
  for (let slot = 0; slot < top; slot++)
    open += Atomics.load(c.agent.words, subsOpenAt(c.subs, c.maxAgents, slot));
  return open;
}

/**
 * Owner id of an agent with an open range, or that is about to close an epoch, 0 if none is. The own agent first: see
 * needsEventLoop().
 */
export function someOpener(c: SubsContext): number {
  const { agent } = c;
  const openOf = (slot: number): number => Atomics.load(agent.words, subsOpenAt(c.subs, c.maxAgents, slot));
  if (openOf(agent.slot) !== 0) return agent.ownerId;
  const top = agent.top();
  for (let slot = 0; slot < top; slot++) if (openOf(slot) !== 0) return agent.ownerAt(slot);
  const closer = Atomics.load(agent.words, c.subs + SUBS_LOCK);
  return closer === agent.ownerId ? 0 : closer;
}

/** Waits for what the last end does. If the agent that ended died before it did it, who waits does. */
function epochOp(c: SubsContext, over: () => boolean, what: string): Op<void> {
  const ready = (): boolean => {
    if (over()) return true;
    if (openRanges(c) > 0) return false;
    closeEpoch(c);
    return over();
  };
  return waitOp(c.subs + SUBS_QUEUE, ready, what, () => someOpener(c));
}

/** Numbers that fit 20 bits and are not 0; different for a million registrations in a row. */
const GENERATION_LIMIT = 2 ** 20 - 1;
export function newGeneration(c: SubsContext): number {
  return 1 + ((Atomics.add(c.agent.words, c.subs + SUBS_GENERATION, 1) >>> 0) % GENERATION_LIMIT);
}

/** The space dies: nothing is registered from now on. False: somebody else has said so. */
export function markReleased(c: SubsContext): boolean {
  const { agent, subs } = c;
  lockSpin(agent, subs + SUBS_LOCK);
  const first = Atomics.exchange(agent.words, subs + SUBS_STATE, SUBS_RELEASED) === SUBS_LIVE;
  unlockSpin(agent, subs + SUBS_LOCK);
  return first;
}

export const isReleased = (c: SubsContext): boolean =>
  Atomics.load(c.agent.words, c.subs + SUBS_STATE) !== SUBS_LIVE;

/** True once the record is nobody's, or another space's. */
export const isGone = (c: SubsContext): boolean => Atomics.load(c.agent.words, c.subs + SUBS_ID) !== c.id;

export function hasSubscriptions(c: SubsContext): boolean {
  const w = c.agent.words;
  // Plain first: it never goes back to 0.
  return w[c.subs + SUBS_ANY] !== 0 || Atomics.load(w, c.subs + SUBS_ANY) !== 0;
}

/** Counts a range as open. True if it concerns nobody; else the tree stays frozen until endRange(). Never waits. */
export function beginRange(c: SubsContext, start: number, end: number): boolean {
  const { agent, subs } = c;
  const w = agent.words;
  Atomics.add(w, subsOpenAt(subs, c.maxAgents, agent.slot), 1);
  if (!hasSubscriptions(c)) return true;
  lockSpin(agent, subs + SUBS_LOCK);
  const hit = itFirst(agent, subs + SUBS_TREE, start, end - 1);
  if (hit !== 0) Atomics.or(w, subs + SUBS_SEQ, 1);
  const listed = w[subs + SUBS_LIST]; // plain: it is stored under the lock
  unlockSpin(agent, subs + SUBS_LOCK);
  return hit === 0 && listed === 0;
}

/** First interval of an open range, and the sequence to tell its owner. Preconditions: beginRange() said false. */
export function firstInterval(c: SubsContext, start: number, end: number): Interval {
  // No lock: if there is one the tree is frozen, because this range is open and made the sequence odd, which a plain
  // load sees: this agent has stored it, or seen it stored.
  if ((c.agent.words[c.subs + SUBS_SEQ]! & 1) === 0) return 0 as Interval;
  return itFirst(c.agent, c.subs + SUBS_TREE, start, end - 1) as Interval;
}

export function nextInterval(c: SubsContext, interval: Interval, start: number, end: number): Interval {
  return itNext(c.agent, interval, start, end - 1) as Interval;
}

/**
 * Counts the range of another agent, which told this agent of it with sequence `seq`, as open in this agent too, so
 * that the tree stays frozen while this agent walks it, even if the other dies. False: it has died, nobody waits.
 */
export function joinRange(c: SubsContext, seq: number): boolean {
  const { agent, subs } = c;
  const own = subsOpenAt(subs, c.maxAgents, agent.slot);
  lockSpin(agent, subs + SUBS_LOCK);
  Atomics.add(agent.words, own, 1);
  const open = Atomics.load(agent.words, subs + SUBS_SEQ) === seq;
  if (!open) Atomics.sub(agent.words, own, 1);
  unlockSpin(agent, subs + SUBS_LOCK);
  return open;
}

export function currentSeq(c: SubsContext): number {
  return Atomics.load(c.agent.words, c.subs + SUBS_SEQ);
}

/** Ends an open range: the last one lets readers go on and applies deferred edits. Never waits. */
export function endRange(c: SubsContext): void {
  const { agent, subs } = c;
  const w = agent.words;
  Atomics.sub(w, subsOpenAt(subs, c.maxAgents, agent.slot), 1);
  if (!hasSubscriptions(c)) return;
  if ((Atomics.load(w, subs + SUBS_SEQ) & 1) === 1 || Atomics.load(w, subs + SUBS_PENDING) !== 0)
    closeEpoch(c);
}

/** If no range is open: makes the sequence even, applies deferred edits, publishes list notifiers, wakes everybody. */
export function closeEpoch(c: SubsContext): void {
  const { agent, subs } = c;
  const w = agent.words;
  lockSpin(agent, subs + SUBS_LOCK);
  const closed = openRanges(c) === 0;
  if (closed) closeEpochLocked(c);
  unlockSpin(agent, subs + SUBS_LOCK);
  if (closed) wakeQueue(w, subs + SUBS_QUEUE);
}

function closeEpochLocked(c: SubsContext): void {
  const { agent, subs } = c;
  const w = agent.words;
  for (let node = Atomics.exchange(w, subs + SUBS_DEFERRED, 0); node !== 0;) {
    const next = Atomics.exchange(w, node + IV_DEFERRED, 0);
    if (Atomics.load(w, node + IV_STATE) === INTERVAL_INSERTING) {
      itInsert(agent, subs + SUBS_TREE, node);
      Atomics.store(w, node + IV_STATE, INTERVAL_TREE);
    } else {
      itRemove(agent, subs + SUBS_TREE, node);
      const orphaned = Atomics.load(w, node + IV_STATE) === INTERVAL_ORPHANED;
      Atomics.store(w, node + IV_STATE, INTERVAL_FREE);
      if (orphaned) freeInterval(c, node as Interval);
    }
    node = next;
  }
  // After the edits: a remover looks at it without the lock, and frees its record at once.
  if ((Atomics.load(w, subs + SUBS_SEQ) & 1) === 1) Atomics.add(w, subs + SUBS_SEQ, 1);
  const published = isReleased(c) ? LIST_UNLINKED : LIST_LINKED;
  // Oldest first, each to the head: the newest ends up in front, as if they had come one by one.
  let ordered = 0;
  for (let ln = Atomics.exchange(w, subs + SUBS_PENDING, 0); ln !== 0;) {
    const next = Atomics.load(w, ln + LN_NEXT);
    Atomics.store(w, ln + LN_NEXT, ordered);
    ordered = ln;
    ln = next;
  }
  while (ordered !== 0) {
    const next = Atomics.load(w, ordered + LN_NEXT);
    Atomics.store(w, ordered + LN_NEXT, Atomics.load(w, subs + SUBS_LIST));
    if (published === LIST_LINKED) {
      Atomics.store(w, subs + SUBS_LIST, ordered);
      countSecondaryTlbLocked(c, ordered as ListNotifier, 1);
    }
    Atomics.store(w, ordered + LN_STATE, published); // last: who registers it looks without the lock
    ordered = next;
  }
}

// ---- intervals ---------------------------------------------------------------------------------------------------

const exiting = (operation: string): MmError =>
  new MmError("ESRCH", operation, "the space is exiting or has exited");

/** Registers `[start, last]`. Never waits. Errors: ENOMEM, ESRCH. Linux: mmu_interval_notifier_insert(). */
export function insertInterval(c: SubsContext, start: number, last: number): Interval {
  const { agent, subs } = c;
  const w = agent.words;
  const node = allocWords(agent, c.heap, IV_WORDS) as Interval;
  if (node === 0) throw arenaFull("insert");
  itSet(agent, node, start, last);
  Atomics.store(w, node + IV_OWNER, agent.ownerId);
  Atomics.store(w, node + IV_SUBS, subs);
  Atomics.store(w, node + IV_GENERATION, newGeneration(c));
  Atomics.store(w, subs + SUBS_ANY, 1);
  lockSpin(agent, subs + SUBS_LOCK);
  if (isReleased(c)) {
    unlockSpin(agent, subs + SUBS_LOCK);
    freeInterval(c, node);
    throw exiting("insert");
  }
  const seq = Atomics.load(w, subs + SUBS_SEQ);
  if (openRanges(c) === 0) {
    itInsert(agent, subs + SUBS_TREE, node);
    Atomics.store(w, node + IV_STATE, INTERVAL_TREE);
    // Odd, and neither the current number nor the next odd one.
    Atomics.store(w, node + IV_SEQ, seq - 1);
  } else if ((seq & 1) === 1) {
    Atomics.store(w, node + IV_DEFERRED, Atomics.load(w, subs + SUBS_DEFERRED));
    Atomics.store(w, subs + SUBS_DEFERRED, node);
    Atomics.store(w, node + IV_STATE, INTERVAL_INSERTING);
    Atomics.store(w, node + IV_SEQ, seq);
  } else {
    // A range is open whose extent nobody wrote down: assume that it covers the new interval.
    itInsert(agent, subs + SUBS_TREE, node);
    Atomics.store(w, node + IV_STATE, INTERVAL_TREE);
    Atomics.store(w, node + IV_SEQ, seq | 1);
    Atomics.store(w, subs + SUBS_SEQ, seq | 1);
  }
  Atomics.add(w, subs + SUBS_INTERVALS, 1);
  // The last end may have looked before the sequence became odd.
  const closed = (Atomics.load(w, subs + SUBS_SEQ) & 1) === 1 && openRanges(c) === 0;
  if (closed) closeEpochLocked(c);
  unlockSpin(agent, subs + SUBS_LOCK);
  if (closed) wakeQueue(w, subs + SUBS_QUEUE);
  return node;
}

/** Unregisters an interval and frees its record; no callback runs afterwards. Linux: mmu_interval_notifier_remove(). */
export function* removeIntervalOp(c: SubsContext, node: Interval): Op<void> {
  const { agent, subs } = c;
  const w = agent.words;
  lockSpin(agent, subs + SUBS_LOCK);
  const seq = Atomics.load(w, subs + SUBS_SEQ);
  const frozen = (seq & 1) === 1;
  if (!frozen) {
    // A callback can be running only while the sequence is odd.
    itRemove(agent, subs + SUBS_TREE, node);
    Atomics.store(w, node + IV_STATE, INTERVAL_FREE);
  } else if (Atomics.load(w, node + IV_STATE) === INTERVAL_INSERTING) {
    unlinkDeferredLocked(c, node);
    Atomics.store(w, node + IV_STATE, INTERVAL_FREE);
  } else {
    Atomics.store(w, node + IV_DEFERRED, Atomics.load(w, subs + SUBS_DEFERRED));
    Atomics.store(w, subs + SUBS_DEFERRED, node);
    Atomics.store(w, node + IV_STATE, INTERVAL_REMOVING);
  }
  const waits = Atomics.load(w, node + IV_STATE) === INTERVAL_REMOVING;
  unlockSpin(agent, subs + SUBS_LOCK);
  if (waits) {
    try {
      yield* waitForEpochOp(c, seq);
    } catch (error) {
      lockSpin(agent, subs + SUBS_LOCK);
      const undone = Atomics.load(w, node + IV_STATE) === INTERVAL_REMOVING;
      if (undone) {
        unlinkDeferredLocked(c, node);
        Atomics.store(w, node + IV_STATE, INTERVAL_TREE);
      }
      unlockSpin(agent, subs + SUBS_LOCK);
      if (undone) throw error;
    }
  }
  freeInterval(c, node);
  dropUse(c, subs + SUBS_INTERVALS);
}

/** Preconditions: in no tree and on no list. Handles that others have of it answer ESRCH from now on. */
function freeInterval(c: SubsContext, node: Interval): void {
  Atomics.store(c.agent.words, node + IV_GENERATION, 0);
  freeWords(c.agent, c.heap, node, IV_WORDS);
}

function unlinkDeferredLocked(c: SubsContext, node: Interval): void {
  const w = c.agent.words;
  let link = c.subs + SUBS_DEFERRED;
  for (let at = Atomics.load(w, link); at !== 0; at = Atomics.load(w, link)) {
    if (at === node) {
      Atomics.store(w, link, Atomics.exchange(w, node + IV_DEFERRED, 0));
      return;
    }
    link = at + IV_DEFERRED;
  }
}

/**
 * The number to give to read_retry, and whether the subscription is being invalidated.
 * The own sequence is read first: if it belongs to an epoch that was open then, either the space still has that
 * number, or the epoch has ended in between and page tables read from now on are new.
 */
export function intervalSeq(agent: Agent, node: Interval): number {
  return Atomics.load(agent.words, node + IV_SEQ);
}

export function isInvalidating(c: SubsContext, seq: number): boolean {
  return Atomics.load(c.agent.words, c.subs + SUBS_SEQ) === seq;
}

export function* waitForEpochOp(c: SubsContext, seq: number): Op<void> {
  yield* epochOp(c, () => !isInvalidating(c, seq), "the end of an invalidation");
}

// ---- list notifiers ------------------------------------------------------------------------------------------------

/** Puts a list notifier in front, at once or when no range is open: LN_STATE says which, UNLINKED if the space was released. */
export function linkListNotifier(c: SubsContext, ln: ListNotifier): void {
  const { agent, subs } = c;
  const w = agent.words;
  Atomics.store(w, subs + SUBS_ANY, 1);
  lockSpin(agent, subs + SUBS_LOCK);
  Atomics.store(w, ln + LN_STATE, LIST_PENDING);
  Atomics.store(w, ln + LN_NEXT, Atomics.load(w, subs + SUBS_PENDING));
  Atomics.store(w, subs + SUBS_PENDING, ln);
  const closed = openRanges(c) === 0;
  if (closed) closeEpochLocked(c);
  unlockSpin(agent, subs + SUBS_LOCK);
  if (closed) wakeQueue(w, subs + SUBS_QUEUE);
}

/** Waits until a list notifier is in the list, or the space is released. */
export function* waitUntilLinkedOp(c: SubsContext, ln: ListNotifier): Op<void> {
  yield* epochOp(
    c,
    () => Atomics.load(c.agent.words, ln + LN_STATE) !== LIST_PENDING,
    "the end of open ranges",
  );
}

/** Takes a list notifier back that is not in the list yet. False: it is. */
export function cancelListNotifier(c: SubsContext, ln: ListNotifier): boolean {
  const { agent, subs } = c;
  lockSpin(agent, subs + SUBS_LOCK);
  const linked = Atomics.load(agent.words, ln + LN_STATE) === LIST_LINKED;
  if (!linked) unlinkFromLocked(c, subs + SUBS_PENDING, ln);
  unlockSpin(agent, subs + SUBS_LOCK);
  return !linked;
}

/** The record of a new list notifier of this agent, 0 if the arena is full. */
export function allocListNotifier(c: SubsContext): ListNotifier {
  const { agent, subs, maxAgents } = c;
  const ln = allocWords(agent, c.heap, LN_WORDS) as ListNotifier;
  if (ln !== 0) Atomics.add(agent.words, subsListedAt(subs, maxAgents, agent.slot), 1);
  return ln;
}

/** Preconditions: off every list, and no walker is at it. */
export function freeListNotifier(c: SubsContext, ln: ListNotifier): void {
  const { agent, subs, maxAgents } = c;
  freeWords(agent, c.heap, ln, LN_WORDS);
  dropUse(c, subsListedAt(subs, maxAgents, agent.slot));
}

/** Takes a list notifier off its list; walkers may still be at it until a grace period has passed. False: it was off. */
export function unlinkListNotifier(c: SubsContext, ln: ListNotifier): boolean {
  const { agent, subs } = c;
  lockSpin(agent, subs + SUBS_LOCK);
  const found = unlinkFromLocked(c, subs + SUBS_LIST, ln);
  unlockSpin(agent, subs + SUBS_LOCK);
  return found;
}

function unlinkFromLocked(c: SubsContext, head: number, ln: ListNotifier): boolean {
  const w = c.agent.words;
  for (
    let link = head, at = Atomics.load(w, link);
    at !== 0;
    link = at + LN_NEXT, at = Atomics.load(w, link)
  ) {
    if (at !== ln) continue;
    // Its own LN_NEXT stays, for walkers that stand on it.
    Atomics.store(w, link, Atomics.load(w, ln + LN_NEXT));
    if (Atomics.load(w, ln + LN_STATE) === LIST_LINKED) countSecondaryTlbLocked(c, ln, -1);
    Atomics.store(w, ln + LN_STATE, LIST_UNLINKED);
    return true;
  }
  return false;
}

function countSecondaryTlbLocked(c: SubsContext, ln: ListNotifier, delta: number): void {
  const w = c.agent.words;
  if ((Atomics.load(w, ln + LN_OPS) & LN_OP_SECONDARY_TLBS) !== 0)
    Atomics.add(w, c.subs + SUBS_SECONDARY_TLBS, delta);
}

// ---- death and checks ------------------------------------------------------------------------------------------------

/** Ends a dead agent's open ranges and drops its subscriptions. */
export function reapSubscriptions(c: SubsContext, slot: number, ownerId: number): string | undefined {
  const { agent, subs } = c;
  const w = agent.words;
  reapSrcu(agent, subs + SUBS_SRCU, slot);
  // What it put is nobody's any more.
  Atomics.store(w, subsFreedAt(subs, c.maxAgents, slot), Atomics.load(w, subsPutAt(subs, c.maxAgents, slot)));
  Atomics.store(w, subsOpenAt(subs, c.maxAgents, slot), 0);
  if (Atomics.load(w, subs + SUBS_LOCK) === ownerId) return "a subscriptions lock";
  lockSpin(agent, subs + SUBS_LOCK);
  orphanDeferredLocked(c, ownerId);
  orphanTreeLocked(c, ownerId);
  // Their records are lost to the heap: walkers may stand on them, and a reaper cannot wait for a grace period.
  for (const list of [subs + SUBS_LIST, subs + SUBS_PENDING]) {
    for (let ln = Atomics.load(w, list); ln !== 0; ln = Atomics.load(w, ln + LN_NEXT)) {
      if (Atomics.load(w, ln + LN_OWNER) === ownerId) unlinkFromLocked(c, list, ln as ListNotifier);
    }
  }
  Atomics.store(w, subsListedAt(subs, c.maxAgents, slot), 0);
  unlockSpin(agent, subs + SUBS_LOCK);
  closeEpoch(c);
  return undefined;
}

/** A dead agent's deferred edits: inserts are forgotten, removals finished by whoever closes the epoch. */
function orphanDeferredLocked(c: SubsContext, ownerId: number): void {
  const w = c.agent.words;
  for (let node = Atomics.load(w, c.subs + SUBS_DEFERRED) as Interval; node !== 0;) {
    const next = Atomics.load(w, node + IV_DEFERRED) as Interval;
    if (Atomics.load(w, node + IV_OWNER) === ownerId) {
      Atomics.sub(w, c.subs + SUBS_INTERVALS, 1);
      if (Atomics.load(w, node + IV_STATE) === INTERVAL_INSERTING) {
        unlinkDeferredLocked(c, node);
        freeInterval(c, node);
      } else Atomics.store(w, node + IV_STATE, INTERVAL_ORPHANED);
    }
    node = next;
  }
}

function orphanTreeLocked(c: SubsContext, ownerId: number): void {
  const { agent, subs } = c;
  const w = agent.words;
  const frozen = (Atomics.load(w, subs + SUBS_SEQ) & 1) === 1;
  for (let node = itLowest(agent, subs + SUBS_TREE) as Interval; node !== 0;) {
    const next = itSuccessor(agent, node) as Interval;
    if (Atomics.load(w, node + IV_OWNER) === ownerId && Atomics.load(w, node + IV_STATE) === INTERVAL_TREE) {
      Atomics.sub(w, subs + SUBS_INTERVALS, 1);
      if (frozen) {
        Atomics.store(w, node + IV_DEFERRED, Atomics.load(w, subs + SUBS_DEFERRED));
        Atomics.store(w, subs + SUBS_DEFERRED, node);
        Atomics.store(w, node + IV_STATE, INTERVAL_ORPHANED);
      } else {
        itRemove(agent, subs + SUBS_TREE, node);
        freeInterval(c, node);
      }
    }
    node = next;
  }
}

/** The first broken invariant, or undefined. Preconditions: nothing runs meanwhile. */
export function checkSubscriptions(c: SubsContext): string | undefined {
  const { agent, subs } = c;
  const w = agent.words;
  const seq = Atomics.load(w, subs + SUBS_SEQ);
  const open = openRanges(c);
  const name = `space ${Atomics.load(w, subs + SUBS_ID)}`;
  if (open < 0) return `S2: ${name} has ${open} open ranges`;
  if (open === 0 && (seq & 1) === 1) return `S2: ${name} has no open range and sequence ${seq}`;
  if (open === 0 && Atomics.load(w, subs + SUBS_DEFERRED) !== 0)
    return `S2: ${name} has deferred edits and no open range`;
  for (
    let node = itLowest(agent, subs + SUBS_TREE) as Interval;
    node !== 0;
    node = itSuccessor(agent, node) as Interval
  ) {
    const own = Atomics.load(w, node + IV_SEQ);
    if ((own & 1) === 0) return `S1: ${name} has an interval with sequence ${own}`;
    if (open === 0 && own === seq) return `S1: ${name} is idle and an interval has its sequence ${seq}`;
    if (!itLinked(agent, node)) return `S3: ${name} has an unlinked interval in its tree`;
  }
  return checkIntervalTree(agent, subs + SUBS_TREE);
}
