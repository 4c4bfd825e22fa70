/**
 * What `bifolio mirror` is compared with: node hashThreads.mjs FILE THREADS [CHUNK_BYTES]. Each thread hashes the whole
 * file with a plain stream, the first one in the main thread. Prints one JSON object; `seconds` count from when all
 * threads are there.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { performance } from "node:perf_hooks";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";

async function sha256(path, options) {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, options)) hash.update(chunk);
  return hash.digest("hex");
}

const nextMessage = (port) =>
  new Promise((resolve, reject) => {
    port.once("message", resolve);
    port.once("error", reject);
  });

if (isMainThread) {
  const [, , path, threads, chunkBytes] = process.argv;
  const options = chunkBytes ? { highWaterMark: Number(chunkBytes) } : {};
  const workers = Array.from(
    { length: Number(threads) - 1 },
    () => new Worker(new URL(import.meta.url), { workerData: { path, options } }),
  );
  await Promise.all(workers.map(nextMessage));
  const begin = performance.now();
  for (const worker of workers) worker.postMessage("go");
  const hashes = await Promise.all([sha256(path, options), ...workers.map(nextMessage)]);
  const seconds = (performance.now() - begin) / 1000;
  console.log(JSON.stringify({ hashes, seconds, peakRssBytes: process.resourceUsage().maxRSS * 1024 }));
} else {
  const go = nextMessage(parentPort);
  parentPort.postMessage("ready");
  await go;
  parentPort.postMessage(await sha256(workerData.path, workerData.options));
}
