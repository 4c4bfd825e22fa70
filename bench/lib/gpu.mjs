/** A GPU in Node, if there is one: Dawn, on SwiftShader where nothing better is installed. */
import { existsSync } from "node:fs";

const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";
export const NO_GPU =
  "skipped: no GPU adapter; install a Vulkan driver, or chromium and libvulkan1, and the npm package webgpu";

/** A device and what it runs on; undefined where there is none. */
export async function findDevice() {
  process.env.VK_ICD_FILENAMES ??= existsSync(SWIFTSHADER) ? SWIFTSHADER : "";
  if (process.env.VK_ICD_FILENAMES === "") delete process.env.VK_ICD_FILENAMES;
  let webgpu;
  try {
    webgpu = await import("webgpu");
  } catch {
    return undefined;
  }
  Object.assign(globalThis, webgpu.globals);
  globalThis.gpu = webgpu.create([]); // kept: what it gave ends with it
  const adapter = await globalThis.gpu.requestAdapter();
  if (!adapter) return undefined;
  const { vendor, architecture, description } = adapter.info;
  return {
    device: await adapter.requestDevice(),
    name: [vendor, architecture, description].filter(Boolean).join(", "),
  };
}

/** Waits until everything submitted is done. */
export const settle = (device) => device.queue.onSubmittedWorkDone();
