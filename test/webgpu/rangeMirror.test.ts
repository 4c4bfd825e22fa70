import { describe, expect, test, vi } from "vitest";
import type { MmError } from "../../src/errors.ts";
import { mirrorRange, type RangeMirror, type RangeMirrorOptions } from "../../src/mirrors/webgpu/index.ts";
import { memoryBacking } from "../../src/mm/index.ts";
import { IntervalNotifier, MmuNotifierEvent, type MmuNotifierRange } from "../../src/notifier/index.ts";
import { useGpu } from "../lib/gpu.ts";
import { countUploads, makeAdder, readBuffer, type Uploads } from "../lib/gpuBuffers.ts";
import {
  anonymous,
  arrayBacking,
  attachTo,
  expectBytes,
  makeRig,
  PAGE,
  pattern,
  rejected,
  type Rig,
  takeReported,
  verify,
} from "../lib/mm.ts";

const gpu = useGpu();
const PAGES = 16;

interface MirrorRig extends Rig {
  readonly device: GPUDevice;
  readonly start: number;
  readonly mirror: RangeMirror;
  readonly uploads: Uploads;
  /** Fails unless the buffer has what the space has. */
  same(): Promise<void>;
  /** sync(); returns the pages that were uploaded. */
  synced(): Promise<number[]>;
}

async function rig(
  options: RangeMirrorOptions & { frames?: number; pages?: number; fill?: boolean } = {},
): Promise<MirrorRig> {
  const { frames = 128, pages = PAGES, fill = true } = options;
  const made = await makeRig(frames, { mayBlock: false });
  const { memory, space, raw } = made;
  const device = await gpu.device();
  const uploads = countUploads(device);
  const start = await space.mmap(anonymous(pages));
  if (fill) await space.write(start, pattern(pages * PAGE));
  const mirror = await mirrorRange(raw, device, start, pages * PAGE, options);
  return {
    ...made,
    device,
    start,
    mirror,
    uploads,
    async same() {
      const bytes = new Uint8Array(pages * PAGE);
      await raw.read(start, bytes);
      expectBytes(await readBuffer(mirror.device, mirror.buffer), bytes);
    },
    async synced() {
      uploads.reset();
      await mirror.sync();
      verify(memory);
      return pagesOf(uploads);
    },
  };
}

function pagesOf(uploads: Uploads): number[] {
  return uploads.calls.flatMap(({ start, end }) => {
    expect([start % PAGE, end % PAGE]).toEqual([0, 0]);
    return Array.from({ length: (end - start) / PAGE }, (_, k) => start / PAGE + k);
  });
}

const all = Array.from({ length: PAGES }, (_, k) => k);

