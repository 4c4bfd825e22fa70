/** Which operation raises which event over which range: linux-semantics.md, section 5. */
import { describe, expect, test } from "vitest";
import { ADDRESS_END } from "../../../src/units.ts";
import { MmuNotifier, type MmuNotifierRange, MmuNotifierEvent } from "../../../src/notifier/index.ts";
import {
  anonymous,
  arrayBacking,
  attachTo,
  eventOf,
  makeMemory,
  makeRig,
  PAGE,
  pattern,
  record,
  sharedBacking,
  takeReported,
  thrown,
  verify,
} from "../../lib/mm.ts";

const at = (page: number): number => page * PAGE;
const BASE = 0x100000;
const fixed = (page: number, pages: number, more = {}) =>
  anonymous(pages, { address: BASE + at(page), fixed: true, ...more });
const event = (name: keyof typeof MmuNotifierEvent, page: number, end: number): string =>
  eventOf(name, BASE + at(page), BASE + at(end));

async function recordedRig(frames = 64, options = {}) {
  const rig = await makeRig(frames, options);
  return { ...rig, recorder: record(rig.raw) };
}

describe("no event", () => {
  test("for mmap of free addresses, faults, permission upgrades by faults, populate, reads and writes", async () => {
    const { memory, space, recorder } = await recordedRig();
    const file = memory.sync.openFile(arrayBacking(pattern(at(4))), { writable: true });
    space.sync.mmap(fixed(0, 4));
    space.sync.mmap(fixed(4, 4, { file, share: "shared" }));
    space.sync.mmap(fixed(8, 4, { file }));
    for (let k = 0; k < 4; k++) space.setUint8(BASE + at(k), 1); // frames of zeros
    for (let k = 4; k < 8; k++) space.getUint8(BASE + at(k));
    for (let k = 4; k < 8; k++) space.setUint8(BASE + at(k), 1); // shared: becomes writable
    space.sync.populate(BASE, at(8), "rw");
    space.sync.write(BASE, new Uint8Array(at(8)));
    expect(recorder.take()).toEqual([]);
  });

  test("for munmap of nothing, mprotect to what is there, msync of clean pages", async () => {
    const { space, recorder } = await recordedRig();
    space.sync.munmap(BASE, at(4));
    space.sync.mmap(fixed(0, 1));
    space.sync.mprotect(BASE, PAGE, "rw");
    space.sync.msync(BASE, PAGE);
    expect(thrown(() => space.sync.madvise(BASE + at(4), PAGE, "dontneed"))?.code).toBe("ENOMEM");
    expect(recorder.take()).toEqual([]);
  });

  test("for the first write to a private file page that nobody has read", async () => {
    const { memory, space, recorder } = await recordedRig(64, { faultAround: PAGE });
    const file = memory.sync.openFile(arrayBacking(pattern(at(2))));
    space.sync.mmap(fixed(0, 2, { file }));
    space.setUint8(BASE, 1);
    space.sync.mprotect(BASE, PAGE, "r");
    recorder.take();
    space.sync.mprotect(BASE, PAGE, "rw");
    recorder.take();
    space.setUint8(BASE, 2); // its own already
    expect(recorder.take()).toEqual([]);
  });
});

describe("Unmap", () => {
  test("munmap: one range, as requested, over all mappings and holes", async () => {
    const { space, recorder } = await recordedRig();
    space.sync.mmap(fixed(1, 2));
    space.sync.mmap(fixed(5, 3, { prot: "r" }));
    space.setUint8(BASE + at(1), 1);
    space.sync.munmap(BASE, at(6));
    expect(recorder.take()).toEqual([event("Unmap", 0, 6)]);
    space.sync.munmap(BASE + at(7), 1);
    expect(recorder.take()).toEqual([event("Unmap", 7, 8)]);
  });

  test("mmap over what is mapped: the range of the new mapping", async () => {
    const { space, recorder } = await recordedRig();
    space.sync.mmap(fixed(2, 1));
    space.sync.mmap(fixed(0, 4));
    expect(recorder.take()).toEqual([event("Unmap", 0, 4)]);
  });

  test("also where nothing is populated", async () => {
    const { space, recorder } = await recordedRig();
    space.sync.mmap(fixed(0, 4, { prot: "none" }));
    space.sync.munmap(BASE + at(1), at(1));
    expect(recorder.take()).toEqual([event("Unmap", 1, 2)]);
  });
});

