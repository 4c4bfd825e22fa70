/** An invalidation whose subscriber lives in another agent, beside the bare ways to make another thread answer. */
import { performance } from "node:perf_hooks";
import {
  awaitRounds,
  ENTERED,
  HEARD,
  LOOP_PING,
  MODE,
  MODE_ECHO_SPIN,
  MODE_ECHO_WAIT,
  MODE_IDLE,
  MODE_OPERATION,
  MODE_PARK,
  MODE_POLL,
  PING,
  PONG,
  startAgent,
} from "../lib/agents.mjs";
import { interleave, lineOf } from "../lib/interleave.mjs";
import { openMemory, PAGE } from "../lib/memory.mjs";
import { quantile } from "../lib/statistics.mjs";

const ROUND_TRIPS = 1000;
/** Of those that put a thread to sleep. */
const SLEEPING_ROUND_TRIPS = 50;
/** How soon a processor wakes changes by the minute: short variants, so that those compared are close in time. */
const REPETITIONS_PER_REPETITION = 4;
/** From an answer to the state in which the other thread is to be found again, generously. */
const SETTLE_MS = 0.1;

const CLEAR = 1;
const ADDRESS = 2 ** 30;
const BLOCKED_AT = ADDRESS + 64 * PAGE;

const POLL_GOAL = "at most 1 us";
const SLEEP_GOAL = "at most 1.2 x";

function spin(ms) {
  const until = performance.now() + ms;
  while (performance.now() < until);
}

