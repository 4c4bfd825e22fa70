import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { isMmError, type MmError } from "../../../src/errors.ts";
import {
  type Agent,
  isOp,
  isPromise,
  loopOf,
  type Op,
  promiseOp,
  ring,
  runAsync,
  runBlocking,
  runReadyTasks,
  runTry,
  settleOp,
  syncFacet,
  tryFacet,
  waitOp,
  wakeQueue,
} from "../../../src/sched/index.ts";
import { AG_SLEEP, QUEUE_WORDS, SLEEP_ARMED } from "../../../src/sched/layout.ts";
import { attachTo, newArena, type TestArena, waitFor, words } from "../../lib/arena.ts";

let arena: TestArena;
let agent: Agent;
let queue: number;

/** Without the timer that looks again from time to time, a lost wake-up is a hang, and a hang fails. */
let timers: { set: number; cleared: number };

beforeEach(() => {
  arena = newArena();
  agent = attachTo(arena);
  queue = words(arena, agent, QUEUE_WORDS);
  timers = { set: 0, cleared: 0 };
  vi.spyOn(globalThis, "setInterval").mockImplementation(() => {
    timers.set++;
    return 1 as never;
  });
  vi.spyOn(globalThis, "clearInterval").mockImplementation(() => void timers.cleared++);
});

afterEach(() => {
  vi.restoreAllMocks();
});

/** Replaces the sleep of an agent: `onPark` stands for what others do meanwhile. */
function sleepsWith(sleeper: Agent, onPark: (call: number) => void): { calls: number } {
  const count = { calls: 0 };
  sleeper.park = () => {
    onPark(++count.calls);
    sleeper.safepoint();
  };
  return count;
}

const mustNotSleep = (sleeper: Agent): void => {
  sleepsWith(sleeper, () => {
    throw new Error("slept");
  });
};

function* logged(log: string[], body: () => Op<unknown>): Op<unknown> {
  log.push("begin");
  try {
    return yield* body();
  } catch (error) {
    log.push(`catch ${isMmError(error) ? error.code : (error as Error).message}`);
    throw error;
  } finally {
    log.push("finally");
  }
}

const registered = (who: Agent): boolean =>
  (Atomics.load(arena.words, queue + (who.slot >> 5)) & (1 << (who.slot & 31))) !== 0;

/** Lets everything that is ready in the event loop run. */
const turnOfLoop = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

// ---- blocking ----------------------------------------------------------------------------------------------

