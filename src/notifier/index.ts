/**
 * notifier/: the MMU notifier subsystem. Linux: include/linux/mmu_notifier.h, mm/mmu_notifier.c.
 * Needs no address space of ours: createNotifiers() serves any primary MMU. Also the entry `bifolio/notifier`.
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
export { createNotifiers, type NotifierHost, type NotifierOperations, Notifiers } from "./notifiers.ts";
// For the rows above.
export { type DeliveryContext, endOpenRange, makeRange, type OpenRange, tellStartOp } from "./delivery.ts";
export type { Subs } from "./layout.ts";
export {
  beginRange,
  checkSubscriptions,
  createSubscriptions,
  destroySubscriptions,
  endRange,
} from "./subscriptions.ts";
