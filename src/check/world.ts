/**
 * What a scenario's functions are given: a simulated world of spaces, devices, locks and variables, new for each schedule.
 * Everything that agents share and the checker should see comes from here.
 */
import { MmError } from "../errors.ts";
import {
  type AddressSpace,
  isValid,
  loadPte,
  pfnOfPte,
  type PhysicalMemory,
  PTE_WRITE,
} from "../mm/index.ts";
import { createSubscriptions, invalidateOwnSecondaryTlbs, Notifiers, type Subs } from "../notifier/index.ts";
import { type Agent, type Op, waitOp } from "../sched/index.ts";
import type { WorldArena } from "./arena.ts";
import { Call } from "./call.ts";
import { Device, type DeviceOptions } from "./device.ts";
import { SimFrames } from "./frames.ts";
import { Cell, LockBook, Pairing, SimMutex, SimRwLock, Tracked } from "./locks.ts";
import { Point, type Run } from "./run.ts";
import { SimSpace, type SpaceOptions } from "./simSpace.ts";

const DEFAULT_FRAMES = 8;

export class World {
  /** @internal */
  readonly run: Run;
  /** @internal */
  readonly locks: LockBook;
  /** @internal Writes of the world, counted. */
  clock = 0;
  /** @internal Above 0 inside a callback that may not wait. */
  unwaiting = 0;
  readonly #arena: WorldArena;
  readonly #spaces: SimSpace[] = [];
  readonly #devices: Device[] = [];
  readonly #cells: Cell<unknown>[] = [];
  readonly #pairings: Pairing[] = [];
  #frames: SimFrames | undefined;
  #locks = 0;

  /** @internal */
  constructor(run: Run, arena: WorldArena) {
    this.run = run;
    this.#arena = arena;
    this.locks = new LockBook(run);
    run.describe = () => this.describe();
  }

