/** Entry `bifolio/sync`: locks and operations for callbacks and drivers of secondary MMUs. */
export { type Effect, isOp, type Op, waitOp } from "./sched/index.ts";
export { Mutex, RwSem } from "./sync/index.ts";