describe("sync", () => {
  test("uploads everything at first, in one call, and then nothing", async () => {
    const { mirror, uploads, synced, same } = await rig();
    expect(await synced()).toEqual(all);
    expect(uploads.calls).toHaveLength(1);
    await same();
    expect(await synced()).toEqual([]);
    expect(mirror.counts).toMatchObject({
      syncs: 1,
      pages: PAGES,
      bytes: PAGES * PAGE,
      writes: 1,
      retries: 0,
    });
    await mirror.remove();
  });

  test("uploads what was stored to since, one call for each run of pages", async () => {
    const { mirror, space, start, uploads, synced, same } = await rig();
    await synced();
    for (const page of [2, 3, 4, 9]) space.setUint32(start + page * PAGE + 8, 0xabcd);
    space.setUint8(start + 2 * PAGE, 1);
    space.getUint8(start + 7 * PAGE);
    expect(await synced()).toEqual([2, 3, 4, 9]);
    expect(uploads.calls).toHaveLength(2);
    await same();
    space.setUint8(start + 3 * PAGE, 2);
    expect(await synced()).toEqual([3]);
    await same();
    await mirror.remove();
  });

  test("sees stores of every kind: write(), spans, atomics, pins", async () => {
    const { mirror, space, raw, start, synced, same } = await rig();
    await synced();
    await space.write(start + 3 * PAGE - 2, Uint8Array.of(1, 2, 3, 4));
    for (const span of raw.spans(start + 6 * PAGE, PAGE, "rw")) span.fill(9);
    space.atomics.add(start + 8 * PAGE, 5);
    space.setFloat64(start + 10 * PAGE - 4, Math.PI);
    expect(await synced()).toEqual([2, 3, 6, 8, 9, 10]);
    await same();
    const pin = await space.pin(start + 12 * PAGE, PAGE, "rw");
    for (let round = 0; round < 3; round++) {
      pin.spans[0]!.fill(round);
      expect(await synced()).toEqual([12]);
      await same();
    }
    pin.spans[0]!.fill(77);
    pin.unpin();
    expect(await synced()).toEqual([12]);
    await same();
    expect(await synced()).toEqual([]);
    await mirror.remove();
  });

  test("is right after changes of the mapping", async () => {
    const { mirror, space, start, synced, same } = await rig();
    await synced();
    await space.madvise(start + PAGE, 2 * PAGE, "dontneed");
    expect(await synced()).toEqual([1, 2]);
    await same();
    await space.mremap(start + 4 * PAGE, PAGE, PAGE, { mayMove: true, to: start + 64 * PAGE });
    await space.mmap({ length: PAGE, prot: "rw", share: "private", address: start + 4 * PAGE, fixed: true });
    expect(await synced()).toEqual([4]);
    await same();
    await space.mremap(start + 64 * PAGE, PAGE, PAGE, { mayMove: true, to: start + 4 * PAGE });
    expect(await synced()).toEqual([4]);
    await same();
    await space.mprotect(start + 6 * PAGE, PAGE, "r");
    expect(await synced()).toEqual([6]);
    await space.clearRefs("soft-dirty");
    expect(await synced()).toEqual([]);
    const child = await space.fork();
    expect(await synced()).toEqual([]);
    space.setUint8(start + 7 * PAGE, 3);
    child.setUint8(start + 8 * PAGE, 3);
    expect(await synced()).toEqual([7]);
    await child.exit();
    space.setUint8(start + 8 * PAGE, 4);
    expect(await synced()).toEqual([8]);
    await same();
    await mirror.remove();
  });

  test("mirrors pages of a file that is larger than the budget, and stores to it through other mappings", async () => {
    const { memory, space, raw } = await makeRig(40, { mayBlock: false });
    const device = await gpu.device();
    const bytes = pattern(64 * PAGE);
    const file = await memory.openFile(arrayBacking(bytes), { writable: true });
    const start = await space.mmap({ length: 64 * PAGE, prot: "r", share: "shared", file });
    const mirror = await mirrorRange(raw, device, start, 64 * PAGE);
    await mirror.sync();
    expectBytes(await readBuffer(device, mirror.buffer), bytes);
    const other = await memory.createSpace();
    const theirs = await other.mmap({ length: 64 * PAGE, prot: "rw", share: "shared", file });
    for (const page of [3, 30, 63]) {
      await other.run(() => other.setUint8(theirs + page * PAGE + 9, 0xee));
      bytes[page * PAGE + 9] = 0xee;
    }
    await file.write(17 * PAGE, Uint8Array.of(1, 2, 3));
    bytes.set([1, 2, 3], 17 * PAGE);
    await mirror.sync();
    expectBytes(await readBuffer(device, mirror.buffer), bytes);
    await mirror.remove();
    await file.close();
  });

  test("a file in memory: only what was stored is uploaded, whoever stores", async () => {
    const { memory, space, raw } = await makeRig(128, { mayBlock: false });
    const device = await gpu.device();
    const uploads = countUploads(device);
    const file = await memory.openFile(memoryBacking(PAGES * PAGE));
    const start = await space.mmap({ length: PAGES * PAGE, prot: "rw", share: "shared", file });
    const other = await memory.createSpace();
    const theirs = await other.mmap({ length: PAGES * PAGE, prot: "rw", share: "shared", file });
    const mirror = await mirrorRange(raw, device, start, PAGES * PAGE);
    await mirror.sync();
    for (let round = 1; round < 4; round++) {
      uploads.reset();
      other.setUint8(theirs + round * PAGE, round);
      space.setUint8(start + (round + 4) * PAGE, round);
      await file.write((round + 8) * PAGE, Uint8Array.of(round));
      await mirror.sync();
      expect(pagesOf(uploads)).toEqual([round, round + 4, round + 8]);
      const bytes = new Uint8Array(PAGES * PAGE);
      await file.read(0, bytes);
      expectBytes(await readBuffer(device, mirror.buffer), bytes);
    }
    await mirror.remove();
    await file.close();
  });

  test("bytes that an invalidation overtook are not uploaded", async () => {
    const { memory, mirror, space, raw, start, uploads, synced, same } = await rig();
    await synced();
    space.setUint8(start + PAGE, 1);
    const other = await attachTo(memory, false);
    const theirs = other.space(raw.id).notifiers;
    // Another agent begins between readBegin() and the look at the page tables, where this agent answers it ...
    let begun: Promise<MmuNotifierRange> | undefined;
    const begins = vi.spyOn(IntervalNotifier.prototype, "tryReadBegin").mockImplementationOnce(function (
      this: IntervalNotifier,
    ) {
      const seq = this.sync.readBegin();
      begun = theirs.invalidateRangeStart({
        ...{ start: start + PAGE, end: start + 2 * PAGE, event: MmuNotifierEvent.Clear },
      });
      return seq;
    });
    // ... and gives the frame to somebody else while it is copied.
    let frame: Uint8Array | undefined;
    let kept: Uint8Array | undefined;
    const copies = vi.spyOn(memory.mm.frames, "bytesOf").mockImplementationOnce((pfn) => {
      frame = memory.mm.frames.bytesOf(pfn);
      kept = frame.slice();
      return frame.fill(0xee);
    });
    uploads.reset();
    const syncing = mirror.sync();
    while (!kept) await Promise.resolve();
    const range = await begun!;
    frame!.set(kept);
    theirs.invalidateRangeEnd(range);
    await syncing;
    begins.mockRestore();
    copies.mockRestore();
    expect(pagesOf(uploads)).toEqual([1]);
    expect(mirror.counts.retries).toBe(1);
    await same();
    // What was invalidated meanwhile may have changed.
    expect(await synced()).toEqual([1]);
    await mirror.remove();
  });

  test("several mirrors of several devices over one space see everything, each its own part", async () => {
    const { mirror, raw, start, synced, same, device } = await rig();
    const second = await gpu.device();
    const counted = countUploads(second);
    const other = await mirrorRange(raw, second, start + 4 * PAGE, 8 * PAGE);
    const third = await mirrorRange(raw, device, start, 2 * PAGE);
    await Promise.all([mirror.sync(), other.sync(), third.sync()]);
    raw.setUint8(start + 5 * PAGE, 1);
    raw.setUint8(start + PAGE, 1);
    expect(await synced()).toEqual([1, 5]);
    counted.reset();
    await other.sync();
    await third.sync();
    expect(pagesOf(counted)).toEqual([1]);
    await same();
    expectBytes(
      await readBuffer(second, other.buffer),
      (await readBuffer(device, mirror.buffer)).subarray(4 * PAGE, 12 * PAGE),
    );
    expectBytes(
      await readBuffer(device, third.buffer),
      (await readBuffer(device, mirror.buffer)).subarray(0, 2 * PAGE),
    );
    await other.remove();
    await third.remove();
    await mirror.remove();
  });

  test("calls that overlap: each has what was stored before it", async () => {
    const { mirror, space, start, same } = await rig();
    const calls = [mirror.sync()];
    for (let round = 0; round < 20; round++) {
      space.setUint32(start + (round % PAGES) * PAGE, round);
      calls.push(mirror.sync());
    }
    await Promise.all(calls);
    await same();
    await mirror.remove();
  });

  test("a page that cannot be read is an error, and stays stale", async () => {
    const { mirror, space, start, synced, same } = await rig();
    await synced();
    await space.munmap(start + 3 * PAGE, PAGE);
    expect(await rejected(mirror.sync())).toMatchObject({ name: "SegvError", address: start + 3 * PAGE });
    await space.mmap({
      length: PAGE,
      prot: "none",
      share: "private",
      address: start + 3 * PAGE,
      fixed: true,
    });
    expect(await rejected(mirror.sync())).toMatchObject({ name: "SegvError", reason: "SEGV_ACCERR" });
    await space.mprotect(start + 3 * PAGE, PAGE, "rw");
    expect(await synced()).toEqual([3]);
    await same();
    await mirror.remove();
  });

  test("an agent that may block mirrors for reading", async () => {
    const { memory, raw, start, same } = await rig();
    const other = await attachTo(memory);
    const device = await gpu.device();
    const theirs = await mirrorRange(other.space(raw.id), device, start, PAGES * PAGE);
    await theirs.sync();
    raw.setUint8(start + PAGE, 5);
    memory.poll();
    await theirs.sync();
    expect((await readBuffer(device, theirs.buffer))[PAGE]).toBe(5);
    await theirs.remove();
    void same;
  });
});

