/**
 * Running one callback: what it returned or threw, and what comes of that. Not here: whom to call (delivery.ts).
 *
 * A callback that throws stops nobody: its failure is noted, the others are called, the ends run, and the caller hears of
 * the first failure.
 */
import { MmError } from "../errors.ts";
import { type Agent, type Effect, isOp, isPromise, type Op, promiseOp } from "../sched/index.ts";
import type { MaybeOp, MmuNotifierRange } from "./events.ts";

/** What came of calling subscribers. */
export interface Outcome {
  refused: boolean;
  /** The first failure: a callback threw, or returned a promise where nobody can wait for it. */
  failed: false | "threw" | "promised";
  error: unknown;
}

export const noOutcome = (): Outcome => ({ refused: false, failed: false, error: undefined });

export function fail(outcome: Outcome, error: unknown, how: "threw" | "promised" = "threw"): void {
  if (outcome.failed !== false) return;
  outcome.failed = how;
  outcome.error = error;
}

export const callbackThrew = (operation: string, cause: unknown, range?: MmuNotifierRange): MmError =>
  new MmError("ECALLBACK", operation, "a notifier callback threw; see cause", {
    cause,
    ...(range && { range }),
  });

export const outcomeError = (outcome: Outcome, operation: string, range: MmuNotifierRange): MmError =>
  outcome.failed === "promised"
    ? new MmError(
        "EDEADLK",
        operation,
        "a callback in an agent that may block returned a promise; return a plain value or an Op",
        { range },
      )
    : callbackThrew(operation, outcome.error, range);

/** Notes that a callback said that it cannot now; which is its failure where the range may wait. */
export function refuse(outcome: Outcome, operation: string, range: MmuNotifierRange): void {
  if (!range.blockable) outcome.refused = true;
  else
    fail(
      outcome,
      new MmError("EINVAL", operation, "a callback refused a blockable range; it must succeed", { range }),
    );
}

/** Runs user code with operations forbidden. */
export function inCallback<T>(agent: Agent, call: () => T): T {
  agent.callbackDepth++;
  try {
    return call();
  } finally {
    agent.callbackDepth--;
  }
}

/** As inCallback(), for callbacks that may never wait: debug mode says from where they were called. */
export function inUnwaitingCallback<T>(agent: Agent, call: () => T): T {
  if (!agent.debug) return inCallback(agent, call);
  const outer = agent.unwaiting;
  agent.unwaiting = new Error();
  try {
    return inCallback(agent, call);
  } finally {
    agent.unwaiting = outer;
  }
}

/** Runs a coroutine callback: every step of it is inside the callback. */
function* inCallbackOp<T>(agent: Agent, op: Op<T>): Op<T> {
  let input: { error: unknown } | undefined;
  for (;;) {
    // The steps of a start are what a subscriber's lock is taken in, for lockdep.
    if (agent.debug) agent.invalidating++;
    let r: IteratorResult<Effect, T>;
    try {
      r = inCallback(agent, () => (input ? op.throw(input.error) : op.next()));
    } finally {
      if (agent.debug) agent.invalidating--;
    }
    if (r.done === true) return r.value;
    input = undefined;
    try {
      yield r.value;
    } catch (error) {
      input = { error };
    }
  }
}

/** True if a callback has answered; else settleCallbackOp() gets the answer. */
export const isAnswer = <T>(result: MaybeOp<T>): result is T =>
  typeof result !== "object" || result === null || (!isOp(result) && !isPromise(result));

/** Settles what a callback returned, as far as the range and the agent allow waiting. */
export function* settleCallbackOp<T>(
  agent: Agent,
  range: MmuNotifierRange,
  result: MaybeOp<T>,
  outcome: Outcome,
): Op<T | void> {
  if (isPromise(result)) {
    if (!range.blockable || agent.mayBlock) Promise.resolve(result).catch(() => {}); // nobody waits for it
    if (!range.blockable) throw waitsWhereItMayNot("a promise", range);
    if (agent.mayBlock) {
      fail(outcome, undefined, "promised");
      return;
    }
    return yield* promiseOp(result, "a notifier callback");
  }
  if (isOp(result)) {
    if (!range.blockable) throw waitsWhereItMayNot("an Op", range);
    return (yield* inCallbackOp(agent, result as Op<T>)) as T;
  }
  return result as T;
}

const waitsWhereItMayNot = (what: string, range: MmuNotifierRange): MmError =>
  new MmError("EINVAL", "callback", `a callback returned ${what} where the range is not blockable`, {
    range,
  });
