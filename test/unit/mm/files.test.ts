import { truncateSync, writeFileSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { fileBacking } from "../../../src/backing/index.ts";
import { memoryBacking, registerBacking } from "../../../src/mm/index.ts";
import {
  anonymous,
  arrayBacking,
  attachTo,
  checked,
  expectBytes,
  makeMemory,
  makeRig,
  PAGE,
  pattern,
  rejected,
  takeReported,
  tempFile,
  thrown,
  verify,
} from "../../lib/mm.ts";

const at = (page: number): number => page * PAGE;
const shared = (pages: number, more = {}) => anonymous(pages, { share: "shared", ...more });
const bytesAt = (bytes: Uint8Array, offset: number): number =>
  new DataView(bytes.buffer).getUint32(offset, true);

describe("private file mappings", () => {
  test("a write is a copy: neither the file nor other mappings see it", async () => {
    const { memory, space } = await makeRig(64, { faultAround: PAGE });
    const backing = arrayBacking(pattern(at(2)));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(anonymous(2, { file }));
    const b = space.sync.mmap(anonymous(2, { file }));
    const c = space.sync.mmap(shared(2, { file }));
    const before = space.getUint32(a);
    space.setUint32(a, before ^ 0xff); // after a read: copy-on-write
    space.setUint32(a + PAGE, 1); // at once: a copy
    expect([space.getUint32(b), space.getUint32(c)]).toEqual([before, before]);
    expect(space.getUint32(b + PAGE)).toBe(bytesAt(pattern(at(2)), PAGE));
    memory.sync.sync(file);
    expect(backing.writes).toEqual([]);
    expect(memory.stats().faults.cow).toBe(1);
    expect(space.pagemap(a, at(2))).toMatchObject([
      { exclusive: true, file: false },
      { exclusive: true, file: false },
    ]);
  });

  test("pages not yet written show what shared mappings store", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)), { writable: true });
    const a = space.sync.mmap(anonymous(1, { file }));
    const b = space.sync.mmap(shared(1, { file }));
    expect(space.getUint32(a)).toBe(bytesAt(pattern(PAGE), 0));
    space.setUint32(b, 5);
    expect(space.getUint32(a)).toBe(5);
    space.setUint32(a, 6);
    space.setUint32(b, 7);
    expect([space.getUint32(a), space.getUint32(b)]).toEqual([6, 7]);
  });

  test("a private copy outlives reclaim of the page it came from", async () => {
    const { memory, space } = await makeRig(64);
    const file = memory.sync.openFile(arrayBacking(pattern(at(100))));
    const a = space.sync.mmap(anonymous(100, { file }));
    for (let k = 0; k < 10; k++) space.setUint8(a + at(k), k);
    for (let k = 0; k < 100; k++) space.getUint8(a + at(k) + 1);
    for (let k = 0; k < 10; k++) expect(space.getUint8(a + at(k))).toBe(k);
    expect(memory.stats().evictions).toBeGreaterThan(0);
  });
});

