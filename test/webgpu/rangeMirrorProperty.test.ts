/**
 * Random mm operations, stores from several sides, results of the GPU and syncs, against a plain model of which bytes each
 * page has: after sync() the buffer has them, and what was uploaded is a part of what may have changed since the last one.
 */
import fc from "fast-check";
import { expect, test } from "vitest";
import { isMmError } from "../../src/errors.ts";
import { mirrorRange, type RangeMirror } from "../../src/mirrors/webgpu/index.ts";
import {
  type AddressSpace,
  createMemory,
  type MappedFile,
  memoryBacking,
  type PhysicalMemory,
} from "../../src/mm/index.ts";
import { useGpu } from "../lib/gpu.ts";
import { countUploads, readBuffer, type Uploads } from "../lib/gpuBuffers.ts";
import { PlainDevice } from "../hmm/plainDevice.ts";
import { expectBytes, PAGE } from "../lib/mm.ts";

const gpu = useGpu();
/** Pages that are mirrored, and pages beside them to and from which mappings move. */
const MIRRORED = 10;
const WINDOW = 14;
const FILE_PAGES = 8;
const READ_FIRST = 2;
const READ_PAGES = 6;
const BASE = 2 ** 31 - 5 * PAGE;
const at = (page: number): number => BASE + page * PAGE;

interface Page {
  readonly shared: boolean;
  readonly writable: boolean;
  /** Page of the file, -1 for anonymous memory. */
  readonly index: number;
  /** What a private page has of its own. */
  own: Uint8Array | undefined;
}

interface Model {
  pages: (Page | undefined)[];
  readonly file: Uint8Array;
  /** Pages came to and from another device, with their neighbours: what that made stale is not known here. */
  anywhere: boolean;
  /** Mirrored pages that may have changed since they were uploaded. */
  readonly stale: Set<number>;
}

const zeros = new Uint8Array(PAGE);

function bytesOf(model: Model, page: Page): Uint8Array {
  if (page.own) return page.own;
  return page.index < 0 ? zeros : model.file.subarray(page.index * PAGE, (page.index + 1) * PAGE);
}

/** Notes a store to a page of the file, through whatever mapping. */
function fileChanged(model: Model, index: number): void {
  model.pages.forEach((p, k) => p && !p.own && p.index === index && model.stale.add(k));
}

function store(
  model: Model,
  pages: (Page | undefined)[],
  page: number,
  offset: number,
  bytes: Uint8Array,
): void {
  const p = pages[page]!;
  if (!p.shared) p.own ??= bytesOf(model, p).slice();
  bytesOf(model, p).set(bytes, offset);
  if (pages === model.pages) model.stale.add(page);
  if (p.shared) fileChanged(model, p.index);
}

const stepArb = fc.record({
  op: fc.constantFrom(
    ...([
      "map",
      "map",
      "map",
      "unmap",
      "protect",
      "dontneed",
      "move",
      "store",
      "store",
      "store",
      "store",
      "span",
    ] as const),
    ...([
      "straddle",
      "otherStore",
      "fileWrite",
      "punch",
      "fork",
      "childStore",
      "exitChild",
      "clearRefs",
    ] as const),
    ...(["device.write", "device.read", "device.migrate", "device.exclusive", "device.back"] as const),
    ...(["gpu", "gpu", "gpu", "load", "load", "sync", "sync", "sync", "sync"] as const),
  ),
  page: fc.nat(WINDOW - 1),
  other: fc.nat(WINDOW - 1),
  pages: fc.integer({ min: 1, max: 4 }),
  kind: fc.nat(3),
  writable: fc.boolean(),
  offset: fc.nat(PAGE / 4 - 1),
  length: fc.integer({ min: 1, max: 6000 }),
  value: fc.integer({ min: 1, max: 255 }),
});
type Step = typeof stepArb extends fc.Arbitrary<infer T> ? T : never;

