/** An interval notifier as its users see it. Linux: struct mmu_interval_notifier. */
import { MmError } from "../errors.ts";
import { type Immediate, loopOf, type Op, runAsync, runBlocking, runTry } from "../sched/index.ts";
import { lockdepMap } from "../sync/index.ts";
import type { IntervalId, MmuIntervalNotifierOps } from "./events.ts";
import { type Interval, IV_GENERATION, IV_SEQ } from "./layout.ts";
import {
  intervalSeq,
  isInvalidating,
  removeIntervalOp,
  type SubsContext,
  waitForEpochOp,
} from "./subscriptions.ts";

interface IntervalOperations {
  readBegin(): Op<number>;
  remove(): Op<void>;
}

/** How `id` is made of a record and its generation. */
const ID_GENERATION = 2 ** 31;
export const intervalIdOf = (node: Interval, generation: number): IntervalId =>
  generation * ID_GENERATION + node;
export const nodeOfIntervalId = (id: IntervalId): Interval => (id % ID_GENERATION) as Interval;
export const generationOfIntervalId = (id: IntervalId): number => Math.floor(id / ID_GENERATION);

/**
 * A subscription to one range, with a sequence number that tells a fill whether it was overtaken by an invalidation:
 *
 *     const seq = await interval.readBegin();
 *     ... read the page tables ...
 *     // under the lock that invalidate() also takes; within one agent: with no await in between
 *     if (interval.readRetry(seq)) start over; else install the translation
 */
export class IntervalNotifier implements AsyncDisposable {
  readonly id: IntervalId;
  /** Closed interval, bytes. It is an address range: it needs no mapping and does not follow mremap. */
  readonly start: number;
  readonly last: number;
  readonly #c: SubsContext;
  readonly #node: Interval;
  readonly #generation: number;
  readonly #ops: MmuIntervalNotifierOps | undefined;
  readonly #forget: (interval: IntervalNotifier) => void;
  /** @internal Its number in the owner's registry. */
  local = -1;
  #removed = false;
  #retained: boolean;
  #callbacks = 0;
  // Made when they are asked for: there may be a hundred thousand intervals.
  #sync: Immediate<IntervalOperations> | undefined;
  #try: Immediate<IntervalOperations> | undefined;
  #operations: IntervalOperations | undefined;

  /** @internal */
  constructor(
    c: SubsContext,
    id: IntervalId,
    start: number,
    last: number,
    ops: MmuIntervalNotifierOps | undefined,
    forget: (interval: IntervalNotifier) => void,
  ) {
    this.#c = c;
    this.id = id;
    this.start = start;
    this.last = last;
    this.#node = nodeOfIntervalId(id);
    this.#generation = generationOfIntervalId(id);
    this.#ops = ops;
    this.#retained = ops !== undefined;
    this.#forget = forget;
  }

  /** The same operations, blocking. `interval.sync.readBegin()` returns the number. */
  get sync(): Immediate<IntervalOperations> {
    return (this.#sync ??= {
      readBegin: () => this.#readBeginNow(),
      remove: () => runBlocking(this.#c.agent, this.#removeOp()),
    });
  }

  /** The same operations, which never wait: EAGAIN instead. */
  get try(): Immediate<IntervalOperations> {
    return (this.#try ??= {
      readBegin: () => runTry(this.#c.agent, this.#readBeginOp()),
      remove: () => runTry(this.#c.agent, this.#removeOp()),
    });
  }

  /** @internal The operations themselves, for those that drive them. */
  get operations(): IntervalOperations {
    return (this.#operations ??= {
      readBegin: () => this.#readBeginOp(),
      remove: () => this.#removeOp(),
    });
  }

  /** @internal The callbacks, undefined where the interval was registered by another agent. */
  get ops(): MmuIntervalNotifierOps | undefined {
    return this.#ops;
  }

  /** @internal Brackets a callback, coroutines included: setSeq() is allowed inside. */
  enterCallback(): void {
    this.#callbacks++;
  }

  /** @internal */
  leaveCallback(): void {
    this.#callbacks--;
  }

