/** PhysicalMemory: frames and arena, one per application, and an agent's membership in it. */
import { arenaFull, MmError } from "../errors.ts";
import {
  CLUSTER_BYTES,
  allocWords,
  createArena,
  heapUsedWords,
  MEM_PEAK,
  type MemoryHandle,
  MIN_FRAMES,
  PG_ANON,
  PG_DIRTY,
} from "../memory/index.ts";
import {
  dropSubscriptions,
  invalidateAllSecondaryTlbs,
  invalidateOwnSecondaryTlbs,
  MmuNotifierEvent,
  type NotifierHost,
  type OwnerId,
  type SpaceId,
} from "../notifier/index.ts";
import {
  type Agent,
  attachAgent,
  host,
  type Immediate,
  loopOf,
  type Op,
  reap,
  runAsync,
  runReadyTasks,
  slotsOfThread,
  start,
  syncFacet,
  tryFacet,
} from "../sched/index.ts";
import { reapRwSem } from "../sync/index.ts";
import { parseBytes } from "../units.ts";
import { type Backing, MEMORY_KIND } from "./backing.ts";
import { checkMemory } from "./check.ts";
import { openBacking, unuseFile } from "./files.ts";
import { reapFutexes } from "./futex.ts";
import { MappedFile } from "./mappedFile.ts";
import { type WaitResult, waitWord, waitWordSync } from "./waitWord.ts";
import {
  BACKING_SERVED,
  CT_COW,
  CT_EVENTS,
  CT_EVICTIONS,
  CT_MAJOR,
  CT_MINOR,
  CT_WRITEBACKS,
  FL_ID,
  MM_OWNERS,
  SP_ID,
  SP_MMAP_LOCK,
  SP_STATE,
  SPACE_LIVE,
  spUsersAt,
} from "./layout.ts";
import { unuseSpace } from "./lifetime.ts";
import { Mm } from "./mm.ts";
import { reapDevices, usedDevicePages } from "./device.ts";
import { serveDevices } from "./migrate.ts";
import { serveFiles } from "./fileIo.ts";
import { fileAt } from "./pageCache.ts";
import { syncFileOp } from "./writeback.ts";
import { PFN_LIMIT } from "./pte.ts";
import { reclaimOp } from "./reclaim.ts";
import { AddressSpace, createSpaceRecord } from "./space.ts";
import { takeTlbs, tlbWords } from "./spaceCore.ts";
import { dropDead, viewedFrames } from "./views.ts";
import { settleDead } from "./zap.ts";

export interface MemoryOptions {
  /** Bytes, or "256 MiB": frames never exceed it. */
  readonly budget: number | string;
  /** Bytes; default 4096. */
  readonly pageSize?: 4096 | 16384 | 65536;
  /** Bytes of page tables and records; default: an eighth of the budget, at least 32 MiB. Committed as it is used. */
  readonly arena?: number | string;
  /**
   * Most bytes that devices can have besides, all together: pages that are there and not in a frame. Default: as the budget.
   * Each page has a record of 16 bytes, committed as it is used.
   */
  readonly deviceMemory?: number | string;
  /** May this agent block? Default: true in workers, false on every main thread. */
  readonly mayBlock?: boolean;
  /** Bytes of neighbours that a file fault maps along; default 65536, which is what one read brings in. */
  readonly faultAround?: number;
  /**
   * Bytes, from a page to 65536, the default: pages of a file that are kept together in memory, written back and reclaimed
   * as one, with one invalidation. A page: each has its own, as in a kernel without large folios.
   */
  readonly folio?: number;
  /** Bytes of a file that a read brings in, at least a folio, the default. */
  readonly readAhead?: number;
  /** Default 64, the most a memory can have. */
  readonly maxAgents?: number;
  /** Lock-order checks, poisoned free frames, invariant checks: slower, for tests. */
  readonly debug?: boolean;
}

export interface MemoryStats {
  readonly pageSize: number;
  /** Numbers of frames. `file`, `anon`, `dirty` are counted by a walk over the frame table. */
  readonly frames: {
    readonly total: number;
    readonly free: number;
    readonly used: number;
    readonly peak: number;
    readonly file: number;
    readonly anon: number;
    readonly dirty: number;
    readonly pinned: number;
  };
  /** Pages that are on devices. */
  readonly devicePages: number;
  /** Bytes of records and page tables in use. */
  readonly arenaBytes: number;
  readonly faults: { readonly minor: number; readonly major: number; readonly cow: number };
  readonly evictions: number;
  readonly writebacks: number;
  /** Invalidations raised, by event: UNMAP, CLEAR, … */
  readonly events: Readonly<Record<string, number>>;
  readonly agents: readonly {
    readonly slot: number;
    readonly minor: number;
    readonly major: number;
    readonly cow: number;
  }[];
}

