import { describe, expect, test, vi } from "vitest";
import type { MmError } from "../../../src/errors.ts";
import { allocWords } from "../../../src/memory/index.ts";
import { type Agent, type Message, MSG_ARG0, MSG_RESULT } from "../../../src/sched/index.ts";
import {
  AG_SENDING,
  MESSAGE_COUNT,
  MESSAGE_FREE,
  MESSAGE_RESERVED,
  MSG_STATE,
  MSG_TEXT_BYTES,
} from "../../../src/sched/layout.ts";
import { attachTo, newArena, type TestArena } from "../../lib/arena.ts";

const KIND = 9;

function post(from: Agent, to: Agent, arg: number, posted = false): Message {
  const m = from.tryReserveMessage(KIND);
  Atomics.store(from.words, m + MSG_ARG0, arg);
  expect(from.sendTo(to.ownerId, m, posted)).toBe(true);
  return m;
}

const argOf = (agent: Agent, m: Message): number => Atomics.load(agent.words, m + MSG_ARG0);
const stateOf = (agent: Agent, m: Message): number => Atomics.load(agent.words, m + MSG_STATE);

function world(agents = 3): { arena: TestArena; agents: Agent[] } {
  const arena = newArena();
  return { arena, agents: Array.from({ length: agents }, () => attachTo(arena)) };
}

describe("order and answers", () => {
  test("messages are served at a safepoint, in the order in which they were sent, whoever sent them", () => {
    const [a, b, target] = world().agents as [Agent, Agent, Agent];
    const served: number[] = [];
    target.handle(KIND, (m) => void served.push(argOf(target, m)));
    post(a, target, 1);
    post(b, target, 2);
    post(a, target, 3);
    post(b, target, 4);
    expect(target.wanted).toBe(true);
    expect(served).toEqual([]);
    target.safepoint();
    expect(served).toEqual([1, 2, 3, 4]);
    expect(target.wanted).toBe(false);
  });

  test("an answer reaches the sender with its result, and rings it; the message is then the sender's to free", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    target.handle(KIND, (m) => Atomics.store(target.words, m + MSG_RESULT, 42) < 0);
    const m = post(a, target, 0);
    const bell = a.bell();
    expect(a.messageDone(m)).toBe(false);
    target.safepoint();
    expect(a.messageDone(m)).toBe(true);
    expect(a.bell()).not.toBe(bell);
    expect(Atomics.load(a.words, m + MSG_RESULT)).toBe(42);
    a.freeMessage(m);
    expect(a.tryReserveMessage(KIND)).toBe(m);
    expect(Atomics.load(a.words, m + MSG_RESULT)).toBe(0);
  });

  test("a posted message is free as soon as it is served", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    target.handle(KIND, () => {});
    const m = post(a, target, 0, true);
    target.safepoint();
    expect(stateOf(a, m)).toBe(MESSAGE_FREE);
  });

  test("a message is pushed before its target is rung", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    target.handle(KIND, () => {});
    target.setArmed(true);
    const notify = vi.spyOn(Atomics, "notify").mockImplementation(() => {
      expect(target.wanted).toBe(true);
      return 0;
    });
    try {
      post(a, target, 0);
      expect(notify).toHaveBeenCalledTimes(1);
    } finally {
      notify.mockRestore();
    }
  });

  test("a handler that returns true answers later", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    let later: Message | undefined;
    target.handle(KIND, (m) => {
      later = m;
      return true;
    });
    const m = post(a, target, 0);
    target.safepoint();
    expect(a.messageDone(m)).toBe(false);
    target.finishMessage(later!);
    expect(a.messageDone(m)).toBe(true);
  });

  test("a handler that throws answers with the text, and onError hears of it", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    const errors: MmError[] = [];
    target.onError = (error) => errors.push(error);
    target.handle(KIND, () => {
      throw new Error("no such thing");
    });
    const m = post(a, target, 0);
    const next = post(a, target, 1);
    target.safepoint();
    expect(a.messageDone(m) && a.messageDone(next)).toBe(true);
    expect(a.messageText(m)).toBe("no such thing");
    expect(errors.map((e) => [e.code, (e.cause as Error).message])).toEqual([
      ["ECALLBACK", "no such thing"],
      ["ECALLBACK", "no such thing"],
    ]);
  });

  test("an onError that throws harms nobody", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    target.onError = () => {
      throw new Error("again");
    };
    target.handle(KIND, () => {
      throw new Error("first");
    });
    const m = post(a, target, 0);
    expect(() => target.safepoint()).not.toThrow();
    expect(a.messageDone(m)).toBe(true);
  });

  test("a message that nobody handles is answered with a text", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    const m = post(a, target, 0);
    target.safepoint();
    expect(a.messageText(m)).toMatch(/no handler/);
  });

  test("two handlers for one kind are a bug", () => {
    const [a] = world(1).agents as [Agent];
    a.handle(KIND, () => {});
    expect(() => a.handle(KIND, () => {})).toThrow(/two handlers/);
  });

  test("texts longer than a message are cut, at any character", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    const text = "ä".repeat(MSG_TEXT_BYTES);
    const m = a.tryReserveMessage(KIND);
    target.setMessageText(m, text);
    expect(a.messageText(m)).toBe("ä".repeat(MSG_TEXT_BYTES / 2));
  });
});

