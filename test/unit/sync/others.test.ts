import { describe, expect, test } from "vitest";
import { InvariantError } from "../../../src/errors.ts";
import {
  type Agent,
  arm,
  CheckerDriver,
  type Op,
  reap,
  runAsync,
  runBlocking,
  runTry,
  seededChooser,
} from "../../../src/sched/index.ts";
import {
  beginWrite,
  endWrite,
  lockMutexOp,
  MUTEX_WORDS,
  readChanged,
  readSequence,
  reapSrcu,
  srcuReadLock,
  srcuReadUnlock,
  srcuWords,
  synchronizeSrcuOp,
  tryLockMutex,
  unlockMutex,
} from "../../../src/sync/index.ts";
import { SRCU_QUEUE } from "../../../src/sync/srcu.ts";
import { attachTo, newArena, point, simulatedAgent, words } from "../../lib/arena.ts";

const MAX_AGENTS = 8;
const SEEDS = 300;
const shared = newArena(MAX_AGENTS);

/** Runs operations of simulated agents in the schedule of a seed. */
function explore(
  seed: number,
  count: number,
  spawn: (agents: Agent[], checker: CheckerDriver) => void,
): string {
  const agents = Array.from({ length: count }, () => simulatedAgent(shared));
  const checker = new CheckerDriver(seededChooser(seed));
  try {
    spawn(agents, checker);
    checker.run(5000);
  } finally {
    for (const agent of agents) agent.detach();
  }
  return checker.schedule.join(" ");
}

const failures = (run: (seed: number) => void): string[] =>
  Array.from({ length: SEEDS }, (_, seed) => {
    try {
      run(seed);
      return "";
    } catch (error) {
      return (error as Error).message;
    }
  }).filter((message) => message !== "");

describe("mutexes", () => {
  test("one agent has it; only it gives it back", () => {
    const arena = newArena();
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const mutex = words(arena, a, MUTEX_WORDS);
    expect(tryLockMutex(a, mutex)).toBe(true);
    expect(tryLockMutex(b, mutex)).toBe(false);
    expect(tryLockMutex(a, mutex)).toBe(false);
    expect(() => unlockMutex(b, mutex)).toThrow(/EPERM mutex: only the agent that holds a mutex/);
    unlockMutex(a, mutex);
    expect(() => unlockMutex(a, mutex)).toThrow(/EPERM/);
    expect(tryLockMutex(b, mutex)).toBe(true);
  });

  test("who gave it back and left while another looks at it did not die with it", () => {
    const arena = newArena();
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const mutex = words(arena, a, MUTEX_WORDS);
    expect(tryLockMutex(b, mutex)).toBe(true);
    // Leaves between being seen as the owner, for which the other's id is read, and being looked for.
    const { ownerId } = a;
    let reads = 0;
    const looking = Object.create(a, {
      ownerId: {
        get: () => {
          if (++reads === 2) {
            unlockMutex(b, mutex);
            b.detach();
          }
          return ownerId;
        },
      },
      words: { value: a.words },
    }) as Agent;
    expect(tryLockMutex(looking, mutex)).toBe(false);
    expect(reads).toBeGreaterThan(1);
    expect(tryLockMutex(a, mutex)).toBe(true);
  });

  test("a waiter gets it when it is given back, EAGAIN if it may not wait, EDEADLK if it has it itself", async () => {
    const arena = newArena();
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const mutex = words(arena, a, MUTEX_WORDS);
    runBlocking(a, lockMutexOp(a, mutex, "mutex"));
    expect(() => runTry(b, lockMutexOp(b, mutex, "mutex"))).toThrow(/EAGAIN/);
    expect(() => runBlocking(a, lockMutexOp(a, mutex, "mutex"))).toThrow(/EDEADLK/);
    const waiting = runAsync(b, lockMutexOp(b, mutex, "mutex"));
    unlockMutex(a, mutex);
    await waiting;
    unlockMutex(b, mutex);
    expect(tryLockMutex(a, mutex)).toBe(true);
  });

  test("one whose holder died is EOWNERDEAD for who waits and for who comes, and poisons the memory", async () => {
    const arena = newArena();
    const [a, b, c] = [attachTo(arena), attachTo(arena), attachTo(arena)];
    const mutex = words(arena, a, MUTEX_WORDS);
    tryLockMutex(b, mutex);
    const waiting = runAsync(a, lockMutexOp(a, mutex, "mutex"));
    reap(c, b.slot);
    await expect(waiting).rejects.toThrow(/EOWNERDEAD mutex: agent 1 died while it held this mutex/);
    expect(() => tryLockMutex(c, mutex)).toThrow(/EOWNERDEAD/);
    expect(c.poisonedBy).toBe(b.ownerId);
  });

  test("no schedule has two in it, and leaving it out is caught", () => {
    const run = (seed: number, locked: boolean): string =>
      explore(seed, 3, (agents, checker) => {
        const mutex = words(shared, agents[0]!, MUTEX_WORDS);
        let inside = 0;
        for (const [k, agent] of agents.entries()) {
          checker.spawn(
            agent,
            `m${k}`,
            (function* (): Op<void> {
              for (let r = 0; r < 3; r++) {
                if (locked) yield* lockMutexOp(agent, mutex, "mutex");
                if (++inside > 1) throw new InvariantError("two inside");
                yield* point();
                inside--;
                if (locked) unlockMutex(agent, mutex);
                yield* point();
              }
            })(),
          );
        }
      });
    const schedules = new Set(Array.from({ length: SEEDS }, (_, seed) => run(seed, true)));
    expect(schedules.size).toBeGreaterThan(SEEDS / 2);
    expect(failures((seed) => void run(seed, false))).toContain("two inside");
  });

  test("two mutexes taken in both orders deadlock in some schedule, and the checker names both waits", () => {
    const run = (seed: number, sameOrder: boolean): string =>
      explore(seed, 2, (agents, checker) => {
        const mutexes = [0, 1].map(() => words(shared, agents[0]!, MUTEX_WORDS));
        for (const [k, agent] of agents.entries()) {
          const order = k === 1 && !sameOrder ? mutexes.toReversed() : mutexes;
          checker.spawn(
            agent,
            `t${k}`,
            (function* (): Op<void> {
              for (const mutex of order) {
                yield* lockMutexOp(agent, mutex, `mutex ${mutexes.indexOf(mutex)}`);
                yield* point();
              }
              for (const mutex of order) unlockMutex(agent, mutex);
            })(),
          );
        }
      });
    expect(failures((seed) => void run(seed, true))).toEqual([]);
    const found = failures((seed) => void run(seed, false));
    expect(found.length).toBeGreaterThan(0);
    expect(found.length).toBeLessThan(SEEDS);
    expect(found[0]).toMatch(/deadlock: t0 waits for mutex 1; t1 waits for mutex 0/);
  });
});

