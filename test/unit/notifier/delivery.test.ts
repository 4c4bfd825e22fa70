/** Who is called, in which order, and what becomes of a range whose callbacks refuse, throw, or wait. */
import { describe, expect, test, vi } from "vitest";
import { isMmError, type MmError } from "../../../src/errors.ts";
import { endOpenRange, makeRange, MmuNotifier, openRange } from "../../../src/notifier/index.ts";
import type { MmuNotifierOps, MmuNotifierRange } from "../../../src/notifier/index.ts";
import { MmuNotifierEvent } from "../../../src/notifier/index.ts";
import { type Op, waitOp, wakeQueue } from "../../../src/sched/index.ts";
import { AG_SERVED, QUEUE_WORDS } from "../../../src/sched/layout.ts";
import { words } from "../../lib/arena.ts";
import {
  type NotifierWorld,
  notifierWorld,
  obedient,
  range,
  type Subscriber,
  turnOfLoop,
  watch,
} from "../../lib/notifiers.ts";

/** A list notifier that logs its calls under a name. */
const logging = (log: string[], name: string, more: MmuNotifierOps = {}): MmuNotifier =>
  new MmuNotifier({
    invalidateRangeStart: () => void log.push(`${name} start`),
    invalidateRangeEnd: () => void log.push(`${name} end`),
    release: () => void log.push(`${name} release`),
    ...more,
  });

async function failure(promise: Promise<unknown>): Promise<MmError> {
  try {
    await promise;
  } catch (error) {
    if (isMmError(error)) return error;
    throw error;
  }
  throw new Error("it did not fail");
}

/** The range is closed: nothing is open, readers do not wait, and the next invalidation works. */
async function expectClosed(world: NotifierWorld): Promise<void> {
  expect(world.open()).toBe(0);
  expect(world.seq() & 1).toBe(0);
  expect(world.check()).toBeUndefined();
  const { notifiers } = world.agents[0]!;
  const probe = notifiers.sync.insert(obedient(), 1_000_000, 1);
  expect(probe.try.readBegin() & 1).toBe(1);
  expect(await notifiers.invalidate(range(1_000_000, 1_000_001), () => "changed")).toBe("changed");
  probe.try.remove();
}

