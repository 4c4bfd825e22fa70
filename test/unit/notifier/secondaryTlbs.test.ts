/** archInvalidateSecondaryTlbs: for devices that walk the page tables themselves. linux-semantics.md 1.3, 5.5; R13. */
import { describe, expect, test, vi } from "vitest";
import { isMmError, MmError } from "../../../src/errors.ts";
import { MmuNotifier, type MmuNotifierOps } from "../../../src/notifier/index.ts";
import { SUBS_SECONDARY_TLBS } from "../../../src/notifier/layout.ts";
import { ADDRESS_END } from "../../../src/units.ts";
import {
  anonymous,
  arrayBacking,
  attachTo,
  makeMemory,
  PAGE,
  pattern,
  takeReported,
  thrown,
  verify,
} from "../../lib/mm.ts";
import { notifierWorld, range, type Subscriber, turnOfLoop } from "../../lib/notifiers.ts";

/** A notifier of a secondary TLB that notes what it is told, in pages from `base` on. */
function device(log: unknown[], base = 0, unit = 1): MmuNotifier {
  return new MmuNotifier({
    archInvalidateSecondaryTlbs: (_, _space, start, end) =>
      void log.push([(start - base) / unit, (end - base) / unit]),
  });
}

describe("the op", () => {
  test("R13: together with a start or an end it is EINVAL, and nothing is registered", () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const arch = (): void => {};
    for (const more of [{ invalidateRangeStart: () => true }, { invalidateRangeEnd: () => {} }]) {
      const ops: MmuNotifierOps = { archInvalidateSecondaryTlbs: arch, ...more };
      expect(thrown(() => notifiers.sync.register(new MmuNotifier(ops)))?.code).toBe("EINVAL");
      expect(thrown(() => notifiers.sync.get(ops))?.code).toBe("EINVAL");
    }
    const aging: MmuNotifierOps = {
      archInvalidateSecondaryTlbs: arch,
      testYoung: () => false,
      release: arch,
    };
    notifiers.sync.register(new MmuNotifier(aging));
    expect(notifiers.any).toBe(true);
  });

  test("is called in this agent at once, newest first, with any bounds, and no range need be open", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const log: unknown[] = [];
    for (const name of ["old", "new"]) {
      await notifiers.register(
        new MmuNotifier({
          archInvalidateSecondaryTlbs: (_, _space, start, end) => void log.push([name, start, end]),
        }),
      );
    }
    notifiers.archInvalidateSecondaryTlbs(4096, 8192);
    notifiers.archInvalidateSecondaryTlbs(0, ADDRESS_END);
    expect(log).toEqual([
      ["new", 4096, 8192],
      ["old", 4096, 8192],
      ["new", 0, ADDRESS_END],
      ["old", 0, ADDRESS_END],
    ]);
  });

  test("hears of no start and no end, and they do not hear of it", async () => {
    const world = notifierWorld(1);
    const { notifiers } = world.agents[0]!;
    const log: unknown[] = [];
    const ranges: unknown[] = [];
    await notifiers.register(device(log));
    await notifiers.register(new MmuNotifier({ invalidateRangeStart: () => void ranges.push("start") }));
    await notifiers.invalidate(range(0, 10), () => {});
    notifiers.archInvalidateSecondaryTlbs(0, 10);
    expect([log, ranges]).toEqual([[[0, 10]], ["start"]]);
  });

  test("that throws is reported, and the next is called; operations in it are EDEADLK", async () => {
    const world = notifierWorld(1);
    const { notifiers, errors } = world.agents[0]!;
    const log: unknown[] = [];
    await notifiers.register(device(log));
    await notifiers.register(
      new MmuNotifier({
        archInvalidateSecondaryTlbs: () => {
          notifiers.sync.insert({ invalidate: () => true }, 0, 1);
        },
      }),
    );
    notifiers.archInvalidateSecondaryTlbs(1, 2);
    expect(log).toEqual([[1, 2]]);
    expect(errors.map((e) => [e.code, e.operation])).toEqual([
      ["EDEADLK", "lockdep"], // the agent is in debug mode
      ["ECALLBACK", "archInvalidateSecondaryTlbs"],
    ]);
    expect(isMmError(errors[1]!.cause, "EDEADLK")).toBe(true);
  });

  test("of another agent is asked by a message, which nobody waits for; one that is idle runs it within a turn of its loop", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const log: unknown[] = [];
    await b.notifiers.register(device(log));
    a.notifiers.archInvalidateSecondaryTlbs(2 ** 40, 2 ** 41);
    expect(log).toEqual([]);
    expect(b.agent.wanted).toBe(true);
    await turnOfLoop();
    expect(log).toEqual([[2 ** 40, 2 ** 41]]);
  });

  test("is nobody's once the notifier is unregistered, put, released, or its agent is gone", async () => {
    const world = notifierWorld(2);
    const [a, b] = world.agents as [Subscriber, Subscriber];
    const count = (): number => Atomics.load(world.arena.words, world.subs + SUBS_SECONDARY_TLBS);
    const log: unknown[] = [];
    const one = device(log);
    await a.notifiers.register(one);
    const two = await b.notifiers.get({ archInvalidateSecondaryTlbs: () => void log.push("two") });
    expect(count()).toBe(2);
    await a.notifiers.unregister(one);
    b.notifiers.put(two);
    expect(count()).toBe(0);
    a.notifiers.archInvalidateSecondaryTlbs(0, 1);
    await turnOfLoop();
    await a.notifiers.register(device(log));
    expect(count()).toBe(1);
    await a.notifiers.release();
    expect(count()).toBe(0);
    a.notifiers.archInvalidateSecondaryTlbs(0, 1);
    expect(log).toEqual([]);
  });
});

