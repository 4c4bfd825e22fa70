/** The names of advice, and their numbers in Linux (MADV_*). */
import { MmError } from "../errors.ts";

const ADVICE = {
  normal: 0,
  random: 1,
  sequential: 2,
  willneed: 3,
  dontneed: 4,
  free: 8,
  remove: 9,
  dontfork: 10,
  dofork: 11,
  mergeable: 12,
  unmergeable: 13,
  hugepage: 14,
  nohugepage: 15,
  dontdump: 16,
  dodump: 17,
  wipeonfork: 18,
  keeponfork: 19,
  cold: 20,
  pageout: 21,
  "populate-read": 22,
  "populate-write": 23,
  "dontneed-locked": 24,
  collapse: 25,
  "guard-install": 102,
  "guard-remove": 103,
} as const;

export type AdviceName = keyof typeof ADVICE;
/** A name, or the number that Linux has for it. */
export type Advice = AdviceName | number;

const NAMES: ReadonlyMap<number, AdviceName> = new Map(
  Object.entries(ADVICE).map(([name, value]) => [value, name as AdviceName]),
);

/** Errors: EINVAL. */
export function adviceName(advice: Advice): AdviceName {
  const name =
    typeof advice === "number" ? NAMES.get(advice) : Object.hasOwn(ADVICE, advice) ? advice : undefined;
  if (name === undefined) {
    throw new MmError(
      "EINVAL",
      "madvise",
      `advice must be one of ${Object.keys(ADVICE).join(", ")}, or Linux's number of one, not ${String(advice)}`,
    );
  }
  return name;
}
