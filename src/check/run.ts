/**
 * One schedule of a scenario, from its set-up to its end. A strategy says whose step is next; here are the steps.
 *
 * A *strand* is an operation that is stepped: an agent's generator function, a call that an async agent awaits, or what
 * another thread's message asks for. A step of it goes from one effect to the next. Strands have numbers that do not
 * depend on the schedule: the agent's index, plus a multiple of the stride for each call that the agent made before.
 *
 * Invariants
 *   R1  A step is atomic: whatever it does, native promise continuations included, is done before the next choice.
 *   R2  A strand that waits is asked when it is chosen. If it cannot go on, nothing has changed, and it is asked again
 *       after the next step that somebody takes.
 *   R3  Whatever a step reads or writes of what strands share stands in its footprint, or is USER_LOCATION.
 *   R4  The same choices give the same run. What is not repeatable (clocks, random numbers, I/O) is the scenario's fault
 *       and is noticed by running the first schedule twice.
 */
import { SegvError } from "../errors.ts";
import { type Agent, isOp, isPromise, type Op, type PointEffect, type Task } from "../sched/index.ts";
import type { Call } from "./call.ts";
import {
  EVERYTHING,
  FIRST_FREE_LOCATION,
  type Footprint,
  INVARIANT_LOCATION,
  MESSAGES_LOCATION,
  USER_LOCATION,
} from "./footprint.ts";
import type { Rule } from "./rules.ts";

/** Says whose step is next. */
export interface Strategy {
  /** Picks one of the strands that may be able to go on, the last one first if it is among them; -1 ends the run here. */
  choose(candidates: readonly number[], run: Run): number;
  /** What was chosen waits, and for something that is not so yet. */
  blocked(strand: number): void;
  /** What was chosen has made its step. */
  stepped(strand: number, footprint: Footprint): void;
}

/** A column of the trace. */
export interface Actor {
  readonly index: number;
  readonly name: string;
  /** The schedule may end while it has not. */
  readonly daemon: boolean;
  done: boolean;
  /** Strands that it has begun. */
  strands: number;
}

interface Strand {
  readonly id: number;
  readonly actor: Actor;
  readonly agent: Agent;
  readonly task: Task;
  /** What it does in its next step. */
  next: string;
  /** Somebody awaits it: between its end and what comes after the await, others may run. */
  readonly awaited: boolean;
  /** An operation of the real library, which does not say what it touches. */
  readonly real: boolean;
  outcome: { value: unknown } | { error: unknown } | undefined;
  /** It has given way, and nobody else has moved since. */
  gaveWay: boolean;
  /** The effect at which it stands; the same object again means that no code of the scenario's ran in between. */
  at: object | undefined;
  /** Where it is inside callbacks: the innermost last. */
  readonly callbacks: string[];
}

export interface TraceStep {
  readonly actor: number;
  readonly what: string;
  readonly notes: string[];
  /** Pages, frames and sequence after it. */
  state: string;
}

export interface Finding {
  readonly rule: Rule;
  readonly message: string;
  /** Steps that it took, the one that broke the rule included. */
  readonly steps: number;
  readonly actor: string;
}

export type Ended = "finished" | "abandoned" | "deadlock" | "no progress";

export interface RunLimits {
  /** Steps after which nothing is chosen any more: everybody runs in turn. */
  readonly depth: number;
  /** Steps in turn after which there is no progress. */
  readonly fairSteps: number;
}

/** What the loop asks of whoever drives it: let native promises run. */
export type Drain = { readonly until: Promise<unknown> | undefined };

/** A point of the simulated world: one object for each call, so that the run sees what is one call. */
export class Point implements PointEffect {
  readonly kind = "point";
  what: string;

  constructor(what: string) {
    this.what = what;
  }

  /** The same point, before something else. */
  at(what: string): this {
    this.what = what;
    return this;
  }
}

/** Turns of everybody in turn: so many steps each. Several, because a retry loop may be lucky in one rhythm. */
const RHYTHMS = 3;

export class Run {
  readonly limits: RunLimits;
  readonly actors: Actor[] = [];
  /** Who took the steps so far. */
  readonly choices: number[] = [];
  readonly findings: Finding[] = [];
  /** Filled where `tracing` is true. */
  readonly trace: TraceStep[] = [];
  readonly calls: Call<unknown>[] = [];
  tracing = false;
  /** Set by the world: what the trace shows beside each step. */
  describe: () => string = () => "";
  /** Set by the scenario; says what is wrong, or throws. */
  invariant: (() => void) | undefined;
  /** Set where the scenario tells states apart. */
  stateKey: (() => string) | undefined;
  /** All shared data of the scenario's is in cells, tables and locks of the world. */
  tracked = false;
  ended: Ended = "finished";

