import { describe, expect, test } from "vitest";
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
  thrown,
  verify,
} from "../../lib/mm.ts";

const at = (page: number): number => page * PAGE;

/** Where a window of three pages lies: below 2 GiB, above, above 4 GiB, at the end of the address space. */
const WINDOWS: readonly (readonly [string, number])[] = [
  ["low", 0x10000],
  ["across 2 GiB", 2 ** 31 - PAGE],
  ["above 2 GiB", 0x9000_1000],
  ["across 4 GiB", 2 ** 32 - 2 * PAGE],
  ["above 4 GiB", 2 ** 35],
  ["at the end", PAGE * (2 ** 31 - 2 ** 20 - 3)],
];

interface Accessor {
  readonly name: string;
  readonly size: number;
  readonly values: readonly (number | bigint)[];
}
const ACCESSORS: readonly Accessor[] = [
  { name: "Uint8", size: 1, values: [0, 1, 0x7f, 0x80, 0xff] },
  { name: "Int8", size: 1, values: [0, 1, 127, -128, -1] },
  { name: "Uint16", size: 2, values: [0, 1, 0x1234, 0x8001, 0xffff] },
  { name: "Int16", size: 2, values: [0, 1, 0x1234, -0x8000, -1] },
  { name: "Uint32", size: 4, values: [0, 1, 0x12345678, 0x80000001, 0xffffffff] },
  { name: "Int32", size: 4, values: [0, 1, 0x12345678, -0x80000000, -1] },
  { name: "Float32", size: 4, values: [0, -0, 1.5, -(2 ** 100), Number.POSITIVE_INFINITY, Number.NaN] },
  { name: "Float64", size: 8, values: [0, -0, Math.PI, -1e300, Number.NEGATIVE_INFINITY, Number.NaN] },
  { name: "BigInt64", size: 8, values: [0n, 1n, 0x123456789abcdef0n, -(2n ** 63n), -1n] },
  { name: "BigUint64", size: 8, values: [0n, 1n, 0x123456789abcdef0n, 2n ** 63n, 2n ** 64n - 1n] },
];
type Get = (address: number) => number | bigint;
type Set = (address: number, value: number | bigint) => void;

