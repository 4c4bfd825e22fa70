/** The interval half of the contract: linux-semantics.md sections 2.2 to 2.9, and the scenarios X1 to X6 and X18 of 9.3. */
import { afterEach, describe, expect, test, vi } from "vitest";
import { itLinked } from "../../../src/memory/index.ts";
import { ADDRESS_END } from "../../../src/units.ts";
import type { IntervalNotifier } from "../../../src/notifier/index.ts";
import {
  nodeOf,
  notifierWorld,
  type NotifierWorld,
  obedient,
  ownSeq,
  range,
  turnOfLoop,
  watch,
} from "../../lib/notifiers.ts";

let world: NotifierWorld;
let calls: string[];

/** One agent; A at [100, 199], B at [200, 299], C at [300, 399] and so on by letter. */
function begin(): {
  insert: (name: string) => IntervalNotifier;
  start: ReturnType<typeof starter>;
  notifiers: NotifierWorld["agents"][0]["notifiers"];
} {
  world = notifierWorld(1);
  calls = [];
  const { notifiers } = world.agents[0]!;
  const at = (name: string): number => 100 * (name.charCodeAt(0) - 64);
  const insert = (name: string): IntervalNotifier =>
    notifiers.sync.insert(
      obedient((_, r, curSeq) => calls.push(`${name} ${r.start}-${r.end} seq ${curSeq}`)),
      at(name),
      100,
    );
  return { insert, start: starter(world), notifiers };
}

/** Starts a range and gives its end. */
const starter =
  (w: NotifierWorld) =>
  (from: number, to: number): (() => void) => {
    const { notifiers } = w.agents[0]!;
    const open = notifiers.sync.invalidateRangeStart(range(from, to));
    return () => notifiers.invalidateRangeEnd(open);
  };

afterEach(() => {
  expect(world.check()).toBeUndefined();
});

describe("the worked trace", () => {
  test("step by step", async () => {
    const { insert, start } = begin();
    const { notifiers } = world.agents[0]!;
    const A = insert("A");
    const B = insert("B");
    const state = (...intervals: IntervalNotifier[]): number[] => [
      world.seq(),
      world.open(),
      ...intervals.map((interval) => ownSeq(world, interval)),
    ];
    expect(state(A, B)).toEqual([2, 0, 1, 1]);

    const end1 = start(5000, 6000);
    expect(state(A, B)).toEqual([2, 1, 1, 1]); // partially excluded
    expect(calls).toEqual([]);
    expect(notifiers.sync.insert).toBeTypeOf("function");

    const seqOfReader = A.sync.readBegin();
    expect(seqOfReader).toBe(1);

    const end2 = start(150, 160);
    expect(calls).toEqual(["A 150-160 seq 3"]);
    expect(state(A, B)).toEqual([3, 2, 3, 1]);
    expect(A.readRetry(seqOfReader)).toBe(true);

    expect(A.tryReadBegin()).toBeUndefined();
    const readingA = A.readBegin();
    const readerA = watch(readingA);
    expect(B.sync.readBegin()).toBe(1);

    const C = insert("C");
    expect(state(A, B, C)).toEqual([3, 2, 3, 1, 3]);
    expect(world.deferred()).not.toBe(0);
    const readingC = C.readBegin();
    const readerC = watch(readingC);

    const removingB = B.remove();
    const removerB = watch(removingB);
    await turnOfLoop();
    expect([readerA.state, readerC.state, removerB.state]).toEqual(["pending", "pending", "pending"]);

    end2();
    await turnOfLoop();
    expect(state(A, B, C)).toEqual([3, 1, 3, 1, 3]); // r1 is open still
    expect([readerA.state, readerC.state, removerB.state]).toEqual(["pending", "pending", "pending"]);

    end1();
    await removingB;
    expect(state(A)).toEqual([4, 0, 3]);
    expect([await readingA, await readingC]).toEqual([3, 3]);
    expect(notifiers.overlapping(0, 1000)).toEqual([A.id, C.id]);
    expect(calls).toEqual(["A 150-160 seq 3"]);

    const end3 = start(150, 160);
    expect(state(A)).toEqual([5, 1, 5]);
    expect(A.readRetry(3)).toBe(true);
    end3();
    expect(state(A)).toEqual([6, 0, 5]);
  });

  test("the other case: an insert while n is 1 and S is 2", async () => {
    const { insert, start, notifiers } = begin();
    insert("A");
    const end = start(5000, 6000);
    expect([world.seq(), world.open()]).toEqual([2, 1]);
    const D = insert("D");
    expect([world.seq(), world.open(), ownSeq(world, D)]).toEqual([3, 1, 3]);
    expect(notifiers.overlapping(400, 500)).toEqual([D.id]); // in the tree at once
    expect(world.deferred()).toBe(0);
    const E = insert("E"); // frozen now
    expect(notifiers.overlapping(500, 600)).toEqual([]);
    const reading = [D.readBegin(), E.readBegin()];
    const readers = reading.map(watch);
    await turnOfLoop();
    expect(readers.map((r) => r.state)).toEqual(["pending", "pending"]);
    end();
    expect(await Promise.all(reading)).toEqual([3, 3]);
    expect([world.seq(), world.open()]).toEqual([4, 0]);
    expect(notifiers.overlapping(400, 600)).toEqual([D.id, E.id]);
    expect(calls).toEqual([]);
  });
});