/** Linux's names of the events, by number. */
const EVENT_NAMES: readonly string[] = Object.keys(MmuNotifierEvent).map((name) =>
  name.replace(/(?<!^)([A-Z])/g, "_$1").toUpperCase(),
);

interface MemoryOperations {
  createSpace(): Op<AddressSpace>;
  openFile(backing: Backing, options?: OpenOptions): Op<MappedFile>;
  reclaim(bytes: number): Op<number>;
}

interface FileOperations {
  read(file: MappedFile, offset: number, into: Uint8Array): Op<number>;
  write(file: MappedFile, offset: number, from: Uint8Array): Op<number>;
  sync(file: MappedFile): Op<void>;
}

export interface OpenOptions {
  readonly name?: string;
  readonly writable?: boolean;
}

/** Free frames zeroed when a turn ends (some 150 ns each): the next faults need not. */
const PREZERO_PER_TURN = 4;

/** Something with the events of a worker_threads Worker. */
export interface WorkerLike {
  readonly threadId?: number;
  once?(event: "exit", listener: () => void): unknown;
  off?(event: "exit", listener: () => void): unknown;
}

export class PhysicalMemory implements NotifierHost, AsyncDisposable {
  /** For attach() in another agent; structured-clonable. */
  readonly handle: MemoryHandle;
  /** Bytes. */
  readonly pageSize: number;
  /** The same operations, blocking where this agent may block, and never waiting. */
  readonly sync: Immediate<MemoryOperations & FileOperations> & {
    wait(words: Int32Array, index: number, value: number, timeoutMs?: number): WaitResult;
  };
  readonly try: Immediate<MemoryOperations & FileOperations>;
  /** @internal */
  readonly mm: Mm;
  /** @internal */
  readonly agent: Agent;
  readonly #ops: MemoryOperations;
  readonly #files = new Map<number, MappedFile>();
  /** Each stops listening to an adopted worker. */
  readonly #adopted = new Set<() => void>();

  /** @internal */
  constructor(agent: Agent, handle: MemoryHandle) {
    this.agent = agent;
    this.handle = handle;
    this.mm = new Mm(agent, handle, (mm, slot) => new AddressSpace(mm, slot));
    this.mm.memory = this;
    this.pageSize = this.mm.pageSize;
    this.#ops = {
      createSpace: () => this.#createSpaceOp(),
      openFile: (backing, options) => this.#openFileOp(backing, options),
      reclaim: (bytes) => this.#reclaimOp(bytes),
    };
    const operations: MemoryOperations & FileOperations = {
      ...this.#ops,
      read: (file, offset, into) => file.transferOp("read", offset, into),
      write: (file, offset, from) => file.transferOp("write", offset, from),
      sync: (file) => file.syncOp(),
    };
    const { mm } = this;
    this.sync = {
      ...syncFacet(agent, operations),
      wait: (words, index, value, timeoutMs = Number.POSITIVE_INFINITY) => {
        this.#checkWords(words, index);
        return waitWordSync(mm, words, index, value, timeoutMs);
      },
    };
    this.try = tryFacet(agent, operations);
    agent.setFlushHandler((slot, from, to) => {
      if (slot === 0) {
        for (const space of mm.spaces.values()) space.flushOwn(0, 0);
        invalidateAllSecondaryTlbs(agent);
        return;
      }
      const space = mm.spaces.get(slot as never);
      if (!space) return;
      space.flushOwn(from, to);
      // A space that has exited while this agent was idle may be gone, with its subscriptions.
      mm.protect(space.slot);
      const { live } = space;
      if (live) invalidateOwnSecondaryTlbs(space.notifiers.context, from * mm.pageSize, to * mm.pageSize);
      mm.unprotect();
    });
    agent.turnEnd.push(() => {
      for (const space of mm.activeSpaces) space.deactivate();
      mm.activeSpaces.length = 0;
      mm.frames.prezero(PREZERO_PER_TURN);
    });
    agent.viewsEnd.push(() => mm.views.dropAll());
    agent.reapers.push((slot, ownerId) => this.#reap(slot, ownerId));
    const begin = (op: Op<void>, settled: (error: unknown) => void): void =>
      start(agent, op, (outcome) => settled("error" in outcome ? outcome.error : undefined));
    serveFiles(mm, begin);
    serveDevices(mm, begin);
  }