describe("loads and stores", () => {
  test.each(WINDOWS)("every type at every alignment agrees with a DataView: %s", async (_, base) => {
    const { memory, raw } = await makeRig(64);
    const length = at(3);
    raw.sync.mmap({ length, address: base, fixed: true, prot: "rw", share: "private" });
    const model = new DataView(new ArrayBuffer(length));
    const wrong: string[] = [];
    const offsets = new Set<number>();
    for (const edge of [0, 64, PAGE, at(2)]) for (let k = -9; k <= 9; k++) offsets.add(edge + k);
    for (let k = 0; k < 10; k++) offsets.add(length - k);
    for (const { name, size, values } of ACCESSORS) {
      const get = (raw as unknown as Record<string, Get>)[`get${name}`]!.bind(raw);
      const set = (raw as unknown as Record<string, Set>)[`set${name}`]!.bind(raw);
      const views = model as unknown as Record<string, (...args: unknown[]) => number | bigint>;
      for (const offset of offsets) {
        if (offset < 0 || offset + size > length) continue;
        for (const value of values) {
          set(base + offset, value);
          views[`set${name}`]!(offset, value, true);
          const [seen, wanted] = [get(base + offset), views[`get${name}`]!(offset, true)];
          if (!Object.is(seen, wanted)) wrong.push(`${name} at ${offset}: ${seen}, not ${wanted}`);
        }
      }
    }
    expect(wrong).toEqual([]);
    const all = new Uint8Array(length);
    raw.sync.read(base, all);
    expectBytes(all, new Uint8Array(model.buffer));
    verify(memory);
  });

  test("values are wrapped as in typed arrays", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    space.setUint8(a, 0x1ff);
    space.setUint16(a + 2, -1);
    space.setUint32(a + 4, 2 ** 32 + 5);
    space.setInt32(a + 8, 2 ** 31);
    expect([
      space.getUint8(a),
      space.getUint16(a + 2),
      space.getUint32(a + 4),
      space.getInt32(a + 8),
    ]).toEqual([0xff, 0xffff, 5, -(2 ** 31)]);
  });

  test("bytes are little-endian", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(2));
    for (const address of [a, a + PAGE - 2]) {
      space.setUint32(address, 0x04030201);
      expect([0, 1, 2, 3].map((k) => space.getUint8(address + k))).toEqual([1, 2, 3, 4]);
    }
  });

  test("a read of untouched memory shows the zero page; the first write replaces it", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    const { free } = memory.stats().frames;
    expect(space.getFloat64(a + 8)).toBe(0);
    expect(memory.stats().frames.free).toBe(free);
    expect(space.pagemap(a, PAGE)).toMatchObject([{ zero: true, young: true, dirty: false }]);
    space.setUint8(a + 9, 1);
    expect(memory.stats().frames.free).toBe(free - 1);
    expect(space.pagemap(a, PAGE)).toMatchObject([
      { zero: false, exclusive: true, dirty: true, softDirty: true },
    ]);
    expect(memory.stats().faults.cow).toBe(1);
    expect(space.getUint32(a + 8)).toBe(0x100);
  });

  test.each([
    ["0", 0],
    ["the first page", PAGE - 1],
    ["-1", -1],
    ["-4096", -PAGE],
    ["-(2 ** 31)", -(2 ** 31)],
    ["NaN", Number.NaN],
    ["infinite", Number.POSITIVE_INFINITY],
    ["fractional", 0x10000 + 0.5],
    ["a fraction below a mapping", 0x10000 - 0.5],
    ["the end of the address space", PAGE * 2 ** 31],
    ["the last byte of it", PAGE * 2 ** 31 - 1],
    ["2 ** 53", 2 ** 53],
    ["2 ** 32 above a mapping", 2 ** 32 + 0x10000],
    ["2 ** 43 above a mapping", 2 ** 43 + 0x10000],
  ])("%s is SEGV_MAPERR for every access", async (_, address) => {
    const { memory, raw } = await makeRig();
    raw.sync.mmap(anonymous(1));
    raw.setUint32(0x10000, 1);
    for (const { name, values } of ACCESSORS) {
      const space = raw as unknown as Record<string, (...args: unknown[]) => unknown>;
      const expected = { name: "SegvError", reason: "SEGV_MAPERR", code: "EFAULT", address };
      expect(thrown(() => space[`get${name}`]!(address))).toMatchObject(expected);
      expect(thrown(() => space[`set${name}`]!(address, values[0]))).toMatchObject(expected);
    }
    expect(thrown(() => raw.atomics.load(address))?.code).toBe("EFAULT");
    expect(thrown(() => raw.sync.read(address, new Uint8Array(1)))?.code).toBe("EFAULT");
    verify(memory);
  });

  test("an address that is no number is refused", async () => {
    const { raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(1));
    raw.setUint8(a, 1);
    for (const address of [String(a), [a], { valueOf: () => a }, null, undefined, true] as never[]) {
      expect(thrown(() => raw.getUint8(address))?.code).toBe("EFAULT");
      expect(thrown(() => raw.setUint32(address, 5))?.code).toBe("EFAULT");
    }
    expect(raw.getUint8(a)).toBe(1);
  });

  test("errors name the address of the access", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1, { prot: "r" }));
    expect(thrown(() => space.setUint16(a + 10, 1))).toMatchObject({
      reason: "SEGV_ACCERR",
      address: a + 10,
    });
    expect(thrown(() => space.getUint8(a + PAGE + 3))).toMatchObject({
      reason: "SEGV_MAPERR",
      address: a + PAGE + 3,
    });
    expect(thrown(() => space.atomics.add(a + 8, 1))).toMatchObject({
      reason: "SEGV_ACCERR",
      address: a + 8,
    });
    expect(thrown(() => [...space.spans(a + PAGE + 5, 1)])).toMatchObject({ address: a + PAGE + 5 });
    expect(await rejected(space.write(a + 3, Uint8Array.of(1)))).toMatchObject({ address: a + 3 });
  });

  test("a straddling store touches neither page unless both allow it; the error names the second", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(3));
    for (let k = 0; k < 3; k++) space.setBigUint64(a + at(k), 0x1111111111111111n);
    space.setBigUint64(a + at(1) - 8, 0x2222222222222222n);
    space.setBigUint64(a + at(2) - 8, 0x2222222222222222n);
    space.sync.mprotect(a + at(1), PAGE, "r");
    const expectUntouched = (): void => {
      expect(space.getBigUint64(a + at(1) - 8)).toBe(0x2222222222222222n);
      expect(space.getBigUint64(a + at(2) - 8)).toBe(0x2222222222222222n);
      for (let k = 0; k < 3; k++) expect(space.getBigUint64(a + at(k))).toBe(0x1111111111111111n);
    };
    expect(thrown(() => space.setUint32(a + at(1) - 1, 0xffffffff))).toMatchObject({
      reason: "SEGV_ACCERR",
      address: a + at(1),
    });
    expectUntouched();
    expect(thrown(() => space.setFloat64(a + at(2) - 3, Math.PI))).toMatchObject({
      reason: "SEGV_ACCERR",
      address: a + at(2) - 3,
    });
    expectUntouched();
    expect(space.getUint16(a + at(1) - 1)).toBe(0x1122);
    expect(thrown(() => space.getUint16(a + at(3) - 1))).toMatchObject({
      reason: "SEGV_MAPERR",
      address: a + at(3),
    });
  });

  test("a straddling access works on pages of two mappings and two frames anywhere", async () => {
    const { memory, space } = await makeRig(64, { faultAround: PAGE });
    const bytes = pattern(at(3));
    const file = memory.sync.openFile(arrayBacking(bytes.slice()), { writable: true });
    const base = 0x100000;
    space.sync.mmap({
      length: PAGE,
      address: base,
      fixed: true,
      prot: "rw",
      share: "shared",
      file,
      offset: at(2),
    });
    space.sync.mmap({ length: PAGE, address: base + PAGE, fixed: true, prot: "rw", share: "private" });
    const last = new DataView(bytes.buffer).getUint16(at(3) - 2, true);
    expect(space.getUint32(base + PAGE - 2)).toBe(last);
    space.setUint32(base + PAGE - 2, 0xaabbccdd);
    const tail = new Uint8Array(2);
    memory.sync.read(file, at(3) - 2, tail);
    expect([...tail]).toEqual([0xdd, 0xcc]);
    expect(space.getUint16(base + PAGE)).toBe(0xaabb);
  });

  test("pages whose TLB entries collide do not disturb each other", async () => {
    const { memory, raw } = await makeRig(64);
    const entries = memory.mm.tlbEntries;
    const base = 0x1000000;
    const pages = [0, 1, 2, 3].map((k) => base + k * entries * PAGE);
    for (const [k, address] of pages.entries()) {
      raw.sync.mmap(anonymous(2, { address, fixed: true }));
      raw.setUint32(address, k);
      raw.setUint32(address + PAGE, 100 + k);
    }
    for (let round = 0; round < 3; round++) {
      for (const [k, address] of pages.entries()) {
        expect(raw.getUint32(address)).toBe(k);
        expect(raw.getUint32(address + PAGE)).toBe(100 + k);
        raw.setUint32(address + PAGE - 2, 0);
        raw.setUint32(address, k);
        raw.setUint32(address + PAGE, 100 + k);
      }
    }
    verify(memory);
  });
});

