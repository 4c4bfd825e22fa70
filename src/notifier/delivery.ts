/**
 * Calling the subscribers of a range, in this agent and in others. Linux: mn_itree_invalidate, mn_hlist_*.
 *
 * Order is Linux's: intervals by ascending start, then list notifiers, newest first. Consecutive intervals of one
 * other agent travel in one message; that agent walks them itself and answers. Ends are posted, not waited for: their
 * messages are reserved with the start, so that an end never fails.
 *
 * A start is a walk over subscribers: a plain loop as long as callbacks of this agent answer at once, and an operation
 * from the first wait on. What the walk has come to stands in a Walk, so that the operation goes on where the loop ended.
 *
 * Context of callbacks: the agent that registered, at one of its safepoints; the invalidator may hold mmapLock, a
 * folio locks, never a spinlock. The tree is frozen meanwhile, and the list is under SRCU, unless all of it is the walker's.
 *
 * Not here: what a callback may return (callbacks.ts), aging and secondary TLBs, which never wait (aging.ts,
 * secondaryTlbs.ts).
 */
import { MmError } from "../errors.ts";
import {
  type Agent,
  type Message,
  MSG_ARG0,
  MSG_ARG3,
  MSG_FROM,
  MSG_SUBJECT,
  type Op,
  ownerGone,
  start,
} from "../sched/index.ts";
import { lockdepMap, srcuReadLock, srcuReadUnlock } from "../sync/index.ts";
import { callAging } from "./aging.ts";
import {
  callbackThrew,
  fail,
  inCallback,
  isAnswer,
  noOutcome,
  type Outcome,
  outcomeError,
  refuse,
  settleCallbackOp,
} from "./callbacks.ts";
import type { DeliveryContext, LocalSubscribers, OpenRange } from "./context.ts";
import type { MaybeOp, MmuNotifierRange } from "./events.ts";
import type { IntervalNotifier } from "./intervalNotifier.ts";
import {
  ANSWER_OLD,
  ANSWER_YOUNG,
  type Interval,
  IV_LOCAL,
  IV_OWNER,
  LIST_OPS,
  LIST_UNLINKED,
  type ListNotifier,
  LN_ANSWER,
  LN_NEXT,
  LN_OP_CLEAR_FLUSH_YOUNG,
  LN_OP_CLEAR_YOUNG,
  LN_OP_END,
  LN_OP_RELEASE,
  LN_OP_SECONDARY_TLBS,
  LN_OP_START,
  LN_OP_TEST_YOUNG,
  LN_OPS,
  LN_OWNER,
  LN_STATE,
  MESSAGE_INTERVALS,
  MESSAGE_LIST,
  SUBS_LIST,
  SUBS_SRCU,
  type Subs,
} from "./layout.ts";
import { askOp, fillRange, packOp, rangeOf, reserveOp, setResult } from "./messages.ts";
import type { MmuNotifier } from "./mmuNotifier.ts";
import { callSecondaryTlbs } from "./secondaryTlbs.ts";
import { beginRange, currentSeq, endRange, firstInterval, joinRange, nextInterval } from "./subscriptions.ts";

// ---- the start ---------------------------------------------------------------------------------------------------------

/** A start that is under way: which subscribers have been told. */
interface Walk {
  readonly c: DeliveryContext;
  readonly range: OpenRange;
  readonly curSeq: number;
  /** Not 0: only the intervals that are consecutively this agent's, as its message asks. */
  readonly onlyOwner: number;
  readonly outcome: Outcome;
  /** The next interval to be told; 0 once all have been. */
  node: Interval;
  /** The list notifier that is being told, 0 after the last. */
  ln: ListNotifier;
  /** The list has been reached: the notifiers there that have an end get it. */
  listed: boolean;
  /** Of the read section that covers the walk over the list; NO_SECTION before and after it. */
  section: number;
  /** What the walk waits for: the rest of the callback, or of the message, that comes next. */
  pending: Op<void> | undefined;
}

const NO_SECTION = -1;

