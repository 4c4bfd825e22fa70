/**
 * Verifies every invariant of a memory that is at rest: the frame table against page tables and page caches, page
 * tables against vmas and files, anonymous frames against what leads to their entries, this agent's TLBs against page
 * tables, the trees, the subscriptions, the heap. Names the first thing that is wrong.
 */
import {
  blockNote,
  checkHeap,
  checkIntervalTree,
  itLast,
  itLinked,
  itLowest,
  itStart,
  itSuccessor,
  PG_ANON,
  PG_DIRTY,
  PG_LOCK_MASK,
  ZERO_PFN,
} from "../memory/index.ts";
import { checkSubscriptions } from "../notifier/index.ts";
import { anonMappingsOf, descends, homeOf, rootOf } from "./anonTree.ts";
import {
  type AnonVma,
  AV_LOCK,
  AV_PARENT,
  AV_USES,
  AV_VMAS,
  type File,
  FL_KIND,
  FL_LOCK,
  FL_PAGES,
  FL_ROOT,
  FL_VMAS,
  SP_MIGRATING,
  SP_PGD,
  SP_SHARED,
  SP_SPECIAL,
  SP_VMAS,
  VM_PROT,
  VM_SHARED,
  VM_WRITE,
  type Vma,
  VMA_ANON_NODE,
} from "./layout.ts";
import type { Mm } from "./mm.ts";
import { fileAt } from "./pageCache.ts";
import {
  isBusy,
  isValid,
  kindOfPte,
  pfnOfPte,
  PTE_DEVICE_EXCLUSIVE,
  PTE_DEVICE_PRIVATE,
  PTE_DIRTY,
  PTE_EXCLUSIVE,
  PTE_MIGRATION,
  PTE_READ,
  PTE_WRITE,
  PTE_WRITTEN,
} from "./pte.ts";
import { loadPte } from "./pageTables.ts";
import { INDEX_END, radixStretches, TABLE_SHARED } from "./radix.ts";
import { releaseMappings } from "./rmap.ts";
import { eachTlbEntry, type SpaceCore } from "./spaceCore.ts";
import { allVmas, fileIndexOf, findVma, vmaAnon, vmaEnd, vmaFile, vmaFlags, vmaStart } from "./vma.ts";
import { eachTrackedPage } from "./trackers.ts";
import { checkHeldRuns, viewedFrames } from "./views.ts";

/** What is wrong with a valid entry, given its mapping. */
function checkEntry(space: SpaceCore, vma: Vma, vpn: number, pte: number): string | undefined {
  const { mm } = space;
  const { frames } = mm;
  const pfn = pfnOfPte(pte);
  if (vma === 0) return `maps frame ${pfn} outside every mapping`;
  const flags = vmaFlags(space, vma);
  const shared = (flags & VM_SHARED) !== 0;
  const writable = (pte & PTE_WRITE) !== 0;
  if (writable && (flags & VM_WRITE) === 0) return "is writable in a read-only mapping";
  if ((pte & PTE_READ) !== 0 && (flags & VM_PROT) === 0)
    return "is readable in a mapping that allows nothing";
  if (pfn === ZERO_PFN) return writable ? "maps the zero page writable" : undefined;
  if (frames.refcount(pfn) === 0) return `maps the free frame ${pfn}`;
  if (writable && (pte & PTE_DIRTY) === 0) return "is writable and clean (T2)";
  if (writable && !shared && (pte & PTE_EXCLUSIVE) === 0) return "is private, writable and not its own";
  const anonymous = (frames.flags(pfn) & PG_ANON) !== 0;
  if ((pte & PTE_EXCLUSIVE) !== 0 && (!anonymous || frames.mapcount(pfn) !== 1))
    return `has frame ${pfn} for its own, which is mapped ${frames.mapcount(pfn)} times or not anonymous`;
  const file = vmaFile(space, vma);
  if (file === 0 || anonymous)
    return anonymous && !shared
      ? checkAnonymousEntry(space, vma, vpn, pfn)
      : `has a frame of the wrong kind (${pfn})`;
  const cached = fileAt(mm, file).frameOf(fileIndexOf(space, vma, vpn));
  if (cached !== pfn) return `maps frame ${pfn}, its file has the page in frame ${cached}`;
  if (writable && (frames.flags(pfn) & PG_DIRTY) === 0) return `is writable, and frame ${pfn} is clean`;
  return undefined;
}

/** True for an entry that counts as a mapping of its page. */
const mapsPage = (pte: number): boolean =>
  isValid(pte) || kindOfPte(pte) === PTE_DEVICE_PRIVATE || kindOfPte(pte) === PTE_DEVICE_EXCLUSIVE;