describe("order", () => {
  test("intervals by start, ties by insertion, then list notifiers, newest first; ends newest first", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const log: string[] = [];
    const insert = (name: string, start: number, length: number): void =>
      void notifiers.sync.insert(
        obedient(() => log.push(name)),
        start,
        length,
      );
    await notifiers.register(logging(log, "old"));
    insert("late", 300, 10);
    insert("tie one", 200, 50);
    insert("tie two", 200, 10);
    insert("wide", 0, 1000);
    insert("elsewhere", 2000, 10);
    await notifiers.register(logging(log, "new"));
    insert("tie three", 200, 500);
    await notifiers.invalidate(range(205, 400), () => log.push("change"));
    expect(log).toEqual([
      "wide",
      "tie one",
      "tie two",
      "tie three",
      "late",
      "new start",
      "old start",
      "change",
      "new end",
      "old end",
    ]);
  });

  test("the order is kept across agents, and neighbours of one other agent travel in one message", async () => {
    const world = notifierWorld(3);
    const log: string[] = [];
    const insert = (agent: number, start: number): void =>
      void world.agents[agent]!.notifiers.sync.insert(
        obedient(() => log.push(`${agent}:${start}`)),
        start,
        10,
      );
    for (const [agent, start] of [
      [1, 0],
      [1, 10],
      [0, 20],
      [2, 30],
      [1, 40],
      [1, 50],
      [1, 60],
      [2, 70],
      [0, 80],
    ] as const)
      insert(agent, start);
    for (const agent of [0, 1, 2]) await world.agents[agent]!.notifiers.register(logging(log, `${agent}`));
    const served = (k: number): number =>
      Atomics.load(world.arena.words, world.agents[k]!.agent.base + AG_SERVED);
    await world.agents[0]!.notifiers.invalidate(range(0, 100), () => log.push("change"));
    expect(log.slice(0, 13)).toEqual([
      "1:0",
      "1:10",
      "0:20",
      "2:30",
      "1:40",
      "1:50",
      "1:60",
      "2:70",
      "0:80",
      "2 start",
      "1 start",
      "0 start",
      "change",
    ]);
    await vi.waitUntil(() => log.length === 16);
    expect(log.slice(13)).toEqual(expect.arrayContaining(["0 end", "1 end", "2 end"]));
    expect([served(1), served(2)]).toEqual([2 + 2, 2 + 2]); // runs of intervals, start and end
    await expectClosed(world);
  });

  test("only subscribers of the range are asked, wherever they live", async () => {
    const world = notifierWorld(2);
    const told = vi.fn();
    world.agents[1]!.notifiers.sync.insert(obedient(told), 1000, 10);
    const [a] = world.agents as [Subscriber];
    expect(a.notifiers.try.invalidate(range(0, 1000), () => "changed")).toBe("changed");
    expect(told).not.toHaveBeenCalled();
    expect(a.notifiers.concernsNobody(0, 1000)).toBe(true);
    expect(a.notifiers.concernsNobody(1009, 1010)).toBe(false);
  });

  test("the interval side ends first: readers go on before list notifiers hear of the end", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const A = notifiers.sync.insert(obedient(), 0, 10);
    const seen: (number | undefined)[] = [];
    await notifiers.register(
      logging([], "list", {
        invalidateRangeStart: () => void seen.push(A.tryReadBegin()),
        invalidateRangeEnd: () => void seen.push(A.tryReadBegin()),
      }),
    );
    await notifiers.invalidate(range(0, 10), () => {});
    expect(seen).toEqual([undefined, 3]);
  });

  test("a callback sees the range as it was raised; owner only where it was given", async () => {
    const world = notifierWorld(2);
    const seen: MmuNotifierRange[] = [];
    world.agents[0]!.notifiers.sync.insert(
      obedient((_, r) => seen.push(r)),
      0,
      10,
    );
    world.agents[1]!.notifiers.sync.insert(
      obedient((_, r) => seen.push(r)),
      5,
      10,
    );
    const { notifiers } = world.agents[0]!;
    const big = 2 ** 46 + 4096;
    await notifiers.invalidate({ start: 0, end: big, event: MmuNotifierEvent.Migrate, owner: 77 }, () => {});
    await notifiers.invalidate({ start: 0, end: 6, event: MmuNotifierEvent.Clear }, () => {});
    const expected = [
      { start: 0, end: big, event: MmuNotifierEvent.Migrate, blockable: true, owner: 77 },
      { start: 0, end: 6, event: MmuNotifierEvent.Clear, blockable: true },
    ];
    expect(seen).toEqual([
      { ...expected[0], space: notifiers.context.space },
      { ...expected[0], space: world.agents[1]!.notifiers.context.space },
      { ...expected[1], space: notifiers.context.space },
      { ...expected[1], space: world.agents[1]!.notifiers.context.space },
    ]);
    expect("owner" in seen[2]! || "owner" in seen[3]!).toBe(false);
    notifiers.try.invalidate(range(0, 4), () => {});
    expect(seen[4]!.blockable).toBe(false);
  });
});

