/**
 * Explores a scenario: schedule after schedule, until every one has been run that makes a difference, or a bound is
 * reached. Each rule that was broken is kept with the shortest schedule that was found to break it.
 *
 * Rounds of the default mode: all schedules without a preemption, with one, with two; then all, with sleep sets. The
 * first three find most bugs, with few switches, so that they can be read; the last is the proof. Sleep sets are not
 * used under a bound of preemptions, where what they leave out may be all that the bound allows.
 */
import { seededChooser } from "../sched/index.ts";
import { WorldArena } from "./arena.ts";
import { RULES, type Rule } from "./rules.ts";
import {
  type Drain,
  type Ended,
  type Finding,
  Run,
  type RunLimits,
  type Strategy,
  textOf,
  type TraceStep,
} from "./run.ts";
import type { Scenario } from "./scenario.ts";
import { ScenarioError } from "./scenarioError.ts";
import { decodeSchedule, encodeSchedule } from "./schedule.ts";
import { DepthFirst, PriorityWalk, RandomWalk, Replay } from "./strategies.ts";
import { World } from "./world.ts";

export type Mode = "exhaustive" | "reduced" | "plain" | "random" | "pct";
export const MODES: readonly Mode[] = ["exhaustive", "reduced", "plain", "random", "pct"];

export interface ExploreOptions {
  /**
   * exhaustive, the default: rounds with few preemptions, then reduced. reduced: depth first with sleep sets. plain: depth first,
   * every order of steps. random: each step anybody's. pct: by priorities, some of which fall.
   */
  readonly mode?: Mode;
  /** Most schedules to run; default 100,000. */
  readonly schedules?: number;
  /** Steps of a schedule that are chosen; what is longer ends with everybody in turn. Default 400. */
  readonly depth?: number;
  /** exhaustive: only schedules with at most so many preemptions. Default: no bound. */
  readonly preemptions?: number;
  /** random and pct: which schedules. Default 1. */
  readonly seed?: number;
  /** pct: how often a priority falls. Default 3. */
  readonly changes?: number;
  /** Hears of the number of schedules now and then. */
  readonly progress?: (schedules: number) => void;
}

export interface Violation {
  readonly rule: Rule;
  readonly title: string;
  /** Where the rule is explained. */
  readonly link: string;
  readonly message: string;
  /** The agent that broke it, or that was the last to run. */
  readonly agent: string;
  /** Replays it: see replay(). */
  readonly schedule: string;
  readonly steps: number;
  readonly columns: readonly string[];
  readonly trace: readonly TraceStep[];
}

export interface CheckResult {
  readonly scenario: string;
  readonly mode: Mode;
  readonly seed: number;
  readonly depth: number;
  readonly violations: readonly Violation[];
  /** Schedules that were run, those included that were given up because they would have repeated others. */
  readonly schedules: number;
  /** Of them: given up. */
  readonly redundant: number;
  readonly steps: number;
  /** Moments at which somebody had to be chosen that had not been met before. */
  readonly states: number;
  /** Every schedule that makes a difference has been run, within the bounds of depth and preemptions. */
  readonly complete: boolean;
  readonly seconds: number;
}

export const DEFAULT_SCHEDULES = 100_000;
export const DEFAULT_DEPTH = 400;
const DEFAULT_CHANGES = 3;
/** Bounds of preemptions of the first rounds, and which part of the schedules each of them gets at most. */
const FIRST_BOUNDS: readonly number[] = [0, 1, 2];
const FIRST_SHARE = 1 / 5;
/** Once something has been found: so many more schedules, for a shorter one and for other rules. */
const PATIENCE = 2000;
/** Most steps, for each schedule that may be run: a loop that polls makes schedules as long as the depth. */
const STEPS_A_SCHEDULE = 40;
const REST_MS = 100;

const macrotask = (): Promise<void> =>
  new Promise((resolve) => {
    if (typeof setImmediate === "function") setImmediate(resolve);
    else setTimeout(resolve);
  });

