/**
 * Rules of the contract one by one, each under its own name: linux-semantics.md sections 1 to 4. What a rule is part of
 * is tested beside it (stateMachine, delivery, lifetime, registry, aging); docs/rules.md lists all of them.
 */
import { describe, expect, test, vi } from "vitest";
import { isMmError } from "../../../src/errors.ts";
import { heapUsedWords } from "../../../src/memory/index.ts";
import {
  type IntervalNotifier,
  MmuNotifier,
  MmuNotifierEvent,
  type MmuNotifierOps,
  type MmuNotifierRange,
} from "../../../src/notifier/index.ts";
import { SUBS_LOCK, SUBS_QUEUE, subsWords } from "../../../src/notifier/layout.ts";
import { HDR_MAX_AGENTS, type Op } from "../../../src/sched/index.ts";
import { ADDRESS_END } from "../../../src/units.ts";
import { words } from "../../lib/arena.ts";
import {
  gate,
  nodeOf,
  type NotifierWorld,
  notifierWorld,
  obedient,
  ownSeq,
  range,
  type Subscriber,
  turnOfLoop,
  watch,
} from "../../lib/notifiers.ts";

const PAGE = 4096;

const codeOf = (call: () => unknown): string => {
  try {
    call();
    return "worked";
  } catch (error) {
    return isMmError(error) ? error.code : "foreign";
  }
};

const heapUsed = (world: NotifierWorld): number => heapUsedWords(world.agents[0]!.agent, world.arena.heap);

/** One agent, and what its subscribers log. */
function alone(): { world: NotifierWorld; notifiers: Subscriber["notifiers"]; log: string[] } {
  const world = notifierWorld(1);
  return { world, notifiers: world.agents[0]!.notifiers, log: [] };
}

/** Callbacks of a list notifier that log their names. */
const logging = (log: string[], name: string, more: MmuNotifierOps = {}): MmuNotifier =>
  new MmuNotifier({
    invalidateRangeStart: () => void log.push(`${name} start`),
    invalidateRangeEnd: () => void log.push(`${name} end`),
    release: () => void log.push(`${name} release`),
    ...more,
  });

// ---- 1.1 and 1.2 ---------------------------------------------------------------------------------------------

/** An interval and a list notifier in each of two agents: what they hear of one range of this event. */
async function heard(event: MmuNotifierEvent, owner?: number): Promise<string[]> {
  const world = notifierWorld(2);
  const log: string[] = [];
  const hear = (kind: string, r: MmuNotifierRange): void =>
    void log.push(`${kind} ${r.event}${"owner" in r ? ` of ${r.owner}` : ""}`);
  for (const [k, { notifiers }] of world.agents.entries()) {
    notifiers.sync.insert(
      obedient((_, r) => hear(`interval ${k}`, r)),
      10 * k,
      10,
    );
    await notifiers.register(new MmuNotifier({ invalidateRangeStart: (_, r) => hear(`list ${k}`, r) }));
  }
  const request = { start: 0, end: 100, event, ...(owner !== undefined && { owner }) };
  await world.agents[0]!.notifiers.invalidate(request, () => {});
  return log;
}

const both = (what: string): string[] =>
  ["interval 0", "interval 1", "list 1", "list 0"].map((who) => `${who} ${what}`);

