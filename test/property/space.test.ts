/**
 * Random sequences of mm operations and accesses against a plain model: which pages are mapped, with which rights, and
 * which bytes they have. Memory is tiny, so that reclaim runs all the time; two agents of one thread take turns, with
 * the other's turn open or not; every invariant is checked after every step.
 */
import fc from "fast-check";
import { expect, test } from "vitest";
import { isMmError, type MmError } from "../../src/errors.ts";
import {
  createDeviceMemory,
  type DeviceCopy,
  type DeviceMemory,
  makeDeviceExclusive,
  migrateToDevice,
  migrateToMemory,
  type MigrateRange,
  type Variants,
} from "../../src/hmm/index.ts";
import {
  type AddressSpace,
  attach,
  createMemory,
  type MappedFile,
  memoryBacking,
  type PhysicalMemory,
  type Prot,
} from "../../src/mm/index.ts";
import { expectBytes, pattern, record, type Recorder, sharedBacking } from "../lib/mm.ts";

const PAGE = 4096;
/** Pages in which everything happens, in each space; they lie around 2 GiB, so that both kinds of address occur. */
const WINDOW = 24;
const BASE = 2 ** 31 - 10 * PAGE;
const SPACES = 2;
/** Pages of the files, by number: written to, read-only, in memory. */
const FILE_PAGES = [40, 12, 5] as const;
const WRITABLE = [true, false, true] as const;
/** The last page of a file is not whole. */
const TAIL_BYTES = 100;
const fileSize = (file: number): number => FILE_PAGES[file]! * PAGE - TAIL_BYTES;

const at = (page: number): number => BASE + page * PAGE;

// ---- the model -----------------------------------------------------------------------------------------------------

interface Page {
  readonly shared: boolean;
  readonly prot: number;
  /** Where its bytes come from, -1 for a private anonymous page; above the files, shared anonymous memory. */
  readonly file: number;
  readonly index: number;
  /** What a private page has of its own. */
  copy: Uint8Array | undefined;
}

interface Model {
  /** By space and page. */
  readonly pages: Map<number, Page>[];
  /** Bytes of files and of shared anonymous memory. */
  readonly files: Uint8Array[];
}

const zeros = new Uint8Array(PAGE);

function bytesOf(model: Model, page: Page): Uint8Array {
  if (page.copy) return page.copy;
  return page.file < 0 ? zeros : model.files[page.file]!.subarray(page.index * PAGE, (page.index + 1) * PAGE);
}

/** Why an access fails, undefined if nothing forbids it. */
function refusal(model: Model, space: number, page: number, write: boolean): string | undefined {
  const p = model.pages[space]!.get(page);
  if (!p) return "SEGV_MAPERR";
  if ((p.prot & (write ? 2 : 7)) === 0) return "SEGV_ACCERR";
  if (!p.copy && p.file >= 0 && p.index * PAGE >= model.files[p.file]!.length) return "BusError";
  return undefined;
}

function store(model: Model, space: number, page: number, offset: number, bytes: Uint8Array): void {
  const p = model.pages[space]!.get(page)!;
  if (!p.shared) p.copy ??= padded(bytesOf(model, p));
  bytesOf(model, p).set(bytes, offset);
}

/** A whole page: the rest of a file's last page is zero. */
function padded(bytes: Uint8Array): Uint8Array {
  const out = new Uint8Array(PAGE);
  out.set(bytes);
  return out;
}

// ---- steps ---------------------------------------------------------------------------------------------------------

const PROTS: readonly Prot[] = ["none", "r", "rw", "rw", "rw"];
const BITS: Readonly<Record<string, number>> = { none: 0, r: 1, rw: 3 };

const OPS = [
  "mmap",
  "mmap",
  "mmap",
  "munmap",
  "mprotect",
  "dontneed",
  "populate",
  "load",
  "load",
  "load",
  "store",
  "store",
  "store",
  "store",
  "straddle",
  "read",
  "write",
  "span",
  "hold",
  "file.read",
  "file.write",
  "file.sync",
  "msync",
  "reclaim",
  "turn",
  "turn",
  "exit",
] as const;
const DEVICE_OPS = ["toDevice", "toDevice", "toMemory", "exclusive", "evict"] as const;

