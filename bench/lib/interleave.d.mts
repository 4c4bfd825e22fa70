export const DEFAULT_REPETITIONS: number;
export function interleave<Name extends string>(
  variants: Record<Name, () => number | Promise<number>>,
  options?: { repetitions?: number; warmUps?: number },
): Promise<Record<Name, number[]>>;