interface World {
  readonly memory: PhysicalMemory;
  readonly space: AddressSpace;
  readonly file: MappedFile;
  readonly other: AddressSpace;
  /** Where the other space has the file. */
  readonly theirs: number;
  /** The GPU of the mirrors, and another driver with memory of its own. */
  readonly gpuDevice: GPUDevice;
  readonly device: PlainDevice;
  readonly mirror: RangeMirror;
  /** Of a part of the range, for reading; page READ_FIRST of the window is its first. */
  readonly reader: RangeMirror;
  readonly uploads: Uploads;
  readonly model: Model;
  forked: boolean;
  child: { readonly space: AddressSpace; readonly pages: (Page | undefined)[] } | undefined;
}

const failed = (promise: Promise<unknown>): Promise<string | undefined> =>
  promise.then(
    () => undefined,
    (error: unknown) => {
      if (!isMmError(error)) throw error;
      return error.name;
    },
  );

/** What a store to a page comes to. */
const refusal = (page: Page | undefined): string | undefined => (page?.writable ? undefined : "SegvError");

async function runStep(world: World, step: Step): Promise<void> {
  const { space, model, other, theirs, file, device } = world;
  const { page, value } = step;
  const p = model.pages[page];
  const end = Math.min(WINDOW, page + step.pages);
  const bytes = Uint8Array.of(value, value ^ 0x55);
  const offset = step.offset * 4;
  switch (step.op) {
    case "map": {
      const index = step.kind < 2 ? -1 : step.other % (FILE_PAGES - 3);
      const shared = step.kind === 3;
      await space.mmap({
        ...{ address: at(page), length: (end - page) * PAGE, fixed: true, prot: step.writable ? "rw" : "r" },
        share: shared ? "shared" : "private",
        ...(index < 0 ? {} : { file, offset: index * PAGE }),
      });
      for (let k = page; k < end; k++) {
        const at = index < 0 ? -1 : index + k - page;
        model.pages[k] = { shared, writable: step.writable, index: at, own: undefined };
        model.stale.add(k);
      }
      return;
    }
    case "unmap":
      await space.munmap(at(page), (end - page) * PAGE);
      for (let k = page; k < end; k++) {
        model.pages[k] = undefined;
        model.stale.add(k);
      }
      return;
    case "protect":
      if (!p) return;
      await space.mprotect(at(page), PAGE, step.writable ? "rw" : "r");
      model.pages[page] = { ...p, writable: step.writable };
      model.stale.add(page);
      return;
    case "dontneed":
      if (!p) return;
      await space.madvise(at(page), PAGE, "dontneed");
      if (!p.shared) p.own = undefined;
      model.stale.add(page);
      return;
    case "move": {
      if (!p || step.other === page) return;
      await space.mremap(at(page), PAGE, PAGE, { mayMove: true, to: at(step.other) });
      model.pages[step.other] = p;
      model.pages[page] = undefined;
      for (const k of [page, step.other]) model.stale.add(k);
      return;
    }
    case "store":
      expect(await failed(space.write(at(page) + offset, bytes))).toBe(refusal(p));
      if (p?.writable) store(model, model.pages, page, offset, bytes);
      return;
    case "span":
      if (!p?.writable) return;
      // Held while a sync() begins in the same turn.
      await space.run(() => {
        const [span] = [...space.spans(at(page) + offset, 2, "rw")];
        void world.mirror.sync().catch(() => {});
        span!.set(bytes);
      });
      store(model, model.pages, page, offset, bytes);
      return;
    case "straddle":
      if (page + 1 >= WINDOW || !p?.writable || !model.pages[page + 1]?.writable) return;
      await space.write(at(page + 1) - 1, bytes);
      store(model, model.pages, page, PAGE - 1, bytes.subarray(0, 1));
      store(model, model.pages, page + 1, 0, bytes.subarray(1));
      return;
    case "otherStore": {
      const index = step.other % FILE_PAGES;
      await other.run(() => other.setUint8(theirs + index * PAGE + offset, value));
      model.file[index * PAGE + offset] = value;
      fileChanged(model, index);
      return;
    }
    case "fileWrite": {
      const index = step.other % FILE_PAGES;
      await file.write(index * PAGE + offset, bytes);
      model.file.set(bytes, index * PAGE + offset);
      fileChanged(model, index);
      return;
    }
    case "punch": {
      const from = (step.other % FILE_PAGES) * PAGE + offset;
      const to = Math.min(FILE_PAGES * PAGE, from + step.length);
      await file.punchHole(from, to - from);
      model.file.fill(0, from, to);
      for (let k = Math.floor(from / PAGE); k * PAGE < to; k++) fileChanged(model, k);
      // Where whole pages go, CLEAR is raised over private copies, too, which stay.
      model.pages.forEach((q, k) => {
        if (q && q.index * PAGE >= from && (q.index + 1) * PAGE <= to) model.stale.add(k);
      });
      return;
    }
    case "fork":
      await world.child?.space.exit();
      world.forked = true;
      world.child = {
        space: await space.fork(),
        pages: model.pages.map((q) => q && { ...q, own: q.own?.slice() }),
      };
      return;
    case "childStore": {
      const { child } = world;
      if (!child?.pages[page]?.writable) return;
      await child.space.write(at(page) + offset, bytes);
      store(model, child.pages, page, offset, bytes);
      return;
    }
    case "exitChild":
      await world.child?.space.exit();
      world.child = undefined;
      return;
    case "clearRefs":
      await space.clearRefs("soft-dirty");
      return;
    case "load": {
      if (!p) return;
      const seen = new Uint8Array(PAGE);
      await space.read(at(page), seen);
      expectBytes(seen, bytesOf(model, p));
      return;
    }
    case "device.write":
      // No store of an agent: through an entry of its own, in the frame or in memory of the device.
      if (!p?.writable) return;
      model.anywhere = true;
      // As in Linux the device's own page that a fork shared stays read-only for it.
      if (world.forked) await failed(device.bringBack(at(page), 1));
      await device.write(at(page), new Uint8Array(PAGE).fill(value));
      store(model, model.pages, page, 0, new Uint8Array(PAGE).fill(value));
      return;
    case "device.read":
      if (!p) return;
      model.anywhere = true;
      expectBytes(await device.read(at(page), 1), bytesOf(model, p));
      return;
    case "device.migrate":
      if (!p) return;
      model.anywhere = true;
      await failed(device.migrate(at(page), 1));
      return;
    case "device.exclusive":
      if (!p?.writable || p.shared) return;
      model.anywhere = true;
      // Nothing may come between: the plain device would begin again and again, overtaken by its own fault.
      await failed(world.mirror.sync());
      await space.populate(at(page), PAGE, "rw");
      expectBytes(await device.exclusive(at(page), 1), bytesOf(model, p));
      p.own ??= bytesOf(model, p).slice();
      return;
    case "device.back":
      if (!p) return;
      model.anywhere = true;
      await failed(device.bringBack(at(page), 1));
      return;
    case "gpu":
      return useGpuOf(world, step);
    case "sync":
      return syncAndCompare(world);
  }
}