describe("Clear", () => {
  test("dontneed: one range per mapping, clipped to it; a hole has none", async () => {
    const { space, recorder } = await recordedRig();
    space.sync.mmap(fixed(0, 3));
    space.sync.mmap(fixed(3, 1, { prot: "r" }));
    space.sync.mmap(fixed(5, 3));
    expect(thrown(() => space.sync.madvise(BASE + at(1), at(5), "dontneed"))?.code).toBe("ENOMEM");
    expect(recorder.take()).toEqual([event("Clear", 1, 3), event("Clear", 3, 4), event("Clear", 5, 6)]);
  });

  test("copy-on-write of the zero page and of a private file page: one page", async () => {
    const { memory, space, recorder } = await recordedRig();
    const file = memory.sync.openFile(arrayBacking(pattern(at(2))));
    space.sync.mmap(fixed(0, 2));
    space.sync.mmap(fixed(2, 2, { file }));
    for (let k = 0; k < 4; k++) space.getUint8(BASE + at(k));
    expect(recorder.take()).toEqual([]);
    space.setUint8(BASE + at(1) + 5, 1);
    space.setUint8(BASE + at(3) + 5, 1);
    expect(recorder.take()).toEqual([event("Clear", 1, 2), event("Clear", 3, 4)]);
    space.setUint8(BASE + at(1), 1);
    expect(recorder.take()).toEqual([]);
  });

  test("reclaim: one range for each stretch and mapping, private ones included", async () => {
    const { memory, raw, recorder } = await recordedRig(96);
    const file = memory.sync.openFile(arrayBacking(pattern(at(16))), { writable: true });
    raw.sync.mmap(fixed(0, 16, { file, share: "shared" }));
    raw.sync.mmap(fixed(32, 4, { file, offset: at(8) }));
    for (let k = 0; k < 16; k++) raw.getUint8(BASE + at(k));
    raw.getUint8(BASE + at(32));
    await Promise.resolve();
    expect(memory.sync.reclaim(at(16))).toBe(at(16));
    expect(recorder.take().toSorted()).toEqual([event("Clear", 0, 16), event("Clear", 32, 36)].toSorted());
    // Read by the file alone nobody maps it, and nobody hears.
    memory.sync.read(file, 0, new Uint8Array(1));
    expect(memory.sync.reclaim(at(16))).toBe(at(16));
    expect(recorder.take()).toEqual([]);
    verify(memory);
  });
});

describe("ProtectionVma", () => {
  test("mprotect: one range per mapping that changes, clipped, in both directions", async () => {
    const { space, recorder } = await recordedRig();
    space.sync.mmap(fixed(0, 2));
    space.sync.mmap(fixed(2, 1, { prot: "r" }));
    space.sync.mmap(fixed(3, 2));
    space.getUint8(BASE + at(4));
    space.sync.mprotect(BASE + at(1), at(3), "r");
    expect(recorder.take()).toEqual([event("ProtectionVma", 1, 2), event("ProtectionVma", 3, 4)]);
    space.sync.mprotect(BASE + at(1), at(1), "rw");
    expect(recorder.take()).toEqual([event("ProtectionVma", 1, 2)]);
    space.sync.mprotect(BASE, at(2), "none");
    expect(recorder.take()).toEqual([event("ProtectionVma", 0, 2)]);
  });

  test("what was done before a hole has been told", async () => {
    const { space, recorder } = await recordedRig();
    space.sync.mmap(fixed(0, 1));
    space.getUint8(BASE);
    expect(thrown(() => space.sync.mprotect(BASE, at(2), "r"))?.code).toBe("ENOMEM");
    expect(recorder.take()).toEqual([event("ProtectionVma", 0, 1)]);
  });

  test("nobody is told where there are no page tables: before the first fault, and once everything around was unmapped", async () => {
    const { space, recorder } = await recordedRig();
    const protect = (prot: "r" | "rw"): string[] => {
      space.sync.mprotect(BASE, at(4), prot);
      return recorder.take().filter((text) => text.startsWith("ProtectionVma"));
    };
    for (let round = 0; round < 2; round++) {
      space.sync.mmap(fixed(0, 4));
      expect(protect("r")).toEqual([]);
      space.getUint8(BASE + at(2));
      expect(protect("rw")).toEqual([event("ProtectionVma", 0, 4)]);
      space.sync.munmap(BASE, at(4));
    }
  });
});

