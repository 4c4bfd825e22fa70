/**
 * All interleavings of small cases: a depth-first search over the choices of the checker driver, each schedule run from
 * its beginning. Invariants of linux-semantics.md 2.10 are checked between any two steps; at rest the mirror agrees with
 * the page table. The same search finds each bug that is put in.
 */
import { afterEach, describe, expect, test, vi } from "vitest";
import { InvariantError, isMmError } from "../../../src/errors.ts";
import type { IntervalNotifier, MmuIntervalNotifierOps } from "../../../src/notifier/index.ts";
import { SUBS_QUEUE, SUBS_SEQ } from "../../../src/notifier/layout.ts";
import { CheckerDriver, type Op } from "../../../src/sched/index.ts";
import { newArena, point, waitFor } from "../../lib/arena.ts";
import { type NotifierWorld, notifierWorld, ownSeq, range, type Subscriber } from "../../lib/notifiers.ts";

const MOST_SCHEDULES = 200_000;
const MOST_STEPS = 500;
/** Readers give up after so many rounds: more than there are invalidations is a livelock. */
const MOST_TRIES = 4;

const ensure = (condition: boolean, what: string): void => {
  if (!condition) throw new InvariantError(what);
};

afterEach(() => {
  vi.restoreAllMocks();
});

/** What may be left out of a case, or of the code under it. */
type Bug = "no readRetry" | "no setSeq" | "no teardown" | "number not made odd" | "remove not awaited";

/** The page table of one page, a mirror of it, and the intervals that keep the mirror. */
class Rig {
  readonly world: NotifierWorld;
  readonly bug: Bug | undefined;
  /** What the page table says: never the same twice. */
  version = 0;
  /** What the mirror would use. */
  installed: number | undefined;
  /** Ranges over the page whose start has returned and whose end has not begun. */
  open = 0;
  /** Registered, or being removed. */
  readonly live = new Set<IntervalNotifier>();
  readonly removed = new Set<IntervalNotifier>();

  constructor(world: NotifierWorld, bug: Bug | undefined) {
    this.world = world;
    this.bug = bug;
  }

  /** Between two steps. */
  check(): void {
    const { world } = this;
    const seq = world.seq();
    for (const interval of this.live)
      ensure((ownSeq(world, interval) & 1) === 1, "I1: the number of an interval is even");
    ensure(world.open() > 0 || (seq & 1) === 0, "I2: no open range, and the number is odd");
    ensure(world.deferred() === 0 || (seq & 1) === 1, "I4: deferred edits, and the number is even");
    if (this.installed === undefined) return;
    ensure(this.open === 0, "stale: the page is usable while it is invalidated");
    ensure(this.installed === this.version, `stale: ${this.installed} is installed, not ${this.version}`);
  }

  /** Callbacks of the mirror: with a point before the number is set, so that others run in between. */
  readonly mirror: MmuIntervalNotifierOps = {
    invalidate: (interval, r, curSeq) => this.#told(interval, r.start === 0, curSeq),
  };

