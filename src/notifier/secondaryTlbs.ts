/**
 * Secondary TLBs: devices that walk the page tables themselves, and keep what they found. Linux:
 * mmu_notifier_arch_invalidate_secondary_tlbs().
 *
 * "Whatever the processor's TLB must forget, you forget too." So it is called where TLBs are flushed, after the entries
 * have changed and before anybody relies on that; it never waits. A notifier of this agent is called at once. One of
 * another agent is called by that agent, at its next safepoint: who changes entries asks for that through the agent's
 * flush marks, as for its TLB, and counts its answer among the acknowledgements. An agent that is idle is woken: its
 * device goes on where it does not.
 */
import { ownerGone, slotOfOwner } from "../sched/index.ts";
import { srcuReadLock, srcuReadUnlock } from "../sync/index.ts";
import { callbackThrew, inUnwaitingCallback } from "./callbacks.ts";
import type { DeliveryContext } from "./context.ts";
import {
  type ListNotifier,
  LN_NEXT,
  LN_OP_SECONDARY_TLBS,
  LN_OPS,
  LN_OWNER,
  MESSAGE_LIST,
  SUBS_LIST,
  SUBS_SECONDARY_TLBS,
  SUBS_SRCU,
} from "./layout.ts";
import { fillRange, packOp } from "./messages.ts";
import type { MmuNotifier } from "./mmuNotifier.ts";

/** Calls one notifier of this agent. A throw is reported: the entries have changed. */
export function callSecondaryTlbs(
  c: DeliveryContext,
  notifier: MmuNotifier,
  start: number,
  end: number,
): void {
  try {
    inUnwaitingCallback(c.agent, () =>
      notifier.ops.archInvalidateSecondaryTlbs?.(notifier, c.space, start, end),
    );
  } catch (cause) {
    c.agent.report(callbackThrew("archInvalidateSecondaryTlbs", cause));
  }
}

/** True where somebody has registered one. */
export const anySecondaryTlb = (c: DeliveryContext): boolean =>
  Atomics.load(c.agent.words, c.subs + SUBS_SECONDARY_TLBS) !== 0;

/** Calls `visit` for each notifier of a secondary TLB, inside a grace period. */
function eachSecondaryTlb(c: DeliveryContext, visit: (ln: ListNotifier, owner: number) => void): void {
  const { agent, subs } = c;
  const w = agent.words;
  if (!anySecondaryTlb(c)) return;
  const section = srcuReadLock(agent, subs + SUBS_SRCU);
  for (let ln = Atomics.load(w, subs + SUBS_LIST); ln !== 0; ln = Atomics.load(w, ln + LN_NEXT)) {
    if ((Atomics.load(w, ln + LN_OPS) & LN_OP_SECONDARY_TLBS) === 0) continue;
    const owner = Atomics.load(w, ln + LN_OWNER);
    if (!ownerGone(w, owner)) visit(ln as ListNotifier, owner);
  }
  srcuReadUnlock(agent, subs + SUBS_SRCU, section);
}

/**
 * Calls this agent's notifiers for `[start, end)` (bytes), and `elsewhere` for the slot of each other agent that has one,
 * maybe more than once.
 */
export function invalidateSecondaryTlbs(
  c: DeliveryContext,
  start: number,
  end: number,
  elsewhere: (slot: number) => void,
): void {
  eachSecondaryTlb(c, (ln, owner) => {
    if (owner !== c.agent.ownerId) {
      elsewhere(slotOfOwner(owner));
      return;
    }
    const notifier = c.local.list.get(ln);
    if (notifier) callSecondaryTlbs(c, notifier, start, end);
  });
}

/** What another agent's flush mark asks of this one: its notifiers of the space. */
export function invalidateOwnSecondaryTlbs(c: DeliveryContext, start: number, end: number): void {
  invalidateSecondaryTlbs(c, start, end, () => {});
}

/** As invalidateSecondaryTlbs(), with a message to other agents, whose answer nobody waits for. */
export function postSecondaryTlbs(c: DeliveryContext, start: number, end: number): void {
  const { agent } = c;
  eachSecondaryTlb(c, (ln, owner) => {
    if (owner === agent.ownerId) {
      const notifier = c.local.list.get(ln);
      if (notifier) callSecondaryTlbs(c, notifier, start, end);
      return;
    }
    const message = agent.tryReserveMessage(MESSAGE_LIST);
    if (message === 0) {
      // The arena is full. Everything of every space then: a mark needs no room.
      agent.markAll(slotOfOwner(owner));
      return;
    }
    const range = { space: c.space, start, end, event: 0, blockable: false } as const;
    fillRange(c, message, range, ln, packOp(agent.words, ln, LN_OP_SECONDARY_TLBS));
    agent.sendTo(owner, message, true);
  });
}
