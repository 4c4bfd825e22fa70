/** What the mirrors take for granted of WebGPU in Node. */
import { expect, test } from "vitest";
import { useGpu } from "../lib/gpu.ts";

const gpu = useGpu();

test("bytes written to a buffer come back", async () => {
  const device = await gpu.device();
  const usage = GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const buffer = device.createBuffer({ size: 4096, usage });
  const back = device.createBuffer({ size: 4096, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const bytes = Uint8Array.from({ length: 4096 }, (_, k) => k * 7);
  device.queue.writeBuffer(buffer, 0, bytes);
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, back, 0, 4096);
  device.queue.submit([encoder.finish()]);
  await back.mapAsync(GPUMapMode.READ);
  expect(new Uint8Array(back.getMappedRange().slice(0))).toEqual(bytes);
  back.unmap();
  device.destroy();
});
