/**
 * Mirrored ranges while real threads store, unmap and fork without a pause: what a thread has said that it has stored is in the
 * buffer after the next sync(), and what the GPU has written is what every thread reads.
 */
import { Worker } from "node:worker_threads";
import { afterEach, expect, test } from "vitest";
import type * as Webgpu from "../../src/webgpuEntry.ts";
import { useGpu } from "../lib/gpu.ts";
import { makeAdder, readBuffer } from "../lib/gpuBuffers.ts";
import { bifolio } from "../lib/testBuild.ts";

const { mirrorRange } = (await import(
  new URL("../../.test-build/webgpu.js", import.meta.url).href
)) as typeof Webgpu;

type Memory = InstanceType<typeof bifolio.PhysicalMemory>;
type Space = InstanceType<typeof bifolio.AddressSpace>;

const gpu = useGpu();
const PAGE = 4096;
const PAGES = 8;
const STOP = 0;
const READY = 1;
const COUNT = 3;
const ACKNOWLEDGED = 8;
const ROUNDS = Number(process.env["BIFOLIO_ROUNDS"] ?? 60);

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
  /** Rejects when a worker fails. */
  readonly failed: Promise<never>;
}

async function makeRig(roles: readonly string[], share: "private" | "shared" = "private"): Promise<Rig> {
  const memory = await bifolio.createMemory({ budget: "4 MiB", mayBlock: false, debug: true });
  cleanups.push(() => memory.close());
  const control = memory.allocShared(256);
  const space = await memory.createSpace();
  const file =
    share === "shared" ? await memory.openFile(bifolio.memoryBacking(2 * PAGES * PAGE)) : undefined;
  const base = await space.mmap({ length: 2 * PAGES * PAGE, prot: "rw", share, ...(file && { file }) });
  const reports = roles.map((role, writer) => {
    const worker = new Worker(new URL("../agents/workers/gpuMirror.mjs", import.meta.url), {
      workerData: {
        ...{ handle: memory.handle, spaceId: space.id, control: control.byteOffset, role, writer, base },
        pages: PAGES,
      },
    });
    memory.adopt(worker);
    cleanups.push(() => worker.terminate());
    return new Promise<Record<string, number>>((resolve, reject) => {
      worker.once("message", (m: { result?: Record<string, number>; error?: string }) =>
        m.result ? resolve(m.result) : reject(new Error(m.error)),
      );
      worker.once("error", reject);
    });
  });
  const failed = new Promise<never>((_, reject) => {
    for (const report of reports) report.catch(reject);
  });
  failed.catch(() => {});
  for (let ready = 0; ready < roles.length; ready = Atomics.load(control, READY))
    await Promise.race([memory.wait(control, READY, ready), failed]);
  const stop = async (): Promise<Record<string, number>[]> => {
    Atomics.store(control, STOP, 1);
    return Promise.all(reports);
  };
  return { memory, space, control, base, stop, failed };
}

/** Lets the others go on for a turn of their loops. */
async function letRun({ control, failed }: Rig, turns = 1): Promise<void> {
  const until = Atomics.load(control, COUNT) + turns;
  while (Atomics.load(control, COUNT) < until)
    await Promise.race([new Promise((resolve) => setImmediate(resolve)), failed]);
}

for (const share of ["private", "shared"] as const) {
  test(`nothing is missing that was stored before sync(), ${share}`, async () => {
    const rig = await makeRig(["writer", "writer"], share);
    const { memory, space, control, base } = rig;
    const device = await gpu.device();
    const mirror = await mirrorRange(space, device, base, PAGES * PAGE);
    let moved = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const said = [0, 1].map((writer) => Atomics.load(control, ACKNOWLEDGED + writer));
      await Promise.race([mirror.sync(), rig.failed]);
      const words = new Uint32Array((await readBuffer(device, mirror.buffer)).buffer);
      for (let page = 0; page < PAGES; page++) {
        for (const writer of [0, 1]) {
          const seen = words[(page * PAGE) / 4 + writer]!;
          expect(seen).toBeGreaterThanOrEqual(said[writer]!);
          if (seen > said[writer]!) moved++;
        }
      }
      if (round % 8 === 0) await letRun(rig);
    }
    await rig.stop();
    await mirror.sync();
    const bytes = new Uint8Array(PAGES * PAGE);
    await space.read(base, bytes);
    expect(Buffer.compare(await readBuffer(device, mirror.buffer), bytes)).toBe(0);
    expect(memory.check()).toBeUndefined();
    // Pages were stored to while they were on their way.
    expect(moved).toBeGreaterThan(0);
    await mirror.remove();
  });
}

