/**
 * Vmas: the records, the tree by address, the trees by page of files and anon_vmas, splitting and merging. Linux: mm/vma.c.
 *
 * Everything here needs the space's mmapLock for writing, but lookups, which need it for reading. A linked vma never
 * changes its start: a split makes a new record of the upper part, a merge drops the upper one. So whoever finds a vma
 * through a tree by page can tell where it is mapped.
 *
 * VMA_PGOFF of an anonymous vma is the page number of its start, until it has pages and is moved: they keep their
 * offsets, so that it merges only where these go on.
 *
 * A vma whose extent changes goes into its trees by page anew, behind those that begin at the same page, as in Linux: who
 * walks the tree for a truncation, or to unmap a page, meets them in that order.
 */
import { addressOf } from "../units.ts";
import {
  itFind,
  itFirst,
  itInsert,
  itLast,
  itLowest,
  itNext,
  itRemove,
  itResize,
  itSet,
  itStart,
  itSuccessor,
  itUpdate,
} from "../memory/index.ts";
import { beginWrite, endWrite, lockSpin, unlockSpin } from "../sync/index.ts";
import {
  dropAnon,
  linkAnonLocked,
  lockFamily,
  resizeAnonLocked,
  unlinkAnonLocked,
  unlockFamily,
} from "./anonTree.ts";
import {
  type AnonVma,
  AV_USES,
  type File,
  FL_LOCK,
  FL_USERS,
  FL_VMAS,
  SP_SPARE_VMA,
  SP_VMA_SEQ,
  SP_VMAS,
  VM_FORK_CHILD,
  VM_MAYBE_GUARD,
  VM_PROT,
  type Vma,
  VMA_ANON,
  VMA_FILE,
  VMA_FILE_NODE,
  VMA_FLAGS,
  VMA_PGOFF,
  VMA_SPACE,
  VMA_WORDS,
} from "./layout.ts";
import { FIRST_VPN, LAST_VPN, type SpaceCore } from "./spaceCore.ts";

export const vmaStart = (space: SpaceCore, vma: Vma): number => itStart(space.agent, vma);
/** Byte after the vma. */
export const vmaEnd = (space: SpaceCore, vma: Vma): number => itLast(space.agent, vma) + 1;
/** Plain loads: these change under mmapLock for writing, and are read under it. */
export const vmaFlags = (space: SpaceCore, vma: Vma): number => space.agent.words[vma + VMA_FLAGS]!;
export const vmaFile = (space: SpaceCore, vma: Vma): File => space.agent.words[vma + VMA_FILE] as File;

/** See anonVma.ts; 0 = none. Plain: who asks has mmapLock for writing, or the lock under which faults set it. */
export const vmaAnon = (space: SpaceCore, vma: Vma): AnonVma => space.agent.words[vma + VMA_ANON]! as AnonVma;

/** Page of the file, or of the anonymous memory, that stands at a virtual page of the vma. */
export function fileIndexOf(space: SpaceCore, vma: Vma, vpn: number): number {
  const first = vmaStart(space, vma) / space.mm.pageSize;
  // Plain: constant while the vma is linked.
  return (space.agent.words[vma + VMA_PGOFF]! + (vpn - first)) | 0; // 31 bits
}

/** The vma that covers an address, or 0. */
export const findVma = (space: SpaceCore, address: number): Vma =>
  itFind(space.agent, space.slot + SP_VMAS, address) as Vma;

/** First vma that overlaps `[start, end)`, or 0. */
export const firstVma = (space: SpaceCore, start: number, end: number): Vma =>
  itFirst(space.agent, space.slot + SP_VMAS, start, end - 1) as Vma;

export const nextVma = (space: SpaceCore, vma: Vma, start: number, end: number): Vma =>
  itNext(space.agent, vma, start, end - 1) as Vma;

/** Runs a change of the tree inside its sequence count. */
export function changeVmas(space: SpaceCore, change: () => void): void {
  beginWrite(space.agent, space.slot + SP_VMA_SEQ);
  try {
    change();
  } finally {
    endWrite(space.agent, space.slot + SP_VMA_SEQ);
  }
}

/** Takes the locks of the trees by page that a vma is in. */
function lockTrees(space: SpaceCore, file: File, anon: AnonVma): void {
  if (file !== 0) lockSpin(space.agent, file + FL_LOCK);
  lockFamily(space.mm, anon);
}