describe("shared file mappings", () => {
  test("stores are seen by file.read, by a second mapping and by another space at once", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(at(4))), { writable: true });
    const second = checked(memory, memory.sync.createSpace());
    const a = space.sync.mmap(shared(4, { file }));
    const b = space.sync.mmap(shared(2, { file, offset: at(2) }));
    const c = second.sync.mmap(shared(4, { file, prot: "r" }));
    for (let k = 0; k < 4; k++) second.getUint8(c + at(k));
    space.setUint32(a + at(3) + 4, 0xabcdef01);
    expect(space.getUint32(b + at(1) + 4)).toBe(0xabcdef01);
    expect(second.getUint32(c + at(3) + 4)).toBe(0xabcdef01);
    const into = new Uint8Array(4);
    expect(memory.sync.read(file, at(3) + 4, into)).toBe(4);
    expect([...into]).toEqual([0x01, 0xef, 0xcd, 0xab]);
    expect(await file.read(at(3) + 4, into)).toBe(4);
    // And the other way round.
    expect(memory.sync.write(file, at(3) + 4, Uint8Array.of(9, 8))).toBe(2);
    expect(space.getUint16(a + at(3) + 4)).toBe(0x0809);
  });

  test("stores reach the backing with sync, with msync of the range, and with close", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(new Uint8Array(at(3)));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(shared(3, { file }));
    for (let k = 0; k < 3; k++) space.setUint8(a + at(k), k + 1);
    expect(backing.bytes.some((b) => b !== 0)).toBe(false);
    space.sync.msync(a + at(1), 1);
    expect([0, 1, 2].map((k) => backing.bytes[at(k)])).toEqual([0, 2, 0]);
    memory.sync.sync(file);
    expect([0, 1, 2].map((k) => backing.bytes[at(k)])).toEqual([1, 2, 3]);
    expect(backing.flushes).toBe(2);
    space.setUint8(a, 9);
    await file.close();
    expect(backing.bytes[0]).toBe(9);
    space.setUint8(a + 1, 10);
    expect(backing.closed).toBe(false);
    space.sync.munmap(a, at(3));
    expect(backing.bytes[1]).toBe(10);
    expect(backing.closed).toBe(true);
    verify(memory);
  });

  test("a page is written again only after it was stored to again", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(pattern(at(4)));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(shared(4, { file }));
    for (let k = 0; k < 4; k++) space.getUint8(a + at(k));
    space.setUint8(a + at(1), 1);
    space.setUint8(a + at(2), 1);
    memory.sync.sync(file);
    memory.sync.sync(file);
    expect(backing.writes).toEqual([{ offset: at(1), length: at(2) }]);
    space.getUint8(a + at(2));
    space.setUint8(a + at(2), 2);
    memory.sync.sync(file);
    expect(backing.writes.slice(1)).toEqual([{ offset: at(2), length: PAGE }]);
    expect(memory.stats().writebacks).toBe(3);
  });

  test("what is stored after mprotect to r and back is written too", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(new Uint8Array(PAGE));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(shared(1, { file }));
    space.setUint8(a, 1);
    space.sync.mprotect(a, PAGE, "r");
    memory.sync.sync(file);
    expect(backing.bytes[0]).toBe(1);
    space.sync.mprotect(a, PAGE, "rw");
    space.setUint8(a, 2);
    memory.sync.sync(file);
    expect(backing.bytes[0]).toBe(2);
  });

  test("the last page is written only as far as the file reaches", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(new Uint8Array(PAGE + 10));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(shared(2, { file }));
    expect(space.getUint8(a + PAGE + 10)).toBe(0);
    space.setUint8(a + PAGE + 9, 1);
    space.setUint8(a + PAGE + 10, 2);
    memory.sync.sync(file);
    expect(backing.writes).toEqual([{ offset: PAGE, length: 10 }]);
    expect(backing.bytes[PAGE + 9]).toBe(1);
    expect(space.getUint8(a + PAGE + 10)).toBe(0);
  });

  test("what is stored behind the end of the file is gone once its page is written back", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE + 100)), { writable: true });
    const a = space.sync.mmap(shared(2, { file }));
    space.setUint8(a + PAGE + 99, 1);
    space.setUint8(a + PAGE + 100, 2);
    space.setUint8(a + at(2) - 1, 3);
    expect(space.getUint8(a + PAGE + 100)).toBe(2);
    space.sync.msync(a, at(2));
    const tail = new Uint8Array(PAGE - 99);
    tail[0] = 1;
    const seen = new Uint8Array(PAGE - 99);
    space.sync.read(a + PAGE + 99, seen);
    expectBytes(seen, tail);
  });

  test("msync of anonymous and private memory does nothing; at a hole it is ENOMEM", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(pattern(PAGE));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(anonymous(1, { address: 0x100000 }));
    space.sync.mmap(anonymous(1, { file, address: 0x101000 }));
    space.setUint8(a + PAGE, 1);
    space.sync.msync(a, at(2));
    expect(backing.writes).toEqual([]);
    expect(thrown(() => space.sync.msync(a, at(3)))?.code).toBe("ENOMEM");
    await space.msync(a, at(2));
  });
});

