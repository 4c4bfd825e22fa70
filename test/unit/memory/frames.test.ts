import { describe, expect, test } from "vitest";
import { createArena, Frames, POISON_BYTE, ZERO_PFN } from "../../../src/memory/index.ts";
import {
  MEM_AGENTS,
  MEM_FREE_BITS,
  MOST_MAPPINGS,
  MOST_REFS,
  MEM_FREE_HINT,
  MEM_USED,
  MEM_ZERO_BITS,
  PG_DIRTY,
  PG_UPTODATE,
} from "../../../src/memory/layout.ts";
import {
  allocateSegment,
  compileKernels,
  instantiateKernels,
  SEGMENT_LIMIT,
} from "../../../src/memory/segments.ts";
import { createMemory } from "../../../src/mm/index.ts";
import { type Agent, attachAgent, HDR_ROOT, runBlocking, runTry } from "../../../src/sched/index.ts";
import { arrayBacking, pattern, expectBytes, thrown } from "../../lib/mm.ts";

const PAGE = 4096;

interface Scene {
  readonly agents: readonly Agent[];
  readonly frames: readonly Frames[];
  readonly words: Int32Array;
  readonly header: number;
}

function makeFrames(
  count: number,
  options: { agents?: number; pageSize?: number; kernels?: boolean; debug?: boolean } = {},
): Scene {
  const { agents = 1, pageSize = PAGE, kernels = true, debug = true } = options;
  const handle = createArena({
    budgetBytes: count * pageSize,
    pageSize,
    arenaBytes: 2 ** 20,
    faultAroundBytes: pageSize,
    folioBytes: 65536,
    readAheadBytes: 65536,
    maxAgents: 8,
    debug,
  });
  const buffer = handle.memories[0]!.buffer;
  const words = new Int32Array(buffer);
  const header = words[HDR_ROOT]!;
  const attached = Array.from({ length: agents }, () => attachAgent(buffer, { mayBlock: true }));
  const module = kernels ? handle.module : undefined;
  return {
    agents: attached,
    frames: attached.map(
      (agent) => new Frames(agent, header, handle.memories, instantiateKernels(module, handle.memories[0]!)),
    ),
    words,
    header,
  };
}

const one = (count: number, options = {}): Frames => makeFrames(count, options).frames[0]!;
const takeAll = (frames: Frames, zeroed = false): number[] => {
  const taken: number[] = [];
  for (let pfn = frames.tryAlloc(zeroed); pfn !== 0; pfn = frames.tryAlloc(zeroed)) taken.push(pfn);
  return taken;
};

describe("a new memory", () => {
  test("has every frame free and zero, but for the zero page, which is reserved", () => {
    for (const count of [32, 33, 63, 64, 65, 100]) {
      const frames = one(count);
      expect(frames.check()).toBeUndefined();
      expect(frames.free).toBe(count - 1);
      expect(frames.refcount(ZERO_PFN)).toBe(1);
      expect(frames.bytesOf(ZERO_PFN).every((b) => b === 0)).toBe(true);
    }
  });

  test("frames lie after the arena, one after the other, and are found by their place", () => {
    for (const pageSize of [4096, 16384, 65536]) {
      const frames = one(40, { pageSize });
      for (let pfn = 0; pfn < 40; pfn++) {
        expect(frames.segmentOf(pfn)).toBe(0);
        expect(frames.pfnAt(frames.offsetOf(pfn))).toBe(pfn);
        expect(frames.offsetOf(pfn) % pageSize).toBe(0);
        expect(frames.pfnOf(frames.folioAt(pfn))).toBe(pfn);
      }
      expect(frames.offsetOf(39) + pageSize).toBeLessThanOrEqual(frames.segmentBytes[0]!.length);
      expect(frames.offsetOf(0)).toBeGreaterThanOrEqual(2 ** 20);
      expect(frames.clusterFrames).toBe(65536 / pageSize);
      expect(frames.adjacent(3, 4)).toBe(true);
      expect(frames.adjacent(3, 5)).toBe(false);
      expect(frames.adjacent(3, -1)).toBe(false);
    }
  });
});

