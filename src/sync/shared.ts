/**
 * Locks for callbacks and drivers of secondary MMUs that several agents share. Objects without state of their own: all
 * of it is in the words, which come from memory.allocShared() and begin as zeros.
 */
import { MmError } from "../errors.ts";
import { type Agent, type Immediate, type Op, runAsync, syncFacet, tryFacet } from "../sched/index.ts";
import { LockRank } from "./lockOrder.ts";
import { lockdepGave, lockdepTook, type SubscriberLock } from "./lockdep.ts";
import { lockMutexOp, MUTEX_WORDS, MX_LOCKDEP, tryLockMutex, unlockMutex } from "./mutex.ts";
import {
  lockReadOp,
  lockWriteOp,
  RW_LOCKDEP,
  rwSemWords,
  tryLockRead,
  unlockRead,
  unlockWrite,
} from "./rwsem.ts";

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
  readonly #lock: SubscriberLock;

  constructor(host: LockHost, words: Int32Array) {
    this.#agent = host.agent;
    this.#at = slotOf(host, words, MUTEX_WORDS);
    this.#lock = { word: this.#at + MX_LOCKDEP, name: "a mutex" };
    const operations = { lock: (): Op<void> => this.lockOp() };
    this.sync = syncFacet(this.#agent, operations);
    this.try = tryFacet(this.#agent, operations);
  }

  /** Takes it if it is free. Never waits. Errors: EOWNERDEAD. */
  tryLock(): boolean {
    const taken = tryLockMutex(this.#agent, this.#at);
    if (taken && this.#agent.debug) lockdepTook(this.#agent, this.#lock);
    return taken;
  }

  *lockOp(): Op<void> {
    yield* lockMutexOp(this.#agent, this.#at, "a mutex");
    if (this.#agent.debug) lockdepTook(this.#agent, this.#lock);
  }

  /** Takes it; waits while another has it. Errors: EOWNERDEAD. */
  lock(): Promise<void> {
    return runAsync(this.#agent, this.lockOp());
  }

  /** Gives it back. Errors: EPERM unless this agent holds it. */
  unlock(): void {
    unlockMutex(this.#agent, this.#at);
    if (this.#agent.debug) lockdepGave(this.#agent, this.#lock);
  }
}

/** A read-write semaphore over `RwSem.bytes(maxAgents)` bytes. Linux: rw_semaphore. */
export class RwSem {
  readonly #agent: Agent;
  readonly #at: number;
  readonly #lock: SubscriberLock;

  static bytes(maxAgents = 64): number {
    return rwSemWords(maxAgents) * 4;
  }

  constructor(host: LockHost, words: Int32Array) {
    this.#agent = host.agent;
    this.#at = slotOf(host, words, rwSemWords(1));
    this.#lock = { word: this.#at + RW_LOCKDEP, name: "a semaphore" };
  }

  /** Takes it for reading if no writer has it or waits for it. Never waits. */
  tryLockRead(): boolean {
    const taken = tryLockRead(this.#agent, this.#at, LockRank.subscriber);
    if (taken && this.#agent.debug) lockdepTook(this.#agent, this.#lock);
    return taken;
  }

  *lockReadOp(): Op<void> {
    yield* lockReadOp(this.#agent, this.#at, LockRank.subscriber, "a semaphore");
    if (this.#agent.debug) lockdepTook(this.#agent, this.#lock);
  }

  *lockWriteOp(): Op<void> {
    yield* lockWriteOp(this.#agent, this.#at, LockRank.subscriber, "a semaphore");
    if (this.#agent.debug) lockdepTook(this.#agent, this.#lock);
  }

  unlockRead(): void {
    unlockRead(this.#agent, this.#at, LockRank.subscriber);
    if (this.#agent.debug) lockdepGave(this.#agent, this.#lock);
  }

  unlockWrite(): void {
    unlockWrite(this.#agent, this.#at, LockRank.subscriber);
    if (this.#agent.debug) lockdepGave(this.#agent, this.#lock);
  }
}
