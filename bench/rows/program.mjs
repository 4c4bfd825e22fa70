/** Programs of fifty operations: a mix in a space that stays, beside the kernel, and whole ones of the corpus. */
import { readFileSync } from "node:fs";
import { performance } from "node:perf_hooks";
import { gunzipSync } from "node:zlib";
import { runProgram } from "../../.test-build/program.js";
import { besideKernel, overlap } from "../lib/besideKernel.mjs";
import { interleave, lineOf, nsPerOperation } from "../lib/interleave.mjs";
import { openMemory } from "../lib/memory.mjs";
import { listOf, OPERATIONS, OPERATIONS_WITH_FORK, performerOf } from "../lib/operationMix.mjs";

const CORPUS = new URL("../../test/linux/corpus/random.jsonl.gz", import.meta.url);
const ROUNDS = 100;
/** Programs of the corpus run this often before they count: each goes through other parts of the library. */
const CORPUS_WARM_UPS = 20;
const GOAL = "at most 3 ms";

/** The corpus's programs of as many operations as the mix has. */
function programs() {
  return gunzipSync(readFileSync(CORPUS))
    .toString("utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line).program)
    .filter((text) => text.trimEnd().split("\n").length === OPERATIONS.length + 1); // a header
}

async function corpus(repetitions) {
  const texts = programs();
  const { whole } = await interleave(
    {
      async whole() {
        const begin = performance.now();
        for (const text of texts) await runProgram(text);
        return (performance.now() - begin) / texts.length;
      },
    },
    { repetitions, warmUps: CORPUS_WARM_UPS },
  );
  const what = `program of the corpus with its memory, mean of ${texts.length}`;
  return lineOf({ what, unit: "ms", bifolio: whole, goal: GOAL });
}

export default {
  measures: "fifty operations on mappings and pages, the whole of them",
  async run({ repetitions }) {
    const { memory, space } = await openMemory(16);
    await overlap(space);
    const caseOf = (what, operations) => {
      const perform = performerOf(space, operations);
      return {
        run: () => [
          nsPerOperation(ROUNDS, () => {
            for (let n = 0; n < ROUNDS; n++) perform();
          }),
        ],
        native: ["mix", listOf(operations)],
        lines: [{ what, unit: "ms", goal: GOAL }],
      };
    };
    const { notes, lines } = await besideKernel(
      [caseOf("mix", OPERATIONS), caseOf("mix, one of them a fork", OPERATIONS_WITH_FORK)],
      { repetitions },
    );
    await memory.close();
    return { notes, lines: [...lines, await corpus(repetitions)] };
  },
};