function unlockTrees(space: SpaceCore, file: File, anon: AnonVma): void {
  unlockFamily(space.mm, anon);
  if (file !== 0) unlockSpin(space.agent, file + FL_LOCK);
}

/** Puts a vma into all its trees. Preconditions: the locks of those by page. */
function enterLocked(space: SpaceCore, vma: Vma, file: File, anon: AnonVma): void {
  const { agent, mm } = space;
  itInsert(agent, space.slot + SP_VMAS, vma);
  const pgoff = agent.words[vma + VMA_PGOFF]!;
  const bytes = vmaEnd(space, vma) - vmaStart(space, vma);
  if (anon !== 0) linkAnonLocked(mm, vma, anon, pgoff, bytes / mm.pageSize);
  if (file === 0) return;
  const first = pgoff * mm.pageSize;
  itSet(agent, vma + VMA_FILE_NODE, first, first + bytes - 1);
  itInsert(agent, file + FL_VMAS, vma + VMA_FILE_NODE);
  Atomics.add(agent.words, file + FL_USERS, 1);
}

/** Takes a vma out of its trees by page; the uses that it had are left to the caller. Preconditions: their locks. */
function unlinkLocked(space: SpaceCore, vma: Vma, file: File, anon: AnonVma): void {
  if (file !== 0) itRemove(space.agent, file + FL_VMAS, vma + VMA_FILE_NODE);
  if (anon !== 0) unlinkAnonLocked(space.mm, vma, anon);
}

/** What a vma is, but for where it begins and ends. */
export interface VmaKind {
  readonly flags: number;
  readonly file: File;
  /** Page at its start: see above. */
  readonly pgoff: number;
  readonly anon: AnonVma;
}

function setVma(space: SpaceCore, vma: Vma, start: number, end: number, kind: VmaKind): void {
  const { agent } = space;
  const w = agent.words;
  itSet(agent, vma, start, end - 1);
  // Plain: nobody finds the record before the trees have it, whose locks are given back with Atomics.
  w[vma + VMA_SPACE] = space.slot;
  w[vma + VMA_FILE] = kind.file;
  w[vma + VMA_FLAGS] = kind.flags;
  w[vma + VMA_PGOFF] = kind.pgoff;
  w[vma + VMA_ANON] = kind.anon;
}

/** What a vma is, as seen from its page at `vpn`. */
export const kindOf = (space: SpaceCore, vma: Vma, vpn: number): VmaKind => ({
  flags: vmaFlags(space, vma),
  file: vmaFile(space, vma),
  pgoff: fileIndexOf(space, vma, vpn),
  anon: vmaAnon(space, vma),
});

/** A record in no tree, reserved before anything is changed. Errors: ENOMEM. */
export function reserveVma(space: SpaceCore, operation: string): Vma {
  const w = space.agent.words;
  const spare = w[space.slot + SP_SPARE_VMA]!;
  if (spare === 0) return space.mm.alloc(VMA_WORDS, operation) as Vma;
  w[space.slot + SP_SPARE_VMA] = w[spare + VMA_SPACE]!;
  return spare as Vma;
}

/**
 * The space keeps two records at hand, which is what an operation inside a vma needs; in debug mode none, so that who
 * uses one that is gone is noticed.
 */
export function freeVma(space: SpaceCore, vma: Vma): void {
  const { agent, mm } = space;
  const w = agent.words;
  const spare = w[space.slot + SP_SPARE_VMA]!;
  if (agent.debug || (spare !== 0 && w[spare + VMA_SPACE] !== 0)) {
    mm.free(vma, VMA_WORDS);
    return;
  }
  w[vma + VMA_SPACE] = spare;
  w[space.slot + SP_SPARE_VMA] = vma;
}

/** Enters a reserved record. Preconditions: nothing is mapped there. */
export function insertVma(space: SpaceCore, vma: Vma, start: number, end: number, kind: VmaKind): void {
  setVma(space, vma, start, end, kind);
  const { file, anon } = kind;
  lockTrees(space, file, anon);
  enterLocked(space, vma, file, anon);
  unlockTrees(space, file, anon);
}

