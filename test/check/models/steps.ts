/** Operations of the core in single steps, in one agent of a scenario. */
import type { Op, WaitEffect } from "../../../src/sched/index.ts";

export function expect(what: string, got: unknown, wanted: unknown): void {
  if (got !== wanted) throw new Error(`${what}: ${String(got)}, not ${String(wanted)}`);
}

/** Runs an operation to its first wait. */
export function firstWait(op: Op<unknown>): WaitEffect {
  const { value: effect, done } = op.next();
  if (done === true || effect.kind !== "wait") throw new Error("it does not wait");
  return effect;
}

/** Runs an operation that has nothing to wait for. */
export function atOnce<T>(op: Op<T>): T {
  const r = op.next();
  if (r.done !== true) throw new Error("it waits");
  return r.value;
}

/** The code of what is thrown, "" if nothing is. */
export function codeOf(body: () => void): string {
  try {
    body();
    return "";
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
}
