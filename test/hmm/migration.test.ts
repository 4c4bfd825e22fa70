/** What happens to pages on a device, exclusive to one or on their way, while everything else goes on. */
import { describe, expect, test } from "vitest";
import {
  createDeviceMemory,
  type DeviceMemory,
  makeDeviceExclusive,
  migrateToDevice,
  migrateToMemory,
} from "../../src/hmm/index.ts";
import type { AddressSpace, PhysicalMemory } from "../../src/mm/index.ts";
import { memoryBacking } from "../../src/mm/index.ts";
import { MmuNotifier } from "../../src/notifier/index.ts";
import {
  anonymous,
  attachTo,
  expectBytes,
  makeMemory,
  PAGE,
  pattern,
  record,
  rejected,
  takeReported,
  thrown,
  verify,
} from "../lib/mm.ts";

const BASE = 0x400000;
const at = (page: number): number => BASE + page * PAGE;

interface Gated {
  readonly memory: PhysicalMemory;
  readonly space: AddressSpace;
  readonly device: DeviceMemory;
  /** The next copy waits until open() is called. */
  close(): void;
  open(): void;
  /** Resolves when a copy waits. */
  waiting(): Promise<void>;
  readonly bytes: Uint8Array;
}

/** A space with a device whose copies can be held up. */
async function gated(frames = 256, around?: number): Promise<Gated> {
  const memory = await makeMemory(frames, { mayBlock: false, arena: "8 MiB" });
  const space = await memory.createSpace();
  const bytes = new Uint8Array(64 * PAGE);
  let gate: Promise<void> | undefined;
  let release = (): void => {};
  let arrived = (): void => {};
  let arrival = Promise.resolve();
  const pass = async (): Promise<void> => {
    if (!gate) return;
    arrived();
    await gate;
  };
  const device = createDeviceMemory(memory, {
    bytes: bytes.length,
    ...(around === undefined ? {} : { around }),
    copyIn: async (list) => {
      await pass();
      for (const { page, bytes: from } of list) {
        if (from) bytes.set(from, page * PAGE);
        else bytes.fill(0, page * PAGE, (page + 1) * PAGE);
      }
    },
    copyOut: async (list) => {
      await pass();
      for (const { page, bytes: into } of list) into!.set(bytes.subarray(page * PAGE, (page + 1) * PAGE));
    },
  });
  return {
    memory,
    space,
    device,
    bytes,
    close: () => {
      gate = new Promise((resolve) => (release = resolve));
      arrival = new Promise((resolve) => (arrived = resolve));
    },
    open: () => {
      gate = undefined;
      release();
    },
    waiting: () => arrival,
  };
}

async function filled(space: AddressSpace, pages: number, more = {}): Promise<Uint8Array> {
  await space.mmap(anonymous(pages, { address: BASE, fixed: true, ...more }));
  const bytes = pattern(pages * PAGE);
  await space.write(BASE, bytes);
  return bytes;
}

async function see(space: AddressSpace, bytes: Uint8Array, page = 0): Promise<void> {
  const into = new Uint8Array(bytes.length);
  await space.read(at(page), into);
  expectBytes(into, bytes);
}

const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2));

