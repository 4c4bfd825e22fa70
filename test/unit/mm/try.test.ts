/**
 * Operations that may not wait: EAGAIN, and everything is as it was. Another agent of the same thread is in its turn,
 * has the pages in its TLB, and does not poll; so no acknowledgement comes.
 */
import { describe, expect, test } from "vitest";
import {
  anonymous,
  attachTo,
  makeMemory,
  PAGE,
  pattern,
  sharedBacking,
  takeReported,
  thrown,
  verify,
} from "../../lib/mm.ts";

const at = (page: number): number => page * PAGE;
const BASE = 0x100000;

/**
 * Pages 0-3 anonymous and written, 4 the zero page, 5-6 a shared file, dirty, 7-8 a private one; `there` is another
 * agent's way to the same space.
 */
async function makeScene(mayBlock = true) {
  const memory = await makeMemory(64, { faultAround: PAGE, mayBlock });
  const other = await attachTo(memory);
  const bytes = new Uint8Array(pattern(at(4)));
  const file = memory.sync.openFile(sharedBacking(bytes), { writable: true });
  const space = memory.sync.createSpace();
  const there = other.space(space.id);
  space.sync.mmap(anonymous(5, { address: BASE, fixed: true }));
  space.sync.mmap(anonymous(2, { address: BASE + at(5), fixed: true, share: "shared", file }));
  space.sync.mmap(anonymous(2, { address: BASE + at(7), fixed: true, file, offset: at(2) }));
  for (let k = 0; k < 4; k++) space.setUint32(BASE + at(k), 100 + k);
  for (let k = 4; k < 9; k++) space.getUint32(BASE + at(k));
  space.setUint32(BASE + at(5), 105);
  space.setUint32(BASE + at(6), 106);
  const values = (): number[] => Array.from({ length: 9 }, (_, k) => space.getUint32(BASE + at(k)));
  const before = { values: values(), vmas: space.vmas(), frames: memory.stats().frames };
  await Promise.resolve();
  return {
    memory,
    other,
    space,
    there,
    file,
    bytes,
    /** `there` begins a turn with these pages in its TLB, writable where that needs no copy. */
    hold: (...pages: number[]) => {
      for (const k of pages) {
        if (k < 4 || k === 5 || k === 6) there.setUint32(BASE + at(k), before.values[k]!);
        else there.getUint32(BASE + at(k));
      }
    },
    expectUnchanged: () => {
      verify(memory);
      expect(space.vmas()).toEqual(before.vmas);
      expect(values()).toEqual(before.values);
      expect(memory.stats().frames).toMatchObject({ free: before.frames.free, anon: before.frames.anon });
      expect(memory.mm.frames.findLocked()).toBe(-1);
    },
  };
}
type Scene = Awaited<ReturnType<typeof makeScene>>;

const OPERATIONS: readonly (readonly [string, readonly number[], (scene: Scene) => void])[] = [
  ["munmap of one page", [1], ({ space }) => space.try.munmap(BASE + at(1), PAGE)],
  ["munmap across mappings", [0, 6], ({ space }) => space.try.munmap(BASE, at(9))],
  [
    "mmap over mappings",
    [2],
    ({ space }) => void space.try.mmap(anonymous(8, { address: BASE, fixed: true })),
  ],
  ["mprotect to r", [3], ({ space }) => space.try.mprotect(BASE + at(2), at(2), "r")],
  ["mprotect to none", [4], ({ space }) => space.try.mprotect(BASE + at(1), at(4), "none")],
  ["mprotect of a shared file to r", [6], ({ space }) => space.try.mprotect(BASE + at(5), at(2), "r")],
  ["dontneed", [1, 2], ({ space }) => space.try.madvise(BASE, at(4), "dontneed")],
  ["dontneed of a shared file", [5], ({ space }) => space.try.madvise(BASE + at(5), at(2), "dontneed")],
  ["sync", [5, 6], ({ memory, file }) => memory.try.sync(file)],
  ["msync", [5], ({ space }) => space.try.msync(BASE + at(5), PAGE)],
];