/** Moves the end of a vma up. Preconditions: nothing is mapped there. */
export function growVma(space: SpaceCore, vma: Vma, end: number): void {
  const file = vmaFile(space, vma);
  const anon = vmaAnon(space, vma);
  lockTrees(space, file, anon);
  resizeLocked(space, vma, file, anon, end);
  unlockTrees(space, file, anon);
}

/** Moves the end of a vma, which comes anew into its trees by page. Preconditions: their locks. */
function resizeLocked(space: SpaceCore, vma: Vma, file: File, anon: AnonVma, end: number): void {
  const { agent } = space;
  const start = vmaStart(space, vma);
  itUpdate(agent, space.slot + SP_VMAS, vma, start, end - 1);
  if (anon !== 0) resizeAnonLocked(space.mm, vma, anon, (end - start) / space.mm.pageSize);
  if (file === 0) return;
  const node = vma + VMA_FILE_NODE;
  itResize(agent, file + FL_VMAS, node, itStart(agent, node) + (end - start) - 1);
}

/** Makes `[start, end)`, which is in a vma, a vma of its own, with a reserved record for each cut. Returns the vma of it. */
export function carveVma(space: SpaceCore, vma: Vma, start: number, end: number, spares: Vma[]): Vma {
  const { pageSize } = space.mm;
  const file = vmaFile(space, vma);
  const anon = vmaAnon(space, vma);
  const vmaLast = vmaEnd(space, vma);
  const part = vmaStart(space, vma) < start ? spares.pop()! : vma;
  const upper = end < vmaLast ? spares.pop()! : (0 as Vma);
  if (part === vma && upper === 0) return vma;
  if (part !== vma) setVma(space, part, start, end, kindOf(space, vma, start / pageSize));
  if (upper !== 0) setVma(space, upper, end, vmaLast, kindOf(space, vma, end / pageSize));
  // One hold of the locks: nobody may see a part in no record.
  lockTrees(space, file, anon);
  resizeLocked(space, vma, file, anon, part !== vma ? start : end);
  if (part !== vma) enterLocked(space, part, file, anon);
  if (upper !== 0) enterLocked(space, upper, file, anon);
  unlockTrees(space, file, anon);
  return part;
}

/** Takes a vma out of all trees and frees it. Returns its file, whose use the caller gives back. */
export function removeVma(space: SpaceCore, vma: Vma): File {
  const file = vmaFile(space, vma);
  const anon = vmaAnon(space, vma);
  itRemove(space.agent, space.slot + SP_VMAS, vma);
  lockTrees(space, file, anon);
  unlinkLocked(space, vma, file, anon);
  unlockTrees(space, file, anon);
  dropAnon(space.mm, anon);
  freeVma(space, vma);
  return file;
}

/** Takes its anon_vma from a vma that has no private page any more. Linux: unlink_anon_vmas(). */
export function forgetAnon(space: SpaceCore, vma: Vma): void {
  const anon = vmaAnon(space, vma);
  if (anon === 0) return;
  lockFamily(space.mm, anon);
  unlinkAnonLocked(space.mm, vma, anon);
  unlockFamily(space.mm, anon);
  Atomics.store(space.agent.words, vma + VMA_ANON, 0);
  dropAnon(space.mm, anon);
}

/**
 * True if a vma, which with those that it is to be joined with goes to `end` and has `anon`, may also be joined with the
 * next one. Linux: can_vma_merge_after(), is_mergeable_anon_vma(). What a fork gave one of them keeps it apart from
 * those that have no pages: its chain of anon_vmas is longer than theirs would be.
 */
function alike(space: SpaceCore, vma: Vma, end: number, anon: AnonVma, next: Vma): boolean {
  const { mm } = space;
  if (end !== vmaStart(space, next)) return false;
  const flags = vmaFlags(space, vma);
  const nextFlags = vmaFlags(space, next);
  if (
    ((flags ^ nextFlags) & ~(VM_FORK_CHILD | VM_MAYBE_GUARD)) !== 0 ||
    vmaFile(space, vma) !== vmaFile(space, next)
  )
    return false;
  if (fileIndexOf(space, vma, end / mm.pageSize) !== space.agent.words[next + VMA_PGOFF]!) return false;
  const nextAnon = vmaAnon(space, next);
  if (anon === nextAnon) return true;
  return (anon === 0 || nextAnon === 0) && ((flags | nextFlags) & VM_FORK_CHILD) === 0;
}

