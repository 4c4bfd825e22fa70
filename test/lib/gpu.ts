/**
 * A GPU in Node for the tests of a file: Dawn, the npm package `webgpu`, on SwiftShader where Chromium has brought it.
 * Dawn on Node 20 dies with a segmentation fault when it is given shared memory; nothing here may do that.
 */
import { existsSync } from "node:fs";
import { beforeAll, beforeEach } from "vitest";

const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";
const MISSING =
  "no GPU adapter: install a Vulkan driver, or chromium and libvulkan1 (apt-get install chromium libvulkan1)";

/** An adapter, undefined where there is none. The constants of WebGPU (GPUBufferUsage, …) become globals. */
export async function findAdapter(): Promise<GPUAdapter | undefined> {
  // Before Dawn looks for drivers. The variable is Vulkan's.
  if (process.env["VK_ICD_FILENAMES"] === undefined && existsSync(SWIFTSHADER)) {
    process.env["VK_ICD_FILENAMES"] = SWIFTSHADER;
  }
  const { create, globals } = await import("webgpu");
  Object.assign(globalThis, globals);
  // Kept: a GPU object that is collected takes its adapters with it.
  instance ??= create([]);
  return (await instance.requestAdapter()) ?? undefined;
}
let instance: GPU | undefined;

/** Skips the tests of this file where there is no GPU, but not in continuous integration. */
export function useGpu(): { device(options?: GPUDeviceDescriptor): Promise<GPUDevice> } {
  let found = false;
  beforeAll(async () => {
    found = (await findAdapter()) !== undefined;
    if (!found && process.env["CI"]) throw new Error(MISSING);
  });
  beforeEach((context) => context.skip(!found, MISSING));
  return {
    /** A new device each time; an adapter gives one only. */
    async device(options) {
      const adapter = await findAdapter();
      return adapter!.requestDevice(options);
    },
  };
}
