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
   * grows by `step` from word to word, and sets the bits `soft` in it; the counters lie at `ref`, `ref + stride`, … Stops
   * where one is 0, or its `bits` are `most` or more. Returns how many; as ~n if the n-th frame has got one reference too many, because its word changed.
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
    bits: number,
    most: number,
  ): number;
  /** Takes one from each of `count` counters, up to one that runs out. Returns how many; as ~n if the last ran out. */
  putRange(ref: number, count: number, stride: number): number;
  /**
   * 1 if the frame n = `word >>> shift` of one of `count` valid page-table words from byte `ptr` on, frame 0 excepted, has
   * one of `bits` in its counter, at `counts + n * stride`; else 0.
   */
  heldRange(ptr: number, count: number, counts: number, stride: number, shift: number, bits: number): number;
  /**
   * Copies `count` page-table words from byte `src` to `dst`. A valid one loses, in both places, all bits but `keep`, and
   * the counter of its frame n = `word >>> shift`, at `counts + n * stride`, grows by `one`, that of frame 0 excepted. Returns the OR of the words that are not valid. Preconditions: nobody else changes them.
   */
  shareRange(
    src: number,
    dst: number,
    count: number,
    keep: number,
    counts: number,
    stride: number,
    shift: number,
    one: number,
  ): number;
  /**
   * `count` page-table words from byte `ptr`: each valid one becomes `(old & keep) | busy`, and goes to the word of `out`
   * with the same number, where the others have 0. Returns how many; as ~n if one that is not valid has the bit `wait`.
   */
  takeRange(ptr: number, count: number, keep: number, busy: number, wait: number, out: number): number;
  /**
   * What takeRange() took: the words become 0, and the counter of the frame `old >>> shift` of each loses `one`, but
   * that of frame 0; first it gets the flags `dirty` if `old & mask` is `want`. The words of frame 0 lie at `flags` and
   * `counts`, those of the next `stride` bytes further. Returns how many came to 0; they are listed from `olds` on.
   */
  dropRange(
    ptr: number,
    olds: number,
    count: number,
    shift: number,
    mask: number,
    want: number,
    stride: number,
    flags: number,
    dirty: number,
    counts: number,
    one: number,
  ): number;
  /**
   * Frees the frames listed: the words at `a`, `b` and `c` of each become 0, its bit at `zero` 0 and then that at `free` 1.
   * Returns 0, or a frame that was free before.
   */
  freeRange(
    list: number,
    count: number,
    stride: number,
    a: number,
    b: number,
    c: number,
    free: number,
    zero: number,
  ): number;
  /**
   * Of an own table of pairs, tag `n & mask` becomes `none` if it is `n` or `n | far`, for `count` numbers from `first` on.
   * Who loads a tag atomically and finds `none` sees all stores before.
   */
  dropTags(table: number, mask: number, first: number, count: number, far: number, none: number): void;
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
    getRange: (ptr, count, mask, want, step, soft, ref, stride, bits, most) => {
      for (let n = 0; n < count; n++) {
        const at = (ptr >>> 2) + n;
        const old = Atomics.load(words, at);
        if ((old & mask) !== ((want + n * step) | 0)) return n;
        const counter = (ref + n * stride) >>> 2;
        for (let refs = Atomics.load(words, counter); ;) {
          if (refs === 0 || (refs & bits) >= most) return n;
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
    heldRange: (ptr, count, counts, stride, shift, bits) => {
      for (let k = ptr >>> 2, end = k + count; k < end; k++) {
        const word = Atomics.load(words, k);
        const frame = (word >>> shift) * stride;
        if ((word & 1) === 0 || frame === 0) continue;
        if ((Atomics.load(words, (counts + frame) >>> 2) & bits) !== 0) return 1;
      }
      return 0;
    },
    shareRange: (src, dst, count, keep, counts, stride, shift, one) => {
      let others = 0;
      for (let k = 0; k < count; k++) {
        let word = Atomics.load(words, (src >>> 2) + k);
        if ((word & 1) === 0) others |= word;
        else {
          const frame = (word >>> shift) * stride;
          if (frame !== 0) Atomics.add(words, (counts + frame) >>> 2, one);
          word &= keep;
          Atomics.store(words, (src >>> 2) + k, word);
        }
        words[(dst >>> 2) + k] = word;
      }
      return others;
    },
    takeRange: (ptr, count, keep, busy, wait, out) => {
      let taken = 0;
      let blocked = 0;
      for (let n = 0; n < count; n++) {
        const at = (ptr >>> 2) + n;
        let old = Atomics.load(words, at);
        while ((old & 1) === 1) {
          const found = Atomics.compareExchange(words, at, old, (old & keep) | busy);
          if (found === old) break;
          old = found;
        }
        const valid = (old & 1) === 1;
        if (valid) taken++;
        else blocked |= old & wait;
        words[(out >>> 2) + n] = valid ? old : 0;
      }
      return blocked === 0 ? taken : ~taken;
    },
    dropRange: (ptr, olds, count, shift, mask, want, stride, flags, dirty, counts, one) => {
      let ended = 0;
      for (let n = 0; n < count; n++) {
        const old = words[(olds >>> 2) + n]!;
        if (old === 0) continue;
        Atomics.store(words, (ptr >>> 2) + n, 0);
        const pfn = old >>> shift;
        if (pfn === 0) continue;
        if ((old & mask) === want) Atomics.or(words, (flags + pfn * stride) >>> 2, dirty);
        if (Atomics.sub(words, (counts + pfn * stride) >>> 2, one) <= one)
          words[(olds >>> 2) + ended++] = pfn;
      }
      return ended;
    },
    freeRange: (list, count, stride, a, b, c, free, zero) => {
      let wrong = 0;
      for (let n = 0; n < count; n++) {
        const pfn = words[(list >>> 2) + n]!;
        for (const field of [a, b, c]) words[(field + pfn * stride) >>> 2] = 0;
        const bit = 1 << (pfn & 31);
        Atomics.and(words, (zero >>> 2) + (pfn >>> 5), ~bit);
        if ((Atomics.or(words, (free >>> 2) + (pfn >>> 5), bit) & bit) !== 0) wrong = pfn;
      }
      return wrong;
    },
    dropTags: (table, mask, first, count, far, none) => {
      for (let n = first; n < first + count; n++) {
        const k = (table >>> 2) + 2 * (n & mask);
        if (words[k] === n || words[k] === (n | far)) Atomics.store(words, k, none);
      }
    },
  };
}
