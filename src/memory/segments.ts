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
  /**
   * Takes a reference to the frame of each page-table word from byte `ptr` on, as long as `word & mask` is `want`, which
   * grows by `step` from word to word, and sets the bits `soft` in it; the counters lie at `ref`, `ref + stride`, …
   * Returns how many; as ~n if the n-th frame has got one reference too many, because its word changed.
   */
  getRange(
    ptr: number,
    count: number,
    mask: number,
    want: number,
    step: number,
    soft: number,
    ref: number,
    stride: number,
  ): number;
  /** Takes one from each of `count` counters, up to one that runs out. Returns how many; as ~n if the last ran out. */
  putRange(ref: number, count: number, stride: number): number;
  /**
   * Copies `count` page-table words from byte `src` to `dst`. A valid one loses, in both places, all bits but `keep`, and
   * the counters of its frame n = `word >>> shift`, at `ref + n * stride` and `map + n * stride`, grow by one, those of
   * frame 0 excepted. Returns the OR of the words that are not valid. Preconditions: nobody else changes them.
   */
  shareRange(
    src: number,
    dst: number,
    count: number,
    keep: number,
    ref: number,
    map: number,
    stride: number,
    shift: number,
  ): number;
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
    getRange: (ptr, count, mask, want, step, soft, ref, stride) => {
      for (let n = 0; n < count; n++) {
        const at = (ptr >>> 2) + n;
        const old = Atomics.load(words, at);
        if ((old & mask) !== ((want + n * step) | 0)) return n;
        const counter = (ref + n * stride) >>> 2;
        for (let refs = Atomics.load(words, counter); ;) {
          if (refs === 0) return n;
          const found = Atomics.compareExchange(words, counter, refs, refs + 1);
          if (found === refs) break;
          refs = found;
        }
        const kept =
          (old & soft) === soft
            ? Atomics.load(words, at)
            : Atomics.compareExchange(words, at, old, old | soft);
        if (kept !== old) return ~n;
      }
      return count;
    },
    putRange: (ref, count, stride) => {
      for (let n = 0; n < count; n++) {
        if (Atomics.sub(words, (ref + n * stride) >>> 2, 1) <= 1) return ~(n + 1);
      }
      return count;
    },
    shareRange: (src, dst, count, keep, ref, map, stride, shift) => {
      let others = 0;
      for (let k = 0; k < count; k++) {
        let word = Atomics.load(words, (src >>> 2) + k);
        if ((word & 1) === 0) others |= word;
        else {
          const frame = (word >>> shift) * stride;
          if (frame !== 0) {
            Atomics.add(words, (ref + frame) >>> 2, 1);
            Atomics.add(words, (map + frame) >>> 2, 1);
          }
          word &= keep;
          Atomics.store(words, (src >>> 2) + k, word);
        }
        words[(dst >>> 2) + k] = word;
      }
      return others;
    },
  };
}
