/**
 * A GPU that pages on demand: kernels load and store by address of a space, through a pool of pages in GPU memory that may be
 * much smaller than what they reach. A dispatch is run again and again, in rounds; between them the pages that it missed
 * are brought in.
 *
 * Rounds. A round counts as progress if an invocation finished, or if everything that the invocations of this round have
 * touched and missed fits the pool, because then nothing of it is given up and the next round comes further. Otherwise
 * fewer invocations are let in at a time, down to one; if that one does not fit either, nothing ever will. So a run ends,
 * if invalidations do not come faster than rounds.
 *
 * Not here: translations and their end (mmuCore.ts), the buffers (mmuDevice.ts), the shader's half (mmuShader.ts).
 */
import { MmError } from "../../errors.ts";
import type { AddressSpace } from "../../mm/index.ts";
import { type AccessedBitmap, MmuNotifier, type MmuNotifierOps } from "../../notifier/index.ts";
import { ADDRESS_END, parseBytes } from "../../units.ts";
import { type GpuRange, MmuCore, type Wanted } from "./mmuCore.ts";
import { DeviceLost, MmuDevice, type ReadBack } from "./mmuDevice.ts";
import { SLOT_DIRTY, SLOT_REFERENCED, SLOT_TOUCHED } from "./mmuPool.ts";
import {
  CT_BEGUN,
  CT_FINISHED,
  CT_LOWEST,
  CT_MISSED,
  CT_POSTPONED,
  makeLayout,
  makeWgsl,
  MISS_FIRM,
  MISS_FIRM_WRITE,
  MISS_GUESSED_WRITE,
  MISS_NOWHERE,
  type MmuLayout,
  PARAMETER_WORDS,
  PM_END,
  PM_FIRST,
  PM_INVOCATIONS,
  STATE_ACCESSED,
  STATE_DIRTY,
} from "./mmuShader.ts";
import { YoungPages } from "./youngPages.ts";

export type { GpuRange } from "./mmuCore.ts";

export interface GpuMmuOptions {
  /** Bytes of GPU memory for pages, or "64 MiB": rounded down to pages. Tables and staging come on top, see stats().gpuBytes. */
  readonly budget: number | string;
  /**
   * The part of the space that kernels may reach: bytes, page aligned. Default: all of it. Give it where you can: other agents
   * wait for this one only when they change something in there, and they see which of its pages the GPU has used.
   */
  readonly start?: number;
  readonly length?: number;
  /** The bind group that the WGSL module takes; default 3, the last that every device has. */
  readonly group?: number;
}

export interface GpuRunOptions {
  /**
   * How many invocations use bifolio_begin(), numbered from 0; default 0, for kernels that do not. At most 2^31.
   */
  readonly invocations?: number;
  /**
   * True: what the kernel has written stays on the GPU until flush(), eviction or a change of the mapping. Default false: it
   * is in the space when the run is over.
   */
  readonly keepDirty?: boolean;
}

export interface GpuDispatch extends GpuRunOptions {
  readonly pipeline: GPUComputePipeline;
  /** By number; the MMU's own is added. */
  readonly bindGroups?: readonly (GPUBindGroup | null | undefined)[];
  /** Workgroups in x, y and z; 1 where missing. */
  readonly workgroups: number | readonly number[];
}

/** What a run took. */
export interface GpuRun {
  /** How often the dispatch was submitted. */
  readonly rounds: number;
  /** Uploaded, and the bytes of that. A page that was given up and needed again counts again. */
  readonly pages: number;
  readonly bytes: number;
  /** Pages given up for others. */
  readonly evictions: number;
  /** Pages written by the GPU that came home during the run. */
  readonly writtenBack: number;
}