  readonly #strategy: Strategy;
  readonly #strands = new Map<number, Strand>();
  readonly #blocked = new Set<number>();
  readonly #threads: { readonly agent: Agent; readonly actor: Actor }[] = [];
  readonly #nativeActors: { readonly actor: Actor; settled: boolean }[] = [];
  #last = -1;
  #strand: Strand | undefined;
  #actor: Actor | undefined;
  #footprint: number[] = [];
  #native = false;
  #givenWay = 0;
  #settingUp = true;
  #locations: number = FIRST_FREE_LOCATION;
  #current: TraceStep | undefined;
  readonly #rules = new Set<Rule>();
  readonly #invariantReads = new Set<number>([USER_LOCATION]);
  #checking = false;

  constructor(strategy: Strategy, limits: RunLimits) {
    this.#strategy = strategy;
    this.limits = limits;
  }

  // ---- who runs -----------------------------------------------------------------------------------------------------

  addActor(name: string, daemon: boolean): Actor {
    const actor: Actor = { index: this.actors.length, name, daemon, done: false, strands: 0 };
    this.actors.push(actor);
    return actor;
  }

  /** Preconditions: every actor of the scenario's has been added. */
  addThread(agent: Agent, name: string): void {
    const actor = this.addActor(name, true);
    actor.strands = 1; // the first number is that of answering itself
    this.#threads.push({ agent, actor });
    agent.takeOver = (op, settle) => {
      const by = this.#strand;
      const served = by === undefined && this.#serving === actor;
      this.#beginNow(this.#spawn(served ? actor : (this.#actor ?? actor), agent, op, settle, !served, true));
    };
  }

  #serving: Actor | undefined;

  /** The thread that is running; the first one while the scenario is set up. */
  get agent(): Agent {
    const serving = this.#strand ? undefined : this.#threads.find(({ actor }) => actor === this.#serving);
    return this.#strand?.agent ?? serving?.agent ?? this.#threads[0]!.agent;
  }

  /** An agent has come to its end; or it is no agent of the scenario's. */
  isDone(name: string): boolean {
    return !this.actors.some((actor) => actor.name === name && !actor.done && !actor.daemon);
  }

  agentOf(thread: number): Agent {
    return this.#threads[thread]!.agent;
  }

  /** Who is running, for messages. */
  get who(): string {
    return this.#actor?.name ?? "setup";
  }

  /** Number of the strand that is running; -1 for the set-up and for messages. */
  get strandId(): number {
    return this.#strand?.id ?? -1;
  }

  get actorIndex(): number {
    return this.#actor?.index ?? -1;
  }

  get settingUp(): boolean {
    return this.#settingUp;
  }

  /** The callback that the running strand is inside of. */
  get callback(): string | undefined {
    return this.#strand?.callbacks.at(-1) ?? this.#plainCallbacks.at(-1);
  }

  readonly #plainCallbacks: string[] = [];

  /** Brackets a callback of the scenario's that is a plain function or the first part of one. */
  enterCallback(name: string): string[] {
    const into = this.#strand?.callbacks ?? this.#plainCallbacks;
    into.push(name);
    return into;
  }

  // ---- strands ------------------------------------------------------------------------------------------------------

