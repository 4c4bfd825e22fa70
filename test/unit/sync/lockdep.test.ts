/** What debug mode says of subscribers' locks and of callbacks that wait where they must not. */
import { describe, expect, test } from "vitest";
import { isMmError, type MmError } from "../../../src/errors.ts";
import { createLocalArena } from "../../../src/memory/index.ts";
import { createNotifiers, MmuNotifier, type MmuNotifierRange } from "../../../src/notifier/index.ts";
import type { IntervalNotifier } from "../../../src/notifier/intervalNotifier.ts";
import { attachAgent, type Op } from "../../../src/sched/index.ts";
import { Mutex, RwSem } from "../../../src/sync/index.ts";
import { words } from "../../lib/arena.ts";
import { anonymous, makeMemory, PAGE, takeReported } from "../../lib/mm.ts";
import { notifierWorld, type NotifierWorld, obedient, range, type Subscriber } from "../../lib/notifiers.ts";

/** A mutex, as one agent sees it. */
function mutexOf(world: NotifierWorld, at: number, { agent }: Subscriber): Mutex {
  return new Mutex({ agent }, new Int32Array(world.arena.buffer, at * 4, Mutex.BYTES / 4));
}

function newMutex(world: NotifierWorld): number {
  return words(world.arena, world.agents[0]!.agent, Mutex.BYTES / 4);
}

/** An interval whose callback takes the mutex, as the contract wants. */
const locking = (mutex: Mutex) => ({
  invalidate(interval: IntervalNotifier, _: MmuNotifierRange, seq: number): boolean {
    if (!mutex.tryLock()) throw new Error("somebody has it");
    interval.setSeq(seq);
    mutex.unlock();
    return true;
  },
});

const reports = (errors: readonly MmError[]): MmError[] => errors.filter((e) => e.operation === "lockdep");

