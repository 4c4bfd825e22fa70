import { describe, expect, test, vi } from "vitest";
import type { MmError } from "../../../src/errors.ts";
import {
  type Agent,
  arm,
  attachAgent,
  checkLiveness,
  host,
  MSG_ARG0,
  ownerGone,
  reap,
  slotsOfThread,
} from "../../../src/sched/index.ts";
import {
  AG_ACKQ,
  AG_SENDING,
  AG_TURN,
  MESSAGE_COUNT,
  MESSAGE_FREE,
  messageAt,
  MSG_STATE,
} from "../../../src/sched/layout.ts";
import { attachTo, newArena, type TestArena } from "../../lib/arena.ts";

const KIND = 9;

function world(): { arena: TestArena; dead: Agent; other: Agent; third: Agent } {
  const arena = newArena();
  return { arena, dead: attachTo(arena), other: attachTo(arena), third: attachTo(arena) };
}

/** A tid that no thread has: ids end at 2^22. */
const NO_THREAD = 2 ** 23;

describe("what a reaper gives back", () => {
  test("the slot is free, its turn is over, those who waited for it are rung, and onError is told", () => {
    const { arena, dead, other, third } = world();
    const errors: MmError[] = [];
    other.onError = (error) => errors.push(error);
    dead.enter();
    arm(arena.words, dead.base + AG_ACKQ, third.slot);
    const bell = third.bell();
    reap(other, dead.slot);
    expect(Atomics.load(arena.words, dead.base + AG_TURN) & 1).toBe(0);
    expect(third.bell()).not.toBe(bell);
    expect(ownerGone(arena.words, dead.ownerId)).toBe(true);
    expect(attachTo(arena).slot).toBe(dead.slot);
    expect(errors.map((e) => e.message)).toEqual([
      "EOWNERDEAD adopt: agent 0 died; what it held has been given back",
    ]);
    other.checkUsable("anything");
  });

  test("messages to the dead are answered; its own are freed, by it or by whoever serves them", () => {
    const { arena, dead, other, third } = world();
    const served = vi.fn();
    third.handle(KIND, served);
    const toDead = other.tryReserveMessage(KIND);
    other.sendTo(dead.ownerId, toDead, false);
    const reserved = dead.tryReserveMessage(KIND);
    const underway = dead.tryReserveMessage(KIND);
    dead.sendTo(third.ownerId, underway, false);
    const answered = dead.tryReserveMessage(KIND);
    dead.sendTo(other.ownerId, answered, false);
    other.safepoint();
    reap(other, dead.slot);
    expect(other.messageDone(toDead)).toBe(true);
    expect(Atomics.load(arena.words, reserved + MSG_STATE)).toBe(MESSAGE_FREE);
    expect(Atomics.load(arena.words, answered + MSG_STATE)).toBe(MESSAGE_FREE);
    expect(Atomics.load(arena.words, underway + MSG_STATE)).not.toBe(MESSAGE_FREE);
    third.safepoint();
    expect(served).toHaveBeenCalledTimes(1);
    const states = Array.from({ length: MESSAGE_COUNT }, (_, k) =>
      Atomics.load(arena.words, messageAt(dead.base, k) + MSG_STATE),
    );
    expect(new Set(states)).toEqual(new Set([MESSAGE_FREE]));
  });

  test("a message that the dead had promised is sent in its name", () => {
    const { arena, dead, other, third } = world();
    const served: number[] = [];
    third.handle(KIND, (m) => void served.push(Atomics.load(arena.words, m + MSG_ARG0)));
    for (const arg of [1, 2, 3]) {
      const m = dead.tryReserveMessage(KIND);
      Atomics.store(arena.words, m + MSG_ARG0, arg);
      if (arg !== 2) dead.promiseMessage(third.ownerId, m);
    }
    reap(other, dead.slot);
    third.safepoint();
    expect(new Set(served)).toEqual(new Set([1, 3]));
  });

  test("a slot that the dead was about to send to is free to be taken", () => {
    const { arena, dead, other, third } = world();
    third.detach();
    Atomics.store(arena.words, dead.base + AG_SENDING, third.slot + 1);
    reap(other, dead.slot);
    dead.detach();
    expect([attachTo(arena).slot, attachTo(arena).slot]).toEqual([dead.slot, third.slot]);
  });

  test("of two reapers one does the work; a slot that was taken again is not reaped for its predecessor", () => {
    const { arena, dead, other, third } = world();
    const reaper = vi.fn(() => undefined);
    other.reapers.push(reaper);
    third.reapers.push(reaper);
    reap(other, dead.slot, dead.ownerId);
    reap(third, dead.slot, dead.ownerId);
    expect(reaper).toHaveBeenCalledTimes(1);
    const successor = attachTo(arena);
    reap(third, successor.slot, dead.ownerId);
    expect(reaper).toHaveBeenCalledTimes(1);
    expect(ownerGone(arena.words, successor.ownerId)).toBe(false);
  });

  test("a lock that it held poisons the memory: EOWNERDEAD for everybody, naming the agent", () => {
    const { dead, other, third } = world();
    const errors: MmError[] = [];
    other.onError = (error) => errors.push(error);
    other.reapers.push(() => "the lock of a test");
    reap(other, dead.slot);
    for (const agent of [other, third]) {
      expect(() => agent.checkUsable("munmap")).toThrow(
        /EOWNERDEAD munmap: agent 0 died while it held a lock/,
      );
    }
    expect(errors.map((e) => e.message)).toEqual([
      expect.stringMatching(/agent 0 died while it held the lock of a test/),
    ]);
  });

  test("a reaper that cannot read what it should give back poisons the memory, and the others still run", () => {
    const { dead, other } = world();
    const second = vi.fn(() => undefined);
    other.reapers.push(() => {
      throw new Error("broken list");
    }, second);
    reap(other, dead.slot);
    expect(second).toHaveBeenCalledTimes(1);
    expect(() => other.checkUsable("munmap")).toThrow(/EOWNERDEAD/);
  });
});

describe("noticing a death", () => {
  test("an agent whose thread is there lives; one whose thread is gone is reaped", () => {
    const arena = newArena();
    const other = attachTo(arena);
    const here = attachAgent(arena.buffer, { mayBlock: true, tid: host().tid });
    const gone = attachAgent(arena.buffer, { mayBlock: true, tid: NO_THREAD });
    const unknown = attachAgent(arena.buffer, { mayBlock: true });
    expect(host().tid).toBeGreaterThan(0); // Linux; elsewhere adopt() alone notices
    expect([here, gone, unknown].map((agent) => checkLiveness(other, agent.ownerId))).toEqual([
      true,
      false,
      true,
    ]);
    expect([here, gone, unknown].map((agent) => ownerGone(arena.words, agent.ownerId))).toEqual([
      false,
      true,
      false,
    ]);
    expect(checkLiveness(other, gone.ownerId)).toBe(false);
  });

  test("the agents of a worker are found by its thread id", () => {
    const arena = newArena();
    const other = attachTo(arena);
    const two = [7, 7, 8].map((thread) => attachAgent(arena.buffer, { mayBlock: true, thread: thread + 1 }));
    expect(slotsOfThread(other, 7)).toEqual([two[0]!.slot, two[1]!.slot]);
    reap(other, two[0]!.slot);
    expect(slotsOfThread(other, 7)).toEqual([two[1]!.slot]);
  });
});
