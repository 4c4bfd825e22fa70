// A thread in which processes of programs live, one after the other: attaches, performs operations, detaches, as it is told.
import { setTimeout as delay } from "node:timers/promises";
import { parentPort } from "node:worker_threads";
import { attach, isMmError } from "../../.test-build/index.js";
import { LocalProcess } from "../../.test-build/program.js";

let memory;
let process;
const files = new Map();

const requests = {
  async attach({ handle, space, mayBlock }) {
    memory = await attach(handle, { mayBlock });
    process = new LocalProcess(memory.space(space), files);
  },

  /** `file`: the id of the one that the operation names. */
  async perform({ operation, file }) {
    if (file !== undefined) files.set(operation.file, memory.file(file));
    return await process.perform(operation);
  },

  async detach() {
    files.clear();
    for (;;) {
      try {
        memory.detach();
        break;
      } catch (error) {
        // What it has done may not be settled yet.
        if (!isMmError(error, "EBUSY")) throw error;
        await delay(1);
      }
    }
    memory = process = undefined;
  },
};

parentPort.on("message", async ({ request, ...rest }) => {
  try {
    parentPort.postMessage({ value: await requests[request](rest) });
  } catch (error) {
    parentPort.postMessage({ error });
  }
});
