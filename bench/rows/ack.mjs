/** How long an invalidation waits for other agents to forget the page. */
import { performance } from "node:perf_hooks";
import { awaitRounds, MODE, MODE_HOLD, MODE_PARK, MODE_POLL, PARKING, startAgent } from "../lib/agents.mjs";
import { interleave, lineOf } from "../lib/interleave.mjs";
import { openMemory, PAGE } from "../lib/memory.mjs";
import { quantile } from "../lib/statistics.mjs";

const OPERATIONS = 1000;
const PARKED_OPERATIONS = 100;
/** From the agent's last store to the state in which others count it as parked, generously. */
const PARK_MS = 0.02;

function setMode(control, mode) {
  Atomics.store(control, MODE, mode);
  Atomics.notify(control, MODE);
}

function spin(ms) {
  const until = performance.now() + ms;
  while (performance.now() < until);
}

export default {
  measures:
    "madvise dontneed of one page in the TLB of another agent that polls or is parked, against the same while it polls without the page",
  async run({ repetitions }) {
    const { memory, space } = await openMemory(16);
    const address = space.sync.mmap({ length: PAGE, prot: "rw", share: "private" });
    space.setUint32(address, 1);
    const agent = await startAgent(memory, space, "hold", { address });
    const { control } = agent;

    const tails = { poll: [], hold: [], park: [] };
    /** Times single operations; `settle` brings the other agent into the state in which it is to be found. */
    const variant = (name, mode, count, settle) => () => {
      setMode(control, mode);
      const times = new Float64Array(count);
      for (let n = 0; n < count; n++) {
        space.setUint32(address, n);
        settle();
        const begin = performance.now();
        space.sync.madvise(address, PAGE, "dontneed");
        times[n] = (performance.now() - begin) * 1e6;
      }
      setMode(control, MODE_POLL);
      awaitRounds(memory, control);
      tails[name].push(quantile(times, 0.9));
      return quantile(times, 0.5);
    };
    const settleParked = () => {
      // Woken, it reads the page again and parks again.
      setMode(control, MODE_POLL);
      while (Atomics.load(control, PARKING) === 1);
      setMode(control, MODE_PARK);
      while (Atomics.load(control, PARKING) === 0);
      spin(PARK_MS);
    };
    const rounds = () => awaitRounds(memory, control);
    const { poll, hold, park } = await interleave(
      {
        poll: variant("poll", MODE_POLL, OPERATIONS, rounds),
        hold: variant("hold", MODE_HOLD, OPERATIONS, rounds),
        park: variant("park", MODE_PARK, PARKED_OPERATIONS, settleParked),
      },
      { repetitions },
    );
    await agent.stop();
    await memory.close();

    const last = (samples) => samples.slice(-repetitions);
    const line = (what, bifolio, samples) =>
      lineOf({ what, unit: "ns", bifolio, alternative: { name: "page not held", samples } });
    const extra = (what, samples, base) =>
      lineOf({
        what,
        unit: "ns",
        bifolio: samples.map((sample, n) => sample - base[n]),
        goal: "at most 3 us",
      });
    return {
      lines: [
        extra("acknowledgement by an agent that polls, p50", hold, poll),
        extra("acknowledgement by a parked agent, p50", park, poll),
        line("whole operation, polling agent, p50", hold, poll),
        line("whole operation, polling agent, p90", last(tails.hold), last(tails.poll)),
        line("whole operation, parked agent, p50", park, poll),
        line("whole operation, parked agent, p90", last(tails.park), last(tails.poll)),
      ],
    };
  },
};
