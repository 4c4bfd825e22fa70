/** Files as users see them: reading and writing through the cache, changing the extent, closing. Linux: struct file. */
import { MmError } from "../errors.ts";
import { PG_DIRTY, PG_UPTODATE } from "../memory/index.ts";
import { type Op, runAsync } from "../sched/index.ts";
import { BACKING_MEMORY } from "./layout.ts";
import { unuseFile, useFile } from "./files.ts";
import { type FileCore, markReferenced, markUsed, tryGetPage } from "./pageCache.ts";
import { getPageOp } from "./pageIn.ts";
import { noteFileWrite } from "./rmap.ts";
import { allocateOp, growOp, punchHoleOp, truncateOp } from "./truncate.ts";
import { syncFileOp } from "./writeback.ts";

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
  if (operation === "write" && bytes.length > 0 && offset + bytes.length > file.size)
    yield* growOp(file, offset + bytes.length);
  const end = Math.min(file.size, offset + bytes.length);
  let done = 0;
  while (offset + done < end) {
    const at = offset + done;
    const index = Math.floor(at / pageSize);
    const within = at - index * pageSize;
    const n = Math.min(pageSize - within, end - at);
    const present = tryGetPage(file, index);
    // A hole: nobody needs a frame to read zeros.
    if (present === 0 && operation === "read" && file.kind === BACKING_MEMORY && file.frameOf(index) === 0) {
      bytes.fill(0, done, done + n);
      done += n;
      continue;
    }
    const pfn = present || (yield* getPageOp(file, index, at));
    try {
      markUsed(file, pfn);
      const frame = frames.bytesOf(pfn);
      if (operation === "read") {
        markReferenced(file, pfn);
        bytes.set(frame.subarray(within, within + n), done);
      } else {
        yield* frames.lockFolioOp(pfn);
        frame.set(bytes.subarray(done, done + n), within);
        frames.setFlags(pfn, PG_DIRTY | PG_UPTODATE);
        noteFileWrite(file, index);
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

  /** Writes bytes at `offset` through the page cache, seen at once by every mapping; beyond the end the file grows. May wait. Errors: EACCES, EFBIG, EIO, ENOMEM; ENOTSUP beyond the end if the backing cannot grow. */
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

  /**
   * Changes the size to `size` bytes. What goes is unmapped everywhere, private copies of it too, and an access there is
   * a BusError. May wait. Errors: EACCES, EINVAL, EFBIG, EIO, ENOTSUP if the backing has no truncate(). Linux: ftruncate().
   */
  truncate(size: number): Promise<void> {
    return runAsync(
      this.core.mm.agent,
      this.useOp("truncate", () => truncateOp(this.core, size)),
    );
  }

  /**
   * Makes `length` bytes from `offset` zero; whole pages are unmapped and given up, private copies stay. The size stays.
   * May wait. Errors: EACCES, EINVAL, EFBIG. Linux: fallocate(FALLOC_FL_PUNCH_HOLE).
   */
  punchHole(offset: number, length: number): Promise<void> {
    return runAsync(
      this.core.mm.agent,
      this.useOp("punchHole", () => punchHoleOp(this.core, offset, length)),
    );
  }

  /**
   * Makes room for `length` bytes from `offset`; the file grows so far unless `keepSize`. May wait. Errors: EACCES, EINVAL,
   * EFBIG, ENOMEM, ENOTSUP. Linux: fallocate().
   */
  allocate(offset: number, length: number, options: { readonly keepSize?: boolean } = {}): Promise<void> {
    return runAsync(
      this.core.mm.agent,
      this.useOp("allocate", () => allocateOp(this.core, offset, length, options.keepSize ?? false)),
    );
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
