/**
 * Random programs over processes that fork, move, lock, advise and share files which grow and shrink, against a plain
 * model: each process is a map from page number to what is there, and fork copies it. No page tables, no sharing of
 * private pages, nothing lazy. Every invariant is checked after every step.
 */
import fc from "fast-check";
import { expect, test } from "vitest";
import { isMmError, type MmError } from "../../src/errors.ts";
import {
  type Advice,
  type AddressSpace,
  attach,
  createMemory,
  type MappedFile,
  memoryBacking,
  type PhysicalMemory,
  type Pin,
  type Vma,
} from "../../src/mm/index.ts";
import { expectBytes, PAGE, pattern, sharedBacking } from "../lib/mm.ts";
import {
  FIRST_PAGE,
  growingBacking,
  OPENING,
  PROTS,
  anonymousStepArb,
  isAnonymous,
  makeAnonymous,
  type Step,
  stepArb,
} from "../lib/processes.ts";

const SEED = 20261128;
const MAX_PROCESSES = 4;
const MAX_PINS = 3;
/** Enough for everything: no step lacks memory, so that each has exactly one right outcome. */
const FRAMES = 768;
const MAX_FILE_BYTES = 16 * PAGE;

// ---- the model -----------------------------------------------------------------------------------------------------

interface Page {
  readonly shared: boolean;
  readonly prot: number;
  /** Where its bytes come from, -1 for private anonymous memory; shared anonymous memory has a file, too. */
  readonly file: number;
  readonly index: number;
  /** What a private page has of its own. */
  readonly copy?: Uint8Array | undefined;
  readonly guard?: boolean;
  /** "lo", "lf", "dc", "wf", as vmas() shows them. */
  readonly flags: ReadonlySet<string>;
}

interface Process {
  readonly id: number;
  /** By page number, address / PAGE. */
  readonly pages: Map<number, Page>;
}

interface ModelFile {
  bytes: Uint8Array;
  readonly writable: boolean;
  readonly resizable: boolean;
  /** As vmas() names it. */
  readonly id: number;
}

interface World {
  readonly memories: readonly PhysicalMemory[];
  /** By agent. */
  readonly handles: readonly (readonly MappedFile[])[];
  readonly files: ModelFile[];
  processes: Process[];
  readonly disk: { bytes: Uint8Array };
  /** Held, the oldest first. */
  readonly pins: Pin[];
}

function padded(bytes: Uint8Array): Uint8Array {
  const out = new Uint8Array(PAGE);
  out.set(bytes);
  return out;
}

/** A copy of what a page of a process contains. */
function bytesOf(world: World, page: Page): Uint8Array {
  if (page.copy || page.file < 0) return padded(page.copy ?? new Uint8Array());
  return padded(world.files[page.file]!.bytes.subarray(page.index * PAGE, (page.index + 1) * PAGE));
}

/** Why an access fails, undefined if nothing forbids it. */
function refusal(world: World, page: Page | undefined, write: boolean): string | undefined {
  if (!page) return "SEGV_MAPERR";
  if ((page.prot & (write ? 2 : 7)) === 0) return "SEGV_ACCERR";
  if (page.guard) return "SEGV_MAPERR";
  if (!page.copy && page.file >= 0 && page.index * PAGE >= world.files[page.file]!.bytes.length)
    return "BusError";
  return undefined;
}

/** True if a store would go behind the end of a file inside its last page: what comes of those bytes is not said. */
const behindEnd = (world: World, page: Page | undefined, offset: number): boolean =>
  !!page?.shared && page.index * PAGE + offset >= world.files[page.file]!.bytes.length;

function store(world: World, process: Process, at: number, offset: number, bytes: Uint8Array): void {
  const page = process.pages.get(at)!;
  if (page.shared) {
    world.files[page.file]!.bytes.set(bytes, page.index * PAGE + offset);
    return;
  }
  const copy = bytesOf(world, page);
  copy.set(bytes, offset);
  process.pages.set(at, { ...page, copy });
}

