/** What workers tell the main thread. */
import { isMmError } from "../errors.ts";
import type { HasherReport } from "./agent.ts";
import { Stopped } from "./hasher.ts";

/** An error that crosses threads. */
export interface Failure {
  /** Of an MmError, else "". */
  readonly code: string;
  /** "BusError" and the like. */
  readonly name: string;
  readonly message: string;
}

export type WorkerMessage =
  | { readonly kind: "ready" }
  | { readonly kind: "done"; readonly report: HasherReport | undefined }
  | { readonly kind: "failed"; readonly failure: Failure };

/** `Stopped` is no failure of its own: somebody else's made the run stop. */
export const STOPPED: Failure = { code: "", name: "Stopped", message: "the run was given up" };

export function failureOf(error: unknown): Failure {
  if (error instanceof Stopped) return STOPPED;
  const name = error instanceof Error ? error.name : "Error";
  const message = error instanceof Error ? error.message : String(error);
  return { code: isMmError(error) ? error.code : "", name, message };
}
