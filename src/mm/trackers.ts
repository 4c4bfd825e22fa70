/**
 * Trackers of a space, as faults see them: who wants to know of stores, and which pages are away. See writeTracker.ts.
 *
 * Record: the next one of the space, its range, and two bits a page, `written` and `away`.
 *
 * Access key: A any agent, Atomics only · C constant while allocated · M under the space's mmapLock for writing, and read
 * under it or with the space protected.
 */
import { SP_TRACKERS, MM_TRACKERS } from "./layout.ts";
import type { SpaceCore } from "./spaceCore.ts";

export const TR_NEXT = 0; //    M
export const TR_FIRST = 1; //   C  first page
export const TR_PAGES = 2; //   C
export const TR_CHANGES = 3; // A  how often a `written` bit was set; wraps
export const TR_BITS = 4; //    A  `written`, then `away`: a bit a page, in whole words each

export const bitWords = (pages: number): number => Math.ceil(pages / 32);
export const trackerWords = (pages: number): number => TR_BITS + 2 * bitWords(pages);
/** First word of the `away` bits of a tracker. */
export const awayAt = (tracker: number, pages: number): number => tracker + TR_BITS + bitWords(pages);

/** Sets the `written` bit of a page in every tracker of its space. Preconditions: mmapLock, or the space protected. */
export function noteWrite(space: SpaceCore, vpn: number): void {
  const w = space.agent.words;
  for (let at = Atomics.load(w, space.slot + SP_TRACKERS); at !== 0; at = Atomics.load(w, at + TR_NEXT)) {
    const page = vpn - Atomics.load(w, at + TR_FIRST);
    if (page >= 0 && page < Atomics.load(w, at + TR_PAGES)) setWritten(w, at, page);
  }
}

export function setWritten(w: Int32Array, tracker: number, page: number): void {
  const bit = 1 << (page & 31);
  // The bit before the count: who finds the count unchanged has missed no store that it could know of.
  if ((Atomics.or(w, tracker + TR_BITS + (page >>> 5), bit) & bit) === 0)
    Atomics.add(w, tracker + TR_CHANGES, 1);
}

/** True if the newest bytes of a page are in a device. Preconditions: as noteWrite(). */
export function isAway(space: SpaceCore, vpn: number): boolean {
  const w = space.agent.words;
  for (let at = Atomics.load(w, space.slot + SP_TRACKERS); at !== 0; at = Atomics.load(w, at + TR_NEXT)) {
    const page = vpn - Atomics.load(w, at + TR_FIRST);
    const pages = Atomics.load(w, at + TR_PAGES);
    if (page < 0 || page >= pages) continue;
    if ((Atomics.load(w, awayAt(at, pages) + (page >>> 5)) & (1 << (page & 31))) !== 0) return true;
  }
  return false;
}

/** Clears the `away` bits of a page. Preconditions: mmapLock; it is not mapped. */
export function forgetAway(space: SpaceCore, vpn: number): void {
  const w = space.agent.words;
  for (let at = Atomics.load(w, space.slot + SP_TRACKERS); at !== 0; at = Atomics.load(w, at + TR_NEXT)) {
    const page = vpn - Atomics.load(w, at + TR_FIRST);
    const pages = Atomics.load(w, at + TR_PAGES);
    if (page >= 0 && page < pages) Atomics.and(w, awayAt(at, pages) + (page >>> 5), ~(1 << (page & 31)));
  }
}

/** Calls `visit(page, written, away)` for each page of each tracker of a space. For checks. */
export function eachTrackedPage(
  space: SpaceCore,
  visit: (vpn: number, written: boolean, away: boolean) => void,
): void {
  const w = space.agent.words;
  for (let at = Atomics.load(w, space.slot + SP_TRACKERS); at !== 0; at = Atomics.load(w, at + TR_NEXT)) {
    const first = Atomics.load(w, at + TR_FIRST);
    const pages = Atomics.load(w, at + TR_PAGES);
    const isSet = (bits: number, page: number): boolean =>
      (Atomics.load(w, bits + (page >>> 5)) & (1 << (page & 31))) !== 0;
    for (let page = 0; page < pages; page++)
      visit(first + page, isSet(at + TR_BITS, page), isSet(awayAt(at, pages), page));
  }
}

/** Frees the trackers of a space. Preconditions: nobody uses the space any more. */
export function freeTrackers({ agent, mm, slot }: SpaceCore): void {
  const w = agent.words;
  for (let at = Atomics.exchange(w, slot + SP_TRACKERS, 0); at !== 0;) {
    const next = Atomics.load(w, at + TR_NEXT);
    mm.free(at, trackerWords(Atomics.load(w, at + TR_PAGES)));
    Atomics.sub(w, mm.header + MM_TRACKERS, 1);
    at = next;
  }
}
