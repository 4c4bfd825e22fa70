/**
 * Doorbells and wait queues: how one agent makes another look up. Linux: IPIs and wait_queue_head.
 *
 * A wait is always: arm the own bit in the queue, test the condition again, sleep on the own doorbell with the
 * value read before arming. A waker changes the condition first, then takes all bits and rings each. A wake
 * consumes registrations, so whoever goes back to sleep arms all its unfinished waits again.
 */
import {
  AG_BELL,
  AG_SLEEP,
  AG_SLEEP_WORD,
  AG_STATE,
  AGENT_FREE,
  AGENT_LIVE,
  agentAt,
  agentState,
  generationOf,
  generationOfOwner,
  QUEUE_BITS,
  QUEUE_WORDS,
  SLEEP_AWAKE,
  slotOfOwner,
  stateOf,
} from "./layout.ts";

/** Wakes the single agent of an arena that is not shared, where Atomics.notify reaches nobody. */
const localWakers = new WeakMap<ArrayBufferLike, () => void>();

export function setLocalWaker(words: Int32Array, wake: () => void): void {
  localWakers.set(words.buffer, wake);
}

/** Makes agent `slot` look up: at its next safepoint if it runs, at once if it sleeps. */
export function ring(words: Int32Array, slot: number): void {
  const agent = agentAt(slot);
  // Always counted, also when the agent looks awake: it may be about to sleep on the value read before.
  Atomics.add(words, agent + AG_BELL, 1);
  if (Atomics.load(words, agent + AG_SLEEP) === SLEEP_AWAKE) return;
  // Everybody on the word: the agent may have an old waitAsync there besides its Atomics.wait.
  Atomics.notify(words, agent + AG_BELL);
  const userWord = Atomics.load(words, agent + AG_SLEEP_WORD);
  if (userWord !== 0) Atomics.notify(words, userWord);
  if (words.buffer instanceof ArrayBuffer) localWakers.get(words.buffer)?.();
}

/** Registers agent `slot` in a wait queue. Test the condition again afterwards. */
export function arm(words: Int32Array, queue: number, slot: number): void {
  Atomics.or(words, queue + Math.floor(slot / QUEUE_BITS), 1 << (slot % QUEUE_BITS));
}

/** Rings everybody in a wait queue. The condition has been changed before. */
export function wakeQueue(words: Int32Array, queue: number): void {
  for (let k = 0; k < QUEUE_WORDS; k++) {
    if (Atomics.load(words, queue + k) === 0) continue;
    let bits = Atomics.exchange(words, queue + k, 0);
    while (bits !== 0) {
      const bit = 31 - Math.clz32(bits);
      bits &= ~(1 << bit);
      ring(words, k * QUEUE_BITS + bit);
    }
  }
}

/** True while the agent with this owner id lives: its slot is in use and has not been given to another. */
export function ownerAlive(words: Int32Array, ownerId: number): boolean {
  const state = Atomics.load(words, agentAt(slotOfOwner(ownerId)) + AG_STATE);
  return state === agentState(generationOfOwner(ownerId), AGENT_LIVE);
}

/** True once the agent with this owner id is dead and reaped, or has detached: nothing of it will be answered any more. */
export function ownerGone(words: Int32Array, ownerId: number): boolean {
  const state = Atomics.load(words, agentAt(slotOfOwner(ownerId)) + AG_STATE);
  return stateOf(state) === AGENT_FREE || generationOf(state) !== generationOfOwner(ownerId);
}