describe("events", () => {
  test("have Linux's numbers, from 0 on", () => {
    expect(Object.values(MmuNotifierEvent)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(Object.keys(MmuNotifierEvent)).toEqual([
      "Unmap",
      "Clear",
      "ProtectionVma",
      "ProtectionPage",
      "SoftDirty",
      "Release",
      "Migrate",
      "Exclusive",
    ]);
  });

  test("Unmap is heard by intervals and list notifiers", async () => {
    expect(await heard(MmuNotifierEvent.Unmap)).toEqual(both("0"));
  });

  test("Clear is heard by intervals and list notifiers", async () => {
    expect(await heard(MmuNotifierEvent.Clear)).toEqual(both("1"));
  });

  test("ProtectionVma is heard by intervals and list notifiers", async () => {
    expect(await heard(MmuNotifierEvent.ProtectionVma)).toEqual(both("2"));
  });

  test("ProtectionPage is heard by intervals and list notifiers", async () => {
    expect(await heard(MmuNotifierEvent.ProtectionPage)).toEqual(both("3"));
  });

  test("SoftDirty is heard by intervals and list notifiers", async () => {
    expect(await heard(MmuNotifierEvent.SoftDirty)).toEqual(both("4"));
  });

  test("Migrate is heard by intervals and list notifiers, with its owner", async () => {
    expect(await heard(MmuNotifierEvent.Migrate, 77)).toEqual(both("6 of 77"));
  });

  test("Exclusive is heard by intervals and list notifiers, with its owner", async () => {
    expect(await heard(MmuNotifierEvent.Exclusive, 78)).toEqual(both("7 of 78"));
  });

  test("Release is heard by intervals only: list notifiers have an op of their own for it", async () => {
    const { notifiers, log } = alone();
    notifiers.sync.insert(
      obedient((_, r) => log.push(`interval ${r.event}`)),
      0,
      10,
    );
    await notifiers.register(logging(log, "list"));
    await notifiers.release();
    expect(log).toEqual(["interval 5", "list release"]);
  });

  test("an event without an owner has none, in any agent", async () => {
    expect(await heard(MmuNotifierEvent.Migrate)).toEqual(both("6"));
  });

  test("Release covers the whole space and is blockable", async () => {
    const { notifiers } = alone();
    const seen: unknown[] = [];
    notifiers.sync.insert(
      obedient((_, r) => seen.push([r.start, r.end, r.blockable])),
      ADDRESS_END - 1,
      1,
    );
    await notifiers.release();
    expect(seen).toEqual([[0, ADDRESS_END, true]]);
  });
});

describe("a range", () => {
  test("is blockable where its start may wait, and not in the try form, whatever the caller says", async () => {
    const { notifiers } = alone();
    const seen: boolean[] = [];
    notifiers.sync.insert(
      obedient((_, r) => seen.push(r.blockable)),
      0,
      10,
    );
    await notifiers.invalidate(range(0, 10), () => {});
    notifiers.try.invalidate(range(0, 10), () => {});
    expect(seen).toEqual([true, false]);
  });

  test("is blockable in the blocking form", () => {
    const { notifiers } = alone();
    const seen: boolean[] = [];
    notifiers.sync.insert(
      obedient((_, r) => seen.push(r.blockable)),
      0,
      10,
    );
    notifiers.invalidateRangeEnd(notifiers.sync.invalidateRangeStart(range(0, 10)));
    expect(seen).toEqual([true]);
  });

  test("has the same flags at its end as at its start", () => {
    const { notifiers } = alone();
    const seen: boolean[] = [];
    notifiers.sync.register(
      new MmuNotifier({
        invalidateRangeStart: (_, r) => void seen.push(r.blockable),
        invalidateRangeEnd: (_, r) => void seen.push(r.blockable),
      }),
    );
    notifiers.try.invalidate(range(0, 10), () => {});
    notifiers.sync.invalidate(range(0, 10), () => {});
    expect(seen).toEqual([false, false, true, true]);
  });

  test("that ends where an interval begins, or begins where it ends, leaves the number alone and calls nobody", () => {
    const { world, notifiers } = alone();
    const told = vi.fn();
    notifiers.sync.insert(obedient(told), 100, 100);
    for (const [start, end] of [
      [0, 100],
      [200, 300],
    ] as const) {
      notifiers.sync.invalidate(range(start, end), () => {
        expect([world.seq(), world.open()]).toEqual([2, 1]);
      });
    }
    expect(told).not.toHaveBeenCalled();
  });
});

// ---- 1.3 and 1.4 ---------------------------------------------------------------------------------------------

describe("the ops of a list notifier", () => {
  test("are all optional", async () => {
    const { world, notifiers, log } = alone();
    const errors = world.agents[0]!.errors;
    const all = [
      new MmuNotifier({}),
      new MmuNotifier({ invalidateRangeEnd: () => void log.push("only end") }),
      new MmuNotifier({ invalidateRangeStart: () => void log.push("only start") }),
      new MmuNotifier({ release: () => void log.push("only release") }),
    ];
    for (const notifier of all) await notifiers.register(notifier);
    await notifiers.invalidate(range(0, 10), () => log.push("change"));
    expect(notifiers.clearFlushYoung(0, 10) || notifiers.clearYoung(0, 10) || notifiers.testYoung(0)).toBe(
      false,
    );
    notifiers.archInvalidateSecondaryTlbs(0, 10);
    for (const notifier of all) await notifiers.unregister(notifier);
    expect(log).toEqual(["only start", "change", "only end", "only release"]);
    expect(errors).toEqual([]);
  });

  test("start is called before the change and end after it, once each", async () => {
    const { notifiers, log } = alone();
    await notifiers.register(logging(log, "list"));
    await notifiers.invalidate(range(0, 10), () => log.push("change"));
    expect(log).toEqual(["list start", "change", "list end"]);
  });

  test("start may wait where the range is blockable: the change is made after it", async () => {
    const { world, notifiers, log } = alone();
    const device = gate(world);
    await notifiers.register(
      logging(log, "list", {
        *invalidateRangeStart(): Op<void> {
          log.push("asked");
          yield* device.wait();
          log.push("dropped");
        },
      }),
    );
    const invalidating = notifiers.invalidate(range(0, 10), () => log.push("change"));
    await turnOfLoop();
    expect(log).toEqual(["asked"]);
    device.open();
    await invalidating;
    expect(log).toEqual(["asked", "dropped", "change", "list end"]);
  });

  test("release is called once: an unregister after the end of the space calls none", async () => {
    const { notifiers, log } = alone();
    const notifier = logging(log, "list");
    await notifiers.register(notifier);
    await notifiers.release();
    await notifiers.unregister(notifier);
    expect(log).toEqual(["list release"]);
  });

  test("release may wait: the end of the space waits for it", async () => {
    const { world, notifiers, log } = alone();
    const device = gate(world);
    await notifiers.register(
      logging(log, "list", {
        *release(): Op<void> {
          yield* device.wait();
          log.push("torn down");
        },
      }),
    );
    const state = watch(notifiers.release());
    await turnOfLoop();
    expect(state.state).toBe("pending");
    device.open();
    await vi.waitUntil(() => state.state !== "pending");
    expect(log).toEqual(["torn down"]);
  });

  test("each question about age has its own op, with its bounds", async () => {
    const { notifiers, log } = alone();
    await notifiers.register(
      new MmuNotifier({
        clearFlushYoung: (_n, _s, start, end) => (log.push(`flush ${start}-${end}`), false),
        clearYoung: (_n, _s, start, end) => (log.push(`clear ${start}-${end}`), false),
        testYoung: (_n, _s, address) => (log.push(`test ${address}`), false),
      }),
    );
    notifiers.clearFlushYoung(1, 2);
    notifiers.clearYoung(3, 4);
    notifiers.testYoung(5);
    expect(log).toEqual(["flush 1-2", "clear 3-4", "test 5"]);
  });

  test("the aging ops cannot wait: operations are EDEADLK there", async () => {
    const { notifiers } = alone();
    const codes: string[] = [];
    const attempt = (): boolean => (codes.push(codeOf(() => notifiers.sync.insert(obedient(), 0, 1))), false);
    await notifiers.register(
      new MmuNotifier({ clearFlushYoung: attempt, clearYoung: attempt, testYoung: attempt }),
    );
    notifiers.clearFlushYoung(0, 1);
    notifiers.clearYoung(0, 1);
    notifiers.testYoung(0);
    expect(codes).toEqual(["EDEADLK", "EDEADLK", "EDEADLK"]);
  });

  test("testYoung changes nothing; clearYoung and clearFlushYoung clear what they find", async () => {
    const { world, notifiers } = alone();
    const bits = new Int32Array(world.arena.buffer, words(world.arena, world.agents[0]!.agent, 1) * 4, 1);
    await notifiers.register(new MmuNotifier({}, { accessed: { start: 0, length: 32 * PAGE, bits } }));
    Atomics.store(bits, 0, 0b11);
    expect([notifiers.testYoung(0), notifiers.testYoung(0)]).toEqual([true, true]);
    expect(Atomics.load(bits, 0)).toBe(0b11);
    expect([notifiers.clearYoung(0, PAGE), notifiers.clearYoung(0, PAGE)]).toEqual([true, false]);
    expect([notifiers.clearFlushYoung(0, 2 * PAGE), Atomics.load(bits, 0)]).toEqual([true, 0]);
  });

  test("a start that can refuse excludes an end: from its first refusal on it cannot be registered again", async () => {
    const { world, notifiers } = alone();
    const notifier = logging([], "both", { invalidateRangeStart: (_n, r) => r.blockable });
    notifiers.sync.register(notifier);
    expect(codeOf(() => notifiers.try.invalidate(range(0, 10), () => {}))).toBe("EAGAIN");
    expect(world.agents[0]!.errors.map((e) => e.code)).toEqual(["EINVAL"]);
    notifiers.sync.unregister(notifier);
    expect(codeOf(() => notifiers.sync.register(notifier))).toBe("EINVAL");
  });

  test("get() makes its notifier with allocNotifier", async () => {
    const { notifiers } = alone();
    const ops: MmuNotifierOps = { allocNotifier: () => made };
    const made = new MmuNotifier(ops);
    expect(await notifiers.get(ops)).toBe(made);
  });
});

describe("an interval", () => {
  test("has start and last, the last byte that is in it", () => {
    const { notifiers } = alone();
    const A = notifiers.sync.insert(obedient(), 100, 50);
    expect([A.start, A.last]).toEqual([100, 149]);
  });

  test("hears of a range once, at its start: it has no end callback", async () => {
    const { notifiers } = alone();
    const told = vi.fn();
    notifiers.sync.insert(obedient(told), 0, 10);
    await notifiers.invalidate(range(0, 10), () => {});
    expect(told).toHaveBeenCalledTimes(1);
  });

  test("need not set its number: who never reads it may leave it out", async () => {
    const { world, notifiers } = alone();
    const A = notifiers.sync.insert({ invalidate: () => true }, 0, 10);
    expect(await notifiers.invalidate(range(0, 10), () => "changed")).toBe("changed");
    expect(ownSeq(world, A)).toBe(1);
  });
});

// ---- 1.5 ------------------------------------------------------------------------------------------------------

describe("registration", () => {
  test("any is false in a new space, true from the first registration on, and stays true", () => {
    const { notifiers } = alone();
    expect(notifiers.any).toBe(false);
    notifiers.sync.invalidate(range(0, 10), () => {});
    expect(notifiers.any).toBe(false);
    const A = notifiers.sync.insert(obedient(), 0, 10);
    expect(notifiers.any).toBe(true);
    A.sync.remove();
    expect(notifiers.any).toBe(true);
  });

  test("get() of a notifier with too many users is EOVERFLOW", async () => {
    const { notifiers } = alone();
    const ops: MmuNotifierOps = {};
    const notifier = await notifiers.get(ops);
    notifier.addUsers(2 ** 32 - 2);
    expect(notifier.users).toBe(2 ** 32 - 1);
    expect(codeOf(() => notifiers.sync.get(ops))).toBe("EOVERFLOW");
    notifier.addUsers(-1);
    expect(notifiers.sync.get(ops)).toBe(notifier);
  });

  test("an insert that is refused inserts nothing, and leaves the space without notifiers", () => {
    const { world, notifiers } = alone();
    const used = heapUsed(world);
    for (const [start, length] of [
      [0, 0],
      [ADDRESS_END, 2],
    ] as const)
      expect(codeOf(() => notifiers.sync.insert(obedient(), start, length))).toBe("EOVERFLOW");
    expect([notifiers.any, heapUsed(world)]).toEqual([false, used]);
    expect(notifiers.overlapping(0, ADDRESS_END)).toEqual([]);
  });

  test("an interval may end with the last byte of the space", () => {
    const { notifiers } = alone();
    const A = notifiers.sync.insert(obedient(), 1, ADDRESS_END);
    expect(A.last).toBe(ADDRESS_END);
  });

  test("synchronize returns when what has been put is freed", async () => {
    const { world, notifiers, log } = alone();
    const device = gate(world);
    const notifier = await notifiers.get({
      *invalidateRangeStart(): Op<void> {
        yield* device.wait();
      },
      freeNotifier: () => void log.push("freed"),
    });
    const invalidating = notifiers.invalidate(range(0, 10), () => {});
    notifiers.put(notifier);
    const state = watch(notifiers.synchronize());
    await turnOfLoop();
    expect([state.state, log]).toEqual(["pending", []]);
    device.open();
    await invalidating;
    await vi.waitUntil(() => state.state !== "pending");
    expect(log).toEqual(["freed"]);
  });

  test("a full list: list notifiers are called newest first", async () => {
    const { notifiers, log } = alone();
    for (const name of ["one", "two", "three"])
      await notifiers.register(
        new MmuNotifier({
          invalidateRangeStart: () => void log.push(name),
          invalidateRangeEnd: () => void log.push(name),
        }),
      );
    await notifiers.invalidate(range(0, 10), () => log.push("-"));
    expect(log).toEqual(["three", "two", "one", "-", "three", "two", "one"]);
  });

  test("a list notifier that waited for open ranges does not hear the end that lets it in", async () => {
    const { notifiers, log } = alone();
    await notifiers.register(logging(log, "old"));
    const open = await notifiers.invalidateRangeStart(range(0, 10));
    const registering = notifiers.register(logging(log, "new"));
    notifiers.invalidateRangeEnd(open);
    await registering;
    expect(log).toEqual(["old start", "old end"]);
    await notifiers.invalidate(range(0, 10), () => {});
    expect(log.slice(2)).toEqual(["new start", "old start", "new end", "old end"]);
  });
});

// ---- 1.6 ------------------------------------------------------------------------------------------------------

describe("reading", () => {
  test("readBegin waits while an invalidation that has hit its interval is open", async () => {
    const { notifiers } = alone();
    const A = notifiers.sync.insert(obedient(), 0, 10);
    const open = notifiers.sync.invalidateRangeStart(range(0, 10));
    const reading = A.readBegin();
    const state = watch(reading);
    await turnOfLoop();
    expect(state.state).toBe("pending");
    notifiers.invalidateRangeEnd(open);
    expect(await reading).toBe(3);
  });

  test("readBegin gives the number it read before it waited, and does not wait again: readRetry may be true at once", async () => {
    const { world, notifiers } = alone();
    const A = notifiers.sync.insert(obedient(), 0, 10);
    const first = notifiers.sync.invalidateRangeStart(range(0, 10));
    const reading = A.readBegin();
    notifiers.invalidateRangeEnd(first);
    const second = notifiers.sync.invalidateRangeStart(range(0, 10));
    const state = watch(reading);
    await vi.waitUntil(() => state.state !== "pending");
    expect([world.seq(), ownSeq(world, A)]).toEqual([5, 5]);
    const seq = await reading;
    expect([seq, A.readRetry(seq)]).toEqual([3, true]);
    notifiers.invalidateRangeEnd(second);
  });

  test("readBegin in a callback is EDEADLK, also where it need not wait", () => {
    const { notifiers } = alone();
    const B = notifiers.sync.insert(obedient(), 1000, 10);
    const codes: string[] = [];
    notifiers.sync.insert(
      obedient(() => codes.push(codeOf(() => B.sync.readBegin()))),
      0,
      10,
    );
    notifiers.sync.invalidate(range(0, 10), () => {});
    expect(codes).toEqual(["EDEADLK"]);
  });

  test("setSeq stores the number: readers that began before start over", () => {
    const { world, notifiers } = alone();
    const A = notifiers.sync.insert(obedient(), 0, 10);
    const seq = A.sync.readBegin();
    notifiers.sync.invalidate(range(0, 10), () => {});
    expect([ownSeq(world, A), A.readRetry(seq)]).toEqual([3, true]);
  });

  test("readRetry is true exactly where the number is another one", () => {
    const { notifiers } = alone();
    const A = notifiers.sync.insert(obedient(), 0, 10);
    const seq = A.sync.readBegin();
    expect([A.readRetry(seq), A.readRetry(seq - 2), A.readRetry(seq + 2)]).toEqual([false, true, true]);
    notifiers.sync.invalidate(range(100, 110), () => {});
    expect(A.readRetry(seq)).toBe(false);
  });

  test("checkRetry compares as readRetry does, without the lock", () => {
    const { notifiers } = alone();
    const A = notifiers.sync.insert(obedient(), 0, 10);
    const seq = A.sync.readBegin();
    expect(A.checkRetry(seq)).toBe(false);
    notifiers.sync.invalidate(range(0, 10), () => {});
    expect(A.checkRetry(seq)).toBe(true);
  });
});

// ---- 1.7 ------------------------------------------------------------------------------------------------------

describe("the side of the primary MMU", () => {
  test("clearing asks every list notifier and ORs the answers: no short circuit", async () => {
    const { notifiers, log } = alone();
    for (const name of ["old", "young"]) {
      const say = (): boolean => (log.push(name), name === "young");
      await notifiers.register(new MmuNotifier({ clearFlushYoung: say, clearYoung: say }));
    }
    expect([notifiers.clearFlushYoung(0, 1), notifiers.clearYoung(0, 1)]).toEqual([true, true]);
    expect(log).toEqual(["young", "old", "young", "old"]);
  });

  test("clearing is true where any list notifier was young, also the first asked", async () => {
    const { notifiers } = alone();
    for (const young of [false, true, false])
      await notifiers.register(
        new MmuNotifier({ clearFlushYoung: () => young, clearYoung: () => young, testYoung: () => young }),
      );
    expect([notifiers.clearFlushYoung(0, 1), notifiers.clearYoung(0, 1), notifiers.testYoung(0)]).toEqual([
      true,
      true,
      true,
    ]);
  });

  test("testYoung stops at the first list notifier that says yes", async () => {
    const { notifiers, log } = alone();
    for (const name of ["last", "young", "first"])
      await notifiers.register(new MmuNotifier({ testYoung: () => (log.push(name), name === "young") }));
    expect(notifiers.testYoung(0)).toBe(true);
    expect(log).toEqual(["first", "young"]);
  });
});

// ---- 2 --------------------------------------------------------------------------------------------------------

describe("the state machine", () => {
  test("a fresh record: number 2, no open range, an empty tree", () => {
    const { world, notifiers } = alone();
    expect([world.seq(), world.open(), world.deferred()]).toEqual([2, 0, 0]);
    expect(notifiers.overlapping(0, ADDRESS_END)).toEqual([]);
  });

  test("every open range is counted, whether it hits an interval or not", () => {
    const { world, notifiers } = alone();
    notifiers.sync.insert(obedient(), 0, 10);
    const open = [range(0, 10), range(100, 110), range(100, 120)].map((r) =>
      notifiers.sync.invalidateRangeStart(r),
    );
    expect(world.open()).toBe(3);
    for (const r of open) notifiers.invalidateRangeEnd(r);
    expect(world.open()).toBe(0);
  });

  test("ranges that hit nobody leave the tree mutable: the number stays even", () => {
    const { world, notifiers } = alone();
    const A = notifiers.sync.insert(obedient(), 0, 10);
    const open = notifiers.sync.invalidateRangeStart(range(100, 110));
    expect([world.seq(), world.open()]).toEqual([2, 1]);
    A.try.remove();
    expect(notifiers.overlapping(0, 10)).toEqual([]);
    notifiers.invalidateRangeEnd(open);
  });

  test("a start that hits an interval makes the number odd; one that hits nobody leaves it", () => {
    const { world, notifiers } = alone();
    notifiers.sync.insert(obedient(), 0, 10);
    notifiers.sync.invalidate(range(100, 110), () => {
      expect(world.seq()).toBe(2);
    });
    notifiers.sync.invalidate(range(0, 10), () => {
      expect(world.seq()).toBe(3);
    });
    expect(world.seq()).toBe(4);
  });

  test("a later start of the same epoch leaves the odd number as it is", () => {
    const { world, notifiers } = alone();
    notifiers.sync.insert(obedient(), 0, 10);
    const open = [1, 2, 3].map(() => {
      const r = notifiers.sync.invalidateRangeStart(range(0, 10));
      expect(world.seq()).toBe(3);
      return r;
    });
    for (const r of open) notifiers.invalidateRangeEnd(r);
    expect(world.seq()).toBe(4);
  });

  test("a start tells every interval that it hits", () => {
    const { notifiers } = alone();
    const told: number[] = [];
    for (const at of [0, 10, 20, 30, 40])
      notifiers.sync.insert(
        obedient((i) => told.push(i.start)),
        at,
        10,
      );
    notifiers.sync.invalidate(range(5, 35), () => {});
    expect(told).toEqual([0, 10, 20, 30]);
  });

  test("intervals are told by ascending start, those with the same start in the order of insertion", () => {
    const { notifiers, log } = alone();
    for (const [name, start] of [
      ["d", 30],
      ["b", 20],
      ["c", 20],
      ["a", 10],
    ] as const)
      notifiers.sync.insert(
        obedient(() => log.push(name)),
        start,
        10,
      );
    notifiers.sync.invalidate(range(0, 100), () => {});
    expect(log.join("")).toBe("abcd");
  });

  test("intervals are told before list notifiers", async () => {
    const { notifiers, log } = alone();
    await notifiers.register(new MmuNotifier({ invalidateRangeStart: () => void log.push("list") }));
    notifiers.sync.insert(
      obedient(() => log.push("interval")),
      0,
      10,
    );
    await notifiers.invalidate(range(0, 10), () => {});
    expect(log).toEqual(["interval", "list"]);
  });

  test("callbacks run without the subscriptions' lock", async () => {
    const { world, notifiers } = alone();
    const locks: number[] = [];
    const look = (): void => void locks.push(Atomics.load(world.arena.words, world.subs + SUBS_LOCK));
    notifiers.sync.insert(obedient(look), 0, 10);
    await notifiers.register(new MmuNotifier({ invalidateRangeStart: look, invalidateRangeEnd: look }));
    await notifiers.invalidate(range(0, 10), () => {});
    expect(locks).toEqual([0, 0, 0]);
  });

  test("an end that is not the last changes nothing but the count", () => {
    const { world, notifiers } = alone();
    notifiers.sync.insert(obedient(), 0, 10);
    const [one, two] = [range(0, 10), range(0, 10)].map((r) => notifiers.sync.invalidateRangeStart(r));
    const late = notifiers.sync.insert(obedient(), 20, 10);
    notifiers.invalidateRangeEnd(one!);
    expect([world.seq(), world.open(), world.deferred() !== 0]).toEqual([3, 1, true]);
    expect(notifiers.overlapping(20, 30)).toEqual([]);
    notifiers.invalidateRangeEnd(two!);
    expect([world.seq(), world.open(), world.deferred()]).toEqual([4, 0, 0]);
    expect(notifiers.overlapping(20, 30)).toEqual([late.id]);
  });

  test("an end while the number is even leaves it, and so does the registration of a list notifier", async () => {
    const { world, notifiers } = alone();
    notifiers.sync.insert(obedient(), 0, 10);
    const open = notifiers.sync.invalidateRangeStart(range(100, 110));
    const registering = notifiers.register(new MmuNotifier({}));
    notifiers.invalidateRangeEnd(open);
    await registering;
    expect(world.seq()).toBe(2);
  });

  test("the last end puts intervals whose insert was deferred into the tree", () => {
    const { notifiers } = alone();
    const A = notifiers.sync.insert(obedient(), 0, 10);
    const open = notifiers.sync.invalidateRangeStart(range(0, 10));
    const late = [20, 30].map((at) => notifiers.sync.insert(obedient(), at, 10).id);
    expect(notifiers.overlapping(0, 100)).toEqual([A.id]);
    notifiers.invalidateRangeEnd(open);
    expect(notifiers.overlapping(0, 100)).toEqual([A.id, ...late]);
  });

  test("the last end takes intervals whose removal was deferred out of the tree", async () => {
    const { notifiers } = alone();
    const [A, B] = [0, 20].map((at) => notifiers.sync.insert(obedient(), at, 10)) as [
      IntervalNotifier,
      IntervalNotifier,
    ];
    const open = notifiers.sync.invalidateRangeStart(range(0, 10));
    const removing = B.remove();
    expect(notifiers.overlapping(0, 100)).toEqual([A.id, B.id]);
    notifiers.invalidateRangeEnd(open);
    expect(notifiers.overlapping(0, 100)).toEqual([A.id]);
    await removing;
  });

  test("the last end wakes everybody who waits", async () => {
    const { world, notifiers } = alone();
    const armed = (): boolean => Atomics.load(world.arena.words, world.subs + SUBS_QUEUE) !== 0;
    const [A, B] = [0, 20].map((at) => notifiers.sync.insert(obedient(), at, 10)) as [
      IntervalNotifier,
      IntervalNotifier,
    ];
    const open = notifiers.sync.invalidateRangeStart(range(0, 10));
    const waiting = [A.readBegin(), B.remove()];
    await turnOfLoop();
    expect(armed()).toBe(true);
    notifiers.invalidateRangeEnd(open);
    expect(armed()).toBe(false);
    await Promise.all(waiting);
  });

  test("the first reader of an interval whose insert is deferred waits until the open epoch is over", async () => {
    const { world, notifiers } = alone();
    notifiers.sync.insert(obedient(), 0, 10);
    const open = notifiers.sync.invalidateRangeStart(range(0, 10));
    const late = notifiers.sync.insert(obedient(), 20, 10);
    expect([ownSeq(world, late), world.seq()]).toEqual([3, 3]);
    expect(codeOf(() => late.try.readBegin())).toBe("EAGAIN");
    notifiers.invalidateRangeEnd(open);
    expect(late.try.readBegin()).toBe(3);
  });

  test("a remove waits for the callback of its interval, and for the range that called it", async () => {
    const { world, notifiers } = alone();
    const device = gate(world);
    let running = false;
    const A = notifiers.sync.insert(
      {
        *invalidate(interval, _r, curSeq): Op<boolean> {
          running = true;
          yield* device.wait();
          interval.setSeq(curSeq);
          running = false;
          return true;
        },
      },
      0,
      10,
    );
    const invalidating = notifiers.invalidate(range(0, 10), () => {});
    const state = watch(A.remove());
    await turnOfLoop();
    expect([running, state.state]).toEqual([true, "pending"]);
    device.open();
    await invalidating;
    await vi.waitUntil(() => state.state !== "pending");
    expect(running).toBe(false);
  });
});

describe("the order of a fill and an invalidation", () => {
  /** A mirror of one number, which an interval keeps as the contract asks. */
  function mirrored(): {
    notifiers: Subscriber["notifiers"];
    interval: IntervalNotifier;
    mirror: { value: number | undefined };
  } {
    const { notifiers } = alone();
    const mirror: { value: number | undefined } = { value: undefined };
    const interval = notifiers.sync.insert(
      obedient(() => (mirror.value = undefined)),
      0,
      10,
    );
    return { notifiers, interval, mirror };
  }

  test("callback first: the reader starts over, nothing stale is installed", () => {
    const { notifiers, interval } = mirrored();
    const seq = interval.sync.readBegin();
    notifiers.sync.invalidate(range(0, 10), () => {
      expect(interval.readRetry(seq)).toBe(true);
    });
    expect(interval.readRetry(seq)).toBe(true);
  });

  test("reader first: what it installed is torn down before the start returns", () => {
    const { notifiers, interval, mirror } = mirrored();
    const seq = interval.sync.readBegin();
    expect(interval.readRetry(seq)).toBe(false);
    mirror.value = 1;
    notifiers.sync.invalidate(range(0, 10), () => {
      expect(mirror.value).toBeUndefined();
    });
  });

  test("a reader that begins after the epoch has closed does not wait, and the next epoch's number is larger", () => {
    const { notifiers, interval } = mirrored();
    const numbers: number[] = [];
    for (let k = 0; k < 3; k++) {
      notifiers.sync.invalidate(range(0, 10), () => {});
      numbers.push(interval.try.readBegin());
    }
    expect(numbers).toEqual([3, 5, 7]);
  });
});

describe("properties to preserve", () => {
  test("a start waits for no open range, reader, remover or registration", async () => {
    const { notifiers } = alone();
    const [A, B] = [0, 20].map((at) => notifiers.sync.insert(obedient(), at, 10)) as [
      IntervalNotifier,
      IntervalNotifier,
    ];
    const open = notifiers.sync.invalidateRangeStart(range(0, 10));
    const waiting = [A.readBegin(), B.remove(), notifiers.register(new MmuNotifier({}))];
    expect(notifiers.try.invalidate(range(0, 100), () => "changed")).toBe("changed");
    notifiers.invalidateRangeEnd(open);
    await Promise.all(waiting);
  });

  test("the callback of an interval may run several times at once", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const devices = [gate(world), gate(world)];
    let calls = 0;
    const log: string[] = [];
    b.notifiers.sync.insert(
      {
        *invalidate(interval, _r, curSeq): Op<boolean> {
          const call = calls++;
          log.push(`${call} begins`);
          yield* devices[call]!.wait();
          interval.setSeq(curSeq);
          log.push(`${call} ends`);
          return true;
        },
      },
      0,
      10,
    );
    const invalidating = [a, b].map(({ notifiers }) => notifiers.invalidate(range(0, 10), () => {}));
    await vi.waitUntil(() => calls === 2);
    devices[1]!.open();
    await vi.waitUntil(() => log.length === 3);
    devices[0]!.open();
    await Promise.all(invalidating);
    expect(log).toEqual(["0 begins", "1 begins", "1 ends", "0 ends"]);
  });

  test("ranges may be open at once and nest, and each interval hears of each", async () => {
    const world = notifierWorld(2);
    const told: string[] = [];
    const [a, b] = world.agents as [Subscriber, Subscriber];
    a.notifiers.sync.insert(
      obedient((_, r) => told.push(`${r.start}-${r.end}`)),
      0,
      100,
    );
    await a.notifiers.invalidate(range(0, 50), () => {
      a.notifiers.sync.invalidate(range(10, 20), () => {
        expect(world.open()).toBe(2);
      });
      return b.notifiers.operations.invalidate(range(40, 60), () => {
        expect(world.open()).toBe(2);
      });
    });
    expect(told).toEqual(["0-50", "10-20", "40-60"]);
  });

  test("a range over the whole space tells every interval once", () => {
    const { notifiers } = alone();
    const told: number[] = [];
    for (const at of [0, 4096, 2 ** 40])
      notifiers.sync.insert(
        obedient((i) => told.push(i.start)),
        at,
        4096,
      );
    notifiers.sync.invalidate(range(0, ADDRESS_END), () => {});
    expect(told).toEqual([0, 4096, 2 ** 40]);
  });

  test("intervals may overlap and be equal: each is told", () => {
    const { notifiers } = alone();
    const told = vi.fn();
    for (const [start, length] of [
      [0, 10],
      [0, 10],
      [5, 10],
    ] as const)
      notifiers.sync.insert(obedient(told), start, length);
    notifiers.sync.invalidate(range(6, 7), () => {});
    expect(told).toHaveBeenCalledTimes(3);
  });

  test("start and length of an interval need no alignment", () => {
    const { notifiers } = alone();
    const told = vi.fn();
    notifiers.sync.insert(obedient(told), 4097, 3);
    notifiers.sync.invalidate(range(4100, 8192), () => {});
    expect(told).not.toHaveBeenCalled();
    notifiers.sync.invalidate(range(4099, 4100), () => {});
    expect(told).toHaveBeenCalledTimes(1);
  });
});

