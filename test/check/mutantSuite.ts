/**
 * What mutants are held against: unbroken scenarios over the notifier core and the table mirror. Bundled with a changed
 * source by scripts/checkMutants.mjs; ends with 1 at the first broken rule, and says which.
 */
import { explore, type Scenario } from "../../src/check/index.ts";
import * as c01 from "./models/c01FillWithoutRetry.ts";
import * as c05 from "./models/c05SilentChange.ts";
import * as c08 from "./models/c08SleepsWhereNotAllowed.ts";
import * as c10 from "./models/c10WaitsInACircle.ts";
import * as c13 from "./models/c13WrongAge.ts";
import { LIFETIMES } from "./models/lifetimes.ts";
import { CASES } from "./models/notifierCore.ts";
import { DELIVERIES } from "./models/deliveries.ts";
import { RECORDS } from "./models/records.ts";
import { tableMirror, tableMirrorAlone, tableMirrorTries } from "./models/tableMirror.ts";

/** Schedules of each: most mutants fall to a few of any scenario, so all have those first. Few, for hundreds of runs. */
const ROUNDS = [60, 500];

const suite: Scenario[] = [
  ...RECORDS,
  ...DELIVERIES,
  tableMirrorAlone,
  tableMirrorTries,
  ...CASES.map(([name, make]) => ({ ...make(), name })),
  ...LIFETIMES,
  ...[c01, c05, c08, c10, c13].map(({ fixed }) => fixed),
  tableMirror("dontneed"),
  tableMirror("mprotect"),
];

async function firstBroken(): Promise<string | undefined> {
  for (const schedules of ROUNDS)
    for (const scenario of suite)
      // Few preemptions depth first, then far ones at random: a bound this small ends the search near its beginning.
      for (const mode of ["exhaustive", "random"] as const) {
        try {
          const { violations } = await explore(scenario, { schedules, mode, depth: 150 });
          const [first] = violations;
          if (first) return `${scenario.name}: ${first.rule}: ${first.message}`;
        } catch (error) {
          return `${scenario.name}: ${error instanceof Error ? error.message : String(error)}`;
        }
      }
  return undefined;
}

const broken = await firstBroken();
if (broken !== undefined) console.log(broken);
process.exit(broken === undefined ? 0 : 1);