describe("ProtectionPage", () => {
  test("write-back of pages that are mapped: each stretch of dirty pages, in each shared mapping", async () => {
    const { memory, space, recorder } = await recordedRig();
    const file = memory.sync.openFile(arrayBacking(pattern(at(8))), { writable: true });
    space.sync.mmap(fixed(0, 8, { file, share: "shared" }));
    space.sync.mmap(fixed(16, 3, { file, share: "shared", prot: "r", offset: at(2) }));
    space.sync.mmap(fixed(32, 8, { file }));
    for (const k of [1, 2, 3, 6]) space.setUint8(BASE + at(k), 1);
    space.getUint8(BASE + at(33));
    memory.sync.sync(file);
    expect(recorder.take().toSorted()).toEqual(
      [
        event("ProtectionPage", 1, 4),
        event("ProtectionPage", 16, 18),
        event("ProtectionPage", 6, 7),
      ].toSorted(),
    );
    memory.sync.sync(file);
    expect(recorder.take()).toEqual([]);
  });

  test("write-back of pages that nobody maps is silent", async () => {
    const { memory, space, recorder } = await recordedRig();
    const backing = arrayBacking(pattern(at(2)));
    const file = memory.sync.openFile(backing, { writable: true });
    space.sync.mmap(fixed(0, 2, { file, share: "shared" }));
    memory.sync.write(file, 0, Uint8Array.of(1));
    memory.sync.sync(file);
    expect(backing.writes).toHaveLength(1);
    expect(recorder.take()).toEqual([]);
  });
});

describe("the end of a space", () => {
  test("intervals hear Release, then Unmap over everything; list notifiers hear release once", async () => {
    const { raw, recorder } = await recordedRig();
    const heard: string[] = [];
    const ops = {
      invalidate: (interval: { setSeq(seq: number): void }, range: MmuNotifierRange, seq: number) => {
        interval.setSeq(seq);
        heard.push(eventOf(Object.keys(MmuNotifierEvent)[range.event] as never, range.start, range.end));
        return true;
      },
    };
    const interval = raw.notifiers.sync.insert(ops, BASE, PAGE);
    raw.sync.mmap(fixed(0, 2));
    raw.setUint8(BASE, 1);
    raw.sync.exit();
    expect(recorder.take()).toEqual(["release"]);
    expect(heard).toEqual([eventOf("Release", 0, ADDRESS_END), eventOf("Unmap", 0, ADDRESS_END)]);
    interval.sync.remove();
  });

  test("without a mapping there is no Unmap", async () => {
    const { memory } = await recordedRig();
    const empty = memory.sync.createSpace();
    const heard: number[] = [];
    const interval = empty.notifiers.sync.insert(
      {
        invalidate: (i, range, seq) => {
          i.setSeq(seq);
          heard.push(range.event);
        },
      },
      BASE,
      PAGE,
    );
    empty.sync.exit();
    expect(heard).toEqual([MmuNotifierEvent.Release]);
    interval.sync.remove();
  });
});

