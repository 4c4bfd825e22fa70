/** Spaces with subscribers, and invalidations of one page in them. */
import {
  endOpenRange,
  makeRange,
  MmuNotifier,
  MmuNotifierEvent,
  openRange,
} from "../../.test-build/testing.js";
import { nsPerOperation } from "./interleave.mjs";
import { openMemory, PAGE } from "./memory.mjs";

const FIRST = 2 ** 30;
const INTERVAL_PAGES = 16;
const SPACING = (INTERVAL_PAGES + 1) * PAGE;
/** How many intervals share a page where they lie densely. */
export const PER_PAGE = 100;
/** Room for records, and for the agent's own tables beside them. */
const ARENA = "128 MiB";

/** What a secondary MMU does at least. */
export const intervalOps = {
  invalidate(interval, _range, curSeq) {
    interval.setSeq(curSeq);
    return true;
  },
};

/** A memory of its own for each number of subscribers: an agent keeps one table of all its subscriptions. */
const openForNotifiers = () => openMemory(16, { arena: ARENA });

/** `count` intervals of 16 pages, one page apart. */
export async function spreadIntervals(count) {
  const { memory, space } = await openForNotifiers();
  const { notifiers } = space;
  const intervals = [];
  for (let n = 0; n < count; n++) {
    intervals.push(notifiers.sync.insert(intervalOps, FIRST + n * SPACING, INTERVAL_PAGES * PAGE));
  }
  // Neighbours in time are far apart in the tree.
  const anywhere = (n) => FIRST + ((n * 7919) % Math.max(count, 1)) * SPACING;
  return {
    memory,
    notifiers,
    intervals,
    /** Address of a page that one interval covers. */
    covered: anywhere,
    /** Address of a page that none does. */
    uncovered: (n) => anywhere(n) + INTERVAL_PAGES * PAGE,
  };
}

/** `count` intervals, PER_PAGE of them on each page. */
export async function denseIntervals(count) {
  const { memory, space } = await openForNotifiers();
  const { notifiers } = space;
  const length = Math.floor(PAGE / PER_PAGE);
  for (let n = 0; n < count; n++) {
    const page = FIRST + Math.floor(n / PER_PAGE) * PAGE;
    notifiers.sync.insert(intervalOps, page + (n % PER_PAGE) * length, length);
  }
  const pages = count / PER_PAGE;
  return { memory, notifiers, covered: (n) => FIRST + ((n * 7919) % pages) * PAGE };
}

export const newListNotifier = () =>
  new MmuNotifier({ invalidateRangeStart: () => true, invalidateRangeEnd() {} });

export async function listNotifiers(count) {
  const { memory, space } = await openForNotifiers();
  const { notifiers } = space;
  for (let n = 0; n < count; n++) notifiers.sync.register(newListNotifier());
  return { memory, notifiers, uncovered: (n) => FIRST + (n % 1024) * PAGE };
}

/**
 * Two ways to raise `rounds` ranges of one page, the n-th of which starts at `startOf(n)`:
 *   inner   as mmap and its like do, from inside an operation that runs already
 *   public  as somebody else's primary MMU does
 */
export function invalidations({ notifiers }, startOf, rounds) {
  const { context } = notifiers;
  // Precomputed: a call through a variable would be part of what is measured.
  const starts = Float64Array.from({ length: rounds }, (_, n) => startOf(n));
  return {
    inner: () =>
      nsPerOperation(rounds, () => {
        for (let n = 0; n < rounds; n++) {
          const start = starts[n];
          const range = makeRange(context.space, start, start + PAGE, MmuNotifierEvent.Clear, true);
          const told = openRange(context, range, false) === undefined;
          if (!told) throw new Error("a range with subscribers in this agent only had to wait");
          endOpenRange(context, range);
        }
      }),
    public: () =>
      nsPerOperation(rounds, () => {
        for (let n = 0; n < rounds; n++) {
          const start = starts[n];
          const request = { start, end: start + PAGE, event: MmuNotifierEvent.Clear };
          notifiers.invalidateRangeEnd(notifiers.sync.invalidateRangeStart(request));
        }
      }),
  };
}
