// The other agents of a GPU MMU's space: one that stores, one that changes mappings, one that forks.
import { parentPort, workerData } from "node:worker_threads";
import { attach, isMmError } from "../../../.test-build/testing.js";

const { handle, spaceId, control: at, role, base, pages, stable, seed } = workerData;
const memory = await attach(handle);
const space = memory.space(spaceId);
const control = new Int32Array(handle.memories[0].buffer, at, 16);
const PAGE = memory.pageSize;
const STOP = 0;
const READY = 1;

let state = seed;
const random = (n) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * n);
};
const stopped = () => Atomics.load(control, STOP) !== 0;

const roles = {
  /** Stores growing numbers into word 1 of pages that are never unmapped. */
  writer() {
    let value = 0;
    for (; !stopped(); value++) {
      for (let k = 0; k < stable; k++) space.setUint32(base + k * PAGE + 4, value);
      memory.poll();
    }
    return { value };
  },

  /** Unmaps, maps anew, protects, gives up; word 0 of a page of its part is 0 or the page's number, wherever it is mapped. */
  changer() {
    let changes = 0;
    let again = 0;
    let wrong = 0;
    for (; !stopped(); changes++) {
      const page = stable + random(pages - stable);
      const address = base + page * PAGE;
      const count = Math.min(1 + random(3), pages - page);
      const length = count * PAGE;
      try {
        switch (random(5)) {
          case 0:
            space.sync.munmap(address, length);
            space.sync.mmap({ address, length, fixed: true, prot: "rw", share: "private" });
            break;
          case 1:
            space.sync.madvise(address, length, "dontneed");
            break;
          case 2:
            space.sync.mprotect(address, length, "r");
            space.sync.mprotect(address, length, "rw");
            break;
          case 3:
            space.try.madvise(address, length, "dontneed");
            break;
          default:
            for (let k = 0; k < count; k++) {
              const word = space.getUint32(address + k * PAGE);
              if (word !== 0 && word !== page + k + 1) wrong++;
              space.setUint32(address + k * PAGE, page + k + 1);
            }
        }
      } catch (error) {
        if (!isMmError(error, "EAGAIN")) throw error;
        again++;
      }
      memory.poll();
    }
    return { changes, again, wrong };
  },

  /** Forks, and looks that the child does not change. */
  forker() {
    let forks = 0;
    let wrong = 0;
    for (; !stopped(); forks++) {
      const child = space.sync.fork();
      const look = () =>
        Array.from({ length: stable }, (_, k) =>
          [0, 4, 8].map((of) => child.getUint32(base + k * PAGE + of)),
        );
      const seen = look();
      for (let k = 0; k < 50; k++) memory.poll();
      if (JSON.stringify(look()) !== JSON.stringify(seen)) wrong++;
      child.sync.exit();
      memory.poll();
    }
    return { forks, wrong };
  },
};

Atomics.add(control, READY, 1);
// Whoever hears of the end looks at the memory at rest: it leaves first.
let report;
try {
  report = { role, result: roles[role]() };
} catch (error) {
  report = { role, error: error.stack ?? String(error) };
}
memory.detach();
parentPort.postMessage(report);
