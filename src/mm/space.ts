/** AddressSpace: what users see of a space. Linux: the mm_struct of a process, through its system calls. */
import { arenaFull, isMmError, MmError } from "../errors.ts";
import { allocWords, itLowest, itSuccessor, PG_UNUSED, PG_UPTODATE, ZERO_PFN } from "../memory/index.ts";
import { createSubscriptions, Notifiers, type NotifierSpace, type Subs } from "../notifier/index.ts";
import {
  checkLiveness,
  type Immediate,
  type Op,
  runAsync,
  runBlocking,
  syncFacet,
  tryFacet,
} from "../sched/index.ts";
import { readChanged, readSequence } from "../sync/index.ts";
import { missingOf, type Span, SpaceAccess } from "./access.ts";
import type { Advice } from "./advice.ts";
import { clearRefsOp, type Refs } from "./clearRefs.ts";
import { exitOp } from "./exit.ts";
import { faultOp } from "./fault.ts";
import { unuseFile } from "./files.ts";
import {
  checkCount,
  enterFutex,
  FW_WOKEN,
  type FutexKey,
  leaveFutex,
  notifyFutex,
  tryKeyOf,
} from "./futex.ts";
import { MappedFile } from "./mappedFile.ts";
import { type WaitResult, waitWord, waitWordSync } from "./waitWord.ts";
import { forkOp } from "./fork.ts";
import {
  FL_ID,
  type Space,
  SP_ID,
  SP_MMAP_LOCK,
  SP_PGD,
  SP_STATE,
  SP_SUBS,
  SP_VMA_SEQ,
  SP_VMAS,
  spaceWords,
  VM_ACCOUNT,
  VM_DONTCOPY,
  VM_EXEC,
  VM_LOCKED,
  VM_LOCKONFAULT,
  VM_NORESERVE,
  VM_RAND_READ,
  VM_READ,
  VM_SEQ_READ,
  VM_SHARED,
  VM_WIPEONFORK,
  VM_WRITE,
  type Vma as VmaSlot,
} from "./layout.ts";
import { unuseSpace, useSpace, usingOp } from "./lifetime.ts";
import { madviseOp } from "./madvise.ts";
import { mlockOp, munlockOp } from "./mlock.ts";
import type { Mm } from "./mm.ts";
import type { PhysicalMemory } from "./memory.ts";
import { type MapRequest, mmapOp, munmapOp } from "./mmap.ts";
import { mprotectNow, mprotectOp } from "./mprotect.ts";
import { type MoveOptions, mremapOp } from "./mremap.ts";
import { type MsyncFlags, msyncOp } from "./msync.ts";
import { fileAt, mapsFilePage } from "./pageCache.ts";
import { Pin } from "./pin.ts";
import { faultPagesOp, populateOp } from "./populate.ts";
import {
  isSpecial,
  isValid,
  kindOfPte,
  pfnOfPte,
  PTE_ACCESSED,
  PTE_DIRTY,
  PTE_GUARD,
  PTE_SOFT_DIRTY,
} from "./pte.ts";
import { inSharedTable, loadPte } from "./pageTables.ts";
import { createRadix, destroyRadix, radixStretches } from "./radix.ts";
import { extentOf, notMapped, type Prot } from "./ranges.ts";
import { LAST_VPN } from "./spaceCore.ts";
import { fileIndexOf, vmaEnd, vmaFile, vmaFlags, vmaStart } from "./vma.ts";

/** The tree changes for a microsecond at a time: after so many rounds its writer may be dead. */
const ROUNDS_BEFORE_LOOK = 10_000;

/** One mapping, as /proc/PID/maps shows it. */
export interface Vma {
  /** Bytes; `end` is exclusive. */
  readonly start: number;
  readonly end: number;
  /** "rwx" with "-" for what is forbidden. */
  readonly prot: string;
  readonly share: "private" | "shared";
  /** Id of the file, undefined for anonymous memory. */
  readonly file: number | undefined;
  /** Bytes into the file. */
  readonly offset: number;
  /**
   * As VmFlags of /proc/PID/smaps, in alphabetical order: ac accounted, dc not copied on fork, lf locked on fault, lo
   * locked, nr no reserve, rr random, sr sequential, wf wiped on fork.
   */
  readonly flags: readonly string[];
}

