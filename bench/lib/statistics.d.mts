export interface Summary {
  readonly median: number;
  readonly p10: number;
  readonly p90: number;
  readonly repetitions: number;
}
export function quantile(samples: ArrayLike<number>, q: number): number;
export function median(samples: ArrayLike<number>): number;
export function summarize(samples: ArrayLike<number>): Summary;
export function ratioOfPairs(samples: ArrayLike<number>, base: ArrayLike<number>): Summary;
export function geometricMean(numbers: readonly number[]): number;
