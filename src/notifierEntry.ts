/** Entry `bifolio/notifier`: the contract, for subscribers and for primary MMUs. */
export { isMmError, MmError } from "./errors.ts";
export {
  type AccessedBitmap,
  createNotifiers,
  type CreateNotifiersOptions,
  type IntervalId,
  type IntervalNotifier,
  type MaybeOp,
  type MmuIntervalNotifierOps,
  MmuNotifier,
  MmuNotifierEvent,
  type MmuNotifierOps,
  type MmuNotifierRange,
  type NotifierHost,
  type NotifierOperations,
  type Notifiers,
  type NotifierSpace,
  type OwnerId,
  type RangeRequest,
  type SpaceId,
} from "./notifier/index.ts";
export { ADDRESS_END } from "./units.ts";