// ---- 2.10 -----------------------------------------------------------------------------------------------------

/** What can be seen of the subscriptions between two steps. */
interface Seen {
  readonly seq: number;
  readonly open: number;
  readonly deferred: boolean;
  readonly tree: readonly number[];
  /** The numbers of the intervals, and what readBegin() would give without waiting. */
  readonly own: readonly number[];
  readonly readable: readonly (number | undefined)[];
}

/**
 * Goes through all states of 2.1 and all edges of 2.2 to 2.5; gives what was seen after each step, and curSeq and S in
 * each callback. `finish` throws what stopped it on its way, if anything: what was seen until then is looked at first.
 */
async function everyState(): Promise<{ seen: Seen[]; told: [number, number][]; finish: () => void }> {
  const { world, notifiers } = alone();
  const live = new Set<IntervalNotifier>();
  const seen: Seen[] = [];
  const told: [number, number][] = [];
  const look = (): void => {
    const all = [...live];
    seen.push({
      seq: world.seq(),
      open: world.open(),
      deferred: world.deferred() !== 0,
      tree: notifiers.overlapping(0, 10_000),
      own: all.map((i) => ownSeq(world, i)),
      readable: all.map((i) => i.tryReadBegin()),
    });
  };
  const insert = (start: number): IntervalNotifier => {
    const ops = obedient((_i, _r, curSeq) => told.push([curSeq, world.seq()]));
    const interval = notifiers.sync.insert(ops, start, 100);
    live.add(interval);
    look();
    return interval;
  };
  const begin = (from: number, to: number): (() => void) => {
    const open = notifiers.sync.invalidateRangeStart(range(from, to));
    look();
    return () => {
      notifiers.invalidateRangeEnd(open);
      look();
    };
  };
  let stopped: unknown;
  try {
    look();
    const [A, B] = [insert(100), insert(200)];
    begin(100, 150)(); //                  idle, excluded, idle
    const miss = begin(5000, 6000); //     partially excluded
    live.delete(B);
    B.try.remove(); //                     at once
    look();
    insert(300); //                        makes the number odd
    const late = insert(400); //           deferred
    live.delete(late);
    late.try.remove(); //                  taken back
    look();
    miss();
    const one = begin(100, 400);
    const two = begin(150, 160); //        the same epoch
    insert(500); //                        deferred
    live.delete(A);
    const removing = A.remove(); //        deferred
    look();
    one();
    two();
    await removing;
    look();
    begin(300, 600)();
    for (const interval of live) interval.sync.remove();
  } catch (error) {
    stopped = error;
  }
  const finish = (): void => {
    if (stopped !== undefined) throw stopped;
  };
  return { seen, told, finish };
}

