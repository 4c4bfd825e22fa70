/**
 * What becomes of a range when subscribers throw, refuse, or are given up: with the core's own notifiers of two threads,
 * because those of a simulated space take each of these for a mistake of the subscriber. Nothing here is wrong.
 */
import { type Scenario, scenario } from "../../../src/check/index.ts";
import {
  type IntervalNotifier,
  makeRange,
  type MaybeOp,
  MmuNotifier,
  MmuNotifierEvent,
  type MmuNotifierOps,
  type MmuNotifierRange,
  type Notifiers,
  type OpenRange,
  openRange,
  endOpenRange,
} from "../../../src/notifier/index.ts";
import { SUBS_SRCU } from "../../../src/notifier/layout.ts";
import { checkSubscriptions, openRanges, unlinkListNotifier } from "../../../src/notifier/subscriptions.ts";
import { type Agent, MSG_POSTED, MSG_RESULT, type Op } from "../../../src/sched/index.ts";
import { synchronizeSrcuOp } from "../../../src/sync/index.ts";
import { codeOf, expect, firstWait } from "./steps.ts";

interface Rig {
  readonly mine: Notifiers;
  /** The same in another thread, which answers its messages whenever this one waits. */
  readonly theirs: Notifiers;
  /** Codes of what was reported to somebody who has no caller. */
  readonly reported: string[];
}

const check = (name: string, body: (rig: Rig) => Op<void>): Scenario =>
  scenario({
    name,
    setup(world) {
      const space = world.space({ pages: 1 });
      const rig = {
        mine: space.threadNotifiers(0),
        theirs: space.threadNotifiers(1),
        reported: [] as string[],
      };
      for (const { agent } of [rig.mine, rig.theirs])
        agent.onError = ({ code }) => void rig.reported.push(code);
      return rig;
    },
    agents: {
      checks: { run: (rig) => body(rig) },
      elsewhere: { thread: 1, run: () => {} },
    },
  });

interface How {
  readonly blockable?: boolean;
  readonly proceed?: boolean;
}

/** Opens [0, 10). */
function* opens({ mine: { context } }: Rig, { blockable = true, proceed = false }: How = {}): Op<OpenRange> {
  const range = makeRange(context.space, 0, 10, MmuNotifierEvent.Clear, blockable);
  const rest = openRange(context, range, proceed);
  if (rest) yield* rest;
  return range;
}

