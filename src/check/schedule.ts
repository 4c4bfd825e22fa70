/**
 * A schedule as text: who took each step. Strands are numbered in base 36; a run of steps of one is the number and how
 * many, so `0*3.1*2.0` is three steps of strand 0, two of strand 1, one of strand 0.
 */

/** Writes a schedule. */
export function encodeSchedule(steps: readonly number[]): string {
  const runs: string[] = [];
  for (let from = 0; from < steps.length;) {
    let to = from + 1;
    while (to < steps.length && steps[to] === steps[from]) to++;
    runs.push(steps[from]!.toString(36) + (to - from > 1 ? `*${to - from}` : ""));
    from = to;
  }
  return runs.join(".");
}

const MOST_STEPS = 1_000_000;

/** Reads a schedule; undefined if it is none. */
export function decodeSchedule(text: string): number[] | undefined {
  const steps: number[] = [];
  if (text === "") return steps;
  for (const run of text.split(".")) {
    const match = /^([0-9a-z]{1,6})(?:\*([1-9]\d{0,6}))?$/.exec(run);
    if (!match) return undefined;
    const count = Number(match[2] ?? 1);
    if (steps.length + count > MOST_STEPS) return undefined;
    const strand = Number.parseInt(match[1]!, 36);
    for (let k = 0; k < count; k++) steps.push(strand);
  }
  return steps;
}
