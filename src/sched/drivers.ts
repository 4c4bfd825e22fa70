/**
 * The three drivers that run an operation for a user: blocking, async and non-blocking ("try").
 *
 * While the blocking driver waits it serves the agent's mailbox and resumes other suspended tasks of the agent,
 * never one whose generator is on the stack. The async driver listens on the doorbell with Atomics.waitAsync and
 * keeps the process alive while something is pending. The non-blocking driver spins for a bounded time and then
 * throws EAGAIN into the operation, which puts back what it changed (rule O1).
 */
import { MmError } from "../errors.ts";
import type { Agent, Task } from "./agent.ts";
import { checkLiveness } from "./death.ts";
import { slotOfOwner } from "./layout.ts";
import { isPromise, type Effect, type HostEffect, type Op, type WaitEffect } from "./op.ts";

/** A blocking wait sleeps in slices, so that it notices the death of whom it waits for. */
const SLICE_MS = 100;
/** After this long a wait is reported once: somebody computes without poll(). */
const SOFT_LOCKUP_MS = 10_000;
/** How long the non-blocking driver spins at most before it gives up with EAGAIN. */
const TRY_SPIN_MS = 0.2;
/** While spinning, look at the mailbox and the flush requests every so many rounds. */
const SERVE_EVERY = 16;
/** Timer that keeps the event loop alive for subscriptions only; it has nothing to do. */
const IDLE_TICK_MS = 0x7fffffff;

type Step = { done: true; value: unknown } | { done: false; effect: Effect };
/** What an operation is resumed with: an error, or nothing. */
export type Input = { error: unknown } | undefined;
export const NOT_YET = "not yet";

interface Timer {
  ref?(): void;
  unref?(): void;
}

function step(agent: Agent, task: Task, input: Input): Step {
  const outer = agent.current;
  agent.current = task;
  try {
    const r = input ? task.op.throw(input.error) : task.op.next();
    return r.done === true ? { done: true, value: r.value } : { done: false, effect: r.value };
  } finally {
    agent.current = outer;
  }
}

const eagain = (what: string): MmError =>
  new MmError("EAGAIN", "try", `would have to wait for ${what}; try again, or use the Promise form`);

const edeadlk = (what: string): MmError =>
  new MmError(
    "EDEADLK",
    "sync",
    `waits for ${what}, which only this agent's event loop can deliver; use the Promise form`,
  );

/** Runs a host effect that completes at once; says why not otherwise. */
function hostNow(effect: HostEffect, mode: "blocking" | "try"): Input {
  if (!effect.sync) return { error: mode === "try" ? eagain(effect.what) : edeadlk(effect.what) };
  try {
    effect.sync();
    return undefined;
  } catch (error) {
    return { error };
  }
}

/**
 * Asks whether a wait is over, on behalf of its task: what `ready` takes is the task's, and an error that it throws
 * goes to the operation, which unwinds.
 */
export function ask(agent: Agent, task: Task, effect: WaitEffect): Input | typeof NOT_YET {
  const outer = agent.current;
  agent.current = task;
  try {
    return effect.ready() ? undefined : NOT_YET;
  } catch (error) {
    return { error };
  } finally {
    agent.current = outer;
  }
}

/** Asks again and again, serving others meanwhile. */
function spin(agent: Agent, task: Task, effect: WaitEffect, rounds: number): Input | typeof NOT_YET {
  for (let k = 1; k <= rounds; k++) {
    const answer = ask(agent, task, effect);
    if (answer !== NOT_YET) return answer;
    if (k % SERVE_EVERY === 0) agent.safepoint();
  }
  return ask(agent, task, effect);
}

/** Runs an operation to its end in this agent. Errors: EDEADLK inside a callback, EOWNERDEAD on a poisoned memory. */
export function runBlocking<T>(agent: Agent, op: Op<T>): T {
  agent.checkNotInCallback("sync");
  if (!agent.mayBlock) return runTry(agent, op);
  const task: Task = { op, mode: "blocking", effect: undefined, held: [], settle: () => {} };
  let input: Input;
  for (;;) {
    const r = step(agent, task, input);
    if (r.done) return r.value as T;
    input = undefined;
    if (r.effect.kind === "host") input = hostNow(r.effect, "blocking");
    else if (r.effect.kind === "wait") input = block(agent, task, r.effect);
  }
}

