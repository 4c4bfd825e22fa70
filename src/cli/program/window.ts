/** Where the pages of a program lie, and its numbers: 64 bits wide, as the system calls take them. */

/**
 * Address of page 0. Aligned to 1 GiB, so that page numbers and addresses agree modulo 16 and modulo 512, as on Linux;
 * and with all of the window below 2^31, where an access needs no more than an int32.
 */
export const WINDOW_BASE: number = 2 ** 30;
export const PAGE_BYTES = 4096;
/** The page that p0 has outside the window, in the same 1 GiB, in programs with warm page tables. */
export const WARM_PAGE = 131_072;

const MASK = 2n ** 64n - 1n;

/**
 * `pages` pages and `bytes` bytes modulo 2^64, as a number: the nearest one where it is no address of Bifolio, which is
 * far beyond every limit then, and as well aligned as the value itself.
 */
export const bytesOf = (pages = 0, bytes = 0): number =>
  Number((BigInt(pages) * BigInt(PAGE_BYTES) + BigInt(bytes)) & MASK);

/** The address of a position in the window; likewise. */
export const addressOf = (pages = 0, bytes = 0): number =>
  Number((BigInt(WINDOW_BASE) + BigInt(pages) * BigInt(PAGE_BYTES) + BigInt(bytes)) & MASK);

/** The page of an address, as results say it. */
export const pageOf = (address: number): number => (address - WINDOW_BASE) / PAGE_BYTES;

/** `[start, end)` in pages of a window of `pages`, clipped to it; undefined where nothing is left. */
export function clip(pages: number, start: number, end: number): { start: number; end: number } | undefined {
  const from = Math.max(0, Math.floor(pageOf(start)));
  const to = Math.min(pages, Math.floor(pageOf(end)));
  return from < to ? { start: from, end: to } : undefined;
}
