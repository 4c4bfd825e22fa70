import { describe, expect, test } from "vitest";
import {
  anonymous,
  arrayBacking,
  makeRig,
  PAGE,
  pattern,
  sharedBacking,
  thrown,
  type Rig,
  verify,
} from "../../lib/mm.ts";

const at = (page: number): number => page * PAGE;
const BASE = 0x100000;
const fixed = (page: number, pages: number, more = {}) =>
  anonymous(pages, { address: BASE + at(page), fixed: true, ...more });

/** "0-4 rw-": the mappings in pages from BASE on. */
const layout = ({ raw }: Rig): string[] =>
  raw.vmas().map((v) => `${(v.start - BASE) / PAGE}-${(v.end - BASE) / PAGE} ${v.prot}`);

describe("mmap", () => {
  test("without address it gives the lowest free stretch, 64 KiB aligned, below 2 GiB", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    const b = space.sync.mmap(anonymous(20));
    const c = space.sync.mmap(anonymous(1));
    expect([a, b, c]).toEqual([0x10000, 0x20000, 0x40000]);
    space.sync.munmap(b, at(20));
    expect(space.sync.mmap(anonymous(17))).toBe(b);
  });

  test("a stretch is found above 2 GiB when nothing is free below", async () => {
    const { space } = await makeRig();
    space.sync.mmap({ length: 2 ** 31 - 2 ** 17, prot: "none", share: "private" });
    const above = space.sync.mmap(anonymous(64));
    expect(above).toBe(2 ** 31);
    space.setUint32(above + 4, 7);
    expect(space.getUint32(above + 4)).toBe(7);
  });

  test("no stretch that is long enough is ENOMEM", async () => {
    const { space } = await makeRig();
    expect(thrown(() => space.sync.mmap({ length: 2 ** 43, prot: "r", share: "private" }))?.code).toBe(
      "ENOMEM",
    );
    expect(space.vmas()).toEqual([]);
  });

  test("a hint is taken where it is free, and ignored where it is not", async () => {
    const { space } = await makeRig();
    expect(space.sync.mmap(anonymous(1, { address: BASE }))).toBe(BASE);
    expect(space.sync.mmap(anonymous(1, { address: BASE }))).toBe(0x10000);
  });

  test("lengths are rounded up to pages", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap({ length: 1, prot: "rw", share: "private" });
    space.setUint8(a + PAGE - 1, 5);
    expect(space.vmas()).toMatchObject([{ start: a, end: a + PAGE }]);
  });

  test("fixed replaces what is mapped there, pages included", async () => {
    const rig = await makeRig();
    const { space } = rig;
    space.sync.mmap(fixed(0, 4));
    space.setUint8(BASE + at(1), 9);
    space.setUint8(BASE + at(3), 8);
    expect(space.sync.mmap(fixed(1, 2, { prot: "r" }))).toBe(BASE + at(1));
    expect(layout(rig)).toEqual(["0-1 rw-", "1-3 r--", "3-4 rw-"]);
    expect(space.getUint8(BASE + at(1))).toBe(0);
    expect(space.getUint8(BASE + at(3))).toBe(8);
  });

  test("noreplace is EEXIST where anything is mapped, and changes nothing", async () => {
    const rig = await makeRig();
    const { space } = rig;
    space.sync.mmap(fixed(2, 1));
    expect(thrown(() => space.sync.mmap(fixed(0, 3, { fixed: "noreplace" })))?.code).toBe("EEXIST");
    expect(layout(rig)).toEqual(["2-3 rw-"]);
    expect(space.sync.mmap(fixed(0, 2, { fixed: "noreplace" }))).toBe(BASE);
  });

  test("anonymous neighbours that are alike become one mapping; others do not", async () => {
    const rig = await makeRig();
    const { space } = rig;
    space.sync.mmap(fixed(0, 1));
    space.sync.mmap(fixed(2, 1));
    space.sync.mmap(fixed(1, 1));
    expect(layout(rig)).toEqual(["0-3 rw-"]);
    space.sync.mmap(fixed(3, 1, { prot: "r" }));
    expect(layout(rig)).toEqual(["0-3 rw-", "3-4 r--"]);
  });

  test("neighbours of one file become one mapping only where their offsets continue", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(at(8))));
    const map = (page: number, offset: number) =>
      space.sync.mmap(fixed(page, 1, { prot: "r", file, offset: at(offset) }));
    map(0, 2);
    map(1, 3);
    map(2, 3);
    map(3, 4);
    expect(space.vmas().map((v) => [v.start - BASE, v.end - BASE, v.offset, v.file])).toEqual([
      [0, at(2), at(2), file.id],
      [at(2), at(4), at(3), file.id],
    ]);
    expect(space.getUint8(BASE + at(3))).toBe(pattern(at(8))[at(4)]);
  });

  test("each shared anonymous mapping has memory of its own, for all who map it", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(2, { share: "shared" }));
    const b = space.sync.mmap(anonymous(2, { share: "shared" }));
    space.setUint32(a, 1);
    expect(space.getUint32(b)).toBe(0);
    space.sync.madvise(a, at(2), "dontneed");
    expect(space.getUint32(a)).toBe(1);
  });

  test("populate brings the pages in; what it cannot bring in faults later", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(3, { populate: true }));
    expect(space.mincore(a, at(3))).toEqual(Uint8Array.of(1, 1, 1));
    expect(space.pagemap(a, at(1))).toMatchObject([{ zero: false, exclusive: true, dirty: true }]);
    const file = memory.sync.openFile(arrayBacking(pattern(at(1))));
    const b = space.sync.mmap(anonymous(2, { prot: "r", file, populate: true }));
    expect(space.mincore(b, at(2))).toEqual(Uint8Array.of(1, 0));
    expect(space.mincore(space.sync.mmap(anonymous(1, { prot: "none", populate: true })), PAGE)[0]).toBe(0);
  });

  test.each([
    ["address not aligned", { address: BASE + 1, fixed: true }, "EINVAL"],
    ["address negative", { address: -PAGE }, "EINVAL"],
    ["address NaN", { address: Number.NaN, fixed: true }, "EINVAL"],
    ["address a string", { address: "4096" as never, fixed: true }, "EINVAL"],
    ["fixed without address", { fixed: true }, "EINVAL"],
    ["fixed at the first page", { address: 0, fixed: true }, "EPERM"],
    ["beyond the end", { address: PAGE * 2 ** 31, fixed: true }, "ENOMEM"],
    ["across the end", { address: PAGE * (2 ** 31 - 2 ** 20 - 1), length: at(2), fixed: true }, "ENOMEM"],
    ["far beyond the end", { address: 2 ** 60 }, "ENOMEM"],
    ["length 0", { length: 0 }, "EINVAL"],
    ["length negative", { length: -1 }, "EINVAL"],
    ["length fractional", { length: 4096.5 }, "EINVAL"],
    ["length NaN", { length: Number.NaN }, "EINVAL"],
    ["length infinite", { length: Number.POSITIVE_INFINITY }, "EINVAL"],
    ["length larger than all", { length: Number.MAX_SAFE_INTEGER }, "ENOMEM"],
    ["offset not aligned", { offset: 1 }, "EINVAL"],
    ["offset negative", { offset: -PAGE }, "EINVAL"],
    ["offset too large", { offset: PAGE * 2 ** 31 }, "EOVERFLOW"],
    ["prot unknown", { prot: "wr" as never }, "EINVAL"],
    ["prot a property of objects", { prot: "toString" as never }, "EINVAL"],
    ["prot out of range", { prot: 8 }, "EINVAL"],
    ["prot fractional", { prot: 1.5 }, "EINVAL"],
    ["share unknown", { share: "both" as never }, "EINVAL"],
    ["file of another kind", { file: {} as never }, "EINVAL"],
  ])("%s: %o is %s", async (_, options, code) => {
    const { space, memory } = await makeRig();
    const before = memory.stats();
    expect(thrown(() => space.sync.mmap(anonymous(1, options)))?.code).toBe(code);
    expect(thrown(() => space.sync.mmap(anonymous(1, { share: "shared", ...options })))?.code).toBe(code);
    expect(space.vmas()).toEqual([]);
    expect(memory.stats().arenaBytes).toBe(before.arenaBytes);
  });

  test("no object at all is EINVAL", async () => {
    const { space } = await makeRig();
    expect(thrown(() => space.sync.mmap(undefined as never))?.code).toBe("EINVAL");
    expect(thrown(() => space.sync.mmap(null as never))?.code).toBe("EINVAL");
  });

  test("shared and writable needs a file opened writable; private does not", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)));
    const error = thrown(() => space.sync.mmap(anonymous(1, { share: "shared", file })));
    expect(error?.code).toBe("EACCES");
    expect(space.sync.mmap(anonymous(1, { share: "shared", prot: "r", file }))).toBeGreaterThan(0);
    expect(space.sync.mmap(anonymous(1, { file }))).toBeGreaterThan(0);
  });

  test("a file of another memory is refused", async () => {
    const { space } = await makeRig();
    const other = await makeRig();
    const file = other.memory.sync.openFile(arrayBacking(pattern(PAGE)));
    expect(thrown(() => space.sync.mmap(anonymous(1, { file })))?.code).toBe("EINVAL");
  });

  test("when the arena is full it is ENOMEM, nothing has changed, and unmapping still works", async () => {
    const { memory, raw } = await makeRig(64, { arena: 2 ** 20 });
    let page = 0;
    let failed;
    // Every second page, so that no two become one.
    while (!failed) {
      const address = BASE + at(2 * page++);
      failed = thrown(() => raw.sync.mmap(anonymous(1, { address, fixed: true })));
      if (page > 20_000) throw new Error("the arena never filled up");
    }
    expect(failed.code).toBe("ENOMEM");
    expect(memory.check()).toBeUndefined();
    expect(raw.vmas()).toHaveLength(page - 1);
    raw.sync.munmap(BASE, at(2 * page));
    expect(raw.vmas()).toEqual([]);
    expect(memory.check()).toBeUndefined();
  });
});