function resize(world: World, file: ModelFile, size: number): void {
  const bytes = new Uint8Array(size);
  bytes.set(file.bytes.subarray(0, size));
  file.bytes = bytes;
  for (const { pages } of world.processes)
    for (const [at, page] of pages)
      if (world.files[page.file] === file && page.index >= Math.ceil(size / PAGE))
        pages.set(at, { ...page, copy: undefined });
}

const withFlags = (page: Page, set: string[], clear: string[]): Page => ({
  ...page,
  flags: new Set([...[...page.flags].filter((flag) => !clear.includes(flag)), ...set]),
});

/** What fork gives to the child. */
function inherit(pages: Map<number, Page>): Map<number, Page> {
  const child = new Map<number, Page>();
  for (const [at, page] of pages) {
    if (page.flags.has("dc")) continue;
    const own = withFlags(page, [], ["lo", "lf"]);
    child.set(at, page.flags.has("wf") ? { ...own, copy: undefined, guard: false } : own);
  }
  return child;
}

/** What advice does to one page: the page, or the error that ends the call. */
function advise(world: World, page: Page, advice: string): Page | string {
  const locked = page.flags.has("lo");
  switch (advice) {
    case "dontneed":
      return locked ? "EINVAL" : { ...page, copy: undefined };
    case "free":
      return locked || page.file >= 0 ? "EINVAL" : page;
    case "cold":
      return locked ? "EINVAL" : page;
    case "guard-install":
      return locked ? "EINVAL" : { ...page, copy: undefined, guard: true };
    case "guard-remove":
      return { ...page, guard: false };
    case "remove": {
      if (locked || page.file < 0) return "EINVAL";
      const file = world.files[page.file]!;
      if (!page.shared || !file.writable) return "EACCES";
      file.bytes.fill(0, page.index * PAGE, (page.index + 1) * PAGE);
      return page;
    }
    case "dontfork":
      return withFlags(page, ["dc"], []);
    case "dofork":
      return withFlags(page, [], ["dc"]);
    case "wipeonfork":
      return page.file >= 0 ? "EINVAL" : withFlags(page, ["wf"], []);
    case "keeponfork":
      return withFlags(page, [], ["wf"]);
    case "populate-read":
    case "populate-write": {
      const write = advice === "populate-write";
      if ((page.prot & (write ? 2 : 7)) === 0) return "EINVAL";
      return refusal(world, page, write) === undefined ? page : "EFAULT";
    }
    default:
      throw new Error(advice);
  }
}

interface Move {
  readonly start: number;
  readonly old: number;
  readonly now: number;
  readonly mayMove: boolean;
  readonly to?: number;
  readonly dontUnmap: boolean;
}

const none = (pages: Map<number, Page>, from: number, end: number): boolean => {
  for (let at = from; at < end; at++) if (pages.has(at)) return false;
  return true;
};

/** How mremap fails, "here" if the mapping stays where it is, "elsewhere". `vmas`: where one ends, only it says. */
function destiny(pages: Map<number, Page>, vmas: readonly Vma[], m: Move): string {
  const { start, old, now, mayMove, to, dontUnmap } = m;
  if ((to !== undefined || dontUnmap) && !mayMove) return "EINVAL";
  if (dontUnmap && old !== now) return "EINVAL";
  if (to !== undefined && to < start + old && to + now > start) return "EINVAL";
  const vma = vmas.find((v) => v.start <= start * PAGE && start * PAGE < v.end);
  if (!vma) return "EFAULT";
  if (to !== undefined && old === now) return "elsewhere";
  const end = vma.end / PAGE;
  const resizes = to === undefined && !dontUnmap;
  if (old === 0 && vma.share === "private") return "EINVAL";
  if (resizes && old >= now) return "here";
  if (start + Math.min(old, now) > end) return "EFAULT";
  if (!resizes) return "elsewhere";
  if (old > 0 && end === start + old && none(pages, end, start + now)) return "here";
  return mayMove ? "elsewhere" : "ENOMEM";
}

