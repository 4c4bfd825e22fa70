/**
 * The one tree of intervals: VMAs by address, interval notifiers by address, mappings of a file by offset.
 * Linux: lib/interval_tree.c on lib/rbtree.c, and the part of the maple tree that finds VMAs.
 *
 * An AVL tree ordered by start; nodes with equal starts keep the order in which they were inserted. A node is
 * IT_WORDS words inside a bigger record, at an even word index; a tree is one word that holds its top node.
 * Bounds are exact integers from 0 to Number.MAX_SAFE_INTEGER, kept as doubles; intervals are closed.
 *
 * Each node holds the highest `last` of its left and of its right subtree, rather than one maximum for all of
 * its own. So a search decides in the node it is at and touches no child that it does not enter, and a rotation
 * moves maxima without looking around. The words that a search reads come first. (AVL rather than red-black: it
 * is flatter, and trees here are searched far more often than changed.)
 *
 * What makes the search one walk without a second branch: the first interval in order whose last >= wanted start
 * is the first to overlap, or none does, since all later ones start no earlier than it does.
 *
 * Invariants (checkIntervalTree() verifies them)
 *   T1  In order, starts ascend; start <= last in each node.
 *   T2  A child's IT_PARENT is its parent; the top node's is 0.
 *   T3  The heights of a node's subtrees differ by at most 1, and IT_BALANCE says how.
 *   T4  IT_LEFT_MAX is the highest last of the left subtree, NO_MAX if that is empty; likewise IT_RIGHT_MAX.
 *
 * A node in no tree has IT_BALANCE 0, as fresh memory has. Functions here take no lock: the caller holds the one
 * that guards its tree, which also orders the plain accesses.
 */
import type { Arena } from "../sched/index.ts";

// All fields: under the lock of the tree. Doubles are at even words.
export const IT_LEFT = 0; //         node, 0 = none
export const IT_RIGHT = 1; //        node, 0 = none
export const IT_LEFT_MAX = 2; //     double: highest last of the left subtree, or NO_MAX
export const IT_RIGHT_MAX = 4; //    double: same of the right subtree
export const IT_LAST = 6; //         double: last byte of the interval
export const IT_START = 8; //        double: first byte
export const IT_PARENT = 10; //      node, 0 = top of the tree
export const IT_BALANCE = 11; //     BALANCE_*
/** Words of a node. */
export const IT_WORDS = 12;

// The same positions in `doubles`, relative to `node >> 1`.
const LEFT_MAX = 1;
const RIGHT_MAX = 2;
const LAST = 3;
const START = 4;

const BALANCE_NONE = 0; //  in no tree
const BALANCE_EVEN = 2; //  subtrees of equal height; one less: the left is higher, one more: the right

/** Below every bound: an empty subtree never overlaps. */
const NO_MAX = -1;

// A side is the distance from the left field to the right one.
const LEFT_SIDE = 0;
const RIGHT_SIDE = 1;

const load = (words: Int32Array, at: number): number => words[at] as number;
const loadDouble = (doubles: Float64Array, at: number): number => doubles[at] as number;

const child = (words: Int32Array, node: number, side: number): number => load(words, node + IT_LEFT + side);
const sideOf = (words: Int32Array, parent: number, node: number): number =>
  load(words, parent + IT_LEFT) === node ? LEFT_SIDE : RIGHT_SIDE;
/** IT_BALANCE of a node whose subtree on `side` is the higher one. */
const leaning = (side: number): number => BALANCE_EVEN - 1 + 2 * side;

/** Sets the bounds of a node that is in no tree. */
export function itSet(a: Arena, node: number, start: number, last: number): void {
  const d = node >> 1;
  a.doubles[d + START] = start;
  a.doubles[d + LAST] = last;
}

/** First byte of the interval. Stays readable after removal. */
export function itStart(a: Arena, node: number): number {
  return loadDouble(a.doubles, (node >> 1) + START);
}

/** Last byte of the interval. Stays readable after removal. */
export function itLast(a: Arena, node: number): number {
  return loadDouble(a.doubles, (node >> 1) + LAST);
}

/** True for a node that is in a tree. */
export function itLinked(a: Arena, node: number): boolean {
  return load(a.words, node + IT_BALANCE) !== BALANCE_NONE;
}

