/**
 * List notifiers as a property: random programs of three simulated agents that register, unregister, get, put and
 * invalidate, in random schedules. Who is there all the while hears each start and each end, once and in order; nobody
 * hears an end without its start, or anything outside its life; what is put is freed once.
 */
import fc from "fast-check";
import { expect, test } from "vitest";
import { InvariantError } from "../../src/errors.ts";
import { MmuNotifier, MmuNotifierEvent, type MmuNotifierOps } from "../../src/notifier/index.ts";
import { subsListedAt } from "../../src/notifier/layout.ts";
import { CheckerDriver, type Op, seededChooser, waitOp } from "../../src/sched/index.ts";
import { newArena, point } from "../lib/arena.ts";
import { notifierWorld, type Subscriber } from "../lib/notifiers.ts";

const AGENTS = 3;
/** Two for each agent: one may register while the other invalidates. */
const ACTORS = 2 * AGENTS;
const arena = newArena(AGENTS);

type Command =
  | { readonly kind: "register" | "get"; readonly waits: boolean }
  | { readonly kind: "unregister" | "put" | "getAgain"; readonly which: number }
  | { readonly kind: "invalidate"; readonly nested: boolean }
  | { readonly kind: "synchronize" };

const which = fc.nat(3);
const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("register" as const), waits: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("get" as const), waits: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("getAgain" as const), which }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("unregister" as const), which }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("put" as const), which }) },
  { weight: 5, arbitrary: fc.record({ kind: fc.constant("invalidate" as const), nested: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("synchronize" as const) }) },
);
const program = fc.array(fc.array(command, { maxLength: 5 }), { minLength: ACTORS, maxLength: ACTORS });

const ensure = (condition: boolean, what: string): void => {
  if (!condition) throw new InvariantError(what);
};

/** One registration. */
interface Life {
  readonly by: Subscriber;
  /** The actor that takes it away. */
  readonly actor: number;
  readonly ops: MmuNotifierOps;
  notifier: MmuNotifier | undefined;
  counted: boolean;
  uses: number;
  /** Its place among those that register() and get() have returned for, 0 before. */
  since: number;
  leaving: boolean;
  over: boolean;
  readonly heard: Map<number, "start" | "end">;
}

interface Reached {
  readonly schedule: string;
  starts: number;
  ends: number;
  remote: number;
  freed: number;
  /** Ends that never came, because the notifier left in between. */
  endless: number;
}

