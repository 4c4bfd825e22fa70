/**
 * Calling the subscribers of a range, in this agent and in others. Linux: mn_itree_invalidate, mn_hlist_*.
 *
 * Order is Linux's: intervals by ascending start, then list notifiers, newest first. Consecutive intervals of one
 * other agent travel in one message; that agent walks them itself and answers. Ends are posted, not waited for: their
 * messages are reserved with the start, so that an end never fails.
 *
 * A callback that throws stops nobody: the others are called, the ends run, and the caller hears of the first error.
 *
 * Context of callbacks: the agent that registered, at one of its safepoints; the invalidator may hold mmapLock, a
 * folio lock and a fileLock, never a spinlock. The tree is frozen and the list is under SRCU meanwhile.
 */
import { MmError } from "../errors.ts";
import {
  type Agent,
  isOp,
  isPromise,
  type Message,
  MSG_ARG0,
  MSG_ARG1,
  MSG_ARG2,
  MSG_ARG3,
  MSG_END,
  MSG_FROM,
  MSG_RESULT,
  MSG_START,
  MSG_SUBJECT,
  MSG_TEXT_LENGTH,
  type Op,
  ownerAlive,
  ownerGone,
  promiseOp,
  slotOfOwner,
  start,
  waitOp,
} from "../sched/index.ts";
import { srcuReadLock, srcuReadUnlock } from "../sync/index.ts";
import type {
  MaybeOp,
  MmuNotifierEvent,
  MmuNotifierOps,
  MmuNotifierRange,
  NotifierSpace,
  OwnerId,
} from "./events.ts";
import type { IntervalNotifier } from "./intervalNotifier.ts";
import {
  ANSWER_ASKED,
  ANSWER_NONE,
  ANSWER_OLD,
  ANSWER_YOUNG,
  type Interval,
  IV_OWNER,
  LIST_OPS,
  type ListNotifier,
  LN_ANSWER,
  LN_ANSWER_END,
  LN_ANSWER_START,
  LN_BITS,
  LN_BITS_LENGTH,
  LN_BITS_START,
  LN_GENERATION,
  LN_NEXT,
  LN_OP_CLEAR_FLUSH_YOUNG,
  LN_OP_CLEAR_YOUNG,
  LN_OP_END,
  LN_OP_RELEASE,
  LN_OP_START,
  LN_OP_TEST_YOUNG,
  LN_OPS,
  LN_OWNER,
  LN_PAGE_SHIFT,
  MESSAGE_INTERVALS,
  MESSAGE_LIST,
  RANGE_BLOCKABLE,
  RANGE_EVENT_MASK,
  RESULT_DONE,
  RESULT_PROMISED,
  RESULT_REFUSED,
  RESULT_THREW,
  SUBS_LIST,
  SUBS_SRCU,
  type Subs,
} from "./layout.ts";
import type { MmuNotifier } from "./mmuNotifier.ts";
import {
  beginRange,
  currentSeq,
  endRange,
  firstInterval,
  joinRange,
  nextInterval,
  type SubsContext,
} from "./subscriptions.ts";

/** What one agent knows of its own subscriptions, of all spaces. */
export interface LocalSubscribers {
  readonly intervals: Map<Interval, IntervalNotifier>;
  readonly list: Map<ListNotifier, MmuNotifier>;
  readonly spaces: Map<Subs, DeliveryContext>;
}

export interface DeliveryContext extends SubsContext {
  readonly space: NotifierSpace;
  readonly local: LocalSubscribers;
}

/** A range between its start and its end. */
export interface OpenRange extends MmuNotifierRange {
  readonly owner?: OwnerId;
  /** Messages for the ends of other agents' list notifiers, each already addressed. */
  reserved: { readonly owner: number; readonly message: Message }[] | undefined;
  /** Whose invalidateRangeStart() opened it and has not had its end; undefined for the rows above. */
  opener: object | undefined;
}

