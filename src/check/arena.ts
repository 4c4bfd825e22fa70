/**
 * Where the real notifier core of a simulated world lives: one small arena for all runs, put back to its beginning
 * before each, because a run that is abandoned leaves ranges open and locks held.
 */
import { createArena, heapOf } from "../memory/index.ts";
import { type Agent, attachAgent } from "../sched/index.ts";

const PAGE_BYTES = 4096;
/** The core uses no frames, but an arena has some. */
const FRAMES = 32;
const ARENA_BYTES = 512 * 1024;
export const MOST_THREADS = 4;

export class WorldArena {
  readonly heap: number;
  readonly maxAgents: number = MOST_THREADS;
  readonly #buffer: ArrayBufferLike;
  readonly #words: Int32Array;
  readonly #first: Int32Array;

  constructor() {
    const { memories } = createArena({
      budgetBytes: FRAMES * PAGE_BYTES,
      pageSize: PAGE_BYTES,
      arenaBytes: ARENA_BYTES,
      faultAroundBytes: PAGE_BYTES,
      folioBytes: 65536,
      readAheadBytes: 65536,
      maxAgents: MOST_THREADS,
      debug: false,
    });
    this.#buffer = memories[0]!.buffer;
    this.#words = new Int32Array(this.#buffer, 0, ARENA_BYTES / 4);
    this.#first = this.#words.slice();
    this.heap = heapOf(this.#words);
  }

  /** As if it were new. Agents of before must not be used any more. */
  reset(): void {
    this.#words.set(this.#first);
  }

  attach(): Agent {
    return attachAgent(this.#buffer, { mayBlock: false, simulated: true });
  }
}
