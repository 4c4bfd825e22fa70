/** Faults on file pages that are in Bifolio's page cache. */
import { closeSync, openSync, readSync } from "node:fs";
import { fileBacking } from "../../.test-build/testing.js";
import { startAgent } from "../lib/agents.mjs";
import { interleave, keep, lineOf, nsPerOperation } from "../lib/interleave.mjs";
import { filledMapping, MIB, openMemory, PAGE } from "../lib/memory.mjs";
import { temporaryFile } from "../lib/temporaryFile.mjs";

const BYTES = 64 * MIB;
const PAGES = BYTES / PAGE;
const BUSY_BYTES = 4 * MIB;

export default {
  measures:
    "first read of each page of a mapped, cached file of 64 MiB in order, against one readSync of 4 KiB each",
  async run({ repetitions }) {
    const path = temporaryFile(BYTES);
    const withAround = await openMemory(BYTES / MIB + 32);
    const without = await openMemory(BYTES / MIB + 32, { faultAround: PAGE });
    const faultsOf = async ({ memory, space }) => {
      const file = await memory.openFile(fileBacking(path));
      const mapping = { length: BYTES, prot: "r", share: "shared", file };
      return () => {
        const address = space.sync.mmap(mapping);
        let sum = 0;
        const ns = nsPerOperation(PAGES, () => {
          for (let n = 0; n < PAGES; n++) sum ^= space.getUint32(address + n * PAGE);
        });
        keep(sum);
        space.sync.munmap(address, BYTES);
        return ns;
      };
    };
    const fd = openSync(path, "r");
    const page = new Uint8Array(PAGE);
    const read = () =>
      nsPerOperation(PAGES, () => {
        for (let n = 0; n < PAGES; n++) readSync(fd, page, 0, PAGE, n * PAGE);
        keep(page[0]);
      });

    const around = await faultsOf(withAround);
    const single = await faultsOf(without);
    const alone = await interleave({ around, read, single }, { repetitions });
    const address = filledMapping(withAround.space, BUSY_BYTES);
    const agent = await startAgent(withAround.memory, withAround.space, "read", {
      address,
      length: BUSY_BYTES,
    });
    const beside = await interleave({ around, read }, { repetitions });
    await agent.stop();
    closeSync(fd);
    await withAround.memory.close();
    await without.memory.close();

    const line = (what, bifolio, samples, goal) =>
      lineOf({ what, unit: "ns", bifolio, alternative: { name: "readSync", samples }, goal });
    return {
      notes: ["beside: a second agent reads 4 MiB of the same space and polls all the while"],
      lines: [
        line("per page, fault-around 64 KiB", alone.around, alone.read, "at most 600 ns a page"),
        line("per page, beside another agent", beside.around, beside.read, "at most 600 ns a page"),
        line("per page, no fault-around", alone.single, alone.read),
      ],
    };
  },
};