/** True for a tree without nodes. */
export function itEmpty(a: Arena, root: number): boolean {
  return load(a.words, root) === 0;
}

/** Answers the first node in order that overlaps `[start, last]`, or 0. */
export function itFirst(a: Arena, root: number, start: number, last: number): number {
  return firstBelow(a, load(a.words, root), start, last);
}

/** Answers the next node after `node` in order that overlaps `[start, last]`, or 0. */
export function itNext(a: Arena, node: number, start: number, last: number): number {
  const { words, doubles } = a;
  if (loadDouble(doubles, (node >> 1) + RIGHT_MAX) >= start) {
    return firstBelow(a, load(words, node + IT_RIGHT), start, last);
  }
  let below = node;
  for (let n = load(words, node + IT_PARENT); n !== 0; below = n, n = load(words, n + IT_PARENT)) {
    if (load(words, n + IT_LEFT) !== below) continue;
    const d = n >> 1;
    if (loadDouble(doubles, d + LAST) >= start) return loadDouble(doubles, d + START) <= last ? n : 0;
    if (loadDouble(doubles, d + RIGHT_MAX) >= start)
      return firstBelow(a, load(words, n + IT_RIGHT), start, last);
  }
  return 0;
}

/** Answers the first node in order that holds the byte `at`, or 0. */
export function itFind(a: Arena, root: number, at: number): number {
  return firstBelow(a, load(a.words, root), at, at);
}

/** Answers the first node in order, or 0. */
export function itLowest(a: Arena, root: number): number {
  const top = load(a.words, root);
  return top === 0 ? 0 : outermost(a.words, top, LEFT_SIDE);
}

/** Answers the next node in order, or 0. */
export function itSuccessor(a: Arena, node: number): number {
  return neighbour(a.words, node, RIGHT_SIDE);
}

/** Answers the previous node in order, or 0. */
export function itPredecessor(a: Arena, node: number): number {
  return neighbour(a.words, node, LEFT_SIDE);
}

/**
 * Puts a node, with bounds from itSet(), into the tree, after all nodes that start no later.
 * Throws if it is in a tree already.
 */
export function itInsert(a: Arena, root: number, node: number): void {
  const { words, doubles } = a;
  if (itLinked(a, node)) throw new Error(`itInsert: node 0x${node.toString(16)} is in a tree already`);
  const start = itStart(a, node);
  const last = itLast(a, node);
  let parent = 0;
  let side = LEFT_SIDE;
  for (let n = load(words, root); n !== 0; n = child(words, n, side)) {
    parent = n;
    const d = n >> 1;
    side = +(start >= loadDouble(doubles, d + START)); // computed, as in firstBelow()
    if (loadDouble(doubles, d + LEFT_MAX + side) < last) doubles[d + LEFT_MAX + side] = last;
  }
  words[node + IT_LEFT] = 0;
  words[node + IT_RIGHT] = 0;
  doubles[(node >> 1) + LEFT_MAX] = NO_MAX;
  doubles[(node >> 1) + RIGHT_MAX] = NO_MAX;
  words[node + IT_PARENT] = parent;
  words[node + IT_BALANCE] = BALANCE_EVEN;
  if (parent === 0) {
    words[root] = node;
  } else {
    words[parent + IT_LEFT + side] = node;
    rebalanceGrown(a, root, parent, side);
  }
}

