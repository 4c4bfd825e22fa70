import { describe, expect, test } from "vitest";
import {
  type Agent,
  CheckerDriver,
  type Op,
  seededChooser,
  start,
  waitOp,
  wakeQueue,
} from "../../../src/sched/index.ts";
import { QUEUE_WORDS } from "../../../src/sched/layout.ts";
import { newArena, point, simulatedAgent, waitFor, words } from "../../lib/arena.ts";

const arena = newArena();
const SEEDS = 200;

/** Runs `body` with agents that are detached afterwards, so that every run gets the same slots. */
function withAgents<T>(count: number, body: (agents: Agent[]) => T): T {
  const agents = Array.from({ length: count }, () => simulatedAgent(arena));
  try {
    return body(agents);
  } finally {
    for (const agent of agents) agent.detach();
  }
}

/** Two counters that add to a word without a lock; the sum is wrong in some schedules. */
function count(seed: number, rounds = 3): { total: number; schedule: string } {
  return withAgents(2, (agents) => {
    const checker = new CheckerDriver(seededChooser(seed));
    let total = 0;
    for (const [k, agent] of agents.entries()) {
      checker.spawn(
        agent,
        `c${k}`,
        (function* (): Op<void> {
          for (let r = 0; r < rounds; r++) {
            const seen = total;
            yield* point();
            total = seen + 1;
          }
        })(),
      );
    }
    checker.run(1000);
    return { total, schedule: checker.schedule.join(" ") };
  });
}

/** Philosophers with one fork each, the left one first: the seeded bug is that nobody takes the right one first. */
function dine(seed: number, breakCycle: boolean): void {
  const seats = 3;
  withAgents(seats, (agents) => {
    const checker = new CheckerDriver(seededChooser(seed));
    const queue = words(arena, agents[0]!, QUEUE_WORDS);
    const forks = Array.from({ length: seats }, () => false);
    const take = (fork: number): Op<void> =>
      waitOp(queue, () => !forks[fork] && (forks[fork] = true), `fork ${fork}`);
    for (const [k, agent] of agents.entries()) {
      checker.spawn(
        agent,
        `p${k}`,
        (function* (): Op<void> {
          const order = [k, (k + 1) % seats];
          if (breakCycle && k === 0) order.reverse();
          for (const fork of order) {
            yield* take(fork);
            yield* point();
          }
          for (const fork of order) forks[fork] = false;
          wakeQueue(arena.words, queue);
        })(),
      );
    }
    checker.run(1000);
  });
}

describe("schedules", () => {
  test("the same seed gives the same schedule, other seeds give others", () => {
    const schedules = new Set<string>();
    for (let seed = 0; seed < 50; seed++) {
      const { schedule, total } = count(seed);
      expect(count(seed)).toEqual({ schedule, total });
      schedules.add(schedule);
    }
    expect(schedules.size).toBeGreaterThan(10);
  });

  test("an update without a lock is lost in some schedules and not in others", () => {
    const totals = new Set(Array.from({ length: SEEDS }, (_, seed) => count(seed).total));
    expect(totals.has(6)).toBe(true);
    expect([...totals].some((total) => total < 6)).toBe(true);
  });

  test("chosen by hand, the schedule is what was chosen", () => {
    withAgents(2, ([a, b]) => {
      const choices = [1, 0, 1, 0];
      const checker = new CheckerDriver((n) => Math.min(choices.shift() ?? 0, n - 1));
      for (const [agent, name] of [
        [a!, "a"],
        [b!, "b"],
      ] as const)
        checker.spawn(agent, name, point());
      checker.run(100);
      expect(checker.schedule).toEqual(["b", "a", "b", "a"]);
    });
  });
});

