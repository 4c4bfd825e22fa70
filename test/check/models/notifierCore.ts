/**
 * The notifier core as scenarios: a mirror of one page, kept by intervals of the real core, with subscribers and invalidators
 * in several threads; and what may be left out of the mirror.
 */
import {
  type Cell,
  PAGE,
  type Scenario,
  scenario,
  type SimInterval,
  type SimSpace,
  type Tracked,
  type World,
} from "../../../src/check/index.ts";
import { type IntervalId, MmuNotifierEvent, type MmuNotifierRange } from "../../../src/notifier/index.ts";
import { nodeOfIntervalId } from "../../../src/notifier/intervalNotifier.ts";
import { IV_SEQ, SUBS_DEFERRED } from "../../../src/notifier/layout.ts";
import { openRanges } from "../../../src/notifier/subscriptions.ts";
import type { Op as OpOf } from "../../../src/sched/index.ts";

type Op = OpOf<void>;

export type Bug = "no readRetry" | "no setSeq" | "no teardown" | "number not made odd" | "remove not awaited";
/** A case, with or without a mistake. */
export type Case = (bug?: Bug) => Scenario;

/** Readers give up after so many rounds: more than there are invalidations is a livelock. */
const MOST_TRIES = 4;

/** The page table of one page, a mirror of it, and the intervals that keep the mirror. */
class Rig {
  readonly world: World;
  readonly space: SimSpace;
  readonly bug: Bug | undefined;
  /** What the page table says: never the same twice. */
  readonly version: Cell<number>;
  /** What the mirror would use. */
  readonly installed: Cell<number | undefined>;
  /** What the callback uses. */
  readonly object: Tracked;
  /** Registered, or being removed. */
  readonly live = new Set<SimInterval>();

  constructor(world: World, bug: Bug | undefined) {
    this.world = world;
    this.space = world.space({ pages: 8 });
    this.bug = bug;
    this.version = world.cell("page table", 0);
    this.installed = world.cell<number | undefined>("mirror", undefined);
    this.object = world.object("what the callback uses");
  }

  /** What is wrong between two steps: the invariants of linux-semantics.md 2.10, and the mirror. */
  check(): string | undefined {
    const { space } = this;
    const { notifiers } = space;
    space.touchNotifiers(false);
    const { context } = space.realNotifiers();
    const { words } = context.agent;
    for (const { id } of this.live)
      if ((Atomics.load(words, nodeOfIntervalId(id as IntervalId) + IV_SEQ) & 1) === 0)
        return "I1: the number of an interval is even";
    const odd = (notifiers.seq & 1) === 1;
    if (odd && openRanges(context) === 0) return "I2: no open range, and the number is odd";
    if (!odd && Atomics.load(words, context.subs + SUBS_DEFERRED) !== 0)
      return "I4: deferred edits, and the number is even";
    const installed = this.installed.value;
    if (installed === undefined) return undefined;
    if (notifiers.opened.some(({ range, returned }) => returned && range.start === 0))
      return "stale: the page is usable while it is invalidated";
    const version = this.version.value;
    return installed === version ? undefined : `stale: ${installed} is installed, not ${version}`;
  }

  /** Everything has come to its end. */
  checkAtRest(): string | undefined {
    if (openRanges(this.space.realNotifiers().context) > 0) return "a range is open at the end";
    return this.check();
  }

  insert(start = 0): SimInterval {
    const interval = this.space.notifiers.sync.insert(
      { invalidate: (self, range, curSeq) => this.#told(self, range, curSeq) },
      start * PAGE,
      PAGE,
    );
    this.live.add(interval);
    return interval;
  }

  *#told(interval: SimInterval, range: MmuNotifierRange, curSeq: number): OpOf<boolean> {
    const look = (): void => {
      if ((curSeq & 1) === 0 || curSeq !== this.space.notifiers.seq)
        this.world.fail("I6: not the number of the open epoch");
    };
    look();
    // Others come before the number is set, too.
    yield* this.world.point("drops");
    look();
    if (this.bug !== "no setSeq") interval.setSeq(curSeq);
    this.object.use();
    if (range.start === 0 && this.bug !== "no teardown") this.installed.value = undefined;
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
    if (page === 0) this.version.value++;
    notifiers.invalidateRangeEnd(range);
  }

