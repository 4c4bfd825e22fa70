/**
 * fork: a copy of a space that shares its pages until somebody writes. Linux: kernel/fork.c dup_mmap(),
 * mm/memory.c copy_page_range().
 *
 * A consistent cut: under mmapLock for writing all private pages of the parent become read-only, every agent has
 * acknowledged, and only then entries are copied. What an agent stored before it acknowledged is in both; what it stores
 * afterwards is in the parent alone. So all ranges are open at once, in order of address, while Linux, which stops the
 * one process, opens them one by one.
 *
 *   vma                                   child has it                     its entries
 *   dontfork                              no
 *   wipeonfork                            yes, empty                       none
 *   no anon_vma, never had guards         yes, without anon_vma            none: they come by faults
 *   else                                  yes, with an anon_vma if it had  all, guards too
 *
 * A page that somebody holds a reference to besides its mappings (a span, a pin) may be written without an entry: the
 * child gets a copy of it at once.
 *
 * Lock order: mmapLock of the parent (write) > folio lock (tried only) > file lock > heap. Nobody knows the child yet.
 */
import { MmError } from "../errors.ts";
import { itPredecessor, itStart, itSuccessor, PG_ANON, PG_UPTODATE, ZERO_PFN } from "../memory/index.ts";
import { MmuNotifierEvent, type OpenRange } from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import { WORD_BYTES } from "../units.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import { createAnon, dropAnon, homeOf } from "./anonTree.ts";
import { exitOp } from "./exit.ts";
import {
  type AnonVma,
  FL_LOCK,
  type Space,
  VM_DONTCOPY,
  VM_FORK_CHILD,
  VM_LOCKED,
  VM_LOCKONFAULT,
  VM_MAYBE_GUARD,
  VM_SHARED,
  VM_WIPEONFORK,
  type Vma,
  VMA_FILE_NODE,
} from "./layout.ts";
import type { Mm } from "./mm.ts";
import {
  isValid,
  makePte,
  pfnOfPte,
  PTE_ACCESSED,
  PTE_EXCLUSIVE,
  PTE_GUARD,
  PTE_PFN,
  PTE_WRITE,
} from "./pte.ts";
import { radixStretches } from "./radix.ts";
import { ensureEntry } from "./pageTables.ts";
import { close, openOp, writingOp } from "./ranges.ts";
import { allocFrameOp } from "./reclaim.ts";
import type { SpaceCore } from "./spaceCore.ts";
import {
  allVmas,
  changeVmas,
  fileIndexOf,
  freeVma,
  insertVma,
  kindOf,
  reserveVma,
  vmaAnon,
  vmaEnd,
  vmaFile,
  vmaFlags,
  vmaStart,
} from "./vma.ts";
import { changeRangeOp } from "./zap.ts";

/** How often it begins again for frames that it lacks: each time it frees what it lacked, and others may take that. */
const ROUNDS = 8;

/** What a vma of the parent is copied to. */
interface Heir {
  readonly vma: Vma;
  readonly start: number;
  readonly end: number;
  /** Its entries are copied. */
  readonly filled: boolean;
  readonly shared: boolean;
}

/** Returns the child's record. Errors: ENOMEM; then there is no child, and the parent is as it was. */
export function* forkOp(space: SpaceCore, createRecord: (mm: Mm) => Space): Op<Space> {
  const { mm } = space;
  for (let round = 1; ; round++) {
    const child = mm.spaceAt(createRecord(mm));
    let lacking: number;
    try {
      lacking = yield* writingOp(space, "fork", () => copyLockedOp(space, child));
    } catch (error) {
      yield* exitOp(child);
      throw error;
    }
    if (lacking === 0) return child.slot;
    yield* exitOp(child);
    if (round === ROUNDS)
      throw new MmError("ENOMEM", "fork", "no frames for the pages that are pinned; use a larger budget");
    // Given back at once: the next round takes them, or somebody was faster.
    const held: number[] = [];
    try {
      while (held.length < lacking) held.push(yield* allocFrameOp(mm, false));
    } finally {
      for (const pfn of held) mm.frames.put(pfn);
    }
  }
}

