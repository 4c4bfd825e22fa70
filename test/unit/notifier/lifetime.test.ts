/** Registering and unregistering, the end of a space, the death of agents. linux-semantics.md section 4; X10, X11. */
import { describe, expect, test, vi } from "vitest";
import { isMmError } from "../../../src/errors.ts";
import { heapUsedWords } from "../../../src/memory/index.ts";
import { MmuNotifier, MmuNotifierEvent, type MmuNotifierOps } from "../../../src/notifier/index.ts";
import {
  IV_SEQ,
  IV_WORDS,
  LN_WORDS,
  SUBS_DEFERRED,
  SUBS_LOCK,
  SUBS_SEQ,
  subsOpenAt,
} from "../../../src/notifier/layout.ts";
import { attachAgent, type Op, reap, waitOp, wakeQueue } from "../../../src/sched/index.ts";
import { QUEUE_WORDS } from "../../../src/sched/layout.ts";
import { words } from "../../lib/arena.ts";
import {
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

/** A tid that no thread has. */
const NO_THREAD = 2 ** 23;

/** A list notifier that counts its calls. */
function counting(more: MmuNotifierOps = {}): { notifier: MmuNotifier; calls: Record<string, number> } {
  const calls = { start: 0, end: 0, release: 0 };
  const notifier = new MmuNotifier({
    invalidateRangeStart: () => void calls.start++,
    invalidateRangeEnd: () => void calls.end++,
    release: () => void calls.release++,
    ...more,
  });
  return { notifier, calls };
}

const heapUsed = (world: NotifierWorld): number => heapUsedWords(world.agents[0]!.agent, world.arena.heap);

const codeOf = async (promise: Promise<unknown>): Promise<string> => {
  try {
    await promise;
    return "worked";
  } catch (error) {
    return isMmError(error) ? error.code : "foreign";
  }
};

describe("register", () => {
  test("a notifier hears of every range that starts after its registration, until it is unregistered", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const { notifier, calls } = counting();
    expect([notifiers.any, notifier.notifiers]).toEqual([false, undefined]);
    await notifiers.register(notifier);
    expect([notifiers.any, notifier.notifiers]).toEqual([true, notifiers]);
    await notifiers.invalidate(range(0, 10), () => {});
    await notifiers.unregister(notifier);
    await notifiers.invalidate(range(0, 10), () => {});
    expect(calls).toEqual({ start: 1, end: 1, release: 1 });
    expect([notifiers.any, notifier.notifiers]).toEqual([true, undefined]); // mm_has_notifiers() stays true
  });

  test("while ranges are open it waits, and never hears an end without its start", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const { notifier, calls } = counting();
    const first = await a.notifiers.invalidateRangeStart(range(0, 10));
    const registering = b.notifiers.register(notifier);
    const state = watch(registering);
    const second = await a.notifiers.invalidateRangeStart(range(10, 20));
    a.notifiers.invalidateRangeEnd(first);
    await turnOfLoop();
    expect(state.state).toBe("pending");
    a.notifiers.invalidateRangeEnd(second);
    await registering;
    expect(calls).toEqual({ start: 0, end: 0, release: 0 });
    await a.notifiers.invalidate(range(0, 10), () => {});
    await vi.waitUntil(() => calls["end"] === 1);
    expect(calls["start"]).toBe(1);
  });

  test("several that waited come in the order in which they asked: the newest is called first", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const log: number[] = [];
    const open = await notifiers.invalidateRangeStart(range(0, 10));
    const all = [1, 2, 3].map((k) =>
      notifiers.register(new MmuNotifier({ invalidateRangeStart: () => void log.push(k) })),
    );
    notifiers.invalidateRangeEnd(open);
    await Promise.all(all);
    await notifiers.invalidate(range(0, 10), () => {});
    expect(log).toEqual([3, 2, 1]);
  });

  test("one that may not wait is EAGAIN and leaves nothing behind; twice is EBUSY", () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const { notifier, calls } = counting();
    const open = notifiers.sync.invalidateRangeStart(range(0, 10));
    const used = heapUsed(world);
    expect(() => notifiers.try.register(notifier)).toThrow(/EAGAIN/);
    expect(heapUsed(world)).toBe(used);
    expect(notifier.notifiers).toBeUndefined();
    notifiers.invalidateRangeEnd(open);
    expect(calls).toEqual({ start: 0, end: 0, release: 0 });
    notifiers.try.register(notifier);
    expect(() => notifiers.try.register(notifier)).toThrow(/EBUSY/);
    notifiers.sync.invalidate(range(0, 10), () => {});
    expect(calls["start"]).toBe(1);
  });

  test("accessed bits that are not in the memory are EINVAL", () => {
    const world = notifierWorld(1);
    const notifier = new MmuNotifier({}, { accessed: { start: 0, length: 4096, bits: new Int32Array(1) } });
    expect(() => world.agents[0]!.notifiers.try.register(notifier)).toThrow(/EINVAL.*allocShared/);
    expect(
      () => new MmuNotifier({}, { accessed: { start: 0, length: 4096, bits: new Int32Array(0) } }),
    ).toThrow(/EINVAL/);
  });
});

