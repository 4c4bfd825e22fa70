/**
 * The notifiers of a simulated space: the real core, with a scheduling point before each callback and each call that may
 * wait, and with an eye on what callbacks do. The same names as `Notifiers` and `IntervalNotifier`, so that a mirror that
 * was written for those runs here as it stands; what would block a thread (`sync` forms that wait) is refused.
 */
import { isMmError, MmError } from "../errors.ts";
import {
  currentSeq,
  endOpenRange,
  type IntervalNotifier,
  makeRange,
  type MaybeOp,
  type MmuIntervalNotifierOps,
  type MmuNotifier,
  MmuNotifierEvent,
  type MmuNotifierOps,
  type MmuNotifierRange,
  type Notifiers,
  type OpenRange,
  openRange,
  type RangeRequest,
} from "../notifier/index.ts";
import { isOp, isPromise, type Op, promiseOp } from "../sched/index.ts";
import type { Call } from "./call.ts";
import { Point, textOf } from "./run.ts";
import type { SimSpace } from "./simSpace.ts";

const hex = (n: number): string => `0x${n.toString(16)}`;
export const rangeText = (start: number, end: number): string =>
  end === Number.MAX_SAFE_INTEGER ? `[${hex(start)}, end)` : `[${hex(start)}, ${hex(end)})`;

const EVENT_NAMES = Object.fromEntries(
  Object.entries(MmuNotifierEvent).map(([name, event]) => [event, name]),
) as Readonly<Record<number, string>>;
export const eventName = (event: number): string => EVENT_NAMES[event] ?? String(event);

/** What the last question of an agent about a fill came to. */
export interface FillCheck {
  readonly interval: SimInterval;
  readonly answer: "begun" | "overtaken" | "valid";
  readonly step: number;
}

/** A range that somebody opened. */
export interface Opened {
  readonly range: MmuNotifierRange;
  /** The start has returned: no translation is usable. */
  returned: boolean;
  readonly by: string;
}

/** Callbacks of one list notifier, counted. */
interface Listed {
  readonly name: string;
  open: number;
  gone: boolean;
  hasEnd: boolean;
  hasStart: boolean;
}

/** An interval notifier of a simulated space; see IntervalNotifier. */
export class SimInterval {
  readonly #notifiers: SimNotifiers;
  readonly #inner: IntervalNotifier;
  readonly name: string;
  /** @internal */
  seqSet = false;
  /** @internal */
  removed = false;

  /** @internal */
  constructor(notifiers: SimNotifiers, inner: IntervalNotifier, name: string) {
    this.#notifiers = notifiers;
    this.#inner = inner;
    this.name = name;
  }

  get id(): number {
    return this.#inner.id;
  }

  get start(): number {
    return this.#inner.start;
  }

  get last(): number {
    return this.#inner.last;
  }

  /** @internal */
  get space(): SimSpace {
    return this.#notifiers.space;
  }

  readBegin(): Call<number> {
    return this.#notifiers.call("readBegin", () => this.#readBeginOp());
  }

  *#readBeginOp(): Op<number> {
    const { run, space } = this.#notifiers;
    const point = new Point(`${this.name}.readBegin`);
    yield point;
    space.world.guardOperation("readBegin");
    space.touchNotifiers(false);
    const op = this.#inner.operations.readBegin();
    const seq = yield* op;
    space.touchNotifiers(false);
    space.checks.set(run.actorIndex, { interval: this, answer: "begun", step: run.choices.length });
    if (run.tracing) run.note(`seq ${seq}`);
    return seq;
  }

  /** As readBegin(), without waiting: undefined where that would wait. */
  tryReadBegin(): number | undefined {
    const { run, space } = this.#notifiers;
    space.touchNotifiers(false);
    const seq = this.#inner.tryReadBegin();
    if (seq !== undefined)
      space.checks.set(run.actorIndex, { interval: this, answer: "begun", step: run.choices.length });
    return seq;
  }

  readRetry(seq: number): boolean {
    const { run, space } = this.#notifiers;
    space.touchNotifiers(false);
    const overtaken = this.#inner.readRetry(seq);
    space.checks.set(run.actorIndex, {
      interval: this,
      answer: overtaken ? "overtaken" : "valid",
      step: run.choices.length,
    });
    if (run.tracing) run.note(`readRetry(${seq}) ${overtaken}`);
    return overtaken;
  }

  checkRetry(seq: number): boolean {
    this.#notifiers.space.touchNotifiers(false);
    return this.#inner.checkRetry(seq);
  }

  setSeq(curSeq: number): void {
    this.seqSet = true;
    this.#notifiers.space.touchNotifiers(true);
    this.#inner.setSeq(curSeq);
  }

  remove(): Call<void> {
    return this.#notifiers.call("remove", () => this.#removeOp());
  }

  *#removeOp(): Op<void> {
    const { space, run } = this.#notifiers;
    yield new Point(`${this.name}.remove`);
    space.world.guardOperation("remove");
    space.touchNotifiers(true);
    if (this.removed) run.violate("double-release", `${run.who} removes ${this.name}, which is removed`);
    yield* this.#inner.operations.remove();
    space.touchNotifiers(true);
    this.removed = true;
  }

  unref(): this {
    return this;
  }
}

