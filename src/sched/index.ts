/** sched/: agents, doorbells, mailboxes, operations and their drivers. The lowest row: imports nothing above. */
export {
  Agent,
  attachAgent,
  type Arena,
  type HeldLock,
  type LockOwner,
  type Mode,
  type Task,
} from "./agent.ts";
export { CheckerDriver, seededChooser, type Chooser } from "./checker.ts";
export { checkLiveness, host, reap, slotsOfThread } from "./death.ts";
export { arm, ownerAlive, ownerGone, ring, wakeQueue } from "./doorbell.ts";
export {
  loopOf,
  promiseOp,
  runAsync,
  runBlocking,
  runReadyTasks,
  runTry,
  settleOp,
  start,
} from "./drivers.ts";
export {
  AG_ACKQ,
  AGENT_LIMIT,
  agentAt,
  ARENA_MAGIC,
  ARENA_VERSION,
  HDR_CORES,
  HDR_DEBUG,
  HDR_MAGIC,
  HDR_MAX_AGENTS,
  HDR_ROOT,
  HDR_VERSION,
  type Message,
  MSG_ARG0,
  MSG_ARG1,
  MSG_ARG2,
  MSG_ARG3,
  MSG_END,
  MSG_FROM,
  MSG_POSTED,
  MSG_RESULT,
  MSG_START,
  MSG_SUBJECT,
  MSG_TEXT_LENGTH,
  ownerIdOf,
  QUEUE_WORDS,
  schedEnd,
  slotOfOwner,
} from "./layout.ts";
export {
  isOp,
  isPromise,
  waitOp,
  type Effect,
  type HostEffect,
  type Op,
  type PointEffect,
  type WaitEffect,
} from "./op.ts";
export { type Immediate, syncFacet, tryFacet } from "./facets.ts";
