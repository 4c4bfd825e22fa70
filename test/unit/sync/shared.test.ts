/** Locks as users see them: Mutex and RwSem over words from allocShared(). */
import { describe, expect, test } from "vitest";
import type { Agent, Op } from "../../../src/sched/index.ts";
import { lockdepMap, Mutex, MUTEX_WORDS, RwSem } from "../../../src/sync/index.ts";
import { MX_LOCKDEP } from "../../../src/sync/mutex.ts";
import { RW_LOCKDEP } from "../../../src/sync/rwsem.ts";
import { allocWords } from "../../../src/memory/index.ts";
import { attachTo, newArena, type TestArena, words } from "../../lib/arena.ts";

interface Rig {
  readonly arena: TestArena;
  readonly agents: readonly [Agent, Agent];
  readonly at: number;
}

function rig(bytes: number, debug = true): Rig {
  const arena = newArena();
  const agents = [attachTo(arena), attachTo(arena)] as const;
  for (const agent of agents)
    Object.assign(agent, { debug, allocMessage: (count: number) => allocWords(agent, arena.heap, count) });
  return { arena, agents, at: words(arena, agents[0], bytes / 4) };
}

const over = ({ arena, at }: Rig, bytes: number): Int32Array =>
  new Int32Array(arena.buffer, at * 4, bytes / 4);

/** Runs an operation that has nothing to wait for. */
function atOnce(op: Op<void>): void {
  expect(op.next().done).toBe(true);
}

describe("words", () => {
  test("that are too few, or not the memory's, are EINVAL", () => {
    const r = rig(Mutex.BYTES);
    const [agent] = r.agents;
    expect(() => new Mutex({ agent }, over(r, Mutex.BYTES))).not.toThrow();
    expect(() => new Mutex({ agent }, over(r, Mutex.BYTES - 4))).toThrow(
      `EINVAL lock: needs ${MUTEX_WORDS * 4} bytes from memory.allocShared()`,
    );
    expect(() => new Mutex({ agent }, new Int32Array(100))).toThrow(/EINVAL/);
    expect(() => new RwSem({ agent }, new Int32Array(100))).toThrow(/EINVAL/);
  });

  test("of two objects over the same are one lock", () => {
    const r = rig(Mutex.BYTES);
    const [one, two] = r.agents.map((agent) => new Mutex({ agent }, over(r, Mutex.BYTES))) as [Mutex, Mutex];
    expect(one.tryLock()).toBe(true);
    expect(two.tryLock()).toBe(false);
    one.unlock();
    expect(two.tryLock()).toBe(true);
  });
});

test("a mutex has a blocking, a trying and a waiting form", async () => {
  const r = rig(Mutex.BYTES);
  const [one, two] = r.agents.map((agent) => new Mutex({ agent }, over(r, Mutex.BYTES))) as [Mutex, Mutex];
  one.sync.lock();
  expect(() => two.try.lock()).toThrow(/EAGAIN/);
  const waiting = two.lock();
  one.unlock();
  await waiting;
  two.unlock();
  two.try.lock();
  expect(one.tryLock()).toBe(false);
  expect(() => one.unlock()).toThrow(/EPERM/);
});

test("a semaphore lets readers share, and a writer be alone", () => {
  const r = rig(RwSem.bytes(8));
  const [one, two] = r.agents.map((agent) => new RwSem({ agent }, over(r, RwSem.bytes(8)))) as [RwSem, RwSem];
  atOnce(one.lockReadOp());
  expect(two.tryLockRead()).toBe(true);
  one.unlockRead();
  two.unlockRead();
  atOnce(one.lockWriteOp());
  expect(two.tryLockRead()).toBe(false);
  one.unlockWrite();
  expect(two.tryLockRead()).toBe(true);
});

describe("what lockdep is told", () => {
  type Take = (r: Rig, agent: Agent) => () => void;
  const ways: readonly [name: string, word: number, bytes: number, take: Take][] = [
    [
      "tryLock()",
      MX_LOCKDEP,
      Mutex.BYTES,
      (r, agent) => {
        const mutex = new Mutex({ agent }, over(r, Mutex.BYTES));
        expect(mutex.tryLock()).toBe(true);
        return () => mutex.unlock();
      },
    ],
    [
      "lockOp()",
      MX_LOCKDEP,
      Mutex.BYTES,
      (r, agent) => {
        const mutex = new Mutex({ agent }, over(r, Mutex.BYTES));
        atOnce(mutex.lockOp());
        return () => mutex.unlock();
      },
    ],
    [
      "tryLockRead()",
      RW_LOCKDEP,
      RwSem.bytes(8),
      (r, agent) => {
        const sem = new RwSem({ agent }, over(r, RwSem.bytes(8)));
        expect(sem.tryLockRead()).toBe(true);
        return () => sem.unlockRead();
      },
    ],
    [
      "lockReadOp()",
      RW_LOCKDEP,
      RwSem.bytes(8),
      (r, agent) => {
        const sem = new RwSem({ agent }, over(r, RwSem.bytes(8)));
        atOnce(sem.lockReadOp());
        return () => sem.unlockRead();
      },
    ],
    [
      "lockWriteOp()",
      RW_LOCKDEP,
      RwSem.bytes(8),
      (r, agent) => {
        const sem = new RwSem({ agent }, over(r, RwSem.bytes(8)));
        atOnce(sem.lockWriteOp());
        return () => sem.unlockWrite();
      },
    ],
  ];

  /** True if a lock is known to be held where something is asked that may wait for callbacks. */
  const known = (r: Rig, agent: Agent, word: number): boolean => {
    lockdepMap(agent, "a test");
    return Atomics.load(r.arena.words, r.at + word) !== 0;
  };

  test.each(ways)("%s, in debug mode", (_, word, bytes, take) => {
    const r = rig(bytes);
    const [agent, other] = r.agents;
    const give = take(r, agent);
    expect(known(r, other, word)).toBe(false);
    give();
    expect(known(r, agent, word)).toBe(false);
    take(r, agent);
    expect(known(r, agent, word)).toBe(true);
  });

  test.each(ways)("%s tells it nothing outside debug mode", (_, word, bytes, take) => {
    const r = rig(bytes, false);
    const [agent] = r.agents;
    take(r, agent);
    expect(known(r, agent, word)).toBe(false);
  });

  test("a try that has taken nothing tells nothing", () => {
    const r = rig(Mutex.BYTES);
    const [agent, other] = r.agents;
    new Mutex({ agent }, over(r, Mutex.BYTES)).tryLock();
    expect(new Mutex({ agent: other }, over(r, Mutex.BYTES)).tryLock()).toBe(false);
    expect(known(r, other, MX_LOCKDEP)).toBe(false);
    const s = rig(RwSem.bytes(8));
    atOnce(new RwSem({ agent: s.agents[0] }, over(s, RwSem.bytes(8))).lockWriteOp());
    expect(new RwSem({ agent: s.agents[1] }, over(s, RwSem.bytes(8))).tryLockRead()).toBe(false);
    expect(known(s, s.agents[1], RW_LOCKDEP)).toBe(false);
  });
});
