/**
 * anon_vma: what groups the private pages of a mapping, and leads from such a page to all its mappings in every space.
 * Linux: struct anon_vma, mm/rmap.c, mm/interval_tree.c. Which vma has which: anonVma.ts.
 *
 * A page is made in one anon_vma, at an offset: its frame has both, with PG_ANON, as that of a file's page has file and
 * index. It keeps them over split, move, merge and fork. Fork gives the child's vma an anon_vma of its own, below the
 * parent's: so the pages of an anon_vma may be mapped by the vmas that have it, and by those that have one below it.
 *
 *   family    a first anon_vma and all below it; in the first are the tree of all their vmas, by page offset, and its lock
 *   home      the anon_vma that pages name which are made in it: itself. After LINE_LIMIT forks in line it is the last one
 *             that was still counted: else whoever forks and goes, again and again, would leave a record each time. More
 *             vmas are looked at then than could map the page.
 *
 * Invariants (checkMemory() verifies them)
 *   A1  A vma with an anon_vma is in the tree of its family, with the page offsets that it stands for; nothing else is.
 *   A2  A mapped anonymous frame names the home of an anon_vma, which is that of the vma or above it, and the offset at
 *       which it is mapped. So its mappings are found.
 *   A3  AV_USES counts the vmas and the records below; the last one gone, the record goes.
 *
 * Who comes from a frame holds MM_LOCK from looking whether it is mapped until he has the family's lock: a mapped frame
 * has a vma, which keeps its record, and no record goes while MM_LOCK or its family's lock is held.
 *
 * Lock order: mmapLock > folio lock > file lock > MM_LOCK > family (spin, nothing but uses of spaces is taken under it).
 */
import {
  allocWords,
  itFirst,
  itInsert,
  itNext,
  itRemove,
  itResize,
  itSet,
  itStart,
  PG_ANON,
} from "../memory/index.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import {
  type AnonVma,
  AV_DEPTH,
  AV_HOME,
  AV_LOCK,
  AV_PARENT,
  AV_ROOT,
  AV_USES,
  AV_VMAS,
  AV_WORDS,
  MM_LOCK,
  type Space,
  spUsersAt,
  type Vma,
  VMA_ANON,
  VMA_ANON_NODE,
  VMA_SPACE,
} from "./layout.ts";
import type { Mm } from "./mm.ts";

/** Forks in line that have anon_vmas of their own. */
const LINE_LIMIT = 8;
/** Page offsets are kept in 32 bits; a vma that reaches beyond stands for low ones, too. */
const OFFSETS = 2 ** 32;

/** A new anon_vma, below `parent` if that is not 0, with one use, the caller's. 0 if the arena is full. */
export function createAnon(mm: Mm, parent: AnonVma): AnonVma {
  const w = mm.agent.words;
  const anon = allocWords(mm.agent, mm.heap, AV_WORDS) as AnonVma;
  if (anon === 0) return anon;
  const above = parent === 0 ? parent : homeOf(mm, parent);
  const depth = above === 0 ? 0 : Atomics.load(w, above + AV_DEPTH) + 1;
  Atomics.store(w, anon + AV_ROOT, above === 0 ? anon : rootOf(mm, above));
  Atomics.store(w, anon + AV_PARENT, above);
  Atomics.store(w, anon + AV_DEPTH, depth);
  Atomics.store(w, anon + AV_HOME, depth > LINE_LIMIT ? above : anon);
  Atomics.store(w, anon + AV_USES, 1);
  if (above !== 0) Atomics.add(w, above + AV_USES, 1);
  return anon;
}

/** Gives a use back; the last one frees the record. Preconditions: neither MM_LOCK nor the family's lock is held. */
export function dropAnon(mm: Mm, anon: AnonVma): void {
  const { agent } = mm;
  const w = agent.words;
  for (let at = anon; at !== 0 && Atomics.sub(w, at + AV_USES, 1) === 1;) {
    const parent = Atomics.load(w, at + AV_PARENT) as AnonVma;
    const root = rootOf(mm, at);
    // Nobody finds it any more; whoever has found it is done.
    lockSpin(agent, mm.header + MM_LOCK);
    lockSpin(agent, root + AV_LOCK);
    unlockSpin(agent, root + AV_LOCK);
    unlockSpin(agent, mm.header + MM_LOCK);
    mm.free(at, AV_WORDS);
    at = parent;
  }
}

// Plain: both are written before the record can be found.
export const rootOf = (mm: Mm, anon: AnonVma): AnonVma => mm.agent.words[anon + AV_ROOT]! as AnonVma;
/** What pages name that are made in an anon_vma. */
export const homeOf = (mm: Mm, anon: AnonVma): AnonVma => mm.agent.words[anon + AV_HOME]! as AnonVma;

/** Takes the lock of the family's tree; nothing without an anon_vma. */
export function lockFamily(mm: Mm, anon: AnonVma): void {
  if (anon !== 0) lockSpin(mm.agent, rootOf(mm, anon) + AV_LOCK);
}

/** Preconditions: as lockFamily(), with a record of the same family that still has a use. */
export function unlockFamily(mm: Mm, anon: AnonVma): void {
  if (anon !== 0) unlockSpin(mm.agent, rootOf(mm, anon) + AV_LOCK);
}

