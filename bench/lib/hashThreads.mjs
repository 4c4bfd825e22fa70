/**
 * What `bifolio mirror` is compared with: node hashThreads.mjs FILE THREADS. Each thread hashes the whole file with a
 * plain stream, the first one in the main thread. Prints one JSON object.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";

async function sha256(path) {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 1024 ** 2 })) hash.update(chunk);
  return hash.digest("hex");
}

const inWorker = (path) =>
  new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: path });
    worker.once("message", resolve);
    worker.once("error", reject);
  });

if (isMainThread) {
  const [, , path, threads] = process.argv;
  const others = Array.from({ length: Number(threads) - 1 }, () => inWorker(path));
  const hashes = await Promise.all([sha256(path), ...others]);
  console.log(JSON.stringify({ hashes, peakRssBytes: process.resourceUsage().maxRSS * 1024 }));
} else {
  parentPort.postMessage(await sha256(workerData));
}