describe("EAGAIN where an acknowledgement would have to be waited for; everything is as it was", () => {
  test.each(OPERATIONS)("%s", async (_, held, operation) => {
    const scene = await makeScene();
    scene.hold(...held);
    expect(thrown(() => operation(scene))?.code).toBe("EAGAIN");
    scene.expectUnchanged();
    // Again, and after the other agent has polled it is done.
    scene.hold(...held);
    expect(thrown(() => operation(scene))?.code).toBe("EAGAIN");
    scene.expectUnchanged();
    scene.other.poll();
    expect(thrown(() => operation(scene))).toBeUndefined();
    verify(scene.memory);
  });

  test("what the other agent stores meanwhile is not lost", async () => {
    for (const [name, held, operation] of OPERATIONS) {
      const scene = await makeScene();
      scene.hold(...held);
      expect(thrown(() => operation(scene))?.code).toBe("EAGAIN");
      // Through the TLB, if the entry is still there; else by a fault.
      for (const k of [0, 1, 2, 3, 5, 6]) scene.there.setUint32(BASE + at(k), 200 + k);
      for (const k of [0, 1, 2, 3, 5, 6]) {
        expect(`${name} ${k} ${scene.space.getUint32(BASE + at(k))}`).toBe(`${name} ${k} ${200 + k}`);
      }
      await Promise.resolve();
      scene.memory.sync.sync(scene.file);
      expect(new DataView(scene.bytes.buffer).getUint32(0, true)).toBe(205);
      expect(new DataView(scene.bytes.buffer).getUint32(PAGE, true)).toBe(206);
      verify(scene.memory);
      scene.other.poll();
    }
  });

  test("copy-on-write by a store: of the zero page, of a private file page", async () => {
    for (const page of [4, 7, 8]) {
      const { memory, other, space, hold, expectUnchanged } = await makeScene(false);
      hold(page);
      expect(thrown(() => space.setUint8(BASE + at(page), 1))?.code).toBe("EAGAIN");
      expectUnchanged();
      other.poll();
      space.setUint8(BASE + at(page), 77);
      expect(space.getUint8(BASE + at(page))).toBe(77);
      verify(memory);
    }
  });

  test("run() waits for it", async () => {
    const { memory, other, space, there, hold } = await makeScene(false);
    hold(4);
    let runs = 0;
    await space.run(() => {
      runs++;
      space.setUint8(BASE + at(4), 9);
    });
    expect(runs).toBe(2);
    expect(there.getUint8(BASE + at(4))).toBe(9);
    other.poll();
    verify(memory);
  });

  test("sync in an agent that may not block is a try", async () => {
    const { space, hold, expectUnchanged } = await makeScene(false);
    hold(1);
    expect(thrown(() => space.sync.munmap(BASE + at(1), PAGE))?.code).toBe("EAGAIN");
    expectUnchanged();
  });

  test("reclaim leaves a run of pages of which the other agent holds one", async () => {
    const { memory, other, space, hold } = await makeScene();
    hold(5);
    expect(memory.try.reclaim(at(64))).toBe(0);
    verify(memory);
    expect(space.mincore(BASE + at(5), PAGE)[0]).toBe(1);
    other.poll();
    expect(memory.try.reclaim(at(64))).toBe(at(4));
    expect(space.getUint32(BASE + at(5))).toBe(105);
    verify(memory);
  });

  test("mprotect handles whole mappings: those before the one that fails stay handled", async () => {
    const { memory, other, space, hold } = await makeScene();
    hold(6);
    expect(thrown(() => space.try.mprotect(BASE, at(7), "r"))?.code).toBe("EAGAIN");
    verify(memory);
    expect(space.vmas().map((v) => v.prot)).toEqual(["r--", "rw-", "rw-"]);
    other.poll();
  });
});

describe("EAGAIN where a lock or a page would have to be waited for", () => {
  test("the mmap lock, while another operation has it", async () => {
    const { memory, other, space, there, hold } = await makeScene();
    hold(1);
    const unmapping = space.munmap(BASE + at(1), PAGE); // has the lock, waits for the acknowledgement
    for (const operation of [
      () => there.try.munmap(BASE, PAGE),
      () => there.try.mprotect(BASE, PAGE, "r"),
      () => there.try.madvise(BASE, PAGE, "dontneed"),
      () => void there.try.mmap(anonymous(1)),
    ]) {
      expect(thrown(operation)?.code).toBe("EAGAIN");
    }
    other.poll();
    await unmapping;
    expect(thrown(() => there.getUint8(BASE + at(1)))?.reason).toBe("SEGV_MAPERR");
    expect(there.getUint32(BASE)).toBe(100);
    other.poll();
    verify(memory);
  });

  test("a page that another operation is taking away", async () => {
    const { memory, other, space, there, hold } = await makeScene();
    hold(1);
    const dropping = space.madvise(BASE, at(4), "dontneed"); // pages 0 to 3 are busy
    expect(thrown(() => there.try.populate(BASE, at(4)))?.code).toBe("EAGAIN");
    expect(thrown(() => there.try.madvise(BASE, at(4), "dontneed"))?.code).toBe("EAGAIN");
    other.poll();
    await dropping;
    expect([0, 1, 2, 3].map((k) => there.getUint32(BASE + at(k)))).toEqual([0, 0, 0, 0]);
    other.poll();
    verify(memory);
  });

  test("exit never fails: what would have to be waited for is done later", async () => {
    const { memory, other, space, hold } = await makeScene();
    const { free } = memory.stats().frames;
    hold(0, 5);
    space.try.exit();
    expect(thrown(() => space.getUint8(BASE))?.code).toBe("ESRCH");
    other.poll();
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(memory.stats().frames.free).toBeGreaterThan(free);
    expect(memory.stats().frames.anon).toBe(0);
    verify(memory);
    expect(takeReported()).toEqual([]);
  });
});