describe("invariants", () => {
  test("I1: the number of every interval is odd, whenever it was inserted or told", async () => {
    const { seen, finish } = await everyState();
    const own = seen.flatMap((s) => s.own);
    expect(own.filter((n) => n % 2 === 0)).toEqual([]);
    finish();
    expect(new Set(own).size).toBeGreaterThan(4);
  });

  test("I2: where no range is open the number is even", async () => {
    const { seen, finish } = await everyState();
    expect(seen.filter((s) => s.open === 0 && s.seq % 2 === 1)).toEqual([]);
    finish();
    expect(seen.filter((s) => s.open > 0 && s.seq % 2 === 1).length).toBeGreaterThan(5);
  });

  test("I3: the tree does not change while the number stays odd", async () => {
    const { seen, finish } = await everyState();
    const changed = seen.slice(1).flatMap((after, k) => {
      const before = seen[k]!;
      return before.tree.join() === after.tree.join() ? [] : [[before.seq, after.seq]];
    });
    expect(changed.filter(([before, after]) => before! % 2 === 1 && after! % 2 === 1)).toEqual([]);
    finish();
    expect(changed.length).toBeGreaterThan(4);
  });

  test("I4: where edits are deferred the number is odd", async () => {
    const { seen, finish } = await everyState();
    const deferred = seen.filter((s) => s.deferred);
    expect(deferred.filter((s) => s.seq % 2 === 0)).toEqual([]);
    finish();
    expect(deferred.length).toBeGreaterThan(2);
  });

  test("I5: the number never goes back", async () => {
    const { seen, finish } = await everyState();
    const numbers = seen.map((s) => s.seq);
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
    finish();
    expect(numbers.at(-1)! - numbers[0]!).toBe(8);
  });

  test("I6: in every callback the number given is odd, and that of the space", async () => {
    const { told, finish } = await everyState();
    expect(told.filter(([given, own]) => given % 2 === 0 || given !== own)).toEqual([]);
    finish();
    expect(told.map(([given]) => given)).toEqual([3, 7, 7, 7, 9, 9]);
  });

  test("I7: no reader gets the number of an epoch that is open", async () => {
    const { seen, finish } = await everyState();
    for (const s of seen) expect(s.readable).not.toContain(s.seq);
    finish();
    expect(seen.flatMap((s) => s.readable).filter((n) => n === undefined).length).toBeGreaterThan(3);
  });

  test("I8: when a remove has returned no callback of the interval runs, and none will", async () => {
    const { world, notifiers } = alone();
    const device = gate(world);
    let [calls, running] = [0, 0];
    const A = notifiers.sync.insert(
      {
        *invalidate(interval, _r, curSeq): Op<boolean> {
          calls++;
          running++;
          yield* device.wait();
          interval.setSeq(curSeq);
          running--;
          return true;
        },
      },
      0,
      10,
    );
    const invalidating = notifiers.invalidate(range(0, 10), () => {});
    const removing = A.remove().then(() => running);
    await turnOfLoop();
    device.open();
    expect(await removing).toBe(0);
    await invalidating;
    await notifiers.invalidate(range(0, 10), () => {});
    expect(calls).toBe(1);
  });

  test("I10: when no range is open any more, readers, removers and registrations go on, and a retry loop ends", async () => {
    const { notifiers } = alone();
    const [A, B] = [0, 20].map((at) => notifiers.sync.insert(obedient(), at, 10)) as [
      IntervalNotifier,
      IntervalNotifier,
    ];
    const open = [range(0, 10), range(0, 100)].map((r) => notifiers.sync.invalidateRangeStart(r));
    const fill = async (): Promise<number> => {
      for (let tries = 1; ; tries++) {
        const seq = await A.readBegin();
        if (!A.readRetry(seq)) return tries;
      }
    };
    const all = [fill(), B.remove(), notifiers.register(new MmuNotifier({}))].map((p) =>
      watch(p as Promise<unknown>),
    );
    await turnOfLoop();
    for (const r of open) notifiers.invalidateRangeEnd(r);
    await vi.waitUntil(() => all.every((s) => s.state.startsWith("fulfilled")));
    expect(all[0]!.state).toBe("fulfilled 1");
  });
});

