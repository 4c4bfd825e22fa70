/**
 * One agent's way to the mm row: constants of the memory, its counters, the spaces and files it has looked at.
 * Also the lists of all spaces and files, for the reaper, the checks and close().
 */
import { arenaFull, MmError } from "../errors.ts";
import {
  allocWords,
  Frames,
  freeWords,
  heapOf,
  MEM_FAULT_AROUND,
  MEM_MM,
  MEM_READ_AHEAD,
  MEM_TLB_ENTRIES,
  type MemoryHandle,
  instantiateKernels,
} from "../memory/index.ts";
import { type Agent, checkLiveness, HDR_MAX_AGENTS, HDR_ROOT } from "../sched/index.ts";
import { lockSpin, unlockSpin } from "../sync/index.ts";
import type { Backing } from "./backing.ts";
import type { DeviceOps } from "./device.ts";
import {
  COUNTER_WORDS,
  type Device,
  type File,
  FILE_FREE,
  FILE_LIVE,
  FL_ID,
  FL_NEXT,
  FL_STATE,
  FL_USERS,
  MM_COUNTERS,
  MM_FILES,
  MM_IDS,
  MM_LOCK,
  MM_PROTECTED,
  MM_SPACE_COUNT,
  MM_SPACES,
  mmWords,
  SP_ID,
  MOST_SPACES,
  SP_NEXT,
  spUsersAt,
  type Space,
} from "./layout.ts";
import type { PhysicalMemory } from "./memory.ts";
import type { FileCore } from "./pageCache.ts";
import type { SpaceCore } from "./spaceCore.ts";
import { Pins, Views } from "./views.ts";

/** Spinning on a section of some ten instructions: after so many rounds whoever is in it may be dead. */
const ROUNDS_BEFORE_LOOK = 10_000;

export class Mm {
  readonly agent: Agent;
  readonly frames: Frames;
  /** Word of the row's header. */
  readonly header: number;
  readonly heap: number;
  readonly maxAgents: number;
  readonly pageShift: number;
  readonly pageSize: number;
  readonly faultAroundPages: number;
  readonly readAheadPages: number;
  readonly tlbEntries: number;
  /** Segment 0 as the accessors of all spaces see it. */
  readonly near: {
    readonly u8: Uint8Array;
    readonly i8: Int8Array;
    readonly u16: Uint16Array;
    readonly i16: Int16Array;
    readonly u32: Uint32Array;
    readonly f32: Float32Array;
  };
  /** Spaces and files this agent has used, by record. */
  readonly spaces: Map<Space, SpaceCore> = new Map();
  readonly files: Map<File, FileCore> = new Map();
  /** Spaces whose TLB this agent may hit in the turn that is going on. */
  readonly activeSpaces: SpaceCore[] = [];
  readonly views: Views;
  readonly pins: Pins;
  /** Backings that this agent opened, by record of the file. */
  readonly backings: Map<File, Backing> = new Map();
  /** How pages get in and out of the devices that this agent has. */
  readonly deviceOps: Map<Device, DeviceOps> = new Map();
  /** Files that this agent is destroying. */
  readonly closing: Set<Promise<void>> = new Set();
  /** What this agent has of the memory. */
  memory!: PhysicalMemory;
  readonly #counters: number;
  readonly #makeSpace: (mm: Mm, slot: Space) => SpaceCore;