describe("atomics", () => {
  test("work on mapped words and fault as accesses do", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    expect(space.atomics.load(a)).toBe(0);
    expect(space.atomics.store(a, -5)).toBe(-5);
    expect(space.atomics.add(a, 3)).toBe(-5);
    expect(space.atomics.compareExchange(a, -2, 9)).toBe(-2);
    expect(space.atomics.compareExchange(a, -2, 10)).toBe(9);
    expect(space.getInt32(a)).toBe(9);
    expect(thrown(() => space.atomics.load(a + 2))?.code).toBe("EINVAL");
    expect(thrown(() => space.atomics.load(a + PAGE))?.reason).toBe("SEGV_MAPERR");
  });
});

describe("read and write", () => {
  test("copy over any range, spanning mappings and frames", async () => {
    const { memory, space } = await makeRig(64);
    const file = memory.sync.openFile(arrayBacking(pattern(at(8), 3)), { writable: true });
    const base = 0x200000;
    const map = (page: number, more: object) =>
      space.sync.mmap({
        length: at(4),
        address: base + at(page),
        fixed: true,
        prot: "rw",
        share: "private",
        ...more,
      });
    map(0, {});
    map(4, { file, share: "shared" });
    map(8, { file, offset: at(4) });
    const model = new Uint8Array(at(12));
    model.set(pattern(at(8), 3), at(4));
    const all = new Uint8Array(at(12));
    space.sync.read(base, all);
    expectBytes(all, model);
    const written = pattern(at(9) + 77, 9);
    space.sync.write(base + 123, written);
    model.set(written, 123);
    // The private pages have become copies; the shared ones are what the file has now.
    space.sync.read(base, all);
    expectBytes(all, model);
    const odd = new Uint8Array(777);
    space.sync.read(base + at(3) + 5000, odd);
    expect(odd).toEqual(model.slice(at(3) + 5000, at(3) + 5777));
    await space.read(base + 1, odd);
    expect(odd).toEqual(model.slice(1, 778));
  });

  test("bytes before a fault are copied, then SegvError or BusError", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    space.setUint8(a + PAGE - 1, 7);
    const into = new Uint8Array(3);
    expect(thrown(() => space.sync.read(a + PAGE - 1, into))).toMatchObject({ address: a + PAGE });
    expect([...into]).toEqual([7, 0, 0]);
    expect(thrown(() => space.sync.write(a + PAGE - 1, Uint8Array.of(8, 9)))).toMatchObject({
      address: a + PAGE,
    });
    expect(space.getUint8(a + PAGE - 1)).toBe(8);
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)));
    const b = space.sync.mmap(anonymous(2, { prot: "r", file }));
    const error = await rejected(space.read(b + PAGE - 1, into));
    expect(error).toMatchObject({ name: "BusError", code: "EIO", address: b + PAGE });
    expect(into[0]).toBe(pattern(PAGE)[PAGE - 1]);
  });

  test("nothing is fine everywhere; what is no Uint8Array is EINVAL", async () => {
    const { space } = await makeRig();
    space.sync.read(0, new Uint8Array(0));
    const a = space.sync.mmap(anonymous(1));
    expect(thrown(() => space.sync.read(a, new Float64Array(1) as never))?.code).toBe("EINVAL");
    expect(thrown(() => space.sync.write(a, "x" as never))?.code).toBe("EINVAL");
    expect(thrown(() => space.sync.read(Number.NaN, new Uint8Array(1)))?.reason).toBe("SEGV_MAPERR");
  });
});

