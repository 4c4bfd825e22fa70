/**
 * The records of subscriptions by themselves, where no schedule shows a mistake: their counts and lifetimes, which no operation
 * of a simulated space looks at; and moments inside one step, which the explorer does not interrupt. Nothing here is wrong.
 */
import { type Scenario, scenario } from "../../../src/check/index.ts";
import { allocWords, freeWords } from "../../../src/memory/index.ts";
import {
  INTERVAL_TREE,
  IV_GENERATION,
  IV_STATE,
  IV_SUBS,
  IV_WORDS,
  LIST_LINKED,
  LIST_PENDING,
  LIST_UNLINKED,
  type ListNotifier,
  LN_NEXT,
  LN_OP_SECONDARY_TLBS,
  LN_OPS,
  LN_STATE,
  SUBS_LIST,
  SUBS_LOCK,
  SUBS_SECONDARY_TLBS,
  SUBS_SRCU,
  subsOpenAt,
  subsWords,
} from "../../../src/notifier/layout.ts";
import {
  allocListNotifier,
  beginRange,
  cancelListNotifier,
  checkSubscriptions,
  closeEpoch,
  createSubscriptions,
  currentSeq,
  disownSubscriptions,
  endRange,
  firstInterval,
  freeListNotifier,
  hasSubscriptions,
  insertInterval,
  intervalSeq,
  isGone,
  isInvalidating,
  isReleased,
  joinRange,
  linkListNotifier,
  markReleased,
  nextInterval,
  openRanges,
  reapSubscriptions,
  removeIntervalOp,
  someOpener,
  type SubsContext,
  unlinkListNotifier,
  waitForEpochOp,
  waitUntilLinkedOp,
} from "../../../src/notifier/subscriptions.ts";
import { type Agent, arm, type Op } from "../../../src/sched/index.ts";
import { srcuReadLock, srcuReadUnlock, synchronizeSrcuOp } from "../../../src/sync/index.ts";
import { atOnce, codeOf, expect, firstWait } from "./steps.ts";

/** An agent of which there is nothing but its bit in wait queues. */
const SLEEPER = 3;
const ID = 77;

/** Runs an operation to its first wait, does what ends that, and looks whether who waits is rung. */
function rings(agent: Agent, op: Op<unknown>, owner: number, ends: () => void): void {
  const { queue, ready, owner: waitedFor } = firstWait(op);
  expect("whom it waits for", waitedFor?.(), owner);
  arm(agent.words, queue, SLEEPER);
  expect("over before its end", ready(), false);
  ends();
  expect("who waits is rung", Atomics.load(agent.words, queue) & (1 << SLEEPER), 0);
  expect("over after its end", ready(), true);
  atOnce(op);
}

interface Rig {
  readonly agent: Agent;
  readonly c: SubsContext;
  /** The same in another thread. */
  readonly other: SubsContext;
}

const check = (name: string, body: (rig: Rig) => void): Scenario =>
  scenario({
    name,
    setup(world) {
      const { heap, maxAgents } = world.space({ pages: 1 }).realNotifiers().context;
      const agent = world.run.agentOf(0);
      const subs = createSubscriptions(agent, heap, maxAgents, ID);
      const c: SubsContext = { agent, subs, id: ID, maxAgents, heap };
      return { agent, c, other: { ...c, agent: world.run.agentOf(1) } };
    },
    agents: {
      checks: (rig) => body(rig),
      elsewhere: { thread: 1, run: () => {} },
    },
  });

/** Intervals that a range from `start` to `end` hits. */
function hits(c: SubsContext, start: number, end: number): number {
  const nobody = beginRange(c, start, end);
  let count = 0;
  for (let node = firstInterval(c, start, end); node !== 0; node = nextInterval(c, node, start, end)) count++;
  expect("it concerns nobody", nobody, count === 0 && Atomics.load(c.agent.words, c.subs + SUBS_LIST) === 0);
  endRange(c);
  return count;
}

function linked(c: SubsContext, ops = 0): ListNotifier {
  const ln = allocListNotifier(c);
  Atomics.store(c.agent.words, ln + LN_OPS, ops);
  linkListNotifier(c, ln);
  return ln;
}