/** Pages that continue `page`, for a mapping that has grown. */
const continued = (page: Page, by: number): Page => ({
  ...page,
  index: page.index + by,
  copy: undefined,
  guard: false,
});

function move(pages: Map<number, Page>, { start, old, now, dontUnmap }: Move, to: number): void {
  const kept = Math.min(old, now);
  const last = pages.get(start + Math.max(0, kept - 1))!;
  const moved = Array.from({ length: kept }, (_, k) => pages.get(start + k));
  for (let k = 0; k < Math.max(kept, now); k++) {
    const page = k < kept ? moved[k] : continued(last, k - Math.max(0, kept - 1));
    // A move of equal lengths may span holes: what is mapped at the target there stays.
    if (page) pages.set(to + k, page);
  }
  for (let k = 0; k < old; k++) {
    const page = moved[k];
    if (page && dontUnmap) pages.set(start + k, continued(page, 0));
    else pages.delete(start + k);
  }
}

// ---- steps ---------------------------------------------------------------------------------------------------------

const describeError = (error: unknown): string => {
  if (!isMmError(error)) throw error as Error;
  const { name, code, reason } = error as MmError & { reason?: string };
  return name === "BusError" ? "BusError" : (reason ?? code);
};

/** Runs an operation, which must end as expected. Returns what it returned. */
async function attempt<T>(expected: string | undefined, body: () => Promise<T>): Promise<T | undefined> {
  let result: T | undefined;
  let outcome: string | undefined;
  try {
    result = await body();
  } catch (error) {
    outcome = describeError(error);
  }
  expect(outcome).toBe(expected);
  return result;
}

/** Steps after which a private page may have been copied without a store: brought in for writing, ahead of use or in vain. */
const POPULATES: ReadonlySet<string> = new Set([
  "mmap",
  "mprotect",
  "mremap",
  "mlock",
  "populate-write",
  "straddle",
  "pin",
]);

