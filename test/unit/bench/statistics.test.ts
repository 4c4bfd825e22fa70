import { describe, expect, test } from "vitest";
import { geometricMean, median, quantile, ratioOfPairs, summarize } from "../../../bench/lib/statistics.mjs";

describe("quantile", () => {
  test("the median of an odd number of samples is the middle one, whatever their order", () => {
    expect(median([5, 1, 100])).toBe(5);
  });

  test("the median of an even number of samples lies between the middle two", () => {
    expect(median([4, 1, 2, 3])).toBe(2.5);
  });

  test("sorts by value, not as text", () => {
    expect(median([10, 9, 100])).toBe(10);
  });

  test("deciles of 0 to 100", () => {
    const samples = Array.from({ length: 101 }, (_, n) => 100 - n);
    expect(quantile(samples, 0.1)).toBeCloseTo(10);
    expect(quantile(samples, 0.9)).toBeCloseTo(90);
    expect(quantile(samples, 0)).toBe(0);
    expect(quantile(samples, 1)).toBe(100);
  });

  test("one sample is every quantile", () => {
    expect(summarize([7])).toEqual({ median: 7, p10: 7, p90: 7, repetitions: 1 });
  });

  test("no samples are an error, not a number", () => {
    expect(() => median([])).toThrow(RangeError);
    expect(() => geometricMean([])).toThrow(RangeError);
  });

  test("leaves the samples as they were", () => {
    const samples = [3, 1, 2];
    median(samples);
    expect(samples).toEqual([3, 1, 2]);
  });
});

describe("ratioOfPairs", () => {
  test("drift that hits both members of a pair cancels", () => {
    const drift = [1, 1, 10, 100, 1];
    const samples = drift.map((d) => 3 * d);
    const base = drift.map((d) => 2 * d);
    expect(ratioOfPairs(samples, base)).toEqual({ median: 1.5, p10: 1.5, p90: 1.5, repetitions: 5 });
  });

  test("is not the ratio of the medians", () => {
    // Medians 2 and 2; the repetitions' ratios are 4, 1, 1/2 and so on.
    expect(ratioOfPairs([4, 2, 1], [1, 2, 2]).median).toBe(1);
    expect(ratioOfPairs([2, 4, 1], [1, 1, 4]).median).toBe(2);
  });

  test("samples without a partner are an error", () => {
    expect(() => ratioOfPairs([1, 2], [1])).toThrow(RangeError);
  });
});

test("the geometric mean of a ratio and its inverse is 1", () => {
  expect(geometricMean([8, 1 / 8])).toBeCloseTo(1);
  expect(geometricMean([2, 4, 8])).toBeCloseTo(4);
});
