// The other agents of the tests of mirrored ranges: they store, unmap, fork, and say what they have stored.
import { parentPort, workerData } from "node:worker_threads";
import { attach, isMmError } from "../../../.test-build/testing.js";

const { handle, spaceId, control: controlOffset, role, writer, base, pages } = workerData;
const memory = await attach(handle);
const space = memory.space(spaceId);
const control = new Int32Array(handle.memories[0].buffer, controlOffset, 64);
const PAGE = memory.pageSize;

/** Words of the control block; from ACKNOWLEDGED on a word for each writer. */
const STOP = 0;
const READY = 1;
const COUNT = 3;
const ACKNOWLEDGED = 8;

const stopped = () => Atomics.load(control, STOP) !== 0;
let state = 88172645 + writer;
const random = (below) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return (state >>> 8) % below;
};
/** A page that a role changes may be missing for a moment. */
const tolerant = (access) => {
  try {
    access();
    return true;
  } catch (error) {
    if (isMmError(error) && ["EFAULT", "EACCES"].includes(error.code)) return false;
    throw error;
  }
};

const roles = {
  /** Stores 1, 2, 3 … in its word of each page, and says so after each round: from then on no mirror may miss it. */
  writer() {
    let v = 0;
    while (!stopped()) {
      v++;
      for (let page = 0; page < pages; page++) {
        space.setUint32(base + page * PAGE + 4 * writer, v);
        if (random(4) === 0) memory.poll();
      }
      Atomics.store(control, ACKNOWLEDGED + writer, v);
      Atomics.add(control, COUNT, 1);
    }
    return { stores: v };
  },

  /** The same in single pages, each of which it says. */
  scatterer() {
    let v = 0;
    while (!stopped()) {
      v++;
      const page = random(pages);
      space.setUint32(base + page * PAGE + 4 * writer, v);
      Atomics.store(control, ACKNOWLEDGED + 8 + page, v);
      memory.poll();
      Atomics.add(control, COUNT, 1);
    }
    return { stores: v };
  },

  /** Gives the pages behind the others' up, maps new ones there, protects them, moves them. */
  changer() {
    const at = (page) => base + (pages + page) * PAGE;
    let changes = 0;
    for (; !stopped(); changes++) {
      const page = random(pages);
      switch (random(4)) {
        case 0:
          space.sync.munmap(at(page), PAGE);
          space.sync.mmap({ address: at(page), length: PAGE, fixed: true, prot: "rw", share: "private" });
          break;
        case 1:
          tolerant(() => space.sync.madvise(at(page), PAGE, "dontneed"));
          break;
        case 2:
          space.sync.mprotect(at(page), PAGE, "r");
          space.sync.mprotect(at(page), PAGE, "rw");
          break;
        default:
          tolerant(() => space.setUint32(at(page), changes));
      }
      Atomics.add(control, COUNT, 1);
    }
    return { changes };
  },

  /** Forks, and stores in the child, which no mirror of the parent may see. */
  forker() {
    let forks = 0;
    for (; !stopped(); forks++) {
      const child = space.sync.fork();
      for (let page = 0; page < pages; page++) child.setUint32(base + page * PAGE, 0xdead0000);
      child.sync.exit();
      Atomics.add(control, COUNT, 1);
    }
    return { forks };
  },

  /** Reads what the GPU has counted: it never goes back, and never is behind what was said. */
  reader() {
    let backwards = 0;
    let behind = 0;
    let reads = 0;
    const last = new Map();
    for (; !stopped(); reads++) {
      const page = random(pages);
      const said = Atomics.load(control, ACKNOWLEDGED + page);
      const seen = space.getUint32(base + page * PAGE + 128);
      if (seen < said) behind++;
      if (seen < (last.get(page) ?? 0)) backwards++;
      last.set(page, seen);
      memory.poll();
      Atomics.add(control, COUNT, 1);
    }
    return { backwards, behind, reads };
  },
};

Atomics.add(control, READY, 1);
Atomics.notify(control, READY);
try {
  const result = roles[role]();
  memory.detach();
  parentPort.postMessage({ result });
} catch (error) {
  parentPort.postMessage({ error: isMmError(error) ? `${error.message} ${error.cause ?? ""}` : error.stack });
}
