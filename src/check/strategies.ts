/**
 * Whose step is next: depth first, with or without sleep sets and a bound of preemptions; at random; by priorities (PCT);
 * or as a schedule says.
 *
 * Sleep sets (Godefroid): once all that begins with strand A at some state has been explored, A sleeps in the other
 * branches of that state until a step is taken that does not commute with A's. What would only repeat an order of
 * steps that makes no difference is not run to its end. A strand's step is known by its footprint when it has run, and
 * that is when it is put to sleep.
 */
import { conflict, type Footprint } from "./footprint.ts";
import type { Run, Strategy } from "./run.ts";
import { ScenarioError } from "./scenarioError.ts";

export interface DepthFirstOptions {
  readonly sleepSets: boolean;
  /** Most times that an agent is interrupted that could go on. */
  readonly preemptions: number;
  /** Key of the state that a run is in, where states can be told apart. */
  readonly stateKey: ((run: Run) => string) | undefined;
}

interface Node {
  candidates: readonly number[];
  readonly tried: number[];
  readonly footprints: Footprint[];
  readonly disabled: number[];
  readonly sleep: ReadonlyMap<number, Footprint>;
  /** Preemptions before this step. */
  readonly preemptions: number;
  /** The strand whose replacement is a preemption, -1 for none. */
  readonly running: number;
  chosen: number;
}

const NOBODY: ReadonlyMap<number, Footprint> = new Map();

/** What a state was explored with. */
interface Visit {
  readonly sleep: readonly number[];
  readonly preemptions: number;
  readonly depth: number;
}

/** Every schedule, one after another. */
export class DepthFirst implements Strategy {
  readonly #options: DepthFirstOptions;
  readonly #nodes: Node[] = [];
  readonly #visited = new Map<string, Visit[]>();
  #at = 0;
  #sleep: ReadonlyMap<number, Footprint> = NOBODY;
  /** States that were entered for the first time. */
  states = 0;
  /** Something was left out because of the bound. */
  bounded = false;

  constructor(options: DepthFirstOptions) {
    this.#options = options;
  }

  /** Goes on to the next schedule; false: there is none. Not before the first. */
  next(): boolean {
    this.#at = 0;
    this.#sleep = NOBODY;
    const nodes = this.#nodes;
    while (nodes.length > 0) {
      const node = nodes[nodes.length - 1]!;
      const other = this.#pick(node, node.candidates);
      if (other >= 0) {
        node.chosen = other;
        return true;
      }
      nodes.pop();
    }
    return false;
  }

  choose(candidates: readonly number[], run: Run): number {
    let node = this.#nodes[this.#at];
    if (!node) {
      if (this.#seen(run)) return -1;
      this.states++;
      const parent = this.#nodes[this.#at - 1];
      node = {
        candidates: [...candidates],
        tried: [],
        footprints: [],
        disabled: [],
        sleep: this.#sleep,
        preemptions: parent ? parent.preemptions + cost(parent, parent.chosen) : 0,
        running: run.lastCouldGoOn && candidates.includes(run.last) ? run.last : -1,
        chosen: -1,
      };
      this.#nodes.push(node);
    }
    if (node.chosen < 0) node.chosen = this.#pick(node, candidates);
    return node.chosen;
  }

  #pick(node: Node, candidates: readonly number[]): number {
    for (const id of candidates) {
      if (node.tried.includes(id) || node.disabled.includes(id) || node.sleep.has(id)) continue;
      if (node.preemptions + cost(node, id) > this.#options.preemptions) {
        this.bounded = true;
        continue;
      }
      return id;
    }
    return -1;
  }

  blocked(strand: number): void {
    const node = this.#nodes[this.#at]!;
    node.disabled.push(strand);
    node.chosen = -1;
  }

