/** A GPU that pages on demand, on a real device: loads, stores, eviction, and what cannot be had. */
import { describe, expect, test } from "vitest";
import { createGpuMmu } from "../../src/mirrors/webgpu/index.ts";
import { numbered, numbers, pagesFrom, useMmus } from "../lib/gpuMmu.ts";
import { ADD, GATHER, kernelOf, SCATTER, SUM } from "../lib/kernels.ts";
import { anonymous, arrayBacking, makeRig, PAGE, pattern, rejected, type Rig, thrown } from "../lib/mm.ts";

const mmus = useMmus();

describe("loads", () => {
  test("a kernel reads pages that are brought in on demand", async () => {
    const rig = await mmus.make(16);
    const base = await numbered(rig, 8);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    const run = await gather(pagesFrom(base, 8));
    expect(run.words).toEqual(numbers(8));
    expect(run).toMatchObject({ rounds: 2, pages: 8, bytes: 8 * PAGE, evictions: 0, writtenBack: 0 });
  });

  test("a range eight times the pool is read to its end", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 64);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    const run = await gather(pagesFrom(base, 64));
    expect(run.words).toEqual(numbers(64));
    expect(run.pages).toBe(64);
    expect(run.rounds).toBeLessThanOrEqual(9);
    expect(rig.mmu.stats()).toMatchObject({ pages: 8, resident: 8 });
  });

  test("all types, at any place of a page", async () => {
    const rig = await mmus.make(4);
    const base = await rig.raw.mmap(anonymous(2));
    const bytes = pattern(2 * PAGE, 5);
    await rig.raw.write(base, bytes);
    const view = new DataView(bytes.buffer);
    const source = `
@group(0) @binding(0) var<storage, read> addresses: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(1) fn main() {
  let a = addresses[0].x;
  out[0] = bifolio_load_u32(a + 4u);
  out[1] = bitcast<u32>(bifolio_load_i32(a + 4092u));
  out[2] = bitcast<u32>(bifolio_load_f32(a + 4096u));
  out[3] = bifolio_load_u8(a + 7u);
  out[4] = bifolio_load_u16(a + 4098u);
  let b = bifolio_load_vec2u(a + 8u);
  let c = bifolio_load_vec4u(a + 4080u);
  let d = bitcast<vec2<u32>>(bifolio_load_vec2f(a + 16u));
  let e = bitcast<vec4<u32>>(bifolio_load_vec4f(a + 8176u));
  let f = bifolio_load_u32_at(bifolio_element(addresses[0], 3u, 1000u));
  out[5] = b.x; out[6] = b.y;
  out[7] = c.x; out[8] = c.y; out[9] = c.z; out[10] = c.w;
  out[11] = d.x; out[12] = d.y;
  out[13] = e.x; out[14] = e.y; out[15] = e.z; out[16] = e.w;
  out[17] = f;
}`;
    const words = (at: number, count: number): number[] =>
      Array.from({ length: count }, (_, k) => view.getUint32(at + 4 * k, true));
    const run = await kernelOf(rig.device, rig.mmu, source)([base, ...Array<number>(17).fill(0)]);
    expect(run.words).toEqual([
      ...words(4, 1),
      ...words(4092, 1),
      ...words(4096, 1),
      view.getUint8(7),
      view.getUint16(4098, true),
      ...words(8, 2),
      ...words(4080, 4),
      ...words(16, 2),
      ...words(8176, 4),
      ...words(3000, 1),
    ]);
  });

  test("addresses beyond 4 GiB", async () => {
    const rig = await mmus.make(4);
    const address = 5 * 2 ** 40 + 3 * PAGE;
    await rig.raw.mmap(anonymous(2, { address, fixed: true }));
    await rig.raw.populate(address, PAGE, "rw");
    rig.raw.setUint32(address + 12, 77);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    expect((await gather([address + 12, address])).words).toEqual([77, 0]);
  });

  test("pages of a file, larger than the memory's budget", async () => {
    const bytes = pattern(128 * PAGE);
    const rig = await mmus.make(16, { frames: 64 });
    const file = await rig.memory.openFile(arrayBacking(bytes));
    const base = await rig.raw.mmap({ length: bytes.length, prot: "r", share: "private", file });
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    const view = new DataView(bytes.buffer);
    const run = await gather(pagesFrom(base + 8, 128));
    expect(run.words).toEqual(pagesFrom(8, 128).map((at) => view.getUint32(at, true)));
    expect(rig.memory.stats().frames.peak).toBeLessThanOrEqual(64);
    await rig.mmu.remove();
    await file.close();
  });

  test("pages of 64 KiB", async () => {
    const rig = await makeRig(64, { mayBlock: false, pageSize: 65536 });
    const device = await mmus.device();
    const mmu = await createGpuMmu(rig.raw, device, { budget: "256 KiB" });
    mmus.keep(mmu, device);
    const base = await rig.raw.mmap({ length: 8 * 65536, prot: "rw", share: "private" });
    await rig.raw.populate(base, 8 * 65536, "rw");
    for (let k = 0; k < 8; k++) rig.raw.setUint32(base + k * 65536 + 65532, k);
    const at = numbers(8, 0).map((k) => base + k * 65536 + 65532);
    expect((await kernelOf(device, mmu, GATHER)(at)).words).toEqual(numbers(8, 0));
  });
});

