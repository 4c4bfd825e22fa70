/** Second agents: module workers that attach to a memory of the page. */
import type { PhysicalMemory } from "../../../src/index.ts";
import type { Answer, Order } from "./worker.ts";

export interface StartedAgent<Result> {
  /** What the body returned; the worker has left the memory and is gone. */
  readonly done: Promise<Result>;
}

/**
 * Starts a worker that attaches and then runs `body`, which reaches it as source text: it sees its arguments and the
 * globals only. Resolves once the worker has attached.
 */
export async function startAgent<Arg, Result>(
  memory: PhysicalMemory,
  body: (memory: PhysicalMemory, arg: Arg) => Result | Promise<Result>,
  arg: Arg,
): Promise<StartedAgent<Result>> {
  const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  const attached = Promise.withResolvers<void>();
  const done = Promise.withResolvers<Result>();
  const fail = (error: Error): void => {
    attached.reject(error);
    done.reject(error);
  };
  worker.addEventListener("error", (event) => fail(new Error(`worker: ${event.message}`)));
  worker.addEventListener("message", ({ data }: MessageEvent<Answer>) => {
    if (data.kind === "attached") attached.resolve();
    else if (data.kind === "failed") fail(new Error(`worker: ${data.stack}`));
    else done.resolve(data.value as Result);
  });
  const order: Order = { handle: memory.handle, source: String(body), arg };
  worker.postMessage(order);
  await attached.promise;
  return { done: done.promise.finally(() => worker.terminate()) };
}
