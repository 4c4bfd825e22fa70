import { describe, expect, test } from "vitest";
import {
  checkIntervalTree,
  IT_BALANCE,
  IT_LAST,
  IT_LEFT,
  IT_LEFT_MAX,
  IT_PARENT,
  IT_RIGHT,
  IT_RIGHT_MAX,
  IT_START,
  IT_WORDS,
  itEmpty,
  itFind,
  itFirst,
  itInsert,
  itLast,
  itLinked,
  itLowest,
  itNext,
  itPredecessor,
  itRemove,
  itSet,
  itStart,
  itSuccessor,
  itUpdate,
} from "../../../src/memory/intervalTree.ts";
import type { Arena } from "../../../src/sched/index.ts";

const MAX = Number.MAX_SAFE_INTEGER;
const ROOT = 1;
const BASE = 16;

const nodeAt = (n: number): number => BASE + n * IT_WORDS;

function makeArena(nodes: number): Arena {
  const buffer = new ArrayBuffer(nodeAt(nodes) * 4);
  return { words: new Int32Array(buffer), doubles: new Float64Array(buffer) };
}

/** A tree of these intervals, inserted in this order as nodes 0, 1 ... */
function treeOf(...intervals: readonly (readonly [number, number])[]): Arena {
  const a = makeArena(intervals.length);
  intervals.forEach(([start, last], n) => {
    itSet(a, nodeAt(n), start, last);
    itInsert(a, ROOT, nodeAt(n));
    expect(checkIntervalTree(a, ROOT)).toBeUndefined();
  });
  return a;
}

const numberOf = (node: number): number => (node - BASE) / IT_WORDS;

/** Numbers of the nodes that overlap, in order. */
function overlapping(a: Arena, start: number, last: number): number[] {
  const found: number[] = [];
  for (let n = itFirst(a, ROOT, start, last); n !== 0; n = itNext(a, n, start, last)) found.push(numberOf(n));
  return found;
}

function inOrder(a: Arena): number[] {
  const found: number[] = [];
  for (let n = itLowest(a, ROOT); n !== 0; n = itSuccessor(a, n)) found.push(numberOf(n));
  return found;
}

function heightOf(a: Arena, node: number): number {
  if (node === 0) return 0;
  return 1 + Math.max(heightOf(a, a.words[node + IT_LEFT]!), heightOf(a, a.words[node + IT_RIGHT]!));
}

/** Numbers 0 to n - 1 in an order that is the same in each run. */
function shuffled(n: number): number[] {
  const numbers = Array.from({ length: n }, (_, i) => i);
  let seed = 0x2545_f491;
  for (let i = n - 1; i > 0; i--) {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
    const j = seed % (i + 1);
    [numbers[i], numbers[j]] = [numbers[j]!, numbers[i]!];
  }
  return numbers;
}

test("fields of a node do not overlap, doubles are at even words", () => {
  const doubles = [IT_LEFT_MAX, IT_RIGHT_MAX, IT_LAST, IT_START];
  const words = [IT_LEFT, IT_RIGHT, IT_PARENT, IT_BALANCE, ...doubles, ...doubles.map((at) => at + 1)];
  expect(new Set(words).size).toBe(words.length);
  expect(Math.max(...words)).toBeLessThan(IT_WORDS);
  for (const at of [...doubles, IT_WORDS]) expect(at % 2).toBe(0);
});

