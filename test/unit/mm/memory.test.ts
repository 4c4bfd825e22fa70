import { describe, expect, test } from "vitest";
import { attach, createMemory } from "../../../src/mm/index.ts";
import { ADDRESS_END } from "../../../src/units.ts";
import { MmuNotifier } from "../../../src/notifier/index.ts";
import {
  anonymous,
  arrayBacking,
  attachTo,
  makeMemory,
  makeRig,
  PAGE,
  pattern,
  rejected,
  sharedBacking,
  thrown,
  verify,
} from "../../lib/mm.ts";

const at = (page: number): number => page * PAGE;

describe("createMemory", () => {
  test.each([
    ["no budget", { budget: undefined as never }, "EINVAL"],
    ["budget 0", { budget: 0 }, "EINVAL"],
    ["budget negative", { budget: -1 }, "EINVAL"],
    ["budget NaN", { budget: Number.NaN }, "EINVAL"],
    ["budget infinite", { budget: Number.POSITIVE_INFINITY }, "EINVAL"],
    ["budget that is no size", { budget: "lots" }, "EINVAL"],
    ["budget below 32 frames", { budget: 31 * PAGE }, "EINVAL"],
    ["budget below 32 large frames", { budget: "1 MiB", pageSize: 65536 as const }, "EINVAL"],
    ["budget beyond what entries can name", { budget: 2 ** 50 }, "ENOMEM"],
    ["page size", { pageSize: 8192 as never }, "EINVAL"],
    ["page size as text", { pageSize: "4096" as never }, "EINVAL"],
    ["arena too small", { arena: 4096 }, "EINVAL"],
    ["arena that is no size", { arena: "x" }, "EINVAL"],
    ["arena larger than a segment", { arena: 2 ** 32 }, "ENOMEM"],
    ["no agents", { maxAgents: 0 }, "EINVAL"],
    ["too many agents", { maxAgents: 65 }, "EINVAL"],
    ["agents fractional", { maxAgents: 1.5 }, "EINVAL"],
    ["agents NaN", { maxAgents: Number.NaN }, "EINVAL"],
  ])("%s: %o is %s", async (_, options, code) => {
    expect((await rejected(createMemory({ budget: "1 MiB", ...options })))?.code).toBe(code);
  });

  test("budget is in bytes or with a binary unit, rounded down to pages", async () => {
    for (const [budget, frames] of [
      [33 * PAGE + 1, 33],
      ["256 KiB", 64],
      ["0.5 MiB", 128],
      ["1m", 256],
    ] as const) {
      const memory = await makeMemory(0, { budget });
      expect(memory.stats().frames.total).toBe(frames);
      verify(memory);
    }
  });

  test("a fault-around of anything works", async () => {
    for (const faultAround of [0, 1, -5, Number.NaN, 3 * PAGE, 2 ** 40]) {
      const { memory, raw } = await makeRig(64, { faultAround });
      const file = memory.sync.openFile(arrayBacking(pattern(at(20))));
      const a = raw.sync.mmap(anonymous(20, { prot: "r", file }));
      for (let k = 0; k < 20; k++) expect(raw.getUint8(a + at(k))).toBe(pattern(at(20))[at(k)]);
      verify(memory);
    }
  });

  test("a handle that is none is EINVAL; without a free slot attach is EAGAIN; a slot that was left is free again", async () => {
    expect((await rejected(attach({} as never)))?.code).toBe("EINVAL");
    expect((await rejected(attach(undefined as never)))?.code).toBe("EINVAL");
    const memory = await makeMemory(64, { maxAgents: 2 });
    const other = await attach(memory.handle, { mayBlock: true });
    expect((await rejected(attach(memory.handle)))?.code).toBe("EAGAIN");
    other.detach();
    const again = await attachTo(memory);
    expect(again.stats().agents).toHaveLength(2);
  });
});

