/**
 * Page-table entries. Linux: pte_t.
 *
 *   bit 0          PTE_VALID: the entry maps a frame
 *   valid          READ WRITE ACCESSED DIRTY SOFT_DIRTY EXCLUSIVE, frame number from bit 8
 *   not valid      0 = nothing; PTE_BUSY: a change is on its way by the agent named, the frame number is kept;
 *                  PTE_GUARD: an access is a SegvError
 *
 * From -> to, all by compare-exchange
 *   none -> valid      fault, under mmapLock for reading; a file page also under its folio lock
 *   valid -> valid     more rights or bits: fault, TLB refill; fewer: mprotect, write-back, aging, then the shootdown
 *   valid -> busy      unmap, dontneed, copy-on-write: while old translations are being given up
 *   busy -> none/valid the same operation, after the last acknowledgement, or putting back what was there;
 *                      the reaper, if the agent died
 *   valid -> none      reclaim, under the folio lock, then the shootdown
 *   none <-> guard     madvise guard-install and -remove, under mmapLock; unmapping
 */
import type { Pfn } from "../units.ts";

export const PTE_VALID = 0x1;
export const PTE_READ = 0x2;
export const PTE_WRITE = 0x4;
export const PTE_ACCESSED = 0x8;
export const PTE_DIRTY = 0x10;
export const PTE_SOFT_DIRTY = 0x20;
/** The frame is anonymous and only this entry maps it: a write needs no copy. */
export const PTE_EXCLUSIVE = 0x40;
export const PTE_PFN_SHIFT = 8;
export const PTE_PFN = -0x100;

/** Not valid, and waited for by faults. The bits above name the agent that settles it. */
export const PTE_BUSY = 0x2;
const BUSY_SLOT_SHIFT = 2;
const BUSY_SLOT_MASK = 0x3f;

/** A guard page: nothing is there, and nothing may come. Neither valid nor busy. */
export const PTE_GUARD = 0x80;

/** What a write through the entry leaves behind; a translation for writing exists only while all are set. */
export const PTE_WRITTEN: number = PTE_WRITE | PTE_ACCESSED | PTE_DIRTY | PTE_SOFT_DIRTY;

/** Frames at most, by the bits of an entry. */
export const PFN_LIMIT: number = 2 ** (32 - PTE_PFN_SHIFT);

export const pfnOfPte = (pte: number): Pfn => (pte >>> PTE_PFN_SHIFT) as Pfn;
export const makePte = (pfn: number, flags: number): number => (pfn << PTE_PFN_SHIFT) | flags;
export const isValid = (pte: number): boolean => (pte & PTE_VALID) !== 0;
export const isBusy = (pte: number): boolean => (pte & PTE_VALID) === 0 && (pte & PTE_BUSY) !== 0;
/** The entry while agent `slot` takes its frame away. */
export const busyOf = (pte: number, slot: number): number =>
  makePte(pfnOfPte(pte), PTE_BUSY | (slot << BUSY_SLOT_SHIFT));
/** The agent that settles a busy entry. */
export const busySlot = (pte: number): number => (pte >>> BUSY_SLOT_SHIFT) & BUSY_SLOT_MASK;
/** What a busy entry becomes when its agent has died: the frame it had, without rights that a fault does not give back. */
export const settleBusy = (pte: number): number =>
  makePte(pfnOfPte(pte), PTE_VALID | PTE_READ | PTE_DIRTY | PTE_SOFT_DIRTY);
