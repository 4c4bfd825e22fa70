/**
 * The notifier core itself as scenarios: every interleaving of small cases, with subscribers and invalidators in several
 * threads, keeps the mirror right; and each mistake that is put in is found. Then the mirror of `bifolio mirror`.
 */
import { afterEach, describe, expect, test, vi } from "vitest";
import {
  explore,
  PAGE,
  type Scenario,
  scenario,
  type SimInterval,
  type SimSpace,
  type Tracked,
  type World,
} from "../../src/check/index.ts";
import { IntervalNotifier, MmuNotifierEvent, type MmuNotifierRange } from "../../src/notifier/index.ts";
import type { Op as OpOf } from "../../src/sched/index.ts";
import { tableMirror } from "./models/tableMirror.ts";

type Op = OpOf<void>;

vi.setConfig({ testTimeout: 60_000 });

afterEach(() => {
  vi.restoreAllMocks();
});

type Bug = "no readRetry" | "no setSeq" | "no teardown" | "number not made odd" | "remove not awaited";

/** The page table of one page, a mirror of it, and the intervals that keep the mirror. */
class Rig {
  readonly world: World;
  readonly space: SimSpace;
  readonly bug: Bug | undefined;
  /** What the page table says: never the same twice. */
  version = 0;
  /** What the mirror would use. */
  installed: number | undefined;
  /** What the callback uses. */
  readonly object: Tracked;

  constructor(world: World, bug: Bug | undefined) {
    this.world = world;
    this.space = world.space({ pages: 8 });
    this.bug = bug;
    this.object = world.object("what the callback uses");
  }

  /** What is wrong between two steps. */
  check(): string | undefined {
    const { notifiers } = this.space;
    const open = notifiers.opened.filter(({ range, returned }) => returned && range.start === 0);
    if (notifiers.opened.length === 0 && (notifiers.seq & 1) === 1)
      return "no open range, and the number is odd";
    if (this.installed === undefined) return undefined;
    if (open.length > 0) return "stale: the page is usable while it is invalidated";
    if (this.installed !== this.version) return `stale: ${this.installed} is installed, not ${this.version}`;
    return undefined;
  }

  insert(start = 0): SimInterval {
    return this.space.notifiers.sync.insert(
      { invalidate: (interval, range, curSeq) => this.#told(interval, range, curSeq) },
      start * PAGE,
      PAGE,
    );
  }

  *#told(interval: SimInterval, range: MmuNotifierRange, curSeq: number): OpOf<boolean> {
    if (this.bug !== "no setSeq") interval.setSeq(curSeq);
    yield* this.world.point("drops");
    this.object.use();
    if (range.start === 0 && this.bug !== "no teardown") this.installed = undefined;
    return true;
  }

  /** Changes the page at 0, or invalidates another one. */
  *invalidate(page: number, pages = 1, inside?: () => Op): Op {
    const { notifiers } = this.space;
    const range = yield* notifiers.invalidateRangeStart({
      start: page * PAGE,
      end: (page + pages) * PAGE,
      event: MmuNotifierEvent.Clear,
    });
    yield* this.world.point("changes the entry");
    if (inside) yield* inside();
    if (page === 0) this.version++;
    notifiers.invalidateRangeEnd(range);
  }

  *fill(interval: SimInterval): Op {
    for (;;) {
      const seq = yield* interval.readBegin();
      const value = this.version;
      yield* this.world.point("has read");
      if (this.bug !== "no readRetry" && interval.readRetry(seq)) continue;
      this.installed = value;
      return;
    }
  }

  *remove(interval: SimInterval): Op {
    this.installed = undefined; // first: from the removal on nobody tells the mirror anything
    if (this.bug === "remove not awaited") this.object.free();
    yield* interval.remove();
    if (this.bug !== "remove not awaited") this.object.free();
  }
}

type Agents = Record<string, { thread: number; run: (rig: RigOf) => Op }>;
interface RigOf {
  readonly rig: Rig;
  readonly interval: SimInterval | undefined;
}

/** A case, with or without a mistake. */
const made = (
  agents: Agents,
  bug: Bug | undefined,
  setUp: (rig: Rig) => SimInterval | undefined = (rig) => rig.insert(),
): Scenario =>
  scenario({
    setup(world) {
      const rig = new Rig(world, bug);
      return { rig, interval: setUp(rig) };
    },
    agents,
    invariant: ({ rig }) => rig.check(),
    final: ({ rig }) => (rig.space.notifiers.opened.length > 0 ? "a range is open at the end" : undefined),
  });