describe("where frames are few", () => {
  test("a value that straddles two pages needs both at once: ENOMEM, nothing lost, and right as soon as there is room", async () => {
    const { memory, space } = await makeRig(32);
    const bytes = pattern(at(2));
    const file = memory.sync.openFile(arrayBacking(bytes));
    const a = space.sync.mmap(anonymous(2, { prot: "r", file }));
    const filler = space.sync.mmap(anonymous(30));
    for (let k = 0; k < 30; k++) space.setUint8(filler + at(k), k + 1);
    // One frame is left, and would go from the one page to the other for ever.
    expect(memory.stats().frames.free).toBe(1);
    expect(thrown(() => space.getUint32(a + PAGE - 2))).toMatchObject({ code: "ENOMEM" });
    for (let k = 0; k < 30; k++) expect(space.getUint8(filler + at(k))).toBe(k + 1);
    space.sync.munmap(filler, PAGE);
    const expected = new DataView(bytes.buffer).getUint32(PAGE - 2, true);
    expect(space.getUint32(a + PAGE - 2)).toBe(expected);
  });
});

describe("spans and views", () => {
  test("frames that lie together come as one span; the spans cover the range exactly", async () => {
    const { memory, space } = await makeRig(64);
    const bytes = pattern(at(24));
    const file = memory.sync.openFile(arrayBacking(bytes));
    const a = space.sync.mmap(anonymous(24, { prot: "r", file }));
    const spans = [...space.spans(a + 100, at(20) - 33)];
    expect(Uint8Array.from(spans.flatMap((s) => [...s]))).toEqual(bytes.slice(100, at(20) + 67));
    // Two clusters of 16 frames.
    expect(spans.length).toBeLessThanOrEqual(2);
    expect(spans.every((s) => s.memory instanceof WebAssembly.Memory && s.buffer === s.memory.buffer)).toBe(
      true,
    );
    memory.poll();
  });

  test("a span is the memory itself, for reading and for writing", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(2));
    space.setUint8(a, 5);
    const [span] = space.spans(a, 1, "rw");
    span!.fill(6);
    expect(space.getUint8(a)).toBe(6);
    space.setUint8(a, 7);
    expect(span![0]).toBe(7);
    expect(memory.stats().frames.pinned).toBe(1);
    memory.poll();
    expect(memory.stats().frames.pinned).toBe(0);
  });

  test("an empty range has no span; a range that is not mapped is SegvError", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1, { prot: "r" }));
    expect([...space.spans(a, 0)]).toEqual([]);
    expect(thrown(() => [...space.spans(a, PAGE + 1)])).toMatchObject({ address: a + PAGE });
    expect(thrown(() => [...space.spans(a, 1, "rw")])?.reason).toBe("SEGV_ACCERR");
    for (const [address, length] of [
      [-1, 1],
      [a, -1],
      [a, 0.5],
      [Number.NaN, 1],
    ] as const) {
      expect(thrown(() => [...space.spans(address, length)])?.code).toBe("EINVAL");
    }
    expect(await rejected(space.forEachSpan(a, -1, "r", () => {}))).toMatchObject({ code: "EINVAL" });
  });

  test("views end with the turn", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(3, { populate: true }));
    expect([...space.spans(a, at(3))].length).toBeGreaterThan(0);
    expect(memory.stats().frames.pinned).toBe(3);
    verify(memory);
    await Promise.resolve();
    expect(memory.stats().frames.pinned).toBe(0);
    verify(memory);
  });

  test("unmapping does not wait for a view; the last reference frees the frame", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    space.setUint32(a, 77);
    const { free } = memory.stats().frames;
    const [span] = space.spans(a, PAGE);
    space.sync.munmap(a, PAGE);
    expect(memory.stats().frames.free).toBe(free);
    expect(new DataView(span!.buffer, span!.byteOffset).getUint32(0, true)).toBe(77);
    memory.poll();
    expect(memory.stats().frames.free).toBe(free + 1);
    verify(memory);
  });

  test("dropping a writable view of a file makes its page dirty again", async () => {
    const { memory, space } = await makeRig();
    const backing = arrayBacking(pattern(PAGE));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(anonymous(1, { share: "shared", file }));
    const [span] = space.spans(a, PAGE, "rw");
    span![3] = 1;
    memory.sync.sync(file);
    expect(backing.bytes[3]).toBe(1);
    span![3] = 2; // through no translation
    memory.poll();
    expect(memory.stats().frames.dirty).toBe(1);
    memory.sync.sync(file);
    expect(backing.bytes[3]).toBe(2);
    verify(memory);
  });

  test("views of the zero page hold nothing", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(4));
    for (let round = 0; round < 3; round++) {
      expect([...space.spans(a, at(4))].every((s) => s.every((b) => b === 0))).toBe(true);
      memory.poll();
    }
    expect(memory.mm.frames.refcount(0)).toBe(1);
  });

  test("forEachSpan drops each span after use: a range larger than memory passes", async () => {
    const { memory, space } = await makeRig(64);
    const bytes = pattern(at(300));
    const file = memory.sync.openFile(arrayBacking(bytes));
    const a = space.sync.mmap(anonymous(300, { prot: "r", file }));
    const copy = new Uint8Array(at(300));
    let most = 0;
    space.sync.forEachSpan(a, at(300), "r", (span, address) => {
      copy.set(span, address - a);
      most = Math.max(most, memory.stats().frames.pinned);
    });
    expectBytes(copy, bytes);
    expect(most).toBeLessThanOrEqual(63);
    expect(memory.stats().frames.pinned).toBe(0);
    copy.fill(0);
    await space.forEachSpan(a, at(300), "r", (span, address) => copy.set(span, address - a));
    expectBytes(copy, bytes);
  });

  test("spans over more than memory has is ENOMEM, and what was taken comes back", async () => {
    const { memory, space } = await makeRig(32);
    const file = memory.sync.openFile(arrayBacking(pattern(at(64))));
    const a = space.sync.mmap(anonymous(64, { prot: "r", file }));
    expect(thrown(() => [...space.spans(a, at(64))])?.code).toBe("ENOMEM");
    expect(memory.stats().frames.pinned).toBeGreaterThan(16);
    memory.poll();
    expect(memory.stats().frames.pinned).toBe(0);
    expect(space.getUint8(a + at(63))).toBe(pattern(at(64))[at(63)]);
  });

  test("views taken inside forEachSpan stay when its span is dropped, and go with the turn", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(4));
    for (let k = 0; k < 4; k++) raw.setUint8(a + at(k), k + 1);
    let inner: Uint8Array[] = [];
    raw.sync.forEachSpan(a, PAGE, "r", () => {
      inner = [...raw.spans(a + at(2), at(2))];
    });
    expect(memory.stats().frames.pinned).toBe(2);
    raw.sync.munmap(a, at(4));
    verify(memory);
    expect(inner.flatMap((s) => [...s]).filter((b) => b !== 0)).toEqual([3, 4]);
    memory.poll();
    verify(memory);
  });

  test("polling inside forEachSpan ends its span, and what was taken afterwards stays", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(2));
    raw.setUint8(a, 1);
    raw.setUint8(a + PAGE, 2);
    let kept: Uint8Array | undefined;
    raw.sync.forEachSpan(a, PAGE, "r", () => {
      memory.poll();
      [kept] = raw.spans(a, PAGE);
    });
    expect(memory.stats().frames.pinned).toBe(1);
    raw.sync.munmap(a, PAGE);
    expect(kept![0]).toBe(1);
    verify(memory);
    memory.poll();
    verify(memory);
  });

  test("a throw in forEachSpan drops the span and comes out", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(1, { populate: true }));
    const boom = new Error("boom");
    const fn = (): void => {
      throw boom;
    };
    expect(thrown(() => space.sync.forEachSpan(a, PAGE, "rw", fn))).toBe(boom);
    expect(await rejected(space.forEachSpan(a, PAGE, "rw", fn))).toBe(boom);
    expect(memory.stats().frames.pinned).toBe(0);
  });

  test("many views grow the log and give its memory back", async () => {
    const { memory, raw } = await makeRig(64);
    const a = raw.sync.mmap(anonymous(4, { populate: true }));
    raw.getUint8(a);
    const before = memory.stats().arenaBytes;
    for (let k = 0; k < 700; k++)
      for (const span of raw.spans(a, at(4))) expect(span.length).toBeGreaterThan(0);
    expect(memory.stats().frames.pinned).toBe(2800);
    expect(memory.stats().arenaBytes).toBeGreaterThan(before);
    memory.poll();
    expect(memory.stats().arenaBytes).toBe(before);
    verify(memory);
  });
});

