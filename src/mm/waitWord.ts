/** Waiting for a word of shared memory while the agent counts as idle. Linux: schedule(). */
import { MmError } from "../errors.ts";
import { loopOf, runReadyTasks } from "../sched/index.ts";
import type { Mm } from "./mm.ts";

export type WaitResult = "ok" | "not-equal" | "timed-out";

/** How long a wait sleeps at a time on words of others, who cannot ring; and on words of the arena. */
const FOREIGN_SLICE_MS = 5;
const WAIT_SLICE_MS = 100;
/** Frames zeroed when an agent goes to wait: the next faults need not. */
const PREZERO_PER_WAIT = 64;

/** Waits until `words[index]` is no longer `value` and somebody notifies. Preconditions: shared words. */
export async function waitWord(
  mm: Mm,
  words: Int32Array,
  index: number,
  value: number,
  timeoutMs: number,
): Promise<WaitResult> {
  mm.agent.leave();
  mm.frames.prezero(PREZERO_PER_WAIT);
  const loop = loopOf(mm.agent);
  const result = Atomics.waitAsync(words, index, value, timeoutMs);
  if (!result.async) return result.value;
  loop.retain();
  try {
    return await result.value;
  } finally {
    loop.release();
  }
}

/** As waitWord(), blocking. Errors: EAGAIN where this agent may not block. */
export function waitWordSync(
  mm: Mm,
  words: Int32Array,
  index: number,
  value: number,
  timeoutMs: number,
): WaitResult {
  const { agent } = mm;
  agent.checkNotInCallback("wait");
  if (!agent.mayBlock) {
    if (Atomics.load(words, index) !== value) return "not-equal";
    throw new MmError("EAGAIN", "wait", "this agent may not block; use the Promise form");
  }
  const inArena = words.buffer === agent.words.buffer ? (words.byteOffset >> 2) + index : 0;
  const slice = inArena === 0 ? FOREIGN_SLICE_MS : WAIT_SLICE_MS;
  const until = performance.now() + timeoutMs;
  for (;;) {
    agent.checkUsable("wait");
    if (Atomics.load(words, index) !== value) return "not-equal";
    const left = until - performance.now();
    if (left <= 0) return "timed-out";
    mm.frames.prezero(PREZERO_PER_WAIT);
    const outcome = agent.parkOn(words, index, value, inArena, Math.min(left, slice));
    runReadyTasks(agent);
    // A ring looks like a notify; the word says which it was, as far as it changed.
    if (outcome === "ok" && Atomics.load(words, index) !== value) return "ok";
  }
}
