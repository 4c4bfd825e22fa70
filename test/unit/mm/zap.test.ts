/** Taking many entries away at once, as kernels do it, with WebAssembly and without. */
import { describe, expect, test } from "vitest";
import { MmuNotifier } from "../../../src/notifier/index.ts";
import { createMemory, type PhysicalMemory } from "../../../src/mm/index.ts";
import {
  anonymous,
  arrayBacking,
  attachTo,
  makeMemory,
  PAGE,
  pattern,
  thrown,
  verify,
} from "../../lib/mm.ts";

const BASE = 0x100000;
const at = (page: number): number => BASE + page * PAGE;
const fixed = (pages: number, more = {}) => anonymous(pages, { address: BASE, fixed: true, ...more });

/** 48 pages: written, but for 10 (nothing), 11 (the zero page), 12 (a guard). */
async function makeScene(options: Parameters<typeof makeMemory>[1] = {}) {
  const memory = await makeMemory(128, options);
  const space = memory.sync.createSpace();
  space.sync.mmap(fixed(48));
  for (let k = 0; k < 48; k++) if (k < 10 || k > 12) space.setUint32(at(k), 100 + k);
  space.getUint32(at(11));
  space.sync.madvise(at(12), PAGE, "guard-install");
  await Promise.resolve();
  const expectThere = (): void => {
    for (let k = 0; k < 48; k++)
      if (k !== 12) expect(space.getUint32(at(k))).toBe(k < 10 || k > 12 ? 100 + k : 0);
    expect(space.pagemap(at(12), PAGE)[0]).toMatchObject({ present: false, guard: true });
  };
  return { memory, space, expectThere };
}

describe.each([
  ["checked frame by frame", true],
  ["in bulk", false],
])("dontneed of many pages, freed %s", (_how, debug) => {
  test("takes them, gives the frames back, and leaves guards", async () => {
    const { memory, space } = await makeScene({ debug });
    const arena = memory.stats().arenaBytes;
    for (let k = 0; k < 48; k++) if (k !== 12) space.getUint32(at(k)); // in the TLB
    space.sync.madvise(BASE, 48 * PAGE, "dontneed");
    expect(memory.stats().frames.anon).toBe(0);
    expect(memory.stats().frames.free).toBe(127);
    for (let k = 0; k < 48; k++) if (k !== 12) expect(space.getUint32(at(k))).toBe(0);
    expect(thrown(() => space.getUint8(at(12)))?.code).toBe("EFAULT");
    expect(memory.stats().arenaBytes).toBe(arena);
    verify(memory);
    for (let k = 20; k < 48; k++) space.setUint32(at(k), k); // frames that were freed hold zeros again
    expect(space.getUint32(at(20) + 4)).toBe(0);
    verify(memory);
  });

  test("keeps frames that a view, a child or the page cache has", async () => {
    const { memory, space } = await makeScene({ debug });
    const child = space.sync.fork();
    const [span] = space.spans(at(20), PAGE, "r");
    space.sync.madvise(BASE, 48 * PAGE, "dontneed");
    expect(new Uint32Array(span!.buffer, span!.byteOffset, 1)[0]).toBe(120);
    for (const k of [0, 9, 13, 20, 47])
      expect([space.getUint32(at(k)), child.getUint32(at(k))]).toEqual([0, 100 + k]);
    child.sync.exit();
    await Promise.resolve();
    verify(memory);
  });

  test("of a shared file marks the pages that were written as dirty", async () => {
    const memory = await makeMemory(128, { debug });
    const bytes = new Uint8Array(pattern(32 * PAGE));
    const file = memory.sync.openFile(arrayBacking(bytes), { writable: true });
    const space = memory.sync.createSpace();
    space.sync.mmap(fixed(32, { share: "shared", file }));
    for (let k = 0; k < 32; k++) space.getUint8(at(k));
    space.setUint8(at(7), 77);
    memory.sync.sync(file);
    space.setUint8(at(9), 99);
    space.sync.madvise(BASE, 32 * PAGE, "dontneed");
    memory.sync.sync(file);
    expect([bytes[7 * PAGE], bytes[9 * PAGE]]).toEqual([77, 99]);
    verify(memory);
  });
});

test("where it may not wait everything is put back", async () => {
  const { memory, space, expectThere } = await makeScene({ mayBlock: false });
  const other = await attachTo(memory);
  const there = other.space(space.id);
  there.setUint32(at(30), 130);
  const arena = memory.stats().arenaBytes;
  expect(thrown(() => space.sync.munmap(BASE, 48 * PAGE))?.code).toBe("EAGAIN");
  expectThere();
  expect(memory.stats().arenaBytes).toBe(arena);
  verify(memory);
  other.poll();
  space.sync.munmap(BASE, 48 * PAGE);
  expect(memory.stats().frames.anon).toBe(0);
  verify(memory);
});

test("entries that another operation is taking away are waited for", async () => {
  const { memory, space } = await makeScene({ mayBlock: false });
  const other = await attachTo(memory, false);
  const there = other.space(space.id);
  space.setUint32(at(30), 130); // this agent is in its turn, and has the page in its TLB
  const first = there.madvise(at(24), 12 * PAGE, "dontneed"); // waits for this agent
  const second = space.madvise(BASE, 48 * PAGE, "dontneed");
  await second;
  expect(memory.stats().frames.anon).toBe(0);
  await first;
  other.poll();
  verify(memory);
});

test("a range that is longer than the TLB", async () => {
  const memory = await makeMemory(64);
  const space = memory.sync.createSpace();
  const pages = memory.mm.tlbEntries + 8;
  space.sync.mmap(fixed(pages));
  space.setUint32(at(5), 5);
  space.setUint32(at(pages - 1), 6);
  space.sync.madvise(BASE, pages * PAGE, "dontneed");
  expect([space.getUint32(at(5)), space.getUint32(at(pages - 1))]).toEqual([0, 0]);
  verify(memory);
});

test("without WebAssembly it comes to the same", async () => {
  const { Module } = WebAssembly;
  let memory: PhysicalMemory;
  try {
    WebAssembly.Module = class {
      constructor() {
        throw new Error("none here");
      }
    } as never;
    memory = await createMemory({ budget: 128 * PAGE, arena: "4 MiB", mayBlock: true });
  } finally {
    WebAssembly.Module = Module;
  }
  const space = memory.sync.createSpace();
  await space.notifiers.register(new MmuNotifier({ invalidateRangeStart: () => true }));
  space.sync.mmap(fixed(48));
  for (let k = 0; k < 48; k++) space.setUint32(at(k), 100 + k);
  space.sync.madvise(BASE, 40 * PAGE, "dontneed");
  expect([space.getUint32(at(0)), space.getUint32(at(39)), space.getUint32(at(40))]).toEqual([0, 0, 140]);
  expect(memory.stats().frames.anon).toBe(9 - 1);
  space.sync.munmap(BASE, 48 * PAGE);
  expect(memory.stats().frames.free).toBe(127);
  verify(memory);
  await memory.close();
});
