/**
 * A file of 1 GiB on a GPU with 64 MiB for it, through a memory of 64 MiB:
 *
 *     node examples/gpu-histogram/run.mjs [--size 1GiB] [--file PATH] [--png PATH] [--times]
 *
 * Needs a WebGPU adapter and the npm package `webgpu`; in the repository, a build (npm run build makes one).
 */
import { existsSync } from "node:fs";
import { mkdtemp, open, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Worker } from "node:worker_threads";
import { createMemory } from "bifolio";
import { fileBacking } from "bifolio/node";
import { makeBytes, PAGE, widthOf } from "./data.mjs";
import { countBytes, histogramOf } from "./histogram.mjs";
import { png } from "./png.mjs";

const BUDGET = "64 MiB";
const PIECE = 1024 ** 2;
const PRIVATE = 4 * PIECE;
const UNITS = { MiB: 1024 ** 2, GiB: 1024 ** 3 };

/** Ends with one sentence. */
function fail(sentence) {
  console.error(sentence);
  process.exit(2);
}

function readArguments() {
  try {
    return parseArgs({
      options: {
        size: { type: "string", default: "1GiB" },
        file: { type: "string" },
        png: { type: "string" },
        times: { type: "boolean", default: false },
      },
    }).values;
  } catch (error) {
    return fail(`${error.message}; the options are --size, --file, --png and --times`);
  }
}

const values = readArguments();
const [, amount, unit] = /^(\d+)(MiB|GiB)$/.exec(values.size) ?? [];
if (!amount) fail("--size must be a number of MiB or GiB, such as 64MiB");
if (values.file !== undefined && !existsSync(values.file)) fail(`${values.file}: no such file`);
const size = Number(amount) * UNITS[unit];

/** Seconds that `work` takes go to standard output with --times. */
async function timed(name, work) {
  const began = performance.now();
  const result = await work();
  if (values.times) console.log(`${name}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  return result;
}

async function findDevice() {
  const swiftShader = "/usr/lib/chromium/vk_swiftshader_icd.json";
  if (!process.env.VK_ICD_FILENAMES && existsSync(swiftShader)) process.env.VK_ICD_FILENAMES = swiftShader;
  const { create, globals } = await import("webgpu");
  Object.assign(globalThis, globals);
  globalThis.gpu = create([]); // kept: what it gave ends with it
  const adapter = await globalThis.gpu.requestAdapter();
  if (!adapter)
    fail("no GPU adapter: install a Vulkan driver, or chromium and libvulkan1 for one in software");
  return adapter.requestDevice();
}

async function makeFile(path, pages) {
  const file = await open(path, "w");
  const piece = new Uint8Array(PIECE);
  for (let at = 0; at < pages * PAGE; at += piece.length) {
    const bytes = piece.subarray(0, Math.min(piece.length, pages * PAGE - at));
    makeBytes(bytes, at, pages);
    await file.write(bytes);
  }
  await file.close();
}

/** The answer without any of this. */
async function countFile(path, pages) {
  const histogram = new Uint32Array(256);
  const picture = new Uint32Array(pages);
  const file = await open(path);
  const piece = new Uint8Array(PIECE);
  for (let at = 0; at < pages * PAGE; at += piece.length) {
    const { bytesRead } = await file.read(piece, 0, Math.min(piece.length, pages * PAGE - at), at);
    countBytes(piece.subarray(0, bytesRead), PAGE, histogram, picture, at / PAGE);
  }
  await file.close();
  return { histogram, picture };
}

const same = (a, b) => a.length === b.length && a.every((word, k) => word === b[k]);

const folder = await mkdtemp(join(tmpdir(), "bifolio-histogram-"));
try {
  const path = values.file ?? join(folder, "data.bin");
  const pages = Math.floor((values.file ? (await stat(path)).size : size) / PAGE);
  if (!values.file) await timed("making the file", () => makeFile(path, pages));
  const device = await findDevice();

  const memory = await createMemory({ budget: BUDGET });
  const space = await memory.createSpace();
  const file = await memory.openFile(fileBacking(path));
  const start = await space.mmap({ length: pages * PAGE, prot: "r", share: "private", file });
  const own = await space.mmap({ length: PRIVATE, prot: "rw", share: "private" });
  // Private pages of the same file: what is stored there is the worker's alone.
  const half = Math.min(PRIVATE / 2, pages * PAGE);
  await space.mmap({ address: own, length: half, fixed: true, prot: "rw", share: "private", file });

  const stop = memory.allocShared(4);
  const worker = new Worker(new URL("writerThread.mjs", import.meta.url), {
    workerData: {
      ...{ handle: memory.handle, spaceId: space.id, stop: stop.byteOffset },
      ...{ start: own, length: PRIVATE, pageSize: PAGE },
    },
  });
  memory.adopt(worker);
  const written = new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));

  const length = pages * PAGE;
  const gpu = await timed("the GPU", () =>
    histogramOf(device, { space, pageSize: PAGE, start, length, budget: BUDGET }),
  );
  Atomics.store(stop, 0, 1);
  const { rounds, wrong } = await written;
  const cpu = await timed("the CPU", () => countFile(path, pages));
  const { peak, total } = memory.stats().frames;
  if (values.times) {
    const { run, stats } = gpu;
    console.log(
      `${run.rounds} rounds, ${run.pages} pages uploaded, ${run.evictions} evicted, ${stats.invalidations} invalidations; the worker went round ${rounds} times`,
    );
  }
  if (values.png) await writeFile(values.png, png(gpu.picture, widthOf(pages)));

  const equal = same(gpu.histogram, cpu.histogram) && same(gpu.picture, cpu.picture);
  console.log(`${pages} pages of 4 KiB through ${BUDGET} of memory and ${BUDGET} of GPU memory`);
  console.log(`the GPU's histogram and picture are ${equal ? "those of the CPU" : "WRONG"}`);
  console.log(`the memory kept to its budget: ${peak <= total ? "yes" : "NO"}`);
  console.log(
    `the worker's own pages, while it wrote to them: ${wrong === 0 ? "right" : `${wrong} words WRONG`}`,
  );
  if (!equal || wrong > 0) process.exitCode = 1;

  worker.removeAllListeners();
  await file.close();
  await memory.close();
  device.destroy();
} finally {
  await rm(folder, { recursive: true, force: true });
}
process.exit(); // Dawn's threads need not be waited for
