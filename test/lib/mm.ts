/** Memories for tests: small, in debug mode, and checked after every operation. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect } from "vitest";
import type { MmError } from "../../src/errors.ts";
import {
  type AddressSpace,
  attach,
  type Backing,
  createMemory,
  type MemoryOptions,
  type MmapOptions,
  type PhysicalMemory,
  registerBacking,
} from "../../src/mm/index.ts";
import { MmuNotifier, MmuNotifierEvent, type MmuNotifierOps } from "../../src/notifier/index.ts";

export const PAGE = 4096;

const created: PhysicalMemory[] = [];
const attached: PhysicalMemory[] = [];
const folders: string[] = [];
/** Errors without a caller, of every memory; a test that expects some takes them. */
const reported: MmError[] = [];

export const takeReported = (): MmError[] => reported.splice(0);

afterEach(async () => {
  for (const memory of attached.splice(0).reverse()) memory.detach();
  for (const memory of created.splice(0)) {
    const { frames } = memory.mm;
    await memory.close();
    expect(frames.check()).toBeUndefined();
    expect(frames.free).toBe(frames.count - 1);
  }
  expect(takeReported()).toEqual([]);
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true });
});

/** A memory of `frames` frames in debug mode, whose agent may block. Closed after the test, which checks that nothing leaked. */
export async function makeMemory(frames = 64, options: Partial<MemoryOptions> = {}): Promise<PhysicalMemory> {
  const pageSize = options.pageSize ?? PAGE;
  const memory = await createMemory({
    budget: frames * pageSize,
    arena: "4 MiB",
    mayBlock: true,
    debug: true,
    ...options,
  });
  memory.onError = (error) => reported.push(error);
  created.push(memory);
  return memory;
}

/** Another agent of the same thread. Leaves after the test. */
export async function attachTo(memory: PhysicalMemory, mayBlock = true): Promise<PhysicalMemory> {
  const other = await attach(memory.handle, { mayBlock });
  other.onError = (error) => reported.push(error);
  attached.push(other);
  return other;
}

/** Fails unless every invariant of the memory holds. */
export function verify(memory: PhysicalMemory): void {
  expect(memory.check()).toBeUndefined();
}

/** `target`, with memory.check() after every call of it, of its `sync`, `try` and `atomics`. */
export function checked<T extends object>(memory: PhysicalMemory, target: T): T {
  return new Proxy(target, {
    get: (_, name) => {
      const value: unknown = Reflect.get(target, name, target);
      if (name === "sync" || name === "try" || name === "atomics") return checked(memory, value as object);
      if (typeof value !== "function") return value;
      return (...args: unknown[]): unknown => {
        let result: unknown;
        try {
          result = Reflect.apply(value, target, args);
        } catch (error) {
          verify(memory);
          throw error;
        }
        if (!(result instanceof Promise)) {
          verify(memory);
          return result;
        }
        return result.finally(() => verify(memory));
      };
    },
  });
}

export interface Rig {
  readonly memory: PhysicalMemory;
  /** Every call ends with memory.check(). */
  readonly space: AddressSpace;
  /** The same without. */
  readonly raw: AddressSpace;
}

/** A memory with one space. */
export async function makeRig(frames = 64, options: Partial<MemoryOptions> = {}): Promise<Rig> {
  const memory = await makeMemory(frames, options);
  const raw = memory.sync.createSpace();
  return { memory, raw, space: checked(memory, raw) };
}

/** Private anonymous memory, readable and writable. */
export const anonymous = (pages: number, more: Partial<MmapOptions> = {}): MmapOptions => ({
  length: pages * PAGE,
  prot: "rw",
  share: "private",
  ...more,
});

/** As toEqual(), without its cost for long arrays. */
export function expectBytes(actual: Uint8Array, expected: Uint8Array): void {
  if (Buffer.compare(actual, expected) === 0) return;
  const k = actual.findIndex((byte, n) => byte !== expected[n]);
  expect({ lengths: [actual.length, expected.length], at: k, byte: actual[k] }).toEqual({
    lengths: [expected.length, expected.length],
    at: k,
    byte: expected[k],
  });
}

/** What `fn` throws, undefined if nothing. */
export function thrown(fn: () => unknown): (MmError & { address?: number; reason?: string }) | undefined {
  try {
    fn();
  } catch (error) {
    return error as MmError;
  }
  return undefined;
}

export async function rejected(
  promise: Promise<unknown>,
): Promise<(MmError & { address?: number; reason?: string }) | undefined> {
  return promise.then(
    () => undefined,
    (error: unknown) => error as MmError,
  );
}

