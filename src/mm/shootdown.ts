/**
 * Making other agents forget translations, and knowing that they did. Linux: flush_tlb_mm_range() and its IPIs.
 *
 * The acknowledgement rule: after a page-table entry was taken away or reduced there is no return, copy, write-out,
 * free, or different frame before every agent that may hold the old translation has acknowledged.
 * Only agents whose TLB holds the range are asked, and only those in a turn and awake are waited for. A secondary TLB that
 * walks the page tables by itself (archInvalidateSecondaryTlbs) is flushed by its agent, which is always waited for.
 */
import { anySecondaryTlb, invalidateSecondaryTlbs } from "../notifier/index.ts";
import { AG_ACKQ, agentAt, type Op, ring, waitOp } from "../sched/index.ts";
import { CT_FLUSHES, spTlbAt } from "./layout.ts";
import { type SpaceCore, tlbHolds } from "./spaceCore.ts";

/** An acknowledgement that is still to come. */
export interface PendingAck {
  readonly slot: number;
  readonly request: number;
  /** Turn counter of the agent, when it was asked; FLUSHES: whatever its turn, it must have done what was asked. */
  readonly turn: number;
}

export const NO_ACKS: readonly PendingAck[] = [];
/** An agent with a secondary TLB, which goes on working while the agent is idle or parked. */
const FLUSHES = -1;
/** Ranges of up to this many pages are looked for in the others' TLBs; longer ones are assumed to be there. */
const PROBE_PAGES = 64;

/**
 * Flushes `[start, end)` (pages) from the own TLB and marks it in the others'; then the secondary TLBs that walk these
 * page tables. Returns whom to wait for. Preconditions: the page-table entries have been changed.
 */
export function markRange(space: SpaceCore, start: number, end: number): readonly PendingAck[] {
  const acks = markTlbs(space, start, end);
  return anySecondaryTlb(space.notifiers.context) ? markSecondary(space, start, end, acks) : acks;
}

function markSecondary(
  space: SpaceCore,
  start: number,
  end: number,
  acks: readonly PendingAck[],
): readonly PendingAck[] {
  const { agent, mm } = space;
  let more: PendingAck[] | undefined;
  invalidateSecondaryTlbs(space.notifiers.context, start * mm.pageSize, end * mm.pageSize, (slot) => {
    if (more?.some((ack) => ack.slot === slot)) return;
    (more ??= []).push({ slot, request: agent.mark(slot, space.slot, start, end), turn: FLUSHES });
    ring(agent.words, slot);
  });
  return more ? [...acks, ...more] : acks;
}

/** As markRange(), without secondary TLBs. For aging, after which nobody must have forgotten anything. */
export function markTlbs(space: SpaceCore, start: number, end: number): readonly PendingAck[] {
  const { agent, mm } = space;
  space.flushOwn(start, end);
  const top = agent.top();
  let acks: PendingAck[] | undefined;
  for (let slot = 0; slot < top; slot++) {
    if (slot === agent.slot) continue;
    const table = Atomics.load(agent.words, spTlbAt(space.slot, mm.maxAgents, slot));
    if (table === 0) continue;
    if (end - start <= PROBE_PAGES && !tlbHolds(agent.words, table, mm.tlbEntries - 1, start, end)) continue;
    const request = agent.mark(slot, space.slot, start, end);
    const turn = agent.turnOf(slot);
    if (agent.acknowledged(slot, request, turn)) continue;
    (acks ??= []).push({ slot, request, turn });
  }
  if (acks) mm.count(CT_FLUSHES);
  return acks ?? NO_ACKS;
}

/** True if an agent that is in a turn holds a page of `[start, end)` in its TLB, this one included. */
export function heldByRunning(space: SpaceCore, start: number, end: number): boolean {
  const { agent, mm } = space;
  const top = agent.top();
  for (let slot = 0; slot < top; slot++) {
    const table = Atomics.load(agent.words, spTlbAt(space.slot, mm.maxAgents, slot));
    if (table === 0 || (agent.turnOf(slot) & 1) === 0) continue;
    if (tlbHolds(agent.words, table, mm.tlbEntries - 1, start, end)) return true;
  }
  return false;
}

/** Waits until all have acknowledged. In the non-blocking driver EAGAIN comes out of here. */
export function* awaitAcksOp(space: SpaceCore, acks: readonly PendingAck[]): Op<void> {
  const { agent } = space;
  for (const ack of acks) {
    const done = (): boolean =>
      ack.turn === FLUSHES
        ? agent.flushed(ack.slot, ack.request)
        : agent.acknowledged(ack.slot, ack.request, ack.turn);
    if (done()) continue;
    ring(agent.words, ack.slot);
    yield* waitOp(agentAt(ack.slot) + AG_ACKQ, done, `the acknowledgement of agent ${ack.slot}`, () =>
      agent.ownerAt(ack.slot),
    );
  }
}