describe("without bifolio_begin()", () => {
  test("the dispatch is repeated until nothing is missed", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 8);
    const run = await kernelOf(rig.device, rig.mmu, SUM)(pagesFrom(base, 8));
    expect(run.words[0]).toBe(8 * 1000 + 28);
    expect(run.pages).toBe(8);
  });

  test("more than the pool at once is ENOMEM", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 9);
    const sum = kernelOf(rig.device, rig.mmu, SUM);
    const error = await rejected(sum(pagesFrom(base, 9)));
    expect(error).toMatchObject({ code: "ENOMEM", operation: "dispatch" });
    expect(error!.message).toContain("the dispatch needs");
    expect((await sum(pagesFrom(base, 8))).words[0]).toBe(8028); // it goes on
  });
});

describe("many pages in one invocation", () => {
  /** Each invocation follows a chain of pages that begins with its own. */
  const chain = (steps: number): string => `
@group(0) @binding(0) var<storage, read> addresses: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (!bifolio_begin(id.x)) { return; }
  var at = addresses[id.x].x;
  for (var k = 0u; k < ${steps}u; k++) { at = bifolio_load_u32(at); }
  if (bifolio_finish()) { out[id.x] = at; }
}`;

  async function chained(rig: Rig, pages: number, stride: number): Promise<number> {
    const base = await rig.raw.mmap(anonymous(pages));
    await rig.raw.populate(base, pages * PAGE, "rw");
    for (let k = 0; k < pages; k++) rig.raw.setUint32(base + k * PAGE, base + ((k + stride) % pages) * PAGE);
    return base;
  }

  test("fewer are let in, until those that are fit the pool", async () => {
    const rig = await mmus.make(8);
    const base = await chained(rig, 64, 7);
    const run = await kernelOf(rig.device, rig.mmu, chain(6))(pagesFrom(base, 64));
    expect(run.words).toEqual(numbers(64, 0).map((k) => base + ((k + 42) % 64) * PAGE));
  });

  test("one that never fits is ENOMEM, and says so", async () => {
    const rig = await mmus.make(8);
    const base = await chained(rig, 64, 7);
    const error = await rejected(kernelOf(rig.device, rig.mmu, chain(9))(pagesFrom(base, 64)));
    expect(error).toMatchObject({ code: "ENOMEM" });
    expect(error!.message).toMatch(
      /invocation \d+ needs at least 9 pages at the same time, and the pool has 8/,
    );
  });

  test("a store to an address that comes of a missed load is none either", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 3);
    await rig.raw.mprotect(base, PAGE, "r");
    // The second invocation stores to the third page. Until it knows the second, it looks as if it were the first.
    const source = `
@group(0) @binding(0) var<storage, read> addresses: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (!bifolio_begin(id.x)) { return; }
  let word = bifolio_load_u32(addresses[id.x].x);
  if (id.x == 1u) { bifolio_store_u32(select(addresses[0].x, addresses[2].x, word == 1001u), 5u); }
  if (bifolio_finish()) { out[id.x] = word; }
}`;
    const run = await kernelOf(rig.device, rig.mmu, source)(pagesFrom(base, 3));
    expect(run.words).toEqual(numbers(3));
    expect(rig.raw.getUint32(base + 2 * PAGE)).toBe(5);
  });

  test("an address that comes of a missed load is no error", async () => {
    const rig = await mmus.make(8);
    const base = await chained(rig, 8, 1); // a load that missed gives 0, where nothing is mapped
    const run = await kernelOf(rig.device, rig.mmu, chain(3))([base]);
    expect(run.words).toEqual([base + 3 * PAGE]);
  });
});

