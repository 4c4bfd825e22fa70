/**
 * Read-write semaphores that may be held across waits. Linux: rw_semaphore, built as its percpu_rw_semaphore.
 *
 * A writer word, and a count of readers for each agent: a reader touches only its own word, and what a dead agent
 * held can be told from the words alone. A writer first claims the writer word, which stops new readers, and then
 * waits until every reader has gone.
 *
 * Fairness: waiters compete. One that has tried in vain for long sets the hand-off word; from then on only its
 * agent may take the lock. A hand-off is taken by running code, never given to a sleeper.
 *
 * State: free | claimed by W, readers draining | written by W | read by some.
 */
import {
  type Agent,
  ownerAlive,
  type Op,
  ownerIdOf,
  QUEUE_WORDS,
  waitOp,
  wakeQueue,
} from "../sched/index.ts";
import { type LockRank, lockdepAcquire, lockdepCheck, lockdepRelease } from "./lockOrder.ts";

export const RW_WRITER = 0; //  A  owner id of the writer, 0 = none
export const RW_HANDOFF = 1; // A  owner id of the only agent that may take the lock next, 0 = anyone
export const RW_QUEUE = 2; //   A  wait queue
export const RW_LOCKDEP: number = RW_QUEUE + QUEUE_WORDS; // A  for lockdep.ts, of subscribers' semaphores
export const RW_READERS: number = RW_LOCKDEP + 1; // A  one count per agent slot

/** Words of a semaphore for `maxAgents` agents. */
export const rwSemWords = (maxAgents: number): number => RW_READERS + maxAgents;

/** Tries in vain before a waiter claims the next turn for its agent; a spinning waiter makes some 500 per sleep. */
const TRIES_BEFORE_HANDOFF = 2000;

function mayTake(agent: Agent, sem: number): boolean {
  const w = agent.words;
  const next = Atomics.load(w, sem + RW_HANDOFF);
  if (next === 0 || next === agent.ownerId) return true;
  return !ownerAlive(w, next) && Atomics.compareExchange(w, sem + RW_HANDOFF, next, 0) === next;
}

/** Whom somebody waits for who wants the semaphore: the writer, or the agent that may take it next. */
function holdsUp(agent: Agent, sem: number): number {
  const writer = Atomics.load(agent.words, sem + RW_WRITER);
  if (writer !== 0) return writer;
  const next = Atomics.load(agent.words, sem + RW_HANDOFF);
  return next === agent.ownerId ? 0 : next;
}

function clearHandoff(agent: Agent, sem: number): void {
  if (Atomics.load(agent.words, sem + RW_HANDOFF) === 0) return;
  if (Atomics.compareExchange(agent.words, sem + RW_HANDOFF, agent.ownerId, 0) === agent.ownerId) {
    wakeQueue(agent.words, sem + RW_QUEUE);
  }
}

/** `attempt` with a count of failures that ends in a hand-off. */
function patient(agent: Agent, sem: number, attempt: () => boolean): () => boolean {
  let failures = 0;
  return () => {
    if (attempt()) return true;
    if (++failures >= TRIES_BEFORE_HANDOFF)
      Atomics.compareExchange(agent.words, sem + RW_HANDOFF, 0, agent.ownerId);
    return false;
  };
}

export function tryLockRead(agent: Agent, sem: number, rank: LockRank): boolean {
  const w = agent.words;
  // Plain loads first: the hand-off is a courtesy, and the writer word is looked at again where it counts.
  if (w[sem + RW_WRITER] !== 0 || (w[sem + RW_HANDOFF] !== 0 && !mayTake(agent, sem))) return false;
  Atomics.add(w, sem + RW_READERS + agent.slot, 1);
  if (Atomics.load(w, sem + RW_WRITER) === 0) {
    if (w[sem + RW_HANDOFF] !== 0) clearHandoff(agent, sem);
    if (agent.debug) lockdepAcquire(agent, rank);
    return true;
  }
  Atomics.sub(w, sem + RW_READERS + agent.slot, 1);
  wakeQueue(w, sem + RW_QUEUE); // the writer may have seen our count
  return false;
}

export function* lockReadOp(agent: Agent, sem: number, rank: LockRank, what: string): Op<void> {
  if (agent.debug) lockdepCheck(agent, rank);
  if (agent.fastPaths && tryLockRead(agent, sem, rank)) return;
  if (!agent.fastPaths) yield { kind: "point", what };
  try {
    yield* waitOp(
      sem + RW_QUEUE,
      // Looked at with Atomics first: after arming, a plain load could still answer what was there before.
      patient(agent, sem, () => !isWriteLocked(agent, sem) && tryLockRead(agent, sem, rank)),
      what,
      () => holdsUp(agent, sem),
    );
  } catch (error) {
    clearHandoff(agent, sem);
    throw error;
  }
}