describe("taking and giving back", () => {
  test("each frame is taken once; then there is none; what comes back can be taken again", () => {
    for (const count of [32, 50, 64]) {
      const frames = one(count);
      const taken = takeAll(frames);
      expect(taken.toSorted((a, b) => a - b)).toEqual(Array.from({ length: count - 1 }, (_, k) => k + 1));
      expect(frames.free).toBe(0);
      expect(frames.check()).toBeUndefined();
      for (const pfn of taken) frames.put(pfn);
      expect(frames.free).toBe(count - 1);
      expect(frames.check()).toBeUndefined();
      expect(takeAll(frames)).toHaveLength(count - 1);
    }
  });

  test("a frame taken as zeroed holds zeros, whatever it held before", () => {
    const frames = one(40);
    for (let round = 0; round < 3; round++) {
      const taken = takeAll(frames, true);
      for (const pfn of taken) expect(frames.bytesOf(pfn).every((b) => b === 0)).toBe(true);
      for (const pfn of taken) frames.bytesOf(pfn).fill(round + 1);
      for (const pfn of taken) frames.put(pfn);
      expect(frames.check()).toBeUndefined();
    }
  });

  test("zeroed frames are given to those who want them, others to those who do not", () => {
    const frames = one(40);
    const [a, b] = [frames.tryAlloc(false), frames.tryAlloc(false)];
    frames.bytesOf(a).fill(1);
    frames.put(a);
    expect(frames.tryAlloc(false)).toBe(a); // dirty, and wanted by nobody else
    const clean = frames.tryAlloc(true);
    expect([a, b]).not.toContain(clean);
  });

  test("in debug mode a freed frame is poisoned", () => {
    const frames = one(40);
    const pfn = frames.tryAlloc(true);
    frames.put(pfn);
    expect(frames.bytesOf(pfn).every((byte) => byte === POISON_BYTE)).toBe(true);
    const plain = one(40, { debug: false });
    const kept = plain.tryAlloc(true);
    plain.bytesOf(kept).fill(7);
    plain.put(kept);
    expect(plain.bytesOf(kept)[0]).toBe(7);
  });

  test("prezero makes free frames of the own stock zero, as many as asked, losing none", () => {
    const frames = one(64);
    expect(frames.prezero(10)).toBe(0); // no stock yet
    const taken = takeAll(frames);
    for (const pfn of taken) frames.put(pfn);
    frames.put(frames.tryAlloc(false));
    expect(frames.prezero(5)).toBe(5);
    expect(frames.check()).toBeUndefined();
    let zeroed = 5;
    for (let n = frames.prezero(7); n > 0; n = frames.prezero(7)) zeroed += n;
    expect(zeroed).toBeGreaterThanOrEqual(31);
    expect(frames.check()).toBeUndefined();
    expect(frames.free).toBe(63);
  });

  test("references: the last one frees; a free frame cannot be referenced; one too many panics", () => {
    const frames = one(40);
    const pfn = frames.tryAlloc(false);
    frames.get(pfn);
    expect(frames.tryGet(pfn)).toBe(true);
    expect(frames.refcount(pfn)).toBe(3);
    frames.put(pfn);
    frames.put(pfn);
    expect(frames.free).toBe(38);
    expect(frames.tryFreeze(pfn)).toBe(true);
    expect(frames.tryGet(pfn)).toBe(false);
    frames.freeFrozen(pfn);
    expect(frames.free).toBe(39);
    expect(frames.tryGet(pfn)).toBe(false);
    expect(frames.tryFreeze(pfn)).toBe(false);
    expect(() => frames.put(pfn)).toThrow(/F4/);
    expect(() => frames.put(ZERO_PFN)).not.toThrow();
  });

  test("a frame that somebody refers to besides cannot be frozen", () => {
    const frames = one(40);
    const pfn = frames.tryAlloc(false);
    frames.get(pfn);
    expect(frames.tryFreeze(pfn)).toBe(false);
    expect(frames.refcount(pfn)).toBe(2);
  });

  test("a reference that nobody has cannot be given back", () => {
    const frames = one(40);
    const pfn = frames.tryAlloc(false);
    frames.initMapped(pfn, PG_UPTODATE, 8, -3);
    expect([frames.mapcount(pfn), frames.flags(pfn)]).toEqual([1, PG_UPTODATE]);
    expect([frames.mapping(pfn), frames.index(pfn)]).toEqual([8, -3]);
    expect(() => frames.put(pfn)).toThrow(/F4/);
  });

  test("a mapping takes the reference of whoever makes it, and gives it back", () => {
    const frames = one(40);
    const pfn = frames.tryAlloc(false);
    const counts = (): number[] => [frames.refcount(pfn), frames.mapcount(pfn)];
    expect(frames.tryMap(pfn)).toBe(true);
    expect(counts()).toEqual([1, 1]);
    frames.addMapping(pfn);
    frames.get(pfn);
    expect(counts()).toEqual([3, 2]);
    frames.unmap(pfn);
    expect(counts()).toEqual([3, 1]);
    frames.put(pfn);
    frames.putMapped(pfn);
    expect(counts()).toEqual([1, 0]);
    expect(() => frames.putMapped(pfn)).toThrow(/F4/);
  });

  test("there are no more references and mappings than can be counted", () => {
    const frames = one(40);
    const pfn = frames.tryAlloc(false);
    for (let k = 1; k < MOST_REFS; k++) frames.get(pfn);
    expect(() => frames.get(pfn)).toThrow(/held 131072 times/);
    expect(frames.refcount(pfn)).toBe(MOST_REFS);
    for (let k = 0; k < MOST_MAPPINGS; k++) expect(frames.tryMap(pfn)).toBe(true);
    expect(frames.tryMap(pfn)).toBe(false);
    expect([frames.refcount(pfn), frames.mapcount(pfn)]).toEqual([MOST_REFS, MOST_MAPPINGS]);
  });

  test("what a frame was is forgotten when it is freed", () => {
    const frames = one(40);
    const pfn = frames.tryAlloc(false);
    frames.setFlags(pfn, PG_DIRTY | PG_UPTODATE);
    frames.setMapping(pfn, 1234, 56);
    expect([frames.mapping(pfn), frames.index(pfn)]).toEqual([1234, 56]);
    frames.put(pfn);
    expect([frames.mapping(pfn), frames.index(pfn), frames.flags(pfn)]).toEqual([0, 0, 0]);
  });
});

