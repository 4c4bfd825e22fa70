/**
 * Interval tree against a binary search in a sorted Float64Array, which is the fastest a plain array can answer
 * (and cannot insert). Disjoint intervals with gaps; random queries, ascending queries, and changes.
 */
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";
import { interleave, keep, lineOf, nsPerOperation } from "../lib/interleave.mjs";

const SOURCE = fileURLToPath(new URL("../../src/memory/intervalTree.ts", import.meta.url));
const INTERVAL_BYTES = 16 * 4096;
const SPACING_BYTES = INTERVAL_BYTES + 4096;
const QUERY_BYTES = 4096;
const QUERIES = 1 << 15;
const CHANGES = 1 << 13;
const ROOT = 1;
const FIRST_NODE = 16;

/** The tree as users get it: bundled, so that its constants are folded in. */
async function bundledTree() {
  const bundle = await rolldown({ input: SOURCE, optimization: { inlineConst: { mode: "all", pass: 3 } } });
  const { output } = await bundle.generate({ format: "esm" });
  await bundle.close();
  return import(`data:text/javascript,${encodeURIComponent(output[0].code)}`);
}

function randomSource(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

function shuffled(count, random) {
  const order = Array.from({ length: count }, (_, n) => n);
  for (let i = count - 1; i > 0; i--) {
    const j = random(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** Position + 1 of the first interval that overlaps `[start, last]`, or 0. */
function searchSorted(starts, lasts, count, start, last) {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lasts[middle] >= start) high = middle;
    else low = middle + 1;
  }
  return low < count && starts[low] <= last ? low + 1 : 0;
}

async function measureOne(tree, count, recordWords, repetitions) {
  const { itSet, itInsert, itRemove, itFirst } = tree;
  const random = randomSource(12_345);
  const buffer = new SharedArrayBuffer((FIRST_NODE + count * recordWords) * 4);
  const arena = { words: new Int32Array(buffer), doubles: new Float64Array(buffer) };
  const starts = new Float64Array(count).map((_, n) => n * SPACING_BYTES);
  const lasts = starts.map((start) => start + INTERVAL_BYTES - 1);
  const order = shuffled(count, random);
  const nodeAt = (position) => FIRST_NODE + position * recordWords;
  order.forEach((key, position) => {
    itSet(arena, nodeAt(position), starts[key], lasts[key]);
    itInsert(arena, ROOT, nodeAt(position));
  });

  const anywhere = new Float64Array(QUERIES).map(() => random(count * SPACING_BYTES));
  const ascending = anywhere.toSorted();
  const changes = Array.from({ length: CHANGES }, () => nodeAt(random(count)));
  // Locals in the loops: a captured variable would be read again in each round.
  const inTree = (queries) => () =>
    nsPerOperation(QUERIES, () => {
      const a = arena;
      let found = 0;
      for (let n = 0; n < QUERIES; n++) {
        const start = queries[n];
        found ^= itFirst(a, ROOT, start, start + QUERY_BYTES - 1);
      }
      keep(found);
    });
  const inArray = (queries) => () =>
    nsPerOperation(QUERIES, () => {
      let found = 0;
      for (let n = 0; n < QUERIES; n++) {
        const start = queries[n];
        found ^= searchSorted(starts, lasts, count, start, start + QUERY_BYTES - 1);
      }
      keep(found);
    });
  return interleave(
    {
      random: inTree(anywhere),
      randomArray: inArray(anywhere),
      ascending: inTree(ascending),
      ascendingArray: inArray(ascending),
      removeAndInsert: () =>
        nsPerOperation(CHANGES, () => {
          for (const node of changes) {
            itRemove(arena, ROOT, node);
            itInsert(arena, ROOT, node);
          }
        }),
    },
    { repetitions },
  );
}

export default {
  measures:
    "first interval that overlaps 4 KiB, in the tree of vmas and subscriptions, against a binary search in a sorted array",
  async run({ repetitions }) {
    const tree = await bundledTree();
    const lines = [];
    // Records as small as they get, and of 128 bytes, as subscriptions are.
    for (const [count, recordWords] of [
      [100, 12],
      [1000, 12],
      [10_000, 12],
      [10_000, 32],
      [100_000, 12],
    ]) {
      const samples = await measureOne(tree, count, recordWords, repetitions);
      const of = `of ${count.toLocaleString("en")} in records of ${recordWords * 4} bytes`;
      // The goal is set for queries anywhere; ascending ones favour the array, whose search then predicts well.
      const search = (what, bifolio, base, goal) =>
        lineOf({
          what,
          unit: "ns",
          bifolio,
          goal,
          alternative: { name: "sorted array", samples: base },
        });
      lines.push(
        search(`random ${of}`, samples.random, samples.randomArray, "at most 1.3 x"),
        search(`ascending ${of}`, samples.ascending, samples.ascendingArray),
        lineOf({ what: `remove and insert ${of}`, unit: "ns", bifolio: samples.removeAndInsert }),
      );
    }
    return { lines };
  },
};
