// The other agent of the litmus tests: attaches, plays a role until it is told to stop, reports what it saw.
import { parentPort, workerData } from "node:worker_threads";
import { attach, isMmError } from "../../../.test-build/testing.js";

const { handle, spaceId, control: controlOffset, role, base, pages, pollEvery } = workerData;
const memory = await attach(handle);
const space = memory.space(spaceId);
const control = new Int32Array(handle.memories[0].buffer, controlOffset, 16);
const PAGE = memory.pageSize;

/** Words of the control block. */
const STOP = 0;
const READY = 1;
const FLAG = 2;
const COUNT = 3;

let accesses = 0;
/** One access; a safepoint only every so often, as in a loop that computes. */
function step() {
  if (++accesses % pollEvery === 0) memory.poll();
}

const roles = {
  /** Stores ever higher numbers while it may. */
  writer() {
    let refused = 0;
    for (let n = 1; Atomics.load(control, STOP) === 0; n++) {
      try {
        space.setUint32(base, n);
      } catch (error) {
        if (error.name !== "SegvError") throw error;
        refused++;
        memory.poll();
      }
      Atomics.add(control, COUNT, 1);
      step();
    }
    return { refused };
  },

  /** Has every page in its TLB; once told of page k's new value it must see it. */
  observer() {
    let stale = 0;
    let seen = 0;
    while (Atomics.load(control, STOP) === 0) {
      const flag = Atomics.load(control, FLAG);
      const k = flag % pages;
      const value = space.getUint32(base + k * PAGE);
      // Values only grow, and the flag is published after the store returned.
      if (value < flag) stale++;
      if (flag > 0) seen++;
      for (let other = 0; other < pages; other++) space.getUint32(base + other * PAGE);
      Atomics.add(control, COUNT, 1);
      step();
    }
    return { stale, seen };
  },

  /** Stores counters into every page in turn. */
  storer() {
    let stores = 0;
    while (Atomics.load(control, STOP) === 0) {
      for (let k = 0; k < pages; k++) space.setUint32(base + k * PAGE + 8, ++stores);
      Atomics.add(control, COUNT, 1);
      step();
    }
    return { stores };
  },

  /** Reads its own stamps, or nothing; anything else is somebody else's page. */
  reader() {
    let foreign = 0;
    let gone = 0;
    for (let k = 0; Atomics.load(control, STOP) === 0; k = (k + 1) % pages) {
      try {
        const stamp = space.getUint32(base + k * PAGE);
        if (stamp !== 0 && stamp >>> 16 !== 0xaaaa) foreign++;
      } catch (error) {
        if (error.name !== "SegvError") throw error;
        gone++;
      }
      Atomics.add(control, COUNT, 1);
      step();
    }
    return { foreign, gone };
  },

  /** After "dropped n" was published, a value of round n or before is stale. */
  forgetter() {
    let stale = 0;
    while (Atomics.load(control, STOP) === 0) {
      const dropped = Atomics.load(control, FLAG);
      const value = space.getUint32(base);
      if (value !== 0 && value <= dropped) stale++;
      Atomics.add(control, COUNT, 1);
      step();
    }
    return { stale };
  },

  /** Maps, stores, protects and unmaps memory of its own without end, until it is killed. */
  hammer() {
    for (let n = 1; Atomics.load(control, STOP) === 0; n++) {
      const own = space.sync.mmap({ length: 4 * PAGE, prot: "rw", share: "private" });
      space.setUint32(own, n);
      space.sync.mprotect(own, PAGE, "r");
      space.sync.madvise(own + PAGE, PAGE, "dontneed");
      space.sync.munmap(own, 4 * PAGE);
      Atomics.add(control, COUNT, 1);
    }
    return {};
  },
};

Atomics.store(control, READY, 1);
Atomics.notify(control, READY);
try {
  const result = roles[role]();
  memory.detach();
  parentPort.postMessage({ result });
} catch (error) {
  parentPort.postMessage({ error: isMmError(error) ? error.message : error.stack });
}
