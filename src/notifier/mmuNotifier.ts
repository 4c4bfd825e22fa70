/** A notifier that hears of a whole space. Linux: struct mmu_notifier. */
import { MmError } from "../errors.ts";
import { loopOf } from "../sched/index.ts";
import type { MmuNotifierOps } from "./events.ts";
import type { ListNotifier } from "./layout.ts";
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
  #retained = true;

  constructor(ops: MmuNotifierOps, options: { accessed?: AccessedBitmap } = {}) {
    const { accessed } = options;
    if (accessed && (!Number.isSafeInteger(accessed.start) || accessed.bits.length * 32 < 1)) {
      throw new MmError(
        "EINVAL",
        "MmuNotifier",
        "accessed needs a start address and at least one word of bits",
      );
    }
    this.ops = ops;
    this.accessed = accessed;
  }

  /** Where it is registered, undefined before register() and after unregister(). */
  get notifiers(): Notifiers | undefined {
    return this.#notifiers;
  }

  /** @internal */
  get record(): ListNotifier {
    return this.#record;
  }

  /** @internal */
  attach(notifiers: Notifiers, record: ListNotifier): void {
    this.#notifiers = notifiers;
    this.#record = record;
    this.#retained = true;
  }

  /** @internal Returns whether it still kept the process alive. */
  detach(): boolean {
    this.#notifiers = undefined;
    this.#record = 0 as ListNotifier;
    return this.#retained;
  }

  /** Lets the process end although this notifier is registered. */
  unref(): this {
    if (this.#notifiers && this.#retained) loopOf(this.#notifiers.agent).release();
    this.#retained = false;
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#notifiers?.unregister(this);
  }
}
