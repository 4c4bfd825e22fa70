/** Reading through a file that is larger than the budget. */
import { closeSync, openSync, readSync } from "node:fs";
import { performance } from "node:perf_hooks";
import { fileBacking } from "../../.test-build/testing.js";
import { gigabytesPerSecond, interleave, keep, lineOf, uniqueFunction } from "../lib/interleave.mjs";
import { MIB, openMemory, PAGE } from "../lib/memory.mjs";
import { temporaryFile } from "../lib/temporaryFile.mjs";

const BUDGET_MIB = 64;
const BYTES = 4 * BUDGET_MIB * MIB;
const PIECE = MIB;

/** One word of each page: that the bytes are there. */
const lookAt = () =>
  uniqueFunction(
    ["words"],
    `let sum = 0;
    for (let n = 0; n < words.length; n += ${PAGE / 4}) sum ^= words[n];
    return sum;`,
  );
const sumUp = () =>
  uniqueFunction(
    ["words"],
    `let sum = 0;
    for (let n = 0; n < words.length; n++) sum = (sum + words[n]) | 0;
    return sum;`,
  );

export default {
  measures:
    "a file of 256 MiB read through a budget of 64 MiB with forEachSpan(), from the operating system's cache, against readSync of 1 MiB",
  async run({ repetitions }) {
    const { memory, space } = await openMemory(BUDGET_MIB);
    const path = temporaryFile(BYTES);
    const file = await memory.openFile(fileBacking(path));
    const address = space.sync.mmap({ length: BYTES, prot: "r", share: "shared", file });
    const fd = openSync(path, "r");
    const piece = new Int32Array(PIECE / 4);
    // What reading into as many frames would cost without any bookkeeping: each piece to another place.
    const frames = new SharedArrayBuffer(BUDGET_MIB * MIB);
    const places = Array.from({ length: BUDGET_MIB }, (_, n) => new Int32Array(frames, n * MIB, PIECE / 4));
    const wordsOf = (span) => new Int32Array(span.buffer, span.byteOffset, span.byteLength >> 2);
    const blocking = (use) => () =>
      gigabytesPerSecond(BYTES, () =>
        space.sync.forEachSpan(address, BYTES, "r", (span) => keep(use(wordsOf(span)))),
      );
    const promised = (use) => async () => {
      const begin = performance.now();
      await space.forEachSpan(address, BYTES, "r", (span) => keep(use(wordsOf(span))));
      return BYTES / ((performance.now() - begin) * 1e6);
    };
    const reading = (use, into) => () =>
      gigabytesPerSecond(BYTES, () => {
        for (let n = 0; n < BYTES / PIECE; n++) {
          const words = into[n % into.length];
          readSync(fd, words, 0, PIECE, n * PIECE);
          keep(use(words));
        }
      });
    const samples = await interleave(
      {
        look: blocking(lookAt()),
        lookReading: reading(lookAt(), [piece]),
        lookSpread: reading(lookAt(), places),
        lookPromised: promised(lookAt()),
        sum: blocking(sumUp()),
        sumReading: reading(sumUp(), [piece]),
      },
      { repetitions, warmUps: 2 },
    );
    closeSync(fd);
    await memory.close();
    const line = (what, bifolio, base, goal, name = "readSync") =>
      lineOf({ what, unit: "GB/s", bifolio, goal, alternative: { name, samples: base } });
    return {
      lines: [
        line("sync form, a word of each page", samples.look, samples.lookReading, "at least 0.75 x"),
        line(
          "promise form, a word of each page",
          samples.lookPromised,
          samples.lookReading,
          "at least 0.75 x",
        ),
        line(
          "sync form, a word of each page",
          samples.look,
          samples.lookSpread,
          undefined,
          "readSync over 64 MiB of shared memory",
        ),
        line("sync form, sum of all words", samples.sum, samples.sumReading),
      ],
    };
  },
};
