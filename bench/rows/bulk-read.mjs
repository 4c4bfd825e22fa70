/** Copies out of an address space. */
import { gigabytesPerSecond, interleave, keep, lineOf } from "../lib/interleave.mjs";
import { filledMapping, MIB, openMemory } from "../lib/memory.mjs";

const BYTES = 64 * MIB;
const SIZES = [
  { what: "64 KiB", length: 64 * 1024, goal: "at least 0.9 x" },
  { what: "1 MiB", length: MIB, goal: "at least 0.9 x" },
  { what: "4 KiB", length: 4096 },
];

export default {
  measures: "space.sync.read() of successive pieces of 64 MiB, against set() between typed arrays",
  async run({ repetitions }) {
    const { memory, space } = await openMemory(BYTES / MIB + 16);
    const address = filledMapping(space, BYTES);
    const raw = new Uint8Array(new SharedArrayBuffer(BYTES)).fill(7);
    const lines = [];
    for (const { what, length, goal } of SIZES) {
      const into = new Uint8Array(length);
      const { bifolio, set } = await interleave(
        {
          bifolio: () =>
            gigabytesPerSecond(BYTES, () => {
              for (let at = 0; at < BYTES; at += length) space.sync.read(address + at, into);
              keep(into[1]);
            }),
          set: () =>
            gigabytesPerSecond(BYTES, () => {
              for (let at = 0; at < BYTES; at += length) into.set(raw.subarray(at, at + length));
              keep(into[1]);
            }),
        },
        { repetitions },
      );
      lines.push(lineOf({ what, unit: "GB/s", bifolio, alternative: { name: "set()", samples: set }, goal }));
    }
    await memory.close();
    return { lines };
  },
};