describe("while pages are on their way to the device", () => {
  const begin = async (pages: number) => {
    const rig = await gated();
    const bytes = await filled(rig.space, pages);
    rig.close();
    const moving = migrateToDevice(rig.device, rig.space, { start: BASE, length: pages * PAGE });
    await rig.waiting();
    return { ...rig, bytes: bytes, moving };
  };

  test("an access waits, and finds the page; the page has come back", async () => {
    const { memory, space, bytes, moving, open, device } = await begin(4);
    let seen = false;
    const access = space
      .run(() => space.getUint8(at(1)))
      .then((byte) => {
        seen = true;
        return byte;
      });
    await turn();
    expect(seen).toBe(false);
    expect(thrown(() => space.getUint8(at(1)))).toMatchObject({ code: "EAGAIN" });
    open();
    expect(await moving).toHaveLength(4);
    expect(await access).toBe(bytes[PAGE]);
    await see(space, bytes);
    expect(device.free).toBe(device.pages);
    verify(memory);
  });

  test("munmap goes on at once, and nothing is left of them", async () => {
    const { memory, space, bytes, moving, open, device } = await begin(4);
    await space.munmap(at(1), 2 * PAGE);
    expect(thrown(() => space.getUint8(at(1)))).toMatchObject({ reason: "SEGV_MAPERR" });
    open();
    await moving;
    expect(device.free).toBe(device.pages - 2);
    await see(space, bytes.subarray(0, PAGE));
    await see(space, bytes.subarray(3 * PAGE), 3);
    verify(memory);
  });

  test("dontneed goes on at once, and what is touched then is new", async () => {
    const { memory, space, moving, open, device } = await begin(4);
    await space.madvise(BASE, 4 * PAGE, "dontneed");
    await space.run(() => space.setUint8(at(2), 9));
    open();
    await moving;
    expect(device.free).toBe(device.pages);
    expect(space.getUint8(at(2))).toBe(9);
    expect(await space.run(() => space.getUint8(at(1)))).toBe(0);
    verify(memory);
  });

  test("mprotect goes on at once, and holds afterwards", async () => {
    const { memory, space, bytes, moving, open, device } = await begin(4);
    await space.mprotect(BASE, 4 * PAGE, "r");
    open();
    await moving;
    await see(space, bytes);
    expect(device.free).toBe(device.pages);
    expect(await rejected(space.run(() => space.setUint8(BASE, 1)))).toMatchObject({ reason: "SEGV_ACCERR" });
    verify(memory);
  });

  test("mremap takes them along", async () => {
    const { memory, space, bytes, moving, open, device } = await begin(4);
    const to = at(64);
    await space.mremap(BASE, 4 * PAGE, 4 * PAGE, { mayMove: true, to });
    verify_notAtRest(memory);
    open();
    await moving;
    expect(device.free).toBe(device.pages - 4);
    verify(memory);
    await see(space, bytes, 64);
  });

  test("fork waits for them", async () => {
    const { memory, space, bytes, moving, open } = await begin(4);
    let forked = false;
    const forking = space.fork().then((child) => {
      forked = true;
      return child;
    });
    await turn();
    expect(forked).toBe(false);
    open();
    await moving;
    const child = await forking;
    verify(memory);
    await space.run(() => space.setUint8(BASE, 0xee));
    await see(child, bytes);
    verify(memory);
    await child.exit();
  });

  test("exit goes on at once, and frees everything when they have come", async () => {
    const { memory, space, moving, open, device } = await begin(4);
    await space.exit();
    open();
    await moving;
    expect(device.free).toBe(device.pages);
    verify(memory);
  });

  test("another migration leaves them alone", async () => {
    const { memory, space, bytes, moving, open, device } = await begin(4);
    const other = createDeviceMemory(memory, { bytes: PAGE, copyInSync: () => {}, copyOutSync: () => {} });
    expect(await migrateToDevice(other, space, { start: BASE, length: 4 * PAGE })).toEqual([]);
    expect(await migrateToMemory(device, space, { start: BASE, length: 4 * PAGE })).toBe(0);
    open();
    expect(await moving).toHaveLength(4);
    await other.close();
    await see(space, bytes);
    verify(memory);
  });

  test("truncation of a file takes its private copies, too", async () => {
    const { memory, space, device, close, open, waiting } = await gated();
    const file = await memory.openFile(memoryBacking(4 * PAGE));
    await space.mmap({ length: 4 * PAGE, prot: "rw", share: "private", file, address: BASE, fixed: true });
    for (let k = 0; k < 4; k++) await space.run(() => space.setUint8(at(k), k + 1));
    expect(await migrateToDevice(device, space, { start: BASE, length: PAGE })).toHaveLength(1);
    close();
    const moving = migrateToDevice(device, space, { start: BASE, length: 4 * PAGE });
    await waiting();
    await file.truncate(0);
    open();
    await moving;
    expect(device.free).toBe(device.pages);
    expect(await rejected(space.run(() => space.getUint8(BASE)))).toMatchObject({ name: "BusError" });
    verify(memory);
    await file.close();
  });
});

/** Anything but a page on its way would be wrong. */
function verify_notAtRest(memory: PhysicalMemory): void {
  expect(memory.check()).toMatch(/on (its|their) way at rest/);
}

