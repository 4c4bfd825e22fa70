/**
 * The sync row and its wait queues as scenarios: locks, grace periods and sequence counts between threads that come between
 * any two accesses to shared words, with the real blocking driver. Nothing here is wrong.
 */
import { type Cell, type Scenario, scenario, type World } from "../../../src/check/index.ts";
import { type Agent, type Op, QUEUE_WORDS, waitOp, wakeQueue } from "../../../src/sched/index.ts";
import {
  beginWrite,
  endWrite,
  lockMutexOp,
  lockReadOp,
  LockRank,
  lockSpin,
  lockWriteOp,
  MUTEX_WORDS,
  readChanged,
  readSequence,
  rwSemWords,
  srcuReadLock,
  srcuReadUnlock,
  srcuWords,
  synchronizeSrcuOp,
  tryLockMutex,
  tryLockRead,
  tryLockWrite,
  unlockMutex,
  unlockRead,
  unlockSpin,
  unlockWrite,
} from "../../../src/sync/index.ts";
import { RW_HANDOFF } from "../../../src/sync/rwsem.ts";
import { SharedWords } from "./everyAccess.ts";

const RANK = LockRank.mmapLock;

/** What an agent of these scenarios has. */
export interface Hand {
  readonly world: World;
  readonly words: SharedWords;
  readonly agent: Agent;
  /** The lock, or what else is looked at: zeros at the beginning. */
  readonly at: number;
  /** Who is inside: readers count 1, a writer 100. */
  readonly inside: Cell<number>;
  readonly data: readonly [Cell<number>, Cell<number>];
}

type Doing = (hand: Hand) => Op<void>;

interface Options {
  readonly size: (maxAgents: number) => number;
  /** Each in a thread of its own. */
  readonly agents: Record<string, Doing>;
  readonly setup?: (hand: Hand) => void;
  /** Of the words, when everybody has ended: not 0 is left behind. Default: all. */
  readonly atRest?: (word: number) => boolean;
}

export const between = (name: string, { size, agents, setup, atRest = () => true }: Options): Scenario =>
  scenario<Omit<Hand, "agent">>({
    name,
    tracked: true,
    setup(world) {
      const words = new SharedWords(world);
      const count = size(words.maxAgents);
      const hand = {
        world,
        words,
        at: words.alloc(count),
        inside: world.cell("inside", 0),
        data: [world.cell("first", 0), world.cell("second", 0)] as const,
      };
      setup?.({ ...hand, agent: world.run.agentOf(0) });
      return hand;
    },
    agents: Object.entries(agents).map(([agentName, doing], thread) => ({
      name: agentName,
      thread,
      run: (hand) => doing({ ...hand, agent: hand.world.run.agentOf(thread) }),
    })),
    final({ world, at, words, inside }) {
      if (inside.peek() !== 0) return "somebody is inside";
      const all = world.run.agentOf(0).words.subarray(at, at + size(words.maxAgents));
      const left = all.findIndex((value, word) => value !== 0 && atRest(word));
      return left < 0 ? undefined : `word ${left} is ${all[left]} at the end`;
    },
  });

/** Alone inside, for a step or two. */
export function* alone({ world, inside, data: [first, second] }: Hand): Op<void> {
  if (inside.value !== 0) world.fail("it is not alone");
  inside.value += 100;
  first.value++;
  yield* world.point("is inside");
  second.value++;
  if (inside.value !== 100) world.fail("it is not alone any more");
  inside.value -= 100;
}

/** Inside with others that look, for a step or two. */
export function* looking({ world, inside, data: [first, second] }: Hand): Op<void> {
  if (inside.value >= 100) world.fail("it reads beside a writer");
  inside.value++;
  const seen = first.value;
  yield* world.point("reads");
  if (inside.value >= 100) world.fail("a writer came while it reads");
  if (second.value !== seen) world.fail("what it reads is torn");
  inside.value--;
}

const SPIN: Doing = function* (hand) {
  const { words, agent, at } = hand;
  yield* words.each(agent, "takes it", () => lockSpin(agent, at));
  yield* alone(hand);
  yield* words.each(agent, "gives it back", () => unlockSpin(agent, at));
};

const MUTEX: Doing = function* (hand) {
  const { words, agent, at } = hand;
  yield* words.blocking(agent, () => lockMutexOp(agent, at, "the mutex"));
  yield* alone(hand);
  yield* words.each(agent, "gives it back", () => unlockMutex(agent, at));
};

const TRIES_MUTEX: Doing = function* (hand) {
  const { words, agent, at } = hand;
  if (!(yield* words.each(agent, "tries", () => tryLockMutex(agent, at)))) return;
  yield* alone(hand);
  yield* words.each(agent, "gives it back", () => unlockMutex(agent, at));
};

