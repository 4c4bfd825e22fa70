/** The explorer itself: what it leaves out makes no difference, what it finds replays, the same seed does the same. */
import fc from "fast-check";
import { describe, expect, test, vi } from "vitest";
import { decodeSchedule, encodeSchedule } from "../../src/check/schedule.ts";
import {
  type Cell,
  type Device,
  PAGE,
  type SimInterval,
  type SimSpace,
  explore,
  type Mode,
  renderTrace,
  replay,
  type Scenario,
  scenario,
  type World,
} from "../../src/check/index.ts";
import { isMmError } from "../../src/errors.ts";
import type { Op as OpOf } from "../../src/sched/index.ts";
import * as c01 from "./models/c01FillWithoutRetry.ts";
import * as c02 from "./models/c02CheckApart.ts";
import * as c10 from "./models/c10WaitsInACircle.ts";

type Op = OpOf<void>;
interface SpaceContext {
  readonly space: SimSpace;
  readonly device: Device;
  readonly interval: SimInterval;
}

vi.setConfig({ testTimeout: 60_000 });

/** What one agent does: operations on three variables and two locks, with a point before each. */
type Step = readonly [kind: "read" | "add" | "copy" | "lock", which: number];

const stepArbitrary: fc.Arbitrary<Step> = fc.tuple(
  fc.constantFrom("read" as const, "add" as const, "copy" as const, "lock" as const),
  fc.nat({ max: 2 }),
);
const listsOf = (agents: number, steps: number): fc.Arbitrary<Step[][]> =>
  fc.array(fc.array(stepArbitrary, { minLength: 1, maxLength: steps }), {
    minLength: agents,
    maxLength: agents,
  });
const programArbitrary: fc.Arbitrary<Step[][]> = fc.oneof(listsOf(2, 3), listsOf(3, 1));

/** Agents that run such lists; `outcomes` collects what was so at the ends of schedules. */
function programs(lists: readonly (readonly Step[])[], tracked: boolean, outcomes: Set<string>): Scenario {
  return scenario({
    tracked,
    setup: (world) => ({
      cells: [0, 1, 2].map((k) => world.cell(`v${k}`, k)),
      locks: [0, 1, 2].map((k) => world.mutex(`m${k}`)),
      seen: lists.map((): number[] => []),
    }),
    agents: lists.map((list, index) => ({
      name: `agent ${index}`,
      *run({ cells, locks, seen }, world) {
        for (const [kind, which] of list) {
          if (kind === "lock") {
            yield* locks[which]!.lock();
            cells[which]!.value *= 3;
            yield* world.point("inside the lock");
            locks[which]!.unlock();
            continue;
          }
          yield* world.point(`${kind} ${which}`);
          if (kind === "read") seen[index]!.push(cells[which]!.value);
          else if (kind === "add") cells[which]!.value += index + 1;
          else cells[(which + 1) % 3]!.value = cells[which]!.value;
        }
      },
    })),
    final({ cells, seen }) {
      outcomes.add(JSON.stringify([cells.map((cell) => cell.value), seen]));
    },
  });
}

async function outcomesOf(
  lists: readonly (readonly Step[])[],
  tracked: boolean,
  mode: Mode,
): Promise<{ outcomes: string[]; schedules: number }> {
  const outcomes = new Set<string>();
  const { complete, schedules, violations } = await explore(programs(lists, tracked, outcomes), {
    mode,
    schedules: 100_000,
  });
  expect({ complete, violations }).toEqual({ complete: true, violations: [] });
  return { outcomes: [...outcomes].toSorted(), schedules };
}

describe("sleep sets", () => {
  test("leave out no outcome", async () => {
    let plainSchedules = 0;
    let reducedSchedules = 0;
    await fc.assert(
      fc.asyncProperty(programArbitrary, fc.boolean(), async (lists, tracked) => {
        const plain = await outcomesOf(lists, tracked, "plain");
        const reduced = await outcomesOf(lists, tracked, "reduced");
        expect(reduced.outcomes).toEqual(plain.outcomes);
        expect(reduced.schedules).toBeLessThanOrEqual(plain.schedules);
        plainSchedules += plain.schedules;
        reducedSchedules += reduced.schedules;
      }),
      { numRuns: 100, seed: 20_261_128 },
    );
    expect(reducedSchedules).toBeLessThan(plainSchedules);
  });

  test("see that steps on different variables commute", async () => {
    const lists: Step[][] = [
      [
        ["add", 0],
        ["add", 0],
      ],
      [
        ["add", 1],
        ["add", 1],
      ],
    ];
    // Six steps more or less than needed would be seen here: two agents that share nothing have one order.
    expect((await outcomesOf(lists, true, "reduced")).outcomes).toHaveLength(1);
    const plain = (await outcomesOf(lists, true, "plain")).schedules;
    const reduced = (await outcomesOf(lists, true, "reduced")).schedules;
    expect(reduced * 3).toBeLessThan(plain);
  });
});

/** What agents do with a space of two pages, its device and its notifiers. */
const SPACE_STEPS = ["fill", "dontneed", "munmap", "migrate", "read", "write", "cpu", "protect"] as const;
type SpaceStep = (typeof SPACE_STEPS)[number];

