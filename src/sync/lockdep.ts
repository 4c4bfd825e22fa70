/**
 * What debug mode finds out about subscribers' own locks. Linux: lockdep, and its pseudo-lock
 * __mmu_notifier_invalidate_range_start_map, which stands for "whatever invalidate_range_start may wait for".
 *
 * The map is taken by every start and every end of a range, by readBegin() and remove(), by unregister(), and by every
 * allocation that may reclaim, whether or not anybody has to wait this time. A lock that a callback takes inside comes
 * after it; a lock that is held around one of these comes before it. A lock that does both will deadlock some day, and is
 * reported when the second is seen, with both stacks, through onError: EDEADLK lockdep.
 *
 * Also here: a callback of a range that may not wait which tries to; reported with the stack of the try and of the start.
 *
 * What a lock has done stands in the arena, so that two agents can do the two halves. Nothing here runs, and nothing is
 * kept, outside debug mode.
 *
 * Limits: a lock taken with a promise (`await mutex.lock()`) is held by the agent, not by the function that awaited it.
 * An async operation is checked against locks of its own only, since those of other functions of the agent go on.
 */
import { MmError } from "../errors.ts";
import { type Agent, slotOfOwner, type Task } from "../sched/index.ts";

/** A lock of a subscriber: where its record lies, and what users call it. */
export interface SubscriberLock {
  /** Word that lockdep may use; 0 until it does. */
  readonly word: number;
  readonly name: string;
}

interface Held {
  readonly lock: SubscriberLock;
  readonly taken: Error;
  /** The operation that took it and goes on; undefined where the agent as a whole has it. */
  readonly task: Task | undefined;
}

/** What a lock has been seen doing. In the arena, twice: its owner id, and the stack as text. */
type Role = 0 | 1;
const INSIDE: Role = 0; // taken in a callback
const AROUND: Role = 1; // held where the map was taken
const ROLE_BY = 0; //      A  owner id of the agent that did it first, 0 = nobody
const ROLE_LENGTH = 1; //  A  bytes of text, stored last
const ROLE_TEXT = 2;
const TEXT_BYTES = 1200;
const ROLE_WORDS: number = ROLE_TEXT + TEXT_BYTES / 4;

const heldBy = new WeakMap<Agent, Held[]>();
/** Locks that have been reported, once is enough. */
const reported = new WeakMap<Agent, Set<number>>();

const stackOf = (error: Error): string => (error.stack ?? "").split("\n").slice(1).join("\n");

/** Notes that a subscriber's lock has been taken. Debug mode only. */
export function lockdepTook(agent: Agent, lock: SubscriberLock): void {
  const taken = new Error();
  const all = heldBy.get(agent) ?? [];
  heldBy.set(agent, all);
  // A lock() that was driven by itself has ended when its caller goes on.
  all.push({ lock, taken, task: agent.invalidating > 0 ? agent.current : undefined });
  if (agent.invalidating > 0) note(agent, lock, INSIDE, taken);
}

/** Notes that it has been given back. */
export function lockdepGave(agent: Agent, lock: SubscriberLock): void {
  const all = heldBy.get(agent);
  const k = all?.findLastIndex((held) => held.lock.word === lock.word) ?? -1;
  if (k >= 0) all!.splice(k, 1);
}

/** The map is taken: `what` may wait for whatever callbacks wait for. Debug mode only. */
export function lockdepMap(agent: Agent, what: string): void {
  const all = heldBy.get(agent);
  if (!all || all.length === 0) return;
  const { current } = agent;
  for (const { lock, taken, task } of all) {
    if (current?.mode === "async" && task !== current) continue;
    note(agent, lock, AROUND, taken, new Error(), what);
  }
}

/** Says that a callback of a range that may not wait tries to. Debug mode only. */
export function lockdepWaits(agent: Agent, what: string): void {
  const { unwaiting } = agent;
  if (!unwaiting) return;
  report(agent, `${what} may wait, and is asked for in a callback that must not`, [
    ["the callback was called", stackOf(unwaiting)],
    [`${what} was called`, stackOf(new Error())],
  ]);
}

function report(agent: Agent, sentence: string, stacks: readonly (readonly [string, string])[]): void {
  const text = stacks.map(([title, stack]) => `\n  ${title}:\n${stack}`).join("");
  agent.report(new MmError("EDEADLK", "lockdep", sentence + text));
}

/** Writes down what a lock does; reports it if somebody has seen it do the other. */
function note(agent: Agent, lock: SubscriberLock, role: Role, taken: Error, map?: Error, what = ""): void {
  const record = recordOf(agent, lock);
  if (record === 0) return;
  const w = agent.words;
  const mine = record + role * ROLE_WORDS;
  if (Atomics.compareExchange(w, mine + ROLE_BY, 0, agent.ownerId) === 0) {
    const text = map ? `${stackOf(taken)}\n  and ${what} was called:\n${stackOf(map)}` : stackOf(taken);
    const bytes = new TextEncoder().encode(text).subarray(0, TEXT_BYTES);
    agent.bytes.set(bytes, (mine + ROLE_TEXT) * 4);
    Atomics.store(w, mine + ROLE_LENGTH, bytes.length);
  }
  const other = record + (1 - role) * ROLE_WORDS;
  const by = Atomics.load(w, other + ROLE_BY);
  if (by === 0) return;
  const seen = reported.get(agent) ?? new Set();
  reported.set(agent, seen);
  if (seen.has(lock.word)) return;
  seen.add(lock.word);
  const start = (other + ROLE_TEXT) * 4;
  const theirs = new TextDecoder().decode(
    agent.bytes.slice(start, start + Atomics.load(w, other + ROLE_LENGTH)),
  );
  const here = map ? `${stackOf(taken)}\n  and ${what} was called:\n${stackOf(map)}` : stackOf(taken);
  const [inside, around] = role === INSIDE ? [here, theirs] : [theirs, here];
  const whose = (roleOf: Role): string =>
    roleOf === role || by === agent.ownerId ? "" : ` in agent ${slotOfOwner(by)}`;
  report(
    agent,
    `${lock.name} is taken in an invalidation callback and held around what may wait for one: give it back before`,
    [
      [`taken in a callback${whose(INSIDE)}`, inside],
      [`held around${whose(AROUND)}`, around],
    ],
  );
}

/** The record of a lock, made when it is first needed; 0 if the arena is full. */
function recordOf(agent: Agent, lock: SubscriberLock): number {
  const w = agent.words;
  const known = Atomics.load(w, lock.word);
  if (known !== 0) return known;
  const made = agent.allocMessage?.(2 * ROLE_WORDS) ?? 0;
  if (made === 0) return 0;
  // One that loses the race leaves its record unused: this is debug mode.
  const winner = Atomics.compareExchange(w, lock.word, 0, made);
  return winner === 0 ? made : winner;
}
