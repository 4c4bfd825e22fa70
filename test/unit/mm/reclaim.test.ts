import { describe, expect, test } from "vitest";
import { memoryBacking } from "../../../src/mm/index.ts";
import { MmuNotifier } from "../../../src/notifier/index.ts";
import {
  anonymous,
  arrayBacking,
  attachTo,
  expectBytes,
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
const shared = (pages: number, more = {}) => anonymous(pages, { share: "shared", ...more });
const turn = (): Promise<void> => Promise.resolve();

describe("reclaim", () => {
  test("frees clean file pages, of which the next access reads the same", async () => {
    const { memory, space } = await makeRig(64);
    const bytes = pattern(at(16));
    const backing = arrayBacking(bytes);
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(shared(16, { file }));
    const all = new Uint8Array(at(16));
    space.sync.read(a, all);
    await turn();
    expect(memory.sync.reclaim(at(16))).toBe(at(16));
    expect(memory.stats()).toMatchObject({ evictions: 16, writebacks: 0 });
    expect(space.mincore(a, at(16)).some((p) => p !== 0)).toBe(false);
    all.fill(0);
    space.sync.read(a, all);
    expectBytes(all, bytes);
    expect(backing.reads).toHaveLength(2);
    expect(backing.writes).toEqual([]);
  });

  test("writes dirty pages first", async () => {
    const { memory, space } = await makeRig(64);
    const backing = arrayBacking(pattern(at(16)));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(shared(16, { file }));
    for (const k of [1, 2, 9]) space.setUint32(a + at(k), 1000 + k);
    await turn();
    expect(memory.sync.reclaim(at(16))).toBe(at(16));
    expect(backing.writes).toEqual([
      { offset: at(1), length: at(2) },
      { offset: at(9), length: PAGE },
    ]);
    for (const k of [1, 2, 9]) expect(space.getUint32(a + at(k))).toBe(1000 + k);
  });

  test("returns what it freed, never more than there is", async () => {
    const { memory, space } = await makeRig(64);
    expect(memory.sync.reclaim(at(4))).toBe(0);
    const file = memory.sync.openFile(arrayBacking(pattern(at(40))));
    const a = space.sync.mmap(anonymous(40, { prot: "r", file }));
    for (let k = 0; k < 40; k += 16) space.getUint8(a + at(k));
    await turn();
    const { free } = memory.stats().frames;
    const freed = await memory.reclaim(1);
    expect(freed).toBeGreaterThanOrEqual(PAGE);
    expect(memory.stats().frames.free).toBe(free + freed / PAGE);
    expect(await memory.reclaim(2 ** 40)).toBe(at(40) - freed);
    verify(memory);
  });

  test("bytes that are none are EINVAL", async () => {
    const { memory } = await makeRig();
    for (const bytes of [0, -1, Number.NaN]) {
      expect(thrown(() => memory.sync.reclaim(bytes))?.code).toBe("EINVAL");
    }
  });

  test("leaves anonymous pages, memory files and private copies alone", async () => {
    const { memory, space } = await makeRig(64);
    const file = memory.sync.openFile(arrayBacking(pattern(at(4))));
    const a = space.sync.mmap(anonymous(4));
    const b = space.sync.mmap(shared(4));
    const c = space.sync.mmap(anonymous(4, { file }));
    const d = space.sync.mmap(shared(4, { file: memory.sync.openFile(memoryBacking(at(4))) }));
    for (let k = 0; k < 4; k++) for (const m of [a, b, c, d]) space.setUint8(m + at(k), k + 1);
    await turn();
    expect(memory.sync.reclaim(at(64))).toBe(at(4)); // the file's own pages, below the copies
    for (let k = 0; k < 4; k++) for (const m of [a, b, c, d]) expect(space.getUint8(m + at(k))).toBe(k + 1);
  });

  test("a page that was used since the hand passed survives the round in which others go", async () => {
    const { memory, raw } = await makeRig(96, { faultAround: PAGE });
    const backing = arrayBacking(pattern(at(48)));
    const file = memory.sync.openFile(backing);
    const a = raw.sync.mmap(anonymous(48, { prot: "r", file }));
    const clusters = [0, 16, 32];
    for (const k of clusters) raw.getUint8(a + at(k));
    await turn();
    // Used all of them; the first reclaim ages everything and takes one cluster.
    expect(memory.sync.reclaim(PAGE)).toBe(at(16));
    const left = clusters.filter((k) => raw.mincore(a + at(k), PAGE)[0] === 1);
    expect(left).toHaveLength(2);
    await turn();
    raw.getUint8(a + at(left[0]!)); // young again; the other is not
    await turn();
    expect(memory.sync.reclaim(PAGE)).toBe(at(16));
    expect(left.map((k) => raw.mincore(a + at(k), PAGE)[0])).toEqual([1, 0]);
    verify(memory);
  });

  test("what follows in the file goes in the same invalidation, wherever it lies in memory", async () => {
    const { memory, raw } = await makeRig(512);
    const file = memory.sync.openFile(arrayBacking(pattern(at(64))));
    const a = raw.sync.mmap(anonymous(64, { prot: "r", file }));
    for (const k of [16, 48, 0, 32]) raw.getUint8(a + at(k));
    const order = [0, 16, 32, 48].map((k) => file.core.frameOf(k));
    expect(order).not.toEqual(order.toSorted((x, y) => x - y));
    const starts: [number, number][] = [];
    await raw.notifiers.register(
      new MmuNotifier({
        invalidateRangeStart: (_, { start, end }) => {
          starts.push([start - a, end - a]);
          return true;
        },
      }),
    );
    await turn();
    expect(memory.sync.reclaim(at(64))).toBe(at(64));
    // The hand comes to the second cluster first.
    expect(starts).toEqual([
      [at(16), at(64)],
      [0, at(16)],
    ]);
    verify(memory);
  });

  test("a neighbour that was used ends the run, and stays as young as it was", async () => {
    const { memory, raw } = await makeRig(512);
    const file = memory.sync.openFile(arrayBacking(pattern(at(64))));
    const a = raw.sync.mmap(anonymous(64, { prot: "r", file }));
    for (const k of [0, 16, 32, 48]) raw.getUint8(a + at(k));
    await turn();
    expect(memory.sync.reclaim(PAGE)).toBe(at(16)); // ages all
    raw.getUint8(a + at(48));
    await turn();
    expect(memory.sync.reclaim(at(32))).toBe(at(32));
    expect([0, 16, 32, 48].map((k) => raw.mincore(a + at(k), PAGE)[0])).toEqual([0, 0, 0, 1]);
    expect(raw.pagemap(a + at(48), PAGE)[0]!.young).toBe(true);
    verify(memory);
  });

  test("file.read counts as use", async () => {
    const { memory } = await makeRig(96);
    const file = memory.sync.openFile(arrayBacking(pattern(at(48))));
    const one = new Uint8Array(1);
    for (const k of [0, 16, 32]) memory.sync.read(file, at(k), one);
    expect(memory.sync.reclaim(PAGE)).toBe(at(16));
    // Whichever it was, the next in turn is one that has not been used since.
    const gone = [0, 16, 32].find((k) => file.core.frameOf(k) === 0)!;
    const used = [0, 16, 32].find((k) => k !== gone)!;
    memory.sync.read(file, at(used), one);
    expect(memory.sync.reclaim(PAGE)).toBe(at(16));
    expect(file.core.frameOf(used)).not.toBe(0);
    verify(memory);
  });

  test("a secondary MMU that says young protects its pages, and no others", async () => {
    const { memory, raw } = await makeRig(96, { faultAround: PAGE });
    const file = memory.sync.openFile(arrayBacking(pattern(at(32))));
    const a = raw.sync.mmap(anonymous(32, { prot: "r", file }));
    for (const k of [0, 16]) raw.getUint8(a + at(k));
    await turn();
    const asked: [number, number][] = [];
    const notifier = new MmuNotifier({
      clearFlushYoung: (_, space, start, end) => {
        expect(space.id).toBe(raw.id);
        asked.push([start - a, end - a]);
        return start < a + at(16);
      },
    });
    raw.notifiers.sync.register(notifier);
    expect(memory.sync.reclaim(at(64))).toBe(at(16));
    expect(raw.mincore(a, PAGE)[0]).toBe(1);
    expect(raw.mincore(a + at(16), PAGE)[0]).toBe(0);
    expect(asked).toContainEqual([0, at(16)]);
    expect(asked.every(([start, end]) => end > start && end <= at(32))).toBe(true);
    raw.notifiers.sync.unregister(notifier);
    expect(memory.sync.reclaim(at(64))).toBe(at(16));
    verify(memory);
  });

  test("pinned pages are skipped until the turn ends", async () => {
    const { memory, raw } = await makeRig(64, { faultAround: PAGE });
    const file = memory.sync.openFile(arrayBacking(pattern(at(16))), { writable: true });
    const a = raw.sync.mmap(shared(16, { file }));
    const spans = [...raw.spans(a + at(3), at(2)), ...raw.spans(a + at(7), PAGE, "rw")];
    spans.at(-1)![0] = 77;
    expect(memory.sync.reclaim(at(64))).toBe(at(13));
    expect([...raw.mincore(a, at(9))]).toEqual([0, 0, 0, 1, 1, 0, 0, 1, 0]);
    spans.at(-1)![1] = 78;
    verify(memory);
    await turn();
    expect(memory.sync.reclaim(at(64))).toBe(at(3));
    expect([raw.getUint8(a + at(7)), raw.getUint8(a + at(7) + 1)]).toEqual([77, 78]);
    verify(memory);
  });

  test("what an agent in its turn has in its TLB counts as young, until it passes a safepoint", async () => {
    const { memory, raw } = await makeRig(64, { faultAround: PAGE });
    const other = await attachTo(memory);
    const file = memory.sync.openFile(sharedBacking(pattern(at(16))));
    const a = raw.sync.mmap(anonymous(16, { prot: "r", file }));
    const there = other.space(raw.id);
    there.getUint8(a + at(5)); // its turn goes on
    expect(thrown(() => memory.try.reclaim(at(16)))).toBeUndefined();
    expect(raw.mincore(a + at(5), PAGE)[0]).toBe(1);
    other.poll();
    expect(memory.try.reclaim(at(16))).toBe(at(16));
    verify(memory);
  });

  test("pages of one file that several spaces map are taken from all of them", async () => {
    const { memory, raw } = await makeRig(64);
    const second = memory.sync.createSpace();
    const bytes = pattern(at(16));
    const file = memory.sync.openFile(arrayBacking(bytes.slice()), { writable: true });
    const a = raw.sync.mmap(shared(16, { file }));
    const b = second.sync.mmap(shared(8, { file, offset: at(4) }));
    const c = second.sync.mmap(anonymous(16, { file }));
    for (let k = 0; k < 16; k++) raw.getUint8(a + at(k));
    for (let k = 0; k < 8; k++) second.setUint8(b + at(k), k);
    for (let k = 0; k < 16; k++) second.getUint8(c + at(k));
    second.setUint8(c, 99);
    await turn();
    expect(memory.sync.reclaim(at(64))).toBe(at(16));
    for (const [space, m, n] of [
      [raw, a, 16],
      [second, b, 8],
    ] as const) {
      expect(space.mincore(m, at(n)).some((p) => p !== 0)).toBe(false);
    }
    expect([...second.mincore(c, at(2))]).toEqual([1, 0]);
    expect(raw.getUint8(a + at(4) + at(3))).toBe(3);
    expect(second.getUint8(c)).toBe(99);
    verify(memory);
  });
});

describe("under pressure", () => {
  test("a file many times the budget can be read and written, every byte right", async () => {
    const { memory, raw } = await makeRig(48);
    const bytes = pattern(at(300));
    const backing = arrayBacking(bytes.slice());
    const file = memory.sync.openFile(backing, { writable: true });
    const a = raw.sync.mmap(shared(300, { file }));
    const model = bytes.slice();
    for (let round = 0; round < 2; round++) {
      for (let k = 0; k < 300; k++) {
        const page = (k * 97) % 300;
        expect(raw.getUint8(a + at(page) + k)).toBe(model[at(page) + k]);
        raw.setUint8(a + at(page) + k, k ^ round);
        model[at(page) + k] = k ^ round;
      }
      verify(memory);
    }
    memory.sync.sync(file);
    expectBytes(backing.bytes, model);
    expect(memory.stats().frames.peak).toBeLessThanOrEqual(48);
  });

  test("every frame pinned is ENOMEM; nothing is lost, and it works again afterwards", async () => {
    const { memory, raw } = await makeRig(48);
    const bytes = pattern(at(64));
    const file = memory.sync.openFile(arrayBacking(bytes.slice()), { writable: true });
    const a = raw.sync.mmap(shared(64, { file }));
    const b = raw.sync.mmap(anonymous(20));
    for (let k = 0; k < 20; k++) raw.setUint32(b + at(k), k);
    const spans: Uint8Array[] = [];
    const error = thrown(() => {
      for (const span of raw.spans(a, at(64))) spans.push(span);
    });
    expect(error?.code).toBe("ENOMEM");
    verify(memory);
    expect(thrown(() => raw.setUint8(a + at(63), 1))?.code).toBe("ENOMEM");
    expect(await rejectedInTurn(raw.read(a + at(63), new Uint8Array(1)))).toBe("ENOMEM");
    verify(memory);
    await turn();
    for (let k = 0; k < 20; k++) expect(raw.getUint32(b + at(k))).toBe(k);
    expect(raw.getUint8(a + at(63))).toBe(bytes[at(63)]);
    verify(memory);
  });

  /** Keeps the turn's views meanwhile: nothing is awaited before the operation has run. */
  async function rejectedInTurn(promise: Promise<unknown>): Promise<string | undefined> {
    return (await rejected(promise))?.code;
  }

  test("anonymous memory beyond the budget is ENOMEM; what was stored stays", async () => {
    const { memory, raw } = await makeRig(32);
    const a = raw.sync.mmap(anonymous(64));
    let k = 0;
    const error = thrown(() => {
      for (; k < 64; k++) raw.setUint32(a + at(k), k + 1);
    });
    expect(error?.code).toBe("ENOMEM");
    expect(k).toBe(31);
    verify(memory);
    for (let j = 0; j < k; j++) expect(raw.getUint32(a + at(j))).toBe(j + 1);
    raw.sync.madvise(a, PAGE, "dontneed");
    raw.setUint32(a + at(k), k + 1);
    expect(raw.getUint32(a + at(k))).toBe(k + 1);
    verify(memory);
  });

  test("copy-on-write without a free frame is ENOMEM and leaves the page as it was", async () => {
    const { memory, raw } = await makeRig(32);
    const a = raw.sync.mmap(anonymous(40));
    for (let k = 0; k < 31; k++) raw.setUint8(a + at(k), 1);
    expect(raw.getUint8(a + at(31))).toBe(0);
    expect(thrown(() => raw.setUint8(a + at(31), 1))?.code).toBe("ENOMEM");
    expect(raw.getUint8(a + at(31))).toBe(0);
    verify(memory);
  });

  test("two agents whose pages fill the memory take them from each other", async () => {
    const memory = await makeMemory(40, { faultAround: PAGE });
    const other = await attachTo(memory);
    const bytes = pattern(at(80));
    const file = memory.sync.openFile(sharedBacking(bytes));
    const space = memory.sync.createSpace();
    const there = other.space(space.id);
    const a = space.sync.mmap(anonymous(80, { prot: "r", file }));
    const one = new Uint8Array(1);
    for (let k = 0; k < 80; k++) {
      await space.read(a + at(k), one);
      expect(one[0]).toBe(bytes[at(k)]);
      await there.read(a + at(79 - k), one);
      expect(one[0]).toBe(bytes[at(79 - k)]);
    }
    verify(memory);
  });

  test("memory that another agent has in its TLB, in a turn without end so far, is waited for, not refused", async () => {
    const memory = await makeMemory(32, { faultAround: PAGE });
    const other = await attachTo(memory);
    const bytes = pattern(at(64));
    const file = memory.sync.openFile(sharedBacking(bytes));
    const space = memory.sync.createSpace();
    const there = other.space(space.id);
    const a = space.sync.mmap(anonymous(64, { prot: "r", file }));
    for (let k = 0; k < 31; k++) there.getUint8(a + at(k));
    // All frames are full of pages that `there` has in its TLB. Nobody has polled, and nobody refuses.
    const one = new Uint8Array(1);
    const reading = space.read(a + at(63), one);
    expect(there.getUint8(a + 1)).toBe(bytes[1]);
    await reading;
    expect(one[0]).toBe(bytes[at(63)]);
    verify(memory);
  });

  test("mappings, files and memory of 16 and 64 KiB pages", async () => {
    for (const pageSize of [16384, 65536] as const) {
      const { memory, raw } = await makeRig(32, { pageSize });
      expect(memory.pageSize).toBe(pageSize);
      const bytes = pattern(pageSize * 40 + 100);
      const file = memory.sync.openFile(arrayBacking(bytes.slice()), { writable: true });
      const a = raw.sync.mmap({ length: pageSize * 41, prot: "rw", share: "shared", file });
      const b = raw.sync.mmap({ length: pageSize * 2, prot: "rw", share: "private", file, offset: pageSize });
      const all = new Uint8Array(bytes.length);
      raw.sync.read(a, all);
      expectBytes(all, bytes);
      raw.setBigUint64(a + pageSize - 3, 0x0102030405060708n);
      expect(raw.getBigUint64(a + pageSize - 3)).toBe(0x0102030405060708n);
      raw.setUint32(b + pageSize - 2, 0xffffffff);
      expect(thrown(() => raw.sync.munmap(a + 4096, pageSize))?.code).toBe("EINVAL");
      raw.sync.mprotect(a + pageSize, pageSize, "r");
      expect(thrown(() => raw.setUint8(a + pageSize, 1))?.reason).toBe("SEGV_ACCERR");
      expect(raw.getUint32(b + pageSize - 2)).toBe(0xffffffff);
      expect(memory.stats().evictions).toBeGreaterThan(0);
      verify(memory);
    }
  });
});
