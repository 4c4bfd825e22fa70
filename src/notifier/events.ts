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
  /** Only with Migrate and Exclusive; else undefined, so that it may be read at any time. */
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
 *
 * They run in the agent that registered them, at its safepoints, with operations forbidden (EDEADLK). Several may run at
 * once, one per agent that changes something, and the same one again before it has ended, if it waits. Whoever changes
 * something may hold the mmapLock in any mode or folio locks meanwhile, or neither.
 *
 * | op                          | may it wait           | what a throw does                                       |
 * |-----------------------------|-----------------------|---------------------------------------------------------|
 * | invalidateRangeStart        | if the range may      | the change is given up, ECALLBACK; where it cannot be   |
 * |                             |                       | given up (exit, reclaim) it is reported to onError      |
 * | invalidateRangeEnd          | no                    | reported                                                |
 * | release                     | yes                   | reported                                                |
 * | clearFlushYoung, clearYoung,| no                    | reported; counts as young                               |
 * | testYoung                   |                       |                                                         |
 * | archInvalidateSecondaryTlbs | no                    | reported                                                |
 * | allocNotifier               | no                    | get() fails with ECALLBACK                              |
 * | freeNotifier                | no                    | reported                                                |
 *
 * Whatever throws, the other notifiers are called, and each start has its end.
 */
export interface MmuNotifierOps {
  /**
   * The space dies, or the notifier is unregistered: drop every translation and make none any more. Once; but again at the
   * same time if unregister() and exit() meet. Intervals have heard MmuNotifierEvent.Release before.
   */
  release?(notifier: MmuNotifier, space: NotifierSpace): MaybeOp<void>;
  /**
   * Tests and clears the accessed state of `[start, end)` and drops it from the device's TLB; after the page tables' own
   * was cleared, of which it is no part. True: was young. No invalidation: sequence and counters stay.
   */
  clearFlushYoung?(notifier: MmuNotifier, space: NotifierSpace, start: number, end: number): boolean;
  /** As clearFlushYoung without the flush. */
  clearYoung?(notifier: MmuNotifier, space: NotifierSpace, start: number, end: number): boolean;
  /** Reports whether a page is young and changes nothing. Not asked once another notifier has said yes. */
  testYoung?(notifier: MmuNotifier, space: NotifierSpace, address: number): boolean;
  /**
   * Makes every translation of the range unusable before it returns; none may be made until the matching end. Before the
   * first change: every page of the range is still mapped and referenced.
   * False: cannot without waiting; allowed only where `range.blockable` is false, and then without an end op.
   */
  invalidateRangeStart?(notifier: MmuNotifier, range: MmuNotifierRange): MaybeOp<boolean | void>;
  /**
   * The entries have been changed; frames need not have been freed yet. One for each start, but none once the notifier is
   * unregistered or put in between. After the interval side has ended.
   */
  invalidateRangeEnd?(notifier: MmuNotifier, range: MmuNotifierRange): void;
  /**
   * For devices that walk the page tables themselves and keep what they found, which need no start and end, and must not
   * have them (EINVAL): drop `[start, end)` from that. Called after entries changed, with TLBs, before a frame is freed
   * or another one put in its place; also with no range open, and for more than has changed.
   */
  archInvalidateSecondaryTlbs?(notifier: MmuNotifier, space: NotifierSpace, start: number, end: number): void;
  /** Makes the notifier that get() registers, of these very ops; default: `new MmuNotifier(ops)`. */
  allocNotifier?(space: NotifierSpace): MmuNotifier;
  /**
   * The last put() is done and no callback of this notifier can run any more. At a safepoint of this agent, after a grace
   * period; at once, inside get(), where the registration fails.
   */
  freeNotifier?(notifier: MmuNotifier): void;
}

/** The callback of an interval notifier. Linux: struct mmu_interval_notifier_ops. */
export interface MmuIntervalNotifierOps {
  /**
   * Under the lock that also guards the fill: calls `interval.setSeq(curSeq)`, whatever the event, then drops every
   * translation of the range. False: cannot without waiting; allowed only where `range.blockable` is false.
   */
  invalidate(interval: IntervalNotifier, range: MmuNotifierRange, curSeq: number): MaybeOp<boolean | void>;
}
