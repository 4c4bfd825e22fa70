/**
 * Verifies every invariant of a memory that is at rest: the frame table against page tables and page caches, page
 * tables against vmas and files, this agent's TLBs against page tables, the trees, the subscriptions, the heap.
 * Names the first thing that is wrong.
 */
import {
  blockNote,
  checkHeap,
  checkIntervalTree,
  PG_ANON,
  PG_DIRTY,
  PG_LOCK_MASK,
  ZERO_PFN,
} from "../memory/index.ts";
import { checkSubscriptions } from "../notifier/index.ts";
import {
  type File,
  FL_KIND,
  FL_LOCK,
  FL_PAGES,
  FL_ROOT,
  FL_VMAS,
  SP_PGD,
  SP_SHARED,
  SP_VMAS,
  VM_PROT,
  VM_SHARED,
  VM_WRITE,
  type Vma,
} from "./layout.ts";
import type { Mm } from "./mm.ts";
import { fileAt } from "./pageCache.ts";
import {
  isBusy,
  isValid,
  pfnOfPte,
  PTE_DIRTY,
  PTE_EXCLUSIVE,
  PTE_READ,
  PTE_WRITE,
  PTE_WRITTEN,
} from "./pte.ts";
import { INDEX_END, radixFind, radixStretches, TABLE_SHARED } from "./radix.ts";
import { eachTlbEntry, type SpaceCore } from "./spaceCore.ts";
import { allVmas, fileIndexOf, findVma, vmaEnd, vmaFile, vmaFlags, vmaStart } from "./vma.ts";
import { Views } from "./views.ts";

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
    return anonymous && !shared ? undefined : `has a frame of the wrong kind (${pfn})`;
  const cached = fileAt(mm, file).frameOf(fileIndexOf(space, vma, vpn));
  if (cached !== pfn) return `maps frame ${pfn}, its file has the page in frame ${cached}`;
  if (writable && (frames.flags(pfn) & PG_DIRTY) === 0) return `is writable, and frame ${pfn} is clean`;
  return undefined;
}

/** T1 and T2: what this agent's TLB says is what the page table says. */
function checkTlb(space: SpaceCore): string | undefined {
  const { agent, pgd } = space;
  if (agent.wanted) return undefined;
  let wrong: string | undefined;
  eachTlbEntry(space, (vpn, pfn, write) => {
    const entry = radixFind(agent.words, pgd, vpn);
    const pte = entry === 0 ? 0 : Atomics.load(agent.words, entry);
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

function checkVmas(space: SpaceCore): string | undefined {
  let end = 0;
  let wrong: string | undefined;
  for (const vma of allVmas(space)) {
    if (vmaStart(space, vma) < end || vmaEnd(space, vma) <= vmaStart(space, vma))
      wrong ??= `space ${space.id} has overlapping or empty mappings at ${vmaStart(space, vma)}`;
    end = vmaEnd(space, vma);
  }
  return wrong;
}

/** Preconditions: no operation runs in any agent. */
export function checkMemory(mm: Mm): string | undefined {
  const { agent, frames } = mm;
  const w = agent.words;
  const maps = new Int32Array(frames.count);
  const references = new Int32Array(frames.count);
  const tables = new Map<number, { spaces: number; owned: boolean }>();
  let wrong: string | undefined = frames.check() ?? checkHeap(agent, mm.heap);
  const note = (text: string): void => {
    wrong ??= text;
  };
  for (const slot of mm.allSpaces()) {
    const space = mm.spaceAt(slot);
    wrong ??= checkIntervalTree(agent, slot + SP_VMAS) ?? checkSubscriptions(space.notifiers.context);
    wrong ??= checkVmas(space) ?? checkTlb(space);
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
        if (!isValid(pte)) continue;
        const fault = checkEntry(space, findVma(space, (vpn + k) * mm.pageSize), vpn + k, pte);
        if (fault !== undefined) note(`${where} ${fault}`);
        if (others) continue; // one mapping for all who have the table
        const pfn = pfnOfPte(pte);
        maps[pfn]!++;
        references[pfn]!++;
      }
    });
    if (Atomics.load(w, slot + SP_SHARED) !== shared)
      note(`S4: space ${space.id} has ${shared} shared tables, counted ${Atomics.load(w, slot + SP_SHARED)}`);
  }
  for (const [table, { spaces, owned }] of tables) {
    const counted = Math.max(1, Atomics.load(w, blockNote(agent, mm.heap, table)));
    if (counted !== spaces) note(`S1: the page table at ${table} is in ${spaces} spaces, counted ${counted}`);
    if (spaces > 1 && owned) note(`S2: the page table at ${table} is in ${spaces} spaces, and one's own`);
  }
  for (const file of mm.allFiles()) {
    wrong ??= checkIntervalTree(agent, file + FL_VMAS);
    if (Atomics.load(w, file + FL_LOCK) !== 0) note(`the lock of file at ${file} is held at rest`);
    checkFilePages(mm, file, references, note);
  }
  for (let slot = 0; slot < mm.maxAgents; slot++) {
    for (const pfn of new Views(mm, slot).frames()) references[pfn]!++;
  }
  for (let pfn = 1; pfn < frames.count; pfn++) {
    if (frames.mapcount(pfn) !== maps[pfn])
      note(`F4: frame ${pfn} is mapped ${maps[pfn]} times, counted ${frames.mapcount(pfn)}`);
    if ((frames.flags(pfn) & PG_LOCK_MASK) !== 0) note(`frame ${pfn} is locked at rest`);
    if (frames.refcount(pfn) !== references[pfn])
      note(`F4: frame ${pfn} has ${frames.refcount(pfn)} references, ${references[pfn]} are in use`);
  }
  return wrong;
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
