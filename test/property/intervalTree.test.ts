/** Random changes of an interval tree and queries, against a sorted array. */
import fc from "fast-check";
import { expect, test } from "vitest";
import {
  checkIntervalTree,
  IT_LEFT,
  IT_RIGHT,
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
  itResize,
  itSet,
  itStart,
  itSuccessor,
  itUpdate,
} from "../../src/memory/intervalTree.ts";
import type { Arena } from "../../src/sched/index.ts";

const MAX = Number.MAX_SAFE_INTEGER;
const ROOT = 3;
const BASE = 16;
const NODES = 200;

interface Interval {
  readonly node: number;
  start: number;
  last: number;
}

interface Model {
  /** By start; equal starts in order of insertion. */
  readonly sorted: Interval[];
  readonly unused: number[];
}

type Command = fc.Command<Model, Arena>;
type Bounds = readonly [start: number, last: number];

function heightOf(a: Arena, node: number): number {
  if (node === 0) return 0;
  return 1 + Math.max(heightOf(a, a.words[node + IT_LEFT]!), heightOf(a, a.words[node + IT_RIGHT]!));
}

function checkTree(m: Model, a: Arena): void {
  expect(checkIntervalTree(a, ROOT)).toBeUndefined();
  expect(itEmpty(a, ROOT)).toBe(m.sorted.length === 0);
  expect(heightOf(a, a.words[ROOT]!)).toBeLessThanOrEqual(2 * Math.log2(m.sorted.length + 1));
}

class Insert implements Command {
  readonly bounds: Bounds;
  constructor(bounds: Bounds) {
    this.bounds = bounds;
  }
  check(m: Readonly<Model>): boolean {
    return m.unused.length > 0;
  }
  run(m: Model, a: Arena): void {
    const [start, last] = this.bounds;
    const node = m.unused.pop()!;
    expect(itLinked(a, node)).toBe(false);
    itSet(a, node, start, last);
    itInsert(a, ROOT, node);
    expect(itLinked(a, node)).toBe(true);
    const after = m.sorted.findIndex((i) => i.start > start);
    m.sorted.splice(after < 0 ? m.sorted.length : after, 0, { node, start, last });
    checkTree(m, a);
  }
  toString(): string {
    return `insert(${this.bounds.join(", ")})`;
  }
}

class Remove implements Command {
  readonly pick: number;
  constructor(pick: number) {
    this.pick = pick;
  }
  check(m: Readonly<Model>): boolean {
    return m.sorted.length > 0;
  }
  run(m: Model, a: Arena): void {
    const [{ node }] = m.sorted.splice(this.pick % m.sorted.length, 1) as [Interval];
    itRemove(a, ROOT, node);
    expect(itLinked(a, node)).toBe(false);
    m.unused.push(node);
    checkTree(m, a);
  }
  toString(): string {
    return `remove(${this.pick})`;
  }
}

class Update implements Command {
  readonly pick: number;
  readonly bounds: Bounds;
  constructor(pick: number, bounds: Bounds) {
    this.pick = pick;
    this.bounds = bounds;
  }
  check(m: Readonly<Model>): boolean {
    return m.sorted.length > 0;
  }
  run(m: Model, a: Arena): void {
    const n = this.pick % m.sorted.length;
    const interval = m.sorted[n]!;
    // Between its neighbours, where its place in the order stays right.
    const low = m.sorted[n - 1]?.start ?? 0;
    const high = m.sorted[n + 1]?.start ?? MAX;
    interval.start = Math.min(Math.max(this.bounds[0], low), high);
    interval.last = Math.max(this.bounds[1], interval.start);
    itUpdate(a, ROOT, interval.node, interval.start, interval.last);
    expect([itStart(a, interval.node), itLast(a, interval.node)]).toEqual([interval.start, interval.last]);
    checkTree(m, a);
  }
  toString(): string {
    return `update(${this.pick}, ${this.bounds.join(", ")})`;
  }
}

class Resize implements Command {
  readonly pick: number;
  readonly last: number;
  constructor(pick: number, last: number) {
    this.pick = pick;
    this.last = last;
  }
  check(m: Readonly<Model>): boolean {
    return m.sorted.length > 0;
  }
  run(m: Model, a: Arena): void {
    const [interval] = m.sorted.splice(this.pick % m.sorted.length, 1);
    interval!.last = Math.max(this.last, interval!.start);
    // Behind all that start with it.
    const at = m.sorted.findIndex(({ start }) => start > interval!.start);
    m.sorted.splice(at < 0 ? m.sorted.length : at, 0, interval!);
    itResize(a, ROOT, interval!.node, interval!.last);
    checkTree(m, a);
  }
  toString(): string {
    return `resize(${this.pick}, ${this.last})`;
  }
}