describe("what the GPU writes", () => {
  test("is seen by the next access, and no page is uploaded again for it", async () => {
    const { mirror, space, raw, start, synced, same, device } = await rig({ access: "rw" });
    const { run } = makeAdder(device);
    await synced();
    const before = raw.getUint32(start + 5 * PAGE);
    run(mirror.buffer, (5 * PAGE) / 4, (2 * PAGE) / 4, 3);
    await mirror.markWritten(start + 5 * PAGE, 2 * PAGE);
    expect(mirror.writtenRanges).toEqual([{ start: start + 5 * PAGE, end: start + 7 * PAGE }]);
    expect(() => space.getUint32(start + 5 * PAGE)).toThrow(/EAGAIN/);
    expect(await space.run(() => space.getUint32(start + 5 * PAGE))).toBe(before + 3);
    expect(mirror.writtenRanges).toEqual([{ start: start + 6 * PAGE, end: start + 7 * PAGE }]);
    expect(await synced()).toEqual([]);
    await same();
    expect(mirror.writtenRanges).toEqual([]);
    expect(mirror.counts.bytesHome).toBe(2 * PAGE);
    expect(await synced()).toEqual([]);
    space.setUint8(start + 5 * PAGE, 1);
    expect(await synced()).toEqual([5]);
    await same();
    await mirror.remove();
  });

  test("comes home before a store, and stays apart from bytes that were not written", async () => {
    const { mirror, space, start, synced, same, device } = await rig({ access: "rw" });
    const { run } = makeAdder(device);
    await synced();
    // A store to the same page between the upload and the GPU's result, which is beside it.
    space.setUint8(start + PAGE + 100, 0x77);
    const word = space.getUint32(start + PAGE + 8);
    run(mirror.buffer, (PAGE + 8) / 4, 1, 1);
    await mirror.markWritten(start + PAGE + 8, 4);
    await space.run(() => space.setUint8(start + PAGE + 200, 0x55));
    expect(space.getUint8(start + PAGE + 100)).toBe(0x77);
    expect(space.getUint32(start + PAGE + 8)).toBe(word + 1);
    expect(await synced()).toEqual([1]);
    await same();
    await mirror.remove();
  });

  test("a page that is stale and away comes home before it is uploaded", async () => {
    const { mirror, space, start, synced, same, device } = await rig({ access: "rw" });
    const { run } = makeAdder(device);
    await synced();
    space.setUint8(start + PAGE + 100, 0x77);
    run(mirror.buffer, (PAGE + 8) / 4, 1, 1);
    await mirror.markWritten(start + PAGE + 8, 4);
    expect(await synced()).toEqual([1]);
    await same();
    await mirror.remove();
  });

  test("unaligned bytes, several results in one page, and results on results", async () => {
    const { mirror, space, start, synced, same, device } = await rig({ access: "rw" });
    const { run } = makeAdder(device);
    await synced();
    const bytes = await readBuffer(device, mirror.buffer);
    const words = new Uint32Array(bytes.buffer);
    for (const [first, count, by] of [
      [0, 3, 1],
      [5, 2, 7],
      [1020, 10, 5],
      [1, 1, 9],
    ] as const) {
      run(mirror.buffer, first, count, by);
      for (let k = first; k < first + count; k++) words[k]! += by;
      await mirror.markWritten(start + first * 4, count * 4);
    }
    await mirror.markWritten(start + 4096 * 3 + 1, 1);
    expect(mirror.writtenRanges).toEqual(
      [
        [0, 12],
        [20, 28],
        [4080, 4120],
        [4096 * 3 + 1, 4096 * 3 + 2],
      ].map(([a, b]) => ({ start: start + a!, end: start + b! })),
    );
    await mirror.bringHome();
    const seen = new Uint8Array(PAGES * PAGE);
    await space.read(start, seen);
    expectBytes(seen, bytes);
    await same();
    await mirror.remove();
  });

  for (const [name, change] of [
    ["fork", async ({ space }: MirrorRig) => (await space.fork()).exit()],
    ["mprotect", ({ space, start }: MirrorRig) => space.mprotect(start, PAGES * PAGE, "r")],
    ["clearRefs", ({ space }: MirrorRig) => space.clearRefs("soft-dirty")],
    ["madvise free", ({ space, start }: MirrorRig) => space.madvise(start, PAGES * PAGE, "free")],
    ["bringHome", ({ mirror }: MirrorRig) => mirror.bringHome()],
    ["pin", async ({ space, start }: MirrorRig) => (await space.pin(start, PAGES * PAGE, "r")).unpin()],
    ["populate", ({ space, start }: MirrorRig) => space.populate(start, PAGES * PAGE, "r")],
    ["remove", ({ mirror }: MirrorRig) => mirror.remove()],
  ] as const) {
    test(`comes home by ${name}`, async () => {
      const made = await rig({ access: "rw" });
      const { mirror, space, start, device, synced } = made;
      await synced();
      const before = space.getUint32(start);
      makeAdder(device).run(mirror.buffer, 0, (PAGES * PAGE) / 4, 1);
      await mirror.markWritten(start, PAGES * PAGE);
      await change(made);
      expect(mirror.writtenRanges).toEqual([]);
      expect(space.getUint32(start)).toBe(before + 1);
      if (name !== "remove") await mirror.remove();
    });
  }

  test("moves with its pages", async () => {
    const { mirror, space, start, device, synced } = await rig({ access: "rw" });
    await synced();
    const before = space.getUint32(start + 2 * PAGE);
    makeAdder(device).run(mirror.buffer, 0, (PAGES * PAGE) / 4, 1);
    await mirror.markWritten(start, PAGES * PAGE);
    await space.mremap(start + 2 * PAGE, PAGE, PAGE, { mayMove: true, to: start + 64 * PAGE });
    expect(space.getUint32(start + 64 * PAGE)).toBe(before + 1);
    await mirror.remove();
  });

  test("operations that may not wait are refused, and nothing has changed", async () => {
    const { mirror, space, start, device, synced } = await rig({ access: "rw" });
    await synced();
    makeAdder(device).run(mirror.buffer, 0, 1, 1);
    await mirror.markWritten(start, 4);
    for (const refused of [
      () => space.try.munmap(start, PAGE),
      () => space.try.mprotect(start, PAGE, "r"),
      () => space.try.fork(),
      () => space.try.madvise(start, PAGE, "dontneed"),
    ])
      expect(refused).toThrow(/EAGAIN/);
    expect(mirror.writtenRanges).toHaveLength(1);
    space.try.munmap(start + 4 * PAGE, PAGE);
    await mirror.remove();
  });

  test("pages of files come home at once, and are written back", async () => {
    const { memory, space, raw } = await makeRig(128, { mayBlock: false });
    const device = await gpu.device();
    const bytes = pattern(4 * PAGE);
    const file = await memory.openFile(arrayBacking(bytes), { writable: true });
    const start = await space.mmap({ length: 4 * PAGE, prot: "rw", share: "shared", file });
    const mirror = await mirrorRange(raw, device, start, 4 * PAGE, { access: "rw" });
    await mirror.sync();
    const words = new Uint32Array(bytes.buffer);
    const before = words[PAGE / 4]!;
    makeAdder(device).run(mirror.buffer, PAGE / 4, 2, 4);
    await mirror.markWritten(start + PAGE, 8);
    expect(mirror.writtenRanges).toEqual([]);
    expect(space.getUint32(start + PAGE)).toBe(before + 4);
    await space.msync(start, 4 * PAGE);
    expect(words[PAGE / 4]).toBe(before + 4);
    await mirror.sync();
    expectBytes(await readBuffer(device, mirror.buffer), bytes);
    await mirror.remove();
    await file.close();
  });

  test("pages that were never touched, shared after a fork, or pinned", async () => {
    const { memory, mirror, space, start, device, synced, same } = await rig({ access: "rw", fill: false });
    const { run } = makeAdder(device);
    await synced();
    run(mirror.buffer, 0, 1, 5);
    await mirror.markWritten(start, 4);
    expect(await space.run(() => space.getUint32(start))).toBe(5);
    const child = await space.fork();
    run(mirror.buffer, 0, 1, 5);
    await mirror.markWritten(start, 4);
    expect(await space.run(() => space.getUint32(start))).toBe(10);
    expect(child.getUint32(start)).toBe(5);
    await child.exit();
    const pin = await space.pin(start, PAGE, "r");
    run(mirror.buffer, 0, 1, 5);
    await mirror.markWritten(start, 4);
    expect(space.getUint32(start)).toBe(15);
    pin.unpin();
    await synced();
    await same();
    verify(memory);
    await mirror.remove();
  });

  test("another mirror of the range sees it too", async () => {
    const { mirror, raw, start, device, synced } = await rig({ access: "rw" });
    const second = await gpu.device();
    const other = await mirrorRange(raw, second, start, PAGES * PAGE);
    await synced();
    await other.sync();
    makeAdder(device).run(mirror.buffer, 0, 2, 1);
    await mirror.markWritten(start, 8);
    await other.sync();
    expectBytes(await readBuffer(second, other.buffer), await readBuffer(device, mirror.buffer));
    await other.remove();
    await mirror.remove();
  });

  test("dies with the space", async () => {
    const { mirror, space, start, device, synced } = await rig({ access: "rw" });
    await synced();
    makeAdder(device).run(mirror.buffer, 0, 2, 1);
    await mirror.markWritten(start, 8);
    await space.exit();
    expect(await rejected(mirror.sync())).toMatchObject({ code: "ESRCH" });
    expect(await rejected(mirror.markWritten(start, 4))).toMatchObject({ code: "ESRCH" });
    await mirror.remove();
    await mirror.remove();
  });
});