describe("when messages are not served", () => {
  test("not inside a callback; at the first safepoint after it", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    const served = vi.fn();
    target.handle(KIND, served);
    post(a, target, 0);
    target.callbackDepth++;
    target.safepoint();
    expect(served).not.toHaveBeenCalled();
    target.callbackDepth--;
    target.safepoint();
    expect(served).toHaveBeenCalledTimes(1);
  });

  test("not inside another message; it is served right after it", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    const log: string[] = [];
    target.handle(KIND, (m) => {
      const arg = argOf(target, m);
      log.push(`${arg}(`);
      if (arg === 1) post(a, target, 2);
      target.safepoint();
      log.push(`)${arg}`);
    });
    post(a, target, 1);
    target.safepoint();
    expect(log).toEqual(["1(", ")1", "2(", ")2"]);
  });
});

describe("running out of messages", () => {
  test("without a heap one more than the slot has is 0, until one is free again", () => {
    const [a] = world(1).agents as [Agent];
    const all = Array.from({ length: MESSAGE_COUNT }, () => a.tryReserveMessage(KIND));
    expect(new Set(all).size).toBe(MESSAGE_COUNT);
    expect(a.tryReserveMessage(KIND)).toBe(0);
    a.freeMessage(all[3]!);
    expect(a.tryReserveMessage(KIND)).toBe(all[3]);
  });

  test("with a heap there is always another, which the slot keeps and uses again", () => {
    const { arena, agents } = world(2);
    const [a, target] = agents as [Agent, Agent];
    target.handle(KIND, () => {});
    a.allocMessage = (n) => allocWords(a, arena.heap, n);
    const all = Array.from({ length: 3 * MESSAGE_COUNT }, (_, k) => post(a, target, k));
    expect(new Set(all).size).toBe(all.length);
    target.safepoint();
    expect(all.every((m) => a.messageDone(m))).toBe(true);
    for (const m of all) a.freeMessage(m);
    a.allocMessage = undefined;
    const again = Array.from({ length: 3 * MESSAGE_COUNT }, () => a.tryReserveMessage(KIND));
    expect(new Set(again)).toEqual(new Set(all));
    expect(a.tryReserveMessage(KIND)).toBe(0);
  });
});

describe("targets that are gone", () => {
  test("nothing is sent to an agent that has left; a posted message is free again, another stays the sender's", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    target.detach();
    const asked = a.tryReserveMessage(KIND);
    expect(a.sendTo(target.ownerId, asked, false)).toBe(false);
    expect(stateOf(a, asked)).toBe(MESSAGE_RESERVED);
    const posted = a.tryReserveMessage(KIND);
    expect(a.sendTo(target.ownerId, posted, true)).toBe(false);
    expect(stateOf(a, posted)).toBe(MESSAGE_FREE);
  });

  test("what an agent has not served when it leaves is answered", () => {
    const [a, target] = world(2).agents as [Agent, Agent];
    const m = post(a, target, 0);
    const posted = post(a, target, 0, true);
    target.detach();
    expect(a.messageDone(m)).toBe(true);
    expect(a.messageText(m)).toMatch(/gone/);
    expect(stateOf(a, posted)).toBe(MESSAGE_FREE);
  });

  test("a message for an agent never reaches the next one in its slot", () => {
    const { arena, agents } = world(2);
    const [a, target] = agents as [Agent, Agent];
    target.detach();
    const successor = attachTo(arena);
    expect(successor.slot).toBe(target.slot);
    const served = vi.fn();
    successor.handle(KIND, served);
    const m = a.tryReserveMessage(KIND);
    expect(a.sendTo(target.ownerId, m, false)).toBe(false);
    successor.safepoint();
    expect(served).not.toHaveBeenCalled();
  });

  test("a slot is not taken anew while somebody is about to push to its mailbox", () => {
    const { arena, agents } = world(2);
    const [a, target] = agents as [Agent, Agent];
    target.detach();
    Atomics.store(a.words, a.base + AG_SENDING, target.slot + 1);
    expect(attachTo(arena).slot).not.toBe(target.slot);
    Atomics.store(a.words, a.base + AG_SENDING, 0);
    expect(attachTo(arena).slot).toBe(target.slot);
  });
});