/** Takes a node out of its tree; it keeps its bounds. Throws if it is in no tree. */
export function itRemove(a: Arena, root: number, node: number): void {
  const { words, doubles } = a;
  if (!itLinked(a, node)) throw new Error(`itRemove: node 0x${node.toString(16)} is in no tree`);
  const left = load(words, node + IT_LEFT);
  const right = load(words, node + IT_RIGHT);
  // Where a subtree became one lower, and on which side.
  let shrunk: number;
  let side: number;
  if (left === 0 || right === 0) {
    const only = left + right;
    shrunk = load(words, node + IT_PARENT);
    side = shrunk === 0 ? LEFT_SIDE : sideOf(words, shrunk, node);
    replaceChild(words, root, shrunk, node, only);
    if (shrunk !== 0) {
      doubles[(shrunk >> 1) + LEFT_MAX + side] = only === 0 ? NO_MAX : subtreeMax(doubles, only);
      raiseMax(a, root, shrunk);
    }
  } else {
    // The next node in order, which has no left child, takes this one's place.
    const next = outermost(words, right, LEFT_SIDE);
    if (next === right) {
      shrunk = next;
      side = RIGHT_SIDE;
    } else {
      shrunk = load(words, next + IT_PARENT);
      side = LEFT_SIDE;
      const orphan = load(words, next + IT_RIGHT);
      words[shrunk + IT_LEFT] = orphan;
      if (orphan !== 0) words[orphan + IT_PARENT] = shrunk;
      doubles[(shrunk >> 1) + LEFT_MAX] = loadDouble(doubles, (next >> 1) + RIGHT_MAX);
      words[next + IT_RIGHT] = right;
      words[right + IT_PARENT] = next;
      doubles[(next >> 1) + RIGHT_MAX] = loadDouble(doubles, (node >> 1) + RIGHT_MAX);
    }
    words[next + IT_LEFT] = left;
    words[left + IT_PARENT] = next;
    doubles[(next >> 1) + LEFT_MAX] = loadDouble(doubles, (node >> 1) + LEFT_MAX);
    words[next + IT_BALANCE] = load(words, node + IT_BALANCE);
    replaceChild(words, root, load(words, node + IT_PARENT), node, next);
    // Two walks: the first may end below `next`, whose own last differs from the removed one's.
    raiseMax(a, root, shrunk);
    raiseMax(a, root, next);
  }
  rebalanceShrunk(a, root, shrunk, side);
  words[node + IT_LEFT] = 0;
  words[node + IT_RIGHT] = 0;
  words[node + IT_PARENT] = 0;
  words[node + IT_BALANCE] = BALANCE_NONE;
  doubles[(node >> 1) + LEFT_MAX] = 0;
  doubles[(node >> 1) + RIGHT_MAX] = 0;
}

/**
 * Changes the bounds of a node in place.
 * Preconditions: its place in the order stays right: the previous node starts no later, the next no earlier.
 */
export function itUpdate(a: Arena, root: number, node: number, start: number, last: number): void {
  itSet(a, node, start, last);
  raiseMax(a, root, node);
}

/** Gives a node another end. It comes to stand behind all nodes that start with it, as if it were taken out and put in anew. */
export function itResize(a: Arena, root: number, node: number, last: number): void {
  const start = itStart(a, node);
  const next = itSuccessor(a, node);
  if (next === 0 || itStart(a, next) !== start) {
    itUpdate(a, root, node, start, last);
    return;
  }
  itRemove(a, root, node);
  itSet(a, node, start, last);
  itInsert(a, root, node);
}

/**
 * itFirst() in the subtree of `top`, which may be 0.
 *
 * Which way to go is computed, not branched on: for unrelated queries it is a coin toss, and a wrong guess at every
 * second level costs more than the longer chain of loads. (Among 10,000 nodes 85 ns, with a branch 105 to 120; for
 * queries in ascending order, which a predictor learns, 50 instead of 20.) The branch left is taken once, at the end.
 */
function firstBelow(a: Arena, top: number, start: number, last: number): number {
  const { words, doubles } = a;
  let n = top;
  while (n !== 0) {
    const d = n >> 1;
    const side = +(loadDouble(doubles, d + LEFT_MAX) < start);
    // The first with last >= start: it overlaps, or it and all later ones begin after `last`.
    if ((side & +(loadDouble(doubles, d + LAST) >= start)) !== 0) {
      return loadDouble(doubles, d + START) <= last ? n : 0;
    }
    n = child(words, n, side);
  }
  return 0;
}

/** No tree is deeper: an AVL tree of 2^31 nodes has 45 levels. Walked while it changes it may lead anywhere. */
const MAX_DEPTH = 64;

function tooDeep(): never {
  throw new RangeError("interval tree: deeper than any can be");
}

function outermost(words: Int32Array, top: number, side: number): number {
  let n = top;
  let depth = 0;
  for (let next = child(words, n, side); next !== 0; next = child(words, n, side)) {
    if (++depth > MAX_DEPTH) tooDeep();
    n = next;
  }
  return n;
}

