/**
 * Aging: has a secondary MMU used these pages? Linux: mmu_notifier_clear_flush_young() and its like.
 *
 * Never waits, so that it can run with page tables locked. A notifier of another agent is reached through shared words: a
 * bitmap of accessed bits, which is tested and cleared in place; or a question is posted to it, whose answer the next
 * call that overlaps uses once. What is not known, and what throws, counts as young.
 */
import { MmError } from "../errors.ts";
import { ownerGone } from "../sched/index.ts";
import { srcuReadLock, srcuReadUnlock } from "../sync/index.ts";
import { inUnwaitingCallback } from "./callbacks.ts";
import type { DeliveryContext } from "./context.ts";
import type { MmuNotifierOps } from "./events.ts";
import {
  ANSWER_ASKED,
  ANSWER_NONE,
  ANSWER_YOUNG,
  type ListNotifier,
  LN_ANSWER,
  LN_ANSWER_END,
  LN_ANSWER_START,
  LN_BITS,
  LN_BITS_PAGES,
  LN_BITS_START,
  LN_NEXT,
  LN_OP_CLEAR_FLUSH_YOUNG,
  LN_OP_CLEAR_YOUNG,
  LN_OP_TEST_YOUNG,
  LN_OPS,
  LN_OWNER,
  LN_PAGE_SHIFT,
  MESSAGE_LIST,
  SUBS_LIST,
  SUBS_SRCU,
} from "./layout.ts";
import { fillRange, packOp } from "./messages.ts";
import type { MmuNotifier } from "./mmuNotifier.ts";

const AGING_OPS: Readonly<Record<number, "clearFlushYoung" | "clearYoung" | "testYoung">> = {
  [LN_OP_CLEAR_FLUSH_YOUNG]: "clearFlushYoung",
  [LN_OP_CLEAR_YOUNG]: "clearYoung",
  [LN_OP_TEST_YOUNG]: "testYoung",
};

/** Asks one notifier of this agent. A throw counts as young and is reported. */
export function callAging(
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
    return (
      inUnwaitingCallback(c.agent, () => call.call(notifier.ops, notifier, c.space, startAt, end)) === true
    );
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
  const count = Atomics.load(w, ln + LN_BITS_PAGES);
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