describe("exit", () => {
  test("frees everything: frames and arena are as before the space", async () => {
    const { memory } = await makeRig(64);
    const before = memory.stats();
    const file = memory.sync.openFile(arrayBacking(pattern(at(8))), { writable: true });
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(8, { file, share: "shared" }));
    const b = space.sync.mmap(anonymous(8, { file }));
    const c = space.sync.mmap(anonymous(8, { share: "shared" }));
    const d = space.sync.mmap(anonymous(8, { address: 2 ** 40, fixed: true }));
    for (let k = 0; k < 8; k++) for (const m of [a, b, c, d]) space.setUint8(m + at(k), 1);
    space.sync.munmap(b + at(3), at(2));
    space.sync.mprotect(d + at(1), at(1), "none");
    await file.close();
    verify(memory);
    space.sync.exit();
    verify(memory);
    expect(memory.stats().arenaBytes).toBe(before.arenaBytes);
    expect(memory.stats().frames.free).toBe(before.frames.free);
  });

  test("everything of the space is ESRCH afterwards; exit again is fine", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(2));
    raw.setUint8(a, 1);
    const { id } = raw;
    await raw.exit();
    for (const operation of [
      () => raw.getUint8(a),
      () => raw.setFloat64(a, 1),
      () => raw.atomics.load(a),
      () => raw.sync.read(a, new Uint8Array(1)),
      () => void raw.sync.mmap(anonymous(1)),
      () => raw.sync.munmap(a, PAGE),
      () => raw.sync.mprotect(a, PAGE, "r"),
      () => raw.sync.madvise(a, PAGE, "dontneed"),
      () => raw.sync.populate(a, PAGE),
      () => raw.sync.msync(a, PAGE),
      () => void raw.vmas(),
      () => void raw.pagemap(a, PAGE),
      () => void raw.mincore(a, PAGE),
      () => void [...raw.spans(a, 1)],
      () => raw.sync.forEachSpan(a, 1, "r", () => {}),
      () => void raw.notifiers.sync.insert({ invalidate: () => true }, a, PAGE),
      () => raw.notifiers.sync.register(new MmuNotifier({})),
      () => void memory.space(id),
    ]) {
      expect(`${String(operation)} ${thrown(operation)?.code}`).toBe(`${String(operation)} ESRCH`);
    }
    await raw.exit();
    raw.sync.exit();
    raw.try.exit();
    await raw[Symbol.asyncDispose]();
    verify(memory);
  });

  test("operations of other agents that are under way end with ESRCH or as if they had come before", async () => {
    const memory = await makeMemory(64, { faultAround: PAGE });
    const other = await attachTo(memory);
    const file = memory.sync.openFile(sharedBacking(pattern(at(8))), { writable: true });
    const space = memory.sync.createSpace();
    const there = other.space(space.id);
    const a = space.sync.mmap(anonymous(8, { share: "shared", file }));
    const before = memory.stats().frames.free;
    there.setUint32(a, 1);
    // `there` holds the page: this waits for its acknowledgement with the mmap lock held, and the others for the lock.
    const unmapping = space.munmap(a, PAGE);
    const results = [
      rejected(there.munmap(a + at(1), PAGE)),
      rejected(there.read(a + at(2), new Uint8Array(4))),
      rejected(there.populate(a + at(3), at(2))),
      rejected(there.mprotect(a + at(5), PAGE, "r")),
      rejected(there.msync(a + at(1), at(7))),
      rejected(there.madvise(a + at(5), PAGE, "dontneed")),
    ];
    const exiting = space.exit();
    other.poll();
    await Promise.all([unmapping, exiting, ...results]);
    for (const result of results) {
      const code = (await result)?.code;
      if (code !== undefined) expect(code).toBe("ESRCH");
    }
    expect(thrown(() => there.getUint8(a + at(7)))?.code).toBe("ESRCH");
    verify(memory);
    await file.close();
    expect(memory.stats().frames.free).toBe(before);
  });

  test("a space of the same record is another space", async () => {
    const { memory, raw } = await makeRig();
    const other = await attachTo(memory);
    const a = raw.sync.mmap(anonymous(1));
    const there = other.space(raw.id);
    expect(there.getUint8(a)).toBe(0);
    await Promise.resolve();
    raw.sync.exit();
    const next = memory.sync.createSpace();
    expect(next.slot).toBe(raw.slot);
    expect(next.id).not.toBe(raw.id);
    expect(next).not.toBe(raw);
    next.sync.mmap(anonymous(1, { address: a, fixed: true }));
    next.setUint8(a, 5);
    expect(thrown(() => raw.getUint8(a))?.code).toBe("ESRCH");
    expect(thrown(() => there.getUint8(a))?.code).toBe("ESRCH");
    expect(thrown(() => there.sync.munmap(a, PAGE))?.code).toBe("ESRCH");
    expect(other.space(next.id).getUint8(a)).toBe(5);
    verify(memory);
  });

  test("many spaces come and go without a trace", async () => {
    const { memory } = await makeRig();
    const other = await attachTo(memory);
    let before: number | undefined;
    for (let round = 0; round < 20; round++) {
      const spaces = [0, 1, 2].map(() => memory.sync.createSpace());
      for (const [k, space] of spaces.entries()) {
        const a = space.sync.mmap(anonymous(2));
        space.setUint32(a, k);
        expect(other.space(space.id).getUint32(a)).toBe(k);
      }
      await Promise.resolve();
      for (const space of spaces) space.sync.exit();
      verify(memory);
      const { arenaBytes } = memory.stats();
      expect(arenaBytes).toBe((before ??= arenaBytes));
    }
  });
});