describe("while pages come back", () => {
  test("unmapping goes on at once; an access by another agent waits with the first", async () => {
    const { memory, space, device, close, open, waiting } = await gated(256, 4 * PAGE);
    const bytes = await filled(space, 8);
    const other = await attachTo(memory, false);
    const theirs = other.space(space.id);
    await migrateToDevice(device, space, { start: BASE, length: 8 * PAGE });
    close();
    const first = space.run(() => space.getUint8(at(1)));
    await waiting();
    const second = theirs.run(() => theirs.getUint8(at(2)));
    await space.munmap(at(3), PAGE);
    open();
    expect(await first).toBe(bytes[PAGE]);
    expect(await second).toBe(bytes[2 * PAGE]);
    // The neighbours in the same four pages came along.
    expect(device.free).toBe(device.pages - 4);
    await see(theirs, bytes.subarray(4 * PAGE), 4);
    verify(memory);
  });

  test("the device can be lost before they are there", async () => {
    const { memory, space, device, close, open, waiting } = await gated();
    await filled(space, 4);
    await migrateToDevice(device, space, { start: BASE, length: 4 * PAGE });
    close();
    const access = rejected(space.run(() => space.getUint8(BASE)));
    await waiting();
    const losing = device.lose();
    open();
    // It had begun to copy, and may have come in time.
    const lost = await losing;
    expect(lost.length).toBeGreaterThan(0);
    const error = await access;
    if (error) expect(error).toMatchObject({ name: "BusError" });
    verify(memory);
  });
});

describe("events", () => {
  test("of a move, and of the access that ends it, name the device's owner", async () => {
    const { space, device } = await gated();
    await filled(space, 4);
    const seen: [number, number, number, number | undefined][] = [];
    const notifier = new MmuNotifier({
      invalidateRangeStart: (_, { event, start, end, owner }) => {
        seen.push([event, (start - BASE) / PAGE, (end - BASE) / PAGE, owner]);
        return true;
      },
    });
    await space.notifiers.register(notifier);
    await migrateToDevice(device, space, { start: BASE, length: 4 * PAGE });
    expect(seen.splice(0)).toEqual([[6, 0, 4, device.owner]]);
    await space.run(() => space.getUint8(at(2)));
    expect(seen.splice(0)).toEqual([[6, 2, 3, device.owner]]);
    // Nothing was there: the first such page to the end of them.
    await space.mmap(anonymous(4, { address: at(8), fixed: true }));
    await space.run(() => space.setUint8(at(9), 1));
    await migrateToDevice(device, space, { start: at(8), length: 4 * PAGE });
    expect(seen.splice(0)).toEqual([
      [6, 8, 12, device.owner],
      [6, 8, 12, device.owner],
    ]);
    const page = await makeDeviceExclusive({
      memory: device.memory,
      space,
      address: at(2),
      owner: device.owner,
    });
    page.release();
    expect(seen.splice(0)).toEqual([[7, 2, 3, device.owner]]);
    await space.run(() => space.getUint8(at(2)));
    expect(seen.splice(0)).toEqual([[1, 2, 3, undefined]]);
    await space.notifiers.unregister(notifier);
  });

  test("of a page that a child has, too: CLEAR there, without an owner", async () => {
    const { memory, space, device } = await gated();
    const bytes = await filled(space, 2);
    const child = await space.fork();
    const recorder = record(child);
    expect(await migrateToDevice(device, space, { start: BASE, length: 2 * PAGE })).toHaveLength(2);
    expect(recorder.take()).toEqual([
      `Clear ${at(0).toString(16)}-${at(1).toString(16)}`,
      `Clear ${at(1).toString(16)}-${at(2).toString(16)}`,
    ]);
    expect(device.free).toBe(device.pages - 2);
    verify(memory);
    await see(child, bytes);
    verify(memory);
    await see(space, bytes);
    await child.notifiers.unregister(recorder.notifier);
    await child.exit();
  });

  test("a callback that throws leaves the pages where they are", async () => {
    const { memory, space, device } = await gated();
    const bytes = await filled(space, 2);
    const notifier = new MmuNotifier({
      invalidateRangeStart: () => {
        throw new Error("no");
      },
    });
    await space.notifiers.register(notifier);
    expect(await rejected(migrateToDevice(device, space, { start: BASE, length: 2 * PAGE }))).toMatchObject({
      code: "ECALLBACK",
    });
    await space.notifiers.unregister(notifier);
    expect(device.free).toBe(device.pages);
    await see(space, bytes);
    verify(memory);
    takeReported();
  });
});