describe("unregister", () => {
  test("what is not registered is EINVAL, with other notifiers too; in another agent EPERM; unfinished EBUSY", async () => {
    const world = notifierWorld(2);
    const elsewhere = notifierWorld(1);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const { notifier } = counting();
    expect(await codeOf(a.notifiers.unregister(notifier))).toBe("EINVAL");
    await a.notifiers.register(notifier);
    expect(await codeOf(b.notifiers.unregister(notifier))).toBe("EPERM");
    expect(await codeOf(elsewhere.agents[0]!.notifiers.register(notifier))).toBe("EBUSY");
    await a.notifiers.unregister(notifier);
    expect(await codeOf(a.notifiers.unregister(notifier))).toBe("EINVAL");
    const open = await a.notifiers.invalidateRangeStart(range(0, 10));
    const registering = a.notifiers.register(notifier);
    expect(await codeOf(a.notifiers.unregister(notifier))).toBe("EBUSY");
    a.notifiers.invalidateRangeEnd(open);
    await registering;
    await a.notifiers.unregister(notifier);
    expect(world.check()).toBeUndefined();
  });

  test("twice at once is once", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const { notifier } = counting();
    const used = heapUsed(world);
    await notifiers.register(notifier);
    await Promise.allSettled([notifiers.unregister(notifier), notifiers.unregister(notifier)]);
    expect(heapUsed(world)).toBe(used);
    await notifiers.register(notifier);
    await notifiers.unregister(notifier);
    expect(heapUsed(world)).toBe(used);
  });

  test("waits for callbacks that run, and none runs afterwards", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const queue = words(world.arena, a.agent, QUEUE_WORDS);
    let open = false;
    let running = 0;
    const { notifier } = counting({
      *invalidateRangeStart(): Op<void> {
        running++;
        yield* waitOp(queue, () => open, "the device");
        running--;
      },
    });
    await b.notifiers.register(notifier);
    const invalidating = a.notifiers.invalidate(range(0, 10), () => {});
    await vi.waitUntil(() => running === 1);
    const removing = b.notifiers.unregister(notifier);
    const state = watch(removing);
    await turnOfLoop();
    expect(state.state).toBe("pending");
    open = true;
    wakeQueue(world.arena.words, queue);
    await removing;
    expect(running).toBe(0);
    await invalidating;
    expect(world.open()).toBe(0);
  });

  test("X11: between a start and its end: the end is never delivered, here or in another agent", async () => {
    for (const where of [0, 1]) {
      const world = notifierWorld(2);
      const { notifiers } = world.agents[where]!;
      const { notifier, calls } = counting();
      await notifiers.register(notifier);
      const open = await world.agents[0]!.notifiers.invalidateRangeStart(range(0, 10));
      await notifiers.unregister(notifier);
      world.agents[0]!.notifiers.invalidateRangeEnd(open);
      await turnOfLoop();
      expect(calls).toEqual({ start: 1, end: 0, release: 1 });
      expect(world.open()).toBe(0);
    }
  });

  test("an end that is still under way is not taken for a later registration's, which may have the same record", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const first = counting();
    const second = counting();
    await b.notifiers.register(first.notifier);
    const open = await a.notifiers.invalidateRangeStart(range(0, 10));
    a.notifiers.invalidateRangeEnd(open); // posted, not served
    expect(b.agent.wanted).toBe(true);
    const { record } = first.notifier;
    const safepoint = vi.spyOn(b.agent, "safepoint").mockImplementation(() => {});
    b.notifiers.sync.unregister(first.notifier);
    b.notifiers.sync.register(second.notifier);
    expect(second.notifier.record).toBe(record);
    safepoint.mockRestore();
    b.agent.safepoint();
    expect(first.calls["end"]).toBe(0);
    expect(second.calls).toEqual({ start: 0, end: 0, release: 0 });
  });

  test("inside a try that cannot wait it is off the list and can be finished later", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    let entered = false;
    const queue = words(world.arena, a.agent, QUEUE_WORDS);
    let open = false;
    // Another notifier, in a, keeps a read section open.
    await a.notifiers.register(
      new MmuNotifier({
        *invalidateRangeStart(): Op<void> {
          entered = true;
          yield* waitOp(queue, () => open, "the device");
        },
      }),
    );
    const { notifier, calls } = counting();
    await b.notifiers.register(notifier);
    const invalidating = a.notifiers.invalidate(range(0, 10), () => {});
    await vi.waitUntil(() => entered);
    expect(() => b.notifiers.try.unregister(notifier)).toThrow(/EAGAIN/);
    open = true;
    wakeQueue(world.arena.words, queue);
    await invalidating;
    await a.notifiers.invalidate(range(0, 10), () => {});
    expect(calls).toEqual({ start: 1, end: 0, release: 1 });
    await b.notifiers.unregister(notifier);
    expect(calls["release"]).toBe(1);
    expect(notifier.notifiers).toBeUndefined();
  });

  test("a release that throws is reported, and the notifier is off all the same", async () => {
    const world = notifierWorld(1);
    const { notifiers, errors } = world.agents[0]!;
    const { notifier } = counting({
      release: () => {
        throw new Error("not now");
      },
    });
    await notifiers.register(notifier);
    await notifiers.unregister(notifier);
    expect(errors.map((e) => [e.code, (e.cause as Error).message])).toEqual([["ECALLBACK", "not now"]]);
    expect(notifier.notifiers).toBeUndefined();
  });

  test("disposing unregisters, also where it is not registered", async () => {
    const world = notifierWorld(1);
    const { notifier, calls } = counting();
    await notifier[Symbol.asyncDispose]();
    await world.agents[0]!.notifiers.register(notifier);
    await notifier[Symbol.asyncDispose]();
    expect([notifier.notifiers, calls["release"]]).toEqual([undefined, 1]);
  });
});

