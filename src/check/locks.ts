/**
 * Locks, conditions and variables of a simulated world. Each is a location of its own in the footprints of steps, and a
 * lock knows whether a callback takes it and whether it is held around operations, which must not both be.
 */
import type { Op, WaitEffect } from "../sched/index.ts";
import { Call } from "./call.ts";
import { Point, type Run } from "./run.ts";

const wait = (what: string, ready: () => boolean): WaitEffect => ({
  kind: "wait",
  queue: 0,
  owner: undefined,
  ready,
  what,
});

/** What locks of a world have in common: who holds which. */
export class LockBook {
  readonly run: Run;
  readonly #held: { readonly lock: Lock; readonly actor: number; readonly since: number }[] = [];

  constructor(run: Run) {
    this.run = run;
  }

  took(lock: Lock): void {
    const { run } = this;
    this.#held.push({ lock, actor: run.actorIndex, since: run.choices.length });
    if (run.callback !== undefined) lock.inCallback = run.callback;
    lock.judge();
  }

  gave(lock: Lock): void {
    const { actorIndex } = this.run;
    const mine = this.#held.findLastIndex((held) => held.lock === lock && held.actor === actorIndex);
    const at = mine >= 0 ? mine : this.#held.findLastIndex((held) => held.lock === lock);
    if (at >= 0) this.#held.splice(at, 1);
  }

  /** The agent that is running has held some lock since that step. */
  heldSince(step: number): boolean {
    return this.#held.some(({ actor, since }) => actor === this.run.actorIndex && since <= step);
  }

  holds(lock: Lock): boolean {
    return this.#held.some((held) => held.lock === lock && held.actor === this.run.actorIndex);
  }

  /** An operation that may come to call subscribers begins, or one that waits for them. */
  aroundOperation(what: string): void {
    if (this.run.callback !== undefined) return;
    for (const { lock, actor } of this.#held) {
      if (actor !== this.run.actorIndex) continue;
      lock.around = `${this.run.who} holds it around ${what}`;
      lock.judge();
    }
  }
}

/** What is common to the two kinds of locks. */
abstract class Lock {
  readonly name: string;
  inCallback: string | undefined;
  around: string | undefined;
  readonly #book: LockBook;
  readonly location: number;

  constructor(book: LockBook, name: string) {
    this.#book = book;
    this.name = name;
    this.location = book.run.newLocations(1);
  }

  protected get book(): LockBook {
    return this.#book;
  }

  /** Both halves of a cycle have been seen. */
  judge(): void {
    if (this.inCallback === undefined || this.around === undefined) return;
    this.#book.run.violate("lock-cycle", `${this.inCallback} takes ${this.name}; ${this.around}`);
  }

  protected touch(): void {
    this.#book.run.touch(this.location, true);
  }
}

/** A mutex of the world. */
export class SimMutex extends Lock {
  #holder: string | undefined;

  /** Takes it; waits while another agent has it. */
  lock(): Call<void> {
    return new Call(this.book.run, `${this.name}.lock`, () => this.#lockOp());
  }

  *#lockOp(): Op<void> {
    const { run } = this.book;
    if (run.callback !== undefined) this.inCallback = run.callback;
    this.judge();
    yield new Point(`takes ${this.name}`);
    if (!this.tryLock())
      yield {
        ...wait(`${this.name}, which ${this.#holder} holds`, () => this.tryLock()),
      };
  }