describe("ids", () => {
  test("a space and a second agent: the same object each time in one agent", async () => {
    const { memory, raw } = await makeRig();
    const other = await attachTo(memory);
    expect(memory.space(raw.id)).toBe(raw);
    const there = other.space(raw.id);
    expect(there).not.toBe(raw);
    expect(other.space(raw.id)).toBe(there);
    expect(there.id).toBe(raw.id);
    const a = there.sync.mmap(anonymous(1));
    raw.setUint8(a, 3);
    expect(there.vmas()).toEqual(raw.vmas());
    for (const id of [0, -1, raw.id + 1000, Number.NaN]) {
      expect(thrown(() => memory.space(id))?.code).toBe("ESRCH");
    }
  });

  test("owner ids are distinct, from every agent", async () => {
    const memory = await makeMemory();
    const other = await attachTo(memory);
    const ids = [memory.newOwnerId(), other.newOwnerId(), memory.newOwnerId()];
    expect(new Set(ids).size).toBe(3);
    expect(ids.every((id) => id > 0)).toBe(true);
  });
});

describe("waiting", () => {
  test("wait and sync.wait: not-equal, timed-out, ok", async () => {
    const memory = await makeMemory();
    const words = memory.allocShared(8);
    expect(await memory.wait(words, 0, 1)).toBe("not-equal");
    expect(memory.sync.wait(words, 0, 1)).toBe("not-equal");
    expect(await memory.wait(words, 0, 0, 1)).toBe("timed-out");
    expect(memory.sync.wait(words, 0, 0, 1)).toBe("timed-out");
    const waiting = memory.wait(words, 1, 0);
    Atomics.store(words, 1, 5);
    Atomics.notify(words, 1);
    expect(await waiting).toBe("ok");
    const foreign = new Int32Array(new SharedArrayBuffer(8));
    const other = memory.wait(foreign, 0, 0);
    Atomics.store(foreign, 0, 1);
    Atomics.notify(foreign, 0);
    expect(await other).toBe("ok");
    expect(memory.sync.wait(foreign, 1, 0, 1)).toBe("timed-out");
  });

  test("ends the turn: nobody waits for this agent meanwhile", async () => {
    const memory = await makeMemory();
    const other = await attachTo(memory);
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(1));
    other.space(space.id).setUint8(a, 1);
    const words = memory.allocShared(4);
    const waiting = other.wait(words, 0, 0);
    space.sync.munmap(a, PAGE);
    Atomics.store(words, 0, 1);
    Atomics.notify(words, 0);
    expect(await waiting).toBe("ok");
    verify(memory);
  });

  test("where it may not block, sync.wait is EAGAIN; words that are not shared are EINVAL", async () => {
    const memory = await makeMemory(64, { mayBlock: false });
    const words = memory.allocShared(4);
    expect(memory.sync.wait(words, 0, 1)).toBe("not-equal");
    expect(thrown(() => memory.sync.wait(words, 0, 0, 1))?.code).toBe("EAGAIN");
    expect((await rejected(memory.wait(new Int32Array(1), 0, 0)))?.code).toBe("EINVAL");
    expect((await rejected(memory.wait(words, 1, 0)))?.code).toBe("EINVAL");
    expect((await rejected(memory.wait(words, -1, 0)))?.code).toBe("EINVAL");
    expect((await rejected(memory.wait([] as never, 0, 0)))?.code).toBe("EINVAL");
  });
});

describe("allocShared", () => {
  test("gives words of zeros that every agent reaches at the same offset", async () => {
    const memory = await makeMemory();
    const other = await attachTo(memory);
    const words = memory.allocShared(10);
    expect([...words]).toEqual([0, 0, 0]);
    words[1] = 7;
    expect(new Int32Array(other.handle.memories[0]!.buffer, words.byteOffset, words.length)[1]).toBe(7);
    const more = memory.allocShared(4);
    expect(more.byteOffset).not.toBe(words.byteOffset);
    verify(memory);
  });

  test("bytes that are none are EINVAL, more than there is ENOMEM", async () => {
    const memory = await makeMemory();
    for (const bytes of [0, -4, 0.5, Number.NaN]) {
      expect(thrown(() => memory.allocShared(bytes))?.code).toBe("EINVAL");
    }
    expect(thrown(() => memory.allocShared(2 ** 30))?.code).toBe("ENOMEM");
    verify(memory);
  });
});

