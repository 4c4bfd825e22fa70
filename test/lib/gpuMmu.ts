/** Memories with a GPU MMU for the tests of a file: checked and removed after each test. */
import { afterEach, expect } from "vitest";
import { createGpuMmu, type GpuMmu, type GpuMmuOptions } from "../../src/mirrors/webgpu/index.ts";
import { useGpu } from "./gpu.ts";
import { anonymous, makeRig, PAGE, type Rig } from "./mm.ts";

export interface MmuRig extends Rig {
  readonly mmu: GpuMmu;
  readonly device: GPUDevice;
}

export interface MmuRigOptions extends Partial<GpuMmuOptions> {
  /** Of the memory; 256 by default. */
  readonly frames?: number;
  /** Between the MMU and the device. */
  readonly wrap?: (device: GPUDevice) => GPUDevice;
}

export interface Mmus {
  /** A device of its own each time. */
  device(options?: GPUDeviceDescriptor): Promise<GPUDevice>;
  /** A memory with a space, and an MMU with a pool of so many pages. */
  make(pages: number, options?: MmuRigOptions): Promise<MmuRig>;
  /** Has an MMU checked and removed after the test. */
  keep(mmu: GpuMmu, device: GPUDevice): void;
}

export function useMmus(): Mmus {
  const gpu = useGpu();
  const made: { mmu: GpuMmu; device: GPUDevice }[] = [];

  afterEach(async () => {
    for (const { mmu, device } of made.splice(0)) {
      expect(mmu.check()).toBeUndefined();
      await mmu.remove();
      device.destroy();
    }
  });

  return {
    device: (options) => gpu.device(options),
    async make(pages, { frames = 256, wrap = (device: GPUDevice): GPUDevice => device, ...options } = {}) {
      const rig = await makeRig(frames, { mayBlock: false });
      const device = await gpu.device();
      const mmu = await createGpuMmu(rig.raw, wrap(device), { budget: pages * PAGE, ...options });
      made.push({ mmu, device });
      return { ...rig, mmu, device };
    },
    keep: (mmu, device) => made.push({ mmu, device }),
  };
}

/** Private pages whose first words are 1000, 1001, … */
export async function numbered({ raw }: Rig, pages: number): Promise<number> {
  const base = await raw.mmap(anonymous(pages));
  await raw.populate(base, pages * PAGE, "rw");
  for (let k = 0; k < pages; k++) raw.setUint32(base + k * PAGE, 1000 + k);
  return base;
}

export const pagesFrom = (base: number, pages: number): number[] =>
  Array.from({ length: pages }, (_, k) => base + k * PAGE);
export const numbers = (count: number, from = 1000): number[] =>
  Array.from({ length: count }, (_, k) => from + k);