describe("queries", () => {
  test("an empty tree overlaps nothing", () => {
    const a = makeArena(0);
    expect(itEmpty(a, ROOT)).toBe(true);
    expect(itFirst(a, ROOT, 0, MAX)).toBe(0);
    expect(itFind(a, ROOT, 0)).toBe(0);
    expect(itLowest(a, ROOT)).toBe(0);
    expect(checkIntervalTree(a, ROOT)).toBeUndefined();
  });

  test("both bounds belong to the interval", () => {
    const a = treeOf([10, 20]);
    expect(itEmpty(a, ROOT)).toBe(false);
    for (const at of [10, 15, 20]) expect(itFind(a, ROOT, at)).toBe(nodeAt(0));
    for (const at of [0, 9, 21, MAX]) expect(itFind(a, ROOT, at)).toBe(0);
    expect(overlapping(a, 0, 10)).toEqual([0]);
    expect(overlapping(a, 20, 30)).toEqual([0]);
    expect(overlapping(a, 0, MAX)).toEqual([0]);
    expect(overlapping(a, 12, 13)).toEqual([0]);
    expect(overlapping(a, 0, 9)).toEqual([]);
    expect(overlapping(a, 21, 30)).toEqual([]);
  });

  test("a query between two intervals finds neither", () => {
    const a = treeOf([0, 9], [20, 29], [40, 49]);
    expect(overlapping(a, 10, 19)).toEqual([]);
    expect(overlapping(a, 30, 39)).toEqual([]);
    expect(overlapping(a, 9, 20)).toEqual([0, 1]);
    expect(overlapping(a, 9, 40)).toEqual([0, 1, 2]);
  });

  test("a long interval is found over the short ones that begin after it", () => {
    const a = treeOf([0, 1000], [10, 11], [20, 21], [30, 31], [40, 41], [50, 900]);
    expect(overlapping(a, 35, 36)).toEqual([0]);
    expect(overlapping(a, 60, 60)).toEqual([0, 5]);
    expect(overlapping(a, 950, 950)).toEqual([0]);
    expect(overlapping(a, 1001, 2000)).toEqual([]);
    expect(overlapping(a, 11, 30)).toEqual([0, 1, 2, 3]);
  });

  test("equal starts keep the order of insertion", () => {
    const a = treeOf([5, 5], [5, 9], [1, 1], [5, 7], [5, 5], [9, 9], [5, 6]);
    expect(inOrder(a)).toEqual([2, 0, 1, 3, 4, 6, 5]);
    expect(overlapping(a, 5, 5)).toEqual([0, 1, 3, 4, 6]);
    itRemove(a, ROOT, nodeAt(1));
    itSet(a, nodeAt(1), 5, 5);
    itInsert(a, ROOT, nodeAt(1));
    expect(inOrder(a)).toEqual([2, 0, 3, 4, 6, 1, 5]);
  });

  test("bounds up to the largest safe integer are exact", () => {
    const a = treeOf([0, 0], [1, MAX - 2], [MAX - 1, MAX - 1], [MAX, MAX], [0, MAX]);
    expect(inOrder(a)).toEqual([0, 4, 1, 2, 3]);
    expect(overlapping(a, 0, 0)).toEqual([0, 4]);
    expect(overlapping(a, MAX, MAX)).toEqual([4, 3]);
    expect(overlapping(a, MAX - 1, MAX - 1)).toEqual([4, 2]);
    expect(overlapping(a, MAX - 2, MAX - 2)).toEqual([4, 1]);
    expect(itLast(a, nodeAt(1))).toBe(MAX - 2);
    expect(itStart(a, nodeAt(3))).toBe(MAX);
  });

  test("one walks in order both ways", () => {
    const a = treeOf(...shuffled(100).map((n) => [n * 10, n * 10 + 5] as const));
    const forwards = inOrder(a);
    expect(forwards.map((n) => itStart(a, nodeAt(n)))).toEqual(Array.from({ length: 100 }, (_, n) => n * 10));
    const backwards: number[] = [];
    for (let n = nodeAt(forwards.at(-1)!); n !== 0; n = itPredecessor(a, n)) backwards.push(numberOf(n));
    expect(backwards.reverse()).toEqual(forwards);
  });
});

describe("changes", () => {
  test("a node says whether it is in a tree, and is clean again after removal", () => {
    const a = makeArena(3);
    for (const n of [0, 1, 2]) {
      expect(itLinked(a, nodeAt(n))).toBe(false);
      itSet(a, nodeAt(n), n, n);
      expect(itLinked(a, nodeAt(n))).toBe(false);
      itInsert(a, ROOT, nodeAt(n));
      expect(itLinked(a, nodeAt(n))).toBe(true);
    }
    for (const n of [1, 0, 2]) {
      itRemove(a, ROOT, nodeAt(n));
      expect(itLinked(a, nodeAt(n))).toBe(false);
      // The bounds stay readable.
      expect(itStart(a, nodeAt(n))).toBe(n);
      expect(itLast(a, nodeAt(n))).toBe(n);
      itSet(a, nodeAt(n), 0, 0);
      expect([...a.words.subarray(nodeAt(n), nodeAt(n + 1))].every((word) => word === 0)).toBe(true);
    }
    expect(itEmpty(a, ROOT)).toBe(true);
  });

  test("inserting twice and removing twice throw and change nothing", () => {
    const a = treeOf([1, 2], [3, 4]);
    const before = a.words.slice();
    expect(() => itInsert(a, ROOT, nodeAt(1))).toThrow(/in a tree already/);
    expect(a.words).toEqual(before);
    itRemove(a, ROOT, nodeAt(1));
    expect(() => itRemove(a, ROOT, nodeAt(1))).toThrow(/in no tree/);
    expect(checkIntervalTree(a, ROOT)).toBeUndefined();
  });

  test("nodes of one arena may be in several trees", () => {
    const a = makeArena(4);
    for (const n of [0, 1, 2, 3]) {
      itSet(a, nodeAt(n), n, n + 1);
      itInsert(a, n % 2, nodeAt(n));
    }
    expect(itFirst(a, 0, 0, 9)).toBe(nodeAt(0));
    expect(itFirst(a, 1, 0, 9)).toBe(nodeAt(1));
    expect(itNext(a, nodeAt(1), 0, 9)).toBe(nodeAt(3));
    expect(itNext(a, nodeAt(3), 0, 9)).toBe(0);
  });

  test("growing and shrinking in place is seen by queries", () => {
    const a = treeOf(...Array.from({ length: 31 }, (_, n) => [n * 10, n * 10 + 4] as const));
    itUpdate(a, ROOT, nodeAt(7), 65, 500);
    expect(checkIntervalTree(a, ROOT)).toBeUndefined();
    expect(overlapping(a, 400, 500)).toEqual([7]);
    expect(overlapping(a, 65, 69)).toEqual([7]);
    itUpdate(a, ROOT, nodeAt(7), 70, 70);
    expect(checkIntervalTree(a, ROOT)).toBeUndefined();
    expect(overlapping(a, 71, 79)).toEqual([]);
    expect(overlapping(a, 400, 500)).toEqual([]);
  });

  test("removing an inner node whose last is the highest lowers the maxima above", () => {
    for (let victim = 0; victim < 15; victim++) {
      const a = treeOf(...Array.from({ length: 15 }, (_, n) => [n, n === victim ? 1000 : n] as const));
      itRemove(a, ROOT, nodeAt(victim));
      expect(checkIntervalTree(a, ROOT)).toBeUndefined();
      expect(overlapping(a, 100, 2000)).toEqual([]);
    }
  });

  const count = 4096;
  const numbers = Array.from({ length: count }, (_, n) => n);
  const ORDERS: readonly (readonly [string, readonly number[]])[] = [
    ["ascending", numbers],
    ["descending", numbers.toReversed()],
    ["from both ends", numbers.map((n) => (n % 2 === 0 ? n / 2 : count - (n + 1) / 2))],
    ["from the middle", numbers.map((n) => (n % 2 === 0 ? (count + n) / 2 : (count - n - 1) / 2))],
    ["shuffled", shuffled(count)],
  ];
  test.for(ORDERS)("4096 insertions and removals, %s, keep the tree flat", ([, order]) => {
    expect(new Set(order).size).toBe(count);
    const a = makeArena(count);
    const flat = (nodes: number): number => 2 * Math.log2(nodes + 1);
    order.forEach((key, n) => {
      itSet(a, nodeAt(key), key * 4, key * 4 + 3);
      itInsert(a, ROOT, nodeAt(key));
      if (n % 256 !== 0) return;
      expect(checkIntervalTree(a, ROOT)).toBeUndefined();
      expect(heightOf(a, a.words[ROOT]!)).toBeLessThanOrEqual(flat(n + 1));
    });
    expect(inOrder(a)).toEqual(numbers);
    for (let key = 0; key < count; key++) expect(itFind(a, ROOT, key * 4 + 2)).toBe(nodeAt(key));
    order.forEach((key, n) => {
      itRemove(a, ROOT, nodeAt(key));
      if (n % 256 !== 0) return;
      expect(checkIntervalTree(a, ROOT)).toBeUndefined();
      expect(heightOf(a, a.words[ROOT]!)).toBeLessThanOrEqual(flat(count - n - 1));
      expect(itFind(a, ROOT, key * 4 + 2)).toBe(0);
    });
    expect(itEmpty(a, ROOT)).toBe(true);
  });
});