// ---- 3 --------------------------------------------------------------------------------------------------------

describe("a range that may not wait", () => {
  /** An interval, one that refuses, another one, and a list notifier. */
  function refused(): { world: NotifierWorld; A: IntervalNotifier; log: string[] } {
    const { world, notifiers, log } = alone();
    const A = notifiers.sync.insert(
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
    notifiers.sync.register(logging(log, "list"));
    expect(codeOf(() => notifiers.try.invalidate(range(0, 100), () => log.push("change")))).toBe("EAGAIN");
    return { world, A, log };
  }

  test("an interval that refuses stops the walk: later ones are not called", () => {
    expect(refused().log.filter((l) => !l.startsWith("list"))).toEqual(["first", "refuses"]);
  });

  test("where an interval refuses no list notifier is called", () => {
    expect(refused().log.filter((l) => l.startsWith("list"))).toEqual([]);
  });

  test("where an interval refuses the range is ended: later readers do not hang", () => {
    const { world, A } = refused();
    expect([world.open(), world.seq()]).toEqual([0, 4]);
    expect(A.try.readBegin()).toBe(3);
  });

  test("who was told before the refusal has an invalidation too many: its readers start over, no more", () => {
    const { A } = refused();
    expect([A.readRetry(1), A.readRetry(A.try.readBegin())]).toEqual([true, false]);
  });

  test("every list notifier's start is called, also after one has refused", () => {
    const { notifiers, log } = alone();
    for (const name of ["last", "refuses", "first"])
      notifiers.sync.register(
        new MmuNotifier({
          invalidateRangeStart: (_n, r) => (log.push(name), name !== "refuses" || r.blockable),
        }),
      );
    expect(codeOf(() => notifiers.try.invalidate(range(0, 10), () => {}))).toBe("EAGAIN");
    expect(log).toEqual(["first", "refuses", "last"]);
  });

  test("after a refusal every list notifier that has an end gets it, and the caller gives none", () => {
    const { world, notifiers, log } = alone();
    notifiers.sync.register(logging(log, "old"));
    notifiers.sync.register(new MmuNotifier({ invalidateRangeStart: (_n, r) => r.blockable }));
    notifiers.sync.register(logging(log, "new"));
    expect(codeOf(() => notifiers.try.invalidateRangeStart(range(0, 10)))).toBe("EAGAIN");
    expect(log).toEqual(["new start", "old start", "new end", "old end"]);
    expect(world.open()).toBe(0);
  });

  test("a start that refuses leaves the change unmade", () => {
    const { notifiers } = alone();
    notifiers.sync.register(new MmuNotifier({ invalidateRangeStart: (_n, r) => r.blockable }));
    const change = vi.fn();
    expect(codeOf(() => notifiers.try.invalidate(range(0, 10), change))).toBe("EAGAIN");
    expect(change).not.toHaveBeenCalled();
  });
});

// ---- 4 --------------------------------------------------------------------------------------------------------

describe("references", () => {
  const recordWords = (world: NotifierWorld): number =>
    subsWords(Atomics.load(world.arena.words, HDR_MAX_AGENTS));

  test("an interval keeps the subscriptions' record after the space is gone, until it is removed", () => {
    const { world, notifiers } = alone();
    const used = heapUsed(world);
    const A = notifiers.sync.insert(obedient(), 0, 10);
    notifiers.disown();
    expect(heapUsed(world)).toBeGreaterThan(used);
    A.sync.remove();
    expect(heapUsed(world)).toBeLessThanOrEqual(used - recordWords(world));
  });

  test("a list notifier keeps the subscriptions' record after the space is gone, until it is unregistered", () => {
    const { world, notifiers } = alone();
    const used = heapUsed(world);
    const notifier = new MmuNotifier({});
    notifiers.sync.register(notifier);
    notifiers.disown();
    expect(heapUsed(world)).toBeGreaterThan(used);
    notifiers.sync.unregister(notifier);
    expect(heapUsed(world)).toBeLessThanOrEqual(used - recordWords(world));
  });

  test("users is 1 from register() on, and get() adds one", async () => {
    const { notifiers } = alone();
    const ops: MmuNotifierOps = {};
    const notifier = new MmuNotifier(ops);
    await notifiers.register(notifier);
    expect(notifier.users).toBe(1);
    await notifiers.get(ops);
    expect(notifier.users).toBe(2);
  });
});

describe("the end of a space", () => {
  test("intervals stay subscribed and hear of what is unmapped next", async () => {
    const { notifiers } = alone();
    const events: number[] = [];
    const A = notifiers.sync.insert(
      obedient((_, r) => events.push(r.event)),
      0,
      10,
    );
    await notifiers.release();
    expect(notifiers.overlapping(0, 10)).toEqual([A.id]);
    await notifiers.invalidate(range(0, 10), () => {});
    expect(events).toEqual([MmuNotifierEvent.Release, MmuNotifierEvent.Unmap]);
  });

  test("list notifiers are taken off the list and hear nothing more", async () => {
    const { notifiers, log } = alone();
    await notifiers.register(logging(log, "list"));
    await notifiers.release();
    await notifiers.invalidate(range(0, 10), () => {});
    expect(log).toEqual(["list release"]);
  });

  test("waits for callbacks of list notifiers that still run", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const device = gate(world);
    let running = false;
    await b.notifiers.register(
      new MmuNotifier({
        *invalidateRangeStart(): Op<void> {
          running = true;
          yield* device.wait();
          running = false;
        },
      }),
    );
    const invalidating = b.notifiers.invalidate(range(0, 10), () => {});
    await vi.waitUntil(() => running);
    const state = watch(a.notifiers.release());
    await turnOfLoop();
    expect(state.state).toBe("pending");
    device.open();
    await vi.waitUntil(() => state.state !== "pending");
    expect(running).toBe(false);
    await invalidating;
  });

  test("happens once: a second release calls nobody", async () => {
    const { notifiers, log } = alone();
    notifiers.sync.insert(
      obedient(() => log.push("interval")),
      0,
      10,
    );
    await notifiers.release();
    await notifiers.release();
    expect(log).toEqual(["interval"]);
  });
});

