/** Starts second agents in worker threads; what they do is in worker.mjs. */
import { Worker } from "node:worker_threads";

// Words of an agent's control block, which lies outside the memory under test.
export const STOP = 0;
/** Rounds of the agent's loop so far. */
export const ROUNDS = 1;
/** MODE_*, for agents that hold or hear. */
export const MODE = 2;
/** 1 from shortly before the agent parks until it has woken. */
export const PARKING = 3;
/** The mode that an agent which hears has entered. */
export const ENTERED = 4;
/** Invalidations that it has heard of. */
export const HEARD = 5;
// Words of bare round trips, each on cache lines of its own.
export const PING = 64;
export const PONG = 128;
/** As PING, for a listener in the agent's event loop. */
export const LOOP_PING = 192;
const CONTROL_WORDS = 256;

/** Polls, without touching the page. */
export const MODE_POLL = 0;
/** Reads the page, so that its TLB holds it, and polls. */
export const MODE_HOLD = 1;
/** Reads the page, then parks until the mode changes. */
export const MODE_PARK = 2;
/** Blocks in an operation, until the range over `blockedAt` that it finds open is ended. */
export const MODE_OPERATION = 3;
/** Is between turns of its event loop, which echoes messages and LOOP_PING. */
export const MODE_IDLE = 4;
/** Spins on PING and echoes it, without the library. */
export const MODE_ECHO_SPIN = 5;
/** Sleeps on PING and echoes it, without the library. */
export const MODE_ECHO_WAIT = 6;

/**
 * Starts an agent that does `role` with `options`, and waits for its first round. `stop()` ends it.
 *   "read"  reads a word of each page of [address, address + length), again and again, and polls
 *   "hold"  does as MODE says with the page at `address`
 *   "hear"  owns an interval notifier over the pages at `address` and `blockedAt`, and does as MODE says; parks on the
 *           word at byte `parkAt` of the memory's arena
 */
export async function startAgent(memory, space, role, options) {
  const control = new Int32Array(new SharedArrayBuffer(CONTROL_WORDS * 4));
  const worker = new Worker(new URL("./worker.mjs", import.meta.url), {
    workerData: { handle: memory.handle, spaceId: space.id, role, control, ...options },
  });
  memory.adopt(worker);
  let failure;
  worker.on("error", (error) => (failure = error));
  while (Atomics.load(control, ROUNDS) === 0) {
    if (failure) throw failure;
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return {
    control,
    worker,
    async stop() {
      const ended = new Promise((resolve) => worker.once("exit", resolve));
      Atomics.store(control, STOP, 1);
      Atomics.store(control, MODE, MODE_POLL);
      Atomics.notify(control, MODE);
      await ended;
      if (failure) throw failure;
    },
  };
}

/** Spins until the agent has begun and ended a round that started after now. A safepoint: the agent may need ours. */
export function awaitRounds(memory, control) {
  const target = Atomics.load(control, ROUNDS) + 2;
  while (Atomics.load(control, ROUNDS) - target < 0) memory.poll();
}
