/** A GPU in Node: Dawn, the npm package `webgpu`, on SwiftShader where there is no other and Chromium has brought it. */
import { existsSync } from "node:fs";

const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";

/** { device, name }, or { why } where there is no GPU. */
export async function openDevice() {
  if (process.env.VK_ICD_FILENAMES === undefined && existsSync(SWIFTSHADER))
    process.env.VK_ICD_FILENAMES = SWIFTSHADER;
  try {
    const { create, globals } = await import("webgpu");
    Object.assign(globalThis, globals);
    // Kept: a GPU object that is collected takes its adapters with it.
    globalThis.bifolioGpu = create([]);
    const adapter = await globalThis.bifolioGpu.requestAdapter();
    if (!adapter) return { why: "no GPU adapter; install a Vulkan driver, or chromium and libvulkan1" };
    return { device: await adapter.requestDevice(), name: adapter.info.description || adapter.info.vendor };
  } catch (error) {
    return { why: `the npm package webgpu cannot be used: ${error.message}` };
  }
}

/** Counts the bytes of writeBuffer() of a device's queue, whoever calls it. */
export function countUploads(device) {
  const { queue } = device;
  const plain = queue.writeBuffer.bind(queue);
  const counted = { bytes: 0, calls: 0 };
  queue.writeBuffer = (buffer, offset, data, dataOffset = 0, size) => {
    const unit = data.BYTES_PER_ELEMENT ?? 1;
    counted.bytes += size === undefined ? data.byteLength - dataOffset * unit : size * unit;
    counted.calls++;
    return plain(buffer, offset, data, dataOffset, size);
  };
  return counted;
}

/** Waits until everything submitted is done. */
export const settle = (device) => device.queue.onSubmittedWorkDone();
