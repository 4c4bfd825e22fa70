/**
 * Frames: the frame table, references, folio locks, and the free list that several agents use at once.
 * Linux: struct page / folio, and the page allocator with its per-CPU lists.
 *
 * Invariants (checkFrames() verifies them in a quiescent memory)
 *   F1  A frame is in the free bitmap if and only if its reference count is 0.
 *   F2  A bit in the zero bitmap of a free frame means that the frame holds zeros.
 *   F3  All frames less the sum of MEM_USED is the number of bits in the free bitmap.
 *   F5  A page of a device is one of its free ones if and only if its reference count is 0.
 *   F4  A frame of the page cache has one reference from its file besides those of its mappings. There are never more
 *       mappings or references than their bits can count.
 *
 * Allocation clears bits of the free bitmap by compare-exchange. Each agent prefers one group of 32 frames, which
 * others leave alone while they find something else: its stock. A frame has no other owner while it is free, so the
 * death of an agent loses at most what was on its way.
 */
import { MmError, panic } from "../errors.ts";
import { type Agent, type Op, QUEUE_WORDS, waitOp, wakeQueue } from "../sched/index.ts";
import { LockRank, lockdepAcquire, lockdepRelease } from "../sync/index.ts";
import { type Pfn, WORD_BYTES } from "../units.ts";
import {
  AGENT_LIMIT_WORDS,
  type Folio,
  FOLIO_COUNT,
  FOLIO_FLAGS,
  FOLIO_INDEX,
  FOLIO_MAPPING,
  FOLIO_QUEUE_COUNT,
  FOLIO_WORDS,
  MAP_ONE,
  MAP_SHIFT,
  MEM_AGENTS,
  MEM_CLUSTER_SHIFT,
  MEM_DEVICE_END,
  MEM_DEVICE_FIRST,
  MEM_DEVICE_PAGES,
  MEM_FOLIO_QUEUES,
  MEM_FOLIOS,
  MEM_FRAME_BASE,
  MEM_FRAMES,
  MEM_FREE_BITS,
  MEM_FREE_HINT,
  MEM_PAGE_SHIFT,
  MEM_PEAK,
  MEM_SEGMENT0,
  MEM_SEGMENT_FRAMES,
  MEM_USED,
  MEM_ZERO_BITS,
  MOST_MAPPINGS,
  MOST_REFS,
  PG_DIRTY,
  PG_LOCK_MASK,
  PG_LOCK_SHIFT,
  PG_RESERVED,
  REFS_MASK,
  ZERO_PFN,
} from "./layout.ts";
import { type Kernels, plainKernels } from "./segments.ts";

/** Frames in a word of the bitmaps. */
const GROUP = 32;
const GROUP_SHIFT = 5;
/** What freed frames are filled with in debug mode, so that a use after free shows. */
export const POISON_BYTE = 0xe5;

/** One agent's way to the frames: views of all segments, constants of the memory. */
export class Frames {
  readonly agent: Agent;
  readonly header: number;
  readonly pageShift: number;
  readonly pageSize: number;
  readonly count: number;
  readonly clusterFrames: number;
  /** Number of the first page of a device; those below, from `count` on, are nobody's. */
  readonly deviceFirst: number;
  /** Most pages that devices can have together. */
  readonly devicePages: number;
  readonly kernels: Kernels;
  readonly memories: readonly WebAssembly.Memory[];
  readonly segmentBytes: readonly Uint8Array[];
  readonly segmentViews: readonly DataView[];
  readonly #folios: number;
  readonly #segment0: number;
  readonly #segmentFrames: number;
  readonly #baseBytes: number;
  readonly #freeBits: number;
  readonly #zeroBits: number;
  readonly #groups: number;
  #clusterHint = 0;