/** One run of a scenario, from setup to the judgement. */
function* runOnce(scenario: Scenario, arena: WorldArena, run: Run): Generator<Drain, Ended, void> {
  const { options } = scenario;
  arena.reset();
  const actors = scenario.agents.map(({ name, daemon }) => run.addActor(name, daemon));
  const world = new World(run, arena);
  run.tracked = options.tracked ?? false;
  for (let thread = 0; thread < scenario.threads; thread++) {
    const agent = arena.attach();
    agent.onError = (error) => {
      const cause = error.cause ?? error;
      run.violate("callback-threw", textOf(cause));
    };
    agent.setFlushHandler((space, start, end) => world.flush(thread, space, start, end));
    run.addThread(agent, thread === 0 ? "messages" : `messages of thread ${thread}`);
  }
  let context: unknown;
  try {
    const made = options.setup(world);
    if (made instanceof Promise) {
      let outcome: { value: unknown } | { error: unknown } | undefined;
      const settled = made.then(
        (value) => (outcome = { value }),
        (error: unknown) => (outcome = { error }),
      );
      yield { until: settled };
      if (outcome === undefined) throw new Error("it did not end");
      if ("error" in outcome) throw outcome.error;
      context = (outcome as { value: unknown }).value;
    } else context = made;
  } catch (error) {
    throw new ScenarioError(`${scenario.name}: setup threw: ${textOf(error)}`);
  }
  const { invariant, final, state } = options;
  if (invariant)
    run.invariant = () => {
      const wrong = invariant(context, world);
      if (typeof wrong === "string") throw new Error(wrong);
      if (wrong === false) throw new Error("the invariant is false");
    };
  if (state)
    run.stateKey = () => `${run.position()}|${world.describe()}|${JSON.stringify(state(context, world))}`;
  for (const [index, actor] of actors.entries()) {
    const { thread, run: body } = scenario.agents[index]!;
    run.spawnAgent(actor, thread, () => body(context, world));
  }
  run.endSetup();
  const ended = yield* run.execute();
  if (arena.hasTurns) yield { until: undefined };
  if (ended === "finished" || ended === "deadlock") world.judge();
  if (ended === "finished") {
    try {
      const wrong = final?.(context, world);
      if (typeof wrong === "string") run.violate("final", wrong);
      if (wrong === false) run.violate("final", "the final check is false");
    } catch (error) {
      run.violate("final", textOf(error));
    }
  }
  return ended;
}

/** The exploration of one scenario. */
class Exploration {
  readonly #scenario: Scenario;
  readonly #options: ExploreOptions;
  readonly #arena = new WorldArena();
  readonly #limits: RunLimits;
  readonly #best = new Map<Rule, { finding: Finding; choices: readonly number[] }>();
  readonly #most: number;
  #schedules = 0;
  #redundant = 0;
  #steps = 0;
  #states = 0;
  #lastNews = 0;
  #rested: number = performance.now();
  #longest = 1;

  constructor(scenario: Scenario, options: ExploreOptions) {
    this.#scenario = scenario;
    this.#options = options;
    const depth = options.depth ?? DEFAULT_DEPTH;
    this.#limits = { depth, fairSteps: depth };
    this.#most = options.schedules ?? DEFAULT_SCHEDULES;
  }

  async #one(strategy: Strategy, tracing = false): Promise<{ run: Run; ended: Ended }> {
    const run = new Run(strategy, this.#limits);
    run.tracing = tracing;
    const work = runOnce(this.#scenario, this.#arena, run);
    // By hand: a scenario without promises never leaves this function's turn.
    let r = work.next();
    while (r.done !== true) {
      await (r.value.until ?? macrotask());
      r = work.next();
    }
    return { run, ended: r.value };
  }

  /** Runs a schedule and keeps what it has found. */
  async #explore(strategy: Strategy): Promise<Ended> {
    const { run, ended } = await this.#one(strategy);
    this.#schedules++;
    this.#steps += run.choices.length;
    if (ended === "abandoned") this.#redundant++;
    else this.#longest = Math.max(this.#longest, run.choices.length);
    for (const finding of run.findings) this.#keep(finding, run.choices);
    if (performance.now() - this.#rested > REST_MS) {
      this.#options.progress?.(this.#schedules);
      await macrotask();
      this.#rested = performance.now();
    }
    return ended;
  }

