import { describe, expect, test, vi } from "vitest";
import { TableMirror, type TableMirrorOptions } from "../../../src/mirrors/index.ts";
import type { Backing } from "../../../src/mm/index.ts";
import { MmuNotifierEvent } from "../../../src/notifier/index.ts";
import {
  anonymous,
  attachTo,
  arrayBacking,
  expectBytes,
  makeMemory,
  PAGE,
  pattern,
  rejected,
  thrown,
} from "../../lib/mm.ts";

/** A mapped file of `pages` pages and a mirror over it. */
async function rig(pages: number, more: Partial<TableMirrorOptions> = {}) {
  const memory = await makeMemory(128);
  const space = await memory.createSpace();
  const bytes = pattern(pages * PAGE);
  const file = await memory.openFile(arrayBacking(bytes));
  const start = await space.mmap({ length: pages * PAGE, prot: "rw", share: "private", file });
  const mirror = new TableMirror({ memory, space, start, length: pages * PAGE, ...more });
  return { memory, space, bytes, file, start, mirror, remove: () => mirror.remove() };
}

/** What a mirror shows of pages that have entries, from `page` on. */
function bytesBehind(mirror: TableMirror, page: number, limit: number): Uint8Array {
  const pieces: Uint8Array[] = [];
  mirror.read(page, limit, (bytes) => pieces.push(bytes.slice()));
  return Buffer.concat(pieces);
}

describe("reading", () => {
  test("gives the bytes of the space, as many pages at once as lie together", async () => {
    const { mirror, bytes, remove } = await rig(20);
    mirror.fillSync(0);
    const lengths: number[] = [];
    expect(mirror.read(0, 20, (piece) => lengths.push(piece.length / PAGE))).toBe(20);
    expect(lengths.length).toBeLessThan(20);
    expect(lengths.reduce((a, b) => a + b)).toBe(20);
    expectBytes(bytesBehind(mirror, 0, 20), bytes);
    expectBytes(bytesBehind(mirror, 3, 2), bytes.subarray(3 * PAGE, 5 * PAGE));
    await remove();
  });

  test("stops at the first page without an entry", async () => {
    const { mirror, space, start, remove } = await rig(8);
    mirror.fillSync(0);
    space.sync.madvise(start + 3 * PAGE, PAGE, "dontneed");
    expect(mirror.present(0, 8)).toBe(3);
    expect(mirror.read(0, 8, () => {})).toBe(3);
    expect(mirror.read(3, 8, () => expect.unreachable())).toBe(0);
    expect(mirror.read(4, 8, () => {})).toBe(4);
    await remove();
  });

  test("counts an access as a hit unless it needed a fill", async () => {
    const { mirror, remove } = await rig(8, { fillBytes: 4 * PAGE });
    for (let round = 0; round < 3; round++) {
      for (let page = 0; page < 8; page++) {
        while (mirror.read(page, 1, () => {}) === 0) mirror.fillSync(page);
      }
    }
    expect(mirror.counts).toEqual({ hits: 22, fills: 2, retries: 0, invalidations: 0 });
    await remove();
  });
});

describe("invalidation", () => {
  test("drops the entries of its range and no others", async () => {
    const { mirror, space, start, remove } = await rig(8);
    mirror.fillSync(0);
    space.sync.munmap(start + 2 * PAGE, 2 * PAGE);
    expect(Array.from({ length: 8 }, (_, page) => mirror.present(page, 1))).toEqual([1, 1, 0, 0, 1, 1, 1, 1]);
    expect(mirror.counts.invalidations).toBe(1);
    await remove();
  });

  test("is clipped to the mirror's range", async () => {
    const { space, start, memory, remove } = await rig(8);
    const part = new TableMirror({ memory, space, start: start + 2 * PAGE, length: 4 * PAGE });
    part.fillSync(0);
    space.sync.munmap(start, 3 * PAGE);
    expect([part.present(0, 4), part.present(1, 4)]).toEqual([0, 3]);
    space.sync.munmap(start + 5 * PAGE, 3 * PAGE);
    expect(part.present(1, 4)).toBe(2);
    await part.remove();
    await remove();
  });

  test("by copy-on-write lets the new page be found", async () => {
    const { mirror, space, start, bytes, remove } = await rig(2);
    mirror.fillSync(0);
    space.setUint8(start + 5, 0xaa);
    expect(mirror.present(0, 2)).toBe(0);
    mirror.fillSync(0);
    bytes[5] = 0xaa;
    expectBytes(bytesBehind(mirror, 0, 2), bytes);
    await remove();
  });

  test("by the end of the space leaves nothing", async () => {
    const { mirror, space, remove } = await rig(8);
    mirror.fillSync(0);
    await space.exit();
    expect(mirror.present(0, 8)).toBe(0);
    await remove();
  });
});

