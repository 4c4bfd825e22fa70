/**
 * notifier/: the MMU notifier subsystem. Linux: include/linux/mmu_notifier.h, mm/mmu_notifier.c.
 * Needs no address space of ours: createNotifiers() serves any primary MMU. What users get of it: notifierEntry.ts.
 */
export { type AccessedBitmap, MmuNotifier } from "./mmuNotifier.ts";
export {
  type IntervalId,
  type MaybeOp,
  type MmuIntervalNotifierOps,
  MmuNotifierEvent,
  type MmuNotifierOps,
  type MmuNotifierRange,
  type NotifierSpace,
  type OwnerId,
  type RangeRequest,
  type SpaceId,
} from "./events.ts";
export { IntervalNotifier } from "./intervalNotifier.ts";
export {
  createNotifiers,
  type CreateNotifiersOptions,
  dropSubscriptions,
  invalidateAllSecondaryTlbs,
  type NotifierHost,
  type NotifierOperations,
  Notifiers,
} from "./notifiers.ts";
// For the rows above.
export { type DeliveryContext, makeRange, type OpenRange } from "./context.ts";
export { endOpenRange, openRange } from "./delivery.ts";
export type { Subs } from "./layout.ts";
export { anySecondaryTlb, invalidateOwnSecondaryTlbs, invalidateSecondaryTlbs } from "./secondaryTlbs.ts";
export {
  beginRange,
  checkSubscriptions,
  createSubscriptions,
  currentSeq,
  endRange,
  openRanges,
} from "./subscriptions.ts";
