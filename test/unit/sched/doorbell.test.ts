import { describe, expect, test } from "vitest";
import { arm, ownerAlive, ownerGone, reap, ring, wakeQueue } from "../../../src/sched/index.ts";
import { setLocalWaker } from "../../../src/sched/doorbell.ts";
import {
  AG_BELL,
  AG_SLEEP,
  agentAt,
  ownerIdOf,
  QUEUE_WORDS,
  schedEnd,
  SLEEP_ARMED,
} from "../../../src/sched/layout.ts";
import { attachTo, newArena, words } from "../../lib/arena.ts";

const bellOf = (w: Int32Array, slot: number): number => Atomics.load(w, agentAt(slot) + AG_BELL);

describe("wait queues", () => {
  test("a wake takes every registration, on both words and at their edges, and rings each agent once", () => {
    const arena = newArena(64);
    const queue = words(arena, attachTo(arena), QUEUE_WORDS);
    const slots = [0, 1, 30, 31, 32, 33, 62, 63];
    const before = slots.map((slot) => bellOf(arena.words, slot));
    for (const slot of slots) arm(arena.words, queue, slot);
    arm(arena.words, queue, 31); // twice is once
    wakeQueue(arena.words, queue);
    expect(slots.map((slot) => bellOf(arena.words, slot))).toEqual(before.map((n) => n + 1));
    expect(bellOf(arena.words, 2)).toBe(0);
    wakeQueue(arena.words, queue);
    expect(slots.map((slot) => bellOf(arena.words, slot))).toEqual(before.map((n) => n + 1));
  });

  test("whoever armed after a wake is rung by the next one only", () => {
    const arena = newArena();
    const agent = attachTo(arena);
    const queue = words(arena, agent, QUEUE_WORDS);
    wakeQueue(arena.words, queue);
    arm(arena.words, queue, agent.slot);
    expect(bellOf(arena.words, agent.slot)).toBe(0);
    wakeQueue(arena.words, queue);
    expect(bellOf(arena.words, agent.slot)).toBe(1);
  });
});

describe("rings", () => {
  test("a ring changes the doorbell of an agent that is awake, which may be about to sleep on the old value", () => {
    const arena = newArena();
    const agent = attachTo(arena);
    const bell = agent.bell();
    ring(arena.words, agent.slot);
    expect(agent.bell()).not.toBe(bell);
    expect(Atomics.wait(arena.words, agent.base + AG_BELL, bell, 1000)).toBe("not-equal");
  });

  test("a ring wakes every sleeper on the doorbell, not only the one that came first", async () => {
    const arena = newArena();
    const agent = attachTo(arena);
    agent.setArmed(true);
    const sleepers = [1, 2, 3].map(() => Atomics.waitAsync(arena.words, agent.base + AG_BELL, agent.bell()));
    expect(sleepers.every((s) => s.async)).toBe(true);
    ring(arena.words, agent.slot);
    expect(await Promise.all(sleepers.map(async (s) => s.value))).toEqual(["ok", "ok", "ok"]);
  });

  test("a ring reaches an agent that sleeps on a word of the user's in the arena", async () => {
    const arena = newArena();
    const agent = attachTo(arena);
    const other = attachTo(arena);
    const word = words(arena, agent, 1);
    // The sleeper is a waitAsync on the same word: one notify wakes both, and this thread is not blocked.
    let answer: unknown;
    const wait = Atomics.wait;
    const sleeper = Atomics.waitAsync(arena.words, word, 0);
    Atomics.wait = () => {
      ring(other.words, agent.slot);
      return "ok";
    };
    try {
      answer = agent.parkOn(arena.words, word, 0, word, 1000);
    } finally {
      Atomics.wait = wait;
    }
    expect(answer).toBe("ok");
    expect(await sleeper.value).toBe("ok");
  });
});

test("a ring of the single agent of an arena that is not shared wakes it, if it sleeps", () => {
  const w = new Int32Array(schedEnd(1));
  const other = new Int32Array(schedEnd(1));
  const woken: string[] = [];
  setLocalWaker(w, () => woken.push("this one"));
  setLocalWaker(other, () => woken.push("another"));
  ring(w, 0);
  expect(woken).toEqual([]);
  Atomics.store(w, agentAt(0) + AG_SLEEP, SLEEP_ARMED);
  ring(w, 0);
  expect(woken).toEqual(["this one"]);
  expect(bellOf(w, 0)).toBe(2);
});

describe("owner ids", () => {
  test("an owner lives from attaching to detaching, and its id means no later agent in its slot", () => {
    const arena = newArena();
    const first = attachTo(arena);
    expect([ownerAlive(arena.words, first.ownerId), ownerGone(arena.words, first.ownerId)]).toEqual([
      true,
      false,
    ]);
    first.detach();
    expect([ownerAlive(arena.words, first.ownerId), ownerGone(arena.words, first.ownerId)]).toEqual([
      false,
      true,
    ]);
    const second = attachTo(arena);
    expect(second.slot).toBe(first.slot);
    expect(second.ownerId).not.toBe(first.ownerId);
    expect(ownerAlive(arena.words, first.ownerId)).toBe(false);
    expect(ownerGone(arena.words, first.ownerId)).toBe(true);
    expect(ownerAlive(arena.words, second.ownerId)).toBe(true);
  });

  test("while an agent is being reaped it is neither alive nor gone: what it held is not given back yet", () => {
    const arena = newArena();
    const dead = attachTo(arena);
    const other = attachTo(arena);
    let seen: boolean[] = [];
    other.reapers.push((slot, ownerId) => {
      expect(ownerIdOf(slot, 1)).toBe(ownerId);
      seen = [ownerAlive(arena.words, ownerId), ownerGone(arena.words, ownerId)];
      return undefined;
    });
    reap(other, dead.slot);
    expect(seen).toEqual([false, false]);
    expect(ownerGone(arena.words, dead.ownerId)).toBe(true);
  });
});
