/**
 * The page cache: which frame holds which page of which file, and reading pages in and writing them out.
 * Linux: mm/filemap.c, mm/readahead.c, mm/page-writeback.c.
 *
 * Invariants
 *   C1  An entry of a file's radix tree is 0 or frame + 1; the frame has this file and index and a reference for it.
 *   C2  The entry and the frame's place change under the folio lock. A frame whose contents are not there yet is locked.
 *   C3  A frame is mapped, or an entry made to point to it, only under its folio lock and while it is up to date.
 *
 * A page under I/O is a locked folio. That is the one lock held across a wait for the host: whoever waits for it waits
 * for the I/O. An agent that blocks on a page which its own event loop is reading gets EDEADLK.
 *
 * Lock order: folio lock > file lock (spin, never held across a call out).
 */
import { BusError, MmError } from "../errors.ts";
import {
  itFirst,
  itLast,
  itNext,
  itStart,
  PG_DIRTY,
  PG_ERROR,
  PG_REFERENCED,
  PG_UPTODATE,
} from "../memory/index.ts";
import {
  type HostEffect,
  type Message,
  MSG_ARG0,
  MSG_ARG1,
  MSG_ARG2,
  MSG_ARG3,
  MSG_RESULT,
  MSG_TEXT_LENGTH,
  type Op,
  ownerGone,
  slotOfOwner,
  waitOp,
} from "../sched/index.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import { type Backing, openDescriptor } from "./backing.ts";
import {
  BACKING_DESCRIPTOR,
  BACKING_MEMORY,
  CT_MAJOR,
  CT_WRITEBACKS,
  type File,
  FL_DESCRIPTOR,
  FL_DESCRIPTOR_BYTES,
  FL_ERROR,
  FL_ID,
  FL_KIND,
  FL_LOCK,
  FL_OPENER,
  FL_PAGES,
  FL_ROOT,
  FL_SIZE,
  FL_STATE,
  FL_VMAS,
  FL_WRITABLE,
  FILE_LIVE,
  MESSAGE_READ,
  MESSAGE_WRITE,
  type Pte,
  SP_USERS,
  type Space,
  VMA_FILE_NODE,
  VMA_SPACE,
  type Vma,
} from "./layout.ts";
import type { Mm } from "./mm.ts";
import { allocFrameOp } from "./reclaim.ts";
import { radixEnsure, radixFind, radixStretches } from "./radix.ts";
import { cleanPagesOp } from "./rmap.ts";

/** A file as the inner functions of the row see it. */
export class FileCore {
  readonly mm: Mm;
  readonly slot: File;
  readonly id: number;
  readonly root: number;
  readonly kind: number;
  readonly writable: boolean;
  readonly name: string;

  constructor(mm: Mm, slot: File, name: string) {
    const w = mm.agent.words;
    this.mm = mm;
    this.slot = slot;
    this.id = Atomics.load(w, slot + FL_ID);
    this.root = Atomics.load(w, slot + FL_ROOT);
    this.kind = Atomics.load(w, slot + FL_KIND);
    this.writable = Atomics.load(w, slot + FL_WRITABLE) === 1;
    this.name = name;
  }

  get live(): boolean {
    const w = this.mm.agent.words;
    return (
      Atomics.load(w, this.slot + FL_STATE) === FILE_LIVE && Atomics.load(w, this.slot + FL_ID) === this.id
    );
  }

  /** Bytes. */
  get size(): number {
    return this.mm.agent.doubles[(this.slot + FL_SIZE) >> 1]!;
  }

  get pages(): number {
    return Math.ceil(this.size / this.mm.pageSize);
  }

  /** Frames of this file in the cache. */
  get cachedPages(): number {
    return Atomics.load(this.mm.agent.words, this.slot + FL_PAGES);
  }

  /** The cache's entry of a page, or 0 if no table covers it. */
  entryOf(index: number): Pte {
    return radixFind(this.mm.agent.words, this.root, index);
  }

