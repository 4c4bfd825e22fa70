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
import {
  itFirst,
  itLast,
  itNext,
  itStart,
  PG_ANON,
  PG_REFERENCED,
  PG_UNUSED,
  PG_UPTODATE,
  ZERO_PFN,
} from "../memory/index.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import { type Backing, openDescriptor } from "./backing.ts";
import {
  BACKING_DESCRIPTOR,
  type File,
  FL_DESCRIPTOR,
  FL_DESCRIPTOR_BYTES,
  FL_ID,
  FL_KIND,
  FL_LOCK,
  FL_PAGES,
  FL_ROOT,
  FL_SIZE,
  FL_STATE,
  FL_VMAS,
  FL_WRITABLE,
  FILE_LIVE,
  FILE_RESIZABLE,
  FILE_WRITABLE,
  type Pte,
  spUsersAt,
  type Space,
  VM_LOCKED,
  VM_SHARED,
  VMA_FILE_NODE,
  VMA_FLAGS,
  VMA_SPACE,
  type Vma,
} from "./layout.ts";
import type { Mm } from "./mm.ts";
import { pfnOfPte } from "./pte.ts";
import { radixFind } from "./radix.ts";

/** A file as the inner functions of the row see it. */
export class FileCore {
  readonly mm: Mm;
  readonly slot: File;
  readonly id: number;
  readonly root: number;
  readonly kind: number;
  readonly writable: boolean;
  /** Only together with `writable`. */
  readonly resizable: boolean;
  readonly name: string;

  constructor(mm: Mm, slot: File, name: string) {
    const w = mm.agent.words;
    this.mm = mm;
    this.slot = slot;
    this.id = Atomics.load(w, slot + FL_ID);
    this.root = Atomics.load(w, slot + FL_ROOT);
    this.kind = Atomics.load(w, slot + FL_KIND);
    this.writable = (Atomics.load(w, slot + FL_WRITABLE) & FILE_WRITABLE) !== 0;
    this.resizable = (Atomics.load(w, slot + FL_WRITABLE) & FILE_RESIZABLE) !== 0;
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
  readonly shared: boolean;
  /** By mlock: reclaim leaves it alone. */
  readonly locked: boolean;
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
    const flags = Atomics.load(w, vma + VMA_FLAGS);
    found.push({
      space,
      vpn,
      index: first,
      pages: Math.min(index + pages, vmaEnd) - first,
      shared: (flags & VM_SHARED) !== 0,
      locked: (flags & VM_LOCKED) !== 0,
    });
    Atomics.add(w, spUsersAt(space, mm.maxAgents, agent.slot), 1);
  }
  unlockSpin(agent, file.slot + FL_LOCK);
  return found;
}

// ---- pages ----------------------------------------------------------------------------------------------------------

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

/** Takes a locked page out of the cache and gives its reference back. Preconditions: not mapped. */
export function dropLockedPage(file: FileCore, index: number, pfn: number): void {
  const { frames, agent } = file.mm;
  const entry = file.entryOf(index);
  Atomics.sub(agent.words, file.slot + FL_PAGES, 1);
  // From here on the file may go: see destroyOp().
  Atomics.store(agent.words, entry, 0);
  frames.setMapping(pfn, 0, 0);
  frames.unlockFolio(pfn);
  frames.put(pfn);
}

/** True for a valid entry that maps a page of a file: neither a private copy nor the zero page. */
export function mapsFilePage(mm: Mm, pte: number): boolean {
  const pfn = pfnOfPte(pte);
  return pfn !== ZERO_PFN && (mm.frames.flags(pfn) & PG_ANON) === 0;
}

/** A page that was allocated ahead is one as any other from now on. */
export const markUsed = (file: FileCore, pfn: number): void => {
  if ((file.mm.frames.flags(pfn) & PG_UNUSED) !== 0) file.mm.frames.clearFlags(pfn, PG_UNUSED);
};

/** Marks a page used other than through a page table. */
export const markReferenced = (file: FileCore, pfn: number): void => {
  if ((file.mm.frames.flags(pfn) & PG_REFERENCED) === 0) file.mm.frames.setFlags(pfn, PG_REFERENCED);
};