describe("munmap", () => {
  test("the middle of a mapping leaves two; the edges shrink it", async () => {
    const rig = await makeRig();
    const { space } = rig;
    space.sync.mmap(fixed(0, 10));
    for (let k = 0; k < 10; k++) space.setUint8(BASE + at(k), k + 1);
    space.sync.munmap(BASE + at(4), at(2));
    expect(layout(rig)).toEqual(["0-4 rw-", "6-10 rw-"]);
    space.sync.munmap(BASE, at(1));
    space.sync.munmap(BASE + at(9), at(1));
    expect(layout(rig)).toEqual(["1-4 rw-", "6-9 rw-"]);
    for (let k = 0; k < 10; k++) {
      const mapped = (k > 0 && k < 4) || (k > 5 && k < 9);
      const error = thrown(() => expect(space.getUint8(BASE + at(k))).toBe(k + 1));
      expect(error?.reason).toBe(mapped ? undefined : "SEGV_MAPERR");
    }
  });

  test("holes and nothing at all are fine", async () => {
    const rig = await makeRig();
    const { space } = rig;
    space.sync.munmap(BASE, at(4));
    space.sync.mmap(fixed(1, 1));
    space.sync.mmap(fixed(3, 2));
    space.sync.munmap(BASE, at(4));
    expect(layout(rig)).toEqual(["4-5 rw-"]);
    space.sync.munmap(0, at(1));
    space.sync.munmap(BASE, at(1000));
    expect(layout(rig)).toEqual([]);
  });

  test("frames go back, and memory mapped anew is zero", async () => {
    const { memory, space } = await makeRig();
    const { free } = memory.stats().frames;
    const a = space.sync.mmap(anonymous(8));
    for (let k = 0; k < 8; k++) space.setUint8(a + at(k), 0xff);
    expect(memory.stats().frames).toMatchObject({ free: free - 8, anon: 8 });
    space.sync.munmap(a, at(8));
    expect(memory.stats().frames.free).toBe(free);
    expect(space.sync.mmap(anonymous(8))).toBe(a);
    for (let k = 0; k < 8; k++) expect(space.getUint32(a + at(k))).toBe(0);
  });

  test("both parts of a split file mapping still show the right pages", async () => {
    const { memory, space } = await makeRig();
    const bytes = pattern(at(6));
    const file = memory.sync.openFile(arrayBacking(bytes));
    const a = space.sync.mmap(anonymous(5, { prot: "r", file, offset: at(1) }));
    space.sync.munmap(a + at(2), at(1));
    expect(space.getUint32(a + at(1) + 8)).toBe(new DataView(bytes.buffer).getUint32(at(2) + 8, true));
    expect(space.getUint32(a + at(4) + 8)).toBe(new DataView(bytes.buffer).getUint32(at(5) + 8, true));
    expect(space.vmas().map((v) => v.offset)).toEqual([at(1), at(4)]);
  });

  test.each([
    ["address not aligned", BASE + 8, PAGE, "EINVAL", "EINVAL"],
    ["address negative", -PAGE, PAGE, "EINVAL", "EINVAL"],
    ["length 0", BASE, 0, "EINVAL", undefined],
    ["length NaN", BASE, Number.NaN, "EINVAL", "EINVAL"],
    ["length negative", BASE, -PAGE, "EINVAL", "EINVAL"],
    ["beyond the end", BASE, PAGE * 2 ** 31, "EINVAL", "ENOMEM"],
    ["overflowing", PAGE * 2 ** 30, 2 ** 53 - 1, "EINVAL", "ENOMEM"],
  ])("%s has Linux's answer, here and elsewhere", async (_, address, length, here, code) => {
    const { space } = await makeRig();
    expect(thrown(() => space.sync.munmap(address, length))?.code).toBe(here);
    expect(thrown(() => space.sync.mprotect(address, length, "r"))?.code).toBe(code);
    expect(thrown(() => space.sync.madvise(address, length, "dontneed"))?.code).toBe(code);
    expect(thrown(() => space.sync.msync(address, length))?.code).toBe(code);
    expect(thrown(() => space.sync.populate(address, length))?.code).toBe(code);
    expect(thrown(() => space.pagemap(address, length))?.code).toBe(code);
  });
});