  /** Frame that holds a page, 0 if none does. A hint, unless a reference is taken and the entry read again. */
  frameOf(index: number): number {
    const entry = this.entryOf(index);
    return entry === 0 ? 0 : Math.max(0, Atomics.load(this.mm.agent.words, entry) - 1);
  }

  /** This agent's instance of the backing; undefined if another agent serves it. */
  backing(): Backing | undefined {
    const known = this.mm.backings.get(this.slot);
    if (known || this.kind !== BACKING_DESCRIPTOR) return known;
    const w = this.mm.agent.words;
    const at = Atomics.load(w, this.slot + FL_DESCRIPTOR) * 4;
    const text = new TextDecoder().decode(
      this.mm.agent.bytes.slice(at, at + Atomics.load(w, this.slot + FL_DESCRIPTOR_BYTES)),
    );
    const descriptor = JSON.parse(text) as { kind: string; data: string | number };
    const opened = openDescriptor(descriptor.kind, descriptor.data);
    this.mm.backings.set(this.slot, opened);
    return opened;
  }
}

/** The file of a record, as this agent knows it. */
export function fileAt(mm: Mm, slot: File): FileCore {
  let file = mm.files.get(slot);
  if (!file || file.id !== Atomics.load(mm.agent.words, slot + FL_ID)) {
    file = new FileCore(mm, slot, "");
    mm.files.set(slot, file);
    // The record belonged to a file that is gone; so does the instance of its backing.
    mm.backings.get(slot)?.close?.();
    mm.backings.delete(slot);
  }
  return file;
}

// ---- where a file is mapped -----------------------------------------------------------------------------------------

/** A stretch of a space where pages of a file may be mapped. */
export interface FileMapping {
  readonly space: Space;
  /** First virtual page, the file page that it stands for, how many. */
  readonly vpn: number;
  readonly index: number;
  readonly pages: number;
}

/**
 * Where pages `[index, index + pages)` of a file may be mapped now. Holds a use of each space until releaseMappings().
 * Preconditions: the folio locks of the pages, so that no new mapping of them appears.
 */
export function mappingsOf(file: FileCore, index: number, pages: number): FileMapping[] {
  const { mm } = file;
  const { agent, pageSize } = mm;
  const w = agent.words;
  const found: FileMapping[] = [];
  const start = index * pageSize;
  const last = (index + pages) * pageSize - 1;
  lockSpin(agent, file.slot + FL_LOCK);
  const root = file.slot + FL_VMAS;
  for (let node = itFirst(agent, root, start, last); node !== 0; node = itNext(agent, node, start, last)) {
    const vma = (node - VMA_FILE_NODE) as Vma;
    const space = Atomics.load(w, vma + VMA_SPACE) as Space;
    const vmaIndex = itStart(agent, node) / pageSize;
    const vmaEnd = (itLast(agent, node) + 1) / pageSize;
    const first = Math.max(index, vmaIndex);
    // The vma's first node is keyed by address; it does not move while the vma is in a file's tree.
    const vpn = itStart(agent, vma) / pageSize + (first - vmaIndex);
    found.push({ space, vpn, index: first, pages: Math.min(index + pages, vmaEnd) - first });
    Atomics.add(w, space + SP_USERS, 1);
  }
  unlockSpin(agent, file.slot + FL_LOCK);
  return found;
}

// ---- finding and reading pages ------------------------------------------------------------------------------------

/** A frame of the cache with a reference, if it is there, up to date and not locked; else 0. Never waits. */
export function tryGetPage(file: FileCore, index: number): number {
  const { frames, agent } = file.mm;
  const entry = file.entryOf(index);
  if (entry === 0) return 0;
  const value = Atomics.load(agent.words, entry);
  if (value === 0 || !frames.tryGet(value - 1)) return 0;
  if (Atomics.load(agent.words, entry) === value && (frames.flags(value - 1) & PG_UPTODATE) !== 0)
    return value - 1;
  frames.put(value - 1);
  return 0;
}