const WRITES: Doing = function* (hand) {
  const { words, agent, at } = hand;
  yield* words.blocking(agent, () => lockWriteOp(agent, at, RANK, "the semaphore"));
  yield* alone(hand);
  yield* words.each(agent, "gives it back", () => unlockWrite(agent, at, RANK));
};

const READS: Doing = function* (hand) {
  const { words, agent, at } = hand;
  yield* words.blocking(agent, () => lockReadOp(agent, at, RANK, "the semaphore"));
  yield* looking(hand);
  yield* words.each(agent, "gives it back", () => unlockRead(agent, at, RANK));
};

const TRIES_TO_READ: Doing = function* (hand) {
  const { words, agent, at } = hand;
  if (!(yield* words.each(agent, "tries", () => tryLockRead(agent, at, RANK)))) return;
  yield* looking(hand);
  yield* words.each(agent, "gives it back", () => unlockRead(agent, at, RANK));
};

const TRIES_TO_WRITE: Doing = function* (hand) {
  const { words, agent, at } = hand;
  if (!(yield* words.each(agent, "tries", () => tryLockWrite(agent, at, RANK)))) return;
  yield* alone(hand);
  yield* words.each(agent, "gives it back", () => unlockWrite(agent, at, RANK));
};

/**
 * Asks a few times, and gives up, as an operation does that may not wait, or is told to end. `long`: it has asked so often that it
 * is next.
 */
const givesUp = (
  lock: (hand: Hand) => Op<void>,
  inside: Doing,
  unlock: (hand: Hand) => void,
  long = false,
): Doing =>
  function* (hand) {
    const { words, agent, at } = hand;
    const has = yield* words.each(agent, "asks, and gives up", () => {
      const op = lock(hand);
      let r = op.next();
      for (let k = 0; k < 2 && r.done !== true; k++)
        if (r.value.kind !== "wait" || r.value.ready()) r = op.next();
        else if (long) Atomics.compareExchange(agent.words, at + RW_HANDOFF, 0, agent.ownerId);
      if (r.done === true) return true;
      try {
        op.throw(new Error("given up"));
      } catch {
        // As it should.
      }
      return false;
    });
    if (!has) return;
    yield* inside(hand);
    yield* words.each(agent, "gives it back", () => unlock(hand));
  };

const GIVES_UP_WRITING = givesUp(
  ({ agent, at }) => lockWriteOp(agent, at, RANK, "the semaphore"),
  alone,
  ({ agent, at }) => unlockWrite(agent, at, RANK),
);
const GIVES_UP_WRITING_LATE = givesUp(
  ({ agent, at }) => lockWriteOp(agent, at, RANK, "the semaphore"),
  alone,
  ({ agent, at }) => unlockWrite(agent, at, RANK),
  true,
);
const GIVES_UP_READING_LATE = givesUp(
  ({ agent, at }) => lockReadOp(agent, at, RANK, "the semaphore"),
  looking,
  ({ agent, at }) => unlockRead(agent, at, RANK),
  true,
);

/** The waiter in thread 1 has tried in vain for long, and is next. */
const HANDED_OFF = ({ world, at }: Hand): void => {
  Atomics.store(world.run.agentOf(0).words, at + RW_HANDOFF, world.run.agentOf(1).ownerId);
};
/** Fast paths off: the slow ones are reached by the same program. */
const SLOWLY = ({ world }: Hand): void => {
  for (const thread of [0, 1]) world.run.agentOf(thread).fastPaths = false;
};

const SEMAPHORE = { size: rwSemWords };
/** Bits of those that have gone on without being rung are left in queues. */
const notIn =
  (queue: number) =>
  (word: number): boolean =>
    word < queue || word >= queue + QUEUE_WORDS;

const semaphore = (name: string, agents: Record<string, Doing>, setup?: (hand: Hand) => void): Scenario =>
  between(name, { ...SEMAPHORE, agents, ...(setup ? { setup } : {}), atRest: notIn(2) });

/** Waits for the first word, with a queue behind it. */
const WAITS: Doing = ({ words, agent, at }) =>
  words.blocking(agent, () => waitOp(at + 1, () => Atomics.load(agent.words, at) === 1, "the word"), "waits");
const SAYS_SO: Doing = ({ words, agent, at }) =>
  words.each(agent, "says so", () => {
    Atomics.store(agent.words, at, 1);
    wakeQueue(agent.words, at + 1);
  });