/** What is wrong with an entry of a page that no agent can get at, given its mapping. */
function checkSpecialEntry(space: SpaceCore, vma: Vma, vpn: number, pte: number): string | undefined {
  const { frames } = space.mm;
  const pfn = pfnOfPte(pte);
  if (Atomics.load(space.agent.words, space.slot + SP_SPECIAL) === 0)
    return "is special, and its space does not say so";
  if (kindOfPte(pte) === PTE_MIGRATION) return "is on its way at rest (M1)";
  if (vma === 0 || (vmaFlags(space, vma) & VM_SHARED) !== 0)
    return `has page ${pfn} outside every private mapping`;
  if ((kindOfPte(pte) === PTE_DEVICE_PRIVATE) !== frames.isDevice(pfn))
    return `has page ${pfn} of the wrong kind`;
  if (frames.refcount(pfn) === 0) return `has the free page ${pfn}`;
  const own = (pte & PTE_EXCLUSIVE) !== 0;
  if (own && frames.mapcount(pfn) !== 1)
    return `has page ${pfn} for its own, which is mapped ${frames.mapcount(pfn)} times`;
  if (kindOfPte(pte) === PTE_DEVICE_EXCLUSIVE && !own) return "is a device's own and not its space's (X2)";
  return checkAnonymousEntry(space, vma, vpn, pfn);
}

/** A2, but for what only the tree can say. */
function checkAnonymousEntry(space: SpaceCore, vma: Vma, vpn: number, pfn: number): string | undefined {
  const { mm } = space;
  const { frames } = mm;
  const anon = vmaAnon(space, vma);
  if (anon === 0) return `maps the anonymous frame ${pfn} in a mapping without anon_vma (A2)`;
  const home = frames.mapping(pfn) as AnonVma;
  if (!descends(mm, anon, home) || homeOf(mm, home) !== home)
    return `maps frame ${pfn} of anon_vma ${home}, which is not above that of the mapping, ${anon} (A2)`;
  if (frames.index(pfn) !== fileIndexOf(space, vma, vpn))
    return `maps frame ${pfn} of offset ${frames.index(pfn)} at offset ${fileIndexOf(space, vma, vpn)} (A2)`;
  return undefined;
}

/** A2: the entries that the reverse mapping of an anonymous frame finds, less than none if it finds something twice. */
function foundEntries(mm: Mm, pfn: number): number {
  const mappings = anonMappingsOf(mm, pfn);
  const places = new Set<string>();
  for (const { space, vpn } of mappings) {
    const pte = loadPte(mm.spaceAt(space), vpn);
    if (mapsPage(pte) && pfnOfPte(pte) === pfn) places.add(`${space} ${vpn}`);
  }
  const unique = new Set(mappings.map(({ space, vpn }) => `${space} ${vpn}`)).size === mappings.length;
  releaseMappings(mm, mappings);
  return unique ? places.size : -1;
}

/** What is counted of anon_vmas on the way through all spaces. */
interface AnonCounts {
  /** Vmas by anon_vma. */
  readonly vmas: Map<AnonVma, number>;
}

/** A1 for one vma. */
function checkAnonNode(space: SpaceCore, vma: Vma, counts: AnonCounts): string | undefined {
  const { agent, mm } = space;
  const anon = vmaAnon(space, vma);
  const node = vma + VMA_ANON_NODE;
  const where = `A1: the mapping at ${vmaStart(space, vma)} of space ${space.id}`;
  if (anon === 0) return itLinked(agent, node) ? `${where} has no anon_vma and is in a tree` : undefined;
  counts.vmas.set(anon, (counts.vmas.get(anon) ?? 0) + 1);
  if (!itLinked(agent, node)) return `${where} has anon_vma ${anon} and is in no tree`;
  const first = fileIndexOf(space, vma, vmaStart(space, vma) / mm.pageSize) >>> 0;
  const pages = (vmaEnd(space, vma) - vmaStart(space, vma)) / mm.pageSize;
  if (itStart(agent, node) !== first || itLast(agent, node) !== first + pages - 1)
    return `${where} stands in its family's tree with other offsets`;
  return undefined;
}

