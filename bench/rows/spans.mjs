/** Sequential access through spans. */
import { gigabytesPerSecond, interleave, keep, lineOf, uniqueFunction } from "../lib/interleave.mjs";
import { filledMapping, MIB, openMemory } from "../lib/memory.mjs";

const BYTES = 256 * MIB;

const sumOf = () =>
  uniqueFunction(
    ["words"],
    `let sum = 0;
    for (let n = 0; n < words.length; n++) sum = (sum + words[n]) | 0;
    return sum;`,
  );

export default {
  measures:
    "sum of the int32 words of 256 MiB through space.spans(), against a typed array cut into the same pieces",
  async run({ repetitions }) {
    const { memory, space } = await openMemory(BYTES / MIB + 16);
    const address = filledMapping(space, BYTES);
    const pieces = [];
    let offset = 0;
    for (const span of space.spans(address, BYTES, "r")) {
      pieces.push({ offset, length: span.byteLength });
      offset += span.byteLength;
    }
    memory.poll();
    const raw = new SharedArrayBuffer(BYTES);
    new Uint8Array(raw).fill(7);

    const sumSpan = sumOf();
    const throughSpans = (access) => () =>
      gigabytesPerSecond(BYTES, () => {
        let sum = 0;
        for (const span of space.spans(address, BYTES, access)) {
          sum ^= sumSpan(new Int32Array(span.buffer, span.byteOffset, span.byteLength >> 2));
        }
        // The end of the turn gives the references back; that is part of the cost.
        memory.poll();
        keep(sum);
      });
    const sumPiece = sumOf();
    const throughPieces = () =>
      gigabytesPerSecond(BYTES, () => {
        let sum = 0;
        for (const piece of pieces) sum ^= sumPiece(new Int32Array(raw, piece.offset, piece.length >> 2));
        keep(sum);
      });
    const samples = await interleave(
      { read: throughSpans("r"), raw: throughPieces, write: throughSpans("rw") },
      { repetitions },
    );
    await memory.close();
    const alternative = { name: "typed array", samples: samples.raw };
    const meanKiB = (BYTES / pieces.length / 1024).toFixed(0);
    return {
      notes: [`${pieces.length} spans, ${meanKiB} KiB each on average`],
      lines: [
        lineOf({
          what: "spans for reading",
          unit: "GB/s",
          bifolio: samples.read,
          alternative,
          goal: "at least 0.9 x",
        }),
        lineOf({ what: "spans for writing, only read", unit: "GB/s", bifolio: samples.write, alternative }),
      ],
    };
  },
};
