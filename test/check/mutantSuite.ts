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
import { tableMirror } from "./models/tableMirror.ts";

/** Schedules of each: enough for the hand-written mutants, and few enough for hundreds of runs. */
const SCHEDULES = 1200;

const suite: Scenario[] = [
  ...CASES.map(([, make]) => make()),
  ...LIFETIMES,
  ...[c01, c05, c08, c10, c13].map(({ fixed }) => fixed),
  tableMirror("dontneed"),
  tableMirror("mprotect"),
];

let code = 0;
for (const scenario of suite) {
  // Few preemptions depth first, then far ones at random: a bound this small ends the search near its beginning.
  for (const mode of ["exhaustive", "random"] as const) {
    try {
      const { violations } = await explore(scenario, { schedules: SCHEDULES, mode, depth: 150 });
      const [first] = violations;
      if (!first) continue;
      console.log(`${scenario.name}: ${first.rule}: ${first.message}`);
    } catch (error) {
      console.log(`${scenario.name}: ${error instanceof Error ? error.message : String(error)}`);
    }
    code = 1;
    break;
  }
  if (code !== 0) break;
}
process.exit(code);