export interface GpuMmuStats {
  /** Pages of the pool: all, in use, written by the GPU and not home. */
  readonly pages: number;
  readonly resident: number;
  readonly dirty: number;
  /** Pages that live on the GPU: see migrate(). Counted among the resident ones. */
  readonly moved: number;
  /** Bytes of all buffers on the GPU. */
  readonly gpuBytes: number;
  /** Since it was made. */
  readonly rounds: number;
  readonly uploadedPages: number;
  readonly writtenBackPages: number;
  readonly evictedPages: number;
  /** Invalidations that it heard of, and those that it refused, because they could not wait. */
  readonly invalidations: number;
  readonly refusals: number;
}

const DEFAULT_GROUP = 3;
const MOST_INVOCATIONS = 2 ** 31;
/** With a bit a page, so many pages cost 512 KiB of the arena. */
const MOST_BITMAP_PAGES = 2 ** 22;
/** Rounds without progress before fewer invocations are let in, and before a run is given up. */
const STALLS_BEFORE_FEWER = 4;
/** The first round of a run finds nothing, and what it misses need not fit: many may finish in the second. */
const MISFITS_BEFORE_FEWER = 2;
const STALLS_BEFORE_END = 64;
const FEWER = 4;

/** The invocations that a round lets in: `size` from `first` on, of `total`. */
interface Window {
  readonly first: number;
  readonly size: number;
  readonly total: number;
}

/** What a round came to. */
interface Round {
  readonly missed: boolean;
  readonly postponed: boolean;
  readonly begun: boolean;
  readonly finished: number;
  /** The lowest invocation that had not finished before it. */
  readonly lowest: number;
  /** Pages missed, in order of address. */
  readonly misses: readonly Wanted[];
  /** Some invocation wanted an address that no space has. */
  readonly nowhere: boolean;
}

/** Decides how many invocations the next round lets in, and when a run will never end. */
class Progress {
  readonly #pages: number;
  readonly #total: number;
  #first = 0;
  #size: number;
  /** The most pages that a round has touched since something finished or fewer were let in. */
  #touched = -1;
  #stalls = 0;

  constructor(pages: number, invocations: number) {
    this.#pages = pages;
    this.#total = invocations;
    this.#size = Math.max(1, invocations);
  }

