/** Bytes of a GPU's buffer for the CPU. */
import type { ByteRange } from "./byteRanges.ts";

// By number: the globals of WebGPU are missing in Node.
const MAP_READ = 0x1;
const COPY_DST = 0x8;
const MAP_MODE_READ = 0x1;

/** Copies between buffers are in words. */
const WORD = 4;
/** Bytes that are read back at once at most. */
const PIECE_BYTES = 4 * 1024 * 1024;

interface Piece extends ByteRange {
  /** Where it lies in the buffer that is mapped; as far from a word as `start` is. */
  readonly at: number;
}

const wordBefore = (n: number): number => n - (n % WORD);
const wordAfter = (n: number): number => wordBefore(n + WORD - 1);

/** Ranges cut and put together so that each batch fits in one buffer. */
function* batchesOf(ranges: readonly ByteRange[]): Generator<Piece[]> {
  let batch: Piece[] = [];
  let used = 0;
  for (const { start, end } of ranges) {
    for (let from = start; from < end;) {
      if (used >= PIECE_BYTES) {
        yield batch;
        batch = [];
        used = 0;
      }
      const to = Math.min(end, wordBefore(from) + PIECE_BYTES - used);
      batch.push({ start: from, end: to, at: used + (from % WORD) });
      used += wordAfter(to) - wordBefore(from);
      from = to;
    }
  }
  if (batch.length > 0) yield batch;
}

/**
 * Calls `use` with the bytes of each range as they are once the GPU has done everything submitted so far; a range may come in
 * pieces. The bytes are good inside `use` only. Rejects where the device is lost, or refuses.
 */
export async function readBack(
  device: GPUDevice,
  buffer: GPUBuffer,
  ranges: readonly ByteRange[],
  use: (start: number, bytes: Uint8Array) => void,
): Promise<void> {
  for (const batch of batchesOf(ranges)) {
    const last = batch.at(-1)!;
    const size = wordAfter(last.at + last.end - last.start);
    device.pushErrorScope("out-of-memory");
    device.pushErrorScope("validation");
    const back = device.createBuffer({ label: "bifolio: read back", size, usage: MAP_READ | COPY_DST });
    const encoder = device.createCommandEncoder();
    for (const { start, end, at } of batch) {
      const [from, to] = [wordBefore(start), wordAfter(end)];
      encoder.copyBufferToBuffer(buffer, from, back, wordBefore(at), to - from);
    }
    device.queue.submit([encoder.finish()]);
    const mapped = back.mapAsync(MAP_MODE_READ).then(
      () => undefined,
      (error: unknown) => ({ error }),
    );
    // Both before anything is awaited: scopes are a stack that others use meanwhile.
    const scopes = [device.popErrorScope(), device.popErrorScope()];
    try {
      for (const error of await Promise.all(scopes)) if (error) throw new Error(error.message);
      const failed = await mapped;
      if (failed) throw failed.error;
      const bytes = new Uint8Array(back.getMappedRange());
      for (const { start, end, at } of batch) use(start, bytes.subarray(at, at + end - start));
    } finally {
      back.destroy();
    }
  }
}
