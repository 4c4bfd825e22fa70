/** The notifier subsystem by itself. */
import {
  beginRange,
  endOpenRange,
  makeRange,
  MmuNotifier,
  MmuNotifierEvent,
  tellStartOp,
} from "../../.test-build/testing.js";
import { interleave, keep, lineOf, nsPerOperation } from "../lib/interleave.mjs";
import { openMemory, PAGE } from "../lib/memory.mjs";

const ROUNDS = 100_000;
const SUBSCRIPTIONS = 10_000;
/** Intervals of 16 pages, one page apart, from here on. */
const FIRST = 2 ** 30;
const SPACING = 17 * PAGE;

const ops = {
  invalidate(interval, _range, curSeq) {
    interval.setSeq(curSeq);
    return true;
  },
};

/** One space each, so that its subscriptions are those of one variant. */
async function spaceWith(memory, subscriptions) {
  const space = await memory.createSpace();
  const intervals = [];
  for (let n = 0; n < subscriptions; n++) {
    intervals.push(space.notifiers.sync.insert(ops, FIRST + n * SPACING, 16 * PAGE));
  }
  return { notifiers: space.notifiers, intervals };
}

/** Two ways to raise a range of one page, which starts at `startOf(n)`: the public form, and what the mm row calls. */
function raise({ notifiers }, startOf) {
  const { context } = notifiers;
  const startOp = (range) => {
    const done =
      beginRange(context, range.start, range.end) || tellStartOp(context, range, false).next().done;
    if (!done) throw new Error("a range with subscribers in this agent only had to wait");
  };
  return {
    inner: () =>
      nsPerOperation(ROUNDS, () => {
        for (let n = 0; n < ROUNDS; n++) {
          const start = startOf(n);
          const range = makeRange(context.space, start, start + PAGE, MmuNotifierEvent.Clear, true);
          startOp(range);
          endOpenRange(context, range);
        }
      }),
    public: () =>
      nsPerOperation(ROUNDS, () => {
        for (let n = 0; n < ROUNDS; n++) {
          const start = startOf(n);
          const request = { start, end: start + PAGE, event: MmuNotifierEvent.Clear };
          notifiers.invalidateRangeEnd(notifiers.sync.invalidateRangeStart(request));
        }
      }),
  };
}

export default {
  measures:
    "begin and end of an invalidation of one page, and of a fill that no invalidation overtakes, against a counter bumped by hand",
  async run({ repetitions }) {
    const { memory } = await openMemory(16, { arena: "64 MiB" });
    const nobody = await spaceWith(memory, 0);
    const many = await spaceWith(memory, SUBSCRIPTIONS);
    const [interval] = (await spaceWith(memory, 1)).intervals;
    const listed = await spaceWith(memory, 0);
    await listed.notifiers.register(
      new MmuNotifier({ invalidateRangeStart: () => true, invalidateRangeEnd() {} }),
    );
    const anywhere = (n) => FIRST + (n & 1023) * PAGE;
    const missing = raise(nobody, anywhere);
    const hearing = raise(listed, anywhere);
    // The first page of an interval; the page between it and the next comes 16 pages later.
    const scattered = (n) => FIRST + ((n * 7919) % SUBSCRIPTIONS) * SPACING;
    const between = raise(many, (n) => scattered(n) + 16 * PAGE);
    const inside = raise(many, scattered);
    const words = new Int32Array(new SharedArrayBuffer(64));

    const samples = await interleave(
      {
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
        missingInner: missing.inner,
        missingPublic: missing.public,
        betweenInner: between.inner,
        betweenPublic: between.public,
        insideInner: inside.inner,
        insidePublic: inside.public,
        hearingInner: hearing.inner,
      },
      { repetitions },
    );
    await memory.close();

    const against = (base) => (what, bifolio, goal) =>
      lineOf({ what, unit: "ns", bifolio, goal, alternative: { name: "counter by hand", samples: base } });
    const read = against(samples.readByHand);
    const change = against(samples.changeByHand);
    return {
      notes: ["inner: as mmap and its like raise a range, from inside an operation that runs already"],
      lines: [
        read("tryReadBegin + readRetry", samples.tryRead, "at most 40 ns"),
        read("sync.readBegin + readRetry", samples.syncRead, "at most 40 ns"),
        change("invalidate, no subscriber, inner", samples.missingInner, "at most 80 ns"),
        change("invalidate, no subscriber, public", samples.missingPublic),
        change("invalidate, 10,000 elsewhere, inner", samples.betweenInner, "at most 400 ns"),
        change("invalidate, 10,000 elsewhere, public", samples.betweenPublic, "at most 400 ns"),
        change("invalidate, one of 10,000 hit, inner", samples.insideInner),
        change("invalidate, one of 10,000 hit, public", samples.insidePublic),
        change("invalidate, one list notifier, inner", samples.hearingInner),
      ],
    };
  },
};