/**
 * The frame of a page, up to date, with a reference that the caller gives back. Reads it in if need be.
 * Errors: BusError beyond the end of the file or where the backing fails, ENOMEM.
 */
export function* getPageOp(file: FileCore, index: number, address: number): Op<number> {
  const { frames, agent } = file.mm;
  for (;;) {
    const present = tryGetPage(file, index);
    if (present !== 0) return present;
    if (index >= file.pages) throw new BusError("access", address, "the file ends before this page");
    const entry = radixEnsure(agent, file.mm.heap, file.root, index);
    if (entry === 0)
      throw new MmError("ENOMEM", "access", "the arena is full; create the memory with a larger arena");
    const value = Atomics.load(agent.words, entry);
    if (value === 0) {
      yield* readAroundOp(file, index, address);
      continue;
    }
    // Being read, reclaimed or removed by somebody: its lock says when that is over.
    const pfn = value - 1;
    yield* waitOp(
      frames.queueOf(pfn),
      () =>
        Atomics.load(agent.words, entry) !== value ||
        !frames.isLocked(pfn) ||
        (frames.flags(pfn) & PG_UPTODATE) !== 0,
      `page ${index} of file ${file.id}`,
      () => frames.folioOwner(pfn),
    );
  }
}

/** Reads the missing pages of the cluster around `index`. */
function* readAroundOp(file: FileCore, index: number, address: number): Op<void> {
  const { mm } = file;
  const { frames } = mm;
  const window = frames.clusterFrames;
  const first = file.kind === BACKING_MEMORY ? index : Math.floor(index / window) * window;
  const end = file.kind === BACKING_MEMORY ? index + 1 : Math.min(first + window, file.pages);
  const pfns = yield* claimPagesOp(file, first, end, index);
  if (pfns.size === 0) return;
  mm.count(CT_MAJOR);
  let failure: unknown;
  let missing: ReadonlySet<number> = new Set();
  try {
    if (file.kind !== BACKING_MEMORY) missing = yield* transferOp(file, pfns, MESSAGE_READ);
  } catch (error) {
    failure = error;
  }
  for (const [at, pfn] of pfns) {
    if (failure !== undefined || missing.has(at)) dropLockedPage(file, at, pfn);
    else {
      frames.setFlags(pfn, PG_UPTODATE);
      frames.unlockFolio(pfn);
    }
  }
  if (failure !== undefined) {
    throw new BusError("access", address, `reading the file failed: ${textOf(failure)}`, failure);
  }
  if (missing.has(index))
    throw new BusError("access", address, "the file is shorter than when it was opened");
}

const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Puts locked frames into the cache for the pages of `[first, end)` that are not there; `wanted` among them if possible. */
function* claimPagesOp(file: FileCore, first: number, end: number, wanted: number): Op<Map<number, number>> {
  const { mm } = file;
  const { frames, agent } = mm;
  const claimed = new Map<number, number>();
  const whole = end - first === frames.clusterFrames && clusterIsEmpty(file, first, end);
  let cluster = whole ? frames.tryAllocCluster() : 0;
  // Only what is wanted may wait for memory; its neighbours are a bonus.
  const single = cluster === 0 ? yield* allocFrameOp(mm, file.kind === BACKING_MEMORY) : 0;
  if (single !== 0 && whole && frames.clusterFrames > 1) {
    // Reclaim may just have made a whole cluster free.
    cluster = frames.tryAllocCluster();
    if (cluster !== 0) frames.put(single);
  }
  for (let index = first; index < end; index++) {
    const entry = radixEnsure(agent, mm.heap, file.root, index);
    let pfn = cluster !== 0 ? cluster + (index - first) : index === wanted ? single : 0;
    if (pfn === 0 && entry !== 0 && Atomics.load(agent.words, entry) === 0 && file.kind !== BACKING_MEMORY) {
      pfn = frames.tryAlloc(false);
    }
    if (pfn === 0) continue;
    frames.tryLockFolio(pfn); // nobody else can find it yet
    frames.setMapping(pfn, file.slot, index);
    if (entry !== 0 && Atomics.compareExchange(agent.words, entry, 0, pfn + 1) === 0) {
      Atomics.add(agent.words, file.slot + FL_PAGES, 1);
      claimed.set(index, pfn);
    } else {
      frames.setMapping(pfn, 0, 0);
      frames.unlockFolio(pfn);
      frames.put(pfn);
    }
  }
  return claimed;
}