async function run(world: World, step: Step): Promise<void> {
  const { files } = world;
  const agent = step.agent % world.memories.length;
  const memory = world.memories[agent]!;
  const process = world.processes[step.process % world.processes.length]!;
  const { pages } = process;
  const space = memory.space(process.id);
  const start = FIRST_PAGE + step.page;
  const end = start + step.pages;
  const [address, length] = [start * PAGE, step.pages * PAGE];
  const page = pages.get(start);
  const handle = step.file < 0 ? undefined : world.handles[agent]![step.file]!;
  const file = files[step.file];
  switch (step.op) {
    case "mmap":
      await map(world, process, space, step);
      break;
    case "munmap":
      await attempt(undefined, () => space.munmap(address, length));
      for (let at = start; at < end; at++) pages.delete(at);
      break;
    case "mprotect": {
      const prot = step.prot === 0 ? 0 : step.prot === 1 ? 1 : 3;
      let expected: string | undefined;
      for (let at = start; at < end && expected === undefined; at++) {
        const p = pages.get(at);
        if (!p) expected = "ENOMEM";
        else if (p.prot !== prot && p.shared && prot === 3 && !files[p.file]!.writable) expected = "EACCES";
        else pages.set(at, { ...p, prot });
      }
      await attempt(expected, () => space.mprotect(address, length, PROTS[step.prot]!));
      break;
    }
    case "mremap":
      await remap(process, space, step);
      break;
    case "fork": {
      if (world.processes.length === MAX_PROCESSES) break;
      const child = await space.fork();
      world.processes.push({ id: child.id, pages: inherit(pages) });
      break;
    }
    case "exit":
      if (world.processes.length === 1) break;
      await compare(world, process, memory);
      await memory.space(process.id).exit();
      world.processes = world.processes.filter((p) => p !== process);
      break;
    case "mlock":
    case "munlock": {
      const locks = step.op === "mlock";
      const onFault = locks && step.form === 0;
      let expected: string | undefined;
      for (let at = start; at < end && expected === undefined; at++) {
        const p = pages.get(at);
        if (!p) expected = "ENOMEM";
        else pages.set(at, withFlags(p, locks ? (onFault ? ["lo", "lf"] : ["lo"]) : [], ["lo", "lf"]));
      }
      for (let at = start; at < end && expected === undefined && locks && !onFault; at++) {
        const p = pages.get(at)!;
        if (refusal(world, p, !p.shared && (p.prot & 2) !== 0) !== undefined) expected = "ENOMEM";
      }
      await attempt(expected, () =>
        locks ? space.mlock(address, length, { onFault }) : space.munlock(address, length),
      );
      break;
    }
    case "reclaim":
      await memory.reclaim(step.pages * 4 * PAGE);
      break;
    case "clearRefs":
      await space.clearRefs(step.write ? "soft-dirty" : "referenced");
      break;
    case "look":
      await compare(world, process, memory);
      break;
    case "load": {
      const value = await attempt(refusal(world, page, false), () =>
        space.run(() => space.getUint8(address + step.offset)),
      );
      if (value !== undefined) expect(value).toBe(bytesOf(world, page!)[step.offset]);
      break;
    }
    case "store": {
      const expected = refusal(world, page, true);
      if (expected === undefined && behindEnd(world, page, step.offset)) break;
      await attempt(expected, () => space.run(() => space.setUint8(address + step.offset, step.value)));
      if (expected === undefined) store(world, process, start, step.offset, Uint8Array.of(step.value));
      break;
    }
    case "straddle": {
      const next = pages.get(start + 1);
      const low = 1 + (step.offset % 3);
      const expected = refusal(world, page, step.write) ?? refusal(world, next, step.write);
      if (expected === undefined && step.write)
        if (behindEnd(world, page, PAGE - 1) || behindEnd(world, next, 3)) break;
      const at = address + PAGE - low;
      const value = await attempt(expected, () =>
        space.run(() => (step.write ? space.setUint32(at, step.value) : space.getUint32(at))),
      );
      if (expected !== undefined) break;
      if (step.write) {
        const bytes = Uint8Array.from([0, 8, 16, 24], (shift) => step.value >>> shift);
        store(world, process, start, PAGE - low, bytes.subarray(0, low));
        store(world, process, start + 1, 0, bytes.subarray(low));
      } else {
        const both = Buffer.concat([bytesOf(world, page!), bytesOf(world, next!)]);
        expect(value).toBe(both.readUInt32LE(PAGE - low));
      }
      break;
    }
    case "pin":
      await pin(world, process, space, step);
      break;
    case "read":
    case "write":
      await copy(world, process, space, step);
      break;
    case "file.read": {
      if (!file) break;
      const offset = step.index * PAGE + step.offset;
      const into = new Uint8Array(length);
      const wanted = file.bytes.slice(offset, offset + length);
      expect(await handle!.read(offset, into)).toBe(wanted.length);
      expectBytes(into.subarray(0, wanted.length), wanted);
      break;
    }
    case "file.write": {
      if (!file) break;
      const offset = step.index * PAGE + step.offset;
      const bytes = pattern(
        Math.min(length, MAX_FILE_BYTES - offset) - (step.value % PAGE),
        step.value & 0xff,
      );
      const grows = offset + bytes.length > file.bytes.length;
      const expected = !file.writable ? "EACCES" : grows && !file.resizable ? "ENOTSUP" : undefined;
      await attempt(expected, () => handle!.write(offset, bytes));
      if (expected !== undefined) break;
      if (grows) resize(world, file, offset + bytes.length);
      file.bytes.set(bytes, offset);
      break;
    }
    case "truncate": {
      if (!file) break;
      // Around a page boundary every other time.
      const size = step.index * PAGE + (step.write ? 0 : step.offset);
      await attempt(file.writable ? undefined : "EACCES", () => handle!.truncate(size));
      if (file.writable) resize(world, file, size);
      break;
    }
    case "punchHole": {
      if (!file) break;
      const offset = step.index * PAGE + (step.write ? 0 : step.offset);
      const bytes = step.shared ? length : 1 + (step.value % length);
      await attempt(file.writable ? undefined : "EACCES", () => handle!.punchHole(offset, bytes));
      if (file.writable) file.bytes.fill(0, offset, offset + bytes);
      break;
    }
    case "allocate": {
      if (!file) break;
      const offset = step.index * PAGE + step.offset;
      const bytes = Math.min(length, MAX_FILE_BYTES - offset);
      const expected = file.writable ? undefined : "EACCES";
      await attempt(expected, () => handle!.allocate(offset, bytes, { keepSize: step.write }));
      if (file.writable && !step.write && offset + bytes > file.bytes.length)
        resize(world, file, offset + bytes);
      break;
    }
    case "sync":
      await world.handles[agent]![1]!.sync();
      expectBytes(padTo(world.disk.bytes, files[1]!.bytes.length), files[1]!.bytes);
      break;
    default: {
      const advice = step.op as Advice & string;
      let expected: string | undefined;
      let hole = false;
      for (let at = start; at < end && expected === undefined; at++) {
        const p = pages.get(at);
        // Populating ends at a hole, the others go on.
        if (!p && advice.startsWith("populate")) expected = "ENOMEM";
        else if (!p) hole = true;
        else {
          const next = advise(world, p, advice);
          if (typeof next === "string") expected = next;
          else pages.set(at, next);
        }
      }
      await attempt(expected ?? (hole ? "ENOMEM" : undefined), () => space.madvise(address, length, advice));
    }
  }
}