describe("clusters", () => {
  test("are whole, aligned, taken while there is one, in whatever order frames were freed", () => {
    const frames = one(100);
    const clusters: number[] = [];
    for (let pfn = frames.tryAllocCluster(); pfn !== 0; pfn = frames.tryAllocCluster()) clusters.push(pfn);
    // 100 frames are six clusters of 16, of which the first lacks the zero page.
    expect(clusters.toSorted((a, b) => a - b)).toEqual([16, 32, 48, 64, 80]);
    expect(frames.free).toBe(19);
    for (const first of clusters) for (let k = 0; k < 16; k++) expect(frames.refcount(first + k)).toBe(1);
    expect(frames.check()).toBeUndefined();
    for (const k of [15, 0, 7]) frames.put(48 + k);
    expect(frames.tryAllocCluster()).toBe(0);
    for (let k = 0; k < 16; k++) if (![15, 0, 7].includes(k)) frames.put(48 + k);
    expect(frames.tryAllocCluster()).toBe(48);
    expect(frames.check()).toBeUndefined();
  });

  test("of one frame where pages are 64 KiB", () => {
    const frames = one(32, { pageSize: 65536 });
    expect(frames.tryAllocCluster()).toBeGreaterThan(0);
    expect(frames.free).toBe(30);
  });
});

describe("several agents", () => {
  test("take disjoint frames, from groups of their own while there are any", () => {
    const { frames } = makeFrames(32 * 4, { agents: 3 });
    const taken = frames.map((f) => [f.tryAlloc(false), f.tryAlloc(false), f.tryAlloc(false)]);
    const groups = taken.map((pfns) => new Set(pfns.map((pfn) => pfn >>> 5)));
    expect(groups.every((g) => g.size === 1)).toBe(true);
    expect(new Set(groups.flatMap((g) => [...g])).size).toBe(3);
    const rest = frames.flatMap((f) => takeAll(f));
    expect(new Set([...taken.flat(), ...rest]).size).toBe(127);
    for (const f of frames) expect(f.free).toBe(0);
    expect(frames[0]!.check()).toBeUndefined();
    // Given back by another than took it.
    for (const pfn of [...taken.flat(), ...rest]) frames[2]!.put(pfn);
    expect(frames[0]!.free).toBe(127);
    expect(frames[1]!.check()).toBeUndefined();
  });

  test("the folio lock excludes, names its owner, and is waited for", () => {
    const { frames, agents } = makeFrames(40, { agents: 2 });
    const [a, b] = frames as [Frames, Frames];
    const pfn = a.tryAlloc(false);
    a.setFlags(pfn, PG_UPTODATE);
    expect(a.folioOwner(pfn)).toBe(0);
    expect(a.tryLockFolio(pfn)).toBe(true);
    expect(b.tryLockFolio(pfn)).toBe(false);
    expect(a.tryLockFolio(pfn)).toBe(false);
    expect([b.isLocked(pfn), b.folioOwner(pfn)]).toEqual([true, agents[0]!.ownerId]);
    expect([b.findLocked(), b.findLockedBy(0), b.findLockedBy(1)]).toEqual([pfn, pfn, -1]);
    expect(b.flags(pfn) & PG_UPTODATE).toBe(PG_UPTODATE);
    expect(thrown(() => runTry(agents[1]!, b.lockFolioOp(pfn)))?.code).toBe("EAGAIN");
    a.unlockFolio(pfn);
    runBlocking(agents[1]!, b.lockFolioOp(pfn));
    expect(a.folioOwner(pfn)).toBe(agents[1]!.ownerId);
    b.unlockFolio(pfn);
    expect([a.isLocked(pfn), a.findLocked(), a.flags(pfn)]).toEqual([false, -1, PG_UPTODATE]);
  });
});

