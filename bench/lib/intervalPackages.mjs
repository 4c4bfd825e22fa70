/**
 * Interval trees from npm, each behind the same few functions over keys into `starts` and `lasts`:
 *   find(start, last)   a key whose interval overlaps, or -1
 *   insert(key), remove(key)
 */
import Flatten from "@flatten-js/interval-tree";
import createIntervalTree from "interval-tree-1d";
import { IntervalTree } from "node-interval-tree";

function intervalTree1d(starts, lasts, keys) {
  const intervals = Array.from(starts, (start, key) => [start, lasts[key], key]);
  const tree = createIntervalTree(keys.map((key) => intervals[key]));
  let found = -1;
  const visit = (interval) => {
    found = interval[2];
    return true; // the first one met is enough
  };
  return {
    find(start, last) {
      found = -1;
      tree.queryInterval(start, last, visit);
      return found;
    },
    insert: (key) => tree.insert(intervals[key]),
    remove: (key) => tree.remove(intervals[key]),
  };
}

function flatten(starts, lasts, keys) {
  const tree = new Flatten();
  const insert = (key) => tree.insert([starts[key], lasts[key]], key);
  for (const key of keys) insert(key);
  return {
    find: (start, last) => tree.search([start, last])[0] ?? -1,
    insert,
    remove: (key) => tree.remove([starts[key], lasts[key]], key),
  };
}

function nodeIntervalTree(starts, lasts, keys) {
  const intervals = Array.from(starts, (low, key) => ({ low, high: lasts[key], key }));
  const tree = new IntervalTree();
  for (const key of keys) tree.insert(intervals[key]);
  return {
    find: (start, last) => tree.search(start, last)[0]?.key ?? -1,
    insert: (key) => tree.insert(intervals[key]),
    remove: (key) => tree.remove(intervals[key]),
  };
}

/** `open` makes a tree of the intervals that `keys` names, in that order where the tree is not made in one go. */
export const intervalPackages = [
  { name: "interval-tree-1d", open: intervalTree1d },
  { name: "@flatten-js/interval-tree", open: flatten },
  { name: "node-interval-tree", open: nodeIntervalTree },
];
