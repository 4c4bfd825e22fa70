/** Random allocations and frees in a small heap, against a plain Map; the heap runs full in most of the runs. */
import fc from "fast-check";
import { expect, test } from "vitest";
import {
  allocWords,
  blockWords,
  checkHeap,
  freeWords,
  HEAP_BASE,
  HEAP_PAGE_WORDS,
  HEAP_PAGES,
  heapFreeWords,
  heapUsedWords,
  initHeap,
  setHeapDebug,
  SLAB_HEADER_WORDS,
} from "../../src/memory/slab.ts";
import type { LockOwner } from "../../src/sched/index.ts";

const HEAP = 4;
const LARGEST_RECORD = 512;

interface Block {
  readonly at: number;
  readonly words: number;
  readonly fill: number;
}

interface Model {
  readonly pages: number;
  readonly blocks: Map<number, Block>;
  /** The block freed last. */
  freed: Block | undefined;
  counter: number;
}

interface Real {
  readonly agent: LockOwner;
  readonly base: number;
}

type Command = fc.Command<Model, Real>;

const nth = (m: Model, n: number): Block => [...m.blocks.values()][n % m.blocks.size]!;
const modelUsed = (m: Model): number =>
  [...m.blocks.values()].reduce((sum, b) => sum + blockWords(b.words), 0);
const isFilled = (r: Real, b: Block): boolean =>
  r.agent.words.subarray(b.at, b.at + b.words).every((word) => word === b.fill);

/** True if a heap that wastes nothing, and keeps records of one class together, has room for `words` words. */
function hasRoom(m: Model, base: number, words: number): boolean {
  const size = blockWords(words);
  const occupied: boolean[] = Array.from({ length: m.pages }, () => false);
  const records = new Map<number, number>();
  for (const b of m.blocks.values()) {
    const first = Math.floor((b.at - base) / HEAP_PAGE_WORDS);
    const pages = Math.ceil(blockWords(b.words) / HEAP_PAGE_WORDS);
    for (let n = 0; n < pages; n++) occupied[first + n] = true;
    if (words <= LARGEST_RECORD && blockWords(b.words) === size)
      records.set(first, (records.get(first) ?? 0) + 1);
  }
  const capacity = Math.floor(HEAP_PAGE_WORDS / size);
  if ([...records.values()].some((count) => count < capacity)) return true;
  let row = 0;
  return occupied.some((taken) => (row = taken ? 0 : row + 1) * HEAP_PAGE_WORDS >= size);
}

function checkConservation(m: Model, r: Real): void {
  expect(checkHeap(r.agent, HEAP)).toBeUndefined();
  expect(heapUsedWords(r.agent, HEAP)).toBe(modelUsed(m));
  expect(heapUsedWords(r.agent, HEAP) + heapFreeWords(r.agent, HEAP)).toBe(m.pages * HEAP_PAGE_WORDS);
}

class Alloc implements Command {
  readonly words: number;
  constructor(words: number) {
    this.words = words;
  }
  check(): boolean {
    return true;
  }
  run(m: Model, r: Real): void {
    const room = hasRoom(m, r.base, this.words);
    const at = allocWords(r.agent, HEAP, this.words);
    expect(at !== 0).toBe(room);
    if (at !== 0) {
      const size = blockWords(this.words);
      expect(at % (this.words > LARGEST_RECORD ? HEAP_PAGE_WORDS : 4)).toBe(0);
      expect(at).toBeGreaterThanOrEqual(r.base);
      expect(at + size).toBeLessThanOrEqual(r.base + m.pages * HEAP_PAGE_WORDS);
      expect(r.agent.words.subarray(at, at + this.words).every((word) => word === 0)).toBe(true);
      for (const b of m.blocks.values())
        expect(at + size <= b.at || b.at + blockWords(b.words) <= at).toBe(true);
      const fill = ++m.counter;
      r.agent.words.fill(fill, at, at + this.words);
      m.blocks.set(at, { at, words: this.words, fill });
    }
    checkConservation(m, r);
  }
  toString(): string {
    return `alloc(${this.words})`;
  }
}