/** Bytes that differ from page to page and from seed to seed. */
export function pattern(bytes: number, seed = 1): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(bytes);
  for (let k = 0; k < bytes; k++) out[k] = (k * 31 + (k >>> 8) * 17 + (k >>> 12) * 7 + seed * 101) & 0xff;
  return out;
}

/** A file of the operating system with these bytes, removed after the test. */
export function tempFile(bytes: Uint8Array): string {
  const folder = mkdtempSync(join(tmpdir(), "bifolio-"));
  folders.push(folder);
  const path = join(folder, "data");
  writeFileSync(path, bytes);
  return path;
}

export interface TestBacking extends Backing {
  readonly bytes: Uint8Array;
  readonly reads: { offset: number; length: number }[];
  readonly writes: { offset: number; length: number }[];
  flushes: number;
  closed: boolean;
  /** Thrown by the next reads or writes while set. */
  failReads: Error | undefined;
  failWrites: Error | undefined;
}

/** A backing over an array. `io`: what it offers, "sync" alone, "async" alone, or both. */
export function arrayBacking(bytes: Uint8Array, io: "sync" | "async" | "both" = "sync"): TestBacking {
  const read = (offset: number, into: Uint8Array): number => {
    backing.reads.push({ offset, length: into.length });
    if (backing.failReads) throw backing.failReads;
    const part = bytes.subarray(offset, offset + into.length);
    into.set(part);
    return part.length;
  };
  const write = (offset: number, from: Uint8Array): void => {
    backing.writes.push({ offset, length: from.length });
    if (backing.failWrites) throw backing.failWrites;
    bytes.set(from, offset);
  };
  const soon = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1));
  const backing: TestBacking = {
    bytes,
    size: bytes.length,
    reads: [],
    writes: [],
    flushes: 0,
    closed: false,
    failReads: undefined,
    failWrites: undefined,
    read: async (offset, into) => {
      await soon();
      return read(offset, into);
    },
    write: async (offset, from) => {
      await soon();
      write(offset, from);
    },
    flush: async () => {
      backing.flushes++;
    },
    close: () => {
      backing.closed = true;
    },
    ...(io === "async"
      ? {}
      : {
          readSync: read,
          writeSync: write,
          flushSync: () => {
            backing.flushes++;
          },
        }),
  };
  return backing;
}

const byData = new Map<string | number, Uint8Array>();
registerBacking("test-bytes", (data) => arrayBacking(byData.get(data)!));

/** A backing over an array that every agent opens by itself: no agent waits for another's event loop. */
export function sharedBacking(bytes: Uint8Array): Backing {
  const data = byData.size;
  byData.set(data, bytes);
  return { ...arrayBacking(bytes), descriptor: { kind: "test-bytes", data } };
}

const EVENT_NAMES: readonly string[] = Object.keys(MmuNotifierEvent);

export interface Recorder {
  /** "Unmap 0x10000-0x12000", in order of their starts. */
  readonly events: string[];
  /** Ranges whose end has not come. */
  open: number;
  readonly notifier: MmuNotifier;
  /** The events since the last call. */
  take(): string[];
}

export const eventOf = (event: keyof typeof MmuNotifierEvent, start: number, end: number): string =>
  `${event} ${start.toString(16)}-${end.toString(16)}`;

/** Registers a list notifier that writes down every range, and checks that each start has its end. */
export function record(space: AddressSpace, ops: MmuNotifierOps = {}): Recorder {
  const starts = new Map<string, number>();
  const key = (r: { event: number; start: number; end: number }): string =>
    eventOf(EVENT_NAMES[r.event] as keyof typeof MmuNotifierEvent, r.start, r.end);
  const recorder: Recorder = {
    events: [],
    open: 0,
    take: () => recorder.events.splice(0),
    notifier: new MmuNotifier({
      ...ops,
      invalidateRangeStart: (notifier, range) => {
        recorder.events.push(key(range));
        recorder.open++;
        starts.set(key(range), (starts.get(key(range)) ?? 0) + 1);
        return ops.invalidateRangeStart?.(notifier, range) ?? true;
      },
      invalidateRangeEnd: (notifier, range) => {
        const count = starts.get(key(range)) ?? 0;
        if (count === 0) throw new Error(`an end without its start: ${key(range)}`);
        starts.set(key(range), count - 1);
        recorder.open--;
        ops.invalidateRangeEnd?.(notifier, range);
      },
      release: (notifier, of) => {
        recorder.events.push("release");
        return ops.release?.(notifier, of);
      },
    }),
  };
  space.notifiers.sync.register(recorder.notifier);
  return recorder;
}
