/** What happens at the edges of the contract: who hears of failures, and what a range leaves behind that could not be opened. */
import { describe, expect, test, vi } from "vitest";
import { allocWords, heapUsedWords } from "../../../src/memory/index.ts";
import { createNotifiers, MmuNotifier, MmuNotifierEvent } from "../../../src/notifier/index.ts";
import { SUBS_INTERVALS, subsListedAt } from "../../../src/notifier/layout.ts";
import { type Op, waitOp } from "../../../src/sched/index.ts";
import { attachTo, makeMemory, thrown } from "../../lib/mm.ts";
import { notifierWorld, obedient, range, type Subscriber, turnOfLoop } from "../../lib/notifiers.ts";

describe("owner", () => {
  test("goes with Migrate and Exclusive only; elsewhere it is undefined and giving one is EINVAL", () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const seen: unknown[] = [];
    notifiers.sync.insert(
      obedient((_, r) => seen.push(r.owner)),
      0,
      10,
    );
    for (const event of Object.values(MmuNotifierEvent)) {
      const owned = event === MmuNotifierEvent.Migrate || event === MmuNotifierEvent.Exclusive;
      const request = { start: 0, end: 1, event, owner: 5 };
      if (owned) notifiers.sync.invalidate(request, () => {});
      else expect(thrown(() => notifiers.sync.invalidate(request, () => {}))?.code).toBe("EINVAL");
      notifiers.sync.invalidate({ start: 0, end: 1, event }, () => {});
    }
    expect(seen.filter((owner) => owner === 5)).toHaveLength(2);
    expect(seen.filter((owner) => owner === undefined)).toHaveLength(8);
    expect(world.open()).toBe(0);
  });
});

describe("a callback that returns something that throws when it is looked at", () => {
  test("has thrown: the range is not opened, and nobody waits for its end", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const trap = {
      get next(): never {
        throw new Error("boom");
      },
    };
    let traps = true;
    const interval = notifiers.sync.insert(
      {
        invalidate: (self, _, curSeq) => {
          self.setSeq(curSeq);
          return traps ? (trap as never) : true;
        },
      },
      0,
      10,
    );
    expect(thrown(() => notifiers.sync.invalidateRangeStart(range(0, 1)))?.code).toBe("ECALLBACK");
    expect(world.open()).toBe(0);
    expect(interval.readRetry(interval.sync.readBegin())).toBe(false);
    traps = false;
    const listed = new MmuNotifier({ invalidateRangeStart: () => trap as never });
    notifiers.sync.register(listed);
    expect(thrown(() => notifiers.sync.invalidateRangeStart(range(0, 1)))?.code).toBe("ECALLBACK");
    expect(world.open()).toBe(0);
    notifiers.sync.unregister(listed);
    interval.sync.remove();
  });
});

describe("an end that throws", () => {
  test.each([0, 1])("is reported in the agent whose callback it is (agent %i), once", async (where) => {
    const world = notifierWorld(2);
    await world.agents[where]!.notifiers.register(
      new MmuNotifier({
        invalidateRangeStart: () => true,
        invalidateRangeEnd: () => {
          throw new Error("boom");
        },
      }),
    );
    await world.agents[0]!.notifiers.invalidate(range(0, 1), () => {});
    await turnOfLoop();
    const heard = world.agents.map(({ errors }) => errors.map((e) => `${e.code} ${e.operation}`));
    expect(heard[where]).toEqual(["ECALLBACK invalidateRangeEnd"]);
    expect(heard[1 - where]).toEqual([]);
  });
});

describe("a start that cannot be waited for to its end", () => {
  test("gives ends to those that had a start, and to no others", async () => {
    const world = notifierWorld(2, { mayBlock: [true, true] });
    const [a] = world.agents as [Subscriber, Subscriber];
    const log: string[] = [];
    const named = (name: string, waits = false): MmuNotifier =>
      new MmuNotifier({
        *invalidateRangeStart(): Op<void> {
          log.push(`${name} start`);
          // For the agent itself, which cannot deliver that while it blocks.
          if (waits)
            yield* waitOp(
              0,
              () => false,
              "the device",
              () => a.agent.ownerId,
            );
        },
        invalidateRangeEnd: () => void log.push(`${name} end`),
      });
    for (const notifier of [named("oldest"), named("waits", true), named("newest")])
      await a.notifiers.register(notifier);
    expect(thrown(() => a.notifiers.sync.invalidateRangeStart(range(0, 1)))?.code).toBe("ECALLBACK");
    expect(log).toEqual([
      "newest start",
      "waits start",
      "oldest start",
      "newest end",
      "waits end",
      "oldest end",
    ]);
    expect(world.open()).toBe(0);
    log.length = 0;
    // Here it is the walk itself that cannot go on: the agent that should answer does not.
    const [, b] = world.agents as [Subscriber, Subscriber];
    await b.notifiers.register(named("there"));
    await a.notifiers.register(named("first"));
    const stuck = vi.spyOn(a.agent, "checkUsable").mockImplementation((operation) => {
      if (operation === "wait") throw new Error("poisoned");
    });
    expect(() => a.notifiers.sync.invalidateRangeStart(range(0, 1))).toThrow("poisoned");
    stuck.mockRestore();
    expect(log).toEqual(["first start", "first end"]);
    await turnOfLoop();
    expect(log.slice(2)).toEqual(["there start", "there end"]);
    expect(world.open()).toBe(0);
    expect(world.check()).toBeUndefined();
  });

  test("gives its message back, also where the answer comes later", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    await b.notifiers.insert(obedient(), 0, 10);
    const used = heapUsedWords(a.agent, world.arena.heap);
    for (let round = 0; round < 20; round++) {
      const stuck = vi.spyOn(a.agent, "checkUsable").mockImplementation((operation) => {
        if (operation === "wait") throw new Error("poisoned");
      });
      expect(() => a.notifiers.sync.invalidateRangeStart(range(0, 1))).toThrow("poisoned");
      stuck.mockRestore();
      await turnOfLoop();
    }
    await a.notifiers.invalidate(range(0, 1), () => {});
    expect(heapUsedWords(a.agent, world.arena.heap)).toBe(used);
    expect(world.open()).toBe(0);
  });
});

