import { describe, expect, test, vi } from "vitest";
import { type Agent, arm, attachAgent, reap } from "../../../src/sched/index.ts";
import {
  AG_ACKQ,
  AG_FACK,
  AG_FREQ,
  AG_MARK_LOCK,
  AG_TURN,
  agentAt,
  MESSAGE_COUNT,
  RING_ENTRIES,
  RING_LAG,
} from "../../../src/sched/layout.ts";
import { attachTo, newArena } from "../../lib/arena.ts";

const turnOf = (agent: Agent): number => Atomics.load(agent.words, agent.base + AG_TURN);
const inTurn = (agent: Agent): boolean => (turnOf(agent) & 1) === 1;

describe("turns", () => {
  test("an agent in a chain of awaits leaves its turn between them", async () => {
    const agent = attachTo(newArena());
    for (let k = 0; k < 5; k++) {
      agent.enter();
      expect(inTurn(agent)).toBe(true);
      agent.enter();
      expect(turnOf(agent)).toBe(2 * k + 1);
      await Promise.resolve();
      expect(inTurn(agent)).toBe(false);
      expect(agent.running).toBe(false);
    }
  });

  test("the end of a turn flushes, drops views and tells those who wait for an acknowledgement", () => {
    const arena = newArena();
    const [agent, other] = [attachTo(arena), attachTo(arena)];
    const log: string[] = [];
    agent.viewsEnd.push(() => log.push("views"));
    agent.turnEnd.push(() => log.push("turn"));
    agent.setFlushHandler((...range) => log.push(`flush ${range.join()}`));
    agent.enter();
    const request = other.mark(agent.slot, 7, 1, 2);
    const turn = other.turnOf(agent.slot);
    expect(other.acknowledged(agent.slot, request, turn)).toBe(false);
    arm(arena.words, agent.base + AG_ACKQ, other.slot);
    const bell = other.bell();
    agent.leave();
    expect(log).toEqual(["views", "turn", "flush 7,1,2"]);
    expect(other.acknowledged(agent.slot, request, turn)).toBe(true);
    expect(other.bell()).not.toBe(bell);
  });

  test("poll ends the turn for views and stays in it", () => {
    const agent = attachTo(newArena());
    const views = vi.fn();
    agent.viewsEnd.push(views);
    agent.enter();
    agent.poll();
    expect(views).toHaveBeenCalledTimes(1);
    expect(inTurn(agent)).toBe(true);
  });

  test("an agent that enters publishes its turn first and looks at the flush requests afterwards", () => {
    const arena = newArena();
    const [agent, other] = [attachTo(arena), attachTo(arena)];
    const request = other.mark(agent.slot, 1, 0, 1);
    expect(other.acknowledged(agent.slot, request, other.turnOf(agent.slot))).toBe(true); // idle
    let turnAtFlush = -1;
    agent.setFlushHandler(() => (turnAtFlush = turnOf(agent)));
    agent.enter();
    expect(turnAtFlush & 1).toBe(1);
    expect(Atomics.load(arena.words, agent.base + AG_FACK)).toBe(request);
  });

  test("a detached agent touches nothing in its slot, which may be another's", async () => {
    const arena = newArena();
    const first = attachTo(arena);
    first.enter();
    first.detach();
    const second = attachTo(arena);
    expect(second.slot).toBe(first.slot);
    second.enter();
    const turn = turnOf(second);
    expect(() => first.enter()).toThrow(/ESRCH/);
    first.safepoint();
    first.leave();
    expect(turnOf(second)).toBe(turn);
    await Promise.resolve();
    expect(inTurn(second)).toBe(false);
  });
});

