/**
 * Files: opening, the record, reading and writing through the cache, closing. Linux: struct file, shmem.
 *
 * A file lives while it has users: open handles, vmas, operations under way. The last one gone, its pages leave the cache.
 */
import { MmError } from "../errors.ts";
import { PG_DIRTY, PG_UPTODATE } from "../memory/index.ts";
import { type Op, runAsync, waitOp } from "../sched/index.ts";
import { type Backing, MEMORY_KIND } from "./backing.ts";
import {
  BACKING_DESCRIPTOR,
  BACKING_MEMORY,
  BACKING_SERVED,
  type File,
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
  Atomics.store(w, file + FL_USERS, 1);
  agent.doubles[(file + FL_SIZE) >> 1] = size;
  Atomics.store(w, file + FL_STATE, FILE_LIVE);
  mm.linkFile(file);
  return file;
}

/** A file of zeros that lives in frames, without a handle, with one user: what shared anonymous memory maps. */
export function createMemoryFile(mm: Mm, size: number): FileCore {
  return fileAt(mm, createFile(mm, size, BACKING_MEMORY, true));
}

/** Makes the page cache object of a backing, with one user. */
export function openBacking(mm: Mm, backing: Backing, writable: boolean): File {
  const { agent } = mm;
  const { descriptor } = backing;
  const kind =
    descriptor?.kind === MEMORY_KIND ? BACKING_MEMORY : descriptor ? BACKING_DESCRIPTOR : BACKING_SERVED;
  const text = kind === BACKING_DESCRIPTOR ? new TextEncoder().encode(JSON.stringify(descriptor)) : undefined;
  const at = text ? mm.alloc(descriptorWords(text.length), "openFile") : 0;
  let file: File;
  try {
    file = createFile(mm, backing.size, kind, writable);
  } catch (error) {
    if (text) mm.free(at, descriptorWords(text.length));
    throw error;
  }
  if (text) {
    agent.bytes.set(text, at * 4);
    Atomics.store(agent.words, file + FL_DESCRIPTOR, at);
    Atomics.store(agent.words, file + FL_DESCRIPTOR_BYTES, text.length);
  }
  // First the file as this agent knows it: that drops what an earlier file of the same record left.
  fileAt(mm, file);
  if (kind !== BACKING_MEMORY) mm.backings.set(file, backing);
  return file;
}

const descriptorWords = (bytes: number): number => Math.ceil(bytes / 4) + 1;

/** Counts an operation on a file. Preconditions: it has a user already. */
export const useFile = (mm: Mm, slot: File): void => {
  Atomics.add(mm.agent.words, slot + FL_USERS, 1);
};

/**
 * Gives a use of a file back. With the last one the file goes; what is dirty is written first. That runs by itself: the
 * caller need not wait, and could not, as it may be the end of an operation that must not fail.
 */
export function unuseFile(mm: Mm, slot: File): void {
  if (!mm.unuseFile(slot)) return;
  const file = fileAt(mm, slot);
  const done = runAsync(mm.agent, destroyOp(file))
    .catch((error: unknown) => reportClose(file, error))
    .finally(() => mm.closing.delete(done));
  mm.closing.add(done);
}

function reportClose(file: FileCore, cause: unknown): void {
  file.mm.agent.report(new MmError("EIO", "close", `closing file ${file.id} failed`, { cause }));
}

function* destroyOp(file: FileCore): Op<void> {
  const { mm, slot } = file;
  const { agent, frames } = mm;
  const w = agent.words;
  try {
    if (file.writable) yield* syncFileOp(file, 0, file.pages);
  } catch (error) {
    // Nobody can try again: what could not be written is lost, and said to be.
    reportClose(file, error);
  }
  mm.unlinkFile(slot);
  const indices: number[] = [];
  radixStretches(w, file.root, 0, INDEX_END, (entry, index, count) => {
    for (let k = 0; k < count; k++) if (Atomics.load(w, entry + k) !== 0) indices.push(index + k);
  });
  for (const index of indices) {
    for (let pfn = file.frameOf(index); pfn !== 0; pfn = file.frameOf(index)) {
      if (!frames.tryGet(pfn)) {
        // Being evicted; the last that its evictor does with this file is to clear the entry.
        const evicted = pfn;
        yield* waitOp(
          frames.queueOf(pfn),
          () => file.frameOf(index) !== evicted,
          `the eviction of frame ${pfn}`,
          () => frames.folioOwner(evicted),
        );
        continue;
      }
      try {
        yield* frames.lockFolioOp(pfn);
      } catch (error) {
        frames.put(pfn);
        throw error;
      }
      if (file.frameOf(index) === pfn) dropLockedPage(file, index, pfn);
      else frames.unlockFolio(pfn);
      frames.put(pfn);
    }
  }
  const descriptor = Atomics.load(w, slot + FL_DESCRIPTOR);
  if (descriptor !== 0) mm.free(descriptor, descriptorWords(Atomics.load(w, slot + FL_DESCRIPTOR_BYTES)));
  destroyRadix(agent, mm.heap, file.root);
  mm.files.delete(slot);
  const backing = mm.backings.get(slot);
  mm.backings.delete(slot);
  mm.free(slot, FL_WORDS);
  backing?.close?.();
}

