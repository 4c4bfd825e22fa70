/**
 * What agents do to each other in the tests of coherence. Each role is written once and runs in the page, which awaits,
 * and in workers, which block.
 *
 * All share `PAGES` pages of a space from `base` on, and control words outside the memory under test.
 */
import {
  HMM_VALID,
  hmmPfn,
  isMmError,
  memoryBacking,
  type PhysicalMemory,
  type RangeFault,
  rangeFault,
} from "../../../src/index.ts";

export const PAGES = 4;
const PAGE = 4096;

// Control words: PAGES permits, then these.
export const STOP: number = PAGES;
export const BEGUN: number = PAGES + 1;
const STORES = PAGES + 2;
const CONTROL_WORDS = PAGES + 3;

export interface Plan {
  readonly space: number;
  readonly file: number;
  readonly base: number;
  readonly control: Int32Array;
}

/*
 * The permit of a page says what may be read from it now: stamps from `permit >> 1` on, and zeros if the lowest bit is
 * set. It is widened before a change and narrowed when the change has returned.
 */
const CLOSED = -1;
const permit = (stamp: number, zeros = false): number => (stamp << 1) | (zeros ? 1 : 0);
const permits = (word: number, value: number): boolean =>
  word !== CLOSED && (value === 0 ? (word & 1) === 1 : value >= word >> 1);

/** A space with a file mapped in it: page k of the file carries stamp `floor(k / PAGES) + 1` in every word. */
export async function makePlan(memory: PhysicalMemory, rounds: number): Promise<Plan> {
  const space = await memory.createSpace();
  const pages = (rounds + 1) * PAGES;
  const stamps = new Int32Array((pages * PAGE) / 4);
  for (let k = 0; k < stamps.length; k++) stamps[k] = Math.floor((k * 4) / (PAGES * PAGE)) + 1;
  const file = await memory.openFile(memoryBacking(pages * PAGE));
  await file.write(0, new Uint8Array(stamps.buffer));
  const base = await space.mmap({ length: PAGES * PAGE, prot: "rw", share: "shared", file });
  const control = new Int32Array(new SharedArrayBuffer(CONTROL_WORDS * 4));
  control.fill(permit(1), 0, PAGES);
  return { space: space.id, file: file.id, base, control };
}

/** A turn of the event loop, at once: timers are slowed down to 4 ms. */
const channel = new MessageChannel();
export const turn = (): Promise<void> =>
  new Promise((resolve) => {
    channel.port1.addEventListener("message", () => resolve(), { once: true });
    channel.port1.start();
    channel.port2.postMessage(0);
  });

/** Waits for a control word to become true; serves the others meanwhile. */
async function until(memory: PhysicalMemory, mayBlock: boolean, ready: () => boolean): Promise<void> {
  while (!ready()) {
    memory.poll();
    if (!mayBlock) await turn();
  }
}

// ---- changing mappings ----------------------------------------------------------------------------------------------

