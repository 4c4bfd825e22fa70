/** createNotifiers() without a memory: one agent, a plain ArrayBuffer, nothing shared. */
import { afterEach, expect, test, vi } from "vitest";
import { createNotifiers, MmuNotifier, type Notifiers } from "../../../src/notifier/index.ts";
import { obedient, range, turnOfLoop, watch } from "../../lib/notifiers.ts";

afterEach(() => {
  vi.restoreAllMocks();
});

const make = (): Notifiers => createNotifiers({ debug: true });

test("needs no shared memory, and works as with one", async () => {
  vi.stubGlobal("SharedArrayBuffer", class NoSuchThing {});
  try {
    const notifiers = make();
    expect(notifiers.agent.words.buffer).toBeInstanceOf(ArrayBuffer);
    const log: string[] = [];
    const A = await notifiers.insert(
      obedient(() => log.push("interval")),
      0,
      10,
    );
    await notifiers.register(
      new MmuNotifier({
        invalidateRangeStart: () => void log.push("start"),
        invalidateRangeEnd: () => void log.push("end"),
      }),
    );
    const seq = await A.readBegin();
    expect(await notifiers.invalidate(range(0, 10), () => (log.push("change"), 5))).toBe(5);
    expect(log).toEqual(["interval", "start", "change", "end"]);
    expect(A.readRetry(seq)).toBe(true);
    expect(A.readRetry(A.sync.readBegin())).toBe(false);
    expect(notifiers.try.invalidate(range(0, 10), () => 6)).toBe(6);
    await A.remove();
    await notifiers.release();
  } finally {
    vi.unstubAllGlobals();
  }
});

test("waits end: readers, removers and registrations go on at the last end", async () => {
  const notifiers = make();
  const [A, B] = [await notifiers.insert(obedient(), 0, 10), await notifiers.insert(obedient(), 20, 10)];
  for (let round = 0; round < 3; round++) {
    const open = await notifiers.invalidateRangeStart(range(0, 10));
    const list = new MmuNotifier({});
    const pending = [A.readBegin(), notifiers.register(list)] as const;
    const states = pending.map((p) => watch(p as Promise<unknown>));
    const removing = round === 2 ? B.remove() : Promise.resolve();
    await turnOfLoop();
    expect(states.map((s) => s.state)).toEqual(["pending", "pending"]);
    notifiers.invalidateRangeEnd(open);
    expect(await pending[0]).toBe(2 * round + 3);
    await pending[1];
    await removing;
  }
});

test("a slow change lets other tasks of the agent go on", async () => {
  const notifiers = make();
  const A = await notifiers.insert(obedient(), 0, 10);
  let resolve: (() => void) | undefined;
  const invalidating = notifiers.invalidate(range(0, 10), () => new Promise<void>((r) => (resolve = r)));
  expect(await notifiers.invalidate(range(50, 60), () => "elsewhere")).toBe("elsewhere");
  const reading = A.readBegin();
  expect(() => A.try.readBegin()).toThrow(/EAGAIN/);
  await turnOfLoop();
  resolve!();
  await invalidating;
  expect(await reading).toBe(3);
});

test("two of them know nothing of each other", async () => {
  const [one, two] = [make(), make()];
  const told = vi.fn();
  await one.insert(obedient(told), 0, 10);
  await two.invalidate(range(0, 10), () => {});
  expect(told).not.toHaveBeenCalled();
  expect([one.any, two.any]).toEqual([true, false]);
});

test("subscriptions that nobody else can call keep no process alive; pending operations do", async () => {
  let live = 0;
  vi.spyOn(globalThis, "setInterval").mockImplementation(() => (live++, 1 as never));
  vi.spyOn(globalThis, "clearInterval").mockImplementation(() => void live--);
  const notifiers = make();
  const A = await notifiers.insert(obedient(), 0, 10);
  await notifiers.register(new MmuNotifier({}));
  expect(live).toBe(0);
  const open = await notifiers.invalidateRangeStart(range(0, 10));
  const reading = A.readBegin();
  expect(live).toBe(1);
  notifiers.invalidateRangeEnd(open);
  await reading;
  await turnOfLoop();
  expect(live).toBe(0);
});
