/** Making a buffer of a GPU. */
import { MmError } from "../../errors.ts";

export interface MadeBuffer {
  readonly device: GPUDevice;
  readonly buffer: GPUBuffer;
  readonly descriptor: GPUBufferDescriptor;
}

/** A buffer, or one clear sentence why there is none. */
export async function makeBuffer(
  device: GPUDevice,
  descriptor: GPUBufferDescriptor,
  operation: string,
): Promise<MadeBuffer> {
  if (typeof device?.createBuffer !== "function")
    throw new MmError("EINVAL", operation, "device must be a GPUDevice");
  const { size } = descriptor;
  const { maxBufferSize } = device.limits;
  if (size > maxBufferSize)
    throw new MmError(
      "EFBIG",
      operation,
      `a buffer of this device has at most ${maxBufferSize} bytes, not ${size}; request the device with a higher maxBufferSize, or mirror less`,
    );
  device.pushErrorScope("out-of-memory");
  device.pushErrorScope("validation");
  let buffer: GPUBuffer | undefined;
  let refused: unknown;
  try {
    buffer = device.createBuffer(descriptor);
  } catch (error) {
    refused = error;
  }
  const pop = (): Promise<GPUError | null> => device.popErrorScope().catch(() => null);
  const [invalid, outOfMemory] = await Promise.all([pop(), pop()]);
  const info = await Promise.race([device.lost, Promise.resolve(undefined)]);
  if (buffer && !invalid && !outOfMemory && !info) return { device, buffer, descriptor };
  buffer?.destroy();
  if (info) throw new MmError("EIO", operation, `the device is lost (${info.message || info.reason})`);
  if (outOfMemory)
    throw new MmError(
      "ENOMEM",
      operation,
      `the device has no memory for ${size} bytes: ${outOfMemory.message}`,
    );
  throw new MmError(
    "EINVAL",
    operation,
    `the device refused the buffer: ${invalid?.message ?? String(refused)}`,
    {
      cause: refused,
    },
  );
}
