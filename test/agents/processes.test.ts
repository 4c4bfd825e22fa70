/**
 * Real threads in the same processes and files, each with steps of its own and nobody to keep order: nothing hangs, each
 * step is done or refused in a documented way, every invariant holds at the end, and nothing is left behind.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import fc from "fast-check";
import { afterEach, expect, test } from "vitest";
import { FIRST_PAGE, OPENING, PROTS, type Step, stepArb } from "../lib/processes.ts";
import { bifolio } from "../lib/testBuild.ts";

const PAGE = 4096;
const SEED = 20261128;
const STEPS = 1000;
/** Ids of the processes are the first words of the table. */
const PROCESSES = 4;

const cleanups: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

/** Starts an agent and returns what it reports: how often each error came. */
function start(
  memory: InstanceType<typeof bifolio.PhysicalMemory>,
  workerData: object,
): Promise<Record<string, number>> {
  const worker = new Worker(new URL("./workers/processes.mjs", import.meta.url), {
    workerData: { handle: memory.handle, firstPage: FIRST_PAGE, prots: PROTS, ...workerData },
  });
  memory.adopt(worker);
  cleanups.push(() => worker.terminate());
  return new Promise((resolve, reject) => {
    worker.once("message", (m: { outcomes?: Record<string, number>; error?: string }) =>
      m.outcomes ? resolve(m.outcomes) : reject(new Error(m.error)),
    );
    worker.once("error", reject);
  });
}

/** Frames few enough that reclaim and ENOMEM are part of it, or plenty. */
test.each([
  [96, 1],
  [96, 2],
  [512, 3],
  [512, 4],
])("agents that use processes at the same time, %i frames, seed %i", async (frames, seed) => {
  const folder = mkdtempSync(join(tmpdir(), "bifolio-processes-"));
  cleanups.push(() => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, "data.bin");
  writeFileSync(path, new Uint8Array(7 * PAGE - 100).fill(1));
  const memory = await bifolio.createMemory({
    ...{ budget: frames * PAGE, arena: "8 MiB", mayBlock: true, debug: true, faultAround: 4 * PAGE },
  });
  const reported: unknown[] = [];
  memory.onError = (error) => reported.push(error);
  const table = memory.allocShared(64);
  const before = memory.stats();
  const files = [
    await memory.openFile(bifolio.memoryBacking(5 * PAGE - 33)),
    await memory.openFile(bifolio.fileBacking(path, { writable: true }), { writable: true }),
    await memory.openFile(bifolio.fileBacking(path)),
  ];
  const fileIds = files.map(({ id }) => id);
  const modes = ["sync", "sync", "async"];
  const programs: Step[][] = modes.map((_, k) => [
    ...OPENING.map((step) => ({ ...step, process: k, value: 1 })),
    ...fc.sample(stepArb, { numRuns: STEPS, seed: SEED + 100 * seed + k }),
  ]);
  const outcomes = await Promise.all(
    modes.map((mode, k) =>
      start(memory, { table: table.byteOffset, fileIds, agents: modes.length, mode, steps: programs[k] }),
    ),
  );
  // Most of the steps found something to do.
  for (const counts of outcomes)
    expect(Object.values(counts).reduce((sum, n) => sum + n, 0)).toBeLessThan(0.8 * STEPS);
  expect(memory.check()).toBeUndefined();
  for (const id of table.subarray(0, PROCESSES)) if (id !== 0) await memory.space(id as never).exit();
  for (const file of files) await file.close();
  for (let k = 0; k < 50 && memory.stats().arenaBytes !== before.arenaBytes; k++)
    await new Promise((resolve) => setTimeout(resolve, 1));
  expect(memory.check()).toBeUndefined();
  const after = memory.stats();
  expect([after.frames.used, after.arenaBytes]).toEqual([before.frames.used, before.arenaBytes]);
  await memory.close();
  expect(reported).toEqual([]);
});