describe("unregister", () => {
  test("calls release while the notifier is still on the list, then takes it off", async () => {
    const { world, notifiers, log } = alone();
    const device = gate(world);
    const notifier = new MmuNotifier({
      *release(): Op<void> {
        log.push("release begins");
        yield* device.wait();
        log.push("release ends");
      },
      invalidateRangeStart: () => void log.push("start"),
    });
    await notifiers.register(notifier);
    const unregistering = notifiers.unregister(notifier);
    await notifiers.invalidate(range(0, 10), () => {});
    device.open();
    await unregistering;
    await notifiers.invalidate(range(0, 10), () => {});
    expect(log).toEqual(["release begins", "start", "release ends"]);
  });

  test("waits for callbacks of the notifier that run", async () => {
    const { world, notifiers } = alone();
    const device = gate(world);
    let running = false;
    const notifier = new MmuNotifier({
      *invalidateRangeStart(): Op<void> {
        running = true;
        yield* device.wait();
        running = false;
      },
    });
    await notifiers.register(notifier);
    const invalidating = notifiers.invalidate(range(0, 10), () => {});
    const state = watch(notifiers.unregister(notifier));
    await turnOfLoop();
    expect([running, state.state]).toEqual([true, "pending"]);
    device.open();
    await vi.waitUntil(() => state.state !== "pending");
    expect(running).toBe(false);
    await invalidating;
  });

  test("while the space ends waits for the release that runs", async () => {
    const { world, notifiers, log } = alone();
    const device = gate(world);
    const notifier = new MmuNotifier({
      *release(): Op<void> {
        log.push("begins");
        yield* device.wait();
        log.push("ends");
      },
    });
    await notifiers.register(notifier);
    const ending = notifiers.release();
    const state = watch(notifiers.unregister(notifier));
    await turnOfLoop();
    expect(state.state).toBe("pending");
    expect(log.filter((l) => l === "ends")).toEqual([]);
    device.open();
    await ending;
    await vi.waitUntil(() => state.state !== "pending");
    const calls = log.filter((l) => l === "begins").length;
    expect(log.filter((l) => l === "ends")).toHaveLength(calls);
  });

  test("twice at once works both times", async () => {
    const { world, notifiers } = alone();
    const device = gate(world);
    const notifier = new MmuNotifier({
      *invalidateRangeStart(): Op<void> {
        yield* device.wait();
      },
    });
    await notifiers.register(notifier);
    const invalidating = notifiers.invalidate(range(0, 10), () => {});
    const both = [notifiers.unregister(notifier), notifiers.unregister(notifier)].map(watch);
    await turnOfLoop();
    device.open();
    await invalidating;
    await vi.waitUntil(() => both.every((s) => s.state !== "pending"));
    expect(both.map((s) => s.state)).toEqual(["fulfilled undefined", "fulfilled undefined"]);
    expect(notifier.notifiers).toBeUndefined();
  });

  test("what was posted to a notifier is not taken for a later one's, which may have the same record", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const log: string[] = [];
    const device = (name: string): MmuNotifier =>
      new MmuNotifier({ archInvalidateSecondaryTlbs: () => void log.push(name) });
    const [first, second] = [device("first"), device("second")];
    await b.notifiers.register(first);
    const safepoint = vi.spyOn(b.agent, "safepoint").mockImplementation(() => {});
    a.notifiers.archInvalidateSecondaryTlbs(0, 10);
    const { record } = first;
    b.notifiers.sync.unregister(first);
    b.notifiers.sync.register(second);
    expect(second.record).toBe(record);
    safepoint.mockRestore();
    b.agent.safepoint();
    expect(log).toEqual([]);
    a.notifiers.archInvalidateSecondaryTlbs(0, 10);
    b.agent.safepoint();
    expect(log).toEqual(["second"]);
  });

  test("that runs a release holds up the end of the space until it has returned", async () => {
    const { world, notifiers } = alone();
    const device = gate(world);
    let calls = 0;
    const notifier = new MmuNotifier({
      *release(): Op<void> {
        if (calls++ === 0) yield* device.wait(); // the second call has nothing left to do
      },
    });
    await notifiers.register(notifier);
    const unregistering = notifiers.unregister(notifier);
    await turnOfLoop();
    const state = watch(notifiers.release());
    await turnOfLoop();
    expect([state.state, calls]).toEqual(["pending", 2]);
    device.open();
    await unregistering;
    await vi.waitUntil(() => state.state !== "pending");
  });
});

