/**
 * The deterministic checker driver: several agents in one thread, one step at a time, and a seed says whose.
 *
 * A step runs one task from one effect to the next, or one safepoint of one agent. A wait is asked for readiness
 * only when its task is chosen, because asking may take a lock. When every task has been asked since the last
 * progress and none could go on, the schedule is a deadlock. The same seed gives the same schedule.
 */
import { InvariantError } from "../errors.ts";
import type { Agent, Task } from "./agent.ts";
import type { Op } from "./op.ts";

interface Actor {
  readonly agent: Agent;
  readonly name: string;
  readonly task: Task;
  done: boolean;
  error: unknown;
}

/** Picks one of `n` choices, 0 to n - 1. */
export type Chooser = (n: number) => number;

/** A small seeded generator (mulberry32): the same seed gives the same choices. */
export function seededChooser(seed: number): Chooser {
  let state = seed | 0;
  return (n) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % n;
  };
}

export class CheckerDriver {
  readonly #choose: Chooser;
  readonly #actors: Actor[] = [];
  readonly #agents = new Set<Agent>();
  /** Names of the actors in the order in which they took steps. */
  readonly schedule: string[] = [];

  constructor(choose: Chooser) {
    this.#choose = choose;
  }

  /** Adds an agent that has no operation of its own but answers at its safepoints. */
  addAgent(agent: Agent): void {
    this.#agents.add(agent);
  }

  /** Adds an operation to run on `agent`. */
  spawn(agent: Agent, name: string, op: Op<unknown>): void {
    this.#agents.add(agent);
    const task: Task = { op, mode: "checker", effect: undefined, held: [], settle: () => {} };
    this.#actors.push({ agent, name, task, done: false, error: undefined });
  }

  /** Runs everything to its end. Throws the first error of an actor, or names a deadlock. */
  run(maxSteps: number): void {
    let blocked = new Set<unknown>();
    for (let steps = 0; ; steps++) {
      const open = this.#actors.filter((a) => !a.done);
      if (open.length === 0) break;
      if (steps >= maxSteps)
        throw new InvariantError(`no end after ${maxSteps} steps: ${this.schedule.slice(-40).join(" ")}`);
      const agents = [...this.#agents].filter((a) => a.wanted);
      const choices: (Actor | Agent)[] = [
        ...open.filter((a) => !blocked.has(a)),
        ...agents.filter((a) => !blocked.has(a)),
      ];
      if (choices.length === 0) {
        const waits = open.map((a) => `${a.name} waits for ${a.task.effect?.what}`).join("; ");
        throw new InvariantError(`deadlock: ${waits} (${this.schedule.join(" ")})`);
      }
      const chosen = choices[this.#choose(choices.length)]!;
      const progressed = "task" in chosen ? this.#step(chosen) : this.#safepoint(chosen);
      if (progressed) blocked = new Set();
      else blocked.add(chosen);
    }
    const failed = this.#actors.find((a) => a.error !== undefined);
    if (failed) throw failed.error;
  }

  #safepoint(agent: Agent): boolean {
    this.schedule.push(`@${agent.slot}`);
    agent.safepoint();
    return !agent.wanted;
  }

  #step(actor: Actor): boolean {
    const { agent, task } = actor;
    if (task.effect && !task.effect.ready()) return false;
    task.effect = undefined;
    this.schedule.push(actor.name);
    agent.current = task;
    try {
      let input: { error: unknown } | undefined;
      for (;;) {
        const r = input ? task.op.throw(input.error) : task.op.next();
        if (r.done === true) {
          actor.done = true;
          return true;
        }
        const effect = r.value;
        if (effect.kind === "wait") {
          task.effect = effect;
          return true;
        }
        if (effect.kind === "point") return true;
        input = undefined;
        if (!effect.sync) throw new InvariantError(`the checker cannot wait for the host: ${effect.what}`);
        try {
          effect.sync();
        } catch (error) {
          input = { error };
        }
      }
    } catch (error) {
      actor.done = true;
      actor.error = error;
      return true;
    } finally {
      agent.current = undefined;
    }
  }
}