  /** Frames of the world; 8 of them unless setFrames() said otherwise. */
  get frames(): SimFrames {
    return (this.#frames ??= new SimFrames(this.run, DEFAULT_FRAMES));
  }

  /** How many frames there are. In setup, before the first space. */
  setFrames(count: number): void {
    if (this.#frames) throw new MmError("EINVAL", "setFrames", "call it before the first space is made");
    this.#frames = new SimFrames(this.run, count);
  }

  /** A new address space, with one mapping from address 0 on. In setup. */
  space(options: SpaceOptions = {}): SimSpace {
    if (!this.run.settingUp) throw new MmError("EINVAL", "space", "make spaces in setup");
    const id = this.#spaces.length + 1;
    const { agent } = this.run;
    const arena = this.#arena;
    const subs: Subs = createSubscriptions(agent, arena.heap, arena.maxAgents, id);
    if (subs === 0) throw new MmError("ENOMEM", "space", "too many spaces for a simulated world");
    const byThread: Notifiers[] = [];
    const real = (thread: number): Notifiers =>
      (byThread[thread] ??= this.#notifiers(this.run.agentOf(thread), subs, space));
    const space: SimSpace = new SimSpace(this, id, options, real);
    this.#spaces.push(space);
    return space;
  }

  #notifiers(agent: Agent, subs: Subs, space: SimSpace): Notifiers {
    const PAGE_SHIFT = 12;
    return new Notifiers(agent, this.#arena.heap, subs, space.asNotifierSpace(), PAGE_SHIFT);
  }

  /** @internal A thread is asked to flush: its walkers of the space are. */
  flush(thread: number, spaceId: number, start: number, end: number): void {
    for (const space of this.#spaces) {
      if (spaceId !== 0 && space.id !== spaceId) continue;
      const { context } = space.threadNotifiers(thread);
      invalidateOwnSecondaryTlbs(
        context,
        spaceId === 0 ? 0 : start * 4096,
        spaceId === 0 ? space.pages * 4096 : end * 4096,
      );
    }
  }

  /**
   * A real PhysicalMemory of 31 frames, as the thread that is running has it. Its spaces are real ones, without most of the
   * oracles: await their Promise forms; in setup use `sync`. One thread's operations wait, and so can be interleaved, only
   * where they need another thread: let mappings be changed in another one than the mirror's.
   */
  memory(): PhysicalMemory {
    return this.#arena.memory(this.run.agent);
  }

  /** A device uses frame `pfn` for `address` of a real space, now: the oracle of stale and freed translations. */
  deviceAccess(space: AddressSpace, address: number, pfn: number, kind: "read" | "write" = "read"): void {
    const memory = this.memory();
    const pte = loadPte(space, Math.floor(address / memory.pageSize));
    const what = `${this.run.who} ${kind}s 0x${address.toString(16)} through frame ${pfn}`;
    this.run.touchUser();
    if (isValid(pte) && pfnOfPte(pte) === pfn) {
      if (kind === "write" && (pte & PTE_WRITE) === 0)
        this.run.violate("stale-write", `${what}; the page is read-only by now`);
    } else if (memory.mm.frames.refcount(pfn) === 0)
      this.run.violate("use-after-free", `${what}, which is free`);
    else
      this.run.violate(
        kind === "read" ? "stale-read" : "stale-write",
        `${what}; the page ${isValid(pte) ? `is in frame ${pfnOfPte(pte)}` : "has no translation"}`,
      );
  }

  /** A device with a table of translations of `space`. In setup. */
  device(space: SimSpace, options: DeviceOptions = {}): Device {
    const name =
      options.name ?? (this.#devices.length === 0 ? "device" : `device ${this.#devices.length + 1}`);
    const device = new Device(space, name, options);
    this.#devices.push(device);
    return device;
  }

  /** A mutex. In setup. */
  mutex(name: string = `mutex ${++this.#locks}`): SimMutex {
    return new SimMutex(this.locks, name);
  }

  /** A read-write lock. In setup. */
  rwLock(name: string = `rwlock ${++this.#locks}`): SimRwLock {
    return new SimRwLock(this.locks, name);
  }

  /** A variable that agents share, seen by the checker and shown in traces. In setup. */
  cell<T>(name: string, value: T): Cell<T> {
    const cell = new Cell(this.run, name, value);
    this.#cells.push(cell as Cell<unknown>);
    return cell;
  }

  /** An object with a lifetime: use() after free() is a use after free, a second free() a double release. */
  object(name: string): Tracked {
    return new Tracked(this.run, name);
  }

  /** Starts and ends that a hand-written core tells a subscriber: at the end of a schedule they must be even. In setup. */
  pairing(name: string): Pairing {
    const pairing = new Pairing(this.run, name);
    this.#pairings.push(pairing);
    return pairing;
  }

  /** A scheduling point: others may run here. */
  point(what: string = "goes on"): Call<void> {
    return this.call("point", () => this.#pointOp(what));
  }

  *#pointOp(what: string): Op<void> {
    // A new one each time: the scenario's own code runs before and after it.
    yield new Point(what);
  }

  /**
   * A scheduling point in a loop that looks again and again: somebody else goes first, if anybody can. Where it can be said
   * what is waited for, until() is better.
   */
  giveWay(what: string = "looks again"): Call<void> {
    return this.call("giveWay", () => this.#giveWayOp(what));
  }

  *#giveWayOp(what: string): Op<void> {
    this.run.giveWay();
    yield new Point(what);
  }

  /** Waits until `condition` is true; it must only look. */
  until(condition: () => boolean, what: string = "a condition"): Call<void> {
    return this.call("until", () => this.#untilOp(condition, what));
  }

  *#untilOp(condition: () => boolean, what: string): Op<void> {
    this.maySleep(what);
    yield* waitOp(
      0,
      () => {
        this.run.touchUser();
        return condition();
      },
      what,
    );
  }

  /** A timer: it goes off at any moment from now on. */
  sleep(what: string = "sleeps"): Call<void> {
    return this.call("sleep", () => this.#sleepOp(what));
  }

  *#sleepOp(what: string): Op<void> {
    this.maySleep(what);
    yield new Point(what);
  }

  /** Says that what follows may sleep or wait: wrong inside a callback whose range is not blockable. */
  maySleep(what: string = "may sleep"): void {
    if (this.unwaiting > 0)
      this.run.violate("sleep-where-not-allowed", `${this.run.callback ?? "a callback"}: ${what}`);
  }

  /** Runs `body` as a callback of a hand-written core; `blockable` as its range says. */
  callback<T>(name: string, blockable: boolean, body: () => T): T {
    const stack = this.run.enterCallback(name);
    if (!blockable) this.unwaiting++;
    try {
      return body();
    } finally {
      if (!blockable) this.unwaiting--;
      stack.pop();
    }
  }

  /** Fails the schedule: the scenario has seen something wrong. */
  fail(message: string): void {
    this.run.violate("invariant", message);
  }

  /** Adds a line to the trace, at the step that is running. */
  note(text: string): void {
    this.run.note(text);
  }

  // ---- inside ---------------------------------------------------------------------------------------------------------

  /** @internal */
  call<T>(what: string, make: () => Op<T>): Call<T> {
    const call = new Call(this.run, what, make);
    if (this.run.tracing) this.run.calls.push(call as Call<unknown>);
    return call;
  }

  /** @internal An operation begins: not inside a callback, and not under a lock that callbacks take. */
  guardOperation(what: string): void {
    const { run } = this;
    const { callback } = run;
    if (callback !== undefined) {
      run.violate("waiting-call-in-callback", `${callback} calls ${what}`);
      throw new MmError("EDEADLK", what, "not from inside a notifier callback");
    }
    this.locks.aroundOperation(what);
  }

  /** @internal What a trace shows beside each step. */
  describe(): string {
    return [
      ...this.#spaces.map((space) => space.describe()),
      ...this.#devices.map((device) => device.describe()),
      ...this.#cells.map((cell) => `${cell.name} ${String(cell.peek())}`),
    ].join(" | ");
  }

  /** @internal Everybody has come to the end. */
  judge(): void {
    for (const space of this.#spaces) space.judge();
    for (const pairing of this.#pairings) pairing.judge();
  }
}
