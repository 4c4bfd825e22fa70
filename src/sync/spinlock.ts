/**
 * Spinlocks: one word, 0 or the owner's id. For sections of a few hundred instructions that contain no effect.
 * Linux: spinlock_t. The owner in the word itself is what makes a dead holder recognisable.
 */
import { MmError, panic } from "../errors.ts";
import { Agent, checkLiveness, type LockOwner, ownerAlive, slotOfOwner } from "../sched/index.ts";

/** More agents than cores: after this many rounds let the holder have the core. */
const SPINS_BEFORE_NAP = 200;
const NAP_MS = 0.05;
const NAPS_BEFORE_LOOK = 200;

let canNap = true;

function nap(agent: LockOwner, word: number, holder: number): void {
  if (!canNap) return;
  try {
    Atomics.wait(agent.words, word, holder, NAP_MS);
  } catch {
    canNap = false; // the main thread of a browser may not sleep
  }
}

function ownerDead(holder: number): MmError {
  return new MmError(
    "EOWNERDEAD",
    "spinlock",
    `agent ${slotOfOwner(holder)} died while it held a lock; the memory can no longer be trusted, create it anew`,
  );
}

/** Takes the lock at `word`. Errors: EOWNERDEAD if its holder died, or if it is held for long in a poisoned memory. Preconditions: not held by this agent. */
export function lockSpin(agent: LockOwner, word: number): void {
  const w = agent.words;
  for (let round = 1; ; round++) {
    const holder = Atomics.compareExchange(w, word, 0, agent.ownerId);
    if (holder === 0) return;
    if (holder === agent.ownerId) {
      // Left behind when an EOWNERDEAD unwound this agent's section.
      if (agent instanceof Agent && agent.poisonedBy !== 0) throw ownerDead(agent.poisonedBy);
      panic(`spinlock at ${word} taken twice by agent ${slotOfOwner(holder)}`);
    }
    if (round % SPINS_BEFORE_NAP !== 0) continue;
    nap(agent, word, holder);
    if (round % (SPINS_BEFORE_NAP * NAPS_BEFORE_LOOK) !== 0) continue;
    if (agent instanceof Agent) checkLiveness(agent, holder);
    const gone = !ownerAlive(w, holder);
    // Looked at again last: it may have given the lock back and left since.
    if (Atomics.load(w, word) !== holder) continue;
    if (gone) {
      if (agent instanceof Agent) agent.poison(holder);
      throw ownerDead(holder);
    }
    if (agent instanceof Agent && agent.poisonedBy !== 0) throw ownerDead(agent.poisonedBy);
  }
}

export function unlockSpin(agent: LockOwner, word: number): void {
  if (Atomics.exchange(agent.words, word, 0) !== agent.ownerId)
    panic(`spinlock at ${word} given back by a stranger`);
}