/** Joins a vma with its successors that are alike and touch, as long as it goes no further than `limit`. */
function mergeWithNexts(space: SpaceCore, vma: Vma, limit: number): void {
  const { agent } = space;
  const w = agent.words;
  const file = vmaFile(space, vma);
  const own = vmaAnon(space, vma);
  let end = vmaEnd(space, vma);
  let anon = own;
  let count = 0;
  for (let next = itSuccessor(agent, vma) as Vma; next !== 0 && end <= limit; count++) {
    if (!alike(space, vma, end, anon, next)) break;
    end = vmaEnd(space, next);
    if (anon === 0) anon = vmaAnon(space, next);
    next = itSuccessor(agent, next) as Vma;
  }
  if (count === 0) return;
  // One hold of the locks: nobody may see the pages of the upper ones in neither record.
  lockTrees(space, file, anon);
  let uses = 0; // of the anon_vma
  let flags = 0;
  for (let k = 0; k < count; k++) {
    const next = itSuccessor(agent, vma) as Vma;
    const lost = vmaAnon(space, next);
    if (lost !== 0) uses++;
    flags |= vmaFlags(space, next) & VM_MAYBE_GUARD;
    itRemove(agent, space.slot + SP_VMAS, next);
    unlinkLocked(space, next, file, lost);
    freeVma(space, next);
  }
  resizeLocked(space, vma, file, own, end);
  if (own === 0 && anon !== 0) {
    linkAnonLocked(
      space.mm,
      vma,
      anon,
      w[vma + VMA_PGOFF]!,
      (end - vmaStart(space, vma)) / space.mm.pageSize,
    );
    w[vma + VMA_ANON] = anon;
  }
  if (file !== 0) Atomics.sub(w, file + FL_USERS, count);
  w[vma + VMA_FLAGS] = vmaFlags(space, vma) | flags;
  unlockTrees(space, file, anon);
  if (uses > 0) Atomics.sub(w, anon + AV_USES, uses); // not the last one: the vma has it
}

/** Joins neighbours that are alike and touch in `[start, end]`: what has been apart elsewhere stays so, as in Linux. */
export function mergeVmas(space: SpaceCore, start: number, end: number): void {
  let vma = firstVma(space, Math.max(0, start - 1), end);
  while (vma !== 0 && vmaEnd(space, vma) <= end) {
    mergeWithNexts(space, vma, end);
    vma = itSuccessor(space.agent, vma) as Vma;
  }
}

/** Every vma in order of address. */
export function allVmas(space: SpaceCore): Vma[] {
  const all: Vma[] = [];
  for (let vma = itLowest(space.agent, space.slot + SP_VMAS) as Vma; vma !== 0;) {
    all.push(vma);
    vma = itSuccessor(space.agent, vma) as Vma;
  }
  return all;
}

export const protOf = (flags: number): number => flags & VM_PROT;

/** Where a search for free addresses begins, and how its results are aligned: a cluster of a file stays one in memory. */
const SEARCH_START = 65536;
const SEARCH_ALIGN = 65536;
/** Addresses below are int32, which accessors handle fastest; they are given out first. */
const LOW_END = 2 ** 31;

/** A free stretch of `length` bytes, or -1: the lowest below 2 GiB, then the lowest above. */
export function findFree(space: SpaceCore, length: number): number {
  const end = addressOf(LAST_VPN, space.mm.pageShift);
  const align = Math.max(SEARCH_ALIGN, space.mm.pageSize);
  const up = (n: number): number => Math.ceil(n / align) * align;
  const search = (from: number, to: number): number => {
    let at = up(from);
    for (let vma = firstVma(space, at, to); vma !== 0; vma = nextVma(space, vma, at, to)) {
      if (vmaStart(space, vma) - at >= length) break;
      at = up(vmaEnd(space, vma));
    }
    return at + length <= to ? at : -1;
  };
  const low = search(
    Math.max(SEARCH_START, addressOf(FIRST_VPN, space.mm.pageShift)),
    Math.min(LOW_END, end),
  );
  return low >= 0 ? low : search(LOW_END, end);
}
