/**
 * Entry of the thread that hashes the file as anybody would: node:crypto over a plain stream. A thread of its own,
 * because the main one is a hasher too, and has no time for a stream.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { setPriority } from "node:os";
import { parentPort, workerData } from "node:worker_threads";

export interface StreamTask {
  readonly path: string;
  /** The process's descriptor of it, which stays open. */
  readonly fd: number;
}

export type StreamMessage =
  { readonly kind: "read"; readonly bytes: number } | { readonly kind: "done"; readonly sha256: string };

const CHUNK_BYTES = 256 * 1024;
const TELL_EVERY_BYTES = 16 * 1024 ** 2;

/** It takes what the mirrors leave of the processors: they are what is measured. */
const NICE = 19;

const tell = (message: StreamMessage): void => parentPort!.postMessage(message);

// Elsewhere it would slow the whole process down.
if (process.platform === "linux") setPriority(NICE);
const { path, fd } = workerData as StreamTask;
const hash = createHash("sha256");
let done = 0;
let told = 0;
for await (const chunk of createReadStream(path, {
  fd,
  autoClose: false,
  start: 0,
  highWaterMark: CHUNK_BYTES,
})) {
  hash.update(chunk as Buffer);
  done += (chunk as Buffer).length;
  if (done - told < TELL_EVERY_BYTES) continue;
  told = done;
  tell({ kind: "read", bytes: done });
}
tell({ kind: "done", sha256: hash.digest("hex") });
