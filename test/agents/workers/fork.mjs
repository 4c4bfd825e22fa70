// The other agents of the fork tests: writers, one that forks as well, those that give pages up or pin them.
import { parentPort, workerData } from "node:worker_threads";
import { attach, isMmError } from "../../../.test-build/testing.js";

const { handle, spaceId, control: controlOffset, role, writer, base, pages, writers, pollEvery } = workerData;
const memory = await attach(handle);
const space = memory.space(spaceId);
const control = new Int32Array(handle.memories[0].buffer, controlOffset, 16);
const PAGE = memory.pageSize;

/** Words of the control block. */
const STOP = 0;
const READY = 1;
const COUNT = 3;
const PINNED = 4;

const at = (page, of) => base + page * PAGE + 4 * of;
const stopped = () => Atomics.load(control, STOP) !== 0;

let accesses = 0;
/** One access; a safepoint only every so often, as in a loop that computes. */
function step() {
  if (++accesses % pollEvery === 0) memory.poll();
}

const roles = {
  /** Stores 1, 2, 3 … each into all pages in order; a follower stores what the writer before it has stored everywhere. */
  writer() {
    let stores = 0;
    for (let v = 1; !stopped();) {
      if (writer > 0) {
        const led = space.getUint32(at(pages - 1, writer - 1));
        step();
        if (led < v) continue;
        v = led;
      }
      for (let k = 0; k < pages; k++) {
        space.setUint32(at(k, writer), v);
        stores++;
        step();
      }
      v++;
      Atomics.add(control, COUNT, 1);
    }
    return { stores };
  },

  /** Forks, looks twice at what the child has, and lets it exit. */
  forker() {
    let forks = 0;
    let torn = 0;
    while (!stopped()) {
      const child = space.sync.fork();
      const seen = [];
      for (let w = 0; w < writers; w++) for (let k = 0; k < pages; k++) seen.push(child.getUint32(at(k, w)));
      for (let n = 1; n < seen.length; n++) if (seen[n] > seen[n - 1]) torn++;
      child.setUint32(at(0, 15), forks);
      const again = [];
      for (let w = 0; w < writers; w++) for (let k = 0; k < pages; k++) again.push(child.getUint32(at(k, w)));
      if (again.join() !== seen.join()) torn++;
      child.sync.exit();
      forks++;
      Atomics.add(control, COUNT, 1);
    }
    return { forks, torn };
  },

  /** Counts through a pin in every page, and dies with it. */
  pinner() {
    const { spans } = space.sync.pin(base, pages * PAGE, "rw");
    const words = spans.flatMap((span) =>
      Array.from(
        { length: span.length / PAGE },
        (_, k) => new Int32Array(span.buffer, span.byteOffset + k * PAGE, 1),
      ),
    );
    Atomics.add(control, PINNED, 1);
    Atomics.notify(control, PINNED);
    while (!stopped()) {
      for (const word of words) Atomics.add(word, 0, 1);
      memory.poll();
      Atomics.add(control, COUNT, 1);
    }
    process.exit(1);
  },

  /** Forks, and has the child give its pages up, which splits and merges its mapping meanwhile. */
  giver() {
    let forks = 0;
    let dropped = 0;
    const bytes = (pages / 2) * PAGE;
    while (!stopped()) {
      const child = space.sync.fork();
      child.setUint32(at(0, 15), 1);
      child.sync.mprotect(at(1, 0), PAGE, "r");
      child.sync.madvise(base, bytes, "free");
      child.sync.mprotect(at(1, 0), PAGE, "rw");
      child.sync.madvise(base, bytes, "pageout");
      if (child.getUint32(at(0, 15)) === 0) dropped++;
      child.sync.exit();
      forks++;
      Atomics.add(control, COUNT, 1);
    }
    return { forks, dropped };
  },
};

Atomics.add(control, READY, 1);
Atomics.notify(control, READY);
try {
  const result = roles[role]();
  memory.detach();
  parentPort.postMessage({ result });
} catch (error) {
  parentPort.postMessage({ error: isMmError(error) ? error.message : error.stack });
}
