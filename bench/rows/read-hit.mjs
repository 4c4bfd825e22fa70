/** Scalar reads that hit the TLB. */
import { interleave, keep, lineOf, nsPerOperation, uniqueFunction } from "../lib/interleave.mjs";
import { filledMapping, MIB, openMemory, PAGE } from "../lib/memory.mjs";
import { geometricMean } from "../lib/statistics.mjs";

const READS = 2_000_000;
/** Not in MiB: with a fraction among them V8 holds all of them, and addresses made of them, as doubles. */
const SIZES_KIB = [512, 8 * 1024, 256 * 1024];
const WORDS_PER_PAGE = PAGE / 4;

/** Reads at random: `read` is an expression of `word`, the number of the word. */
const randomReads = (parameter, read) =>
  uniqueFunction(
    [parameter, "mask", "base", "count"],
    `let s = 1, sum = 0;
    for (let n = 0; n < count; n++) {
      s ^= s << 13; s ^= s >>> 17; s ^= s << 5;
      const word = s & mask;
      sum = (sum + ${read}) | 0;
    }
    return sum;`,
  );

/** Raw bytes, and the same cut into blocks of a page in a Map, as a hand-written block cache has them. */
function peersOf(bytes) {
  const raw = new Uint32Array(new SharedArrayBuffer(bytes));
  for (let n = 0; n < raw.length; n++) raw[n] = n;
  const blocks = new Map();
  for (let page = 0; page < bytes / PAGE; page++) {
    blocks.set(page, new Uint32Array(raw.buffer, page * PAGE, WORDS_PER_PAGE));
  }
  return { raw, blocks };
}

async function measureSize(sizeKiB, repetitions) {
  const bytes = sizeKiB * 1024;
  const { memory, space } = await openMemory(Math.ceil(bytes / MIB) + 16);
  const address = filledMapping(space, bytes);
  const { raw, blocks } = peersOf(bytes);
  const mask = bytes / 4 - 1;
  const timed = (loop, subject) => {
    // Small calls first: a loop that was only ever entered once is optimised while it runs, and stays different.
    for (let n = 0; n < 300; n++) keep(loop(subject, mask, address, 1000));
    return () => {
      keep(loop(subject, mask, address, READS / 4));
      return nsPerOperation(READS, () => keep(loop(subject, mask, address, READS)));
    };
  };
  const samples = await interleave(
    {
      bifolio: timed(randomReads("space", "space.getUint32(base + word * 4)"), space),
      raw: timed(randomReads("raw", "raw[word]"), raw),
      blocks: timed(randomReads("blocks", `blocks.get(word >>> 10)[word & ${WORDS_PER_PAGE - 1}]`), blocks),
    },
    { repetitions },
  );
  await memory.close();
  return samples;
}

export default {
  measures:
    "getUint32 at random addresses of resident shared memory, every one a TLB hit, against the same loop over a typed array",
  async run({ repetitions }) {
    const lines = [];
    const ratios = [];
    const blockRatios = [];
    for (const sizeKiB of SIZES_KIB) {
      const { bifolio, raw, blocks } = await measureSize(sizeKiB, repetitions);
      const what = sizeKiB < 1024 ? `${sizeKiB} KiB` : `${sizeKiB / 1024} MiB`;
      const versus = (name, samples) => lineOf({ what, unit: "ns", bifolio, alternative: { name, samples } });
      lines.push(versus("typed array", raw), versus("Map of pages", blocks));
      ratios.push(bifolio.map((sample, n) => sample / raw[n]));
      blockRatios.push(bifolio.map((sample, n) => sample / blocks[n]));
    }
    const mean = (perSize) => perSize[0].map((_, n) => geometricMean(perSize.map((samples) => samples[n])));
    const one = { name: "typed array", samples: ratios[0].map(() => 1) };
    lines.push(
      lineOf({
        what: "geometric mean of the sizes",
        unit: "x",
        bifolio: mean(ratios),
        alternative: one,
        goal: "at most 3 x",
      }),
      lineOf({
        what: "geometric mean of the sizes",
        unit: "x",
        bifolio: mean(blockRatios),
        alternative: { ...one, name: "Map of pages" },
      }),
    );
    return { lines };
  },
};