describe("the end of a space", () => {
  test("X10: intervals hear Release, then list notifiers their release, and are off; intervals hear later ranges", async () => {
    const world = notifierWorld(2);
    const log: string[] = [];
    for (const [k, { notifiers }] of world.agents.entries()) {
      await notifiers.insert(
        obedient((_, r) =>
          log.push(`interval ${k} ${r.event === MmuNotifierEvent.Release ? "release" : "unmap"}`),
        ),
        100 * k,
        10,
      );
      await notifiers.register(
        new MmuNotifier({
          release: () => void log.push(`list ${k} release`),
          invalidateRangeStart: () => void log.push(`list ${k} start`),
        }),
      );
    }
    const { notifiers } = world.agents[0]!;
    await notifiers.release();
    expect(log).toEqual(["interval 0 release", "interval 1 release", "list 1 release", "list 0 release"]);
    await notifiers.release(); // once
    expect(log).toHaveLength(4);
    await notifiers.invalidate(range(0, 1000), () => {}); // what exit does next
    expect(log.slice(4)).toEqual(["interval 0 unmap", "interval 1 unmap"]);
    expect(world.check()).toBeUndefined();
  });

  test("nothing is registered any more: ESRCH; what is registered can be taken away, without another release", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const interval = await b.notifiers.insert(obedient(), 0, 10);
    const { notifier, calls } = counting();
    await b.notifiers.register(notifier);
    await a.notifiers.release();
    expect(calls["release"]).toBe(1);
    for (const { notifiers } of world.agents) {
      expect(await codeOf(notifiers.insert(obedient(), 0, 10))).toBe("ESRCH");
      expect(await codeOf(notifiers.register(new MmuNotifier({})))).toBe("ESRCH");
    }
    await interval.remove();
    await b.notifiers.unregister(notifier);
    expect(calls["release"]).toBe(1);
  });

  test("a registration that waits for open ranges when the space ends is ESRCH", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    await a.notifiers.insert(obedient(), 0, 10);
    const open = await a.notifiers.invalidateRangeStart(range(0, 10));
    const { notifier, calls } = counting();
    const used = heapUsed(world);
    const registering = codeOf(b.notifiers.register(notifier));
    await a.notifiers.release();
    a.notifiers.invalidateRangeEnd(open);
    expect(await registering).toBe("ESRCH");
    expect(notifier.notifiers).toBeUndefined();
    expect(heapUsed(world)).toBe(used);
    await a.notifiers.invalidate(range(0, 10), () => {});
    expect(calls).toEqual({ start: 0, end: 0, release: 0 });
  });

  test("callbacks that throw are reported; the others hear of it", async () => {
    const world = notifierWorld(1);
    const { notifiers, errors } = world.agents[0]!;
    const told = vi.fn();
    const broken = (): never => {
      throw new Error("broken");
    };
    await notifiers.insert({ invalidate: broken }, 0, 10);
    await notifiers.insert(obedient(told), 5, 10);
    await notifiers.register(new MmuNotifier({ release: told }));
    await notifiers.register(new MmuNotifier({ release: broken }));
    await notifiers.release();
    expect(told).toHaveBeenCalledTimes(2);
    expect(errors.map((e) => e.code)).toEqual(["ECALLBACK", "ECALLBACK"]);
    expect(world.open()).toBe(0);
  });

  test("a space without subscribers just ends", async () => {
    const world = notifierWorld(1);
    await world.agents[0]!.notifiers.release();
    expect([world.seq(), world.open()]).toEqual([2, 0]);
  });
});

