/**
 * The records of files: opening, users, the end. Linux: struct inode.
 *
 * A file lives while it has users: open handles, vmas, operations under way. The last one gone, its pages leave the cache.
 */
import { arenaFull, MmError } from "../errors.ts";
import { type Op, runAsync } from "../sched/index.ts";
import { type Backing, MEMORY_KIND } from "./backing.ts";
import {
  BACKING_DESCRIPTOR,
  BACKING_MEMORY,
  BACKING_SERVED,
  type File,
  FILE_LIVE,
  FILE_RESIZABLE,
  FILE_WRITABLE,
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
import { fileAt, type FileCore } from "./pageCache.ts";
import { syncFileOp } from "./writeback.ts";
import { createRadix, destroyRadix, INDEX_END } from "./radix.ts";
import { dropPagesOp } from "./removal.ts";

function createFile(mm: Mm, size: number, kind: number, rights: number): File {
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
    throw arenaFull("openFile");
  }
  Atomics.store(w, file + FL_ID, mm.nextId());
  Atomics.store(w, file + FL_ROOT, root);
  Atomics.store(w, file + FL_KIND, kind);
  Atomics.store(w, file + FL_OPENER, agent.ownerId);
  Atomics.store(w, file + FL_WRITABLE, rights);
  Atomics.store(w, file + FL_USERS, 1);
  agent.doubles[(file + FL_SIZE) >> 1] = size;
  Atomics.store(w, file + FL_STATE, FILE_LIVE);
  mm.linkFile(file);
  return file;
}

/** A file of zeros that lives in frames, without a handle, with one user: what shared anonymous memory maps. */
export function createMemoryFile(mm: Mm, size: number): FileCore {
  return fileAt(mm, createFile(mm, size, BACKING_MEMORY, FILE_WRITABLE | FILE_RESIZABLE));
}

/** Makes the page cache object of a backing, with one user. */
export function openBacking(mm: Mm, backing: Backing, writable: boolean): File {
  const { agent } = mm;
  const { descriptor } = backing;
  const kind =
    descriptor?.kind === MEMORY_KIND ? BACKING_MEMORY : descriptor ? BACKING_DESCRIPTOR : BACKING_SERVED;
  const text = kind === BACKING_DESCRIPTOR ? new TextEncoder().encode(JSON.stringify(descriptor)) : undefined;
  const at = text ? mm.alloc(descriptorWords(text.length), "openFile") : 0;
  const resizable =
    kind === BACKING_MEMORY || backing.truncate !== undefined || backing.truncateSync !== undefined;
  const rights = writable ? FILE_WRITABLE | (resizable ? FILE_RESIZABLE : 0) : 0;
  let file: File;
  try {
    file = createFile(mm, backing.size, kind, rights);
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
  const { agent } = mm;
  const w = agent.words;
  try {
    if (file.writable) yield* syncFileOp(file, 0, file.pages);
  } catch (error) {
    // Nobody can try again: what could not be written is lost, and said to be.
    reportClose(file, error);
  }
  mm.unlinkFile(slot);
  yield* dropPagesOp(file, 0, INDEX_END);
  const descriptor = Atomics.load(w, slot + FL_DESCRIPTOR);
  if (descriptor !== 0) mm.free(descriptor, descriptorWords(Atomics.load(w, slot + FL_DESCRIPTOR_BYTES)));
  destroyRadix(agent, mm.heap, file.root);
  mm.files.delete(slot);
  const backing = mm.backings.get(slot);
  mm.backings.delete(slot);
  mm.free(slot, FL_WORDS);
  backing?.close?.();
}
