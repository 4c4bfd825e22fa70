/** get(), put(), synchronize(): notifiers that are counted, and freed after a grace period. linux-semantics.md 4.4; X12. */
import { describe, expect, test, vi } from "vitest";
import { isMmError, type MmError } from "../../../src/errors.ts";
import { heapUsedWords } from "../../../src/memory/index.ts";
import { MmuNotifier, type MmuNotifierOps } from "../../../src/notifier/index.ts";
import { LN_STATE, LIST_UNLINKED } from "../../../src/notifier/layout.ts";
import { type Op, reap, waitOp, wakeQueue } from "../../../src/sched/index.ts";
import { QUEUE_WORDS } from "../../../src/sched/layout.ts";
import { words } from "../../lib/arena.ts";
import { notifierWorld, range, type Subscriber, turnOfLoop, watch } from "../../lib/notifiers.ts";

/** Callbacks that note their calls. */
function noting(more: MmuNotifierOps = {}): { ops: MmuNotifierOps; log: string[] } {
  const log: string[] = [];
  const ops: MmuNotifierOps = {
    allocNotifier: () => {
      log.push("alloc");
      return new MmuNotifier(ops);
    },
    freeNotifier: () => void log.push("free"),
    release: () => void log.push("release"),
    invalidateRangeStart: () => void log.push("start"),
    invalidateRangeEnd: () => void log.push("end"),
    ...more,
  };
  return { ops, log };
}

const thrown = (call: () => unknown): MmError => {
  try {
    call();
  } catch (error) {
    if (isMmError(error)) return error;
    throw error;
  }
  throw new Error("it did not fail");
};

describe("get", () => {
  test("X12: get, get, put, put: one notifier, allocated once, freed once, after the last put and a grace period", async () => {
    const world = notifierWorld(1);
    const [{ agent, notifiers }] = world.agents as [Subscriber];
    const before = heapUsedWords(agent, world.arena.heap);
    const { ops, log } = noting();
    const one = await notifiers.get(ops);
    const two = await notifiers.get(ops);
    expect(two).toBe(one);
    expect([one.users, log]).toEqual([2, ["alloc"]]);
    notifiers.put(one);
    await turnOfLoop();
    expect([one.users, log]).toEqual([1, ["alloc"]]);
    await notifiers.invalidate(range(0, 1), () => {});
    notifiers.put(one);
    expect([one.users, log]).toEqual([0, ["alloc", "start", "end"]]);
    await notifiers.invalidate(range(0, 1), () => {}); // off the list at once
    await notifiers.synchronize();
    expect(log).toEqual(["alloc", "start", "end", "free"]);
    expect(one.notifiers).toBeUndefined();
    expect(heapUsedWords(agent, world.arena.heap)).toBe(before);
    world.dispose();
  });

  test("matches a notifier that register() was given, by the identity of its callbacks; users begin at 1", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const { ops, log } = noting();
    const plain = new MmuNotifier(ops);
    expect(plain.users).toBe(0);
    await notifiers.register(plain);
    expect(plain.users).toBe(1);
    expect(await notifiers.get(ops)).toBe(plain);
    expect(plain.users).toBe(2);
    const other = await notifiers.get({ ...ops, allocNotifier: undefined } as never);
    expect(other).not.toBe(plain);
    expect(log).toEqual([]);
  });

  test("is one for each agent and each space", async () => {
    const world = notifierWorld(2);
    const elsewhere = notifierWorld(1);
    const { ops } = noting({ allocNotifier: undefined } as never);
    const all = await Promise.all(
      [...world.agents, ...elsewhere.agents].map(({ notifiers }) => notifiers.get(ops)),
    );
    expect(new Set(all).size).toBe(3);
    expect(all.map((n) => n.users)).toEqual([1, 1, 1]);
  });

  test("two at once, while ranges are open, get the same", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const { ops, log } = noting();
    const open = await notifiers.invalidateRangeStart(range(0, 1));
    const both = [notifiers.get(ops), notifiers.get(ops)];
    const states = both.map(watch);
    await turnOfLoop();
    expect(states.map((s) => s.state)).toEqual(["pending", "pending"]);
    notifiers.invalidateRangeEnd(open);
    const [one, two] = await Promise.all(both);
    expect(two).toBe(one);
    expect([one!.users, log]).toEqual([2, ["alloc"]]);
  });

  test("that fails to register frees what it allocated, at once, and leaves nothing behind", () => {
    const world = notifierWorld(1);
    const [{ agent, notifiers }] = world.agents as [Subscriber];
    const before = heapUsedWords(agent, world.arena.heap);
    const { ops, log } = noting();
    const open = notifiers.sync.invalidateRangeStart(range(0, 1));
    expect(thrown(() => notifiers.try.get(ops)).code).toBe("EAGAIN");
    expect(log).toEqual(["alloc", "free"]);
    notifiers.invalidateRangeEnd(open);
    expect(heapUsedWords(agent, world.arena.heap)).toBe(before);
    notifiers.sync.release();
    expect(thrown(() => notifiers.sync.get(ops)).code).toBe("ESRCH");
    expect(log).toEqual(["alloc", "free"]);
  });

  test("allocNotifier that throws is ECALLBACK with its reason; one that gives something else is EINVAL", () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const boom = new Error("boom");
    const throws = noting({
      allocNotifier: () => {
        throw boom;
      },
    });
    expect(thrown(() => notifiers.sync.get(throws.ops))).toMatchObject({ code: "ECALLBACK", cause: boom });
    for (const wrong of [undefined, {}, new MmuNotifier({})]) {
      const { ops } = noting({ allocNotifier: () => wrong as MmuNotifier });
      expect(thrown(() => notifiers.sync.get(ops)).code).toBe("EINVAL");
    }
    const { ops } = noting();
    const used = notifiers.sync.get(ops);
    const again: MmuNotifierOps = { allocNotifier: () => used };
    expect(thrown(() => notifiers.sync.get(again)).code).toBe("EINVAL");
  });

  test("allocNotifier and freeNotifier are callbacks: operations are EDEADLK there", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const codes: string[] = [];
    const attempt = (): void => void codes.push(thrown(() => notifiers.sync.insert({} as never, 0, 1)).code);
    const { ops } = noting({
      allocNotifier: () => {
        attempt();
        return new MmuNotifier(ops);
      },
      freeNotifier: attempt,
    });
    notifiers.put(await notifiers.get(ops));
    await notifiers.synchronize();
    expect(codes).toEqual(["EDEADLK", "EDEADLK"]);
  });
});

