/** A second agent; started by agents.mjs, which says what the roles do. */
import { workerData } from "node:worker_threads";
import { attach } from "../../.test-build/testing.js";
import { MODE, MODE_HOLD, MODE_PARK, PARKING, ROUNDS, STOP } from "./agents.mjs";

const { handle, spaceId, role, control, address, length } = workerData;
const memory = await attach(handle);
const space = memory.space(spaceId);
const running = () => Atomics.load(control, STOP) === 0;

const roles = {
  read() {
    let sum = 0;
    while (running()) {
      for (let offset = 0; offset < length; offset += memory.pageSize)
        sum ^= space.getUint32(address + offset);
      memory.poll();
      Atomics.add(control, ROUNDS, 1);
    }
    return sum;
  },
  hold() {
    let sum = 0;
    while (running()) {
      const mode = Atomics.load(control, MODE);
      if (mode === MODE_HOLD || mode === MODE_PARK) sum ^= space.getUint32(address);
      if (mode === MODE_PARK) {
        Atomics.store(control, PARKING, 1);
        memory.sync.wait(control, MODE, MODE_PARK);
        Atomics.store(control, PARKING, 0);
      }
      memory.poll();
      Atomics.add(control, ROUNDS, 1);
    }
    return sum;
  },
};
roles[role]();