  *#told(interval: IntervalNotifier, hit: boolean, curSeq: number): Op<boolean> {
    const look = (): void => {
      ensure((curSeq & 1) === 1 && curSeq === this.world.seq(), "I6: not the number of the open epoch");
      ensure(!this.removed.has(interval), "I8: a callback after remove() returned");
    };
    look();
    yield* point("in the callback");
    look();
    if (this.bug !== "no setSeq") interval.setSeq(curSeq);
    if (hit && this.bug !== "no teardown") this.installed = undefined;
    return true;
  }

  insert(by: Subscriber, start: number, ops: MmuIntervalNotifierOps = this.mirror): IntervalNotifier {
    const step = by.notifiers.operations.insert(ops, start, 1).next();
    if (step.done !== true) throw new Error("an insert waits for nothing");
    this.live.add(step.value);
    return step.value;
  }

  /** Changes the page at 0, or invalidates another one. */
  *invalidate(by: Subscriber, start: number, end: number, inside?: () => Op<void>): Op<void> {
    const { notifiers } = by;
    const open = yield* notifiers.operations.invalidateRangeStart(range(start, end));
    if (start === 0) this.open++;
    this.check();
    yield* point("open");
    if (inside) yield* inside();
    if (start === 0) {
      this.version++;
      this.open--;
    }
    notifiers.invalidateRangeEnd(open);
  }

  *fill(interval: IntervalNotifier): Op<void> {
    for (let tries = 1; ; tries++) {
      ensure(tries <= MOST_TRIES, "I10: a fill without end");
      const seq = yield* interval.operations.readBegin();
      ensure(seq !== this.world.seq(), "I7: a reader holds the number of an open epoch");
      const value = this.version;
      yield* point("read");
      if (this.bug !== "no readRetry" && interval.readRetry(seq)) continue;
      this.installed = value;
      return;
    }
  }

  *remove(interval: IntervalNotifier): Op<void> {
    this.installed = undefined; // first: from the removal on nobody tells the mirror anything
    const removing = interval.operations.remove();
    if (this.bug === "remove not awaited") {
      const step = removing.next();
      this.removed.add(interval);
      if (step.done !== true) yield step.value;
    }
    yield* removing;
    this.live.delete(interval);
    this.removed.add(interval);
  }

  /** Everything has come to its end: nothing open, nobody waiting, and the mirror right. */
  checkAtRest(): void {
    const { world } = this;
    this.check();
    ensure(world.open() === 0 && this.open === 0, "a range is open at the end");
    ensure(world.check() === undefined, `at the end: ${world.check()}`);
    ensure(Atomics.load(world.arena.words, world.subs + SUBS_QUEUE) === 0, "somebody is left waiting");
    for (const { agent, errors } of world.agents)
      ensure(agent.tasks.size === 0 && errors.length === 0, "an agent has something left to do, or an error");
  }
}

interface Case {
  readonly agents: number;
  readonly setUp: (rig: Rig, agents: readonly Subscriber[]) => Record<string, [by: Subscriber, op: Op<void>]>;
}

/** Runs every schedule of a case; gives their number. Throws the first failure. */
function explore({ agents, setUp }: Case, bug?: Bug): number {
  const world = notifierWorld(agents, { arena: newArena(agents), simulated: true });
  if (bug === "number not made odd") {
    const real = Atomics.or.bind(Atomics) as (...args: unknown[]) => number;
    vi.spyOn(Atomics, "or").mockImplementation(((words: Int32Array, at: number, value: number) =>
      at === world.subs + SUBS_SEQ ? Atomics.load(words, at) : real(words, at, value)) as never);
  }
  let prefix: readonly number[] = [];
  for (let schedules = 1; ; schedules++) {
    ensure(schedules <= MOST_SCHEDULES, "too many schedules");
    const rig = new Rig(world, bug);
    const choices: number[] = [];
    const counts: number[] = [];
    const checker = new CheckerDriver((n) => {
      rig.check();
      const choice = prefix[choices.length] ?? 0;
      choices.push(choice);
      counts.push(n);
      return choice;
    });
    for (const [name, [by, op]] of Object.entries(setUp(rig, world.agents)))
      checker.spawn(by.agent, name, op);
    for (const { agent } of world.agents) checker.addAgent(agent);
    checker.run(MOST_STEPS);
    rig.checkAtRest();
    for (const interval of rig.live) ensure(interval.operations.remove().next().done === true, "a wait");
    // The last choice that has not been made in all its ways.
    let k = choices.length - 1;
    while (k >= 0 && choices[k]! + 1 >= counts[k]!) k--;
    if (k < 0) {
      world.dispose();
      return schedules;
    }
    prefix = [...choices.slice(0, k), choices[k]! + 1];
  }
}

const found = (c: Case, bug: Bug): string => {
  try {
    explore(c, bug);
    return "nothing";
  } catch (error) {
    // What a callback of another agent found has come to its invalidator.
    const first = isMmError(error, "ECALLBACK") ? (error.cause as Error) : error;
    if (!(first instanceof Error)) throw error;
    return first.message.replace(/^in agent \d+: /, "");
  }
};

/** Two invalidations, one of the page and one of another that nobody mirrors, and a reader; each in its own agent. */
const hitAndMiss: Case = {
  agents: 3,
  setUp: (rig, [owner, a, b]) => {
    const interval = rig.insert(owner!, 0);
    return {
      hits: [a!, rig.invalidate(a!, 0, 1)],
      misses: [b!, rig.invalidate(b!, 5, 6)],
      reader: [owner!, rig.fill(interval)],
    };
  },
};

