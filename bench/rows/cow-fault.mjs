/** Copy-on-write faults of a private file mapping. */
import { fileBacking } from "../../.test-build/testing.js";
import { interleave, keep, lineOf, nsPerOperation } from "../lib/interleave.mjs";
import { MIB, openMemory, PAGE } from "../lib/memory.mjs";
import { temporaryFile } from "../lib/temporaryFile.mjs";

const BYTES = 32 * MIB;
const PAGES = BYTES / PAGE;

export default {
  measures:
    "first write to each page of a private mapping of a cached file of 32 MiB, against copying 4 KiB between typed arrays",
  async run({ repetitions }) {
    const { memory, space } = await openMemory((2 * BYTES) / MIB + 32);
    const file = await memory.openFile(fileBacking(temporaryFile(BYTES)));
    const writes = (readFirst) => () => {
      const address = space.sync.mmap({ length: BYTES, prot: "rw", share: "private", file });
      for (let n = 0; readFirst && n < PAGES; n++) keep(space.getUint32(address + n * PAGE));
      const ns = nsPerOperation(PAGES, () => {
        for (let n = 0; n < PAGES; n++) space.setUint32(address + n * PAGE, n);
      });
      space.sync.munmap(address, BYTES);
      return ns;
    };
    const from = new Uint8Array(BYTES).fill(1);
    const to = new Uint8Array(BYTES).fill(2);
    const copy = () =>
      nsPerOperation(PAGES, () => {
        for (let at = 0; at < BYTES; at += PAGE) to.set(from.subarray(at, at + PAGE), at);
        keep(to[1]);
      });
    const { mapped, unmapped, copied } = await interleave(
      { mapped: writes(true), copied: copy, unmapped: writes(false) },
      { repetitions },
    );
    await memory.close();
    const alternative = { name: "copy", samples: copied };
    return {
      lines: [
        lineOf({ what: "page that was read before", unit: "ns", bifolio: mapped, alternative }),
        lineOf({ what: "page that was not", unit: "ns", bifolio: unmapped, alternative }),
      ],
    };
  },
};