const FLAG_NAMES: readonly (readonly [number, string])[] = [
  [VM_ACCOUNT, "ac"],
  [VM_DONTCOPY, "dc"],
  [VM_LOCKONFAULT, "lf"],
  [VM_LOCKED, "lo"],
  [VM_NORESERVE, "nr"],
  [VM_RAND_READ, "rr"],
  [VM_SEQ_READ, "sr"],
  [VM_WIPEONFORK, "wf"],
];

/** One page, as /proc/PID/pagemap shows it. */
export interface PagemapEntry {
  readonly present: boolean;
  readonly file: boolean;
  readonly zero: boolean;
  /** Only this one entry maps it. */
  readonly exclusive: boolean;
  /** Not present, and kept for the mapping: on a device, a device's own, on its way, or lost. */
  readonly swapped: boolean;
  /** A guard page: an access is a SegvError. */
  readonly guard: boolean;
  readonly young: boolean;
  readonly dirty: boolean;
  readonly softDirty: boolean;
}

/** Where this version's mmap takes its file from. */
export interface MmapOptions extends Omit<MapRequest, "file"> {
  readonly file?: MappedFile;
}

export interface SpaceOperations {
  mmap(m: MmapOptions): Op<number>;
  munmap(address: number, length: number): Op<void>;
  mprotect(address: number, length: number, prot: Prot): Op<void>;
  mremap(address: number, oldLength: number, newLength: number, options?: MoveOptions): Op<number>;
  madvise(address: number, length: number, advice: Advice): Op<void>;
  msync(address: number, length: number, flags?: MsyncFlags): Op<void>;
  mlock(address: number, length: number, options?: { readonly onFault?: boolean }): Op<void>;
  munlock(address: number, length: number): Op<void>;
  clearRefs(what: Refs): Op<void>;
  fork(): Op<AddressSpace>;
  populate(address: number, length: number, access?: "r" | "rw"): Op<void>;
  read(address: number, into: Uint8Array): Op<void>;
  write(address: number, from: Uint8Array): Op<void>;
  forEachSpan(
    address: number,
    length: number,
    access: "r" | "rw",
    fn: (span: Span, address: number) => void,
  ): Op<void>;
  pin(address: number, length: number, access: "r" | "rw"): Op<Pin>;
  exit(): Op<void>;
}

/** Int32 operations on mapped words, address a multiple of 4. Each is a safepoint; faults as an access does. */
export interface SpaceAtomics {
  load(address: number): number;
  store(address: number, value: number): number;
  add(address: number, value: number): number;
  and(address: number, value: number): number;
  or(address: number, value: number): number;
  xor(address: number, value: number): number;
  exchange(address: number, value: number): number;
  compareExchange(address: number, expected: number, replacement: number): number;
  /**
   * Waits until the word is notified, if it is `value` now; the agent is idle meanwhile. Words of shared files are the
   * same in every space that maps them. Linux: futex(FUTEX_WAIT).
   */
  wait(address: number, value: number, timeoutMs?: number): Promise<WaitResult>;
  /** Wakes up to `count` of those who wait for the word, all by default; returns how many. Never waits. Linux: futex(FUTEX_WAKE). */
  notify(address: number, count?: number): number;
}

/** What blocks in this agent, or is EAGAIN. */
export interface SyncAtomics {
  wait(address: number, value: number, timeoutMs?: number): WaitResult;
}

/**
 * A virtual address space that every agent can use. Operations come three times: the Promise form here, `sync` (blocks
 * where the agent may block, else as `try`) and `try` (never waits: EAGAIN, no step half done).
 * Addresses and lengths are bytes. After exit() everything is ESRCH.
 */