describe("scenarios", () => {
  test("X1: an interval inserted during an invalidation that hits nobody reads only after the last end", async () => {
    const { insert, start } = begin();
    insert("A"); // ranges are counted from the first registration on
    const [end1, end2] = [start(5000, 6000), start(7000, 8000)];
    const D = insert("D");
    const reading = D.readBegin();
    const reader = watch(reading);
    end1();
    await turnOfLoop();
    expect(reader.state).toBe("pending");
    expect(() => D.try.readBegin()).toThrow(/EAGAIN/);
    end2();
    expect(await reading).toBe(3);
    expect(D.readRetry(3)).toBe(false);
  });

  test("X1: the very first registration finds the ranges that were open before it", async () => {
    const { insert, start } = begin();
    const end = start(100, 200);
    expect(world.seq()).toBe(2);
    const A = insert("A");
    expect([world.seq(), ownSeq(world, A)]).toEqual([3, 3]);
    const reading = A.readBegin();
    end();
    expect(await reading).toBe(3);
    expect(world.seq()).toBe(4);
  });

  test("X2: an insert during an invalidation that matters is deferred, and gets no callback for it", () => {
    const { insert, start, notifiers } = begin();
    insert("A");
    const end1 = start(100, 400);
    const C = insert("C");
    const end2 = start(300, 400); // starts after the insert, in the same epoch: C is not in the tree
    expect(calls).toEqual(["A 100-400 seq 3"]);
    end1();
    end2();
    expect(notifiers.overlapping(300, 400)).toEqual([C.id]);
    start(300, 400)();
    expect(calls).toEqual(["A 100-400 seq 3", "C 300-400 seq 5"]);
  });

  test("X2: removing an interval whose insert is still deferred waits for nothing", () => {
    const { insert, start, notifiers } = begin();
    insert("A");
    const end = start(100, 200);
    const [C, D, E] = [insert("C"), insert("D"), insert("E")];
    D.try.remove();
    C.try.remove();
    expect(() => D.try.remove()).toThrow(/ESRCH/);
    end();
    expect(notifiers.overlapping(300, 600)).toEqual([E.id]);
  });

  test("X3: a remove waits for unrelated ranges that are open, if one that mattered has frozen the tree", async () => {
    const { insert, start, notifiers } = begin();
    const A = insert("A");
    const end1 = start(5000, 6000);
    start(100, 200)();
    const removing = A.remove();
    const remover = watch(removing);
    await turnOfLoop();
    expect(remover.state).toBe("pending");
    expect(notifiers.overlapping(100, 200)).toEqual([A.id]);
    end1();
    await removing;
    expect(notifiers.overlapping(100, 200)).toEqual([]);
  });

  test("a remove while the open ranges hit nobody waits for nothing", () => {
    const { insert, start, notifiers } = begin();
    const A = insert("A");
    const end = start(5000, 6000);
    A.try.remove();
    expect(notifiers.overlapping(0, 1000)).toEqual([]);
    end();
    expect(world.seq()).toBe(2);
  });

  test("a remove that may not wait is EAGAIN, and the interval is as it was", () => {
    const { insert, start } = begin();
    const A = insert("A");
    const end = start(100, 200);
    expect(() => A.try.remove()).toThrow(/EAGAIN/);
    expect(world.deferred()).toBe(0);
    end();
    start(100, 200)();
    expect(calls).toHaveLength(2);
    A.try.remove();
    start(100, 200)();
    expect(calls).toHaveLength(2);
  });

  test("an interval that is being removed is told of ranges until the remove has returned", async () => {
    const { insert, start } = begin();
    const A = insert("A");
    const end1 = start(100, 200);
    const removing = A.remove();
    await turnOfLoop();
    start(150, 160)();
    expect(calls).toEqual(["A 100-200 seq 3", "A 150-160 seq 3"]);
    end1();
    await removing;
    start(150, 160)();
    expect(calls).toHaveLength(2);
  });

  test("X4: a reader of an interval that only the first of two overlapping epochs hit waits for the second, too", async () => {
    const { insert, start } = begin();
    const A = insert("A");
    insert("B");
    const endA = start(100, 200);
    const endB = start(200, 300);
    endA();
    const reading = A.readBegin();
    const reader = watch(reading);
    await turnOfLoop();
    expect(reader.state).toBe("pending");
    endB();
    expect(await reading).toBe(3);
  });

  test("X5: a reader of an interval in neither does not wait", () => {
    const { insert, start } = begin();
    insert("A");
    insert("B");
    const C = insert("C");
    const [endA, endB] = [start(100, 200), start(200, 300)];
    expect(C.try.readBegin()).toBe(1);
    expect(C.tryReadBegin()).toBe(1);
    endA();
    endB();
    expect(C.readRetry(1)).toBe(false);
  });

  test("X6: a reader between the start and its own set_seq does not wait, and starts over", () => {
    world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    let seen: number | undefined;
    // The callback of the interval before runs first; B has not been told yet.
    notifiers.sync.insert(
      obedient(() => {
        seen = B.tryReadBegin();
        expect(world.seq()).toBe(3);
        expect(B.readRetry(seen!)).toBe(false);
      }),
      100,
      100,
    );
    const B = notifiers.sync.insert(obedient(), 200, 100);
    notifiers.sync.invalidate(range(100, 300), () => {
      expect(seen).toBe(1);
      expect([B.readRetry(seen!), B.checkRetry(seen!)]).toEqual([true, true]);
    });
    expect(B.sync.readBegin()).toBe(3);
  });

  test("X18: the last byte of the space; empty and wrapping intervals are EOVERFLOW and leave nothing", () => {
    begin();
    const { notifiers } = world.agents[0]!;
    const told: string[] = [];
    const insert = (start: number, length: number): IntervalNotifier =>
      notifiers.sync.insert(
        obedient((i) => told.push(`${i.start}-${i.last}`)),
        start,
        length,
      );
    const last = insert(ADDRESS_END, 1);
    const all = insert(0, ADDRESS_END + 1);
    expect([last.start, last.last, all.start, all.last]).toEqual([ADDRESS_END, ADDRESS_END, 0, ADDRESS_END]);
    for (const [start, length] of [
      [0, 0],
      [100, 0],
      [1, ADDRESS_END + 1],
      [2, ADDRESS_END],
      [ADDRESS_END, 2],
      [0, 2 ** 60],
    ] as const) {
      expect(() => insert(start, length), `${start} ${length}`).toThrow(/EOVERFLOW/);
    }
    for (const [start, length] of [
      [-1, 10],
      [0.5, 10],
      [0, 1.5],
      [0, -1],
      [Number.NaN, 1],
      [0, Number.POSITIVE_INFINITY],
      [2 ** 53, 1],
    ] as const) {
      expect(() => insert(start, length), `${start} ${length}`).toThrow(/EINVAL/);
    }
    expect(notifiers.overlapping(0, ADDRESS_END)).toEqual([all.id]);
    notifiers.sync.invalidate(range(ADDRESS_END - 10, ADDRESS_END), () => {});
    expect(told).toEqual([`0-${ADDRESS_END}`]); // `end` is exclusive: the last byte itself is outside, as in Linux
    expect(world.seq()).toBe(4);
  });

  test("one byte decides whether an interval is hit", () => {
    const { insert, start } = begin();
    insert("A"); // [100, 199]
    start(0, 100)();
    start(200, 300)();
    expect(calls).toEqual([]);
    start(0, 101)();
    start(199, 200)();
    expect(calls).toHaveLength(2);
  });

  test("a start whose bounds are no range is EINVAL, and nothing is open", () => {
    begin();
    const { notifiers } = world.agents[0]!;
    for (const [start, end] of [
      [10, 10],
      [10, 5],
      [-1, 5],
      [0.5, 5],
      [0, 2 ** 53],
    ] as const) {
      expect(() => notifiers.sync.invalidateRangeStart(range(start, end))).toThrow(/EINVAL/);
    }
    expect(world.open()).toBe(0);
  });
});

