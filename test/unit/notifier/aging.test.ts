/** Accessed state: bitmaps that are tested in place, questions that are answered once, and what counts as young. */
import { describe, expect, test, vi } from "vitest";
import { MmuNotifier } from "../../../src/notifier/index.ts";
import { allocWords } from "../../../src/memory/index.ts";
import { type NotifierWorld, notifierWorld, type Subscriber, turnOfLoop } from "../../lib/notifiers.ts";

const PAGE = 4096;

/** A registered notifier with a bitmap for `pages` pages from `start` on. */
async function withBits(
  world: NotifierWorld,
  where: number,
  start: number,
  pages: number,
): Promise<{ bits: Int32Array; mark: (page: number) => void; marked: () => number[] }> {
  const { agent, notifiers } = world.agents[where]!;
  const at = allocWords(agent, world.arena.heap, pages / 32);
  const bits = new Int32Array(world.arena.buffer, at * 4, pages / 32);
  await notifiers.register(new MmuNotifier({}, { accessed: { start, length: pages * PAGE, bits } }));
  const set = (page: number): boolean => (Atomics.load(bits, page >> 5) & (1 << (page & 31))) !== 0;
  return {
    bits,
    mark: (page) => void Atomics.or(bits, page >> 5, 1 << (page & 31)),
    marked: () => Array.from({ length: pages }, (_, page) => page).filter(set),
  };
}

describe("accessed bitmaps", () => {
  test.each([0, 1])(
    "of agent %i are tested and cleared in place, for exactly the pages of the range",
    async (where) => {
      const world = notifierWorld(2);
      const { notifiers } = world.agents[0]!;
      const base = 2 ** 40;
      const { mark, marked } = await withBits(world, where, base, 64);
      const all = [0, 1, 31, 32, 33, 63];
      for (const page of all) mark(page);
      const at = (page: number): number => base + page * PAGE;
      expect(notifiers.clearYoung(at(2), at(31))).toBe(false);
      expect(notifiers.testYoung(at(31))).toBe(true);
      expect(notifiers.testYoung(at(31) + PAGE - 1)).toBe(true);
      expect(notifiers.testYoung(at(30))).toBe(false);
      expect(marked()).toEqual(all); // testing changes nothing
      expect(notifiers.clearYoung(at(31), at(33))).toBe(true);
      expect(marked()).toEqual([0, 1, 33, 63]);
      expect(notifiers.clearFlushYoung(at(33), at(33) + 1)).toBe(true); // part of a page is the page
      expect(notifiers.clearYoung(0, base)).toBe(false);
      expect(notifiers.clearYoung(at(64), 2 ** 45)).toBe(false);
      expect(marked()).toEqual([0, 1, 63]);
      expect(notifiers.clearYoung(0, 2 ** 45)).toBe(true);
      expect(marked()).toEqual([]);
    },
  );

  test("aging is no invalidation: numbers and counts stay", async () => {
    const world = notifierWorld(1);
    const { mark } = await withBits(world, 0, 0, 32);
    mark(1);
    const before = [world.seq(), world.open()];
    world.agents[0]!.notifiers.clearFlushYoung(0, 10 * PAGE);
    expect([world.seq(), world.open()]).toEqual(before);
  });
});

describe("callbacks of this agent", () => {
  test("clearing asks every notifier, testing stops at the first that says yes", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const asked: string[] = [];
    for (const name of ["old", "young", "new"]) {
      await notifiers.register(
        new MmuNotifier({
          clearFlushYoung: (_n, _s, start, end) => (
            asked.push(`${name} flush ${start}-${end}`),
            name === "young"
          ),
          clearYoung: () => (asked.push(`${name} clear`), name === "young"),
          testYoung: (_n, _s, address) => (asked.push(`${name} test ${address}`), name === "young"),
        }),
      );
    }
    expect(notifiers.clearFlushYoung(1, 2)).toBe(true);
    expect(notifiers.clearYoung(1, 2)).toBe(true);
    expect(notifiers.testYoung(7)).toBe(true);
    expect(asked).toEqual([
      "new flush 1-2",
      "young flush 1-2",
      "old flush 1-2",
      "new clear",
      "young clear",
      "old clear",
      "new test 7",
      "young test 7",
    ]);
  });

  test("a throw counts as young and is reported; what a notifier does not implement counts as old", async () => {
    const world = notifierWorld(1);
    const { notifiers, errors } = world.agents[0]!;
    await notifiers.register(new MmuNotifier({}));
    expect(notifiers.clearYoung(0, PAGE)).toBe(false);
    const rest = vi.fn(() => false);
    await notifiers.register(new MmuNotifier({ clearYoung: rest }));
    await notifiers.register(
      new MmuNotifier({
        clearYoung: () => {
          throw new Error("no idea");
        },
      }),
    );
    expect(notifiers.clearYoung(0, PAGE)).toBe(true);
    expect(rest).toHaveBeenCalledTimes(1);
    expect(errors.map((e) => [e.code, (e.cause as Error).message])).toEqual([["ECALLBACK", "no idea"]]);
  });
});

describe("callbacks of other agents", () => {
  test("a question is posted; unknown is young; the answer is used once, by a call that overlaps", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const asked: string[] = [];
    let young = false;
    await b.notifiers.register(
      new MmuNotifier({ clearYoung: (_n, _s, start, end) => (asked.push(`${start}-${end}`), young) }),
    );
    expect(a.notifiers.clearYoung(0, 10)).toBe(true); // asks
    expect(a.notifiers.clearYoung(0, 10)).toBe(true); // asked already
    await vi.waitUntil(() => asked.length === 1);
    expect(a.notifiers.clearYoung(5, 20)).toBe(false); // the answer to 0-10
    expect(a.notifiers.clearYoung(0, 10)).toBe(true); // used up: asks again
    await vi.waitUntil(() => asked.length === 2);
    expect(a.notifiers.clearYoung(100, 110)).toBe(true); // no overlap: asks for itself
    await vi.waitUntil(() => asked.length === 3);
    young = true;
    expect(a.notifiers.clearYoung(100, 110)).toBe(false);
    expect(a.notifiers.clearYoung(100, 110)).toBe(true);
    await vi.waitUntil(() => asked.length === 4);
    expect(a.notifiers.clearYoung(100, 110)).toBe(true); // it said so
    expect(asked).toEqual(["0-10", "0-10", "100-110", "100-110"]);
  });

  test("nobody is asked for an op it does not implement, nor an agent that is gone", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    await b.notifiers.register(new MmuNotifier({ testYoung: () => true }));
    expect(a.notifiers.clearYoung(0, 10)).toBe(false);
    expect(a.notifiers.testYoung(0)).toBe(true);
    await turnOfLoop();
    b.agent.detach();
    expect(a.notifiers.testYoung(0)).toBe(false);
  });
});
