/** How the command ends where it does not succeed: one sentence on standard error, and an exit code. */
import { isMmError } from "../errors.ts";

export const EXIT_OK = 0;
export const EXIT_FAILED = 1;
export const EXIT_USAGE = 2;
/** 128 + SIGINT, 128 + SIGTERM. */
export const EXIT_SIGINT = 130;
export const EXIT_SIGTERM = 143;

/** Its message is the sentence. */
export class CommandError extends Error {
  override readonly name: string = "CommandError";
  readonly exitCode: number;

  constructor(sentence: string, exitCode: number = EXIT_FAILED) {
    super(sentence);
    this.exitCode = exitCode;
  }
}

/** What to tell the user of any error; never a stack trace. */
export function sentenceOf(error: unknown): string {
  if (isMmError(error) || error instanceof Error) return error.message;
  return String(error);
}