describe("sequence numbers", () => {
  test("the number moves on after the deferred edits are made: a remover that polls it frees its record at once", () => {
    const { insert, start, notifiers } = begin();
    const [A, B] = [insert("A"), insert("B")];
    const end = start(100, 200);
    void B.remove();
    const C = insert("C");
    const nodes = [A, B, C].map(nodeOf);
    const { agent } = notifiers;
    let linkedWhenOver: boolean[] | undefined;
    const look = (): void => {
      if ((world.seq() & 1) === 0) linkedWhenOver ??= nodes.map((node) => itLinked(agent, node));
    };
    // Looks after every change of a word, as an agent on another core may.
    for (const name of ["add", "store", "exchange", "compareExchange"] as const) {
      const real = Atomics[name] as (...args: unknown[]) => unknown;
      vi.spyOn(Atomics, name).mockImplementation(((...args: unknown[]) => {
        const result = real(...args);
        look();
        return result;
      }) as never);
    }
    end();
    vi.restoreAllMocks();
    expect(linkedWhenOver).toEqual([true, false, true]);
  });

  test("nested and concurrent starts of one epoch share a number; the next epoch's is larger", () => {
    const { insert, start } = begin();
    const A = insert("A");
    const ends = [start(100, 200), start(150, 160), start(100, 110)];
    expect(calls.map((call) => call.split(" ").at(-1))).toEqual(["3", "3", "3"]);
    for (const end of ends) end();
    start(100, 200)();
    expect(calls.at(-1)).toBe("A 100-200 seq 5");
    expect(A.sync.readBegin()).toBe(5);
  });

  test("an interval inserted while nothing is open begins with a number that is neither this epoch's nor the next's", () => {
    const { insert, start } = begin();
    insert("A");
    for (let k = 0; k < 3; k++) start(100, 200)();
    const B = insert("B");
    expect(world.seq()).toBe(8);
    expect(ownSeq(world, B)).toBe(7);
    expect(B.sync.readBegin()).toBe(7);
    const end = start(100, 200);
    expect(B.try.readBegin()).toBe(7);
    end();
  });

  test("setSeq outside the callback of its own interval is EPERM", () => {
    world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const errors: unknown[] = [];
    const other = notifiers.sync.insert(obedient(), 1000, 10);
    const A = notifiers.sync.insert(
      {
        invalidate(interval, _range, curSeq) {
          interval.setSeq(curSeq);
          try {
            other.setSeq(curSeq);
          } catch (error) {
            errors.push((error as { code: string }).code);
          }
          return true;
        },
      },
      0,
      10,
    );
    expect(() => A.setSeq(3)).toThrow(/EPERM setSeq/);
    notifiers.sync.invalidate(range(0, 10), () => {
      expect(() => A.setSeq(9)).toThrow(/EPERM setSeq/);
    });
    expect(errors).toEqual(["EPERM"]);
    expect(ownSeq(world, A)).toBe(3);
  });

  test("after a remove everything but another remove's ESRCH is harmless: numbers count as overtaken", () => {
    const { insert } = begin();
    const A = insert("A");
    const seq = A.sync.readBegin();
    A.sync.remove();
    const B = insert("A"); // may get the same record and the same number
    expect(B.readRetry(B.sync.readBegin())).toBe(false);
    expect([A.readRetry(seq), A.checkRetry(seq)]).toEqual([true, true]);
    expect(() => A.sync.readBegin()).toThrow(/ESRCH/);
    expect(() => A.sync.remove()).toThrow(/ESRCH/);
  });

  test("disposing removes, once", async () => {
    const { insert, notifiers } = begin();
    const A = insert("A");
    await A[Symbol.asyncDispose]();
    await A[Symbol.asyncDispose]();
    expect(notifiers.overlapping(0, 1000)).toEqual([]);
  });
});

