// One agent that counts in a word of its own in each page of a space, while the pages move to a device and back.
import { parentPort, workerData } from "node:worker_threads";
import { attach } from "../../../.test-build/testing.js";

const PAGE = 4096;
const { handle, spaceId, control, base, pages, writer, seed } = workerData;
const STOP = 0;
const READY = 1;

try {
  const memory = await attach(handle);
  const words = new Int32Array(handle.memories[0].buffer, control, 16);
  const space = memory.space(spaceId);
  const mine = new Int32Array(pages);
  let state = seed;
  const random = (n) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >>> 8) % n;
  };
  Atomics.add(words, READY, 1);
  Atomics.notify(words, READY);
  let counted = 0;
  let wrong;
  while (Atomics.load(words, STOP) === 0 && wrong === undefined) {
    for (let k = 0; k < 50; k++) {
      const page = random(pages);
      const address = base + page * PAGE + 4 * writer;
      const seen = space.getInt32(address);
      if (seen !== mine[page]) {
        wrong = `page ${page}: ${seen} instead of ${mine[page]}`;
        break;
      }
      if (random(3) === 0) continue;
      space.setInt32(address, ++mine[page]);
      counted++;
    }
    memory.poll();
  }
  memory.detach();
  parentPort.postMessage({ result: { counted, wrong, mine: [...mine] } });
} catch (error) {
  parentPort.postMessage({ error: String(error?.stack ?? error) });
}
