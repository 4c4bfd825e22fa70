/** Standard output. */
import { CommandError } from "./commandError.ts";

/** Resolves when it is written: the process exits right after. `what` it is, for the sentence where that fails. */
export async function print(text: string, what: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    // A reader that has gone away is an event too, which would end the process with a stack trace.
    const failed = (error: Error): void => reject(new CommandError(`cannot print ${what}: ${error.message}`));
    process.stdout.once("error", failed);
    process.stdout.write(text, (error) => (error ? failed(error) : resolve()));
  });
}