  #keep(finding: Finding, choices: readonly number[]): void {
    const known = this.#best.get(finding.rule);
    const schedule = choices.slice(0, finding.steps);
    if (known) {
      const shorter = finding.steps - known.finding.steps || switches(schedule) - switches(known.choices);
      if (shorter >= 0) return;
    }
    if (!known) this.#lastNews = this.#schedules;
    this.#best.set(finding.rule, { finding, choices: schedule });
  }

  /** Enough: the bound is reached, or something has been found and nothing new for a while. */
  #enough(most: number): boolean {
    if (this.#steps >= this.#most * STEPS_A_SCHEDULE) return true;
    return this.#schedules >= most || (this.#best.size > 0 && this.#schedules - this.#lastNews > PATIENCE);
  }

  /** Depth first; true if it came to its end. */
  async #depthFirst(sleepSets: boolean, preemptions: number, most: number): Promise<boolean> {
    const hashed = this.#scenario.options.state !== undefined;
    const search = new DepthFirst({
      sleepSets,
      preemptions,
      stateKey: hashed ? (run) => run.stateKey!() : undefined,
    });
    let whole = false;
    while (!this.#enough(most)) {
      await this.#explore(search);
      if (!search.next()) {
        whole = true;
        break;
      }
    }
    this.#states += search.states;
    return whole;
  }

  /** The first schedule, twice. Errors: ScenarioError where the two differ. */
  async #checkRepeatable(): Promise<void> {
    const first = (): Strategy => new Replay([]);
    const once = await this.#one(first(), true);
    const again = await this.#one(first(), true);
    const textOfRun = ({ run }: { run: Run }): string =>
      run.trace
        .map(({ actor, what, notes, state }) => `${actor} ${what} ${notes.join(";")} ${state}`)
        .join("\n");
    if (textOfRun(once) !== textOfRun(again))
      throw new ScenarioError(
        `${this.#scenario.name}: it is not deterministic: its first schedule, run twice, went two ways; clocks, random numbers, timers and I/O of its own are what does that`,
      );
    if (once.ended !== "finished") return;
    const idle = once.run.calls.find(({ used }) => !used);
    if (idle)
      throw new ScenarioError(
        `${this.#scenario.name}: ${idle.what}() was called, and neither awaited nor given to yield*`,
      );
  }

  async run(): Promise<CheckResult> {
    const { mode = "exhaustive", seed = 1, preemptions = Number.POSITIVE_INFINITY } = this.#options;
    await this.#checkRepeatable();
    const exploring = performance.now();
    let complete = false;
    if (mode === "random" || mode === "pct") {
      const random = seededChooser(seed);
      const changes = this.#options.changes ?? DEFAULT_CHANGES;
      while (!this.#enough(this.#most))
        await this.#explore(
          mode === "random" ? new RandomWalk(random) : new PriorityWalk(random, this.#longest, changes),
        );
      this.#states = this.#steps;
    } else if (mode === "plain" || mode === "reduced")
      complete = await this.#depthFirst(mode === "reduced", Number.POSITIVE_INFINITY, this.#most);
    else {
      for (const bound of FIRST_BOUNDS) {
        if (bound >= preemptions) break;
        await this.#depthFirst(false, bound, this.#schedules + Math.ceil(this.#most * FIRST_SHARE));
      }
      const unbounded = preemptions === Number.POSITIVE_INFINITY;
      complete = await this.#depthFirst(unbounded, preemptions, this.#most);
    }
    const seconds = (performance.now() - exploring) / 1000;
    const violations: Violation[] = [];
    for (const { finding, choices } of this.#best.values())
      violations.push(await this.#report(finding, choices));
    violations.sort((a, b) => a.steps - b.steps);
    return {
      scenario: this.#scenario.name,
      mode,
      seed,
      depth: this.#limits.depth,
      violations,
      schedules: this.#schedules,
      redundant: this.#redundant,
      steps: this.#steps,
      states: this.#states,
      complete: complete && violations.length === 0,
      seconds,
    };
  }

  /** Runs the schedule once more, and writes down what happens. */
  async #report(finding: Finding, choices: readonly number[]): Promise<Violation> {
    const { run } = await this.#one(new Replay(choices), true);
    const again = run.findings.find(({ rule }) => rule === finding.rule);
    if (!again)
      throw new ScenarioError(
        `${this.#scenario.name}: it is not deterministic: the schedule ${encodeSchedule(choices)} broke ${finding.rule} once, and not when it was run again`,
      );
    return violationOf(again, run);
  }

  /** Runs one schedule; what is wrong there. */
  async replay(steps: readonly number[]): Promise<ReplayResult> {
    const { run } = await this.#one(new Replay(steps), true);
    return {
      violations: run.findings.map((finding) => violationOf(finding, run)),
      columns: run.actors.map(({ name }) => name),
      trace: run.trace,
    };
  }
}

function violationOf(finding: Finding, run: Run): Violation {
  const { title, link } = RULES[finding.rule];
  return {
    rule: finding.rule,
    title,
    link,
    message: finding.message,
    agent: finding.actor,
    schedule: encodeSchedule(run.choices.slice(0, finding.steps)),
    steps: finding.steps,
    columns: run.actors.map(({ name }) => name),
    trace: run.trace.slice(0, finding.steps),
  };
}

function switches(schedule: readonly number[]): number {
  let count = 0;
  for (let k = 1; k < schedule.length; k++) if (schedule[k] !== schedule[k - 1]) count++;
  return count;
}

export interface ReplayResult {
  readonly violations: readonly Violation[];
  readonly columns: readonly string[];
  readonly trace: readonly TraceStep[];
}

/**
 * Explores a scenario. Errors: ScenarioError where it cannot be explored: setup throws, it is not deterministic, a call
 * is left alone.
 */
export function explore(scenario: Scenario, options: ExploreOptions = {}): Promise<CheckResult> {
  return new Exploration(scenario, options).run();
}

/** Runs one schedule, as a Violation has it. Errors: ScenarioError if it is none, or does not fit the scenario. */
export async function replay(
  scenario: Scenario,
  schedule: string,
  options: Pick<ExploreOptions, "depth"> = {},
): Promise<ReplayResult> {
  const steps = decodeSchedule(schedule);
  if (!steps) throw new ScenarioError(`"${schedule}" is no schedule; one looks like 0*3.1*2`);
  return new Exploration(scenario, options).replay(steps);
}
