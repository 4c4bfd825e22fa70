/**
 * The end of a space's record. Linux: mm_count, mmdrop().
 *
 * Whoever works on a space is counted in it, per agent, so that a dead one's uses can be taken back: operations from
 * their begin to their end, reclaimers while they look at its mappings. exit() unmaps everything; the record, the page
 * tables and the TLBs go when it has done so and the last use ends. Accesses are not counted, nor is an mprotect that
 * need not wait: an agent that makes them is in a turn and has a TLB of the space, and exit() waits until it has passed
 * a safepoint.
 *
 * Between looking whether a space lives and counting itself an agent protects the record by name (a hazard pointer);
 * exit() lets it finish before it goes on.
 */
import { MmError } from "../errors.ts";
import type { Op } from "../sched/index.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import {
  MM_LOCK,
  SP_ID,
  SP_SPARE_VMA,
  SP_STATE,
  SPACE_EXITED,
  SPACE_FREE,
  SPACE_LIVE,
  spaceWords,
  spUsersAt,
  VMA_SPACE,
  VMA_WORDS,
} from "./layout.ts";
import { destroyRadix } from "./radix.ts";
import { type SpaceCore, takeTlbs, tlbWords } from "./spaceCore.ts";
import { freeTrackers } from "./trackers.ts";

/** Counts an operation on a space until unuseSpace(). A safepoint. Errors: ESRCH. */
export function useSpace(space: SpaceCore, operation: string): void {
  const { agent, mm } = space;
  agent.checkUsable(operation);
  if (agent.wanted) agent.safepoint();
  if (space.active) {
    // In a turn with a TLB of the space: the record stays until this agent has passed a safepoint.
    joinSpace(space);
    if (Atomics.load(agent.words, space.slot + SP_STATE) === SPACE_LIVE) return;
    unuseSpace(space);
    throw gone(operation);
  }
  mm.protect(space.slot);
  const { live } = space;
  if (live) Atomics.add(agent.words, spUsersAt(space.slot, mm.maxAgents, agent.slot), 1);
  mm.unprotect();
  if (!live) throw gone(operation);
}

const gone = (operation: string): MmError =>
  new MmError("ESRCH", operation, "the space is exiting or has exited");

/** Counts what an access has begun as an operation until unuseSpace(). Preconditions: in a turn with a TLB of the space. */
export function joinSpace({ agent, mm, slot }: SpaceCore): void {
  Atomics.add(agent.words, spUsersAt(slot, mm.maxAgents, agent.slot), 1);
}

/** Ends a use; the last one of a space that has exited frees it. */
export function unuseSpace(space: SpaceCore): void {
  const { agent, mm } = space;
  Atomics.sub(agent.words, spUsersAt(space.slot, mm.maxAgents, agent.slot), 1);
  // A record that is gone already says anything here; freeIfUnused() looks again.
  if (Atomics.load(agent.words, space.slot + SP_STATE) !== SPACE_LIVE) freeIfUnused(space);
}

/** Frees a space that has exited, if nobody uses it any more and nobody else was faster. */
export function freeIfUnused(space: SpaceCore): void {
  const { agent, mm, slot } = space;
  const w = agent.words;
  lockSpin(agent, mm.header + MM_LOCK);
  const last =
    mm.isLinkedLocked(slot) &&
    Atomics.load(w, slot + SP_ID) === space.id &&
    Atomics.load(w, slot + SP_STATE) === SPACE_EXITED &&
    users(space) === 0;
  if (last) {
    mm.unlinkSpaceLocked(slot);
    Atomics.store(w, slot + SP_STATE, SPACE_FREE);
  }
  unlockSpin(agent, mm.header + MM_LOCK);
  if (last) destroySpace(space);
}

/** Runs `body` while the space cannot go. Errors: ESRCH. */
export function* usingOp<T>(space: SpaceCore, operation: string, body: () => Op<T>): Op<T> {
  useSpace(space, operation);
  try {
    return yield* body();
  } finally {
    unuseSpace(space);
  }
}

function users(space: SpaceCore): number {
  const { agent, mm } = space;
  const top = agent.top();
  let sum = 0;
  for (let slot = 0; slot < top; slot++)
    sum += Atomics.load(agent.words, spUsersAt(space.slot, mm.maxAgents, slot));
  return sum;
}

/** Frees what is left of a space. Its subscriptions stay while somebody's notifier is among them. */
function destroySpace(space: SpaceCore): void {
  const { agent, mm } = space;
  const top = agent.top();
  for (let slot = 0; slot < top; slot++) {
    for (const table of takeTlbs(mm, space.slot, slot)) mm.free(table, tlbWords(mm.tlbEntries));
  }
  space.detachTlb();
  freeTrackers(space);
  if (mm.spaces.get(space.slot) === space) mm.spaces.delete(space.slot);
  destroyRadix(agent, mm.heap, space.pgd);
  for (let vma = agent.words[space.slot + SP_SPARE_VMA]!; vma !== 0;) {
    const next = agent.words[vma + VMA_SPACE]!;
    mm.free(vma, VMA_WORDS);
    vma = next;
  }
  space.notifiers.disown();
  mm.free(space.slot, spaceWords(mm.maxAgents));
}
