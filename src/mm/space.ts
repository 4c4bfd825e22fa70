/** AddressSpace: what users see of a space. Linux: the mm_struct of a process, through its system calls. */
import { isMmError, MmError } from "../errors.ts";
import { itLowest, itSuccessor, ZERO_PFN } from "../memory/index.ts";
import { createSubscriptions, Notifiers, type NotifierSpace, type Subs } from "../notifier/index.ts";
import { checkLiveness, type Immediate, type Op, runAsync, syncFacet, tryFacet } from "../sched/index.ts";
import { LockRank, lockReadOp, readChanged, readSequence, unlockRead } from "../sync/index.ts";
import { missingOf, type Span, SpaceAccess } from "./access.ts";
import { faultOp } from "./fault.ts";
import { MappedFile, unuseFile, useFile } from "./files.ts";
import {
  type File,
  FL_ID,
  type Space,
  SP_ID,
  SP_MMAP_LOCK,
  SP_PGD,
  SP_STATE,
  SP_SUBS,
  SP_VMA_SEQ,
  SP_VMAS,
  SPACE_LIVE,
  spaceWords,
  VM_EXEC,
  VM_READ,
  VM_SHARED,
  VM_WRITE,
  type Vma as VmaSlot,
} from "./layout.ts";
import { unuseSpace, useSpace, usingOp } from "./lifetime.ts";
import {
  type Advice,
  checkRange,
  exitOp,
  madviseOp,
  type MapRequest,
  mmapOp,
  mprotectOp,
  munmapOp,
  populateOp,
  type Prot,
} from "./mappings.ts";
import type { Mm } from "./mm.ts";
import { fileAt } from "./pageCache.ts";
import { syncFileOp } from "./writeback.ts";
import { isValid, pfnOfPte, PTE_ACCESSED, PTE_DIRTY, PTE_EXCLUSIVE, PTE_SOFT_DIRTY } from "./pte.ts";
import { createRadix, destroyRadix, radixFind, radixStretches } from "./radix.ts";
import { fileIndexOf, findVma, vmaEnd, vmaFile, vmaFlags, vmaStart } from "./vma.ts";

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
}

/** One page, as /proc/PID/pagemap shows it. */
export interface PagemapEntry {
  readonly present: boolean;
  readonly file: boolean;
  readonly zero: boolean;
  readonly exclusive: boolean;
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
  madvise(address: number, length: number, advice: Advice): Op<void>;
  msync(address: number, length: number): Op<void>;
  populate(address: number, length: number, access?: "r" | "rw"): Op<void>;
  read(address: number, into: Uint8Array): Op<void>;
  write(address: number, from: Uint8Array): Op<void>;
  forEachSpan(
    address: number,
    length: number,
    access: "r" | "rw",
    fn: (span: Span, address: number) => void,
  ): Op<void>;
  exit(): Op<void>;
}

/** Int32 operations on mapped words, address a multiple of 4. Each is a safepoint; faults as an access does. */
export interface SpaceAtomics {
  load(address: number): number;
  store(address: number, value: number): number;
  add(address: number, value: number): number;
  compareExchange(address: number, expected: number, replacement: number): number;
}

/**
 * A virtual address space that every agent can use. Operations come three times: the Promise form here, `sync` (blocks
 * where the agent may block, else as `try`) and `try` (never waits: EAGAIN, no step half done).
 * Addresses and lengths are bytes. After exit() everything is ESRCH.
 */
export class AddressSpace extends SpaceAccess implements NotifierSpace, AsyncDisposable {
  readonly sync: Immediate<SpaceOperations>;
  readonly try: Immediate<SpaceOperations>;
  readonly atomics: SpaceAtomics;
  readonly #ops: SpaceOperations;