/** What came of calling subscribers. */
interface Outcome {
  refused: boolean;
  /** The first failure: a callback threw, or returned a promise where nobody can wait for it. */
  failed: false | "threw" | "promised";
  error: unknown;
}

const noOutcome = (): Outcome => ({ refused: false, failed: false, error: undefined });

const fail = (outcome: Outcome, error: unknown, how: "threw" | "promised" = "threw"): void => {
  if (outcome.failed !== false) return;
  outcome.failed = how;
  outcome.error = error;
};

const outcomeError = (outcome: Outcome, operation: string, range: MmuNotifierRange): MmError =>
  outcome.failed === "promised"
    ? new MmError(
        "EDEADLK",
        operation,
        "a callback in an agent that may block returned a promise; return a plain value or an Op",
        { range },
      )
    : new MmError("ECALLBACK", operation, "a notifier callback threw; see cause", {
        range,
        cause: outcome.error,
      });

const refusedBlockable = (operation: string, range: MmuNotifierRange): MmError =>
  new MmError("EINVAL", operation, "a callback refused a blockable range; it must succeed", { range });

/** Runs user code with operations forbidden. */
function inCallback<T>(agent: Agent, call: () => T): T {
  agent.callbackDepth++;
  try {
    return call();
  } finally {
    agent.callbackDepth--;
  }
}

/** Runs a coroutine callback: every step of it is inside the callback. */
function* inCallbackOp<T>(agent: Agent, op: Op<T>): Op<T> {
  let input: { error: unknown } | undefined;
  for (;;) {
    const r = inCallback(agent, () => (input ? op.throw(input.error) : op.next()));
    if (r.done === true) return r.value;
    input = undefined;
    try {
      yield r.value;
    } catch (error) {
      input = { error };
    }
  }
}

/** Settles what a callback returned, as far as the range and the agent allow waiting. */
function* settleCallbackOp<T>(
  agent: Agent,
  range: MmuNotifierRange,
  result: MaybeOp<T>,
  outcome: Outcome,
): Op<T | void> {
  if (isPromise(result)) {
    if (!range.blockable || agent.mayBlock) Promise.resolve(result).catch(() => {}); // nobody waits for it
    if (!range.blockable) {
      throw new MmError(
        "EINVAL",
        "callback",
        "a callback returned a promise where the range is not blockable",
        { range },
      );
    }
    if (agent.mayBlock) {
      fail(outcome, undefined, "promised");
      return;
    }
    return yield* promiseOp(result, "a notifier callback");
  }
  if (isOp(result)) {
    if (!range.blockable) {
      throw new MmError("EINVAL", "callback", "a callback returned an Op where the range is not blockable", {
        range,
      });
    }
    return (yield* inCallbackOp(agent, result as Op<T>)) as T;
  }
  return result as T;
}

// ---- the start ---------------------------------------------------------------------------------------------------------

/** The interval half of exit: every interval hears of Release, list notifiers have an op of their own for it. */
export function* releaseIntervalsOp(c: DeliveryContext, range: MmuNotifierRange): Op<void> {
  const outcome = noOutcome();
  beginRange(c, range.start, range.end);
  try {
    const first = firstInterval(c, range.start, range.end);
    if (first !== 0) yield* invalidateIntervalsOp(c, range, first, currentSeq(c), 0, outcome);
  } finally {
    endRange(c);
  }
  if (outcome.failed !== false) c.agent.report(outcomeError(outcome, "release", range));
}

/**
 * Tells everybody whom a range concerns; when it returns no translation of the range is usable.
 * Errors, after which the range is closed and nothing may be changed: EAGAIN if a subscriber cannot answer without
 * waiting, ECALLBACK if one threw. With `proceed` a throw is only reported: exit, reclaim and truncation go on.
 * Every return is paired with endOpenRange(). Linux: mmu_notifier_invalidate_range_start(), ..._nonblock().
 *
 * Preconditions: beginRange() said false.
 */
