/**
 * The acknowledgement rule with real threads: one agent has a translation in its TLB and computes, another takes it
 * away. Each test fails if the taker does not wait for the acknowledgement.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, test } from "vitest";
import { bifolio } from "../lib/testBuild.ts";

type Memory = InstanceType<typeof bifolio.PhysicalMemory>;
type Space = InstanceType<typeof bifolio.AddressSpace>;

const PAGE = 4096;
const STOP = 0;
const READY = 1;
const FLAG = 2;
const COUNT = 3;
/** Accesses between two safepoints of the other agent. */
const POLL_EVERY = 400;

interface Rig {
  memory: Memory;
  space: Space;
  control: Int32Array;
}

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

async function makeRig(): Promise<Rig> {
  const memory = await bifolio.createMemory({ budget: "8 MiB", mayBlock: true, debug: true });
  cleanups.push(() => memory.close());
  return { memory, space: await memory.createSpace(), control: memory.allocShared(64) };
}

interface Other {
  worker: Worker;
  stop(): Promise<Record<string, number>>;
}

/** Starts the other agent in a role and waits until it is at it. */
async function start(rig: Rig, role: string, base: number, pages: number): Promise<Other> {
  const worker = new Worker(new URL("./workers/litmus.mjs", import.meta.url), {
    workerData: {
      handle: rig.memory.handle,
      spaceId: rig.space.id,
      control: rig.control.byteOffset,
      role,
      base,
      pages,
      pollEvery: POLL_EVERY,
    },
  });
  rig.memory.adopt(worker);
  cleanups.push(async () => {
    await worker.terminate();
  });
  const ended = new Promise<Record<string, number>>((resolve, reject) => {
    worker.once("message", (m: { result?: Record<string, number>; error?: string }) =>
      m.result ? resolve(m.result) : reject(new Error(m.error)),
    );
    worker.once("error", reject);
  });
  ended.catch(() => {});
  await Promise.race([rig.memory.wait(rig.control, READY, 0), ended]);
  return {
    worker,
    stop: () => {
      Atomics.store(rig.control, STOP, 1);
      return ended;
    },
  };
}

/** Lets the other agent go on for `turns` of its loop; this one computes meanwhile, and answers nobody. */
function letRun(rig: Rig, turns: number): void {
  const until = Atomics.load(rig.control, COUNT) + turns;
  while (Atomics.load(rig.control, COUNT) < until) {
    if (Atomics.load(rig.control, STOP) !== 0) return;
  }
}

