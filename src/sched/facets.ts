/**
 * The variants over one implementation: a table of operations becomes `.sync` (blocks) and `.try` (never waits).
 * The Promise form stands as methods with doc comments on the public class.
 */
import type { Agent } from "./agent.ts";
import { runBlocking, runTry } from "./drivers.ts";
import type { Op } from "./op.ts";

/** The operations of a table, as plain functions. */
export type Immediate<Operations> = {
  readonly [K in keyof Operations]: Operations[K] extends (...args: infer Args) => Op<infer Result>
    ? (...args: Args) => Result
    : never;
};

function facet<Operations extends object>(
  operations: Operations,
  run: (op: Op<unknown>) => unknown,
): Immediate<Operations> {
  const entries = Object.entries(operations).map(([name, make]) => [
    name,
    (...args: unknown[]): unknown => run((make as (...args: unknown[]) => Op<unknown>)(...args)),
  ]);
  return Object.fromEntries(entries) as Immediate<Operations>;
}

/** Blocks where the agent may block, else as tryFacet(). */
export const syncFacet = <Operations extends object>(
  agent: Agent,
  operations: Operations,
): Immediate<Operations> => facet(operations, (op) => runBlocking(agent, op));

/** Never waits: EAGAIN instead, no step half done. */
export const tryFacet = <Operations extends object>(
  agent: Agent,
  operations: Operations,
): Immediate<Operations> => facet(operations, (op) => runTry(agent, op));
