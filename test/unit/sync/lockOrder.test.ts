import { describe, expect, test } from "vitest";
import {
  type Agent,
  attachAgent,
  type Op,
  runAsync,
  runBlocking,
  waitOp,
  wakeQueue,
} from "../../../src/sched/index.ts";
import { createArena, heapOf } from "../../../src/memory/index.ts";
import {
  assertNoLocks,
  LockRank,
  lockdepAcquire,
  lockdepRelease,
  lockReadOp,
  lockWriteOp,
  rwSemWords,
  unlockRead,
  unlockWrite,
} from "../../../src/sync/index.ts";
import { QUEUE_WORDS } from "../../../src/sched/layout.ts";
import { attachTo, newArena, words } from "../../lib/arena.ts";

/** Runs plain code as a task of an agent: lock order is kept by task. */
const asTask = (agent: Agent, body: () => void): void =>
  runBlocking(
    agent,
    // eslint-disable-next-line require-yield
    (function* (): Op<void> {
      body();
    })(),
  );

describe("lock order in debug mode", () => {
  test("down the order is fine, in any steps; a lock given back may be taken again", () => {
    const agent = attachTo(newArena());
    const ranks = Object.values(LockRank);
    asTask(agent, () => {
      for (const rank of ranks) lockdepAcquire(agent, rank);
      for (const rank of ranks.toReversed()) lockdepRelease(agent, rank);
      lockdepAcquire(agent, LockRank.mmapLock);
      lockdepAcquire(agent, LockRank.heap);
      lockdepRelease(agent, LockRank.mmapLock);
      lockdepRelease(agent, LockRank.heap);
    });
    expect(ranks).toEqual(ranks.toSorted((a, b) => a - b));
  });

  test("up the order panics, naming both locks, whatever lies between", () => {
    const agent = attachTo(newArena());
    const ranks = Object.entries(LockRank);
    for (const [high, [lowName, lowRank]] of ranks.entries()) {
      for (const [name, rank] of ranks.slice(high + 1)) {
        expect(() =>
          asTask(agent, () => {
            lockdepAcquire(agent, rank);
            lockdepAcquire(agent, lowRank);
          }),
        ).toThrow(new RegExp(`lock order: ${lowName} taken while ${name} held by agent 0`));
      }
    }
  });

  test("locks of one class do not nest, but for folio locks", () => {
    const agent = attachTo(newArena());
    for (const [name, rank] of Object.entries(LockRank)) {
      const twice = (): void =>
        asTask(agent, () => {
          lockdepAcquire(agent, rank);
          lockdepAcquire(agent, rank);
        });
      if (rank === LockRank.folioLock) twice();
      else expect(twice, name).toThrow(/lock order/);
    }
  });

  test("giving back what is not held, and waiting for the host with a lock, panic", () => {
    const agent = attachTo(newArena());
    expect(() => asTask(agent, () => lockdepRelease(agent, LockRank.heap))).toThrow(
      /heap given back by agent 0, which does not hold it/,
    );
    asTask(agent, () => assertNoLocks(agent, "a read"));
    expect(() =>
      asTask(agent, () => {
        lockdepAcquire(agent, LockRank.mmapLock);
        assertNoLocks(agent, "a read");
      }),
    ).toThrow(/a read while mmapLock held/);
  });

  test("tasks of one agent have locks of their own", async () => {
    const arena = newArena();
    const agent = attachTo(arena);
    const queue = words(arena, agent, QUEUE_WORDS);
    let ready = false;
    const holder = runAsync(
      agent,
      (function* (): Op<void> {
        lockdepAcquire(agent, LockRank.heap);
        yield* waitOp(queue, () => ready, "a test");
        lockdepRelease(agent, LockRank.heap);
      })(),
    );
    asTask(agent, () => {
      lockdepAcquire(agent, LockRank.mmapLock);
      lockdepRelease(agent, LockRank.mmapLock);
    });
    ready = true;
    wakeQueue(arena.words, queue);
    await holder;
    expect(agent.tasks.size).toBe(0);
  });

  test("a lock that was waited for belongs to the task that waited, whoever found it free", async () => {
    const arena = newArena();
    const [agent, other] = [attachTo(arena), attachTo(arena)];
    const sem = words(arena, agent, rwSemWords(8));
    const rank = LockRank.mmapLock;
    runBlocking(other, lockWriteOp(other, sem, rank, "sem"));
    const reader = runAsync(
      agent,
      (function* (): Op<number> {
        yield* lockReadOp(agent, sem, rank, "sem");
        const held = agent.current!.held.length;
        unlockRead(agent, sem, rank);
        return held;
      })(),
    );
    unlockWrite(other, sem, rank);
    expect(await reader).toBe(1);
  });
});

test("outside debug mode nothing is kept and nothing panics", () => {
  const { memories } = createArena({
    budgetBytes: 32 * 4096,
    pageSize: 4096,
    arenaBytes: 2 ** 20,
    faultAroundBytes: 4096,
    folioBytes: 65536,
    readAheadBytes: 65536,
    maxAgents: 2,
    debug: false,
  });
  const agent = attachAgent(memories[0]!.buffer, { mayBlock: true });
  expect(heapOf(agent.words)).toBeGreaterThan(0);
  asTask(agent, () => {
    lockdepAcquire(agent, LockRank.heap);
    lockdepAcquire(agent, LockRank.mmapLock);
    expect(agent.current!.held).toEqual([]);
  });
});