describe("stores", () => {
  test("are in the space when the run is over", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 32);
    const run = await kernelOf(rig.device, rig.mmu, SCATTER)(pagesFrom(base + 4, 32), numbers(32, 7));
    expect(run.writtenBack).toBe(32);
    for (let k = 0; k < 32; k++) {
      expect(rig.raw.getUint32(base + k * PAGE)).toBe(1000 + k); // the rest of the page is as it was
      expect(rig.raw.getUint32(base + k * PAGE + 4)).toBe(7 + k);
    }
    expect(rig.mmu.stats().dirty).toBe(0);
  });

  test("happen once where the kernel prepares them", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 32);
    const add = kernelOf(rig.device, rig.mmu, ADD);
    const run = await add(pagesFrom(base, 32), Array<number>(32).fill(1));
    expect(run.words).toEqual(numbers(32));
    for (let k = 0; k < 32; k++) expect(rig.raw.getUint32(base + k * PAGE)).toBe(1001 + k);
  });

  test("after a miss do not happen: what they depend on was not there", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 2);
    await kernelOf(rig.device, rig.mmu, SCATTER)([base], [0], { keepDirty: true });
    const source = `
@group(0) @binding(0) var<storage, read> addresses: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(1) fn main() {
  let missed = bifolio_load_u32(addresses[1].x);
  bifolio_store_u32(addresses[0].x, bifolio_load_u32(addresses[0].x) + 1u);
  out[0] = missed;
}`;
    const run = await kernelOf(rig.device, rig.mmu, source)([base, base + PAGE]);
    expect(run).toMatchObject({ rounds: 2, pages: 1 });
    expect(rig.raw.getUint32(base)).toBe(1);
  });

  test("to a page that fork shared leave the child alone", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    const child = await rig.raw.fork();
    await kernelOf(rig.device, rig.mmu, GATHER)(pagesFrom(base, 4)); // there already, for reading
    await kernelOf(rig.device, rig.mmu, SCATTER)(pagesFrom(base, 4), [1, 2, 3, 4]);
    for (let k = 0; k < 4; k++) {
      expect(rig.raw.getUint32(base + k * PAGE)).toBe(k + 1);
      expect(await child.run(() => child.getUint32(base + k * PAGE))).toBe(1000 + k);
    }
    await child.exit();
  });

  test("to shared pages of a file reach the file", async () => {
    const rig = await mmus.make(8);
    const backing = arrayBacking(new Uint8Array(4 * PAGE));
    const file = await rig.memory.openFile(backing, { writable: true });
    const base = await rig.raw.mmap({ length: 4 * PAGE, prot: "rw", share: "shared", file });
    await kernelOf(rig.device, rig.mmu, SCATTER)(pagesFrom(base, 4), [11, 22, 33, 44]);
    await file.sync();
    expect([...new Uint32Array(backing.bytes.buffer)].filter((word) => word !== 0)).toEqual([11, 22, 33, 44]);
    await rig.mmu.remove();
    await file.close();
  });

  test("with keepDirty stay on the GPU until flush()", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    const scatter = kernelOf(rig.device, rig.mmu, SCATTER);
    await scatter(pagesFrom(base, 4), [1, 2, 3, 4], { keepDirty: true });
    expect(rig.mmu.stats().dirty).toBe(4);
    expect(
      (await kernelOf(rig.device, rig.mmu, GATHER)([base + PAGE], [], { keepDirty: true })).words,
    ).toEqual([2]);
    expect(await rig.mmu.flush(base, PAGE)).toBe(PAGE);
    expect(rig.raw.getUint32(base)).toBe(1);
    // An access to a private page finds the newest bytes all the same; one that may not wait is refused.
    expect(thrown(() => rig.raw.getUint32(base + PAGE))).toMatchObject({ code: "EAGAIN" });
    expect(await rig.raw.run(() => rig.raw.getUint32(base + PAGE))).toBe(2);
    expect(await rig.mmu.flush()).toBe(2 * PAGE);
    expect(rig.raw.getUint32(base + 2 * PAGE)).toBe(3);
  });

  test("to a private page neither lose an agent's stores to it nor are lost by them", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 2);
    const add = kernelOf(rig.device, rig.mmu, ADD);
    let stored = 0;
    for (let k = 0; k < 12; k++) {
      const running = add([base, base + PAGE], [1, 1], { keepDirty: k % 2 === 0 });
      for (let n = 0; n < 5; n++) {
        const value = ++stored;
        await rig.raw.run(() => rig.raw.setUint32(base + 64, value));
        await new Promise((resolve) => setImmediate(resolve));
      }
      await running;
    }
    const found = await rig.raw.run(() => [0, 64, PAGE].map((at) => rig.raw.getUint32(base + at)));
    expect(found[0]).toBe(1012);
    expect(found[1]).toBe(stored);
    expect(found[2]).toBe(1013);
  });

  test("with keepDirty to shared memory are seen by agents after flush()", async () => {
    const rig = await mmus.make(8);
    const base = await rig.raw.mmap(anonymous(2, { share: "shared" }));
    await rig.raw.populate(base, 2 * PAGE, "rw");
    const scatter = kernelOf(rig.device, rig.mmu, SCATTER);
    await scatter(pagesFrom(base, 2), [1, 2], { keepDirty: true });
    expect(rig.raw.getUint32(base)).toBe(0);
    expect(await rig.mmu.flush()).toBe(2 * PAGE);
    expect([rig.raw.getUint32(base), rig.raw.getUint32(base + PAGE)]).toEqual([1, 2]);
  });

  test("where the mapping forbids them are SegvError", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    await rig.raw.mprotect(base + 2 * PAGE, PAGE, "r");
    await kernelOf(rig.device, rig.mmu, GATHER)(pagesFrom(base, 4));
    const error = await rejected(kernelOf(rig.device, rig.mmu, SCATTER)(pagesFrom(base, 4), [1, 2, 3, 4]));
    expect(error).toMatchObject({ name: "SegvError", reason: "SEGV_ACCERR", address: base + 2 * PAGE });
  });
});

