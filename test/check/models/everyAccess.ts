/**
 * Locks with a point before each access to shared words. They are plain functions, which the explorer does not interrupt; so
 * a function is run from its beginning again for each access: all before it are answered with what they gave the first
 * time, and the new one is what the step does. That needs functions that share nothing but words of the arena with others, and
 * that do the same when they are answered the same.
 *
 * Blocking waits are the real driver's: arm, test again, sleep. Who sleeps goes on when its word is notified, not when its
 * condition is true, and never because a slice of time has passed: a wake-up that is lost is a deadlock.
 */
import { Point, type Run } from "../../../src/check/run.ts";
import type { World } from "../../../src/check/index.ts";
import { allocWords } from "../../../src/memory/index.ts";
import { type Agent, type Op, runBlocking } from "../../../src/sched/index.ts";
import { AG_BELL, AG_SLEEP, AG_WORDS, agentAt, schedEnd } from "../../../src/sched/layout.ts";

/** A sleep shorter than this is a nap between two looks: it ends by itself. */
const NAP_MS = 1;

type Name =
  "load" | "store" | "add" | "sub" | "and" | "or" | "exchange" | "compareExchange" | "notify" | "wait";
type Access = (words: Int32Array, at: number, ...values: number[]) => unknown;

const real = Object.fromEntries(
  (
    [
      "load",
      "store",
      "add",
      "sub",
      "and",
      "or",
      "exchange",
      "compareExchange",
      "notify",
      "wait",
    ] satisfies Name[]
  ).map((name) => [name, (Atomics[name] as Access).bind(Atomics)]),
) as Record<Name, Access>;

interface Sleeper {
  readonly at: number;
  woken: boolean;
}

/** What a function comes to that has not been answered yet. */
interface Pending {
  readonly name: Name;
  readonly at: number;
  readonly values: readonly number[];
}

class Suspended extends Error {}

/** The words of a world's arena. One for each world, made in setup. */
export class SharedWords {
  readonly #run: Run;
  readonly #words: Int32Array;
  readonly #firstLocation: number;
  readonly #firstFree: number;
  readonly #heap: number;
  readonly maxAgents: number;
  #sleepers: Sleeper[] = [];

  constructor(world: World) {
    this.#run = world.run;
    const { words } = world.run.agentOf(0);
    this.#words = words;
    this.#firstLocation = world.run.newLocations(words.length);
    const { heap, maxAgents } = world.space({ pages: 1 }).realNotifiers().context;
    this.#heap = heap;
    this.maxAgents = maxAgents;
    this.#firstFree = schedEnd(maxAgents);
  }

  /** Words of zeros. In setup. */
  alloc(count: number): number {
    return allocWords(this.#run.agentOf(0), this.#heap, count);
  }

  /** Runs `body` in a thread of its own, others between any two of its accesses. */
  *each<T>(agent: Agent, what: string, body: () => T): Op<T> {
    const answers: unknown[] = [];
    const point = new Point(what);
    for (let last = ""; ;) {
      const { pending, result } = this.#again(agent, answers, body);
      if (!pending) return (result as () => T)();
      const { name, at, values } = pending;
      yield point.at(
        `${what}: ${name} ${at - this.#firstFree}${values.map((value) => `, ${value}`).join("")}`,
      );
      if (name === "wait" && real.load(this.#words, at) === values[0]) yield* this.#sleepOp(at);
      const answer = this.#perform(pending);
      answers.push(answer);
      // It looks at the same again, and nothing has changed.
      const access = `${name} ${at} ${values.join()} ${String(answer)}`;
      if (access === last) this.#run.giveWay();
      last = access;
    }
  }

  /** Runs an operation in the blocking driver. */
  blocking<T>(agent: Agent, op: () => Op<T>, what: string = "takes it"): Op<T> {
    return this.each(agent, what, () => runBlocking(agent, op()));
  }

  *#sleepOp(at: number): Op<void> {
    const sleeper = { at, woken: false };
    this.#sleepers.push(sleeper);
    this.#touch(at, true);
    const ready = (): boolean => {
      this.#touch(at, false);
      return sleeper.woken;
    };
    yield { kind: "wait", queue: 0, owner: undefined, ready, what: "a ring" };
  }

  #touch(at: number, write: boolean): void {
    this.#run.touch(this.#firstLocation + at, write);
  }

  #perform({ name, at, values }: Pending): unknown {
    if (name === "wait") {
      this.#touch(at, false);
      return "ok";
    }
    if (name === "notify") {
      this.#touch(at, true);
      const woken = this.#sleepers.filter((sleeper) => sleeper.at === at);
      for (const sleeper of woken) sleeper.woken = true;
      this.#sleepers = this.#sleepers.filter((sleeper) => sleeper.at !== at);
      return woken.length;
    }
    const answer = real[name](this.#words, at, ...values);
    const reads = name === "load" || (name === "compareExchange" && answer !== values[0]);
    this.#touch(at, !reads);
    return answer;
  }

  /** Words of locks, doorbells, and who sleeps: the others are each agent's own here. */
  #isShared(at: number): boolean {
    if (at >= this.#firstFree) return true;
    const field = (at - agentAt(0)) % AG_WORDS;
    return at >= agentAt(0) && (field === AG_BELL || field === AG_SLEEP);
  }

  /** Runs a function up to the first access that has no answer. */
  #again<T>(
    agent: Agent,
    answers: unknown[],
    body: () => T,
  ): { pending: Pending | undefined; result: (() => T) | undefined } {
    let next = 0;
    let pending: Pending | undefined;
    const access = (name: Name, at: number, values: readonly number[]): unknown => {
      if (name === "wait" && values[1]! < NAP_MS) return "timed-out";
      if (next < answers.length) return answers[next++];
      // Once more, where what it has thrown was caught.
      if (pending) throw new Suspended();
      const wanted = { name, at, values };
      if (this.#isShared(at)) {
        pending = wanted;
        throw new Suspended();
      }
      const answer = this.#perform(wanted);
      answers.push(answer);
      next++;
      return answer;
    };
    const { words, mayBlock, spinRounds } = agent;
    const own = agent as { words: Int32Array; mayBlock: boolean; spinRounds: number };
    // Plain accesses are accesses, too.
    own.words = new Proxy(words, {
      get: (target, key) =>
        typeof key === "string" && /^\d+$/.test(key)
          ? access("load", Number(key), [])
          : Reflect.get(target, key, target),
    });
    own.mayBlock = true;
    own.spinRounds = 0;
    const { now } = performance;
    const atomics = saved();
    let clock = 0;
    performance.now = () => ++clock;
    for (const name of Object.keys(real) as Name[])
      (Atomics as unknown as Record<Name, Access>)[name] = (_, at, ...values) => access(name, at, values);
    try {
      const value = body();
      return { pending, result: pending ? undefined : () => value };
    } catch (error) {
      if (pending) return { pending, result: undefined };
      return {
        pending,
        result: () => {
          throw error;
        },
      };
    } finally {
      Object.assign(Atomics, atomics);
      performance.now = now;
      Object.assign(own, { words, mayBlock, spinRounds });
    }
  }
}

const saved = (): Record<string, unknown> =>
  Object.fromEntries(Object.keys(real).map((name) => [name, Atomics[name as Name]]));