/** Copies file bytes to or from a buffer through the cache; returns how many. Linux: pread(), pwrite(). */
function* transferFileOp(
  file: FileCore,
  operation: "read" | "write",
  offset: number,
  bytes: Uint8Array,
): Op<number> {
  if (!Number.isSafeInteger(offset) || offset < 0) {
    throw new MmError("EINVAL", operation, "offset must be a whole number of bytes, not negative");
  }
  if (!(bytes instanceof Uint8Array)) throw new MmError("EINVAL", operation, "needs a Uint8Array");
  const { mm } = file;
  const { frames, pageSize } = mm;
  if (operation === "write" && !file.writable)
    throw new MmError("EACCES", "write", "the file was opened read-only");
  const end = Math.min(file.size, offset + bytes.length);
  if (operation === "write" && bytes.length > 0 && offset + bytes.length > file.size) {
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
  readonly #onClose: () => void;

  /** @internal */
  constructor(core: FileCore, name: string, onClose: () => void) {
    this.core = core;
    this.id = core.id;
    this.name = name;
    this.#onClose = onClose;
  }

  /** Bytes. */
  get size(): number {
    return this.core.size;
  }

  /** @internal Runs `body` while the file cannot go. Errors: ESRCH once this handle is closed. */
  *useOp<T>(operation: string, body: () => Op<T>): Op<T> {
    const { mm, slot } = this.core;
    mm.agent.checkUsable(operation);
    if (this.#closed) throw new MmError("ESRCH", operation, "the file has been closed");
    useFile(mm, slot);
    try {
      return yield* body();
    } finally {
      unuseFile(mm, slot);
    }
  }

  /** @internal */
  transferOp(operation: "read" | "write", offset: number, bytes: Uint8Array): Op<number> {
    return this.useOp(operation, () => transferFileOp(this.core, operation, offset, bytes));
  }

  /** Reads bytes at `offset` through the page cache; returns how many, fewer only at the end of the file. May wait. Errors: EIO, ENOMEM, ESRCH. */
  read(offset: number, into: Uint8Array): Promise<number> {
    return runAsync(this.core.mm.agent, this.transferOp("read", offset, into));
  }

  /** Writes bytes at `offset` through the page cache, seen at once by every mapping. May wait. Errors: EACCES, ENOTSUP beyond the end, EIO, ENOMEM. */
  write(offset: number, from: Uint8Array): Promise<number> {
    return runAsync(this.core.mm.agent, this.transferOp("write", offset, from));
  }

  /**
   * Writes dirty pages back and flushes the backing; everything stored before the call is written. May wait.
   * Errors: EIO if this or an earlier write-back failed, once; the pages stay dirty. Linux: fsync().
   */
  sync(): Promise<void> {
    return runAsync(this.core.mm.agent, this.syncOp());
  }

  /** @internal */
  syncOp(): Op<void> {
    return this.useOp("sync", () => syncFileOp(this.core, 0, this.core.pages));
  }

  /** Gives this handle up, after a sync of a writable file. Mappings stay; with the last of them the file goes. */
  async close(): Promise<void> {
    if (this.#closed) return;
    const synced = this.core.writable ? this.sync() : undefined;
    this.#closed = true;
    try {
      await synced;
    } finally {
      this.giveUp();
    }
  }

  /** @internal Gives the handle's use back. Once. */
  giveUp(): void {
    this.#closed = true;
    const { mm, slot } = this.core;
    this.#onClose();
    if (!mm.agent.detached) unuseFile(mm, slot);
  }
}
