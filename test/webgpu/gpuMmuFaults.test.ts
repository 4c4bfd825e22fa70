/** What goes wrong with a GPU MMU: its device is lost, has no memory, refuses; arguments that are none. */
import { describe, expect, test } from "vitest";
import { createGpuMmu, type GpuMmuOptions } from "../../src/mirrors/webgpu/index.ts";
import { type MmuRig, numbered, numbers, pagesFrom, useMmus } from "../lib/gpuMmu.ts";
import { GATHER, kernelOf, SCATTER } from "../lib/kernels.ts";
import { makeRig, PAGE, rejected, takeReported } from "../lib/mm.ts";

const mmus = useMmus();

/** `device` with some of its functions replaced. */
function wrapped(device: GPUDevice, replaced: Partial<Record<keyof GPUDevice, unknown>>): GPUDevice {
  return new Proxy(device, {
    get(target, name) {
      if (Object.hasOwn(replaced, name)) return replaced[name as keyof GPUDevice];
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

describe("arguments", () => {
  test.each<[string, Partial<GpuMmuOptions>, string]>([
    ["no budget", { budget: undefined as never }, "budget must be a number of bytes"],
    ["a budget below a page", { budget: 4095 }, "of at least a page (4096)"],
    ["a budget that is no number", { budget: "much" }, "budget must be a number of bytes"],
    ["a start that is not aligned", { start: 1, length: PAGE }, "multiples of the page size"],
    ["no length", { start: PAGE, length: 0 }, "length above 0"],
    ["a negative start", { start: -PAGE, length: PAGE }, "whole numbers of bytes, not negative"],
    ["a range beyond the end", { start: PAGE, length: Number.MAX_SAFE_INTEGER }, "beyond the address space"],
    ["a group that does not exist", { group: 4 }, "group must be below the 4 bind groups"],
    ["a group that is no number", { group: 0.5 }, "group must be the number of a bind group"],
  ])("%s", async (_, options, text) => {
    const rig = await makeRig(64, { mayBlock: false });
    const device = await mmus.device();
    const error = await rejected(createGpuMmu(rig.raw, device, { budget: PAGE, ...options }));
    expect(error).toMatchObject({ code: "EINVAL", operation: "createGpuMmu" });
    expect(error!.message).toContain(text);
    expect(rig.raw.notifiers.any).toBe(false);
    device.destroy();
  });

  test("no space, no device, a space that is over, an agent that blocks", async () => {
    const rig = await makeRig(64, { mayBlock: false });
    const device = await mmus.device();
    const options = { budget: PAGE };
    expect(await rejected(createGpuMmu({} as never, device, options))).toMatchObject({ code: "EINVAL" });
    expect(await rejected(createGpuMmu(rig.raw, {} as never, options))).toMatchObject({ code: "EINVAL" });
    const blocking = await makeRig();
    expect(await rejected(createGpuMmu(blocking.raw, device, options))).toMatchObject({ code: "EINVAL" });
    await rig.raw.exit();
    expect(await rejected(createGpuMmu(rig.raw, device, options))).toMatchObject({ code: "ESRCH" });
    device.destroy();
  });

  test("of a dispatch", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 1);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    const bad = async (fn: () => Promise<unknown>, text: string): Promise<void> => {
      const error = await rejected(fn());
      expect(error).toMatchObject({ code: "EINVAL" });
      expect(error!.message).toContain(text);
    };
    const { mmu, device } = rig;
    const module = device.createShaderModule({ code: "@compute @workgroup_size(1) fn main() {}" });
    const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
    await bad(() => mmu.dispatch(undefined as never), "needs a GPUComputePipeline");
    await bad(() => mmu.dispatch({ pipeline, workgroups: [1, 2, 3, 4] }), "one to three whole numbers");
    await bad(() => mmu.dispatch({ pipeline, workgroups: -1 }), "one to three whole numbers");
    await bad(() => mmu.dispatch({ pipeline, workgroups: 1, invocations: -1 }), "invocations must be");
    const group = {} as GPUBindGroup;
    await bad(() => mmu.dispatch({ pipeline, workgroups: 1, bindGroups: [, , , group] }), "is the MMU's own"); // eslint-disable-line no-sparse-arrays
    await bad(() => mmu.run(undefined as never), "needs a function");
    await bad(() => mmu.flush(-1), "whole numbers of bytes");
    await bad(() => gather([base], [], { invocations: 0 }), "say how many invocations");
    expect((await gather([base])).words).toEqual([1000]);
  });

  test("addresses outside of the MMU's range, and of every space", async () => {
    const rig = await makeRig(64, { mayBlock: false });
    const base = await numbered(rig, 4);
    const device = await mmus.device();
    const mmu = await createGpuMmu(rig.raw, device, { budget: 8 * PAGE, start: base, length: 2 * PAGE });
    mmus.keep(mmu, device);
    const gather = kernelOf(device, mmu, GATHER);
    expect((await gather(pagesFrom(base, 2))).words).toEqual(numbers(2));
    const error = await rejected(gather(pagesFrom(base, 4)));
    expect(error).toMatchObject({ code: "EFAULT", range: { start: base + 2 * PAGE, end: base + 3 * PAGE } });
    expect(await rejected(gather([2 ** 50]))).toMatchObject({ code: "EFAULT" });
    expect(await rejected(gather([0]))).toMatchObject({ code: "EFAULT" });
  });
});

describe("limits of the device", () => {
  test("below what the budget needs", async () => {
    const rig = await makeRig(64, { mayBlock: false });
    const device = await mmus.device();
    const { limits } = device;
    const over = limits.maxStorageBufferBindingSize + PAGE;
    const error = await rejected(createGpuMmu(rig.raw, device, { budget: over }));
    expect(error).toMatchObject({ code: "ENOTSUP", operation: "createGpuMmu" });
    expect(error!.message).toContain(`the device allows ${limits.maxStorageBufferBindingSize}`);
    const few = wrapped(device, {
      limits: {
        maxStorageBuffersPerShaderStage: 2,
        maxStorageBufferBindingSize: 2 ** 27,
        maxBufferSize: 2 ** 28,
        maxBindGroups: 4,
      },
    });
    expect(await rejected(createGpuMmu(rig.raw, few, { budget: PAGE }))).toMatchObject({ code: "ENOTSUP" });
    expect(rig.raw.notifiers.any).toBe(false);
    device.destroy();
  });

  test("for the marks of invocations", async () => {
    const rig = await mmus.make(8);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    const base = await numbered(rig, 1);
    const error = await rejected(gather([base], [], { invocations: 2 ** 31 }));
    expect(error).toMatchObject({ code: "ENOTSUP" });
    expect((await gather([base], [], { invocations: 100_000 })).words).toEqual([1000]);
  });
});

describe("out of memory", () => {
  test("when it is made: ENOMEM, and nothing is left", async () => {
    const rig = await makeRig(64, { mayBlock: false });
    const device = await mmus.device();
    let pops = 0;
    const poor = wrapped(device, {
      popErrorScope: async () => {
        await device.popErrorScope();
        return pops++ === 0 ? { message: "none left" } : null;
      },
    });
    const error = await rejected(createGpuMmu(rig.raw, poor, { budget: PAGE }));
    expect(error).toMatchObject({ code: "ENOMEM" });
    expect(error!.message).toContain("none left");
    expect(rig.raw.notifiers.any).toBe(false);
    device.destroy();
  });

  test("while it runs: ENOMEM, and it goes on", async () => {
    let fail = false;
    const rig = await mmus.make(8, {
      wrap: (device) =>
        wrapped(device, {
          popErrorScope: async () => {
            const error = await device.popErrorScope();
            const failed = fail;
            fail = false;
            return failed ? { message: "none left" } : error;
          },
        }),
    });
    const base = await numbered(rig, 4);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    fail = true;
    expect(await rejected(gather(pagesFrom(base, 4)))).toMatchObject({ code: "ENOMEM" });
    expect((await gather(pagesFrom(base, 4))).words).toEqual(numbers(4));
  });
});

describe("errors of a shader or an encoder", () => {
  test("what WebGPU refuses is EINVAL with its reason", async () => {
    const { mmu, device, ...rig } = await mmus.make(8);
    const base = await numbered(rig, 4);
    const gather = kernelOf(device, mmu, GATHER);
    await gather(pagesFrom(base, 4));
    const module = device.createShaderModule({ code: mmu.wgsl + GATHER });
    const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
    const error = await rejected(mmu.dispatch({ pipeline, workgroups: 1, invocations: 64 })); // no group 0
    expect(error).toMatchObject({ code: "EINVAL", operation: "run" });
    expect(error!.message).toContain("WebGPU refused the dispatch");
    expect((await gather(pagesFrom(base, 4))).words).toEqual(numbers(4));
  });

  test("what encode() throws is thrown", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    const wrong = new Error("wrong");
    const fails = rig.mmu.run(() => {
      throw wrong;
    });
    expect(await rejected(fails)).toBe(wrong);
    expect((await kernelOf(rig.device, rig.mmu, GATHER)(pagesFrom(base, 4))).words).toEqual(numbers(4));
  });

  test("run() with a pipeline layout of one's own", async () => {
    const { mmu, device, ...rig } = await mmus.make(8, { group: 1 });
    const base = await numbered(rig, 1);
    const empty = device.createBindGroupLayout({ entries: [] });
    const layout = device.createPipelineLayout({ bindGroupLayouts: [empty, mmu.bindGroupLayout] });
    const code = `${mmu.wgsl}@compute @workgroup_size(1) fn main() { bifolio_store_u32(${base + 4}u, bifolio_load_u32(${base}u) + 1u); }`;
    const module = device.createShaderModule({ code });
    const pipeline = device.createComputePipeline({ layout, compute: { module } });
    const group = device.createBindGroup({ layout: empty, entries: [] });
    const run = await mmu.run((pass) => {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(1);
    });
    expect(run.writtenBack).toBe(1);
    expect(rig.raw.getUint32(base + 4)).toBe(1001);
  });

  test("a kernel that begins and never finishes is told", async () => {
    const rig = await mmus.make(2);
    const base = await numbered(rig, 8);
    const source = GATHER.replace("if (bifolio_finish()) { out[id.x] = word; }", "out[id.x] = word;");
    const error = await rejected(kernelOf(rig.device, rig.mmu, source)(pagesFrom(base, 8)));
    expect(error).toBeDefined();
    expect(["EINVAL", "ENOMEM", "EBUSY"]).toContain(error!.code);
  });
});

describe("device.lost", () => {
  async function lose({ device }: MmuRig): Promise<void> {
    device.destroy();
    await device.lost;
  }

  async function recovered(rig: MmuRig): Promise<GPUDevice> {
    const device = await mmus.device();
    await rig.mmu.recover(device);
    mmus.keep(rig.mmu, device);
    return device;
  }

  test("with nothing that was only there: the MMU goes on with another device", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 4);
    const gather = kernelOf(rig.device, rig.mmu, GATHER);
    await gather(pagesFrom(base, 4));
    expect(await rejected(rig.mmu.recover(rig.device))).toMatchObject({ code: "EBUSY" });
    await lose(rig);
    expect(rig.mmu.stats().resident).toBe(0);
    expect(rig.mmu.lost).toEqual([]);
    expect(await rejected(rig.mmu.run(() => {}))).toMatchObject({ code: "EIO", operation: "run" });
    expect(await rejected(rig.mmu.flush())).toMatchObject({ code: "EIO" });
    rig.raw.try.munmap(base + 3 * PAGE, PAGE); // nobody has it any more
    const device = await recovered(rig);
    expect((await kernelOf(device, rig.mmu, GATHER)(pagesFrom(base, 3))).words).toEqual(numbers(3));
  });

  test("what only the GPU had is reported by range, the rest is right", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 8);
    const scatter = kernelOf(rig.device, rig.mmu, SCATTER);
    const written = [0, 1, 4].map((k) => base + k * PAGE);
    await scatter([base + 6 * PAGE], [6]); // home already
    await scatter(written, [7, 7, 7], { keepDirty: true });
    await lose(rig);
    const ranges = [
      { start: base, end: base + 2 * PAGE },
      { start: base + 4 * PAGE, end: base + 5 * PAGE },
    ];
    expect(rig.mmu.lost).toEqual(ranges);
    expect(takeReported()).toEqual(ranges.map((range) => expect.objectContaining({ code: "EIO", range })));
    const words = pagesFrom(base, 8).map((at) => rig.raw.getUint32(at));
    expect(words).toEqual([1000, 1001, 1002, 1003, 1004, 1005, 6, 1007]);
    const device = await recovered(rig);
    expect(rig.mmu.lost).toEqual([]);
    expect((await kernelOf(device, rig.mmu, GATHER)(pagesFrom(base, 8))).words).toEqual(words);
  });

  test("an invalidation that waits for the GPU goes on", async () => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 2);
    await kernelOf(rig.device, rig.mmu, SCATTER)([base], [7], { keepDirty: true });
    const unmapped = rig.raw.munmap(base, PAGE);
    rig.device.destroy();
    await unmapped;
    takeReported();
    await rig.device.lost;
    expect(rig.mmu.stats().resident).toBe(0);
    await recovered(rig);
  });

  test.each([0, 1, 2, 3, 5, 8, 13, 21, 34])("%i turns into a run", async (turns) => {
    const rig = await mmus.make(8);
    const base = await numbered(rig, 64);
    const scatter = kernelOf(rig.device, rig.mmu, SCATTER);
    await scatter(pagesFrom(base + 4, 8), numbers(8, 1)); // compiled
    const running = rejected(scatter(pagesFrom(base, 64), numbers(64, 1)));
    for (let k = 0; k < turns; k++) await new Promise((resolve) => setImmediate(resolve));
    rig.device.destroy();
    const error = await running;
    await rig.device.lost;
    if (error) expect(error).toMatchObject({ code: "EIO" });
    const reported = takeReported();
    for (const { range } of reported) expect(range).toBeDefined();
    expect(reported.map(({ range }) => range)).toEqual(rig.mmu.lost);
    // Each page is the old one or the new one, and an old one that was written was reported.
    for (let k = 0; k < 64; k++) expect([1000 + k, 1 + k]).toContain(rig.raw.getUint32(base + k * PAGE));
    const device = await recovered(rig);
    await kernelOf(device, rig.mmu, SCATTER)(pagesFrom(base, 64), numbers(64, 1));
    for (let k = 0; k < 64; k++) expect(rig.raw.getUint32(base + k * PAGE)).toBe(1 + k);
  });
});