describe("the acknowledgement rule", () => {
  test("once mprotect has returned no store of another agent lands any more", async () => {
    const rig = await makeRig();
    const { space } = rig;
    const a = space.sync.mmap({ length: PAGE, prot: "rw", share: "private" });
    space.setUint32(a, 0);
    const other = await start(rig, "writer", a, 1);
    let landed = 0;
    for (let round = 0; round < 300; round++) {
      letRun(rig, 100);
      space.sync.mprotect(a, PAGE, "r");
      const before = space.getUint32(a);
      letRun(rig, 50);
      if (space.getUint32(a) !== before) landed++;
      space.sync.mprotect(a, PAGE, "rw");
    }
    const { refused } = await other.stop();
    expect(landed).toBe(0);
    expect(refused).toBeGreaterThan(0);
    expect(rig.memory.check()).toBeUndefined();
  });

  test("who is told of a copy-on-write store sees it, though it had the old page in its TLB", async () => {
    const rig = await makeRig();
    const { memory, space, control } = rig;
    const pages = 16;
    const file = await memory.openFile(bifolio.memoryBacking(pages * PAGE));
    const a = space.sync.mmap({ length: pages * PAGE, prot: "rw", share: "private", file });
    const other = await start(rig, "observer", a, pages);
    let flag = 0;
    for (let round = 0; round < 30; round++) {
      letRun(rig, 20);
      for (let k = 0; k < pages; k++) {
        flag++;
        space.setUint32(a + (flag % pages) * PAGE, flag); // copies the page
        Atomics.store(control, FLAG, flag);
        letRun(rig, 3);
      }
      // Back to the file's page: between the flags nothing is promised.
      Atomics.store(control, FLAG, 0);
      letRun(rig, 2);
      space.sync.madvise(a, pages * PAGE, "dontneed");
    }
    const { stale, seen } = await other.stop();
    expect(stale).toBe(0);
    expect(seen).toBeGreaterThan(100);
    expect(memory.stats().faults.cow).toBeGreaterThan(300);
    expect(memory.check()).toBeUndefined();
  });

  test("so does who has looked at the page through a table that fork shared", async () => {
    const rig = await makeRig();
    const { memory, space, control } = rig;
    const pages = 16;
    const a = space.sync.mmap({ length: pages * PAGE, prot: "rw", share: "private" });
    for (let k = 0; k < pages; k++) space.setUint32(a + k * PAGE, 1);
    const other = await start(rig, "observer", a, pages);
    let flag = 0;
    for (let round = 0; round < 500; round++) {
      // All translations of the observer's go; with the first store the parent gets a table of its own.
      const child = space.sync.fork();
      for (let k = 0; k < 4; k++) {
        flag++;
        space.setUint32(a + (flag % pages) * PAGE, flag);
        Atomics.store(control, FLAG, flag);
      }
      letRun(rig, 1);
      Atomics.store(control, FLAG, 0);
      child.sync.exit();
    }
    const { stale, seen } = await other.stop();
    expect(stale).toBe(0);
    expect(seen).toBeGreaterThan(100);
    expect(memory.check()).toBeUndefined();
  });

  test("write-back loses no store that comes while it runs", async () => {
    const folder = mkdtempSync(join(tmpdir(), "bifolio-litmus-"));
    cleanups.push(() => rmSync(folder, { recursive: true, force: true }));
    const path = join(folder, "data.bin");
    const pages = 8;
    for (let trial = 0; trial < 8; trial++) {
      writeFileSync(path, new Uint8Array(pages * PAGE));
      const rig = await makeRig();
      const { memory, space } = rig;
      const file = await memory.openFile(bifolio.fileBacking(path, { writable: true }), { writable: true });
      const a = space.sync.mmap({ length: pages * PAGE, prot: "rw", share: "shared", file });
      const other = await start(rig, "storer", a, pages);
      for (let round = 0; round < 40; round++) {
        letRun(rig, 3);
        memory.sync.sync(file);
      }
      // The last stores come after a sync has begun; this one finds them by the dirty bits they left.
      const { stores } = await other.stop();
      memory.sync.sync(file);
      const disk = readFileSync(path);
      expect(stores).toBeGreaterThan(0);
      for (let k = 0; k < pages; k++) {
        expect(disk.readUInt32LE(k * PAGE + 8)).toBe(space.getUint32(a + k * PAGE + 8));
      }
    }
  });

  test("a reader never sees the bytes of a frame's next owner", async () => {
    const rig = await makeRig();
    const { memory, space } = rig;
    const pages = 32;
    const a = space.sync.mmap({ length: pages * PAGE, prot: "rw", share: "private" });
    const fill = (base: number, stamp: number): void => {
      for (let k = 0; k < pages; k++) space.setUint32(base + k * PAGE, ((stamp << 16) | k) >>> 0);
    };
    fill(a, 0xaaaa);
    const other = await start(rig, "reader", a, pages);
    for (let round = 0; round < 150; round++) {
      letRun(rig, 100);
      space.sync.munmap(a, pages * PAGE);
      const b = space.sync.mmap({
        address: a + 64 * PAGE,
        fixed: true,
        length: pages * PAGE,
        prot: "rw",
        share: "private",
      });
      fill(b, 0xbbbb); // the frames that were just freed come first
      letRun(rig, 50);
      space.sync.munmap(b, pages * PAGE);
      space.sync.mmap({ address: a, fixed: true, length: pages * PAGE, prot: "rw", share: "private" });
      fill(a, 0xaaaa);
    }
    const { foreign, gone } = await other.stop();
    expect(foreign).toBe(0);
    expect(gone).toBeGreaterThan(0);
    expect(memory.check()).toBeUndefined();
  });

  test("once dontneed has returned nobody reads the old value", async () => {
    const rig = await makeRig();
    const { space, control } = rig;
    const a = space.sync.mmap({ length: PAGE, prot: "rw", share: "private" });
    space.setUint32(a, 0);
    const other = await start(rig, "forgetter", a, 1);
    for (let round = 1; round <= 300; round++) {
      space.setUint32(a, round);
      letRun(rig, 20);
      space.sync.madvise(a, PAGE, "dontneed");
      Atomics.store(control, FLAG, round);
      letRun(rig, 20);
    }
    const { stale } = await other.stop();
    expect(stale).toBe(0);
    expect(rig.memory.check()).toBeUndefined();
  });
});

describe("an agent that is killed", () => {
  test("leaves the others going on, or a clear EOWNERDEAD, never a hang", async () => {
    const outcomes = { on: 0, poisoned: 0 };
    for (let trial = 0; trial < 12; trial++) {
      const rig = await makeRig();
      const { memory, space } = rig;
      const deaths: string[] = [];
      memory.onError = (error) => deaths.push(error.code);
      const other = await start(rig, "hammer", 0, 0);
      letRun(rig, 5 + trial * 7);
      await other.worker.terminate();
      try {
        for (let k = 0; k < 50; k++) {
          const a = await space.mmap({ length: 4 * PAGE, prot: "rw", share: "private" });
          space.setUint32(a, k);
          expect(space.getUint32(a)).toBe(k);
          await space.munmap(a, 4 * PAGE);
        }
        outcomes.on++;
      } catch (error) {
        expect(error).toMatchObject({ code: "EOWNERDEAD" });
        outcomes.poisoned++;
        cleanups.splice(0); // a poisoned memory closes with the same error
      }
      expect(deaths).toContain("EOWNERDEAD");
    }
    expect(outcomes.on + outcomes.poisoned).toBe(12);
  });
});
