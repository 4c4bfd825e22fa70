/**
 * What mutants are held against: unbroken scenarios over the notifier core and the table mirror ("core"), and over locks
 * ("locks"). Bundled with a changed source by scripts/checkMutants.mjs, which names the parts to run; ends with 1 at the first
 * broken rule, and says which.
 */
import { explore, type Scenario } from "../../src/check/index.ts";
import * as c01 from "./models/c01FillWithoutRetry.ts";
import * as c05 from "./models/c05SilentChange.ts";
import * as c08 from "./models/c08SleepsWhereNotAllowed.ts";
import * as c10 from "./models/c10WaitsInACircle.ts";
import * as c13 from "./models/c13WrongAge.ts";
import { LIFETIMES } from "./models/lifetimes.ts";
import { LOCKS } from "./models/locks.ts";
import { CASES } from "./models/notifierCore.ts";
import { DELIVERIES } from "./models/deliveries.ts";
import { RECORDS } from "./models/records.ts";
import { tableMirror, tableMirrorAlone, tableMirrorTries } from "./models/tableMirror.ts";

interface Part {
  readonly scenarios: readonly Scenario[];
  /** Schedules of each: most mutants fall to a few of any scenario, so all have those first. Few, for hundreds of runs. */
  readonly rounds: readonly number[];
  readonly depth: number;
}

const PARTS: Readonly<Record<string, Part>> = {
  core: {
    scenarios: [
      ...RECORDS,
      ...DELIVERIES,
      tableMirrorAlone,
      tableMirrorTries,
      ...CASES.map(([name, make]) => ({ ...make(), name })),
      ...LIFETIMES,
      ...[c01, c05, c08, c10, c13].map(({ fixed }) => fixed),
      tableMirror("dontneed"),
      tableMirror("mprotect"),
    ],
    rounds: [60, 500],
    depth: 150,
  },
  // Long schedules: each access to a shared word is a step.
  locks: { scenarios: LOCKS, rounds: [20, 200], depth: 600 },
};

async function firstBroken({ scenarios, rounds, depth }: Part): Promise<string | undefined> {
  for (const schedules of rounds)
    for (const scenario of scenarios)
      // Few preemptions depth first, then far ones at random: a bound this small ends the search near its beginning.
      for (const mode of ["exhaustive", "random"] as const) {
        try {
          const { violations } = await explore(scenario, { schedules, mode, depth });
          const [first] = violations;
          if (first) return `${scenario.name}: ${first.rule}: ${first.message}`;
        } catch (error) {
          return `${scenario.name}: ${error instanceof Error ? error.message : String(error)}`;
        }
      }
  return undefined;
}

for (const name of process.argv.slice(2)) {
  const broken = await firstBroken(PARTS[name]!);
  if (broken === undefined) continue;
  console.log(broken);
  process.exit(1);
}
process.exit(0);