  /** Errors with no caller: throwing callbacks in reclaim, soft lockups, deaths. */
  get onError(): ((error: MmError) => void) | undefined {
    return this.agent.onError;
  }

  set onError(handler: ((error: MmError) => void) | undefined) {
    this.agent.onError = handler;
  }

  // ---- spaces and files ----------------------------------------------------------------------------------------------

  /** Makes an empty address space. Errors: ENOMEM if the arena is full. */
  createSpace(): Promise<AddressSpace> {
    return runAsync(this.agent, this.#ops.createSpace());
  }

  // eslint-disable-next-line require-yield
  *#createSpaceOp(): Op<AddressSpace> {
    this.agent.checkUsable("createSpace");
    return this.mm.spaceAt(createSpaceRecord(this.mm, SPACE_LIVE)) as AddressSpace;
  }

  /** The space with this id, also one that another agent made; the same object each time. Errors: ESRCH. */
  space(id: SpaceId): AddressSpace {
    this.agent.checkUsable("space");
    const { mm } = this;
    const w = this.agent.words;
    for (const slot of mm.allSpaces()) {
      // It may have exited, and its record be freed, since it was listed.
      mm.protect(slot);
      try {
        if (Atomics.load(w, slot + SP_ID) === id && Atomics.load(w, slot + SP_STATE) === SPACE_LIVE)
          return mm.spaceAt(slot) as AddressSpace;
      } finally {
        mm.unprotect();
      }
    }
    throw new MmError("ESRCH", "space", `no space with id ${id}`);
  }

  /**
   * Makes the page cache object of a backing. Without `backing.descriptor` this agent serves the others from its event
   * loop. `writable`: shared mappings may be written, and dirty pages are written back. Errors: EINVAL, ENOMEM, EOVERFLOW.
   */
  openFile(backing: Backing, options?: OpenOptions): Promise<MappedFile> {
    return runAsync(this.agent, this.#ops.openFile(backing, options));
  }

  // eslint-disable-next-line require-yield
  *#openFileOp(backing: Backing, options: OpenOptions = {}): Op<MappedFile> {
    this.agent.checkUsable("openFile");
    if (typeof backing?.size !== "number")
      throw new MmError("EINVAL", "openFile", "needs a backing with a size in bytes");
    const canWrite = backing.write !== undefined || backing.writeSync !== undefined;
    const inMemory = backing.descriptor?.kind === MEMORY_KIND;
    // What lives in memory is there to be written, unless somebody says otherwise.
    const writable = options.writable ?? inMemory;
    const core = fileAt(this.mm, openBacking(this.mm, backing, writable && (inMemory || canWrite)));
    const file = new MappedFile(core, options.name ?? `file ${core.id}`, () => {
      this.#files.delete(core.id);
      // Others may still map it: they are served for as long as something else keeps this agent alive.
      if (core.kind === BACKING_SERVED) loopOf(this.agent).release();
    });
    this.#files.set(core.id, file);
    if (core.kind === BACKING_SERVED) loopOf(this.agent).listen();
    return file;
  }

  /** The file with this id, also one that another agent opened. Errors: ESRCH. */
  file(id: number): MappedFile {
    const known = this.#files.get(id);
    if (known) return known;
    this.agent.checkUsable("file");
    const slot = this.mm.useFileById(id);
    if (slot === 0) throw new MmError("ESRCH", "file", `no file with id ${id}`);
    const core = fileAt(this.mm, slot);
    const file = new MappedFile(core, core.name || `file ${id}`, () => this.#files.delete(id));
    this.#files.set(id, file);
    return file;
  }

  // ---- this agent ------------------------------------------------------------------------------------------------------

  /** A safepoint in a long synchronous loop: answers others, runs callbacks asked of this agent, ends the turn for views. */
  poll(): void {
    this.agent.checkNotInCallback("poll");
    this.agent.poll();
    runReadyTasks(this.agent);
  }

  /**
   * Waits until `words[index]` is no longer `value` and somebody notifies, instead of a bare Atomics.wait: others need
   * not wait for this agent meanwhile. Errors: EINVAL unless the words are shared.
   */
  async wait(
    words: Int32Array,
    index: number,
    value: number,
    timeoutMs: number = Number.POSITIVE_INFINITY,
  ): Promise<WaitResult> {
    this.#checkWords(words, index);
    return await waitWord(this.mm, words, index, value, timeoutMs);
  }

  #checkWords(words: Int32Array, index: number): void {
    if (!(words instanceof Int32Array) || !(words.buffer instanceof SharedArrayBuffer) || !(index in words)) {
      throw new MmError("EINVAL", "wait", "needs an Int32Array over shared memory and an index in it");
    }
  }

