/**
 * A notifier that hears of a whole space. Linux: struct mmu_notifier.
 *
 *   state        users   from -> to
 *   new          0       -> registered by register() or get()
 *   registered   > 0     -> put by the last put(); -> new by unregister()
 *   put          0       off the list; callbacks that run already may still be running; -> new, freeNotifier() called,
 *                        when a grace period has passed
 */
import { MmError } from "../errors.ts";
import { loopOf } from "../sched/index.ts";
import type { MmuNotifierOps } from "./events.ts";
import { type ListNotifier, LN_OP_END, LN_OP_START } from "./layout.ts";
import type { Notifiers } from "./notifiers.ts";

/**
 * Accessed bits that others can test and clear without asking this agent: `bits` comes from memory.allocShared(), bit
 * k stands for the page at `start + k * pageSize`, and the subscriber sets it with Atomics.or.
 */
export interface AccessedBitmap {
  /** Bytes; page aligned. */
  readonly start: number;
  readonly length: number;
  readonly bits: Int32Array;
}

export class MmuNotifier implements AsyncDisposable {
  readonly ops: MmuNotifierOps;
  readonly accessed: AccessedBitmap | undefined;
  #notifiers: Notifiers | undefined;
  #record = 0 as ListNotifier;
  #generation = 0;
  #users = 0;
  /** It keeps the process alive while it is registered. */
  #retains = true;
  /** Starts that other agents' ranges had here, less their ends, by the agents' slots. */
  readonly #open = new Map<number, number>();

  constructor(ops: MmuNotifierOps, options: { accessed?: AccessedBitmap } = {}) {
    const { accessed } = options;
    if (
      accessed &&
      !(Number.isSafeInteger(accessed.start) && accessed.length > 0 && accessed.bits.length > 0)
    ) {
      const why = "accessed needs a start address, a length above 0, and at least one word of bits";
      throw new MmError("EINVAL", "MmuNotifier", why);
    }
    this.ops = ops;
    this.accessed = accessed;
  }

  /** Where it is registered, undefined before register() and after unregister(). */
  get notifiers(): Notifiers | undefined {
    return this.#notifiers;
  }

  /** register() counts as one, each get() that finds it as one more; put() takes one away. 0: not registered, or put. */
  get users(): number {
    return this.#users;
  }

  /** @internal */
  addUsers(delta: number): void {
    this.#users += delta;
  }

  /** @internal */
  get record(): ListNotifier {
    return this.#record;
  }

  /** @internal Differs for each registration. */
  get generation(): number {
    return this.#generation;
  }

  /** @internal Notes a call asked for by agent `slot`. False: an end whose start never came, because that agent died. */
  count(op: number, slot: number): boolean {
    if (op === LN_OP_START) this.#open.set(slot, (this.#open.get(slot) ?? 0) + 1);
    if (op !== LN_OP_END || !this.ops.invalidateRangeStart) return true;
    const open = this.#open.get(slot) ?? 0;
    if (open > 0) this.#open.set(slot, open - 1);
    return open > 0;
  }

  /** @internal */
  attach(notifiers: Notifiers, record: ListNotifier, generation: number): void {
    this.#notifiers = notifiers;
    this.#record = record;
    this.#generation = generation;
    this.#users = 1;
    this.#open.clear();
  }

  /** @internal */
  detach(): void {
    this.#notifiers = undefined;
    this.#record = 0 as ListNotifier;
    this.#users = 0;
  }

  /** @internal */
  get retains(): boolean {
    return this.#retains;
  }

  /** Lets the process end although this notifier is registered, now or later. */
  unref(): this {
    if (this.#notifiers && this.#retains) loopOf(this.#notifiers.agent).release();
    this.#retains = false;
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#notifiers?.unregister(this);
  }
}