function newWalk(
  c: DeliveryContext,
  range: OpenRange,
  first: Interval,
  curSeq: number,
  onlyOwner: number,
  outcome: Outcome = noOutcome(),
): Walk {
  return {
    c,
    range,
    curSeq,
    onlyOwner,
    outcome,
    node: first,
    ln: 0 as ListNotifier,
    listed: false,
    section: NO_SECTION,
    pending: undefined,
  };
}

/**
 * Opens a range: tells everybody whom it concerns; then no translation of it is usable. Returns undefined where that
 * needed no wait, else the rest of it, which the caller yields at once.
 * Errors, after which the range is closed and nothing may be changed: EAGAIN if a subscriber cannot answer without
 * waiting, ECALLBACK if one threw. With `proceed` a throw is only reported: exit, reclaim and truncation go on.
 * Every return is paired with endOpenRange(). Linux: mmu_notifier_invalidate_range_start(), ..._nonblock().
 */
export function openRange(c: DeliveryContext, range: OpenRange, proceed: boolean): Op<void> | undefined {
  if (c.agent.debug) {
    lockdepMap(c.agent, "invalidateRangeStart");
    if (!range.blockable) range.started = new Error();
  }
  if (beginRange(c, range.start, range.end)) return undefined;
  const first = firstInterval(c, range.start, range.end);
  const walk = newWalk(c, range, first, first === 0 ? 0 : currentSeq(c), 0);
  let done: boolean;
  try {
    done = advance(walk);
  } catch (error) {
    abandon(walk);
    throw error;
  }
  if (!done) return finishOp(walk, proceed);
  conclude(walk, proceed);
  return undefined;
}

function* finishOp(walk: Walk, proceed: boolean): Op<void> {
  try {
    yield* advanceOp(walk, advance);
  } catch (error) {
    // The wait itself failed: close the range and give up.
    abandon(walk);
    throw error;
  }
  conclude(walk, proceed);
}

/** For lockdep. */
function enterInvalidation(agent: Agent, range: OpenRange): void {
  agent.invalidating++;
  agent.unwaiting = range.blockable ? undefined : range.started;
}

function leaveInvalidation(agent: Agent): void {
  agent.invalidating--;
  agent.unwaiting = undefined;
}

/** Goes on until nobody is left to be told (true), or until the walk has to wait for somebody (false). */
const advance = (walk: Walk): boolean =>
  advanceIntervals(walk) && (walk.outcome.refused || advanceList(walk));

/** The rest of a walk, from what it waits for on. */
function* advanceOp(walk: Walk, goOn: (walk: Walk) => boolean): Op<void> {
  do {
    const { pending } = walk;
    walk.pending = undefined;
    if (pending) yield* pending;
  } while (!goOn(walk));
}

/** Closes a range that somebody could not be told of: ends go to those that may have been. */
function abandon(walk: Walk): void {
  if (walk.listed) endWithList(walk.c, walk.range, walk.ln);
  else endRange(walk.c);
  leaveSection(walk);
}

/** Everybody has been told: is the range open? */
function conclude(walk: Walk, proceed: boolean): void {
  const { c, range, outcome } = walk;
  if (outcome.refused) {
    abandon(walk);
    throw new MmError("EAGAIN", "invalidateRangeStart", "a notifier cannot answer without waiting", {
      range,
    });
  }
  if (outcome.failed === false) return;
  const error = outcomeError(outcome, "invalidateRangeStart", range);
  if (proceed) {
    c.agent.report(error);
    return;
  }
  endOpenRange(c, range);
  throw error;
}

/** Ends what openRange() opened. Never waits. Linux: mmu_notifier_invalidate_range_end(). */
export function endOpenRange(c: DeliveryContext, range: OpenRange): void {
  if (c.agent.debug) lockdepMap(c.agent, "invalidateRangeEnd");
  // The list does not grow while a range is open.
  if (c.agent.words[c.subs + SUBS_LIST] !== 0 || range.reserved) endWithList(c, range);
  else endRange(c);
}

