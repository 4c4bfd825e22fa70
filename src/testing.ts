/** Internals for tests in worker threads and for benches; not published. */
export * from "./errors.ts";
export * from "./hmm/index.ts";
export * from "./index.ts";
export * from "./memory/index.ts";
export * from "./mirrors/webgpu/index.ts";
export * from "./mm/index.ts";
export * from "./node.ts";
export * from "./notifier/index.ts";
export * from "./sched/index.ts";
export * from "./sync/index.ts";
export * from "./units.ts";