describe("the blocking driver", () => {
  test("runs an operation to its end and gives its value", () => {
    expect(
      runBlocking(
        agent,
        (function* (): Op<number> {
          yield { kind: "point", what: "here" };
          yield* waitOp(0, () => true, "nothing");
          return 7;
        })(),
      ),
    ).toBe(7);
  });

  test("arms itself again before every sleep, because a wake has consumed its registration", () => {
    let ready = false;
    const count = sleepsWith(agent, (call) => {
      expect(registered(agent)).toBe(true);
      ready = call === 3;
      wakeQueue(arena.words, queue); // the first two are in vain: somebody else was faster
      expect(registered(agent)).toBe(false);
    });
    runBlocking(
      agent,
      waitOp(queue, () => ready, "a turn"),
    );
    expect(count.calls).toBe(3);
  });

  test("arms the waits of the agent's other tasks before every sleep", async () => {
    const other = words(arena, agent, QUEUE_WORDS);
    let [mine, theirs] = [false, false];
    const task = runAsync(
      agent,
      waitOp(other, () => theirs, "the other"),
    );
    await turnOfLoop();
    sleepsWith(agent, (call) => {
      expect(Atomics.load(arena.words, other) & (1 << agent.slot)).not.toBe(0);
      if (call === 2) theirs = true;
      if (call === 3) mine = true;
      wakeQueue(arena.words, call === 3 ? queue : other);
    });
    runBlocking(
      agent,
      waitOp(queue, () => mine, "mine"),
    );
    await task;
  });

  test("tests again after arming: what became true before rang nobody", () => {
    let ready = false;
    mustNotSleep(agent);
    const arm = agent.arm.bind(agent);
    agent.arm = (q) => {
      ready = true; // just before the registration, so that its waker finds an empty queue
      wakeQueue(arena.words, queue);
      arm(q);
    };
    runBlocking(
      agent,
      waitOp(queue, () => ready, "a race"),
    );
    expect(ready).toBe(true);
  });

  test("tests other tasks again after arming them, too", async () => {
    const other = words(arena, agent, QUEUE_WORDS);
    let theirs = false;
    let done = false;
    const task = runAsync(
      agent,
      (function* (): Op<void> {
        yield* waitOp(other, () => theirs, "the other");
        done = true;
      })(),
    );
    await turnOfLoop();
    mustNotSleep(agent);
    const arm = agent.arm.bind(agent);
    agent.arm = (q) => {
      if (q === other) theirs = true;
      arm(q);
    };
    runBlocking(
      agent,
      waitOp(queue, () => done, "what the other task does"),
    );
    await task;
  });

  test("does not sleep on a doorbell that has rung since it looked", () => {
    let ready = false;
    mustNotSleep(agent);
    let asked = 0;
    runBlocking(
      agent,
      waitOp(
        queue,
        () => {
          // Made true by somebody who saw the registration, right after the last look.
          if (!ready && ++asked > agent.spinRounds + 2) {
            ready = true;
            wakeQueue(arena.words, queue);
            return false;
          }
          return ready;
        },
        "a race",
      ),
    );
    expect(ready).toBe(true);
  });

  test("serves its mailbox before it sleeps, although the ring came before the wait", () => {
    const other = attachTo(arena);
    let served = false;
    agent.handle(9, () => void (served = true));
    Object.assign(agent, { spinRounds: 0 });
    mustNotSleep(agent);
    other.sendTo(agent.ownerId, other.tryReserveMessage(9), true);
    runBlocking(
      agent,
      waitOp(queue, () => served, "an answer of my own"),
    );
    expect(served).toBe(true);
  });

  test("resumes other tasks of the agent while it waits", async () => {
    let [first, second] = [false, false];
    const task = runAsync(
      agent,
      (function* (): Op<string> {
        yield* waitOp(queue, () => first, "the first");
        second = true;
        return "went on";
      })(),
    );
    const count = sleepsWith(agent, () => {
      first = true;
      wakeQueue(arena.words, queue);
    });
    runBlocking(
      agent,
      waitOp(0, () => second, "the task"),
    );
    expect(count.calls).toBe(1);
    expect(await task).toBe("went on");
  });

  test("an error that a wait's condition throws goes into the operation, which unwinds", () => {
    const log: string[] = [];
    const op = logged(log, function* () {
      let asked = 0;
      yield waitFor(() => {
        if (++asked > 3) throw new Error("the holder is dead");
        return false;
      });
    });
    expect(() => runBlocking(agent, op)).toThrow("the holder is dead");
    expect(log).toEqual(["begin", "catch the holder is dead", "finally"]);
  });

  test("runs the host's synchronous form, and passes its error on", () => {
    const sync = vi.fn();
    runBlocking(
      agent,
      (function* (): Op<void> {
        yield { kind: "host", sync, start: async () => {}, what: "a read" };
      })(),
    );
    expect(sync).toHaveBeenCalledTimes(1);
    const log: string[] = [];
    const op = logged(log, function* () {
      yield {
        kind: "host",
        sync: () => {
          throw new Error("disk on fire");
        },
        start: async () => {},
        what: "a read",
      };
    });
    expect(() => runBlocking(agent, op)).toThrow("disk on fire");
    expect(log).toEqual(["begin", "catch disk on fire", "finally"]);
  });

  test("where only the event loop can deliver it is EDEADLK, and the operation unwinds", () => {
    const log: string[] = [];
    const op = logged(log, () => promiseOp(Promise.resolve(1), "a promise"));
    expect(() => runBlocking(agent, op)).toThrow(/EDEADLK sync: waits for a promise/);
    expect(log).toEqual(["begin", "catch EDEADLK", "finally"]);
  });

  test("waiting for itself, with no task that could go on, is EDEADLK and not a hang", () => {
    mustNotSleep(agent);
    const op = waitOp(
      queue,
      () => false,
      "a lock of mine",
      () => agent.ownerId,
    );
    expect(() => runBlocking(agent, op)).toThrow(/EDEADLK sync: waits for a lock of mine/);
  });

  test("waiting for another task of the agent is none, unless that waits for the host", async () => {
    let held = true;
    let goOn = false;
    const holder = runAsync(
      agent,
      (function* (): Op<void> {
        yield* waitOp(queue, () => goOn, "somebody else");
        held = false;
      })(),
    );
    sleepsWith(agent, () => {
      goOn = true;
      wakeQueue(arena.words, queue);
    });
    runBlocking(
      agent,
      waitOp(
        queue,
        () => !held,
        "a lock of mine",
        () => agent.ownerId,
      ),
    );
    await holder;

    held = true;
    let resolve: (() => void) | undefined;
    const io = runAsync(
      agent,
      (function* (): Op<void> {
        yield {
          kind: "host",
          sync: undefined,
          start: () => new Promise<void>((r) => (resolve = r)),
          what: "a read",
        };
        held = false;
      })(),
    );
    const op = (): Op<void> =>
      waitOp(
        queue,
        () => !held,
        "the page",
        () => agent.ownerId,
      );
    expect(() => runBlocking(agent, op())).toThrow(/EDEADLK/);
    resolve!();
    await io;
    runBlocking(agent, op());
    expect(held).toBe(false);
  });

  test("an agent that owes others what its event loop delivers does not sleep: EDEADLK", async () => {
    let resolve: ((value: number) => void) | undefined;
    const owed = runAsync(agent, promiseOp(new Promise<number>((r) => (resolve = r)), "an answer"));
    const op = (): Op<void> =>
      waitOp(
        queue,
        () => false,
        "another agent",
        () => 0,
      );
    expect(() => runBlocking(agent, op())).toThrow(/EDEADLK/);
    resolve!(5);
    expect(await owed).toBe(5);
    expect(agent.owed + agent.hostWaits).toBe(0);
  });

  test("an agent that may not block tries instead", () => {
    const modest = attachTo(arena, false);
    expect(() =>
      runBlocking(
        modest,
        waitOp(queue, () => false, "a lock"),
      ),
    ).toThrow(/EAGAIN try: would have to wait for a lock/);
  });

  test("a wait in a memory that a death has poisoned is EOWNERDEAD", () => {
    const log: string[] = [];
    sleepsWith(agent, () => agent.poison(agent.ownerId));
    const op = logged(log, () => waitOp(queue, () => false, "a lock"));
    expect(() => runBlocking(agent, op)).toThrow(/EOWNERDEAD/);
    expect(log).toEqual(["begin", "catch EOWNERDEAD", "finally"]);
  });

  test("a wait that takes long is reported once, with what it waits for", () => {
    const errors: MmError[] = [];
    agent.onError = (error) => errors.push(error);
    let now = 0;
    vi.spyOn(performance, "now").mockImplementation(() => now);
    let ready = false;
    const other = attachTo(arena);
    sleepsWith(agent, (call) => {
      now += 4000;
      ready = call === 6;
    });
    runBlocking(
      agent,
      waitOp(
        queue,
        () => ready,
        "an answer",
        () => other.ownerId,
      ),
    );
    expect(errors.map((e) => e.message)).toEqual([
      expect.stringMatching(/ETIMEDOUT soft lockup: waiting for an answer held up by agent 1 for 12 s/),
    ]);
  });
});

