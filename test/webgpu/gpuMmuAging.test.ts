/** Aging, eviction and the budget of a GPU MMU. */
import { describe, expect, test } from "vitest";
import { createGpuMmu } from "../../src/mirrors/webgpu/index.ts";
import { numbered, numbers, pagesFrom, useMmus } from "../lib/gpuMmu.ts";
import { GATHER, kernelOf, SCATTER } from "../lib/kernels.ts";
import { arrayBacking, attachTo, makeRig, PAGE, pattern } from "../lib/mm.ts";

const mmus = useMmus();

describe.each([true, false])("a page that the GPU has used is young (range given: %s)", (bounded) => {
  test("until somebody asks and clears", async () => {
    const rig = await makeRig(64, { mayBlock: false });
    const device = await mmus.device();
    const base = await numbered(rig, 4);
    const bounds = bounded ? { start: base, length: 4 * PAGE } : {};
    const mmu = await createGpuMmu(rig.raw, device, { budget: 8 * PAGE, ...bounds });
    mmus.keep(mmu, device);
    const gather = kernelOf(device, mmu, GATHER);
    const { notifiers } = rig.raw;
    expect(notifiers.clearYoung(base, base + 4 * PAGE)).toBe(false);
    await gather([base, base + 2 * PAGE]);
    expect(pagesFrom(base, 4).map((at) => notifiers.testYoung(at))).toEqual([true, false, true, false]);
    expect(notifiers.clearYoung(base, base + 4 * PAGE)).toBe(true);
    expect(notifiers.testYoung(base)).toBe(false);
    expect(notifiers.clearFlushYoung(base, base + 4 * PAGE)).toBe(false);
    // Found again in the table, without being brought in: that counts, too.
    await rig.raw.mprotect(base, 4 * PAGE, "r");
    await gather([base]);
    notifiers.clearYoung(base, base + 4 * PAGE);
    const run = await gather([base]);
    expect(run.pages).toBe(0);
    expect(notifiers.clearFlushYoung(base, base + PAGE)).toBe(true);
    expect(notifiers.clearFlushYoung(base, base + PAGE)).toBe(false);
  });
});

test("another agent sees it in shared memory, without asking", async () => {
  const rig = await makeRig(64, { mayBlock: false });
  const device = await mmus.device();
  const base = await numbered(rig, 4);
  const mmu = await createGpuMmu(rig.raw, device, { budget: 8 * PAGE, start: base, length: 4 * PAGE });
  mmus.keep(mmu, device);
  const other = (await attachTo(rig.memory, false)).space(rig.raw.id).notifiers;
  expect(other.testYoung(base)).toBe(false);
  await kernelOf(device, mmu, GATHER)([base]);
  expect(other.testYoung(base)).toBe(true);
  expect(other.testYoung(base + PAGE)).toBe(false);
  expect(other.clearYoung(base, base + PAGE)).toBe(true);
  expect(rig.raw.notifiers.testYoung(base)).toBe(false);
});

test("what is mapped anew is not young", async () => {
  const rig = await mmus.make(8);
  const base = await numbered(rig, 2);
  await kernelOf(rig.device, rig.mmu, GATHER)(pagesFrom(base, 2));
  await rig.raw.munmap(base, PAGE);
  expect(pagesFrom(base, 2).map((at) => rig.raw.notifiers.testYoung(at))).toEqual([false, true]);
});