/** Sleeps until the effect is ready. */
function block(agent: Agent, task: Task, effect: WaitEffect): Input {
  const answer = spin(agent, task, effect, agent.spinRounds);
  if (answer !== NOT_YET) return answer;
  const began = performance.now();
  let reported = false;
  for (;;) {
    const bell = agent.bell();
    agent.safepoint();
    agent.arm(effect.queue);
    armTasks(agent);
    // Armed, so tested again: what became true before it was armed rings nobody.
    const ran = runReadyTasks(agent);
    const later = ask(agent, task, effect);
    if (later !== NOT_YET) return later;
    try {
      agent.checkUsable("wait");
    } catch (error) {
      return { error };
    }
    if (needsEventLoop(agent, effect)) return { error: edeadlk(effect.what) };
    // A task that ran may have a new wait, which is not armed.
    if (!ran && agent.bell() === bell) agent.park(bell, SLICE_MS);
    const waited = performance.now() - began;
    if (waited > SLICE_MS) watch(agent, effect);
    if (waited > SOFT_LOCKUP_MS && !reported) {
      reported = true;
      reportLockup(agent, effect, waited);
    }
  }
}

/** Arms the waits of all suspended tasks: a wake has consumed some, and does not say which. */
function armTasks(agent: Agent): void {
  for (const { effect } of agent.tasks) if (effect) agent.arm(effect.queue);
}

/**
 * True if what `effect` waits for may need this agent's event loop, which does not run while the agent sleeps: the
 * agent owes others something that the host delivers, or waits for itself and has no task that could go on.
 */
function needsEventLoop(agent: Agent, effect: WaitEffect): boolean {
  if (agent.owed > 0) return true;
  if (agent.tasks.size > 0 && agent.hostWaits === 0) return false;
  return effect.owner?.() === agent.ownerId;
}

function watch(agent: Agent, effect: WaitEffect): void {
  const owner = effect.owner?.() ?? 0;
  if (owner !== 0 && owner !== agent.ownerId) checkLiveness(agent, owner);
}

function reportLockup(agent: Agent, effect: WaitEffect, waitedMs: number): void {
  const owner = effect.owner?.() ?? 0;
  const whom = owner === 0 ? "" : ` held up by agent ${slotOfOwner(owner)}`;
  agent.report(
    new MmError(
      "ETIMEDOUT",
      "soft lockup",
      `waiting for ${effect.what}${whom} for ${Math.round(waitedMs / 1000)} s; a long loop must call memory.poll()`,
    ),
  );
}

/** Runs an operation without ever waiting. Errors: EAGAIN where it would have to. */
export function runTry<T>(agent: Agent, op: Op<T>): T {
  agent.checkNotInCallback("try");
  // Served first, so that a loop of tries never starves the agent that must answer.
  agent.safepoint();
  const task: Task = { op, mode: "try", effect: undefined, held: [], settle: () => {} };
  let input: Input;
  for (;;) {
    const r = step(agent, task, input);
    if (r.done) return r.value as T;
    input = undefined;
    if (r.effect.kind === "host") input = hostNow(r.effect, "try");
    else if (r.effect.kind === "wait") {
      const until = performance.now() + TRY_SPIN_MS;
      let answer = spin(agent, task, r.effect, SERVE_EVERY);
      while (answer === NOT_YET && agent.shared && performance.now() < until)
        answer = spin(agent, task, r.effect, SERVE_EVERY);
      input = answer === NOT_YET ? { error: eagain(r.effect.what) } : answer;
    }
  }
}