/** Returns how many frames it lacked; 0: it is done. Preconditions: mmapLock of the parent held for writing. */
function* copyLockedOp(space: SpaceCore, child: SpaceCore): Op<number> {
  const { pageSize } = space.mm;
  const heirs = heirsOf(space);
  const cut = heirs.filter((heir) => heir.filled && !heir.shared);
  const open: OpenRange[] = [];
  try {
    for (const { start, end } of cut)
      open.push(yield* openOp(space, start, end, MmuNotifierEvent.ProtectionPage));
    for (const { start, end } of cut)
      yield* changeRangeOp(space, start / pageSize, end / pageSize, PTE_WRITE, 0, true);
    // From here on nothing waits.
    let lacking = 0;
    for (const heir of inFileOrder(space, heirs)) {
      const anon = bequeath(space, child, heir);
      if (heir.filled) lacking += copyEntries(space, child, heir, anon);
    }
    return lacking;
  } finally {
    for (const range of open.reverse()) close(space, range);
  }
}

function heirsOf(space: SpaceCore): Heir[] {
  return allVmas(space)
    .filter((vma) => (vmaFlags(space, vma) & VM_DONTCOPY) === 0)
    .map((vma) => {
      const flags = vmaFlags(space, vma);
      const owns = vmaAnon(space, vma) !== 0 || (flags & VM_MAYBE_GUARD) !== 0;
      const filled = owns && (flags & VM_WIPEONFORK) === 0;
      return {
        vma,
        start: vmaStart(space, vma),
        end: vmaEnd(space, vma),
        filled,
        shared: (flags & VM_SHARED) !== 0,
      };
    });
}

/**
 * Vmas that begin at the same page of a file in the order of its tree, where the child's go behind them one by one: it
 * decides in which order they hear of a truncation.
 */
function inFileOrder(space: SpaceCore, heirs: readonly Heir[]): Heir[] {
  const order = [...heirs];
  const groups = new Map<string, number[]>();
  heirs.forEach(({ vma, start }, k) => {
    const file = vmaFile(space, vma);
    if (file === 0) return;
    const key = `${file} ${fileIndexOf(space, vma, start / space.mm.pageSize)}`;
    const group = groups.get(key);
    if (group) group.push(k);
    else groups.set(key, [k]);
  });
  for (const group of groups.values()) {
    if (group.length === 1) continue;
    const ranks = new Map(sameStart(space, heirs[group[0]!]!.vma).map((vma, rank) => [vma, rank]));
    const sorted = group.map((k) => heirs[k]!).sort((a, b) => ranks.get(a.vma)! - ranks.get(b.vma)!);
    group.forEach((k, n) => (order[k] = sorted[n]!));
  }
  return order;
}

/** All vmas that begin at the same page of the same file as this one, in the order of its tree. */
function sameStart(space: SpaceCore, vma: Vma): Vma[] {
  const { agent } = space;
  const file = vmaFile(space, vma);
  const found: Vma[] = [];
  lockSpin(agent, file + FL_LOCK);
  const page = itStart(agent, vma + VMA_FILE_NODE);
  let node = vma + VMA_FILE_NODE;
  const starts = (n: number): boolean => n !== 0 && itStart(agent, n) === page;
  for (let n = itPredecessor(agent, node); starts(n); n = itPredecessor(agent, n)) node = n;
  for (; starts(node); node = itSuccessor(agent, node)) found.push((node - VMA_FILE_NODE) as Vma);
  unlockSpin(agent, file + FL_LOCK);
  return found;
}

/** Makes the child's vma. Returns what pages name that are made in it, 0 if it has no anon_vma. Errors: ENOMEM. */
function bequeath(space: SpaceCore, child: SpaceCore, heir: Heir): number {
  const { mm } = space;
  const kind = kindOf(space, heir.vma, heir.start / mm.pageSize);
  const inherits = heir.filled && kind.anon !== 0;
  const flags = (kind.flags & ~(VM_LOCKED | VM_LOCKONFAULT | VM_FORK_CHILD)) | (inherits ? VM_FORK_CHILD : 0);
  const vma = reserveVma(child, "fork");
  const anon = inherits ? createAnon(mm, kind.anon) : (0 as AnonVma);
  if (inherits && anon === 0) {
    freeVma(child, vma);
    throw new MmError("ENOMEM", "fork", "the arena is full; create the memory with a larger arena");
  }
  changeVmas(child, () => insertVma(child, vma, heir.start, heir.end, { ...kind, flags, anon }));
  if (anon === 0) return 0;
  dropAnon(mm, anon); // the vma's use is the one that stays
  return homeOf(mm, anon);
}