const BLOCKS = "cannot be explored: it would block the thread. Await the Promise form, or yield* it";

export class SimNotifiers {
  readonly space: SimSpace;
  /** Ranges that are open now. */
  readonly opened: Opened[] = [];
  readonly #listed = new Map<MmuNotifier, Listed>();
  readonly #wrapped = new WeakMap<object, MmuNotifierOps>();
  #intervals = 0;
  /** Somebody walks the page tables: old entries may be used until it has been told. */
  walkers = 0;
  aging = 0;

  constructor(space: SimSpace) {
    this.space = space;
  }

  get run(): SimSpace["world"]["run"] {
    return this.space.world.run;
  }

  get id(): number {
    return this.space.id;
  }

  /** The real ones, of the thread that is running. */
  get #real(): Notifiers {
    return this.space.realNotifiers();
  }

  get any(): boolean {
    return this.#real.any;
  }

  get seq(): number {
    return currentSeq(this.#real.context);
  }

  call<T>(what: string, make: () => Op<T>): Call<T> {
    return this.space.world.call(what, make);
  }

  // ---- subscribers ----------------------------------------------------------------------------------------------------

  insert(ops: SimIntervalOps, start: number, length: number, name?: string): Call<SimInterval> {
    // eslint-disable-next-line require-yield
    return this.call("insert", () => this.#insertOp(ops, start, length, name));
  }

  // eslint-disable-next-line require-yield
  *#insertOp(ops: SimIntervalOps, start: number, length: number, name?: string): Op<SimInterval> {
    return this.#insert(ops, start, length, name);
  }

  #insert(
    ops: SimIntervalOps,
    start: number,
    length: number,
    name = `interval ${++this.#intervals}`,
  ): SimInterval {
    this.space.touchNotifiers(true);
    let interval: SimInterval | undefined;
    const wrapped: MmuIntervalNotifierOps = {
      invalidate: (_inner, range, curSeq) =>
        this.#callback(
          `${name}.invalidate`,
          range,
          () => {
            interval!.seqSet = false;
            if (interval!.removed)
              this.run.violate("callback-after-remove", `${name}.invalidate is called after its remove()`);
            return ops.invalidate.call(ops, interval!, range, curSeq);
          },
          (answer) => {
            const owned = range.owner !== undefined;
            if (!interval!.seqSet && answer !== false && !owned)
              this.run.violate("set-seq-missing", `${name}.invalidate of a ${eventName(range.event)} range`);
          },
        ),
    };
    const step = this.#real.operations.insert(wrapped, start, length).next();
    if (step.done !== true) throw new Error("an insert waits for nothing");
    interval = new SimInterval(this, step.value, name);
    return interval;
  }

  /** `sync` forms that never wait; the others would block. */
  get sync(): {
    insert(ops: SimIntervalOps, start: number, length: number, name?: string): SimInterval;
    register(notifier: MmuNotifier): void;
    get(ops: MmuNotifierOps): MmuNotifier;
  } {
    const now = <T>(op: Op<T>, what: string): T => {
      if (this.run.settingUp) return this.run.immediate(op);
      const r = op.next();
      if (r.done === true) return r.value;
      throw new MmError("ENOTSUP", what, BLOCKS);
    };
    return {
      insert: (ops, start, length, name) => this.#insert(ops, start, length, name),
      register: (notifier) => now(this.#registerOp(notifier), "register"),
      get: (ops) => now(this.#getOp(ops), "get"),
    };
  }

  register(notifier: MmuNotifier): Call<void> {
    return this.call("register", () => this.#registerOp(notifier, true));
  }

  *#registerOp(notifier: MmuNotifier, points = false): Op<void> {
    if (points) {
      yield new Point("register");
      this.space.world.guardOperation("register");
    }
    this.space.touchNotifiers(true);
    // The notifier that callbacks see is the user's own: only what it calls is watched.
    const wrapped = this.#wrap(notifier.ops, notifier);
    (notifier as { ops: MmuNotifierOps }).ops = wrapped;
    yield* this.#real.operations.register(notifier);
    this.space.touchNotifiers(true);
  }

  get(ops: MmuNotifierOps): Call<MmuNotifier> {
    return this.call("get", () => this.#getOp(ops, true));
  }

  *#getOp(ops: MmuNotifierOps, points = false): Op<MmuNotifier> {
    if (points) {
      yield new Point("get");
      this.space.world.guardOperation("get");
    }
    this.space.touchNotifiers(true);
    const notifier = yield* this.#real.operations.get(this.#wrap(ops));
    const listed = this.#listed.get(notifier);
    if (!listed) this.#list(notifier, ops);
    this.space.touchNotifiers(true);
    return notifier;
  }

  unregister(notifier: MmuNotifier): Call<void> {
    return this.call("unregister", () => this.#unregisterOp(notifier));
  }

  *#unregisterOp(notifier: MmuNotifier): Op<void> {
    yield new Point("unregister");
    this.space.world.guardOperation("unregister");
    this.space.touchNotifiers(true);
    try {
      yield* this.#real.operations.unregister(notifier);
    } catch (error) {
      if (isMmError(error, "EINVAL")) this.run.violate("double-release", error.message);
      throw error;
    }
    this.space.touchNotifiers(true);
    const listed = this.#listed.get(notifier);
    if (listed) listed.gone = true;
  }

  put(notifier: MmuNotifier): void {
    this.space.touchNotifiers(true);
    try {
      this.#real.put(notifier);
    } catch (error) {
      if (isMmError(error, "EINVAL")) this.run.violate("double-release", error.message);
      throw error;
    }
    const listed = this.#listed.get(notifier);
    if (listed && notifier.users === 0) listed.open = 0;
  }

  /** @internal The core's message to the thread that has put notifiers. */
  free(): void {
    this.#real.free();
  }

  synchronize(): Call<void> {
    return this.call("synchronize", () => this.#synchronizeOp());
  }

  *#synchronizeOp(): Op<void> {
    yield new Point("synchronize");
    this.space.world.guardOperation("synchronize");
    yield* this.#real.operations.synchronize();
  }

  #list(notifier: MmuNotifier, ops: MmuNotifierOps): Listed {
    const listed: Listed = {
      name: `notifier ${this.#listed.size + 1}`,
      open: 0,
      gone: false,
      hasStart: ops.invalidateRangeStart !== undefined,
      hasEnd: ops.invalidateRangeEnd !== undefined,
    };
    this.#listed.set(notifier, listed);
    return listed;
  }

  /** The same ops, watched. One object for each that the scenario has, because get() tells them apart by it. */
  #wrap(ops: MmuNotifierOps, registered?: MmuNotifier): MmuNotifierOps {
    const known = this.#wrapped.get(ops);
    if (known) return known;
    const of = (notifier: MmuNotifier): Listed => this.#listed.get(notifier) ?? this.#list(notifier, ops);
    if (registered) of(registered);
    const wrapped: MmuNotifierOps = {};
    const check = (listed: Listed, what: string): void => {
      if (listed.gone)
        this.run.violate("callback-after-remove", `${what} of ${listed.name} is called after its removal`);
    };
    if (ops.invalidateRangeStart)
      wrapped.invalidateRangeStart = (notifier, range) => {
        const listed = of(notifier);
        return this.#callback(
          `${listed.name}.start`,
          range,
          () => {
            check(listed, "start");
            return ops.invalidateRangeStart!(notifier, range);
          },
          (answer) => {
            if (answer !== false) listed.open++;
            else if (ops.invalidateRangeEnd && !range.blockable)
              this.run.violate("refuses-with-end", `${listed.name} refuses a start and has an end`);
          },
        );
      };
    if (ops.invalidateRangeEnd)
      wrapped.invalidateRangeEnd = (notifier, range) => {
        const listed = of(notifier);
        check(listed, "end");
        if (listed.hasStart && --listed.open < 0) {
          this.run.violate("unbalanced-start-end", `${listed.name} hears an end that has no start`);
          listed.open = 0;
        }
        this.#plain(`${listed.name}.end`, () => ops.invalidateRangeEnd!(notifier, range));
      };
    if (ops.release)
      wrapped.release = (notifier, space) => {
        const listed = of(notifier);
        const range = makeRange(space, 0, Number.MAX_SAFE_INTEGER, MmuNotifierEvent.Release, true);
        return this.#callback(
          `${listed.name}.release`,
          range,
          () => {
            check(listed, "release");
            return ops.release!(notifier, space);
          },
          () => {},
        ) as MaybeOp<void>;
      };
    for (const name of ["clearFlushYoung", "clearYoung"] as const) {
      if (!ops[name]) continue;
      this.aging++;
      wrapped[name] = (notifier, space, start, end) =>
        this.#plain(`${of(notifier).name}.${name}`, () => ops[name]!(notifier, space, start, end));
    }
    if (ops.testYoung) this.aging++;
    if (ops.testYoung)
      wrapped.testYoung = (notifier, space, address) =>
        this.#plain(`${of(notifier).name}.testYoung`, () => ops.testYoung!(notifier, space, address));
    if (ops.archInvalidateSecondaryTlbs) {
      this.walkers++;
      wrapped.archInvalidateSecondaryTlbs = (notifier, space, start, end) =>
        this.#plain(`${of(notifier).name}.archInvalidateSecondaryTlbs`, () =>
          ops.archInvalidateSecondaryTlbs!(notifier, space, start, end),
        );
    }
    if (ops.allocNotifier)
      wrapped.allocNotifier = (space) => {
        const notifier = ops.allocNotifier!(space);
        (notifier as { ops: MmuNotifierOps }).ops = wrapped;
        return notifier;
      };
    if (ops.freeNotifier)
      wrapped.freeNotifier = (notifier) => {
        const listed = of(notifier);
        this.#plain(`${listed.name}.freeNotifier`, () => ops.freeNotifier!(notifier));
        listed.gone = true;
      };
    this.#wrapped.set(ops, wrapped);
    this.#wrapped.set(wrapped, wrapped);
    return wrapped;
  }

  // ---- callbacks --------------------------------------------------------------------------------------------------------

  /** A callback that may never wait. */
  #plain<T>(name: string, body: () => T): T {
    const { run } = this;
    run.touchUser();
    if (run.tracing) run.note(`calls ${name}`);
    const stack = run.enterCallback(name);
    this.space.world.unwaiting++;
    try {
      return body();
    } finally {
      this.space.world.unwaiting--;
      stack.pop();
    }
  }

  /** A callback of a range: where that may wait, with a point before it. */
  #callback(
    name: string,
    range: MmuNotifierRange,
    body: () => MaybeOp<boolean | void>,
    judge: (answer: boolean | void) => void,
  ): MaybeOp<boolean | void> {
    if (range.blockable) return this.#callbackOp(name, range, body, judge);
    const concerned = this.#concerns(range);
    let answer = this.#plain(name, body);
    if (isOp(answer) || isPromise(answer)) {
      this.run.violate(
        "sleep-where-not-allowed",
        `${name} returns ${isOp(answer) ? "an operation" : "a promise"} for a range that is not blockable`,
      );
      if (isPromise(answer)) Promise.resolve(answer).catch(() => {});
      // Driven as far as it goes, so that the schedule goes on as the scenario means it.
      answer = isOp(answer) ? (this.#drive(answer) as boolean | void) : true;
    }
    if (answer === false && !concerned)
      this.run.violate(
        "refusal-without-overlap",
        `${name} refuses ${rangeText(range.start, range.end)}, of which no device of this space has a translation`,
      );
    judge(answer);
    return answer;
  }

  #drive(op: Op<unknown>): unknown {
    try {
      return this.run.immediate(op);
    } catch (error) {
      return this.run.violate("sleep-where-not-allowed", textOf(error));
    }
  }

  #concerns(range: MmuNotifierRange): boolean {
    const { devices } = this.space;
    return (
      devices.length === 0 ||
      devices.some((device) => device.hasEntryIn(range.start, range.end) || device.filling > 0)
    );
  }

  *#callbackOp(
    name: string,
    range: MmuNotifierRange,
    body: () => MaybeOp<boolean | void>,
    judge: (answer: boolean | void) => void,
  ): Op<boolean | void> {
    const { run } = this;
    yield new Point(`${name} (${eventName(range.event)})`);
    run.touchUser();
    const stack = run.enterCallback(name);
    try {
      const result = body();
      let answer: boolean | void;
      if (isOp(result)) answer = yield* result as Op<boolean | void>;
      else if (isPromise(result))
        answer = yield* promiseOp(result as Promise<boolean | void>, `the promise of ${name}`);
      else answer = result as boolean | void;
      if (answer === false)
        run.violate("blockable-start-refused", `${name} refuses ${rangeText(range.start, range.end)}`);
      judge(answer);
      return answer;
    } finally {
      const at = stack.lastIndexOf(name);
      if (at >= 0) stack.splice(at, 1);
    }
  }

  // ---- for the primary MMU ----------------------------------------------------------------------------------------------

  invalidateRangeStart(request: RangeRequest, options: { blockable?: boolean } = {}): Call<MmuNotifierRange> {
    return this.call("invalidateRangeStart", () => this.startOp(request, options.blockable ?? true, true));
  }

  /** @internal Errors: EAGAIN if a subscriber refuses. */
  *startOp(request: RangeRequest, blockable: boolean, point = false): Op<MmuNotifierRange> {
    const { start, end, event, owner } = request;
    const { run, space } = this;
    if (point)
      yield new Point(
        `start ${eventName(event)} ${rangeText(start, end)}${blockable ? "" : " non-blockable"}`,
      );
    space.world.guardOperation("invalidateRangeStart");
    space.touchNotifiers(true);
    const { context } = this.#real;
    const range = makeRange(space.asNotifierSpace(), start, end, event, blockable, owner);
    const opened: Opened = { range, returned: false, by: run.who };
    this.opened.push(opened);
    try {
      const rest = openRange(context, range, false);
      if (rest) yield* rest;
    } catch (error) {
      this.#forget(opened);
      throw error;
    }
    space.touchNotifiers(true);
    opened.returned = true;
    return range;
  }

  invalidateRangeEnd(range: MmuNotifierRange): void {
    const { run, space } = this;
    space.touchNotifiers(true);
    const opened = this.opened.find((o) => o.range === range);
    if (!opened) {
      run.violate("unbalanced-start-end", `${run.who} ends a range that is not open`);
      return;
    }
    this.#forget(opened);
    if (run.tracing) run.note(`end ${rangeText(range.start, range.end)}`);
    endOpenRange(this.#real.context, range as OpenRange);
  }

  #forget(opened: Opened): void {
    this.opened.splice(this.opened.indexOf(opened), 1);
  }

  invalidate<T>(request: RangeRequest, change: (range: MmuNotifierRange) => MaybeOp<T>): Call<T> {
    return this.call("invalidate", () => this.#invalidateOp(request, change));
  }

  *#invalidateOp<T>(request: RangeRequest, change: (range: MmuNotifierRange) => MaybeOp<T>): Op<T> {
    const range = yield* this.startOp(request, true, true);
    try {
      yield new Point("changes the entries");
      const result = change(range);
      if (isOp(result)) return (yield* result) as T;
      if (isPromise(result)) return yield* promiseOp(result as Promise<T>, "the change of an invalidation");
      return result as T;
    } finally {
      this.invalidateRangeEnd(range);
    }
  }

  clearFlushYoung(start: number, end: number): boolean {
    this.space.touchNotifiers(true);
    const young = this.#real.clearFlushYoung(start, end);
    this.space.judgeAge(start, end, young, true);
    return young;
  }

  clearYoung(start: number, end: number): boolean {
    this.space.touchNotifiers(true);
    const young = this.#real.clearYoung(start, end);
    this.space.judgeAge(start, end, young, true);
    return young;
  }

  testYoung(address: number): boolean {
    this.space.touchNotifiers(false);
    const young = this.#real.testYoung(address);
    this.space.judgeAge(address, address + 1, young, false);
    return young;
  }

  archInvalidateSecondaryTlbs(start: number, end: number): void {
    this.space.touchNotifiers(true);
    this.#real.archInvalidateSecondaryTlbs(start, end);
  }

  release(): Call<void> {
    return this.call("release", () => this.releaseOp());
  }

  /** @internal */
  *releaseOp(): Op<void> {
    yield new Point("release");
    this.space.world.guardOperation("release");
    this.space.touchNotifiers(true);
    yield* this.#real.releaseOp();
    this.space.touchNotifiers(true);
    for (const listed of this.#listed.values()) listed.gone = true;
  }

  /** @internal At rest: every start has had its end. */
  judge(): void {
    for (const { range, by } of this.opened.filter((opened) => this.run.isDone(opened.by)))
      this.run.violate(
        "unbalanced-start-end",
        `${by} has not ended the ${eventName(range.event)} range ${rangeText(range.start, range.end)}`,
      );
    if (this.opened.length > 0) return;
    for (const { name, open, gone, hasEnd } of this.#listed.values())
      if (hasEnd && open > 0 && !gone)
        this.run.violate("unbalanced-start-end", `${name} has heard ${open} more starts than ends`);
  }
}

/** As MmuIntervalNotifierOps; the interval is a SimInterval here, with the same methods. */
export interface SimIntervalOps {
  invalidate(interval: SimInterval, range: MmuNotifierRange, curSeq: number): MaybeOp<boolean | void>;
}
