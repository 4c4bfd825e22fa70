/** The events, the range and the callbacks of the contract. Linux: include/linux/mmu_notifier.h. */
import type { Op } from "../sched/index.ts";
import type { IntervalNotifier } from "./intervalNotifier.ts";
import type { MmuNotifier } from "./mmuNotifier.ts";
import type { Notifiers } from "./notifiers.ts";

/**
 * Why a range is invalidated. Linux: enum mmu_notifier_event.
 * Treating every event as "drop all translations of the range" is always safe, but for your own `Exclusive`.
 */
export const MmuNotifierEvent = {
  /** The mapping goes away, or moves. */
  Unmap: 0,
  /** Entries are cleared or replaced for another reason; the mapping stays. */
  Clear: 1,
  /** Permissions change in a way that follows from the mapping's new protection. */
  ProtectionVma: 2,
  /** Permissions of single pages are reduced; read the page tables again. */
  ProtectionPage: 3,
  /** Dirty tracking begins anew: the same pages, writes must be seen again. */
  SoftDirty: 4,
  /** The space is dying; interval notifiers only. */
  Release: 5,
  /** A driver collects or inserts pages; `owner` is set. */
  Migrate: 6,
  /** A page becomes device-exclusive; `owner` is set. */
  Exclusive: 7,
} as const;
export type MmuNotifierEvent = (typeof MmuNotifierEvent)[keyof typeof MmuNotifierEvent];

export type SpaceId = number;
export type IntervalId = number;
/** Names a driver in Migrate and Exclusive events; from memory.newOwnerId(). */
export type OwnerId = number;

/** Whatever has notifiers: an AddressSpace, or somebody else's primary MMU. */
export interface NotifierSpace {
  readonly id: SpaceId;
  readonly notifiers: Notifiers;
}

/** What is about to change. Linux: struct mmu_notifier_range. */
export interface MmuNotifierRange {
  readonly space: NotifierSpace;
  /** Bytes; `end` is exclusive. */
  readonly start: number;
  readonly end: number;
  readonly event: MmuNotifierEvent;
  /** False: answer now, or refuse. Linux: mmu_notifier_range_blockable(). */
  readonly blockable: boolean;
  /** Only with Migrate and Exclusive. */
  readonly owner?: OwnerId;
}

/** What a primary MMU says of a range; space and blockable are filled in. */
export interface RangeRequest {
  readonly start: number;
  readonly end: number;
  readonly event: MmuNotifierEvent;
  readonly owner?: OwnerId;
}

/** Promise: only in an agent that does not block. Promise and Op: only where the range is blockable. */
export type MaybeOp<T> = T | Promise<T> | Op<T>;

/**
 * Callbacks of a notifier that hears of the whole space. All optional. Linux: struct mmu_notifier_ops.
 * They run in the agent that registered them, at its safepoints; inside one, operations throw EDEADLK.
 */
export interface MmuNotifierOps {
  /** The space dies, or the notifier is unregistered: drop every translation for good. May come twice at once. */
  release?(notifier: MmuNotifier, space: NotifierSpace): MaybeOp<void>;
  /** Tests and clears the accessed state of `[start, end)` and drops it from the device's TLB. True: was young. Never waits. */
  clearFlushYoung?(notifier: MmuNotifier, space: NotifierSpace, start: number, end: number): boolean;
  /** As clearFlushYoung without the flush. */
  clearYoung?(notifier: MmuNotifier, space: NotifierSpace, start: number, end: number): boolean;
  /** Reports whether a page is young and changes nothing. */
  testYoung?(notifier: MmuNotifier, space: NotifierSpace, address: number): boolean;
  /**
   * Makes every translation of the range unusable before it returns; none may be made until the end.
   * False: cannot without waiting; allowed only where `range.blockable` is false, and then without an end op.
   */
  invalidateRangeStart?(notifier: MmuNotifier, range: MmuNotifierRange): MaybeOp<boolean | void>;
  /** The change is made. One for each start. */
  invalidateRangeEnd?(notifier: MmuNotifier, range: MmuNotifierRange): void;
}

/** The callback of an interval notifier. Linux: struct mmu_interval_notifier_ops. */
export interface MmuIntervalNotifierOps {
  /**
   * Under the lock that also guards the fill: calls `interval.setSeq(curSeq)`, whatever the event, then drops every
   * translation of the range. False: cannot without waiting; allowed only where `range.blockable` is false.
   */
  invalidate(interval: IntervalNotifier, range: MmuNotifierRange, curSeq: number): MaybeOp<boolean | void>;
}