  get window(): Window {
    return { first: this.#first, size: this.#size, total: this.#total };
  }

  /** Takes note of a round that is not the last. Errors: ENOMEM, EBUSY, EINVAL. */
  note(operation: string, round: Round, touched: number, needed: number): void {
    const all = this.#size >= this.#total;
    if (!all && round.lowest < this.#total) this.#first = round.lowest;
    if (round.finished > 0) {
      this.#begin();
      // Half of the pool: then twice as many probably fit.
      if (!all && needed * 2 <= this.#pages) this.#size *= 2;
      return;
    }
    const fits = needed <= this.#pages;
    if (fits && touched > this.#touched) {
      this.#touched = touched;
      this.#stalls = 0;
      return;
    }
    const alone = !round.begun || this.#size === 1;
    if (!fits && alone) {
      const who = round.begun ? `invocation ${round.lowest}` : "the dispatch";
      throw new MmError(
        "ENOMEM",
        operation,
        `${who} needs at least ${needed} pages at the same time, and the pool has ${this.#pages}; use a larger budget, or kernels that need less`,
      );
    }
    this.#stalls++;
    if (!alone && this.#stalls >= (fits ? STALLS_BEFORE_FEWER : MISFITS_BEFORE_FEWER)) {
      this.#size = Math.ceil(this.#size / FEWER);
      this.#begin();
    }
    if (this.#stalls < STALLS_BEFORE_END) return;
    throw round.missed
      ? new MmError(
          "EBUSY",
          operation,
          "pages are taken away as fast as they are brought in; change mappings less often, or use a larger budget of the memory",
        )
      : sentence(
          operation,
          "invocations miss nothing and do not finish: the kernel must call bifolio_finish()",
        );
  }

  #begin(): void {
    this.#touched = -1;
    this.#stalls = 0;
  }
}

const sentence = (operation: string, text: string): MmError => new MmError("EINVAL", operation, text);

export class GpuMmu implements AsyncDisposable {
  /** Include it in each shader that loads or stores by address; it ends with a newline. */
  readonly wgsl: string;
  /** The bind group that the module takes. */
  readonly group: number;
  /** Hears of the space's end, and answers whether the GPU has used pages: see clearFlushYoung() in docs/notifiers.md. */
  readonly notifier: MmuNotifier;
  readonly #core: MmuCore;
  readonly #layout: MmuLayout;
  readonly #start: number;
  readonly #end: number;
  readonly #bitmap: AccessedBitmap | undefined;
  #tail: Promise<unknown> = Promise.resolve();
  #rounds = 0;
  #removed = false;
  #bindGroupLayout: GPUBindGroupLayout;

  /** @internal */
  constructor(core: MmuCore, notifier: MmuNotifier, bounds: GpuRange, group: number) {
    this.#core = core;
    this.#layout = core.layout;
    this.notifier = notifier;
    this.#bitmap = notifier.accessed;
    this.#start = bounds.start;
    this.#end = bounds.end;
    this.group = group;
    this.wgsl = makeWgsl(core.layout, group);
    this.#bindGroupLayout = core.gpu!.bindGroupLayout;
    this.#watch(core.gpu!);
  }

  /** For pipeline layouts of your own, at `group`. Another one after recover(). */
  get bindGroupLayout(): GPUBindGroupLayout {
    return this.#bindGroupLayout;
  }

  /**
   * What the GPU had written when its device was lost, since then or the last recover(): the space has the bytes from before.
   * Each range was also reported to memory.onError, as EIO.
   */
  get lost(): readonly GpuRange[] {
    return this.#core.lost;
  }

  /** Learns of the loss of a device while nothing runs. */
  #watch(gpu: MmuDevice): void {
    void gpu.device.lost.then((info) => {
      if (this.#core.gpu === gpu && !this.#removed) this.#core.loseDevice(info);
    });
  }

  /**
   * Runs a pipeline until no invocation missed a page: see run(). Its layout may be "auto", if the kernel loads or stores
   * through the MMU.
   */
  async dispatch(dispatch: GpuDispatch): Promise<GpuRun> {
    const { pipeline, bindGroups = [], workgroups } = dispatch ?? {};
    const counts = typeof workgroups === "number" ? [workgroups] : [...(workgroups ?? [])];
    if (typeof pipeline?.getBindGroupLayout !== "function")
      throw sentence("dispatch", "needs a GPUComputePipeline");
    if (counts.length < 1 || counts.length > 3 || counts.some((n) => !Number.isInteger(n) || n < 0))
      throw sentence("dispatch", "workgroups must be one to three whole numbers, not negative");
    if (bindGroups[this.group]) {
      throw sentence(
        "dispatch",
        `bind group ${this.group} is the MMU's own; choose another with the option group`,
      );
    }
    return this.#queue("dispatch", () =>
      this.#runRounds("dispatch", dispatch, (pass, gpu) => {
        pass.setPipeline(pipeline);
        pass.setBindGroup(this.group, gpu.groupFor(pipeline.getBindGroupLayout(this.group)));
        bindGroups.forEach((group, n) => {
          if (group) pass.setBindGroup(n, group);
        });
        pass.dispatchWorkgroups(counts[0]!, counts[1] ?? 1, counts[2] ?? 1);
      }),
    );
  }