describe("memory files", () => {
  test("are zero at first, keep what is stored, count against the budget, and are never reclaimed", async () => {
    const { memory, space } = await makeRig(64);
    const file = memory.sync.openFile(memoryBacking(at(40)));
    const a = space.sync.mmap(shared(40, { file }));
    for (let k = 0; k < 40; k++) {
      expect(space.getUint32(a + at(k) + 4)).toBe(0);
      space.setUint32(a + at(k), k);
    }
    expect(memory.stats().frames.file).toBe(40);
    expect(memory.sync.reclaim(at(64))).toBe(0);
    space.sync.munmap(a, at(40));
    const b = space.sync.mmap(shared(40, { file, prot: "r" }));
    for (let k = 0; k < 40; k++) expect(space.getUint32(b + at(k))).toBe(k);
    const c = space.sync.mmap(anonymous(40));
    expect(
      thrown(() => {
        for (let k = 0; k < 40; k++) space.setUint8(c + at(k), 1);
      })?.code,
    ).toBe("ENOMEM");
  });

  test("a size that is none is EINVAL; one that cannot be mapped EOVERFLOW", async () => {
    const { memory } = await makeRig();
    for (const size of [-1, 0.5, Number.NaN, "1" as never]) {
      expect(thrown(() => memoryBacking(size))?.code).toBe("EINVAL");
    }
    expect(thrown(() => memory.sync.openFile(memoryBacking(2 ** 45)))?.code).toBe("EOVERFLOW");
    expect(thrown(() => memory.sync.openFile(undefined as never))?.code).toBe("EINVAL");
    verify(memory);
  });

  test("the handle closed and the last mapping gone, the frames are free", async () => {
    const { memory, space } = await makeRig();
    const { free } = memory.stats().frames;
    const file = memory.sync.openFile(memoryBacking(at(4)));
    const a = space.sync.mmap(shared(4, { file, populate: true }));
    await file.close();
    expect(space.getUint8(a)).toBe(0);
    expect(memory.stats().frames.free).toBe(free - 4);
    space.sync.munmap(a, at(2));
    expect(memory.stats().frames.free).toBe(free - 4);
    space.sync.munmap(a, at(4));
    expect(memory.stats().frames.free).toBe(free);
  });
});

describe("the end of a file", () => {
  test("an access beyond it is BusError; the rest of its last page is zero", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE + 1)), { writable: true });
    const a = space.sync.mmap(shared(4, { file }));
    expect(space.getUint8(a + PAGE)).toBe(pattern(PAGE + 1)[PAGE]);
    expect(space.getUint32(a + PAGE + 1)).toBe(0);
    for (const address of [a + at(2), a + at(3) + 5]) {
      const expected = { name: "BusError", code: "EIO", address };
      expect(thrown(() => space.getUint8(address))).toMatchObject(expected);
      expect(thrown(() => space.setUint8(address, 1))).toMatchObject(expected);
      expect(await rejected(space.read(address, new Uint8Array(1)))).toMatchObject(expected);
      expect(thrown(() => [...space.spans(address, 1)])).toMatchObject(expected);
    }
    expect(thrown(() => space.getUint32(a + at(2) - 2))).toMatchObject({
      name: "BusError",
      address: a + at(2),
    });
  });

  test("a private mapping beyond it is BusError too", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)));
    const a = space.sync.mmap(anonymous(2, { file }));
    expect(thrown(() => space.setUint8(a + PAGE, 1))?.name).toBe("BusError");
    expect(thrown(() => space.getUint8(a + PAGE))?.name).toBe("BusError");
  });

  test("an empty file has no page", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(new Uint8Array(0)), { writable: true });
    const a = space.sync.mmap(shared(1, { file }));
    expect(thrown(() => space.getUint8(a))?.name).toBe("BusError");
    expect(memory.sync.read(file, 0, new Uint8Array(4))).toBe(0);
    memory.sync.sync(file);
  });

  test("a file of the operating system that shrank is BusError where it has no bytes any more", async () => {
    const { memory, space } = await makeRig(64, { faultAround: PAGE });
    const bytes = pattern(at(40));
    const path = tempFile(bytes);
    const file = memory.sync.openFile(fileBacking(path));
    const a = space.sync.mmap(anonymous(40, { prot: "r", file }));
    expect(space.getUint32(a)).toBe(bytesAt(bytes, 0));
    truncateSync(path, at(17) + 100);
    expect(space.getUint32(a + at(16))).toBe(bytesAt(bytes, at(16)));
    expect(space.getUint32(a + at(17) + 96)).toBe(bytesAt(bytes, at(17) + 96));
    expect(space.getUint32(a + at(17) + 100)).toBe(0);
    expect(thrown(() => space.getUint8(a + at(18) + 7))).toMatchObject({
      name: "BusError",
      address: a + at(18) + 7,
    });
    expect(thrown(() => space.getUint8(a + at(39)))?.name).toBe("BusError");
    expect(space.getUint8(a + at(15))).toBe(bytes[at(15)]);
    // Grown again it is read again: nothing was remembered.
    writeFileSync(path, bytes);
    expect(space.getUint32(a + at(39))).toBe(bytesAt(bytes, at(39)));
  });
});