// ---- async -------------------------------------------------------------------------------------------------

describe("the async driver", () => {
  test("a promise settles when the wait is over, and other tasks go on meanwhile", async () => {
    const log: string[] = [];
    let ready = false;
    const slow = runAsync(
      agent,
      (function* (): Op<void> {
        log.push("slow begins");
        yield* waitOp(queue, () => ready, "slow");
        log.push("slow ends");
      })(),
    );
    const fast = runAsync(
      agent,
      // eslint-disable-next-line require-yield
      (function* (): Op<void> {
        log.push("fast");
      })(),
    );
    await fast;
    await turnOfLoop();
    log.push("ready");
    ready = true;
    wakeQueue(arena.words, queue);
    await slow;
    expect(log).toEqual(["slow begins", "fast", "ready", "slow ends"]);
  });

  test("arms itself again after a wake in vain", async () => {
    let ready = false;
    const task = runAsync(
      agent,
      waitOp(queue, () => ready, "a turn"),
    );
    for (let k = 0; k < 3; k++) {
      await turnOfLoop();
      expect(registered(agent)).toBe(true);
      wakeQueue(arena.words, queue);
    }
    await turnOfLoop();
    ready = true;
    wakeQueue(arena.words, queue);
    await task;
    expect(ready).toBe(true);
  });

  test("tests again after arming", async () => {
    let ready = false;
    const arm = agent.arm.bind(agent);
    agent.arm = (q) => {
      ready = true;
      wakeQueue(arena.words, queue);
      arm(q);
    };
    await runAsync(
      agent,
      waitOp(queue, () => ready, "a race"),
    );
    expect(ready).toBe(true);
  });

  test("an operation that starts while others are pending is armed and tested again, too", async () => {
    let [first, second, third] = [false, false, false];
    const queues = [1, 2, 3].map(() => words(arena, agent, QUEUE_WORDS));
    const tasks = [
      runAsync(
        agent,
        waitOp(queues[0]!, () => first, "first"),
      ),
    ];
    await turnOfLoop();
    tasks.push(
      runAsync(
        agent,
        waitOp(queues[1]!, () => second, "second"),
      ),
    );
    const arm = agent.arm.bind(agent);
    agent.arm = (q) => {
      if (q === queues[2]) third = true;
      arm(q);
    };
    tasks.push(
      runAsync(
        agent,
        waitOp(queues[2]!, () => third, "third"),
      ),
    );
    await tasks[2];
    second = true;
    wakeQueue(arena.words, queues[1]!);
    await tasks[1];
    first = true;
    wakeQueue(arena.words, queues[0]!);
    await tasks[0];
    expect(agent.tasks.size).toBe(0);
  });

  test("a task that a message starts while the agent listens is armed, too", async () => {
    const other = attachTo(arena);
    let ready = false;
    agent.handle(9, (m) => {
      void runAsync(
        agent,
        waitOp(queue, () => ready, "what the message asked for"),
      ).then(() => agent.finishMessage(m));
      return true;
    });
    loopOf(agent).listen();
    const m = other.tryReserveMessage(9);
    other.sendTo(agent.ownerId, m, false);
    await turnOfLoop();
    ready = true;
    wakeQueue(arena.words, queue);
    await vi.waitUntil(() => other.messageDone(m));
    loopOf(agent).unlisten(true);
  });

  test("an idle agent that can be called answers from its event loop", async () => {
    const other = attachTo(arena);
    agent.handle(9, () => {});
    loopOf(agent).listen();
    for (let k = 0; k < 3; k++) {
      const m = other.tryReserveMessage(9);
      other.sendTo(agent.ownerId, m, false);
      expect(other.messageDone(m)).toBe(false);
      await vi.waitUntil(() => other.messageDone(m));
    }
    loopOf(agent).unlisten(true);
  });

  test("listens again after it had nothing to listen for", async () => {
    for (let k = 0; k < 3; k++) {
      let ready = false;
      const task = runAsync(
        agent,
        waitOp(queue, () => ready, "a round"),
      );
      await turnOfLoop();
      expect(Atomics.load(arena.words, agent.base + AG_SLEEP)).toBe(SLEEP_ARMED);
      ready = true;
      wakeQueue(arena.words, queue);
      await task;
      await turnOfLoop();
    }
    expect(agent.tasks.size).toBe(0);
  });

  test("a wait that ends while the agent blocks in another operation settles its promise", async () => {
    let [mine, theirs] = [false, false];
    const task = runAsync(
      agent,
      waitOp(queue, () => theirs, "theirs"),
    );
    sleepsWith(agent, () => {
      theirs = true;
      mine = true;
      wakeQueue(arena.words, queue);
    });
    runBlocking(
      agent,
      waitOp(0, () => mine, "mine"),
    );
    await task;
    expect(agent.tasks.size).toBe(0);
  });

  test("an error that a wait's condition throws goes into the operation", async () => {
    const log: string[] = [];
    let broken = false;
    const op = logged(log, function* () {
      yield waitFor(() => {
        if (broken) throw new Error("the holder is dead");
        return false;
      }, queue);
    });
    const task = runAsync(agent, op);
    await turnOfLoop();
    broken = true;
    wakeQueue(arena.words, queue);
    await expect(task).rejects.toThrow("the holder is dead");
    expect(log).toEqual(["begin", "catch the holder is dead", "finally"]);
  });

  test("waits for the host, with its value or its error, also where start() itself throws", async () => {
    const host = (start: () => Promise<void>): Op<void> =>
      (function* (): Op<void> {
        yield { kind: "host", sync: undefined, start, what: "I/O" };
      })();
    expect(await runAsync(agent, promiseOp(Promise.resolve("read"), "I/O"))).toBe("read");
    await expect(runAsync(agent, promiseOp(Promise.reject(new Error("lost")), "I/O"))).rejects.toThrow(
      "lost",
    );
    const log: string[] = [];
    const throwing = logged(log, () =>
      host(() => {
        throw new Error("not even begun");
      }),
    );
    await expect(runAsync(agent, throwing)).rejects.toThrow("not even begun");
    expect(log).toEqual(["begin", "catch not even begun", "finally"]);
    expect(agent.hostWaits).toBe(0);
  });

  test("a poisoned memory ends every pending operation with EOWNERDEAD", async () => {
    const tasks = [1, 2, 3].map(() =>
      runAsync(
        agent,
        waitOp(queue, () => false, "a lock"),
      ),
    );
    const outcomes = Promise.allSettled(tasks);
    agent.poison(agent.ownerId);
    for (const outcome of await outcomes) {
      expect(outcome.status === "rejected" && isMmError(outcome.reason, "EOWNERDEAD")).toBe(true);
    }
  });

  test("a pending operation holds a timer, an ended one does not; so do subscriptions until they are let go", async () => {
    let ready = false;
    const live = (): number => timers.set - timers.cleared;
    const task = runAsync(
      agent,
      waitOp(queue, () => ready, "a lock"),
    );
    expect(live()).toBe(1);
    ready = true;
    wakeQueue(arena.words, queue);
    await task;
    await turnOfLoop();
    expect(live()).toBe(0);
    loopOf(agent).listen();
    loopOf(agent).listen();
    expect(live()).toBe(1);
    loopOf(agent).unlisten(true);
    expect(live()).toBe(1);
    loopOf(agent).release(); // unref
    expect(live()).toBe(0);
    loopOf(agent).unlisten(false);
    expect(live()).toBe(0);
  });

  test("an agent that detaches lets go of the event loop, whatever is still registered", () => {
    loopOf(agent).listen();
    expect(timers.set - timers.cleared).toBe(1);
    agent.detach();
    expect(timers.set - timers.cleared).toBe(0);
  });

  test("a ring meant for the next agent in its slot does not disturb a detached one", async () => {
    loopOf(agent).listen();
    agent.detach();
    const next = attachTo(arena);
    expect(next.slot).toBe(agent.slot);
    let ready = false;
    const task = runAsync(
      next,
      waitOp(queue, () => ready, "a lock"),
    );
    ring(arena.words, next.slot);
    await turnOfLoop();
    expect(Atomics.load(arena.words, next.base + AG_SLEEP)).toBe(SLEEP_ARMED);
    ready = true;
    wakeQueue(arena.words, queue);
    await task;
  });
});

