/**
 * What the contract is for (I9 of linux-semantics.md 2.10): a mirror of a page table, filled while the table changes
 * under it, in many schedules. Each rule that is left out is caught by the same test.
 */
import { describe, expect, test } from "vitest";
import { InvariantError } from "../../../src/errors.ts";
import { MmuNotifier, type MmuNotifierRange } from "../../../src/notifier/index.ts";
import { CheckerDriver, type Op, seededChooser } from "../../../src/sched/index.ts";
import { lockMutexOp, MUTEX_WORDS, unlockMutex } from "../../../src/sync/index.ts";
import { newArena, point, words } from "../../lib/arena.ts";
import { type NotifierWorld, notifierWorld, range, type Subscriber } from "../../lib/notifiers.ts";

const AGENTS = 3;
const PAGES = 3;
const SEEDS = 500;
/** A new one now and then: runs that fail leave records behind. */
const RUNS_PER_ARENA = 200;
let arena = newArena(AGENTS);
let runs = 0;

type Bug =
  "no readRetry" | "no setSeq" | "no teardown" | "no lock" | "late readBegin" | "end before the change";

interface Table {
  /** What is mapped at each page: a number that is never used again, 0 = nothing. */
  readonly pages: number[];
  /** Ranges whose start has returned and whose end has not begun. */
  readonly open: Set<MmuNotifierRange>;
  /** What the mirror would use. */
  readonly mirror: Map<number, number>;
}

/** I9: outside every open range the mirror agrees with the table; inside, once the start has returned, it is empty. */
function checkMirror({ pages, open, mirror }: Table): void {
  for (const [page, value] of mirror) {
    for (const r of open) {
      if (r.start <= page && page < r.end)
        throw new InvariantError(`stale: page ${page} usable while it is invalidated`);
    }
    if (pages[page] !== value)
      throw new InvariantError(`stale: page ${page} is ${pages[page]}, not ${value}`);
  }
}

function* changer(by: Subscriber, table: Table, next: () => number, rounds: number, bug?: Bug): Op<void> {
  for (let k = 0; k < rounds; k++) {
    const start = next() % PAGES;
    const end = start + 1 + (next() % (PAGES - start));
    const open = yield* by.notifiers.operations.invalidateRangeStart(range(start, end));
    table.open.add(open);
    checkMirror(table);
    if (bug === "end before the change") {
      table.open.delete(open);
      by.notifiers.invalidateRangeEnd(open);
    }
    for (let page = start; page < end; page++) {
      yield* point("between two page-table entries");
      table.pages[page] = 1000 + next();
    }
    checkMirror(table);
    yield* point("changed");
    if (table.open.delete(open)) by.notifiers.invalidateRangeEnd(open);
    checkMirror(table);
    yield* point("ended");
  }
}

/** Runs a mirror that lives in agent 0, filled by agent 0, while agents 1 and 2 change the table. */
function mirrorInOneAgent(seed: number, bug?: Bug): string {
  return explore(seed, (world, table, checker, next) => {
    const [owner] = world.agents as [Subscriber];
    const { operations } = owner.notifiers;
    checker.spawn(
      owner.agent,
      "fill",
      (function* (): Op<void> {
        const interval = yield* operations.insert(
          {
            invalidate(self, r, curSeq) {
              if (bug !== "no setSeq") self.setSeq(curSeq);
              if (bug === "no teardown") return true;
              for (let page = r.start; page < Math.min(r.end, PAGES); page++) table.mirror.delete(page);
              return true;
            },
          },
          0,
          PAGES,
        );
        for (let k = 0; k < 6; k++) {
          const page = next() % PAGES;
          for (let tries = 0; ; tries++) {
            if (tries > 50) throw new InvariantError("a fill without end");
            let seq = bug === "late readBegin" ? 0 : yield* interval.operations.readBegin();
            const value = table.pages[page]!;
            yield* point("read");
            if (bug === "late readBegin") seq = yield* interval.operations.readBegin();
            if (bug !== "no readRetry" && interval.readRetry(seq)) continue;
            table.mirror.set(page, value);
            break;
          }
          checkMirror(table);
          yield* point("installed");
        }
        table.mirror.clear(); // first: from the removal on nobody tells the mirror anything
        yield* interval.operations.remove();
      })(),
    );
    for (const [k, by] of world.agents.entries()) {
      if (k > 0) checker.spawn(by.agent, `change${k}`, changer(by, table, next, 3, bug));
    }
  });
}