function clusterIsEmpty(file: FileCore, first: number, end: number): boolean {
  for (let index = first; index < end; index++) if (file.frameOf(index) !== 0) return false;
  return true;
}

/** Takes a locked page out of the cache and gives its reference back. Preconditions: not mapped. */
export function dropLockedPage(file: FileCore, index: number, pfn: number): void {
  const { frames, agent } = file.mm;
  const entry = file.entryOf(index);
  Atomics.store(agent.words, entry, 0);
  Atomics.sub(agent.words, file.slot + FL_PAGES, 1);
  frames.setMapping(pfn, 0, 0);
  frames.unlockFolio(pfn);
  frames.put(pfn);
}

// ---- I/O ----------------------------------------------------------------------------------------------------------------

interface Piece {
  readonly index: number;
  readonly pfn: number;
  readonly pages: number;
}

/** Cuts pages into pieces that lie together in the file and in memory. */
function piecesOf(file: FileCore, pfns: ReadonlyMap<number, number>): Piece[] {
  const pieces: Piece[] = [];
  for (const [index, pfn] of [...pfns].toSorted((a, b) => a[0] - b[0])) {
    const before = pieces.at(-1);
    const joins =
      before &&
      before.index + before.pages === index &&
      before.pfn + before.pages === pfn &&
      file.mm.frames.adjacent(pfn - 1, pfn);
    if (joins) pieces[pieces.length - 1] = { ...before, pages: before.pages + 1 };
    else pieces.push({ index, pfn, pages: 1 });
  }
  return pieces;
}

/** Reads or writes locked frames (page index -> frame). Returns the pages that the backing no longer has. */
function* transferOp(
  file: FileCore,
  pfns: ReadonlyMap<number, number>,
  kind: number,
): Op<ReadonlySet<number>> {
  const backing = file.backing();
  const missing = new Set<number>();
  for (const piece of piecesOf(file, pfns)) {
    let done = 0;
    if (backing) {
      yield hostTransfer(file, backing, piece, kind, (bytes) => (done = bytes));
    } else done = yield* askOpenerOp(file, piece, kind);
    if (kind === MESSAGE_READ) noteRead(file, piece, done, missing);
  }
  return missing;
}

/** Zeroes what a read did not fill, and notes pages that the backing does not have. */
function noteRead(file: FileCore, piece: Piece, bytes: number, missing: Set<number>): void {
  const { frames, pageSize } = file.mm;
  const all = piece.pages * pageSize;
  if (bytes >= all) return;
  frames.bytesOf(piece.pfn, piece.pages).fill(0, bytes);
  for (let k = Math.ceil(bytes / pageSize); k < piece.pages; k++) {
    if ((piece.index + k) * pageSize < file.size) missing.add(piece.index + k);
  }
}

