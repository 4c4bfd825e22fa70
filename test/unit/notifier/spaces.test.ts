/** The contract where an address space is the primary MMU: what it tells subscribers, and what they do not do to it. */
import { describe, expect, test } from "vitest";
import { MmuNotifier, MmuNotifierEvent } from "../../../src/notifier/index.ts";
import { ADDRESS_END } from "../../../src/units.ts";
import { anonymous, attachTo, eventOf, makeMemory, makeRig, PAGE, record, thrown } from "../../lib/mm.ts";
import { obedient } from "../../lib/notifiers.ts";

const BASE = 0x100000;
const at = (page: number): number => BASE + page * PAGE;
const mapping = (page: number, pages: number, more = {}) =>
  anonymous(pages, { address: at(page), fixed: true, ...more });
const NAMES = Object.keys(MmuNotifierEvent) as (keyof typeof MmuNotifierEvent)[];

describe("a change of an address space", () => {
  test("has its start while the old entries are there, and its end when they are gone", async () => {
    const { memory, raw } = await makeRig();
    raw.sync.mmap(mapping(0, 2));
    for (const page of [0, 1]) raw.setUint8(at(page), 1);
    const present = (): number => raw.pagemap(BASE, 2 * PAGE).filter((p) => p.present).length;
    const seen: string[] = [];
    record(raw, {
      invalidateRangeStart: () => (seen.push(`start: ${present()} present`), true),
      invalidateRangeEnd: () => void seen.push(`end: ${present()} present`),
    });
    raw.sync.munmap(BASE, PAGE);
    expect(seen).toEqual(["start: 2 present", "end: 1 present"]);
    expect(memory.check()).toBeUndefined();
  });

  test("X14: munmap over two mappings and a hole is exactly one Unmap, with the bounds of the request", async () => {
    const { raw } = await makeRig();
    raw.sync.mmap(mapping(1, 2));
    raw.sync.mmap(mapping(5, 3, { prot: "r" }));
    for (const page of [1, 2]) raw.setUint8(at(page), 1);
    const recorder = record(raw);
    raw.sync.munmap(BASE, 6 * PAGE);
    expect(recorder.take()).toEqual([eventOf("Unmap", BASE, at(6))]);
    expect(recorder.open).toBe(0);
  });

  test("X15: mprotect to what a mapping has is no event; to something else one, clipped to the request", async () => {
    const { raw } = await makeRig();
    raw.sync.mmap(mapping(0, 4));
    for (const page of [0, 1, 2, 3]) raw.setUint8(at(page), 1);
    const recorder = record(raw);
    raw.sync.mprotect(BASE, 4 * PAGE, "rw");
    expect(recorder.take()).toEqual([]);
    raw.sync.mprotect(at(1), 2 * PAGE, "r");
    expect(recorder.take()).toEqual([eventOf("ProtectionVma", at(1), at(3))]);
  });

  test("X13: fork tells the parent's notifiers; the child has none", async () => {
    const { raw } = await makeRig();
    raw.sync.mmap(mapping(0, 1));
    raw.setUint8(BASE, 1);
    const recorder = record(raw);
    const child = raw.sync.fork();
    expect(child.notifiers.any).toBe(false);
    expect(recorder.take()).toEqual([eventOf("ProtectionPage", BASE, at(1))]);
    child.setUint8(BASE, 2);
    child.sync.munmap(BASE, PAGE);
    child.sync.exit();
    expect(recorder.take()).toEqual([]);
  });

  test("X16: fork raises ProtectionPage over each private mapping that has pages of its own, and over no other", async () => {
    const { raw } = await makeRig();
    raw.sync.mmap(mapping(0, 4));
    raw.sync.mmap(mapping(6, 2, { share: "shared" }));
    raw.sync.mmap(mapping(10, 2));
    for (const page of [1, 6]) raw.setUint8(at(page), 1);
    raw.getUint8(at(10)); // the zero page is nobody's own
    const recorder = record(raw);
    raw.sync.fork().sync.exit();
    expect(recorder.take()).toEqual([eventOf("ProtectionPage", BASE, at(4))]);
    expect(recorder.open).toBe(0);
  });

  test("X17: a move raises Unmap for the source whose pages move, and again for its mapping; with dontUnmap once", async () => {
    const { raw } = await makeRig();
    raw.sync.mmap(mapping(0, 2));
    raw.setUint8(BASE, 1);
    const recorder = record(raw);
    raw.sync.mremap(BASE, 2 * PAGE, 2 * PAGE, { mayMove: true, to: at(8) });
    expect(recorder.take()).toEqual([eventOf("Unmap", BASE, at(2)), eventOf("Unmap", BASE, at(2))]);
    raw.sync.mremap(at(8), 2 * PAGE, 2 * PAGE, { mayMove: true, to: BASE, dontUnmap: true });
    expect(recorder.take()).toEqual([eventOf("Unmap", at(8), at(10))]);
    expect(raw.getUint8(BASE)).toBe(1);
  });

  test("that may not wait for a subscriber of another agent is EAGAIN, and leaves everything as it was", async () => {
    const memory = await makeMemory();
    const other = await attachTo(memory, false);
    const space = memory.sync.createSpace();
    space.sync.mmap(mapping(0, 2));
    space.setUint8(BASE, 5);
    const there = other.space(space.id);
    const recorder = record(there);
    expect(thrown(() => space.try.munmap(BASE, PAGE))?.code).toBe("EAGAIN");
    expect(space.getUint8(BASE)).toBe(5);
    expect(recorder.take()).toEqual([]);
    await there.notifiers.unregister(recorder.notifier);
  });
});