describe("put", () => {
  test("of one use too many, of a stranger's, and of what is not registered", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const { ops } = noting();
    const notifier = await a.notifiers.get(ops);
    expect(thrown(() => b.notifiers.put(notifier)).code).toBe("EPERM");
    expect(thrown(() => a.notifiers.put(new MmuNotifier({}))).code).toBe("EINVAL");
    a.notifiers.put(notifier);
    expect(thrown(() => a.notifiers.put(notifier)).code).toBe("EINVAL");
    await a.notifiers.synchronize();
    expect(thrown(() => a.notifiers.put(notifier)).code).toBe("EINVAL");
    // What has been freed can be registered anew.
    await a.notifiers.register(notifier);
    expect(notifier.users).toBe(1);
  });

  test("in the middle of its own callback does not wait, and frees only after that has ended", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const queue = words(world.arena, a.agent, QUEUE_WORDS);
    let go = false;
    const { ops, log } = noting({
      *invalidateRangeStart(notifier): Op<void> {
        b.notifiers.put(notifier);
        log.push("put");
        yield* waitOp(queue, () => go, "the device");
        log.push("told");
      },
    });
    await b.notifiers.get(ops);
    const invalidating = a.notifiers.invalidate(range(0, 1), () => {});
    await vi.waitUntil(() => log.includes("put"));
    await turnOfLoop();
    expect(log).toEqual(["alloc", "put"]);
    go = true;
    wakeQueue(world.arena.words, queue);
    await invalidating;
    await a.notifiers.synchronize(); // another agent's puts, too
    expect(log).toEqual(["alloc", "put", "told", "free"]);
  });

  test("between a start and its end: the end is never delivered, here or in another agent", async () => {
    for (const where of [0, 1]) {
      const world = notifierWorld(2);
      const { notifiers } = world.agents[where]!;
      const { ops, log } = noting();
      const notifier = await notifiers.get(ops);
      const open = await world.agents[0]!.notifiers.invalidateRangeStart(range(0, 1));
      notifiers.put(notifier);
      world.agents[0]!.notifiers.invalidateRangeEnd(open);
      await notifiers.synchronize();
      await turnOfLoop();
      expect(log).toEqual(["alloc", "start", "free"]);
    }
  });

  test("in release, as the space ends: freed after that, once", async () => {
    const world = notifierWorld(1);
    const { notifiers, errors } = world.agents[0]!;
    const { ops, log } = noting({
      release: (notifier) => {
        notifiers.put(notifier);
        log.push("release");
      },
    });
    await notifiers.get(ops);
    await notifiers.release();
    await notifiers.synchronize();
    expect(log).toEqual(["alloc", "release", "free"]);
    expect(errors).toEqual([]);
  });

  test("after the space has ended: no release, freed all the same", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const { ops, log } = noting();
    const notifier = await notifiers.get(ops);
    await notifiers.release();
    expect(Atomics.load(world.arena.words, notifier.record + LN_STATE)).toBe(LIST_UNLINKED);
    notifiers.put(notifier);
    await notifiers.synchronize();
    expect(log).toEqual(["alloc", "release", "free"]);
  });

  test("a freeNotifier that throws is reported, and the next is called", async () => {
    const world = notifierWorld(1);
    const { notifiers, errors } = world.agents[0]!;
    const bad = noting({
      freeNotifier: () => {
        throw new Error("boom");
      },
    });
    const good = noting();
    const both = [notifiers.sync.get(bad.ops), notifiers.sync.get(good.ops)];
    for (const notifier of both) notifiers.put(notifier);
    await notifiers.synchronize();
    expect(good.log).toEqual(["alloc", "free"]);
    expect(errors.map((e) => [e.code, e.operation])).toEqual([["ECALLBACK", "freeNotifier"]]);
  });
});

describe("synchronize", () => {
  test("without puts is at once, and waits for no other callback", () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    notifiers.sync.get(noting().ops);
    notifiers.sync.synchronize();
    expect(world.check()).toBeUndefined();
  });

  test("in a blocking agent frees what that agent has put", () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const { ops, log } = noting();
    for (let round = 0; round < 3; round++) notifiers.put(notifiers.sync.get(ops));
    notifiers.sync.synchronize();
    expect(log.filter((l) => l === "alloc")).toHaveLength(3);
    expect(log.filter((l) => l === "free")).toHaveLength(3);
  });

  test("does not wait for an agent that has died with puts of its own", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const safepoint = vi.spyOn(b.agent, "safepoint").mockImplementation(() => {});
    b.notifiers.put(b.notifiers.sync.get(noting().ops));
    const waiting = a.notifiers.synchronize();
    const state = watch(waiting);
    await turnOfLoop();
    expect(state.state).toBe("pending");
    reap(a.agent, b.agent.slot, b.agent.ownerId);
    await waiting;
    safepoint.mockRestore();
  });
});
