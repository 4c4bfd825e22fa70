/**
 * The deterministic checker driver: several agents in one thread, one step at a time, and a seed says whose.
 *
 * A step runs one task from one effect to the next, or one safepoint of one agent. A wait is asked for readiness
 * only when its task is chosen, because asking may take a lock. When every task has been asked since the last
 * progress and none could go on, the schedule is a deadlock. The same seed gives the same schedule.
 */
import { InvariantError } from "../errors.ts";
import type { Agent, Task } from "./agent.ts";
import { ask, type Input, NOT_YET, runReadyTasks } from "./drivers.ts";
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
    agent.simulated = true;
    this.#agents.add(agent);
  }

  /** Adds an operation to run on `agent`. */
  spawn(agent: Agent, name: string, op: Op<unknown>): void {
    this.addAgent(agent);
    const task: Task = { op, mode: "checker", effect: undefined, held: [], settle: () => {} };
    this.#actors.push({ agent, name, task, done: false, error: undefined });
  }

  /** Runs everything to its end, messages that nobody waits for included. Throws the first error of an actor, or names a deadlock. */
  run(maxSteps: number): void {
    const failed: Actor[] = [];
    let blocked = new Set<unknown>();
    for (let steps = 0; ; steps++) {
      const open = this.#actors.filter((a) => !a.done);
      const agents = [...this.#agents].filter((a) => a.wanted || a.tasks.size > 0);
      if (open.length === 0 && agents.length === 0) break;
      const choices = [...open, ...agents].filter((a) => !blocked.has(a));
      if (choices.length === 0 || steps >= maxSteps) {
        // What an actor left behind when it failed is what stops the others.
        if (failed[0]) throw failed[0].error;
        throw new InvariantError(
          choices.length === 0
            ? `deadlock: ${[...waitsOf(open), ...agents.flatMap(waitsIn)].join("; ")} (${this.schedule.join(" ")})`
            : `no end after ${maxSteps} steps: ${this.schedule.slice(-40).join(" ")}`,
        );
      }
      const chosen = choices[this.#choose(choices.length)]!;
      const progressed = "task" in chosen ? this.#step(chosen) : this.#safepoint(chosen);
      if (progressed) blocked = new Set();
      else blocked.add(chosen);
      if (progressed && "task" in chosen && chosen.error !== undefined) failed.push(chosen);
    }
    if (failed[0]) throw failed[0].error;
  }

  /** A safepoint, and whatever suspended tasks of the agent can go on. */
  #safepoint(agent: Agent): boolean {
    const { wanted } = agent;
    this.schedule.push(`@${agent.slot}`);
    agent.safepoint();
    const progressed = runReadyTasks(agent) || (wanted && !agent.wanted);
    if (!progressed) this.schedule.pop();
    return progressed;
  }

  #step(actor: Actor): boolean {
    const { agent, task } = actor;
    let input: Input;
    if (task.effect) {
      const answer = usable(agent) ?? ask(agent, task, task.effect);
      if (answer === NOT_YET) return false;
      input = answer;
    }
    task.effect = undefined;
    this.schedule.push(actor.name);
    agent.current = task;
    try {
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
      actor.error = error ?? new InvariantError(`${actor.name} threw nothing`);
      return true;
    } finally {
      agent.current = undefined;
    }
  }
}

/** As in the other drivers: nobody goes on waiting in a memory that a death has poisoned. */
function usable(agent: Agent): Input {
  try {
    agent.checkUsable("wait");
    return undefined;
  } catch (error) {
    return { error };
  }
}

const waitsOf = (open: readonly Actor[]): string[] =>
  open.map((a) => `${a.name} waits for ${a.task.effect?.what}`);

const waitsIn = (agent: Agent): string[] =>
  [...agent.tasks].map((task) => `a task of agent ${agent.slot} waits for ${task.effect?.what}`);