  /** Words of zeros that every agent can reach: `memory.allocShared` of one agent is shared by its byteOffset. Errors: ENOMEM. */
  allocShared(bytes: number): Int32Array {
    if (!Number.isInteger(bytes) || bytes <= 0)
      throw new MmError("EINVAL", "allocShared", "bytes must be a whole number above 0");
    const words = Math.ceil(bytes / 4);
    const at = allocWords(this.agent, this.mm.heap, words);
    if (at === 0) throw arenaFull("allocShared");
    return this.agent.words.subarray(at, at + words);
  }

  /** Reclaims file pages; returns the bytes actually freed. May wait. */
  reclaim(bytes: number): Promise<number> {
    return runAsync(this.agent, this.#ops.reclaim(bytes));
  }

  *#reclaimOp(bytes: number): Op<number> {
    this.agent.checkUsable("reclaim");
    if (!(bytes > 0)) throw new MmError("EINVAL", "reclaim", "bytes must be above 0");
    return (yield* reclaimOp(this.mm, Math.ceil(bytes / this.pageSize))) * this.pageSize;
  }

  /** A name for a driver, for Migrate and Exclusive events. */
  newOwnerId(): OwnerId {
    return Atomics.add(this.agent.words, this.mm.header + MM_OWNERS, 1) + 1;
  }

  /** The bytes of `pages` frames from `pfn` on: for secondary MMUs that hold frame numbers from rangeFault(). */
  frame(pfn: number, pages = 1): Uint8Array {
    return this.mm.frames.bytesOf(pfn, pages);
  }

  // ---- looking -----------------------------------------------------------------------------------------------------------

  stats(): MemoryStats {
    const { mm } = this;
    const { frames } = mm;
    let file = 0;
    let anon = 0;
    let dirty = 0;
    for (let pfn = 1; pfn < frames.count; pfn++) {
      if (frames.refcount(pfn) === 0) continue;
      const flags = frames.flags(pfn);
      if ((flags & PG_ANON) !== 0) anon++;
      else if (frames.mapping(pfn) !== 0) file++;
      if ((flags & PG_DIRTY) !== 0) dirty++;
    }
    let pinned = 0;
    for (let slot = 0; slot < mm.maxAgents; slot++) pinned += viewedFrames(mm, slot).length;
    const free = Math.max(0, frames.free);
    const agents = [];
    for (let slot = 0; slot < this.agent.top(); slot++) {
      if (!this.agent.isLive(slot)) continue;
      agents.push({
        slot,
        minor: mm.countedBy(slot, CT_MINOR),
        major: mm.countedBy(slot, CT_MAJOR),
        cow: mm.countedBy(slot, CT_COW),
      });
    }
    return {
      pageSize: this.pageSize,
      frames: {
        total: frames.count,
        free,
        used: frames.count - free,
        peak: Atomics.load(this.agent.words, frames.header + MEM_PEAK),
        file,
        anon,
        dirty,
        pinned,
      },
      devicePages: usedDevicePages(mm),
      arenaBytes: heapUsedWords(this.agent, mm.heap) * 4,
      faults: { minor: mm.counted(CT_MINOR), major: mm.counted(CT_MAJOR), cow: mm.counted(CT_COW) },
      evictions: mm.counted(CT_EVICTIONS),
      writebacks: mm.counted(CT_WRITEBACKS),
      events: Object.fromEntries(EVENT_NAMES.map((name, event) => [name, mm.counted(CT_EVENTS + event)])),
      agents,
    };
  }

  /** Verifies every invariant; the first thing wrong, or undefined. While no operation runs in any agent. */
  check(): string | undefined {
    return checkMemory(this.mm);
  }

  // ---- death and the end -------------------------------------------------------------------------------------------------