  constructor(agent: Agent, handle: MemoryHandle, makeSpace: (mm: Mm, slot: Space) => SpaceCore) {
    this.#makeSpace = makeSpace;
    const w = agent.words;
    const root = Atomics.load(w, HDR_ROOT);
    this.agent = agent;
    this.heap = heapOf(w);
    this.maxAgents = Atomics.load(w, HDR_MAX_AGENTS);
    this.frames = new Frames(
      agent,
      root,
      handle.memories,
      instantiateKernels(handle.module, handle.memories[0]!),
    );
    this.pageShift = this.frames.pageShift;
    this.pageSize = this.frames.pageSize;
    this.faultAroundPages = Atomics.load(w, root + MEM_FAULT_AROUND);
    this.readAheadPages = Atomics.load(w, root + MEM_READ_AHEAD);
    this.tlbEntries = Atomics.load(w, root + MEM_TLB_ENTRIES);
    const { buffer } = w;
    this.near = {
      u8: new Uint8Array(buffer),
      i8: new Int8Array(buffer),
      u16: new Uint16Array(buffer),
      i16: new Int16Array(buffer),
      u32: new Uint32Array(buffer),
      f32: new Float32Array(buffer),
    };
    let header = Atomics.load(w, root + MEM_MM);
    if (header === 0) {
      header = allocWords(agent, this.heap, mmWords(this.maxAgents));
      if (header === 0) throw new MmError("ENOMEM", "createMemory", "the arena is too small");
      Atomics.store(w, root + MEM_MM, header);
    }
    this.header = header;
    this.#counters = header + MM_COUNTERS + agent.slot * COUNTER_WORDS;
    this.views = new Views(this, agent.slot);
    this.pins = new Pins(this, agent.slot);
    for (let k = 0; k < COUNTER_WORDS; k++) Atomics.store(w, this.#counters + k, 0);
  }

  /** Adds to a counter of this agent's (CT_*). Only the owner writes, so a plain add is exact. */
  count(counter: number, by = 1): void {
    const at = this.#counters + counter;
    this.agent.words[at] = (this.agent.words[at]! + by) | 0;
  }

  /** A counter summed over all agents since they attached. */
  counted(counter: number): number {
    let sum = 0;
    for (let slot = 0; slot < this.maxAgents; slot++) {
      sum += Atomics.load(this.agent.words, this.header + MM_COUNTERS + slot * COUNTER_WORDS + counter);
    }
    return sum;
  }

  countedBy(slot: number, counter: number): number {
    return Atomics.load(this.agent.words, this.header + MM_COUNTERS + slot * COUNTER_WORDS + counter);
  }

  /** The space of a record, the same object each time. */
  spaceAt(slot: Space): SpaceCore {
    let space = this.spaces.get(slot);
    if (!space || space.id !== Atomics.load(this.agent.words, slot + SP_ID)) {
      space?.detachTlb();
      space = this.#makeSpace(this, slot);
      this.spaces.set(slot, space);
    }
    return space;
  }

  /** Keeps the record of a space until unprotect(). No safepoint in between; look afterwards whether it is still there. */
  protect(space: Space): void {
    Atomics.store(this.agent.words, this.header + MM_PROTECTED + this.agent.slot, space);
  }

  /** `slot`: a dead agent's, for the reaper. */
  unprotect(slot: number = this.agent.slot): void {
    Atomics.store(this.agent.words, this.header + MM_PROTECTED + slot, 0);
  }

  /** Spins until no agent protects a space any more that protects it now: this one, or any. */
  awaitUnprotected(space?: Space): void {
    const { agent } = this;
    const top = agent.top();
    for (let slot = 0; slot < top; slot++) {
      const at = this.header + MM_PROTECTED + slot;
      const held = space ?? Atomics.load(agent.words, at);
      if (held === 0) continue;
      for (let round = 1; Atomics.load(agent.words, at) === held; round++) {
        if (round % ROUNDS_BEFORE_LOOK !== 0) continue;
        const owner = agent.ownerAt(slot);
        if (owner === 0 || !checkLiveness(agent, owner)) Atomics.compareExchange(agent.words, at, held, 0);
      }
    }
  }

  nextId(): number {
    return Atomics.add(this.agent.words, this.header + MM_IDS, 1) + 1;
  }

  alloc(words: number, operation: string): number {
    const at = allocWords(this.agent, this.heap, words);
    if (at === 0) throw arenaFull(operation);
    return at;
  }

  free(at: number, words: number): void {
    freeWords(this.agent, this.heap, at, words);
  }

  // ---- lists -----------------------------------------------------------------------------------------------------

  linkSpace(space: Space): void {
    this.#link(MM_SPACES, space, SP_NEXT);
  }

  /** Counts a space that is about to be made. Errors: ENOMEM. */
  countSpace(operation: string): void {
    if (Atomics.add(this.agent.words, this.header + MM_SPACE_COUNT, 1) < MOST_SPACES) return;
    this.uncountSpace();
    throw new MmError("ENOMEM", operation, `there are ${MOST_SPACES} spaces already; exit() some`);
  }

  uncountSpace(): void {
    Atomics.sub(this.agent.words, this.header + MM_SPACE_COUNT, 1);
  }

  /** Preconditions: MM_LOCK held. */
  unlinkSpaceLocked(space: Space): void {
    this.#unlinkLocked(MM_SPACES, space, SP_NEXT);
    this.uncountSpace();
  }

  /** True if the record is a space's, and has not been freed. Preconditions: MM_LOCK held. */
  isLinkedLocked(space: Space): boolean {
    const w = this.agent.words;
    let at = Atomics.load(w, this.header + MM_SPACES);
    while (at !== 0 && at !== space) at = Atomics.load(w, at + SP_NEXT);
    return at !== 0;
  }

  linkFile(file: File): void {
    this.#link(MM_FILES, file, FL_NEXT);
  }

  unlinkFile(file: File): void {
    lockSpin(this.agent, this.header + MM_LOCK);
    this.#unlinkLocked(MM_FILES, file, FL_NEXT);
    unlockSpin(this.agent, this.header + MM_LOCK);
  }

  /** The live file with this id, with a user more; 0 if there is none. */
  useFileById(id: number): File {
    const w = this.agent.words;
    lockSpin(this.agent, this.header + MM_LOCK);
    let file = Atomics.load(w, this.header + MM_FILES);
    while (
      file !== 0 &&
      (Atomics.load(w, file + FL_ID) !== id || Atomics.load(w, file + FL_STATE) !== FILE_LIVE)
    )
      file = Atomics.load(w, file + FL_NEXT);
    if (file !== 0) Atomics.add(w, file + FL_USERS, 1);
    unlockSpin(this.agent, this.header + MM_LOCK);
    return file as File;
  }

  /** Gives a use of a file back. True if it was the last: the caller destroys the file. */
  unuseFile(file: File): boolean {
    const w = this.agent.words;
    lockSpin(this.agent, this.header + MM_LOCK);
    const last = Atomics.sub(w, file + FL_USERS, 1) === 1 && Atomics.load(w, file + FL_STATE) === FILE_LIVE;
    if (last) Atomics.store(w, file + FL_STATE, FILE_FREE);
    unlockSpin(this.agent, this.header + MM_LOCK);
    return last;
  }

  allSpaces(): Space[] {
    return this.#list(MM_SPACES, SP_NEXT) as Space[];
  }

  /** As allSpaces(), with a use of each: for unuseSpace(). */
  useAllSpaces(): Space[] {
    const w = this.agent.words;
    const all: Space[] = [];
    lockSpin(this.agent, this.header + MM_LOCK);
    for (let at = Atomics.load(w, this.header + MM_SPACES); at !== 0; at = Atomics.load(w, at + SP_NEXT)) {
      Atomics.add(w, spUsersAt(at, this.maxAgents, this.agent.slot), 1);
      all.push(at as Space);
    }
    unlockSpin(this.agent, this.header + MM_LOCK);
    return all;
  }

  allFiles(): File[] {
    return this.#list(MM_FILES, FL_NEXT) as File[];
  }

  #link(head: number, record: number, next: number): void {
    const w = this.agent.words;
    lockSpin(this.agent, this.header + MM_LOCK);
    Atomics.store(w, record + next, Atomics.load(w, this.header + head));
    Atomics.store(w, this.header + head, record);
    unlockSpin(this.agent, this.header + MM_LOCK);
  }

  #unlinkLocked(head: number, record: number, next: number): void {
    const w = this.agent.words;
    for (
      let link = this.header + head, at = Atomics.load(w, link);
      at !== 0;
      link = at + next, at = Atomics.load(w, link)
    ) {
      if (at !== record) continue;
      Atomics.store(w, link, Atomics.load(w, record + next));
      return;
    }
  }

  #list(head: number, next: number): number[] {
    const w = this.agent.words;
    const all: number[] = [];
    lockSpin(this.agent, this.header + MM_LOCK);
    for (let at = Atomics.load(w, this.header + head); at !== 0; at = Atomics.load(w, at + next))
      all.push(at);
    unlockSpin(this.agent, this.header + MM_LOCK);
    return all;
  }
}