test("stats counts the events of all agents by name", async () => {
  const { memory, space } = await makeRig();
  space.sync.mmap(fixed(0, 4));
  space.getUint8(BASE);
  space.setUint8(BASE, 1);
  space.sync.madvise(BASE, PAGE, "dontneed");
  space.sync.mprotect(BASE, at(2), "r");
  space.sync.munmap(BASE, at(1));
  space.sync.munmap(BASE, at(4));
  expect(memory.stats().events).toEqual({
    UNMAP: 2,
    CLEAR: 2,
    PROTECTION_VMA: 1,
    PROTECTION_PAGE: 0,
    SOFT_DIRTY: 0,
    RELEASE: 0,
    MIGRATE: 0,
    EXCLUSIVE: 0,
  });
});

describe("callbacks", () => {
  test("run while the old state is still there, and the end when the new one is", async () => {
    const { memory, raw } = await makeRig();
    const seen: string[] = [];
    const present = (): string => [...raw.mincore(BASE, at(2))].join("");
    record(raw, {
      invalidateRangeStart: () => {
        seen.push(`start ${present()}`);
        return true;
      },
      invalidateRangeEnd: () => void seen.push(`end ${present()}`),
    });
    raw.sync.mmap(fixed(0, 2));
    for (const k of [0, 1]) raw.setUint8(BASE + at(k), 1);
    raw.sync.madvise(BASE, PAGE, "dontneed");
    expect(seen).toEqual(["start 11", "end 01"]);
    verify(memory);
  });

  test("that throw leave everything as it was: ECALLBACK with the cause, no event without its end", async () => {
    const { space, raw } = await makeRig();
    const boom = new Error("boom");
    let throwing = false;
    const recorder = record(raw, {
      invalidateRangeStart: () => {
        if (throwing) throw boom;
        return true;
      },
    });
    space.sync.mmap(fixed(0, 4));
    for (let k = 0; k < 3; k++) space.setUint8(BASE + at(k), k + 1);
    space.getUint8(BASE + at(3));
    const vmas = space.vmas();
    throwing = true;
    const operations: (() => void)[] = [
      () => space.sync.munmap(BASE + at(1), at(1)),
      () => space.sync.mprotect(BASE + at(1), at(1), "r"),
      () => space.sync.madvise(BASE, at(4), "dontneed"),
      () => void space.sync.mmap(fixed(1, 2)),
      () => space.setUint8(BASE + at(3), 1),
    ];
    for (const operation of operations) {
      expect(thrown(operation)).toMatchObject({ code: "ECALLBACK", cause: boom });
      expect(recorder.open).toBe(0);
      expect(space.vmas()).toEqual(vmas);
      expect([0, 1, 2, 3].map((k) => space.getUint8(BASE + at(k)))).toEqual([1, 2, 3, 0]);
    }
    throwing = false;
    for (const operation of operations.toReversed()) expect(thrown(operation)).toBeUndefined();
  });

  test("that answer later: the operation goes on then, or leaves everything as it was", async () => {
    const { memory, space, raw } = await makeRig();
    let failing = true;
    const recorder = record(raw);
    raw.notifiers.sync.register(
      new MmuNotifier({
        invalidateRangeStart: function* () {
          yield { kind: "point", what: "a test" } as const;
          if (failing) throw new Error("boom");
          return true;
        },
      }),
    );
    space.sync.mmap(fixed(0, 6));
    for (let k = 0; k < 6; k++) raw.sync.populate(BASE + at(k), PAGE, "rw");
    const operations: (() => void)[] = [
      () => space.sync.mprotect(BASE + at(1), at(1), "r"),
      () => space.sync.munmap(BASE + at(3), at(1)),
      () => void space.sync.mmap(fixed(4, 1, { prot: "r" })),
      () => space.sync.madvise(BASE, PAGE, "dontneed"),
    ];
    const state = () => ({
      vmas: space.vmas(),
      arena: memory.stats().arenaBytes,
      frames: memory.stats().frames.free,
    });
    for (const operation of operations) {
      const before = state();
      failing = true;
      expect(thrown(operation)?.code).toBe("ECALLBACK");
      expect([state(), recorder.open]).toEqual([before, 0]);
      failing = false;
      operation();
      expect(recorder.open).toBe(0);
    }
    expect(
      space.vmas().map(({ start, end, prot }) => [(start - BASE) / PAGE, (end - BASE) / PAGE, prot]),
    ).toEqual([
      [0, 1, "rw-"],
      [1, 2, "r--"],
      [2, 3, "rw-"],
      [4, 5, "r--"],
      [5, 6, "rw-"],
    ]);
    verify(memory);
  });

  test("that throw in reclaim and exit are reported, and the change proceeds", async () => {
    const { memory, raw } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(at(2))));
    const space = memory.sync.createSpace();
    const boom = new Error("boom");
    record(space, {
      invalidateRangeStart: () => {
        throw boom;
      },
      release: () => {
        throw boom;
      },
    });
    const a = space.sync.mmap(anonymous(2, { prot: "r", file }));
    space.getUint8(a);
    await Promise.resolve();
    expect(memory.sync.reclaim(at(2))).toBe(at(2));
    expect(takeReported()).toMatchObject([{ code: "ECALLBACK", cause: boom }]);
    space.sync.exit();
    expect(takeReported()).toMatchObject([{ code: "ECALLBACK", cause: boom }]);
    expect(raw.live).toBe(true);
    verify(memory);
  });

  test("must not start operations or fault: EDEADLK; looking is allowed", async () => {
    const { memory, raw } = await makeRig();
    const codes: (string | undefined)[] = [];
    const recorder = record(raw, {
      invalidateRangeStart: () => {
        codes.push(
          ...[
            () => raw.sync.munmap(BASE, PAGE),
            () => raw.try.munmap(BASE, PAGE),
            () => raw.getUint8(BASE + at(1)),
            () => memory.poll(),
            () => memory.sync.reclaim(1),
            () => void raw.vmas(),
            () => void raw.pagemap(BASE, PAGE),
          ].map((fn) => thrown(fn)?.code),
        );
        return true;
      },
    });
    raw.sync.mmap(fixed(0, 2));
    raw.sync.munmap(BASE, PAGE);
    expect(codes).toEqual(["EDEADLK", "EDEADLK", "EDEADLK", "EDEADLK", "EDEADLK", undefined, undefined]);
    expect(recorder.open).toBe(0);
    verify(memory);
  });

  test("of another agent run there, before the change", async () => {
    const memory = await makeMemory();
    const other = await attachTo(memory, false);
    const space = memory.sync.createSpace();
    const there = other.space(space.id);
    const recorder = record(there);
    space.sync.mmap(fixed(0, 2));
    await space.munmap(BASE, PAGE);
    expect(recorder.events).toEqual([event("Unmap", 0, 1)]);
    other.poll(); // ends are posted
    expect(recorder.open).toBe(0);
    await there.notifiers.unregister(recorder.notifier);
    verify(memory);
  });

  test("of another agent are EAGAIN for a try, and nothing has changed", async () => {
    const memory = await makeMemory();
    const other = await attachTo(memory, false);
    const file = memory.sync.openFile(sharedBacking(pattern(PAGE)));
    const space = memory.sync.createSpace();
    const there = other.space(space.id);
    const recorder = record(there);
    space.sync.mmap(fixed(0, 2));
    space.sync.mmap(fixed(2, 1, { file }));
    space.setUint8(BASE, 5);
    space.getUint8(BASE + at(1));
    space.getUint8(BASE + at(2));
    await Promise.resolve();
    for (const operation of [
      () => space.try.munmap(BASE, at(2)),
      () => space.try.mprotect(BASE, at(2), "r"),
      () => space.try.madvise(BASE, at(2), "dontneed"),
      () => void space.try.mmap(fixed(0, 2)),
      () => space.try.write(BASE + at(1), Uint8Array.of(1)),
    ]) {
      expect(thrown(operation)?.code).toBe("EAGAIN");
      verify(memory);
    }
    expect([space.getUint8(BASE), space.getUint8(BASE + at(1))]).toEqual([5, 0]);
    expect(recorder.events).toEqual([]);
    await there.notifiers.unregister(recorder.notifier);
  });
});