describe("a callback that throws", () => {
  /** Two intervals and two list notifiers in each of two agents; `guilty` throws. */
  async function throwing(guilty: string): Promise<{ world: NotifierWorld; log: string[]; error: MmError }> {
    const world = notifierWorld(2);
    const log: string[] = [];
    const call = (name: string): void => {
      log.push(name);
      if (name === guilty && log.indexOf(name) === log.length - 1) throw new Error(`${name} is broken`);
    };
    for (const [k, { notifiers }] of world.agents.entries()) {
      for (const n of [0, 1])
        notifiers.sync.insert(
          obedient(() => call(`interval ${k}${n}`)),
          20 * n + 10 * k,
          10,
        );
      for (const n of [0, 1]) {
        await notifiers.register(
          new MmuNotifier({
            invalidateRangeStart: () => call(`start ${k}${n}`),
            invalidateRangeEnd: () => call(`end ${k}${n}`),
          }),
        );
      }
    }
    const changed = vi.fn();
    const error = await failure(world.agents[0]!.notifiers.invalidate(range(0, 100), changed));
    expect(changed).not.toHaveBeenCalled();
    await vi.waitUntil(() => log.filter((l) => l.startsWith("end")).length === 4);
    return { world, log, error };
  }

  test.each(["interval 00", "interval 01", "start 00", "start 01"])(
    "here (%s): all others are called, the ends run, ECALLBACK with the cause, and the range is closed",
    async (guilty) => {
      const { world, log, error } = await throwing(guilty);
      expect([error.code, (error.cause as Error).message]).toEqual(["ECALLBACK", `${guilty} is broken`]);
      expect(log.slice(0, 8)).toEqual([
        "interval 00",
        "interval 10",
        "interval 01",
        "interval 11",
        "start 11",
        "start 10",
        "start 01",
        "start 00",
      ]);
      await expectClosed(world);
    },
  );

  test.each(["interval 10", "interval 11", "start 10", "start 11"])(
    "in another agent (%s): the same, and the cause says where",
    async (guilty) => {
      const { world, log, error } = await throwing(guilty);
      expect([error.code, (error.cause as Error).message]).toEqual([
        "ECALLBACK",
        `in agent 1: ${guilty} is broken`,
      ]);
      expect(log.filter((l) => !l.startsWith("end"))).toHaveLength(8);
      await expectClosed(world);
    },
  );

  test("in an end it is only reported: the change is made", async () => {
    const world = notifierWorld(2);
    const log: string[] = [];
    for (const { notifiers } of world.agents) {
      await notifiers.register(logging(log, "quiet"));
      await notifiers.register(
        logging(log, "loud", {
          invalidateRangeEnd: () => {
            throw new Error("too late");
          },
        }),
      );
    }
    expect(await world.agents[0]!.notifiers.invalidate(range(0, 10), () => "changed")).toBe("changed");
    await vi.waitUntil(() => log.filter((l) => l === "quiet end").length === 2);
    expect(world.agents[0]!.errors.map((e) => [e.code, (e.cause as Error).message])).toEqual([
      ["ECALLBACK", "too late"],
    ]);
    await expectClosed(world);
  });

  test("where the change cannot be given up it proceeds, and onError hears of it", () => {
    const world = notifierWorld(1);
    const { notifiers, errors } = world.agents[0]!;
    const log: string[] = [];
    notifiers.sync.insert(
      obedient(() => {
        throw new Error("broken");
      }),
      0,
      10,
    );
    notifiers.sync.register(logging(log, "list"));
    const { context } = notifiers;
    const open = makeRange(context.space, 0, 10, MmuNotifierEvent.Clear, true);
    expect(openRange(context, open, true)).toBeUndefined();
    expect(world.open()).toBe(1);
    endOpenRange(context, open);
    expect(log).toEqual(["list start", "list end"]);
    expect(errors.map((e) => e.code)).toEqual(["ECALLBACK"]);
    expect(world.check()).toBeUndefined();
  });

  test("what is thrown need be no error", async () => {
    const world = notifierWorld(2);
    world.agents[1]!.notifiers.sync.insert(
      {
        invalidate: () => {
          // eslint-disable-next-line no-throw-literal, typescript/only-throw-error
          throw undefined;
        },
      },
      0,
      10,
    );
    const error = await failure(world.agents[0]!.notifiers.invalidate(range(0, 10), () => {}));
    expect([error.code, (error.cause as Error).message]).toEqual(["ECALLBACK", "in agent 1: undefined"]);
  });
});

