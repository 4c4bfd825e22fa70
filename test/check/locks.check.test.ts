/**
 * The sync row under the checker, with others between any two accesses to shared words; and locks with the mistakes that
 * only such a schedule shows.
 */
import { describe, expect, test, vi } from "vitest";
import { explore, type Scenario } from "../../src/check/index.ts";
import { type Op, QUEUE_WORDS, waitOp, wakeQueue } from "../../src/sched/index.ts";
import { alone, between, type Hand, LOCKS } from "./models/locks.ts";

vi.setConfig({ testTimeout: 60_000 });

describe("locks", () => {
  test.each(LOCKS)("$name", async (lock) => {
    const { violations, schedules } = await explore(lock, { schedules: 500, depth: 1000 });
    expect(violations.map((v) => `${v.rule}: ${v.message} ${v.schedule}`)).toEqual([]);
    expect(schedules).toBeGreaterThan(40);
  });

  test("small ones are explored to their end", async () => {
    const whole = ["a spinlock of two", "one waits in a queue", "a mutex of two", "a sequence count"];
    for (const lock of LOCKS.filter(({ name }) => whole.includes(name)))
      expect((await explore(lock, { schedules: 5000 })).complete).toBe(true);
  });
});

/** A lock of one word and a queue, whose two halves are given. */
function lockOf(
  take: (hand: Hand) => boolean,
  give: (hand: Hand) => void,
  wait = (hand: Hand): Op<void> =>
    hand.words.blocking(hand.agent, () => waitOp(hand.at + 1, () => take(hand), "the lock")),
): Scenario {
  const uses = function* (hand: Hand): Op<void> {
    yield* wait(hand);
    yield* alone(hand);
    yield* hand.words.each(hand.agent, "gives it back", () => give(hand));
  };
  return between("a lock", {
    size: () => 1 + QUEUE_WORDS,
    agents: { one: uses, two: uses },
    atRest: (word) => word === 0,
  });
}

const TAKE = ({ agent, at }: Hand): boolean =>
  Atomics.compareExchange(agent.words, at, 0, agent.ownerId) === 0;
const GIVE = ({ agent, at }: Hand): void => {
  Atomics.store(agent.words, at, 0);
  wakeQueue(agent.words, at + 1);
};

describe("a lock", () => {
  const broken = async (lock: Scenario): Promise<string> =>
    (await explore(lock, { schedules: 5000 })).violations.map(({ rule }) => rule).join();

  test("that is right has nothing that is found", async () => {
    expect(await broken(lockOf(TAKE, GIVE))).toBe("");
  });

  test("that is taken in two accesses is found", async () => {
    const take = ({ agent, at }: Hand): boolean => {
      if (Atomics.load(agent.words, at) !== 0) return false;
      Atomics.store(agent.words, at, agent.ownerId);
      return true;
    };
    expect(await broken(lockOf(take, GIVE))).toMatch(/invariant/);
  });

  test("that is taken with a plain access is found", async () => {
    const take = ({ agent, at }: Hand): boolean => {
      if (agent.words[at] !== 0) return false;
      Atomics.store(agent.words, at, agent.ownerId);
      return true;
    };
    expect(await broken(lockOf(take, GIVE))).toMatch(/invariant/);
  });

  test("that wakes before it is free is found", async () => {
    const give = ({ agent, at }: Hand): void => {
      wakeQueue(agent.words, at + 1);
      Atomics.store(agent.words, at, 0);
    };
    expect(await broken(lockOf(TAKE, give))).toMatch(/deadlock/);
  });

  test("that wakes nobody is found", async () => {
    expect(await broken(lockOf(TAKE, ({ agent, at }) => Atomics.store(agent.words, at, 0)))).toMatch(
      /deadlock/,
    );
  });

  test("whose waiter does not look again once it is armed is found", async () => {
    const wait = (hand: Hand): Op<void> =>
      hand.words.each(hand.agent, "takes it", () => {
        const { agent, at } = hand;
        while (!TAKE(hand)) {
          const bell = agent.bell();
          agent.arm(at + 1);
          agent.park(bell, 1000);
        }
      });
    expect(await broken(lockOf(TAKE, GIVE, wait))).toMatch(/deadlock/);
  });

  test("whose waiter reads its doorbell too late is found", async () => {
    const wait = (hand: Hand): Op<void> =>
      hand.words.each(hand.agent, "takes it", () => {
        const { agent, at } = hand;
        for (;;) {
          agent.arm(at + 1);
          if (TAKE(hand)) return;
          agent.park(agent.bell(), 1000);
        }
      });
    expect(await broken(lockOf(TAKE, GIVE, wait))).toMatch(/deadlock/);
  });
});