describe("the death of a subscriber", () => {
  test("nobody asks it any more; its intervals leave the tree and give back their records", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const used = heapUsed(world);
    const told = vi.fn();
    const interval = await b.notifiers.insert(obedient(told), 0, 10);
    await b.notifiers.register(new MmuNotifier({ invalidateRangeStart: told }));
    reap(a.agent, b.agent.slot);
    expect(a.notifiers.try.invalidate(range(0, 10), () => "changed")).toBe("changed");
    expect(told).not.toHaveBeenCalled();
    expect(a.notifiers.overlapping(0, 10)).toEqual([]);
    expect(() => a.notifiers.interval(interval.id)).toThrow(/ESRCH/);
    expect(heapUsed(world) - used).toBeLessThanOrEqual(16); // the list notifier's record is lost
    expect(world.check()).toBeUndefined();
  });

  test("during an invalidation: deferred inserts are forgotten, the rest leaves at the last end", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const own = await a.notifiers.insert(obedient(), 0, 10);
    const used = heapUsed(world);
    const intervals = [20, 30].map((at) => b.notifiers.sync.insert(obedient(), at, 10));
    const open = await a.notifiers.invalidateRangeStart(range(0, 10));
    b.notifiers.sync.insert(obedient(), 40, 10); // deferred
    void codeOf(intervals[1]!.remove()); // deferred
    void codeOf(b.notifiers.register(new MmuNotifier({}))); // pending
    reap(a.agent, b.agent.slot);
    expect(a.notifiers.overlapping(0, 100)).toEqual([own.id, intervals[0]!.id, intervals[1]!.id]);
    const second = await a.notifiers.invalidateRangeStart(range(0, 100));
    a.notifiers.invalidateRangeEnd(open);
    a.notifiers.invalidateRangeEnd(second);
    expect(a.notifiers.overlapping(0, 100)).toEqual([own.id]);
    expect(heapUsed(world) - used).toBeLessThanOrEqual(16);
    expect(world.check()).toBeUndefined();
  });

  test("one that owes an answer is answered for: the invalidation goes on, without an error", async () => {
    for (const died of ["before it looked", "in its callback"]) {
      const world = notifierWorld(3);
      const [a, b, c] = world.agents as [Subscriber, Subscriber, Subscriber];
      let entered = false;
      await b.notifiers.insert(
        {
          *invalidate(interval, _range, curSeq): Op<boolean> {
            entered = true;
            yield* waitOp(0, () => false, "what never comes");
            interval.setSeq(curSeq);
            return true;
          },
        },
        0,
        10,
      );
      const told = vi.fn();
      await c.notifiers.insert(obedient(told), 5, 10);
      if (died === "before it looked") b.agent.safepoint = (): void => {};
      const invalidating = a.notifiers.invalidate(range(0, 10), () => "changed");
      if (died !== "before it looked") await vi.waitUntil(() => entered);
      reap(c.agent, b.agent.slot);
      expect(await invalidating).toBe("changed");
      expect(told).toHaveBeenCalledTimes(1);
      expect([world.open(), world.seq()]).toEqual([0, 4]);
      expect(world.check()).toBeUndefined();
    }
  });

  test("that held the subscriptions' lock poisons the memory", () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    a.notifiers.sync.insert(obedient(), 0, 10);
    Atomics.store(world.arena.words, world.subs + SUBS_LOCK, b.agent.ownerId);
    reap(a.agent, b.agent.slot);
    expect(() => a.notifiers.sync.insert(obedient(), 0, 10)).toThrow(/EOWNERDEAD/);
  });
});