/** A1 and A3 for all families. Preconditions: the vmas of all spaces are in `counts`. */
function checkFamilies(mm: Mm, { vmas }: AnonCounts): string | undefined {
  const { agent } = mm;
  const w = agent.words;
  const uses = new Map(vmas);
  const roots = new Map<AnonVma, number>();
  // Records without vmas are found from those below them.
  for (const [anon, count] of vmas) {
    const root = rootOf(mm, anon);
    roots.set(root, (roots.get(root) ?? 0) + count);
  }
  const seen = new Set<AnonVma>();
  for (const anon of vmas.keys()) {
    for (let at = anon; at !== 0 && !seen.has(at);) {
      seen.add(at);
      const parent = Atomics.load(w, at + AV_PARENT) as AnonVma;
      if (parent !== 0) uses.set(parent, (uses.get(parent) ?? 0) + 1);
      at = parent;
    }
  }
  for (const anon of seen) {
    const counted = Atomics.load(w, anon + AV_USES);
    if (counted !== uses.get(anon))
      return `A3: anon_vma ${anon} has ${uses.get(anon)} uses, counted ${counted}`;
  }
  for (const [root, count] of roots) {
    const wrong = checkIntervalTree(agent, root + AV_VMAS);
    if (wrong !== undefined) return `the tree of family ${root}: ${wrong}`;
    if (Atomics.load(w, root + AV_LOCK) !== 0) return `the lock of family ${root} is held at rest`;
    let nodes = 0;
    for (let node = itLowest(agent, root + AV_VMAS); node !== 0; node = itSuccessor(agent, node)) nodes++;
    if (nodes !== count)
      return `A1: ${nodes} mappings are in the tree of family ${root}, ${count} belong there`;
  }
  return undefined;
}

/** T1 and T2: what this agent's TLB says is what the page table says. */
function checkTlb(space: SpaceCore): string | undefined {
  const { agent } = space;
  if (agent.wanted) return undefined;
  let wrong: string | undefined;
  eachTlbEntry(space, (vpn, pfn, write) => {
    const pte = loadPte(space, vpn);
    const right =
      isValid(pte) &&
      pfnOfPte(pte) === pfn &&
      (pte & PTE_READ) !== 0 &&
      (!write || (pte & PTE_WRITTEN) === PTE_WRITTEN);
    if (!right)
      wrong ??= `page ${vpn} of space ${space.id} is in the TLB of agent ${agent.slot} (frame ${pfn}), not in the page table`;
  });
  return wrong;
}

function checkVmas(space: SpaceCore, counts: AnonCounts): string | undefined {
  let end = 0;
  let wrong: string | undefined;
  for (const vma of allVmas(space)) {
    if (vmaStart(space, vma) < end || vmaEnd(space, vma) <= vmaStart(space, vma))
      wrong ??= `space ${space.id} has overlapping or empty mappings at ${vmaStart(space, vma)}`;
    end = vmaEnd(space, vma);
    const fault = checkAnonNode(space, vma, counts);
    wrong ??= fault;
  }
  return wrong;
}

