/**
 * A GPU MMU whose space other threads use at the same time: they store, unmap, protect and fork, while kernels load and store.
 * Needs a build.
 */
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, test } from "vitest";
import type { GpuMmu } from "../../src/mirrors/webgpu/index.ts";
import { useGpu } from "../lib/gpu.ts";
import { pagesFrom } from "../lib/gpuMmu.ts";
import { ADD, GATHER, type Kernel, kernelOf } from "../lib/kernels.ts";
import { bifolio } from "../lib/testBuild.ts";

const gpu = useGpu();
const PAGE = 4096;
const PAGES = 32;
/** The first of them are never unmapped. */
const STABLE = 8;
const STOP = 0;
const READY = 1;
const MS = 2500;

const cleanups: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

interface Report {
  readonly role: string;
  readonly result?: Record<string, number>;
  readonly error?: string;
}

async function makeRig(
  roles: readonly string[],
  pool: number,
): Promise<{
  space: InstanceType<typeof bifolio.AddressSpace>;
  memory: InstanceType<typeof bifolio.PhysicalMemory>;
  base: number;
  gather: Kernel;
  add: Kernel;
  mmu: GpuMmu;
  stop(): Promise<Record<string, Record<string, number>>>;
}> {
  const memory = await bifolio.createMemory({ budget: "2 MiB", mayBlock: false, debug: true });
  const problems: Error[] = [];
  memory.onError = (error) => problems.push(error);
  cleanups.push(() => memory.close());
  const control = memory.allocShared(64);
  const space = await memory.createSpace();
  const base = await space.mmap({ length: PAGES * PAGE, prot: "rw", share: "private" });
  const device = await gpu.device();
  cleanups.push(() => device.destroy());
  const bounds = { start: base, length: PAGES * PAGE };
  // The same code from another build: what differs is private.
  const mmu = (await bifolio.createGpuMmu(space, device, {
    budget: pool * PAGE,
    ...bounds,
  })) as unknown as GpuMmu;
  cleanups.push(() => mmu.remove());
  const [gather, add] = [GATHER, ADD].map((source) => kernelOf(device, mmu, source)) as [Kernel, Kernel];
  const reports = roles.map((role, k) => {
    const worker = new Worker(new URL("../agents/workers/gpuMmu.mjs", import.meta.url), {
      workerData: {
        ...{ handle: memory.handle, spaceId: space.id, control: control.byteOffset, role, base },
        ...{ pages: PAGES, stable: STABLE, seed: k + 1 },
      },
    });
    memory.adopt(worker);
    cleanups.push(() => worker.terminate());
    return new Promise<Report>((resolve, reject) => worker.once("message", resolve).once("error", reject));
  });
  while (Atomics.load(control, READY) < roles.length) await new Promise((resolve) => setTimeout(resolve, 5));
  return {
    ...{ space, memory, base, gather, add, mmu },
    async stop() {
      Atomics.store(control, STOP, 1);
      const done = await Promise.all(reports);
      expect(done.map(({ error }) => error)).toEqual(roles.map(() => undefined));
      expect(problems).toEqual([]);
      expect(mmu.check()).toBeUndefined();
      expect(memory.check()).toBeUndefined();
      return Object.fromEntries(done.map(({ role, result }) => [role, result!]));
    },
  };
}

describe.each([PAGES, 6])("a pool of %i pages", (pool) => {
  test("a dispatch sees at least what was stored before it", async () => {
    const rig = await makeRig(["writer"], pool);
    const at = pagesFrom(rig.base + 4, STABLE);
    for (let end = performance.now() + MS; performance.now() < end;) {
      const least = await rig.space.run(() => at.map((address) => rig.space.getUint32(address)));
      const { words } = await rig.gather(at);
      const most = await rig.space.run(() => at.map((address) => rig.space.getUint32(address)));
      words.forEach((word, k) => {
        expect(word).toBeGreaterThanOrEqual(least[k]!);
        expect(word).toBeLessThanOrEqual(most[k]!);
      });
    }
    const { writer } = await rig.stop();
    expect(writer!["value"]).toBeGreaterThan(0);
  });

  test("mappings that change under it never show somebody else's page", async () => {
    const rig = await makeRig(["changer"], pool);
    const all = pagesFrom(rig.base, PAGES);
    let runs = 0;
    for (let end = performance.now() + MS; performance.now() < end; runs++) {
      try {
        const { words } = await rig.gather(all);
        words.forEach((word, k) => expect([0, k + 1]).toContain(word));
      } catch (error) {
        // Between munmap and mmap there is nothing.
        if ((error as Error).name !== "SegvError") throw error;
      }
      expect(rig.mmu.stats().resident).toBeLessThanOrEqual(pool);
    }
    const { changer } = await rig.stop();
    expect(changer).toMatchObject({ wrong: 0 });
    expect(changer!["changes"]).toBeGreaterThan(0);
    expect(runs).toBeGreaterThan(0);
  });

  test("stores of kernels are neither lost nor in a child that was there before", async () => {
    const rig = await makeRig(["forker", "changer"], pool);
    // Word 2 of the pages that stay: nobody else stores there.
    const at = pagesFrom(rig.base + 8, STABLE);
    const ones = at.map(() => 1);
    let runs = 0;
    for (let end = performance.now() + MS; performance.now() < end; runs++) {
      const { words } = await rig.add(at, ones, { keepDirty: runs % 3 !== 0 });
      expect(words).toEqual(at.map(() => runs));
    }
    await rig.mmu.flush();
    const found = await rig.space.run(() => at.map((address) => rig.space.getUint32(address)));
    expect(found).toEqual(at.map(() => runs));
    const { forker, changer } = await rig.stop();
    expect(forker).toMatchObject({ wrong: 0 });
    expect(changer).toMatchObject({ wrong: 0 });
    expect(forker!["forks"]).toBeGreaterThan(0);
  });
});