/** The same with a mirror that all agents fill, under a mutex that the callback, in agent 0, takes too. */
function sharedMirror(seed: number, bug?: Bug): string {
  return explore(seed, (world, table, checker, next) => {
    const [owner, changing, filling] = world.agents as [Subscriber, Subscriber, Subscriber];
    const mutex = words(arena, owner.agent, MUTEX_WORDS);
    const locked = bug !== "no lock";
    let fills = 2;
    const started = owner.notifiers.operations.insert(
      {
        *invalidate(self, r, curSeq): Op<boolean> {
          if (locked) yield* lockMutexOp(owner.agent, mutex, "the mirror's lock");
          self.setSeq(curSeq);
          yield* point("in the callback");
          for (let page = r.start; page < Math.min(r.end, PAGES); page++) table.mirror.delete(page);
          if (locked) unlockMutex(owner.agent, mutex);
          return true;
        },
      },
      0,
      PAGES,
    );
    const step = started.next();
    if (step.done !== true) throw new Error("an insert waits for nothing");
    const interval = step.value;
    function* fill(by: Subscriber): Op<void> {
      const seen = by.notifiers.interval(interval.id);
      for (let k = 0; k < 4; k++) {
        const page = next() % PAGES;
        for (let tries = 0; tries < 50; tries++) {
          const seq = yield* seen.operations.readBegin();
          const value = table.pages[page]!;
          yield* point("read");
          if (locked) yield* lockMutexOp(by.agent, mutex, "the mirror's lock");
          const again = bug !== "no readRetry" && seen.readRetry(seq);
          if (!locked) yield* point("where the lock is missing");
          if (!again) table.mirror.set(page, value);
          if (locked) unlockMutex(by.agent, mutex);
          if (!again) break;
        }
        checkMirror(table);
        yield* point("installed");
      }
      if (--fills > 0) return;
      table.mirror.clear();
      yield* interval.operations.remove();
    }
    checker.spawn(owner.agent, "fill0", fill(owner));
    checker.spawn(filling.agent, "fill2", fill(filling));
    checker.spawn(changing.agent, "change1", changer(changing, table, next, 4, bug));
  });
}

/** KVM's way: a list notifier with a count of open ranges and a number that moves at each end. */
function listMirror(seed: number, bug?: Bug): string {
  return explore(seed, (world, table, checker, next) => {
    const [owner] = world.agents as [Subscriber];
    let [count, moved] = [0, 0];
    const notifier = new MmuNotifier({
      invalidateRangeStart(_n, r) {
        count++;
        for (let page = r.start; page < Math.min(r.end, PAGES); page++) table.mirror.delete(page);
      },
      invalidateRangeEnd() {
        moved++;
        count--;
        if (count < 0) throw new InvariantError("an end without its start");
      },
    });
    checker.spawn(
      owner.agent,
      "fill",
      (function* (): Op<void> {
        yield* owner.notifiers.operations.register(notifier);
        for (let k = 0; k < 6; k++) {
          const page = next() % PAGES;
          for (let tries = 0; tries < 50; tries++) {
            const before = moved;
            const value = table.pages[page]!;
            yield* point("read");
            if (bug !== "no readRetry" && (count > 0 || moved !== before)) {
              yield* point("overtaken");
              continue;
            }
            table.mirror.set(page, value);
            break;
          }
          checkMirror(table);
          yield* point("installed");
        }
        table.mirror.clear();
        yield* owner.notifiers.operations.unregister(notifier);
      })(),
    );
    for (const [k, by] of world.agents.entries()) {
      if (k > 0) checker.spawn(by.agent, `change${k}`, changer(by, table, next, 3, bug));
    }
  });
}

function explore(
  seed: number,
  spawn: (world: NotifierWorld, table: Table, checker: CheckerDriver, next: () => number) => void,
): string {
  if (++runs % RUNS_PER_ARENA === 0) arena = newArena(AGENTS);
  const world = notifierWorld(AGENTS, { arena, simulated: true });
  const choose = seededChooser(seed);
  const checker = new CheckerDriver(choose);
  const table: Table = { pages: [1, 2, 3], open: new Set(), mirror: new Map() };
  const pages = seededChooser(seed + 1_000_000);
  try {
    spawn(world, table, checker, () => pages(1000));
    checker.run(20_000);
    expect([world.open(), world.check()]).toEqual([0, undefined]);
    for (const { errors } of world.agents) expect(errors).toEqual([]);
    world.dispose();
  } catch (error) {
    for (const { agent } of world.agents) agent.detach();
    throw error;
  }
  return checker.schedule.join(" ");
}

const failures = (run: (seed: number) => unknown): string[] =>
  Array.from({ length: SEEDS }, (_, seed) => {
    try {
      run(seed);
      return "";
    } catch (error) {
      return (error as Error).message;
    }
  }).filter((message) => message !== "");

const WORLDS = [
  [
    "a mirror in one agent",
    mirrorInOneAgent,
    ["no readRetry", "no setSeq", "no teardown", "late readBegin", "end before the change"],
  ],
  ["a shared mirror under a lock", sharedMirror, ["no readRetry", "no lock", "end before the change"]],
  ["a mirror over a list notifier", listMirror, ["no readRetry", "end before the change"]],
] as const;

describe.each(WORLDS)("%s", (_name, run, bugs) => {
  test("is never stale, in any schedule", () => {
    expect(failures((seed) => run(seed))).toEqual([]);
    expect(new Set(Array.from({ length: 50 }, (_, seed) => run(seed))).size).toBeGreaterThan(40);
    expect(run(7)).toBe(run(7));
  });

  test.each(bugs.map((bug) => [bug]))("is caught with a bug: %s", (bug) => {
    const found = failures((seed) => run(seed, bug)).filter((message) => message.startsWith("stale"));
    expect(found.length).toBeGreaterThan(SEEDS / 50);
  });
});