/** The GPU writes to a part of the range, after a sync(), as a dispatch would. */
async function useGpuOf(world: World, { page, offset, length, value }: Step): Promise<void> {
  const { mirror, gpuDevice: device, model } = world;
  await syncAndCompare(world);
  const from = (page % MIRRORED) * PAGE + offset * 4;
  const to = Math.min(MIRRORED * PAGE, from + length);
  const [first, last] = [from - (from % 4), to + 3 - ((to + 3) % 4)];
  const source = device.createBuffer({
    size: last - first,
    usage: GPUBufferUsage.COPY_SRC,
    mappedAtCreation: true,
  });
  // What is not the GPU's result stays as it is.
  const now = await readBuffer(device, mirror.buffer, first, last - first);
  now.fill(value, from - first, to - first);
  new Uint8Array(source.getMappedRange()).set(now);
  source.unmap();
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(source, 0, mirror.buffer, first, last - first);
  device.queue.submit([encoder.finish()]);
  const refused = await failed(mirror.markWritten(at(0) + from, to - from));
  let wanted: string | undefined;
  for (let k = Math.floor(from / PAGE); k * PAGE < to; k++) {
    wanted ??= refusal(model.pages[k]);
    const [start, end] = [Math.max(from, k * PAGE), Math.min(to, (k + 1) * PAGE)];
    if (model.pages[k]?.writable)
      store(model, model.pages, k, start - k * PAGE, new Uint8Array(end - start).fill(value));
    else model.stale.add(k);
  }
  expect(refused).toBe(wanted);
}