describe("sequence counts", () => {
  test("what was read while a writer was inside, or before one came, counts as torn", () => {
    const arena = newArena();
    const agent = attachTo(arena);
    const seq = words(arena, agent, 1);
    const before = readSequence(agent, seq);
    expect(readChanged(agent, seq, before)).toBe(false);
    beginWrite(agent, seq);
    const during = readSequence(agent, seq);
    expect([before, during].map((seen) => readChanged(agent, seq, seen))).toEqual([true, true]);
    endWrite(agent, seq);
    expect([before, during].map((seen) => readChanged(agent, seq, seen))).toEqual([true, true]);
    expect(readChanged(agent, seq, readSequence(agent, seq))).toBe(false);
  });

  test("no schedule accepts a torn pair, and not looking again is caught", () => {
    const run = (seed: number, looks: boolean): string =>
      explore(seed, 2, ([writer, reader], checker) => {
        const seq = words(shared, writer!, 1);
        const pair = [0, 0];
        checker.spawn(
          writer!,
          "w",
          (function* (): Op<void> {
            for (let k = 1; k <= 4; k++) {
              beginWrite(writer!, seq);
              pair[0] = k;
              yield* point();
              pair[1] = k;
              endWrite(writer!, seq);
              yield* point();
            }
          })(),
        );
        checker.spawn(
          reader!,
          "r",
          (function* (): Op<void> {
            for (let k = 0; k < 4; k++) {
              for (;;) {
                const seen = readSequence(reader!, seq);
                const first = pair[0];
                yield* point();
                const second = pair[1];
                if (looks && readChanged(reader!, seq, seen)) continue;
                if (first !== second) throw new InvariantError("torn");
                break;
              }
              yield* point();
            }
          })(),
        );
      });
    expect(failures((seed) => void run(seed, true))).toEqual([]);
    expect(failures((seed) => void run(seed, false)).length).toBeGreaterThan(SEEDS / 4);
  });
});

