/** Arenas for tests of the lower rows: several agents of one memory in one thread, without spaces or files. */
import { allocWords, createArena, heapOf } from "../../src/memory/index.ts";
import { type Agent, attachAgent, type Op, type WaitEffect } from "../../src/sched/index.ts";

const PAGE = 4096;
const FRAMES = 32;
const ARENA_BYTES = 2 ** 20;

export interface TestArena {
  readonly buffer: SharedArrayBuffer;
  readonly words: Int32Array;
  readonly heap: number;
}

/** Always in debug mode: lock order, poisoned records, invariants. */
export function newArena(maxAgents: number = 8, arenaBytes: number = ARENA_BYTES): TestArena {
  const { memories } = createArena({
    budgetBytes: FRAMES * PAGE,
    pageSize: PAGE,
    arenaBytes,
    faultAroundBytes: PAGE,
    folioBytes: 65536,
    readAheadBytes: 65536,
    maxAgents,
    debug: true,
  });
  const buffer = memories[0]!.buffer as unknown as SharedArrayBuffer;
  const words = new Int32Array(buffer);
  return { buffer, words, heap: heapOf(words) };
}

export const attachTo = (arena: TestArena, mayBlock: boolean = true): Agent =>
  attachAgent(arena.buffer, { mayBlock });

/** An agent whose steps a CheckerDriver takes. */
export const simulatedAgent = (arena: TestArena): Agent =>
  attachAgent(arena.buffer, { mayBlock: true, simulated: true });

/** `count` words of zeros in the arena. */
export function words(arena: TestArena, agent: Agent, count: number): number {
  const at = allocWords(agent, arena.heap, count);
  if (at === 0) throw new Error("the test arena is full");
  return at;
}

/** A wait, written out: what the tests of drivers put into operations. */
export const waitFor = (
  ready: () => boolean,
  queue: number = 0,
  what: string = "a test's condition",
  owner?: () => number,
): WaitEffect => ({ kind: "wait", queue, ready, owner, what });

export function* point(what: string = "a point"): Op<void> {
  yield { kind: "point", what };
}