describe("mprotect", () => {
  test("splits at its edges and joins what is alike again", async () => {
    const rig = await makeRig();
    const { space } = rig;
    space.sync.mmap(fixed(0, 6));
    space.sync.mprotect(BASE + at(2), at(2), "r");
    expect(layout(rig)).toEqual(["0-2 rw-", "2-4 r--", "4-6 rw-"]);
    space.sync.mprotect(BASE + at(1), at(1), "r");
    expect(layout(rig)).toEqual(["0-1 rw-", "1-4 r--", "4-6 rw-"]);
    space.sync.mprotect(BASE + at(1), at(3), "rw");
    expect(layout(rig)).toEqual(["0-6 rw-"]);
  });

  test("a store to a read-only page is SEGV_ACCERR, its contents stay, and come back writable", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    space.setUint32(a, 42);
    space.sync.mprotect(a, PAGE, "r");
    expect(thrown(() => space.setUint32(a, 43))).toMatchObject({
      name: "SegvError",
      reason: "SEGV_ACCERR",
      code: "EACCES",
      address: a,
    });
    expect(space.getUint32(a)).toBe(42);
    space.sync.mprotect(a, PAGE, "rw");
    space.setUint32(a, 44);
    expect(space.getUint32(a)).toBe(44);
  });

  test("none forbids everything; back to r shows the contents", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(2));
    space.setUint32(a, 42);
    space.sync.mprotect(a, at(2), "none");
    for (const address of [a, a + PAGE]) {
      expect(thrown(() => space.getUint8(address))?.reason).toBe("SEGV_ACCERR");
      expect(thrown(() => space.setUint8(address, 1))?.reason).toBe("SEGV_ACCERR");
    }
    space.sync.mprotect(a, at(2), "r");
    expect([space.getUint32(a), space.getUint32(a + PAGE)]).toEqual([42, 0]);
    expect(thrown(() => space.setUint8(a, 1))?.reason).toBe("SEGV_ACCERR");
  });

  test("w and x alone allow reading too, as on the usual hardware", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1, { prot: "w" }));
    space.setUint8(a, 3);
    expect(space.getUint8(a)).toBe(3);
    space.sync.mprotect(a, PAGE, 4);
    expect(space.getUint8(a)).toBe(3);
    expect(thrown(() => space.setUint8(a, 1))?.reason).toBe("SEGV_ACCERR");
  });

  test("at a hole it is ENOMEM, and what lies before is changed", async () => {
    const rig = await makeRig();
    const { space } = rig;
    space.sync.mmap(fixed(0, 2));
    space.sync.mmap(fixed(3, 2));
    expect(thrown(() => space.sync.mprotect(BASE + at(1), at(4), "r"))?.code).toBe("ENOMEM");
    expect(layout(rig)).toEqual(["0-1 rw-", "1-2 r--", "3-5 rw-"]);
    expect(thrown(() => space.sync.mprotect(BASE + at(2), at(2), "r"))?.code).toBe("ENOMEM");
    expect(layout(rig)).toEqual(["0-1 rw-", "1-2 r--", "3-5 rw-"]);
  });

  test("making a shared mapping of a read-only file writable is EACCES, and what lies before is changed", async () => {
    const rig = await makeRig();
    const { memory, space } = rig;
    const file = memory.sync.openFile(arrayBacking(pattern(at(2))));
    space.sync.mmap(fixed(0, 1, { prot: "r" }));
    space.sync.mmap(fixed(1, 1, { prot: "r", share: "shared", file }));
    space.sync.mmap(fixed(2, 1, { prot: "r" }));
    expect(thrown(() => space.sync.mprotect(BASE, at(3), "rw"))?.code).toBe("EACCES");
    expect(layout(rig)).toEqual(["0-1 rw-", "1-2 r--", "2-3 r--"]);
  });

  test("prot out of range is EINVAL", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    for (const prot of [8, -1, 0.5, "x", undefined] as never[]) {
      expect(thrown(() => space.sync.mprotect(a, PAGE, prot))?.code).toBe("EINVAL");
    }
  });
});

