/** A file of reproducible noise that is gone when the process ends, however it ends. */
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const CHUNK_BYTES = 4 * 1024 ** 2;

/** Makes the file, and reads as much into the page cache of the operating system as writing it does. Returns its path. */
export function temporaryFile(bytes) {
  const folder = mkdtempSync(join(tmpdir(), "bifolio-bench-"));
  const remove = () => rmSync(folder, { recursive: true, force: true });
  process.once("exit", remove);
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));
  const path = join(folder, "noise.bin");
  const fd = openSync(path, "wx");
  const chunk = new Int32Array(CHUNK_BYTES / 4);
  let state = 1;
  for (let written = 0; written < bytes; written += CHUNK_BYTES) {
    for (let n = 0; n < chunk.length; n++) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      chunk[n] = state;
    }
    writeSync(fd, new Uint8Array(chunk.buffer), 0, Math.min(CHUNK_BYTES, bytes - written));
  }
  closeSync(fd);
  return path;
}
