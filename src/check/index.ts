/** check/: explores the interleavings of secondary MMUs, and of Bifolio itself. */
export { Call } from "./call.ts";
export { Device, type DeviceEntry, type DeviceOptions } from "./device.ts";
export {
  type CheckResult,
  DEFAULT_DEPTH,
  DEFAULT_SCHEDULES,
  explore,
  type ExploreOptions,
  type Mode,
  MODES,
  replay,
  type ReplayResult,
  type Violation,
} from "./explore.ts";
export type { Frame, SimFrames } from "./frames.ts";
export { renderHtml } from "./html.ts";
export { Cell, Pairing, SimMutex, SimRwLock, Tracked } from "./locks.ts";
export { type Rule, RULES } from "./rules.ts";
export type { TraceStep } from "./run.ts";
export {
  type AgentFunction,
  type AgentOptions,
  isScenario,
  type Scenario,
  scenario,
  type ScenarioOptions,
} from "./scenario.ts";
export { ScenarioError } from "./scenarioError.ts";
export { type SimInterval, type SimIntervalOps, SimNotifiers } from "./simNotifiers.ts";
export {
  type FaultOptions,
  type OperationOptions,
  PAGE,
  SimSpace,
  type SpaceOptions,
  type Translation,
} from "./simSpace.ts";
export { renderTrace } from "./trace.ts";
export { World } from "./world.ts";