  #spawn(
    actor: Actor,
    agent: Agent,
    op: Op<unknown>,
    settle: Task["settle"],
    awaited: boolean,
    real = false,
  ): Strand {
    const id = actor.strands++ * this.actors.length + actor.index;
    const settled: Task["settle"] = (outcome) => {
      if (awaited) this.#native = true;
      settle(outcome);
    };
    const task: Task = { op, mode: "checker", effect: undefined, held: [], settle: settled };
    const strand: Strand = {
      id,
      actor,
      agent,
      task,
      next: "begins",
      awaited,
      real,
      outcome: undefined,
      gaveWay: false,
      at: undefined,
      callbacks: [],
    };
    this.#strands.set(id, strand);
    return strand;
  }

  /** Adds an agent of the scenario's. Its first step calls `start`: a generator function, or an async one. */
  spawnAgent(actor: Actor, thread: number, start: () => unknown): void {
    const ended = (error?: { error: unknown }): void => {
      actor.done = true;
      if (error) this.threw(error.error, actor.name);
    };
    const op = (function* (run: Run): Op<void> {
      const result = start();
      if (isOp(result)) yield* result;
      if (!isPromise(result)) {
        actor.done = true;
        return;
      }
      const entry = { actor, settled: false };
      run.#nativeActors.push(entry);
      run.#native = true;
      result.then(
        () => {
          entry.settled = true;
          ended();
        },
        (error: unknown) => {
          entry.settled = true;
          ended({ error });
        },
      );
    })(this);
    this.#spawn(
      actor,
      this.agentOf(thread),
      op,
      (outcome) => {
        if ("error" in outcome) ended(outcome);
      },
      false,
    );
  }

  /** An awaited call: its steps are chosen like everybody's; see CallHost. */
  promise<T>(op: Op<T>): Promise<T> {
    if (this.#settingUp) return Promise.resolve(this.immediate(op));
    return new Promise<T>((resolve, reject) => {
      const { agent } = this;
      const strand = this.#spawn(
        this.#actor!,
        agent,
        op,
        (outcome) => {
          if ("error" in outcome) reject(outcome.error as Error);
          else resolve(outcome.value as T);
        },
        true,
      );
      this.#beginNow(strand);
    });
  }

  /** As `yield*` and the async driver do: at once to the first effect. */
  #beginNow(strand: Strand): void {
    const { agent, task } = strand;
    const outer = { strand: this.#strand, task: agent.current };
    this.#strand = strand;
    agent.current = task;
    this.touchMessages();
    this.#advance(strand, undefined);
    agent.current = outer.task;
    this.#strand = outer.strand;
  }

  /** The strand that is running does not go on before somebody else has moved, if anybody can. */
  giveWay(): void {
    const strand = this.#strand;
    if (!strand || strand.gaveWay) return;
    strand.gaveWay = true;
    this.#givenWay++;
    this.#footprint.unshift(EVERYTHING);
  }

  /** Runs an operation to its end at once, where nothing else runs yet. */
  immediate<T>(op: Op<T>): T {
    let r = op.next();
    while (r.done !== true) {
      const effect = r.value;
      if (effect.kind === "wait" && !effect.ready())
        r = op.throw(new Error(`it waits for ${effect.what}, and nobody else runs here`));
      else if (effect.kind === "host" && !effect.sync)
        r = op.throw(new Error(`it waits for the host: ${effect.what}`));
      else {
        if (effect.kind === "host") effect.sync!();
        r = op.next();
      }
    }
    return r.value;
  }

  // ---- what a step tells ----------------------------------------------------------------------------------------------

  newLocations(count: number): number {
    const first = this.#locations;
    this.#locations += count;
    return first;
  }

  touch(location: number, write: boolean): void {
    if (this.#checking) {
      this.#invariantReads.add(location);
      return;
    }
    const entry = location * 2 + (write ? 1 : 0);
    const { length } = this.#footprint;
    if (length === 0 || this.#footprint[length - 1] !== entry) this.#footprint.push(entry);
  }

  /** Other threads may have been asked for something, or answered. */
  touchMessages(): void {
    if (this.#threads.length > 1) this.touch(MESSAGES_LOCATION, true);
  }

  /** Code of the scenario's runs. */
  touchUser(): void {
    this.touch(USER_LOCATION, !this.tracked);
  }

  note(text: string): void {
    this.#current?.notes.push(text);
  }

  /** Notes a broken rule, once for each rule; the run goes on. */
  violate(rule: Rule, message: string): void {
    if (this.#rules.has(rule)) return;
    this.#rules.add(rule);
    this.findings.push({ rule, message, steps: this.choices.length, actor: this.who });
    const step = this.#current ?? this.trace.at(-1);
    step?.notes.push(`✗ ${rule}: ${message}`);
  }

  threw(error: unknown, name: string): void {
    // As a signal ends a process: the page may be gone, and that is nobody's mistake.
    if (error instanceof SegvError) {
      if (this.tracing) this.note(`${name} ends: ${error.message}`);
      return;
    }
    this.violate("threw", `${name} threw: ${textOf(error)}`);
  }

  // ---- the loop -------------------------------------------------------------------------------------------------------

  endSetup(): void {
    this.#settingUp = false;
    this.#footprint = [];
    this.#look();
  }

  /** Takes steps until the end. */
  *execute(): Generator<Drain, Ended, void> {
    const candidates: number[] = [];
    for (;;) {
      if (this.#finished()) return (this.ended = "finished");
      const steps = this.choices.length;
      if (steps >= this.limits.depth) return (this.ended = yield* this.#inTurn());
      this.#candidates(candidates);
      if (candidates.length === 0) {
        this.#stuck();
        return (this.ended = "deadlock");
      }
      const id = this.#strategy.choose(candidates, this);
      if (id < 0) return (this.ended = "abandoned");
      const went = yield* this.#take(id);
      if (went) this.#strategy.stepped(id, this.#footprint);
      else this.#strategy.blocked(id);
    }
  }

  #finished(): boolean {
    for (const { agent } of this.#threads) if (agent.wanted) return false;
    for (const { actor } of this.#strands.values()) if (!actor.daemon) return false;
    for (const actor of this.actors) if (!actor.daemon && !actor.done) return false;
    // What a thread has begun to answer is finished, too; an endless agent is not.
    for (const { actor } of this.#strands.values())
      if (this.#threads.some((thread) => thread.actor === actor)) return false;
    return true;
  }

  /** The last strand stands before a point, not in a wait: to take another one is a preemption. */
  get lastCouldGoOn(): boolean {
    const last = this.#strands.get(this.#last);
    return last !== undefined && last.task.effect === undefined && !last.gaveWay;
  }

  get last(): number {
    return this.#last;
  }

  /** What each strand does next, for a state's key. */
  position(): string {
    let text = "";
    for (const [id, strand] of this.#strands) text += `${id}:${strand.next};`;
    return text;
  }

  /** Whoever has given way is among them only where nobody else is. */
  #candidates(into: number[]): void {
    this.#list(into, false);
    if (into.length === 0 && this.#givenWay > 0) this.#list(into, true);
  }

  #list(into: number[], withThoseWhoGaveWay: boolean): void {
    into.length = 0;
    const last = this.#last;
    for (const [id, { gaveWay }] of this.#strands)
      if (id !== last && !this.#blocked.has(id) && (!gaveWay || withThoseWhoGaveWay)) into.push(id);
    for (const { agent, actor } of this.#threads)
      if (agent.wanted && actor.index !== last && !this.#blocked.has(actor.index)) into.push(actor.index);
    if (into.length > 1) into.sort((a, b) => a - b);
    const gaveWay = this.#strands.get(last)?.gaveWay === true && !withThoseWhoGaveWay;
    if (last >= 0 && !gaveWay && !this.#blocked.has(last) && this.#exists(last)) into.unshift(last);
  }

  #exists(id: number): boolean {
    return (
      this.#strands.has(id) || this.#threads.some(({ agent, actor }) => actor.index === id && agent.wanted)
    );
  }

  /** One step, or the discovery that there is none. */
  *#take(id: number): Generator<Drain, boolean, void> {
    this.#footprint = [];
    const strand = this.#strands.get(id);
    const went = strand ? this.#step(strand) : this.#serve(id);
    if (!went) {
      this.#blocked.add(id);
      return false;
    }
    if (this.#native) {
      this.#native = false;
      yield { until: undefined };
    }
    this.#strand = undefined;
    if (this.#blocked.size > 0) this.#blocked.clear();
    if (this.#givenWay > 0) {
      for (const other of this.#strands.values()) {
        if (!other.gaveWay || other.id === id) continue;
        other.gaveWay = false;
        this.#givenWay--;
      }
    }
    this.#last = id;
    this.#look();
    if (this.#current) this.#current.state = this.describe();
    this.#current = undefined;
    return true;
  }

  #begin(id: number, actor: Actor, what: string): void {
    this.choices.push(id);
    if (!this.tracing) return;
    this.#current = { actor: actor.index, what, notes: [], state: "" };
    this.trace.push(this.#current);
  }

  #serve(id: number): boolean {
    const thread = this.#threads.find(({ actor }) => actor.index === id)!;
    this.#strand = undefined;
    this.#actor = thread.actor;
    this.#begin(id, thread.actor, "answers its messages");
    this.touchUser();
    this.touch(MESSAGES_LOCATION, true);
    this.#serving = thread.actor;
    try {
      thread.agent.safepoint();
    } finally {
      this.#serving = undefined;
    }
    return true;
  }

  #step(strand: Strand): boolean {
    const { task, agent } = strand;
    if (strand.gaveWay) {
      strand.gaveWay = false;
      this.#givenWay--;
    }
    this.#strand = strand;
    this.#actor = strand.actor;
    let input: { error: unknown } | undefined;
    const { effect } = task;
    const outer = agent.current;
    agent.current = task;
    try {
      if (effect) {
        try {
          if (!effect.ready()) return false;
        } catch (error) {
          input = { error };
        }
        task.effect = undefined;
      }
      this.#begin(strand.id, strand.actor, strand.next);
      if (strand.outcome) {
        this.#settle(strand, strand.outcome);
        return true;
      }
      // Waits and the operations of a real memory may have to do with messages; other steps say so themselves.
      if (effect || strand.real) this.touchMessages();
      this.#advance(strand, input);
      if (task.effect) this.touchMessages();
      return true;
    } finally {
      agent.current = outer;
    }
  }

  /** To the next effect. */
  #advance(strand: Strand, thrown: { error: unknown } | undefined): void {
    const { task } = strand;
    let input = thrown;
    for (;;) {
      let r;
      try {
        r = input ? task.op.throw(input.error) : task.op.next();
      } catch (error) {
        this.#end(strand, { error });
        return;
      }
      if (r.done === true) {
        this.#end(strand, { value: r.value });
        return;
      }
      const at = r.value;
      if (at.kind === "host") {
        input = this.#host(task, at);
        if (!task.effect) continue;
        strand.at = undefined;
      } else if (at.kind === "wait") task.effect = at;
      // The same point of the same call: only the world's own code has run since.
      if (at !== strand.at) this.touchUser();
      strand.at = at;
      strand.next = at.kind === "wait" ? `waits for ${at.what}` : at.what;
      return;
    }
  }

  #end(strand: Strand, outcome: { value: unknown } | { error: unknown }): void {
    if (!strand.awaited) {
      this.#settle(strand, outcome);
      return;
    }
    strand.outcome = outcome;
    strand.next = "goes on after its await";
    strand.at = undefined;
  }

  #settle(strand: Strand, outcome: { value: unknown } | { error: unknown }): void {
    this.touchUser();
    this.#strands.delete(strand.id);
    if (strand.gaveWay) this.#givenWay--;
    strand.task.settle(outcome);
  }

  #host(
    task: Task,
    effect: { sync: (() => void) | undefined; start: () => Promise<void>; what: string },
  ): { error: unknown } | undefined {
    if (effect.sync) {
      try {
        effect.sync();
        return undefined;
      } catch (error) {
        return { error };
      }
    }
    let settled: { error: unknown } | "fulfilled" | undefined;
    this.#native = true;
    effect.start().then(
      () => (settled = "fulfilled"),
      (error: unknown) => (settled = { error }),
    );
    task.effect = {
      kind: "wait",
      queue: 0,
      owner: undefined,
      what: effect.what,
      ready: () => {
        this.touchUser();
        if (typeof settled === "object") throw settled.error;
        return settled !== undefined;
      },
    };
    return undefined;
  }

  /** The invariant, after each step. What it depends on makes steps depend on each other. */
  #look(): void {
    const { invariant } = this;
    if (!invariant) return;
    this.#checking = true;
    try {
      invariant();
    } catch (error) {
      this.violate("invariant", textOf(error));
    } finally {
      this.#checking = false;
    }
    const writes = this.#footprint.some((x) => x >= 0 && (x & 1) === 1 && this.#invariantReads.has(x >> 1));
    if (writes) this.touch(INVARIANT_LOCATION, true);
  }

  #stuck(): void {
    const waits = [...this.#strands.values()]
      .filter(({ actor }) => !actor.daemon || this.#threads.some((thread) => thread.actor === actor))
      .map(({ actor, task }) => `${actor.name} waits for ${task.effect?.what ?? "nothing"}`);
    for (const { actor, settled } of this.#nativeActors)
      if (!settled && ![...this.#strands.values()].some((s) => s.actor === actor))
        waits.push(`${actor.name} awaits something that nothing in the scenario settles`);
    this.violate("deadlock", waits.join("; "));
  }

  /** Beyond the depth: everybody in turn. A scenario that has an end comes to it. */
  *#inTurn(): Generator<Drain, Ended, void> {
    const quantum = 1 + (this.choices.reduce((sum, id) => (sum + id) % 97, 0) % RHYTHMS);
    let turn = -1;
    const candidates: number[] = [];
    for (let steps = 0; steps < this.limits.fairSteps;) {
      if (this.#finished()) return "finished";
      this.#candidates(candidates);
      candidates.sort((a, b) => a - b);
      if (candidates.length === 0) {
        this.#stuck();
        return "deadlock";
      }
      turn = candidates.find((id) => id > turn) ?? candidates[0]!;
      for (let k = 0; k < quantum && this.#exists(turn); k++) {
        if (!(yield* this.#take(turn))) break;
        steps++;
      }
    }
    const going = this.actors.filter(({ daemon, done }) => !daemon && !done).map(({ name }) => name);
    this.violate(
      "no-progress",
      `${going.join(", ") || "answering messages"}: no end after ${this.choices.length} steps, the last ${this.limits.fairSteps} of them with everybody in turn`,
    );
    return "no progress";
  }
}

export function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