const stepArb = fc.record({
  op: fc.constantFrom(...OPS),
  agent: fc.nat(1),
  space: fc.nat(SPACES - 1),
  /** Promise form, or without waiting. */
  wait: fc.boolean(),
  page: fc.nat(WINDOW - 1),
  pages: fc.integer({ min: 1, max: 12 }),
  offset: fc.nat(PAGE - 1),
  value: fc.nat(0xffff_ffff),
  prot: fc.nat(PROTS.length - 1),
  write: fc.boolean(),
  shared: fc.boolean(),
  file: fc.integer({ min: -1, max: FILE_PAGES.length - 1 }),
  index: fc.nat(30),
  mode: fc.constantFrom("fixed", "fixed", "noreplace", "populate"),
});
type Step = Omit<typeof stepArb extends fc.Arbitrary<infer T> ? T : never, "op"> & {
  op: (typeof OPS)[number] | (typeof DEVICE_OPS)[number];
};
/** As stepArb, with pages that go to devices and come back. */
const deviceStepArb: fc.Arbitrary<Step> = fc
  .tuple(stepArb, fc.option(fc.constantFrom(...DEVICE_OPS), { freq: 3 }))
  .map(([step, op]) => ({ ...step, op: op ?? step.op }));

interface World {
  readonly model: Model;
  readonly memories: readonly PhysicalMemory[];
  /** By agent. */
  readonly files: readonly (readonly MappedFile[])[];
  /** Ids. */
  readonly spaces: number[];
  readonly recorders: Recorder[];
  /** One of each agent's, or none. The copies of the first do not wait, those of the second do. */
  readonly devices: DeviceMemory[];
}

/** The first steps of every run: most of each window is mapped. */
const OPENING: readonly Step[] = [0, 1].flatMap((space) =>
  (
    [
      [0, 8, -1, false, 0],
      [8, 6, 0, true, 0],
      [14, 4, 0, false, 2],
      [18, 2, 1, false, 3],
      [20, 3, 2, true, 0],
    ] as const
  ).map(([page, pages, file, shared, index]) => ({
    ...{ op: "mmap", agent: 0, space, wait: false, offset: 0, value: 0, prot: 2, write: true, mode: "fixed" },
    ...{ page, pages, file, shared, index },
  })),
) as Step[];

/** Outcomes that say nothing about right and wrong: no memory, or a wait that was refused. */
const isExcuse = (error: unknown, step: Step): boolean =>
  isMmError(error, "ENOMEM") || (isMmError(error, "EAGAIN") && !step.wait);

const describeError = (error: MmError & { reason?: string }): string =>
  error.name === "BusError" ? "BusError" : (error.reason ?? error.code);

/** A step: yields promises where it waits, so that one which does not leaves the turn of its agent open. */
type Run<T> = Generator<unknown, T, void>;

/** What `body` throws, undefined if nothing. */
function* caught(step: Step, body: () => unknown): Run<unknown> {
  try {
    const result = body();
    if (step.wait) yield result;
    else expect(result).not.toBeInstanceOf(Promise);
  } catch (error) {
    return error;
  }
  return undefined;
}

/** Runs an access; its error must be the one that the model expects, and none if none is expected. */
function* attempt(
  step: Step,
  expected: string | undefined,
  body: () => unknown,
): Run<"done" | "refused" | "excused"> {
  const error = yield* caught(step, body);
  if (error === undefined) {
    expect(expected).toBeUndefined();
    return "done";
  }
  if (isExcuse(error, step)) return "excused";
  if (!isMmError(error)) throw error as Error;
  expect(describeError(error)).toBe(expected);
  return "refused";
}