test.each([
  ["freed at once", true],
  ["kept for the next cut", false],
])("records of mappings that are joined are %s, and gone with the space", async (_how, debug) => {
  const rig = await makeRig(64, { debug });
  const { memory, raw } = rig;
  const file = memory.sync.openFile(sharedBacking(pattern(at(8))), { writable: true });
  raw.sync.mmap(fixed(0, 8));
  raw.setUint8(BASE + at(2), 1);
  const before = memory.stats().arenaBytes;
  const child = raw.sync.fork();
  child.sync.mmap(fixed(8, 8, { share: "shared", file }));
  for (let round = 0; round < 3; round++) {
    // What was of anonymous memory is next of a file, and the other way round.
    for (const page of [2, 10, 4]) child.sync.mprotect(BASE + at(page), PAGE, "r");
    expect(
      child
        .vmas()
        .map(({ start, prot }) => `${(start - BASE) / PAGE} ${prot}`)
        .join(),
    ).toBe("0 rw-,2 r--,3 rw-,4 r--,5 rw-,8 rw-,10 r--,11 rw-");
    verify(memory);
    for (const page of [10, 2, 4]) child.sync.mprotect(BASE + at(page), PAGE, "rw");
    expect(child.vmas().length).toBe(2);
    verify(memory);
  }
  child.sync.exit();
  memory.poll();
  expect(memory.stats().arenaBytes).toBe(before);
  verify(memory);
});