/** What a file on disk does not have yet at its end is zero. */
function padTo(bytes: Uint8Array, length: number): Uint8Array {
  expect(bytes.length).toBeLessThanOrEqual(length);
  const out = new Uint8Array(length);
  out.set(bytes);
  return out;
}

async function map(world: World, process: Process, space: AddressSpace, step: Step): Promise<void> {
  const { pages } = process;
  const { shared } = step;
  const start = FIRST_PAGE + step.page;
  const handle = step.file < 0 ? undefined : world.handles[step.agent % world.memories.length]![step.file]!;
  const noreplace = step.form === 1;
  const anywhere = step.form === 2;
  const prot = PROTS[step.prot]!;
  const length = step.pages * PAGE;
  const taken = noreplace && !none(pages, start, start + step.pages);
  const readOnly = handle !== undefined && !world.files[step.file]!.writable;
  const expected = taken ? "EEXIST" : shared && readOnly && prot === "rw" ? "EACCES" : undefined;
  const address = await attempt(expected, () =>
    space.mmap({
      ...{ length, prot, share: shared ? "shared" : "private", populate: step.form === 3 },
      ...(anywhere ? {} : { address: start * PAGE, fixed: noreplace ? "noreplace" : true }),
      ...(handle ? { file: handle, offset: step.index * PAGE } : {}),
    }),
  );
  if (address === undefined) return;
  const first = address / PAGE;
  if (anywhere) expect(none(pages, first, first + step.pages)).toBe(true);
  else expect(first).toBe(start);
  let { file } = step;
  if (file < 0 && shared) {
    const { file: id } = space.vmas().find((v) => v.start <= address && address < v.end)!;
    file = world.files.push({ bytes: new Uint8Array(length), writable: true, resizable: true, id: id! }) - 1;
  }
  for (let k = 0; k < step.pages; k++) {
    const index = step.file < 0 ? k : step.index + k;
    pages.set(first + k, {
      ...{ shared, prot: prot === "none" ? 0 : prot === "r" ? 1 : 3, file, index, flags: new Set() },
    });
  }
}