class Free implements Command {
  readonly pick: number;
  constructor(pick: number) {
    this.pick = pick;
  }
  check(m: Readonly<Model>): boolean {
    return m.blocks.size > 0;
  }
  run(m: Model, r: Real): void {
    const b = nth(m, this.pick);
    expect(isFilled(r, b)).toBe(true);
    freeWords(r.agent, HEAP, b.at, b.words);
    m.blocks.delete(b.at);
    m.freed = b;
    checkConservation(m, r);
  }
  toString(): string {
    return `free(${this.pick})`;
  }
}

class FreeWrongly implements Command {
  readonly pick: number;
  readonly words: number;
  constructor(pick: number, words: number) {
    this.pick = pick;
    this.words = words;
  }
  check(m: Readonly<Model>): boolean {
    return m.blocks.size > 0 && blockWords(this.words) !== blockWords(nth(m, this.pick).words);
  }
  run(m: Model, r: Real): void {
    expect(() => freeWords(r.agent, HEAP, nth(m, this.pick).at, this.words)).toThrow(/wrong size/);
    checkConservation(m, r);
  }
  toString(): string {
    return `freeWrongly(${this.pick}, ${this.words})`;
  }
}

class FreeTwice implements Command {
  check(m: Readonly<Model>): boolean {
    return m.freed !== undefined && !m.blocks.has(m.freed.at);
  }
  run(m: Model, r: Real): void {
    const b = m.freed!;
    expect(() => freeWords(r.agent, HEAP, b.at, b.words)).toThrow(/^freeWords: /);
    checkConservation(m, r);
  }
  toString(): string {
    return "freeTwice()";
  }
}

const lengths = fc.oneof(
  { weight: 3, arbitrary: fc.integer({ min: 1, max: 64 }) },
  { weight: 3, arbitrary: fc.integer({ min: 65, max: LARGEST_RECORD }) },
  { weight: 3, arbitrary: fc.constantFrom(16, 340, 512, 1024) },
  { weight: 2, arbitrary: fc.integer({ min: LARGEST_RECORD + 1, max: 6000 }) },
);
const picks = fc.nat({ max: 1000 });
const commands = fc.commands(
  [
    lengths.map((words): Command => new Alloc(words)),
    lengths.map((words): Command => new Alloc(words)),
    picks.map((pick): Command => new Free(pick)),
    fc.tuple(picks, lengths).map(([pick, words]): Command => new FreeWrongly(pick, words)),
    fc.constant<Command>(new FreeTwice()),
  ],
  { maxCommands: 120, size: "max" },
);

test("blocks never overlap, come zeroed, and nothing is lost, until the heap is full and after", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 14 }), fc.boolean(), commands, (pages, debug, steps) => {
      const buffer = new SharedArrayBuffer((pages + 1) * HEAP_PAGE_WORDS * 4);
      const agent = { words: new Int32Array(buffer), doubles: new Float64Array(buffer), ownerId: 3 };
      initHeap(agent, HEAP, HEAP + SLAB_HEADER_WORDS, agent.words.length);
      setHeapDebug(agent, HEAP, debug);
      expect(agent.words[HEAP + HEAP_PAGES]).toBe(pages);
      const real = { agent, base: agent.words[HEAP + HEAP_BASE]! };
      const model: Model = { pages, blocks: new Map(), freed: undefined, counter: 0 };
      fc.modelRun(() => ({ model, real }), steps);

      for (const b of model.blocks.values()) {
        expect(isFilled(real, b)).toBe(true);
        freeWords(agent, HEAP, b.at, b.words);
      }
      expect(heapUsedWords(agent, HEAP)).toBe(0);
      const whole = allocWords(agent, HEAP, pages * HEAP_PAGE_WORDS);
      expect(whole).toBe(real.base);
      expect(agent.words.subarray(whole).every((word) => word === 0)).toBe(true);
    }),
    { numRuns: 150 },
  );
});
