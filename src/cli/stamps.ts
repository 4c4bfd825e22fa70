/**
 * Pages that say what they are: every pair of words holds a tag and a version. A page whose bytes come from another
 * page, or from before a change, shows it in each word.
 */
/** Tags: a kind in the top byte, a page number below. */
const KIND_SHIFT = 24;
export const STAMP_SCRATCH = 0x5c;
export const STAMP_FOREIGN = 0x3f;
export const STAMP_WRITTEN = 0x77;

export const tagOf = (kind: number, page: number): number => (kind << KIND_SHIFT) | page;

/** One page of stamps. */
export function stampedPage(pageSize: number, tag: number, version: number): Uint8Array {
  const words = new Int32Array(pageSize / 4);
  for (let n = 0; n < words.length; n += 2) {
    words[n] = tag;
    words[n + 1] = version;
  }
  return new Uint8Array(words.buffer);
}

/**
 * True if every word of a page is what it must be: this tag, and a version of at least `least`. It may be newer, word by
 * word, because its writer may be at work; a version says that the page was written no later than it was published.
 */
export function isStamped(page: Uint8Array, tag: number, least: number): boolean {
  const words = new Int32Array(page.buffer, page.byteOffset, page.byteLength >>> 2);
  for (let n = 0; n < words.length; n += 2) {
    if (words[n] !== tag || ((words[n + 1]! - least) | 0) < 0) return false;
  }
  return true;
}