describe("the map of invalidate_range_start", () => {
  test.each(["readBegin", "remove", "invalidateRangeStart", "unregister"])(
    "a lock that a callback takes and that is held around %s is reported once, with both stacks",
    async (what) => {
      const world = notifierWorld(1);
      const [{ agent, notifiers, errors }] = world.agents as [Subscriber];
      const mutex = mutexOf(world, newMutex(world), { agent } as Subscriber);
      const interval = await notifiers.insert(locking(mutex), 0, 10);
      const other = await notifiers.insert(obedient(), 100, 10);
      const notifier = new MmuNotifier({});
      await notifiers.register(notifier);
      await notifiers.invalidate(range(0, 1), () => {});
      expect(reports(errors)).toEqual([]);
      function takesItAround(): void {
        mutex.sync.lock();
        if (what === "readBegin") interval.sync.readBegin();
        else if (what === "remove") other.sync.remove();
        else if (what === "unregister") notifiers.sync.unregister(notifier);
        // Where it hits nobody: next time it may.
        else notifiers.invalidateRangeEnd(notifiers.sync.invalidateRangeStart(range(50, 51)));
        mutex.unlock();
      }
      takesItAround();
      const [report, ...more] = reports(errors);
      expect(more).toEqual([]);
      expect(report!.code).toBe("EDEADLK");
      expect(report!.message).toMatch(/a mutex is taken in an invalidation callback and held around/);
      const [inside, around] = report!.message.split("\n  held around");
      expect(inside).toMatch(/taken in a callback:\n[^]*invalidate/);
      expect(around).toMatch(new RegExp(`takesItAround[^]*and ${what} was called:\n[^]*takesItAround`));
      if (what === "readBegin" || what === "invalidateRangeStart") {
        takesItAround();
        expect(reports(errors)).toHaveLength(1);
      }
    },
  );

  test("a lock that is kept from a start to its end is held around that end, of the same operation only", async () => {
    const world = notifierWorld(1);
    const [{ agent, notifiers, errors }] = world.agents as [Subscriber];
    const mutex = mutexOf(world, newMutex(world), { agent } as Subscriber);
    const keeps = new MmuNotifier({
      *invalidateRangeStart(): Op<void> {
        yield* mutex.lockOp();
      },
      invalidateRangeEnd: () => mutex.unlock(),
    });
    await notifiers.register(keeps);
    const other = await notifiers.insert(obedient(), 100, 10);
    await notifiers.invalidate(range(0, 1), async () => {
      await other.readBegin(); // another operation of the agent
      expect(reports(errors)).toEqual([]);
    });
    expect(reports(errors)[0]!.message).toMatch(/and invalidateRangeEnd was called/);
  });

  test("in the other order too: held around it first, taken in a callback later", async () => {
    const world = notifierWorld(1);
    const [by] = world.agents as [Subscriber];
    const mutex = mutexOf(world, newMutex(world), by);
    const interval = await by.notifiers.insert(locking(mutex), 0, 10);
    mutex.sync.lock();
    interval.sync.readBegin();
    mutex.unlock();
    expect(by.errors).toEqual([]);
    await by.notifiers.invalidate(range(0, 1), () => {});
    expect(reports(by.errors)).toHaveLength(1);
  });

  test("of two agents each may do one half: whoever comes second reports it, with the stack of the first", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const at = newMutex(world);
    const [mine, theirs] = [mutexOf(world, at, a), mutexOf(world, at, b)];
    const interval = await b.notifiers.insert(locking(theirs), 0, 10);
    await a.notifiers.invalidate(range(0, 1), () => {});
    mine.sync.lock();
    a.notifiers.interval(interval.id).sync.readBegin();
    mine.unlock();
    expect(reports(b.errors)).toEqual([]);
    expect(reports(a.errors)[0]!.message).toMatch(
      new RegExp(`taken in a callback in agent ${b.agent.slot}:\n[^]*invalidate`),
    );
  });

  test("a semaphore, for reading or writing, in a coroutine callback and around a start", async () => {
    for (const mode of ["read", "write"]) {
      const world = notifierWorld(1);
      const [{ agent, notifiers, errors }] = world.agents as [Subscriber];
      const at = words(world.arena, agent, RwSem.bytes(8) / 4);
      const sem = new RwSem({ agent }, new Int32Array(world.arena.buffer, at * 4, RwSem.bytes(8) / 4));
      await notifiers.register(
        new MmuNotifier({
          *invalidateRangeStart(): Op<void> {
            yield* mode === "read" ? sem.lockReadOp() : sem.lockWriteOp();
            if (mode === "read") sem.unlockRead();
            else sem.unlockWrite();
          },
        }),
      );
      await notifiers.invalidate(range(0, 1), () => {});
      expect(sem.tryLockRead()).toBe(true);
      const open = (): MmuNotifierRange => notifiers.sync.invalidateRangeStart(range(0, 1));
      if (mode === "read") notifiers.invalidateRangeEnd(open());
      else expect(open).toThrow(/EDEADLK|ECALLBACK/); // it does deadlock: the callback wants what this agent holds
      sem.unlockRead();
      expect(reports(errors).map((e) => e.message.includes("a semaphore"))).toEqual([true]);
    }
  });

  test("an allocation that may reclaim, under a lock that a callback takes", async () => {
    const memory = await makeMemory(64);
    const space = memory.sync.createSpace();
    const mutex = new Mutex(memory, memory.allocShared(Mutex.BYTES));
    const a = space.sync.mmap(anonymous(2));
    await space.notifiers.insert(locking(mutex), a, PAGE);
    space.setUint8(a, 1);
    space.sync.madvise(a, PAGE, "dontneed");
    expect(takeReported()).toEqual([]);
    mutex.sync.lock();
    memory.sync.reclaim(PAGE);
    mutex.unlock();
    expect(takeReported()[0]!.message).toMatch(/and reclaim was called/);
  });

  test("what keeps the contract is not reported: the lock around the check and the install only", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const mutex = mutexOf(world, newMutex(world), b);
    const interval = await b.notifiers.insert(locking(mutex), 0, 10);
    for (let round = 0; round < 3; round++) {
      const seq = await interval.readBegin();
      mutex.sync.lock();
      interval.readRetry(seq);
      mutex.unlock();
      await a.notifiers.invalidate(range(0, 1), () => {});
    }
    await interval.remove();
    expect([...a.errors, ...b.errors]).toEqual([]);
  });

  test("a lock that was given back, or another lock, is no reason", async () => {
    const world = notifierWorld(1);
    const [by] = world.agents as [Subscriber];
    const mutex = mutexOf(world, newMutex(world), by);
    const unrelated = mutexOf(world, newMutex(world), by);
    const interval = await by.notifiers.insert(locking(mutex), 0, 10);
    await by.notifiers.invalidate(range(0, 1), () => {});
    unrelated.sync.lock();
    mutex.sync.lock();
    mutex.unlock();
    interval.sync.readBegin();
    unrelated.unlock();
    expect(by.errors).toEqual([]);
  });

  test("an async operation is no reason for locks that other functions of its agent hold", async () => {
    const world = notifierWorld(1);
    const [by] = world.agents as [Subscriber];
    const mutex = mutexOf(world, newMutex(world), by);
    const interval = await by.notifiers.insert(locking(mutex), 0, 10);
    await by.notifiers.invalidate(range(0, 1), () => {});
    await mutex.lock();
    await interval.readBegin();
    mutex.unlock();
    expect(by.errors).toEqual([]);
  });
});

