/**
 * The bytes that are looked at, where nobody brings a file: pages whose mean grey makes a picture, each with grain of its
 * own. Any page can be made without the others. Works in Node and in browsers.
 */
export const PAGE = 4096;

/** Pages in a row of the picture: as square as whole pages allow. */
export const widthOf = (pages) => Math.ceil(Math.sqrt(pages));

/** Rings around a point, over a slope. */
function greyOf(page, width) {
  const x = (page % width) / width - 0.35;
  const y = Math.floor(page / width) / width - 0.6;
  const ring = Math.sin(60 * Math.hypot(x, y)) / (1 + 6 * Math.hypot(x, y));
  return Math.round(128 + 80 * ring + 40 * (x - y));
}

/** Fills `into` with the bytes from `offset` on of `pages` pages; both are multiples of the page size. */
export function makeBytes(into, offset, pages) {
  const width = widthOf(pages);
  const words = new Uint32Array(into.buffer, into.byteOffset, into.length / 4);
  for (let at = 0; at < into.length; at += PAGE) {
    const page = (offset + at) / PAGE;
    const grey = Math.max(16, Math.min(239, greyOf(page, width)));
    let state = page * 2654435761 + 1;
    for (let k = at / 4; k < (at + PAGE) / 4; k++) {
      state = Math.imul(state, 1664525) + 1013904223;
      // Four bytes, each up to 15 above or below.
      words[k] =
        ((grey - 15) * 0x01010101 + ((state >>> 3) & 0x0f0f0f0f) + ((state >>> 5) & 0x0f0f0f0f)) >>> 0;
    }
  }
}

export const DEMO = "gpu-histogram";

/** The same bytes as the contents of a file, of which nothing is kept; for registerBacking(DEMO, demoBacking). */
export function demoBacking(pages) {
  const readSync = (offset, into) => {
    // Into memory of our own: whole words of what comes may not lie at a multiple of four.
    const bytes = new Uint8Array(into.length);
    makeBytes(bytes, offset, pages);
    into.set(bytes);
    return into.length;
  };
  return {
    size: pages * PAGE,
    descriptor: { kind: DEMO, data: pages },
    readSync,
    read: async (offset, into) => readSync(offset, into),
  };
}