test("single pages, while others unmap, protect and fork, and two mirrors look", async () => {
  const rig = await makeRig(["scatterer", "changer", "forker"]);
  const { memory, space, control, base } = rig;
  const [device, second] = [await gpu.device(), await gpu.device()];
  const mirror = await mirrorRange(space, device, base, 2 * PAGES * PAGE);
  const other = await mirrorRange(space, second, base + 2 * PAGE, 4 * PAGE);
  /** A page of the changer's may be missing for a moment. */
  const tolerant = (sync: Promise<void>): Promise<void> =>
    sync.catch((error: unknown) => {
      if (!bifolio.isMmError(error, "EFAULT")) throw error;
      expect(Number(error.range?.start ?? (error as { address?: number }).address)).toBeGreaterThanOrEqual(
        base + PAGES * PAGE,
      );
    });
  for (let round = 0; round < ROUNDS; round++) {
    const said = Array.from({ length: PAGES }, (_, page) => Atomics.load(control, ACKNOWLEDGED + 8 + page));
    await Promise.race([Promise.all([tolerant(mirror.sync()), other.sync()]), rig.failed]);
    const words = new Uint32Array((await readBuffer(device, mirror.buffer)).buffer);
    const fewer = new Uint32Array((await readBuffer(second, other.buffer)).buffer);
    for (let page = 0; page < PAGES; page++) {
      expect(words[(page * PAGE) / 4]).toBeGreaterThanOrEqual(said[page]!);
      expect(words[(page * PAGE) / 4]).toBeLessThan(0xdead0000);
      if (page >= 2 && page < 6) expect(fewer[((page - 2) * PAGE) / 4]).toBeGreaterThanOrEqual(said[page]!);
    }
    if (round % 8 === 0) await letRun(rig);
  }
  const [stores, changes, forks] = await rig.stop();
  expect([stores!["stores"], changes!["changes"], forks!["forks"]].every((n) => n! > 0)).toBe(true);
  await mirror.sync();
  const bytes = new Uint8Array(2 * PAGES * PAGE);
  await space.read(base, bytes);
  expect(Buffer.compare(await readBuffer(device, mirror.buffer), bytes)).toBe(0);
  expect(memory.check()).toBeUndefined();
  expect(mirror.counts.invalidations).toBeGreaterThan(0);
  await mirror.remove();
  await other.remove();
});

test("what the GPU has written is what every thread reads, while another forks", async () => {
  const rig = await makeRig(["reader", "reader", "forker"]);
  const { memory, space, control, base } = rig;
  const device = await gpu.device();
  const { run } = makeAdder(device);
  const mirror = await mirrorRange(space, device, base, PAGES * PAGE, { access: "rw" });
  const counts = Array.from({ length: PAGES }, () => 0);
  for (let round = 0; round < ROUNDS / 2; round++) {
    const page = (round * 5) % PAGES;
    await Promise.race([mirror.sync(), rig.failed]);
    run(mirror.buffer, (page * PAGE + 128) / 4, 1, 1);
    await Promise.race([mirror.markWritten(base + page * PAGE + 128, 4), rig.failed]);
    counts[page]!++;
    Atomics.store(control, ACKNOWLEDGED + page, counts[page]!);
    if (round % 8 === 0) await letRun(rig);
  }
  const reports = await rig.stop();
  for (const { backwards, behind, reads } of reports.slice(0, 2)) {
    expect({ backwards, behind }).toEqual({ backwards: 0, behind: 0 });
    expect(reads).toBeGreaterThan(0);
  }
  await mirror.bringHome();
  for (let page = 0; page < PAGES; page++)
    expect(space.getUint32(base + page * PAGE + 128)).toBe(counts[page]);
  expect(memory.check()).toBeUndefined();
  await mirror.remove();
});

test("the agent of a mirror may die with bytes on its GPU: an access says so", async () => {
  const memory = await bifolio.createMemory({ budget: "4 MiB", mayBlock: true, debug: true });
  cleanups.push(() => memory.close());
  const space = await memory.createSpace();
  const base = await space.mmap({ length: 2 * PAGE, prot: "rw", share: "private" });
  space.setUint32(base, 7);
  space.setUint32(base + PAGE, 8);
  memory.poll();
  const worker = new Worker(new URL("../agents/workers/gpuOwner.mjs", import.meta.url), {
    workerData: { handle: memory.handle, spaceId: space.id, base },
  });
  memory.adopt(worker);
  await new Promise((resolve, reject) => {
    worker.once("message", resolve);
    worker.once("error", reject);
  });
  await worker.terminate();
  expect(() => space.getUint32(base)).toThrow(/device whose agent has ended/);
  expect(space.getUint32(base + PAGE)).toBe(8);
  await space.munmap(base, PAGE);
  await space.mmap({ address: base, length: PAGE, fixed: true, prot: "rw", share: "private" });
  space.setUint32(base, 9);
  expect(space.getUint32(base)).toBe(9);
  expect(memory.check()).toBeUndefined();
  await space.exit();
});