describe("an address space", () => {
  const shared = { share: "shared" } as const;

  test("tells a secondary TLB where entries are taken away or reduced, after the change, inside start and end", async () => {
    const memory = await makeMemory(64);
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(4));
    for (let k = 0; k < 4; k++) space.setUint8(a + k * PAGE, k + 1);
    const log: unknown[] = [];
    const at = (page: number): number => a + page * PAGE;
    await space.notifiers.register(
      new MmuNotifier({
        invalidateRangeStart: () => void log.push("start"),
        invalidateRangeEnd: () => void log.push("end"),
      }),
    );
    await space.notifiers.register(
      new MmuNotifier({
        archInvalidateSecondaryTlbs: (_, _space, start, end) => {
          const present = space.pagemap(start, end - start).map((page) => page.present);
          log.push([(start - a) / PAGE, (end - a) / PAGE, present]);
        },
      }),
    );
    space.sync.munmap(at(3), PAGE);
    expect(log.splice(0)).toEqual(["start", [3, 4, [false]], "end"]);
    space.sync.madvise(at(2), PAGE, "dontneed");
    expect(log.splice(0)).toEqual(["start", [2, 3, [false]], "end"]);
    space.sync.mprotect(a, 2 * PAGE, "r");
    expect(log.splice(0)).toEqual(["start", [0, 2, [true, true]], "end"]);
    verify(memory);
  });

  test("not where an entry is made or gets more rights, nor where it is only aged", async () => {
    const memory = await makeMemory(64);
    const space = memory.sync.createSpace();
    const file = memory.sync.openFile(arrayBacking(pattern(16 * PAGE)));
    const a = space.sync.mmap(anonymous(2, { prot: "r" }));
    const b = space.sync.mmap(anonymous(16, { prot: "r", file }));
    const log: unknown[] = [];
    await space.notifiers.register(device(log));
    space.getUint8(a);
    space.getUint8(b);
    space.sync.mprotect(a, 2 * PAGE, "rw");
    space.setUint8(a + PAGE, 1);
    expect(log).toEqual([]);
  });

  test("between the old entry and the new one of a copy-on-write: no device sees two frames in an order that no memory could show", async () => {
    const memory = await makeMemory(64);
    const space = memory.sync.createSpace();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)));
    const a = space.sync.mmap(anonymous(1, { file }));
    const before = space.getUint8(a);
    const seen: unknown[] = [];
    await space.notifiers.register(
      new MmuNotifier({
        archInvalidateSecondaryTlbs: () => void seen.push(space.pagemap(a, PAGE)[0]!.present),
      }),
    );
    space.setUint8(a, before + 1);
    expect(seen).toEqual([false]);
    expect(space.getUint8(a)).toBe(before + 1);
  });

  test("reclaim and write-back tell it before the frame is freed and before the bytes are written", async () => {
    const memory = await makeMemory(64);
    const space = memory.sync.createSpace();
    const backing = arrayBacking(pattern(16 * PAGE));
    const file = memory.sync.openFile(backing, { writable: true });
    const a = space.sync.mmap(anonymous(16, { ...shared, file }));
    space.setUint8(a + PAGE, 99);
    await Promise.resolve();
    const log: unknown[] = [];
    await space.notifiers.register(
      new MmuNotifier({
        archInvalidateSecondaryTlbs: (_, _space, start, end) =>
          void log.push([
            (start - a) / PAGE,
            (end - a) / PAGE,
            backing.writes.length,
            memory.stats().evictions,
          ]),
      }),
    );
    memory.sync.sync(file);
    expect(log.splice(0)).toEqual([[1, 2, 0, 0]]);
    expect(backing.writes).toHaveLength(1);
    expect(memory.sync.reclaim(16 * PAGE)).toBe(16 * PAGE);
    expect(log).toEqual([[0, 16, 1, 0]]);
  });

  test("waits for the secondary TLB of another agent, which is woken if it is idle, before it frees", async () => {
    const memory = await makeMemory(64);
    const other = await attachTo(memory);
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(2));
    space.setUint8(a, 1);
    const { free } = memory.stats().frames;
    const log: unknown[] = [];
    const there = other.space(space.id);
    await there.notifiers.register(
      new MmuNotifier({
        archInvalidateSecondaryTlbs: (_, _space, start, end) =>
          void log.push([(start - a) / PAGE, (end - a) / PAGE, memory.stats().frames.free === free]),
      }),
    );
    await space.munmap(a, 2 * PAGE);
    expect(log).toEqual([[0, 2, true]]);
    expect(memory.stats().frames.free).toBe(free + 1);
    verify(memory);
  });

  test("that may not wait for it is EAGAIN, and the entries are as they were", async () => {
    const memory = await makeMemory(64);
    const other = await attachTo(memory);
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(1));
    space.setUint8(a, 7);
    const log: unknown[] = [];
    await other.space(space.id).notifiers.register(device(log, a, PAGE));
    expect(thrown(() => space.try.madvise(a, PAGE, "dontneed"))?.code).toBe("EAGAIN");
    expect(space.getUint8(a)).toBe(7);
    await turnOfLoop();
    expect(log).toEqual([[0, 1]]);
    verify(memory);
  });

  test("marks that run over flush everything: a whole-space range", async () => {
    const memory = await makeMemory(64);
    const other = await attachTo(memory);
    const space = memory.sync.createSpace();
    const log: unknown[] = [];
    await other.space(space.id).notifiers.register(device(log));
    const safepoint = vi.spyOn(other.agent, "safepoint").mockImplementation(() => {});
    for (let n = 0; n < 40; n++) memory.agent.mark(other.agent.slot, space.slot, n + 1, n + 2);
    safepoint.mockRestore();
    other.agent.safepoint();
    expect(log).toEqual([[0, ADDRESS_END]]);
  });

  test("a throw in another agent is that agent's error; the operation goes on", async () => {
    const memory = await makeMemory(64);
    const other = await attachTo(memory);
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(1, { populate: true }));
    await other.space(space.id).notifiers.register(
      new MmuNotifier({
        archInvalidateSecondaryTlbs: () => {
          throw new MmError("EIO", "device", "gone");
        },
      }),
    );
    await space.munmap(a, PAGE);
    expect(takeReported().map((e) => [e.code, e.operation])).toEqual([
      ["ECALLBACK", "archInvalidateSecondaryTlbs"],
    ]);
  });
});