describe("file.read and file.write", () => {
  test("end at the end of the file; beyond it write is ENOTSUP", async () => {
    const { memory } = await makeRig();
    const bytes = pattern(at(1) + 50);
    const file = memory.sync.openFile(arrayBacking(bytes.slice()), { writable: true });
    const into = new Uint8Array(100);
    expect(await file.read(at(1), into)).toBe(50);
    expect(into.slice(0, 50)).toEqual(bytes.slice(at(1)));
    expect(await file.read(at(9), into)).toBe(0);
    expect(await rejected(file.write(at(1) + 49, Uint8Array.of(1, 2)))).toMatchObject({ code: "ENOTSUP" });
    expect(await file.write(at(1) + 48, Uint8Array.of(1, 2))).toBe(2);
    verify(memory);
  });

  test("a read-only file cannot be written; bad offsets are EINVAL; a closed handle is ESRCH", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)));
    expect(await rejected(file.write(0, Uint8Array.of(1)))).toMatchObject({ code: "EACCES" });
    for (const offset of [-1, 0.5, Number.NaN, "0" as never]) {
      expect(await rejected(file.read(offset, new Uint8Array(1)))).toMatchObject({ code: "EINVAL" });
    }
    expect(await rejected(file.read(0, [] as never))).toMatchObject({ code: "EINVAL" });
    const a = space.sync.mmap(anonymous(1, { prot: "r", file }));
    await file.close();
    await file.close();
    expect(await rejected(file.read(0, new Uint8Array(1)))).toMatchObject({ code: "ESRCH" });
    expect(await rejected(file.sync())).toMatchObject({ code: "ESRCH" });
    expect(thrown(() => space.sync.mmap(anonymous(1, { prot: "r", file })))?.code).toBe("ESRCH");
    expect(space.getUint8(a)).toBe(pattern(PAGE)[0]);
  });

  test("writable asked of a backing that cannot write is a read-only file", async () => {
    const { memory, space } = await makeRig();
    const { size, read, readSync } = arrayBacking(pattern(PAGE));
    const file = memory.sync.openFile({ size, read, readSync: readSync! }, { writable: true });
    expect(thrown(() => space.sync.mmap(shared(1, { file })))?.code).toBe("EACCES");
  });
});