/** The interval half of exit: every interval hears of Release, list notifiers have an op of their own for it. */
export function* releaseIntervalsOp(c: DeliveryContext, range: OpenRange): Op<void> {
  beginRange(c, range.start, range.end);
  const walk = newWalk(c, range, firstInterval(c, range.start, range.end), currentSeq(c), 0);
  try {
    yield* advanceOp(walk, advanceIntervals);
  } finally {
    endRange(c);
  }
  if (walk.outcome.failed !== false) c.agent.report(outcomeError(walk.outcome, "release", range));
}

/** The intervals of a walk; see advance(). */
function advanceIntervals(walk: Walk): boolean {
  const { c, range, outcome } = walk;
  const { agent } = c;
  const w = agent.words;
  while (walk.node !== 0 && !outcome.refused) {
    const { node } = walk;
    const owner = Atomics.load(w, node + IV_OWNER);
    if (walk.onlyOwner !== 0 && owner !== walk.onlyOwner) {
      walk.node = 0 as Interval;
    } else if (owner === agent.ownerId) {
      // The tree is frozen: what comes next is that before the callback as well as after it.
      walk.node = nextInterval(c, node, range.start, range.end);
      const interval = c.local.intervals.get(Atomics.load(w, node + IV_LOCAL));
      if (interval && !tellInterval(walk, interval)) return false;
    } else {
      let next = node;
      do next = nextInterval(c, next, range.start, range.end);
      while (next !== 0 && Atomics.load(w, next + IV_OWNER) === owner);
      walk.node = next;
      if (ownerGone(w, owner)) continue;
      if (range.blockable) {
        walk.pending = askIntervalsOp(c, range, node, walk.curSeq, owner, outcome);
        return false;
      }
      outcome.refused = true;
    }
  }
  return true;
}

/** Calls one interval of this agent. False: its answer is still to come, see `pending`. */
function tellInterval(walk: Walk, interval: IntervalNotifier): boolean {
  const { range, outcome } = walk;
  const { agent } = walk.c;
  let result: MaybeOp<boolean | void> = undefined;
  let answered = true;
  interval.enterCallback();
  agent.callbackDepth++;
  if (agent.debug) enterInvalidation(agent, range);
  try {
    result = interval.ops!.invalidate(interval, range, walk.curSeq);
    answered = isAnswer(result); // what was returned may throw, too
  } catch (error) {
    fail(outcome, error);
  } finally {
    agent.callbackDepth--;
    if (agent.debug) leaveInvalidation(agent);
  }
  if (!answered) {
    walk.pending = settleIntervalOp(walk, interval, result);
    return false;
  }
  interval.leaveCallback();
  if (result === false) refuse(outcome, "invalidate", range);
  return true;
}

function* settleIntervalOp(
  walk: Walk,
  interval: IntervalNotifier,
  result: MaybeOp<boolean | void>,
): Op<void> {
  const { c, range, outcome } = walk;
  try {
    if ((yield* settleCallbackOp(c.agent, range, result, outcome)) === false)
      refuse(outcome, "invalidate", range);
  } catch (error) {
    fail(outcome, error);
  } finally {
    interval.leaveCallback();
  }
}

// ---- other agents ---------------------------------------------------------------------------------------------------------

function* askIntervalsOp(
  c: DeliveryContext,
  range: MmuNotifierRange,
  first: Interval,
  curSeq: number,
  owner: number,
  outcome: Outcome,
): Op<void> {
  const m = yield* reserveOp(c.agent, MESSAGE_INTERVALS);
  fillRange(c, m, range, first, curSeq);
  yield* askOp(c.agent, m, owner, outcome);
}