function run(programs: readonly (readonly Command[])[], seed: number): Reached {
  const reached = { schedule: "", starts: 0, ends: 0, remote: 0, freed: 0, endless: 0 };
  const world = notifierWorld(AGENTS, { arena, simulated: true });
  const lives: Life[] = [];
  let returned = 0;
  let ranges = 0;

  function newLife(by: Subscriber, actor: number, counted: boolean, waits: boolean): Life {
    const life: Life = {
      by,
      actor,
      counted,
      notifier: undefined,
      uses: 1,
      since: 0,
      leaving: false,
      over: false,
      heard: new Map(),
      ops: {
        *invalidateRangeStart(_, range): Op<void> {
          ensure(!life.over, "a start after the end of its life");
          ensure(!life.heard.has(range.owner!), "a second start");
          life.heard.set(range.owner!, "start");
          reached.starts++;
          if (waits) yield* waitOp(0, () => true, "nothing");
          ensure(!life.over, "its life ended while its start ran");
        },
        invalidateRangeEnd(_, range) {
          ensure(!life.over, "an end after the end of its life");
          ensure(life.heard.get(range.owner!) === "start", "an end without its start");
          life.heard.set(range.owner!, "end");
          reached.ends++;
        },
        freeNotifier(notifier) {
          ensure(notifier === life.notifier && life.uses === 0 && !life.over, "freed, and not put, or twice");
          life.over = true;
          reached.freed++;
        },
      },
    };
    lives.push(life);
    return life;
  }

  function* enter(by: Subscriber, k: number, counted: boolean, waits: boolean): Op<void> {
    const life = newLife(by, k, counted, waits);
    const { operations } = by.notifiers;
    if (counted) life.notifier = yield* operations.get(life.ops);
    else {
      life.notifier = new MmuNotifier(life.ops);
      yield* operations.register(life.notifier);
    }
    life.since = ++returned;
  }

  function* invalidate(by: Subscriber, nested: boolean): Op<void> {
    const id = ++ranges;
    const there = lives.filter((life) => life.since > 0 && !life.leaving);
    const open = yield* by.notifiers.operations.invalidateRangeStart({
      start: 0,
      end: 1,
      event: MmuNotifierEvent.Migrate,
      owner: id, // names the range
    });
    for (const life of there) {
      if (life.leaving) continue;
      ensure(life.heard.has(id), "a start returned before everybody was told");
      if (life.by !== by) reached.remote++;
    }
    yield* point();
    if (nested) yield* invalidate(by, false);
    by.notifiers.invalidateRangeEnd(open);
    for (const life of lives) {
      const owed = life.by === by && life.heard.get(id) === "start" && !life.leaving;
      ensure(!owed, "one of this agent has not heard the end");
    }
  }

  const mine = (k: number, counted: boolean, n: number): Life | undefined => {
    const all = lives.filter((l) => l.actor === k && l.counted === counted && l.since > 0 && !l.leaving);
    return all[n % Math.max(1, all.length)];
  };

  function put(life: Life): void {
    life.uses--;
    if (life.uses === 0) life.leaving = true;
    life.by.notifiers.put(life.notifier!);
  }

  function* leave(life: Life): Op<void> {
    life.leaving = true;
    yield* life.by.notifiers.operations.unregister(life.notifier!);
    life.over = true;
  }

  function* synchronize(by: Subscriber): Op<void> {
    const gone = lives.filter((life) => life.counted && life.leaving);
    yield* by.notifiers.operations.synchronize();
    for (const life of gone) ensure(life.over, "synchronize() returned before what was put was freed");
  }

  function* actor(by: Subscriber, k: number, commands: readonly Command[]): Op<void> {
    for (const c of commands) {
      if (c.kind === "register" || c.kind === "get") yield* enter(by, k, c.kind === "get", c.waits);
      else if (c.kind === "invalidate") yield* invalidate(by, c.nested);
      else if (c.kind === "synchronize") yield* synchronize(by);
      else if ("which" in c) {
        const life = mine(k, c.kind !== "unregister", c.which);
        if (life && c.kind === "put") put(life);
        else if (life && c.kind === "unregister") yield* leave(life);
        else if (life) {
          life.uses++;
          const again = yield* by.notifiers.operations.get(life.ops);
          // Put meanwhile, by somebody else's hand, it would be another; nobody else puts it.
          ensure(again === life.notifier && again.users === life.uses, "get() gave another one");
        }
      }
      yield* point();
    }
    done++;
    yield* waitOp(0, () => done === ACTORS, "the others");
    const stay = lives.filter((life) => life.actor === k && !life.leaving);
    yield* waitOp(
      0,
      () => stay.every((life) => [...life.heard.values()].every((h) => h === "end")),
      "the ends",
    );
    for (const life of stay) {
      while (life.counted && life.uses > 0) put(life);
      if (!life.counted) yield* leave(life);
    }
    yield* synchronize(by);
  }

  let done = 0;
  const checker = new CheckerDriver(seededChooser(seed));
  for (const [k, commands] of programs.entries()) {
    const by = world.agents[k % AGENTS]!;
    checker.spawn(by.agent, `a${k}`, actor(by, k, commands));
  }
  try {
    checker.run(50_000);
    ensure(world.open() === 0 && world.check() === undefined, `at the end: ${world.check()}`);
    ensure(
      lives.every((life) => life.over),
      "somebody's life has not ended",
    );
    for (const life of lives) {
      for (const last of life.heard.values()) if (last === "start") reached.endless++;
    }
    for (const { errors } of world.agents) if (errors[0]) throw errors[0];
    for (const { agent } of world.agents) {
      const left = Atomics.load(arena.words, subsListedAt(world.subs, AGENTS, agent.slot));
      ensure(left === 0, "records are left");
    }
  } finally {
    world.dispose();
  }
  return { ...reached, schedule: checker.schedule.join(" ") };
}

test("list notifiers hear what concerns them, while they live, in every program and schedule", () => {
  const reached: Reached[] = [];
  fc.assert(
    fc.property(program, fc.nat(), (programs, seed) => {
      reached.push(run(programs, seed));
    }),
    { numRuns: 1500 },
  );
  const share = (count: (r: Reached) => boolean): number => reached.filter(count).length / reached.length;
  expect(share((r) => r.remote > 0)).toBeGreaterThan(0.3);
  expect(share((r) => r.ends > 3)).toBeGreaterThan(0.2);
  expect(share((r) => r.freed > 0)).toBeGreaterThan(0.3);
  expect(share((r) => r.endless > 0)).toBeGreaterThan(0.005);
});
