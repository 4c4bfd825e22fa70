/**
 * Where the real notifier core of a simulated world lives: one small arena for all runs, put back to its beginning
 * before each, because a run that is abandoned leaves ranges open and locks held.
 */
import { createArena, heapOf, type MemoryHandle } from "../memory/index.ts";
import { PhysicalMemory } from "../mm/index.ts";
import { type Agent, attachAgent } from "../sched/index.ts";

const PAGE_BYTES = 4096;
/** For scenarios over a real memory; the notifier core needs none. */
const FRAMES = 32;
const ARENA_BYTES = 512 * 1024;
export const MOST_THREADS = 4;

export class WorldArena {
  readonly heap: number;
  readonly maxAgents: number = MOST_THREADS;
  /** For a real PhysicalMemory over it; without compiled kernels, which would be made anew for each run. */
  readonly handle: MemoryHandle;
  readonly #buffer: ArrayBufferLike;
  readonly #words: Int32Array;
  readonly #first: Int32Array;
  #memories = new Map<number, PhysicalMemory>();

  constructor() {
    const handle = createArena({
      budgetBytes: FRAMES * PAGE_BYTES,
      pageSize: PAGE_BYTES,
      arenaBytes: ARENA_BYTES,
      faultAroundBytes: PAGE_BYTES,
      folioBytes: 65536,
      readAheadBytes: 65536,
      maxAgents: MOST_THREADS,
      debug: false,
    });
    this.handle = { ...handle, module: undefined };
    this.#buffer = handle.memories[0]!.buffer;
    this.#words = new Int32Array(this.#buffer, 0, ARENA_BYTES / 4);
    this.#first = this.#words.slice();
    this.heap = heapOf(this.#words);
  }

  /** As if it were new, but for what is in free frames. Agents of before must not be used any more. */
  reset(): void {
    this.#words.set(this.#first);
    this.#memories = new Map();
  }

  /** The real memory, as that agent has it. */
  memory(agent: Agent): PhysicalMemory {
    let memory = this.#memories.get(agent.slot);
    if (!memory) {
      memory = new PhysicalMemory(agent, this.handle);
      memory.onError = agent.onError;
      this.#memories.set(agent.slot, memory);
    }
    return memory;
  }

  /** Agents of a real memory end their turns in microtasks, which must not come into the next run. */
  get hasTurns(): boolean {
    return this.#memories.size > 0;
  }

  attach(): Agent {
    return attachAgent(this.#buffer, { mayBlock: false, simulated: true });
  }
}