  #live(operation: string): void {
    if (this.#removed || Atomics.load(this.#c.agent.words, this.#node + IV_GENERATION) !== this.#generation) {
      throw new MmError("ESRCH", operation, "this interval notifier has been removed");
    }
  }

  /**
   * Begins a fill and returns the number for readRetry(). If an invalidation that is still open has hit this interval, it
   * waits until no range of the space is open any more: overlapping ones elsewhere can make that long, see
   * tryReadBegin(). EDEADLK in a callback; ESRCH once removed. Linux: mmu_interval_read_begin().
   */
  readBegin(): Promise<number> {
    return runAsync(this.#c.agent, this.#readBeginOp());
  }

  *#readBeginOp(): Op<number> {
    this.#live("readBegin");
    if (this.#c.agent.debug) lockdepMap(this.#c.agent, "readBegin");
    const seq = intervalSeq(this.#c.agent, this.#node);
    if (isInvalidating(this.#c, seq)) yield* waitForEpochOp(this.#c, seq);
    return seq;
  }

  /** The blocking form: without an invalidation there is nothing to drive. */
  #readBeginNow(): number {
    this.#live("readBegin");
    this.#c.agent.checkNotInCallback("readBegin");
    if (this.#c.agent.debug) lockdepMap(this.#c.agent, "readBegin");
    return this.tryReadBegin() ?? runBlocking(this.#c.agent, this.#readBeginOp());
  }

  /** As readBegin(), without waiting: undefined where that would wait. Costs two loads. Errors: ESRCH once removed here. */
  tryReadBegin(): number | undefined {
    if (this.#removed) this.#live("tryReadBegin");
    const seq = intervalSeq(this.#c.agent, this.#node);
    return isInvalidating(this.#c, seq) ? undefined : seq;
  }

  /**
   * True: the range has been invalidated since readBegin(); start over. Call it under the lock that invalidate() also
   * takes, right before the translation is installed. Linux: mmu_interval_read_retry(). Never waits.
   */
  readRetry(seq: number): boolean {
    return this.#overtaken(seq);
  }

  /** As readRetry() without the lock: true is certain, false is a hint. Linux: mmu_interval_check_retry(). */
  checkRetry(seq: number): boolean {
    return this.#overtaken(seq);
  }

  #overtaken(seq: number): boolean {
    // The number first: once an interval is removed, another may have its record, and even its number.
    if (intervalSeq(this.#c.agent, this.#node) !== seq) return true;
    return Atomics.load(this.#c.agent.words, this.#node + IV_GENERATION) !== this.#generation;
  }

  /** Tells readers that they were overtaken. Unconditionally, inside invalidate(); elsewhere EPERM. Linux: mmu_interval_set_seq(). */
  setSeq(curSeq: number): void {
    if (this.#callbacks === 0) {
      throw new MmError("EPERM", "setSeq", "only inside the invalidate() callback of this interval");
    }
    Atomics.store(this.#c.agent.words, this.#node + IV_SEQ, curSeq);
  }

  /** Unregisters; returns when no callback can run any more. Linux: mmu_interval_notifier_remove(). Own agent only (EPERM). */
  remove(): Promise<void> {
    return runAsync(this.#c.agent, this.#removeOp());
  }

  *#removeOp(): Op<void> {
    this.#live("remove");
    if (!this.#ops)
      throw new MmError("EPERM", "remove", "only the agent that inserted an interval removes it");
    if (this.#c.agent.debug) lockdepMap(this.#c.agent, "remove");
    this.#removed = true;
    try {
      yield* removeIntervalOp(this.#c, this.#node);
    } catch (error) {
      this.#removed = false;
      throw error;
    }
    loopOf(this.#c.agent).unlisten(this.#retained);
    this.#retained = false;
    this.#forget(this);
  }

  /** Lets the process end although this interval is registered. */
  unref(): this {
    if (this.#retained) loopOf(this.#c.agent).release();
    this.#retained = false;
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#removed) await this.remove();
  }
}
