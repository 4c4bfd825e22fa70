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
import {
  type Bug,
  type Case,
  hitAndMiss,
  inserted,
  nested,
  overlapping,
  removed,
} from "./models/notifierCore.ts";
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

/** Every schedule that makes a difference, and nothing is wrong. */
async function keepsAll(make: Case): Promise<void> {
  const { violations, complete, schedules } = await explore(make(), { mode: "reduced" });
  expect(violations.map((v) => `${v.rule}: ${v.message} ${v.schedule}`)).toEqual([]);
  expect(complete).toBe(true);
  expect(schedules).toBeGreaterThan(100);
}

/** What is found with a mistake. */
async function found(make: Case, bug: Bug): Promise<string> {
  if (bug === "number not made odd") breakNumber();
  const { violations } = await explore(make(bug));
  return violations.map((v) => v.message).join();
}

describe("two invalidations, one of which hits, and a reader", () => {
  test("keep the invariants in every schedule", () => keepsAll(hitAndMiss));

  test.each(["no readRetry", "no setSeq", "number not made odd"] as const)(
    "are found with a mistake: %s",
    async (bug) => expect(await found(hitAndMiss, bug)).toMatch(/stale/),
  );
});

describe("an invalidation, an insert, and a reader of the inserted interval", () => {
  test("keep the invariants in every schedule, where the range hits nobody else", () =>
    keepsAll(inserted(false)));

  test("keep the invariants in every schedule, where the range hits another interval", () =>
    keepsAll(inserted(true)));

  test.each(["no readRetry", "no setSeq", "number not made odd"] as const)(
    "are found with a mistake: %s",
    async (bug) => expect(await found(inserted(true), bug)).toMatch(/stale/),
  );
});

describe("invalidations and a remove", () => {
  test("keep the invariants in every schedule", () => keepsAll(removed));

  test.each([
    ["no teardown", /stale/],
    ["number not made odd", /stale/],
    ["remove not awaited", /has freed/],
  ] as const)("are found with a mistake: %s", async (bug, what) =>
    expect(await found(removed, bug)).toMatch(what),
  );
});

describe("two overlapping invalidations and a reader", () => {
  test("keep the invariants in every schedule", () => keepsAll(overlapping));

  test.each(["no readRetry", "no setSeq", "number not made odd"] as const)(
    "are found with a mistake: %s",
    async (bug) => expect(await found(overlapping, bug)).toMatch(/stale/),
  );
});

describe("two nested invalidations and a reader", () => {
  test("keep the invariants in every schedule", () => keepsAll(nested));

  test.each(["no readRetry", "no setSeq", "number not made odd"] as const)(
    "are found with a mistake: %s",
    async (bug) => expect(await found(nested, bug)).toMatch(/stale/),
  );
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