  /** Takes it if it is free. Never waits. */
  tryLock(): boolean {
    this.touch();
    if (this.#holder !== undefined) return false;
    this.#holder = this.book.run.who;
    this.book.took(this);
    return true;
  }

  unlock(): void {
    this.touch();
    if (this.#holder === undefined) throw new Error(`${this.name} is not locked`);
    this.#holder = undefined;
    this.book.gave(this);
  }

  /** Somebody holds it. */
  get locked(): boolean {
    this.book.run.touch(this.location, false);
    return this.#holder !== undefined;
  }
}

/** A read-write lock of the world: many readers, or one writer. */
export class SimRwLock extends Lock {
  #readers = 0;
  #writer: string | undefined;

  readLock(): Call<void> {
    return new Call(this.book.run, `${this.name}.readLock`, () => this.readOp());
  }

  writeLock(): Call<void> {
    return new Call(this.book.run, `${this.name}.writeLock`, () => this.writeOp());
  }

  /** @internal Without a point before it. */
  *readOp(): Op<void> {
    if (!this.tryReadLock()) yield wait(`${this.name} (for reading)`, () => this.tryReadLock());
  }

  /** @internal Without a point before it. */
  *writeOp(): Op<void> {
    if (!this.tryWriteLock()) yield wait(`${this.name} (for writing)`, () => this.tryWriteLock());
  }

  tryReadLock(): boolean {
    this.touch();
    if (this.#writer !== undefined) return false;
    this.#readers++;
    this.book.took(this);
    return true;
  }

  tryWriteLock(): boolean {
    this.touch();
    if (this.#writer !== undefined || this.#readers > 0) return false;
    this.#writer = this.book.run.who;
    this.book.took(this);
    return true;
  }

  readUnlock(): void {
    this.touch();
    if (this.#readers === 0) throw new Error(`${this.name} is not locked for reading`);
    this.#readers--;
    this.book.gave(this);
  }

  writeUnlock(): void {
    this.touch();
    if (this.#writer === undefined) throw new Error(`${this.name} is not locked for writing`);
    this.#writer = undefined;
    this.book.gave(this);
  }
}

/** A variable that agents share. Its reads and writes are told apart from those of other cells; see `tracked`. */
export class Cell<T> {
  readonly name: string;
  readonly #run: Run;
  readonly #location: number;
  #value: T;

  constructor(run: Run, name: string, value: T) {
    this.#run = run;
    this.name = name;
    this.#location = run.newLocations(1);
    this.#value = value;
  }

  get value(): T {
    this.#run.touch(this.#location, false);
    return this.#value;
  }

  set value(value: T) {
    this.#run.touch(this.#location, true);
    if (this.#run.tracing) this.#run.note(`${this.name} = ${String(value)}`);
    this.#value = value;
  }

  /** For trace states; no access. */
  peek(): T {
    return this.#value;
  }
}

/** An object with a lifetime: what a callback uses, and somebody frees. */
export class Tracked {
  readonly name: string;
  readonly #run: Run;
  readonly #location: number;
  #freed: string | undefined;

  constructor(run: Run, name: string) {
    this.#run = run;
    this.name = name;
    this.#location = run.newLocations(1);
  }

  /** Whoever looks at it, or into it, says so. */
  use(): void {
    this.#run.touch(this.#location, false);
    if (this.#freed !== undefined)
      this.#run.violate(
        "use-after-free",
        `${this.#run.who} uses ${this.name}, which ${this.#freed} has freed`,
      );
  }

  free(): void {
    this.#run.touch(this.#location, true);
    if (this.#freed === undefined) {
      this.#freed = this.#run.who;
      if (this.#run.tracing) this.#run.note(`frees ${this.name}`);
    } else
      this.#run.violate(
        "double-release",
        `${this.#run.who} frees ${this.name}, which ${this.#freed} has freed`,
      );
  }

  get freed(): boolean {
    this.#run.touch(this.#location, false);
    return this.#freed !== undefined;
  }
}

/** What a subscriber of a hand-written core has been told: starts and ends must come in pairs. */
export class Pairing {
  readonly name: string;
  readonly #run: Run;
  readonly #location: number;
  /** Who has started; the first to end takes one away. */
  readonly #open: string[] = [];

  constructor(run: Run, name: string) {
    this.#run = run;
    this.name = name;
    this.#location = run.newLocations(1);
  }

  start(): void {
    this.#run.touch(this.#location, true);
    this.#open.push(this.#run.who);
  }

  end(): void {
    this.#run.touch(this.#location, true);
    const mine = this.#open.lastIndexOf(this.#run.who);
    if (this.#open.splice(mine < 0 ? 0 : mine, 1).length === 0)
      this.#run.violate("unbalanced-start-end", `${this.name} hears an end that has no start`);
  }

  get open(): number {
    this.#run.touch(this.#location, false);
    return this.#open.length;
  }

  /** @internal At rest, or where nobody can go on: whoever is done has ended what it started. */
  judge(): void {
    const left = this.#open.filter((who) => this.#run.isDone(who)).length;
    if (left > 0)
      this.#run.violate(
        "unbalanced-start-end",
        `${this.name} has heard ${left} ${left === 1 ? "start" : "starts"} without an end`,
      );
  }
}
