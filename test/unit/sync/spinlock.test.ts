import { afterEach, describe, expect, test, vi } from "vitest";
import { attachAgent, reap } from "../../../src/sched/index.ts";
import { lockSpin, unlockSpin } from "../../../src/sync/index.ts";
import { attachTo, newArena, words } from "../../lib/arena.ts";

/** A tid that no thread has. */
const NO_THREAD = 2 ** 23;
const NAPS_BEFORE_LOOK = 200;

afterEach(() => {
  vi.restoreAllMocks();
});

describe("spinlocks", () => {
  test("the word holds the owner's id while it is locked", () => {
    const arena = newArena();
    const agent = attachTo(arena);
    const word = words(arena, agent, 1);
    lockSpin(agent, word);
    expect(arena.words[word]).toBe(agent.ownerId);
    unlockSpin(agent, word);
    expect(arena.words[word]).toBe(0);
  });

  test("taking it twice and giving back what one does not hold are bugs", () => {
    const arena = newArena();
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const word = words(arena, a, 1);
    lockSpin(a, word);
    expect(() => lockSpin(a, word)).toThrow(/taken twice by agent 0/);
    expect(() => unlockSpin(b, word)).toThrow(/given back by a stranger/);
  });

  // The second is after a look at whether the holder lives.
  test.each([3, NAPS_BEFORE_LOOK + 3])(
    "a waiter goes on as soon as the holder has given it back, in its nap %i",
    (last) => {
      const arena = newArena();
      const [a, b] = [attachTo(arena), attachTo(arena)];
      // An agent, and somebody who has no slot yet.
      for (const waiter of [b, { words: arena.words, doubles: b.doubles, ownerId: b.ownerId }]) {
        const word = words(arena, a, 1);
        lockSpin(a, word);
        let naps = 0;
        const nap = vi.spyOn(Atomics, "wait").mockImplementation(() => {
          if (++naps === last) unlockSpin(a, word);
          return "timed-out";
        });
        lockSpin(waiter, word);
        expect(naps).toBe(last);
        nap.mockRestore();
        expect(arena.words[word]).toBe(b.ownerId);
        expect(b.poisonedBy).toBe(0);
      }
    },
  );

  test("where nobody may sleep a waiter spins on", async () => {
    vi.resetModules();
    const { lockSpin: spin } = await import("../../../src/sync/index.ts");
    const arena = newArena();
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const word = words(arena, a, 1);
    lockSpin(a, word);
    const nap = vi.spyOn(Atomics, "wait").mockImplementation(() => {
      throw new TypeError("Atomics.wait cannot be called in this context");
    });
    const exchange = Atomics.compareExchange;
    let tries = 0;
    vi.spyOn(Atomics, "compareExchange").mockImplementation((w, at, expected, value) => {
      if (at === word && ++tries === 1000) unlockSpin(a, word);
      return exchange(w as never, at, expected as never, value as never) as never;
    });
    spin(b, word);
    expect(arena.words[word]).toBe(b.ownerId);
    expect(nap).toHaveBeenCalledTimes(1);
  });

  test("a holder whose slot was reaped, or whose thread is gone, is EOWNERDEAD for the waiter and poisons the memory", () => {
    for (const found of ["reaped", "gone"]) {
      const arena = newArena();
      const agent = attachTo(arena);
      const dead = attachAgent(arena.buffer, { mayBlock: true, tid: found === "gone" ? NO_THREAD : 0 });
      const word = words(arena, agent, 1);
      lockSpin(dead, word);
      if (found === "reaped") reap(agent, dead.slot);
      const nap = vi.spyOn(Atomics, "wait").mockReturnValue("timed-out");
      expect(() => lockSpin(agent, word)).toThrow(/EOWNERDEAD spinlock: agent 1 died while it held a lock/);
      expect(agent.poisonedBy).toBe(dead.ownerId);
      // To look is dear.
      expect(nap).toHaveBeenCalledTimes(NAPS_BEFORE_LOOK);
      nap.mockRestore();
    }
  });

  test("in a poisoned memory a lock that stays taken is EOWNERDEAD, whoever holds it", () => {
    const arena = newArena();
    const [a, b, dead] = [attachTo(arena), attachTo(arena), attachTo(arena)];
    const word = words(arena, a, 1);
    lockSpin(b, word);
    a.poison(dead.ownerId);
    vi.spyOn(Atomics, "wait").mockReturnValue("timed-out");
    expect(() => lockSpin(a, word)).toThrow(/EOWNERDEAD spinlock: agent 2/);
    expect(() => lockSpin(b, word)).toThrow(/EOWNERDEAD spinlock: agent 2/);
  });

  test("whoever has no slot hears of a dead holder, too", () => {
    const arena = newArena();
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const word = words(arena, a, 1);
    lockSpin(b, word);
    reap(a, b.slot);
    vi.spyOn(Atomics, "wait").mockReturnValue("timed-out");
    const nobody = { words: arena.words, doubles: a.doubles, ownerId: a.ownerId };
    expect(() => lockSpin(nobody, word)).toThrow(/EOWNERDEAD/);
    expect(() => lockSpin({ ...nobody, ownerId: b.ownerId }, word)).toThrow(/taken twice/);
  });
});