test("reclaim takes what the GPU does not use", async () => {
  const rig = await makeRig(64, { mayBlock: false, folio: PAGE, faultAround: PAGE });
  const device = await mmus.device();
  const file = await rig.memory.openFile(arrayBacking(pattern(32 * PAGE)));
  const base = await rig.raw.mmap({ length: 32 * PAGE, prot: "r", share: "private", file });
  const mmu = await createGpuMmu(rig.raw, device, { budget: 32 * PAGE, start: base, length: 32 * PAGE });
  mmus.keep(mmu, device);
  const gather = kernelOf(device, mmu, GATHER);
  await gather(pagesFrom(base, 32));
  await rig.raw.clearRefs("referenced");
  rig.raw.notifiers.clearYoung(base, base + 32 * PAGE);
  const hot = pagesFrom(base, 8);
  await gather(hot);
  await rig.memory.reclaim(8 * PAGE);
  expect(hot.filter((at) => !mmu.isResident(at))).toEqual([]);
  expect(mmu.stats().resident).toBeLessThan(32);
  await mmu.remove();
  await file.close();
});

test("eviction keeps what is used again and again", async () => {
  const rig = await mmus.make(8);
  const base = await numbered(rig, 64);
  await rig.raw.mprotect(base, 64 * PAGE, "r"); // so that nothing is uploaded again for the CPU's sake
  const gather = kernelOf(rig.device, rig.mmu, GATHER);
  const hot = pagesFrom(base, 4);
  let uploaded = 0;
  for (let k = 4; k < 64; k += 2) {
    const run = await gather([...hot, base + k * PAGE, base + (k + 1) * PAGE]);
    expect(run.words.slice(4)).toEqual(numbers(2, 1000 + k));
    uploaded += run.pages;
  }
  expect(uploaded).toBe(4 + 60);
});

test("the pool never has more bytes than the budget, and evicted stores come home first", async () => {
  const sizes = new Map<string, number>();
  const rig = await mmus.make(8, {
    wrap: (device) =>
      new Proxy(device, {
        get(target, name) {
          if (name === "createBuffer") {
            return (descriptor: GPUBufferDescriptor): GPUBuffer => {
              sizes.set(descriptor.label ?? "", descriptor.size);
              return target.createBuffer(descriptor);
            };
          }
          const value: unknown = Reflect.get(target, name, target);
          return typeof value === "function" ? value.bind(target) : value;
        },
      }),
  });
  const base = await numbered(rig, 64);
  const scatter = kernelOf(rig.device, rig.mmu, SCATTER);
  const before = rig.mmu.stats().gpuBytes;
  const run = await scatter(pagesFrom(base, 64), numbers(64, 1), { keepDirty: true });
  expect(run.evictions).toBe(56);
  expect(run.writtenBack).toBe(56);
  expect(rig.mmu.stats()).toMatchObject({ pages: 8, resident: 8, dirty: 8 });
  await rig.mmu.flush();
  for (let k = 0; k < 64; k++) expect(rig.raw.getUint32(base + k * PAGE)).toBe(k + 1);
  expect(sizes.get("bifolio pool")).toBe(8 * PAGE);
  expect(rig.mmu.stats().gpuBytes).toBeLessThan(before + 4096);
});

test("what one round missed goes up in one pass, wherever it lies", async () => {
  const uploads: number[] = [];
  const bound = (target: object, name: string | symbol): unknown => {
    const value: unknown = Reflect.get(target, name, target);
    return typeof value === "function" ? value.bind(target) : value;
  };
  const rig = await mmus.make(32, {
    wrap: (device) => {
      const queue = new Proxy(device.queue, {
        get: (target, name) =>
          name === "writeBuffer"
            ? (...args: Parameters<GPUQueue["writeBuffer"]>): undefined => {
                if (args[0].label === "bifolio pool") uploads.push((args[2] as Uint8Array).byteLength);
                return target.writeBuffer(...args);
              }
            : bound(target, name),
      });
      return new Proxy(device, {
        get: (target, name) => (name === "queue" ? queue : bound(target, name)),
      });
    },
  });
  const base = await numbered(rig, 128);
  const gather = kernelOf(rig.device, rig.mmu, GATHER);
  const run = await gather(Array.from({ length: 32 }, (_, k) => base + ((k * 37) % 128) * PAGE));
  expect(run).toMatchObject({ rounds: 2, pages: 32 });
  expect(uploads).toEqual([32 * PAGE]);
});