  *fill(interval: SimInterval): Op {
    for (let tries = 1; tries <= MOST_TRIES; tries++) {
      const seq = yield* interval.readBegin();
      if (seq === this.space.notifiers.seq) this.world.fail("I7: a reader holds the number of an open epoch");
      const { value } = this.version;
      yield* this.world.point("has read");
      if (this.bug !== "no readRetry" && interval.readRetry(seq)) continue;
      this.installed.value = value;
      return;
    }
    this.world.fail("I10: a fill without end");
  }

  *remove(interval: SimInterval): Op {
    this.installed.value = undefined; // first: from the removal on nobody tells the mirror anything
    if (this.bug === "remove not awaited") this.object.free();
    yield* interval.remove();
    this.live.delete(interval);
    if (this.bug !== "remove not awaited") this.object.free();
  }
}

type Agents = Record<string, { thread: number; run: (rig: RigOf) => Op }>;
interface RigOf {
  readonly rig: Rig;
  /** The one that is there from the beginning, or what an agent inserts. */
  readonly interval: Cell<SimInterval | undefined>;
}

const made = (
  agents: Agents,
  bug: Bug | undefined,
  setUp: (rig: Rig) => SimInterval | undefined = (rig) => rig.insert(),
): Scenario =>
  scenario({
    tracked: true,
    setup(world) {
      const rig = new Rig(world, bug);
      return { rig, interval: world.cell("interval", setUp(rig)) };
    },
    agents,
    invariant: ({ rig }) => rig.check(),
    final: ({ rig }) => rig.checkAtRest(),
  });

const reads = (rig: RigOf): Op => rig.rig.fill(rig.interval.value!);

export const hitAndMiss: Case = (bug) =>
  made(
    {
      hits: { thread: 1, run: ({ rig }) => rig.invalidate(0) },
      misses: { thread: 2, run: ({ rig }) => rig.invalidate(5) },
      reader: { thread: 0, run: reads },
    },
    bug,
  );

/** `others`: the range hits another interval, too. */
export const inserted =
  (others: boolean): Case =>
  (bug) =>
    made(
      {
        inserts: {
          thread: 0,
          *run({ rig, interval }) {
            yield* rig.world.point("inserts");
            interval.value = rig.insert();
          },
        },
        invalidates: { thread: 1, run: ({ rig }) => rig.invalidate(0, 2) },
        reader: {
          thread: 0,
          *run(rig) {
            yield* rig.rig.world.until(() => rig.interval.value !== undefined, "the insert");
            yield* reads(rig);
          },
        },
      },
      bug,
      (rig) => {
        if (others) rig.insert(1);
        return undefined;
      },
    );

export const overlapping: Case = (bug) =>
  made(
    {
      one: { thread: 1, run: ({ rig }) => rig.invalidate(0) },
      two: { thread: 0, run: ({ rig }) => rig.invalidate(0) },
      reader: { thread: 0, run: reads },
    },
    bug,
  );

/** An invalidation inside another one, as a zap that splits a huge page has. */
export const nested: Case = (bug) =>
  made(
    {
      outer: { thread: 1, run: ({ rig }) => rig.invalidate(0, 2, () => rig.invalidate(0)) },
      reader: { thread: 0, run: reads },
    },
    bug,
  );

/** An invalidation of what is installed, one that hits nobody, and the removal of the interval. */
export const removed: Case = (bug) =>
  made(
    {
      invalidates: { thread: 1, run: ({ rig }) => rig.invalidate(0) },
      misses: { thread: 0, run: ({ rig }) => rig.invalidate(5) },
      removes: { thread: 0, run: ({ rig, interval }) => rig.remove(interval.value!) },
    },
    bug,
    (rig) => {
      const interval = rig.insert();
      rig.installed.value = rig.version.value;
      return interval;
    },
  );

export const CASES: readonly [name: string, make: Case][] = [
  ["two invalidations, one of which hits, and a reader", hitAndMiss],
  ["an invalidation, an insert, and a reader of what is inserted", inserted(false)],
  ["an invalidation that hits another interval, an insert, and a reader of what is inserted", inserted(true)],
  ["two overlapping invalidations and a reader", overlapping],
  ["two nested invalidations and a reader", nested],
  ["an invalidation of what is installed, one that misses, and a removal", removed],
];