describe("when the device fails", () => {
  test("lost with nothing away: recover() goes on with another", async () => {
    const { mirror, space, start, device, synced, same } = await rig();
    await synced();
    device.destroy();
    await device.lost;
    space.setUint8(start, 1);
    const error = await rejected(mirror.sync());
    expect(error).toMatchObject({ code: "EIO", range: { start, end: start + PAGES * PAGE } });
    const next = await gpu.device();
    expect(await mirror.recover(next)).toEqual([]);
    expect(mirror.device).toBe(next);
    await mirror.sync();
    await same();
    await mirror.remove();
  });

  test("lost with bytes away: they are reported by range, the rest is right, and the older bytes come back", async () => {
    const { mirror, space, start, device, synced, same } = await rig({ access: "rw" });
    await synced();
    const before = space.getUint32(start + 2 * PAGE);
    makeAdder(device).run(mirror.buffer, 0, PAGES * PAGE, 1);
    await mirror.markWritten(start + 2 * PAGE, 2 * PAGE);
    await mirror.markWritten(start + 6 * PAGE + 4, 8);
    device.destroy();
    await device.lost;
    const error = await rejected(space.run(() => space.getUint32(start + 2 * PAGE)));
    expect(error).toMatchObject({ code: "ECALLBACK" });
    expect(error!.cause).toMatchObject({
      code: "EIO",
      range: { start: start + 2 * PAGE, end: start + 3 * PAGE },
    });
    space.setUint8(start + 5 * PAGE, 9);
    expect(await rejected(space.fork())).toMatchObject({ code: "ECALLBACK" });
    await space.munmap(start + 6 * PAGE, PAGE);
    await space.mmap({ length: PAGE, prot: "rw", share: "private", address: start + 6 * PAGE, fixed: true });
    expect(space.getUint8(start + 6 * PAGE)).toBe(0);
    expect(await mirror.recover(await gpu.device())).toEqual([
      { start: start + 2 * PAGE, end: start + 4 * PAGE },
      { start: start + 6 * PAGE + 4, end: start + 6 * PAGE + 12 },
    ]);
    expect(space.getUint32(start + 2 * PAGE)).toBe(before);
    await mirror.sync();
    await same();
    await mirror.remove();
  });

  test("lost in the middle of a sync() and of bringing bytes home", async () => {
    const { mirror, space, raw, start, device, synced, same } = await rig({ access: "rw" });
    await synced();
    makeAdder(device).run(mirror.buffer, 0, 1, 1);
    await mirror.markWritten(start, 4);
    raw.setUint8(start + 3 * PAGE, 3);
    const [a, b] = [rejected(mirror.sync()), rejected(mirror.bringHome())];
    device.destroy();
    const errors = await Promise.all([a, b]);
    for (const error of errors) if (error) expect(error).toMatchObject({ code: "EIO" });
    await device.lost;
    const lost = await mirror.recover(await gpu.device());
    expect(lost.length).toBe(errors[1] ? 1 : 0);
    await mirror.sync();
    await same();
    void space;
    await mirror.remove();
  });

  test("remove() after a loss says what is lost, and the space has it as before", async () => {
    const { mirror, space, start, device, synced } = await rig({ access: "rw" });
    await synced();
    const before = space.getUint32(start);
    makeAdder(device).run(mirror.buffer, 0, 1, 1);
    await mirror.markWritten(start, 4);
    device.destroy();
    await device.lost;
    expect(await rejected(mirror.remove())).toMatchObject({ code: "EIO", range: { start, end: start + 4 } });
    expect(space.getUint32(start)).toBe(before);
  });

  test("exit() of the space goes on after a loss", async () => {
    const { mirror, space, start, device, synced } = await rig({ access: "rw" });
    await synced();
    await mirror.markWritten(start, 4);
    device.destroy();
    await device.lost;
    await space.exit();
    await mirror.remove();
    expect(takeReported()).toEqual([]);
  });

  test("a device that refuses the upload", async () => {
    const { mirror, space, start, device, synced, same } = await rig();
    await synced();
    space.setUint8(start, 1);
    const plain = mirror.buffer;
    plain.destroy();
    expect(await rejected(mirror.sync())).toMatchObject({ code: "EIO", operation: "sync" });
    expect(await mirror.recover(device)).toEqual([]);
    await mirror.sync();
    await same();
    await mirror.remove();
  });
});

