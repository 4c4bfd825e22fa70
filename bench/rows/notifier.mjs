/** The notifier subsystem by itself, without a primary MMU. */
import { interleave, keep, lineOf, nsPerOperation } from "../lib/interleave.mjs";
import {
  denseIntervals,
  intervalOps,
  invalidations,
  listNotifiers,
  newListNotifier,
  PER_PAGE,
  spreadIntervals,
} from "../lib/invalidations.mjs";
import { PAGE } from "../lib/memory.mjs";
import { median } from "../lib/statistics.mjs";
import { significant } from "../lib/table.mjs";

const ROUNDS = 100_000;
/** Of what calls subscribers, a few and many. */
const CALL_ROUNDS = 20_000;
const LONG_ROUNDS = 2000;
const CHANGES = 5000;
const INTERVALS = [0, 1, 100, 10_000, 100_000];
const LISTED = [1, 8, 64];
/** Numbers of intervals beside which one is inserted and removed. */
const OTHERS = [0, 10_000, 100_000];

const MISS_GOAL = "at most 80 ns";
const HIT_GOAL = "at most 240 ns";
const CHANGE_GOAL = "at most 1.4 us";

const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

/** Every combination of subscribers and of how many an invalidation meets: { what, subject, startOf, rounds, goal }. */
async function combinations(spread) {
  const cases = [];
  for (const count of INTERVALS) {
    const subject = spread.get(count);
    const what = (hit) => `invalidate, ${plural(count, "interval")}, ${hit} hit`;
    const goal = count <= 1 ? MISS_GOAL : undefined;
    cases.push({ what: what("none"), subject, startOf: subject.uncovered, rounds: ROUNDS, goal });
    if (count >= 1) {
      const hitGoal = count === 1 ? HIT_GOAL : undefined;
      cases.push({
        what: what("one"),
        subject,
        startOf: subject.covered,
        rounds: CALL_ROUNDS,
        goal: hitGoal,
      });
    }
    if (count >= PER_PAGE) {
      const dense = await denseIntervals(count);
      cases.push({ what: what(PER_PAGE), subject: dense, startOf: dense.covered, rounds: LONG_ROUNDS });
    }
  }
  for (const count of LISTED) {
    const subject = await listNotifiers(count);
    const what = `invalidate, ${plural(count, "list notifier")}`;
    const rounds = count > 8 ? LONG_ROUNDS : CALL_ROUNDS;
    cases.push({
      what,
      subject,
      startOf: subject.uncovered,
      rounds,
      goal: count === 1 ? HIT_GOAL : undefined,
    });
  }
  return cases;
}

/** Inserts one interval between others, again and again, and removes it. */
function changes({ notifiers, uncovered }) {
  const starts = Float64Array.from({ length: CHANGES }, (_, n) => uncovered(n));
  return () =>
    nsPerOperation(CHANGES, () => {
      for (let n = 0; n < CHANGES; n++) {
        notifiers.sync.insert(intervalOps, starts[n], PAGE).sync.remove();
      }
    });
}

export default {
  measures:
    "begin and end of an invalidation of one page, and of a fill that no invalidation overtakes, against a counter bumped by hand",
  async run({ repetitions }) {
    const spread = new Map();
    for (const count of INTERVALS) spread.set(count, await spreadIntervals(count));
    const cases = await combinations(spread);
    const [interval] = spread.get(1).intervals;
    const registering = await listNotifiers(0);
    const words = new Int32Array(new SharedArrayBuffer(64));

    const variants = {
      tryRead: () =>
        nsPerOperation(ROUNDS, () => {
          let retries = 0;
          for (let n = 0; n < ROUNDS; n++) retries += interval.readRetry(interval.tryReadBegin()) ? 1 : 0;
          keep(retries);
        }),
      syncRead: () =>
        nsPerOperation(ROUNDS, () => {
          let retries = 0;
          for (let n = 0; n < ROUNDS; n++) retries += interval.readRetry(interval.sync.readBegin()) ? 1 : 0;
          keep(retries);
        }),
      readByHand: () =>
        nsPerOperation(ROUNDS, () => {
          let retries = 0;
          for (let n = 0; n < ROUNDS; n++) {
            const seq = Atomics.load(words, 0);
            if ((seq & 1) !== 0 || Atomics.load(words, 0) !== seq) retries++;
          }
          keep(retries);
        }),
      changeByHand: () =>
        nsPerOperation(ROUNDS, () => {
          for (let n = 0; n < ROUNDS; n++) {
            Atomics.add(words, 0, 1);
            Atomics.add(words, 0, 1);
          }
        }),
      register: () =>
        nsPerOperation(CHANGES, () => {
          const { sync } = registering.notifiers;
          for (let n = 0; n < CHANGES; n++) {
            const notifier = newListNotifier();
            sync.register(notifier);
            sync.unregister(notifier);
          }
        }),
    };
    for (const count of OTHERS) variants[`change ${count}`] = changes(spread.get(count));
    for (const { what, subject, startOf, rounds } of cases) {
      const raised = invalidations(subject, startOf, rounds);
      variants[`${what}, inner`] = raised.inner;
      variants[`${what}, public`] = raised.public;
    }
    const samples = await interleave(variants, { repetitions });
    for (const { memory } of new Set([...spread.values(), ...cases.map((c) => c.subject), registering])) {
      await memory.close();
    }

    const against = (base) => (what, bifolio, goal) =>
      lineOf({ what, unit: "ns", bifolio, goal, alternative: { name: "counter by hand", samples: base } });
    const read = against(samples.readByHand);
    const change = against(samples.changeByHand);
    const growth = (form) =>
      INTERVALS.filter((count) => count > 0)
        .map((count) => {
          const ns = median(samples[`invalidate, ${plural(count, "interval")}, none hit, ${form}`]);
          return `${significant(ns)} ns at ${count.toLocaleString("en")}`;
        })
        .join(", ");
    return {
      notes: [
        "inner: as mmap and its like raise a range, from inside an operation that runs already; public: notifiers.sync",
        `growth with intervals that are not hit, inner: ${growth("inner")}`,
        `growth with intervals that are not hit, public: ${growth("public")}`,
      ],
      lines: [
        read("tryReadBegin + readRetry", samples.tryRead, "at most 40 ns"),
        read("sync.readBegin + readRetry", samples.syncRead, "at most 40 ns"),
        ...cases.flatMap(({ what, goal }) =>
          ["inner", "public"].map((form) => change(`${what}, ${form}`, samples[`${what}, ${form}`], goal)),
        ),
        ...OTHERS.map((count) =>
          lineOf({
            what: `insert and remove beside ${plural(count, "interval")}`,
            unit: "ns",
            bifolio: samples[`change ${count}`],
            goal: count === OTHERS.at(-1) ? CHANGE_GOAL : undefined,
          }),
        ),
        lineOf({
          what: "register and unregister a list notifier",
          unit: "ns",
          bifolio: samples.register,
        }),
      ],
    };
  },
};
