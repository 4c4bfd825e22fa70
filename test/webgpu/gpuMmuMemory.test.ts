/** Pages that live on the GPU, or are its own: they move there, kernels use them, and accesses bring them back. */
import { Worker } from "node:worker_threads";
import { describe, expect, test } from "vitest";
import { numbered, numbers, pagesFrom, useMmus } from "../lib/gpuMmu.ts";
import { ADD, GATHER, kernelOf, SCATTER } from "../lib/kernels.ts";
import { anonymous, attachTo, PAGE, rejected, takeReported, thrown, verify } from "../lib/mm.ts";

const mmus = useMmus();

describe("pages that live on the GPU", () => {
  test("leave their frames, are loaded and stored without transfers, and come back by accesses", async () => {
    const rig = await mmus.make(64);
    const { raw, mmu, memory, device } = rig;
    const base = await numbered(rig, 32);
    const [gather, add] = [kernelOf(device, mmu, GATHER), kernelOf(device, mmu, ADD)];
    const { free } = memory.stats().frames;
    expect(await mmu.migrate(base, 32 * PAGE)).toBe(32);
    expect(memory.stats().frames.free).toBe(free + 32);
    expect(mmu.stats()).toMatchObject({ moved: 32, dirty: 0 });
    verify(memory);
    const uploaded = mmu.stats().uploadedPages;
    expect((await gather(pagesFrom(base, 32))).words).toEqual(numbers(32));
    for (let k = 1; k <= 3; k++) {
      const run = await add(pagesFrom(base, 32), numbers(32, 5));
      expect(run).toMatchObject({ pages: 0, writtenBack: 0 });
    }
    expect(mmu.stats()).toMatchObject({ uploadedPages: uploaded, moved: 32 });
    // An agent that does not block is told to wait; with its neighbours, 64 KiB, the page comes back.
    expect(thrown(() => raw.getUint32(base))).toMatchObject({ code: "EAGAIN" });
    expect(await raw.run(() => raw.getUint32(base))).toBe(1000 + 3 * 5);
    expect(mmu.stats().moved).toBe(16);
    expect(await raw.run(() => pagesFrom(base, 32).map((at) => raw.getUint32(at)))).toEqual(
      Array.from({ length: 32 }, (_, k) => 1000 + k + 3 * (5 + k)),
    );
    expect(mmu.stats().moved).toBe(0);
    raw.setUint32(base + 31 * PAGE, 7);
    expect((await gather([base + 31 * PAGE])).words).toEqual([7]);
    verify(memory);
  });

  test("come back for another agent, one that blocks", async () => {
    const rig = await mmus.make(32);
    const { mmu, memory, raw } = rig;
    const base = await numbered(rig, 16);
    await mmu.migrate(base, 16 * PAGE);
    await kernelOf(rig.device, mmu, SCATTER)([base + 4], [77]);
    const source = `
      import { parentPort, workerData } from "node:worker_threads";
      import { attach } from ${JSON.stringify(new URL("../../.test-build/testing.js", import.meta.url).href)};
      const memory = await attach(workerData.handle, { mayBlock: true });
      const space = memory.space(workerData.space);
      const found = [space.getUint32(workerData.base + 4), space.getUint32(workerData.base + 15 * 4096)];
      space.setUint32(workerData.base, 5);
      memory.detach();
      parentPort.postMessage(found);`;
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
      workerData: { handle: memory.handle, space: raw.id, base },
    });
    memory.adopt(worker);
    const found = await new Promise((resolve, reject) =>
      worker.once("message", resolve).once("error", reject),
    );
    expect(found).toEqual([77, 1015]);
    await worker.terminate();
    expect(await raw.run(() => raw.getUint32(base))).toBe(5);
    verify(memory);
  });

  test("let a memory hold more than its budget", async () => {
    const rig = await mmus.make(128, { frames: 96 });
    const { raw, mmu, memory, device } = rig;
    const bases: number[] = [];
    for (let k = 0; k < 2; k++) {
      bases.push(await numbered(rig, 48));
      expect(await mmu.migrate(bases[k]!, 48 * PAGE)).toBe(48);
    }
    bases.push(await numbered(rig, 72)); // 168 pages, 96 frames
    const gather = kernelOf(device, mmu, GATHER);
    expect((await gather(pagesFrom(bases[1]!, 48))).words).toEqual(numbers(48));
    // Room is made by unmapping.
    await raw.munmap(bases[2]!, 72 * PAGE);
    expect(await raw.run(() => raw.getUint32(bases[0]! + 47 * PAGE))).toBe(1047);
    verify(memory);
    await raw.munmap(bases[1]!, 48 * PAGE); // else not all could come back when the MMU is removed
  });

  test("are shared by fork; the next store of a kernel is a copy", async () => {
    const rig = await mmus.make(32);
    const { raw, mmu, memory, device } = rig;
    const base = await numbered(rig, 4);
    await mmu.migrate(base, 4 * PAGE);
    const scatter = kernelOf(device, mmu, SCATTER);
    await scatter([base], [1]);
    const child = await raw.fork();
    await scatter([base, base + PAGE], [2, 3]);
    expect((await kernelOf(device, mmu, GATHER)(pagesFrom(base, 3))).words).toEqual([2, 3, 1002]);
    expect(await child.run(() => pagesFrom(base, 3).map((at) => child.getUint32(at)))).toEqual([
      1, 1001, 1002,
    ]);
    expect(await raw.run(() => pagesFrom(base, 3).map((at) => raw.getUint32(at)))).toEqual([2, 3, 1002]);
    verify(memory);
    await child.exit();
  });

  test("are freed by unmapping, and their room is used again", async () => {
    const rig = await mmus.make(32);
    const { raw, mmu, memory, device } = rig;
    for (let round = 0; round < 4; round++) {
      const base = await numbered(rig, 24);
      expect(await mmu.migrate(base, 24 * PAGE)).toBe(24);
      expect((await kernelOf(device, mmu, GATHER)(pagesFrom(base, 24))).words).toEqual(numbers(24));
      await raw.munmap(base, 24 * PAGE);
      expect(mmu.stats().moved).toBe(0);
      expect(mmu.check()).toBeUndefined();
    }
    verify(memory);
  });

  test("give way to what a dispatch needs at the same time", async () => {
    const rig = await mmus.make(16);
    const { mmu, device, memory } = rig;
    const base = await numbered(rig, 40);
    // An eighth is left.
    expect(await mmu.migrate(base, 40 * PAGE)).toBe(14);
    const gather = kernelOf(device, mmu, GATHER);
    expect((await gather(pagesFrom(base, 40))).words).toEqual(numbers(40));
    const sum = kernelOf(
      device,
      mmu,
      `@group(0) @binding(0) var<storage, read> addresses: array<vec2<u32>>;
       @group(0) @binding(1) var<storage, read_write> out: array<u32>;
       @compute @workgroup_size(1) fn main() {
         var sum = 0u;
         for (var k = 0u; k < arrayLength(&addresses); k++) { sum += bifolio_load_u32_at(addresses[k]); }
         if (!bifolio_missed()) { out[0] = sum; }
       }`,
    );
    const last = pagesFrom(base + 26 * PAGE, 14);
    expect((await sum(last)).words[0]).toBe(numbers(14, 1026).reduce((a, b) => a + b));
    expect(mmu.stats().moved).toBeLessThanOrEqual(2);
    verify(memory);
  });

  test("stay where they are while somebody has them in a view, and shared or file pages do", async () => {
    const rig = await mmus.make(32);
    const { raw, mmu, memory } = rig;
    const base = await numbered(rig, 4);
    const shared = await raw.mmap(anonymous(4, { share: "shared" }));
    await raw.write(shared, new Uint8Array(4 * PAGE));
    const pin = await raw.pin(base + PAGE, PAGE, "rw");
    expect(await mmu.migrate(base, 4 * PAGE)).toBe(3);
    expect(await mmu.migrate(shared, 4 * PAGE)).toBe(0);
    pin.unpin();
    expect(await mmu.migrate(base, 4 * PAGE)).toBe(1);
    expect(await mmu.migrateBack(base, 4 * PAGE)).toBe(4);
    expect(await rejected(mmu.migrate(base + 1, PAGE))).toMatchObject({ code: "EINVAL" });
    verify(memory);
  });

  test("a change that may not wait is refused only while a dispatch may be storing", async () => {
    const rig = await mmus.make(32);
    const { raw, mmu, device, memory } = rig;
    const base = await numbered(rig, 4);
    await mmu.migrate(base, 4 * PAGE);
    const scatter = kernelOf(device, mmu, SCATTER);
    await scatter(pagesFrom(base, 4), numbers(4, 1));
    const running = scatter(pagesFrom(base, 4), numbers(4, 2));
    await Promise.resolve();
    await new Promise((resolve) => setImmediate(resolve));
    const error = thrown(() => raw.try.munmap(base + 3 * PAGE, PAGE));
    if (error) expect(error).toMatchObject({ code: "EAGAIN" });
    await running.catch(() => {});
    if (error) raw.try.munmap(base + 3 * PAGE, PAGE);
    expect(await raw.run(() => raw.getUint32(base))).toBe(2);
    verify(memory);
  });

  test("are lost with the device, and say where they were", async () => {
    const rig = await mmus.make(32);
    const { raw, mmu, device, memory } = rig;
    const base = await numbered(rig, 8);
    await mmu.migrate(base + 2 * PAGE, 3 * PAGE);
    device.destroy();
    await device.lost;
    expect(await rejected(raw.run(() => raw.getUint32(base + 2 * PAGE)))).toMatchObject({ name: "BusError" });
    expect(await raw.run(() => raw.getUint32(base + PAGE))).toBe(1001);
    const next = await mmus.device();
    await mmu.recover(next);
    expect(takeReported().map(({ code, range }) => [code, range])).toEqual([
      ["EIO", { start: base + 2 * PAGE, end: base + 5 * PAGE }],
    ]);
    verify(memory);
    expect(await rejected(kernelOf(next, mmu, GATHER)([base + 3 * PAGE]))).toBeDefined();
    await raw.madvise(base + 2 * PAGE, 3 * PAGE, "dontneed");
    expect((await kernelOf(next, mmu, GATHER)(pagesFrom(base, 4))).words).toEqual([1000, 1001, 0, 0]);
    expect(await mmu.migrate(base, PAGE)).toBe(1);
    expect(await raw.run(() => raw.getUint32(base))).toBe(1000);
    next.destroy();
    await next.lost;
    await new Promise((resolve) => setTimeout(resolve, 5));
    takeReported();
  });

  test("come back when the MMU is removed", async () => {
    const rig = await mmus.make(32);
    const { raw, mmu, device, memory } = rig;
    const base = await numbered(rig, 8);
    await mmu.migrate(base, 8 * PAGE);
    await kernelOf(device, mmu, SCATTER)([base], [9]);
    await mmu.remove();
    expect(pagesFrom(base, 3).map((at) => raw.getUint32(at))).toEqual([9, 1001, 1002]);
    expect(memory.stats().devicePages).toBe(0);
    verify(memory);
  });
});

