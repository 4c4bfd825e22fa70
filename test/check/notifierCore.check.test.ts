/**
 * The notifier core itself as scenarios: every interleaving of small cases, with subscribers and invalidators in several
 * threads, keeps the mirror right; and each mistake that is put in is found. Then lifetimes, and the mirror of
 * `bifolio mirror`.
 */
import { afterEach, describe, expect, test, vi } from "vitest";
import { explore } from "../../src/check/index.ts";
import { IntervalNotifier } from "../../src/notifier/index.ts";
import { DELIVERIES } from "./models/deliveries.ts";
import { LIFETIMES } from "./models/lifetimes.ts";
import { CASES } from "./models/notifierCore.ts";
import { RECORDS } from "./models/records.ts";
import { tableMirror, tableMirrorAlone, tableMirrorTries } from "./models/tableMirror.ts";

vi.setConfig({ testTimeout: 60_000 });

afterEach(() => {
  vi.restoreAllMocks();
});

/**
 * The core never makes its number odd. Bits of thread 0 in wait queues are set in the same way, and are left out, too:
 * the explorer asks whoever waits, and rings nobody.
 */
function breakNumber(): void {
  const real = Atomics.or.bind(Atomics) as (...args: unknown[]) => number;
  vi.spyOn(Atomics, "or").mockImplementation(((words: Int32Array, at: number, value: number) =>
    value === 1 ? Atomics.load(words, at) : real(words, at, value)) as never);
}

describe.each(CASES)("%s", (_, make, bugs) => {
  test("keeps the mirror right in every schedule", async () => {
    const { violations, schedules } = await explore(make(), { schedules: 15_000 });
    expect(violations.map((v) => `${v.rule}: ${v.message} ${v.schedule}`)).toEqual([]);
    expect(schedules).toBeGreaterThan(50);
  });

  test.each(bugs)("is found with a mistake: %s", async (bug) => {
    if (bug === "number not made odd") breakNumber();
    const { violations } = await explore(make(bug));
    expect(violations.map((v) => v.message).join()).toMatch(
      bug === "remove not awaited" ? /has freed/ : /stale/,
    );
  });
});

test.each(LIFETIMES)("$name", async (lifetime) => {
  const { violations, schedules } = await explore(lifetime, { schedules: 10_000 });
  expect(violations.map((v) => `${v.rule}: ${v.message} ${v.schedule}`)).toEqual([]);
  expect(schedules).toBeGreaterThan(10);
});

test.each([...RECORDS, ...DELIVERIES, tableMirrorAlone, tableMirrorTries])("$name", async (byHand) => {
  const { violations } = await explore(byHand, { schedules: 1000 });
  expect(violations.map((v) => `${v.rule}: ${v.message} ${v.schedule}`)).toEqual([]);
});

describe("the table mirror, over a real memory", () => {
  test.each(["dontneed", "munmap", "mprotect"] as const)("is right beside %s", async (change) => {
    const { violations, schedules } = await explore(tableMirror(change), { schedules: 5000 });
    expect(violations.map((v) => `${v.rule}: ${v.message} ${v.schedule}`)).toEqual([]);
    expect(schedules).toBeGreaterThan(100);
  });

  test("that does not ask whether it was overtaken is found", async () => {
    vi.spyOn(IntervalNotifier.prototype, "readRetry").mockReturnValue(false);
    const { violations } = await explore(tableMirror("dontneed"), { schedules: 50_000 });
    expect(violations.map(({ rule }) => rule).join()).toMatch(/use-after-free|stale-read/);
  });
});
