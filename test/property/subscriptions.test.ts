/**
 * The invariants I1 to I8 of linux-semantics.md 2.10 as a property: random programs of three simulated agents, in
 * random schedules, against a plain model of mm/mmu_notifier.c. (I9, for mirrors: test/unit/notifier/fills.test.ts.)
 */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { InvariantError } from "../../src/errors.ts";
import { type IntervalNotifier, MmuNotifierEvent, type MmuNotifierRange } from "../../src/notifier/index.ts";
import { CheckerDriver, type Op, seededChooser } from "../../src/sched/index.ts";
import { newArena, point } from "../lib/arena.ts";
import { type NotifierWorld, notifierWorld, ownSeq, type Subscriber } from "../lib/notifiers.ts";

const AGENTS = 3;
const SPACE_END = 12;
const arena = newArena(AGENTS);

// ---- the model: section 2 of linux-semantics.md, in plain data ------------------------------------------------

interface ModelInterval {
  readonly id: number;
  readonly start: number;
  readonly last: number;
  seq: number;
  /** When it came into the tree, 0 while it is not there: ties are told in this order. */
  placed: number;
}

class Model {
  seq = 2;
  open = 0;
  readonly intervals: ModelInterval[] = [];
  /** Newest first, and handled in this order, as Linux's list. */
  readonly deferred: ModelInterval[] = [];
  #placed = 0;

  hits(start: number, end: number): ModelInterval[] {
    return this.intervals
      .filter((i) => i.placed > 0 && i.start <= end - 1 && start <= i.last)
      .toSorted((a, b) => a.start - b.start || a.placed - b.placed);
  }

  begin(start: number, end: number): void {
    this.open++;
    if (this.hits(start, end).length > 0) this.seq |= 1;
  }

  end(): void {
    this.open--;
    if (this.open > 0 || (this.seq & 1) === 0) return;
    this.seq++;
    for (const interval of this.deferred.splice(0)) {
      interval.placed = interval.placed > 0 ? 0 : ++this.#placed;
    }
  }

  insert(id: number, start: number, last: number): void {
    const interval = { id, start, last, seq: 0, placed: 0 };
    if (this.open > 0 && (this.seq & 1) === 1) {
      this.deferred.unshift(interval);
      interval.seq = this.seq;
    } else {
      interval.placed = ++this.#placed;
      if (this.open > 0) this.seq |= 1;
      interval.seq = this.open > 0 ? this.seq : this.seq - 1;
    }
    this.intervals.push(interval);
  }

  /** True if the remover has to wait until the number is another one. */
  remove(id: number): boolean {
    const interval = this.of(id);
    if ((this.seq & 1) === 0) {
      interval.placed = 0;
      return false;
    }
    if (interval.placed > 0) {
      this.deferred.unshift(interval);
      return true;
    }
    this.deferred.splice(this.deferred.indexOf(interval), 1);
    return false;
  }

  of(id: number): ModelInterval {
    return this.intervals.find((i) => i.id === id)!;
  }
}

// ---- programs ------------------------------------------------------------------------------------------------

type Command =
  | { readonly kind: "insert"; readonly start: number; readonly length: number }
  | { readonly kind: "remove"; readonly which: number }
  | { readonly kind: "invalidate"; readonly start: number; readonly length: number; readonly nested: boolean }
  | { readonly kind: "read"; readonly which: number };

const bounds = { start: fc.nat(SPACE_END - 1), length: fc.integer({ min: 1, max: 5 }) };
const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("insert" as const), ...bounds }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("remove" as const), which: fc.nat(7) }) },
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constant("invalidate" as const), ...bounds, nested: fc.boolean() }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("read" as const), which: fc.nat(7) }) },
);
const program = fc.array(fc.array(command, { maxLength: 7 }), { minLength: AGENTS, maxLength: AGENTS });

const ensure = (condition: boolean, what: string): void => {
  if (!condition) throw new InvariantError(what);
};

/** A range that was started: whom the model expects to hear of it. */
interface Expected {
  readonly owner: number;
  readonly toTell: number[];
}

/** What the runs came to: a property that reaches nothing proves nothing. */
interface Reached {
  readonly schedule: string;
  /** Edits that were deferred, readers and removers that waited, callbacks, most ranges open at once. */
  deferred: number;
  waited: number;
  told: number;
  mostOpen: number;
}