describe("bad input", () => {
  test("is one clear sentence, and nothing has changed", async () => {
    const { memory, raw, space, start, mirror, device } = await rig({ access: "rw" });
    const blocking = await attachTo(memory);
    const used = (): unknown => [memory.stats().arenaBytes, memory.stats().frames, space.notifiers.any];
    const before = used();
    const make = (
      from: number,
      length: number,
      options?: RangeMirrorOptions,
      on: GPUDevice = device,
    ): Promise<MmError | undefined> => rejected(mirrorRange(raw, on, from, length, options));
    expect(await make(start + 1, PAGE)).toMatchObject({
      code: "EINVAL",
      message: expect.stringMatching(/page size/),
    });
    expect(await make(start, 0)).toMatchObject({ code: "EINVAL" });
    expect(await make(start, PAGE + 1)).toMatchObject({ code: "EINVAL" });
    expect(await make(start, Number.NaN)).toMatchObject({ code: "EINVAL" });
    expect(await make(start, PAGE, { access: "w" as "r" })).toMatchObject({ code: "EINVAL" });
    expect(await make(start, PAGE, {}, {} as GPUDevice)).toMatchObject({ code: "EINVAL" });
    expect(await make(start, PAGE, { usage: 0x80000000 })).toMatchObject({ code: "EINVAL" });
    expect(await make(start, 2 ** 40)).toMatchObject({
      code: "EFBIG",
      message: expect.stringMatching(/maxBufferSize/),
    });
    expect(
      await rejected(mirrorRange(blocking.space(raw.id), device, start, PAGE, { access: "rw" })),
    ).toMatchObject({ code: "ENOTSUP" });
    const lost = await gpu.device();
    lost.destroy();
    expect(await make(start, PAGE, {}, lost)).toMatchObject({ code: "EIO" });
    expect(await rejected(mirror.markWritten(start - 4, 8))).toMatchObject({ code: "EINVAL" });
    expect(await rejected(mirror.markWritten(start, PAGES * PAGE + 1))).toMatchObject({ code: "EINVAL" });
    expect(await rejected(mirror.markWritten(start, -1))).toMatchObject({ code: "EINVAL" });
    expect(await rejected(mirror.bringHome(start + 0.5, 1))).toMatchObject({ code: "EINVAL" });
    await mirror.markWritten(start, 0);
    const reader = await mirrorRange(raw, device, start, PAGE);
    expect(await rejected(reader.markWritten(start, 4))).toMatchObject({ code: "EPERM" });
    await reader.remove();
    expect(used()).toEqual(before);
    await mirror.remove();
    expect(await rejected(mirror.sync())).toMatchObject({ code: "ESRCH" });
    await space.exit();
    expect(await make(start, PAGE)).toMatchObject({ code: "ESRCH" });
  });
});
