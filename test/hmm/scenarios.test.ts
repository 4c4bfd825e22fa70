/**
 * What drivers of devices may rely on: the scenarios of Linux's tools/testing/selftests/mm/hmm-tests.c against a device in
 * plain memory, H1 to H37. Each runs with accesses by the device's own agent and by another one, whose accesses that agent
 * has to answer. All pages have one size here; what Linux asks of huge ones is asked of runs of 512.
 */
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { AddressSpace, PhysicalMemory } from "../../src/mm/index.ts";
import { isMmError } from "../../src/errors.ts";
import { memoryBacking } from "../../src/mm/index.ts";
import { anonymous, attachTo, expectBytes, makeMemory, PAGE, rejected, verify } from "../lib/mm.ts";
import {
  PlainDevice,
  type PlainDeviceOptions,
  SNAP_ERROR,
  SNAP_LOCAL,
  SNAP_NONE,
  SNAP_READ,
  SNAP_WRITE,
  SNAP_ZERO,
} from "./plainDevice.ts";

const PAGES = 96;
const HUGE = 512;

/** Page `k` of a buffer whose word i is i + c. */
const words = (pages: number, c = 0, sign = 1): Uint8Array =>
  new Uint8Array(Uint32Array.from({ length: (pages * PAGE) / 4 }, (_, i) => sign * i + c).buffer);
const part = (bytes: Uint8Array, first: number, pages: number): Uint8Array =>
  bytes.subarray(first * PAGE, (first + pages) * PAGE);