describe("pages that are the GPU's own", () => {
  test("stay good from run to run, and an access brings home what kernels stored", async () => {
    const rig = await mmus.make(32);
    const { raw, mmu, device, memory } = rig;
    const base = await numbered(rig, 8);
    await mmu.exclusive(base, 8 * PAGE);
    const [gather, add] = [kernelOf(device, mmu, GATHER), kernelOf(device, mmu, ADD)];
    expect(await gather(pagesFrom(base, 8))).toMatchObject({ words: numbers(8), pages: 0 });
    for (let k = 0; k < 3; k++) {
      const run = await add(pagesFrom(base, 8), numbers(8, 1), { keepDirty: true });
      expect(run).toMatchObject({ pages: 0, writtenBack: 0 });
    }
    expect(raw.pagemap(base, PAGE)[0]).toMatchObject({ present: false, swapped: true });
    // The access finds the GPU's newest bytes.
    expect(await raw.run(() => raw.getUint32(base + PAGE))).toBe(1001 + 3 * 2);
    expect(raw.pagemap(base + PAGE, PAGE)[0]).toMatchObject({ present: true });
    // A store of an agent is seen by the next run.
    await raw.run(() => raw.setUint32(base + PAGE, 5));
    expect((await gather(pagesFrom(base, 3))).words).toEqual([1003, 5, 1002 + 9]);
    verify(memory);
  });

  test("an access that may not wait is refused while bytes are not home", async () => {
    const rig = await mmus.make(32);
    const { raw, mmu, device, memory } = rig;
    const base = await numbered(rig, 2);
    await mmu.exclusive(base, 2 * PAGE);
    await kernelOf(device, mmu, SCATTER)([base], [8], { keepDirty: true });
    expect(thrown(() => raw.getUint32(base))).toMatchObject({ code: "EAGAIN" });
    const other = await attachTo(memory, false);
    const theirs = other.space(raw.id);
    expect(await theirs.run(() => theirs.getUint32(base))).toBe(8);
    verify(memory);
  });

  test("what cannot be its own is refused, and shared mappings are ENOTSUP", async () => {
    const rig = await mmus.make(8);
    const { raw, mmu } = rig;
    const shared = await raw.mmap(anonymous(1, { share: "shared" }));
    expect(await rejected(mmu.exclusive(shared, PAGE))).toMatchObject({ code: "ENOTSUP" });
    const base = await raw.mmap(anonymous(16));
    expect(await rejected(mmu.exclusive(base, 16 * PAGE))).toMatchObject({ code: "ENOMEM" });
    expect(await rejected(mmu.exclusive(base, 0))).toMatchObject({ code: "EINVAL" });
  });
});
