/** What the recorded programs of test/linux do not reach: reclaim, backings, options, edges of the interface. */
import { readFileSync, statSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { createMemory, memoryBacking } from "../../../src/mm/index.ts";
import { fileBacking } from "../../../src/node.ts";
import {
  anonymous,
  arrayBacking,
  eventOf,
  makeMemory,
  makeRig,
  PAGE,
  pattern,
  record,
  rejected,
  tempFile,
  thrown,
  verify,
} from "../../lib/mm.ts";

const at = (pages: number): number => pages * PAGE;

describe("mlock", () => {
  test("keeps pages of a file in memory, whatever reclaim wants; munlock gives them up", async () => {
    const { memory, space } = await makeRig(64);
    const file = memory.sync.openFile(arrayBacking(pattern(at(32))));
    const a = space.sync.mmap(anonymous(32, { prot: "r", file }));
    space.sync.populate(a, at(32));
    space.sync.mlock(a + at(8), at(8));
    memory.sync.reclaim(at(64));
    memory.sync.reclaim(at(64));
    expect([...space.mincore(a + at(8), at(8))]).toEqual(Array<number>(8).fill(1));
    expect(space.pagemap(a + at(8), at(8)).every(({ present }) => present)).toBe(true);
    expect(space.mincore(a, at(8)).includes(1)).toBe(false);
    space.sync.munlock(a, at(32));
    memory.sync.reclaim(at(64));
    memory.sync.reclaim(at(64));
    expect(space.mincore(a, at(32)).includes(1)).toBe(false);
    verify(memory);
  });

  test("onFault brings nothing in, and locks what comes", async () => {
    const { memory, space } = await makeRig(64);
    const a = space.sync.mmap(anonymous(4));
    space.sync.mlock(a + 5, at(3), { onFault: true });
    expect(memory.stats().frames.anon).toBe(0);
    expect(space.vmas().map(({ flags }) => flags)).toEqual([["ac", "lf", "lo"]]);
  });
});

describe("files of the operating system", () => {
  test.each([
    ["inside the last page", 5, 10],
    ["in a new page", 5, PAGE],
    ["at the very end", PAGE, PAGE],
    ["from nothing", 0, 0],
    ["behind a gap", 100, at(5) + 7],
  ])("grow by being written %s", async (_, size, offset) => {
    const path = tempFile(pattern(size));
    const memory = await makeMemory();
    const file = memory.sync.openFile(fileBacking(path, { writable: true }), { writable: true });
    expect(memory.sync.write(file, offset, Uint8Array.of(1, 2, 3))).toBe(3);
    expect(file.size).toBe(offset + 3);
    memory.sync.sync(file);
    const bytes = readFileSync(path);
    expect(bytes.length).toBe(offset + 3);
    expect([...bytes.subarray(0, Math.min(size, offset))]).toEqual([...pattern(Math.min(size, offset))]);
    expect([...bytes.subarray(size, offset)].every((byte) => byte === 0)).toBe(true);
    expect([...bytes.subarray(offset)]).toEqual([1, 2, 3]);
    verify(memory);
  });

  test("shrink and grow by truncate: what is gone is zero when it comes again", async () => {
    const path = tempFile(pattern(at(4), 7));
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(fileBacking(path, { writable: true }), { writable: true });
    const a = space.sync.mmap(anonymous(4, { share: "shared", file }));
    space.sync.populate(a, at(4), "rw");
    await file.truncate(PAGE + 10);
    expect(statSync(path).size).toBe(PAGE + 10);
    expect(thrown(() => space.getUint8(a + at(2)))?.name).toBe("BusError");
    await file.truncate(at(3));
    expect(space.getUint8(a + PAGE + 9)).toBe(pattern(at(4), 7)[PAGE + 9]);
    expect([space.getUint8(a + PAGE + 10), space.getUint8(a + at(3) - 1)]).toEqual([0, 0]);
    await file.punchHole(0, PAGE);
    memory.sync.sync(file);
    expect(
      readFileSync(path)
        .subarray(0, PAGE)
        .every((byte) => byte === 0),
    ).toBe(true);
    verify(memory);
  });

  test("what cannot be is refused, and nothing changes", async () => {
    const { memory } = await makeRig();
    const fixed = memory.sync.openFile(arrayBacking(pattern(PAGE)), { writable: true });
    await expect(fixed.truncate(0)).rejects.toMatchObject({ code: "ENOTSUP" });
    await expect(fixed.allocate(0, at(2))).rejects.toMatchObject({ code: "ENOTSUP" });
    await fixed.allocate(0, at(2), { keepSize: true });
    const readOnly = memory.sync.openFile(memoryBacking(PAGE), { writable: false });
    await expect(readOnly.truncate(0)).rejects.toMatchObject({ code: "EACCES" });
    await expect(readOnly.punchHole(0, 1)).rejects.toMatchObject({ code: "EACCES" });
    expect((await rejected(readOnly.write(0, Uint8Array.of(1))))?.code).toBe("EACCES");
    const file = memory.sync.openFile(memoryBacking(PAGE));
    await expect(file.truncate(-1)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(file.truncate(1.5)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(file.truncate(2 ** 50)).rejects.toMatchObject({ code: "EFBIG" });
    await expect(file.punchHole(0, 0)).rejects.toMatchObject({ code: "EINVAL" });
    expect([fixed.size, readOnly.size, file.size]).toEqual([PAGE, PAGE, PAGE]);
    verify(memory);
  });
});

describe("folio and readAhead", () => {
  test("a folio of one page: each dirty page is written back with an event of its own", async () => {
    const { memory, space, raw } = await makeRig(64, { folio: PAGE });
    const recorder = record(raw);
    const file = memory.sync.openFile(arrayBacking(pattern(at(4))), { writable: true });
    const a = space.sync.mmap(anonymous(4, { share: "shared", file }));
    for (let k = 0; k < 4; k++) space.setUint8(a + at(k), 1);
    memory.sync.sync(file);
    expect(recorder.take()).toEqual(
      [0, 1, 2, 3].map((k) => eventOf("ProtectionPage", a + at(k), a + at(k + 1))),
    );
    verify(memory);
  });

  test("readAhead says how much a read brings in", async () => {
    const { memory, space } = await makeRig(64, { folio: PAGE, readAhead: at(8), faultAround: PAGE });
    const file = memory.sync.openFile(arrayBacking(pattern(at(32))));
    const a = space.sync.mmap(anonymous(32, { prot: "r", file }));
    space.getUint8(a + at(11));
    expect(space.mincore(a, at(32)).reduce((sum, x) => sum + x, 0)).toBe(8);
    expect([...space.mincore(a + at(8), at(8))]).toEqual(Array<number>(8).fill(1));
    verify(memory);
  });

  test.each([{ folio: 1000 }, { folio: 2 ** 17 }, { folio: 16384, readAhead: 8192 }, { readAhead: 70000 }])(
    "%o is refused",
    async (options) => {
      await expect(createMemory({ budget: "1 MiB", ...options })).rejects.toMatchObject({ code: "EINVAL" });
    },
  );
});