test("stats counts frames by what they hold, faults by agent", async () => {
  const memory = await makeMemory(64, { faultAround: PAGE });
  const other = await attachTo(memory);
  const space = memory.sync.createSpace();
  const file = memory.sync.openFile(sharedBacking(pattern(at(16))), { writable: true });
  const a = space.sync.mmap(anonymous(4));
  const b = space.sync.mmap(anonymous(16, { share: "shared", file }));
  space.setUint8(a, 1);
  space.getUint8(a + at(1));
  space.setUint8(a + at(1), 1);
  const there = other.space(space.id);
  there.setUint8(b, 1);
  there.getUint8(b + at(1));
  const stats = memory.stats();
  expect(stats).toMatchObject({
    pageSize: PAGE,
    frames: { total: 64, used: 1 + 2 + 16, free: 45, file: 16, anon: 2, dirty: 1, pinned: 0 },
    faults: { major: 1, cow: 1 },
    evictions: 0,
    writebacks: 0,
  });
  expect(stats.agents).toMatchObject([
    { slot: 0, major: 0, cow: 1 },
    { slot: 1, major: 1, cow: 0 },
  ]);
  expect(stats.faults.minor).toBe(stats.agents[0]!.minor + stats.agents[1]!.minor);
});

describe("leaving", () => {
  test("detach gives handles, views and TLBs up; the memory goes on", async () => {
    const { memory, raw } = await makeRig();
    const other = await attach(memory.handle, { mayBlock: true });
    raw.setUint8(raw.sync.mmap(anonymous(1)), 1); // page tables, and a TLB
    const before = memory.stats();
    const file = other.sync.openFile(sharedBacking(pattern(at(4))), { writable: true });
    const there = other.space(raw.id);
    const a = there.sync.mmap(anonymous(4, { file, share: "shared" }));
    there.setUint8(a, 1);
    expect([...there.spans(a, at(2))].length).toBeGreaterThan(0);
    there.sync.munmap(a, at(4));
    other.detach();
    other.detach();
    expect(thrown(() => there.getUint8(a))?.code).toBe("ESRCH");
    expect(thrown(() => other.space(raw.id))?.code).toBe("ESRCH");
    expect(memory.stats().frames).toMatchObject({ free: before.frames.free, pinned: 0 });
    expect(memory.stats().arenaBytes).toBe(before.arenaBytes);
    verify(memory);
  });

  test("detach while something is pending is EBUSY", async () => {
    const memory = await makeMemory();
    const other = await attach(memory.handle, { mayBlock: false });
    const file = other.try.openFile(arrayBacking(pattern(PAGE), "async"));
    const reading = file.read(0, new Uint8Array(4));
    expect(thrown(() => other.detach())?.code).toBe("EBUSY");
    await reading;
    await new Promise((resolve) => setTimeout(resolve, 5));
    other.detach();
    verify(memory);
  });

  test("detach does not touch the record of a space that has exited meanwhile", async () => {
    const { memory } = await makeRig();
    const other = await attach(memory.handle, { mayBlock: true });
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(1));
    expect(other.space(space.id).getUint8(a)).toBe(0);
    await Promise.resolve();
    space.sync.exit();
    const words = Array.from({ length: 50 }, () => memory.allocShared(4 * 64).fill(-1));
    other.detach();
    expect(words.every((w) => w.every((x) => x === -1))).toBe(true);
    verify(memory);
  });

  test("close writes dirty pages, ends every space, closes every file", async () => {
    const memory = await makeMemory();
    const backings = [arrayBacking(new Uint8Array(at(2))), arrayBacking(new Uint8Array(at(2)), "async")];
    const spaces = [memory.sync.createSpace(), memory.sync.createSpace()];
    for (const [k, backing] of backings.entries()) {
      const file = memory.sync.openFile(backing, { writable: true });
      const a = await spaces[k]!.mmap(anonymous(2, { file, share: "shared" }));
      await spaces[k]!.write(a + 5, Uint8Array.of(k + 1));
    }
    await memory.close();
    await memory.close();
    expect(backings.map((b) => [b.bytes[5], b.closed])).toEqual([
      [1, true],
      [2, true],
    ]);
    expect(spaces.map((s) => s.live)).toEqual([false, false]);
    expect(thrown(() => memory.sync.createSpace())?.code).toBe("ESRCH");
  });
});

test("the whole address space is a range like any other", async () => {
  const { memory, raw } = await makeRig();
  const end = PAGE * (2 ** 31 - 2 ** 20);
  const a = raw.sync.mmap({
    length: end - 0x10000,
    prot: "rw",
    share: "private",
    address: 0x10000,
    fixed: true,
  });
  raw.setUint32(a, 1);
  raw.setUint32(end - 4, 2);
  raw.setUint32(2 ** 42, 3);
  raw.sync.mprotect(a, end - a, "r");
  expect([raw.getUint32(a), raw.getUint32(end - 4), raw.getUint32(2 ** 42)]).toEqual([1, 2, 3]);
  raw.sync.madvise(a, end - a, "dontneed");
  expect(raw.getUint32(end - 4)).toBe(0);
  raw.sync.munmap(0, end);
  expect(raw.vmas()).toEqual([]);
  expect(ADDRESS_END).toBeGreaterThan(end);
  verify(memory);
});