function* run(world: World, step: Step): Run<void> {
  const { model } = world;
  const memory = world.memories[step.agent]!;
  const space = memory.space(world.spaces[step.space]!);
  const map = model.pages[step.space]!;
  const end = Math.min(WINDOW, step.page + step.pages);
  const length = (end - step.page) * PAGE;
  const form = step.wait ? space : space.try;
  const each = (visit: (page: number) => void): void => {
    for (let page = step.page; page < end; page++) visit(page);
  };
  switch (step.op) {
    case "mmap": {
      const prot = PROTS[step.prot]!;
      const shared = step.shared;
      const readOnly = step.file >= 0 && !WRITABLE[step.file];
      const taken = step.mode === "noreplace" && [...map.keys()].some((p) => p >= step.page && p < end);
      const expected = taken ? "EEXIST" : shared && readOnly && prot === "rw" ? "EACCES" : undefined;
      const done = yield* attempt(step, expected, () =>
        form.mmap({
          length,
          address: at(step.page),
          fixed: step.mode === "noreplace" ? "noreplace" : true,
          prot,
          share: shared ? "shared" : "private",
          populate: step.mode === "populate",
          ...(step.file < 0 ? {} : { file: world.files[step.agent]![step.file]!, offset: step.index * PAGE }),
        }),
      );
      if (done !== "done") break;
      let file: number = step.file;
      if (file < 0 && shared) file = model.files.push(new Uint8Array(length)) - 1;
      each((page) =>
        map.set(page, {
          shared,
          prot: BITS[prot as string]!,
          file,
          index: step.file < 0 ? page - step.page : step.index + page - step.page,
          copy: undefined,
        }),
      );
      break;
    }
    case "munmap":
      if ((yield* attempt(step, undefined, () => form.munmap(at(step.page), length))) === "done")
        each((page) => map.delete(page));
      break;
    case "mprotect": {
      const prot = PROTS[step.prot]!;
      const bits = BITS[prot as string]!;
      let expected: string | undefined;
      const changed: number[] = [];
      each((page) => {
        const p = map.get(page);
        if (expected !== undefined) return;
        if (!p) expected = "ENOMEM";
        else if (p.prot !== bits && (bits & 2) !== 0 && p.shared && p.file === 1) expected = "EACCES";
        else changed.push(page);
      });
      const before = space.vmas().length;
      let outcome: string;
      if (expected === "ENOMEM") {
        // Also what an arena without room says; here it means the hole.
        const error = yield* caught(step, () => form.mprotect(at(step.page), length, prot));
        if (!isMmError(error)) throw new Error(`mprotect over a hole: ${String(error)}`);
        outcome = error.code;
      } else outcome = yield* attempt(step, expected, () => form.mprotect(at(step.page), length, prot));
      if (outcome === "excused" || outcome === "EAGAIN") {
        // Whole mappings from the first on may have been changed: what they allow now says which.
        for (const v of space.vmas()) {
          for (
            let page = Math.max(step.page, (v.start - BASE) / PAGE);
            page < Math.min(end, (v.end - BASE) / PAGE);
            page++
          ) {
            const p = map.get(page)!;
            const now = (v.prot[0] === "r" ? 1 : 0) | (v.prot[1] === "w" ? 2 : 0);
            if (now !== p.prot) {
              expect(now).toBe(bits);
              map.set(page, { ...p, prot: now });
            }
          }
        }
      } else for (const page of changed) map.set(page, { ...map.get(page)!, prot: bits });
      expect(before).toBeGreaterThanOrEqual(0);
      break;
    }
    case "dontneed": {
      let hole = false;
      each((page) => (hole ||= !map.has(page)));
      const error = yield* caught(step, () => form.madvise(at(step.page), length, "dontneed"));
      if (isMmError(error, "EAGAIN") && !step.wait) {
        // Whole mappings from the first on may be done: what has no page of its own any more.
        const state = space.pagemap(at(step.page), length);
        each((page) => {
          const p = map.get(page);
          const { exclusive, swapped } = state[page - step.page]!;
          if (p?.copy && !exclusive && !swapped) p.copy = undefined;
        });
        break;
      }
      expect(isMmError(error) ? error.code : error).toBe(hole ? "ENOMEM" : undefined);
      each((page) => {
        const p = map.get(page);
        if (p) p.copy = undefined;
      });
      break;
    }
    case "populate": {
      let expected: string | undefined;
      each((page) => (expected ??= refusal(model, step.space, page, step.write)));
      yield* attempt(step, expected, () => form.populate(at(step.page), length, step.write ? "rw" : "r"));
      break;
    }
    case "load": {
      const expected = refusal(model, step.space, step.page, false);
      let seen = -1;
      const done = yield* attempt({ ...step, wait: false }, expected, () => {
        seen = space.getUint8(at(step.page) + step.offset);
      });
      if (done === "done") expect(seen).toBe(bytesOf(model, map.get(step.page)!)[step.offset] ?? 0);
      break;
    }
    case "store": {
      const offset = Math.min(step.offset, PAGE - TAIL_BYTES - 1); // not behind the end of a file
      const expected = refusal(model, step.space, step.page, true);
      const done = yield* attempt({ ...step, wait: false }, expected, () =>
        space.setUint8(at(step.page) + offset, step.value),
      );
      if (done === "done") store(model, step.space, step.page, offset, Uint8Array.of(step.value));
      break;
    }
    case "straddle": {
      if (step.page === WINDOW - 1) break;
      const address = at(step.page + 1) - 1 - (step.offset % 3);
      const low = PAGE - 1 - (step.offset % 3);
      const [p, q] = [map.get(step.page), map.get(step.page + 1)];
      const behind = p && p.file >= 0 && !p.copy && p.index === (FILE_PAGES[p.file] ?? 0) - 1;
      if (step.write && behind) break;
      const expected =
        refusal(model, step.space, step.page, step.write) ??
        refusal(model, step.space, step.page + 1, step.write);
      const value = Uint8Array.from([0, 8, 16, 24], (shift) => step.value >>> shift);
      let seen = 0;
      const done = yield* attempt({ ...step, wait: false }, expected, () => {
        if (step.write) space.setUint32(address, step.value);
        else seen = space.getUint32(address);
      });
      if (done !== "done") break;
      if (step.write) {
        store(model, step.space, step.page, low, value.subarray(0, PAGE - low));
        store(model, step.space, step.page + 1, 0, value.subarray(PAGE - low));
      } else {
        const both = new Uint8Array(2 * PAGE);
        both.set(bytesOf(model, p!));
        both.set(bytesOf(model, q!), PAGE);
        expect(seen).toBe(new DataView(both.buffer).getUint32(low, true));
      }
      break;
    }
    case "read":
    case "write": {
      const write = step.op === "write";
      const n = Math.max(1, (end - step.page) * PAGE - step.offset - TAIL_BYTES);
      let expected: string | undefined;
      let whole = 0;
      each((page) => {
        if (expected !== undefined || (page - step.page) * PAGE >= step.offset + n) return;
        expected = refusal(model, step.space, page, write);
        if (expected === undefined) whole = (page - step.page + 1) * PAGE - step.offset;
      });
      if (write) {
        // Only over memory that has no end of a file inside: what lies behind it is not kept.
        let tail = false;
        each((page) => {
          const p = map.get(page);
          tail ||= !!p && p.file >= 0 && p.index === (FILE_PAGES[p.file] ?? 0) - 1;
        });
        if (tail) break;
      }
      const buffer = write ? pattern(n, step.value & 0xff) : new Uint8Array(n);
      const operation = step.op;
      const outcome = yield* attempt(step, expected, () =>
        form[operation](at(step.page) + step.offset, buffer),
      );
      const excused = outcome === "excused";
      const covered = outcome === "done" ? n : excused ? 0 : Math.min(n, whole);
      for (let done = 0; done < n;) {
        const position = step.offset + done;
        const page = step.page + Math.floor(position / PAGE);
        const within = position % PAGE;
        const m = Math.min(PAGE - within, n - done);
        const p = map.get(page);
        if (!p || refusal(model, step.space, page, write)) break;
        if (write) {
          if (excused) {
            // Some bytes from the first on were written: what is there says which pages.
            let now: Uint8Array | undefined;
            yield peek(world, step.space, page).then((bytes) => (now = bytes));
            if (
              now &&
              Buffer.compare(now.subarray(within, within + m), buffer.subarray(done, done + m)) === 0
            )
              store(model, step.space, page, within, buffer.subarray(done, done + m));
          } else if (done < covered) store(model, step.space, page, within, buffer.subarray(done, done + m));
        } else if (done + m <= covered) {
          const wanted = padded(bytesOf(model, p)).subarray(within, within + m);
          expectBytes(buffer.subarray(done, done + m), wanted);
        }
        done += m;
      }
      break;
    }
    case "span":
    case "hold": {
      const expected = refusal(model, step.space, step.page, step.write);
      const p = map.get(step.page);
      if (step.write && p && p.file >= 0 && p.index === (FILE_PAGES[p.file] ?? 0) - 1) break;
      let span: Uint8Array | undefined;
      const done = yield* attempt({ ...step, wait: false }, expected, () => {
        [span] = space.spans(at(step.page), PAGE, step.write ? "rw" : "r");
      });
      if (done !== "done") break;
      if (step.write) {
        span!.set([step.value & 0xff], step.offset);
        store(model, step.space, step.page, step.offset, Uint8Array.of(step.value));
      }
      expectBytes(span!.slice(), padded(bytesOf(model, map.get(step.page)!)));
      if (step.op === "span") memory.poll(); // else it is pinned until the turn ends
      break;
    }
    case "file.read":
    case "file.write": {
      if (step.file < 0) break;
      const file = world.files[step.agent]![step.file]!;
      const offset = (step.index % FILE_PAGES[step.file]!) * PAGE + step.offset;
      const n = Math.min(Math.max(0, fileSize(step.file) - offset), 3 * PAGE);
      const write = step.op === "file.write";
      const expected = write && !WRITABLE[step.file] ? "EACCES" : undefined;
      const buffer = write ? pattern(n, step.value & 0xff) : new Uint8Array(n);
      // Written without waiting, what was done before a refusal stays; so it is only read then.
      if (n === 0 || (write && !step.wait)) break;
      const done = yield* attempt(step, expected, () => {
        if (step.wait) return write ? file.write(offset, buffer) : file.read(offset, buffer);
        return memory.try.read(file, offset, buffer);
      });
      if (done === "excused" && write) {
        const now = new Uint8Array(n);
        yield file.read(offset, now).catch(() => 0);
        for (let k = 0; k < n && now[k] === buffer[k]; k++) model.files[step.file]![offset + k] = buffer[k]!;
      }
      if (done !== "done") break;
      if (write) model.files[step.file]!.set(buffer, offset);
      else expectBytes(buffer, model.files[step.file]!.slice(offset, offset + n));
      break;
    }
    case "file.sync": {
      const file = world.files[step.agent]![0]!;
      const views = memory.stats().frames.pinned > 0;
      const done = yield* attempt(step, undefined, () => (step.wait ? file.sync() : memory.try.sync(file)));
      // A writable view may have been stored through after its page was written.
      if (done === "done" && !views) expectBytes(backingBytes.get(world)!, model.files[0]!);
      break;
    }
    case "msync": {
      let hole = false;
      each((page) => (hole ||= !map.has(page)));
      const error = yield* caught(step, () => form.msync(at(step.page), length));
      if (isMmError(error, "EAGAIN") && !step.wait) break;
      expect(isMmError(error) ? error.code : error).toBe(hole ? "ENOMEM" : undefined);
      break;
    }
    case "reclaim":
      yield* attempt(step, undefined, () =>
        step.wait ? memory.reclaim(step.pages * PAGE) : memory.try.reclaim(step.pages * PAGE),
      );
      break;
    // What the model knows does not change.
    case "toDevice":
    case "toMemory":
    case "exclusive":
    case "evict": {
      const device = world.devices[step.agent]!;
      const range = { start: at(step.page), length };
      const error = yield* caught(step, () => {
        if (step.op === "evict") return step.wait ? device.evict() : undefined;
        if (step.op === "exclusive") {
          const page = { memory, space, address: at(step.page) };
          if (!step.wait) return makeDeviceExclusive.try(page).release();
          return makeDeviceExclusive(page).then((taken) => taken.release());
        }
        const move: Variants<[DeviceMemory, AddressSpace, MigrateRange], unknown> =
          step.op === "toDevice" ? migrateToDevice : migrateToMemory;
        return step.wait ? move(device, space, range) : move.try(device, space, range);
      });
      if (error === undefined || isExcuse(error, step)) break;
      if (!isMmError(error)) throw error as Error;
      if (step.op === "exclusive" && error.code !== "ENOTSUP")
        expect(describeError(error)).toBe(refusal(model, step.space, step.page, true));
      else expect(error.code).toBe(step.op === "exclusive" ? "ENOTSUP" : "EINVAL");
      break;
    }
    case "turn":
      if (step.wait) yield Promise.resolve();
      else memory.poll();
      break;
    case "exit":
      if (step.value % 4 !== 0) break;
      yield space.exit();
      map.clear();
      yield newSpace(world, step.space);
      break;
  }
}