describe("what the checker finds", () => {
  test("a deadlock, with what everybody waits for, in some schedule", () => {
    const messages = Array.from({ length: SEEDS }, (_, seed) => {
      try {
        dine(seed, false);
        return "";
      } catch (error) {
        return (error as Error).message;
      }
    });
    expect(messages).toContain("");
    expect(messages.find((m) => m !== "")).toMatch(
      /^deadlock: p0 waits for fork 1; p1 waits for fork 2; p2 waits for fork 0 \(.*p\d.*\)$/,
    );
  });

  test("none where there is none", () => {
    for (let seed = 0; seed < SEEDS; seed++) dine(seed, true);
    expect(() => dine(0, true)).not.toThrow();
  });

  test("the error of the actor that failed, not the deadlock of those who wait for what it held", () => {
    withAgents(2, ([a, b]) => {
      const checker = new CheckerDriver(seededChooser(1));
      checker.spawn(
        a!,
        "fails",
        // eslint-disable-next-line require-yield
        (function* (): Op<void> {
          throw new Error("out of luck");
        })(),
      );
      checker.spawn(
        b!,
        "waits",
        waitOp(0, () => false, "the other"),
      );
      expect(() => checker.run(100)).toThrow("out of luck");
    });
  });

  test("a program without end", () => {
    withAgents(1, ([a]) => {
      const checker = new CheckerDriver(seededChooser(1));
      checker.spawn(
        a!,
        "a",
        (function* (): Op<void> {
          for (;;) yield* point();
        })(),
      );
      expect(() => checker.run(50)).toThrow(/no end after 50 steps/);
    });
  });

  test("an error that a wait's condition throws goes into the operation", () => {
    withAgents(1, ([a]) => {
      const checker = new CheckerDriver(seededChooser(1));
      let unwound = false;
      let broken = false;
      checker.spawn(
        a!,
        "a",
        (function* (): Op<void> {
          try {
            yield waitFor(() => {
              if (broken) throw new Error("the holder is dead");
              return false;
            });
          } finally {
            unwound = true;
          }
        })(),
      );
      checker.spawn(
        a!,
        "breaks",
        (function* (): Op<void> {
          yield* point();
          broken = true;
        })(),
      );
      expect(() => checker.run(50)).toThrow("the holder is dead");
      expect(unwound).toBe(true);
    });
  });
});

describe("agents", () => {
  test("an agent without an operation answers, and what nobody waits for is served before the end", () => {
    for (let seed = 0; seed < 20; seed++) {
      withAgents(2, ([a, b]) => {
        const checker = new CheckerDriver(seededChooser(seed));
        const served: number[] = [];
        b!.handle(9, (m) => void served.push(m));
        checker.addAgent(b!);
        let asked = 0;
        checker.spawn(
          a!,
          "asks",
          (function* (): Op<void> {
            asked = a!.tryReserveMessage(9);
            a!.sendTo(b!.ownerId, asked as never, false);
            yield* waitOp(0, () => a!.messageDone(asked as never), "an answer");
            a!.sendTo(b!.ownerId, a!.tryReserveMessage(9), true);
          })(),
        );
        checker.run(100);
        expect(served).toHaveLength(2);
        expect(checker.schedule.filter((s) => s === `@${b!.slot}`)).toHaveLength(2);
      });
    }
  });

  test("an operation that a message starts in an agent is part of the schedule", () => {
    const schedules = new Set<string>();
    for (let seed = 0; seed < 20; seed++) {
      withAgents(3, ([a, b, c]) => {
        const checker = new CheckerDriver(seededChooser(seed));
        let open = false;
        b!.handle(9, (m) => {
          start(
            b!,
            waitOp(0, () => open, "the gate"),
            () => b!.finishMessage(m),
          );
          return true;
        });
        checker.addAgent(b!);
        checker.spawn(
          a!,
          "asks",
          (function* (): Op<void> {
            const m = a!.tryReserveMessage(9);
            a!.sendTo(b!.ownerId, m, false);
            yield* waitOp(0, () => a!.messageDone(m), "an answer");
          })(),
        );
        checker.spawn(
          c!,
          "opens",
          (function* (): Op<void> {
            yield* point();
            open = true;
          })(),
        );
        checker.run(200);
        schedules.add(checker.schedule.join(" "));
      });
    }
    expect(schedules.size).toBeGreaterThan(2);
  });

  test("the answer to a question that is never served is a deadlock that names it", () => {
    withAgents(2, ([a, b]) => {
      const checker = new CheckerDriver(seededChooser(3));
      b!.handle(9, () => true); // answers later: never
      checker.addAgent(b!);
      checker.spawn(
        a!,
        "asks",
        (function* (): Op<void> {
          const m = a!.tryReserveMessage(9);
          a!.sendTo(b!.ownerId, m, false);
          yield* waitOp(0, () => a!.messageDone(m), "an answer that never comes");
        })(),
      );
      expect(() => checker.run(100)).toThrow(/deadlock: asks waits for an answer that never comes/);
    });
  });
});
