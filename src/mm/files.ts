/**
 * Files: opening, the record, reading and writing through the cache, closing. Linux: struct file, shmem.
 *
 * A file lives while it has users: open handles and vmas. The last one gone, its pages leave the cache.
 */
import { MmError } from "../errors.ts";
import { PG_DIRTY, PG_UPTODATE } from "../memory/index.ts";
import { type Op, runAsync, start } from "../sched/index.ts";
import { type Backing, MEMORY_KIND } from "./backing.ts";
import {
  BACKING_DESCRIPTOR,
  BACKING_MEMORY,
  BACKING_SERVED,
  type File,
  FILE_FREE,
  FILE_LIVE,
  FL_DESCRIPTOR,
  FL_DESCRIPTOR_BYTES,
  FL_ID,
  FL_KIND,
  FL_OPENER,
  FL_ROOT,
  FL_SIZE,
  FL_STATE,
  FL_USERS,
  FL_WORDS,
  FL_WRITABLE,
} from "./layout.ts";
import type { Mm } from "./mm.ts";
import { dropLockedPage, fileAt, type FileCore, markReferenced, tryGetPage } from "./pageCache.ts";
import { getPageOp } from "./pageIn.ts";
import { syncFileOp } from "./writeback.ts";
import { createRadix, destroyRadix, INDEX_END, radixStretches } from "./radix.ts";

function createFile(mm: Mm, size: number, kind: number, writable: boolean): File {
  if (!Number.isSafeInteger(size) || size < 0 || size > INDEX_END * mm.pageSize) {
    throw new MmError(
      "EOVERFLOW",
      "openFile",
      `a file of ${size} bytes cannot be mapped with pages of ${mm.pageSize}`,
    );
  }
  const { agent } = mm;
  const w = agent.words;
  const file = mm.alloc(FL_WORDS, "openFile") as File;
  const root = createRadix(agent, mm.heap);
  if (root === 0) {
    mm.free(file, FL_WORDS);
    throw new MmError("ENOMEM", "openFile", "the arena is full; create the memory with a larger arena");
  }
  Atomics.store(w, file + FL_ID, mm.nextId());
  Atomics.store(w, file + FL_ROOT, root);
  Atomics.store(w, file + FL_KIND, kind);
  Atomics.store(w, file + FL_OPENER, agent.ownerId);
  Atomics.store(w, file + FL_WRITABLE, writable ? 1 : 0);
  agent.doubles[(file + FL_SIZE) >> 1] = size;
  Atomics.store(w, file + FL_STATE, FILE_LIVE);
  mm.linkFile(file);
  return file;
}

/** A file of zeros that lives in frames, without a handle: what shared anonymous memory maps. */
export function createMemoryFile(mm: Mm, size: number): FileCore {
  return fileAt(mm, createFile(mm, size, BACKING_MEMORY, true));
}

/** Makes the page cache object of a backing, with one user. */
export function openBacking(mm: Mm, backing: Backing, writable: boolean): File {
  const { agent } = mm;
  const { descriptor } = backing;
  const kind =
    descriptor?.kind === MEMORY_KIND ? BACKING_MEMORY : descriptor ? BACKING_DESCRIPTOR : BACKING_SERVED;
  const file = createFile(mm, backing.size, kind, writable);
  if (kind !== BACKING_MEMORY) mm.backings.set(file, backing);
  if (kind === BACKING_DESCRIPTOR) {
    const text = new TextEncoder().encode(JSON.stringify(descriptor));
    const at = mm.alloc(Math.ceil(text.length / 4) + 1, "openFile");
    agent.bytes.set(text, at * 4);
    Atomics.store(agent.words, file + FL_DESCRIPTOR, at);
    Atomics.store(agent.words, file + FL_DESCRIPTOR_BYTES, text.length);
  }
  Atomics.add(agent.words, file + FL_USERS, 1);
  return file;
}

/**
 * Frees a file that nobody uses any more; what is dirty is written first. Runs by itself: its caller need not wait, and
 * could not, as it may be the end of an operation that must not fail.
 */
export function destroyIfUnused(mm: Mm, slot: File): void {
  if (Atomics.load(mm.agent.words, slot + FL_USERS) !== 0) return;
  if (Atomics.compareExchange(mm.agent.words, slot + FL_STATE, FILE_LIVE, FILE_FREE) !== FILE_LIVE) return;
  const file = fileAt(mm, slot);
  start(mm.agent, destroyOp(file), (outcome) => {
    if ("error" in outcome) {
      mm.agent.report(
        new MmError("EIO", "close", `closing file ${file.id} failed`, { cause: outcome.error }),
      );
    }
  });
}