/** Changes the mappings of the pages, again and again; round k leaves stamp k + 1, zeros, or what was there. */
export async function churn(
  memory: PhysicalMemory,
  plan: Plan,
  rounds: number,
  mayBlock: boolean,
): Promise<void> {
  const { base, control } = plan;
  const space = memory.space(plan.space);
  const file = memory.file(plan.file);
  const operations = mayBlock ? space.sync : space;
  /** Which pages are anonymous now. */
  const anonymous: boolean[] = Array.from({ length: PAGES }, () => false);
  let seed = 1;
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
    return (seed >>> 8) % below;
  };
  const mapFile = (start: number, length: number, stamp: number, first: number, over: boolean) =>
    operations.mmap({
      address: start,
      fixed: over ? true : "noreplace",
      length,
      prot: "rw",
      share: "shared",
      file,
      offset: ((stamp - 1) * PAGES + first) * PAGE,
    });
  await until(memory, mayBlock, () => Atomics.load(control, BEGUN) === 1);
  for (let round = 1; round <= rounds; round++) {
    const stamp = round + 1;
    const first = random(PAGES);
    const end = first + 1 + random(PAGES - first);
    const start = base + first * PAGE;
    const length = (end - first) * PAGE;
    const each = (next: (now: number, page: number) => number): void => {
      for (let p = first; p < end; p++) Atomics.store(control, p, next(Atomics.load(control, p), p));
    };
    const kind = random(5);
    if (kind === 0) {
      await operations.munmap(start, length);
      each(() => CLOSED);
      if (random(2) === 0) await turn();
      each(() => permit(stamp));
      await mapFile(start, length, stamp, first, false);
      anonymous.fill(false, first, end);
    } else if (kind === 1) {
      await mapFile(start, length, stamp, first, true);
      each(() => permit(stamp));
      anonymous.fill(false, first, end);
    } else if (kind === 2) {
      await operations.munmap(start, length);
      each(() => permit(stamp, true));
      await operations.mmap({ address: start, fixed: true, length, prot: "rw", share: "private" });
      if (random(2) === 0) await turn(); // a mirror of the zero page, which the write replaces
      for (let p = first; p < end; p++) await operations.write(base + p * PAGE, stamped(stamp));
      each(() => permit(stamp));
      anonymous.fill(true, first, end);
    } else if (kind === 3) {
      const before = Array.from({ length: PAGES }, (_, p) => Atomics.load(control, p));
      await operations.mprotect(start, length, "none");
      each(() => CLOSED);
      if (random(2) === 0) await turn();
      each((_, page) => before[page]!);
      await operations.mprotect(start, length, "rw");
    } else {
      each((now, page) => (anonymous[page] ? now | 1 : now));
      await operations.madvise(start, length, "dontneed");
      each((now, page) => (anonymous[page] ? permit(stamp, true) : now));
    }
    // A breath, in which the mirror is filled and read.
    if (mayBlock) memory.sync.wait(control, STOP, 0, random(3));
    else await turn();
  }
  Atomics.store(control, STOP, 1);
}

const stamped = (stamp: number): Uint8Array => new Uint8Array(new Int32Array(PAGE / 4).fill(stamp).buffer);

// ---- mirroring them ---------------------------------------------------------------------------------------------------

export interface Mirrored {
  stale: number;
  reads: number;
  fills: number;
  retries: number;
  invalidations: number;
}

/**
 * Keeps translations of the pages under an interval notifier and reads through them, until churn() has ended. Seeded
 * bugs, which must be seen as stale reads: "keeps", invalidate() drops nothing; "skips", the fill asks no readRetry().
 */