describe("intervals of other agents", () => {
  test("their numbers can be read by id: readBegin, readRetry and checkRetry; the rest is EPERM", async () => {
    world = notifierWorld(2);
    const [a, b] = world.agents.map((s) => s.notifiers) as [typeof first, typeof first];
    const first = world.agents[0]!.notifiers;
    const own = a.sync.insert(obedient(), 100, 100);
    const seen = b.interval(own.id);
    expect([seen.start, seen.last]).toEqual([100, 199]);
    const seq = seen.sync.readBegin();
    expect([seq, seen.readRetry(seq)]).toEqual([1, false]);
    expect(() => seen.sync.remove()).toThrow(/EPERM/);
    expect(a.interval(own.id)).toBe(own);
    const open = a.sync.invalidateRangeStart(range(100, 200));
    expect(seen.readRetry(seq)).toBe(true);
    const reading = seen.readBegin();
    a.invalidateRangeEnd(open);
    expect(await reading).toBe(3);
    own.sync.remove();
    expect(() => b.interval(own.id)).toThrow(/ESRCH/);
    expect(() => seen.sync.readBegin()).toThrow(/ESRCH/);
    expect(seen.readRetry(3)).toBe(true);
  });

  test("an id means one registration, whoever gets its record next", () => {
    world = notifierWorld(2);
    const [a, b] = world.agents.map((s) => s.notifiers);
    const ids = new Set<number>();
    for (let k = 0; k < 200; k++) {
      const by = k % 2 === 0 ? a! : b!;
      const interval = by.sync.insert(obedient(), 100, 100);
      ids.add(interval.id);
      interval.sync.remove();
    }
    expect(ids.size).toBe(200);
    for (const id of ids) expect(() => a!.interval(id)).toThrow(/ESRCH/);
  });

  test("what is no id is ESRCH", () => {
    world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    for (const id of [0, -1, 1.5, 2 ** 31, 2 ** 52, Number.NaN, Number.MAX_SAFE_INTEGER]) {
      expect(() => notifiers.interval(id)).toThrow(/ESRCH/);
    }
  });
});