describe("a callback that must not wait", () => {
  test.each(["interval", "list", "aging"])(
    "and asks for an operation is reported with where it asked and from where it was called (%s)",
    async (kind) => {
      const world = notifierWorld(1);
      const [{ notifiers, errors }] = world.agents as [Subscriber];
      const asks = (): boolean => {
        try {
          notifiers.sync.synchronize();
        } catch (error) {
          if (!isMmError(error, "EDEADLK")) throw error;
        }
        return true;
      };
      if (kind === "interval") await notifiers.insert({ invalidate: asks }, 0, 10);
      else
        await notifiers.register(
          new MmuNotifier(kind === "list" ? { invalidateRangeStart: asks } : { clearYoung: asks }),
        );
      function startsIt(): void {
        if (kind === "aging") notifiers.clearYoung(0, 1);
        else notifiers.invalidateRangeEnd(notifiers.try.invalidateRangeStart(range(0, 1)));
      }
      startsIt();
      expect(reports(errors)).toHaveLength(1);
      expect(reports(errors)[0]!.message).toMatch(
        /may wait, and is asked for in a callback that must not\n {2}the callback was called:\n[^]*startsIt[^]*\n {2}sync was called:\n[^]*asks/,
      );
      errors.length = 0;
      // Where the range may wait it is only EDEADLK.
      if (kind !== "aging") notifiers.sync.invalidate(range(0, 1), () => {});
      expect(errors).toEqual([]);
    },
  );
});

test("a rule that was seen broken is remembered: callbacks that refused a start and have an end are EINVAL to register", () => {
  const world = notifierWorld(1);
  const [{ notifiers, errors }] = world.agents as [Subscriber];
  const ops = { invalidateRangeStart: () => false, invalidateRangeEnd: () => {} };
  const first = new MmuNotifier(ops);
  notifiers.sync.register(first);
  expect(() => notifiers.try.invalidateRangeStart(range(0, 1))).toThrow(/EAGAIN/);
  expect(errors.map((e) => e.code)).toEqual(["EINVAL"]);
  notifiers.sync.unregister(first);
  expect(() => notifiers.sync.register(new MmuNotifier(ops))).toThrow(
    /EINVAL register.*must not have an end op/,
  );
});

test("outside debug mode nothing is kept and nothing is said", async () => {
  const agent = attachAgent(createLocalArena(false), { mayBlock: false });
  expect(agent.debug).toBe(false);
  const notifiers = createNotifiers();
  const heard: unknown[] = [];
  notifiers.agent.onError = (error) => heard.push(error);
  const ops = { invalidateRangeStart: () => false, invalidateRangeEnd: () => {} };
  const first = new MmuNotifier(ops);
  await notifiers.register(first);
  expect(() => notifiers.try.invalidateRangeStart(range(0, 1))).toThrow(/EAGAIN/);
  expect(heard).toHaveLength(1); // the breach itself is always reported
  await notifiers.unregister(first);
  await notifiers.register(new MmuNotifier(ops));
  expect([notifiers.agent.invalidating, notifiers.agent.unwaiting]).toEqual([0, undefined]);
});
