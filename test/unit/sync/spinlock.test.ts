import { afterEach, describe, expect, test, vi } from "vitest";
import { attachAgent, reap } from "../../../src/sched/index.ts";
import { lockSpin, unlockSpin } from "../../../src/sync/index.ts";
import { attachTo, newArena, words } from "../../lib/arena.ts";

/** A tid that no thread has. */
const NO_THREAD = 2 ** 23;

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

  test("a waiter goes on as soon as the holder has given it back", () => {
    const arena = newArena();
    const [a, b] = [attachTo(arena), attachTo(arena)];
    const word = words(arena, a, 1);
    lockSpin(a, word);
    let naps = 0;
    vi.spyOn(Atomics, "wait").mockImplementation(() => {
      if (++naps === 3) unlockSpin(a, word);
      return "timed-out";
    });
    lockSpin(b, word);
    expect(arena.words[word]).toBe(b.ownerId);
  });

  test("a holder whose slot was reaped, or whose thread is gone, is EOWNERDEAD for the waiter and poisons the memory", () => {
    for (const found of ["reaped", "gone"]) {
      const arena = newArena();
      const agent = attachTo(arena);
      const dead = attachAgent(arena.buffer, { mayBlock: true, tid: found === "gone" ? NO_THREAD : 0 });
      const word = words(arena, agent, 1);
      lockSpin(dead, word);
      if (found === "reaped") reap(agent, dead.slot);
      vi.spyOn(Atomics, "wait").mockReturnValue("timed-out");
      expect(() => lockSpin(agent, word)).toThrow(/EOWNERDEAD spinlock: agent 1 died while it held a lock/);
      expect(agent.poisonedBy).toBe(dead.ownerId);
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
});
