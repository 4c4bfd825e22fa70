/** The script of the workers that startAgent() starts. */
import { attach, type MemoryHandle, type PhysicalMemory } from "../../../src/index.ts";
import { setGlobals } from "./globals.ts";

export interface Order {
  readonly handle: MemoryHandle;
  readonly source: string;
  readonly arg: unknown;
}
export type Answer =
  | { readonly kind: "attached" }
  | { readonly kind: "done"; readonly value: unknown }
  | { readonly kind: "failed"; readonly stack: string };

interface Body {
  readonly default: (memory: PhysicalMemory, arg: unknown) => unknown;
}

const answer = (message: Answer): void => globalThis.postMessage(message);

async function obey({ handle, source, arg }: Order): Promise<void> {
  const url = URL.createObjectURL(new Blob([`export default ${source};`], { type: "text/javascript" }));
  const { default: body } = (await import(url)) as Body;
  const memory = await attach(handle);
  answer({ kind: "attached" });
  const value = await body(memory, arg);
  memory.detach();
  answer({ kind: "done", value });
}

setGlobals({});
addEventListener("message", ({ data }: MessageEvent<Order>) => {
  obey(data).catch((error: unknown) =>
    answer({
      kind: "failed",
      stack: error instanceof Error ? (error.stack ?? error.message) : String(error),
    }),
  );
});