describe("stores of the CPU", () => {
  test("before a run are seen by it", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    for (let round = 0; round < 4; round++) {
      for (let k = 0; k < 4; k++) rig.raw.setUint32(base + k * PAGE, round * 10 + k); // no event: it is writable
      expect((await gather(pagesFrom(base, 4))).words).toEqual(numbers(4, round * 10));
    }
  });

  test("to pages that were only read so far are seen, too", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    await rig.raw.mprotect(base, 4 * PAGE, "r");
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    expect((await gather(pagesFrom(base, 4))).pages).toBe(4);
    expect((await gather(pagesFrom(base, 4))).pages).toBe(0); // nobody can have stored
    await rig.raw.mprotect(base, 4 * PAGE, "rw");
    await rig.raw.run(() => rig.raw.setUint32(base, 5));
    expect((await gather(pagesFrom(base, 4))).words).toEqual([5, 1001, 1002, 1003]);
  });

  test("after soft-dirty tracking began: only what was stored to is uploaded", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 8);
    await rig.raw.clearRefs("soft-dirty");
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    expect((await gather(pagesFrom(base, 8))).pages).toBe(8);
    await rig.raw.run(() => rig.raw.setUint32(base + 3 * PAGE, 5));
    const run = await gather(pagesFrom(base, 8));
    expect(run.pages).toBe(1);
    expect(run.words).toEqual([1000, 1001, 1002, 5, 1004, 1005, 1006, 1007]);
  });

  test("through a pin are seen", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 2);
    const pin = await rig.raw.pin(base, PAGE, "rw");
    await rig.raw.mprotect(base, 2 * PAGE, "r");
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    expect((await gather(pagesFrom(base, 2))).words).toEqual([1000, 1001]);
    pin.spans[0]![0] = 255;
    expect((await gather(pagesFrom(base, 2))).words).toEqual([0x3ff, 1001]);
    pin.unpin();
  });

  test("and of files: those that are opened for reading are not uploaded again", async () => {
    const rig = await mmus.make(16);
    const bytes = pattern(8 * PAGE);
    const file = await rig.memory.openFile(arrayBacking(bytes));
    const writable = await rig.memory.openFile(arrayBacking(bytes.slice()), { writable: true });
    const base = await rig.raw.mmap({ length: 4 * PAGE, prot: "rw", share: "private", file });
    const other = await rig.raw.mmap({ length: 4 * PAGE, prot: "r", share: "shared", file: writable });
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    const at = [...pagesFrom(base, 4), ...pagesFrom(other, 4)];
    const before = (await gather(at)).words;
    await writable.write(0, Uint8Array.of(1, 2, 3, 4));
    const run = await gather(at);
    expect(run.pages).toBe(4);
    expect(run.words).toEqual([...before.slice(0, 4), 0x04030201, ...before.slice(5)]);
    await rig.mmu.remove();
    await file.close();
    await writable.close();
  });
});

