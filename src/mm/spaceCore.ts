/**
 * A space as the inner functions of the row see it, and this agent's TLB of it.
 *
 * The TLB lies in the arena, so that others can probe it, and is written by its owner only, so that its owner reads it
 * with plain loads. It is direct-mapped: two words an entry, a tag and where the frame lies.
 *
 *   tag    the virtual page, with TAG_FAR set for a frame outside segment 0; for nothing TAG_NONE, or in any entry but the
 *          first 0, which only page 0 would match, and that is looked for in the first
 *   base   near: byte of the frame in segment 0; far: frame number shifted left; TLB_WRITE in bit 0
 *
 * Invariants
 *   T1  An entry exists only while the page-table entry maps that frame readable, or until the next safepoint after an
 *       invalidator asked for a flush.
 *   T2  An entry with TLB_WRITE exists only while the page-table entry is writable, dirty and soft-dirty; or as T1.
 *   T4  The spare table, from #spareDirty on, has what this one had before it was taken out of use; nobody looks there.
 *   T3  `tlb` is the real table only inside a turn; between turns it is a table that misses, so that a hit needs no check.
 *
 * Refill: store the entry, then read the page-table entry again, and the pointer to its table, and drop the entry if either
 * changed. An invalidator changes one of them and then probes. One of the two sees the other.
 */
import { MmError } from "../errors.ts";
import type { Notifiers } from "../notifier/index.ts";
import type { Agent } from "../sched/index.ts";
import { allocWords } from "../memory/index.ts";
import { WORD_BYTES } from "../units.ts";
import { SP_ID, SP_PGD, SP_STATE, type Space, SPACE_LIVE, spSpareTlbAt, spTlbAt } from "./layout.ts";
import type { Mm } from "./mm.ts";
import {
  isValid,
  pfnOfPte,
  PTE_ACCESSED,
  PTE_DIRTY,
  PTE_READ,
  PTE_SOFT_DIRTY,
  PTE_WRITE,
  PTE_WRITTEN,
} from "./pte.ts";
import { entryIn, radixPointer, TABLE_SHARED } from "./radix.ts";

export const TLB_WRITE = 0x1;
export const TLB_FLAGS = 0x1;
const TLB_ENTRY_WORDS = 2;
const TLB_ENTRY_SHIFT = 1;
const TAG_FAR = -0x80000000;
/** The far tag of page 0, which nothing maps and nobody may look for. */
export const TAG_NONE: number = TAG_FAR;
/** The lowest page that can be mapped, as vm.mmap_min_addr. */
export const FIRST_VPN = 1;
/** Pages from here on are not mapped: their far tags look like negative addresses. */
export const LAST_VPN: number = 2 ** 31 - 2 ** 20;

/** Shorter ranges are dropped page by page. Linux: tlb_single_page_flush_ceiling. */
const FLUSH_PAGES = 64;

/** Words of the spare table that each refill clears: long before the next flush of everything it is clean. */
const SPARE_STEP = 256;

/** From this many pages on, a Wasm kernel drops them faster than a loop here. */
const KERNEL_PAGES = 16;

/** One entry that never matches. */
const MISS_TABLE: Int32Array = new Int32Array([TAG_NONE, 0]);

export class SpaceCore {
  readonly mm: Mm;
  readonly agent: Agent;
  readonly slot: Space;
  readonly id: number;
  readonly pgd: number;
  readonly notifiers: Notifiers;
  /** What accessors look at; see T3. */
  protected tlb: Int32Array = MISS_TABLE;
  protected tlbMask = 0;
  #table: Int32Array | undefined;
  #spare: Int32Array | undefined;
  /** First word of the spare table that has not been cleared yet. */
  #spareDirty = 0;
  /** How often something was put in the table since it was empty: it holds no more than that. */
  #filled = 0;

  constructor(mm: Mm, slot: Space, makeNotifiers: (space: SpaceCore) => Notifiers) {
    this.mm = mm;
    this.agent = mm.agent;
    this.slot = slot;
    this.id = Atomics.load(mm.agent.words, slot + SP_ID);
    this.pgd = Atomics.load(mm.agent.words, slot + SP_PGD);
    this.notifiers = makeNotifiers(this);
  }

  /** False once the space has begun to exit, or its record belongs to another. */
  get live(): boolean {
    const w = this.agent.words;
    return (
      Atomics.load(w, this.slot + SP_STATE) === SPACE_LIVE && Atomics.load(w, this.slot + SP_ID) === this.id
    );
  }

  /**
   * As `live`, with plain loads. For who has mmapLock, or a TLB that is to go: what exit() does there it does after it
   * has said that the space exits. Elsewhere the answer may be old, as that of `live` is when it is used.
   */
  get stillLive(): boolean {
    const w = this.agent.words;
    return w[this.slot + SP_STATE] === SPACE_LIVE && w[this.slot + SP_ID] === this.id;
  }

  // ---- the agent's own TLB -------------------------------------------------------------------------------------------