describe("a device that is lost", () => {
  test("says where its pages were; each is a BusError until it is unmapped, also in children and after a move", async () => {
    const { memory, space, device } = await gated();
    const bytes = await filled(space, 8);
    await migrateToDevice(device, space, { start: at(2), length: 3 * PAGE });
    await migrateToDevice(device, space, { start: at(6), length: PAGE });
    const child = await space.fork();
    const lost = await device.lose();
    const ranges = [
      { start: at(2), end: at(5) },
      { start: at(6), end: at(7) },
    ];
    expect(
      lost.filter((range) => range.space === space.id).map(({ start, end }) => ({ start, end })),
    ).toEqual(ranges);
    expect(lost.filter((range) => range.space === child.id)).toHaveLength(2);
    verify(memory);
    for (const page of [2, 3, 4, 6])
      expect(thrown(() => space.getUint8(at(page)))?.code ?? "none").toMatch(/EAGAIN|EIO/);
    const access = await rejected(space.run(() => space.getUint8(at(3))));
    expect(access).toMatchObject({ name: "BusError", code: "EIO", address: at(3) });
    expect(await rejected(child.write(at(6), new Uint8Array(1)))).toMatchObject({ code: "EIO" });
    await see(space, bytes.subarray(0, 2 * PAGE));
    // Poison is copied by fork, moved by mremap, kept by mprotect, and gone with dontneed and munmap.
    const grandchild = await child.fork();
    expect(await rejected(grandchild.read(at(2), new Uint8Array(1)))).toMatchObject({ code: "EIO" });
    await space.mremap(at(2), PAGE, PAGE, { mayMove: true, to: at(32) });
    expect(await rejected(space.read(at(32), new Uint8Array(1)))).toMatchObject({ code: "EIO" });
    await space.mprotect(at(3), PAGE, "r");
    expect(await rejected(space.read(at(3), new Uint8Array(1)))).toMatchObject({ code: "EIO" });
    expect(space.pagemap(at(3), PAGE)[0]).toMatchObject({ present: false, swapped: true, guard: false });
    expect([...space.mincore(at(3), PAGE)]).toEqual([0]);
    await space.madvise(at(4), PAGE, "dontneed");
    expect(await space.run(() => space.getUint8(at(4)))).toBe(0);
    await space.mmap(anonymous(1, { address: at(6), fixed: true }));
    expect(await space.run(() => space.getUint8(at(6)))).toBe(0);
    verify(memory);
    await grandchild.exit();
    await child.exit();
    // It goes on, empty.
    expect(await rejected(migrateToDevice(device, space, { start: BASE, length: PAGE }))).toMatchObject({
      code: "EIO",
    });
    device.recover();
    expect(await migrateToDevice(device, space, { start: BASE, length: PAGE })).toHaveLength(1);
    await see(space, bytes.subarray(0, PAGE));
  });

  test("is found by the access where its agent is gone", async () => {
    const memory = await makeMemory(128, { mayBlock: false, arena: "8 MiB" });
    const space = await memory.createSpace();
    const other = await attachTo(memory, false);
    const theirs = other.space(space.id);
    const bytes = await filled(space, 2);
    const device = createDeviceMemory(other, {
      bytes: PAGE * 2,
      copyInSync: () => {},
      copyOutSync: () => {},
    });
    expect(await migrateToDevice(device, theirs, { start: BASE, length: PAGE })).toHaveLength(1);
    expect(
      await rejected(
        migrateToDevice(
          Object.assign(Object.create(Object.getPrototypeOf(device) as object) as DeviceMemory, device),
          space,
          { start: BASE, length: PAGE },
        ),
      ),
    ).toBeDefined();
    other.detach();
    const error = await rejected(space.read(BASE, new Uint8Array(1)));
    expect(error).toMatchObject({ name: "BusError" });
    expect(error?.message).toContain("the page is lost");
    await see(space, bytes.subarray(PAGE), 1);
    verify(memory);
  });
});