export default {
  measures:
    "start of an invalidation of one page whose interval notifier another agent owns, until it has answered, against bare round trips to the same thread",
  async run({ repetitions }) {
    const { memory, space } = await openMemory(16);
    const { notifiers } = space;
    const parkWord = memory.allocShared(4);
    const agent = await startAgent(memory, space, "hear", {
      address: ADDRESS,
      blockedAt: BLOCKED_AT,
      parkAt: parkWord.byteOffset,
    });
    const { control, worker } = agent;

    // One sequence for both words: an echo of something older is never taken for the answer.
    let pings = 0;
    const nextPing = () => (pings = (pings + 1) | 0);

    /** Sends the agent to a mode, and returns when it is there. */
    const enter = (mode) => {
      Atomics.store(control, MODE, mode);
      Atomics.notify(control, MODE);
      Atomics.store(parkWord, 0, mode);
      Atomics.notify(parkWord, 0);
      Atomics.store(control, PING, nextPing()); // it may sleep on that
      Atomics.notify(control, PING);
      while (Atomics.load(control, ENTERED) !== mode) memory.poll();
      spin(SETTLE_MS);
    };
    /** Median of single round trips to the agent in `mode`; before each it may settle. */
    const variant = (mode, roundTrip, settle) => () => {
      enter(mode);
      const count = settle ? SLEEPING_ROUND_TRIPS : ROUND_TRIPS;
      const times = new Float64Array(count);
      for (let n = 0; n < count; n++) {
        if (settle) spin(SETTLE_MS);
        times[n] = roundTrip();
      }
      enter(MODE_POLL);
      return quantile(times, 0.5);
    };
    const nanosecondsSince = (begin) => (performance.now() - begin) * 1e6;

    let raised = 0;
    const request = { start: ADDRESS, end: ADDRESS + PAGE, event: CLEAR };
    const invalidate = () => {
      raised++;
      const begin = performance.now();
      const range = notifiers.sync.invalidateRangeStart(request);
      const ns = nanosecondsSince(begin);
      notifiers.invalidateRangeEnd(range);
      return ns;
    };
    const inOperation = () => {
      const blocking = { start: BLOCKED_AT, end: BLOCKED_AT + PAGE, event: CLEAR };
      raised++;
      const range = notifiers.sync.invalidateRangeStart(blocking);
      enter(MODE_OPERATION);
      const times = new Float64Array(SLEEPING_ROUND_TRIPS);
      for (let n = 0; n < times.length; n++) {
        spin(SETTLE_MS);
        times[n] = invalidate();
      }
      // Before the range ends: else it would enter the operation again.
      Atomics.store(control, MODE, MODE_POLL);
      notifiers.invalidateRangeEnd(range);
      enter(MODE_POLL);
      return quantile(times, 0.5);
    };

    const spinRoundTrip = () => {
      const begin = performance.now();
      const ping = nextPing();
      Atomics.store(control, PING, ping);
      while (Atomics.load(control, PONG) !== ping);
      return nanosecondsSince(begin);
    };
    const wakeRoundTrip = (word, sleep) => () => {
      const begin = performance.now();
      const before = Atomics.load(control, PONG);
      const ping = nextPing();
      Atomics.store(control, word, ping);
      Atomics.notify(control, word);
      while (Atomics.load(control, PONG) !== ping) if (sleep) Atomics.wait(control, PONG, before);
      return nanosecondsSince(begin);
    };
    let answered = () => {};
    worker.on("message", () => answered());
    const messageRoundTrips = async () => {
      enter(MODE_IDLE);
      const times = new Float64Array(SLEEPING_ROUND_TRIPS);
      for (let n = 0; n < times.length; n++) {
        spin(SETTLE_MS);
        const begin = performance.now();
        await new Promise((resolve) => {
          answered = resolve;
          worker.postMessage(n);
        });
        times[n] = nanosecondsSince(begin);
      }
      enter(MODE_POLL);
      return quantile(times, 0.5);
    };

    const samples = await interleave(
      {
        poll: variant(MODE_POLL, invalidate, false),
        spin: variant(MODE_ECHO_SPIN, spinRoundTrip, false),
        park: variant(MODE_PARK, invalidate, true),
        operation: inOperation,
        wait: variant(MODE_ECHO_WAIT, wakeRoundTrip(PING, true), true),
        waitSpinning: variant(MODE_ECHO_WAIT, wakeRoundTrip(PING, false), true),
        idle: variant(MODE_IDLE, invalidate, true),
        waitAsync: variant(MODE_IDLE, wakeRoundTrip(LOOP_PING, true), true),
        waitAsyncSpinning: variant(MODE_IDLE, wakeRoundTrip(LOOP_PING, false), true),
        message: messageRoundTrips,
      },
      { repetitions: repetitions * REPETITIONS_PER_REPETITION },
    );
    awaitRounds(memory, control);
    const heard = Atomics.load(control, HEARD);
    if (heard !== raised) throw new Error(`${raised} invalidations were raised and ${heard} heard of`);
    await agent.stop();
    await memory.close();

    const line = (what, name, alternative, samplesAlternative, goal) =>
      lineOf({
        what,
        unit: "ns",
        bifolio: samples[name],
        alternative: { name: alternative, samples: samplesAlternative },
        goal,
      });
    const parked = "agent parked in memory.sync.wait";
    const blocked = "agent blocked in an operation";
    return {
      notes: [
        "spin: both threads spin on shared words; wait: both sleep in Atomics.wait; waitAsync: the other's event loop listens, who asks sleeps in Atomics.wait",
        "spinning: who asks spins for the answer instead, so that one thread is woken and not two; message: postMessage there and back between event loops",
      ],
      lines: [
        line("agent that polls", "poll", "spin", samples.spin, POLL_GOAL),
        line(parked, "park", "wait", samples.wait, SLEEP_GOAL),
        line(parked, "park", "wait, spinning", samples.waitSpinning),
        line(blocked, "operation", "wait", samples.wait, SLEEP_GOAL),
        line(blocked, "operation", "wait, spinning", samples.waitSpinning),
        line("idle agent", "idle", "waitAsync", samples.waitAsync, SLEEP_GOAL),
        line("idle agent", "idle", "waitAsync, spinning", samples.waitAsyncSpinning),
        line("idle agent", "idle", "message", samples.message, SLEEP_GOAL),
      ],
    };
  },
};
