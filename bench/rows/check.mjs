/** How fast schedules are explored, and how many of them sleep sets save. */
import { performance } from "node:perf_hooks";
import { explore } from "../../.test-build/check.js";
import { interleave, lineOf } from "../lib/interleave.mjs";
import { spinVerifier } from "../lib/nativeProgram.mjs";
import { fill, SCENARIOS } from "../lib/scenarios.mjs";

const MOST = 10_000_000;
const GOAL = "at least 100,000 steps/s";

/** Explores to the end; what does not come there is no measurement. */
async function whole(scenario, mode) {
  const result = await explore(scenario, { mode, schedules: MOST });
  if (!result.complete) throw new Error(`${scenario.name}, ${mode}: not explored to its end`);
  return result;
}

/** log2 of the entries of Spin's hash table: its default takes longer to allocate than the model to explore. */
const SPIN_HASH = "-w16";

/** The first scenario beside the same protocol in Promela, explored by Spin. */
async function besideSpin(repetitions) {
  const { run, why } = spinVerifier("interval");
  if (why) return { notes: [`Spin is not measured: ${why}`], lines: [] };
  const verify = () => {
    const begin = performance.now();
    const output = run(SPIN_HASH);
    const states = Number(/(\d+) states, stored/.exec(output)?.[1]);
    if (!/errors: 0$/m.test(output) || !(states > 0)) throw new Error("Spin finds fault with its model");
    return { ms: performance.now() - begin, states };
  };
  const { ours, spin } = await interleave(
    { ours: () => whole(fill, "reduced"), spin: verify },
    { repetitions },
  );
  const line = (what, unit, ofOurs, ofSpin) =>
    lineOf({
      what: `${fill.name}, ${what}`,
      unit,
      bifolio: ours.map(ofOurs),
      alternative: { name: "Spin", samples: spin.map(ofSpin) },
    });
  return {
    notes: [
      "Spin: the protocol alone, in Promela (bench/native/interval.pml), compiled; its time is that of a process",
    ],
    lines: [
      line(
        "to the end",
        "ms",
        ({ seconds }) => seconds * 1000,
        ({ ms }) => ms,
      ),
      line(
        "states to the end",
        "states",
        ({ states }) => states,
        ({ states }) => states,
      ),
    ],
  };
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
    const { notes, lines: more } = await besideSpin(repetitions);
    return { notes, lines: [...lines, ...more] };
  },
};
