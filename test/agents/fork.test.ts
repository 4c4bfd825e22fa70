/**
 * fork with real threads: what the child gets is the parent at one moment for all agents, though they store without a
 * pause; and it never changes afterwards.
 */
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, test } from "vitest";
import { bifolio } from "../lib/testBuild.ts";

type Memory = InstanceType<typeof bifolio.PhysicalMemory>;
type Space = InstanceType<typeof bifolio.AddressSpace>;

const PAGE = 4096;
const PAGES = 6;
const STOP = 0;
const READY = 1;
const COUNT = 3;
const PINNED = 4;
/** Accesses between two safepoints of another agent. */
const POLL_EVERY = 100;

const cleanups: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

interface Rig {
  readonly memory: Memory;
  readonly space: Space;
  readonly control: Int32Array;
  readonly base: number;
  /** Ends the workers and returns what they report. */
  stop(): Promise<Record<string, number>[]>;
}

/** A space whose pages workers with these roles use. Private memory, half of it a file's. */
async function makeRig(roles: readonly string[]): Promise<Rig> {
  const writers = roles.filter((role) => role === "writer").length;
  const memory = await bifolio.createMemory({ budget: "4 MiB", mayBlock: true, debug: true });
  cleanups.push(() => memory.close());
  const control = memory.allocShared(64);
  const space = await memory.createSpace();
  const file = await memory.openFile(bifolio.memoryBacking(PAGES * PAGE));
  const base = space.sync.mmap({ length: PAGES * PAGE, prot: "rw", share: "private" });
  const half = PAGES / 2;
  const tail = { address: base + half * PAGE, length: half * PAGE, fixed: true, file } as const;
  space.sync.mmap({ ...tail, prot: "rw", share: "private" });
  const reports = roles.map((role, writer) => {
    const worker = new Worker(new URL("./workers/fork.mjs", import.meta.url), {
      workerData: {
        ...{ handle: memory.handle, spaceId: space.id, control: control.byteOffset, role, writer, base },
        ...{ pages: PAGES, writers, pollEvery: POLL_EVERY },
      },
    });
    memory.adopt(worker);
    cleanups.push(() => worker.terminate());
    const report = new Promise<Record<string, number>>((resolve, reject) => {
      worker.once("message", (m: { result?: Record<string, number>; error?: string }) =>
        m.result ? resolve(m.result) : reject(new Error(m.error)),
      );
      worker.once("error", reject);
    });
    report.catch(() => Atomics.store(control, STOP, 1));
    return report;
  });
  for (let ready = 0; ready < roles.length; ready = Atomics.load(control, READY))
    await Promise.race([memory.wait(control, READY, ready), ...reports]);
  const stop = async (): Promise<Record<string, number>[]> => {
    Atomics.store(control, STOP, 1);
    return Promise.all(reports);
  };
  return { memory, space, control, base, stop };
}

/** Lets the others go on for some turns of their loops. */
function letRun({ control, memory }: Rig, turns: number): void {
  const until = Atomics.load(control, COUNT) + turns;
  while (Atomics.load(control, COUNT) < until && Atomics.load(control, STOP) === 0) memory.poll();
}

/** What each writer has stored, page by page. */
const look = (space: Space, base: number, writers: number): number[][] =>
  Array.from({ length: writers }, (_, w) =>
    Array.from({ length: PAGES }, (_page, k) => space.getUint32(base + k * PAGE + 4 * w)),
  );