/** The backing's own operation on a piece, as an effect. Also what the opener runs for others. */
function hostTransfer(
  file: FileCore,
  backing: Backing,
  piece: Piece,
  kind: number,
  done: (bytes: number) => void,
): HostEffect {
  const { frames, pageSize } = file.mm;
  const offset = piece.index * pageSize;
  const length = Math.min(piece.pages * pageSize, Math.max(0, file.size - offset));
  const bytes = frames.bytesOf(piece.pfn, piece.pages).subarray(0, length);
  if (kind === MESSAGE_READ) {
    const { readSync } = backing;
    return {
      kind: "host",
      what: `a read of file ${file.id}`,
      sync: readSync && ((): void => done(readSync.call(backing, offset, bytes))),
      start: async () => done(await backing.read(offset, bytes)),
    };
  }
  const { writeSync } = backing;
  return {
    kind: "host",
    what: `a write to file ${file.id}`,
    sync:
      writeSync &&
      ((): void => {
        writeSync.call(backing, offset, bytes);
        done(length);
      }),
    start: async () => {
      if (!backing.write) throw new MmError("EACCES", "write", "this backing cannot be written");
      await backing.write(offset, bytes);
      done(length);
    },
  };
}

function* askOpenerOp(file: FileCore, piece: Piece, kind: number): Op<number> {
  const { agent } = file.mm;
  const w = agent.words;
  const owner = Atomics.load(w, file.slot + FL_OPENER);
  const gone = (): MmError =>
    new MmError(
      "EIO",
      "access",
      `agent ${slotOfOwner(owner)}, which opened this file and served it, is gone`,
    );
  if (ownerGone(w, owner)) throw gone();
  let m = agent.tryReserveMessage(kind);
  if (m === 0) yield* waitOp(0, () => (m = agent.tryReserveMessage(kind)) !== 0, "a free message");
  Atomics.store(w, m + MSG_ARG0, file.slot);
  Atomics.store(w, m + MSG_ARG1, piece.pfn);
  Atomics.store(w, m + MSG_ARG2, piece.pages);
  Atomics.store(w, m + MSG_ARG3, piece.index);
  agent.send(slotOfOwner(owner), m, false);
  yield* waitOp(
    0,
    () => agent.messageDone(m) || ownerGone(w, owner),
    `file ${file.id}`,
    () => owner,
  );
  const text = Atomics.load(w, m + MSG_TEXT_LENGTH) > 0 ? agent.messageText(m) : "";
  const bytes = Atomics.load(w, m + MSG_RESULT);
  const done = agent.messageDone(m);
  agent.freeMessage(m);
  if (!done) throw gone();
  if (text !== "") throw new MmError("EIO", "access", text);
  return bytes;
}

/** Serves other agents' reads and writes of the files that this agent opened. */
export function serveFiles(mm: Mm, start: (op: Op<void>, settled: (error: unknown) => void) => void): void {
  const { agent } = mm;
  const w = agent.words;
  const serve =
    (kind: number) =>
    (m: Message): true => {
      const slot = Atomics.load(w, m + MSG_ARG0) as File;
      const backing = mm.backings.get(slot);
      if (!backing) throw new MmError("ESRCH", "file", "the file is not open in this agent");
      const file = fileAt(mm, slot);
      const piece: Piece = {
        pfn: Atomics.load(w, m + MSG_ARG1),
        pages: Atomics.load(w, m + MSG_ARG2),
        index: Atomics.load(w, m + MSG_ARG3),
      };
      const effect = hostTransfer(file, backing, piece, kind, (bytes) =>
        Atomics.store(w, m + MSG_RESULT, bytes),
      );
      start(
        (function* (): Op<void> {
          yield effect;
        })(),
        (error) => {
          if (error !== undefined) agent.setMessageText(m, textOf(error));
          agent.finishMessage(m);
        },
      );
      return true;
    };
  agent.handle(MESSAGE_READ, serve(MESSAGE_READ));
  agent.handle(MESSAGE_WRITE, serve(MESSAGE_WRITE));
}

// ---- writing back --------------------------------------------------------------------------------------------------------

/**
 * Writes the dirty ones of these locked pages to the backing; false if that failed, and they are dirty again.
 * Preconditions: folio locks held; no page-table entry that permits writing, acknowledged.
 */
