/**
 * Lays out a new arena: agent slots, the memory header, the frame table, the heap; then the frames.
 * Also the small private arena of a notifier that serves somebody else's primary MMU.
 */
import { MmError } from "../errors.ts";
import {
  AGENT_LIMIT,
  ARENA_MAGIC,
  ARENA_VERSION,
  HDR_CORES,
  HDR_DEBUG,
  HDR_MAGIC,
  HDR_MAX_AGENTS,
  HDR_ROOT,
  HDR_VERSION,
  host,
  schedEnd,
} from "../sched/index.ts";
import { initFrames } from "./frames.ts";
import {
  CLUSTER_BYTES,
  FOLIO_WORDS,
  MEM_CLUSTER_SHIFT,
  MEM_DEVICE_END,
  MEM_DEVICE_FIRST,
  MEM_DEVICE_PAGES,
  MEM_FAULT_AROUND,
  MEM_FOLIOS,
  MEM_FRAME_BASE,
  MEM_FRAMES,
  MEM_FREE_BITS,
  MEM_HEAP,
  MEM_PAGE_SHIFT,
  MEM_READ_AHEAD,
  MEM_SEGMENT0,
  MEM_SEGMENT_FRAMES,
  MEM_TLB_ENTRIES,
  MEM_WORDS,
  MEM_ZERO_BITS,
} from "./layout.ts";
import { allocateSegment, compileKernels, type MemoryHandle, SEGMENT_LIMIT } from "./segments.ts";
import { HEAP_PAGE_WORDS, initHeap, setHeapDebug, SLAB_HEADER_WORDS } from "./slab.ts";

export interface ArenaOptions {
  /** Bytes of frames, a multiple of the page size. */
  readonly budgetBytes: number;
  readonly pageSize: number;
  /** Bytes of pages that devices can have besides, a multiple of 32 pages; default 0. */
  readonly deviceBytes?: number;
  /** Bytes of records and page tables; undefined: derived from the budget. */
  readonly arenaBytes: number | undefined;
  readonly faultAroundBytes: number;
  /** Powers of two; at least a page, the first CLUSTER_BYTES at most. */
  readonly folioBytes: number;
  readonly readAheadBytes: number;
  readonly maxAgents: number;
  readonly debug: boolean;
}

/** Fewest frames with which a fault can still find its victims: a cluster being read, one being evicted, the rest. */
export const MIN_FRAMES = 32;
/** Record memory per byte of budget, where the caller does not say: room to map about 80 times the budget. */
const HEAP_PER_BUDGET = 1 / 8;
const MIN_HEAP_BYTES = 32 * 1024 ** 2;
/** A TLB entry for every frame, within these limits. */
const MIN_TLB_ENTRIES = 1024;
const MAX_TLB_ENTRIES = 65536;

const alignUp = (n: number, to: number): number => Math.ceil(n / to) * to;

function initHeader(w: Int32Array, maxAgents: number, debug: boolean): number {
  if (SLAB_HEADER_WORDS > MEM_WORDS - MEM_HEAP) throw new RangeError("MEM_HEAP overlaps");
  const root = alignUp(schedEnd(maxAgents), 16);
  w[HDR_MAGIC] = ARENA_MAGIC;
  w[HDR_VERSION] = ARENA_VERSION;
  w[HDR_MAX_AGENTS] = maxAgents;
  w[HDR_DEBUG] = debug ? 1 : 0;
  w[HDR_CORES] = host().cores;
  w[HDR_ROOT] = root;
  return root;
}

function startHeap(w: Int32Array, root: number, first: number, end: number, debug: boolean): void {
  const arena = { words: w, doubles: new Float64Array(w.buffer, 0, Math.floor(w.buffer.byteLength / 8)) };
  initHeap(arena, root + MEM_HEAP, first, end);
  setHeapDebug(arena, root + MEM_HEAP, debug);
}