describe("flush requests", () => {
  /** An agent that notes what it flushes, and one that asks it to. */
  function pair(): { agent: Agent; other: Agent; flushed: string[] } {
    const arena = newArena();
    const [agent, other] = [attachTo(arena), attachTo(arena)];
    const flushed: string[] = [];
    agent.setFlushHandler((space, start, end) => flushed.push(`${space}:${start}-${end}`));
    agent.enter();
    return { agent, other, flushed };
  }

  test("up to the ring's length every range is flushed, in order, once", () => {
    for (const count of [1, 2, RING_LAG - 1, RING_LAG]) {
      const { agent, other, flushed } = pair();
      const asked = Array.from({ length: count }, (_, k) => {
        other.mark(agent.slot, 3, k, k + 2);
        return `3:${k}-${k + 2}`;
      });
      agent.safepoint();
      expect(flushed).toEqual(asked);
      agent.safepoint();
      expect(flushed).toHaveLength(count);
    }
  });

  test("an agent that fell behind the ring flushes everything", () => {
    for (const count of [RING_LAG + 1, RING_ENTRIES, RING_ENTRIES + 1, 5 * RING_ENTRIES + 3]) {
      const { agent, other, flushed } = pair();
      let last = 0;
      for (let k = 0; k < count; k++) last = other.mark(agent.slot, 3, k, k + 1);
      agent.safepoint();
      expect(flushed).toEqual(["0:0-0"]);
      expect(other.acknowledged(agent.slot, last, other.turnOf(agent.slot))).toBe(true);
    }
  });

  test("an agent that is lapped while it reads the ring flushes everything", () => {
    const { agent, other, flushed } = pair();
    other.mark(agent.slot, 3, 0, 1);
    other.mark(agent.slot, 3, 1, 2);
    agent.setFlushHandler((space, start, end) => {
      flushed.push(`${space}:${start}-${end}`);
      if (flushed.length === 1) for (let k = 0; k < RING_ENTRIES; k++) other.mark(agent.slot, 4, k, k + 1);
    });
    agent.safepoint();
    expect(flushed.at(-1)).toBe("0:0-0");
  });

  test("a request made during the flush is not acknowledged by it", () => {
    const { agent, other, flushed } = pair();
    let second = 0;
    const first = other.mark(agent.slot, 3, 0, 1);
    agent.setFlushHandler((space, start, end) => {
      if (second === 0) second = other.mark(agent.slot, 3, 8, 9);
      flushed.push(`${space}:${start}-${end}`);
    });
    agent.flushRequested();
    const turn = other.turnOf(agent.slot);
    expect(other.acknowledged(agent.slot, first, turn)).toBe(true);
    expect(other.acknowledged(agent.slot, second, turn)).toBe(false);
    agent.flushRequested();
    expect(flushed).toEqual(["3:0-1", "3:8-9"]);
    expect(other.acknowledged(agent.slot, second, turn)).toBe(true);
  });

  test("requests are counted past the end of 32 bits", () => {
    const { agent, other, flushed } = pair();
    for (const field of [AG_FREQ, AG_FACK]) Atomics.store(agent.words, agent.base + field, 0x7ffffffe);
    const requests = [0, 1, 2, 3].map((k) => other.mark(agent.slot, 3, k, k + 1));
    expect(requests).toEqual([0x7fffffff, -0x80000000, -0x7fffffff, -0x7ffffffe]);
    const turn = other.turnOf(agent.slot);
    expect(requests.some((r) => other.acknowledged(agent.slot, r, turn))).toBe(false);
    agent.safepoint();
    expect(flushed).toEqual(["3:0-1", "3:1-2", "3:2-3", "3:3-4"]);
    expect(requests.every((r) => other.acknowledged(agent.slot, r, turn))).toBe(true);
  });

  test("a running agent is waited for; one that parks, ends its turn or dies is not", () => {
    const acknowledgedBy = (stop: (agent: Agent, other: Agent) => void): boolean[] => {
      const { agent, other } = pair();
      const request = other.mark(agent.slot, 3, 0, 1);
      const turn = other.turnOf(agent.slot);
      const answers = [other.acknowledged(agent.slot, request, turn)];
      const wait = Atomics.wait;
      Atomics.wait = () => {
        answers.push(other.acknowledged(agent.slot, request, turn));
        return "ok";
      };
      try {
        stop(agent, other);
      } finally {
        Atomics.wait = wait;
      }
      if (answers.length === 1) answers.push(other.acknowledged(agent.slot, request, turn));
      return answers;
    };
    expect(acknowledgedBy((agent) => agent.park(agent.bell(), 1))).toEqual([false, true]);
    expect(acknowledgedBy((agent) => agent.leave())).toEqual([false, true]);
    expect(acknowledgedBy((agent) => agent.safepoint())).toEqual([false, true]);
    expect(acknowledgedBy((agent, other) => reap(other, agent.slot))).toEqual([false, true]);
  });

  test("a parked agent flushes before anything else when it wakes", () => {
    const { agent, other, flushed } = pair();
    const wait = Atomics.wait;
    Atomics.wait = () => {
      other.mark(agent.slot, 5, 1, 2);
      return "ok";
    };
    try {
      agent.park(agent.bell(), 1);
    } finally {
      Atomics.wait = wait;
    }
    expect(flushed).toEqual(["5:1-2"]);
  });

  test("a mark lock whose holder has died is taken over", () => {
    const arena = newArena();
    const [agent, other, dead] = [attachTo(arena), attachTo(arena), attachTo(arena)];
    Atomics.store(arena.words, agentAt(agent.slot) + AG_MARK_LOCK, dead.ownerId);
    reap(other, dead.slot);
    expect(other.mark(agent.slot, 1, 0, 1)).toBe(1);
    expect(Atomics.load(arena.words, agentAt(agent.slot) + AG_MARK_LOCK)).toBe(0);
  });
});

describe("slots", () => {
  test("attaching to a memory whose slots are all taken is EAGAIN, and works again after one has left", () => {
    const arena = newArena(2);
    const [a, b] = [attachTo(arena), attachTo(arena)];
    expect([a.slot, b.slot]).toEqual([0, 1]);
    expect(() => attachTo(arena)).toThrow(/EAGAIN attach: all 2 agent slots are taken/);
    a.detach();
    expect(attachTo(arena).slot).toBe(0);
    expect(b.top()).toBe(2);
  });

  test("an agent's slot says nothing of its predecessor's turn, sleep or requests", () => {
    const arena = newArena();
    const [first, other] = [attachTo(arena), attachTo(arena)];
    first.enter();
    first.setArmed(true);
    other.mark(first.slot, 1, 0, 1);
    reap(other, first.slot);
    const second = attachAgent(arena.buffer, { mayBlock: false });
    expect(second.slot).toBe(first.slot);
    expect(inTurn(second)).toBe(false);
    expect(second.wanted).toBe(false);
  });

  test("an agent has all messages of its slot, whatever its predecessor left in them", () => {
    const arena = newArena();
    const [first, other] = [attachTo(arena), attachTo(arena)];
    const answered = first.tryReserveMessage(9);
    first.sendTo(other.ownerId, answered, false);
    other.safepoint();
    first.tryReserveMessage(9);
    first.detach();
    const second = attachTo(arena);
    const all = Array.from({ length: MESSAGE_COUNT }, () => second.tryReserveMessage(9));
    expect(all).not.toContain(0);
    expect(all).toContain(answered);
  });
});