/** Enters a vma for `pages` offsets from `pgoff` on, with a use more. Preconditions: the family's lock. */
export function linkAnonLocked(mm: Mm, vma: Vma, anon: AnonVma, pgoff: number, pages: number): void {
  const first = pgoff >>> 0;
  itSet(mm.agent, vma + VMA_ANON_NODE, first, first + pages - 1);
  itInsert(mm.agent, rootOf(mm, anon) + AV_VMAS, vma + VMA_ANON_NODE);
  Atomics.add(mm.agent.words, anon + AV_USES, 1);
}

/** Takes a vma out; its use is left to the caller. Preconditions: the family's lock. */
export function unlinkAnonLocked(mm: Mm, vma: Vma, anon: AnonVma): void {
  itRemove(mm.agent, rootOf(mm, anon) + AV_VMAS, vma + VMA_ANON_NODE);
}

/** Enters a vma anew with another number of pages, as in a file's tree: see vma.ts. Preconditions: the family's lock. */
export function resizeAnonLocked(mm: Mm, vma: Vma, anon: AnonVma, pages: number): void {
  const { agent } = mm;
  const node = vma + VMA_ANON_NODE;
  itResize(agent, rootOf(mm, anon) + AV_VMAS, node, itStart(agent, node) + pages - 1);
}

/** True if pages that name `home` may be mapped by a vma that has `anon`. */
export function descends(mm: Mm, anon: AnonVma, home: number): boolean {
  let at: number = anon;
  while (at !== 0 && at !== home) at = Atomics.load(mm.agent.words, at + AV_PARENT);
  return at === home;
}

/** A virtual page of a space where an anonymous page may be mapped. */
export interface AnonMapping {
  readonly space: Space;
  readonly vpn: number;
  readonly pages: 1;
}

/**
 * Where an anonymous frame may be mapped now, in the order in which Linux looks there; nothing if it is not mapped. Holds
 * a use of each space until releaseMappings(). Preconditions: for a list that stays right, mmapLock of every space that
 * maps it, as only fork and moves make more such entries; the folio lock keeps others from unmapping it meanwhile.
 */
export function anonMappingsOf(mm: Mm, pfn: number): AnonMapping[] {
  const { agent, frames } = mm;
  lockSpin(agent, mm.header + MM_LOCK);
  const home = frames.mapping(pfn) as AnonVma;
  // Looked at again last: the frame may be another's by now, but then not of this anon_vma unless that lives.
  const mapped =
    home !== 0 &&
    (frames.flags(pfn) & PG_ANON) !== 0 &&
    frames.mapcount(pfn) > 0 &&
    frames.mapping(pfn) === home;
  if (!mapped) {
    unlockSpin(agent, mm.header + MM_LOCK);
    return [];
  }
  const root = rootOf(mm, home);
  lockSpin(agent, root + AV_LOCK);
  unlockSpin(agent, mm.header + MM_LOCK);
  const found = findLocked(mm, home, frames.index(pfn));
  unlockSpin(agent, root + AV_LOCK);
  return found;
}

/** As anonMappingsOf() for a page that is on its way, so that nothing maps it. Preconditions: a use of its anon_vma, `home`. */
export function anonMappingsAt(mm: Mm, home: AnonVma, index: number): AnonMapping[] {
  const { agent } = mm;
  const root = rootOf(mm, home);
  lockSpin(agent, root + AV_LOCK);
  const found = findLocked(mm, home, index);
  unlockSpin(agent, root + AV_LOCK);
  return found;
}

/** A use of the anon_vma that a mapped frame names, for dropAnon(); 0 if it is not mapped. */
export function holdAnonOf(mm: Mm, pfn: number): AnonVma {
  const { agent, frames } = mm;
  lockSpin(agent, mm.header + MM_LOCK);
  const home = frames.mapcount(pfn) > 0 && (frames.flags(pfn) & PG_ANON) !== 0 ? frames.mapping(pfn) : 0;
  if (home !== 0) Atomics.add(agent.words, home + AV_USES, 1);
  unlockSpin(agent, mm.header + MM_LOCK);
  return home as AnonVma;
}

/** Preconditions: the family's lock. */
function findLocked(mm: Mm, home: AnonVma, pgoff: number): AnonMapping[] {
  const { agent } = mm;
  const w = agent.words;
  const root = rootOf(mm, home);
  const found: AnonMapping[] = [];
  const index = pgoff >>> 0;
  for (const page of [index, index + OFFSETS]) {
    for (
      let node = itFirst(agent, root + AV_VMAS, page, page);
      node !== 0;
      node = itNext(agent, node, page, page)
    ) {
      const vma = (node - VMA_ANON_NODE) as Vma;
      if (!descends(mm, Atomics.load(w, vma + VMA_ANON) as AnonVma, home)) continue;
      const space = Atomics.load(w, vma + VMA_SPACE) as Space;
      // The vma's first node is keyed by address; its start does not move while the vma is in a tree.
      found.push({ space, vpn: itStart(agent, vma) / mm.pageSize + (page - itStart(agent, node)), pages: 1 });
      Atomics.add(w, spUsersAt(space, mm.maxAgents, agent.slot), 1);
    }
  }
  return found;
}