describe("filling", () => {
  test("leaves out neighbours that cannot be had", async () => {
    const { mirror, space, start, bytes, remove } = await rig(8);
    space.sync.munmap(start + 5 * PAGE, PAGE);
    mirror.fillSync(2);
    expect(mirror.present(2, 8)).toBe(3);
    expectBytes(bytesBehind(mirror, 2, 3), bytes.subarray(2 * PAGE, 5 * PAGE));
    await remove();
  });

  test("fails as an access does where the page itself cannot be had", async () => {
    const { mirror, space, start, remove } = await rig(8);
    space.sync.munmap(start + 5 * PAGE, PAGE);
    expect(thrown(() => mirror.fillSync(5))).toMatchObject({ name: "SegvError", reason: "SEGV_MAPERR" });
    space.sync.mprotect(start, PAGE, "none");
    expect(await rejected(mirror.fill(0))).toMatchObject({ name: "SegvError", reason: "SEGV_ACCERR" });
    await remove();
  });

  test("beyond the end of the file is a BusError", async () => {
    const { memory, space, file, remove } = await rig(2);
    const start = await space.mmap({ length: 4 * PAGE, prot: "r", share: "private", file });
    const mirror = new TableMirror({ memory, space, start, length: 4 * PAGE });
    expect(thrown(() => mirror.fillSync(2))).toMatchObject({ name: "BusError" });
    mirror.fillSync(0);
    expect(mirror.present(0, 4)).toBe(2);
    await mirror.remove();
    await remove();
  });

  test("ahead takes what is resident and nothing else", async () => {
    const { mirror, space, start, memory, remove } = await rig(40);
    expect(mirror.tryFill(0)).toBe(false);
    await space.populate(start, 3 * PAGE);
    const { major } = memory.stats().faults;
    expect(mirror.tryFill(0)).toBe(true);
    expect(mirror.present(0, 40)).toBeGreaterThanOrEqual(3);
    expect(mirror.tryFill(39)).toBe(false);
    expect(memory.stats().faults.major).toBe(major);
    await remove();
  });

  test("ahead does not wait while the range is being invalidated", async () => {
    const { mirror, space, start, remove } = await rig(4);
    await space.populate(start, 4 * PAGE);
    const range = space.notifiers.sync.invalidateRangeStart({
      start,
      end: start + PAGE,
      event: MmuNotifierEvent.Clear,
    });
    expect(mirror.tryFill(0)).toBe(false);
    space.notifiers.invalidateRangeEnd(range);
    expect(mirror.tryFill(0)).toBe(true);
    await remove();
  });

  test("needs a range of whole pages", async () => {
    const { memory, space } = await rig(1).then(async (made) => (await made.remove(), made));
    const make = () => new TableMirror({ memory, space, start: 1, length: PAGE });
    expect(thrown(make)).toMatchObject({ code: "EINVAL" });
  });
});

test("a fill that is overtaken after it has read the page tables is begun anew", async () => {
  const CLUSTER_BYTES = 16 * PAGE;
  // Nobody blocks: all agents of this test share a thread.
  const memory = await makeMemory(128, { mayBlock: false });
  const other = await attachTo(memory, false);
  const space = await memory.createSpace();
  const bytes = pattern(2 * CLUSTER_BYTES);
  let dropped: Promise<void> | undefined;
  const backing: Backing = {
    size: bytes.length,
    read: async () => 0,
    readSync: (offset, into) => {
      // The fill has been past the copied page, and has no safepoint before its end: the request waits there.
      if (offset > 0) dropped = other.space(space.id).madvise(copied, PAGE, "dontneed");
      into.set(bytes.subarray(offset, offset + into.length));
      return into.length;
    },
  };
  const file = await memory.openFile(backing);
  const start = await space.mmap({ length: bytes.length, prot: "rw", share: "private", file });
  const copied = start + 3 * PAGE;
  await space.populate(start, CLUSTER_BYTES);
  await space.write(copied, new Uint8Array(PAGE).fill(0xaa));
  const mirror = new TableMirror({ memory, space, start, length: bytes.length });
  await mirror.fill(0);
  await dropped;
  expect(mirror.counts).toEqual({ hits: 0, fills: 2, retries: 1, invalidations: 1 });
  while (mirror.present(0, 4) < 4) await mirror.fill(mirror.present(0, 4));
  // Not the private copy, which is gone; its frame may be somebody else's.
  expectBytes(bytesBehind(mirror, 3, 1), bytes.subarray(3 * PAGE, 4 * PAGE));
  await mirror.remove();
});

test("a fill ahead that is overtaken right before its install gives up, and counts that", async () => {
  const memory = await makeMemory(64, { mayBlock: false });
  const other = await attachTo(memory, false);
  const space = await memory.createSpace();
  const start = await space.mmap(anonymous(2));
  await space.populate(start, 2 * PAGE);
  const mirror = new TableMirror({ memory, space, start, length: 2 * PAGE });
  const poll = memory.poll.bind(memory);
  let dropped: Promise<void> | undefined;
  vi.spyOn(memory, "poll").mockImplementation(() => {
    dropped ??= other.space(space.id).madvise(start, PAGE, "dontneed");
    poll();
  });
  expect(mirror.tryFill(0)).toBe(false);
  expect(mirror.counts).toMatchObject({ fills: 1, retries: 1, invalidations: 1 });
  expect(mirror.present(0, 2)).toBe(0);
  await dropped;
  await mirror.remove();
});

test("a mirror of anonymous memory sees stores without a fill", async () => {
  const memory = await makeMemory();
  const space = await memory.createSpace();
  const start = await space.mmap(anonymous(1));
  space.setUint8(start, 1);
  const mirror = new TableMirror({ memory, space, start, length: PAGE });
  mirror.fillSync(0);
  space.setUint8(start, 2);
  expect(bytesBehind(mirror, 0, 1)[0]).toBe(2);
  expect(mirror.counts).toMatchObject({ fills: 1, invalidations: 0 });
  await mirror.remove();
});