describe("check", () => {
  const scenes: readonly (readonly [string, RegExp, (scene: Scene, pfn: number) => void])[] = [
    [
      "a used frame in the free bitmap",
      /F1/,
      ({ words, header }, pfn) => (words[words[header + MEM_FREE_BITS]! + (pfn >> 5)]! |= 1 << pfn),
    ],
    [
      "a free frame missing in it",
      /F1/,
      ({ words, header }) => (words[words[header + MEM_FREE_BITS]! + 1]! &= ~1),
    ],
    ["a frame marked zero that is not", /F2/, ({ frames }) => void (frames[0]!.bytesOf(39)[77] = 1)],
    ["a wrong count", /F3/, ({ words, header }) => void words[header + MEM_USED]!++],
  ];
  test.each(scenes)("finds %s", (_, expected, break_) => {
    const scene = makeFrames(40);
    const pfn = scene.frames[0]!.tryAlloc(false);
    expect(scene.frames[0]!.check()).toBeUndefined();
    break_(scene, pfn);
    expect(scene.frames[0]!.check()).toMatch(expected);
  });
});

describe("bulk work", () => {
  test.each([true, false])("zeroes and copies frames, with kernels: %s", (kernels) => {
    const frames = one(40, { kernels });
    const [a, b] = [frames.tryAlloc(false), frames.tryAlloc(false)];
    const bytes = pattern(PAGE);
    frames.bytesOf(a).set(bytes);
    frames.bytesOf(b).fill(1);
    frames.copyFrame(b, a);
    expectBytes(frames.bytesOf(b).slice(), bytes);
    frames.zeroFrame(a);
    expect(frames.bytesOf(a).every((byte) => byte === 0)).toBe(true);
    expectBytes(frames.bytesOf(b).slice(), bytes);
  });

  test("without WebAssembly the page-table kernels do the same", () => {
    const memory = allocateSegment(65536);
    const wasm = instantiateKernels(compileKernels(), memory);
    const plain = instantiateKernels(undefined, memory);
    const words = new Int32Array(memory.buffer);
    const fill = (): void => {
      for (let k = 0; k < 40; k++) words[k] = k % 3 === 0 ? k * 256 : k * 256 + 1 + (k & 6);
    };
    const results = [wasm, plain].map((kernels) => {
      fill();
      const seen = kernels.protectRange(8, 30, ~4, 0x40);
      return [seen, kernels.orRange(0, 40), kernels.orRange(0, 0), ...words.subarray(0, 40)];
    });
    expect(results[0]).toEqual(results[1]);
  });

  test("a segment larger than the platform gives is ENOMEM", () => {
    expect(thrown(() => allocateSegment(2 ** 40))?.code).toBe("ENOMEM");
  });
});