const backingBytes = new WeakMap<World, Uint8Array>();

/** A page's bytes as they are, undefined if they cannot be read. */
async function peek(world: World, space: number, page: number): Promise<Uint8Array | undefined> {
  const bytes = new Uint8Array(PAGE);
  try {
    await world.memories[0]!.space(world.spaces[space]!).read(at(page), bytes);
    return bytes;
  } catch {
    return undefined;
  }
}

async function newSpace(world: World, space: number): Promise<void> {
  const made = await world.memories[0]!.createSpace();
  world.spaces[space] = made.id;
  if (world.recorders[space] !== undefined) {
    expect(world.recorders[space].open).toBe(0);
    world.recorders[space] = record(made);
  }
}

/** A private page has a frame of its own if and only if the model says so, but for copies made by a populate. */
function checkCopies(world: World): void {
  for (let s = 0; s < SPACES; s++) {
    const space: AddressSpace = world.memories[0]!.space(world.spaces[s]!);
    const state = space.pagemap(BASE, WINDOW * PAGE);
    for (const [page, p] of world.model.pages[s]!) {
      if (p.shared) continue;
      const { present, file, zero, swapped } = state[page]!;
      if (swapped || (present && !file && !zero)) p.copy ??= padded(bytesOf(world.model, p));
      else if (p.copy) throw new Error(`space ${s} lost its copy of page ${page}`);
    }
  }
}