  constructor(
    agent: Agent,
    header: number,
    memories: readonly WebAssembly.Memory[],
    kernels: Kernels | undefined,
  ) {
    const field = (k: number): number => Atomics.load(agent.words, header + k);
    this.agent = agent;
    this.header = header;
    this.pageShift = field(MEM_PAGE_SHIFT);
    this.pageSize = 2 ** this.pageShift;
    this.count = field(MEM_FRAMES);
    this.clusterFrames = 2 ** field(MEM_CLUSTER_SHIFT);
    this.deviceFirst = field(MEM_DEVICE_FIRST);
    this.devicePages = field(MEM_DEVICE_PAGES);
    this.memories = memories;
    this.segmentBytes = memories.map((m) => new Uint8Array(m.buffer));
    this.segmentViews = memories.map((m) => new DataView(m.buffer));
    this.kernels = kernels ?? plainKernels(memories[0]!);
    this.#folios = field(MEM_FOLIOS);
    this.#segment0 = field(MEM_SEGMENT0);
    this.#segmentFrames = field(MEM_SEGMENT_FRAMES);
    this.#baseBytes = field(MEM_FRAME_BASE) * this.pageSize;
    this.#freeBits = field(MEM_FREE_BITS);
    this.#zeroBits = field(MEM_ZERO_BITS);
    this.#groups = Math.ceil(this.count / GROUP);
  }

