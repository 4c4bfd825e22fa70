/**
 * Interval tree against a binary search in a sorted Float64Array, which is the fastest a plain array can answer
 * (and cannot insert), and against the interval trees of npm. Disjoint intervals with gaps as wide as a query, so that
 * a query overlaps one interval at most, and who asks for the first gets what others get who ask for all.
 */
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";
import { interleave, keep, lineOf, nsPerOperation } from "../lib/interleave.mjs";
import { intervalPackages } from "../lib/intervalPackages.mjs";
import { median } from "../lib/statistics.mjs";

const SOURCE = fileURLToPath(new URL("../../src/memory/intervalTree.ts", import.meta.url));
const INTERVAL_BYTES = 16 * 4096;
const SPACING_BYTES = INTERVAL_BYTES + 4096;
const QUERY_BYTES = 4096;
const QUERIES = 1 << 15;
const CHANGES = 1 << 13;
const ROOT = 1;
const FIRST_NODE = 16;
const NONE = -1;

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

/** `count` intervals, whose keys ascend with them, and as many more as CHANGES says that fill gaps between them. */
function makeIntervals(count, random) {
  const gaps = shuffled(count, random).slice(0, CHANGES);
  const starts = new Float64Array(count + gaps.length);
  const lasts = new Float64Array(count + gaps.length);
  for (let key = 0; key < count; key++) {
    starts[key] = key * SPACING_BYTES;
    lasts[key] = starts[key] + INTERVAL_BYTES - 1;
  }
  gaps.forEach((gap, n) => {
    starts[count + n] = gap * SPACING_BYTES + INTERVAL_BYTES;
    lasts[count + n] = (gap + 1) * SPACING_BYTES - 1;
  });
  return { starts, lasts, order: shuffled(count, random), extras: gaps.map((_, n) => count + n) };
}

/** Ours behind the functions of intervalPackages.mjs, and what loops need to call it themselves. */
function openTree(tree, { starts, lasts, order }, recordWords) {
  const { itSet, itInsert, itRemove, itFirst } = tree;
  const buffer = new SharedArrayBuffer((FIRST_NODE + starts.length * recordWords) * 4);
  const arena = { words: new Int32Array(buffer), doubles: new Float64Array(buffer) };
  // Records lie in the order of insertion: neighbours in the tree are not neighbours in memory.
  const nodes = new Int32Array(starts.length);
  const keys = new Map();
  const place = (key, position) => {
    nodes[key] = FIRST_NODE + position * recordWords;
    keys.set(nodes[key], key);
  };
  order.forEach(place);
  for (let key = order.length; key < starts.length; key++) place(key, key);
  const insert = (key) => {
    itSet(arena, nodes[key], starts[key], lasts[key]);
    itInsert(arena, ROOT, nodes[key]);
  };
  for (const key of order) insert(key);
  return {
    arena,
    find: (start, last) => keys.get(itFirst(arena, ROOT, start, last)) ?? NONE,
    insert,
    remove: (key) => itRemove(arena, ROOT, nodes[key]),
  };
}

/** How many of the queries `subject` answers otherwise than the sorted array does. */
function wrongAnswers(subject, { starts, lasts, order }, queries) {
  let wrong = 0;
  for (const start of queries) {
    const last = start + QUERY_BYTES - 1;
    if (subject.find(start, last) !== searchSorted(starts, lasts, order.length, start, last) - 1) wrong++;
  }
  return wrong;
}

/** How many of the inserted extras `subject` does not find. */
const lost = (subject, { starts, extras }) =>
  extras.filter((key) => subject.find(starts[key] + 1, starts[key] + 1) !== key).length;

/** Answers before, between and after changes. Throws where ours is wrong; returns what others get wrong, in words. */
function compareAnswers(name, subject, intervals, queries, ours) {
  const { extras } = intervals;
  const before = wrongAnswers(subject, intervals, queries);
  for (const key of extras) subject.insert(key);
  const missing = lost(subject, intervals);
  for (const key of extras) subject.remove(key);
  const after = wrongAnswers(subject, intervals, queries);
  if (before === 0 && missing === 0 && after === 0) return [];
  const text =
    `${name} gives ${before} wrong answers of ${queries.length}, has lost ${missing} of ${extras.length} ` +
    `inserted intervals, and gives ${after} wrong answers once they are removed`;
  if (ours) throw new Error(text);
  return [text];
}

/** A lookup variant through `find`; Bifolio and the array have loops of their own, as tight as their callers'. */
const lookups = (queries, find) => () =>
  nsPerOperation(QUERIES, () => {
    let found = 0;
    for (let n = 0; n < QUERIES; n++) {
      const start = queries[n];
      found ^= find(start, start + QUERY_BYTES - 1);
    }
    keep(found);
  });