export function unlockRead(agent: Agent, sem: number, rank: LockRank): void {
  if (agent.debug) lockdepRelease(agent, rank);
  Atomics.sub(agent.words, sem + RW_READERS + agent.slot, 1);
  // Only a writer that has claimed the lock waits for readers to go.
  if (Atomics.load(agent.words, sem + RW_WRITER) !== 0) wakeQueue(agent.words, sem + RW_QUEUE);
}

/** Another operation of this agent goes on with a share that is held here: it calls adoptRead(), and gives it back. */
export function passRead(agent: Agent, rank: LockRank): void {
  if (agent.debug) lockdepRelease(agent, rank);
}

/** See passRead(). */
export function adoptRead(agent: Agent, rank: LockRank): void {
  if (agent.debug) lockdepAcquire(agent, rank);
}

/** Owner id of an agent that holds the semaphore for reading, 0 if none does. The own agent first: see needsEventLoop(). */
function someReader(agent: Agent, sem: number): number {
  if (Atomics.load(agent.words, sem + RW_READERS + agent.slot) !== 0) return agent.ownerId;
  const top = agent.top();
  for (let slot = 0; slot < top; slot++) {
    if (Atomics.load(agent.words, sem + RW_READERS + slot) !== 0)
      return agent.ownerAt(slot) || ownerIdOf(slot, 0);
  }
  return 0;
}

function claimWriter(agent: Agent, sem: number): boolean {
  return mayTake(agent, sem) && Atomics.compareExchange(agent.words, sem + RW_WRITER, 0, agent.ownerId) === 0;
}

function dropWriter(agent: Agent, sem: number): void {
  Atomics.store(agent.words, sem + RW_WRITER, 0);
  wakeQueue(agent.words, sem + RW_QUEUE);
}

/** Takes the lock where nobody has it, unless fast paths are off. */
export function tryLockWrite(agent: Agent, sem: number, rank: LockRank): boolean {
  if (!agent.fastPaths || !claimFree(agent, sem)) return false;
  if (agent.debug) lockdepAcquire(agent, rank);
  return true;
}

function claimFree(agent: Agent, sem: number): boolean {
  if (!claimWriter(agent, sem)) return false;
  if (someReader(agent, sem) === 0) {
    clearHandoff(agent, sem);
    return true;
  }
  dropWriter(agent, sem);
  return false;
}

export function* lockWriteOp(agent: Agent, sem: number, rank: LockRank, what: string): Op<void> {
  if (agent.debug) lockdepCheck(agent, rank);
  if (tryLockWrite(agent, sem, rank)) return;
  if (!agent.fastPaths) yield { kind: "point", what };
  try {
    yield* waitOp(
      sem + RW_QUEUE,
      patient(agent, sem, () => claimWriter(agent, sem)),
      what,
      () => holdsUp(agent, sem),
    );
  } catch (error) {
    clearHandoff(agent, sem);
    throw error;
  }
  clearHandoff(agent, sem);
  try {
    yield* waitOp(
      sem + RW_QUEUE,
      () => someReader(agent, sem) === 0,
      what,
      () => someReader(agent, sem),
    );
  } catch (error) {
    dropWriter(agent, sem);
    throw error;
  }
  if (agent.debug) lockdepAcquire(agent, rank);
}

export function unlockWrite(agent: Agent, sem: number, rank: LockRank): void {
  if (agent.debug) lockdepRelease(agent, rank);
  dropWriter(agent, sem);
}

/** True while some agent holds it for writing, or waits for readers to go. */
export function isWriteLocked(agent: Agent, sem: number): boolean {
  return Atomics.load(agent.words, sem + RW_WRITER) !== 0;
}

/** Gives a dead agent's shares back; true if it held the lock for writing. */
export function reapRwSem(agent: Agent, sem: number, slot: number, ownerId: number): boolean {
  const w = agent.words;
  Atomics.store(w, sem + RW_READERS + slot, 0);
  Atomics.compareExchange(w, sem + RW_HANDOFF, ownerId, 0);
  wakeQueue(w, sem + RW_QUEUE);
  return Atomics.load(w, sem + RW_WRITER) === ownerId;
}
