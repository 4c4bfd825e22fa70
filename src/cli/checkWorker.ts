/**
 * Loads a module and explores its scenarios. In a thread of its own, so that a step that never returns can be ended from
 * outside, and so that what the module prints does not come between a report's lines.
 */
import { pathToFileURL } from "node:url";
import { parentPort, workerData } from "node:worker_threads";
import { explore, isScenario, renderTrace, replay, type Scenario, ScenarioError } from "../check/index.ts";
import type { CheckMessage, CheckRequest } from "./checkMessages.ts";
import { sentenceOf } from "./commandError.ts";

const say = (message: CheckMessage): void => parentPort!.postMessage(message);

/** Scenarios of a module, each with the name of its export. */
function scenariosOf(exports: object): [name: string, scenario: Scenario][] {
  const found: [string, Scenario][] = [];
  for (const [name, value] of Object.entries(exports) as [string, unknown][]) {
    if (isScenario(value)) found.push([name, value]);
    else if (Array.isArray(value))
      for (const [index, item] of value.entries())
        if (isScenario(item)) found.push([`${name}.${index}`, item]);
  }
  return found;
}

async function load(request: CheckRequest): Promise<[string, Scenario][]> {
  let exports: object;
  try {
    exports = (await import(pathToFileURL(request.module).href)) as object;
  } catch (error) {
    if (error instanceof ScenarioError) throw error;
    throw new ScenarioError(`${request.name} cannot be imported: ${firstLine(sentenceOf(error))}`);
  }
  const all = scenariosOf(exports);
  if (all.length === 0)
    throw new ScenarioError(
      `${request.name} exports no scenario; export what scenario() of bifolio/check returns`,
    );
  const { scenario } = request;
  if (scenario === undefined) return all;
  const wanted = all.filter(([name, { name: title }]) => name === scenario || title === scenario);
  if (wanted.length === 0)
    throw new ScenarioError(
      `${request.name} has no scenario "${scenario}"; it has ${all.map(([name]) => name).join(", ")}`,
    );
  return wanted;
}

const firstLine = (text: string): string => text.split("\n", 1)[0]!;

async function main(request: CheckRequest): Promise<void> {
  const scenarios = await load(request);
  if (request.replay !== undefined) {
    if (scenarios.length > 1)
      throw new ScenarioError(
        `--replay needs --scenario: ${request.name} exports ${scenarios.map(([name]) => name).join(", ")}`,
      );
    const [exportName, scenario] = scenarios[0]!;
    say({ kind: "scenario", name: scenario.name });
    const { depth, replay: schedule } = request;
    const { violations, columns, trace } = await replay(scenario, schedule, { depth });
    const shown = renderTrace({ columns, trace });
    say({
      kind: "replayed",
      result: { scenario: scenario.name, exportName, schedule, violations, trace: shown },
    });
    return;
  }
  for (const [exportName, scenario] of scenarios) {
    say({ kind: "scenario", name: scenario.name });
    const { mode, schedules, depth, seed, preemptions } = request;
    const result = await explore(scenario, {
      mode,
      schedules,
      depth,
      seed,
      ...(preemptions === undefined ? {} : { preemptions }),
      progress: (done) => say({ kind: "progress", schedules: done }),
    });
    const traces = result.violations.map((violation) => renderTrace(violation));
    say({ kind: "checked", result: { ...result, exportName, traces } });
  }
}

async function run(): Promise<void> {
  try {
    await main(workerData as CheckRequest);
    say({ kind: "end" });
  } catch (error) {
    say({
      kind: "failed",
      sentence: error instanceof ScenarioError ? error.message : firstLine(sentenceOf(error)),
    });
  }
}

// Not awaited: at the top level Node itself complains of what never comes, and checkCommand.ts has the better sentence.
void run();