describe("the end of an address space", () => {
  test("release runs before any page is unmapped", async () => {
    const memory = await makeMemory();
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(2));
    space.setUint8(a, 1);
    space.setUint8(a + PAGE, 1);
    const free = (): number => memory.stats().frames.free;
    const before = free();
    const inRelease: number[] = [];
    await space.notifiers.register(new MmuNotifier({ release: () => void inRelease.push(free()) }));
    space.sync.exit();
    expect([inRelease, free()]).toEqual([[before], before + 2]);
  });

  test("intervals hear Release and then Unmap, both over everything; list notifiers hear release only", async () => {
    const { raw } = await makeRig();
    raw.sync.mmap(mapping(0, 2));
    raw.setUint8(BASE, 1);
    const heard: string[] = [];
    const interval = raw.notifiers.sync.insert(
      obedient((_, r) => heard.push(eventOf(NAMES[r.event]!, r.start, r.end))),
      BASE,
      PAGE,
    );
    const recorder = record(raw);
    raw.sync.exit();
    expect(heard).toEqual([eventOf("Release", 0, ADDRESS_END), eventOf("Unmap", 0, ADDRESS_END)]);
    expect(recorder.take()).toEqual(["release"]);
    interval.sync.remove();
  });

  test("that has no mapping raises no Unmap", async () => {
    const { raw } = await makeRig();
    const heard: number[] = [];
    const interval = raw.notifiers.sync.insert(
      obedient((_, r) => heard.push(r.event)),
      BASE,
      PAGE,
    );
    raw.sync.exit();
    expect(heard).toEqual([MmuNotifierEvent.Release]);
    interval.sync.remove();
  });

  test("takes the pages of a space that still has registrations", async () => {
    const memory = await makeMemory();
    const { free } = memory.stats().frames;
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(2, { populate: true }));
    space.setUint8(a, 1);
    expect(memory.stats().frames.free).toBeLessThan(free);
    const A = space.notifiers.sync.insert(obedient(), a, PAGE);
    space.sync.exit();
    expect(memory.stats().frames.free).toBe(free);
    A.sync.remove();
  });
});

test("a new space begins without notifiers, whatever others have", async () => {
  const memory = await makeMemory();
  const [one, two] = [memory.sync.createSpace(), memory.sync.createSpace()];
  const A = one.notifiers.sync.insert(obedient(), 0, 10);
  expect([one.notifiers.any, two.notifiers.any]).toEqual([true, false]);
  A.sync.remove();
});

test("an interval is an address range: it needs no mapping", async () => {
  const memory = await makeMemory();
  const space = memory.sync.createSpace();
  const told: number[] = [];
  const A = space.notifiers.sync.insert(
    obedient((_, r) => told.push(r.start)),
    BASE,
    PAGE,
  );
  const a = space.sync.mmap(mapping(0, 1));
  space.setUint8(a, 1);
  space.sync.munmap(a, PAGE);
  expect(told).toEqual([a]);
  A.sync.remove();
});