describe("ranges that may not wait", () => {
  test("X7: an interval that refuses is EAGAIN: later ones and list notifiers are not called, and nothing is open", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const log: string[] = [];
    notifiers.sync.insert(
      obedient(() => log.push("first")),
      0,
      10,
    );
    notifiers.sync.insert({ invalidate: (_i, r) => (log.push("refuses"), r.blockable) }, 10, 10);
    notifiers.sync.insert(
      obedient(() => log.push("third")),
      20,
      10,
    );
    await notifiers.register(logging(log, "list"));
    const changed = vi.fn();
    expect(() => notifiers.try.invalidate(range(0, 100), changed)).toThrow(
      /EAGAIN invalidateRangeStart \[0x0, 0x64\)/,
    );
    expect(log).toEqual(["first", "refuses"]);
    expect(changed).not.toHaveBeenCalled();
    await expectClosed(world);
    expect(notifiers.sync.invalidate(range(0, 100), () => "changed")).toBe("changed");
  });

  test("X8: a list notifier that refuses after the intervals agreed leaves nothing open (Linux does)", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const A = notifiers.sync.insert(obedient(), 0, 10);
    await notifiers.register(new MmuNotifier({ invalidateRangeStart: (_n, r) => r.blockable }));
    expect(() => notifiers.try.invalidateRangeStart(range(0, 10))).toThrow(/EAGAIN/);
    expect([world.seq(), world.open()]).toEqual([4, 0]);
    expect(A.try.readBegin()).toBe(3);
    await expectClosed(world);
  });

  test("X9: of two list notifiers the first refuses: the second's start and end both run", () => {
    const world = notifierWorld(1);
    const { notifiers, errors } = world.agents[0]!;
    const log: string[] = [];
    notifiers.sync.register(logging(log, "second"));
    notifiers.sync.register(
      new MmuNotifier({ invalidateRangeStart: (_n, r) => (log.push("first refuses"), r.blockable) }),
    );
    expect(() => notifiers.try.invalidate(range(0, 10), () => {})).toThrow(/EAGAIN/);
    expect(log).toEqual(["first refuses", "second start", "second end"]);
    expect(errors).toEqual([]);
    expect(world.open()).toBe(0);
  });

  test("a list notifier that can refuse and has an end op is reported: nobody can tell it that its start failed", () => {
    const world = notifierWorld(1);
    const { notifiers, errors } = world.agents[0]!;
    notifiers.sync.register(logging([], "both", { invalidateRangeStart: (_n, r) => r.blockable }));
    expect(() => notifiers.try.invalidate(range(0, 10), () => {})).toThrow(/EAGAIN/);
    expect(errors.map((e) => e.code)).toEqual(["EINVAL"]);
    expect(world.open()).toBe(0);
  });

  test("a subscriber in another agent is EAGAIN without being asked, if the range concerns it", async () => {
    const world = notifierWorld(2);
    const told = vi.fn();
    const [a, b] = world.agents as [Subscriber, Subscriber];
    b.notifiers.sync.insert(obedient(told), 0, 10);
    expect(() => a.notifiers.try.invalidate(range(0, 10), () => {})).toThrow(/EAGAIN/);
    expect(a.notifiers.try.invalidate(range(10, 20), () => 1)).toBe(1);
    const listed = new MmuNotifier({ invalidateRangeStart: told });
    await b.notifiers.register(listed);
    expect(() => a.notifiers.try.invalidate(range(10, 20), () => {})).toThrow(/EAGAIN/);
    await turnOfLoop();
    expect(told).not.toHaveBeenCalled();
    expect(world.open()).toBe(0);
  });

  test("refusing a range that may wait is the callback's fault: ECALLBACK, wherever it lives", async () => {
    for (const where of [0, 1]) {
      const world = notifierWorld(2);
      const [a] = world.agents as [Subscriber];
      const interval = await world.agents[where]!.notifiers.insert({ invalidate: () => false }, 0, 10);
      let error = await failure(a.notifiers.invalidate(range(0, 10), () => {}));
      expect([error.code, (error.cause as Error).message]).toEqual([
        "ECALLBACK",
        expect.stringMatching(/refused a blockable range/),
      ]);
      await interval.remove();
      await world.agents[where]!.notifiers.register(new MmuNotifier({ invalidateRangeStart: () => false }));
      error = await failure(a.notifiers.invalidate(range(0, 10), () => {}));
      expect(error.code).toBe("ECALLBACK");
      expect(world.open()).toBe(0);
      expect(world.check()).toBeUndefined();
    }
  });
});