  folioAt(pfn: number): Folio {
    return (this.#folios + pfn * FOLIO_WORDS) as Folio;
  }

  pfnOf(folio: Folio): Pfn {
    return ((folio - this.#folios) / FOLIO_WORDS) as Pfn;
  }

  /** Segment that holds a frame. */
  segmentOf(pfn: number): number {
    return pfn < this.#segment0 ? 0 : 1 + Math.floor((pfn - this.#segment0) / this.#segmentFrames);
  }

  /** Byte at which a frame lies in its segment. */
  offsetOf(pfn: number): number {
    return pfn < this.#segment0
      ? this.#baseBytes + pfn * this.pageSize
      : ((pfn - this.#segment0) % this.#segmentFrames) * this.pageSize;
  }

  /** The frame that lies at a byte of segment 0. */
  pfnAt(offset: number): Pfn {
    return ((offset - this.#baseBytes) / this.pageSize) as Pfn;
  }

  /** True if frame `pfn + 1` directly follows `pfn` in the same segment. */
  adjacent(pfn: number, next: number): boolean {
    return next === pfn + 1 && this.segmentOf(pfn) === this.segmentOf(next);
  }

  /** Frames from `pfn` to the end of its segment. */
  untilSegmentEnd(pfn: number): number {
    if (pfn < this.#segment0) return this.#segment0 - pfn;
    return this.#segmentFrames - ((pfn - this.#segment0) % this.#segmentFrames);
  }

  /** The bytes of `pages` frames that lie together. */
  bytesOf(pfn: number, pages = 1): Uint8Array {
    const offset = this.offsetOf(pfn);
    return this.segmentBytes[this.segmentOf(pfn)]!.subarray(offset, offset + pages * this.pageSize);
  }

  zeroFrame(pfn: number): void {
    const offset = this.offsetOf(pfn);
    if (pfn < this.#segment0) this.kernels.fill(offset, 0, this.pageSize);
    else this.segmentBytes[this.segmentOf(pfn)]!.fill(0, offset, offset + this.pageSize);
  }

  copyFrame(to: number, from: number): void {
    if (to < this.#segment0 && from < this.#segment0) {
      this.kernels.copy(this.offsetOf(to), this.offsetOf(from), this.pageSize);
    } else this.bytesOf(to).set(this.bytesOf(from));
  }

  // ---- free frames -------------------------------------------------------------------------------------------

  /** Exact at rest; while others allocate, as good as any number that is old when it is read. */
  get free(): number {
    const w = this.agent.words;
    let used = 1; // the zero page
    for (let slot = 0; slot < AGENT_LIMIT_WORDS; slot++) used += w[this.header + MEM_USED + slot]!;
    return this.count - used;
  }

  #countUsed(pages: number): void {
    const at = this.header + MEM_USED + this.agent.slot;
    this.agent.words[at] = this.agent.words[at]! + pages;
  }

  #notePeak(): void {
    const w = this.agent.words;
    // The counters are read one after the other: a frame that goes from one agent to another meanwhile may count twice.
    const used = Math.min(this.count, this.count - this.free);
    for (let peak = Atomics.load(w, this.header + MEM_PEAK); used > peak;) {
      const seen = Atomics.compareExchange(w, this.header + MEM_PEAK, peak, used);
      if (seen === peak) break;
      peak = seen;
    }
  }

  /**
   * Takes a frame, with one reference. `zeroed`: it holds zeros. Returns its number, or 0 if none is free.
   * The caller owns the reference.
   */
  tryAlloc(zeroed: boolean): Pfn {
    const w = this.agent.words;
    const mine = this.header + MEM_AGENTS + this.agent.slot;
    for (;;) {
      const group = w[mine]! - 1; // written by this agent only
      if (group >= 0) {
        const pfn = this.#takeFrom(group, zeroed);
        if (pfn !== 0) return pfn;
      }
      const next = this.#findGroup();
      if (next < 0) return 0 as Pfn;
      Atomics.store(w, mine, next + 1);
    }
  }

  #takeFrom(group: number, zeroed: boolean): Pfn {
    const w = this.agent.words;
    const word = this.#freeBits + group;
    for (let bits = w[word]!; bits !== 0;) {
      const zeros = w[this.#zeroBits + group]!;
      // Frames that hold zeros for those who want them, the others for those who overwrite them.
      const preferred = bits & (zeroed ? zeros : ~zeros);
      const choice = preferred !== 0 ? preferred : bits;
      const bit = choice & -choice;
      const seen = Atomics.compareExchange(w, word, bits, bits & ~bit);
      if (seen !== bits) {
        bits = seen;
        continue;
      }
      const pfn = (group * GROUP + (31 - Math.clz32(bit))) as Pfn;
      this.#took(pfn, 1);
      // Read again now that the frame is ours: its zero bit changes only while it is somebody's.
      if (zeroed && (Atomics.load(w, this.#zeroBits + group) & bit) === 0) this.zeroFrame(pfn);
      return pfn;
    }
    return 0 as Pfn;
  }

  #took(pfn: number, pages: number): void {
    const w = this.agent.words;
    for (let k = 0; k < pages; k++) {
      const count = this.folioAt(pfn + k) + FOLIO_COUNT;
      if (this.agent.debug && Atomics.load(w, count) !== 0) panic(`F1: frame ${pfn + k} was free and in use`);
      // Plain: nobody finds the frame before whoever took it publishes it with an atomic operation.
      w[count] = 1;
    }
    this.#countUsed(pages);
  }

  /** A group with free frames, preferably one that no other agent allocates from; -1 if there is none. */
  #findGroup(): number {
    const w = this.agent.words;
    this.#notePeak();
    if (this.free <= 0) return -1;
    const start = Atomics.load(w, this.header + MEM_FREE_HINT);
    let others = -1;
    for (let k = 0; k < this.#groups; k++) {
      const group = (start + k) % this.#groups;
      if (Atomics.load(w, this.#freeBits + group) === 0) continue;
      others = group;
      if (!this.#preferredByOther(group)) break;
    }
    // The groups up to here are full: who comes next need not look at them again.
    if (others >= 0) w[this.header + MEM_FREE_HINT] = others;
    return others;
  }

  #preferredByOther(group: number): boolean {
    const { agent } = this;
    const top = agent.top();
    for (let slot = 0; slot < top; slot++) {
      if (slot !== agent.slot && Atomics.load(agent.words, this.header + MEM_AGENTS + slot) === group + 1)
        return true;
    }
    return false;
  }

  /** Takes a whole aligned cluster, a reference each, contents undefined. Returns its first frame, or 0. */
  tryAllocCluster(): Pfn {
    const n = this.clusterFrames;
    if (n === 1) return this.tryAlloc(false);
    if (this.free < n) return 0 as Pfn;
    const w = this.agent.words;
    const all = n === GROUP ? -1 : 2 ** n - 1;
    for (let k = 0; k < this.#groups; k++) {
      const group = (this.#clusterHint + k) % this.#groups;
      let bits = Atomics.load(w, this.#freeBits + group);
      for (let shift = 0; shift < GROUP; shift += n) {
        const mask = all << shift;
        while ((bits & mask) === mask) {
          const seen = Atomics.compareExchange(w, this.#freeBits + group, bits, bits & ~mask);
          if (seen === bits) {
            this.#clusterHint = group;
            const pfn = (group * GROUP + shift) as Pfn;
            this.#took(pfn, n);
            this.#notePeak();
            return pfn;
          }
          bits = seen;
        }
      }
    }
    return 0 as Pfn;
  }

  /** Zeroes up to `limit` free frames, so that later faults need not. Returns how many. */
  prezero(limit: number): number {
    const w = this.agent.words;
    const group = Atomics.load(w, this.header + MEM_AGENTS + this.agent.slot) - 1;
    if (group < 0) return 0;
    let done = 0;
    for (let bits = Atomics.load(w, this.#freeBits + group); done < limit;) {
      const candidates = bits & ~Atomics.load(w, this.#zeroBits + group);
      if (candidates === 0) break;
      const bit = candidates & -candidates;
      const seen = Atomics.compareExchange(w, this.#freeBits + group, bits, bits & ~bit);
      if (seen !== bits) {
        bits = seen;
        continue;
      }
      this.zeroFrame(group * GROUP + (31 - Math.clz32(bit)));
      Atomics.or(w, this.#zeroBits + group, bit);
      bits = Atomics.or(w, this.#freeBits + group, bit) | bit;
      done++;
    }
    return done;
  }

  // ---- references --------------------------------------------------------------------------------------------

  /** Takes a reference unless the frame is free. */
  tryGet(pfn: number): boolean {
    const w = this.agent.words;
    const word = this.folioAt(pfn) + FOLIO_COUNT;
    for (let count = Atomics.load(w, word); count !== 0;) {
      const seen = Atomics.compareExchange(w, word, count, count + 1);
      if (seen === count) return true;
      count = seen;
    }
    return false;
  }

  /** Takes another reference. Preconditions: the caller holds one, or a translation. Errors: ENOMEM if there are too many. */
  get(pfn: number): void {
    const word = this.folioAt(pfn) + FOLIO_COUNT;
    if ((Atomics.add(this.agent.words, word, 1) & REFS_MASK) < MOST_REFS) return;
    Atomics.sub(this.agent.words, word, 1);
    throw new MmError(
      "ENOMEM",
      "access",
      `one page is held ${MOST_REFS} times; end the turn, or call memory.poll(), to give spans back`,
    );
  }

  /**
   * Makes a frame that nobody else can find yet the contents of one page-table entry, which takes the caller's reference,
   * and says whose page it is.
   */
  initMapped(pfn: number, flags: number, mapping: number, index: number): void {
    const folio = this.folioAt(pfn);
    const w = this.agent.words;
    w[folio + FOLIO_FLAGS] = flags;
    w[folio + FOLIO_COUNT] = MAP_ONE;
    w[folio + FOLIO_MAPPING] = mapping;
    w[folio + FOLIO_INDEX] = index;
  }

  /** Gives a reference back; the last one frees the frame. */
  put(pfn: number): void {
    if (pfn === ZERO_PFN) return;
    const before = Atomics.sub(this.agent.words, this.folioAt(pfn) + FOLIO_COUNT, 1);
    if ((before & REFS_MASK) <= 1) this.#ranOut(pfn, before, 1);
  }

  /**
   * Takes a reference to the frames from `pfn` on that page-table words map, which begin at word `entry`: up to `count`,
   * as long as `word & mask` is `want`, growing by `step`. Sets the bits `soft`. Returns how many. Linux: gup_fast().
   */
  getMapped(
    pfn: number,
    entry: number,
    count: number,
    { mask, want, step, soft }: { mask: number; want: number; step: number; soft: number },
  ): number {
    const ref = (this.folioAt(pfn) + FOLIO_COUNT) * WORD_BYTES;
    const n = this.kernels.getRange(
      entry * WORD_BYTES,
      count,
      mask,
      want,
      step,
      soft,
      ref,
      FOLIO_WORDS * WORD_BYTES,
      REFS_MASK,
      MOST_REFS,
    );
    if (n >= 0) return n;
    this.put(pfn + ~n);
    return ~n;
  }

  /** True if a frame that one of `count` page-table words from word `entry` on maps has references besides its mappings. */
  anyHeld(entry: number, count: number, shift: number): boolean {
    const counts = (this.#folios + FOLIO_COUNT) * WORD_BYTES;
    const stride = FOLIO_WORDS * WORD_BYTES;
    return this.kernels.heldRange(entry * WORD_BYTES, count, counts, stride, shift, REFS_MASK) !== 0;
  }

  /**
   * Copies `count` page-table words from word `from` to word `to`, with a mapping more for each frame; valid words keep only the bits `keep` in both places. Returns the OR of the others. Preconditions: nobody else changes them.
   */
  shareEntries(from: number, to: number, count: number, keep: number, shift: number): number {
    return this.kernels.shareRange(
      from * WORD_BYTES,
      to * WORD_BYTES,
      count,
      keep,
      (this.#folios + FOLIO_COUNT) * WORD_BYTES,
      FOLIO_WORDS * WORD_BYTES,
      shift,
      MAP_ONE,
    );
  }

  /** Gives a reference to each of `pages` frames back. */
  putRun(pfn: number, pages: number): void {
    for (let done = 0; done < pages;) {
      const ref = (this.folioAt(pfn + done) + FOLIO_COUNT) * WORD_BYTES;
      const n = this.kernels.putRange(ref, pages - done, FOLIO_WORDS * WORD_BYTES);
      done += n < 0 ? ~n : n;
      if (n < 0) this.#release(pfn + done - 1);
    }
  }

  /**
   * Gives back what page-table words mapped that kernels.takeRange() took: `count` words from `entry` on, their old values
   * from word `olds` on, which this overwrites; they may be the words themselves. The words become 0. A frame whose old value has `want` in `mask` becomes dirty.
   */
  dropMapped(
    entry: number,
    olds: number,
    count: number,
    { shift, mask, want }: { shift: number; mask: number; want: number },
  ): void {
    const { kernels, agent } = this;
    const ended = kernels.dropRange(
      entry * WORD_BYTES,
      olds * WORD_BYTES,
      count,
      shift,
      mask,
      want,
      FOLIO_WORDS * WORD_BYTES,
      (this.#folios + FOLIO_FLAGS) * WORD_BYTES,
      PG_DIRTY,
      (this.#folios + FOLIO_COUNT) * WORD_BYTES,
      MAP_ONE,
    );
    if (agent.debug) for (let k = 0; k < ended; k++) this.#release(agent.words[olds + k]!);
    else if (ended > 0) this.#releaseListed(olds, ended);
  }

  /** As #release() for `count` frames, listed from word `list` on. */
  #releaseListed(list: number, count: number): void {
    const w = this.agent.words;
    const hint = w[list]! >>> GROUP_SHIFT;
    const twice = this.kernels.freeRange(
      list * WORD_BYTES,
      count,
      FOLIO_WORDS * WORD_BYTES,
      (this.#folios + FOLIO_FLAGS) * WORD_BYTES,
      (this.#folios + FOLIO_MAPPING) * WORD_BYTES,
      (this.#folios + FOLIO_INDEX) * WORD_BYTES,
      this.#freeBits * WORD_BYTES,
      this.#zeroBits * WORD_BYTES,
    );
    if (twice !== 0) panic(`F1: frame ${twice} freed twice`);
    this.#countUsed(-count);
    w[this.header + MEM_FREE_HINT] = hint;
  }

  /** The last of its kind was given back: frees the frame if there is nothing of the other kind. */
  #ranOut(pfn: number, before: number, one: number): void {
    if (before === one) this.#release(pfn);
    else if ((one === 1 ? before & REFS_MASK : before >> MAP_SHIFT) === 0)
      panic(`F4: frame ${pfn} has no reference left to give back`);
  }

  /** Drops the last reference if it is the only one: nobody can find the frame any more. */
  tryFreeze(pfn: number): boolean {
    const word = this.folioAt(pfn) + FOLIO_COUNT;
    return Atomics.compareExchange(this.agent.words, word, 1, 0) === 1;
  }

  /** Puts a frozen frame on the free list. */
  freeFrozen(pfn: number): void {
    this.#release(pfn);
  }

  #release(pfn: number): void {
    const w = this.agent.words;
    const folio = this.folioAt(pfn);
    const device = this.isDevice(pfn);
    // Plain: the frame is nobody's; setting its free bit publishes them.
    w[folio + FOLIO_FLAGS] = 0;
    w[folio + FOLIO_MAPPING] = 0;
    w[folio + FOLIO_INDEX] = 0;
    if (this.agent.debug) {
      if (Atomics.load(w, folio + FOLIO_COUNT) !== 0) panic(`F4: frame ${pfn} freed while it is in use`);
      if (!device) this.bytesOf(pfn).fill(POISON_BYTE);
    }
    const group = pfn >>> GROUP_SHIFT;
    const bit = 1 << (pfn & (GROUP - 1));
    if (device) {
      if ((Atomics.or(w, this.#freeBits + group, bit) & bit) !== 0) panic(`F5: page ${pfn} freed twice`);
      return;
    }
    if ((w[this.#zeroBits + group]! & bit) !== 0) Atomics.and(w, this.#zeroBits + group, ~bit);
    if ((Atomics.or(w, this.#freeBits + group, bit) & bit) !== 0) panic(`F1: frame ${pfn} freed twice`);
    this.#countUsed(-1);
    w[this.header + MEM_FREE_HINT] = group; // a hint
  }

  /** All references, those of mappings included. */
  refcount(pfn: number): number {
    const count = Atomics.load(this.agent.words, this.folioAt(pfn) + FOLIO_COUNT);
    return (count & REFS_MASK) + (count >> MAP_SHIFT);
  }

  /** Makes the caller's reference that of a mapping. False if it is mapped too often; then the caller still has it. */
  tryMap(pfn: number): boolean {
    const word = this.folioAt(pfn) + FOLIO_COUNT;
    if (Atomics.add(this.agent.words, word, MAP_ONE - 1) >> MAP_SHIFT < MOST_MAPPINGS) return true;
    this.unmap(pfn);
    return false;
  }

  /** Counts another mapping, with its reference. Preconditions: it is mapped, and less often than can be counted. */
  addMapping(pfn: number): void {
    Atomics.add(this.agent.words, this.folioAt(pfn) + FOLIO_COUNT, MAP_ONE);
  }

  /** Makes the reference of a mapping the caller's. */
  unmap(pfn: number): void {
    Atomics.sub(this.agent.words, this.folioAt(pfn) + FOLIO_COUNT, MAP_ONE - 1);
  }

  /** Gives the reference of a mapping back; the last one frees the frame. */
  putMapped(pfn: number): void {
    const before = Atomics.sub(this.agent.words, this.folioAt(pfn) + FOLIO_COUNT, MAP_ONE);
    if (before < 2 * MAP_ONE) this.#ranOut(pfn, before, MAP_ONE);
  }

  mapcount(pfn: number): number {
    return Atomics.load(this.agent.words, this.folioAt(pfn) + FOLIO_COUNT) >> MAP_SHIFT;
  }

  // ---- pages of devices --------------------------------------------------------------------------------------

  /** True for the number of a page that has its bytes in a device. */
  isDevice(pfn: number): boolean {
    return pfn >= this.deviceFirst;
  }

  /** Behind the last number that a device ever had. */
  get deviceEnd(): number {
    return Atomics.load(this.agent.words, this.header + MEM_DEVICE_END);
  }

  /** Makes free pages of `[first, first + count)`, multiples of 32. Preconditions: no device has them. */
  addDevicePages(first: number, count: number): void {
    const w = this.agent.words;
    w.fill(-1, this.#freeBits + (first >>> GROUP_SHIFT), this.#freeBits + ((first + count) >>> GROUP_SHIFT));
    if (first + count > this.deviceEnd) Atomics.store(w, this.header + MEM_DEVICE_END, first + count);
  }

  /** Undoes addDevicePages(). Preconditions: all are free. */
  removeDevicePages(first: number, count: number): void {
    this.agent.words.fill(
      0,
      this.#freeBits + (first >>> GROUP_SHIFT),
      this.#freeBits + ((first + count) >>> GROUP_SHIFT),
    );
  }

  /** Takes a free page of a device's, which has the pages `[first, first + count)`, with one reference; 0 if none is free. */
  tryAllocDevice(first: number, count: number): Pfn {
    const w = this.agent.words;
    const end = this.#freeBits + ((first + count) >>> GROUP_SHIFT);
    for (let word = this.#freeBits + (first >>> GROUP_SHIFT); word < end; word++) {
      for (let bits = Atomics.load(w, word); bits !== 0; bits = Atomics.load(w, word)) {
        const bit = bits & -bits;
        if (Atomics.compareExchange(w, word, bits, bits & ~bit) !== bits) continue;
        const pfn = ((word - this.#freeBits) * GROUP + (31 - Math.clz32(bit))) as Pfn;
        Atomics.store(w, this.folioAt(pfn) + FOLIO_COUNT, 1);
        return pfn;
      }
    }
    return 0 as Pfn;
  }

  /** How many of a device's pages are free. */
  freeDevicePages(first: number, count: number): number {
    let free = 0;
    for (let pfn = first; pfn < first + count; pfn++) if (this.#isFree(pfn)) free++;
    return free;
  }

  #isFree(pfn: number): boolean {
    const word = this.#freeBits + (pfn >>> GROUP_SHIFT);
    return (Atomics.load(this.agent.words, word) & (1 << (pfn & (GROUP - 1)))) !== 0;
  }

  // ---- flags and the folio lock ------------------------------------------------------------------------------

  flags(pfn: number): number {
    return Atomics.load(this.agent.words, this.folioAt(pfn) + FOLIO_FLAGS);
  }

  /** Sets flags; returns those that were set before. */
  setFlags(pfn: number, flags: number): number {
    return Atomics.or(this.agent.words, this.folioAt(pfn) + FOLIO_FLAGS, flags);
  }

  clearFlags(pfn: number, flags: number): number {
    return Atomics.and(this.agent.words, this.folioAt(pfn) + FOLIO_FLAGS, ~flags);
  }

  /** Slot of the file, with PG_ANON of the anon_vma, whose page a frame holds, 0 = none. Stable under the folio lock. */
  mapping(pfn: number): number {
    return Atomics.load(this.agent.words, this.folioAt(pfn) + FOLIO_MAPPING);
  }

  index(pfn: number): number {
    return Atomics.load(this.agent.words, this.folioAt(pfn) + FOLIO_INDEX);
  }

  setMapping(pfn: number, mapping: number, index: number): void {
    const folio = this.folioAt(pfn);
    Atomics.store(this.agent.words, folio + FOLIO_MAPPING, mapping);
    Atomics.store(this.agent.words, folio + FOLIO_INDEX, index);
  }

  /** Wait queue of everything that happens to a frame: unlocked, written back. Shared by frames of one hash. */
  queueOf(pfn: number): number {
    return this.header + MEM_FOLIO_QUEUES + (pfn & (FOLIO_QUEUE_COUNT - 1)) * QUEUE_WORDS;
  }

  tryLockFolio(pfn: number): boolean {
    const { agent } = this;
    const word = this.folioAt(pfn) + FOLIO_FLAGS;
    for (let flags = Atomics.load(agent.words, word); (flags & PG_LOCK_MASK) === 0;) {
      const seen = Atomics.compareExchange(
        agent.words,
        word,
        flags,
        flags | ((agent.slot + 1) << PG_LOCK_SHIFT),
      );
      if (seen === flags) {
        if (agent.debug) lockdepAcquire(agent, LockRank.folioLock);
        return true;
      }
      flags = seen;
    }
    return false;
  }

  /** Owner id of the agent that holds the folio lock, 0 if none. */
  folioOwner(pfn: number): number {
    const slot = ((this.flags(pfn) & PG_LOCK_MASK) >>> PG_LOCK_SHIFT) - 1;
    return slot < 0 ? 0 : this.agent.ownerAt(slot);
  }

  *lockFolioOp(pfn: number): Op<void> {
    yield* waitOp(
      this.queueOf(pfn),
      () => this.tryLockFolio(pfn),
      `the lock of frame ${pfn}`,
      () => this.folioOwner(pfn),
    );
  }

  unlockFolio(pfn: number): void {
    if (this.agent.debug) lockdepRelease(this.agent, LockRank.folioLock);
    this.clearFlags(pfn, PG_LOCK_MASK);
    wakeQueue(this.agent.words, this.queueOf(pfn));
  }

  /** True while a folio is locked by an agent that lives. */
  isLocked(pfn: number): boolean {
    return (this.flags(pfn) & PG_LOCK_MASK) !== 0;
  }

  /** A frame that is locked, -1 if none is. */
  findLocked(): number {
    for (let pfn = 0; pfn < this.count; pfn++) if (this.isLocked(pfn)) return pfn;
    return -1;
  }

  /** First frame whose lock slot `slot` holds, -1 if none: for the reaper. */
  findLockedBy(slot: number): number {
    const held = (slot + 1) << PG_LOCK_SHIFT;
    for (let pfn = 0; pfn < this.count; pfn++) if ((this.flags(pfn) & PG_LOCK_MASK) === held) return pfn;
    for (let pfn = this.deviceFirst; pfn < this.deviceEnd; pfn++)
      if ((this.flags(pfn) & PG_LOCK_MASK) === held) return pfn;
    return -1;
  }

  #isZero(pfn: number): boolean {
    const bytes = this.bytesOf(pfn);
    const words = new BigUint64Array(bytes.buffer, bytes.byteOffset, bytes.length >> 3);
    for (let k = 0; k < words.length; k++) if (words[k] !== 0n) return false;
    return true;
  }

  /** The first broken invariant, or undefined. Preconditions: nothing runs meanwhile. */
  check(): string | undefined {
    const w = this.agent.words;
    let free = 0;
    for (let pfn = 0; pfn < this.count; pfn++) {
      const isFree = this.#isFree(pfn);
      const zero =
        (Atomics.load(w, this.#zeroBits + (pfn >>> GROUP_SHIFT)) & (1 << (pfn & (GROUP - 1)))) !== 0;
      if (isFree) free++;
      if (isFree !== (this.refcount(pfn) === 0))
        return `F1: frame ${pfn} free=${isFree} refcount=${this.refcount(pfn)}`;
      if (isFree && zero && !this.#isZero(pfn)) return `F2: frame ${pfn} is marked zero and is not`;
    }
    for (let pfn = this.deviceFirst; pfn < this.deviceEnd; pfn++) {
      if (this.#isFree(pfn) && this.refcount(pfn) !== 0)
        return `F5: page ${pfn} of a device is free and has ${this.refcount(pfn)} references`;
    }
    if (free !== this.free) return `F3: ${free} free bits, count says ${this.free}`;
    return undefined;
  }
}

/** Fills the bitmaps of a new memory: all frames free and zero, frame 0 the reserved zero page. */
export function initFrames(w: Int32Array, header: number): void {
  const count = w[header + MEM_FRAMES]!;
  const freeBits = w[header + MEM_FREE_BITS]!;
  const zeroBits = w[header + MEM_ZERO_BITS]!;
  for (let k = 0; k * GROUP < count; k++) {
    const here = Math.min(GROUP, count - k * GROUP);
    const bits = here === GROUP ? -1 : 2 ** here - 1;
    w[freeBits + k] = bits;
    w[zeroBits + k] = bits;
  }
  w[freeBits] = w[freeBits]! & ~1;
  const zero = w[header + MEM_FOLIOS]! + ZERO_PFN * FOLIO_WORDS;
  w[zero + FOLIO_COUNT] = 1;
  w[zero + FOLIO_FLAGS] = PG_RESERVED;
  w[header + MEM_PEAK] = 1;
}