function* destroyOp(file: FileCore): Op<void> {
  const { mm, slot } = file;
  const { agent, frames } = mm;
  const w = agent.words;
  if (file.writable) yield* syncFileOp(file, 0, file.pages);
  mm.unlinkFile(slot);
  const indices: number[] = [];
  radixStretches(w, file.root, 0, INDEX_END, (entry, index, count) => {
    for (let k = 0; k < count; k++) if (Atomics.load(w, entry + k) !== 0) indices.push(index + k);
  });
  for (const index of indices) {
    const pfn = file.frameOf(index);
    if (pfn === 0 || !frames.tryGet(pfn)) continue; // reclaim was faster
    if (file.frameOf(index) === pfn) {
      yield* frames.lockFolioOp(pfn);
      if (file.frameOf(index) === pfn) dropLockedPage(file, index, pfn);
      else frames.unlockFolio(pfn);
    }
    frames.put(pfn);
  }
  const descriptor = Atomics.load(w, slot + FL_DESCRIPTOR);
  if (descriptor !== 0) mm.free(descriptor, Math.ceil(Atomics.load(w, slot + FL_DESCRIPTOR_BYTES) / 4) + 1);
  destroyRadix(agent, mm.heap, file.root);
  mm.files.delete(slot);
  const backing = mm.backings.get(slot);
  mm.backings.delete(slot);
  mm.free(slot, FL_WORDS);
  backing?.close?.();
}

function checkOffset(file: FileCore, operation: string, offset: number): void {
  file.mm.agent.checkUsable(operation);
  if (!file.live) throw new MmError("ESRCH", operation, "the file has been closed");
  if (!Number.isSafeInteger(offset) || offset < 0) {
    throw new MmError("EINVAL", operation, "offset must be a whole number of bytes, not negative");
  }
}

/** Copies file bytes to or from a buffer through the cache; returns how many. Linux: pread(), pwrite(). */
export function* transferFileOp(
  file: FileCore,
  operation: "read" | "write",
  offset: number,
  bytes: Uint8Array,
): Op<number> {
  checkOffset(file, operation, offset);
  const { mm } = file;
  const { frames, pageSize } = mm;
  if (operation === "write" && !file.writable)
    throw new MmError("EACCES", "write", "the file was opened read-only");
  const end = Math.min(file.size, offset + bytes.length);
  if (operation === "write" && offset + bytes.length > file.size) {
    throw new MmError("ENOTSUP", "write", "this version does not extend files");
  }
  let done = 0;
  while (offset + done < end) {
    const at = offset + done;
    const index = Math.floor(at / pageSize);
    const within = at - index * pageSize;
    const n = Math.min(pageSize - within, end - at);
    const pfn = tryGetPage(file, index) || (yield* getPageOp(file, index, at));
    try {
      const frame = frames.bytesOf(pfn);
      if (operation === "read") {
        markReferenced(file, pfn);
        bytes.set(frame.subarray(within, within + n), done);
      } else {
        yield* frames.lockFolioOp(pfn);
        frame.set(bytes.subarray(done, done + n), within);
        frames.setFlags(pfn, PG_DIRTY | PG_UPTODATE);
        frames.unlockFolio(pfn);
      }
    } finally {
      frames.put(pfn);
    }
    done += n;
  }
  return done;
}

/** A file as users see it: the page cache object of a backing. */
export class MappedFile {
  readonly id: number;
  readonly name: string;
  /** @internal */
  readonly core: FileCore;
  #closed = false;
  readonly #onClose: (kind: number) => void;

  /** @internal */
  constructor(core: FileCore, name: string, onClose: (kind: number) => void) {
    this.core = core;
    this.id = core.id;
    this.name = name;
    this.#onClose = onClose;
  }

  /** Bytes. */
  get size(): number {
    return this.core.size;
  }

  /** Reads bytes at `offset` through the page cache; returns how many, fewer only at the end of the file. May wait. Errors: EIO, ENOMEM, ESRCH. */
  read(offset: number, into: Uint8Array): Promise<number> {
    return runAsync(this.core.mm.agent, transferFileOp(this.core, "read", offset, into));
  }

  /** Writes bytes at `offset` through the page cache, seen at once by every mapping. May wait. Errors: EACCES, ENOTSUP beyond the end, EIO, ENOMEM. */
  write(offset: number, from: Uint8Array): Promise<number> {
    return runAsync(this.core.mm.agent, transferFileOp(this.core, "write", offset, from));
  }

  /**
   * Writes dirty pages back and flushes the backing; everything stored before the call is written. May wait.
   * Errors: EIO if this or an earlier write-back failed, once; the pages stay dirty. Linux: fsync().
   */
  sync(): Promise<void> {
    return runAsync(this.core.mm.agent, this.syncOp());
  }

  /** @internal */
  *syncOp(): Op<void> {
    checkOffset(this.core, "sync", 0);
    yield* syncFileOp(this.core, 0, this.core.pages);
  }

  /** Gives this handle up, after a sync of a writable file. Mappings stay; with the last of them the file goes. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    try {
      if (this.core.live && this.core.writable) await this.sync();
    } finally {
      if (this.core.live) {
        Atomics.sub(this.core.mm.agent.words, this.core.slot + FL_USERS, 1);
        destroyIfUnused(this.core.mm, this.core.slot);
      }
      this.#onClose(this.core.kind);
    }
  }
}