function checkVmas(world: World): void {
  for (let s = 0; s < SPACES; s++) {
    const seen: string[] = [];
    for (const v of world.memories[0]!.space(world.spaces[s]!).vmas()) {
      for (let page = (v.start - BASE) / PAGE; page < (v.end - BASE) / PAGE; page++) {
        seen[page] = `${v.prot} ${v.share}`;
      }
    }
    for (let page = 0; page < WINDOW; page++) {
      const p = world.model.pages[s]!.get(page);
      const wanted =
        p &&
        `${(p.prot & 1) !== 0 ? "r" : "-"}${(p.prot & 2) !== 0 ? "w" : "-"}- ${p.shared ? "shared" : "private"}`;
      expect(`${page} ${seen[page]}`).toBe(`${page} ${wanted}`);
    }
  }
}

/** Pages of a device in plain memory. */
function plainDevice(memory: PhysicalMemory, waits: boolean): DeviceMemory {
  const store = new Uint8Array(32 * PAGE);
  const copyIn = (list: readonly DeviceCopy[]): void => {
    for (const { page, bytes } of list) store.set(bytes ?? zeros, page * PAGE);
  };
  const copyOut = (list: readonly DeviceCopy[]): void => {
    for (const { page, bytes } of list) {
      const here = store.subarray(page * PAGE, (page + 1) * PAGE);
      bytes!.set(here);
      here.fill(0xdd);
    }
  };
  const late = (copy: (list: readonly DeviceCopy[]) => void) => async (list: readonly DeviceCopy[]) => {
    await Promise.resolve();
    copy(list);
  };
  return createDeviceMemory(memory, {
    bytes: store.length,
    around: 2 * PAGE,
    ...(waits
      ? { copyIn: late(copyIn), copyOut: late(copyOut) }
      : { copyInSync: copyIn, copyOutSync: copyOut }),
  });
}

