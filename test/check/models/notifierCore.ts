/**
 * The notifier core as scenarios: a mirror of one page, kept by intervals of the real core, with subscribers and invalidators
 * in several threads; and what may be left out of the mirror.
 */
import {
  PAGE,
  type Scenario,
  scenario,
  type SimInterval,
  type SimSpace,
  type Tracked,
  type World,
} from "../../../src/check/index.ts";
import { MmuNotifierEvent, type MmuNotifierRange } from "../../../src/notifier/index.ts";
import type { Op as OpOf } from "../../../src/sched/index.ts";

type Op = OpOf<void>;

export type Bug = "no readRetry" | "no setSeq" | "no teardown" | "number not made odd" | "remove not awaited";

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

export const CASES: readonly [name: string, make: (bug?: Bug) => Scenario, bugs: readonly Bug[]][] = [
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