async function remap(process: Process, space: AddressSpace, step: Step): Promise<void> {
  const { pages } = process;
  const { form } = step;
  const dontUnmap = form === 5 || form === 6;
  const targeted = form === 3 || form === 4 || form === 6 || form === 7;
  const start = FIRST_PAGE + step.page;
  const old = step.value % 8 === 0 ? 0 : step.pages;
  const equal = form === 4 || (dontUnmap && step.value % 5 !== 0);
  const now = equal && old > 0 ? old : step.toPages;
  const to = FIRST_PAGE + step.to;
  const m: Move = {
    ...{ start, old, now, mayMove: form !== 0 && form !== 7, dontUnmap },
    ...(targeted ? { to } : {}),
  };
  const vmas = space.vmas();
  // Mapped a second time over itself, or unlocked beyond what is moved: as in Linux, but not worth a model.
  if (old === 0 && targeted && to <= start && start < to + now) return;
  const touches = (v: Vma): boolean => v.start < (start + old) * PAGE && v.end > start * PAGE;
  if (dontUnmap && vmas.some((v) => touches(v) && v.flags.includes("lo"))) return;

  const how = destiny(pages, vmas, m);
  const address = await attempt(how === "here" || how === "elsewhere" ? undefined : how, () =>
    space.mremap(start * PAGE, old * PAGE, now * PAGE, {
      ...{ mayMove: m.mayMove, dontUnmap },
      ...(targeted ? { to: to * PAGE } : {}),
    }),
  );
  if (address === undefined) return;
  const target = address / PAGE;
  if (how === "here") {
    expect(target).toBe(start);
    for (let at = start + now; at < start + old; at++) pages.delete(at);
    const last = pages.get(start + old - 1);
    for (let k = old; k < now; k++) pages.set(start + k, continued(last!, k - (old - 1)));
    return;
  }
  if (targeted) expect(target).toBe(to);
  else expect(none(pages, target, target + now)).toBe(true);
  if (targeted && old !== now) for (let at = target; at < target + now; at++) pages.delete(at);
  move(pages, m, target);
}

/** read() and write(): what comes before the first page that refuses is copied. */
async function copy(world: World, process: Process, space: AddressSpace, step: Step): Promise<void> {
  const write = step.op === "write";
  const start = FIRST_PAGE + step.page;
  const total = step.pages * PAGE - step.offset;
  const parts: { at: number; within: number; from: number; bytes: number }[] = [];
  let expected: string | undefined;
  for (let from = 0; from < total && expected === undefined;) {
    const at = start + Math.floor((step.offset + from) / PAGE);
    const within = (step.offset + from) % PAGE;
    const bytes = Math.min(PAGE - within, total - from);
    const page = process.pages.get(at);
    expected = refusal(world, page, write);
    if (expected === undefined) {
      if (write && behindEnd(world, page, within + bytes - 1)) return;
      parts.push({ at, within, from, bytes });
    }
    from += bytes;
  }
  const buffer = write ? pattern(total, step.value & 0xff) : new Uint8Array(total);
  await attempt(expected, () => space[step.op as "read" | "write"](start * PAGE + step.offset, buffer));
  for (const { at, within, from, bytes } of parts) {
    const piece = buffer.subarray(from, from + bytes);
    if (write) store(world, process, at, within, piece);
    else expectBytes(piece, bytesOf(world, process.pages.get(at)!).subarray(within, within + bytes));
  }
}

/** Pins a range, looks at all of it and writes one byte of it; held for a while, whatever becomes of the mapping. */
async function pin(world: World, process: Process, space: AddressSpace, step: Step): Promise<void> {
  const { write } = step;
  const { pages } = process;
  const start = FIRST_PAGE + step.page;
  const list = Array.from({ length: step.pages }, (_, k) => pages.get(start + k));
  const expected = list.map((page) => refusal(world, page, write)).find((code) => code !== undefined);
  const held = await attempt(expected, () => space.pin(start * PAGE, step.pages * PAGE, write ? "rw" : "r"));
  if (!held) return;
  expectBytes(Buffer.concat(held.spans), Buffer.concat(list.map((page) => bytesOf(world, page!))));
  if (write && !behindEnd(world, list[0], step.offset)) {
    held.spans[0]![step.offset] = step.value;
    store(world, process, start, step.offset, Uint8Array.of(step.value));
  }
  world.pins.push(held);
  if (world.pins.length > MAX_PINS) world.pins.shift()!.unpin();
}

