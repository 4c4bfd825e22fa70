/** How fast schedules are explored, and how many of them sleep sets save. */
import { explore } from "../../.test-build/check.js";
import { interleave, lineOf } from "../lib/interleave.mjs";
import { SCENARIOS } from "../lib/scenarios.mjs";

const MOST = 10_000_000;
const GOAL = "at least 100,000 steps/s";

/** Explores to the end; what does not come there is no measurement. */
async function whole(scenario, mode) {
  const result = await explore(scenario, { mode, schedules: MOST });
  if (!result.complete) throw new Error(`${scenario.name}, ${mode}: not explored to its end`);
  return result;
}

export default {
  measures: "exploring scenarios to their end: sleep sets (Bifolio) beside the plain search",
  async run({ repetitions }) {
    const lines = [];
    for (const scenario of SCENARIOS) {
      const { reduced, plain } = await interleave(
        { reduced: () => whole(scenario, "reduced"), plain: () => whole(scenario, "plain") },
        { repetitions },
      );
      const line = (what, unit, of, goal) => {
        const alternative = { name: "plain", samples: plain.map(of) };
        lines.push(
          lineOf({ what: `${scenario.name}, ${what}`, unit, bifolio: reduced.map(of), alternative, goal }),
        );
      };
      line("steps a second", "steps/s", ({ steps, seconds }) => steps / seconds, GOAL);
      line("schedules a second", "schedules/s", ({ schedules, seconds }) => schedules / seconds);
      line("states a second", "states/s", ({ states, seconds }) => states / seconds);
      line("schedules to the end", "schedules", ({ schedules }) => schedules);
      line("steps to the end", "steps", ({ steps }) => steps);
    }
    return { lines };
  },
};
