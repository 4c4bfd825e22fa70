/**
 * What a step has touched: locations, each read or written. Two steps that touch nothing in common, or only read it,
 * may change places without a difference. A footprint is a list of `location * 2`, plus 1 where it was written.
 */

export type Footprint = readonly number[];

/** The scenario's own variables, as far as they are not told apart. */
export const USER_LOCATION = 0;
/** What the scenario's invariant looks at. */
export const INVARIANT_LOCATION = 1;
/** Messages between threads: all of them are one location. */
export const MESSAGES_LOCATION = 2;
export const FIRST_FREE_LOCATION = 3;

/** First in the footprint of a step that commutes with none: it decides who may go on. */
export const EVERYTHING = -1;

export function conflict(a: Footprint, b: Footprint): boolean {
  if (a[0] === EVERYTHING || b[0] === EVERYTHING) return true;
  for (const x of a) {
    for (const y of b) if (x >> 1 === y >> 1 && ((x | y) & 1) === 1) return true;
  }
  return false;
}
