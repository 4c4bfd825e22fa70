import fc from "fast-check";
import { expect, test } from "vitest";
import { type ByteRange, ByteRanges } from "../../../src/mirrors/webgpu/byteRanges.ts";

const LENGTH = 40;

/** The ranges of a set of numbers. */
function rangesOf(bytes: ReadonlySet<number>): ByteRange[] {
  const ranges: { start: number; end: number }[] = [];
  for (const byte of [...bytes].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last?.end === byte) last.end++;
    else ranges.push({ start: byte, end: byte + 1 });
  }
  return ranges;
}

test("a set of bytes, whatever is added and taken", () => {
  const step = fc.record({
    op: fc.constantFrom("add", "add", "take", "within"),
    start: fc.nat(LENGTH),
    length: fc.nat(10),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const ranges = new ByteRanges();
      const model = new Set<number>();
      for (const { op, start, length } of steps) {
        const end = start + length;
        const inside = new Set([...model].filter((byte) => byte >= start && byte < end));
        if (op === "add") {
          ranges.add(start, end);
          for (let byte = start; byte < end; byte++) model.add(byte);
        } else expect(ranges[op as "take"](start, end)).toEqual(rangesOf(inside));
        if (op === "take") for (const byte of inside) model.delete(byte);
        expect(ranges.list()).toEqual(rangesOf(model));
        expect(ranges.empty).toBe(model.size === 0);
      }
    }),
  );
});
