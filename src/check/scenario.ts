/** What a user writes: a small world, agents that do something in it, and what must be true. */
import { ScenarioError } from "./scenarioError.ts";
import type { World } from "./world.ts";
import { MOST_THREADS } from "./arena.ts";

/** A generator function that `yield*`s calls of the world, or an async function that awaits them. */
export type AgentFunction<C> = (context: C, world: World) => unknown;

export interface AgentOptions<C> {
  readonly name?: string;
  readonly run: AgentFunction<C>;
  /** The schedule may end while it is not done: endless work in the background. Default false. */
  readonly daemon?: boolean;
  /**
   * The JavaScript thread it runs in, 0 to 3; default 0, where setup runs, too. Callbacks run in the thread that registered
   * them, between two steps of it; within one thread, inside the operation that calls them.
   */
  readonly thread?: number;
}

export interface ScenarioOptions<C> {
  readonly name?: string;
  /** Makes the world, before each schedule; what it returns is given to the others. It may be async. */
  readonly setup: (world: World) => C | Promise<C>;
  /** By name, or in a list of named functions. */
  readonly agents:
    | Readonly<Record<string, AgentFunction<C> | AgentOptions<C>>>
    | readonly (AgentFunction<C> | AgentOptions<C>)[];
  /** Looked at after each step: throws, or returns a sentence or false, where something is wrong. It changes nothing. */
  readonly invariant?: (context: C, world: World) => string | boolean | void;
  /** Looked at when every agent has come to its end; likewise. */
  readonly final?: (context: C, world: World) => string | boolean | void;
  /**
   * Everything that the future depends on, local variables of agents included, as something that JSON can write: two
   * moments with the same state, and agents that stand at the same points, go on alike, and the second is not explored.
   */
  readonly state?: (context: C, world: World) => unknown;
  /** True: all that agents share is in cells, locks, devices and spaces of the world. Then fewer schedules suffice. */
  readonly tracked?: boolean;
}

interface ScenarioAgent {
  readonly name: string;
  readonly daemon: boolean;
  readonly thread: number;
  readonly run: AgentFunction<unknown>;
}

/** A scenario that can be explored. */
export interface Scenario {
  readonly kind: "bifolio scenario";
  readonly name: string;
  /** @internal */
  readonly agents: readonly ScenarioAgent[];
  /** @internal */
  readonly threads: number;
  /** @internal */
  readonly options: ScenarioOptions<unknown>;
}

const MOST_AGENTS = 12;

/** Describes a scenario. Errors: ScenarioError where it cannot be one. */
export function scenario<C>(options: ScenarioOptions<C>): Scenario {
  const wrong = (sentence: string): never => {
    throw new ScenarioError(`${options.name ?? "the scenario"}: ${sentence}`);
  };
  if (typeof options.setup !== "function") wrong("setup must be a function");
  if (typeof options.agents !== "object" || options.agents === null)
    wrong("agents must be a list or an object");
  const list: [string | undefined, AgentFunction<C> | AgentOptions<C>][] = Array.isArray(options.agents)
    ? options.agents.map((agent: AgentFunction<C> | AgentOptions<C>) => [undefined, agent])
    : Object.entries(options.agents);
  if (list.length === 0 || list.length > MOST_AGENTS) wrong(`it needs 1 to ${MOST_AGENTS} agents`);
  const agents = list.map(([key, agent], index): ScenarioAgent => {
    const { run, daemon = false, thread = 0, name } = typeof agent === "function" ? { run: agent } : agent;
    if (typeof run !== "function") wrong(`agent ${key ?? index} is no function and has none called run`);
    if (!(Number.isInteger(thread) && thread >= 0 && thread < MOST_THREADS))
      wrong(`the thread of agent ${key ?? index} must be a whole number from 0 to ${MOST_THREADS - 1}`);
    return {
      name: name ?? key ?? (run.name || `agent ${index}`),
      daemon,
      thread,
      run: run as AgentFunction<unknown>,
    };
  });
  if (agents.every(({ daemon }) => daemon)) wrong("an agent must be there that is no daemon");
  return {
    kind: "bifolio scenario",
    name: options.name ?? "scenario",
    agents,
    threads: 1 + Math.max(...agents.map(({ thread }) => thread)),
    options: options as ScenarioOptions<unknown>,
  };
}

/** True for what scenario() has made, by this copy of the package or another. */
export function isScenario(value: unknown): value is Scenario {
  return (
    typeof value === "object" && value !== null && (value as { kind?: unknown }).kind === "bifolio scenario"
  );
}