describe("a child", () => {
  test.each([1, 3])("is the parent at one moment, while agents write (%i)", async (writers) => {
    const rig = await makeRig([...Array.from({ length: writers }, () => "writer"), "forker"]);
    const { memory, space, base } = rig;
    const children: { child: Space; seen: number[][] }[] = [];
    const moments = new Set<string>();
    let inside = 0;
    for (let round = 0; round < 120; round++) {
      letRun(rig, 1 + (round % 5));
      const child = round % 2 === 0 ? space.sync.fork() : await space.fork();
      const seen = look(child, base, writers);
      // Each page is written after the one before it, each writer after the one that it follows.
      expect(seen.flat()).toEqual(seen.flat().toSorted((a, b) => b - a));
      expect(seen[0]![0]! - seen[0]!.at(-1)!).toBeLessThanOrEqual(1);
      if (seen.some((values) => values[0] !== values.at(-1))) inside++;
      moments.add(String(seen));
      children.push({ child, seen });
      if (children.length < 4) continue;
      const { child: old, seen: then } = children.shift()!;
      expect(look(old, base, writers)).toEqual(then);
      old.sync.exit();
    }
    const reports = await rig.stop();
    const { forks, torn } = reports.at(-1)!;
    expect(torn).toBe(0);
    expect(forks).toBeGreaterThan(0);
    // The test has seen something: other moments, some of them in the middle of a row of stores.
    expect(moments.size).toBeGreaterThan(30);
    expect(inside).toBeGreaterThan(0);
    for (const { child, seen } of children) {
      expect(look(child, base, writers)).toEqual(seen);
      child.sync.exit();
    }
    expect(memory.check()).toBeUndefined();
    expect(memory.stats().frames.anon).toBe(PAGES);
    space.sync.exit();
    expect(memory.check()).toBeUndefined();
    expect(memory.stats().frames.anon).toBe(0);
  });
});

describe("pages of one family", () => {
  test("are looked up from their frames while mappings of it come and go everywhere", async () => {
    const rig = await makeRig(["giver", "giver"]);
    const { memory, space, base } = rig;
    for (let round = 0; round < 300; round++) {
      for (let page = 0; page < PAGES; page++) space.setUint32(base + page * PAGE, round);
      space.sync.mprotect(base + PAGE, PAGE, "r");
      const more = space.sync.mmap({ length: PAGE, prot: "rw", share: "private" });
      space.setUint32(more, round);
      // Then a child's pages are its alone, and the parent is looked at for them first.
      space.sync.madvise(base, 2 * PAGE, "dontneed");
      space.sync.mprotect(base + PAGE, PAGE, "rw");
      space.sync.munmap(more, PAGE);
      if (round % 10 === 0) letRun(rig, 1);
    }
    const reports = await rig.stop();
    for (const { forks, dropped } of reports) {
      expect(forks).toBeGreaterThan(0);
      expect(dropped).toBeGreaterThan(0);
    }
    expect(memory.check()).toBeUndefined();
    space.sync.exit();
    expect(memory.check()).toBeUndefined();
    expect(memory.stats().frames.anon).toBe(0);
  });
});

describe("pages that another agent has pinned", () => {
  test("are written by it in the parent alone, and are given back when it dies", async () => {
    const rig = await makeRig(["pinner"]);
    const { memory, space, control, base } = rig;
    await memory.wait(control, PINNED, 0);
    const values = (of: Space): number[] =>
      Array.from({ length: PAGES }, (_, k) => of.getInt32(base + k * PAGE));
    expect(memory.stats().frames.pinned).toBe(PAGES);
    for (let round = 0; round < 20; round++) {
      const child = space.sync.fork();
      const [then, parent] = [values(child), values(space)];
      letRun(rig, 20);
      expect(values(child)).toEqual(then);
      expect(values(space).every((value, k) => value > parent[k]!)).toBe(true);
      child.sync.exit();
    }
    memory.onError = () => {}; // it is told of the death
    Atomics.store(control, STOP, 1);
    for (let k = 0; k < 500 && memory.stats().frames.pinned > 0; k++)
      await new Promise((resolve) => setTimeout(resolve, 10));
    expect(memory.check()).toBeUndefined();
    expect(memory.stats().frames).toMatchObject({ pinned: 0, anon: PAGES });
    space.sync.exit();
    expect(memory.stats().frames.anon).toBe(0);
    expect(memory.check()).toBeUndefined();
  });
});