/** Something goes on by itself in an agent: an access that was refused brings its page back. */
const pending = (world: World): boolean =>
  world.memories.some(({ agent }) => agent.tasks.size > 0 || agent.hostWaits > 0);

async function makeWorld(frames: number, listening: boolean, devices: boolean): Promise<World> {
  const memory = await createMemory({
    budget: frames * PAGE,
    arena: "2 MiB",
    maxAgents: 3,
    mayBlock: false,
    debug: true,
    faultAround: 4 * PAGE,
  });
  const other = await attach(memory.handle, { mayBlock: false });
  const bytes = [0, 1].map((file) => pattern(fileSize(file), file + 1));
  const files = [
    memory.try.openFile(sharedBacking(bytes[0]!), { writable: true }),
    memory.try.openFile(sharedBacking(bytes[1]!)),
    memory.try.openFile(memoryBacking(fileSize(2))),
  ];
  const world: World = {
    model: {
      pages: Array.from({ length: SPACES }, () => new Map<number, Page>()),
      files: [bytes[0]!.slice(), bytes[1]!.slice(), new Uint8Array(fileSize(2))],
    },
    memories: [memory, other],
    files: [files, files.map((f) => other.file(f.id))],
    spaces: [],
    recorders: [],
    devices: devices ? [plainDevice(memory, false), plainDevice(other, true)] : [],
  };
  for (const m of world.memories) {
    m.onError = (error) => {
      throw error;
    };
  }
  backingBytes.set(world, bytes[0]!);
  for (let s = 0; s < SPACES; s++) {
    world.spaces.push(memory.try.createSpace().id);
    if (listening) world.recorders.push(record(memory.space(world.spaces[s]!)));
  }
  return world;
}

