/** A range in a message to another agent, and the answer. */
import {
  type Agent,
  type Message,
  MSG_ARG0,
  MSG_ARG1,
  MSG_ARG2,
  MSG_ARG3,
  MSG_END,
  MSG_POSTED,
  MSG_RESULT,
  MSG_START,
  MSG_SUBJECT,
  MSG_TEXT_LENGTH,
  type Op,
  ownerAlive,
  ownerGone,
  slotOfOwner,
  waitOp,
} from "../sched/index.ts";
import { fail, type Outcome } from "./callbacks.ts";
import { type DeliveryContext, makeRange, type OpenRange } from "./context.ts";
import type { MmuNotifierEvent, MmuNotifierRange } from "./events.ts";
import {
  LIST_OPS,
  type ListNotifier,
  LN_GENERATION,
  RANGE_BLOCKABLE,
  RANGE_EVENT_MASK,
  RESULT_DONE,
  RESULT_PROMISED,
  RESULT_REFUSED,
  RESULT_THREW,
} from "./layout.ts";

/** Waits for a free message. */
export function* reserveOp(agent: Agent, kind: number): Op<Message> {
  let message = agent.tryReserveMessage(kind);
  if (message === 0)
    yield* waitOp(0, () => (message = agent.tryReserveMessage(kind)) !== 0, "a free message");
  return message;
}

/** Writes a range into a message. */
export function fillRange(
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

/** Sends a message and waits for the answer, which goes to `outcome`. */
export function* askOp(agent: Agent, m: Message, owner: number, outcome: Outcome): Op<void> {
  const w = agent.words;
  const slot = slotOfOwner(owner);
  if (agent.sendTo(owner, m, false)) {
    try {
      yield* waitOp(
        0,
        () => agent.messageDone(m) || ownerGone(w, owner),
        `a notifier in agent ${slot}`,
        () => owner,
      );
    } catch (error) {
      // Nobody waits any more: whoever answers it frees it.
      Atomics.store(w, m + MSG_POSTED, 1);
      if (agent.messageDone(m)) agent.freeMessage(m);
      throw error;
    }
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

/** The range that a message carries. */
export function rangeOf(c: DeliveryContext, m: Message): OpenRange {
  const { words: w, doubles } = c.agent;
  const packed = Atomics.load(w, m + MSG_ARG1);
  const owner = Atomics.load(w, m + MSG_ARG2);
  return makeRange(
    c.space,
    doubles[(m + MSG_START) >> 1]!,
    doubles[(m + MSG_END) >> 1]!,
    (packed & RANGE_EVENT_MASK) as MmuNotifierEvent,
    (packed & RANGE_BLOCKABLE) !== 0,
    owner === 0 ? undefined : owner,
  );
}

/** What a message of a list notifier carries in ARG3. */
export const packOp = (w: Int32Array, ln: ListNotifier, op: number): number =>
  op + LIST_OPS * Atomics.load(w, ln + LN_GENERATION);

const RESULT_OF = {
  false: RESULT_DONE,
  threw: RESULT_THREW,
  promised: RESULT_PROMISED,
} as const;

const textOf = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)) || "threw nothing";

/** Writes what came of the callbacks into the message that asked for them. */
export function setResult(agent: Agent, m: Message, outcome: Outcome): void {
  const result = outcome.refused ? RESULT_REFUSED : RESULT_OF[`${outcome.failed}`];
  Atomics.store(agent.words, m + MSG_RESULT, result);
  if (outcome.failed === "threw") agent.setMessageText(m, textOf(outcome.error));
}