describe("pages that refuse", () => {
  test("because somebody takes them up in a child, after they have gone from the parent", async () => {
    const { memory, space, device } = await gated();
    const bytes = await filled(space, 2);
    const child = await space.fork();
    await child.mmap(anonymous(1, { address: at(40), fixed: true }));
    await child.write(at(40), new Uint8Array(1));
    let go = (): void => {};
    const hold = new Promise<void>((resolve) => (go = resolve));
    const notifier = new MmuNotifier({
      invalidateRangeStart: async (_, range) => {
        if (range.start === at(40)) await hold;
        return true;
      },
    });
    await child.notifiers.register(notifier);
    // Has the child's mmapLock until the callback is done.
    const unmapping = child.munmap(at(40), PAGE);
    const moving = migrateToDevice(device, space, { start: BASE, length: 2 * PAGE });
    await turn();
    expect(space.pagemap(BASE, PAGE)[0]).toMatchObject({ present: false, swapped: true });
    const pin = await child.pin(BASE, PAGE, "r");
    go();
    await unmapping;
    expect((await moving).map(({ address }) => address)).toEqual([at(1)]);
    expectBytes(pin.spans[0]!, bytes.subarray(0, PAGE));
    pin.unpin();
    verify(memory);
    await see(space, bytes);
    await see(child, bytes);
    await child.notifiers.unregister(notifier);
    await child.exit();
  });

  test("to be accepted, to be viewed, to be taken up by a device without room", async () => {
    const { memory, space, device } = await gated();
    const bytes = await filled(space, 70);
    const [span] = space.spans(at(1), PAGE);
    expect(span).toBeDefined();
    const moved = await migrateToDevice(device, space, {
      start: BASE,
      length: 3 * PAGE,
      accept: (address) => address !== at(2),
    });
    expect(moved.map(({ address }) => address)).toEqual([at(0)]);
    expectBytes(span!, bytes.subarray(PAGE, 2 * PAGE));
    memory.poll();
    const rest = await migrateToDevice(device, space, { start: BASE, length: 70 * PAGE });
    expect(rest).toHaveLength(63);
    expect(device.free).toBe(0);
    verify(memory);
    await see(space, bytes);
  });

  test("filled() hears of pages that were there, before anybody gets at them, and may take it all back", async () => {
    const { memory, space, device } = await gated();
    const bytes = await filled(space, 3);
    await space.mmap(anonymous(1, { address: at(3), fixed: true }));
    let heard: readonly { address: number; page: number }[] = [];
    const range = { start: BASE, length: 4 * PAGE };
    const moved = await migrateToDevice(device, space, {
      ...range,
      filled: (pages) => {
        heard = pages;
        expect(thrown(() => space.getUint8(BASE))).toMatchObject({ code: "EAGAIN" });
      },
    });
    expect(heard.map(({ address }) => address)).toEqual([at(0), at(1), at(2)]);
    expect(moved).toHaveLength(4);
    await migrateToMemory(device, space, range);
    const refused = migrateToDevice(device, space, {
      ...range,
      filled: () => {
        throw new Error("table full");
      },
    });
    expect(await rejected(refused)).toMatchObject({ message: "table full" });
    expect(device.free).toBe(device.pages);
    await see(space, bytes);
    verify(memory);
  });
});

describe("advice and reclaim", () => {
  test("leave pages on a device alone, but for dontneed; fork, exit and soft-dirty treat them as pages", async () => {
    const { memory, space, device } = await gated();
    const bytes = await filled(space, 6);
    await space.clearRefs("soft-dirty");
    await migrateToDevice(device, space, { start: BASE, length: 6 * PAGE });
    expect(space.pagemap(BASE, PAGE)[0]).toMatchObject({ swapped: true, softDirty: false });
    for (const advice of ["cold", "pageout", "free", "willneed", "random"] as const)
      await space.madvise(BASE, 6 * PAGE, advice);
    await memory.reclaim(64 * PAGE);
    expect(device.free).toBe(device.pages - 6);
    verify(memory);
    await space.madvise(BASE, PAGE, "dontneed");
    expect(device.free).toBe(device.pages - 5);
    await space.madvise(at(1), PAGE, "wipeonfork");
    const child = await space.fork();
    expect(child.pagemap(at(1), 2 * PAGE).map(({ swapped }) => swapped)).toEqual([false, true]);
    expect(await child.run(() => child.getUint8(at(1)))).toBe(0);
    await see(space, bytes.subarray(PAGE), 1);
    await space.run(() => space.setUint8(at(2), 1));
    expect(space.pagemap(at(2), PAGE)[0]).toMatchObject({ softDirty: true });
    await see(child, bytes.subarray(2 * PAGE), 2);
    verify(memory);
    await child.exit();
    // A guard takes the place of a page.
    await migrateToDevice(device, space, { start: at(3), length: PAGE });
    await space.madvise(at(3), PAGE, "guard-install");
    expect(device.free).toBe(device.pages);
    verify(memory);
  });

  test("pages that are locked in memory move like others", async () => {
    const { memory, space, device } = await gated();
    const bytes = await filled(space, 2);
    await space.mlock(BASE, 2 * PAGE);
    expect(await migrateToDevice(device, space, { start: BASE, length: 2 * PAGE })).toHaveLength(2);
    await see(space, bytes);
    verify(memory);
  });
});

