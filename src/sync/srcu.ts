/**
 * Sleepable read-copy-update: readers may wait inside, and synchronize waits for those that were there before.
 * Linux: srcu_struct. Readers are counted per agent slot, so a dead agent's are given back by its reaper.
 */
import { type Agent, type Op, QUEUE_WORDS, waitOp, wakeQueue } from "../sched/index.ts";

export const SRCU_INDEX = 0; // A  readers that enter now count under this parity
export const SRCU_QUEUE = 1; // A  wait queue
export const SRCU_COUNTS: number = SRCU_QUEUE + QUEUE_WORDS + 1; // A  two per agent slot
/** Words of a domain for `maxAgents` agents. */
export const srcuWords = (maxAgents: number): number => SRCU_COUNTS + 2 * maxAgents;

const countAt = (domain: number, slot: number, index: number): number =>
  domain + SRCU_COUNTS + 2 * slot + index;

/** Enters a read section; give the result to srcuReadUnlock(). */
export function srcuReadLock(agent: Agent, domain: number): number {
  // Plain: a reader may count under either; who synchronizes waits for both.
  const index = agent.words[domain + SRCU_INDEX]! & 1;
  Atomics.add(agent.words, countAt(domain, agent.slot, index), 1);
  return index;
}

export function srcuReadUnlock(agent: Agent, domain: number, index: number): void {
  Atomics.sub(agent.words, countAt(domain, agent.slot, index), 1);
  wakeQueue(agent.words, domain + SRCU_QUEUE);
}

function drained(agent: Agent, domain: number, index: number): boolean {
  const top = agent.top();
  for (let slot = 0; slot < top; slot++) {
    if (Atomics.load(agent.words, countAt(domain, slot, index)) !== 0) return false;
  }
  return true;
}

/** Owner id of an agent with a reader under this parity, 0 if none has. The own agent first: see needsEventLoop(). */
function someReader(agent: Agent, domain: number, index: number): number {
  if (Atomics.load(agent.words, countAt(domain, agent.slot, index)) !== 0) return agent.ownerId;
  const top = agent.top();
  for (let slot = 0; slot < top; slot++) {
    if (Atomics.load(agent.words, countAt(domain, slot, index)) !== 0) return agent.ownerAt(slot);
  }
  return 0;
}

/** Waits until every read section that began before has ended. Preconditions: not inside one. */
export function* synchronizeSrcuOp(agent: Agent, domain: number): Op<void> {
  // Each parity once, the one that gets no new readers first. Not "flip and wait" twice: with another synchronizer's
  // flip between ours, both waits would be for the same parity.
  const first = (Atomics.load(agent.words, domain + SRCU_INDEX) + 1) & 1;
  for (const index of [first, 1 - first]) {
    const now = Atomics.load(agent.words, domain + SRCU_INDEX);
    if ((now & 1) === index) Atomics.compareExchange(agent.words, domain + SRCU_INDEX, now, (now + 1) | 0);
    yield* waitOp(
      domain + SRCU_QUEUE,
      () => drained(agent, domain, index),
      "a grace period",
      () => someReader(agent, domain, index),
    );
  }
}

export function reapSrcu(agent: Agent, domain: number, slot: number): void {
  for (let index = 0; index < 2; index++) Atomics.store(agent.words, countAt(domain, slot, index), 0);
  wakeQueue(agent.words, domain + SRCU_QUEUE);
}
