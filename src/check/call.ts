/**
 * An operation of the simulated world that is called in either style: `yield* space.munmap(…)` in a generator function,
 * `await space.munmap(…)` in an async one. Nothing happens before one of the two.
 */
import type { Op } from "../sched/index.ts";

/** Whoever runs awaited calls. */
export interface CallHost {
  /** Runs `op` step by step on behalf of the agent that is running. */
  promise<T>(op: Op<T>): Promise<T>;
}

export class Call<T> implements PromiseLike<T> {
  readonly what: string;
  readonly #host: CallHost;
  readonly #make: () => Op<T>;
  #promise: Promise<T> | undefined;
  /** False: it was called, and neither awaited nor yielded to. */
  used = false;

  constructor(host: CallHost, what: string, make: () => Op<T>) {
    this.what = what;
    this.#host = host;
    this.#make = make;
  }

  [Symbol.iterator](): Op<T> {
    this.used = true;
    return this.#make();
  }

  #start(): Promise<T> {
    this.used = true;
    return (this.#promise ??= this.#host.promise(this.#make()));
  }

  // An awaitable is what this class is for; it is started by its first `then`.
  // oxlint-disable-next-line unicorn/no-thenable
  then<A = T, B = never>(
    fulfilled?: ((value: T) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#start().then(fulfilled, rejected);
  }

  catch<B = never>(rejected?: ((reason: unknown) => B | PromiseLike<B>) | null): Promise<T | B> {
    return this.#start().catch(rejected);
  }

  finally(after?: (() => void) | null): Promise<T> {
    return this.#start().finally(after);
  }
}