  /**
   * Runs what `encode` puts into the pass until no invocation missed a page, with pages brought in between. Bind group `group`
   * is set already, for pipelines whose layout has bindGroupLayout there. `encode` is called for each round, and must put the
   * same into the pass each time. Runs of one MMU follow each other.
   *
   * Stores of agents that were made before the call are seen; whether later ones are differs from page to page. What the
   * kernel has written is in the space when the promise settles, unless `keepDirty`; of pages
   * of files and of shared memory, agents read the bytes from before until then, and their stores to the same pages may be
   * lost; private pages are the GPU's own meanwhile.
   *
   * May wait. Errors: SegvError and BusError with the address of the page, ENOMEM where what one invocation (or, without
   * bifolio_begin(), the whole dispatch) touches does not fit the pool, or the GPU has no memory; EBUSY if invalidations
   * keep coming in between; EFAULT for an address outside of the MMU's range; EINVAL for what WebGPU refuses; ENOTSUP for
   * more invocations than the device allows; EIO where the device is lost (see `lost`); ESRCH once the space exits. After an
   * error invocations that finished have finished.
   */
  async run(encode: (pass: GPUComputePassEncoder) => void, options: GpuRunOptions = {}): Promise<GpuRun> {
    if (typeof encode !== "function") throw sentence("run", "needs a function that encodes a dispatch");
    return this.#queue("run", () =>
      this.#runRounds("run", options, (pass, gpu) => {
        pass.setBindGroup(this.group, gpu.groupFor(gpu.bindGroupLayout));
        encode(pass);
      }),
    );
  }

  /**
   * Brings home what the GPU has written in a range of bytes, all by default; returns how many bytes. The pages stay usable
   * for the GPU. May wait. Errors: EIO where the device is lost, ESRCH.
   */
  async flush(start = 0, length: number = ADDRESS_END): Promise<number> {
    checkBytes("flush", start, length);
    return this.#queue("flush", async () => {
      const core = this.#core;
      core.usableGpu("flush");
      const pages = await core.home(core.slotsIn(start, start + length));
      core.usableGpu("flush");
      return pages * core.pageSize;
    });
  }

  /**
   * Moves private pages of a range of bytes into the pool: they live on the GPU, and their frames are free for others. Returns how
   * many moved: as many as the pool has room for, leaving an eighth of it. Kernels use them without an upload, across runs, and what
   * they store there need not come home. An access by any agent brings a page back, with neighbours; so do pins, and an
   * MMU that needs the room. Pages of files, shared ones, and those that somebody has in a view or a pin stay where they are. May
   * wait. Errors: EINVAL, ENOMEM where the memory has not enough `deviceMemory`, EIO where the device is lost, ESRCH.
   */
  async migrate(start: number, length: number): Promise<number> {
    const [first, end] = this.#pagesOf("migrate", start, length);
    return this.#queue("migrate", async () => {
      this.#core.usableGpu("migrate");
      return this.#core.memory.migrate(first, end);
    });
  }

  /** Brings pages of a range of bytes back that migrate() moved. Returns how many. May wait. Errors: EINVAL, ENOMEM, EIO, ESRCH. */
  async migrateBack(start: number, length: number): Promise<number> {
    const [first, end] = this.#pagesOf("migrateBack", start, length);
    return this.#queue("migrateBack", async () => {
      this.#core.usableGpu("migrateBack");
      return this.#core.memory.migrateBack(first, end);
    });
  }

  /**
   * Makes private pages of a range of bytes the GPU's own, until an agent accesses them: their copies stay good from run to run, and
   * the access waits until what kernels stored there is home. They keep their frames. May wait. Errors: EINVAL; ENOTSUP for
   * pages that are not private or not anonymous, ENOMEM where the pool has no room, SegvError as a write access, EIO, ESRCH;
   * pages before the one that failed are the GPU's own. Linux: make_device_exclusive().
   */
  async exclusive(start: number, length: number): Promise<void> {
    const [first, end] = this.#pagesOf("exclusive", start, length);
    return this.#queue("exclusive", async () => {
      const core = this.#core;
      core.usableGpu("exclusive");
      if (end - first > core.pool.pages) {
        throw new MmError(
          "ENOMEM",
          "exclusive",
          `the range has ${end - first} pages, and the pool ${core.pool.pages}; use a larger budget`,
        );
      }
      await core.home(core.slotsIn(start, start + length));
      for (let vpn = first; vpn < end; vpn++) {
        if (core.pool.free === 0) await core.makeRoom(1, true);
        await core.own(vpn);
      }
    });
  }

  #pagesOf(operation: string, start: number, length: number): [number, number] {
    const { pageSize } = this.#core;
    checkBytes(operation, start, length);
    if (start % pageSize !== 0 || length % pageSize !== 0 || length === 0)
      throw sentence(
        operation,
        `start and length must be multiples of the page size (${pageSize}), and length above 0`,
      );
    if (start < this.#start || start + length > this.#end)
      throw new MmError("EFAULT", operation, "the range is not inside that of the MMU", {
        range: { start, end: start + length },
      });
    return [start / pageSize, (start + length) / pageSize];
  }

  /**
   * Goes on with another device after the first is lost. Nothing is resident; pipelines are to be made anew with it, from the
   * same `wgsl`. May wait. Errors: EBUSY if the device is not lost; EINVAL, ENOTSUP and ENOMEM as createGpuMmu(), after which the
   * MMU is as before; ESRCH.
   */
  async recover(device: GPUDevice): Promise<void> {
    checkDevice("recover", device);
    return this.#queue("recover", async () => {
      const core = this.#core;
      if (core.ended) core.usableGpu("recover");
      if (core.gpu) throw new MmError("EBUSY", "recover", "the device is not lost");
      await core.memory.lost();
      const gpu = await MmuDevice.create(device, this.#layout, this.group, "recover");
      core.memory.recover();
      core.lost = [];
      core.table.clear();
      core.gpu = gpu;
      this.#bindGroupLayout = gpu.bindGroupLayout;
      this.#watch(gpu);
    });
  }

  /** Counts and sizes. Never waits. */
  stats(): GpuMmuStats {
    const { pool, counts, gpu } = this.#core;
    return {
      pages: pool.pages,
      resident: pool.pages - pool.free,
      dirty: pool.withFlags(SLOT_DIRTY).length,
      moved: this.#core.memory.pages,
      gpuBytes: gpu?.bytes ?? 0,
      rounds: this.#rounds,
      ...counts,
    };
  }

  /** True if the GPU has a translation of the page at this address: what the next dispatch finds. Never waits. */
  isResident(address: number): boolean {
    return this.#core.table.slotOf(Math.floor(address / this.#core.pageSize)) >= 0;
  }

  /** True if the GPU has written to the page at this address, and the space does not have the bytes yet. Never waits. */
  isDirty(address: number): boolean {
    const { pool, pageSize } = this.#core;
    const slot = pool.byPage.get(Math.floor(address / pageSize));
    return slot !== undefined && pool.has(slot, SLOT_DIRTY);
  }

  /** @internal The first broken invariant, or undefined. */
  check(): string | undefined {
    return this.#core.check();
  }

  /**
   * Brings home what the GPU has written and what lives on it, unsubscribes, and destroys the buffers. Once; afterwards
   * everything is ESRCH. May wait. Errors: ENOMEM where there are no frames for what lives on the GPU; then it is as before.
   */
  async remove(): Promise<void> {
    if (this.#removed) return;
    this.#removed = true;
    await this.#tail;
    const core = this.#core;
    try {
      await core.memory.close();
    } catch (error) {
      this.#removed = false;
      throw error;
    }
    await core.home(core.pool.withFlags(SLOT_DIRTY));
    await core.interval.remove();
    await this.notifier.notifiers?.unregister(this.notifier);
    core.ended = true;
    core.gpu?.destroy();
    core.gpu = undefined;
    if (this.#bitmap) freeBitmap(core.space, this.#bitmap);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.remove();
  }

  /** Lets the process end although this MMU exists. */
  unref(): this {
    this.#core.interval.unref();
    this.notifier.unref();
    return this;
  }

  /** One after the other. */
  async #queue<T>(operation: string, body: () => Promise<T>): Promise<T> {
    if (this.#removed) throw new MmError("ESRCH", operation, "the MMU has been removed");
    const turn = this.#tail.then(body);
    this.#tail = turn.catch(() => {});
    return turn;
  }

  // ---- rounds --------------------------------------------------------------------------------------------------------

  async #runRounds(
    operation: string,
    options: GpuRunOptions,
    encode: (pass: GPUComputePassEncoder, gpu: MmuDevice) => void,
  ): Promise<GpuRun> {
    const core = this.#core;
    const { invocations = 0, keepDirty = false } = options;
    if (!Number.isInteger(invocations) || invocations < 0 || invocations > MOST_INVOCATIONS)
      throw sentence(operation, `invocations must be a whole number from 0 to ${MOST_INVOCATIONS}`);
    const before = { ...core.counts };
    let rounds = 0;
    try {
      await core.usableGpu(operation).reserve(invocations, operation);
      core.revalidate();
      const progress = new Progress(core.pool.pages, invocations);
      for (;;) {
        const gpu = core.usableGpu(operation);
        const round = await this.#round(gpu, progress.window, rounds === 0, (pass) => encode(pass, gpu));
        rounds++;
        if (round.begun && invocations === 0) {
          throw sentence(operation, "the kernel uses bifolio_begin(): say how many invocations there are");
        }
        if (!round.missed && !round.postponed) break;
        await this.#serve(operation, round, progress);
      }
    } catch (error) {
      await core.home(core.pool.withFlags(SLOT_DIRTY));
      throw this.#explain(operation, error);
    }
    if (!keepDirty) await core.home(core.pool.withFlags(SLOT_DIRTY));
    if (!core.gpu && core.lost.length > 0)
      throw this.#explain(operation, new DeviceLost("the device was lost"));
    const pages = core.counts.uploadedPages - before.uploadedPages;
    return {
      rounds,
      pages,
      bytes: pages * core.pageSize,
      evictions: core.counts.evictedPages - before.evictedPages,
      writtenBack: core.counts.writtenBackPages - before.writtenBackPages,
    };
  }

  /** What the caller hears of a loss. */
  #explain(operation: string, error: unknown): unknown {
    const core = this.#core;
    if (!(error instanceof DeviceLost)) return error;
    core.loseDevice(error);
    const { lost } = core;
    return new MmError(
      "EIO",
      operation,
      lost.length === 0
        ? "the device was lost; nothing was only there. Call recover() with another one"
        : `the device was lost with what it had written in ${lost.length} ranges, see lost; call recover() with another one`,
      { cause: error, ...(lost[0] && { range: lost[0] }) },
    );
  }

  /** Submits one round and takes its answer in. */
  async #round(
    gpu: MmuDevice,
    window: Window,
    newRun: boolean,
    encode: (pass: GPUComputePassEncoder) => void,
  ): Promise<Round> {
    const core = this.#core;
    const parameters = new Uint32Array(PARAMETER_WORDS);
    parameters[PM_FIRST] = window.first;
    parameters[PM_END] = Math.min(window.first + window.size, window.total);
    parameters[PM_INVOCATIONS] = window.total;
    // P2: from the table to the submission no safepoint.
    core.table.flush((word, count) => gpu.writeTable(core.table.words, word, count));
    const answer = gpu.submitRound(parameters, newRun, encode);
    this.#rounds++;
    const taken = answer.then((words) => this.#takeIn(words));
    core.flight = taken.then(
      () => {},
      () => {},
    );
    try {
      return await taken;
    } catch (error) {
      if (error instanceof DeviceLost && core.gpu === gpu) core.loseDevice(error);
      throw error;
    } finally {
      core.flight = undefined;
    }
  }

  /** Marks pages as used and written; lists what was missed. */
  #takeIn(words: ReadBack): Round {
    const core = this.#core;
    const { pool, young } = core;
    const { stateAt, missesAt, pages } = this.#layout;
    for (let slot = 0; slot < pages; slot++) {
      const state = words[stateAt + slot]!;
      pool.drop(slot, SLOT_TOUCHED);
      const vpn = pool.vpnOf(slot);
      // A page that was given up meanwhile is nobody's.
      if (state === 0 || vpn < 0) continue;
      if ((state & STATE_ACCESSED) !== 0) {
        pool.add(slot, SLOT_TOUCHED | SLOT_REFERENCED);
        young.mark(vpn);
      }
      if ((state & STATE_DIRTY) !== 0) pool.add(slot, SLOT_DIRTY);
    }
    core.flight = undefined;
    const misses: Wanted[] = [];
    let nowhere = false;
    for (let at = missesAt; at < stateAt; at += 2) {
      const key = words[at]!;
      if (key === 0) continue;
      const flags = words[at + 1]!;
      const firm = (flags & MISS_FIRM) !== 0;
      if (key === MISS_NOWHERE) nowhere ||= firm;
      else {
        const firmWrite = (flags & MISS_FIRM_WRITE) !== 0;
        misses.push({
          vpn: key - 1,
          write: firmWrite || (flags & MISS_GUESSED_WRITE) !== 0,
          firm,
          firmWrite,
        });
      }
    }
    return {
      missed: words[CT_MISSED] !== 0,
      postponed: words[CT_POSTPONED] !== 0,
      begun: words[CT_BEGUN] !== 0,
      finished: words[CT_FINISHED]!,
      lowest: 0xffffffff - words[CT_LOWEST]!,
      misses: misses.sort((a, b) => a.vpn - b.vpn),
      nowhere,
    };
  }

  /** Brings in what a round missed, as far as it fits, and decides what the next one lets in. */
  async #serve(operation: string, round: Round, progress: Progress): Promise<void> {
    const core = this.#core;
    const { pool } = core;
    if (round.nowhere) {
      throw new MmError("EFAULT", operation, "a kernel used an address beyond the end of the address space");
    }
    const inside: Wanted[] = [];
    for (const miss of round.misses) {
      const { start, end } = core.rangeOf(miss.vpn);
      if (start >= this.#start && end <= this.#end) inside.push(miss);
      else if (miss.firm) {
        throw new MmError("EFAULT", operation, "a kernel used an address outside of the range of the MMU", {
          range: { start, end },
        });
      }
    }
    const firm = inside.filter((miss) => miss.firm);
    // There for reading, and wanted for a store: it comes anew.
    for (const { vpn, firmWrite } of firm) if (firmWrite) core.forgetCopy(vpn);
    const touched = pool.withFlags(SLOT_TOUCHED).length;
    const needed = touched + firm.length;
    progress.note(operation, round, touched, needed);
    const fits = needed <= pool.pages;
    // More than half of the frames would push out of the memory what the same round brought in.
    const frames = Math.max(1, core.space.mm.frames.count >>> 1);
    const most = Math.min(frames, fits ? pool.pages - touched : pool.pages);
    const wanted = firm.slice(0, most);
    if (wanted.length < most) {
      const more = inside.filter((miss) => !miss.firm && !pool.byPage.has(miss.vpn));
      wanted.push(...more.slice(0, most - wanted.length));
      wanted.sort((one, other) => one.vpn - other.vpn);
    }
    await core.makeRoom(wanted.length, !fits);
    await core.fill(wanted.slice(0, pool.free));
  }
}