  /** @internal */
  constructor(mm: Mm, slot: Space) {
    super(mm, slot, (space) => {
      const subs = Atomics.load(mm.agent.words, slot + SP_SUBS) as Subs;
      return new Notifiers(mm.agent, mm.heap, subs, space as AddressSpace, mm.pageShift);
    });
    this.#ops = {
      mmap: (m) => this.#mmapOp(m),
      munmap: (address, length) => munmapOp(this, address, length),
      mprotect: (address, length, prot) => mprotectOp(this, address, length, prot),
      madvise: (address, length, advice) => madviseOp(this, address, length, advice),
      msync: (address, length) => this.#msyncOp(address, length),
      populate: (address, length, access = "r") => populateOp(this, address, length, access),
      read: (address, into) => this.copyOp("read", address, into, false),
      write: (address, from) => this.copyOp("write", address, from, true),
      forEachSpan: (address, length, access, fn) => this.#forEachSpanOp(address, length, access, fn),
      exit: () => exitOp(this),
    };
    this.sync = syncFacet(mm.agent, this.#ops);
    this.try = tryFacet(mm.agent, this.#ops);
    this.atomics = {
      load: (address) => {
        const { words, index } = this.atomicWord(address, false);
        return Atomics.load(words, index);
      },
      store: (address, value) => {
        const { words, index } = this.atomicWord(address, true);
        return Atomics.store(words, index, value);
      },
      add: (address, value) => {
        const { words, index } = this.atomicWord(address, true);
        return Atomics.add(words, index, value);
      },
      compareExchange: (address, expected, replacement) => {
        const { words, index } = this.atomicWord(address, true);
        return Atomics.compareExchange(words, index, expected, replacement);
      },
    };
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

  /** "dontneed": drops the pages; private ones begin anew, shared ones stay in their file. May wait. Errors: ENOTSUP for other advice, EINVAL, ENOMEM at a hole. Linux: madvise(). */
  madvise(address: number, length: number, advice: Advice): Promise<void> {
    return runAsync(this.agent, this.#ops.madvise(address, length, advice));
  }

  /** Writes dirty pages of shared file mappings in the range back. May wait. Errors: EIO, ENOMEM at a hole, EINVAL. Linux: msync(MS_SYNC). */
  msync(address: number, length: number): Promise<void> {
    return runAsync(this.agent, this.#msyncOp(address, length));
  }

  *#msyncOp(address: number, length: number): Op<void> {
    const { start, end } = checkRange(this, "msync", address, length);
    yield* usingOp(this, "msync", () => this.#msyncVmasOp(start, end));
  }

  *#msyncVmasOp(start: number, end: number): Op<void> {
    const { pageSize } = this.mm;
    const lock = this.slot + SP_MMAP_LOCK;
    for (let at = start; at < end;) {
      let file = 0 as File;
      let first = 0;
      let to = end;
      // Only while we look: the file is written without the lock, and kept by a use of its own.
      yield* lockReadOp(this.agent, lock, LockRank.mmapLock, "mmapLock");
      const { live } = this;
      const vma = findVma(this, at);
      if (vma !== 0) {
        to = Math.min(end, vmaEnd(this, vma));
        if ((vmaFlags(this, vma) & VM_SHARED) !== 0) file = vmaFile(this, vma);
        first = fileIndexOf(this, vma, at / pageSize);
      }
      if (file !== 0) useFile(this.mm, file);
      unlockRead(this.agent, lock, LockRank.mmapLock);
      if (!live) throw new MmError("ESRCH", "msync", "the space is exiting or has exited");
      if (vma === 0) {
        throw new MmError("ENOMEM", "msync", "part of the range is not mapped", {
          range: { start: at, end },
        });
      }
      if (file !== 0) {
        try {
          yield* syncFileOp(fileAt(this.mm, file), first, first + (to - at) / pageSize);
        } finally {
          unuseFile(this.mm, file);
        }
      }
      at = to;
    }
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
    for (let at = address; at < end;) {
      const vpn = Math.floor(at / this.mm.pageSize);
      if (this.tryLocate(vpn, write) < 0) {
        yield* faultOp(this, vpn, write, at);
        continue;
      }
      const { span, pfn, pages } = this.takeSpan(at, end, write);
      const { views } = this.mm;
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
    const { agent } = this;
    useSpace(this, "vmas");
    try {
      for (let round = 1; ; round++) {
        const list = this.#tryListVmas();
        if (list) return list;
        if (round % ROUNDS_BEFORE_LOOK !== 0) continue;
        // The writer's id stands in the first word of the lock. One that died inside its section poisons the memory.
        checkLiveness(agent, Atomics.load(agent.words, this.slot + SP_MMAP_LOCK));
        agent.checkUsable("vmas");
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
    };
  }

  /** One byte a page, 1 where a page is present for this space. Never waits. Errors: EINVAL, ENOMEM. */
  mincore(address: number, length: number): Uint8Array {
    const { start, end } = checkRange(this, "mincore", address, length);
    const present = new Uint8Array((end - start) / this.mm.pageSize);
    useSpace(this, "mincore");
    try {
      const { words } = this.agent;
      const first = start / this.mm.pageSize;
      radixStretches(words, this.pgd, first, end / this.mm.pageSize, (entry, vpn, count) => {
        for (let k = 0; k < count; k++)
          if (isValid(Atomics.load(words, entry + k))) present[vpn - first + k] = 1;
      });
      return present;
    } finally {
      unuseSpace(this);
    }
  }

  /** The state of every page of the range. Never waits. Errors: EINVAL, ENOMEM. Linux: /proc/PID/pagemap. */
  pagemap(address: number, length: number): PagemapEntry[] {
    const { start, end } = checkRange(this, "pagemap", address, length);
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
      const entry = radixFind(this.agent.words, this.pgd, vpn);
      const pte = entry === 0 ? 0 : Atomics.load(this.agent.words, entry);
      const present = isValid(pte);
      const pfn = pfnOfPte(pte);
      entries.push({
        present,
        zero: present && pfn === ZERO_PFN,
        file: present && pfn !== ZERO_PFN && frames.mapping(pfn) !== 0,
        exclusive: present && (pte & PTE_EXCLUSIVE) !== 0,
        young: present && (pte & PTE_ACCESSED) !== 0,
        dirty: present && (pte & PTE_DIRTY) !== 0,
        softDirty: present && (pte & PTE_SOFT_DIRTY) !== 0,
      });
    }
    return entries;
  }
}

/** Makes the record of a new space. Errors: ENOMEM. */
export function createSpaceRecord(mm: Mm): Space {
  const { agent, heap, maxAgents } = mm;
  const w = agent.words;
  const slot = mm.alloc(spaceWords(maxAgents), "createSpace") as Space;
  const id = mm.nextId();
  const pgd = createRadix(agent, heap);
  const subs = pgd === 0 ? 0 : createSubscriptions(agent, heap, maxAgents, id);
  if (subs === 0) {
    if (pgd !== 0) destroyRadix(agent, heap, pgd);
    mm.free(slot, spaceWords(maxAgents));
    throw new MmError("ENOMEM", "createSpace", "the arena is full; create the memory with a larger arena");
  }
  Atomics.store(w, slot + SP_ID, id);
  Atomics.store(w, slot + SP_PGD, pgd);
  Atomics.store(w, slot + SP_SUBS, subs);
  Atomics.store(w, slot + SP_STATE, SPACE_LIVE);
  mm.linkSpace(slot);
  return slot;
}