/** Runs the programs in the schedule of a seed; throws where the code and the model differ. */
function run(programs: readonly (readonly Command[])[], seed: number): Reached {
  const reached = { schedule: "", deferred: 0, waited: 0, told: 0, mostOpen: 0 };
  const world: NotifierWorld = notifierWorld(AGENTS, { arena, simulated: true });
  const model = new Model();
  const live = new Map<IntervalNotifier, Subscriber>();
  const removed = new Set<IntervalNotifier>();
  const expected: Expected[] = [];
  let lastSeq = world.seq();
  let ranges = 0;

  const compare = (): void => {
    const { notifiers } = world.agents[0]!;
    const state = {
      seq: world.seq(),
      open: world.open(),
      tree: notifiers.overlapping(0, SPACE_END + 10),
      deferred: world.deferred() !== 0,
      own: [...live.keys()].map((i) => ownSeq(world, i)),
    };
    const wanted = {
      seq: model.seq,
      open: model.open,
      tree: model.hits(0, SPACE_END + 10).map((i) => i.id),
      deferred: model.deferred.length > 0,
      own: [...live.keys()].map((i) => model.of(i.id).seq),
    };
    ensure(
      JSON.stringify(state) === JSON.stringify(wanted),
      `${JSON.stringify(state)} is not ${JSON.stringify(wanted)}`,
    );
    ensure(
      state.own.every((own) => (own & 1) === 1),
      "I1: an interval's own number is even",
    );
    ensure(state.open > 0 || (state.seq & 1) === 0, "I2: no open range, and an odd number");
    ensure(!state.deferred || (state.seq & 1) === 1, "I4: deferred edits and an even number");
    ensure(state.seq >= lastSeq, "I5: the number went back");
    lastSeq = state.seq;
    reached.mostOpen = Math.max(reached.mostOpen, state.open);
  };

  const ops = {
    invalidate(interval: IntervalNotifier, r: MmuNotifierRange, curSeq: number): boolean {
      ensure((curSeq & 1) === 1 && curSeq === world.seq(), "I6: the number is even, or not the current one");
      ensure(!removed.has(interval), "I8: a callback after remove() returned");
      const own = expected.find((e) => e.owner === r.owner);
      ensure(own?.toTell[0] === interval.id, "not the next that this range concerns");
      own!.toTell.shift();
      reached.told++;
      interval.setSeq(curSeq);
      model.of(interval.id).seq = curSeq;
      return true;
    },
  };

  function* invalidate(by: Subscriber, start: number, end: number, nested: boolean): Op<void> {
    const { notifiers } = by;
    const mine: Expected = { owner: ++ranges, toTell: [] }; // the owner names the range in the callbacks
    model.begin(start, end);
    mine.toTell.push(...model.hits(start, end).map((i) => i.id));
    expected.push(mine);
    const open = yield* notifiers.operations.invalidateRangeStart({
      start,
      end,
      event: MmuNotifierEvent.Migrate,
      owner: mine.owner,
    });
    ensure(mine.toTell.length === 0, "a start returned before everybody was told");
    expected.splice(expected.indexOf(mine), 1);
    compare();
    yield* point();
    if (nested) yield* invalidate(by, start, end, false);
    notifiers.invalidateRangeEnd(open);
    model.end();
    compare();
  }

  function* insert(by: Subscriber, start: number, length: number): Op<void> {
    const interval = yield* by.notifiers.operations.insert(ops, start, length);
    model.insert(interval.id, start, start + length - 1);
    live.set(interval, by);
    if (model.of(interval.id).placed === 0) reached.deferred++;
  }

  function* remove(interval: IntervalNotifier): Op<void> {
    live.delete(interval);
    const waits = model.remove(interval.id);
    const { seq } = model;
    if (waits) reached.deferred++;
    if (waits) reached.waited++;
    yield* interval.operations.remove();
    removed.add(interval);
    ensure(!waits || model.seq !== seq, "remove() returned although its epoch is open");
    const tree = world.agents[0]!.notifiers.overlapping(0, SPACE_END + 10);
    ensure(!tree.includes(interval.id), "removed, and still in the tree");
  }

  function* read(by: Subscriber, interval: IntervalNotifier): Op<void> {
    const before = model.of(interval.id).seq;
    const waits = before === model.seq;
    if (waits) reached.waited++;
    const seq = yield* by.notifiers.interval(interval.id).operations.readBegin();
    ensure(seq === before, "readBegin() gives the number that it read first");
    ensure(seq !== world.seq(), "I7: a reader holds the number of an open epoch");
    ensure(!waits || model.seq > before, "readBegin() returned although its epoch is open");
  }

  function* actor(by: Subscriber, commands: readonly Command[]): Op<void> {
    for (const c of commands) {
      const intervals = [...live.keys()];
      const chosen = "which" in c ? intervals[c.which % intervals.length] : undefined;
      if (c.kind === "insert") yield* insert(by, c.start, c.length);
      else if (c.kind === "invalidate") yield* invalidate(by, c.start, c.start + c.length, c.nested);
      else if (chosen && c.kind === "read") yield* read(by, chosen);
      else if (chosen && live.get(chosen) === by) yield* remove(chosen);
      compare();
      yield* point();
    }
  }

  const checker = new CheckerDriver(seededChooser(seed));
  try {
    for (const [k, by] of world.agents.entries())
      checker.spawn(by.agent, `a${k}`, actor(by, programs[k] ?? []));
    checker.run(20_000);
    compare();
    ensure(world.open() === 0 && world.check() === undefined, `at the end: ${world.check()}`);
    for (const interval of live.keys()) ensure(interval.operations.remove().next().done === true, "a wait");
  } finally {
    world.dispose();
  }
  return { ...reached, schedule: checker.schedule.join(" ") };
}

describe("subscriptions agree with the model", () => {
  test("in every program and schedule", () => {
    const reached: Reached[] = [];
    fc.assert(
      fc.property(program, fc.nat(), (programs, seed) => {
        reached.push(run(programs, seed));
      }),
      { numRuns: 2000 },
    );
    const share = (count: (r: Reached) => boolean): number => reached.filter(count).length / reached.length;
    expect(share((r) => r.told > 0)).toBeGreaterThan(0.3);
    expect(share((r) => r.deferred > 0)).toBeGreaterThan(0.1);
    expect(share((r) => r.waited > 0)).toBeGreaterThan(0.1);
    expect(share((r) => r.mostOpen > 2)).toBeGreaterThan(0.2);
  });

  test("the same program and seed have the same schedule", () => {
    fc.assert(
      fc.property(program, fc.nat(), (programs, seed) => {
        expect(run(programs, seed)).toEqual(run(programs, seed));
      }),
      { numRuns: 30 },
    );
  });
});