function spaceScenario(
  steps: readonly (readonly SpaceStep[])[],
  thread: number,
  ends: Set<string>,
): Scenario {
  return scenario({
    tracked: true,
    setup(world) {
      const space = world.space({ pages: 2 });
      const device = world.device(space);
      device.map(0, space.entry(0)!);
      const invalidate = (self: SimInterval, range: { start: number; end: number }, seq: number): void => {
        self.setSeq(seq);
        device.unmap(range.start, range.end);
      };
      return { space, device, interval: space.notifiers.sync.insert({ invalidate }, 0, PAGE) };
    },
    agents: steps.map((list, index) => ({
      name: `agent ${index}`,
      thread: index === 0 ? 0 : thread,
      *run({ space, device, interval }: SpaceContext): Op {
        for (const step of list) {
          try {
            if (step === "fill") {
              const seq = yield* interval.readBegin();
              const translation = yield* space.fault(0, "r");
              if (!interval.readRetry(seq)) device.map(0, translation);
            } else if (step === "read") yield* device.read(0);
            else if (step === "write") yield* device.write(0, 7 + index);
            else if (step === "cpu") yield* space.write(0, 3 + index);
            else if (step === "migrate") yield* space.migrate(PAGE);
            else if (step === "protect") yield* space.protect(0, PAGE, "r");
            else yield* space[step](step === "munmap" ? PAGE : 0, PAGE);
          } catch (error) {
            if (!isMmError(error)) throw error;
          }
        }
      },
    })),
    final(_context: SpaceContext, world) {
      ends.add(world.describe());
    },
  });
}

describe("sleep sets over spaces", () => {
  const list = fc.array(fc.constantFrom(...SPACE_STEPS), { minLength: 1, maxLength: 1 });

  test.each([0, 1])("leave out no outcome; changes in thread %i", async (thread) => {
    await fc.assert(
      fc.asyncProperty(fc.array(list, { minLength: 2, maxLength: 2 }), async (steps) => {
        const of = async (mode: Mode): Promise<unknown> => {
          const ends = new Set<string>();
          const { complete, violations } = await explore(spaceScenario(steps, thread, ends), { mode });
          expect(complete || violations.length > 0).toBe(true);
          return { ends: [...ends].toSorted(), rules: violations.map(({ rule }) => rule).toSorted() };
        };
        expect(await of("reduced")).toEqual(await of("plain"));
      }),
      { numRuns: 40, seed: 20_261_128 },
    );
  });
});

describe("a cache of states", () => {
  const counters = (hashed: boolean): Scenario =>
    scenario({
      setup: (world) => ({ a: world.cell("a", 0), b: world.cell("b", 0) }),
      agents: [0, 1].map((index) => ({
        name: `adds ${index}`,
        *run({ a, b }: { a: Cell<number>; b: Cell<number> }, world: World): Op {
          for (let k = 0; k < 2; k++) {
            yield* world.point(`a ${k}`);
            a.value++;
            yield* world.point(`b ${k}`);
            b.value++;
          }
        },
      })),
      ...(hashed ? { state: ({ a, b }: { a: Cell<number>; b: Cell<number> }) => [a.value, b.value] } : {}),
      final: ({ a, b }) => (a.value === 4 && b.value === 4 ? undefined : "lost"),
    });

  test("is much smaller, and as complete", async () => {
    const with_ = await explore(counters(true), { mode: "plain" });
    const without = await explore(counters(false), { mode: "plain" });
    expect(with_.violations).toEqual([]);
    expect(with_.complete).toBe(true);
    expect(with_.states * 10).toBeLessThan(without.states);
  });
});

describe("modes", () => {
  test.each<Mode>(["exhaustive", "reduced", "plain", "random", "pct"])(
    "%s finds the mistake",
    async (mode) => {
      const { violations } = await explore(c01.broken, { mode, schedules: 5000 });
      expect(violations.map(({ rule }) => rule)).toContain("use-after-free");
    },
  );

  test.each<Mode>(["exhaustive", "reduced", "plain", "random", "pct"])(
    "%s finds nothing where nothing is",
    async (mode) => {
      const { violations } = await explore(c02.fixed, { mode, schedules: 5000 });
      expect(violations).toEqual([]);
    },
  );

  test("no preemption finds less than one does", async () => {
    const rules = async (preemptions: number): Promise<number> =>
      (await explore(c02.broken, { preemptions })).violations.length;
    expect(await rules(0)).toBe(0);
    expect(await rules(2)).toBe(1);
  });

  test.each<Mode>(["random", "pct"])("%s is decided by its seed", async (mode) => {
    const run = async (seed: number): Promise<unknown> => {
      const { violations, steps } = await explore(c01.broken, { mode, seed, schedules: 300 });
      return { steps, schedules: violations.map(({ schedule }) => schedule) };
    };
    expect(await run(1)).toEqual(await run(1));
    expect(await run(1)).not.toEqual(await run(2));
  });
});

describe("schedules", () => {
  test("are written and read", () => {
    fc.assert(
      fc.property(fc.array(fc.nat({ max: 50 })), (steps) => {
        expect(decodeSchedule(encodeSchedule(steps))).toEqual(steps);
      }),
    );
    expect(encodeSchedule([0, 0, 0, 1, 1, 0, 40])).toBe("0*3.1*2.0.14");
  });

  test.each(["0*", "*3", "0..1", "0*0", "A", "0*9999999.0*9999999"])("%s is none", (text) => {
    expect(decodeSchedule(text)).toBeUndefined();
  });

  test("replay to the same trace, each time", async () => {
    const { violations } = await explore(c10.broken);
    const { schedule, trace, columns } = violations.find(({ rule }) => rule === "deadlock")!;
    const again = await replay(c10.broken, schedule);
    expect(again.trace.slice(0, trace.length)).toEqual(trace);
    expect(await replay(c10.broken, schedule)).toEqual(again);
    expect(renderTrace({ columns, trace })).toContain("✗ deadlock");
  });

  test("that do not fit are refused", async () => {
    await expect(replay(c10.broken, "z")).rejects.toThrow(/does not fit: its step 1/);
    await expect(replay(c10.broken, "?")).rejects.toThrow(/is no schedule/);
  });
});