/** Registers this row's message handlers of an agent. */
export function handleMessages(agent: Agent, local: LocalSubscribers): void {
  const w = agent.words;
  const contextOf = (m: Message): DeliveryContext | undefined =>
    local.spaces.get(Atomics.load(w, m + MSG_SUBJECT) as Subs);
  /** Runs `op`, which puts what goes wrong into `outcome`, and answers the message now or when it is done, after `leave`. */
  const answer = (m: Message, op: Op<void>, outcome: Outcome, leave: () => void): true => {
    start(agent, op, () => {
      leave();
      setResult(agent, m, outcome);
      agent.finishMessage(m);
    });
    return true;
  };
  agent.handle(MESSAGE_INTERVALS, (m) => {
    const c = contextOf(m);
    if (!c) return false;
    const first = Atomics.load(w, m + MSG_ARG0) as Interval;
    const curSeq = Atomics.load(w, m + MSG_ARG3);
    if (!joinRange(c, curSeq)) return false;
    const walk = newWalk(c, rangeOf(c, m), first, curSeq, agent.ownerId);
    if (!advanceIntervals(walk))
      return answer(m, advanceOp(walk, advanceIntervals), walk.outcome, () => endRange(c));
    endRange(c);
    setResult(agent, m, walk.outcome);
    return false;
  });
  agent.handle(MESSAGE_LIST, (m) => {
    const c = contextOf(m);
    const ln = Atomics.load(w, m + MSG_ARG0) as ListNotifier;
    const notifier = local.list.get(ln);
    const packed = Atomics.load(w, m + MSG_ARG3);
    if (!c || notifier?.generation !== Math.floor(packed / LIST_OPS)) return false;
    const op = packed % LIST_OPS;
    if (!notifier.count(op, Atomics.load(w, m + MSG_FROM))) return false;
    // Put, or the space has ended, since the message was sent: as if the walk over the list had come later.
    if (op !== LN_OP_RELEASE && Atomics.load(w, ln + LN_STATE) === LIST_UNLINKED) return false;
    if (op === LN_OP_SECONDARY_TLBS) {
      const { start: from, end } = rangeOf(c, m);
      callSecondaryTlbs(c, notifier, from, end);
      return false;
    }
    if (op === LN_OP_CLEAR_FLUSH_YOUNG || op === LN_OP_CLEAR_YOUNG || op === LN_OP_TEST_YOUNG) {
      const range = rangeOf(c, m);
      const young = callAging(c, notifier, op, range.start, range.end);
      Atomics.store(w, ln + LN_ANSWER, young ? ANSWER_YOUNG : ANSWER_OLD);
      return false;
    }
    const outcome = noOutcome();
    const index = srcuReadLock(agent, c.subs + SUBS_SRCU); // the sender may die, and its section end with it
    const call = callListOp(c, notifier, op, rangeOf(c, m), outcome);
    return answer(m, call, outcome, () => srcuReadUnlock(agent, c.subs + SUBS_SRCU, index));
  });
}

// ---- list notifiers -------------------------------------------------------------------------------------------------------

/**
 * Enters a read section over the list, unless all of it is this agent's own: nobody else frees these, and this agent
 * does so at a safepoint, after the plain loop that walks them. Preconditions: an open range, so that the list does not grow.
 */
function enterSection(c: DeliveryContext): number {
  const { agent, subs, local } = c;
  const w = agent.words;
  let ln = w[subs + SUBS_LIST]! as ListNotifier;
  while (ln !== 0 && local.list.has(ln)) ln = w[ln + LN_NEXT]! as ListNotifier;
  return ln === 0 ? NO_SECTION : srcuReadLock(agent, subs + SUBS_SRCU);
}

function exitSection(c: DeliveryContext, section: number): void {
  if (section !== NO_SECTION) srcuReadUnlock(c.agent, c.subs + SUBS_SRCU, section);
}

/** Calls a start. False: its answer is still to come, see `pending`. */
function tellListed(walk: Walk, notifier: MmuNotifier): boolean {
  const { c, range, outcome } = walk;
  const { agent } = c;
  let result: MaybeOp<boolean | void> = undefined;
  let answered = true;
  agent.callbackDepth++;
  if (agent.debug) enterInvalidation(agent, range);
  try {
    result = notifier.ops.invalidateRangeStart!(notifier, range);
    answered = isAnswer(result);
  } catch (error) {
    fail(outcome, error);
  } finally {
    agent.callbackDepth--;
    if (agent.debug) leaveInvalidation(agent);
  }
  if (!answered) {
    walk.pending = settleListedOp(c, notifier, range, result, outcome);
    return false;
  }
  if (result === false) listedRefused(c, notifier, range, outcome);
  return true;
}