/** Runs an operation; the promise settles when it is done. Anywhere, the agent is not blocked meanwhile. */
export function runAsync<T>(agent: Agent, op: Op<T>): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    start(agent, op, (outcome) => {
      if ("error" in outcome) reject(outcome.error as Error);
      else resolve(outcome.value as T);
    });
  });
}

/** Starts an operation of this agent's in the async driver. `settle` hears of its end, once. */
export function start<T>(
  agent: Agent,
  op: Op<T>,
  settle: (outcome: { value: unknown } | { error: unknown }) => void,
): void {
  try {
    agent.checkNotInCallback("operation");
  } catch (error) {
    settle({ error });
    return;
  }
  if (agent.takeOver) {
    agent.takeOver(op, settle);
    return;
  }
  advance(agent, { op, mode: "async", effect: undefined, held: [], settle }, undefined);
}

/** Waits for a user's promise on behalf of an operation that has a range open or owes an answer. In a blocking driver that is EDEADLK. */
export function* promiseOp<T>(promise: PromiseLike<T>, what: string): Op<T> {
  let value: T | undefined;
  yield {
    kind: "host",
    sync: undefined,
    what,
    owed: true,
    start: async (): Promise<void> => {
      value = await promise;
    },
  };
  return value as T;
}

/** Drives what a callback returned: a value, an operation, or a promise. */
export function* settleOp<T>(
  result: T | PromiseLike<T> | Op<T>,
  isOperation: (x: unknown) => x is Op<T>,
  what: string,
): Op<T> {
  if (isOperation(result)) return yield* result;
  if (isPromise(result)) return yield* promiseOp(result as PromiseLike<T>, what);
  return result as T;
}

function advance(agent: Agent, task: Task, input: Input): void {
  for (;;) {
    let r: Step;
    try {
      r = step(agent, task, input);
    } catch (error) {
      task.settle({ error });
      return;
    }
    input = undefined;
    if (r.done) {
      task.settle({ value: r.value });
      return;
    }
    const { effect } = r;
    if (effect.kind === "point") continue;
    if (effect.kind === "host") {
      if (effect.sync) {
        input = hostNow(effect, "blocking");
        continue;
      }
      awaitHost(agent, task, effect);
      return;
    }
    const answer = spin(agent, task, effect, agent.simulated ? 0 : agent.spinRounds);
    if (answer !== NOT_YET) {
      input = answer;
      continue;
    }
    task.effect = effect;
    agent.tasks.add(task);
    loopOf(agent).suspended(task);
    return;
  }
}

function awaitHost(agent: Agent, task: Task, effect: HostEffect): void {
  const loop = loopOf(agent);
  const owed = effect.owed === true ? 1 : 0;
  agent.hostWaits++;
  agent.owed += owed;
  loop.retain();
  const resume = (input: Input): void => {
    agent.hostWaits--;
    agent.owed -= owed;
    loop.release();
    advance(agent, task, input);
  };
  // In an async function, so that a start() that throws is a rejection too.
  const started = (async (): Promise<void> => effect.start())();
  started.then(
    () => resume(undefined),
    (error: unknown) => resume({ error }),
  );
}

/** Resumes every suspended task whose wait is over. True if there was one. */
export function runReadyTasks(agent: Agent): boolean {
  let any = false;
  for (const task of [...agent.tasks]) if (runReadyTask(agent, task)) any = true;
  return any;
}

function runReadyTask(agent: Agent, task: Task): boolean {
  const { effect } = task;
  if (!effect || !agent.tasks.has(task)) return false;
  let answer: Input | typeof NOT_YET;
  try {
    agent.checkUsable("wait");
    answer = ask(agent, task, effect);
  } catch (error) {
    answer = { error };
  }
  if (answer === NOT_YET) return false;
  agent.tasks.delete(task);
  task.effect = undefined;
  advance(agent, task, answer);
  return true;
}

// ---- the event loop's side ---------------------------------------------------------------------------------

const loops = new WeakMap<Agent, EventLoop>();

export function loopOf(agent: Agent): EventLoop {
  let loop = loops.get(agent);
  if (!loop) {
    loop = new EventLoop(agent);
    loops.set(agent, loop);
  }
  return loop;
}