  /** Notices when this worker dies, whatever it was doing, and gives back what it held. Call it for every worker that attaches. */
  adopt(worker: WorkerLike): void {
    const thread = worker.threadId;
    if (thread === undefined || typeof worker.once !== "function") {
      throw new MmError("ENOTSUP", "adopt", "needs a worker of node:worker_threads");
    }
    const gone = (): void => {
      for (const slot of slotsOfThread(this.agent, thread)) reap(this.agent, slot);
      this.#adopted.delete(forget);
    };
    const forget = (): void => void worker.off?.("exit", gone);
    worker.once("exit", gone);
    this.#adopted.add(forget);
  }

  #reap(slot: number, ownerId: number): string | undefined {
    const { mm, agent } = this;
    dropDead(mm, slot);
    let held: string | undefined;
    mm.unprotect(slot);
    reapFutexes(mm, ownerId);
    reapDevices(mm, ownerId);
    for (const record of mm.useAllSpaces()) {
      const space = mm.spaceAt(record);
      try {
        if (reapRwSem(agent, record + SP_MMAP_LOCK, slot, ownerId)) held = "a space's mmapLock";
        held = space.notifiers.reap(slot, ownerId) ?? held;
        settleDead(space, slot);
        for (const table of takeTlbs(mm, record, slot)) mm.free(table, tlbWords(mm.tlbEntries));
        Atomics.store(agent.words, spUsersAt(record, mm.maxAgents, slot), 0);
      } finally {
        unuseSpace(space);
      }
    }
    const locked = mm.frames.findLockedBy(slot);
    return locked < 0 ? held : `the lock of frame ${locked}`;
  }

  /**
   * Leaves the memory: this agent's slot and its handles of files are given up, everything else goes on.
   * Errors: EBUSY while something is pending; try again later.
   */
  detach(): void {
    if (this.agent.detached) return;
    for (const file of [...this.#files.values()]) file.giveUp();
    if (this.agent.tasks.size > 0 || this.agent.hostWaits > 0)
      throw new MmError("EBUSY", "detach", "operations of this agent are pending");
    for (const forget of this.#adopted) forget();
    this.#adopted.clear();
    this.agent.leave();
    reapDevices(this.mm, this.agent.ownerId);
    this.mm.pins.dropAll();
    // Other agents may end spaces meanwhile: their subscriptions stay until we have looked through them.
    const held = this.mm.useAllSpaces();
    dropSubscriptions(this.agent);
    for (const slot of held) unuseSpace(this.mm.spaceAt(slot));
    for (const space of this.mm.spaces.values()) space.freeTlb();
    for (const backing of this.mm.backings.values()) backing.close?.();
    this.mm.backings.clear();
    this.agent.detach();
  }

  /** Writes dirty shared file pages back, ends every space, and leaves. Errors: EIO if a write-back failed, after all else is done. */
  async close(): Promise<void> {
    const { mm, agent } = this;
    if (agent.detached) return;
    let failure: unknown;
    for (const id of mm.allFiles().map((file) => Atomics.load(agent.words, file + FL_ID))) {
      const slot = mm.useFileById(id);
      if (slot === 0) continue;
      const file = fileAt(mm, slot);
      try {
        if (file.writable) await runAsync(agent, syncFileOp(file, 0, file.pages));
      } catch (error) {
        failure ??= error;
      }
      unuseFile(mm, slot);
    }
    for (const slot of mm.useAllSpaces()) {
      const space = mm.spaceAt(slot) as AddressSpace;
      try {
        await space.exit();
      } catch (error) {
        failure ??= error;
      }
      unuseSpace(space);
    }
    for (const file of [...this.#files.values()]) {
      try {
        await file.close();
      } catch (error) {
        failure ??= error;
      }
    }
    await Promise.all(mm.closing);
    this.detach();
    if (failure !== undefined) throw failure as Error;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

const PAGE_SIZES: readonly number[] = [4096, 16384, 65536];
/** A device has a multiple of so many pages. */
const DEVICE_GROUP = 32;

function bytesOption(value: number | string, name: string): number {
  const bytes = parseBytes(value);
  if (!Number.isFinite(bytes) || bytes <= 0) {
    throw new MmError(
      "EINVAL",
      "createMemory",
      `${name} must be bytes or a size such as "256 MiB", not ${String(value)}`,
    );
  }
  return bytes;
}

/**
 * Makes a memory of `budget` bytes and attaches this agent to it.
 * Errors: EINVAL, ENOMEM if the platform does not give that much, ENOTSUP without cross-origin isolation, or for `mayBlock`
 * where the platform forbids it.
 */
export async function createMemory(options: MemoryOptions): Promise<PhysicalMemory> {
  if (typeof SharedArrayBuffer === "undefined") {
    throw new MmError(
      "ENOTSUP",
      "createMemory",
      "shared memory is not available; serve the page with Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp",
    );
  }
  const mayBlock = mayBlockHere("createMemory", options.mayBlock);
  const pageSize = options.pageSize ?? 4096;
  if (!PAGE_SIZES.includes(pageSize)) {
    throw new MmError("EINVAL", "createMemory", `pageSize must be one of ${PAGE_SIZES.join(", ")}`);
  }
  const budgetBytes = bytesOption(options.budget, "budget");
  const least = MIN_FRAMES * pageSize;
  if (budgetBytes < least) {
    throw new MmError(
      "EINVAL",
      "createMemory",
      `budget must be at least ${least / 1024} KiB with pages of ${pageSize} bytes`,
    );
  }
  if (budgetBytes / pageSize > PFN_LIMIT) {
    throw new MmError(
      "ENOMEM",
      "createMemory",
      `budget must be at most ${(PFN_LIMIT * pageSize) / 1024 ** 3} GiB with this page size`,
    );
  }
  const group = DEVICE_GROUP * pageSize;
  // What is not asked for gives way.
  const most = Math.floor((PFN_LIMIT * pageSize - budgetBytes) / group - 1) * group;
  const deviceBytes =
    options.deviceMemory === undefined
      ? Math.max(0, Math.min(most, Math.ceil(budgetBytes / group) * group))
      : Math.ceil(bytesOption(options.deviceMemory, "deviceMemory") / group) * group;
  if (deviceBytes > Math.max(0, most)) {
    throw new MmError(
      "ENOMEM",
      "createMemory",
      `budget and deviceMemory together must be less than ${(PFN_LIMIT * pageSize) / 1024 ** 3} GiB with this page size`,
    );
  }
  const handle = createArena({
    budgetBytes: Math.floor(budgetBytes / pageSize) * pageSize,
    deviceBytes,
    pageSize,
    arenaBytes: options.arena === undefined ? undefined : bytesOption(options.arena, "arena"),
    faultAroundBytes: options.faultAround ?? 65536,
    ...clustering(options, pageSize),
    maxAgents: options.maxAgents ?? 64,
    debug: options.debug ?? false,
  });
  return attach(handle, { mayBlock });
}

/** Errors: EINVAL. */
function clustering(
  options: MemoryOptions,
  pageSize: number,
): { folioBytes: number; readAheadBytes: number } {
  const folioBytes = options.folio ?? Math.max(CLUSTER_BYTES, pageSize);
  const readAheadBytes = options.readAhead ?? folioBytes;
  const fits = (bytes: number, most: number): boolean =>
    bytes >= pageSize && bytes <= most && Number.isInteger(Math.log2(bytes));
  if (!fits(folioBytes, Math.max(CLUSTER_BYTES, pageSize)))
    throw new MmError("EINVAL", "createMemory", "folio must be a power of two bytes, from a page to 65536");
  if (!fits(readAheadBytes, 2 ** 30) || readAheadBytes < folioBytes)
    throw new MmError(
      "EINVAL",
      "createMemory",
      "readAhead must be a power of two bytes, from a folio to 1 GiB",
    );
  return { folioBytes, readAheadBytes };
}

/** True where the platform lets this thread sleep; the main thread of a page and service workers may not. */
function canBlock(): boolean {
  try {
    // The word has another value, so this never sleeps; whether it might is looked at first.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 1, 0);
    return true;
  } catch {
    return false;
  }
}

function mayBlockHere(operation: string, wanted: boolean | undefined): boolean {
  if (wanted === true && !canBlock()) {
    throw new MmError("ENOTSUP", operation, "the platform forbids this thread to block; leave mayBlock out");
  }
  return wanted ?? (!host().isMainThread && canBlock());
}

/**
 * Attaches this agent to a memory that another made.
 * Errors: EAGAIN if all agent slots are taken, EINVAL for a foreign handle, ENOTSUP for `mayBlock` where that is forbidden.
 */
export async function attach(
  handle: MemoryHandle,
  options: { mayBlock?: boolean } = {},
): Promise<PhysicalMemory> {
  if (handle?.kind !== "bifolio")
    throw new MmError("EINVAL", "attach", "needs the handle of a PhysicalMemory");
  const { tid, thread } = host();
  const agent = attachAgent(handle.memories[0]!.buffer, {
    mayBlock: mayBlockHere("attach", options.mayBlock),
    tid,
    thread,
  });
  return new PhysicalMemory(agent, handle);
}
