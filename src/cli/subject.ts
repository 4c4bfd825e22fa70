/** The file that is mirrored, as the operating system has it: what the mirrors are checked against. */
import { closeSync, constants, fstatSync, openSync, type Stats, statSync } from "node:fs";
import { Worker } from "node:worker_threads";
import { CommandError } from "./commandError.ts";
import { SMALL_HEAP } from "./run.ts";
import type { StreamMessage, StreamTask } from "./streamWorker.ts";

/** Beside this module's chunk: see rolldown.config.mjs. */
const STREAM_WORKER_URL = new URL("./streamWorker.js", import.meta.url);

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  ENOTDIR: "there is no such file",
  EACCES: "permission denied",
  EPERM: "permission denied",
};

export class Subject {
  readonly path: string;
  /** Bytes, when it was opened. */
  readonly bytes: number;
  readonly #fd: number;
  readonly #before: Stats;
  #worker: Worker | undefined;

  /** Opens it. Errors: CommandError if it cannot be read, or has nothing that could be mirrored. */
  constructor(path: string) {
    this.path = path;
    try {
      // Not blocking: opening a pipe waits for its other end otherwise.
      this.#fd = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
      this.#before = fstatSync(this.#fd);
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      throw new CommandError(`cannot read ${path}: ${REASONS[code ?? ""] ?? message}`);
    }
    this.bytes = this.#before.size;
    const wrong = this.#before.isDirectory()
      ? "is a directory"
      : !this.#before.isFile()
        ? "is not a regular file"
        : this.bytes === 0
          ? "is empty"
          : undefined;
    if (wrong === undefined) return;
    closeSync(this.#fd);
    throw new CommandError(`cannot mirror ${path}: it ${wrong}`);
  }

  /**
   * SHA-256 through a plain stream, in hex, computed by a thread of its own. `read` hears how many bytes have come.
   * Errors: CommandError if the file cannot be read.
   */
  sha256(read: (bytes: number) => void): Promise<string> {
    const workerData: StreamTask = { path: this.path, fd: this.#fd };
    const worker = new Worker(STREAM_WORKER_URL, { workerData, resourceLimits: SMALL_HEAP });
    this.#worker = worker;
    return new Promise((resolve, reject) => {
      worker.on("message", (message: StreamMessage) => {
        if (message.kind === "done") resolve(message.sha256);
        else read(message.bytes);
      });
      worker.once("error", (error) => reject(new CommandError(`cannot read ${this.path}: ${error.message}`)));
    });
  }

  /** Bytes now. */
  get bytesNow(): number {
    return fstatSync(this.#fd).size;
  }

  /** Errors: CommandError if the file is no longer what it was, so that there is nothing to compare with. */
  checkUnchanged(): void {
    const { size, mtimeMs } = fstatSync(this.#fd);
    if (size < this.bytes) throw this.shrank("there is nothing left to compare with");
    // Workers open the file by its name.
    const named = statSync(this.path, { throwIfNoEntry: false });
    const replaced = named !== undefined && named.ino !== this.#before.ino;
    if (size !== this.bytes || mtimeMs !== this.#before.mtimeMs || replaced) {
      throw new CommandError(
        `${this.path} changed while it was mirrored, so there is nothing to compare the mirrors with`,
      );
    }
  }

  shrank(rest: string): CommandError {
    return new CommandError(
      `${this.path} shrank from ${this.bytes} to ${this.bytesNow} bytes while it was mapped; a read beyond its new end is a BusError (${rest})`,
    );
  }

  async close(): Promise<void> {
    await this.#worker?.terminate();
    closeSync(this.#fd);
  }
}