function neighbour(words: Int32Array, node: number, side: number): number {
  const inner = child(words, node, side);
  if (inner !== 0) return outermost(words, inner, RIGHT_SIDE - side);
  let below = node;
  let n = load(words, node + IT_PARENT);
  for (let depth = 1; n !== 0 && child(words, n, side) === below; depth++) {
    if (depth > MAX_DEPTH) tooDeep();
    below = n;
    n = load(words, n + IT_PARENT);
  }
  return n;
}

/** Highest last in the subtree of `node`. */
function subtreeMax(doubles: Float64Array, node: number): number {
  const d = node >> 1;
  const left = loadDouble(doubles, d + LEFT_MAX);
  const right = loadDouble(doubles, d + RIGHT_MAX);
  const own = loadDouble(doubles, d + LAST);
  const inner = left > right ? left : right;
  return inner > own ? inner : own;
}

/** Tells the nodes above that the maximum of this subtree may have changed; ends where it makes no difference. */
function raiseMax(a: Arena, root: number, node: number): void {
  const { words, doubles } = a;
  const top = load(words, root);
  for (let n = node; n !== top;) {
    const parent = load(words, n + IT_PARENT);
    const at = (parent >> 1) + LEFT_MAX + sideOf(words, parent, n);
    const max = subtreeMax(doubles, n);
    if (loadDouble(doubles, at) === max) return;
    doubles[at] = max;
    n = parent;
  }
}

/** Puts `to` (which may be 0) where `from` was, below `parent` or at the top. */
function replaceChild(words: Int32Array, root: number, parent: number, from: number, to: number): void {
  if (parent === 0) words[root] = to;
  else words[parent + IT_LEFT + sideOf(words, parent, from)] = to;
  if (to !== 0) words[to + IT_PARENT] = parent;
}

/** Lifts the child of `node` on `side` above it; the subtree keeps its order and its maximum. Balances are not set. */
function lift(a: Arena, root: number, node: number, side: number): void {
  const { words, doubles } = a;
  const other = RIGHT_SIDE - side;
  const lifted = child(words, node, side);
  const moved = child(words, lifted, other);
  words[node + IT_LEFT + side] = moved;
  if (moved !== 0) words[moved + IT_PARENT] = node;
  doubles[(node >> 1) + LEFT_MAX + side] = loadDouble(doubles, (lifted >> 1) + LEFT_MAX + other);
  replaceChild(words, root, load(words, node + IT_PARENT), node, lifted);
  words[lifted + IT_LEFT + other] = node;
  words[node + IT_PARENT] = lifted;
  doubles[(lifted >> 1) + LEFT_MAX + other] = subtreeMax(doubles, node);
}

/**
 * Evens out a node whose subtree on `side` is two higher than the other; answers the node now in its place.
 * Afterwards the subtree is one lower than before, except where the high child was even: then it is as high.
 */
function restore(a: Arena, root: number, node: number, side: number): number {
  const { words } = a;
  const other = RIGHT_SIDE - side;
  const high = child(words, node, side);
  const lean = load(words, high + IT_BALANCE);
  if (lean !== leaning(other)) {
    lift(a, root, node, side);
    const wasEven = lean === BALANCE_EVEN;
    words[node + IT_BALANCE] = wasEven ? leaning(side) : BALANCE_EVEN;
    words[high + IT_BALANCE] = wasEven ? leaning(other) : BALANCE_EVEN;
    return high;
  }
  const inner = child(words, high, other);
  const innerLean = load(words, inner + IT_BALANCE);
  lift(a, root, high, other);
  lift(a, root, node, side);
  words[node + IT_BALANCE] = innerLean === leaning(side) ? leaning(other) : BALANCE_EVEN;
  words[high + IT_BALANCE] = innerLean === leaning(other) ? leaning(side) : BALANCE_EVEN;
  words[inner + IT_BALANCE] = BALANCE_EVEN;
  return inner;
}