describe("grace periods", () => {
  test("synchronize waits for readers that were there before, not for those that came after", async () => {
    const arena = newArena(MAX_AGENTS);
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const domain = words(arena, a, srcuWords(MAX_AGENTS));
    await runAsync(a, synchronizeSrcuOp(a, domain));
    const before = srcuReadLock(b, domain);
    let over = false;
    const grace = runAsync(a, synchronizeSrcuOp(a, domain)).then(() => (over = true));
    const after = srcuReadLock(b, domain);
    await new Promise((resolve) => setImmediate(resolve));
    expect(over).toBe(false);
    srcuReadUnlock(b, domain, before);
    await grace;
    expect(over).toBe(true);
    srcuReadUnlock(b, domain, after);
  });

  test("a reader inside a reader is waited for", async () => {
    const arena = newArena(MAX_AGENTS);
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const domain = words(arena, a, srcuWords(MAX_AGENTS));
    const outer = srcuReadLock(b, domain);
    const grace = runAsync(a, synchronizeSrcuOp(a, domain));
    const inner = srcuReadLock(b, domain);
    srcuReadUnlock(b, domain, outer);
    await grace;
    srcuReadUnlock(b, domain, inner);
    expect(() => runTry(a, synchronizeSrcuOp(a, domain))).not.toThrow();
  });

  test("with another synchronizer's flip between its own waits it still waits for every earlier reader", () => {
    const arena = newArena(MAX_AGENTS);
    const [a, b, c] = [attachTo(arena), attachTo(arena), attachTo(arena)];
    const domain = words(arena, a, srcuWords(MAX_AGENTS));
    for (const parity of [0, 1]) {
      while ((Atomics.load(arena.words, domain) & 1) !== parity) Atomics.add(arena.words, domain, 1);
      const old = srcuReadLock(c, domain);
      Atomics.add(arena.words, domain, 1); // a synchronizer that waits for `old`
      const young = srcuReadLock(b, domain);
      const op = synchronizeSrcuOp(a, domain);
      let step = op.next();
      expect(step.done).toBe(false);
      Atomics.add(arena.words, domain, 1); // another flip
      srcuReadUnlock(b, domain, young);
      for (let k = 0; k < 3; k++) {
        if (!step.done && step.value.kind === "wait" && step.value.ready()) step = op.next();
      }
      expect(step.done).toBe(false); // `old` is still inside
      srcuReadUnlock(c, domain, old);
      for (let k = 0; k < 3; k++) {
        if (!step.done && step.value.kind === "wait" && step.value.ready()) step = op.next();
      }
      expect(step.done).toBe(true);
    }
  });

  test("waiting inside a read section of one's own is EDEADLK where it would block", () => {
    const arena = newArena(MAX_AGENTS);
    const a = attachTo(arena);
    const domain = words(arena, a, srcuWords(MAX_AGENTS));
    srcuReadLock(a, domain);
    expect(() => runBlocking(a, synchronizeSrcuOp(a, domain))).toThrow(/EDEADLK/);
  });

  test("a dead reader is given back by its reaper", async () => {
    const arena = newArena(MAX_AGENTS);
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const domain = words(arena, a, srcuWords(MAX_AGENTS));
    srcuReadLock(b, domain);
    const grace = runAsync(a, synchronizeSrcuOp(a, domain));
    a.reapers.push((slot) => {
      reapSrcu(a, domain, slot);
      return undefined;
    });
    reap(a, b.slot);
    await grace;
    expect(a.tasks.size).toBe(0);
  });

  test("a reaper rings who waits", () => {
    const arena = newArena(MAX_AGENTS);
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const domain = words(arena, a, srcuWords(MAX_AGENTS));
    const indices = [srcuReadLock(b, domain)];
    Atomics.add(arena.words, domain, 1);
    indices.push(srcuReadLock(b, domain));
    expect(new Set(indices).size).toBe(2);
    arm(arena.words, domain + SRCU_QUEUE, a.slot);
    const bell = a.bell();
    reapSrcu(a, domain, b.slot);
    expect(a.bell()).not.toBe(bell);
    expect(() => runTry(a, synchronizeSrcuOp(a, domain))).not.toThrow();
  });

  test("no schedule frees what a reader still uses, with two synchronizers; not waiting is caught", () => {
    const run = (seed: number, waits: boolean): string =>
      explore(seed, 4, (agents, checker) => {
        const domain = words(shared, agents[0]!, srcuWords(MAX_AGENTS));
        const freed = new Set<number>();
        let current = 0;
        for (const [k, agent] of agents.entries()) {
          const updates = k < 2;
          checker.spawn(
            agent,
            `${updates ? "u" : "r"}${k}`,
            (function* (): Op<void> {
              for (let r = 0; r < 3; r++) {
                if (updates) {
                  const old = current;
                  current = 10 * (r + 1) + k;
                  yield* point();
                  if (waits) yield* synchronizeSrcuOp(agent, domain);
                  freed.add(old);
                } else {
                  const index = srcuReadLock(agent, domain);
                  const seen = current;
                  yield* point();
                  yield* point();
                  if (freed.has(seen)) throw new InvariantError("freed under a reader");
                  srcuReadUnlock(agent, domain, index);
                }
                yield* point();
              }
            })(),
          );
        }
      });
    expect(failures((seed) => void run(seed, true))).toEqual([]);
    expect(failures((seed) => void run(seed, false))).toContain("freed under a reader");
  });
});
