/** What `bifolio check` and the thread that explores for it tell each other. */
import type { CheckResult, Mode, Violation } from "../check/index.ts";

export interface CheckRequest {
  /** Absolute path. */
  readonly module: string;
  /** As the user wrote it. */
  readonly name: string;
  /** Only the scenario with this name, or exported under it. */
  readonly scenario: string | undefined;
  /** Run this schedule and nothing else. */
  readonly replay: string | undefined;
  readonly mode: Mode;
  readonly schedules: number;
  readonly depth: number;
  readonly preemptions: number | undefined;
  readonly seed: number;
}

/** A result, under which name the scenario is exported, and how it is drawn. */
export interface Checked extends CheckResult {
  readonly exportName: string;
  /** Text of the traces, one for each violation. */
  readonly traces: readonly string[];
}

export interface Replayed {
  readonly scenario: string;
  readonly exportName: string;
  readonly schedule: string;
  readonly violations: readonly Violation[];
  readonly trace: string;
}

export type CheckMessage =
  | { readonly kind: "scenario"; readonly name: string }
  | { readonly kind: "progress"; readonly schedules: number }
  | { readonly kind: "checked"; readonly result: Checked }
  | { readonly kind: "replayed"; readonly result: Replayed }
  | { readonly kind: "end" }
  /** `sentence` says why the module cannot be explored. */
  | { readonly kind: "failed"; readonly sentence: string };