  /** Lets accessors hit, until the turn ends. Preconditions: in a turn. Errors: ESRCH. */
  activate(): void {
    this.tlb = this.#table ??= this.#makeTable();
    this.tlbMask = this.mm.tlbEntries - 1;
  }

  /** From here on exit() waits for this agent's turns. */
  #makeTable(): Int32Array {
    const { agent, mm } = this;
    const words = tlbWords(mm.tlbEntries);
    const at = mm.alloc(words, "access");
    const table = agent.words.subarray(at, at + words);
    table[0] = TAG_NONE; // the others are 0
    mm.protect(this.slot);
    const { live } = this;
    if (live) Atomics.store(agent.words, spTlbAt(this.slot, mm.maxAgents, agent.slot), at);
    mm.unprotect();
    if (live) return table;
    mm.free(at, words);
    throw new MmError("ESRCH", "access", "the space is exiting or has exited");
  }

  deactivate(): void {
    this.tlb = MISS_TABLE;
    this.tlbMask = 0;
  }

  get active(): boolean {
    return this.tlb !== MISS_TABLE;
  }

  /** Forgets the table: the space is gone, and the table with it. */
  detachTlb(): void {
    this.deactivate();
    this.#table = undefined;
    this.#spare = undefined;
  }

  /** Gives the table back. Preconditions: the agent leaves the memory. */
  freeTlb(): void {
    if (!this.#table) return;
    const { mm } = this;
    mm.protect(this.slot);
    // Of a space that exits the tables go with the record.
    const tables = this.live ? takeTlbs(mm, this.slot, this.agent.slot) : [];
    mm.unprotect();
    this.detachTlb();
    for (const at of tables) mm.free(at, tlbWords(mm.tlbEntries));
  }

  /** Empties the TLB by taking the other table: to clear a large one takes longer than most operations that ask for it. */
  #flushAll(table: Int32Array): void {
    const { agent, mm } = this;
    const w = agent.words;
    const spareAt = spSpareTlbAt(this.slot, mm.maxAgents, agent.slot);
    let spare = this.#spare;
    if (spare) this.#clearSpare(spare, spare.length);
    else {
      const at = allocWords(agent, mm.heap, table.length);
      if (at === 0) {
        // A store and a load in the one order of all Atomics: what was stored through the entries is visible before one goes.
        Atomics.store(table, 0, TAG_NONE);
        Atomics.load(table, 0);
        mm.frames.kernels.fill(table.byteOffset, 0, table.byteLength);
        table[0] = TAG_NONE;
        return;
      }
      spare = w.subarray(at, at + table.length);
    }
    spare[0] = TAG_NONE;
    Atomics.store(w, spareAt, table.byteOffset / WORD_BYTES);
    // Atomic, as every store to a tag; nobody else has seen the new table's words.
    Atomics.store(w, spTlbAt(this.slot, mm.maxAgents, agent.slot), spare.byteOffset / WORD_BYTES);
    if (this.active) this.tlb = spare;
    this.#table = spare;
    this.#spare = table;
    this.#spareDirty = 0;
    this.#filled = 0;
  }

  /** Clears the next `words` words of the spare table. */
  #clearSpare(spare: Int32Array, words: number): void {
    const count = Math.min(words, spare.length - this.#spareDirty);
    if (count <= 0) return;
    this.mm.frames.kernels.fill(spare.byteOffset + this.#spareDirty * WORD_BYTES, 0, count * WORD_BYTES);
    this.#spareDirty += count;
  }

  /** Drops this agent's translations of `[start, end)` (pages); everything for `end` 0. */
  flushOwn(start: number, end: number): void {
    const table = this.#table;
    if (!table) return;
    if (!this.stillLive) {
      this.detachTlb();
      return;
    }
    const mask = this.mm.tlbEntries - 1;
    const pages = end - start;
    // What else it holds comes back by refills, each of which costs about two of these steps.
    if (end === 0 || pages > mask || (pages >= FLUSH_PAGES && pages * 2 >= this.#filled)) {
      if (this.#filled !== 0) this.#flushAll(table);
      return;
    }
    if (pages >= KERNEL_PAGES) {
      this.mm.frames.kernels.dropTags(table.byteOffset, mask, start, pages, TAG_FAR, TAG_NONE);
      return;
    }
    for (let vpn = start; vpn < end; vpn++) {
      const k = (vpn & mask) << TLB_ENTRY_SHIFT;
      const tag = table[k]!;
      // Atomic, as every store to a tag: the plain stores made through the entry are visible before it goes.
      if (tag === vpn || tag === (vpn | TAG_FAR)) Atomics.store(table, k, TAG_NONE);
    }
  }

  /**
   * Looks the page up in the page table and makes a TLB entry of it. False if there is no such translation: a fault.
   * Sets the accessed bit, and needs a writable, dirty, soft-dirty entry for `write`. Never waits.
   */
  refill(vpn: number, write: boolean): boolean {
    const w = this.agent.words;
    const at = radixPointer(w, this.pgd, vpn);
    const pointer = at === 0 ? 0 : w[at]!;
    if (pointer === 0) return false;
    const entry = entryIn(pointer, vpn);
    let pte = w[entry]!; // plain, as the pointer: #insert() looks again
    if ((pointer & TABLE_SHARED) !== 0) {
      // Shared with other spaces: not to be written through, and the accessed bit is not ours to set.
      if (write || !isValid(pte) || (pte & PTE_READ) === 0) return false;
      return this.#insert(vpn, at, pointer, pte, false);
    }
    for (;;) {
      if (!isValid(pte) || (pte & PTE_READ) === 0) return false;
      const needed = write ? PTE_WRITTEN : PTE_ACCESSED;
      if ((pte & needed) === needed) break;
      // Dirty means more than a bit for shared files: the fault path knows.
      if (
        write &&
        (pte & (PTE_WRITE | PTE_DIRTY | PTE_SOFT_DIRTY)) !== (PTE_WRITE | PTE_DIRTY | PTE_SOFT_DIRTY)
      )
        return false;
      const seen = Atomics.compareExchange(w, entry, pte, pte | PTE_ACCESSED);
      pte = seen === pte ? pte | PTE_ACCESSED : seen;
    }
    return this.#insert(vpn, at, pointer, pte, write);
  }

  #insert(vpn: number, at: number, pointer: number, pte: number, write: boolean): boolean {
    const { frames } = this.mm;
    const w = this.agent.words;
    const table = this.tlb;
    if (this.#spare && this.#spareDirty < table.length) this.#clearSpare(this.#spare, SPARE_STEP);
    const k = (vpn & this.tlbMask) << TLB_ENTRY_SHIFT;
    const pfn = pfnOfPte(pte);
    const near = frames.segmentOf(pfn) === 0;
    // Only this agent reads the base. The atomic store of the tag also makes visible what was stored through the entry
    // that goes, before that entry is gone.
    table[k + 1] = (near ? frames.offsetOf(pfn) : pfn << 1) | (write ? TLB_WRITE : 0);
    Atomics.store(table, k, near ? vpn : vpn | TAG_FAR);
    this.#filled++;
    // The pointer, too: a table that was shared is replaced by a copy before one of its entries is changed.
    const now = Atomics.load(w, at) === pointer ? Atomics.load(w, entryIn(pointer, vpn)) : 0;
    const same =
      isValid(now) &&
      pfnOfPte(now) === pfn &&
      (now & PTE_READ) !== 0 &&
      (!write || (now & PTE_WRITTEN) === PTE_WRITTEN);
    if (!same) Atomics.store(table, k, TAG_NONE);
    return same;
  }

  /** Frame of a TLB entry for `vpn`, -1 if there is none, or none for writing. Preconditions: active; a page that can be mapped. */
  lookup(vpn: number, write: boolean): number {
    const table = this.tlb;
    const k = (vpn & this.tlbMask) << TLB_ENTRY_SHIFT;
    const tag = table[k]!;
    const base = table[k + 1]!;
    if (write && (base & TLB_WRITE) === 0) return -1;
    if (tag === vpn) return this.mm.frames.pfnAt((base & ~TLB_FLAGS) >>> 0);
    if (tag === (vpn | TAG_FAR)) return base >>> 1;
    return -1;
  }
}

/** True if the TLB at word `table` holds a page of `[start, end)`. Preconditions: few pages. */
export function tlbHolds(w: Int32Array, table: number, mask: number, start: number, end: number): boolean {
  for (let vpn = Math.max(start, FIRST_VPN); vpn < end; vpn++) {
    const tag = Atomics.load(w, table + ((vpn & mask) << TLB_ENTRY_SHIFT));
    if (tag === vpn || tag === (vpn | TAG_FAR)) return true;
  }
  return false;
}

/** Takes the tables of an agent's TLB out of a space's record; the caller frees them. */
export function takeTlbs(mm: Mm, space: Space, slot: number): number[] {
  const w = mm.agent.words;
  const places = [spTlbAt(space, mm.maxAgents, slot), spSpareTlbAt(space, mm.maxAgents, slot)];
  return places.map((at) => Atomics.exchange(w, at, 0)).filter((at) => at !== 0);
}

export const tlbWords = (entries: number): number => entries * TLB_ENTRY_WORDS;

/** Calls `visit(page, frame, for writing)` for each entry of this agent's TLB of a space. For checks. */
export function eachTlbEntry(
  space: SpaceCore,
  visit: (vpn: number, pfn: number, write: boolean) => void,
): void {
  const { agent, mm } = space;
  const table = Atomics.load(agent.words, spTlbAt(space.slot, mm.maxAgents, agent.slot));
  if (table === 0) return;
  for (let k = table; k < table + tlbWords(mm.tlbEntries); k += TLB_ENTRY_WORDS) {
    const tag = Atomics.load(agent.words, k);
    if (tag === TAG_NONE || tag === 0) continue;
    const base = Atomics.load(agent.words, k + 1);
    const far = tag < 0;
    const pfn = far ? base >>> 1 : mm.frames.pfnAt((base & ~TLB_FLAGS) >>> 0);
    visit(far ? tag & ~TAG_FAR : tag, pfn, (base & TLB_WRITE) !== 0);
  }
}