// ---- try ---------------------------------------------------------------------------------------------------

describe("the non-blocking driver", () => {
  test("fails with EAGAIN where it would wait, after the operation has put everything back", () => {
    const log: string[] = [];
    let reserved = 0;
    const op = logged(log, function* () {
      reserved++;
      try {
        yield* waitOp(queue, () => false, "a lock");
      } finally {
        reserved--;
      }
    });
    expect(() => runTry(agent, op)).toThrow(/EAGAIN try: would have to wait for a lock/);
    expect(log).toEqual(["begin", "catch EAGAIN", "finally"]);
    expect(reserved).toBe(0);
  });

  test("an operation may answer EAGAIN in its own way", () => {
    const op = (function* (): Op<string> {
      try {
        yield* waitOp(queue, () => false, "a lock");
        return "locked";
      } catch {
        return "went without";
      }
    })();
    expect(runTry(agent, op)).toBe("went without");
  });

  test("serves the mailbox before it gives up, so that a loop of tries starves nobody", () => {
    const other = attachTo(arena);
    const served = vi.fn();
    agent.handle(9, served);
    other.sendTo(agent.ownerId, other.tryReserveMessage(9), true);
    expect(() =>
      runTry(
        agent,
        waitOp(queue, () => false, "a lock"),
      ),
    ).toThrow(/EAGAIN/);
    expect(served).toHaveBeenCalledTimes(1);
  });

  test("an error that a wait's condition throws goes into the operation", () => {
    const log: string[] = [];
    const op = logged(log, function* () {
      let asked = 0;
      yield waitFor(() => {
        if (++asked > 1) throw new Error("the holder is dead");
        return false;
      });
    });
    expect(() => runTry(agent, op)).toThrow("the holder is dead");
    expect(log).toEqual(["begin", "catch the holder is dead", "finally"]);
  });

  test("what the host delivers later is EAGAIN, what it can do at once is done", () => {
    expect(() => runTry(agent, promiseOp(Promise.resolve(), "a promise"))).toThrow(/EAGAIN/);
    const sync = vi.fn();
    const op = (function* (): Op<string> {
      yield { kind: "host", sync, start: async () => {}, what: "a read" };
      return "read";
    })();
    expect(runTry(agent, op)).toBe("read");
    expect(sync).toHaveBeenCalledTimes(1);
  });
});