describe("madvise dontneed", () => {
  test("private anonymous pages begin anew as zeros", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(3));
    for (let k = 0; k < 3; k++) space.setUint8(a + at(k), 7);
    space.sync.madvise(a + at(1), at(1), "dontneed");
    expect([0, 1, 2].map((k) => space.getUint8(a + at(k)))).toEqual([7, 0, 7]);
    expect(memory.stats().frames.anon).toBe(2);
  });

  test("private file pages begin anew from the file, shared ones keep what was stored", async () => {
    const { memory, space } = await makeRig();
    const bytes = pattern(at(1));
    const file = memory.sync.openFile(arrayBacking(bytes.slice()), { writable: true });
    const a = space.sync.mmap(anonymous(1, { file }));
    const b = space.sync.mmap(anonymous(1, { file, share: "shared" }));
    space.setUint8(a, bytes[0]! ^ 0xff);
    space.sync.madvise(a, PAGE, "dontneed");
    expect(space.getUint8(a)).toBe(bytes[0]);
    space.setUint8(b + 1, 99);
    space.sync.madvise(b, PAGE, "dontneed");
    expect(space.getUint8(b + 1)).toBe(99);
    expect(space.getUint8(a + 1)).toBe(99);
  });

  test("what is mapped is done, and a hole is ENOMEM all the same", async () => {
    const { space } = await makeRig();
    space.sync.mmap(fixed(0, 1));
    space.sync.mmap(fixed(2, 1));
    space.setUint8(BASE, 1);
    space.setUint8(BASE + at(2), 1);
    expect(thrown(() => space.sync.madvise(BASE, at(3), "dontneed"))?.code).toBe("ENOMEM");
    expect([space.getUint8(BASE), space.getUint8(BASE + at(2))]).toEqual([0, 0]);
    expect(thrown(() => space.sync.madvise(BASE, at(1), "dontneed"))).toBeUndefined();
    expect(thrown(() => space.sync.madvise(BASE + at(2), at(2), "dontneed"))?.code).toBe("ENOMEM");
    expect(thrown(() => space.sync.madvise(BASE + at(8), at(1), "dontneed"))?.code).toBe("ENOMEM");
  });

  test("unknown advice is EINVAL, and so is what needs huge or merged pages", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    for (const advice of ["later", "toString", 7, Number.NaN, "hugepage", 12])
      expect(thrown(() => space.sync.madvise(a, PAGE, advice as never))?.code).toBe("EINVAL");
  });
});

