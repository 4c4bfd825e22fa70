/** A file of the operating system, in Node. Every agent opens it by itself and reads it synchronously. */
import {
  closeSync,
  constants,
  fdatasync,
  fdatasyncSync,
  fstatSync,
  ftruncate,
  ftruncateSync,
  openSync,
  read,
  readSync,
  write,
  writeSync,
} from "node:fs";
import { resolve } from "node:path";
import { promisify } from "node:util";
import { MmError, type MmErrorCode } from "../errors.ts";
import { type Backing, registerBacking } from "../mm/index.ts";

const FILE_KIND = "file";

const readAsync = promisify(read);
const writeAsync = promisify(write);
const ftruncateAsync = promisify(ftruncate);
const fdatasyncAsync = promisify(fdatasync);

/** What a system error means here; anything else is EIO. */
const SENTENCES: Readonly<Record<string, readonly [MmErrorCode, string]>> = {
  ENOENT: ["ENOENT", "there is no such file"],
  EACCES: ["EACCES", "permission denied"],
  EPERM: ["EPERM", "permission denied"],
  EISDIR: ["EISDIR", "is a directory"],
  ENOTDIR: ["ENOENT", "there is no such file"],
  ELOOP: ["EINVAL", "too many symbolic links"],
};

function systemError(path: string, cause: unknown): MmError {
  const code = (cause as { code?: string }).code ?? "";
  const [known, sentence] = SENTENCES[code] ?? ["EIO", code || String(cause)];
  return new MmError(known, "fileBacking", `${path}: ${sentence}`, { cause });
}

function open(path: string, writable: boolean): Backing {
  let fd: number;
  let size: number;
  try {
    fd = openSync(path, writable ? constants.O_RDWR : constants.O_RDONLY);
  } catch (cause) {
    throw systemError(path, cause);
  }
  const stat = fstatSync(fd);
  if (!stat.isFile()) {
    closeSync(fd);
    const directory = stat.isDirectory();
    throw new MmError(
      directory ? "EISDIR" : "EINVAL",
      "fileBacking",
      `${path}: ${directory ? "is a directory" : "is not a regular file"}`,
    );
  }
  size = stat.size;
  const whole = (transfer: (done: number) => number, length: number): number => {
    let done = 0;
    while (done < length) {
      const n = transfer(done);
      if (n === 0) break;
      done += n;
    }
    return done;
  };
  return {
    size,
    descriptor: { kind: FILE_KIND, data: JSON.stringify({ path, writable }) },
    readSync: (offset, into) =>
      whole((done) => readSync(fd, into, done, into.length - done, offset + done), into.length),
    read: async (offset, into) => {
      let done = 0;
      while (done < into.length) {
        const { bytesRead } = await readAsync(fd, into, done, into.length - done, offset + done);
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      return done;
    },
    ...(writable
      ? {
          writeSync: (offset: number, from: Uint8Array) => {
            whole((done) => writeSync(fd, from, done, from.length - done, offset + done), from.length);
          },
          write: async (offset: number, from: Uint8Array) => {
            for (let done = 0; done < from.length;) {
              done += (await writeAsync(fd, from, done, from.length - done, offset + done)).bytesWritten;
            }
          },
          truncate: (bytes: number) => ftruncateAsync(fd, bytes),
          truncateSync: (bytes: number) => ftruncateSync(fd, bytes),
          flush: () => fdatasyncAsync(fd),
          flushSync: () => fdatasyncSync(fd),
        }
      : {}),
    close: () => closeSync(fd),
  };
}

registerBacking(FILE_KIND, (data) => {
  const { path, writable } = JSON.parse(String(data)) as { path: string; writable: boolean };
  return open(path, writable);
});

/**
 * A backing for a file of the operating system. Its size is taken now: a file that shrinks gives BusError where it has
 * no bytes any more, and changes made behind Bifolio's back are seen only in pages that are not cached yet.
 * Every agent that touches the file must have imported `bifolio/node`.
 * Errors: ENOENT, EACCES, EISDIR, EINVAL for what is not a regular file, EIO.
 */
export function fileBacking(path: string, options: { writable?: boolean } = {}): Backing {
  return open(resolve(path), options.writable ?? false);
}