describe("checkIntervalTree", () => {
  const seven = (): Arena => treeOf(...[3, 1, 5, 0, 2, 4, 6].map((n) => [n * 10, n * 10 + 5] as const));
  const problemOf = (a: Arena): string | undefined => checkIntervalTree(a, ROOT)?.replace(/ 0x[0-9a-f]+/, "");
  // Node numbers: 0 is the top, 1 and 2 its children, 3 to 6 the leaves from left to right.

  test.for<[string, (a: Arena) => void]>([
    ["T1: node [10, 15] starts before", (a) => itSet(a, nodeAt(3), 100, 105)],
    ["T1: node [60, 59] ends before it starts", (a) => itSet(a, nodeAt(6), 60, 59)],
    ["T2: node [50, 55] does not point to its parent", (a) => void (a.words[nodeAt(2) + IT_PARENT] = 0)],
    ["T2: node [30, 35] does not point to its parent", (a) => void (a.words[nodeAt(0) + IT_PARENT] = 1)],
    ["T3: node [50, 55] has a wrong balance", (a) => void (a.words[nodeAt(2) + IT_BALANCE] = 3)],
    [
      "T4: node [30, 35] has a wrong left maximum",
      (a) => void (a.doubles[(nodeAt(0) + IT_LEFT_MAX) / 2] = 24),
    ],
    [
      "T4: node [60, 65] has a wrong right maximum",
      (a) => void (a.doubles[(nodeAt(6) + IT_RIGHT_MAX) / 2] = 0),
    ],
    ["T4: node [50, 55] has a wrong right maximum", (a) => itSet(a, nodeAt(6), 60, 66)],
  ])("names %s", ([message, breakIt]) => {
    const a = seven();
    breakIt(a);
    expect(problemOf(a)).toContain(message);
  });

  test("names a subtree that is two higher", () => {
    const a = seven();
    // Cut off the right half of the top node.
    a.words[nodeAt(0) + IT_RIGHT] = 0;
    a.doubles[(nodeAt(0) + IT_RIGHT_MAX) / 2] = -1;
    expect(problemOf(a)).toContain("T3: node [30, 35] has subtrees of height 2 and 0");
  });

  test("ends on a cycle", () => {
    const a = seven();
    a.words[nodeAt(3) + IT_LEFT] = nodeAt(3);
    a.words[nodeAt(3) + IT_PARENT] = nodeAt(3);
    expect(checkIntervalTree(a, ROOT)).toContain("T2");
  });
});