describe("the death of an invalidator", () => {
  test("its open ranges end: readers and removers go on, deferred edits are made", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const A = await b.notifiers.insert(obedient(), 0, 10);
    const gone = await b.notifiers.insert(obedient(), 20, 10);
    await a.notifiers.invalidateRangeStart(range(0, 10));
    const reading = A.readBegin();
    const removing = gone.remove();
    const late = await b.notifiers.insert(obedient(), 40, 10);
    reap(b.agent, a.agent.slot);
    expect(await reading).toBe(3);
    await removing;
    expect([world.seq(), world.open()]).toEqual([4, 0]);
    expect(b.notifiers.overlapping(0, 100)).toEqual([A.id, late.id]);
  });

  test("list notifiers elsewhere get the ends of its ranges, once for each start", async () => {
    const world = notifierWorld(3);
    const [a, b, c] = world.agents as [Subscriber, Subscriber, Subscriber];
    const { notifier, calls } = counting();
    const other = counting();
    await b.notifiers.register(notifier);
    await c.notifiers.register(other.notifier);
    const first = await a.notifiers.invalidateRangeStart(range(0, 10));
    await a.notifiers.invalidateRangeStart(range(0, 20));
    a.notifiers.invalidateRangeEnd(first);
    reap(b.agent, a.agent.slot);
    await vi.waitUntil(() => calls["end"] === 2 && other.calls["end"] === 2);
    await turnOfLoop();
    expect([calls, other.calls]).toEqual([
      { start: 2, end: 2, release: 0 },
      { start: 2, end: 2, release: 0 },
    ]);
    await b.notifiers.invalidate(range(0, 10), () => {});
    await vi.waitUntil(() => other.calls["end"] === 3);
    expect(calls).toEqual({ start: 3, end: 3, release: 0 });
  });

  test("none gets an end without its start, however early it died", async () => {
    const world = notifierWorld(3);
    const [a, b, c] = world.agents as [Subscriber, Subscriber, Subscriber];
    const { notifier, calls } = counting();
    await b.notifiers.register(notifier);
    // It dies between the promise of an end and the start itself.
    vi.spyOn(a.agent, "sendTo").mockImplementation(() => {
      throw new Error("terminated");
    });
    await expect(a.notifiers.invalidateRangeStart(range(0, 10))).rejects.toThrow("terminated");
    reap(c.agent, a.agent.slot);
    await turnOfLoop();
    expect(calls).toEqual({ start: 0, end: 0, release: 0 });
  });

  test("between uncounting its range and closing the epoch: whoever waits closes it", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const A = await b.notifiers.insert(obedient(), 0, 10);
    const gone = await b.notifiers.insert(obedient(), 20, 10);
    await a.notifiers.invalidateRangeStart(range(0, 10));
    const removing = gone.remove();
    const late = b.notifiers.register(new MmuNotifier({}));
    Atomics.sub(world.arena.words, subsOpenAt(world.subs, 8, a.agent.slot), 1); // and there it died
    expect([world.seq(), world.open()]).toEqual([3, 0]);
    expect(A.sync.readBegin()).toBe(3);
    expect(world.seq()).toBe(4);
    await removing;
    await late;
    expect(b.notifiers.overlapping(0, 100)).toEqual([A.id]);
  });

  test("with the subscriptions' lock, right after its last range: readers get EOWNERDEAD", async () => {
    const world = notifierWorld(1);
    const { agent, notifiers } = world.agents[0]!;
    const dead = attachAgent(world.arena.buffer, { mayBlock: true, tid: NO_THREAD });
    const A = await notifiers.insert(obedient(), 0, 10);
    const open = await notifiers.invalidateRangeStart(range(0, 10));
    Atomics.sub(world.arena.words, subsOpenAt(world.subs, 8, agent.slot), 1);
    Atomics.store(world.arena.words, world.subs + SUBS_LOCK, dead.ownerId);
    expect(open.start).toBe(0);
    expect(() => A.sync.readBegin()).toThrow(/EOWNERDEAD/);
  });

  test("while a subscriber walks the tree for it: the tree stays frozen until the walk is over", async () => {
    const world = notifierWorld(3);
    const [a, b, c] = world.agents as [Subscriber, Subscriber, Subscriber];
    const queue = words(world.arena, b.agent, QUEUE_WORDS);
    let [entered, open] = [false, false];
    const told: number[] = [];
    const waiting = await b.notifiers.insert(
      {
        *invalidate(interval, _range, curSeq): Op<boolean> {
          entered = true;
          yield* waitOp(queue, () => open, "the device");
          interval.setSeq(curSeq);
          return true;
        },
      },
      0,
      10,
    );
    for (const at of [2, 4])
      await b.notifiers.insert(
        obedient((i) => told.push(i.start)),
        at,
        10,
      );
    void codeOf(a.notifiers.invalidate(range(0, 10), () => {}));
    await vi.waitUntil(() => entered);
    reap(c.agent, a.agent.slot);
    expect(world.seq()).toBe(3);
    const removing = b.notifiers.interval(waiting.id).remove();
    const state = watch(removing);
    await turnOfLoop();
    expect(state.state).toBe("pending");
    open = true;
    wakeQueue(world.arena.words, queue);
    await removing;
    expect(told).toEqual([2, 4]);
    expect([world.seq(), world.open()]).toEqual([4, 0]);
    expect(world.check()).toBeUndefined();
  });

  test("before its message was served: nobody walks a tree that may have changed", async () => {
    const world = notifierWorld(3);
    const [a, b, c] = world.agents as [Subscriber, Subscriber, Subscriber];
    const told = vi.fn();
    const interval = await b.notifiers.insert(obedient(told), 0, 10);
    const safepoint = vi.spyOn(b.agent, "safepoint").mockImplementation(() => {});
    void codeOf(a.notifiers.invalidate(range(0, 10), () => {}));
    reap(c.agent, a.agent.slot);
    expect(world.seq()).toBe(4);
    interval.sync.remove();
    safepoint.mockRestore();
    b.agent.safepoint();
    expect(told).not.toHaveBeenCalled();
    expect(world.open()).toBe(0);
  });
});