async function finish(world: World): Promise<void> {
  const [memory, other] = world.memories as [PhysicalMemory, PhysicalMemory];
  await Promise.resolve();
  for (let s = 0; s < SPACES; s++) {
    for (const [page, p] of world.model.pages[s]!) {
      const now = await peek(world, s, page);
      if (now) expectBytes(now, padded(bytesOf(world.model, p)));
      else if (refusal(world.model, s, page, false) === undefined) expect(memory.stats().frames.free).toBe(0);
    }
  }
  await world.files[0]![0]!.sync();
  expectBytes(backingBytes.get(world)!, world.model.files[0]!);
  expect(memory.check()).toBeUndefined();
  for (let s = 0; s < SPACES; s++) if (world.devices.length > 0) await memory.space(world.spaces[s]!).exit();
  for (const device of world.devices) {
    expect(device.free).toBe(device.pages);
    await device.close();
  }
  for (const r of world.recorders) expect(r.open).toBe(0);
  other.detach();
  await memory.close();
  const { frames } = memory.mm;
  expect(frames.check()).toBeUndefined();
  expect(frames.free).toBe(frames.count - 1);
}

const runs = (frames: number, listening: boolean, numRuns: number, devices = false) =>
  fc.assert(
    fc.asyncProperty(
      fc.array(devices ? deviceStepArb : stepArb, { minLength: 1, maxLength: 90, size: "max" }),
      async (steps) => {
        const world = await makeWorld(frames, listening, devices);
        for (const step of [...OPENING, ...steps]) {
          const running = run(world, step);
          // No await where the step does not wait.
          for (let r = running.next(); r.done !== true;) {
            try {
              await r.value;
            } catch (error) {
              r = running.throw(error);
              continue;
            }
            r = running.next();
          }
          while (devices && pending(world)) await new Promise((resolve) => setImmediate(resolve));
          for (const memory of world.memories) expect(memory.check()).toBeUndefined();
          checkCopies(world);
          checkVmas(world);
        }
        await finish(world);
      },
    ),
    { numRuns, endOnFailure: true, seed: 20261124 },
  );

test("two agents, two spaces, files and 32 frames agree with the model after every step", async () => {
  await runs(32, false, 70);
}, 60_000);

test("so they do with 64 frames and notifiers that count starts and ends", async () => {
  await runs(64, true, 40);
}, 60_000);

test("so they do with pages that move to a device of each agent and back, or are a device's own", async () => {
  await runs(48, true, 60, true);
}, 60_000);