class Query implements Command {
  readonly bounds: Bounds;
  constructor(bounds: Bounds) {
    this.bounds = bounds;
  }
  check(): boolean {
    return true;
  }
  run(m: Model, a: Arena): void {
    const [start, last] = this.bounds;
    const wanted = m.sorted.filter((i) => i.start <= last && start <= i.last).map((i) => i.node);
    const found: number[] = [];
    for (let n = itFirst(a, ROOT, start, last); n !== 0; n = itNext(a, n, start, last)) found.push(n);
    expect(found).toEqual(wanted);
    expect(itFind(a, ROOT, start)).toBe(m.sorted.find((i) => i.start <= start && start <= i.last)?.node ?? 0);
  }
  toString(): string {
    return `query(${this.bounds.join(", ")})`;
  }
}

class Walk implements Command {
  check(): boolean {
    return true;
  }
  run(m: Model, a: Arena): void {
    const nodes = m.sorted.map((i) => i.node);
    expect(itLowest(a, ROOT)).toBe(nodes[0] ?? 0);
    expect(nodes.map((node) => itSuccessor(a, node))).toEqual([...nodes.slice(1), 0].slice(0, nodes.length));
    expect(nodes.map((node) => itPredecessor(a, node))).toEqual([0, ...nodes].slice(0, nodes.length));
  }
  toString(): string {
    return "walk()";
  }
}

// Few values, so that starts and bounds coincide; and the ends of the number line.
const near = fc.nat({ max: 60 });
const far = fc.nat({ max: 8 }).map((n) => MAX - n);
const anywhere = fc.maxSafeNat();
const value = fc.oneof(
  { weight: 8, arbitrary: near },
  { weight: 2, arbitrary: far },
  { weight: 1, arbitrary: anywhere },
);
const bounds = fc.oneof(
  fc.tuple(value, value).map(([x, y]): Bounds => [Math.min(x, y), Math.max(x, y)]),
  fc.tuple(near, fc.nat({ max: 3 })).map(([start, more]): Bounds => [start, start + more]),
);
const pick = fc.nat({ max: NODES });

function commandsOf(insertions: number): fc.Arbitrary<Iterable<Command>> {
  return fc.commands(
    [
      ...Array.from({ length: insertions }, () => bounds.map((b): Command => new Insert(b))),
      pick.map((n): Command => new Remove(n)),
      fc.tuple(pick, bounds).map(([n, b]): Command => new Update(n, b)),
      fc.tuple(pick, bounds).map(([n, b]): Command => new Resize(n, b[1])),
      bounds.map((b): Command => new Query(b)),
      fc.constant<Command>(new Walk()),
    ],
    { maxCommands: NODES, size: "max" },
  );
}

test.for([
  ["small", 1],
  ["growing", 4],
])("a %s tree agrees with a sorted array after every change", ([, insertions]) => {
  fc.assert(
    fc.property(commandsOf(insertions as number), (steps) => {
      const buffer = new SharedArrayBuffer((BASE + NODES * IT_WORDS) * 4);
      const real: Arena = { words: new Int32Array(buffer), doubles: new Float64Array(buffer) };
      const unused = Array.from({ length: NODES }, (_, n) => BASE + n * IT_WORDS);
      const model: Model = { sorted: [], unused };
      fc.modelRun(() => ({ model, real }), steps);
    }),
    { numRuns: 150 },
  );
});

test("thousands of overlapping intervals agree with a sorted array", () => {
  fc.assert(
    fc.property(fc.integer(), fc.integer({ min: 1000, max: 3000 }), (seed, count) => {
      const buffer = new SharedArrayBuffer((BASE + count * IT_WORDS) * 4);
      const a: Arena = { words: new Int32Array(buffer), doubles: new Float64Array(buffer) };
      let state = seed;
      const random = (below: number): number => {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
        return Math.floor(((state >>> 0) / 2 ** 32) * below);
      };
      const live: Interval[] = [];
      for (let n = 0; n < count; n++) {
        const start = random(count * 4);
        const interval = {
          node: BASE + n * IT_WORDS,
          start,
          last: start + random(random(8) === 0 ? 500 : 8),
        };
        itSet(a, interval.node, interval.start, interval.last);
        itInsert(a, ROOT, interval.node);
        live.push(interval);
        if (random(3) === 0) itRemove(a, ROOT, live.splice(random(live.length), 1)[0]!.node);
      }
      const model: Model = { sorted: live.sort((x, y) => x.start - y.start || x.node - y.node), unused: [] };
      checkTree(model, a);
      for (let n = 0; n < 50; n++) {
        const start = random(count * 4);
        new Query([start, start + random(40)]).run(model, a);
      }
      new Walk().run(model, a);
    }),
    { numRuns: 20 },
  );
});
