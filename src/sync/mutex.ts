/**
 * Mutexes that may be held across waits, in words of shared memory. Linux: struct mutex.
 * For callbacks and drivers of secondary MMUs; the owner's id in the word makes a dead holder recognisable.
 */
import { MmError } from "../errors.ts";
import {
  type Agent,
  ownerAlive,
  type Op,
  QUEUE_WORDS,
  slotOfOwner,
  waitOp,
  wakeQueue,
} from "../sched/index.ts";

const MX_OWNER = 0; // A  owner id, 0 = free
const MX_QUEUE = 1; // A  wait queue
/** For lockdep.ts. */
export const MX_LOCKDEP: number = MX_QUEUE + QUEUE_WORDS;
/** Words of a mutex. */
export const MUTEX_WORDS: number = MX_LOCKDEP + 1;

export function tryLockMutex(agent: Agent, mutex: number): boolean {
  const w = agent.words;
  const holder = Atomics.compareExchange(w, mutex + MX_OWNER, 0, agent.ownerId);
  if (holder === 0) return true;
  const gone = holder !== agent.ownerId && !ownerAlive(w, holder);
  // Looked at again last: it may have given the mutex back and left since.
  if (gone && Atomics.load(w, mutex + MX_OWNER) === holder) {
    agent.poison(holder);
    throw new MmError("EOWNERDEAD", "mutex", `agent ${slotOfOwner(holder)} died while it held this mutex`);
  }
  return false;
}

export function* lockMutexOp(agent: Agent, mutex: number, what: string): Op<void> {
  yield* waitOp(
    mutex + MX_QUEUE,
    () => tryLockMutex(agent, mutex),
    what,
    () => Atomics.load(agent.words, mutex + MX_OWNER),
  );
}

export function unlockMutex(agent: Agent, mutex: number): void {
  if (Atomics.compareExchange(agent.words, mutex + MX_OWNER, agent.ownerId, 0) !== agent.ownerId) {
    throw new MmError("EPERM", "mutex", "only the agent that holds a mutex gives it back");
  }
  wakeQueue(agent.words, mutex + MX_QUEUE);
}