export function* tellStartOp(c: DeliveryContext, range: OpenRange, proceed: boolean): Op<void> {
  const outcome = noOutcome();
  let listed = false;
  try {
    const first = firstInterval(c, range.start, range.end);
    if (first !== 0) yield* invalidateIntervalsOp(c, range, first, currentSeq(c), 0, outcome);
    if (!outcome.refused) {
      listed = true;
      yield* startListOp(c, range, outcome);
    }
  } catch (error) {
    // The wait itself failed: close the range and give up.
    endRange(c);
    if (listed) endList(c, range);
    throw error;
  }
  if (outcome.refused) {
    endRange(c);
    if (listed) endList(c, range);
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

/** Ends what startRangeOp() opened. Never waits. Linux: mmu_notifier_invalidate_range_end(). */
export function endOpenRange(c: DeliveryContext, range: OpenRange): void {
  // The interval side first: it wakes readers; then the list.
  endRange(c);
  if (Atomics.load(c.agent.words, c.subs + SUBS_LIST) !== 0 || range.reserved) endList(c, range);
}

/** Walks the intervals of a range from `first`; with `onlyOwner`, as far as they are consecutively its own. */
function* invalidateIntervalsOp(
  c: DeliveryContext,
  range: MmuNotifierRange,
  first: Interval,
  curSeq: number,
  onlyOwner: number,
  outcome: Outcome,
): Op<void> {
  const { agent } = c;
  const w = agent.words;
  for (let node = first; node !== 0;) {
    const owner = Atomics.load(w, node + IV_OWNER);
    if (onlyOwner !== 0 && owner !== onlyOwner) return;
    if (owner === agent.ownerId) {
      const interval = c.local.intervals.get(node);
      if (interval) yield* invalidateOwnOp(c, interval, range, curSeq, outcome);
      if (outcome.refused) return;
      node = nextInterval(c, node, range.start, range.end);
      continue;
    }
    if (!ownerGone(w, owner)) {
      if (!range.blockable) {
        outcome.refused = true;
        return;
      }
      yield* askIntervalsOp(c, range, node, curSeq, owner, outcome);
    }
    do node = nextInterval(c, node, range.start, range.end);
    while (node !== 0 && Atomics.load(w, node + IV_OWNER) === owner);
  }
}

function* invalidateOwnOp(
  c: DeliveryContext,
  interval: IntervalNotifier,
  range: MmuNotifierRange,
  curSeq: number,
  outcome: Outcome,
): Op<void> {
  interval.enterCallback();
  try {
    const result = inCallback(c.agent, () => interval.ops!.invalidate(interval, range, curSeq));
    const answer =
      isOp(result) || isPromise(result) ? yield* settleCallbackOp(c.agent, range, result, outcome) : result;
    if (answer !== false) return;
    if (!range.blockable) outcome.refused = true;
    else fail(outcome, refusedBlockable("invalidate", range));
  } catch (error) {
    fail(outcome, error);
  } finally {
    interval.leaveCallback();
  }
}

// ---- other agents ---------------------------------------------------------------------------------------------------------

function* reserveOp(agent: Agent, kind: number): Op<Message> {
  let message = agent.tryReserveMessage(kind);
  if (message === 0)
    yield* waitOp(0, () => (message = agent.tryReserveMessage(kind)) !== 0, "a free message");
  return message;
}

function fillRange(
  c: DeliveryContext,
  m: Message,
  range: MmuNotifierRange,
  arg0: number,
  curSeq: number,
): void {
  const w = c.agent.words;
  Atomics.store(w, m + MSG_SUBJECT, c.subs);
  Atomics.store(w, m + MSG_ARG0, arg0);
  Atomics.store(w, m + MSG_ARG1, range.event | (range.blockable ? RANGE_BLOCKABLE : 0));
  Atomics.store(w, m + MSG_ARG2, range.owner ?? 0);
  Atomics.store(w, m + MSG_ARG3, curSeq);
  // Doubles have no Atomics; the state word, stored with Atomics afterwards, publishes them.
  c.agent.doubles[(m + MSG_START) >> 1] = range.start;
  c.agent.doubles[(m + MSG_END) >> 1] = range.end;
}

function* askOp(agent: Agent, m: Message, owner: number, outcome: Outcome): Op<void> {
  const w = agent.words;
  const slot = slotOfOwner(owner);
  if (agent.sendTo(owner, m, false)) {
    yield* waitOp(
      0,
      () => agent.messageDone(m) || ownerGone(w, owner),
      `a notifier in agent ${slot}`,
      () => owner,
    );
  }
  // What is gone has no translations; its reaper's answer is no failure.
  if (agent.messageDone(m) && ownerAlive(w, owner)) {
    const result = Atomics.load(w, m + MSG_RESULT);
    if (result === RESULT_REFUSED) outcome.refused = true;
    else if (result === RESULT_PROMISED) fail(outcome, undefined, "promised");
    else if (Atomics.load(w, m + MSG_TEXT_LENGTH) > 0)
      fail(outcome, new Error(`in agent ${slot}: ${agent.messageText(m)}`));
  }
  agent.freeMessage(m);
}

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

const RESULT_OF = {
  false: RESULT_DONE,
  threw: RESULT_THREW,
  promised: RESULT_PROMISED,
} as const;

/** What a message of a list notifier carries in ARG3. */
const packOp = (w: Int32Array, ln: ListNotifier, op: number): number =>
  op + LIST_OPS * Atomics.load(w, ln + LN_GENERATION);

const textOf = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)) || "threw nothing";

