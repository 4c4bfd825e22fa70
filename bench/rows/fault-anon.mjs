/** Write faults of anonymous memory. */
import { performance } from "node:perf_hooks";
import { startAgent } from "../lib/agents.mjs";
import { interleave, keep, lineOf, nsPerOperation } from "../lib/interleave.mjs";
import { filledMapping, MIB, openMemory, PAGE } from "../lib/memory.mjs";

const PAGES = 8192;
const GROUP = 32;
const BUSY_BYTES = 4 * MIB;

function touch(space, address, pages) {
  for (let n = 0; n < pages; n++) space.setUint32(address + n * PAGE, n);
}

export default {
  measures:
    "first write to each page of a fresh private mapping of 32 MiB, frames used before, against a memset of 4 KiB",
  async run({ repetitions }) {
    const { memory, space } = await openMemory(64);
    const { frames } = memory.mm;
    const mapping = { length: PAGES * PAGE, prot: "rw", share: "private" };
    const faults = () => {
      const address = space.sync.mmap(mapping);
      const ns = nsPerOperation(PAGES, () => touch(space, address, PAGES));
      space.sync.munmap(address, mapping.length);
      return ns;
    };
    const wholeLife = () =>
      nsPerOperation(PAGES, () => {
        const address = space.sync.mmap(mapping);
        touch(space, address, PAGES);
        space.sync.munmap(address, mapping.length);
      });
    /** Frames are zeroed a group ahead, outside of what is timed. */
    const prezeroed = () => {
      const address = space.sync.mmap(mapping);
      let timed = 0;
      let ms = 0;
      for (let page = 0; page < PAGES - GROUP;) {
        // Moves to a group that has free frames.
        touch(space, address + page++ * PAGE, 1);
        const ready = frames.prezero(GROUP);
        const begin = performance.now();
        touch(space, address + page * PAGE, ready);
        ms += performance.now() - begin;
        timed += ready;
        page += ready;
      }
      space.sync.munmap(address, mapping.length);
      return (ms * 1e6) / timed;
    };
    const bytes = new Uint8Array(PAGES * PAGE).fill(1);
    const memset = () =>
      nsPerOperation(PAGES, () => {
        for (let at = 0; at < bytes.length; at += PAGE) bytes.fill(0, at, at + PAGE);
        keep(bytes[PAGE]);
      });

    const alone = await interleave({ faults, memset, prezeroed, wholeLife }, { repetitions });
    const busy = filledMapping(space, BUSY_BYTES);
    const agent = await startAgent(memory, space, "read", { address: busy, length: BUSY_BYTES });
    const beside = await interleave({ faults, memset, prezeroed }, { repetitions });
    await agent.stop();
    await memory.close();

    const lines = (samples, suffix, goals) => {
      const alternative = { name: "memset", samples: samples.memset };
      const line = (what, bifolio, goal) =>
        lineOf({ what: what + suffix, unit: "ns", bifolio, alternative, goal });
      return [
        line("fault", samples.faults, goals[0]),
        line("fault, frame zeroed ahead", samples.prezeroed, goals[1]),
      ];
    };
    return {
      notes: ["beside: a second agent reads 4 MiB of the same space and polls all the while"],
      lines: [
        ...lines(alone, "", ["at most 1 us", "at most 200 ns"]),
        ...lines(beside, ", beside another agent", ["at most 1 us", "at most 200 ns"]),
        lineOf({ what: "mmap, fault, munmap, per page", unit: "ns", bifolio: alone.wholeLife }),
      ],
    };
  },
};