describe("reading pages in", () => {
  test("one read brings in a cluster of 64 KiB; fault-around maps what is there", async () => {
    const { memory, space } = await makeRig(128);
    const backing = arrayBacking(pattern(at(40)));
    const file = memory.sync.openFile(backing);
    const a = space.sync.mmap(anonymous(40, { prot: "r", file }));
    space.getUint8(a + at(20));
    expect(backing.reads).toEqual([{ offset: at(16), length: at(16) }]);
    expect(space.mincore(a, at(40)).reduce((x, y) => x + y, 0)).toBe(16);
    expect(space.pagemap(a + at(20), at(2))).toMatchObject([{ young: true }, { young: false }]);
    space.getUint8(a + at(39));
    expect(backing.reads.slice(1).reduce((sum, read) => sum + read.length, 0)).toBe(at(8));
    expect(memory.stats().faults.major).toBe(2);
  });

  test("with faultAround of one page only the page itself is mapped", async () => {
    const { memory, space } = await makeRig(64, { faultAround: PAGE });
    const file = memory.sync.openFile(arrayBacking(pattern(at(16))));
    const a = space.sync.mmap(anonymous(16, { prot: "r", file }));
    space.getUint8(a + at(3));
    expect(space.pagemap(a, at(16)).filter(({ present }) => present)).toHaveLength(1);
    // The neighbours are in memory all the same.
    expect(space.mincore(a, at(16)).reduce((x, y) => x + y, 0)).toBe(16);
  });

  test("fault-around stays inside the mapping and inside the file", async () => {
    const { memory, space } = await makeRig(64);
    const file = memory.sync.openFile(arrayBacking(pattern(at(6))));
    const a = space.sync.mmap(anonymous(3, { prot: "r", file, address: 0x104000, offset: at(2) }));
    const b = space.sync.mmap(anonymous(3, { prot: "r", file, address: 0x107000, offset: at(4) }));
    const present = (address: number): boolean[] => space.pagemap(address, at(3)).map((page) => page.present);
    space.getUint8(b);
    expect(present(b)).toEqual([true, true, false]);
    expect(present(a)).toEqual([false, false, false]);
    space.getUint8(a + at(1));
    expect(present(a)).toEqual([true, true, true]);
  });

  test("a failing read is BusError with its cause, and is tried again by the next access", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(pattern(at(2)));
    const file = memory.sync.openFile(backing);
    const a = space.sync.mmap(anonymous(2, { prot: "r", file }));
    const cause = new Error("no disk");
    backing.failReads = cause;
    const { free } = memory.stats().frames;
    expect(thrown(() => space.getUint8(a + 5))).toMatchObject({ name: "BusError", cause, address: a + 5 });
    expect(await rejected(space.read(a, new Uint8Array(1)))).toMatchObject({ name: "BusError", cause });
    expect(await rejected(file.read(0, new Uint8Array(1)))).toMatchObject({ name: "BusError", cause });
    expect(memory.stats().frames.free).toBe(free);
    backing.failReads = undefined;
    expect(space.getUint8(a)).toBe(pattern(at(2))[0]);
  });

  test("a backing that is only asynchronous works in the Promise form; blocking on it is EDEADLK", async () => {
    const { memory, raw } = await makeRig();
    const bytes = pattern(at(40));
    const file = memory.sync.openFile(arrayBacking(bytes, "async"));
    const a = raw.sync.mmap(anonymous(40, { prot: "r", file }));
    expect(thrown(() => raw.getUint8(a))?.code).toBe("EDEADLK");
    expect(thrown(() => raw.try.populate(a, PAGE))?.code).toBe("EAGAIN");
    const all = new Uint8Array(at(40));
    await raw.read(a, all);
    expectBytes(all, bytes);
    expect(raw.getUint8(a + 1)).toBe(bytes[1]);
    verify(memory);
  });

  test("several readers of one page that is being read wait for one read", async () => {
    const { memory, raw } = await makeRig();
    const bytes = pattern(at(20));
    const backing = arrayBacking(bytes, "async");
    const file = memory.sync.openFile(backing);
    const a = raw.sync.mmap(anonymous(20, { prot: "r", file }));
    const buffers = [0, 1, 2, 3].map(() => new Uint8Array(at(20)));
    await Promise.all([
      ...buffers.map((b) => raw.read(a, b)),
      raw.populate(a, at(20)),
      file.read(0, buffers[0]!),
    ]);
    for (const b of buffers) expectBytes(b, bytes);
    expect(backing.reads).toHaveLength(2);
    verify(memory);
  });

  test("unmapping and closing while a page is being read waits for nothing and loses nothing", async () => {
    const { memory, raw } = await makeRig();
    const backing = arrayBacking(pattern(at(16)), "async");
    const { free } = memory.stats().frames;
    const file = memory.sync.openFile(backing);
    const a = raw.sync.mmap(anonymous(16, { prot: "r", file }));
    const reading = rejected(raw.read(a, new Uint8Array(4)));
    raw.sync.munmap(a, at(16));
    await file.close();
    expect(await reading).toMatchObject({ reason: "SEGV_MAPERR" });
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(backing.closed).toBe(true);
    expect(memory.stats().frames.free).toBe(free);
    verify(memory);
  });
});

