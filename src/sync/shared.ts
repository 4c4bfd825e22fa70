/**
 * Locks for callbacks and drivers of secondary MMUs that several agents share. Objects without state of their own: all
 * of it is in the words, which come from memory.allocShared() and begin as zeros.
 */
import { MmError } from "../errors.ts";
import { type Agent, type Immediate, type Op, runAsync, syncFacet, tryFacet } from "../sched/index.ts";
import { LockRank } from "./lockOrder.ts";
import { lockMutexOp, MUTEX_WORDS, tryLockMutex, unlockMutex } from "./mutex.ts";
import { lockReadOp, lockWriteOp, rwSemWords, tryLockRead, unlockRead, unlockWrite } from "./rwsem.ts";

/** A PhysicalMemory. */
interface LockHost {
  readonly agent: Agent;
}

function slotOf(host: LockHost, words: Int32Array, needed: number): number {
  if (words.buffer !== host.agent.words.buffer || words.length < needed) {
    throw new MmError("EINVAL", "lock", `needs ${needed * 4} bytes from memory.allocShared()`);
  }
  return words.byteOffset >> 2;
}

/** A mutex over `Mutex.BYTES` bytes. `lockOp()` is for callbacks that are operations. Linux: struct mutex. */
export class Mutex {
  static readonly BYTES: number = MUTEX_WORDS * 4;
  readonly sync: Immediate<{ lock(): Op<void> }>;
  readonly try: Immediate<{ lock(): Op<void> }>;
  readonly #agent: Agent;
  readonly #at: number;

  constructor(host: LockHost, words: Int32Array) {
    this.#agent = host.agent;
    this.#at = slotOf(host, words, MUTEX_WORDS);
    const operations = { lock: (): Op<void> => this.lockOp() };
    this.sync = syncFacet(this.#agent, operations);
    this.try = tryFacet(this.#agent, operations);
  }

  /** Takes it if it is free. Never waits. Errors: EOWNERDEAD. */
  tryLock(): boolean {
    return tryLockMutex(this.#agent, this.#at);
  }

  lockOp(): Op<void> {
    return lockMutexOp(this.#agent, this.#at, "a mutex");
  }

  /** Takes it; waits while another has it. Errors: EOWNERDEAD. */
  lock(): Promise<void> {
    return runAsync(this.#agent, this.lockOp());
  }

  /** Gives it back. Errors: EPERM unless this agent holds it. */
  unlock(): void {
    unlockMutex(this.#agent, this.#at);
  }
}

/** A read-write semaphore over `RwSem.bytes(maxAgents)` bytes. Linux: rw_semaphore. */
export class RwSem {
  readonly #agent: Agent;
  readonly #at: number;

  static bytes(maxAgents = 64): number {
    return rwSemWords(maxAgents) * 4;
  }

  constructor(host: LockHost, words: Int32Array) {
    this.#agent = host.agent;
    this.#at = slotOf(host, words, rwSemWords(1));
  }

  tryLockRead(): boolean {
    return tryLockRead(this.#agent, this.#at, LockRank.subscriber);
  }

  lockReadOp(): Op<void> {
    return lockReadOp(this.#agent, this.#at, LockRank.subscriber, "a semaphore");
  }

  lockWriteOp(): Op<void> {
    return lockWriteOp(this.#agent, this.#at, LockRank.subscriber, "a semaphore");
  }

  unlockRead(): void {
    unlockRead(this.#agent, this.#at, LockRank.subscriber);
  }

  unlockWrite(): void {
    unlockWrite(this.#agent, this.#at, LockRank.subscriber);
  }
}