describe("callbacks that wait", () => {
  test("a coroutine is run to its end before the change, here and in another agent", async () => {
    for (const where of [0, 1]) {
      const world = notifierWorld(2);
      const { agent, notifiers } = world.agents[where]!;
      const queue = words(world.arena, agent, QUEUE_WORDS);
      let open = false;
      const log: string[] = [];
      notifiers.sync.insert(
        {
          *invalidate(interval, _range, curSeq) {
            log.push("begins");
            yield* waitOp(queue, () => open, "the device");
            interval.setSeq(curSeq);
            log.push("ends");
            return true;
          },
        },
        0,
        10,
      );
      const invalidating = world.agents[0]!.notifiers.invalidate(range(0, 10), () => log.push("change"));
      await turnOfLoop();
      expect(log).toEqual(["begins"]);
      expect(() => notifiers.overlapping(0, 10)).not.toThrow();
      open = true;
      wakeQueue(world.arena.words, queue);
      await invalidating;
      expect(log).toEqual(["begins", "ends", "change"]);
      await expectClosed(world);
    }
  });

  test("every step of a coroutine is inside the callback: operations are EDEADLK there", async () => {
    for (const where of [0, 1]) {
      const world = notifierWorld(2);
      const { agent, notifiers } = world.agents[where]!;
      const queue = words(world.arena, agent, QUEUE_WORDS);
      const codes: unknown[] = [];
      const forbidden = (): void => {
        try {
          notifiers.sync.invalidate(range(0, 10), () => {});
        } catch (error) {
          codes.push((error as MmError).code);
        }
      };
      let open = false;
      notifiers.sync.insert(
        {
          *invalidate(interval, _range, curSeq) {
            forbidden();
            yield* waitOp(queue, () => open, "the device");
            forbidden();
            interval.setSeq(curSeq);
            return true;
          },
        },
        0,
        10,
      );
      const invalidating = world.agents[0]!.notifiers.invalidate(range(0, 10), () => {});
      await turnOfLoop();
      expect(agent.callbackDepth).toBe(0); // not while it waits
      open = true;
      wakeQueue(world.arena.words, queue);
      await invalidating;
      expect(codes).toEqual(["EDEADLK", "EDEADLK"]);
    }
  });

  test("a promise is waited for in an agent that does not block", async () => {
    for (const where of [0, 1]) {
      const world = notifierWorld(2, { mayBlock: [false, false] });
      let resolve: ((x: boolean) => void) | undefined;
      const log: string[] = [];
      world.agents[where]!.notifiers.try.insert(
        {
          invalidate(interval, _range, curSeq) {
            interval.setSeq(curSeq);
            log.push("asked");
            return new Promise<boolean>((r) => (resolve = r));
          },
        },
        0,
        10,
      );
      const invalidating = world.agents[0]!.notifiers.invalidate(range(0, 10), () => log.push("change"));
      await turnOfLoop();
      expect(log).toEqual(["asked"]);
      resolve!(true);
      await invalidating;
      expect(log).toEqual(["asked", "change"]);
    }
  });

  test("a promise that is rejected is ECALLBACK with its reason", async () => {
    const world = notifierWorld(1, { mayBlock: [false] });
    const { notifiers } = world.agents[0]!;
    notifiers.try.insert({ invalidate: () => Promise.reject(new Error("no device")) }, 0, 10);
    const error = await failure(notifiers.invalidate(range(0, 10), () => {}));
    expect([error.code, (error.cause as Error).message]).toEqual(["ECALLBACK", "no device"]);
    await expectClosed(world);
  });

  test("a promise in an agent that may block ends the range unchanged with EDEADLK, wherever it lives", async () => {
    for (const where of [0, 1]) {
      const world = notifierWorld(2, { mayBlock: [true, true] });
      const changed = vi.fn();
      world.agents[where]!.notifiers.sync.insert(
        { invalidate: () => Promise.reject(new Error("nobody hears this")) },
        0,
        10,
      );
      const error = await failure(world.agents[0]!.notifiers.invalidate(range(0, 10), changed));
      expect(error.code).toBe("EDEADLK");
      expect(changed).not.toHaveBeenCalled();
      await expectClosed(world);
    }
  });

  test("coroutines and promises are refused where the range may not wait", () => {
    const world = notifierWorld(1, { mayBlock: [false] });
    const { notifiers } = world.agents[0]!;
    // eslint-disable-next-line require-yield
    const coroutine = function* (): Op<boolean> {
      return true;
    };
    const results: unknown[] = [Promise.resolve(true), coroutine()];
    for (const result of results) {
      const interval = notifiers.try.insert({ invalidate: () => result as boolean }, 0, 10);
      expect(() => notifiers.try.invalidate(range(0, 10), () => {})).toThrow(/ECALLBACK/);
      expect(world.open()).toBe(0);
      interval.try.remove();
    }
  });
});