describe("writing back", () => {
  test("a failing write keeps the pages dirty and in memory, and is reported once by sync", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(new Uint8Array(PAGE));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(shared(2, { file }));
    space.setUint8(a, 1);
    backing.failWrites = new Error("disk full");
    expect(await rejected(file.sync())).toMatchObject({ code: "EIO" });
    expect(takeReported()).toMatchObject([{ code: "EIO", cause: backing.failWrites }]);
    expect(memory.stats().frames.dirty).toBe(1);
    expect(memory.sync.reclaim(at(64))).toBe(0);
    expect(space.getUint8(a)).toBe(1);
    backing.failWrites = undefined;
    memory.sync.sync(file);
    expect(backing.bytes[0]).toBe(1);
    memory.sync.sync(file);
    // What has been written at last can be reclaimed again, also after the next store.
    space.setUint8(a, 2);
    memory.poll();
    expect(memory.sync.reclaim(PAGE)).toBe(PAGE);
    expect(backing.bytes[0]).toBe(2);
  });

  test("a write that fails in reclaim is reported by the next sync, once", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(new Uint8Array(PAGE));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(shared(2, { file }));
    space.setUint8(a, 7);
    await Promise.resolve();
    backing.failWrites = new Error("disk full");
    expect(memory.sync.reclaim(PAGE)).toBe(0);
    expect(takeReported()).toHaveLength(1);
    backing.failWrites = undefined;
    expect(thrown(() => memory.sync.sync(file))?.code).toBe("EIO");
    expect(backing.bytes[0]).toBe(7);
    expect(thrown(() => memory.sync.sync(file))).toBeUndefined();
    expect(space.getUint8(a)).toBe(7);
  });

  test("close reports it, and the file goes all the same", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(new Uint8Array(PAGE));
    const { free } = memory.stats().frames;
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(shared(1, { file }));
    space.setUint8(a, 7);
    backing.failWrites = new Error("disk full");
    space.sync.munmap(a, PAGE);
    expect(await rejected(file.close())).toMatchObject({ code: "EIO" });
    expect(takeReported().length).toBeGreaterThan(1);
    expect(backing.closed).toBe(true);
    expect(memory.stats().frames.free).toBe(free);
    verify(memory);
  });

  test("a failing flush is EIO with its cause", async () => {
    const { memory } = await makeRig();
    const backing = arrayBacking(new Uint8Array(PAGE));
    const cause = new Error("gone");
    backing.flushSync = () => {
      throw cause;
    };
    const file = memory.sync.openFile(backing, { writable: true });
    expect(thrown(() => memory.sync.sync(file))).toMatchObject({ code: "EIO", operation: "sync", cause });
    backing.flushSync = () => {};
  });

  test("where only the event loop can write, try is EAGAIN and sync EDEADLK: no failure of the file, nothing lost", async () => {
    const { memory, raw } = await makeRig();
    const backing = arrayBacking(new Uint8Array(PAGE), "async");
    const file = memory.sync.openFile(backing, { writable: true });
    const a = raw.sync.mmap(shared(1, { file }));
    await raw.write(a, Uint8Array.of(3));
    expect(thrown(() => memory.try.sync(file))?.code).toBe("EAGAIN");
    expect(thrown(() => memory.sync.sync(file))?.code).toBe("EDEADLK");
    expect(thrown(() => memory.try.reclaim(PAGE))?.code).toBe("EAGAIN");
    verify(memory);
    expect(memory.stats().frames.dirty).toBe(1);
    await file.sync();
    expect(backing.bytes[0]).toBe(3);
    expect(memory.sync.reclaim(PAGE)).toBe(PAGE);
    verify(memory);
  });

  test("what is stored while a page is being written is written by the next sync", async () => {
    const { memory, raw } = await makeRig();
    const backing = arrayBacking(new Uint8Array(PAGE), "async");
    const file = memory.sync.openFile(backing, { writable: true });
    const a = raw.sync.mmap(shared(1, { file }));
    await raw.write(a, Uint8Array.of(1));
    const syncing = file.sync();
    const storing = raw.write(a, Uint8Array.of(2)); // waits for the page
    await Promise.all([syncing, storing]);
    await file.sync();
    expect(backing.bytes[0]).toBe(2);
    verify(memory);
  });
});