/** An invalidation, an interval that comes meanwhile, and its reader. `others`: the range hits another interval, too. */
const inserted = (others: boolean): Case => ({
  agents: 2,
  setUp: (rig, [owner, a]) => {
    if (others) rig.insert(owner!, 1);
    let interval: IntervalNotifier | undefined;
    return {
      insert: [
        owner!,
        (function* (): Op<void> {
          yield* point("before the insert");
          interval = rig.insert(owner!, 0);
        })(),
      ],
      invalidates: [a!, rig.invalidate(a!, 0, 2)],
      reader: [
        owner!,
        (function* (): Op<void> {
          yield waitFor(() => interval !== undefined);
          yield* rig.fill(interval!);
        })(),
      ],
    };
  },
});

/** An invalidation, one that hits nobody, and the removal of the interval that the first hits, whose translation is installed. */
const removed: Case = {
  agents: 2,
  setUp: (rig, [owner, a]) => {
    const interval = rig.insert(owner!, 0);
    rig.installed = rig.version;
    return {
      invalidates: [a!, rig.invalidate(a!, 0, 1)],
      misses: [owner!, rig.invalidate(owner!, 5, 6)],
      remove: [owner!, rig.remove(interval)],
    };
  },
};

/** Two invalidations of the page that overlap, in two agents, and a reader. */
const overlapping: Case = {
  agents: 2,
  setUp: (rig, [owner, a]) => {
    const interval = rig.insert(owner!, 0);
    return {
      one: [a!, rig.invalidate(a!, 0, 1)],
      two: [owner!, rig.invalidate(owner!, 0, 1)],
      reader: [owner!, rig.fill(interval)],
    };
  },
};

/** An invalidation inside another one, as a zap that splits a huge page has, and a reader. */
const nested: Case = {
  agents: 2,
  setUp: (rig, [owner, a]) => {
    const interval = rig.insert(owner!, 0);
    return {
      outer: [a!, rig.invalidate(a!, 0, 2, () => rig.invalidate(a!, 0, 1))],
      reader: [owner!, rig.fill(interval)],
    };
  },
};

describe("two invalidations, one of which hits, and a reader", () => {
  test("keep the invariants in every schedule", () => {
    expect(explore(hitAndMiss)).toBeGreaterThan(100);
  });

  test.each(["no readRetry", "no setSeq", "number not made odd"] as const)(
    "are caught with a bug: %s",
    (bug) => {
      expect(found(hitAndMiss, bug)).toMatch(/^stale/);
    },
  );
});

describe("an invalidation, an insert, and a reader of the inserted interval", () => {
  test("keep the invariants in every schedule, where the range hits nobody else", () => {
    expect(explore(inserted(false))).toBeGreaterThan(100);
  });

  test("keep the invariants in every schedule, where the range hits another interval", () => {
    expect(explore(inserted(true))).toBeGreaterThan(100);
  });

  test.each(["no readRetry", "no setSeq", "number not made odd"] as const)(
    "are caught with a bug: %s",
    (bug) => {
      expect(found(inserted(true), bug)).toMatch(/^stale/);
    },
  );
});

describe("invalidations and a remove", () => {
  test("keep the invariants in every schedule", () => {
    expect(explore(removed)).toBeGreaterThan(100);
  });

  test.each([
    ["no teardown", /^stale/],
    ["number not made odd", /^stale/],
    ["remove not awaited", /^I8/],
  ] as const)("are caught with a bug: %s", (bug, what) => {
    expect(found(removed, bug)).toMatch(what);
  });
});

describe("two overlapping invalidations and a reader", () => {
  test("keep the invariants in every schedule", () => {
    expect(explore(overlapping)).toBeGreaterThan(100);
  });

  test.each(["no readRetry", "no setSeq", "number not made odd"] as const)(
    "are caught with a bug: %s",
    (bug) => {
      expect(found(overlapping, bug)).toMatch(/^stale/);
    },
  );
});

describe("two nested invalidations and a reader", () => {
  test("keep the invariants in every schedule", () => {
    expect(explore(nested)).toBeGreaterThan(100);
  });

  test.each(["no readRetry", "no setSeq", "number not made odd"] as const)(
    "are caught with a bug: %s",
    (bug) => {
      expect(found(nested, bug)).toMatch(/^stale/);
    },
  );
});