// ---- making one ------------------------------------------------------------------------------------------------------

/**
 * Makes a GPU a secondary MMU of a space, with `budget` bytes of its memory for pages. The agent that calls owns it, and must be
 * one that does not block (`createMemory` or `attach` with `mayBlock: false`; every main thread is). May wait.
 *
 * Errors: EINVAL; ENOTSUP where the device's limits are below what the budget needs; ENOMEM where the GPU or the arena has no
 * room; ESRCH once the space exits. Then nothing is changed. Linux: what a driver does with hmm_range_fault() and an
 * mmu_notifier.
 */
export async function createGpuMmu(
  space: AddressSpace,
  device: GPUDevice,
  options: GpuMmuOptions,
): Promise<GpuMmu> {
  const operation = "createGpuMmu";
  const { mm, agent } = checkSpace(operation, space);
  checkDevice(operation, device);
  const { pageSize } = mm;
  const budget = parseBytes(options?.budget);
  const { start = 0, length = ADDRESS_END - start, group = DEFAULT_GROUP } = options ?? {};
  if (!(budget >= pageSize))
    throw sentence(
      operation,
      `budget must be a number of bytes, or a text such as "64 MiB", of at least a page (${pageSize})`,
    );
  checkBytes(operation, start, length);
  const whole = options.start === undefined && options.length === undefined;
  if (!whole && (start % pageSize !== 0 || length % pageSize !== 0 || length === 0))
    throw sentence(
      operation,
      `start and length must be multiples of the page size (${pageSize}), and length above 0`,
    );
  if (!Number.isInteger(group) || group < 0)
    throw sentence(operation, "group must be the number of a bind group");
  if (agent.mayBlock)
    throw sentence(
      operation,
      "the agent of a GPU must not block; create or attach to the memory with mayBlock: false",
    );
  const layout = makeLayout(pageSize, Math.floor(budget / pageSize));
  const gpu = await MmuDevice.create(device, layout, group, operation);
  let accessed: AccessedBitmap | undefined;
  try {
    if (length / pageSize <= MOST_BITMAP_PAGES) accessed = makeBitmap(space, start, length);
    const core = new MmuCore(space, layout, new YoungPages(accessed, pageSize), gpu);
    core.interval = await space.notifiers.insert({ invalidate: core.invalidate }, start, length);
    try {
      const notifier = new MmuNotifier(agingOps(core, pageSize), accessed ? { accessed } : {});
      await space.notifiers.register(notifier);
      return new GpuMmu(core, notifier, { start, end: start + length }, group);
    } catch (error) {
      await core.interval.remove();
      throw error;
    }
  } catch (error) {
    gpu.destroy();
    if (accessed) freeBitmap(space, accessed);
    throw error;
  }
}