describe("several agents", () => {
  test("a backing without descriptor is served by its opener, reads, writes and flushes", async () => {
    const memory = await makeMemory(64);
    const other = await attachTo(memory);
    const bytes = pattern(at(40));
    const backing = arrayBacking(bytes.slice(), "async");
    const file = memory.sync.openFile(backing, { writable: true });
    const space = memory.sync.createSpace();
    const there = other.space(space.id);
    const a = await there.mmap(shared(40, { file: other.file(file.id) }));
    const all = new Uint8Array(at(40));
    await there.read(a, all);
    expectBytes(all, bytes);
    await there.write(a + 5, Uint8Array.of(1, 2, 3));
    await other.file(file.id).sync();
    expect([...backing.bytes.subarray(5, 8)]).toEqual([1, 2, 3]);
    expect(backing.flushes).toBe(1);
    verify(memory);
  });

  test("an error of the opener's backing is BusError in the other agent", async () => {
    const memory = await makeMemory(64);
    const other = await attachTo(memory);
    const backing = arrayBacking(pattern(PAGE), "async");
    backing.failReads = new Error("no disk");
    const file = memory.sync.openFile(backing);
    const there = other.space(memory.sync.createSpace().id);
    const a = await there.mmap(anonymous(1, { prot: "r", file: other.file(file.id) }));
    const error = await rejected(there.read(a, new Uint8Array(1)));
    expect(error).toMatchObject({ name: "BusError", address: a });
    expect(error!.message).toContain("no disk");
    verify(memory);
  });

  test("try on a page that the opener must read is EAGAIN, and the read goes on without it", async () => {
    const memory = await makeMemory(64);
    const other = await attachTo(memory);
    const file = memory.sync.openFile(arrayBacking(pattern(at(4)), "async"));
    const there = other.space(memory.sync.createSpace().id);
    const a = await there.mmap(anonymous(4, { prot: "r", file: other.file(file.id) }));
    let tries = 0;
    while (thrown(() => there.try.populate(a, at(4)))?.code === "EAGAIN") {
      tries++;
      if (tries > 1000) throw new Error("no progress");
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    expect(tries).toBeGreaterThan(0);
    expect(there.getUint8(a + 1)).toBe(pattern(at(4))[1]);
    verify(memory);
  });

  test("when the opener has left, what is cached stays and the rest is BusError", async () => {
    const memory = await makeMemory(64, { faultAround: PAGE });
    const opener = await attachTo(memory);
    const file = opener.sync.openFile(arrayBacking(pattern(at(40))));
    const space = memory.sync.createSpace();
    const here = memory.file(file.id);
    const a = space.sync.mmap(anonymous(40, { prot: "r", file: here }));
    opener.space(space.id).getUint8(a);
    opener.detach();
    expect(space.getUint8(a + 1)).toBe(pattern(at(40))[1]);
    expect(thrown(() => space.getUint8(a + at(39)))).toMatchObject({ name: "BusError" });
    verify(memory);
  });

  test("a descriptor lets each agent open its own; an unknown kind is BusError that says what to do", async () => {
    const memory = await makeMemory(64);
    const other = await attachTo(memory);
    const bytes = pattern(at(2));
    const opened: (string | number)[] = [];
    const make = (data: string | number) => {
      opened.push(data);
      return { ...arrayBacking(bytes), descriptor: { kind: "test-array", data } };
    };
    registerBacking("test-array", make);
    const file = memory.sync.openFile(make("x"));
    const there = other.space(memory.sync.createSpace().id);
    const a = there.sync.mmap(anonymous(2, { prot: "r", file: other.file(file.id) }));
    expect(there.getUint8(a)).toBe(bytes[0]);
    expect(opened).toEqual(["x", "x"]);
    const odd = memory.sync.openFile({
      ...arrayBacking(bytes),
      descriptor: { kind: "no such kind", data: 1 },
    });
    const b = there.sync.mmap(anonymous(1, { prot: "r", file: other.file(odd.id) }));
    const error = thrown(() => there.getUint8(b));
    expect(error).toMatchObject({ name: "BusError", cause: { code: "ENOTSUP" } });
    verify(memory);
  });

  test("ids name files for every agent; closed and gone they are ESRCH", async () => {
    const { memory, space } = await makeRig();
    const other = await attachTo(memory);
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)), { name: "data" });
    expect(memory.file(file.id)).toBe(file);
    expect(file).toMatchObject({ name: "data", size: PAGE });
    const there = other.file(file.id);
    expect(other.file(file.id)).toBe(there);
    const a = space.sync.mmap(anonymous(1, { prot: "r", file }));
    await file.close();
    await there.close();
    expect(memory.file(file.id)).not.toBe(file);
    await memory.file(file.id).close();
    space.sync.munmap(a, PAGE);
    expect(thrown(() => memory.file(file.id))?.code).toBe("ESRCH");
    expect(thrown(() => other.file(file.id))?.code).toBe("ESRCH");
    expect(thrown(() => memory.file(Number.NaN))?.code).toBe("ESRCH");
  });
});