describe("run", () => {
  test("brings in what an access lacked and runs again", async () => {
    const memory = await makeMemory(64, { mayBlock: false });
    const space = memory.try.createSpace();
    const bytes = pattern(at(40));
    const file = memory.try.openFile(arrayBacking(bytes, "async"));
    const a = space.try.mmap(anonymous(40, { prot: "r", file }));
    expect(thrown(() => space.getUint8(a))?.code).toBe("EAGAIN");
    let runs = 0;
    const sum = await space.run(() => {
      runs++;
      return space.getUint8(a) + space.getUint8(a + at(20)) + space.getUint8(a + at(39));
    });
    expect(sum).toBe(bytes[0]! + bytes[at(20)]! + bytes[at(39)]!);
    expect(runs).toBe(4);
    verify(memory);
  });

  test("errors of the access and of the function come out", async () => {
    const memory = await makeMemory(64, { mayBlock: false });
    const space = memory.try.createSpace();
    const backing = arrayBacking(pattern(PAGE), "async");
    backing.failReads = new Error("no disk");
    const file = memory.try.openFile(backing);
    const a = space.try.mmap(anonymous(1, { prot: "r", file }));
    expect(await rejected(space.run(() => space.getUint8(a)))).toMatchObject({
      name: "BusError",
      address: a,
      cause: backing.failReads,
    });
    expect(await rejected(space.run(() => space.getUint8(a - 1)))).toMatchObject({ reason: "SEGV_MAPERR" });
    const boom = new Error("boom");
    expect(
      await rejected(
        space.run(() => {
          throw boom;
        }),
      ),
    ).toBe(boom);
    verify(memory);
  });
});

test("two agents see each other's stores", async () => {
  const { memory, raw } = await makeRig();
  const other = await attachTo(memory);
  const there = checked(other, other.space(raw.id));
  const a = raw.sync.mmap(anonymous(2));
  raw.setUint32(a, 1);
  expect(there.getUint32(a)).toBe(1);
  there.setUint32(a, 2);
  there.setUint32(a + PAGE, 3);
  expect([raw.getUint32(a), raw.getUint32(a + PAGE)]).toEqual([2, 3]);
  verify(memory);
});