// ---- checks --------------------------------------------------------------------------------------------------------

/** Every page of a process can be read if the model says so, and has the bytes that it says. */
async function compare(world: World, process: Process, memory: PhysicalMemory): Promise<void> {
  const space = memory.space(process.id);
  const bytes = new Uint8Array(PAGE);
  for (const [at, page] of process.pages) {
    const expected = refusal(world, page, false);
    await attempt(expected, () => space.read(at * PAGE, bytes));
    if (expected === undefined) expectBytes(bytes, bytesOf(world, page));
  }
}

interface Stretch {
  start: number;
  end: number;
  what: string;
  /** File offset less address, in pages. */
  shift: number;
}

function addStretch(list: Stretch[], next: Stretch): void {
  const last = list.at(-1);
  if (last && last.end === next.start && last.what === next.what && last.shift === next.shift)
    last.end = next.end;
  else list.push(next);
}

/** What is mapped where: as the model says, neighbours merged wherever they look the same. */
function checkVmas(world: World, process: Process, space: AddressSpace): void {
  const seen: Stretch[] = [];
  for (const v of space.vmas()) {
    const flags = v.flags.filter((flag) => ["lo", "lf", "dc", "wf"].includes(flag)).join();
    const what = `${v.prot} ${v.share} ${v.file} ${flags}`;
    const [start, end] = [v.start / PAGE, v.end / PAGE];
    addStretch(seen, { start, end, what, shift: v.file === undefined ? 0 : v.offset / PAGE - start });
  }
  const wanted: Stretch[] = [];
  for (const [at, page] of [...process.pages].sort(([a], [b]) => a - b)) {
    const prot = ["---", "r--", "", "rw-"][page.prot]!;
    const id = page.file < 0 ? undefined : world.files[page.file]!.id;
    const what = `${prot} ${page.shared ? "shared" : "private"} ${id} ${[...page.flags].sort().join()}`;
    addStretch(wanted, { start: at, end: at + 1, what, shift: page.file < 0 ? 0 : page.index - at });
  }
  expect(seen).toEqual(wanted);
}

/** A private page has a frame of its own if and only if the model says so; guards are where it says. */
function checkPages(world: World, process: Process, space: AddressSpace, op: string): void {
  const sorted = [...process.pages.keys()].sort((a, b) => a - b);
  if (sorted.length === 0) return;
  const [first, last] = [sorted[0]!, sorted.at(-1)!];
  const state = space.pagemap(first * PAGE, (last + 1 - first) * PAGE);
  for (const [at, page] of process.pages) {
    const { present, file, zero, guard } = state[at - first]!;
    const where = `page ${at} of space ${process.id}`;
    if (guard !== (page.guard ?? false)) throw new Error(`${where}: guard ${guard}`);
    const own = present && !file && !zero;
    if (own && !page.copy) {
      if (page.shared || !POPULATES.has(op)) throw new Error(`${where} has a frame of its own`);
      process.pages.set(at, { ...page, copy: bytesOf(world, page) });
    } else if (!own && page.copy) throw new Error(`${where} has lost its frame`);
  }
}

function check(world: World, step: Step): void {
  for (const memory of world.memories) expect(memory.check()).toBeUndefined();
  for (const process of world.processes) {
    const space = world.memories[0]!.space(process.id);
    checkVmas(world, process, space);
    checkPages(world, process, space, step.op);
  }
}

// ---- worlds --------------------------------------------------------------------------------------------------------