describe("accessed bitmaps", () => {
  test("cover the length that was given, not all of their words; more pages than bits, and a start inside a page, are EINVAL", async () => {
    const world = notifierWorld(1);
    const { agent, notifiers } = world.agents[0]!;
    const bits = new Int32Array(world.arena.buffer, allocWords(agent, world.arena.heap, 2) * 4, 1);
    const make = (start: number, length: number): MmuNotifier =>
      new MmuNotifier({}, { accessed: { start, length, bits } });
    expect(thrown(() => notifiers.sync.register(make(100, 4096)))?.code).toBe("EINVAL");
    expect(thrown(() => notifiers.sync.register(make(0, 33 * 4096)))?.code).toBe("EINVAL");
    for (const [start, length] of [
      [0, 0],
      [0, -1],
      [0.5, 4096],
    ] as const)
      expect(thrown(() => make(start, length))?.code).toBe("EINVAL");
    await notifiers.register(make(0, 3 * 4096));
    Atomics.store(bits, 0, -1);
    expect(notifiers.clearYoung(3 * 4096, 32 * 4096)).toBe(false);
    expect(notifiers.clearYoung(2 * 4096, 32 * 4096)).toBe(true);
    expect(Atomics.load(bits, 0)).toBe(~4);
  });
});

describe("an agent that leaves", () => {
  test("takes its subscriptions along: nobody waits for them, and their records go with the space", async () => {
    const memory = await makeMemory(32);
    const other = await attachTo(memory);
    const space = memory.sync.createSpace();
    const there = other.space(space.id);
    await there.notifiers.insert(obedient(), 0, 2 ** 40);
    await there.notifiers.register(new MmuNotifier({ invalidateRangeStart: () => true }));
    const { subs, maxAgents } = space.notifiers.context;
    const counts = (): number[] => [
      Atomics.load(memory.agent.words, subs + SUBS_INTERVALS),
      Atomics.load(memory.agent.words, subsListedAt(subs, maxAgents, other.agent.slot)),
    ];
    expect(counts()).toEqual([1, 1]);
    other.detach();
    expect(counts()).toEqual([0, 0]);
    await space.notifiers.invalidate(range(0, 1), () => {});
    expect(thrown(() => space.notifiers.try.invalidateRangeStart(range(0, 1)))).toBeUndefined();
  });
});

describe("subscriptions outlive their space", () => {
  test("what is registered when the space exits can be taken away afterwards; then everything has been given back", async () => {
    const memory = await makeMemory(32);
    const before = memory.stats().arenaBytes;
    const space = memory.sync.createSpace();
    const notifier = new MmuNotifier({ release: () => {} });
    await space.notifiers.register(notifier);
    const interval = await space.notifiers.insert(obedient(), 0, 10);
    const put = await space.notifiers.get({ release: () => {} });
    await space.exit();
    expect(memory.stats().arenaBytes).toBeGreaterThan(before);
    await interval.remove();
    await space.notifiers.unregister(notifier);
    space.notifiers.put(put);
    await turnOfLoop();
    expect(memory.stats().arenaBytes).toBe(before);
    expect(thrown(() => space.notifiers.sync.insert(obedient(), 0, 1))?.code).toBe("ESRCH");
  });
});

describe("notifiers of a foreign primary MMU", () => {
  test("that are one agent's tell errors without a caller to onError", async () => {
    const heard: string[] = [];
    const notifiers = createNotifiers({ onError: (error) => heard.push(`${error.code} ${error.operation}`) });
    const ops = {
      invalidateRangeEnd: () => {
        throw new Error("boom");
      },
    };
    await notifiers.register(new MmuNotifier(ops));
    await notifiers.invalidate(range(0, 1), () => {});
    expect(heard).toEqual(["ECALLBACK invalidateRangeEnd"]);
  });
});

describe("notifiers of a foreign primary MMU in shared memory", () => {
  test("are reached by other agents through their id, and deliver to them", async () => {
    const memory = await makeMemory(32);
    const other = await attachTo(memory);
    const mine = createNotifiers({ memory });
    const theirs = createNotifiers({ memory: other, id: mine.id });
    expect(createNotifiers({ memory: other, id: mine.id })).toBe(theirs);
    expect(createNotifiers({ memory }).id).not.toBe(mine.id);
    const heard: number[] = [];
    const interval = await theirs.insert(
      obedient((_, { start }) => heard.push(start)),
      0,
      10,
    );
    await mine.invalidate(range(5, 6), () => {});
    expect(heard).toEqual([5]);
    await interval.remove();
    for (const id of [0, -1, 1.5, Number.NaN, 2 ** 40, mine.id + 1])
      expect(thrown(() => createNotifiers({ memory, id }))?.code).toBe("ESRCH");
    expect(thrown(() => createNotifiers({ id: mine.id }))?.code).toBe("ESRCH");
  });
});
