/**
 * Segments: the shared WebAssembly memories that hold the control arena and the frames, and one agent's views of
 * them. Segment 0 has the arena low and frames after it; further segments carry frames only.
 *
 * Frame contents are plain memory: whoever holds a reference or a translation may touch them, without Atomics.
 */
import { MmError } from "../errors.ts";
import { KERNELS_WASM } from "./kernelsWasm.ts";

/** Most a segment can have: 4 GiB less one WebAssembly page, so that no byte index is 2^32 - 1. */
export const SEGMENT_LIMIT: number = 4 * 1024 ** 3 - 65536;
const WASM_PAGE = 65536;

/** What another agent needs to attach; structured-clonable. */
export interface MemoryHandle {
  readonly kind: "bifolio";
  readonly memories: readonly WebAssembly.Memory[];
  readonly module: WebAssembly.Module | undefined;
}

/** Bulk work on segment 0, byte offsets. */
export interface Kernels {
  fill(dst: number, byte: number, bytes: number): void;
  copy(dst: number, src: number, bytes: number): void;
  /** `count` page-table words from byte `ptr`: each valid one becomes (old & and) | or. Returns the OR of the old ones. */
  protectRange(ptr: number, count: number, and: number, or: number): number;
  orRange(ptr: number, count: number): number;
}

export function allocateSegment(bytes: number): WebAssembly.Memory {
  const pages = Math.ceil(bytes / WASM_PAGE);
  try {
    return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  } catch (cause) {
    throw new MmError(
      "ENOMEM",
      "createMemory",
      `the platform gives no shared memory of ${Math.ceil((pages * WASM_PAGE) / 1024 ** 2)} MiB; use a smaller budget`,
      { cause },
    );
  }
}

/** Compiles the kernels, or says undefined where WebAssembly threads are missing. */
export function compileKernels(): WebAssembly.Module | undefined {
  try {
    const binary = Uint8Array.from(atob(KERNELS_WASM), (c) => c.charCodeAt(0));
    return new WebAssembly.Module(binary);
  } catch {
    return undefined;
  }
}

export function instantiateKernels(
  module: WebAssembly.Module | undefined,
  memory: WebAssembly.Memory,
): Kernels {
  if (module) {
    return new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as Kernels;
  }
  return plainKernels(memory);
}

/** The kernels without WebAssembly: the same results, slower. */
export function plainKernels(memory: WebAssembly.Memory): Kernels {
  const bytes = new Uint8Array(memory.buffer);
  const words = new Int32Array(memory.buffer);
  return {
    fill: (dst, byte, length) => {
      bytes.fill(byte, dst >>> 0, (dst >>> 0) + length);
    },
    copy: (dst, src, length) => {
      bytes.copyWithin(dst >>> 0, src >>> 0, (src >>> 0) + length);
    },
    protectRange: (ptr, count, and, or) => {
      let seen = 0;
      for (let k = ptr >>> 2, end = k + count; k < end; k++) {
        let old = Atomics.load(words, k);
        while ((old & 1) === 1) {
          const found = Atomics.compareExchange(words, k, old, (old & and) | or);
          if (found === old) break;
          old = found;
        }
        seen |= old;
      }
      return seen;
    },
    orRange: (ptr, count) => {
      let seen = 0;
      for (let k = ptr >>> 2, end = k + count; k < end; k++) seen |= Atomics.load(words, k);
      return seen;
    },
  };
}
