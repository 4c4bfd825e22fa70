/**
 * Runs variants of one measurement side by side: each once per repetition, so that drift of a shared machine hits all
 * of them alike, after rounds that are not counted.
 */
import { performance } from "node:perf_hooks";
import { ratioOfPairs, summarize } from "./statistics.mjs";

export const DEFAULT_REPETITIONS = 11;
const WARM_UPS = 3;

/**
 * `variants` maps names to functions that return what they measured (or a promise of it). Returns the samples by name.
 * The order alternates, so that no variant always runs behind the same other one.
 */
export async function interleave(variants, { repetitions = DEFAULT_REPETITIONS, warmUps = WARM_UPS } = {}) {
  const names = Object.keys(variants);
  const samples = Object.fromEntries(names.map((name) => [name, []]));
  for (let round = -warmUps; round < repetitions; round++) {
    for (const name of round % 2 === 0 ? names : names.toReversed()) {
      const sample = await variants[name]();
      if (round >= 0) samples[name].push(sample);
    }
  }
  return samples;
}

/** Nanoseconds that one of `count` operations of `run` took. */
export function nsPerOperation(count, run) {
  const begin = performance.now();
  run();
  return ((performance.now() - begin) * 1e6) / count;
}

/** Gigabytes (1e9) per second that `run` got through. */
export function gigabytesPerSecond(bytes, run) {
  const begin = performance.now();
  run();
  return bytes / ((performance.now() - begin) * 1e6);
}

/**
 * One line of a row's result.
 *   what         what was measured, in words
 *   unit         of the samples: "ns", "GB/s", "x", ...
 *   bifolio      samples of Bifolio
 *   alternative  { name, samples } of what it is compared with; without it the line is a plain figure
 *   goal         of this line, in words
 */
export function lineOf({ what, unit, bifolio, alternative, goal }) {
  return {
    what,
    unit,
    bifolio: summarize(bifolio),
    ...(alternative && {
      alternative: { name: alternative.name, ...summarize(alternative.samples) },
      ratio: ratioOfPairs(bifolio, alternative.samples),
    }),
    ...(goal && { goal }),
  };
}

let unique = 0;

/**
 * A function of its own for each variant: functions of the same source share type feedback in V8 even across
 * `new Function`, unless the source differs, which the comment sees to.
 */
export function uniqueFunction(parameters, body) {
  // eslint-disable-next-line typescript/no-implied-eval, no-new-func
  return new Function(...parameters, `/* ${unique++} */ ${body}`);
}

const kept = { value: 0 };

/** Uses a result, so that the loop which made it is not removed. */
export function keep(value) {
  kept.value ^= value;
}
