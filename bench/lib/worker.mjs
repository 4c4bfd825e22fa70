/** A second agent; started by agents.mjs, which says what the roles do. */
import { parentPort, workerData } from "node:worker_threads";
import { attach } from "../../.test-build/testing.js";
import {
  ENTERED,
  HEARD,
  LOOP_PING,
  MODE,
  MODE_ECHO_SPIN,
  MODE_ECHO_WAIT,
  MODE_HOLD,
  MODE_IDLE,
  MODE_OPERATION,
  MODE_PARK,
  PARKING,
  PING,
  PONG,
  ROUNDS,
  STOP,
} from "./agents.mjs";

const { handle, spaceId, role, control, address, length, blockedAt, parkAt } = workerData;
const memory = await attach(handle);
const space = memory.space(spaceId);
const running = () => Atomics.load(control, STOP) === 0;

function echo(ping) {
  Atomics.store(control, PONG, ping);
  Atomics.notify(control, PONG);
}

/** Echoes LOOP_PING whenever the event loop runs. */
async function echoFromLoop() {
  for (let last; running();) {
    const ping = Atomics.load(control, LOOP_PING);
    if (ping !== last) echo(ping);
    last = ping;
    const waiting = Atomics.waitAsync(control, LOOP_PING, last);
    if (waiting.async) await waiting.value;
  }
}

/** One stay in a mode of an agent that hears: a promise where it needs the event loop. */
const stays = {
  [MODE_PARK]({ parkWord }) {
    memory.sync.wait(parkWord, 0, MODE_PARK);
  },
  [MODE_OPERATION]({ blocked }) {
    blocked.sync.readBegin();
  },
  [MODE_IDLE]() {
    return Atomics.waitAsync(control, MODE, MODE_IDLE).value;
  },
  [MODE_ECHO_SPIN]() {
    while (Atomics.load(control, MODE) === MODE_ECHO_SPIN) {
      Atomics.store(control, PONG, Atomics.load(control, PING)); // no notify: who asks spins too
    }
  },
  [MODE_ECHO_WAIT]() {
    while (Atomics.load(control, MODE) === MODE_ECHO_WAIT) {
      const ping = Atomics.load(control, PING);
      echo(ping);
      Atomics.wait(control, PING, ping);
    }
  },
};

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
  async hear() {
    const ops = {
      invalidate(interval, _range, curSeq) {
        interval.setSeq(curSeq);
        Atomics.add(control, HEARD, 1);
        return true;
      },
    };
    const { sync } = space.notifiers;
    const interval = sync.insert(ops, address, memory.pageSize);
    const blocked = sync.insert(ops, blockedAt, memory.pageSize);
    const parkWord = new Int32Array(memory.allocShared(4).buffer, parkAt, 1);
    const answer = (message) => parentPort.postMessage(message);
    parentPort.on("message", answer);
    const echoing = echoFromLoop();
    while (running()) {
      const mode = Atomics.load(control, MODE);
      const stay = stays[mode];
      // Sleeping begins right after this; who waits for it allows for that.
      Atomics.store(control, ENTERED, mode);
      if (stay) await stay({ parkWord, blocked });
      else {
        memory.poll();
        Atomics.add(control, ROUNDS, 1);
      }
    }
    Atomics.add(control, LOOP_PING, 1);
    Atomics.notify(control, LOOP_PING);
    await echoing;
    interval.sync.remove();
    blocked.sync.remove();
    parentPort.off("message", answer);
  },
};
await roles[role]();