/** The list from its head on. */
function list(c: SubsContext): string {
  const found: number[] = [];
  const w = c.agent.words;
  for (let ln = Atomics.load(w, c.subs + SUBS_LIST); ln !== 0; ln = Atomics.load(w, ln + LN_NEXT))
    found.push(ln);
  return found.join();
}

const stateOf = (c: SubsContext, ln: ListNotifier): number => Atomics.load(c.agent.words, ln + LN_STATE);

/** The same context, where the other thread uncounts its range after the first look at them, and has looked at the rest before. */
function endedSinceFirstLook(c: SubsContext, other: SubsContext): SubsContext {
  let looks = 0;
  const top = (): number => {
    if (++looks === 2) Atomics.sub(c.agent.words, openAt(other), 1);
    return c.agent.top();
  };
  return { ...c, agent: Object.create(c.agent, { top: { value: top } }) as Agent };
}

const openAt = (c: SubsContext): number => subsOpenAt(c.subs, c.maxAgents, c.agent.slot);

const sound = (c: SubsContext): void => expect("broken", checkSubscriptions(c), undefined);

export const RECORDS: readonly Scenario[] = [
  check("a fresh record has positive numbers and nothing open", ({ c }) => {
    expect("gone", isGone(c), false);
    expect("released", isReleased(c), false);
    expect("subscriptions", hasSubscriptions(c), false);
    const node = insertInterval(c, 0, 9);
    const seq = intervalSeq(c.agent, node);
    expect("its number is positive", seq > 0, true);
    expect("where others find its space", Atomics.load(c.agent.words, node + IV_SUBS), c.subs);
    expect("invalidating", isInvalidating(c, seq), false);
    expect("subscriptions", hasSubscriptions(c), true);
    sound(c);
  }),
  check("a record goes with its last use, and not before", ({ c, agent }) => {
    const node = insertInterval(c, 0, 9);
    const ln = linked(c);
    atOnce(removeIntervalOp(c, node));
    expect("gone with an owner and a list notifier", isGone(c), false);
    unlinkListNotifier(c, ln);
    freeListNotifier(c, ln);
    expect("gone with an owner", isGone(c), false);
    disownSubscriptions(c);
    expect("gone without a use", isGone(c), true);
    expect("its words are free", allocWords(agent, c.heap, subsWords(c.maxAgents)), c.subs);
  }),
  check("an interval keeps its record", ({ c }) => {
    const node = insertInterval(c, 0, 9);
    disownSubscriptions(c);
    expect("gone with an interval", isGone(c), false);
    atOnce(removeIntervalOp(c, node));
    expect("gone without a use", isGone(c), true);
  }),
  check("a list notifier keeps its record, whichever agent registered it", ({ c, other }) => {
    const ln = linked(c);
    const theirs = linked(other);
    disownSubscriptions(c);
    unlinkListNotifier(c, ln);
    freeListNotifier(c, ln);
    expect("gone with a list notifier of another agent", isGone(c), false);
    unlinkListNotifier(other, theirs);
    freeListNotifier(other, theirs);
    expect("gone without a use", isGone(c), true);
  }),
  check("nothing is registered once a space is released", ({ c, agent }) => {
    beginRange(c, 0, 5);
    const waits = linked(c);
    expect("the first release", markReleased(c), true);
    expect("the second release", markReleased(c), false);
    expect("released", isReleased(c), true);
    endRange(c);
    expect("what waited is in the list", list(c), "");
    expect("what waited", stateOf(c, waits), LIST_UNLINKED);
    const spare = allocWords(agent, c.heap, IV_WORDS);
    freeWords(agent, c.heap, spare, IV_WORDS);
    expect(
      "an insert",
      codeOf(() => insertInterval(c, 0, 9)),
      "ESRCH",
    );
    expect("its record is free", allocWords(agent, c.heap, IV_WORDS), spare);
    const late = linked(c);
    expect("what comes late", stateOf(c, late), LIST_UNLINKED);
  }),
  check("a removed interval's handles know", ({ c, agent }) => {
    const node = insertInterval(c, 0, 9);
    const generation = Atomics.load(agent.words, node + IV_GENERATION);
    atOnce(removeIntervalOp(c, node));
    expect("its generation", Atomics.load(agent.words, node + IV_GENERATION), 0);
    const again = insertInterval(c, 0, 9);
    expect("the record is used again", again, node);
    expect("the same generation", Atomics.load(agent.words, again + IV_GENERATION) === generation, false);
  }),
  check("deferred inserts come with the last end, without those removed before", ({ c, other, agent }) => {
    const first = insertInterval(c, 0, 9);
    beginRange(c, 0, 10);
    const [a, b, d] = [insertInterval(c, 0, 9), insertInterval(c, 0, 9), insertInterval(c, 0, 9)];
    for (const node of [a, b, d])
      expect("its number is open", isInvalidating(c, intervalSeq(c.agent, node)), true);
    atOnce(removeIntervalOp(c, b));
    const inside = firstInterval(c, 0, 10);
    expect("in the tree", `${inside},${nextInterval(c, inside, 0, 10)}`, `${first},0`);
    beginRange(other, 0, 10);
    endRange(c);
    expect("still open", isInvalidating(c, intervalSeq(c.agent, a)), true);
    endRange(other);
    expect("after the last end", hits(c, 0, 10), 3);
    beginRange(other, 0, 10);
    rings(agent, removeIntervalOp(c, a), other.agent.ownerId, () => endRange(other));
    atOnce(removeIntervalOp(c, d));
    expect("after removals", hits(c, 0, 10), 1);
    sound(c);
  }),
  check("an insert beside a range that hits nobody takes it for one that hits", ({ c }) => {
    insertInterval(c, 100, 109);
    beginRange(c, 0, 10);
    const node = insertInterval(c, 0, 9);
    expect("invalidating", isInvalidating(c, intervalSeq(c.agent, node)), true);
    endRange(c);
    expect("invalidating after the end", isInvalidating(c, intervalSeq(c.agent, node)), false);
    expect("told", hits(c, 0, 10), 1);
    sound(c);
  }),
  check("an insert closes what the last end has missed", ({ c, other, agent }) => {
    insertInterval(c, 100, 109);
    beginRange(other, 0, 10); // hits nobody
    insertInterval(endedSinceFirstLook(c, other), 0, 9);
    expect("open", openRanges(c), 0);
    sound(c);
    beginRange(other, 0, 10);
    rings(agent, waitForEpochOp(c, currentSeq(c)), other.agent.ownerId, () => {
      insertInterval(endedSinceFirstLook(c, other), 0, 9);
    });
    expect("told", hits(c, 0, 10), 2);
    sound(c);
  }),
  check("a registration closes what the last end has missed", ({ c, other, agent }) => {
    insertInterval(c, 0, 9);
    beginRange(other, 0, 10);
    rings(agent, waitForEpochOp(c, currentSeq(c)), other.agent.ownerId, () => {
      Atomics.sub(agent.words, openAt(other), 1);
      linked(c);
    });
    sound(c);
  }),
  check("who waits does what a dead agent's end has left", ({ c, other, agent }) => {
    insertInterval(c, 0, 9);
    beginRange(other, 0, 10);
    const op = waitForEpochOp(c, currentSeq(c));
    const { ready, owner } = firstWait(op);
    expect("ready", ready(), false);
    Atomics.sub(agent.words, openAt(other), 1);
    Atomics.store(agent.words, c.subs + SUBS_LOCK, other.agent.ownerId);
    expect("it waits for who has the lock", owner?.(), other.agent.ownerId);
    Atomics.store(agent.words, c.subs + SUBS_LOCK, 0);
    expect("it waits for nobody", owner?.(), 0);
    expect("ready", ready(), true);
    sound(c);
  }),
  check("who waits for its own range is said to", ({ c, other }) => {
    insertInterval(c, 0, 9);
    beginRange(c, 0, 10);
    beginRange(other, 0, 10);
    expect("of thread 0", someOpener(c), c.agent.ownerId);
    expect("of thread 1", someOpener(other), other.agent.ownerId);
    endRange(c);
    expect("of thread 0, later", someOpener(c), other.agent.ownerId);
    endRange(other);
    expect("of none", someOpener(c), 0);
    Atomics.store(c.agent.words, c.subs + SUBS_LOCK, c.agent.ownerId);
    expect("of its own lock", someOpener(c), 0);
    Atomics.store(c.agent.words, c.subs + SUBS_LOCK, 0);
  }),
  check("the last end rings readers, removers and registrations", ({ c, other, agent }) => {
    const node = insertInterval(c, 0, 9);
    beginRange(other, 0, 10);
    rings(agent, waitForEpochOp(c, currentSeq(c)), other.agent.ownerId, () => endRange(other));
    beginRange(other, 0, 10);
    rings(agent, removeIntervalOp(c, node), other.agent.ownerId, () => endRange(other));
    expect("after the removal", hits(c, 0, 10), 0);
    beginRange(other, 0, 10);
    const ln = linked(c);
    expect("while a range is open", stateOf(c, ln), LIST_PENDING);
    rings(agent, waitUntilLinkedOp(c, ln), other.agent.ownerId, () => endRange(other));
    expect("after the end", stateOf(c, ln), LIST_LINKED);
    sound(c);
  }),
  check("a removal that is given up is undone", ({ c, other, agent }) => {
    const first = insertInterval(c, 0, 9);
    const second = insertInterval(c, 0, 9);
    beginRange(other, 0, 10);
    const [one, two] = [removeIntervalOp(c, first), removeIntervalOp(c, second)];
    firstWait(one);
    firstWait(two);
    expect(
      "it says so",
      codeOf(() => one.throw(new Error("given up"))),
      "Error: given up",
    );
    expect("it is registered", Atomics.load(agent.words, first + IV_STATE), INTERVAL_TREE);
    endRange(other);
    // Too late to be undone: the last end has done it.
    expect("it is done", two.throw(new Error("given up")).done, true);
    expect("told", hits(c, 0, 10), 1);
    atOnce(removeIntervalOp(c, first));
    disownSubscriptions(c);
    expect("gone without a use", isGone(c), true);
  }),
  check("a message of another agent's range counts here while that is open", ({ c, other }) => {
    insertInterval(c, 0, 9);
    beginRange(other, 0, 10);
    const seq = currentSeq(c);
    expect("joined", joinRange(c, seq), true);
    expect("open", openRanges(c), 2);
    endRange(other);
    expect("frozen", currentSeq(c), seq);
    endRange(c);
    expect("joined late", joinRange(c, seq), false);
    expect("open", openRanges(c), 0);
    sound(c);
  }),
  check("a list has the newest in front, also of those that waited", ({ c }) => {
    const first = linked(c);
    beginRange(c, 0, 10);
    const [second, third, fourth] = [linked(c), linked(c), linked(c)];
    expect("the list while a range is open", list(c), `${first}`);
    expect("taken back", cancelListNotifier(c, third), true);
    expect("the one taken back", stateOf(c, third), LIST_UNLINKED);
    endRange(c);
    expect("the list", list(c), `${fourth},${second},${first}`);
    expect("too late", cancelListNotifier(c, second), false);
    expect("taken off", unlinkListNotifier(c, second), true);
    expect("taken off twice", unlinkListNotifier(c, second), false);
    expect("what is off", stateOf(c, second), LIST_UNLINKED);
    freeListNotifier(c, second);
    expect("its record is free", allocListNotifier(c), second);
    expect("the list", list(c), `${fourth},${first}`);
    sound(c);
  }),
  check("listed notifiers of secondary TLBs are counted", ({ c, agent }) => {
    const count = (): number => Atomics.load(agent.words, c.subs + SUBS_SECONDARY_TLBS);
    const one = linked(c, LN_OP_SECONDARY_TLBS);
    linked(c);
    expect("one", count(), 1);
    beginRange(c, 0, 10);
    const two = linked(c, LN_OP_SECONDARY_TLBS);
    expect("one waits", count(), 1);
    cancelListNotifier(c, two);
    expect("one is taken back", count(), 1);
    endRange(c);
    unlinkListNotifier(c, one);
    expect("none", count(), 0);
  }),
  check("all that is deferred is done at the last end", ({ c, other, agent }) => {
    const [a, b] = [insertInterval(c, 0, 9), insertInterval(c, 0, 9)];
    beginRange(other, 0, 10);
    insertInterval(c, 20, 29);
    firstWait(removeIntervalOp(c, a));
    insertInterval(c, 20, 29);
    rings(agent, removeIntervalOp(c, b), other.agent.ownerId, () => endRange(other));
    expect("removed", hits(c, 0, 10), 0);
    expect("inserted", hits(c, 20, 30), 2);
    sound(c);
  }),
  check("a dead agent's intervals go", ({ c, other }) => {
    insertInterval(other, 0, 9);
    beginRange(c, 20, 30); // hits nobody
    insertInterval(other, 0, 9);
    endRange(c);
    beginRange(c, 0, 10);
    insertInterval(other, 0, 9);
    endRange(c);
    expect("told before", hits(c, 0, 10), 3);
    reapSubscriptions(c, other.agent.slot, other.agent.ownerId);
    expect("told", hits(c, 0, 10), 0);
    sound(c);
    disownSubscriptions(c);
    expect("gone without a use", isGone(c), true);
  }),
  check("what a dead agent has deferred is done at the last end", ({ c, other, agent }) => {
    const mine = insertInterval(c, 0, 9);
    const theirs = insertInterval(other, 0, 9);
    beginRange(c, 0, 10);
    firstWait(removeIntervalOp(other, theirs));
    insertInterval(other, 0, 9);
    reapSubscriptions(c, other.agent.slot, other.agent.ownerId);
    expect("not before", Atomics.load(agent.words, theirs + IV_GENERATION) !== 0, true);
    endRange(c);
    expect("freed", Atomics.load(agent.words, theirs + IV_GENERATION), 0);
    expect("told", hits(c, 0, 10), 1);
    sound(c);
    atOnce(removeIntervalOp(c, mine));
    disownSubscriptions(c);
    expect("gone without a use", isGone(c), true);
  }),
  check("a range without subscribers costs nothing, and one that closes late closes", ({ c, other }) => {
    beginRange(c, 0, 10);
    const node = insertInterval(other, 0, 9);
    expect("invalidating", isInvalidating(c, intervalSeq(c.agent, node)), true);
    endRange(c);
    expect("invalidating after the end", isInvalidating(c, intervalSeq(c.agent, node)), false);
    closeEpoch(c);
    sound(c);
  }),
  check("a grace period ends with the readers of before, and rings", ({ c, other, agent }) => {
    const domain = c.subs + SUBS_SRCU;
    const old = srcuReadLock(other.agent, domain);
    const [one, two] = [synchronizeSrcuOp(agent, domain), synchronizeSrcuOp(agent, domain)];
    const first = firstWait(one);
    const second = firstWait(two);
    const young = srcuReadLock(agent, domain); // readers that come later do not hold it up
    expect("whom it waits for", first.owner?.(), other.agent.ownerId);
    expect("whom the second waits for", second.owner?.(), other.agent.ownerId);
    expect("first", first.ready(), false);
    expect("second", second.ready(), false);
    arm(agent.words, first.queue, SLEEPER);
    srcuReadUnlock(other.agent, domain, old);
    expect("who waits is rung", Atomics.load(agent.words, first.queue) & (1 << SLEEPER), 0);
    expect("whom it waits for at last", first.owner?.(), 0);
    expect("first, at last", first.ready(), true);
    expect("second, at last", second.ready(), true);
    expect("the first is done", one.next().done, true);
    const both = srcuReadLock(other.agent, domain);
    expect("of the own", firstWait(synchronizeSrcuOp(agent, domain)).owner?.(), agent.ownerId);
    expect("of theirs", firstWait(synchronizeSrcuOp(other.agent, domain)).owner?.(), other.agent.ownerId);
    srcuReadUnlock(other.agent, domain, both);
    srcuReadUnlock(agent, domain, young);
  }),
];