/** Restores T3 after the subtree of `node` on `side` became one higher. */
function rebalanceGrown(a: Arena, root: number, node: number, side: number): void {
  const { words } = a;
  let n = node;
  let grown = side;
  for (;;) {
    const balance = load(words, n + IT_BALANCE);
    if (balance === leaning(grown)) {
      restore(a, root, n, grown); // as high as before the insertion
      return;
    }
    if (balance !== BALANCE_EVEN) {
      words[n + IT_BALANCE] = BALANCE_EVEN;
      return;
    }
    words[n + IT_BALANCE] = leaning(grown);
    const parent = load(words, n + IT_PARENT);
    if (parent === 0) return;
    grown = sideOf(words, parent, n);
    n = parent;
  }
}

/** Restores T3 after the subtree of `node` (which may be 0) on `side` became one lower. */
function rebalanceShrunk(a: Arena, root: number, node: number, side: number): void {
  const { words } = a;
  let n = node;
  let shrunk = side;
  while (n !== 0) {
    const other = RIGHT_SIDE - shrunk;
    const balance = load(words, n + IT_BALANCE);
    let top = n;
    if (balance === BALANCE_EVEN) {
      words[n + IT_BALANCE] = leaning(other);
      return;
    }
    if (balance === leaning(other)) {
      const wasEven = load(words, child(words, n, other) + IT_BALANCE) === BALANCE_EVEN;
      top = restore(a, root, n, other);
      if (wasEven) return;
    } else {
      words[n + IT_BALANCE] = BALANCE_EVEN;
    }
    n = load(words, top + IT_PARENT);
    if (n !== 0) shrunk = sideOf(words, n, top);
  }
}

/** A tree of this height would have more nodes than an arena has words: a cycle. */
const IMPOSSIBLE_HEIGHT = 48;

/** Names the first broken invariant, or answers undefined. */
export function checkIntervalTree(a: Arena, root: number): string | undefined {
  const top = load(a.words, root);
  if (top === 0) return undefined;
  const walk: TreeWalk = { previousStart: 0, max: NO_MAX };
  const height = checkBelow(a, top, 0, IMPOSSIBLE_HEIGHT, walk);
  return typeof height === "string" ? height : undefined;
}

/** What checkBelow() reports besides the height. */
interface TreeWalk {
  /** Start of the last node visited. */
  previousStart: number;
  /** Highest last of the subtree just left. */
  max: number;
}

/** Checks the subtree of `node`; answers its height, or what is wrong. */
function checkBelow(a: Arena, node: number, parent: number, levels: number, walk: TreeWalk): number | string {
  if (node === 0) {
    walk.max = NO_MAX;
    return 0;
  }
  const { words, doubles } = a;
  const d = node >> 1;
  const name = `node 0x${node.toString(16)} [${itStart(a, node)}, ${itLast(a, node)}]`;
  if (levels === 0) return `T2: ${name} is below itself`;
  if (load(words, node + IT_PARENT) !== parent) return `T2: ${name} does not point to its parent`;

  const leftHeight = checkBelow(a, load(words, node + IT_LEFT), node, levels - 1, walk);
  if (typeof leftHeight === "string") return leftHeight;
  const leftMax = walk.max;
  if (!(itStart(a, node) >= walk.previousStart)) return `T1: ${name} starts before the one in front of it`;
  if (!(itStart(a, node) <= itLast(a, node))) return `T1: ${name} ends before it starts`;
  walk.previousStart = itStart(a, node);
  const rightHeight = checkBelow(a, load(words, node + IT_RIGHT), node, levels - 1, walk);
  if (typeof rightHeight === "string") return rightHeight;
  const rightMax = walk.max;

  const difference = rightHeight - leftHeight;
  if (Math.abs(difference) > 1) return `T3: ${name} has subtrees of height ${leftHeight} and ${rightHeight}`;
  if (load(words, node + IT_BALANCE) !== BALANCE_EVEN + difference) return `T3: ${name} has a wrong balance`;
  if (loadDouble(doubles, d + LEFT_MAX) !== leftMax) return `T4: ${name} has a wrong left maximum`;
  if (loadDouble(doubles, d + RIGHT_MAX) !== rightMax) return `T4: ${name} has a wrong right maximum`;
  walk.max = Math.max(leftMax, rightMax, itLast(a, node));
  return Math.max(leftHeight, rightHeight) + 1;
}