async function syncAndCompare({
  mirror,
  reader,
  gpuDevice: device,
  model,
  uploads,
  memory,
}: World): Promise<void> {
  const [refused] = await Promise.all([failed(mirror.sync()), failed(reader.sync())]);
  const readable = model.pages.slice(0, MIRRORED).every((p) => p !== undefined);
  expect(refused).toBe(readable ? undefined : "SegvError");
  expect(memory.check()).toBeUndefined();
  const uploaded = uploads.calls.flatMap(({ buffer, start, end }) => {
    if (buffer !== mirror.buffer) return [];
    expect([start % PAGE, end % PAGE]).toEqual([0, 0]);
    return Array.from({ length: (end - start) / PAGE }, (_, k) => start / PAGE + k);
  });
  if (!model.anywhere) for (const page of uploaded) expect([...model.stale]).toContain(page);
  uploads.reset();
  const bytes = await readBuffer(device, mirror.buffer);
  const read = await readBuffer(device, reader.buffer);
  for (let k = 0; k < MIRRORED; k++) {
    const p = model.pages[k];
    if (!p) continue;
    expectBytes(bytes.subarray(k * PAGE, (k + 1) * PAGE), bytesOf(model, p));
    const other = k - READ_FIRST;
    if (other >= 0 && other < READ_PAGES)
      expectBytes(read.subarray(other * PAGE, (other + 1) * PAGE), bytesOf(model, p));
    model.stale.delete(k);
  }
  for (const page of model.stale) if (page >= MIRRORED) model.stale.delete(page);
}

test(
  "the buffer has the range's bytes after each sync(), whatever has happened",
  { timeout: 120_000 },
  async () => {
    const device = await gpu.device();
    const uploads = countUploads(device);
    await fc.assert(
      fc.asyncProperty(fc.array(stepArb, { minLength: 5, maxLength: 60 }), async (steps) => {
        const memory = await createMemory({
          budget: 96 * PAGE,
          arena: "2 MiB",
          mayBlock: false,
          debug: true,
        });
        try {
          const space = await memory.createSpace();
          const other = await memory.createSpace();
          const file = await memory.openFile(memoryBacking(FILE_PAGES * PAGE));
          const theirs = await other.mmap({ length: FILE_PAGES * PAGE, prot: "rw", share: "shared", file });
          await space.mmap({ address: BASE, length: 8 * PAGE, fixed: true, prot: "rw", share: "private" });
          const model: Model = {
            pages: Array.from({ length: WINDOW }, (_, k) =>
              k < 8 ? { shared: false, writable: true, index: -1, own: undefined } : undefined,
            ),
            file: new Uint8Array(FILE_PAGES * PAGE),
            anywhere: false,
            stale: new Set(Array.from({ length: MIRRORED }, (_, k) => k)),
          };
          const mirror = await mirrorRange(space, device, BASE, MIRRORED * PAGE, { access: "rw" });
          const reader = await mirrorRange(space, device, at(READ_FIRST), READ_PAGES * PAGE);
          const plain = await new PlainDevice(memory, space, { pages: 32 }).open();
          const world: World = {
            memory,
            space,
            file,
            other,
            theirs,
            gpuDevice: device,
            device: plain,
            mirror,
            reader,
            uploads,
            model,
            forked: false,
            child: undefined,
          };
          for (const step of [...steps, { ...steps[0]!, op: "sync" as const }]) {
            await runStep(world, step);
            expect(memory.check()).toBeUndefined();
          }
          await plain.close();
          await reader.remove();
          await mirror.remove();
        } finally {
          uploads.reset();
          await memory.close();
        }
      }),
      { numRuns: Number(process.env["BIFOLIO_RUNS"] ?? 80) },
    );
  },
);