describe("fileBacking", () => {
  test("maps a file of the operating system, and writes to it", async () => {
    const { memory, space } = await makeRig(32);
    const bytes = pattern(at(100) + 5);
    const path = tempFile(bytes);
    const file = memory.sync.openFile(fileBacking(path, { writable: true }), { writable: true });
    const a = space.sync.mmap(shared(101, { file }));
    for (let k = 0; k < 100; k++) space.setUint32(a + at(k) + 12, k);
    const model = new DataView(bytes.buffer);
    for (let k = 0; k < 100; k++) model.setUint32(at(k) + 12, k, true);
    expect(space.getUint8(a + at(100) + 4)).toBe(bytes[at(100) + 4]);
    memory.sync.sync(file);
    expectBytes(readFileSync(path), bytes);
    expect(memory.stats().evictions).toBeGreaterThan(0);
  });

  test("asynchronous reads and writes do the same", async () => {
    const path = tempFile(pattern(at(3)));
    const backing = fileBacking(path, { writable: true });
    const into = new Uint8Array(new SharedArrayBuffer(at(2)));
    expect(await backing.read(at(2), into)).toBe(PAGE);
    expect(backing.readSync!(at(2), into)).toBe(PAGE);
    await backing.write!(5, Uint8Array.of(1, 2, 3));
    backing.writeSync!(8, Uint8Array.of(4));
    await backing.flush!();
    backing.flushSync!();
    expect([...readFileSync(path).subarray(5, 9)]).toEqual([1, 2, 3, 4]);
    backing.close!();
  });
});
