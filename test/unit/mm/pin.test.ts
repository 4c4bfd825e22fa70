/** pin(): pages that stay in place beyond the turn, whatever becomes of their mapping, and the count of writable views. */
import { describe, expect, test } from "vitest";
import type { PhysicalMemory, Pin } from "../../../src/mm/index.ts";
import { MM_HELD_RUNS } from "../../../src/mm/layout.ts";
import {
  anonymous,
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
const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Writable runs in the logs of an agent. */
const held = (memory: PhysicalMemory, slot = memory.agent.slot): number =>
  Atomics.load(memory.agent.words, memory.mm.header + MM_HELD_RUNS + slot);

const bytesOf = (pin: Pin): Uint8Array => Buffer.concat(pin.spans);

describe("a pin", () => {
  test("brings its pages in and keeps them beyond the turn, until it is given back", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(4));
    space.sync.write(a, pattern(at(4)));
    const pin = await space.pin(a + 10, at(3), "rw");
    memory.poll();
    await tick();
    expect(memory.stats().frames.pinned).toBe(4);
    expect(Buffer.compare(bytesOf(pin), pattern(at(4)).subarray(10, 10 + at(3)))).toBe(0);
    expect(pin.spans[0]!.memory).toBe(memory.handle.memories[0]);
    pin.spans[0]![0] = 99;
    expect(space.getUint8(a + 10)).toBe(99);
    space.setUint8(a + 11, 98);
    expect(pin.spans[0]![1]).toBe(98);
    await pin[Symbol.asyncDispose]();
    verify(memory);
    expect([memory.stats().frames.pinned, pin.spans.length]).toEqual([0, 0]);
    pin.unpin(); // does nothing more
    verify(memory);
  });

  test("outlives the mapping and the space", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(2));
    space.sync.write(a, pattern(at(2)));
    const pin = space.sync.pin(a, at(2), "r");
    space.sync.munmap(a, PAGE);
    space.sync.madvise(a + PAGE, PAGE, "dontneed");
    expect(space.getUint8(a + PAGE)).toBe(0);
    space.sync.exit();
    expect(Buffer.compare(bytesOf(pin), pattern(at(2)))).toBe(0);
    expect(memory.stats().frames.used).toBe(3);
    pin.unpin();
    expect(memory.stats().frames.used).toBe(1);
  });

  test("for writing has pages of the mapping's own: what fork shared is copied first", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(2));
    space.setUint8(a, 1);
    const child = space.sync.fork();
    const pin = space.sync.pin(a, at(2), "rw");
    pin.spans.forEach((span) => span.fill(7));
    expect([space.getUint8(a), space.getUint8(a + PAGE)]).toEqual([7, 7]);
    expect([child.getUint8(a), child.getUint8(a + PAGE)]).toEqual([1, 0]);
    verify(memory);
    pin.unpin();
  });

  test("stays the parent's: fork copies its pages for the child at once", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(sharedBacking(pattern(at(4))));
    const a = space.sync.mmap(anonymous(2));
    const b = space.sync.mmap(anonymous(2, { file }));
    space.setUint8(a, 1);
    const pins = [a, b].map((address) => space.sync.pin(address, at(2), "rw"));
    const child = space.sync.fork();
    for (const pin of pins) for (const span of pin.spans) span.fill(9);
    for (const address of [a, b]) {
      expect(space.getUint8(address)).toBe(9);
      space.setUint8(address + 1, 8);
    }
    expect(pins.map(({ spans }) => spans[0]![1])).toEqual([8, 8]);
    expect([child.getUint8(a), child.getUint8(b)]).toEqual([1, pattern(1)[0]]);
    for (const pin of pins) pin.unpin();
    verify(memory);
    await file.close();
  });

  test("of a file's pages keeps them from reclaim, and makes them dirty when it is given back", async () => {
    const { memory, space } = await makeRig(64);
    const backing = sharedBacking(pattern(at(32)));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(anonymous(32, { share: "shared", file }));
    for (let page = 0; page < 32; page++) space.getUint8(a + at(page));
    const pin = space.sync.pin(a + at(4), at(2), "rw");
    await file.sync();
    await memory.reclaim(at(64));
    expect(memory.stats().frames).toMatchObject({ file: 2, pinned: 2, dirty: 0 });
    pin.spans[0]![0] = 77;
    expect(space.getUint8(a + at(4))).toBe(77);
    pin.unpin();
    expect(memory.stats().frames.dirty).toBe(2);
    const seen = new Uint8Array(1);
    await memory.reclaim(at(64));
    await memory.reclaim(at(64));
    await file.read(at(4), seen);
    expect(seen[0]).toBe(77);
    await file.close();
  });

  test("is refused as an access is, and then holds nothing", async () => {
    const { memory, space } = await makeRig(32);
    const a = space.sync.mmap(anonymous(4));
    const readOnly = space.sync.mmap(anonymous(2, { prot: "r" }));
    space.sync.munmap(a + at(2), PAGE);
    expect(thrown(() => space.sync.pin(a, at(4), "rw"))).toMatchObject({
      reason: "SEGV_MAPERR",
      address: a + at(2),
    });
    expect((await rejected(space.pin(readOnly, PAGE, "rw")))?.reason).toBe("SEGV_ACCERR");
    const large = space.sync.mmap(anonymous(40));
    expect((await rejected(space.pin(large, at(40), "rw")))?.code).toBe("ENOMEM");
    for (const [address, length, access] of [
      [-1, 1, "r"],
      [a, -1, "r"],
      [a, 1, "w"],
    ] as const)
      expect(thrown(() => space.sync.pin(address, length, access as "r"))?.code).toBe("EINVAL");
    for (const beyond of [2 ** 44, Number.MAX_SAFE_INTEGER - PAGE])
      expect(thrown(() => space.sync.pin(beyond, PAGE, "r"))?.reason).toBe("SEGV_MAPERR");
    expect(memory.stats().frames.pinned).toBe(0);
    expect(space.sync.pin(a, 0, "rw").spans).toEqual([]);
  });

  test("never waits in the try form: EAGAIN, and nothing is held", async () => {
    const { memory, raw: space } = await makeRig(32);
    const file = memory.sync.openFile({
      size: at(4),
      read: async (_offset, into) => {
        await tick();
        into.fill(5);
        return into.length;
      },
    });
    const a = space.sync.mmap(anonymous(1));
    const b = space.sync.mmap(anonymous(2, { address: a + PAGE, fixed: true, file }));
    expect(b).toBe(a + PAGE);
    expect(thrown(() => space.try.pin(a, at(3), "r"))?.code).toBe("EAGAIN");
    expect(memory.stats().frames.pinned).toBe(0);
    const pin = await space.pin(a, at(3), "r");
    expect(bytesOf(pin)[PAGE]).toBe(5);
    pin.unpin();
    await file.close();
  });

  test("ends with its agent: when that leaves, and when it closes the memory", async () => {
    const memory = await makeMemory(32);
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(2));
    const other = await attachTo(memory);
    const pin = await other.space(space.id).pin(a, at(2), "rw");
    expect(held(memory, other.agent.slot)).toBe(1);
    expect(memory.stats().frames.pinned).toBe(2);
    other.detach();
    expect([memory.stats().frames.pinned, held(memory, other.agent.slot)]).toEqual([0, 0]);
    verify(memory);
    pin.unpin(); // too late, and harmless
    space.sync.pin(a, at(2), "rw"); // close() gives it back
  });

  test("makes room for others in any order, in a log that does not grow", async () => {
    const { memory, raw } = await makeRig(32);
    const a = raw.sync.mmap(anonymous(4));
    let last = raw.sync.pin(a, PAGE, "rw");
    const before = memory.stats().arenaBytes;
    for (let n = 0; n < 3000; n++) {
      const next = raw.sync.pin(a + at(n % 4), PAGE, n % 3 === 0 ? "r" : "rw");
      last.unpin();
      last = next;
    }
    expect(memory.stats().arenaBytes).toBe(before);
    verify(memory);
    last.unpin();
    expect(memory.stats().arenaBytes).toBeLessThan(before);
    verify(memory);
  });
});

describe("the count of what fork must know of", () => {
  test("has the pins of an agent, and its spans for writing", async () => {
    const { memory, raw } = await makeRig(32);
    const a = raw.sync.mmap(anonymous(4));
    raw.sync.populate(a, at(4), "rw");
    const counts: number[] = [held(memory)];
    const note = (): number => counts.push(held(memory));
    raw.sync.forEachSpan(a, at(2), "rw", note);
    raw.sync.forEachSpan(a, at(2), "r", note);
    const pin = raw.sync.pin(a, PAGE, "rw");
    note();
    const read = raw.sync.pin(a, PAGE, "r");
    note();
    expect([...raw.spans(a, PAGE, "rw")]).toHaveLength(1);
    note();
    verify(memory);
    memory.poll();
    note();
    pin.unpin();
    note();
    read.unpin();
    note();
    expect(counts).toEqual([0, 1, 0, 1, 2, 3, 2, 1, 0]);
  });

  test("is verified", async () => {
    const { memory } = await makeRig(32);
    const word = memory.mm.header + MM_HELD_RUNS + memory.agent.slot;
    memory.agent.words[word]!++;
    expect(memory.check()).toMatch(/V2/);
    memory.agent.words[word]!--;
    verify(memory);
  });
});