describe("records", () => {
  test("everything that is taken away gives its record back", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    await a.notifiers.invalidate(range(0, 10), () => {});
    const used = heapUsed(world);
    const intervals = [0, 10, 20].map((at) => b.notifiers.sync.insert(obedient(), at, 10));
    const { notifier } = counting();
    await b.notifiers.register(notifier);
    await a.notifiers.invalidate(range(0, 100), () => {});
    for (const interval of intervals) await interval.remove();
    await b.notifiers.unregister(notifier);
    expect(heapUsed(world)).toBe(used);
  });

  test("a full arena is ENOMEM for register and insert, and nothing is half registered", async () => {
    const world = notifierWorld(1);
    const { notifiers, agent } = world.agents[0]!;
    const A = notifiers.sync.insert(obedient(), 0, 10);
    for (const size of [4096, 64, IV_WORDS, LN_WORDS]) {
      try {
        for (;;) words(world.arena, agent, size);
      } catch {
        // Full for blocks of this size.
      }
    }
    expect(() => notifiers.sync.insert(obedient(), 0, 10)).toThrow(/ENOMEM/);
    const { notifier } = counting();
    expect(() => notifiers.sync.register(notifier)).toThrow(/ENOMEM/);
    expect(notifier.notifiers).toBeUndefined();
    expect(notifiers.overlapping(0, 10)).toEqual([A.id]);
    expect(notifiers.sync.invalidate(range(0, 10), () => "changed")).toBe("changed");
  });

  test("the check of subscriptions finds what is wrong with them", () => {
    const world = notifierWorld(1);
    const { notifiers, agent } = world.agents[0]!;
    const A = notifiers.sync.insert(obedient(), 0, 10);
    expect(world.check()).toBeUndefined();
    const breakWord = (at: number, value: number): string | undefined => {
      const before = Atomics.exchange(agent.words, at, value);
      const found = world.check();
      Atomics.store(agent.words, at, before);
      return found;
    };
    expect(breakWord(nodeOf(A) + IV_SEQ, 4)).toMatch(/S1: .* sequence 4/);
    expect(ownSeq(world, A)).toBe(1);
    expect(breakWord(world.subs + SUBS_SEQ, 3)).toMatch(/S2: .* no open range and sequence 3/);
    expect(breakWord(world.subs + SUBS_DEFERRED, nodeOf(A))).toMatch(/S2: .* deferred edits/);
    expect(world.check()).toBeUndefined();
  });
});