export async function mirror(
  memory: PhysicalMemory,
  plan: Plan,
  mayBlock: boolean,
  bug?: "keeps" | "skips",
): Promise<Mirrored> {
  const { base, control } = plan;
  const space = memory.space(plan.space);
  const table = new Int32Array(PAGES);
  const result: Mirrored = { stale: 0, reads: 0, fills: 0, retries: 0, invalidations: 0 };
  const interval = await space.notifiers.insert(
    {
      invalidate(self, range, curSeq) {
        self.setSeq(curSeq);
        const first = Math.max(0, (range.start - base) / PAGE);
        if (bug !== "keeps") table.fill(0, first, Math.min(PAGES, (range.end - base) / PAGE));
        result.invalidations++;
        return true;
      },
    },
    base,
    PAGES * PAGE,
  );
  const operations = mayBlock ? interval.sync : interval;
  const fault = (range: RangeFault): Promise<void> | void =>
    mayBlock ? rangeFault.sync(interval, range) : rangeFault(interval, range);
  const entries = new Int32Array(1);

  /** Until an invalidation has come, or for a while. */
  const invalidated = async (before: number): Promise<void> => {
    for (let k = 0; k < (mayBlock ? 5000 : 100) && result.invalidations === before; k++) {
      memory.poll();
      if (!mayBlock) await turn();
    }
  };

  let tries = 0;
  /** One page's translation, or none if it has no mapping or was overtaken. */
  const fill = async (page: number): Promise<void> => {
    const start = base + page * PAGE;
    try {
      const seq = await operations.readBegin();
      await fault({ memory, space, seq, start, length: PAGE, entries });
      // What a driver does here, such as mapping the frame for its device, takes time and passes safepoints.
      if (tries++ % (bug === "skips" ? 2 : 8) === 0) await invalidated(result.invalidations);
      // None from here on: nothing can come between the question and the entry.
      if (bug !== "skips" && interval.readRetry(seq)) result.retries++;
      else {
        table[page] = entries[0]!;
        result.fills++;
      }
    } catch (error) {
      if (isMmError(error, "EBUSY")) result.retries++;
      else if (!isMmError(error, "EFAULT") && !isMmError(error, "EACCES")) throw error;
    }
  };

  Atomics.store(control, BEGUN, 1);
  for (let look = 0; Atomics.load(control, STOP) === 0; look++) {
    const page = look % PAGES;
    // No safepoint between these three: what is allowed at the first may be read at the last.
    const allowed = Atomics.load(control, page);
    const entry = table[page]!;
    if ((entry & HMM_VALID) !== 0) {
      const frame = memory.frame(hmmPfn(entry));
      const value = new DataView(frame.buffer, frame.byteOffset).getInt32((look * 4) % PAGE, true);
      result.reads++;
      if (!permits(allowed, value)) result.stale++;
      if (look % 61 === 0) table[page] = 0; // more fills, more races
    } else await fill(page);
    memory.poll();
    if (!mayBlock && page === PAGES - 1) await turn();
  }
  await interval.remove();
  return result;
}

// ---- the acknowledgement rule -----------------------------------------------------------------------------------------

export interface Stored {
  stores: number;
  refused: number;
}

/**
 * Stores a counter in the first page, again and again, in one turn with a poll now and then. Seeded bug "hoards": it
 * stores through a view that is kept beyond poll(), against the rules.
 */
export function store(memory: PhysicalMemory, plan: Plan, bug?: "hoards"): Stored {
  const { base, control } = plan;
  const space = memory.space(plan.space);
  const result: Stored = { stores: 0, refused: 0 };
  let hoard: DataView | undefined;
  for (let n = 1; Atomics.load(control, STOP) === 0; n++) {
    try {
      if (hoard) hoard.setUint32(0, n, true);
      else space.setUint32(base, n);
      result.stores++;
      Atomics.store(control, STORES, n);
    } catch (error) {
      if (!isMmError(error, "EACCES") && !isMmError(error, "EAGAIN")) throw error;
      result.refused++;
    }
    if (bug === "hoards" && !hoard && result.stores > 0) {
      const [view] = space.spans(base, PAGE, "rw");
      hoard = new DataView(view!.buffer, view!.byteOffset, PAGE);
    }
    if (n % 50 === 0) memory.poll();
  }
  return result;
}

/** How long to look for a store that must not land. */
const LOOK_MS = 0.2;

/** Forbids stores, looks whether one lands nevertheless, and allows them again. Returns in how many rounds one did. */
export function forbid(memory: PhysicalMemory, plan: Plan, rounds: number): number {
  const { base, control } = plan;
  const space = memory.space(plan.space);
  let landed = 0;
  for (let round = 0; round < rounds; round++) {
    const before = Atomics.load(control, STORES);
    while (Atomics.load(control, STORES) === before) memory.poll(); // it stores again
    space.sync.mprotect(base, PAGE, "r");
    const value = space.atomics.load(base);
    memory.sync.wait(control, STOP, 0, LOOK_MS); // lets the other go on also where there is one core
    const later = space.atomics.load(base);
    if (later !== value) landed++;
    space.sync.mprotect(base, PAGE, "rw");
  }
  Atomics.store(control, STOP, 1);
  return landed;
}
