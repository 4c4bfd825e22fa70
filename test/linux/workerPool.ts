/** Worker threads for the processes of programs, each for one process at a time. Needs a build. */
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import type { Outcome, ProcessOperation, ProcessPlace, ProgramProcess } from "../../src/programEntry.ts";

const ENTRY = new URL("processWorker.mjs", import.meta.url);

type Answer = { readonly value: unknown } | { readonly error: unknown };

/** One thread; answers one request at a time. */
class Thread {
  readonly worker: Worker = new Worker(ENTRY);
  readonly #gone: Promise<never>;

  constructor() {
    this.#gone = new Promise<never>((_resolve, reject) => {
      this.worker.once("error", reject);
      this.worker.once("exit", (code) => reject(new Error(`a worker ended with code ${code}`)));
    });
    this.#gone.catch(() => {});
  }

  async ask(request: string, rest: object = {}): Promise<unknown> {
    const answered = once(this.worker, "message") as Promise<[Answer]>;
    this.worker.postMessage({ request, ...rest });
    const [answer] = await Promise.race([answered, this.#gone]);
    if ("error" in answer) throw answer.error;
    return answer.value;
  }
}

export class WorkerPool {
  /** How many processes there have been. */
  processes = 0;
  readonly #all = new Set<Thread>();
  /** The one that has been idle for longest first, so that every thread sees many memories. */
  readonly #idle: Thread[] = [];

  /** For RunProgramOptions.spaceIn. `mayBlock`: whether the agent in the worker may. */
  async start(place: ProcessPlace, mayBlock: boolean): Promise<ProgramProcess> {
    this.processes++;
    const thread = this.#idle.shift() ?? this.#add();
    const { worker } = thread;
    const { memory, space, files } = place;
    // The worker outlives the memory, and must not keep it: it listens for as long as the process lives.
    let onExit: (() => void) | undefined;
    memory.adopt({
      threadId: worker.threadId,
      once: (event, listener) => worker.once(event, (onExit = listener)),
    });
    await thread.ask("attach", { handle: memory.handle, space: space.id, mayBlock });
    return {
      perform: async (operation: ProcessOperation) => {
        const named = "file" in operation ? operation.file : undefined;
        const file = named === undefined ? undefined : files.get(named)?.id;
        return (await thread.ask("perform", { operation, file })) as Outcome;
      },
      end: async () => {
        await thread.ask("detach");
        const wrong = memory.check();
        if (wrong !== undefined) throw new Error(`after the worker of ${place.name} has left: ${wrong}`);
        if (onExit) worker.off("exit", onExit);
        this.#idle.push(thread);
      },
    };
  }

  get threads(): number {
    return this.#all.size;
  }

  #add(): Thread {
    const thread = new Thread();
    this.#all.add(thread);
    return thread;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#all].map(({ worker }) => worker.terminate()));
  }
}