describe("what changes under it", () => {
  test("munmap takes the translation away at once, and new memory is new", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    await gather(pagesFrom(base, 4));
    rig.raw.sync.munmap(base + PAGE, PAGE); // non-blockable
    expect(rig.mmu.isResident(base + PAGE)).toBe(false);
    expect(await rejected(gather(pagesFrom(base, 4)))).toMatchObject({
      name: "SegvError",
      reason: "SEGV_MAPERR",
      address: base + PAGE,
    });
    await rig.raw.mmap(anonymous(1, { address: base + PAGE, fixed: true }));
    expect((await gather(pagesFrom(base, 4))).words).toEqual([1000, 0, 1002, 1003]);
  });

  test("bytes that have not come home: a change that may not wait is EAGAIN, and changes nothing", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    await kernelOf(rig.device, rig.mmu, SCATTER)([base], [7], { keepDirty: true });
    for (const change of [
      (): void => rig.raw.try.munmap(base, 4 * PAGE),
      (): void => rig.raw.try.mprotect(base, PAGE, "r"),
      (): void => rig.raw.try.madvise(base, PAGE, "dontneed"),
      (): unknown => rig.raw.try.fork(),
    ]) {
      expect(() => change()).toThrow(expect.objectContaining({ code: "EAGAIN" }));
    }
    expect(rig.mmu.stats()).toMatchObject({ dirty: 1, refusals: 4 });
    expect(rig.mmu.isResident(base)).toBe(true);
    rig.raw.try.munmap(base + PAGE, 3 * PAGE); // nothing of it is there
    await rig.raw.mprotect(base, PAGE, "r"); // waits for the bytes
    expect(rig.raw.getUint32(base)).toBe(7);
    expect(rig.mmu.isResident(base)).toBe(false);
  });

  test("bytes that have not come home are in what fork gives the child", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    await kernelOf(rig.device, rig.mmu, SCATTER)(pagesFrom(base, 4), [1, 2, 3, 4], { keepDirty: true });
    const child = await rig.raw.fork();
    expect(await child.run(() => child.getUint32(base + 3 * PAGE))).toBe(4);
    await child.exit();
  });

  test("and in the file that msync writes", async () => {
    const rig = await mmus.make(8);
    const backing = arrayBacking(new Uint8Array(PAGE));
    const file = await rig.memory.openFile(backing, { writable: true });
    const base = await rig.raw.mmap({ length: PAGE, prot: "rw", share: "shared", file });
    await kernelOf(rig.device, rig.mmu, SCATTER)([base], [0xabcd], { keepDirty: true });
    await rig.raw.msync(base, PAGE);
    expect(new Uint32Array(backing.bytes.buffer)[0]).toBe(0xabcd);
    await rig.mmu.remove();
    await file.close();
  });

  test("a change while a dispatch runs waits for what it writes", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    const scatter = kernelOf(rig.device, rig.mmu, SCATTER);
    await scatter(pagesFrom(base, 4), [0, 0, 0, 0], { keepDirty: true }); // writable now
    const running = scatter(pagesFrom(base, 4), [5, 6, 7, 8], { keepDirty: true });
    await Promise.resolve();
    expect(() => rig.raw.try.madvise(base, PAGE, "dontneed")).toThrow(
      expect.objectContaining({ code: "EAGAIN" }),
    );
    const child = rig.raw.fork();
    await running;
    const forked = await child;
    await rig.mmu.flush();
    for (let k = 0; k < 4; k++) expect(rig.raw.getUint32(base + k * PAGE)).toBe(5 + k);
    await forked.exit();
  });

  test("the end of the space ends the MMU", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    await kernelOf(rig.device, rig.mmu, SCATTER)([base], [7], { keepDirty: true });
    await rig.raw.exit();
    expect(await rejected(gather([base]))).toMatchObject({ code: "ESRCH" });
    expect(await rejected(rig.mmu.flush())).toMatchObject({ code: "ESRCH" });
    expect(rig.mmu.stats().resident).toBe(0);
  });

  test("after remove() everything is ESRCH, and what was written is home", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 1);
    const scatter = kernelOf(rig.device, rig.mmu, SCATTER);
    await scatter([base], [7], { keepDirty: true });
    await rig.mmu.remove();
    await rig.mmu.remove();
    expect(rig.raw.getUint32(base)).toBe(7);
    expect(await rejected(scatter([base], [8]))).toMatchObject({ code: "ESRCH" });
  });
});