export function* writeLockedOp(file: FileCore, pfns: ReadonlyMap<number, number>): Op<boolean> {
  const { mm } = file;
  const { frames } = mm;
  const dirty = new Map<number, number>();
  for (const [index, pfn] of pfns)
    if ((frames.clearFlags(pfn, PG_DIRTY) & PG_DIRTY) !== 0) dirty.set(index, pfn);
  if (dirty.size === 0) return true;
  try {
    yield* transferOp(file, dirty, MESSAGE_WRITE);
    mm.count(CT_WRITEBACKS, dirty.size);
    return true;
  } catch (error) {
    for (const pfn of dirty.values()) frames.setFlags(pfn, PG_DIRTY | PG_ERROR);
    Atomics.store(mm.agent.words, file.slot + FL_ERROR, 1);
    mm.agent.report(new MmError("EIO", "write-back", `writing to file ${file.id} failed`, { cause: error }));
    return false;
  }
}

/**
 * Writes every dirty page of `[first, end)` to the backing and flushes it. What was stored before it began is written.
 * Errors: EIO if this or an earlier write-back failed; reported once.
 */
export function* syncFileOp(file: FileCore, first: number, end: number): Op<void> {
  const { frames, agent } = file.mm;
  const w = agent.words;
  if (file.kind === BACKING_MEMORY) return;
  const dirty: number[] = [];
  radixStretches(w, file.root, first, end, (entry, index, count) => {
    for (let k = 0; k < count; k++) {
      const pfn = Atomics.load(w, entry + k) - 1;
      if (pfn > 0 && (frames.flags(pfn) & PG_DIRTY) !== 0) dirty.push(index + k);
    }
  });
  const window = frames.clusterFrames;
  for (let k = 0; k < dirty.length;) {
    let n = 1;
    while (k + n < dirty.length && n < window && dirty[k + n] === dirty[k]! + n) n++;
    yield* syncRunOp(file, dirty[k]!, n);
    k += n;
  }
  const backing = file.backing();
  if (file.writable && backing?.flush) {
    const { flush, flushSync } = backing;
    yield {
      kind: "host",
      what: `a flush of file ${file.id}`,
      sync: flushSync && ((): void => flushSync.call(backing)),
      start: () => flush.call(backing),
    };
  }
  if (Atomics.exchange(w, file.slot + FL_ERROR, 0) !== 0) {
    throw new MmError("EIO", "sync", `writing to file ${file.id} failed; the pages stay dirty and in memory`);
  }
}

/** Cleans and writes a run of pages. */
function* syncRunOp(file: FileCore, index: number, pages: number): Op<void> {
  const { frames } = file.mm;
  const locked = new Map<number, number>();
  try {
    for (let k = 0; k < pages; k++) {
      const pfn = tryGetPage(file, index + k);
      if (pfn === 0) continue;
      try {
        // Only the first is waited for: two agents that each hold half of a run would wait for each other.
        if (locked.size === 0) yield* frames.lockFolioOp(pfn);
        else if (!frames.tryLockFolio(pfn)) {
          frames.put(pfn);
          break;
        }
      } catch (error) {
        frames.put(pfn);
        throw error;
      }
      locked.set(index + k, pfn);
    }
    yield* cleanPagesOp(file, index, pages);
    yield* writeLockedOp(file, locked);
  } finally {
    for (const pfn of locked.values()) {
      frames.unlockFolio(pfn);
      frames.put(pfn);
    }
  }
  if (locked.size < pages) {
    const rest = index + Math.max(1, locked.size);
    if (rest < index + pages) yield* syncRunOp(file, rest, index + pages - rest);
  }
}

/** Marks a page used other than through a page table. */
export const markReferenced = (file: FileCore, pfn: number): void => {
  if ((file.mm.frames.flags(pfn) & PG_REFERENCED) === 0) file.mm.frames.setFlags(pfn, PG_REFERENCED);
};