/** Makes the segments of a new memory and everything in the arena that does not depend on the mm row. */
export function createArena(options: ArenaOptions): MemoryHandle {
  const { pageSize, maxAgents, debug, budgetBytes } = options;
  if (!Number.isInteger(maxAgents) || maxAgents < 1 || maxAgents > AGENT_LIMIT) {
    throw new MmError("EINVAL", "createMemory", `maxAgents must be between 1 and ${AGENT_LIMIT}`);
  }
  const frames = Math.floor(budgetBytes / pageSize);
  const root = alignUp(schedEnd(maxAgents), 16);
  const folios = alignUp(root + MEM_WORDS, 16);
  const deviceFirst = alignUp(frames, 32);
  const devicePages = (options.deviceBytes ?? 0) / pageSize;
  const numbers = deviceFirst + devicePages;
  const freeBits = alignUp(folios + numbers * FOLIO_WORDS, 16);
  const zeroBits = alignUp(freeBits + Math.ceil(numbers / 32), 16);
  const heapFirst = alignUp(zeroBits + Math.ceil(frames / 32), HEAP_PAGE_WORDS);
  const heapBytes =
    options.arenaBytes === undefined
      ? Math.max(MIN_HEAP_BYTES, budgetBytes * HEAP_PER_BUDGET)
      : options.arenaBytes - heapFirst * 4;
  if (heapBytes < 64 * HEAP_PAGE_WORDS * 4) {
    throw new MmError(
      "EINVAL",
      "createMemory",
      `arena must be at least ${Math.ceil((heapFirst * 4) / 1024) + 256} KiB for this budget`,
    );
  }
  const arenaBytes = alignUp(heapFirst * 4 + heapBytes, Math.max(pageSize, 65536));
  if (arenaBytes + pageSize > SEGMENT_LIMIT) {
    throw new MmError(
      "ENOMEM",
      "createMemory",
      "the arena does not fit the first segment (4 GiB); use a smaller budget or arena",
    );
  }
  const segment0 = Math.min(frames, Math.floor((SEGMENT_LIMIT - arenaBytes) / pageSize));
  const segmentFrames = Math.floor(SEGMENT_LIMIT / CLUSTER_BYTES) * Math.max(1, CLUSTER_BYTES / pageSize);
  const memories = [allocateSegment(arenaBytes + segment0 * pageSize)];
  for (let left = frames - segment0; left > 0; left -= segmentFrames) {
    memories.push(allocateSegment(Math.min(left, segmentFrames) * pageSize));
  }
  const w = new Int32Array(memories[0]!.buffer);
  initHeader(w, maxAgents, debug);
  w[root + MEM_PAGE_SHIFT] = Math.log2(pageSize);
  w[root + MEM_FRAMES] = frames;
  w[root + MEM_SEGMENT0] = segment0;
  w[root + MEM_SEGMENT_FRAMES] = segmentFrames;
  w[root + MEM_FRAME_BASE] = arenaBytes / pageSize;
  w[root + MEM_FOLIOS] = folios;
  w[root + MEM_FREE_BITS] = freeBits;
  w[root + MEM_DEVICE_FIRST] = deviceFirst;
  w[root + MEM_DEVICE_PAGES] = devicePages;
  w[root + MEM_DEVICE_END] = deviceFirst;
  w[root + MEM_ZERO_BITS] = zeroBits;
  w[root + MEM_CLUSTER_SHIFT] = Math.log2(options.folioBytes / pageSize);
  w[root + MEM_READ_AHEAD] = options.readAheadBytes / pageSize;
  w[root + MEM_FAULT_AROUND] = Math.max(1, Math.floor(options.faultAroundBytes / pageSize));
  w[root + MEM_TLB_ENTRIES] = Math.min(
    MAX_TLB_ENTRIES,
    Math.max(MIN_TLB_ENTRIES, 2 ** Math.ceil(Math.log2(frames))),
  );
  initFrames(w, root);
  startHeap(w, root, heapFirst, arenaBytes / 4, debug);
  return { kind: "bifolio", memories, module: compileKernels() };
}

const LOCAL_ARENA_BYTES = 4 * 1024 ** 2;

/** A private arena for one agent, without frames: what a notifier needs where nothing is shared. */
export function createLocalArena(debug: boolean): ArrayBuffer {
  const buffer = new ArrayBuffer(LOCAL_ARENA_BYTES);
  const w = new Int32Array(buffer);
  const root = initHeader(w, 1, debug);
  startHeap(w, root, alignUp(root + MEM_WORDS, HEAP_PAGE_WORDS), LOCAL_ARENA_BYTES / 4, debug);
  return buffer;
}

/** Slot of the heap header of an arena. */
export function heapOf(words: Int32Array): number {
  return words[HDR_ROOT]! + MEM_HEAP;
}
