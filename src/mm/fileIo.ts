/**
 * Moving pages between frames and backings: by this agent's own instance, or by the agent that opened the file.
 * Linux: the address_space_operations of a filesystem.
 *
 * Preconditions of everything here: the folio locks of the pages are held.
 */
import { isMmError, MmError } from "../errors.ts";
import { PG_DIRTY, PG_ERROR, PG_RECLAIM } from "../memory/index.ts";
import {
  type HostEffect,
  type Message,
  MSG_ARG0,
  MSG_ARG1,
  MSG_ARG2,
  MSG_ARG3,
  MSG_RESULT,
  type Op,
  ownerGone,
} from "../sched/index.ts";
import { askOp } from "./ask.ts";
import { type Backing } from "./backing.ts";
import {
  CT_WRITEBACKS,
  type File,
  FL_ERROR,
  FL_OPENER,
  MESSAGE_FLUSH,
  MESSAGE_READ,
  MESSAGE_TRUNCATE,
  MESSAGE_WRITE,
} from "./layout.ts";
import type { Mm } from "./mm.ts";
import { type FileCore, fileAt } from "./pageCache.ts";

export const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** True for what a driver says of a wait that it cannot do, which is no failure of the backing. */
export const isRefusal = (error: unknown): boolean =>
  isMmError(error, "EAGAIN") || isMmError(error, "EDEADLK") || isMmError(error, "EOWNERDEAD");

/** Pages of a file that lie together in the file and in memory. */
export interface Piece {
  readonly index: number;
  readonly pfn: number;
  readonly pages: number;
}

/** Pieces, by ascending index. */
export class Pieces {
  readonly list: Piece[] = [];
  #end = -1;
  #endPfn = -1;

  /** Adds a page behind those that are there. */
  add(file: FileCore, index: number, pfn: number): void {
    const last = this.list.at(-1) as { pages: number } | undefined;
    const joins = index === this.#end && pfn === this.#endPfn && file.mm.frames.adjacent(pfn - 1, pfn);
    if (joins) last!.pages++;
    else this.list.push({ index, pfn, pages: 1 });
    this.#end = index + 1;
    this.#endPfn = pfn + 1;
  }

  /** Calls `visit` for each page, in order. */
  forEach(visit: (index: number, pfn: number) => void): void {
    for (const { index, pfn, pages } of this.list) {
      for (let k = 0; k < pages; k++) visit(index + k, pfn + k);
    }
  }
}

/** Reads or writes locked frames. Returns the pages that the backing no longer has. */
export function* transferOp(file: FileCore, pieces: Pieces, kind: number): Op<ReadonlySet<number>> {
  const backing = file.backing();
  let missing: Set<number> | undefined;
  for (const piece of pieces.list) {
    let done = 0;
    if (backing) {
      yield hostTransfer(file, backing, piece, kind, (bytes) => (done = bytes));
    } else done = yield* askOpenerOp(file, piece, kind);
    const short = kind === MESSAGE_READ && done < piece.pages * file.mm.pageSize;
    if (short) noteRead(file, piece, done, (missing ??= new Set()));
  }
  return missing ?? NONE_MISSING;
}

export const NONE_MISSING: ReadonlySet<number> = new Set();

/** Zeroes what a read did not fill, and notes pages that the backing does not have. */
function noteRead(file: FileCore, piece: Piece, bytes: number, missing: Set<number>): void {
  const { frames, pageSize } = file.mm;
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
    return {
      kind: "host",
      what: `a read of file ${file.id}`,
      sync: backing.readSync && ((): void => done(backing.readSync!(offset, bytes))),
      start: async () => done(await backing.read(offset, bytes)),
    };
  }
  return {
    kind: "host",
    what: `a write to file ${file.id}`,
    sync:
      backing.writeSync &&
      ((): void => {
        backing.writeSync!(offset, bytes);
        done(length);
      }),
    start: async () => {
      if (!backing.write) throw new MmError("EACCES", "write", "this backing cannot be written");
      await backing.write(offset, bytes);
      done(length);
    },
  };
}

/** What a sync flushes after its writes, undefined if the backing has nothing of the kind. */
function hostFlush(file: FileCore, backing: Backing): HostEffect | undefined {
  if (!backing.flush && !backing.flushSync) return undefined;
  return {
    kind: "host",
    what: `a flush of file ${file.id}`,
    sync: backing.flushSync && ((): void => backing.flushSync!()),
    start: () => backing.flush!(),
  };
}