/** Copies the entries of a vma. Returns how many frames it lacked. Errors: ENOMEM. */
function copyEntries(space: SpaceCore, child: SpaceCore, heir: Heir, anon: number): number {
  const { agent, mm } = space;
  const w = agent.words;
  let lacking = 0;
  const [first, end] = [heir.start / mm.pageSize, heir.end / mm.pageSize];
  radixStretches(w, space.pgd, first, end, (entry, vpn, count) => {
    if (mm.frames.kernels.orRange(entry * WORD_BYTES, count) === 0) return;
    const to = ensureEntry(child, vpn);
    if (to === 0)
      throw new MmError(
        "ENOMEM",
        "fork",
        "the arena has no room for page tables; create the memory with a larger arena",
      );
    for (let k = 0; k < count; k++) {
      const pte = Atomics.load(w, entry + k);
      if (pte === PTE_GUARD) Atomics.store(w, to + k, PTE_GUARD);
      if (isValid(pte) && !copyEntry(space, entry + k, to + k, anon)) lacking++;
    }
  });
  return lacking;
}

/** False if it takes a frame and there is none. */
function copyEntry(space: SpaceCore, entry: number, to: number, anon: number): boolean {
  const { frames } = space.mm;
  const w = space.agent.words;
  const pte = Atomics.load(w, entry);
  if (!isValid(pte)) return true;
  const pfn = pfnOfPte(pte);
  if (pfn === ZERO_PFN) {
    Atomics.store(w, to, pte & ~PTE_ACCESSED);
    return true;
  }
  // Under mmapLock an anonymous page stays where it is. One of a file may go, and its frame become another's, until we
  // have a reference and have looked again.
  if (!frames.tryGet(pfn)) return true;
  if (Atomics.load(w, entry) !== pte) {
    frames.put(pfn);
    return copyEntry(space, entry, to, anon);
  }
  if ((frames.flags(pfn) & PG_ANON) !== 0) return copyAnonymousEntry(space, entry, to, pte, anon);
  copyFileEntry(space, entry, to, pfn);
  return true;
}

/** Preconditions: a reference, which the child's entry takes, or which is given back; `anon` is the child's. */
function copyAnonymousEntry(space: SpaceCore, entry: number, to: number, pte: number, anon: number): boolean {
  const { frames } = space.mm;
  const w = space.agent.words;
  const pfn = pfnOfPte(pte);
  const pinned = frames.refcount(pfn) > frames.mapcount(pfn) + 1;
  if (pinned) {
    const copy = frames.tryAlloc(false);
    if (copy !== 0) {
      frames.copyFrame(copy, pfn);
      frames.initMapped(copy, PG_ANON | PG_UPTODATE, anon, frames.index(pfn));
      Atomics.store(w, to, makePte(copy, (pte & ~PTE_PFN & ~PTE_WRITE) | PTE_EXCLUSIVE));
    }
    frames.put(pfn);
    return copy !== 0;
  }
  frames.addMapcount(pfn, 1);
  if ((pte & PTE_EXCLUSIVE) !== 0) Atomics.store(w, entry, pte & ~PTE_EXCLUSIVE);
  Atomics.store(w, to, pte & ~(PTE_EXCLUSIVE | PTE_WRITE | PTE_ACCESSED));
  return true;
}

/**
 * Copies an entry that maps a page of a file, unless somebody has the page's lock, as reclaim and write-back do, which
 * change entries under it: then a fault brings it. Preconditions: a reference, as before.
 */
function copyFileEntry(space: SpaceCore, entry: number, to: number, pfn: number): void {
  const { frames, agent } = space.mm;
  if (!frames.tryLockFolio(pfn)) {
    frames.put(pfn);
    return;
  }
  const pte = Atomics.load(agent.words, entry);
  const same = isValid(pte) && pfnOfPte(pte) === pfn;
  if (same) {
    frames.addMapcount(pfn, 1);
    Atomics.store(agent.words, to, pte & ~PTE_ACCESSED);
  }
  frames.unlockFolio(pfn);
  if (!same) frames.put(pfn);
}
