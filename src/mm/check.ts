/**
 * Verifies every invariant of a memory that is at rest: the frame table against page tables and page caches, the trees,
 * the subscriptions, the heap. Names the first thing that is wrong.
 */
import { checkHeap, checkIntervalTree, PG_LOCK_MASK, ZERO_PFN } from "../memory/index.ts";
import { checkSubscriptions } from "../notifier/index.ts";
import { FL_KIND, FL_LOCK, FL_PAGES, FL_ROOT, FL_VMAS, SP_PGD, SP_VMAS, VM_SHARED } from "./layout.ts";
import type { Mm } from "./mm.ts";
import { isBusy, isValid, pfnOfPte, PTE_DIRTY, PTE_EXCLUSIVE, PTE_WRITE } from "./pte.ts";
import { INDEX_END, radixStretches } from "./radix.ts";
import { findVma, vmaFlags } from "./vma.ts";
import { Views } from "./views.ts";

/** Preconditions: no operation runs in any agent. */
export function checkMemory(mm: Mm): string | undefined {
  const { agent, frames } = mm;
  const w = agent.words;
  const maps = new Int32Array(frames.count);
  const references = new Int32Array(frames.count);
  let wrong: string | undefined = frames.check() ?? checkHeap(agent, mm.heap);
  const note = (text: string): void => {
    wrong ??= text;
  };
  for (const slot of mm.allSpaces()) {
    const space = mm.spaceAt(slot);
    wrong ??= checkIntervalTree(agent, slot + SP_VMAS) ?? checkSubscriptions(space.notifiers.context);
    radixStretches(w, Atomics.load(w, slot + SP_PGD), 0, INDEX_END, (first, vpn, count) => {
      for (let k = 0; k < count; k++) {
        const pte = Atomics.load(w, first + k);
        const where = `page ${vpn + k} of space ${space.id}`;
        if (isBusy(pte)) note(`${where} is busy at rest`);
        if (!isValid(pte)) continue;
        const pfn = pfnOfPte(pte);
        const vma = findVma(space, (vpn + k) * mm.pageSize);
        if (vma === 0) note(`${where} maps frame ${pfn} outside every mapping`);
        if (pfn === ZERO_PFN) {
          if ((pte & PTE_WRITE) !== 0) note(`${where} maps the zero page writable`);
          continue;
        }
        if (frames.refcount(pfn) === 0) note(`${where} maps the free frame ${pfn}`);
        if ((pte & PTE_WRITE) !== 0 && (pte & PTE_DIRTY) === 0) note(`${where} is writable and clean (T2)`);
        const shared = vma !== 0 && (vmaFlags(space, vma) & VM_SHARED) !== 0;
        if ((pte & PTE_WRITE) !== 0 && !shared && (pte & PTE_EXCLUSIVE) === 0)
          note(`${where} is private, writable and not its own`);
        maps[pfn]!++;
        references[pfn]!++;
      }
    });
  }
  for (const file of mm.allFiles()) {
    let pages = 0;
    wrong ??= checkIntervalTree(agent, file + FL_VMAS);
    if (Atomics.load(w, file + FL_LOCK) !== 0) note(`the lock of file at ${file} is held at rest`);
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
    if (counted !== pages)
      note(
        `file at ${file} (kind ${Atomics.load(w, file + FL_KIND)}) has ${pages} pages, counted ${counted}`,
      );
  }
  let pinned = 0;
  for (let slot = 0; slot < mm.maxAgents; slot++) pinned += new Views(mm, slot).count;
  for (let pfn = 1; pfn < frames.count; pfn++) {
    if (frames.mapcount(pfn) !== maps[pfn])
      note(`F4: frame ${pfn} is mapped ${maps[pfn]} times, counted ${frames.mapcount(pfn)}`);
    if ((frames.flags(pfn) & PG_LOCK_MASK) !== 0) note(`frame ${pfn} is locked at rest`);
    const extra = frames.refcount(pfn) - references[pfn]!;
    if (extra < 0)
      note(`F4: frame ${pfn} has ${frames.refcount(pfn)} references, ${references[pfn]} are in use`);
    pinned -= Math.max(0, extra);
  }
  if (pinned < 0) note(`${-pinned} frame references belong to nobody`);
  return wrong;
}