describe("grace periods", () => {
  test("a callback that waits holds up the unregister of other notifiers, too", async () => {
    const { world, notifiers } = alone();
    const device = gate(world);
    const slow = new MmuNotifier({
      *invalidateRangeStart(): Op<void> {
        yield* device.wait();
      },
    });
    const other = new MmuNotifier({});
    await notifiers.register(slow);
    await notifiers.register(other);
    const invalidating = notifiers.invalidate(range(0, 10), () => {});
    const state = watch(notifiers.unregister(other));
    await turnOfLoop();
    expect(state.state).toBe("pending");
    device.open();
    await invalidating;
    await vi.waitUntil(() => state.state !== "pending");
  });

  test("callbacks of intervals hold up no grace period: the frozen tree protects them", async () => {
    const { world, notifiers } = alone();
    const device = gate(world);
    const A = notifiers.sync.insert(
      {
        *invalidate(interval, _r, curSeq): Op<boolean> {
          yield* device.wait();
          interval.setSeq(curSeq);
          return true;
        },
      },
      0,
      10,
    );
    const notifier = new MmuNotifier({});
    await notifiers.register(notifier);
    const invalidating = notifiers.invalidate(range(0, 10), () => {});
    const state = watch(notifiers.unregister(notifier));
    await turnOfLoop();
    expect(state.state).toBe("fulfilled undefined");
    expect(nodeOf(A)).toBeGreaterThan(0);
    device.open();
    await invalidating;
  });
});