describe("variants", () => {
  test("sync and try do it where copies do not wait", async () => {
    const memory = await makeMemory(128, { arena: "8 MiB" });
    const space = memory.sync.createSpace();
    const store = new Uint8Array(32 * PAGE);
    const device = createDeviceMemory(memory, {
      bytes: store.length,
      copyInSync: (list) => {
        for (const { page, bytes } of list) store.set(bytes ?? new Uint8Array(PAGE), page * PAGE);
      },
      copyOutSync: (list) => {
        for (const { page, bytes } of list) bytes!.set(store.subarray(page * PAGE, (page + 1) * PAGE));
      },
    });
    space.sync.mmap(anonymous(4, { address: BASE, fixed: true }));
    for (let k = 0; k < 4; k++) space.setUint8(at(k), k + 1);
    const range = { start: BASE, length: 4 * PAGE };
    expect(migrateToDevice.sync(device, space, range)).toHaveLength(4);
    verify(memory);
    // The agent may block: an access brings a page back in place.
    expect(space.getUint8(at(1))).toBe(2);
    expect(migrateToMemory.sync(device, space, range)).toBe(3);
    expect(migrateToDevice.try(device, space, range)).toHaveLength(4);
    expect(migrateToMemory.try(device, space, range)).toBe(4);
    const page = makeDeviceExclusive.sync({ memory, space, address: BASE });
    page.release();
    page.release();
    expect(space.getUint8(BASE)).toBe(1);
    makeDeviceExclusive.try({ memory, space, address: BASE }).release();
    verify(memory);
    expect([0, 1, 2, 3].map((k) => space.getUint8(at(k)))).toEqual([1, 2, 3, 4]);
  });

  test("where copies wait, an agent that may block is told so, and nothing is lost", async () => {
    const memory = await makeMemory(128, { arena: "8 MiB" });
    const space = memory.sync.createSpace();
    const store = new Uint8Array(32 * PAGE);
    const device = createDeviceMemory(memory, {
      bytes: store.length,
      copyIn: async (list) => {
        for (const { page, bytes } of list) store.set(bytes ?? new Uint8Array(PAGE), page * PAGE);
      },
      copyOut: async (list) => {
        for (const { page, bytes } of list) bytes!.set(store.subarray(page * PAGE, (page + 1) * PAGE));
      },
    });
    const bytes = await filled(space, 2);
    expect(await migrateToDevice(device, space, { start: BASE, length: 2 * PAGE })).toHaveLength(2);
    expect(["EDEADLK", "EAGAIN"]).toContain(thrown(() => space.getUint8(BASE))?.code);
    await turn();
    await see(space, bytes);
    verify(memory);
  });
});

