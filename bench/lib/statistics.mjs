/** Statistics of repeated measurements. Tests: test/unit/bench/statistics.test.ts. */

/** The value below which the share `q` (0 to 1) of the sorted samples lies; between two samples, interpolated. */
export function quantile(samples, q) {
  if (samples.length === 0) throw new RangeError("no samples");
  const sorted = Float64Array.from(samples).sort();
  const position = q * (sorted.length - 1);
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (position - below);
}

export const median = (samples) => quantile(samples, 0.5);

/** Median, first and last decile of the samples. */
export function summarize(samples) {
  return {
    median: median(samples),
    p10: quantile(samples, 0.1),
    p90: quantile(samples, 0.9),
    repetitions: samples.length,
  };
}

/**
 * How `samples` compare with `base`, measured in the same repetitions: the summary of the ratios of each repetition.
 * Drift of the machine hits both members of a pair, so it cancels; a ratio of two medians keeps it.
 */
export function ratioOfPairs(samples, base) {
  if (samples.length !== base.length) throw new RangeError("samples and base must come in pairs");
  return summarize(Array.from(samples, (sample, n) => sample / base[n]));
}

export function geometricMean(numbers) {
  if (numbers.length === 0) throw new RangeError("no numbers");
  let sum = 0;
  for (const n of numbers) sum += Math.log(n);
  return Math.exp(sum / numbers.length);
}