  stepped(strand: number, footprint: Footprint): void {
    const node = this.#nodes[this.#at++]!;
    if (!node.tried.includes(strand)) {
      node.tried.push(strand);
      node.footprints.push(footprint);
    }
    // What is below has its sleep set already.
    if (!this.#options.sleepSets || this.#at < this.#nodes.length) return;
    let sleep: Map<number, Footprint> | undefined;
    const keep = (id: number, of: Footprint): void => {
      if (id !== strand && !conflict(of, footprint)) (sleep ??= new Map()).set(id, of);
    };
    for (const [id, of] of node.sleep) keep(id, of);
    for (let k = 0; k < node.tried.length; k++) keep(node.tried[k]!, node.footprints[k]!);
    this.#sleep = sleep ?? NOBODY;
  }

  /** The state has been explored, with all that is to be explored now. */
  #seen(run: Run): boolean {
    const key = this.#options.stateKey?.(run);
    if (key === undefined) return false;
    const parent = this.#nodes[this.#at - 1];
    const now: Visit = {
      sleep: [...this.#sleep.keys()],
      preemptions: parent ? parent.preemptions + cost(parent, parent.chosen) : 0,
      depth: this.#at,
    };
    const visits = this.#visited.get(key) ?? [];
    const covers = (v: Visit): boolean =>
      v.preemptions <= now.preemptions && v.depth <= now.depth && v.sleep.every((id) => this.#sleep.has(id));
    if (visits.some(covers)) return true;
    visits.push(now);
    this.#visited.set(key, visits);
    return false;
  }
}

const cost = (node: Node, id: number): number => (node.running >= 0 && id !== node.running ? 1 : 0);

/** Numbers from 0 to n - 1, the same for the same seed. */
export type Chooser = (n: number) => number;

/** Each step anybody's. */
export class RandomWalk implements Strategy {
  readonly #random: Chooser;

  constructor(random: Chooser) {
    this.#random = random;
  }

  choose(candidates: readonly number[]): number {
    return candidates[this.#random(candidates.length)]!;
  }

  blocked(): void {}

  stepped(): void {}
}

const PRIORITIES = 1_000_000;

/**
 * Probabilistic concurrency testing (Burckhardt and others): the strand with the highest priority runs; at some steps,
 * drawn before, the one that runs falls below all others. A bug that needs d of these is found with a probability of at least
 * 1 / (n * k^(d-1)) in each schedule, for n agents and k steps.
 */
export class PriorityWalk implements Strategy {
  readonly #random: Chooser;
  readonly #changes: Set<number>;
  readonly #priorities = new Map<number, number>();
  #steps = 0;
  #lowest = 0;

  /** `length`: steps that a schedule is expected to have; `changes`: how often a priority falls. */
  constructor(random: Chooser, length: number, changes: number) {
    this.#random = random;
    this.#changes = new Set(Array.from({ length: changes }, () => random(Math.max(1, length))));
  }

  #priority(id: number): number {
    let priority = this.#priorities.get(id);
    if (priority === undefined) {
      priority = 1 + this.#random(PRIORITIES);
      this.#priorities.set(id, priority);
    }
    return priority;
  }

  choose(candidates: readonly number[]): number {
    let best = candidates[0]!;
    for (const id of candidates) if (this.#priority(id) > this.#priority(best)) best = id;
    return best;
  }

  blocked(): void {}

  stepped(strand: number): void {
    if (this.#changes.has(this.#steps++)) this.#priorities.set(strand, --this.#lowest);
  }
}

/** The schedule that is given; after its end whoever runs goes on. */
export class Replay implements Strategy {
  readonly #steps: readonly number[];
  #at = 0;

  constructor(steps: readonly number[]) {
    this.#steps = steps;
  }

  choose(candidates: readonly number[]): number {
    const wanted = this.#steps[this.#at];
    if (wanted === undefined) return candidates[0]!;
    if (candidates.includes(wanted)) return wanted;
    throw this.#differs();
  }

  blocked(): void {
    if (this.#at < this.#steps.length) throw this.#differs();
  }

  stepped(): void {
    this.#at++;
  }

  #differs(): ScenarioError {
    return new ScenarioError(
      `the schedule does not fit: its step ${this.#at + 1} cannot be taken; the scenario has changed, or is not deterministic`,
    );
  }
}
