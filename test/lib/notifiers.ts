/** Subscriptions of one space, seen from several agents of one thread. */
import { MmuNotifierEvent, type Notifiers } from "../../src/notifier/index.ts";
import type { MmError } from "../../src/errors.ts";
import { type Interval, IV_SEQ, type Subs, SUBS_DEFERRED, SUBS_SEQ } from "../../src/notifier/layout.ts";
import { nodeOfIntervalId, type IntervalNotifier } from "../../src/notifier/intervalNotifier.ts";
import { Notifiers as NotifiersClass } from "../../src/notifier/notifiers.ts";
import {
  checkSubscriptions,
  createSubscriptions,
  disownSubscriptions,
  openRanges,
} from "../../src/notifier/subscriptions.ts";
import type { MmuIntervalNotifierOps, MmuNotifierRange, RangeRequest } from "../../src/notifier/events.ts";
import { type Agent, HDR_MAX_AGENTS, type Op, waitOp, wakeQueue } from "../../src/sched/index.ts";
import { QUEUE_WORDS } from "../../src/sched/layout.ts";
import { attachTo, newArena, simulatedAgent, type TestArena, words } from "./arena.ts";

export interface Subscriber {
  readonly agent: Agent;
  readonly notifiers: Notifiers;
  /** What onError heard. */
  readonly errors: MmError[];
}

export interface NotifierWorld {
  readonly arena: TestArena;
  readonly subs: Subs;
  readonly agents: Subscriber[];
  /** S of linux-semantics.md 2.9. */
  readonly seq: () => number;
  /** n of 2.9. */
  readonly open: () => number;
  readonly deferred: () => number;
  readonly check: () => string | undefined;
  /** Preconditions: nothing is registered any more. */
  readonly dispose: () => void;
}

/** A space's subscriptions and `count` agents that use them. */
export function notifierWorld(
  count: number,
  options: { arena?: TestArena; simulated?: boolean; mayBlock?: readonly boolean[] } = {},
): NotifierWorld {
  const arena = options.arena ?? newArena();
  const all = Array.from({ length: count }, (_, k) =>
    options.simulated ? simulatedAgent(arena) : attachTo(arena, options.mayBlock?.[k] ?? true),
  );
  const maxAgents = Atomics.load(arena.words, HDR_MAX_AGENTS);
  const subs = createSubscriptions(all[0]!, arena.heap, maxAgents, 1);
  if (subs === 0) throw new Error("the test arena is full");
  const agents = all.map((agent) => {
    const notifiers = new NotifiersClass(agent, arena.heap, subs, undefined, 12);
    agent.reapers.push((slot, ownerId) => notifiers.reap(slot, ownerId));
    const errors: MmError[] = [];
    agent.onError = (error) => errors.push(error);
    return { agent, notifiers, errors };
  });
  const { context } = agents[0]!.notifiers;
  return {
    arena,
    subs,
    agents,
    seq: () => Atomics.load(arena.words, subs + SUBS_SEQ),
    open: () => openRanges(context),
    deferred: () => Atomics.load(arena.words, subs + SUBS_DEFERRED),
    check: () => checkSubscriptions(context),
    dispose: () => {
      disownSubscriptions(context);
      for (const { agent } of agents) if (!agent.detached) agent.detach();
    },
  };
}

export const nodeOf = (interval: IntervalNotifier): Interval => nodeOfIntervalId(interval.id);

/** The interval's own sequence: a, b of 2.9. */
export const ownSeq = (world: NotifierWorld, interval: IntervalNotifier): number =>
  Atomics.load(world.arena.words, nodeOf(interval) + IV_SEQ);

export const range = (start: number, end: number): RangeRequest => ({
  start,
  end,
  event: MmuNotifierEvent.Unmap,
});

/** Callbacks of an interval that does what the contract asks, and tells `log`. */
export const obedient = (
  log: (interval: IntervalNotifier, range: MmuNotifierRange, curSeq: number) => void = () => {},
): MmuIntervalNotifierOps => ({
  invalidate(interval, r, curSeq) {
    interval.setSeq(curSeq);
    log(interval, r, curSeq);
    return true;
  },
});

/** Something that callbacks wait for. */
export function gate(world: NotifierWorld): { readonly wait: () => Op<void>; readonly open: () => void } {
  const queue = words(world.arena, world.agents[0]!.agent, QUEUE_WORDS);
  let open = false;
  return {
    wait: () => waitOp(queue, () => open, "the device"),
    open: () => {
      open = true;
      wakeQueue(world.arena.words, queue);
    },
  };
}

/** Lets everything that is ready in the event loop run. */
export async function turnOfLoop(): Promise<void> {
  for (let k = 0; k < 3; k++) {
    await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setTimeout(resolve));
  }
}

/** What became of a promise so far. */
export function watch<T>(promise: Promise<T>): { readonly state: string } {
  const seen = { state: "pending" };
  promise.then(
    (value) => (seen.state = `fulfilled ${String(value)}`),
    (error: unknown) => (seen.state = `rejected ${(error as { code?: string }).code ?? String(error)}`),
  );
  return seen;
}
