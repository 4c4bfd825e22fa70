/**
 * fork: a copy of a space that shares its pages until somebody writes. Linux: kernel/fork.c dup_mmap(),
 * mm/memory.c copy_page_range().
 *
 * A consistent cut: under mmapLock for writing all private pages of the parent become read-only, every agent has
 * acknowledged, and only then the child gets them. What an agent stored before it acknowledged is in both; what it stores
 * afterwards is in the parent alone. So all ranges are open at once, in order of address, while Linux, which stops the
 * one process, opens them one by one.
 *
 * A page-table page in whose stretch there is nothing but private anonymous memory that the child gets is shared, not
 * copied: see pageTables.ts. So a fork costs some ten nanoseconds for each 1024 pages, and who writes first in such a
 * stretch copies the table. Entries of other stretches are copied here.
 *
 *   vma                                   child has it                     its entries
 *   dontfork                              no
 *   wipeonfork                            yes, empty                       none
 *   no anon_vma, never had guards         yes, without anon_vma            none: they come by faults
 *   else                                  yes, with an anon_vma if it had  all, guards too
 *
 * A page that somebody holds a reference to besides its mappings (a span, a pin) may be written without an entry: the
 * child gets a copy of it at once, and its table is copied, too.
 *
 * A page on a device is shared like one in a frame. What a device has for its own is taken back first, and what is on its way
 * to a device or back is waited for; a space that ever had such pages shares no page-table page.
 *
 * Lock order: mmapLock of the parent (write) > folio lock (tried only) > file lock > heap. Nobody uses the child yet.
 */
