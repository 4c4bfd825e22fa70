/** Secondary TLBs and counted notifiers of other threads, while this one changes mappings. */
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, test } from "vitest";
import { bifolio } from "../lib/testBuild.ts";

const PAGE = 4096;
const PAGES = 16;
const ROUNDS = 300;
const STOP = 0;
const READY = 1;

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

async function makeRig() {
  const memory = await bifolio.createMemory({ budget: "4 MiB", mayBlock: true, debug: true });
  cleanups.push(() => memory.close());
  const errors: unknown[] = [];
  memory.onError = (error) => errors.push(error);
  const space = await memory.createSpace();
  const base = await space.mmap({ length: PAGES * PAGE, prot: "rw", share: "private" });
  return { memory, space, base, errors, device: memory.allocShared(PAGES * 4) };
}

type Rig = Awaited<ReturnType<typeof makeRig>>;

/** Starts a worker in a role; stop() gives what it counted. */
async function start({ memory, space, base, device }: Rig, role: string) {
  const control = memory.allocShared(64);
  const worker = new Worker(new URL("./workers/secondaryTlb.mjs", import.meta.url), {
    workerData: {
      handle: memory.handle,
      spaceId: space.id,
      control: control.byteOffset,
      device: device.byteOffset,
      role,
      base,
      pages: PAGES,
    },
  });
  memory.adopt(worker);
  cleanups.push(() => worker.terminate());
  const ended = new Promise<Record<string, number>>((resolve, reject) => {
    worker.once("message", (m: { result?: Record<string, number>; error?: string }) =>
      m.result ? resolve(m.result) : reject(new Error(m.error)),
    );
    worker.once("error", reject);
  });
  ended.catch(() => {});
  await Promise.race([memory.wait(control, READY, 0), ended]);
  return {
    stop: () => {
      Atomics.store(control, STOP, 1);
      Atomics.notify(control, STOP);
      return ended;
    },
  };
}

describe("a secondary TLB of another thread", () => {
  test.each(["polls", "parks", "idles"])(
    "has forgotten a page when the operation that took it returns, whatever its agent does (%s)",
    async (role) => {
      const rig = await makeRig();
      const { memory, space, base, device } = rig;
      const other = await start(rig, role);
      let stale = 0;
      for (let round = 0; round < ROUNDS; round++) {
        const page = round % PAGES;
        space.setUint32(base + page * PAGE, round);
        // The device walks the page tables, and keeps what it found.
        Atomics.store(device, page, 1);
        if (round % 2 === 0) space.sync.madvise(base + page * PAGE, PAGE, "dontneed");
        else {
          space.sync.mprotect(base + page * PAGE, PAGE, "r");
          space.sync.mprotect(base + page * PAGE, PAGE, "rw");
        }
        if (Atomics.load(device, page) !== 0) stale++;
      }
      const { flushes } = await other.stop();
      expect(stale).toBe(0);
      expect(flushes).toBeGreaterThanOrEqual(ROUNDS);
      expect(memory.check()).toBeUndefined();
      expect(rig.errors).toEqual([]);
    },
  );

  test("of an agent that dies is waited for no longer", async () => {
    const rig = await makeRig();
    const { space, base } = rig;
    await start(rig, "parks");
    await cleanups.pop()!(); // terminated
    for (let page = 0; page < PAGES; page++) space.setUint32(base + page * PAGE, 1);
    await space.munmap(base, PAGES * PAGE);
    expect(space.vmas()).toEqual([]);
  });
});

test("counted notifiers of two threads come and go while a third invalidates: each is freed once, nothing is left", async () => {
  const rig = await makeRig();
  const { memory, space, base } = rig;
  const others = [await start(rig, "counts"), await start(rig, "counts")];
  for (let round = 0; round < 4 * ROUNDS; round++) {
    await space.notifiers.invalidate({ start: base, end: base + PAGE, event: 1 }, () => {});
    if (round % 64 === 0) await space.notifiers.synchronize();
  }
  for (const other of others) {
    const { rounds, freed, started, ended } = await other.stop();
    expect(rounds).toBeGreaterThan(10);
    expect(freed).toBe(rounds);
    expect(started).toBeGreaterThan(0);
    // One that was put between a start and its end hears no end.
    expect(ended).toBeLessThanOrEqual(started!);
  }
  expect(bifolio.checkSubscriptions(space.notifiers.context)).toBeUndefined();
  expect(memory.check()).toBeUndefined();
  expect(rig.errors).toEqual([]);
});