/** Registers this row's message handlers of an agent. */
export function handleMessages(agent: Agent, local: LocalSubscribers): void {
  const w = agent.words;
  const contextOf = (m: Message): DeliveryContext | undefined =>
    local.spaces.get(Atomics.load(w, m + MSG_SUBJECT) as Subs);
  const rangeOf = (c: DeliveryContext, m: Message): MmuNotifierRange => {
    const packed = Atomics.load(w, m + MSG_ARG1);
    const owner = Atomics.load(w, m + MSG_ARG2);
    return {
      space: c.space,
      start: agent.doubles[(m + MSG_START) >> 1]!,
      end: agent.doubles[(m + MSG_END) >> 1]!,
      event: (packed & RANGE_EVENT_MASK) as MmuNotifierEvent,
      blockable: (packed & RANGE_BLOCKABLE) !== 0,
      ...(owner === 0 ? {} : { owner }),
    };
  };
  /** Runs `op`, and answers the message now or when it is done, after `leave`. */
  const answer = (m: Message, op: Op<void>, outcome: Outcome, leave: () => void): true => {
    start(agent, op, (settled) => {
      leave();
      if ("error" in settled) fail(outcome, settled.error);
      Atomics.store(w, m + MSG_RESULT, outcome.refused ? RESULT_REFUSED : RESULT_OF[`${outcome.failed}`]);
      if (outcome.failed === "threw") agent.setMessageText(m, textOf(outcome.error));
      agent.finishMessage(m);
    });
    return true;
  };
  agent.handle(MESSAGE_INTERVALS, (m) => {
    const c = contextOf(m);
    if (!c) return false;
    const outcome = noOutcome();
    const first = Atomics.load(w, m + MSG_ARG0) as Interval;
    const curSeq = Atomics.load(w, m + MSG_ARG3);
    if (!joinRange(c, curSeq)) return false;
    const op = invalidateIntervalsOp(c, rangeOf(c, m), first, curSeq, agent.ownerId, outcome);
    return answer(m, op, outcome, () => endRange(c));
  });
  agent.handle(MESSAGE_LIST, (m) => {
    const c = contextOf(m);
    const ln = Atomics.load(w, m + MSG_ARG0) as ListNotifier;
    const notifier = local.list.get(ln);
    const packed = Atomics.load(w, m + MSG_ARG3);
    if (!c || notifier?.generation !== Math.floor(packed / LIST_OPS)) return false;
    const op = packed % LIST_OPS;
    if (!notifier.count(op, Atomics.load(w, m + MSG_FROM))) return false;
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

function* callListOp(
  c: DeliveryContext,
  notifier: MmuNotifier,
  op: number,
  range: MmuNotifierRange,
  outcome: Outcome,
): Op<void> {
  const { ops } = notifier;
  try {
    if (op === LN_OP_START) {
      const result = inCallback(c.agent, () => ops.invalidateRangeStart!(notifier, range));
      const answer = yield* settleCallbackOp(c.agent, range, result, outcome);
      if (answer !== false) return;
      if (range.blockable) {
        fail(outcome, refusedBlockable("invalidateRangeStart", range));
        return;
      }
      outcome.refused = true;
      if (ops.invalidateRangeEnd) {
        const why =
          "a notifier whose start can refuse must not have an end op: nobody can tell it that its own start failed";
        c.agent.report(new MmError("EINVAL", "invalidateRangeStart", why, { range }));
      }
    } else if (op === LN_OP_END) inCallback(c.agent, () => ops.invalidateRangeEnd!(notifier, range));
    else {
      const result = inCallback(c.agent, () => ops.release!(notifier, c.space));
      yield* settleCallbackOp(c.agent, range, result, outcome);
    }
  } catch (error) {
    fail(outcome, error);
  }
}

/** Walks the list inside a grace period. */
function* eachListedOp(
  c: DeliveryContext,
  opBit: number,
  call: (ln: ListNotifier, owner: number) => Op<void>,
): Op<void> {
  const w = c.agent.words;
  if (Atomics.load(w, c.subs + SUBS_LIST) === 0) return;
  const index = srcuReadLock(c.agent, c.subs + SUBS_SRCU);
  try {
    for (let ln = Atomics.load(w, c.subs + SUBS_LIST) as ListNotifier; ln !== 0;) {
      const owner = Atomics.load(w, ln + LN_OWNER);
      if ((Atomics.load(w, ln + LN_OPS) & opBit) !== 0 && !ownerGone(w, owner)) yield* call(ln, owner);
      ln = Atomics.load(w, ln + LN_NEXT) as ListNotifier;
    }
  } finally {
    srcuReadUnlock(c.agent, c.subs + SUBS_SRCU, index);
  }
}

function* startListOp(c: DeliveryContext, range: OpenRange, outcome: Outcome): Op<void> {
  const { agent } = c;
  yield* eachListedOp(c, LN_OP_START | LN_OP_END, function* (ln, owner) {
    const opsOf = Atomics.load(agent.words, ln + LN_OPS);
    if (owner === agent.ownerId) {
      const notifier = c.local.list.get(ln);
      if (notifier && (opsOf & LN_OP_START) !== 0)
        yield* callListOp(c, notifier, LN_OP_START, range, outcome);
      return;
    }
    if (!range.blockable) {
      outcome.refused = true;
      return;
    }
    if ((opsOf & LN_OP_END) !== 0) {
      const message = yield* reserveOp(agent, MESSAGE_LIST);
      fillRange(c, message, range, ln, packOp(agent.words, ln, LN_OP_END));
      (range.reserved ??= []).push({ owner, message });
    }
    if ((opsOf & LN_OP_START) !== 0) {
      const message = yield* reserveOp(agent, MESSAGE_LIST);
      fillRange(c, message, range, ln, packOp(agent.words, ln, LN_OP_START));
      // From the start on it gets its end, whatever becomes of this agent.
      const end = (opsOf & LN_OP_END) !== 0 ? range.reserved?.at(-1) : undefined;
      if (end) agent.promiseMessage(owner, end.message);
      yield* askOp(agent, message, owner, outcome);
    }
  });
}

/** Calls or posts the end of every list notifier that has one. */
function endList(c: DeliveryContext, range: OpenRange): void {
  const { agent } = c;
  const w = agent.words;
  const index = srcuReadLock(agent, c.subs + SUBS_SRCU);
  for (
    let ln = Atomics.load(w, c.subs + SUBS_LIST) as ListNotifier;
    ln !== 0;
    ln = Atomics.load(w, ln + LN_NEXT) as ListNotifier
  ) {
    if ((Atomics.load(w, ln + LN_OPS) & LN_OP_END) === 0) continue;
    const notifier = c.local.list.get(ln);
    if (!notifier) continue;
    try {
      inCallback(agent, () => notifier.ops.invalidateRangeEnd!(notifier, range));
    } catch (cause) {
      agent.report(
        new MmError("ECALLBACK", "invalidateRangeEnd", "a notifier callback threw; see cause", {
          range,
          cause,
        }),
      );
    }
  }
  srcuReadUnlock(agent, c.subs + SUBS_SRCU, index);
  for (const { owner, message } of range.reserved ?? []) {
    agent.sendTo(owner, message, true);
  }
  range.reserved = undefined;
}

/** Calls release of every list notifier. Errors are reported: the space dies anyway. */
export function* releaseListOp(c: DeliveryContext, range: MmuNotifierRange): Op<void> {
  const { agent } = c;
  yield* eachListedOp(c, LN_OP_RELEASE, function* (ln, owner) {
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
  });
}

/** Calls release of one notifier of this agent. */
export function* releaseOneOp(c: DeliveryContext, notifier: MmuNotifier, range: MmuNotifierRange): Op<void> {
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

// ---- aging --------------------------------------------------------------------------------------------------------------------

const AGING_OPS: Readonly<Record<number, "clearFlushYoung" | "clearYoung" | "testYoung">> = {
  [LN_OP_CLEAR_FLUSH_YOUNG]: "clearFlushYoung",
  [LN_OP_CLEAR_YOUNG]: "clearYoung",
  [LN_OP_TEST_YOUNG]: "testYoung",
};

/** Asks one notifier of this agent. A throw counts as young and is reported. */
function callAging(
  c: DeliveryContext,
  notifier: MmuNotifier,
  op: number,
  startAt: number,
  end: number,
): boolean {
  const name = AGING_OPS[op]!;
  const call = notifier.ops[name] as MmuNotifierOps["clearYoung"];
  if (!call) return false;
  try {
    return inCallback(c.agent, () => call.call(notifier.ops, notifier, c.space, startAt, end)) === true;
  } catch (cause) {
    c.agent.report(
      new MmError("ECALLBACK", name, "a notifier callback threw; its answer counts as young", { cause }),
    );
    return true;
  }
}

/** Tests the accessed bitmap of a list notifier, in place; undefined if it has none. */
function ageBitmap(
  c: DeliveryContext,
  ln: ListNotifier,
  clear: boolean,
  startAt: number,
  end: number,
): boolean | undefined {
  const w = c.agent.words;
  const bits = Atomics.load(w, ln + LN_BITS);
  if (bits === 0) return undefined;
  const pageSize = 2 ** Atomics.load(w, ln + LN_PAGE_SHIFT);
  const base = c.agent.doubles[(ln + LN_BITS_START) >> 1]!;
  const count = Atomics.load(w, ln + LN_BITS_LENGTH) * 32;
  const first = Math.max(0, Math.floor((startAt - base) / pageSize));
  const last = Math.min(count - 1, Math.floor((end - 1 - base) / pageSize));
  let young = false;
  for (let k = first; k <= last; k++) {
    const word = bits + (k >>> 5);
    const bit = 1 << (k & 31);
    if ((Atomics.load(w, word) & bit) === 0) continue;
    young = true;
    if (clear) Atomics.and(w, word, ~bit);
  }
  return young;
}

/** Posts a question whose answer the next overlapping call uses, and uses the answer to the last one. Unknown is young. */
function askAging(
  c: DeliveryContext,
  ln: ListNotifier,
  owner: number,
  op: number,
  startAt: number,
  end: number,
): boolean {
  const { agent } = c;
  const w = agent.words;
  const d = agent.doubles;
  const answer = Atomics.load(w, ln + LN_ANSWER);
  const overlaps = d[(ln + LN_ANSWER_START) >> 1]! < end && startAt < d[(ln + LN_ANSWER_END) >> 1]!;
  if (answer === ANSWER_ASKED) return true;
  const known = answer !== ANSWER_NONE && overlaps;
  if (known && Atomics.compareExchange(w, ln + LN_ANSWER, answer, ANSWER_NONE) === answer)
    return answer === ANSWER_YOUNG;
  if (Atomics.compareExchange(w, ln + LN_ANSWER, answer, ANSWER_ASKED) !== answer) return true;
  const message = agent.tryReserveMessage(MESSAGE_LIST);
  if (message === 0) {
    Atomics.store(w, ln + LN_ANSWER, ANSWER_NONE);
    return true;
  }
  d[(ln + LN_ANSWER_START) >> 1] = startAt;
  d[(ln + LN_ANSWER_END) >> 1] = end;
  fillRange(
    c,
    message,
    { space: c.space, start: startAt, end, event: 0, blockable: false },
    ln,
    packOp(w, ln, op),
  );
  if (!agent.sendTo(owner, message, true)) Atomics.store(w, ln + LN_ANSWER, ANSWER_NONE);
  return true;
}

/** Asks every list notifier; no short circuit but for testYoung. Never waits. */
function ageList(c: DeliveryContext, op: number, startAt: number, end: number): boolean {
  const { agent } = c;
  const w = agent.words;
  if (Atomics.load(w, c.subs + SUBS_LIST) === 0) return false;
  const index = srcuReadLock(agent, c.subs + SUBS_SRCU);
  let young = false;
  for (
    let ln = Atomics.load(w, c.subs + SUBS_LIST) as ListNotifier;
    ln !== 0;
    ln = Atomics.load(w, ln + LN_NEXT) as ListNotifier
  ) {
    const owner = Atomics.load(w, ln + LN_OWNER);
    if (ownerGone(w, owner)) continue;
    const marked = ageBitmap(c, ln, op !== LN_OP_TEST_YOUNG, startAt, end);
    if (marked === true) young = true;
    if (owner === agent.ownerId) {
      const notifier = c.local.list.get(ln);
      if (notifier && callAging(c, notifier, op, startAt, end)) young = true;
    } else if (marked === undefined && (Atomics.load(w, ln + LN_OPS) & op) !== 0) {
      if (askAging(c, ln, owner, op, startAt, end)) young = true;
    }
    if (young && op === LN_OP_TEST_YOUNG) break;
  }
  srcuReadUnlock(agent, c.subs + SUBS_SRCU, index);
  return young;
}

export const clearFlushYoung = (c: DeliveryContext, startAt: number, end: number): boolean =>
  ageList(c, LN_OP_CLEAR_FLUSH_YOUNG, startAt, end);
export const clearYoung = (c: DeliveryContext, startAt: number, end: number): boolean =>
  ageList(c, LN_OP_CLEAR_YOUNG, startAt, end);
export const testYoung = (c: DeliveryContext, address: number): boolean =>
  ageList(c, LN_OP_TEST_YOUNG, address, address + 1);

/** A range as callbacks see it. */
export function makeRange(
  space: NotifierSpace,
  start_: number,
  end: number,
  event: MmuNotifierEvent,
  blockable: boolean,
  owner?: OwnerId,
): OpenRange {
  const range: OpenRange = {
    space,
    start: start_,
    end,
    event,
    blockable,
    reserved: undefined,
    opener: undefined,
  };
  return owner === undefined ? range : { ...range, owner };
}