describe("operations inside callbacks", () => {
  test("all of them are EDEADLK, in every form; reading numbers is not", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const listed = logging([], "list");
    const codes: unknown[] = [];
    const pending: Promise<unknown>[] = [];
    const note = (call: () => unknown): void => {
      try {
        call();
        codes.push("worked");
      } catch (error) {
        codes.push((error as MmError).code);
      }
    };
    const A = notifiers.sync.insert(
      {
        invalidate(interval, _range, curSeq) {
          interval.setSeq(curSeq);
          for (const form of ["sync", "try"] as const) {
            note(() => notifiers[form].insert(obedient(), 0, 1));
            note(() => notifiers[form].register(listed));
            note(() => notifiers[form].unregister(listed));
            note(() => notifiers[form].invalidateRangeStart(range(0, 1)));
            note(() => notifiers[form].invalidate(range(0, 1), () => {}));
            note(() => notifiers[form].release());
            note(() => A[form].readBegin());
            note(() => A[form].remove());
          }
          pending.push(A.readBegin(), A.remove(), notifiers.release(), notifiers.insert(obedient(), 0, 1));
          note(() => A.tryReadBegin());
          note(() => A.readRetry(1));
          note(() => notifiers.testYoung(0));
          return true;
        },
      },
      0,
      10,
    );
    notifiers.sync.invalidate(range(0, 10), () => {});
    expect(codes).toEqual([...Array.from({ length: 16 }, () => "EDEADLK"), "worked", "worked", "worked"]);
    const outcomes = await Promise.allSettled(pending);
    expect(outcomes.map((o) => o.status === "rejected" && (o.reason as MmError).code)).toEqual(
      pending.map(() => "EDEADLK"),
    );
    A.sync.remove();
    expect(world.check()).toBeUndefined();
  });
});

