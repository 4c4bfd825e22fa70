/** The file that is mirrored, as the operating system has it: what the mirrors are checked against. */
import { createHash } from "node:crypto";
import { closeSync, constants, createReadStream, fstatSync, openSync, type Stats, statSync } from "node:fs";
import { CommandError } from "./commandError.ts";

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
    this.close();
    throw new CommandError(`cannot mirror ${path}: it ${wrong}`);
  }

  /** SHA-256 through a plain stream, in hex. `read` hears how many bytes have come. */
  async sha256(read: (bytes: number) => void): Promise<string> {
    const hash = createHash("sha256");
    const stream = createReadStream(this.path, {
      fd: this.#fd,
      autoClose: false,
      start: 0,
      highWaterMark: 256 * 1024,
    });
    let done = 0;
    for await (const chunk of stream) {
      hash.update(chunk as Buffer);
      read((done += (chunk as Buffer).length));
    }
    return hash.digest("hex");
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

  close(): void {
    closeSync(this.#fd);
  }
}
