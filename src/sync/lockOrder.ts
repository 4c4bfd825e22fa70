/**
 * The lock order of the whole system, as data that lockdep reads. Linux: lockdep, and the table on top of mm/rmap.c.
 *
 *   fileMutex            mutex, per file          a file's extent, while it changes
 *   mmapLock             rwsem, per space       vmas, the shape of the page tables
 *     folioLock          bit, per frame         a frame's place in its file, its contents while they are read in
 *       fileLock         spin, per file         the file's tree of vmas (i_mmap_rwsem)
 *         subscriptions  spin, per notifiers    sequence, open counts, interval tree, lists
 *           registry     spin, per memory       tables of spaces and files, anon_vmas that come and go
 *             family     spin, per anon_vma family   the tree of vmas that private pages may be mapped by (anon_vma->rwsem)
 *               heap     spin, per memory       arena blocks
 *                 subscriber  a secondary MMU's own lock, taken in its callbacks under any of the above
 *
 * A lock is taken only while every lock held ranks before it. Locks of one class do not nest, except folio locks,
 * of which all but the first are only tried. Agents' mark locks are leaves inside sched/ and take nothing.
 */
import { panic } from "../errors.ts";
import type { Agent, HeldLock } from "../sched/index.ts";

export const LockRank = {
  fileMutex: 0,
  mmapLock: 1,
  folioLock: 2,
  fileLock: 3,
  subscriptions: 4,
  registry: 5,
  family: 6,
  heap: 7,
  subscriber: 8,
} as const;
export type LockRank = (typeof LockRank)[keyof typeof LockRank];

const nameOf = (rank: number): string =>
  Object.entries(LockRank).find(([, r]) => r === rank)?.[0] ?? `lock ${rank}`;

/** Panics if the running task may not take a lock of this rank: before it waits for it, because it might wait for itself. */
export function lockdepCheck(agent: Agent, rank: LockRank): void {
  const held = agent.current?.held;
  if (!agent.debug || !held) return;
  const inverted = held.find((h) => h.rank > rank || (h.rank === rank && rank !== LockRank.folioLock));
  if (inverted === undefined) return;
  panic(
    `lock order: ${nameOf(rank)} taken while ${namesOf(held)} held by agent ${agent.slot}` +
      `\n  ${nameOf(inverted.rank)} was taken:\n${stackOf(inverted.taken)}\n  and now ${nameOf(rank)}:\n${stackOf(new Error())}`,
  );
}

const namesOf = (held: readonly HeldLock[]): string => held.map((h) => nameOf(h.rank)).join(", ");
const stackOf = (error: Error): string => (error.stack ?? "").split("\n").slice(1).join("\n");

/** Notes that the running task takes a lock; panics on an inversion. Debug mode only. */
export function lockdepAcquire(agent: Agent, rank: LockRank): void {
  lockdepCheck(agent, rank);
  if (agent.debug) agent.current?.held.push({ rank, taken: new Error() });
}

/** Notes that the running task gives a lock back. */
export function lockdepRelease(agent: Agent, rank: LockRank): void {
  const held = agent.current?.held;
  if (!agent.debug || !held) return;
  const k = held.findLastIndex((h) => h.rank === rank);
  if (k < 0) panic(`lock order: ${nameOf(rank)} given back by agent ${agent.slot}, which does not hold it`);
  held.splice(k, 1);
}

/** Panics if the running task holds any lock: what follows waits for the host. Debug mode only. */
export function assertNoLocks(agent: Agent, what: string): void {
  const held = agent.current?.held;
  const last = held?.at(-1);
  if (agent.debug && last)
    panic(`${what} while ${namesOf(held!)} held\n  ${nameOf(last.rank)} was taken:\n${stackOf(last.taken)}`);
}