describe("several segments", () => {
  const GIB = 2 ** 30;
  const options = {
    pageSize: PAGE,
    arenaBytes: 64 * 2 ** 20,
    faultAroundBytes: PAGE,
    folioBytes: 65536,
    readAheadBytes: 65536,
    maxAgents: 2,
    debug: false,
  };

  test("frames fill the first segment, then further ones; each lies in exactly one place", () => {
    const handle = createArena({ ...options, budgetBytes: 5 * GIB });
    expect(handle.memories).toHaveLength(2);
    const agent = attachAgent(handle.memories[0]!.buffer, { mayBlock: true });
    const frames = new Frames(agent, agent.words[HDR_ROOT]!, handle.memories, undefined);
    expect(frames.count).toBe((5 * GIB) / PAGE);
    let last = frames.count - 1;
    let first = 0;
    while (last - first > 1) {
      const middle = (first + last) >>> 1;
      if (frames.segmentOf(middle) === 0) first = middle;
      else last = middle;
    }
    expect([frames.segmentOf(first), frames.segmentOf(last)]).toEqual([0, 1]);
    expect(frames.offsetOf(first) + PAGE).toBe(frames.segmentBytes[0]!.length);
    expect(frames.segmentBytes[0]!.length).toBeLessThanOrEqual(SEGMENT_LIMIT);
    expect(frames.offsetOf(last)).toBe(0);
    expect(frames.adjacent(first, last)).toBe(false);
    expect(frames.adjacent(last, last + 1)).toBe(true);
    const end = frames.count - 1;
    expect(frames.offsetOf(end) + PAGE).toBeLessThanOrEqual(frames.segmentBytes[1]!.length);
    expect(frames.pfnAt(frames.offsetOf(first))).toBe(first);
    // Between segments and at their ends.
    frames.bytesOf(first).set(pattern(PAGE, 1));
    frames.bytesOf(last).set(pattern(PAGE, 2));
    frames.copyFrame(end, first);
    frames.copyFrame(first, last);
    expectBytes(frames.bytesOf(end).slice(), pattern(PAGE, 1));
    expectBytes(frames.bytesOf(first).slice(), pattern(PAGE, 2));
    frames.zeroFrame(end);
    expect(frames.bytesOf(end).every((b) => b === 0)).toBe(true);
  });

  test("everything works in frames of a further segment", async () => {
    const memory = await createMemory({
      budget: "5 GiB",
      arena: "64 MiB",
      mayBlock: true,
      faultAround: PAGE,
    });
    const { frames, agent } = memory.mm;
    const space = memory.sync.createSpace();
    const far = (frames.count - 4096) >>> 5;
    const near = 64;
    const takeFrom = (group: number): void => {
      agent.words[frames.header + MEM_FREE_HINT] = group;
      agent.words[frames.header + MEM_AGENTS + agent.slot] = group + 1;
    };
    takeFrom(far);
    const a = space.sync.mmap({ length: 8 * PAGE, prot: "rw", share: "private" });
    for (let k = 0; k < 4; k++) space.setUint32(a + k * PAGE + 8, 1000 + k);
    takeFrom(near);
    for (let k = 4; k < 8; k++) space.setUint32(a + k * PAGE + 8, 1000 + k);
    const segments = Array.from({ length: 8 }, (_, k) => {
      const [span] = space.spans(a + k * PAGE, PAGE);
      return memory.handle.memories.indexOf(span!.memory);
    });
    expect(segments).toEqual([1, 1, 1, 1, 0, 0, 0, 0]);
    for (let k = 0; k < 8; k++) {
      expect(space.getUint32(a + k * PAGE + 8)).toBe(1000 + k);
      expect(space.getUint8(a + k * PAGE + 8)).toBe((1000 + k) & 0xff);
      expect(space.atomics.add(a + k * PAGE + 8, 1)).toBe(1000 + k);
      space.setFloat64(a + k * PAGE + 16, k + 0.5);
      expect(space.getFloat64(a + k * PAGE + 16)).toBe(k + 0.5);
    }
    // Across pages of one segment and of two.
    for (const k of [1, 3, 4, 5]) {
      space.setBigUint64(a + k * PAGE - 3, 0x0102030405060708n);
      expect(space.getBigUint64(a + k * PAGE - 3)).toBe(0x0102030405060708n);
    }
    const bytes = pattern(8 * PAGE);
    space.sync.write(a, bytes);
    const all = new Uint8Array(8 * PAGE);
    space.sync.read(a, all);
    expectBytes(all, bytes);
    expect([...space.spans(a, 8 * PAGE)].length).toBeGreaterThan(1);
    // A file whose pages lie far, and a private copy of one of them that lies near.
    takeFrom(far + 2);
    const file = memory.sync.openFile(arrayBacking(pattern(3 * PAGE, 5)), { writable: true });
    const b = space.sync.mmap({ length: 3 * PAGE, prot: "rw", share: "private", file });
    expect(space.getUint32(b + PAGE)).toBe(new DataView(pattern(3 * PAGE, 5).buffer).getUint32(PAGE, true));
    takeFrom(near);
    space.setUint8(b + PAGE, 1);
    expect(space.getUint8(b + PAGE + 1)).toBe(pattern(3 * PAGE, 5)[PAGE + 1]);
    space.sync.mprotect(a, 4 * PAGE, "r");
    expect(thrown(() => space.setUint8(a, 1))?.code).toBe("EACCES");
    space.sync.madvise(a, 8 * PAGE, "dontneed");
    expect(space.getUint8(a + 5)).toBe(0);
    space.sync.exit();
    await memory.close();
  });

  test("bits of frames beyond the count are never free", () => {
    const { words, header } = makeFrames(40);
    expect(words[words[header + MEM_FREE_BITS]! + 1]! >>> 8).toBe(0);
    expect(words[words[header + MEM_ZERO_BITS]! + 1]! >>> 8).toBe(0);
  });
});