const CASES: readonly [name: string, make: (bug?: Bug) => Scenario, bugs: readonly Bug[]][] = [
  [
    "two invalidations, one of which hits, and a reader",
    (bug) =>
      made(
        {
          hits: { thread: 1, run: ({ rig }) => rig.invalidate(0) },
          misses: { thread: 2, run: ({ rig }) => rig.invalidate(5) },
          reader: { thread: 0, run: ({ rig, interval }) => rig.fill(interval!) },
        },
        bug,
      ),
    ["no readRetry", "no setSeq", "number not made odd"],
  ],
  [
    "an invalidation that hits another interval, an insert, and a reader of what is inserted",
    (bug) => {
      const inserted = new WeakMap<Rig, SimInterval>();
      return made(
        {
          inserts: {
            thread: 0,
            *run({ rig }) {
              yield* rig.world.point("inserts");
              inserted.set(rig, rig.insert());
            },
          },
          invalidates: { thread: 1, run: ({ rig }) => rig.invalidate(0, 2) },
          reader: {
            thread: 0,
            *run({ rig }) {
              yield* rig.world.until(() => inserted.has(rig), "the insert");
              yield* rig.fill(inserted.get(rig)!);
            },
          },
        },
        bug,
        (rig) => {
          rig.insert(1);
          return undefined;
        },
      );
    },
    ["no readRetry", "no setSeq", "number not made odd"],
  ],
  [
    "two overlapping invalidations and a reader",
    (bug) =>
      made(
        {
          one: { thread: 1, run: ({ rig }) => rig.invalidate(0) },
          two: { thread: 0, run: ({ rig }) => rig.invalidate(0) },
          reader: { thread: 0, run: ({ rig, interval }) => rig.fill(interval!) },
        },
        bug,
      ),
    ["no readRetry", "no setSeq", "number not made odd"],
  ],
  [
    "two nested invalidations and a reader",
    (bug) =>
      made(
        {
          outer: { thread: 1, run: ({ rig }) => rig.invalidate(0, 2, () => rig.invalidate(0)) },
          reader: { thread: 0, run: ({ rig, interval }) => rig.fill(interval!) },
        },
        bug,
      ),
    ["no readRetry", "no setSeq", "number not made odd"],
  ],
  [
    "an invalidation of what is installed, one that misses, and a removal",
    (bug) =>
      made(
        {
          invalidates: { thread: 1, run: ({ rig }) => rig.invalidate(0) },
          misses: { thread: 0, run: ({ rig }) => rig.invalidate(5) },
          removes: { thread: 0, run: ({ rig, interval }) => rig.remove(interval!) },
        },
        bug,
        (rig) => {
          const interval = rig.insert();
          rig.installed = rig.version;
          return interval;
        },
      ),
    ["no teardown", "remove not awaited"],
  ],
];

/**
 * The core never makes its number odd. Bits of thread 0 in wait queues are set in the same way, and are left out, too:
 * the explorer asks whoever waits, and rings nobody.
 */
function breakNumber(): void {
  const real = Atomics.or.bind(Atomics) as (...args: unknown[]) => number;
  vi.spyOn(Atomics, "or").mockImplementation(((words: Int32Array, at: number, value: number) =>
    value === 1 ? Atomics.load(words, at) : real(words, at, value)) as never);
}

describe.each(CASES)("%s", (_, make, bugs) => {
  test("keeps the mirror right in every schedule", async () => {
    const { violations, schedules } = await explore(make(), { schedules: 15_000 });
    expect(violations.map((v) => `${v.rule}: ${v.message} ${v.schedule}`)).toEqual([]);
    expect(schedules).toBeGreaterThan(50);
  });

  test.each(bugs)("is found with a mistake: %s", async (bug) => {
    if (bug === "number not made odd") breakNumber();
    const { violations } = await explore(make(bug));
    expect(violations.map((v) => v.message).join()).toMatch(
      bug === "remove not awaited" ? /has freed/ : /stale/,
    );
  });
});

describe("the table mirror, over a real memory", () => {
  test.each(["dontneed", "munmap", "mprotect"] as const)("is right beside %s", async (change) => {
    const { violations, schedules } = await explore(tableMirror(change), { schedules: 5000 });
    expect(violations.map((v) => `${v.rule}: ${v.message} ${v.schedule}`)).toEqual([]);
    expect(schedules).toBeGreaterThan(100);
  });

  test("that does not ask whether it was overtaken is found", async () => {
    vi.spyOn(IntervalNotifier.prototype, "readRetry").mockReturnValue(false);
    const { violations } = await explore(tableMirror("dontneed"), { schedules: 50_000 });
    expect(violations.map(({ rule }) => rule).join()).toMatch(/use-after-free|stale-read/);
  });
});