/** Uses what the first cell names, unless it is among what the second says is free. */
const USES: Doing = function* ({ world, words, agent, at, data: [current, freed] }) {
  const index = yield* words.each(agent, "begins to read", () => srcuReadLock(agent, at));
  const used = current.value;
  yield* world.point("uses it");
  if ((freed.value & (1 << used)) !== 0) world.fail("it uses what has been freed");
  yield* words.each(agent, "has read", () => srcuReadUnlock(agent, at, index));
};
const FREES: Doing = function* ({ words, agent, at, data: [current, freed] }) {
  const old = current.value++;
  yield* words.blocking(agent, () => synchronizeSrcuOp(agent, at), "waits for readers");
  freed.value |= 1 << old;
};
const gracePeriod = (name: string, agents: Record<string, Doing>): Scenario =>
  between(name, { size: srcuWords, agents, atRest: (word) => word > QUEUE_WORDS });

/** Two words behind a sequence count. */
const WRITES_BOTH: Doing = function* ({ words, agent, at }) {
  for (const value of [1, 2])
    yield* words.each(agent, "writes", () => {
      beginWrite(agent, at);
      Atomics.store(agent.words, at + 1, value);
      Atomics.store(agent.words, at + 2, value);
      endWrite(agent, at);
    });
};
const READS_BOTH: Doing = function* ({ world, words, agent, at }) {
  for (;;) {
    const seen = yield* words.each(agent, "reads", () => {
      const seq = readSequence(agent, at);
      const both = [Atomics.load(agent.words, at + 1), Atomics.load(agent.words, at + 2)];
      return readChanged(agent, at, seq) ? undefined : both;
    });
    if (seen) {
      if (seen[0] !== seen[1]) world.fail("what it has read is torn");
      return;
    }
    yield* world.giveWay();
  }
};

export const LOCKS: readonly Scenario[] = [
  between("a spinlock of two", { size: () => 1, agents: { one: SPIN, two: SPIN } }),
  between("a spinlock of three", { size: () => 1, agents: { one: SPIN, two: SPIN, three: SPIN } }),
  between("one waits in a queue", {
    size: () => 1 + QUEUE_WORDS,
    agents: { waits: WAITS, says: SAYS_SO },
    atRest: (word) => word > QUEUE_WORDS,
  }),
  between("two wait in a queue", {
    size: () => 1 + QUEUE_WORDS,
    agents: { waits: WAITS, "waits too": WAITS, says: SAYS_SO },
    atRest: (word) => word > QUEUE_WORDS,
  }),
  between("a mutex of two", {
    size: () => MUTEX_WORDS,
    agents: { one: MUTEX, two: MUTEX },
    atRest: notIn(1),
  }),
  between("a mutex of two, and one that tries", {
    size: () => MUTEX_WORDS,
    agents: { one: MUTEX, two: MUTEX, tries: TRIES_MUTEX },
    atRest: notIn(1),
  }),
  semaphore("two writers", { one: WRITES, two: WRITES }),
  semaphore("a reader and a writer", { reader: READS, writer: WRITES }),
  semaphore("a reader and a writer, slowly", { reader: READS, writer: WRITES }, SLOWLY),
  semaphore("two readers and a writer", { one: READS, two: READS, writer: WRITES }),
  semaphore("a reader and two writers", { reader: READS, one: WRITES, two: WRITES }),
  semaphore("a reader, a writer that tries, and a reader", {
    one: READS,
    tries: TRIES_TO_WRITE,
    two: READS,
  }),
  semaphore("a writer, a reader that tries, and a writer", {
    one: WRITES,
    tries: TRIES_TO_READ,
    two: WRITES,
  }),
  semaphore("a reader, and a writer that gives up before another reader", {
    one: READS,
    "gives up": GIVES_UP_WRITING,
    two: READS,
  }),
  semaphore("a writer, whose turn it is, and a reader", { reader: READS, writer: WRITES }, HANDED_OFF),
  semaphore("a reader, whose turn it is, and a writer", { writer: WRITES, reader: READS }, HANDED_OFF),
  semaphore("a writer that has waited for long gives up between a writer and a reader", {
    one: WRITES,
    "gives up": GIVES_UP_WRITING_LATE,
    two: READS,
  }),
  semaphore("a reader that has waited for long gives up between two writers", {
    one: WRITES,
    "gives up": GIVES_UP_READING_LATE,
    two: WRITES,
  }),
  gracePeriod("a grace period beside a reader", { uses: USES, frees: FREES }),
  gracePeriod("a grace period beside two readers", { uses: USES, "uses too": USES, frees: FREES }),
  gracePeriod("two grace periods beside a reader", { uses: USES, frees: FREES, "frees too": FREES }),
  between("a sequence count", {
    size: () => 3,
    agents: { writes: WRITES_BOTH, reads: READS_BOTH },
    atRest: () => false,
  }),
];