/** How a backing gets the size that its file has, undefined if it cannot. */
function hostTruncate(file: FileCore, backing: Backing): HostEffect | undefined {
  if (!backing.truncate && !backing.truncateSync) return undefined;
  return {
    kind: "host",
    what: `a truncation of file ${file.id}`,
    sync: backing.truncateSync && ((): void => backing.truncateSync!(file.size)),
    start: async () => {
      await backing.truncate?.(file.size);
    },
  };
}

/** Gives the backing the size that its file has now. Errors: those of the backing, as they are. */
export function* truncateBackingOp(file: FileCore): Op<void> {
  const backing = file.backing();
  if (!backing) {
    yield* askOpenerOp(file, NO_PIECE, MESSAGE_TRUNCATE);
    return;
  }
  const effect = hostTruncate(file, backing);
  if (effect) yield effect;
}

const NO_PIECE: Piece = { index: 0, pfn: 0, pages: 0 };

/** Makes what has been written durable. Errors: those of the backing, as they are. */
export function* flushOp(file: FileCore): Op<void> {
  const backing = file.backing();
  if (!backing) {
    const { words } = file.mm.agent;
    if (ownerGone(words, Atomics.load(words, file.slot + FL_OPENER))) return; // nobody is left to do it
    yield* askOpenerOp(file, NO_PIECE, MESSAGE_FLUSH);
    return;
  }
  const effect = hostFlush(file, backing);
  if (effect) yield effect;
}

const askOpenerOp = (file: FileCore, piece: Piece, kind: number): Op<number> =>
  askOp(file.mm, {
    owner: Atomics.load(file.mm.agent.words, file.slot + FL_OPENER),
    kind,
    args: [file.slot, piece.pfn, piece.pages, piece.index],
    what: `file ${file.id}`,
    because: `opened file ${file.id} and serves it`,
  });

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
      const effect =
        kind === MESSAGE_FLUSH
          ? hostFlush(file, backing)
          : kind === MESSAGE_TRUNCATE
            ? hostTruncate(file, backing)
            : hostTransfer(file, backing, piece, kind, (bytes) => Atomics.store(w, m + MSG_RESULT, bytes));
      start(
        (function* (): Op<void> {
          if (effect) yield { ...effect, owed: true };
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
  agent.handle(MESSAGE_FLUSH, serve(MESSAGE_FLUSH));
  agent.handle(MESSAGE_TRUNCATE, serve(MESSAGE_TRUNCATE));
}

/**
 * Writes the dirty ones of these locked pages to the backing; false if that failed, and they are dirty again.
 * Errors: EAGAIN, EDEADLK where this driver cannot do it; they are dirty again.
 * Preconditions: folio locks held; no page-table entry that permits writing, acknowledged.
 */
export function* writeLockedOp(file: FileCore, pieces: Pieces): Op<boolean> {
  const { mm } = file;
  const { frames } = mm;
  const dirty = new Pieces();
  let pages = 0;
  pieces.forEach((index, pfn) => {
    if ((frames.clearFlags(pfn, PG_DIRTY) & PG_DIRTY) === 0) return;
    // What was stored behind the end goes, as in Linux: nobody finds it there when the file grows.
    const inside = file.size - index * mm.pageSize;
    if (inside > 0 && inside < mm.pageSize) frames.bytesOf(pfn).fill(0, inside);
    dirty.add(file, index, pfn);
    pages++;
  });
  if (pages === 0) return true;
  try {
    yield* transferOp(file, dirty, MESSAGE_WRITE);
    mm.count(CT_WRITEBACKS, pages);
    dirty.forEach((_index, pfn) => frames.clearFlags(pfn, PG_ERROR | PG_RECLAIM));
    return true;
  } catch (error) {
    if (isRefusal(error)) {
      dirty.forEach((_index, pfn) => frames.setFlags(pfn, PG_DIRTY));
      throw error;
    }
    dirty.forEach((_index, pfn) => frames.setFlags(pfn, PG_DIRTY | PG_ERROR));
    Atomics.store(mm.agent.words, file.slot + FL_ERROR, 1);
    mm.agent.report(new MmError("EIO", "write-back", `writing to file ${file.id} failed`, { cause: error }));
    return false;
  }
}