/** Preconditions: no operation runs in any agent. */
export function checkMemory(mm: Mm): string | undefined {
  const { agent, frames } = mm;
  const w = agent.words;
  const maps = new Int32Array(frames.deviceEnd);
  const references = new Int32Array(frames.deviceEnd);
  /** Pages of spaces that have a frame: more than its mappings, where they share a table. */
  const places = new Int32Array(frames.deviceEnd);
  const tables = new Map<number, { spaces: number; owned: boolean }>();
  const anons: AnonCounts = { vmas: new Map() };
  let wrong: string | undefined = frames.check() ?? checkHeap(agent, mm.heap);
  const note = (text: string): void => {
    wrong ??= text;
  };
  const unwritten = checkTrackers(mm, note);
  for (const slot of mm.allSpaces()) {
    const space = mm.spaceAt(slot);
    wrong ??= checkIntervalTree(agent, slot + SP_VMAS) ?? checkSubscriptions(space.notifiers.context);
    const fault = checkVmas(space, anons);
    wrong ??= fault ?? checkTlb(space);
    let shared = 0;
    radixStretches(w, Atomics.load(w, slot + SP_PGD), 0, INDEX_END, (first, vpn, count, pointer) => {
      const isShared = (Atomics.load(w, pointer) & TABLE_SHARED) !== 0;
      if (isShared) shared++;
      const others = tables.get(first);
      tables.set(first, { spaces: (others?.spaces ?? 0) + 1, owned: !isShared || (others?.owned ?? false) });
      for (let k = 0; k < count; k++) {
        const pte = Atomics.load(w, first + k);
        if (pte === 0) continue;
        const where = `page ${vpn + k} of space ${space.id}`;
        if (isBusy(pte)) note(`${where} is busy at rest`);
        if (kindOfPte(pte) !== 0) {
          const fault = checkSpecialEntry(space, findVma(space, (vpn + k) * mm.pageSize), vpn + k, pte);
          if (fault !== undefined) note(`${where} ${fault}`);
        }
        if (!mapsPage(pte)) continue;
        const fault = isValid(pte)
          ? checkEntry(space, findVma(space, (vpn + k) * mm.pageSize), vpn + k, pte)
          : undefined;
        if (fault !== undefined) note(`${where} ${fault}`);
        const pfn = pfnOfPte(pte);
        if (!isShared && (pte & PTE_WRITE) !== 0 && unwritten.has(pfn))
          note(`W1: ${where} is writable, and its frame ${pfn} counts as not written`);
        places[pfn]!++;
        if (others) continue; // one mapping for all who have the table
        maps[pfn]!++;
        references[pfn]!++;
      }
    });
    if (Atomics.load(w, slot + SP_SHARED) !== shared)
      note(`S4: space ${space.id} has ${shared} shared tables, counted ${Atomics.load(w, slot + SP_SHARED)}`);
    if (Atomics.load(w, slot + SP_MIGRATING) !== 0)
      note(`M2: space ${space.id} has pages on their way at rest`);
  }
  for (const [table, { spaces, owned }] of tables) {
    const counted = Math.max(1, Atomics.load(w, blockNote(agent, mm.heap, table)));
    if (counted !== spaces) note(`S1: the page table at ${table} is in ${spaces} spaces, counted ${counted}`);
    if (spaces > 1 && owned) note(`S2: the page table at ${table} is in ${spaces} spaces, and one's own`);
  }
  wrong ??= checkFamilies(mm, anons);
  for (const file of mm.allFiles()) {
    wrong ??= checkIntervalTree(agent, file + FL_VMAS);
    if (Atomics.load(w, file + FL_LOCK) !== 0) note(`the lock of file at ${file} is held at rest`);
    checkFilePages(mm, file, references, note);
  }
  for (let slot = 0; slot < mm.maxAgents; slot++) {
    for (const pfn of viewedFrames(mm, slot)) references[pfn]!++;
    wrong ??= checkHeldRuns(mm, slot);
  }
  for (let pfn = 1; pfn < frames.deviceEnd; pfn++) {
    if (frames.mapcount(pfn) !== maps[pfn])
      note(`F4: frame ${pfn} is mapped ${maps[pfn]} times, counted ${frames.mapcount(pfn)}`);
    // Only where all else is right: it follows what the frame and the trees say.
    if (wrong === undefined && maps[pfn] !== 0 && (frames.flags(pfn) & PG_ANON) !== 0) {
      const found = foundEntries(mm, pfn);
      if (found !== places[pfn])
        note(`A2: frame ${pfn} is at ${places[pfn]} places, its reverse mapping finds ${found}`);
    }
    if ((frames.flags(pfn) & PG_LOCK_MASK) !== 0) note(`frame ${pfn} is locked at rest`);
    if (frames.refcount(pfn) !== references[pfn])
      note(`F4: frame ${pfn} has ${frames.refcount(pfn)} references, ${references[pfn]} are in use`);
  }
  return wrong;
}

/** W3. Returns the frames that nobody may write to without a fault, for W1. */
function checkTrackers(mm: Mm, note: (text: string) => void): Set<number> {
  const unwritten = new Set<number>();
  for (const slot of mm.allSpaces()) {
    const space = mm.spaceAt(slot);
    eachTrackedPage(space, (vpn, written, away) => {
      if (written && !away) return;
      const pte = loadPte(space, vpn);
      if (!written && isValid(pte)) unwritten.add(pfnOfPte(pte));
      // What a dead agent had away may be unmapped since.
      if (!away || !isValid(pte)) return;
      if ((pte & PTE_EXCLUSIVE) === 0 || (pte & (PTE_READ | PTE_WRITE)) !== 0)
        note(`W3: page ${vpn} of space ${space.id} is away, and can be used or is not its mapping's own`);
    });
  }
  return unwritten;
}

function checkFilePages(mm: Mm, file: File, references: Int32Array, note: (text: string) => void): void {
  const { agent, frames } = mm;
  const w = agent.words;
  let pages = 0;
  radixStretches(w, Atomics.load(w, file + FL_ROOT), 0, INDEX_END, (first, index, count) => {
    for (let k = 0; k < count; k++) {
      const pfn = Atomics.load(w, first + k) - 1;
      if (pfn < 0) continue;
      pages++;
      references[pfn]!++;
      if (frames.mapping(pfn) !== file || frames.index(pfn) !== index + k) {
        note(`C1: page ${index + k} of file at ${file} is in frame ${pfn}, which says otherwise`);
      }
    }
  });
  const counted = Atomics.load(w, file + FL_PAGES);
  if (counted !== pages) {
    note(`file at ${file} (kind ${Atomics.load(w, file + FL_KIND)}) has ${pages} pages, counted ${counted}`);
  }
}
