/**
 * Page-table entries. Linux: pte_t.
 *
 *   bit 0          PTE_VALID: the entry maps a frame
 *   valid          READ WRITE ACCESSED DIRTY SOFT_DIRTY EXCLUSIVE, frame number from bit 8
 *   not valid      0 = nothing; PTE_BUSY: a change is on its way by the agent named, the frame number is kept;
 *                  PTE_GUARD: an access is a SegvError; PTE_POISON: an access is a BusError;
 *                  or one of three kinds (PTE_KIND) of a page that no agent can get at as it is, with its number and
 *                  the bits WRITE, SOFT_DIRTY and EXCLUSIVE as in a valid entry:
 *     PTE_DEVICE_PRIVATE    it is in the memory of a device, and counts as mapped
 *     PTE_DEVICE_EXCLUSIVE  it is in its frame, and counts as mapped, but a device has it for its own
 *     PTE_MIGRATION         it is being moved, by whoever has its lock; the entry holds no mapping
 *
 * From -> to, all by compare-exchange
 *   none -> valid      fault, under mmapLock for reading; a file page also under its folio lock
 *   valid -> valid     more rights or bits: fault, TLB refill; fewer: mprotect, write-back, aging, then the shootdown
 *   valid -> busy      unmap, dontneed, copy-on-write: while old translations are being given up
 *   busy -> none/valid the same operation, after the last acknowledgement, or putting back what was there;
 *                      the reaper, if the agent died
 *   valid -> none      reclaim, under the folio lock, then the shootdown
 *   none <-> guard     madvise guard-install and -remove, under mmapLock; unmapping
 *   valid -> busy -> migration, device-private -> busy -> migration, migration -> valid or device-private: migrate.ts
 *   none, zero page -> device-private: migrate.ts
 *   valid -> busy -> device-exclusive -> valid: exclusive.ts
 *   device-private -> poison: its device is gone, see device.ts
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

/** What was there is lost. Only unmapping takes it away. Linux: PTE_MARKER_POISONED. */
export const PTE_POISON = 0xc0;

/** Which kind of page an entry has that is neither valid nor busy. */
export const PTE_KIND = 0x18;
export const PTE_DEVICE_PRIVATE = 0x08;
export const PTE_DEVICE_EXCLUSIVE = 0x10;
export const PTE_MIGRATION = 0x18;
/** What such an entry keeps of a valid one. */
export const PTE_KEPT: number = PTE_WRITE | PTE_SOFT_DIRTY | PTE_EXCLUSIVE;

/** What a write through the entry leaves behind; a translation for writing exists only while all are set. */
export const PTE_WRITTEN: number = PTE_WRITE | PTE_ACCESSED | PTE_DIRTY | PTE_SOFT_DIRTY;

/** Frames at most, by the bits of an entry. */
export const PFN_LIMIT: number = 2 ** (32 - PTE_PFN_SHIFT);

export const pfnOfPte = (pte: number): Pfn => (pte >>> PTE_PFN_SHIFT) as Pfn;
export const makePte = (pfn: number, flags: number): number => (pfn << PTE_PFN_SHIFT) | flags;
export const isValid = (pte: number): boolean => (pte & PTE_VALID) !== 0;
export const isBusy = (pte: number): boolean => (pte & PTE_VALID) === 0 && (pte & PTE_BUSY) !== 0;
/** PTE_DEVICE_PRIVATE, PTE_DEVICE_EXCLUSIVE or PTE_MIGRATION; 0 for every other entry. */
export const kindOfPte = (pte: number): number =>
  (pte & (PTE_VALID | PTE_BUSY | PTE_GUARD)) === 0 ? pte & PTE_KIND : 0;
/** True for an entry of one of these kinds, or a poisoned one: what only unmapping and moving treat as they treat a page. */
export const isSpecial = (pte: number): boolean => kindOfPte(pte) !== 0 || pte === PTE_POISON;
/** An entry of a kind that has page `pfn`, and what another entry says of it. */
export const makeSpecial = (pfn: number, kind: number, pte: number): number =>
  makePte(pfn, kind | (pte & PTE_KEPT));

/** The valid entry of page `pfn` that a special one becomes. A page that can be written is dirty: T2. */
export const revivePte = (pfn: number, special: number, readable: boolean, writable: boolean): number =>
  makePte(
    pfn,
    PTE_VALID |
      PTE_DIRTY |
      (special & PTE_KEPT & ~PTE_WRITE) |
      (readable ? PTE_READ : 0) |
      (writable ? PTE_WRITE : 0),
  );

/** The entry while agent `slot` takes its frame away. */
export const busyOf = (pte: number, slot: number): number =>
  makePte(pfnOfPte(pte), PTE_BUSY | (slot << BUSY_SLOT_SHIFT));
/** The agent that settles a busy entry. */
export const busySlot = (pte: number): number => (pte >>> BUSY_SLOT_SHIFT) & BUSY_SLOT_MASK;
/** What a busy entry becomes when its agent has died: the page it had, without rights that a fault does not give back. */
export const settleBusy = (pte: number, onDevice: boolean): number =>
  makePte(
    pfnOfPte(pte),
    onDevice ? PTE_DEVICE_PRIVATE | PTE_SOFT_DIRTY : PTE_VALID | PTE_READ | PTE_DIRTY | PTE_SOFT_DIRTY,
  );
