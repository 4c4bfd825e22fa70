// An agent that owns a device with a TLB of its own: words in shared memory, which only the callback clears.
// It also takes and gives back counted notifiers, again and again.
import { parentPort, workerData } from "node:worker_threads";
import { attach, MmuNotifier } from "../../../.test-build/testing.js";

const { handle, spaceId, control: controlOffset, device: deviceOffset, role, base, pages } = workerData;
const memory = await attach(handle);
const space = memory.space(spaceId);
const control = new Int32Array(handle.memories[0].buffer, controlOffset, 16);
const device = new Int32Array(handle.memories[0].buffer, deviceOffset, pages);
const STOP = 0;
const READY = 1;
const PAGE = memory.pageSize;

let flushes = 0;
const notifier = new MmuNotifier({
  archInvalidateSecondaryTlbs: (_notifier, _space, start, end) => {
    flushes++;
    const first = Math.max(0, Math.floor((start - base) / PAGE));
    const last = Math.min(pages, Math.ceil((end - base) / PAGE));
    for (let k = first; k < last; k++) Atomics.store(device, k, 0);
  },
});

const ready = () => {
  Atomics.store(control, READY, 1);
  Atomics.notify(control, READY);
};
const stopped = () => Atomics.load(control, STOP) !== 0;

const roles = {
  /** In a turn all the time; answers when it polls. */
  polls() {
    while (!stopped()) {
      for (let k = 0; k < 200; k++) space.getUint32(base + (k % pages) * PAGE);
      memory.poll();
    }
  },
  parks() {
    while (!stopped()) memory.sync.wait(control, STOP, 0, 50);
  },
  async idles() {
    while (!stopped()) await new Promise((resolve) => setTimeout(resolve, 5));
  },
  /** Counted notifiers come and go while others invalidate. */
  async counts() {
    let freed = 0;
    let started = 0;
    let ended = 0;
    const ops = {
      invalidateRangeStart: () => void started++,
      invalidateRangeEnd: () => void ended++,
      freeNotifier: () => void freed++,
    };
    let rounds = 0;
    while (!stopped()) {
      const got = await space.notifiers.get(ops);
      if (rounds % 3 === 0) space.notifiers.put(await space.notifiers.get(ops));
      if (rounds % 4 === 0) await new Promise((resolve) => setImmediate(resolve));
      space.notifiers.put(got);
      rounds++;
    }
    await space.notifiers.synchronize();
    return { rounds, freed, started, ended };
  },
};

if (role !== "counts") await space.notifiers.register(notifier);
ready();
let message;
try {
  const result = (await roles[role]()) ?? {};
  if (role !== "counts") await space.notifiers.unregister(notifier);
  message = { result: { flushes, ...result } };
} catch (error) {
  message = { error: String(error.stack) };
}
memory.detach();
// Last: whoever gets it may terminate this thread, which must not hold a lock then.
parentPort.postMessage(message);
