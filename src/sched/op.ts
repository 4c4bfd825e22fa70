/**
 * Operations as coroutines. Every operation that may wait is written once, as a generator that yields
 * effects; a driver (drivers.ts, checker.ts) runs it. Plain functions never wait.
 *
 * Rules for an `Op`
 *   O1  It can be unwound at every effect: reserve first, change afterwards, restore in `catch`/`finally`.
 *   O2  `finally` never yields.
 *   O3  While it holds a lock or has an invalidation open it yields no "host" effect.
 *   O4  No spinlock is held across an effect.
 */

/** Wait until `ready()` answers true. Whoever makes it true rings the agents that are armed in `queue`. */
export interface WaitEffect {
  readonly kind: "wait";
  /** Wait-queue slot in the arena, or 0: whoever makes it true rings this agent by name. */
  readonly queue: number;
  /** May take what it waits for (a lock): the driver goes on at once when it answers true, and never asks again. */
  readonly ready: () => boolean;
  /** Owner id of the agent that is waited for, or 0; read again while waiting, to notice its death. */
  readonly owner: (() => number) | undefined;
  /** For reports: "mmapLock", "acknowledgement of agent 3". */
  readonly what: string;
}

/** Ask the host: I/O, a user's promise. `sync` is used where it exists; the operation holds no lock. */
export interface HostEffect {
  readonly kind: "host";
  readonly sync: (() => void) | undefined;
  readonly start: () => Promise<void>;
  readonly what: string;
  /** Others may be waiting for this operation meanwhile: it owes an answer, has a range open, or holds a lock after all. */
  readonly owed?: boolean;
}

/** A place where the checker may let another agent go on. Other drivers continue at once. */
export interface PointEffect {
  readonly kind: "point";
  readonly what: string;
}

export type Effect = WaitEffect | HostEffect | PointEffect;

/** An operation in progress. `yield*` it, or hand it to a driver. */
export type Op<T> = Generator<Effect, T, void>;

/** Waits until `ready()` is true. Preconditions: no spinlock held. */
export function* waitOp(queue: number, ready: () => boolean, what: string, owner?: () => number): Op<void> {
  if (!ready()) yield { kind: "wait", queue, ready, owner, what };
}

/** True for what a callback may return instead of a value: an operation still to be run. */
export function isOp(value: unknown): value is Op<unknown> {
  return (
    typeof value === "object" &&
    value !== null &&
    typeof (value as { next?: unknown }).next === "function" &&
    typeof (value as { throw?: unknown }).throw === "function" &&
    typeof (value as { [Symbol.iterator]?: unknown })[Symbol.iterator] === "function"
  );
}

export function isPromise(value: unknown): value is PromiseLike<unknown> {
  return (
    typeof value === "object" && value !== null && typeof (value as { then?: unknown }).then === "function"
  );
}