/** A variant that times insertions, and then the removals of the same, which go to `removals`. */
const insertions =
  (open, { extras }, removals) =>
  () => {
    const subject = open();
    const passes = Math.ceil(CHANGES / extras.length);
    let inserting = 0;
    let removing = 0;
    for (let pass = 0; pass < passes; pass++) {
      inserting += nsPerOperation(extras.length, () => {
        for (const key of extras) subject.insert(key);
      });
      removing += nsPerOperation(extras.length, () => {
        for (const key of extras) subject.remove(key);
      });
    }
    removals.push(removing / passes);
    return inserting / passes;
  };

async function measureOne(tree, count, recordWords, repetitions, packages) {
  const { itFirst } = tree;
  const random = randomSource(12_345);
  const intervals = makeIntervals(count, random);
  const { starts, lasts, order } = intervals;
  const ours = openTree(tree, intervals, recordWords);
  const { arena } = ours;
  const anywhere = new Float64Array(QUERIES).map(() => random(count * SPACING_BYTES));
  const ascending = anywhere.toSorted();

  const notes = compareAnswers("Bifolio", ours, intervals, anywhere, true);
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
  const removals = { Bifolio: [] };
  const variants = {
    random: inTree(anywhere),
    randomArray: inArray(anywhere),
    ascending: inTree(ascending),
    ascendingArray: inArray(ascending),
    insert: insertions(() => ours, intervals, removals.Bifolio),
  };
  for (const { name, open } of packages) {
    const build = () => open(starts, lasts, order);
    notes.push(
      ...compareAnswers(`${name}, ${count.toLocaleString("en")} intervals,`, build(), intervals, anywhere),
    );
    removals[name] = [];
    variants[`random ${name}`] = lookups(anywhere, build().find);
    // Anew each time: what changes have left unbalanced is not to be the next round's start.
    variants[`insert ${name}`] = insertions(build, intervals, removals[name]);
  }
  const samples = await interleave(variants, { repetitions });
  for (const [name, removed] of Object.entries(removals))
    samples[`remove ${name}`] = removed.slice(-repetitions);
  return { samples, notes };
}

const LOOKUP_GOAL = "at most 1.3 x";

export default {
  measures:
    "an interval that overlaps 4 KiB, in the tree of vmas and subscriptions, against a binary search in a sorted array and the interval trees of npm",
  async run({ repetitions }) {
    const tree = await bundledTree();
    const notes = [
      "the same intervals and queries for all; a query overlaps one interval at most",
      "interval-tree-1d is stopped at the first interval it meets, the other packages list all, in an array",
      "insert and remove: intervals that fill gaps; ours takes records that are there, the packages allocate theirs",
      "interval-tree-1d is built from a list in one go, the others by insertions in random order",
    ];
    const lines = [];
    // Records as small as they get, and of 128 bytes, as subscriptions are.
    for (const { count, recordWords, goal } of [
      { count: 100, recordWords: 12 },
      { count: 1000, recordWords: 12 },
      { count: 10_000, recordWords: 12, goal: "at least 3 x faster" },
      { count: 10_000, recordWords: 32 },
      { count: 100_000, recordWords: 12, goal: "at least 6 x faster" },
      { count: 100_000, recordWords: 32 },
    ]) {
      const packages = goal ? intervalPackages : [];
      const { samples, notes: found } = await measureOne(tree, count, recordWords, repetitions, packages);
      notes.push(...found);
      const of = `of ${count.toLocaleString("en")} in records of ${recordWords * 4} bytes`;
      // The goal is set for queries anywhere; ascending ones favour the array, whose search then predicts well.
      const against = (what, bifolio, name, base, lineGoal) =>
        lineOf({ what, unit: "ns", bifolio, goal: lineGoal, alternative: { name, samples: base } });
      lines.push(
        against(`random ${of}`, samples.random, "sorted array", samples.randomArray, LOOKUP_GOAL),
        against(`ascending ${of}`, samples.ascending, "sorted array", samples.ascendingArray),
      );
      const best = (prefix) =>
        packages
          .map(({ name }) => `${prefix} ${name}`)
          .sort((a, b) => median(samples[a]) - median(samples[b]))[0];
      const others = (what, bifolio, prefix, bestGoal) =>
        packages.map(({ name }) => {
          const key = `${prefix} ${name}`;
          return against(
            `${what} ${of}`,
            bifolio,
            name,
            samples[key],
            key === best(prefix) ? bestGoal : undefined,
          );
        });
      if (packages.length === 0) {
        lines.push(
          lineOf({ what: `insert ${of}`, unit: "ns", bifolio: samples.insert }),
          lineOf({ what: `remove ${of}`, unit: "ns", bifolio: samples["remove Bifolio"] }),
        );
      }
      lines.push(
        ...others("random", samples.random, "random", goal),
        ...others("insert", samples.insert, "insert"),
        ...others("remove", samples["remove Bifolio"], "remove"),
      );
    }
    return { lines, notes };
  },
};
