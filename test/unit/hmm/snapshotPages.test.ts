import { expect, test } from "vitest";
import { NO_FRAME, snapshotPages } from "../../../src/hmm/index.ts";
import { ZERO_PFN } from "../../../src/memory/index.ts";
import { anonymous, makeRig, PAGE, thrown } from "../../lib/mm.ts";

test("gives the frames of pages that can be read as they are, and brings none in", async () => {
  const { memory, raw } = await makeRig();
  const start = raw.sync.mmap(anonymous(8));
  raw.setUint8(start + PAGE, 7);
  raw.getUint8(start + 3 * PAGE);
  raw.setUint8(start + 5 * PAGE, 9);
  raw.sync.mprotect(start + 5 * PAGE, PAGE, "none");
  const frames = new Int32Array(5);
  const { used } = memory.stats().frames;
  expect(snapshotPages(raw, start / PAGE, [1, 3, 4, 5, 100], frames)).toBe(3);
  expect([...frames.subarray(1)]).toEqual([ZERO_PFN, NO_FRAME, NO_FRAME, NO_FRAME]);
  expect(raw.memory.frame(frames[0]!)[0]).toBe(7);
  expect(memory.stats().frames.used).toBe(used);
  raw.sync.mprotect(start + 5 * PAGE, PAGE, "r");
  expect(snapshotPages(raw, start / PAGE, [5], frames)).toBe(0);
  expect(raw.memory.frame(frames[0]!)[0]).toBe(9);
  raw.sync.exit();
  expect(thrown(() => snapshotPages(raw, start / PAGE, [1], frames))).toMatchObject({ code: "ESRCH" });
});
