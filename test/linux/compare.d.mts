export interface Event {
  readonly in: string;
  readonly event: string;
  readonly start: number;
  readonly end: number;
}

/** One line of a result. */
export interface OperationResult {
  readonly i: number;
  readonly result: number | string;
  readonly value?: number | string;
  readonly values?: readonly number[];
  readonly signal?: string;
  readonly code?: string;
  readonly events: readonly Event[];
}

export interface Result {
  readonly header: Readonly<Record<string, unknown>>;
  readonly ops: readonly OperationResult[];
  readonly final: Readonly<Record<string, unknown>>;
  readonly files: Readonly<Record<string, unknown>>;
}

export type Aspect =
  "results" | "values" | "events" | "eventSet" | "vmas" | "kernelVmas" | "ptes" | "contents" | "files";

export interface Difference {
  readonly aspect: Aspect;
  /** Index of an operation, or what else it is about. */
  readonly where: number | string;
  readonly expected: string | undefined;
  readonly actual: string | undefined;
}

export const ASPECTS: readonly Aspect[];
export function parse(text: string): Result;
/** In program order. */
export function differences(expected: Result, actual: Result): Difference[];
