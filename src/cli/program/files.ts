/** The files of a program: as its `file` operations make them. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Backing, type MappedFile, memoryBacking, type PhysicalMemory } from "../../index.ts";
import { fileBacking } from "../../node.ts";
import type { FileOperation } from "./parse.ts";
import { PAGE_BYTES } from "./window.ts";

/** Page k begins with `fill + k`; the rest is zero. */
function filled(pages: number, fill: number): Uint8Array {
  const bytes = new Uint8Array(pages * PAGE_BYTES);
  const view = new DataView(bytes.buffer);
  for (let k = 0; k < pages; k++) view.setUint32(k * PAGE_BYTES, (fill + k) >>> 0, true);
  return bytes;
}

/** Bytes that nobody can change: what a memfd is that was opened again for reading. */
function readOnlyBacking(bytes: Uint8Array): Backing {
  const readSync = (offset: number, into: Uint8Array): number => {
    const part = bytes.subarray(offset, offset + into.length);
    into.set(part);
    return part.length;
  };
  return { size: bytes.length, readSync, read: async (offset, into) => readSync(offset, into) };
}

export class ProgramFiles {
  readonly byName: Map<string, MappedFile> = new Map();
  readonly #memory: PhysicalMemory;
  #folder: string | undefined;

  constructor(memory: PhysicalMemory) {
    this.#memory = memory;
  }

  async open(o: FileOperation): Promise<MappedFile> {
    const { name, pages, kind = "memfd", fill = 1, mode = "rw" } = o;
    const writable = mode === "rw";
    const bytes = fill === null ? undefined : filled(pages, fill);
    const backing = this.#backing(o, kind, writable, bytes);
    const file = await this.#memory.openFile(backing, { name, writable });
    this.byName.set(name, file);
    if (bytes) {
      if (kind === "memfd" && writable) {
        await file.write(0, bytes);
        await file.sync();
      }
      // Every page is in the page cache, clean.
      await file.read(0, new Uint8Array(bytes.length));
    }
    return file;
  }

  #backing(o: FileOperation, kind: string, writable: boolean, bytes: Uint8Array | undefined): Backing {
    if (kind === "memfd") {
      return bytes && !writable ? readOnlyBacking(bytes) : memoryBacking(o.pages * PAGE_BYTES);
    }
    this.#folder ??= mkdtempSync(join(tmpdir(), "bifolio-program-"));
    const path = join(this.#folder, `${this.byName.size}.bin`);
    writeFileSync(path, bytes ?? "");
    return fileBacking(path, { writable });
  }

  /** Removes what lies on disk. After the memory is closed. */
  remove(): void {
    if (this.#folder !== undefined) rmSync(this.#folder, { recursive: true, force: true });
  }
}