import { arenaFull, MmError } from "../errors.ts";
import {
  itPredecessor,
  itStart,
  itSuccessor,
  MOST_MAPPINGS,
  PG_ANON,
  PG_UPTODATE,
  ZERO_PFN,
} from "../memory/index.ts";
import { MmuNotifierEvent, type OpenRange } from "../notifier/index.ts";
import type { Op } from "../sched/index.ts";
import { WORD_BYTES } from "../units.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import { createAnon, dropAnon, homeOf } from "./anonTree.ts";
import { lockedExclusive, takeAllBack } from "./exclusive.ts";
import { exitOp } from "./exit.ts";
import {
  type AnonVma,
  FL_LOCK,
  SP_MIGRATING,
  SP_SPECIAL,
  SP_STATE,
  type Space,
  SPACE_LIVE,
  SPACE_NEW,
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
import { usingOp } from "./lifetime.ts";
import { waitMovedOp, waitSettledOp } from "./migrate.ts";
import type { Mm } from "./mm.ts";
import {
  isValid,
  kindOfPte,
  makePte,
  pfnOfPte,
  PTE_ACCESSED,
  PTE_DEVICE_PRIVATE,
  PTE_EXCLUSIVE,
  PTE_GUARD,
  PTE_PFN,
  PTE_PFN_SHIFT,
  PTE_POISON,
  PTE_WRITE,
} from "./pte.ts";
import { LEAF_ENTRIES, radixStretches } from "./radix.ts";
import {
  ensureEntry,
  markShared,
  noTables,
  ownTables,
  shareTables,
  unmarkShared,
  unmarkUnshared,
} from "./pageTables.ts";
import { close, firstPart, openOp, type Part, writingOp } from "./ranges.ts";
import { allocFrameOp } from "./reclaim.ts";
import { awaitAcksOp, markRange } from "./shootdown.ts";
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
import { anyHeldRuns } from "./views.ts";
import { changeRangeOp, maySpecial } from "./zap.ts";

/** How often it begins again for frames that it lacks: each time it frees what it lacked, and others may take that. */
const ROUNDS = 8;

/** Instead of a number of frames: it has to wait first. */
const UNSETTLED = -1;

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
export function* forkOp(space: SpaceCore, createRecord: (mm: Mm, state: number) => Space): Op<Space> {
  const { mm } = space;
  for (let round = 1; ; round++) {
    const child = mm.spaceAt(createRecord(mm, SPACE_NEW));
    const enter = (): void => void Atomics.store(mm.agent.words, child.slot + SP_STATE, SPACE_LIVE);
    let lacking: number;
    try {
      // What is on its way is not copied: who moves it would have to find the copies, too.
      const taken = { pfn: 0 };
      for (;;) {
        lacking = yield* writingOp(space, "fork", () => copySettledOp(space, child, taken));
        if (lacking !== UNSETTLED) break;
        yield* usingOp(space, "fork", () => waitForDevicesOp(space, taken.pfn));
      }
    } catch (error) {
      enter();
      yield* exitOp(child);
      throw error;
    }
    enter();
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

/** As copyLockedOp(); UNSETTLED if pages are on their way, or a device is taking one, which `taken` names: then nothing is done. */
function* copySettledOp(space: SpaceCore, child: SpaceCore, taken: { pfn: number }): Op<number> {
  if (Atomics.load(space.agent.words, space.slot + SP_MIGRATING) !== 0) return UNSETTLED;
  taken.pfn = maySpecial(space) ? lockedExclusive(space) : 0;
  if (taken.pfn !== 0) return UNSETTLED;
  return yield* copyLockedOp(space, child);
}

/** Waits for what copySettledOp() cannot do with. Preconditions: a use of the space, without mmapLock. */
function* waitForDevicesOp(space: SpaceCore, pfn: number): Op<void> {
  yield* waitSettledOp(space);
  if (pfn !== 0) yield* waitMovedOp(space.mm, pfn, () => !space.mm.frames.isLocked(pfn));
}

/** Returns how many frames it lacked; 0: it is done. Preconditions: mmapLock of the parent held for writing. */
function* copyLockedOp(space: SpaceCore, child: SpaceCore): Op<number> {
  const heirs = heirsOf(space);
  const cut = heirs.filter((heir) => heir.filled && !heir.shared);
  const open: OpenRange[] = [];
  try {
    for (const { start, end } of cut)
      open.push(yield* openOp(space, start, end, MmuNotifierEvent.ProtectionPage));
    const { shared, copied } = partsOf(space, heirs);
    const marked: number[] = [];
    let done = false;
    try {
      for (const { first, end } of shared) markShared(space, first, end, marked);
      for (const heir of cut) yield* protectOp(space, heir, copied.get(heir.vma));
      // From here on nothing waits.
      for (const heir of inFileOrder(space, heirs)) bequeath(space, child, heir);
      const held = anyHeldRuns(space.mm) ? unmarkHeld(space, shared, new Set(marked)) : [];
      for (const { first, end } of shared) shareTables(space, child, first, end);
      let lacking = 0;
      for (const stretches of [...copied.values(), held])
        for (const stretch of stretches) lacking += copyEntries(space, child, stretch);
      done = true;
      return lacking;
    } finally {
      if (!done) unmarkUnshared(space, marked);
    }
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

/** Pages that the child gets the same way. */
interface Stretch {
  readonly first: number;
  readonly end: number;
}

/** How the child gets what the parent has. */
interface Parts {
  /** Whole tables, in which there is nothing but private anonymous memory that it gets. */
  readonly shared: Stretch[];
  /** What is copied entry by entry, for each vma that has something of the kind. */
  readonly copied: Map<Vma, Stretch[]>;
}

function partsOf(space: SpaceCore, heirs: readonly Heir[]): Parts {
  const { pageSize } = space.mm;
  const tableOf = (vpn: number): number => Math.floor(vpn / LEAF_ENTRIES);
  const tables = (start: number, end: number): [number, number] => [
    tableOf(start / pageSize),
    tableOf(end / pageSize - 1),
  ];
  const fit = new Set<Vma>();
  for (const heir of maySpecial(space) ? [] : heirs) {
    if (heir.filled && !heir.shared && vmaFile(space, heir.vma) === 0) fit.add(heir.vma);
  }
  // Tables at the edges of what does not fit: what lies between is in nobody else's way.
  const mixed = new Set<number>();
  for (const vma of allVmas(space)) {
    if (fit.has(vma)) continue;
    for (const table of tables(vmaStart(space, vma), vmaEnd(space, vma))) mixed.add(table);
  }
  const shared: Stretch[] = [];
  const copied = new Map<Vma, Stretch[]>();
  let done = 0; // pages below are in a shared table, or beyond
  for (const { vma, start, end, filled } of heirs) {
    if (!filled) continue;
    const [first, last] = [start / pageSize, end / pageSize];
    const [low, high] = tables(start, end);
    const from = (mixed.has(low) ? low + 1 : low) * LEAF_ENTRIES;
    const to = (mixed.has(high) ? high : high + 1) * LEAF_ENTRIES;
    if (!fit.has(vma) || from >= to) {
      copied.set(vma, [{ first, end: last }]);
      continue;
    }
    const rest = [
      { first, end: from },
      { first: to, end: last },
    ].filter((stretch) => stretch.first < stretch.end);
    if (rest.length > 0) copied.set(vma, rest);
    if (done < to) shared.push({ first: Math.max(from, done), end: to });
    done = to;
  }
  return { shared, copied };
}

/** Makes marked tables the parent's own again in which there is a page that somebody holds. Returns their stretches. */
function unmarkHeld(space: SpaceCore, shared: readonly Stretch[], marked: ReadonlySet<number>): Stretch[] {
  const { frames } = space.mm;
  const stretches: Stretch[] = [];
  for (const { first, end } of shared) {
    radixStretches(space.agent.words, space.pgd, first, end, (entry, vpn, count, at) => {
      if (!marked.has(at) || !frames.anyHeld(entry, count, PTE_PFN_SHIFT)) return;
      frames.kernels.protectRange(entry * WORD_BYTES, count, ~PTE_WRITE, 0);
      unmarkShared(space, at);
      stretches.push({ first: vpn, end: vpn + count });
    });
  }
  return stretches;
}

/** Takes write permission from a vma, of which some entries are copied, and waits until nobody writes through it any more. */
function* protectOp(space: SpaceCore, heir: Heir, copied: readonly Stretch[] = []): Op<void> {
  const { pageSize } = space.mm;
  const [low, high] = [heir.start / pageSize, heir.end / pageSize];
  let whole = false;
  for (const { first, end } of copied) {
    ownTables(space, "fork", first, end);
    if (maySpecial(space)) takeAllBack(space, first, end);
    yield* changeRangeOp(space, first, end, PTE_WRITE, 0, true);
    whole ||= first === low && end === high;
  }
  if (!whole) yield* awaitAcksOp(space, markRange(space, low, high));
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

/** Makes the child's vma. Errors: ENOMEM. */
function bequeath(space: SpaceCore, child: SpaceCore, heir: Heir): void {
  const { mm } = space;
  const kind = kindOf(space, heir.vma, heir.start / mm.pageSize);
  const inherits = heir.filled && kind.anon !== 0;
  const flags = (kind.flags & ~(VM_LOCKED | VM_LOCKONFAULT | VM_FORK_CHILD)) | (inherits ? VM_FORK_CHILD : 0);
  const vma = reserveVma(child, "fork");
  const anon = inherits ? createAnon(mm, kind.anon) : (0 as AnonVma);
  if (inherits && anon === 0) {
    freeVma(child, vma);
    throw arenaFull("fork");
  }
  changeVmas(child, () => insertVma(child, vma, heir.start, heir.end, { ...kind, flags, anon }));
  if (anon !== 0) dropAnon(mm, anon); // the vma's use is the one that stays
}

/** Copies the entries of a stretch, mapping by mapping. Returns how many frames it lacked. Errors: ENOMEM. */
function copyEntries(space: SpaceCore, child: SpaceCore, { first, end }: Stretch): number {
  const { agent, mm } = space;
  const { pageSize } = mm;
  const w = agent.words;
  let lacking = 0;
  if (maySpecial(space)) Atomics.store(w, child.slot + SP_SPECIAL, 1);
  const copyPart = (part: Part): void => {
    const anon = vmaAnon(child, part.vma);
    const home = anon === 0 ? 0 : homeOf(mm, anon);
    radixStretches(w, space.pgd, part.start / pageSize, part.end / pageSize, (entry, vpn, count) => {
      if (mm.frames.kernels.orRange(entry * WORD_BYTES, count) === 0) return;
      const to = ensureEntry(child, vpn);
      if (to === 0) throw noTables("fork");
      for (let k = 0; k < count; k++) {
        const pte = Atomics.load(w, entry + k);
        if (pte === PTE_GUARD || pte === PTE_POISON) Atomics.store(w, to + k, pte);
        if (kindOfPte(pte) === PTE_DEVICE_PRIVATE) copyDeviceEntry(space, entry + k, to + k, pte);
        if (isValid(pte) && !copyEntry(space, entry + k, to + k, home)) lacking++;
      }
    });
  };
  const last = end * pageSize;
  for (let part = firstPart(child, first * pageSize, last); part; part = firstPart(child, part.end, last))
    copyPart(part);
  return lacking;
}

/** A page on a device is shared as any other: nobody has it for his own. Errors: ENOMEM. */
function copyDeviceEntry(space: SpaceCore, entry: number, to: number, pte: number): void {
  const { frames } = space.mm;
  const w = space.agent.words;
  const pfn = pfnOfPte(pte);
  frames.get(pfn);
  if (!frames.tryMap(pfn)) {
    frames.put(pfn);
    throw new MmError(
      "ENOMEM",
      "fork",
      `a page on a device is mapped ${MOST_MAPPINGS} times, which is the most`,
    );
  }
  const copy = pte & ~(PTE_EXCLUSIVE | PTE_WRITE);
  Atomics.store(w, entry, copy);
  Atomics.store(w, to, copy);
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
  if (pinned || !frames.tryMap(pfn)) {
    const copy = frames.tryAlloc(false);
    if (copy !== 0) {
      frames.copyFrame(copy, pfn);
      frames.initMapped(copy, PG_ANON | PG_UPTODATE, anon, frames.index(pfn));
      Atomics.store(w, to, makePte(copy, (pte & ~PTE_PFN & ~PTE_WRITE) | PTE_EXCLUSIVE));
    }
    frames.put(pfn);
    return copy !== 0;
  }
  if ((pte & PTE_EXCLUSIVE) !== 0) Atomics.store(w, entry, pte & ~PTE_EXCLUSIVE);
  Atomics.store(w, to, pte & ~(PTE_EXCLUSIVE | PTE_WRITE | PTE_ACCESSED));
  return true;
}

/**
 * Copies an entry that maps a page of a file, unless somebody has the page's lock, as reclaim and write-back do, which
 * change entries under it, or it is mapped too often: then a fault brings it. Preconditions: a reference, as before.
 */
function copyFileEntry(space: SpaceCore, entry: number, to: number, pfn: number): void {
  const { frames, agent } = space.mm;
  if (!frames.tryLockFolio(pfn)) {
    frames.put(pfn);
    return;
  }
  const pte = Atomics.load(agent.words, entry);
  const mapped = isValid(pte) && pfnOfPte(pte) === pfn && frames.tryMap(pfn);
  if (mapped) Atomics.store(agent.words, to, pte & ~PTE_ACCESSED);
  frames.unlockFolio(pfn);
  if (!mapped) frames.put(pfn);
}