function* settleListedOp(
  c: DeliveryContext,
  notifier: MmuNotifier,
  range: MmuNotifierRange,
  result: MaybeOp<boolean | void>,
  outcome: Outcome,
): Op<void> {
  try {
    if ((yield* settleCallbackOp(c.agent, range, result, outcome)) === false)
      listedRefused(c, notifier, range, outcome);
  } catch (error) {
    fail(outcome, error);
  }
}

function listedRefused(
  c: DeliveryContext,
  notifier: MmuNotifier,
  range: MmuNotifierRange,
  outcome: Outcome,
): void {
  refuse(outcome, "invalidateRangeStart", range);
  if (range.blockable || !notifier.ops.invalidateRangeEnd) return;
  c.local.refusedWithEnd.add(notifier.ops);
  c.agent.report(new MmError("EINVAL", "invalidateRangeStart", REFUSES_WITH_END, { range }));
}

/** Why a notifier must not have both. */
export const REFUSES_WITH_END =
  "a notifier whose start can refuse must not have an end op: nobody can tell it that its own start failed";

/** Calls an op of a list notifier as another agent's message, or the end of the space, asks. */
function* callListOp(
  c: DeliveryContext,
  notifier: MmuNotifier,
  op: number,
  range: OpenRange,
  outcome: Outcome,
): Op<void> {
  const { ops } = notifier;
  try {
    if (op === LN_OP_START) {
      const walk = newWalk(c, range, 0 as Interval, 0, 0, outcome);
      if (!tellListed(walk, notifier)) yield* walk.pending!;
    } else if (op === LN_OP_END) callEnd(c, notifier, range);
    else {
      const result = inCallback(c.agent, () => ops.release!(notifier, c.space));
      yield* settleCallbackOp(c.agent, range, result, outcome);
    }
  } catch (error) {
    fail(outcome, error);
  }
}

/** The list notifiers of a walk, inside a grace period; see advance(). */
function advanceList(walk: Walk): boolean {
  const { c, range } = walk;
  const { agent } = c;
  const w = agent.words;
  if (!walk.listed) {
    walk.listed = true;
    walk.section = enterSection(c);
    walk.ln = Atomics.load(w, c.subs + SUBS_LIST) as ListNotifier;
  } else walk.ln = w[walk.ln + LN_NEXT]! as ListNotifier;
  for (; walk.ln !== 0; walk.ln = w[walk.ln + LN_NEXT]! as ListNotifier) {
    const { ln } = walk;
    // Plain: these two are constant while it is registered, and what led here says that they are written.
    const implemented = w[ln + LN_OPS]!;
    if ((implemented & (LN_OP_START | LN_OP_END)) === 0) continue;
    const owner = w[ln + LN_OWNER]!;
    if (owner === agent.ownerId) {
      const notifier = (implemented & LN_OP_START) !== 0 ? c.local.list.get(ln) : undefined;
      if (notifier && !tellListed(walk, notifier)) {
        // The walk waits: from here on the read section is what keeps the list.
        if (walk.section === NO_SECTION) walk.section = srcuReadLock(agent, c.subs + SUBS_SRCU);
        return false;
      }
    } else if (!ownerGone(w, owner)) {
      if (range.blockable) {
        walk.pending = askStartOp(c, range, ln, owner, implemented, walk.outcome);
        return false;
      }
      walk.outcome.refused = true;
    }
  }
  leaveSection(walk);
  return true;
}

function leaveSection(walk: Walk): void {
  exitSection(walk.c, walk.section);
  walk.section = NO_SECTION;
}

function* askStartOp(
  c: DeliveryContext,
  range: OpenRange,
  ln: ListNotifier,
  owner: number,
  implemented: number,
  outcome: Outcome,
): Op<void> {
  const { agent } = c;
  if ((implemented & LN_OP_END) !== 0) {
    const message = yield* reserveOp(agent, MESSAGE_LIST);
    fillRange(c, message, range, ln, packOp(agent.words, ln, LN_OP_END));
    (range.reserved ??= []).push({ owner, message });
  }
  if ((implemented & LN_OP_START) !== 0) {
    const message = yield* reserveOp(agent, MESSAGE_LIST);
    fillRange(c, message, range, ln, packOp(agent.words, ln, LN_OP_START));
    // From the start on it gets its end, whatever becomes of this agent.
    const end = (implemented & LN_OP_END) !== 0 ? range.reserved?.at(-1) : undefined;
    if (end) agent.promiseMessage(owner, end.message);
    yield* askOp(agent, message, owner, outcome);
  }
}