describe("exclusive pages", () => {
  test("wait with accesses until the driver is ready, and with fork", async () => {
    const { memory, space } = await gated();
    const bytes = await filled(space, 2);
    const page = await makeDeviceExclusive({ memory, space, address: at(1) });
    expectBytes(memory.frame(page.pfn).slice(), bytes.subarray(PAGE));
    expect(thrown(() => space.getUint8(at(1)))).toMatchObject({ code: "EAGAIN" });
    expect(thrown(() => space.try.fork())).toMatchObject({ code: "EAGAIN" });
    const forking = space.fork();
    let seen = false;
    const access = space.run(() => space.getUint8(at(1))).then(() => (seen = true));
    await turn();
    expect(seen).toBe(false);
    memory.frame(page.pfn)[0] = 0x5a; // the device writes
    page.release();
    await access;
    expect(space.getUint8(at(1))).toBe(0x5a);
    const child = await forking;
    expect(await child.run(() => child.getUint8(at(1)))).toBe(0x5a);
    await child.exit();
    verify(memory);
  });

  test("are unmapped, moved and exit as others", async () => {
    const { memory, space, device } = await gated();
    const bytes = await filled(space, 6);
    for (let k = 0; k < 6; k++) (await makeDeviceExclusive({ memory, space, address: at(k) })).release();
    verify(memory);
    expect(await migrateToDevice(device, space, { start: BASE, length: 6 * PAGE })).toEqual([]);
    await space.munmap(BASE, PAGE);
    await space.mremap(at(1), PAGE, PAGE, { mayMove: true, to: at(20) });
    await space.madvise(at(2), PAGE, "dontneed");
    verify(memory);
    await see(space, bytes.subarray(PAGE, 2 * PAGE), 20);
    await see(space, bytes.subarray(3 * PAGE, 4 * PAGE), 3);
    await space.clearRefs("soft-dirty");
    expect(space.pagemap(at(4), PAGE)[0]).toMatchObject({ swapped: true, softDirty: false });
    await space.run(() => space.setUint8(at(4), 1));
    expect(space.pagemap(at(4), PAGE)[0]).toMatchObject({ swapped: false, softDirty: true });
    verify(memory);
  });

  test("are private and anonymous, else it is ENOTSUP", async () => {
    const { memory, space } = await gated();
    const file = await memory.openFile(memoryBacking(PAGE));
    await space.mmap({ length: PAGE, prot: "rw", share: "shared", file, address: BASE, fixed: true });
    expect(await rejected(makeDeviceExclusive({ memory, space, address: BASE }))).toMatchObject({
      code: "ENOTSUP",
    });
    await space.mmap(anonymous(1, { address: BASE, fixed: true, prot: "r" }));
    expect(await rejected(makeDeviceExclusive({ memory, space, address: BASE }))).toMatchObject({
      code: "EACCES",
    });
    expect(await rejected(makeDeviceExclusive({ memory, space, address: at(1) }))).toMatchObject({
      code: "EFAULT",
    });
    expect(await rejected(makeDeviceExclusive({ memory, space, address: BASE + 1 }))).toMatchObject({
      code: "EINVAL",
    });
    await file.close();
    verify(memory);
  });
});

describe("bad input", () => {
  const ops = { copyInSync: () => {}, copyOutSync: () => {} };
  test.each([
    ["bytes that are no number", { ...ops, bytes: "much" }, "EINVAL"],
    ["no bytes", { ...ops, bytes: 0 }, "EINVAL"],
    ["no copyOut", { bytes: PAGE, copyInSync: () => {} }, "EINVAL"],
    ["around that is no power of two", { ...ops, bytes: PAGE, around: 3 * PAGE }, "EINVAL"],
    ["more than there is", { ...ops, bytes: 1024 * PAGE }, "ENOMEM"],
  ])("%s is refused", async (_, options, code) => {
    const memory = await makeMemory(64);
    expect(thrown(() => createDeviceMemory(memory, options))).toMatchObject({ code });
    verify(memory);
  });

  test("deviceMemory that the numbers of pages do not reach is refused", async () => {
    expect(await rejected(makeMemory(64, { deviceMemory: "100 GiB" }))).toMatchObject({ code: "ENOMEM" });
    expect(await rejected(makeMemory(64, { deviceMemory: "x" }))).toMatchObject({ code: "EINVAL" });
  });

  test("ranges that are empty, not aligned or in no mapping are refused", async () => {
    const { space, device } = await gated();
    await filled(space, 2);
    for (const range of [
      { start: BASE + 1, length: PAGE },
      { start: BASE, length: 0 },
      { start: BASE, length: 3 * PAGE },
      { start: at(9), length: PAGE },
      { start: Number.NaN, length: PAGE },
    ]) {
      expect(await rejected(migrateToDevice(device, space, range))).toMatchObject({ code: "EINVAL" });
    }
    await device.close();
    expect(await rejected(migrateToDevice(device, space, { start: BASE, length: PAGE }))).toMatchObject({
      code: "ESRCH",
    });
  });

  test("numbers of devices that have gone are given again", async () => {
    const memory = await makeMemory(64, { mayBlock: false });
    for (let k = 0; k < 5; k++) {
      const one = createDeviceMemory(memory, { ...ops, bytes: 32 * PAGE });
      const two = createDeviceMemory(memory, { ...ops, bytes: 32 * PAGE });
      expect(thrown(() => createDeviceMemory(memory, { ...ops, bytes: PAGE }))).toMatchObject({
        code: "ENOMEM",
      });
      await (k % 2 === 0 ? one : two).close();
      const three = createDeviceMemory(memory, { ...ops, bytes: PAGE });
      await three.close();
      await one.close();
      await two.close();
    }
    verify(memory);
  });
});