describe.each([
  ["by the device's agent", false],
  ["by another agent", true],
])("accesses %s", (_, other) => {
  let memory: PhysicalMemory;
  /** As the device's agent sees it, and as the agent that accesses it does. */
  let space: AddressSpace;
  let cpu: AddressSpace;
  let cpuMemory: PhysicalMemory;
  const devices: PlainDevice[] = [];

  beforeEach(async () => {
    memory = await makeMemory(2048, { mayBlock: false, arena: "24 MiB" });
    space = await memory.createSpace();
    cpuMemory = other ? await attachTo(memory, false) : memory;
    cpu = cpuMemory.space(space.id);
  });

  /** A device that mirrors a space, the one of the test if none is named. */
  async function open(
    options: PlainDeviceOptions = {},
    of = space,
    shared?: PlainDevice,
  ): Promise<PlainDevice> {
    const device = await new PlainDevice(memory, of, { slow: other, ...options }, shared).open();
    devices.push(device);
    return device;
  }

  afterEach(async () => {
    verify(memory);
    for (const device of devices.splice(0)) if (device.space.live) await device.close();
    verify(memory);
    await space.exit();
    cpuMemory.poll();
    verify(memory);
  });

  const map = (pages: number, more = {}): Promise<number> => space.mmap(anonymous(pages, more));
  const fill = (start: number, bytes: Uint8Array, by = cpu): Promise<void> => by.write(start, bytes);
  async function see(start: number, bytes: Uint8Array, by = cpu): Promise<void> {
    const into = new Uint8Array(bytes.length);
    await by.read(start, into);
    expectBytes(into, bytes);
  }
  const touch = (address: number): Promise<number> => cpu.run(() => cpu.getUint32(address));
  const fork = async (): Promise<{ child: AddressSpace; cpuChild: AddressSpace }> => {
    const child = await space.fork();
    return { child, cpuChild: cpuMemory.space(child.id) };
  };
  const buffer = async (pages = PAGES, c = 0): Promise<{ start: number; bytes: Uint8Array }> => {
    const start = await map(pages);
    const bytes = words(pages, c);
    await fill(start, bytes);
    return { start, bytes };
  };

  test("H1 open_close: a device is opened and closed, and its subscription is gone", async () => {
    const device = await open();
    expect(space.notifiers.any).toBe(true);
    await device.close();
    devices.pop();
    expect(space.notifiers.any).toBe(true); // the space has had subscriptions
    const { start } = await buffer(2);
    await space.munmap(start, PAGE);
    expect(device.invalidations).toBe(0);
    await device.device.close();
    expect(await rejected(device.migrate(start + PAGE, 1))).toMatchObject({ code: "ESRCH" });
  });

  test("H2 anon_read: untouched pages, the zero page and written ones are read in one fault", async () => {
    const device = await open();
    const start = await map(PAGES);
    const bytes = words(PAGES);
    bytes.fill(0, 0, 2 * PAGE);
    await fill(start + 2 * PAGE, bytes.subarray(2 * PAGE));
    await space.mprotect(start, PAGES * PAGE, "r");
    expect(await touch(start + PAGE)).toBe(0);
    expectBytes(await device.read(start, PAGES), bytes);
    expect(device.faults).toBe(1);
  });

  test("H3 anon_read_prot: what cannot be read is EFAULT, and nothing has changed", async () => {
    const device = await open();
    const { start, bytes } = await buffer();
    await space.mprotect(start, PAGES * PAGE, "none");
    expect(await rejected(device.read(start, PAGES))).toMatchObject({ code: "EFAULT" });
    await space.mprotect(start, PAGES * PAGE, "r");
    await see(start, bytes);
  });

  test("H4 anon_write: the device writes untouched pages, and agents see it", async () => {
    const device = await open();
    const start = await map(PAGES);
    await device.write(start, words(PAGES));
    expect(device.faults).toBe(1);
    await see(start, words(PAGES));
  });

  test("H5 anon_write_prot: writing a read-only mapping is EPERM; once writable the zero page is replaced", async () => {
    const device = await open();
    const start = await map(PAGES, { prot: "r" });
    expectBytes(await device.read(start, 1), new Uint8Array(PAGE));
    expect(device.faults).toBe(1);
    expect(await rejected(device.write(start, words(PAGES)))).toMatchObject({ code: "EPERM" });
    await see(start, new Uint8Array(PAGES * PAGE));
    await space.mprotect(start, PAGES * PAGE, "rw");
    await device.write(start, words(PAGES));
    expect(device.faults).toBe(1);
    await see(start, words(PAGES));
  });

  test.each([
    ["pages in frames", false],
    ["pages on the device", true],
  ])("H6 anon_write_child: the device writes copies in a child, %s", async (_name, migrated) => {
    const device = await open();
    const { start, bytes } = await buffer();
    if (migrated) await device.migrate(start, PAGES);
    const { child, cpuChild } = await fork();
    await see(start, bytes, cpuChild);
    const mirror = await open({}, child, device);
    await mirror.write(start, words(PAGES, 0, -1));
    expect(mirror.faults).toBe(1);
    await see(start, words(PAGES, 0, -1), cpuChild);
    await see(start, bytes);
    verify(memory);
    await mirror.close();
    await child.exit();
  });

  test("a device writes its own page that fork shared, without anybody having accessed it", async () => {
    const device = await open();
    const { start, bytes } = await buffer(4);
    await device.migrate(start, 4);
    const { child, cpuChild } = await fork();
    await device.write(start, words(4, 5));
    await see(start, bytes, cpuChild);
    await see(start, words(4, 5));
    verify(memory);
    await child.exit();
  });

  test("H7 anon_write_child_shared: shared memory stays shared", async () => {
    const start = await map(PAGES, { share: "shared" });
    await fill(start, words(PAGES));
    const { child } = await fork();
    const mirror = await open({}, child);
    await mirror.write(start, words(PAGES, 0, -1));
    await see(start, words(PAGES, 0, -1));
    await mirror.close();
    await child.exit();
  });

  test("H8, H9 anon_write_huge, anon_write_hugetlbfs: a run of 512 pages is written in one fault", async () => {
    const device = await open();
    const start = await map(2 * HUGE);
    const aligned = Math.ceil(start / (HUGE * PAGE)) * HUGE * PAGE;
    await space.madvise(aligned, HUGE * PAGE, "hugepage").catch((error: unknown) => {
      if (!isMmError(error, "EINVAL")) throw error;
    });
    await device.write(aligned, words(HUGE));
    expect(device.faults).toBe(1);
    await see(aligned, words(HUGE));
  });

  test("H10 file_read: a page of a file is read in one fault", async () => {
    const device = await open();
    const file = await memory.openFile(memoryBacking(PAGES * PAGE));
    await file.write(0, words(PAGES));
    const start = await space.mmap({ length: PAGES * PAGE, prot: "r", share: "shared", file });
    expectBytes(await device.read(start, PAGES), words(PAGES));
    expect(device.faults).toBe(1);
    await file.close();
  });

  test("H11 file_write: what the device writes is in the mapping and in the file", async () => {
    const device = await open();
    const file = await memory.openFile(memoryBacking(PAGES * PAGE));
    const start = await space.mmap({ length: PAGES * PAGE, prot: "rw", share: "shared", file });
    await device.write(start, words(PAGES));
    await see(start, words(PAGES));
    const into = new Uint8Array(PAGES * PAGE);
    await file.read(0, into);
    expectBytes(into, words(PAGES));
    await file.close();
  });

  test("H12 migrate: all pages move, and their frames are free", async () => {
    const device = await open();
    const { start, bytes } = await buffer();
    const free = memory.stats().frames.free;
    expectBytes(await device.migrate(start, PAGES), bytes);
    expect(memory.stats().frames.free).toBe(free + PAGES);
    expect(device.device.free).toBe(device.device.pages - PAGES);
    expect(memory.stats().devicePages).toBe(PAGES);
    verify(memory);
    expectBytes(await device.read(start, PAGES), bytes);
    expect(device.faults).toBe(0);
  });

  test("H13 migrate_fault: accesses bring pages back, and they move again", async () => {
    const device = await open();
    const { start, bytes } = await buffer();
    await device.migrate(start, PAGES);
    await see(start, part(bytes, 0, PAGES / 2));
    expect(device.copiedOut).toBe(PAGES / 2);
    expectBytes(await device.migrate(start, PAGES), bytes);
    await see(start, bytes);
  });

  test("H14 migrate_release: the memory of the device is given up, and agents find the pages", async () => {
    const device = await open();
    const { start, bytes } = await buffer();
    await device.migrate(start, PAGES);
    expect(await device.device.evict()).toBe(PAGES);
    expect(device.device.free).toBe(device.device.pages);
    verify(memory);
    await see(start, part(bytes, 0, PAGES / 2));
    await device.device.close();
    await see(start, bytes);
  });

  test("H15 migrate_shared: shared memory does not move", async () => {
    const device = await open();
    const start = await map(PAGES, { share: "shared" });
    await fill(start, words(PAGES));
    expect(await rejected(device.migrate(start, PAGES))).toMatchObject({ code: "ENOENT" });
    expect(device.device.free).toBe(device.device.pages);
    await see(start, words(PAGES));
  });

  test("H16 migrate_mixed: what is not mapped or not readable is EINVAL; each device leaves the other's pages alone", async () => {
    const one = await open();
    const two = await open();
    const start = await map(6, { prot: "none" });
    const at = (k: number): number => start + k * PAGE;
    expect(await rejected(two.migrate(start, 6))).toMatchObject({ code: "EINVAL" });
    await space.munmap(at(1), PAGE);
    expect(await rejected(two.migrate(start, 3))).toMatchObject({ code: "EINVAL" });
    await space.mprotect(at(2), PAGE, "r");
    expect(await touch(at(2))).toBe(0);
    await space.mprotect(at(3), PAGE, "rw");
    await fill(at(3), words(1, 3));
    await space.mprotect(at(3), PAGE, "r");
    await space.mprotect(at(4), 2 * PAGE, "rw");
    await fill(at(4), words(2, 4));
    const came = await two.migrate(at(2), 4);
    expectBytes(part(came, 0, 1), new Uint8Array(PAGE));
    expectBytes(part(came, 1, 1), words(1, 3));
    expectBytes(part(came, 2, 2), words(2, 4));
    expect(two.device.free).toBe(two.device.pages - 4);
    expect(await rejected(one.migrate(at(5), 1))).toMatchObject({ code: "ENOENT" });
    expect(two.device.free).toBe(two.device.pages - 4);
  });

  test("H17 migrate_multiple: there and back ten times", async () => {
    const device = await open();
    for (let round = 0; round < 10; round++) {
      const { start, bytes } = await buffer(16, round * 1000);
      expectBytes(await device.migrate(start, 16), bytes);
      if (round % 2 === 0) expect(await device.bringBack(start, 16)).toBe(16);
      await see(start, bytes);
      expect(device.device.free).toBe(device.device.pages);
      await space.munmap(start, 16 * PAGE);
    }
  });

  test("H18 anon_read_multiple: nothing old is read where memory is mapped anew", async () => {
    const device = await open();
    for (let round = 0; round < 10; round++) {
      const { start, bytes } = await buffer(16, round);
      expectBytes(await device.read(start, 16), bytes);
      expect(device.faults).toBe(1);
      await space.munmap(start, 16 * PAGE);
      expect(device.entries).toBe(0);
    }
  });

  test("H19 anon_teardown: unmapping while the device reads gives right bytes or an error", async () => {
    const device = await open();
    for (let round = 0; round < 10; round++) {
      const { start, bytes } = await buffer(PAGES, round);
      const reading = device.read(start, PAGES).then(
        (read) => expectBytes(read, bytes),
        (error: unknown) => expect(isMmError(error, "EFAULT")).toBe(true),
      );
      await new Promise((resolve) => setTimeout(resolve, round % 4));
      await cpu.munmap(start + (PAGES / 2) * PAGE, (PAGES / 2) * PAGE);
      await reading;
      await space.munmap(start, (PAGES / 2) * PAGE);
    }
  });

  test("H20 mixedmap: a private mapping of a page that a driver made is readable", async () => {
    const device = await open();
    const file = await memory.openFile(memoryBacking(PAGE));
    await file.write(0, words(1));
    const start = await space.mmap({ length: PAGE, prot: "rw", share: "private", file });
    await touch(start);
    expect(await device.snapshot(start, 1)).toEqual([SNAP_READ]);
    await file.close();
  });

  test("H21 snapshot: says what each page is, and faults nothing in", async () => {
    const one = await open();
    const two = await open();
    const start = await map(7);
    const at = (k: number): number => start + k * PAGE;
    await fill(at(3), words(4));
    await touch(at(2));
    await space.mprotect(at(0), PAGE, "none");
    await space.munmap(at(1), PAGE);
    await space.mprotect(at(2), 2 * PAGE, "r");
    await one.migrate(at(5), 1);
    await two.migrate(at(6), 1);
    const minor = memory.stats().faults.minor;
    const expected = [
      SNAP_ERROR,
      SNAP_ERROR,
      SNAP_ZERO | SNAP_READ,
      SNAP_READ,
      SNAP_WRITE,
      SNAP_LOCAL | SNAP_WRITE,
      SNAP_NONE,
    ];
    expect(await one.snapshot(start, 7)).toEqual(expected);
    expect(memory.stats().faults.minor).toBe(minor);
    expect(space.pagemap(at(5), 2 * PAGE).map(({ present, swapped }) => [present, swapped])).toEqual([
      [false, true],
      [false, true],
    ]);
    expect([...space.mincore(at(4), 3 * PAGE)]).toEqual([1, 1, 1]);
  });

  test("H22 compound: the rights of a run of pages follow mprotect", async () => {
    const device = await open();
    const { start } = await buffer();
    expect(await device.snapshot(start, PAGES)).toEqual(Array.from({ length: PAGES }, () => SNAP_WRITE));
    await space.mprotect(start, PAGES * PAGE, "r");
    expect(await device.snapshot(start, PAGES)).toEqual(Array.from({ length: PAGES }, () => SNAP_READ));
  });

  test("H23 double_map: a device reads what moved to another, after that gave it back", async () => {
    const one = await open();
    const two = await open();
    const { start, bytes } = await buffer(6);
    await space.mprotect(start, 6 * PAGE, "r");
    expectBytes(await one.read(start, 6), bytes);
    expectBytes(await two.read(start, 6), bytes);
    expect([one.faults, two.faults]).toEqual([1, 1]);
    expect(one.entries).toBe(6);
    expectBytes(await two.migrate(start, 6), bytes);
    expect(one.entries).toBe(0);
    expectBytes(await one.read(start, 6), bytes);
    expect(one.faults).toBe(1);
    expect(two.copiedOut).toBe(6);
  });

  test("H24 exclusive: pages are a device's own until an agent accesses them", async () => {
    const device = await open();
    const { start, bytes } = await buffer(8);
    expectBytes(await device.exclusive(start, 8), bytes);
    expect(device.stillExclusive(start, 8)).toBe(8);
    expect(space.pagemap(start, PAGE)[0]).toMatchObject({ present: false, swapped: true });
    verify(memory);
    await see(start, bytes);
    expect(device.stillExclusive(start, 8)).toBe(0);
    await fill(start, words(8, 1));
    await see(start, words(8, 1));
    expect(memory.stats().events["EXCLUSIVE"]).toBe(8);
  });

  test("H25 exclusive_mprotect: a read-only mapping is not written by the device", async () => {
    const device = await open();
    const { start, bytes } = await buffer(8);
    await device.exclusive(start, 8);
    await space.mprotect(start, 8 * PAGE, "r");
    expect(await rejected(device.write(start, words(8, 9)))).toMatchObject({ code: "EPERM" });
    await see(start, bytes);
    expect(await cpu.run(() => cpu.getUint32(start))).toBe(0);
    expect(await rejected(cpu.run(() => cpu.setUint32(start, 1)))).toMatchObject({ reason: "SEGV_ACCERR" });
  });

  test("H26 exclusive_cow: after fork both have the bytes, each its own", async () => {
    const device = await open();
    const { start, bytes } = await buffer(8);
    await device.exclusive(start, 8);
    const { child, cpuChild } = await fork();
    expect(device.stillExclusive(start, 8)).toBe(0);
    await see(start, bytes);
    await see(start, bytes, cpuChild);
    await fill(start, words(8, 1));
    await see(start, bytes, cpuChild);
    await fill(start, words(8, 2), cpuChild);
    await see(start, words(8, 1));
    verify(memory);
    await child.exit();
  });

  test("H27 gup: whoever pins pages gets them back from the device", async () => {
    const device = await open();
    const { start, bytes } = await buffer(4);
    await device.migrate(start, 4);
    const short = await cpu.pin(start, PAGE, "r");
    expectBytes(short.spans[0]!, part(bytes, 0, 1));
    short.unpin();
    await cpu.run(() => {
      for (const span of cpu.spans(start + PAGE, PAGE)) expectBytes(span, part(bytes, 1, 1));
    });
    cpuMemory.poll();
    const long = await cpu.pin(start + 2 * PAGE, 2 * PAGE, "rw");
    expect(await device.snapshot(start, 4)).toEqual(Array.from({ length: 4 }, () => SNAP_WRITE));
    // Pinned pages stay where they are.
    expect(await rejected(device.migrate(start, 4))).toMatchObject({ code: "ENOENT" });
    expect(await device.snapshot(start, 4)).toEqual([
      SNAP_LOCAL | SNAP_WRITE,
      SNAP_LOCAL | SNAP_WRITE,
      SNAP_WRITE,
      SNAP_WRITE,
    ]);
    long.unpin();
    await see(start, bytes);
  });

  test("H28 cow_in_device: after fork the parent writes copies in memory", async () => {
    const device = await open();
    const { start, bytes } = await buffer(4);
    await device.migrate(start, 4);
    const { child, cpuChild } = await fork();
    await fill(start, words(4, 7));
    await see(start, bytes, cpuChild);
    await child.exit();
    expect(await device.snapshot(start, 4)).toEqual(Array.from({ length: 4 }, () => SNAP_WRITE));
    expect(device.device.free).toBe(device.device.pages);
    await see(start, words(4, 7));
  });

  test("H29, H30 migrate_anon_huge_empty, _zero: pages that were never written move as zeros", async () => {
    const device = await open({ pages: 2 * HUGE });
    const start = await map(HUGE, { prot: "r" });
    expectBytes(await device.migrate(start, HUGE), new Uint8Array(HUGE * PAGE));
    await see(start, new Uint8Array(PAGE));
    const read = await map(HUGE, { prot: "r" });
    for (let k = 0; k < HUGE; k += 2) await touch(read + k * PAGE);
    expectBytes(await device.migrate(read, HUGE), new Uint8Array(HUGE * PAGE));
    await see(read, new Uint8Array(HUGE * PAGE));
  });

  test("H31 migrate_anon_huge_free: madvise free of pages on a device succeeds, and unmapping frees them", async () => {
    const device = await open({ pages: HUGE });
    const { start, bytes } = await buffer(HUGE);
    expectBytes(await device.migrate(start, HUGE), bytes);
    await space.madvise(start, HUGE * PAGE, "free");
    verify(memory);
    await space.munmap(start, HUGE * PAGE);
    expect(device.device.free).toBe(device.device.pages);
  });

  test("H32 migrate_anon_huge_fault: a run of 512 pages comes back", async () => {
    const device = await open({ pages: HUGE, around: 64 * PAGE });
    const { start, bytes } = await buffer(HUGE);
    await device.migrate(start, HUGE);
    await touch(start + 5 * PAGE);
    expect(device.copiedOut).toBeGreaterThan(1); // its neighbours, too
    expect(device.copiedOut).toBeLessThanOrEqual(64);
    await see(start, bytes);
  });

  test.each([
    ["the first half", 0],
    ["the middle", HUGE / 4],
    ["the second half", HUGE / 2],
  ])("H33 migrate_partial_unmap_fault: %s is unmapped, and the rest comes back", async (_name, first) => {
    const device = await open({ pages: HUGE });
    const { start, bytes } = await buffer(HUGE);
    await device.migrate(start, HUGE);
    await space.munmap(start + first * PAGE, (HUGE / 2) * PAGE);
    verify(memory);
    expect(device.device.free).toBe(HUGE / 2);
    await see(start, part(bytes, 0, first));
    const behind = first + HUGE / 2;
    await see(start + behind * PAGE, part(bytes, behind, HUGE - behind));
    expect(device.device.free).toBe(HUGE);
  });

  test.each(
    ["before", "after"].flatMap((when) =>
      [false, true].flatMap((dontUnmap) => [0, 128, 256].map((shift) => [when, dontUnmap, shift] as const)),
    ),
  )(
    "H34 migrate_remap_fault: mremap %s the move, dontUnmap %s, by %i pages",
    async (when, dontUnmap, shift) => {
      const pages = 64;
      const device = await open({ pages });
      const { start, bytes } = await buffer(pages);
      const target = (await map(HUGE)) + shift * PAGE;
      const move = (): Promise<number> =>
        space.mremap(start, pages * PAGE, pages * PAGE, { mayMove: true, to: target, dontUnmap });
      if (when === "before") await move();
      expectBytes(await device.migrate(when === "before" ? target : start, pages), bytes);
      if (when === "after") await move();
      verify(memory);
      expect(device.device.free).toBe(0);
      await see(target, bytes);
      if (dontUnmap) await see(start, new Uint8Array(pages * PAGE));
    },
  );

  test("H35 migrate_anon_huge_err: where a device has no room the rest stays, where there are no frames pages stay on it", async () => {
    const device = await open({ pages: 32 });
    const { start, bytes } = await buffer(48);
    expect(await rejected(device.migrate(start, 48))).toMatchObject({ code: "ENOENT" });
    expect(device.device.free).toBe(0);
    verify(memory);
    await see(start + 47 * PAGE, part(bytes, 47, 1));
    // Every frame is taken: the page cannot come back, and nothing is lost.
    const { free } = memory.stats().frames;
    const hog = await map(free);
    await fill(hog, new Uint8Array(free * PAGE).fill(1));
    expect(await rejected(cpu.read(start, new Uint8Array(PAGE)))).toMatchObject({ code: "ENOMEM" });
    expect(await rejected(device.device.evict())).toMatchObject({ code: "ENOMEM" });
    verify(memory);
    await space.munmap(hog, free * PAGE);
    await see(start, bytes);
  });

  test("H36 migrate_anon_huge_zero_err: a copy that fails leaves everything where it was", async () => {
    const device = await open({ pages: HUGE });
    const start = await map(8);
    await fill(start, words(4));
    device.onCopy = () => {
      throw new Error("no power");
    };
    expect(await rejected(device.migrate(start, 8))).toMatchObject({ message: "no power" });
    verify(memory);
    expect(device.device.free).toBe(HUGE);
    device.onCopy = undefined;
    const moved = await device.migrate(start, 8);
    expectBytes(part(moved, 0, 4), words(4));
    device.onCopy = () => {
      throw new Error("no power");
    };
    expect(await rejected(cpu.read(start, new Uint8Array(PAGE)))).toMatchObject({ name: "BusError" });
    verify(memory);
    device.onCopy = undefined;
    await see(start, words(4));
    await see(start + 4 * PAGE, new Uint8Array(4 * PAGE));
  });

  test("H37 benchmark: larger and larger buffers go there and back", async () => {
    const device = await open({ pages: HUGE });
    for (const pages of [1, 32, 128, HUGE]) {
      const { start, bytes } = await buffer(pages, pages);
      for (let k = 0; k < 3; k++) {
        expectBytes(await device.migrate(start, pages), bytes);
        expect(await device.bringBack(start, pages)).toBe(pages);
      }
      await see(start, bytes);
      await space.munmap(start, pages * PAGE);
    }
  });
});