/**
 * Ends a range whose list notifiers have been told: the interval side first, which wakes readers; then the list, up to
 * the one told last if the walk did not come to its end.
 */
function endWithList(c: DeliveryContext, range: OpenRange, last = 0 as ListNotifier): void {
  const { agent } = c;
  const w = agent.words;
  const section = enterSection(c);
  // Where the list begins is looked up while the range is open: its end publishes those that have had no start of it.
  let ln = Atomics.load(w, c.subs + SUBS_LIST) as ListNotifier;
  endRange(c);
  for (let told = true; told && ln !== 0; ln = w[ln + LN_NEXT]! as ListNotifier) {
    told = ln !== last;
    const notifier = (w[ln + LN_OPS]! & LN_OP_END) === 0 ? undefined : c.local.list.get(ln);
    if (notifier) callEnd(c, notifier, range);
  }
  exitSection(c, section);
  if (!range.reserved) return;
  for (const { owner, message } of range.reserved) agent.sendTo(owner, message, true);
  range.reserved = undefined;
}

function callEnd(c: DeliveryContext, notifier: MmuNotifier, range: OpenRange): void {
  const { agent } = c;
  if (agent.debug) enterInvalidation(agent, range);
  agent.callbackDepth++;
  try {
    notifier.ops.invalidateRangeEnd!(notifier, range);
  } catch (cause) {
    agent.report(callbackThrew("invalidateRangeEnd", cause, range));
  } finally {
    agent.callbackDepth--;
    if (agent.debug) leaveInvalidation(agent);
  }
}

/** Calls release of every list notifier. Errors are reported: the space dies anyway. */
export function* releaseListOp(c: DeliveryContext, range: OpenRange): Op<void> {
  const { agent } = c;
  const w = agent.words;
  if (Atomics.load(w, c.subs + SUBS_LIST) === 0) return;
  const section = srcuReadLock(agent, c.subs + SUBS_SRCU);
  try {
    for (let ln = Atomics.load(w, c.subs + SUBS_LIST) as ListNotifier; ln !== 0;) {
      const owner = Atomics.load(w, ln + LN_OWNER);
      if ((Atomics.load(w, ln + LN_OPS) & LN_OP_RELEASE) !== 0 && !ownerGone(w, owner))
        yield* releaseListedOp(c, ln, owner, range);
      ln = Atomics.load(w, ln + LN_NEXT) as ListNotifier;
    }
  } finally {
    srcuReadUnlock(agent, c.subs + SUBS_SRCU, section);
  }
}

function* releaseListedOp(c: DeliveryContext, ln: ListNotifier, owner: number, range: OpenRange): Op<void> {
  const { agent } = c;
  const outcome = noOutcome();
  if (owner === agent.ownerId) {
    const notifier = c.local.list.get(ln);
    if (notifier) yield* callListOp(c, notifier, LN_OP_RELEASE, range, outcome);
  } else {
    const message = yield* reserveOp(agent, MESSAGE_LIST);
    fillRange(c, message, range, ln, packOp(agent.words, ln, LN_OP_RELEASE));
    yield* askOp(agent, message, owner, outcome);
  }
  if (outcome.failed !== false) agent.report(outcomeError(outcome, "release", range));
}

/** Calls release of one notifier of this agent. */
export function* releaseOneOp(c: DeliveryContext, notifier: MmuNotifier, range: OpenRange): Op<void> {
  if (!notifier.ops.release) return;
  const outcome = noOutcome();
  const index = srcuReadLock(c.agent, c.subs + SUBS_SRCU);
  try {
    yield* callListOp(c, notifier, LN_OP_RELEASE, range, outcome);
  } finally {
    srcuReadUnlock(c.agent, c.subs + SUBS_SRCU, index);
  }
  if (outcome.failed !== false) c.agent.report(outcomeError(outcome, "release", range));
}