/**
 * Listens on the agent's doorbell from its event loop while tasks are suspended or something of the agent's can
 * be called from elsewhere (subscriptions, backings), and keeps the process alive for as long.
 */
export class EventLoop {
  readonly #agent: Agent;
  /** Subscriptions and backings that others may call. */
  #listeners = 0;
  /** Those of them, and host effects, that keep the process alive. */
  #retained = 0;
  /** A waitAsync is there, which every ring wakes as long as the agent says that it is armed. */
  #listening = false;
  #pumping = false;
  #timer: Timer | undefined;
  #timerMs = 0;

  constructor(agent: Agent) {
    this.#agent = agent;
    agent.wakeUp = () => this.#wake();
  }

  /** Something that lives in this agent can be called by others from now on. */
  listen(): void {
    this.#listeners++;
    this.retain();
    if (!this.#listening) this.pump();
  }

  unlisten(retained: boolean): void {
    this.#listeners--;
    if (retained) this.release();
  }

  /** Keeps the process alive until release(). */
  retain(): void {
    this.#retained++;
    this.#keepAlive();
  }

  release(): void {
    this.#retained--;
    this.#keepAlive();
  }

  /** `task` has just been suspended: makes sure that a ring reaches it. */
  suspended(task: Task): void {
    const agent = this.#agent;
    if (!this.#listening || this.#pumping) {
      this.pump();
      return;
    }
    this.#keepAlive();
    if (agent.simulated) return;
    agent.setArmed(true);
    agent.arm(task.effect!.queue);
    runReadyTask(agent, task);
  }

  /** Makes sure that somebody listens on the doorbell. */
  pump(): void {
    this.#keepAlive();
    const agent = this.#agent;
    // Called again from a task or a message: the loop below has not come to the arming yet, or comes to it again.
    if (this.#pumping || agent.simulated) return;
    this.#pumping = true;
    try {
      while (!this.#settle());
    } finally {
      this.#pumping = false;
    }
    this.#keepAlive();
  }

  /** One round: true once nothing is ready and somebody listens, or nobody needs to. */
  #settle(): boolean {
    const agent = this.#agent;
    if (agent.detached) return true; // its slot may be another's by now
    if (agent.tasks.size === 0 && this.#listeners === 0) {
      agent.setArmed(false);
      return true;
    }
    const bell = agent.bell();
    agent.setArmed(true);
    agent.safepoint(); // before the arming, because a message may start a task
    armTasks(agent);
    if (runReadyTasks(agent)) return false;
    if (this.#listening) return true;
    if (!agent.shared) {
      // ring() calls agent.wakeUp; a doorbell that changed meanwhile is looked at again at once.
      this.#listening = agent.bell() === bell;
      return this.#listening;
    }
    const waiting = Atomics.waitAsync(agent.words, agent.base, bell); // AG_BELL is the slot's first word
    if (!waiting.async) return false;
    this.#listening = true;
    void waiting.value.then(() => this.#wake());
    return true;
  }

  #wake(): void {
    this.#listening = false;
    this.pump();
  }

  #keepAlive(): void {
    const agent = this.#agent;
    const pending = agent.tasks.size > 0;
    // In a memory that is not shared nobody else can call a subscription, so it is no reason to stay.
    const needed = agent.shared ? this.#retained : agent.hostWaits;
    const idle = agent.detached || agent.simulated || (!pending && needed === 0);
    const wanted = idle ? 0 : pending ? SLICE_MS : IDLE_TICK_MS;
    if (wanted === this.#timerMs) return;
    if (this.#timer !== undefined) clearInterval(this.#timer as never);
    this.#timerMs = wanted;
    this.#timer = wanted === 0 ? undefined : (setInterval(() => this.#tick(), wanted) as Timer);
  }

  #tick(): void {
    for (const task of this.#agent.tasks) if (task.effect) watch(this.#agent, task.effect);
    if (runReadyTasks(this.#agent)) this.pump();
    this.#keepAlive();
  }
}