describe("populate", () => {
  test("r maps the zero page, rw a frame of one's own", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(2));
    space.sync.populate(a, at(2));
    expect(space.pagemap(a, at(2))).toMatchObject([{ zero: true }, { zero: true }]);
    expect(memory.stats().frames.anon).toBe(0);
    space.sync.populate(a, at(1), "rw");
    expect(space.pagemap(a, at(2))).toMatchObject([{ zero: false, exclusive: true }, { zero: true }]);
  });

  test("rw of a private file page is a copy, of a shared one the file's own", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)), { writable: true });
    const a = space.sync.mmap(anonymous(1, { file }));
    const b = space.sync.mmap(anonymous(1, { file, share: "shared" }));
    space.sync.populate(a, PAGE, "rw");
    space.sync.populate(b, PAGE, "rw");
    expect(space.pagemap(a, PAGE)).toMatchObject([{ file: false, exclusive: true }]);
    expect(space.pagemap(b, PAGE)).toMatchObject([{ file: true, exclusive: true, dirty: true }]);
  });

  test("it fails where an access would", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)));
    const a = space.sync.mmap(anonymous(2, { prot: "r", file }));
    expect(thrown(() => space.sync.populate(a, at(2)))).toMatchObject({
      name: "BusError",
      address: a + PAGE,
    });
    expect(thrown(() => space.sync.populate(a, PAGE, "rw"))?.reason).toBe("SEGV_ACCERR");
    expect(thrown(() => space.sync.populate(BASE, PAGE))?.reason).toBe("SEGV_MAPERR");
  });
});

test("every operation has a Promise form with the same results", async () => {
  const { memory, space } = await makeRig();
  const a = await space.mmap(anonymous(4));
  await space.populate(a, at(2), "rw");
  await space.mprotect(a, at(1), "r");
  await space.madvise(a + at(1), at(1), "dontneed");
  await space.msync(a, at(4));
  await space.munmap(a + at(3), at(1));
  expect(space.vmas()).toMatchObject([
    { start: a, end: a + at(1), prot: "r--" },
    { start: a + at(1), end: a + at(3), prot: "rw-" },
  ]);
  expect(memory.stats().frames.anon).toBe(1);
});