// ---- all ---------------------------------------------------------------------------------------------------

describe("every driver", () => {
  test("inside a callback operations are EDEADLK and do not begin", async () => {
    const begun = vi.fn();
    // eslint-disable-next-line require-yield
    const op = function* (): Op<void> {
      begun();
    };
    agent.callbackDepth++;
    expect(() => runBlocking(agent, op())).toThrow(/EDEADLK/);
    expect(() => runTry(agent, op())).toThrow(/EDEADLK/);
    await expect(runAsync(agent, op())).rejects.toThrow(/EDEADLK/);
    agent.callbackDepth--;
    expect(begun).not.toHaveBeenCalled();
    runBlocking(agent, op());
    expect(begun).toHaveBeenCalledTimes(1);
  });

  test("`current` is the task that runs, also while its condition is asked, and nobody's afterwards", async () => {
    const modes: (string | undefined)[] = [];
    const op = function* (): Op<void> {
      modes.push(agent.current?.mode);
      let asked = 0;
      yield waitFor(() => {
        modes.push(agent.current?.mode);
        return ++asked > 1;
      });
    };
    runBlocking(agent, op());
    runTry(agent, op());
    await runAsync(agent, op());
    expect(agent.current).toBeUndefined();
    expect(modes).toEqual(["blocking", "try", "async"].flatMap((mode) => [mode, mode, mode]));
  });

  test("facets give plain functions over one table of operations", () => {
    const operations = {
      add: function* (a: number, b: number): Op<number> {
        yield* waitOp(queue, () => a > 0, "a positive number");
        return a + b;
      },
    };
    const modest = attachTo(arena, false);
    expect(syncFacet(agent, operations).add(1, 2)).toBe(3);
    expect(tryFacet(agent, operations).add(1, 2)).toBe(3);
    expect(() => tryFacet(agent, operations).add(-1, 2)).toThrow(/EAGAIN/);
    expect(() => syncFacet(modest, operations).add(-1, 2)).toThrow(/EAGAIN/);
  });

  test("settleOp takes a value, a promise or an operation", async () => {
    const asOp = isOp as (x: unknown) => x is Op<number>;
    // eslint-disable-next-line require-yield
    const three = function* (): Op<number> {
      return 3;
    };
    expect(await runAsync(agent, settleOp<number>(1, asOp, "a callback"))).toBe(1);
    expect(await runAsync(agent, settleOp<number>(Promise.resolve(2), asOp, "a callback"))).toBe(2);
    expect(await runAsync(agent, settleOp<number>(three(), asOp, "a callback"))).toBe(3);
    expect([
      isOp(three()),
      isOp([].values()),
      isOp(null),
      isPromise(Promise.resolve()),
      isPromise({}),
    ]).toEqual([true, false, false, true, false]);
  });

  test("runReadyTasks says whether a task went on", () => {
    let ready = false;
    void runAsync(
      agent,
      waitOp(queue, () => ready, "a lock"),
    );
    expect(runReadyTasks(agent)).toBe(false);
    ready = true;
    expect(runReadyTasks(agent)).toBe(true);
    expect(runReadyTasks(agent)).toBe(false);
  });
});