export class AddressSpace extends SpaceAccess implements NotifierSpace, AsyncDisposable {
  // Made when they are asked for: a fork should cost no more than the child that is used so.
  #operations: SpaceOperations | undefined;
  #sync: (Immediate<SpaceOperations> & { readonly atomics: SyncAtomics }) | undefined;
  #try: Immediate<SpaceOperations> | undefined;
  #atomics: SpaceAtomics | undefined;

  /** What this agent has of the memory that the space is in. */
  get memory(): PhysicalMemory {
    return this.mm.memory;
  }

  /** @internal */
  constructor(mm: Mm, slot: Space) {
    super(mm, slot, (space) => {
      const subs = Atomics.load(mm.agent.words, slot + SP_SUBS) as Subs;
      return new Notifiers(mm.agent, mm.heap, subs, space as AddressSpace, mm.pageShift);
    });
  }

  get #ops(): SpaceOperations {
    return (this.#operations ??= {
      mmap: (m) => this.#mmapOp(m),
      munmap: (address, length) => munmapOp(this, address, length),
      mprotect: (address, length, prot) => mprotectOp(this, address, length, prot),
      madvise: (address, length, advice) => madviseOp(this, address, length, advice),
      mremap: (address, oldLength, newLength, options = {}) =>
        mremapOp(this, address, oldLength, newLength, options),
      msync: (address, length, flags = {}) => msyncOp(this, address, length, flags),
      mlock: (address, length, options = {}) => mlockOp(this, address, length, options.onFault ?? false),
      munlock: (address, length) => munlockOp(this, address, length),
      clearRefs: (what) => clearRefsOp(this, what),
      fork: () => this.#forkOp(),
      populate: (address, length, access = "r") => populateOp(this, address, length, access),
      read: (address, into) => this.copyOp("read", address, into, false),
      write: (address, from) => this.copyOp("write", address, from, true),
      forEachSpan: (address, length, access, fn) => this.#forEachSpanOp(address, length, access, fn),
      pin: (address, length, access) => this.#pinOp(address, length, access),
      exit: () => exitOp(this),
    });
  }

  /** The operations that block where this agent may block, else as `try`. */
  get sync(): Immediate<SpaceOperations> & { readonly atomics: SyncAtomics } {
    return (this.#sync ??= {
      ...syncFacet(this.agent, this.#ops),
      ...(this.agent.mayBlock && { mprotect: (...args) => this.#mprotectSync(...args) }),
      atomics: { wait: (...args) => this.#waitSync(...args) },
    });
  }

  #mprotectSync(address: number, length: number, prot: Prot): void {
    this.agent.checkNotInCallback("sync");
    const rest = mprotectNow(this, address, length, prot);
    if (rest) runBlocking(this.agent, rest);
  }

  /** The operations that never wait: EAGAIN instead, no step half done. */
  get try(): Immediate<SpaceOperations> {
    return (this.#try ??= tryFacet(this.agent, this.#ops));
  }

  /** Atomic operations on mapped memory, and waiting on it. */
  get atomics(): SpaceAtomics {
    return (this.#atomics ??= {
      ...makeAtomics(this),
      wait: (address, value, timeoutMs = Number.POSITIVE_INFINITY) => this.#wait(address, value, timeoutMs),
      notify: (address, count = Number.POSITIVE_INFINITY) => {
        checkCount(count);
        this.#checkWord(address);
        return notifyFutex(this.mm, this.#keyOf(address), count);
      },
    });
  }

  // ---- mappings -------------------------------------------------------------------------------------------------------

  /**
   * Maps anonymous memory or a file; returns the address. May wait. Private file pages are copied on the first write,
   * shared ones are the file's own. Errors: EINVAL, ENOMEM, EACCES (shared and writable on a read-only file), EEXIST
   * (`fixed: "noreplace"`), EOVERFLOW, ESRCH. Linux: mmap().
   */
  mmap(m: MmapOptions): Promise<number> {
    return runAsync(this.agent, this.#mmapOp(m));
  }

  *#mmapOp(m: MmapOptions): Op<number> {
    if (typeof m !== "object" || m === null)
      throw new MmError("EINVAL", "mmap", "needs an object with length, prot, share");
    const { file } = m;
    if (file === undefined) return yield* mmapOp(this, m as MapRequest, undefined);
    if (!(file instanceof MappedFile) || file.core.mm !== this.mm) {
      throw new MmError("EINVAL", "mmap", "file must come from openFile() or file() of this memory");
    }
    return yield* file.useOp("mmap", () => mmapOp(this, m, file.core));
  }

  /** Unmaps every page of the range; holes are fine. May wait. Errors: EINVAL, ENOMEM, ECALLBACK, ESRCH. Linux: munmap(). */
  munmap(address: number, length: number): Promise<void> {
    return runAsync(this.agent, this.#ops.munmap(address, length));
  }

  /**
   * Changes what accesses are allowed. May wait. Errors: EINVAL, ENOMEM at a hole and EACCES at a read-only shared file
   * (what lies before is changed), ECALLBACK, ESRCH. Linux: mprotect().
   */
  mprotect(address: number, length: number, prot: Prot): Promise<void> {
    return runAsync(this.agent, this.#ops.mprotect(address, length, prot));
  }

  /**
   * Shrinks, grows or moves a mapping with its pages; returns its address. Only with `mayMove` to another place, of its own
   * choice or `to`, where what was mapped is unmapped. `dontUnmap` leaves the old mapping behind, empty. Length 0 maps
   * shared pages a second time. May wait. Errors: EINVAL, EFAULT where nothing or not one mapping is, ENOMEM, ECALLBACK,
   * ESRCH. Linux: mremap().
   */
  mremap(address: number, oldLength: number, newLength: number, options: MoveOptions = {}): Promise<number> {
    return runAsync(this.agent, this.#ops.mremap(address, oldLength, newLength, options));
  }

  /**
   * Says what will become of the pages of a range. May wait. A hole is ENOMEM, after the rest has been done. Errors: EINVAL
   * for unknown advice and where a mapping refuses it (what lies before is done), EACCES ("remove" of a file not opened for
   * writing), EFAULT ("populate-…" where there is nothing to bring in), ECALLBACK, ESRCH. Linux: madvise().
   */
  madvise(address: number, length: number, advice: Advice): Promise<void> {
    return runAsync(this.agent, this.#ops.madvise(address, length, advice));
  }

  /**
   * Writes dirty pages of shared file mappings in the range back. May wait. Errors: EIO, EINVAL, EBUSY (`invalidate` of a
   * locked mapping), ENOMEM at a hole, after the rest. Linux: msync(MS_SYNC); MS_ASYNC with `async`.
   */
  msync(address: number, length: number, flags: MsyncFlags = {}): Promise<void> {
    return runAsync(this.agent, this.#ops.msync(address, length, flags));
  }

  /**
   * Keeps the pages that a range touches in memory, and brings them in, or with `onFault` as they are used. May wait.
   * Errors: ENOMEM at a hole (what lies before it is locked) or where a page cannot be brought in. Linux: mlock2().
   */
  mlock(address: number, length: number, options: { readonly onFault?: boolean } = {}): Promise<void> {
    return runAsync(this.agent, this.#ops.mlock(address, length, options));
  }

  /** The opposite of mlock(). May wait. Errors: ENOMEM at a hole. Linux: munlock(). */
  munlock(address: number, length: number): Promise<void> {
    return runAsync(this.agent, this.#ops.munlock(address, length));
  }

  /** Clears the accessed or the soft-dirty bits of all pages: see pagemap(). May wait. Linux: /proc/PID/clear_refs, 1 and 4. */
  clearRefs(what: Refs): Promise<void> {
    return runAsync(this.agent, this.#ops.clearRefs(what));
  }

  /**
   * A copy of the space as it is at one moment for all agents; pages are copied when one of the two writes. Shared mappings
   * stay shared; notifiers and locks are not inherited. The child ends by its own exit(). May wait. Errors: ENOMEM,
   * ECALLBACK, ESRCH. Linux: fork().
   */
  fork(): Promise<AddressSpace> {
    return runAsync(this.agent, this.#ops.fork());
  }

  *#forkOp(): Op<AddressSpace> {
    return this.mm.spaceAt(yield* forkOp(this, createSpaceRecord)) as AddressSpace;
  }

  /** Faults in every page of the range that does not allow `access` yet ("r"). May wait. Errors: as an access. Linux: MADV_POPULATE_*. */
  populate(address: number, length: number, access: "r" | "rw" = "r"): Promise<void> {
    return runAsync(this.agent, this.#ops.populate(address, length, access));
  }

  /** Ends the space: notifiers get release, everything is unmapped. May wait. Once; later use is ESRCH. Linux: exit_mmap(). */
  exit(): Promise<void> {
    return runAsync(this.agent, exitOp(this));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.live) await this.exit();
  }

  // ---- access ---------------------------------------------------------------------------------------------------------

  /** Copies bytes out of the space. May wait. Errors: SegvError, BusError after the bytes before were copied; ENOMEM, ESRCH. */
  read(address: number, into: Uint8Array): Promise<void> {
    return runAsync(this.agent, this.#ops.read(address, into));
  }

  /** Copies bytes into the space. May wait. Errors: as read(). */
  write(address: number, from: Uint8Array): Promise<void> {
    return runAsync(this.agent, this.#ops.write(address, from));
  }

  /**
   * The bytes in place, in pieces that lie together; each is valid until this turn ends or memory.poll(). Faults as an
   * access does: blocks where the agent may, else EAGAIN. The frames are pinned meanwhile: ENOMEM if the range is larger
   * than what the budget has left.
   */
  *spans(address: number, length: number, access: "r" | "rw" = "r"): Generator<Span, void, void> {
    const end = this.#endOf("spans", address, length);
    for (let at = address; at < end;) {
      const { span } = this.takeSpan(at, end, access === "rw");
      yield span;
      at += span.length;
    }
  }

  /** Calls `fn` with each piece in place and drops it afterwards: the streaming form, for ranges of any size. May wait. */
  forEachSpan(
    address: number,
    length: number,
    access: "r" | "rw",
    fn: (span: Span, address: number) => void,
  ): Promise<void> {
    return runAsync(this.agent, this.#forEachSpanOp(address, length, access, fn));
  }

  *#forEachSpanOp(
    address: number,
    length: number,
    access: "r" | "rw",
    fn: (span: Span, address: number) => void,
  ): Op<void> {
    const end = this.#endOf("forEachSpan", address, length);
    const write = access === "rw";
    const { views } = this.mm;
    for (let at = address; at < end;) {
      const { span, pfn, pages } = yield* this.takeSpanOp(at, end, write, views);
      const { epoch } = views;
      try {
        fn(span, at);
      } finally {
        // `fn` may have polled, which dropped it, and taken views of its own, which stay.
        if (views.epoch === epoch) views.drop(pfn, pages, write);
      }
      at += span.length;
    }
  }

  /**
   * Brings a range in and holds its pages in place until the pin is given back (`await using`, or its unpin()), or this agent
   * leaves or dies. "rw": every page becomes the mapping's own first. May wait. Errors: as an access; ENOMEM where the
   * budget has no frames for so many. Then nothing is held. Linux: pin_user_pages().
   */
  pin(address: number, length: number, access: "r" | "rw"): Promise<Pin> {
    return runAsync(this.agent, this.#pinOp(address, length, access));
  }

  *#pinOp(address: number, length: number, access: "r" | "rw"): Op<Pin> {
    if (access !== "r" && access !== "rw")
      throw new MmError("EINVAL", "pin", 'access must be "r" or "rw"', {
        range: { start: address, end: address },
      });
    const end = this.#endOf("pin", address, length);
    const { pins, pageSize } = this.mm;
    const pin = new Pin(this.mm);
    const write = access === "rw";
    let whole = false;
    try {
      // First, so that what lies together becomes one piece. Where the range ends beyond all pages an access below says so.
      if (end <= LAST_VPN * pageSize) {
        const [first, last] = [address - (address % pageSize), Math.ceil(end / pageSize) * pageSize];
        yield* usingOp(this, "pin", () => faultPagesOp(this, first, last, write));
      }
      for (let at = address; at < end;) {
        const { span, run } = yield* this.takeSpanOp(at, end, write, pins);
        pin.hold(span, run);
        at += span.length;
      }
      whole = true;
      return pin;
    } finally {
      if (!whole) pin.unpin();
    }
  }

  #endOf(operation: string, address: number, length: number): number {
    if (!Number.isSafeInteger(address) || address < 0 || !Number.isSafeInteger(length) || length < 0) {
      throw new MmError(
        "EINVAL",
        operation,
        "address and length must be whole numbers of bytes, not negative",
      );
    }
    return address + length;
  }

  // ---- waiting for a word ---------------------------------------------------------------------------------------------

  #checkWord(address: number): void {
    if (!Number.isSafeInteger(address) || address < 0 || address % 4 !== 0)
      throw new MmError("EINVAL", "atomics", "the address must be a multiple of 4");
    this.agent.checkNotInCallback("atomics");
  }

  /** What a word is known by. Never waits. */
  #keyOf(address: number): FutexKey {
    const { pageSize } = this.mm;
    const key = tryKeyOf(this, address);
    if (key) return key;
    const vma = this.#listVmas("atomics").find(({ start, end }) => start <= address && address < end);
    const shared = vma?.share === "shared" && vma.file !== undefined ? vma : undefined;
    const at = shared ? shared.offset + (address - shared.start) : address;
    return { id: shared?.file ?? this.id, page: Math.floor(at / pageSize), offset: at % pageSize };
  }

  /** Enters a waiter; 0 if the word is not `value`. */
  #enter(address: number, value: number): { key: FutexKey; waiter: number } {
    this.#checkWord(address);
    for (;;) {
      this.atomicWord(address, false); // brings the page in, which may wait
      const key = this.#keyOf(address);
      const word = this.peekWord(address);
      if (word) return { key, waiter: enterFutex(this.mm, key, word.words, word.index, value) };
    }
  }

  async #wait(address: number, value: number, timeoutMs: number): Promise<WaitResult> {
    const { key, waiter } = await this.run(() => this.#enter(address, value));
    if (waiter === 0) return "not-equal";
    let woken = false;
    try {
      await waitWord(this.mm, this.agent.words, waiter + FW_WOKEN, 0, timeoutMs);
    } finally {
      woken = leaveFutex(this.mm, key, waiter);
    }
    return woken ? "ok" : "timed-out";
  }

  #waitSync(address: number, value: number, timeoutMs = Number.POSITIVE_INFINITY): WaitResult {
    const { key, waiter } = this.#enter(address, value);
    if (waiter === 0) return "not-equal";
    let woken = false;
    try {
      waitWordSync(this.mm, this.agent.words, waiter + FW_WOKEN, 0, timeoutMs);
    } finally {
      woken = leaveFutex(this.mm, key, waiter);
    }
    return woken ? "ok" : "timed-out";
  }

  /** Runs a synchronous `fn`; where an access in it ends with EAGAIN, brings in what was missing and runs it again. */
  async run<T>(fn: () => T): Promise<T> {
    for (;;) {
      try {
        return fn();
      } catch (error) {
        const lacks = isMmError(error, "EAGAIN") ? missingOf(error) : undefined;
        if (!lacks) throw error;
        await runAsync(this.agent, faultOp(lacks.space, lacks.vpn, lacks.write));
      }
    }
  }

  // ---- looking, without waiting ---------------------------------------------------------------------------------------

  /** The mappings in order of address. Never waits. Linux: /proc/PID/maps. */
  vmas(): Vma[] {
    return this.#listVmas("vmas");
  }

  #listVmas(operation: string): Vma[] {
    const { agent } = this;
    useSpace(this, operation);
    try {
      for (let round = 1; ; round++) {
        const list = this.#tryListVmas();
        if (list) return list;
        if (round % ROUNDS_BEFORE_LOOK !== 0) continue;
        // The writer's id stands in the first word of the lock. One that died inside its section poisons the memory.
        checkLiveness(agent, Atomics.load(agent.words, this.slot + SP_MMAP_LOCK));
        agent.checkUsable(operation);
      }
    } finally {
      unuseSpace(this);
    }
  }

  /** The mappings, undefined if they changed while they were read. */
  #tryListVmas(): Vma[] | undefined {
    const { agent } = this;
    const seen = readSequence(agent, this.slot + SP_VMA_SEQ);
    const list: Vma[] = [];
    try {
      for (
        let vma = itLowest(agent, this.slot + SP_VMAS) as VmaSlot;
        ;
        vma = itSuccessor(agent, vma) as VmaSlot
      ) {
        // Before each step: a torn tree may lead anywhere, also round and round.
        if (readChanged(agent, this.slot + SP_VMA_SEQ, seen)) return undefined;
        if (vma === 0) return list;
        list.push(this.#describe(vma));
      }
    } catch (error) {
      if (!readChanged(agent, this.slot + SP_VMA_SEQ, seen)) throw error;
      return undefined;
    }
  }

  #describe(vma: VmaSlot): Vma {
    const start = vmaStart(this, vma);
    const flags = vmaFlags(this, vma);
    const file = vmaFile(this, vma);
    return {
      start,
      end: vmaEnd(this, vma),
      prot:
        ((flags & VM_READ) !== 0 ? "r" : "-") +
        ((flags & VM_WRITE) !== 0 ? "w" : "-") +
        ((flags & VM_EXEC) !== 0 ? "x" : "-"),
      share: (flags & VM_SHARED) !== 0 ? "shared" : "private",
      file: file === 0 ? undefined : Atomics.load(this.agent.words, file + FL_ID),
      offset: file === 0 ? 0 : fileIndexOf(this, vma, start / this.mm.pageSize) * this.mm.pageSize,
      flags: FLAG_NAMES.filter(([flag]) => (flags & flag) !== 0).map(([, name]) => name),
    };
  }

  /**
   * One byte a page, 1 where it is in memory: mapped, or in the cache of the mapped file. Never waits. Errors: EINVAL,
   * ENOMEM at a hole. Linux: mincore().
   */
  mincore(address: number, length: number): Uint8Array {
    const { start, end } = extentOf(this, "mincore", address, length, { beyond: "ENOMEM" });
    const { pageSize } = this.mm;
    const vmas = this.#listVmas("mincore").filter((vma) => vma.start < end && vma.end > start);
    let covered = start;
    for (const vma of vmas) {
      if (vma.start > covered) break;
      covered = vma.end;
    }
    if (covered < end) throw notMapped("mincore", start, end);
    const present = new Uint8Array((end - start) / pageSize);
    for (const vma of vmas) {
      if (vma.file !== undefined) this.#markCached(vma, start, end, present);
    }
    useSpace(this, "mincore");
    try {
      const { words } = this.agent;
      const first = start / pageSize;
      radixStretches(words, this.pgd, first, end / pageSize, (entry, vpn, count) => {
        for (let k = 0; k < count; k++)
          if (isResident(Atomics.load(words, entry + k))) present[vpn - first + k] = 1;
      });
      return present;
    } finally {
      unuseSpace(this);
    }
  }

  /** Marks what the cache has of a file that is mapped in `[start, end)`. */
  #markCached(vma: Vma, start: number, end: number, present: Uint8Array): void {
    const { mm } = this;
    const slot = mm.useFileById(vma.file!);
    if (slot === 0) return; // unmapped since, and gone
    const file = fileAt(mm, slot);
    for (let at = Math.max(start, vma.start); at < Math.min(end, vma.end); at += mm.pageSize) {
      const pfn = file.frameOf((vma.offset + (at - vma.start)) / mm.pageSize);
      if (pfn !== 0 && (mm.frames.flags(pfn) & (PG_UPTODATE | PG_UNUSED)) === PG_UPTODATE)
        present[(at - start) / mm.pageSize] = 1;
    }
    unuseFile(mm, slot);
  }

  /** The state of every page of the range. Never waits. Errors: EINVAL, ENOMEM. Linux: /proc/PID/pagemap. */
  pagemap(address: number, length: number): PagemapEntry[] {
    const { start, end } = extentOf(this, "pagemap", address, length, { beyond: "ENOMEM" });
    useSpace(this, "pagemap");
    try {
      return this.#describePages(start / this.mm.pageSize, end / this.mm.pageSize);
    } finally {
      unuseSpace(this);
    }
  }

  #describePages(start: number, end: number): PagemapEntry[] {
    const { frames } = this.mm;
    const entries: PagemapEntry[] = [];
    for (let vpn = start; vpn < end; vpn++) {
      const pte = loadPte(this, vpn);
      const present = isValid(pte);
      const pfn = pfnOfPte(pte);
      entries.push({
        present,
        zero: present && pfn === ZERO_PFN,
        file: present && mapsFilePage(this.mm, pte),
        exclusive: present && pfn !== ZERO_PFN && frames.mapcount(pfn) === 1 && !inSharedTable(this, vpn),
        swapped: isSpecial(pte),
        guard: pte === PTE_GUARD,
        young: present && (pte & PTE_ACCESSED) !== 0,
        dirty: present && (pte & PTE_DIRTY) !== 0,
        softDirty: (present || kindOfPte(pte) !== 0) && (pte & PTE_SOFT_DIRTY) !== 0,
      });
    }
    return entries;
  }
}

/** Mapped, or somewhere else and as good as there: what mincore() calls in core. */
const isResident = (pte: number): boolean => isValid(pte) || kindOfPte(pte) !== 0;

function makeAtomics(space: AddressSpace): Omit<SpaceAtomics, "wait" | "notify"> {
  const at = (address: number, write = true): { words: Int32Array; index: number } =>
    space.atomicWord(address, write);
  return {
    load: (address) => {
      const { words, index } = at(address, false);
      return Atomics.load(words, index);
    },
    store: (address, value) => {
      const { words, index } = at(address);
      return Atomics.store(words, index, value);
    },
    add: (address, value) => {
      const { words, index } = at(address);
      return Atomics.add(words, index, value);
    },
    and: (address, value) => {
      const { words, index } = at(address);
      return Atomics.and(words, index, value);
    },
    or: (address, value) => {
      const { words, index } = at(address);
      return Atomics.or(words, index, value);
    },
    xor: (address, value) => {
      const { words, index } = at(address);
      return Atomics.xor(words, index, value);
    },
    exchange: (address, value) => {
      const { words, index } = at(address);
      return Atomics.exchange(words, index, value);
    },
    compareExchange: (address, expected, replacement) => {
      const { words, index } = at(address);
      return Atomics.compareExchange(words, index, expected, replacement);
    },
  };
}

/** Makes the record of a new space, which is SPACE_LIVE or SPACE_NEW. Errors: ENOMEM. */
export function createSpaceRecord(mm: Mm, state: number): Space {
  const { agent, heap, maxAgents } = mm;
  const w = agent.words;
  mm.countSpace("createSpace");
  const slot = allocWords(agent, heap, spaceWords(maxAgents)) as Space;
  const id = mm.nextId();
  const pgd = slot === 0 ? 0 : createRadix(agent, heap);
  const subs = pgd === 0 ? 0 : createSubscriptions(agent, heap, maxAgents, id);
  if (subs === 0) {
    if (pgd !== 0) destroyRadix(agent, heap, pgd);
    if (slot !== 0) mm.free(slot, spaceWords(maxAgents));
    mm.uncountSpace();
    throw arenaFull("createSpace");
  }
  Atomics.store(w, slot + SP_ID, id);
  Atomics.store(w, slot + SP_PGD, pgd);
  Atomics.store(w, slot + SP_SUBS, subs);
  Atomics.store(w, slot + SP_STATE, state);
  mm.linkSpace(slot);
  return slot;
}