/** Answers from what came back with the last round. */
const agingOps = ({ young }: MmuCore, pageSize: number): MmuNotifierOps => {
  const ask = (start: number, end: number, clear: boolean): boolean =>
    young.test(Math.floor(start / pageSize), Math.ceil(end / pageSize), clear);
  return {
    // The marks are new in each round: there is nothing to flush.
    clearFlushYoung: (_notifier, _space, start, end) => ask(start, end, true),
    clearYoung: (_notifier, _space, start, end) => ask(start, end, true),
    testYoung: (_notifier, _space, address) => ask(address, address + 1, false),
  };
};

function makeBitmap(space: AddressSpace, start: number, length: number): AccessedBitmap {
  const words = Math.ceil(length / space.mm.pageSize / 32);
  const at = space.mm.alloc(words, "createGpuMmu");
  return { start, length, bits: space.agent.words.subarray(at, at + words) };
}

function freeBitmap(space: AddressSpace, { bits }: AccessedBitmap): void {
  space.mm.free(bits.byteOffset / 4, bits.length);
}

function checkSpace(operation: string, space: AddressSpace): AddressSpace {
  if (!(space?.notifiers && space.mm)) throw sentence(operation, "needs an AddressSpace");
  return space;
}

function checkDevice(operation: string, device: GPUDevice): void {
  if (typeof device?.createBuffer !== "function") throw sentence(operation, "needs a GPUDevice");
}

function checkBytes(operation: string, start: number, length: number): void {
  if (!Number.isSafeInteger(start) || start < 0 || !Number.isSafeInteger(length) || length < 0)
    throw sentence(operation, "start and length must be whole numbers of bytes, not negative");
  if (start + length > ADDRESS_END) throw sentence(operation, "the range ends beyond the address space");
}