describe("starts and ends", () => {
  test("invalidate() ends the range whatever the change does, and gives what it returned", async () => {
    const world = notifierWorld(1, { mayBlock: [false] });
    const { notifiers } = world.agents[0]!;
    notifiers.try.insert(obedient(), 0, 10);
    const inside = (): string => `open ${world.open()}`;
    expect(notifiers.try.invalidate(range(0, 10), inside)).toBe("open 1");
    expect(await notifiers.invalidate(range(0, 10), async () => Promise.resolve().then(inside))).toBe(
      "open 1",
    );
    expect(
      await notifiers.invalidate(range(0, 10), function* (): Op<string> {
        yield { kind: "point", what: "inside" };
        return inside();
      } as never),
    ).toBe("open 1");
    await expect(
      notifiers.invalidate(range(0, 10), () => {
        throw new Error("no");
      }),
    ).rejects.toThrow("no");
    await expect(
      notifiers.invalidate(range(0, 10), () => Promise.reject(new Error("never"))),
    ).rejects.toThrow("never");
    expect(world.open()).toBe(0);
    expect(world.check()).toBeUndefined();
  });

  test("a change that waits for a promise is EDEADLK where the agent blocks, and so is a wait for one's own range", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const A = notifiers.sync.insert(obedient(), 0, 10);
    expect(() => notifiers.sync.invalidate(range(0, 10), () => Promise.resolve())).toThrow(/EDEADLK/);
    expect(() => notifiers.sync.invalidate(range(0, 10), () => A.sync.readBegin())).toThrow(/EDEADLK/);
    let resolve: (() => void) | undefined;
    const slow = notifiers.invalidate(range(0, 10), () => new Promise<void>((r) => (resolve = r)));
    await turnOfLoop();
    expect(() => A.sync.readBegin()).toThrow(/EDEADLK/);
    resolve!();
    await slow;
    expect(A.sync.readBegin() & 1).toBe(1);
    await expectClosed(world);
  });

  test("a range is ended once, by whoever opened it; a failed start has none", () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    a.notifiers.sync.insert(obedient(), 0, 10);
    const open = a.notifiers.sync.invalidateRangeStart(range(0, 10));
    expect(() => b.notifiers.invalidateRangeEnd(open)).toThrow(/EINVAL invalidateRangeEnd/);
    a.notifiers.invalidateRangeEnd(open);
    expect(() => a.notifiers.invalidateRangeEnd(open)).toThrow(/EINVAL invalidateRangeEnd/);
    let refused: MmuNotifierRange | undefined;
    a.notifiers.sync.insert(
      {
        invalidate(_i, r) {
          refused = r;
          throw new Error("no");
        },
      },
      20,
      10,
    );
    expect(() => a.notifiers.sync.invalidateRangeStart(range(20, 30))).toThrow(/ECALLBACK/);
    expect(() => a.notifiers.invalidateRangeEnd(refused!)).toThrow(/EINVAL/);
    expect(world.open()).toBe(0);
  });

  test("the ends of another agent's notifiers are posted: the invalidator does not wait, and the order holds", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const log: string[] = [];
    await b.notifiers.register(
      new MmuNotifier({
        invalidateRangeStart: (_n, r) => void log.push(`start ${r.start}`),
        invalidateRangeEnd: (_n, r) => void log.push(`end ${r.start}`),
      }),
    );
    for (const at of [10, 20]) {
      const open = await a.notifiers.invalidateRangeStart(range(at, at + 1));
      a.notifiers.invalidateRangeEnd(open);
      expect(log.at(-1)).toBe(`start ${at}`);
    }
    await vi.waitUntil(() => log.length === 4);
    expect(log).toEqual(["start 10", "end 10", "start 20", "end 20"]);
  });

  test("any number of notifiers with ends in other agents, and of nested ranges: messages do not run out", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    let [starts, ends] = [0, 0];
    for (let k = 0; k < 15; k++) {
      await b.notifiers.register(
        new MmuNotifier({ invalidateRangeStart: () => void starts++, invalidateRangeEnd: () => void ends++ }),
      );
    }
    const open: MmuNotifierRange[] = [];
    for (let k = 0; k < 3; k++) open.push(await a.notifiers.invalidateRangeStart(range(k, k + 1)));
    expect([starts, ends]).toEqual([45, 0]);
    for (const r of open) a.notifiers.invalidateRangeEnd(r);
    await vi.waitUntil(() => ends === 45);
    expect(world.check()).toBeUndefined();
  });

  test("subscribers that are only idle, or wait in operations of their own, answer", async () => {
    const world = notifierWorld(3);
    const [a, b, c] = world.agents as [Subscriber, Subscriber, Subscriber];
    const told: string[] = [];
    const B = b.notifiers.sync.insert(
      obedient(() => told.push("b")),
      0,
      10,
    );
    c.notifiers.sync.insert(
      obedient(() => told.push("c")),
      5,
      10,
    );
    const open = await a.notifiers.invalidateRangeStart(range(0, 10));
    const reading = B.readBegin(); // b waits now
    const reader = watch(reading);
    await a.notifiers.invalidate(range(0, 20), () => {});
    expect(told).toEqual(["b", "c", "b", "c"]);
    expect(reader.state).toBe("pending");
    a.notifiers.invalidateRangeEnd(open);
    expect(await reading).toBe(3);
  });
});