async function makeMemories(agents: number): Promise<PhysicalMemory[]> {
  const memory = await createMemory({
    ...{ budget: FRAMES * PAGE, arena: "4 MiB", maxAgents: agents, mayBlock: false, debug: true },
    faultAround: 4 * PAGE,
  });
  const memories = [memory];
  while (memories.length < agents) memories.push(await attach(memory.handle, { mayBlock: false }));
  for (const m of memories) {
    m.onError = (error) => {
      throw error;
    };
  }
  return memories;
}

interface Opened {
  readonly files: MappedFile[];
  readonly model: ModelFile[];
  readonly disk: { bytes: Uint8Array };
}

/** Files by number: in memory, on a disk where it can grow, read-only. */
async function openFiles(memory: PhysicalMemory): Promise<Opened> {
  const disk = { bytes: pattern(7 * PAGE - 100, 1) };
  const fixed = pattern(6 * PAGE - 7, 2);
  const files = [
    await memory.openFile(memoryBacking(5 * PAGE - 33)),
    await memory.openFile(growingBacking(disk), { writable: true }),
    await memory.openFile(sharedBacking(fixed.slice())),
  ];
  const contents = [new Uint8Array(5 * PAGE - 33), disk.bytes.slice(), fixed];
  const model = files.map(({ id }, k) => ({
    ...{ bytes: contents[k]!, writable: k !== 2, resizable: k !== 2, id },
  }));
  return { files, model, disk };
}

async function serialised(steps: readonly Step[], agents: number): Promise<void> {
  const opening = steps.every(isAnonymous) ? OPENING.map(makeAnonymous) : OPENING;
  const memories = await makeMemories(agents);
  const memory = memories[0]!;
  const before = memory.stats();
  const { files, model, disk } = await openFiles(memory);
  const handles = memories.map((m, k) => (k === 0 ? files : files.map(({ id }) => m.file(id))));
  const first = await memory.createSpace();
  const processes = [{ id: first.id, pages: new Map<number, Page>() }];
  const world: World = { memories, handles, files: model, processes, disk, pins: [] };
  for (const [k, step] of [...opening, ...steps].entries()) {
    try {
      await run(world, step);
      check(world, step);
    } catch (cause) {
      throw new Error(`step ${k - OPENING.length}, ${JSON.stringify(step)}: ${String(cause)}`, { cause });
    }
  }
  for (const held of world.pins) held.unpin();
  for (const process of world.processes) {
    await compare(world, process, memories.at(-1)!);
    await memory.space(process.id).exit();
  }
  for (const handle of handles.flat().reverse()) await handle.close();
  expectBytes(padTo(disk.bytes, model[1]!.bytes.length), model[1]!.bytes);
  await expectNoLeak(memories, before);
}

/** What every space and file used is free again, once the last pages of the last file have gone. */
async function expectNoLeak(
  memories: readonly PhysicalMemory[],
  before: ReturnType<PhysicalMemory["stats"]>,
): Promise<void> {
  const memory = memories[0]!;
  for (let k = 0; k < 20 && memory.stats().arenaBytes !== before.arenaBytes; k++)
    await new Promise((resolve) => setImmediate(resolve));
  expect(memory.check()).toBeUndefined();
  const after = memory.stats();
  expect([after.frames.used, after.arenaBytes]).toEqual([before.frames.used, before.arenaBytes]);
  for (const other of memories.slice(1)) other.detach();
  await memory.close();
}

const against = (agents: number, numRuns: number, step = stepArb): Promise<void> =>
  fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 80, size: "max" }), (steps) =>
      serialised(steps, agents),
    ),
    { numRuns, endOnFailure: true, seed: SEED },
  );

test("processes of one agent agree with the model after every step", async () => {
  await against(1, 45);
}, 60_000);

test("so they do where two agents take turns in them", async () => {
  await against(2, 45);
}, 60_000);

test.each([1, 2])(
  "so they do where nothing but private memory is mapped, whose page tables fork shares (%i)",
  async (agents) => {
    await against(agents, 40, anonymousStepArb);
  },
  60_000,
);