/** The code of what an operation throws, "" if it ends. */
function* codeOfOp(op: Op<unknown>): Op<string> {
  try {
    yield* op;
    return "";
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
}

/** Nothing is open, nobody is at the list, and it can be used again. */
function* closed(what: string, { mine: { context } }: Rig): Op<void> {
  expect(`${what}: open ranges`, openRanges(context), 0);
  expect(`${what}: broken`, checkSubscriptions(context), undefined);
  expect(`${what}: callbacks that run`, context.agent.callbackDepth, 0);
  yield* synchronizeSrcuOp(context.agent, context.subs + SUBS_SRCU);
}

type Callback = (range: MmuNotifierRange) => MaybeOp<boolean | void>;

const insert = ({ sync }: Notifiers, callback: Callback, start = 0): IntervalNotifier =>
  sync.insert(
    {
      invalidate(interval, range, curSeq) {
        interval.setSeq(curSeq);
        return callback(range);
      },
    },
    start,
    10,
  );

// eslint-disable-next-line require-yield
function* throwsLater(): Op<boolean> {
  throw new Error("thrown");
}

// eslint-disable-next-line require-yield
function* answersLater(answer: boolean): Op<boolean> {
  return answer;
}

const throwsNow = (): boolean => {
  throw new Error("thrown");
};

/** Each way to hear of a range, in each thread. */
const WAYS: readonly [name: string, subscribe: (notifiers: Notifiers, callback: Callback) => Op<void>][] = [
  [
    "an interval",
    // eslint-disable-next-line require-yield
    function* (notifiers, callback) {
      insert(notifiers, callback);
    },
  ],
  [
    "a list notifier",
    function* (notifiers, callback) {
      const invalidateRangeStart = (
        _notifier: MmuNotifier,
        range: MmuNotifierRange,
      ): MaybeOp<boolean | void> => callback(range);
      yield* notifiers.operations.register(new MmuNotifier({ invalidateRangeStart }));
    },
  ],
];

const THREADS = ["mine", "theirs"] as const;

/** A list notifier that is there before: it has no end without a start. */
function* counts(notifiers: Notifiers): Op<{ starts: number; ends: number }> {
  const count = { starts: 0, ends: 0 };
  yield* notifiers.operations.register(
    new MmuNotifier({
      invalidateRangeStart: () => void count.starts++,
      invalidateRangeEnd: () => void count.ends++,
    }),
  );
  return count;
}

const failures: Scenario[] = [];
for (const thread of THREADS)
  for (const [way, subscribe] of WAYS)
    for (const [when, callback] of [
      ["at once", throwsNow],
      ["later", throwsLater],
      ["and refuses a blockable range", () => false],
      ["later and refuses a blockable range", () => answersLater(false)],
    ] as const)
      failures.push(
        check(`${way} of ${thread} fails ${when}`, function* (rig) {
          const count = yield* counts(rig.mine);
          yield* subscribe(rig[thread], callback);
          expect("the start", yield* codeOfOp(opens(rig)), "ECALLBACK");
          yield* closed("after the failure", rig);
          const range = yield* opens(rig, { proceed: true });
          expect("reported", rig.reported.join(), "ECALLBACK");
          expect("open", openRanges(rig.mine.context), 1);
          endOpenRange(rig.mine.context, range);
          yield* closed("after the end", rig);
          expect("starts", count.starts, 2);
          expect("ends", count.ends, 2);
        }),
      );

const refusals: Scenario[] = [];
for (const thread of THREADS)
  for (const [way, subscribe] of WAYS)
    refusals.push(
      check(`${way} of ${thread} cannot answer without waiting`, function* (rig) {
        let asked = 0;
        yield* subscribe(rig[thread], ({ blockable }) => {
          asked++;
          return blockable;
        });
        const count = yield* counts(rig.mine);
        expect("the start", yield* codeOfOp(opens(rig, { blockable: false })), "EAGAIN");
        expect("asked", asked, thread === "mine" ? 1 : 0);
        yield* closed("after the refusal", rig);
        expect("starts and ends", count.starts, count.ends);
        endOpenRange(rig.mine.context, yield* opens(rig));
        yield* closed("after the end", rig);
        expect("starts and ends", count.starts, count.ends);
      }),
    );

export const DELIVERIES: readonly Scenario[] = [
  ...failures,
  ...refusals,
  check("setSeq() is for callbacks, and readers hear of it", function* (rig) {
    for (const callback of [() => true, () => answersLater(true), throwsNow, throwsLater]) {
      const interval = insert(rig.mine, callback);
      const seq = yield* interval.operations.readBegin();
      expect("before", interval.readRetry(seq), false);
      const range = yield* opens(rig, { proceed: true });
      expect(
        "outside",
        codeOf(() => interval.setSeq(7)),
        "EPERM",
      );
      expect("overtaken", interval.readRetry(seq), true);
      expect("hint", interval.checkRetry(seq), true);
      expect("while it is open", interval.tryReadBegin(), undefined);
      endOpenRange(rig.mine.context, range);
      expect("later", interval.readRetry(yield* interval.operations.readBegin()), false);
      yield* interval.operations.remove();
      expect("removed", interval.readRetry(seq), true);
      expect("removed", yield* codeOfOp(interval.operations.readBegin()), "ESRCH");
      expect("removed", yield* codeOfOp(interval.operations.remove()), "ESRCH");
    }
  }),
  check("a removed interval answers nothing, and is forgotten", function* (rig) {
    const { local } = rig.mine.context;
    const interval = insert(rig.mine, () => true);
    const { local: at } = interval;
    expect("known", local.intervals.get(at), interval);
    expect("begins", interval.sync.readBegin(), interval.tryReadBegin());
    yield* interval.operations.remove();
    expect("known", local.intervals.get(at), undefined);
    expect(
      "blocking",
      codeOf(() => interval.sync.readBegin()),
      "ESRCH",
    );
    expect(
      "trying",
      codeOf(() => interval.tryReadBegin()),
      "ESRCH",
    );
    yield* closed("afterwards", rig);
  }),
  check("another thread's handle of a removed interval answers nothing", function* (rig) {
    const interval = insert(rig.mine, () => true);
    const handle = rig.theirs.interval(interval.id);
    const seq = handle.sync.readBegin();
    expect("overtaken", handle.readRetry(seq), false);
    expect("removed by a stranger", yield* codeOfOp(handle.operations.remove()), "EPERM");
    yield* interval.operations.remove();
    expect("overtaken", handle.readRetry(seq), true);
    expect(
      "blocking",
      codeOf(() => handle.sync.readBegin()),
      "ESRCH",
    );
    expect("waiting", yield* codeOfOp(handle.operations.readBegin()), "ESRCH");
  }),
  check("a removal that is given up leaves the interval as it was", function* (rig) {
    const interval = insert(rig.mine, () => true);
    const range = yield* opens(rig);
    const removal = interval.operations.remove();
    firstWait(removal);
    expect(
      "meanwhile",
      codeOf(() => interval.tryReadBegin()),
      "ESRCH",
    );
    expect(
      "given up",
      codeOf(() => removal.throw(new Error("given up"))),
      "Error: given up",
    );
    endOpenRange(rig.mine.context, range);
    expect("again", interval.readRetry(yield* interval.operations.readBegin()), false);
    yield* interval.operations.remove();
    yield* closed("afterwards", rig);
  }),
  check("every callback is one, and may not begin a fill that waits", function* (rig) {
    const other = insert(rig.mine, () => true, 50);
    const { agent } = rig.mine.context;
    let told = 0;
    const looks = (): void => {
      told++;
      expect("callbacks that run", agent.callbackDepth, 1);
      expect(
        "a fill",
        codeOf(() => other.sync.readBegin()),
        "EDEADLK",
      );
    };
    insert(rig.mine, looks);
    yield* rig.mine.operations.register(
      new MmuNotifier({ invalidateRangeStart: looks, invalidateRangeEnd: looks, release: looks }),
    );
    endOpenRange(rig.mine.context, yield* opens(rig));
    expect("told", told, 3);
    yield* rig.mine.operations.release();
    expect("told", told, 5);
    expect("reported", rig.reported.join(), "");
    yield* closed("after the release", rig);
  }),
  check("an end that throws is reported", function* (rig) {
    yield* rig.mine.operations.register(new MmuNotifier({ invalidateRangeEnd: throwsNow }));
    const count = yield* counts(rig.mine);
    endOpenRange(rig.mine.context, yield* opens(rig));
    expect("reported", rig.reported.join(), "ECALLBACK");
    expect("ends", count.ends, 1);
    yield* closed("after the end", rig);
  }),
  check("who leaves before it has read of a start does not hear of it", function* (rig) {
    let told = 0;
    const notifier = new MmuNotifier({ invalidateRangeStart: () => void told++ });
    yield* rig.theirs.operations.register(notifier);
    const rest = opens(rig);
    firstWait(rest);
    const leaves = rig.theirs.operations.unregister(notifier);
    firstWait(leaves);
    rig.theirs.agent.safepoint();
    endOpenRange(rig.mine.context, yield* rest);
    yield* leaves;
    expect("told", told, 0);
    yield* closed("afterwards", rig);
  }),
  check("secondary TLBs of both threads are told", function* (rig) {
    const told: string[] = [];
    for (const thread of THREADS)
      yield* rig[thread].operations.register(
        new MmuNotifier({
          archInvalidateSecondaryTlbs: (_notifier, _space, from, end) =>
            void told.push(`${thread} ${from} ${end}`),
        }),
      );
    rig.mine.archInvalidateSecondaryTlbs(10, 20);
    rig.theirs.agent.safepoint();
    expect("told", told.toSorted().join(), "mine 10 20,theirs 10 20");
  }),
  check("each is told once, in order of addresses, whoever inserted it", function* (rig) {
    const told: string[] = [];
    for (const [at, thread] of ["mine", "theirs", "theirs", "mine", "mine", "theirs"].entries())
      insert(rig[thread as "mine" | "theirs"], () => void told.push(`${thread} ${at}`), at);
    insert(rig.theirs, () => void told.push("elsewhere"), 50);
    endOpenRange(rig.mine.context, yield* opens(rig));
    expect("told", told.join(), "mine 0,theirs 1,theirs 2,mine 3,mine 4,theirs 5");
    yield* closed("after the end", rig);
  }),
  ...WAYS.map(([way, subscribe]) =>
    check(`a start is given up while ${way} of another thread has not answered`, function* (rig) {
      yield* subscribe(rig.theirs, () => true);
      const count = yield* counts(rig.mine);
      const rest = opens(rig);
      firstWait(rest);
      expect(
        "given up",
        codeOf(() => rest.throw(new Error("given up"))),
        "Error: given up",
      );
      yield* closed("after it", rig);
      rig.theirs.agent.safepoint();
      endOpenRange(rig.mine.context, yield* opens(rig));
      expect("starts and ends", count.starts, count.ends);
      yield* closed("after another", rig);
    }),
  ),
  ...WAYS.map(([way, subscribe]) =>
    check(`${way} answers with what throws when it is looked at`, function* (rig) {
      const answer = {
        get next(): never {
          throw new Error("looked at");
        },
      };
      const count = yield* counts(rig.mine);
      yield* subscribe(rig.mine, () => answer as never);
      expect("the start", yield* codeOfOp(opens(rig)), "ECALLBACK");
      yield* closed("after it", rig);
      expect("starts and ends", count.starts, count.ends);
    }),
  ),
  check("a list notifier refuses, and throws when its end is looked for", function* (rig) {
    let throws = false;
    const ops = {
      invalidateRangeStart: () => false,
      get invalidateRangeEnd() {
        if (throws) throw new Error("looked for");
        return undefined as never;
      },
    } satisfies MmuNotifierOps;
    const count = yield* counts(rig.mine);
    yield* rig.mine.operations.register(new MmuNotifier(ops));
    throws = true;
    expect("the start", yield* codeOfOp(opens(rig, { blockable: false })), "Error: looked for");
    yield* closed("after it", rig);
    expect("starts and ends", count.starts, count.ends);
  }),
  check(
    "an interval of theirs answers, after another one, with what throws when it is looked at",
    function* (rig) {
      insert(rig.theirs, () => answersLater(true));
      const answer = {
        get next(): never {
          throw new Error("looked at");
        },
      };
      insert(rig.theirs, () => answer as never, 1);
      expect("the start", yield* codeOfOp(opens(rig)), "ECALLBACK");
      yield* closed("after it", rig);
    },
  ),
  check("who is taken off the list before the read section of a walk has begun is not told", function* (rig) {
    const { context } = rig.mine;
    let told = 0;
    const notifier = new MmuNotifier({ invalidateRangeStart: () => void told++ });
    yield* rig.mine.operations.register(notifier);
    // There is a section only where the list is not all the walker's own.
    const theirs = new MmuNotifier({ release() {} });
    yield* rig.theirs.operations.register(theirs);
    // The walk looks at its own slot to count its range, and again to begin the section.
    let looks = 0;
    const slot = (): number => {
      if (++looks === 2) unlinkListNotifier(context, notifier.record);
      return context.agent.slot;
    };
    const agent = Object.create(context.agent, { slot: { get: slot } }) as Agent;
    const range = makeRange(context.space, 0, 10, MmuNotifierEvent.Clear, true);
    expect("it needs no wait", openRange({ ...context, agent }, range, false), undefined);
    expect("looks", looks >= 2, true);
    expect("told", told, 0);
    endOpenRange(context, range);
    yield* rig.mine.operations.unregister(notifier);
    yield* rig.theirs.operations.unregister(theirs);
    yield* closed("afterwards", rig);
  }),
  check("a list notifier of another thread hears starts and ends", function* (rig) {
    const count = yield* counts(rig.theirs);
    const range = yield* opens(rig);
    expect("starts", count.starts, 1);
    expect("ends", count.ends, 0);
    endOpenRange(rig.mine.context, range);
    rig.theirs.agent.safepoint();
    expect("ends", count.ends, 1);
    yield* closed("after the end", rig);
  }),
  check(
    "an end is promised to another thread before its start, whatever becomes of this one",
    function* (rig) {
      yield* counts(rig.theirs);
      const { context } = rig.mine;
      const range = makeRange(context.space, 0, 10, MmuNotifierEvent.Clear, true);
      const rest = openRange(context, range, false)!;
      firstWait(rest);
      const [promised] = range.reserved!;
      // What a reaper looks for.
      const load = (word: number): number => Atomics.load(context.agent.words, promised!.message + word);
      expect("to whom", load(MSG_RESULT), rig.theirs.agent.ownerId);
      expect("posted", load(MSG_POSTED), 1);
      rig.theirs.agent.safepoint();
      yield* rest;
      endOpenRange(context, range);
      yield* closed("after the end", rig);
    },
  ),
  ...[throwsNow, throwsLater].map((callback, later) =>
    check(`unregister() calls release, which throws ${later === 0 ? "at once" : "later"}`, function* (rig) {
      let told = 0;
      const release = (): MaybeOp<void> => {
        told++;
        return callback() as unknown as MaybeOp<void>;
      };
      const notifier = new MmuNotifier({ release });
      yield* rig.mine.operations.register(notifier);
      yield* rig.mine.operations.unregister(notifier);
      expect("told", told, 1);
      expect("reported", rig.reported.join(), "ECALLBACK");
      yield* closed("afterwards", rig);
    }),
  ),
  ...[throwsNow, throwsLater].map((callback, later) =>
    check(`everybody is released, ${later === 0 ? "at once" : "later"}, whoever throws`, function* (rig) {
      const told: string[] = [];
      for (const thread of THREADS) {
        insert(rig[thread], ({ event }) => {
          told.push(`${thread} ${event === MmuNotifierEvent.Release}`);
          return callback();
        });
        const release = (): MaybeOp<void> => {
          told.push(thread);
          return callback() as unknown as MaybeOp<void>;
        };
        yield* rig[thread].operations.register(new MmuNotifier({ release }));
      }
      yield* rig.mine.operations.release();
      expect("told", told.toSorted().join(), "mine,mine true,theirs,theirs true");
      expect("reported", rig.reported.join(), "ECALLBACK,ECALLBACK,ECALLBACK");
      yield* closed("after the release", rig);
      yield* rig.mine.operations.release();
      expect("told twice", told.length, 4);
    }),
  ),
  check("the answer about age of another thread's notifier comes with the next question", function* (rig) {
    let young = false;
    yield* rig.theirs.operations.register(new MmuNotifier({ clearYoung: () => young }));
    expect("unknown", rig.mine.clearYoung(0, 10), true);
    rig.theirs.agent.safepoint();
    expect("old", rig.mine.clearYoung(0, 10), false);
    young = true;
    expect("unknown", rig.mine.clearYoung(0, 10), true);
    rig.theirs.agent.safepoint();
    young = false;
    expect("young", rig.mine.clearYoung(0, 10), true);
  }),
];
