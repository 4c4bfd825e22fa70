/** fork, beyond what programs of one agent show: lifetimes, other agents, pinned pages, memory that runs out, notifiers. */
import { describe, expect, test } from "vitest";
import { type AddressSpace, memoryBacking, type PhysicalMemory } from "../../../src/mm/index.ts";
import { MmuNotifier } from "../../../src/notifier/index.ts";
import {
  anonymous,
  attachTo,
  eventOf,
  makeMemory,
  makeRig,
  PAGE,
  pattern,
  record,
  rejected,
  sharedBacking,
  thrown,
  verify,
} from "../../lib/mm.ts";

const at = (page: number): number => page * PAGE;

/** What a space that exits leaves: nothing. */
const used = (memory: PhysicalMemory): number[] => {
  const { frames, arenaBytes } = memory.stats();
  return [frames.used, arenaBytes];
};

const permutations = <T>(list: readonly T[]): T[][] =>
  list.length === 0
    ? [[]]
    : list.flatMap((first, k) =>
        permutations([...list.slice(0, k), ...list.slice(k + 1)]).map((rest) => [first, ...rest]),
      );

describe("the pages that two spaces share", () => {
  test("are free again in whatever order parent, children and grandchild exit", async () => {
    for (const order of permutations([0, 1, 2, 3])) {
      const { memory } = await makeRig(128);
      const file = memory.sync.openFile(sharedBacking(pattern(at(8))), { writable: true });
      memory.sync.read(file, 0, new Uint8Array(at(8))); // the table of its pages stays
      await memory.reclaim(at(128));
      const before = used(memory);
      const parent = memory.sync.createSpace();
      const areas = [
        parent.sync.mmap(anonymous(4)),
        parent.sync.mmap(anonymous(4, { file })),
        parent.sync.mmap(anonymous(4, { share: "shared", file, offset: at(4) })),
        parent.sync.mmap(anonymous(4, { share: "shared" })),
      ];
      const [own] = areas as [number];
      for (const a of areas) parent.setUint8(a, 1);
      expect(parent.getUint8(own + at(1))).toBe(0); // the zero page
      parent.sync.madvise(own + at(3), PAGE, "guard-install");
      const child = parent.sync.fork();
      for (const a of areas) child.setUint8(a + 1, 2);
      const grandchild = child.sync.fork();
      const second = parent.sync.fork();
      verify(memory);
      const family = [parent, child, grandchild, second];
      family.forEach((space, k) => space.setUint8(own + 2, 10 + k));
      for (const [n, k] of order.entries()) {
        family[k]!.sync.exit();
        verify(memory);
        for (const left of order.slice(n + 1)) {
          const space = family[left]!;
          expect([0, 1, 2].map((b) => space.getUint8(own + b))).toEqual([
            1,
            left === 1 || left === 2 ? 2 : 0,
            10 + left,
          ]);
          expect(thrown(() => space.getUint8(own + at(3)))?.reason).toBe("SEGV_MAPERR");
        }
      }
      await memory.reclaim(at(128)); // what is left is the file's
      verify(memory);
      expect(used(memory)).toEqual(before);
    }
  });

  test("belong to the last one, which writes them without a copy", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(3));
    for (let k = 0; k < 3; k++) raw.setUint8(a + at(k), 1);
    const child = raw.sync.fork();
    raw.setUint8(a, 2); // a copy for the parent; the other two stay common
    const { cow } = memory.stats().faults;
    expect(cow).toBe(1);
    child.setUint8(a, 3);
    raw.sync.exit();
    for (let k = 1; k < 3; k++) child.setUint8(a + at(k), 4);
    expect(memory.stats().faults.cow).toBe(cow);
    verify(memory);
  });

  test("are those of one generation after the other, each from its own moment", async () => {
    const { memory, raw } = await makeRig(128);
    const a = raw.sync.mmap(anonymous(1));
    const line: AddressSpace[] = [raw];
    for (let generation = 1; generation <= 20; generation++) {
      const last = line.at(-1)!;
      last.setUint32(a, generation);
      line.push(last.sync.fork());
    }
    verify(memory);
    expect(line.map((space) => space.getUint32(a))).toEqual([...line.keys()].map((k) => Math.min(k + 1, 20)));
    for (const space of line.splice(0).toReversed()) space.sync.exit();
    expect(memory.stats().frames.anon).toBe(0);
  });
});

describe("another agent", () => {
  test("uses the child as its maker does, and forks it", async () => {
    const { memory, raw } = await makeRig(64, { mayBlock: false });
    const other = await attachTo(memory, false);
    const a = raw.try.mmap(anonymous(2));
    raw.setUint32(a, 1);
    other.space(raw.id).setUint32(a + at(1), 2);
    const child = await raw.fork();
    raw.setUint32(a, 3);
    const there = other.space(child.id);
    expect([there.getUint32(a), there.getUint32(a + at(1))]).toEqual([1, 2]);
    there.setUint32(a + at(1), 4);
    await Promise.resolve(); // its turn ends
    expect([child.getUint32(a), child.getUint32(a + at(1))]).toEqual([1, 4]);
    expect([raw.getUint32(a), raw.getUint32(a + at(1))]).toEqual([3, 2]);
    const grandchild = await there.fork();
    await child.exit();
    const seen = memory.space(grandchild.id);
    expect([seen.getUint32(a), seen.getUint32(a + at(1))]).toEqual([1, 4]);
    verify(memory);
    verify(other);
  });

  test("has the parent's page writable in its TLB, and stores after the fork into the parent alone", async () => {
    const { memory, raw } = await makeRig(64, { mayBlock: false });
    const other = await attachTo(memory, false);
    const a = raw.try.mmap(anonymous(1));
    const there = other.space(raw.id);
    for (let round = 1; round <= 5; round++) {
      there.setUint32(a, round);
      await Promise.resolve(); // its turn ends: it need not acknowledge, but must have forgotten when the next begins
      const child = await raw.fork();
      there.setUint32(a, 100 + round);
      expect([child.getUint32(a), raw.getUint32(a)]).toEqual([round, 100 + round]);
      await child.exit();
    }
    verify(memory);
  });
});

describe("a page that is pinned", () => {
  test("is copied at once: what is written through the span later the child does not see", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(3));
    for (let k = 0; k < 3; k++) raw.setUint8(a + at(k), k + 1);
    const { used: before } = memory.stats().frames;
    const [span] = raw.spans(a + at(1), PAGE, "rw");
    span![1] = 7;
    const child = raw.try.fork();
    expect(memory.stats().frames.used).toBe(before + 1);
    span![1] = 8;
    expect(child.getUint8(a + at(1) + 1)).toBe(7);
    expect(raw.getUint8(a + at(1) + 1)).toBe(8);
    // It is still the parent's own: a store is seen through the span.
    raw.setUint8(a + at(1) + 2, 9);
    expect(span![2]).toBe(9);
    child.setUint8(a + at(1) + 1, 10);
    expect(span![1]).toBe(8);
    memory.poll();
    verify(memory);
    expect(raw.getUint8(a + at(1) + 1)).toBe(8);
  });

  test("by a span for reading keeps showing the page of that moment", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(1));
    raw.setUint8(a, 1);
    const [span] = raw.spans(a, PAGE, "r");
    const child = raw.try.fork();
    child.setUint8(a, 2);
    expect([span![0], raw.getUint8(a), child.getUint8(a)]).toEqual([1, 1, 2]);
    memory.poll();
    verify(memory);
  });

  test("and shared stays shared", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(1, { share: "shared" }));
    const [span] = raw.spans(a, PAGE, "rw");
    const child = raw.try.fork();
    span![0] = 1;
    expect(child.getUint8(a)).toBe(1);
    memory.poll();
    verify(memory);
  });
});

/** What may not change when a fork fails. */
function snapshot(space: AddressSpace, address: number, pages: number): unknown {
  return [
    space.vmas(),
    Array.from({ length: pages }, (_, k) => space.getUint8(address + at(k))),
    space.pagemap(address, at(pages)).map(({ present, exclusive, zero }) => [present, exclusive, zero]),
  ];
}

describe("without memory", () => {
  test("for the copy of a pinned page it is ENOMEM, and the parent is as it was", async () => {
    const { memory, raw } = await makeRig(64);
    const a = raw.sync.mmap(anonymous(8));
    for (let k = 0; k < 8; k++) raw.setUint8(a + at(k), k + 1);
    raw.sync.mprotect(a + at(6), PAGE, "r");
    const filler = memory.sync.createSpace();
    const f = filler.sync.mmap(anonymous(64));
    let filled = 0;
    while (!thrown(() => filler.setUint8(f + at(filled), 1))) filled++;
    expect(memory.stats().frames.free).toBe(0);
    const before = snapshot(raw, a, 8);
    const { arenaBytes } = memory.stats();
    const [span] = raw.spans(a + at(2), PAGE, "rw");
    expect(thrown(() => raw.sync.fork())?.code).toBe("ENOMEM");
    span![1] = 5;
    memory.poll();
    verify(memory);
    expect(snapshot(raw, a, 8)).toEqual(before);
    expect(memory.stats().arenaBytes).toBe(arenaBytes);
    // Its pages are still its own: no store needs a frame.
    for (let k = 0; k < 6; k++) raw.setUint8(a + at(k), k + 11);
    filler.sync.exit();
    const child = raw.sync.fork();
    expect(child.getUint8(a + at(2) + 1)).toBe(5);
    verify(memory);
  });

  test("for records or tables it is ENOMEM wherever that happens, and the parent and its children are as they were", async () => {
    const { memory, raw } = await makeRig(256, { arena: "1 MiB" });
    const file = memory.sync.openFile(memoryBacking(at(4)));
    const a = raw.sync.mmap(anonymous(8));
    for (let k = 0; k < 8; k++) raw.setUint8(a + at(k), k + 1);
    // Tables far apart, and many mappings: the arena may run out at each of them.
    for (let k = 1; k <= 12; k++) {
      const address = k * 2 ** 32;
      raw.sync.mmap(anonymous(2, { address, fixed: true, ...(k % 3 === 0 ? { file } : {}) }));
      raw.setUint8(address, k);
    }
    // What agents keep for themselves is taken already.
    raw.sync.fork().sync.exit();
    const start = used(memory);
    const wanted = snapshot(raw, a, 8) as unknown[];
    for (let words = 1; words <= 4096; words *= 2) {
      const children: AddressSpace[] = [];
      const held: number[] = [];
      // Leaves a little less room each round.
      for (let k = 0; k < words; k += 64) held.push(memory.mm.alloc(64, "the test"));
      let error;
      while (!(error = thrown(() => void children.push(raw.sync.fork()))))
        expect(children.length).toBeLessThan(200);
      expect(error.code).toBe("ENOMEM");
      verify(memory);
      expect((snapshot(raw, a, 8) as unknown[]).slice(0, 2)).toEqual(wanted.slice(0, 2));
      for (const block of held) memory.mm.free(block, 64);
      // The last makes room for what it takes to look at the others.
      children.pop()!.sync.exit();
      for (const child of children.toReversed()) {
        expect([child.getUint8(a + at(3)), child.getUint8(12 * 2 ** 32)]).toEqual([4, 12]);
        child.sync.exit();
      }
      expect(used(memory)).toEqual(start);
    }
    for (let k = 0; k < 8; k++) raw.setUint8(a + at(k), 1);
    verify(memory);
  });
});

describe("try.fork()", () => {
  test("is EAGAIN where a notifier would have to wait, and changes nothing", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(2));
    const b = raw.sync.mmap(anonymous(2, { address: a + at(32), fixed: true }));
    for (const page of [a, a + at(1), b]) raw.setUint8(page, 1);
    const recorder = record(raw);
    // Willing for the first mapping: that range is open when the second one's is refused.
    const unwilling = new MmuNotifier({
      invalidateRangeStart: (_, range) => range.blockable || range.start < b,
    });
    raw.notifiers.sync.register(unwilling);
    const before = snapshot(raw, a, 2);
    const { arenaBytes, faults } = memory.stats();
    expect(thrown(() => raw.try.fork())?.code).toBe("EAGAIN");
    expect(recorder.open).toBe(0);
    expect(recorder.take()[0]).toBe(eventOf("ProtectionPage", a, a + at(2)));
    verify(memory);
    expect(snapshot(raw, a, 2)).toEqual(before);
    for (const page of [a, a + at(1), b]) raw.setUint8(page, 2);
    expect(memory.stats().faults.cow).toBe(faults.cow);
    expect(memory.stats().arenaBytes).toBe(arenaBytes);
    const child = raw.sync.fork();
    expect(child.getUint8(b)).toBe(2);
    verify(memory);
  });

  test("is EAGAIN where another agent that runs has a page in its TLB, and changes nothing", async () => {
    const { memory, raw } = await makeRig(64, { mayBlock: false });
    const other = await attachTo(memory, false);
    const a = raw.try.mmap(anonymous(2));
    other.space(raw.id).setUint8(a, 1); // its turn is open from here on
    raw.setUint8(a + at(1), 1);
    const { arenaBytes, faults } = memory.stats();
    expect(thrown(() => raw.try.fork())?.code).toBe("EAGAIN");
    other.space(raw.id).setUint8(a, 2);
    raw.setUint8(a + at(1), 2);
    expect(memory.stats().faults.cow).toBe(faults.cow);
    await Promise.resolve();
    verify(memory);
    expect(memory.stats().arenaBytes).toBeLessThanOrEqual(arenaBytes);
    const child = raw.try.fork();
    expect([child.getUint8(a), child.getUint8(a + at(1))]).toEqual([2, 2]);
  });
});

describe("notifiers", () => {
  test("hear of each private mapping with pages of its own, and are not inherited", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(2));
    const shared = raw.sync.mmap(anonymous(1, { share: "shared", address: a + at(16), fixed: true }));
    const empty = raw.sync.mmap(anonymous(1, { address: a + at(32), fixed: true }));
    for (const page of [a, shared]) raw.setUint8(page, 1);
    const recorder = record(raw);
    let invalidations = 0;
    const interval = raw.notifiers.sync.insert(
      {
        invalidate: (self, _, curSeq) => {
          self.setSeq(curSeq);
          invalidations++;
          return true;
        },
      },
      a,
      at(64),
    );
    const child = raw.sync.fork();
    expect(recorder.take()).toEqual([eventOf("ProtectionPage", a, a + at(2))]);
    expect(invalidations).toBe(1);
    expect([raw.notifiers.any, child.notifiers.any]).toEqual([true, false]);

    for (const page of [a, shared, empty]) child.setUint8(page, 2);
    child.sync.mprotect(a, at(2), "r");
    child.sync.madvise(a, at(2), "dontneed");
    child.sync.munmap(a, PAGE);
    const own = record(child);
    child.sync.munmap(shared, PAGE);
    child.sync.exit();
    expect(own.take()).toEqual([eventOf("Unmap", shared, shared + PAGE), "release"]);
    expect([recorder.take(), invalidations]).toEqual([[], 1]);

    raw.setUint8(a, 3); // the only owner again: nothing is copied, so nobody hears
    expect([recorder.take(), invalidations]).toEqual([[], 1]);
    interval.sync.remove();
    verify(memory);
  });

  test("hear a copy-on-write in the space where it happens", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(1));
    raw.setUint8(a, 1);
    const child = raw.sync.fork();
    const [parents, childs] = [record(raw), record(child)];
    child.setUint8(a, 2);
    expect([parents.take(), childs.take()]).toEqual([[], [eventOf("Clear", a, a + PAGE)]]);
    verify(memory);
  });
});

describe("a child that is not there yet", () => {
  test("is found by nobody who guesses its id", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(1));
    raw.setUint8(a, 1);
    const guesses: (string | undefined)[] = [];
    const listener = new MmuNotifier({
      invalidateRangeStart: () => {
        for (let id = raw.id + 1; id < raw.id + 10; id++)
          guesses.push(thrown(() => memory.space(id as typeof raw.id))?.code);
        return true;
      },
    });
    raw.notifiers.sync.register(listener);
    const child = raw.sync.fork();
    expect(child.id).toBeLessThan(raw.id + 10);
    expect(new Set(guesses)).toEqual(new Set(["ESRCH"]));
    expect(memory.space(child.id)).toBe(child);
    verify(memory);
  });
});

describe("what is refused", () => {
  test("a space that has exited is ESRCH", async () => {
    const { raw } = await makeRig();
    raw.sync.exit();
    expect(thrown(() => raw.sync.fork())?.code).toBe("ESRCH");
    expect((await rejected(raw.fork()))?.code).toBe("ESRCH");
  });

  test("in a callback it is EDEADLK", async () => {
    const { raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(1));
    raw.setUint8(a, 1);
    let code: string | undefined;
    const notifier = new MmuNotifier({
      invalidateRangeStart: () => {
        code = thrown(() => raw.sync.fork())?.code;
        return true;
      },
    });
    raw.notifiers.sync.register(notifier);
    raw.sync.munmap(a, PAGE);
    expect(code).toBe("EDEADLK");
  });
});

describe("entries of file pages that change while fork copies them", () => {
  /** Runs `meanwhile` once, when fork has read the entry of a file page and takes a reference to it. */
  const interfere = (memory: PhysicalMemory, meanwhile: () => void): (() => boolean) => {
    const { frames } = memory.mm;
    const tryGet = frames.tryGet.bind(frames);
    let done = false;
    frames.tryGet = (pfn: number): boolean => {
      if (!done && frames.mapping(pfn) !== 0 && new Error().stack!.includes("copyEntry")) {
        done = true;
        meanwhile();
      }
      return tryGet(pfn);
    };
    return () => {
      frames.tryGet = tryGet;
      return done;
    };
  };
  const options = { mayBlock: false, folio: PAGE, readAhead: PAGE, faultAround: PAGE };
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

  test("are not copied if reclaim has taken the page, whose frame has another by now", async () => {
    const memory = await makeMemory(64, options);
    const other = await attachTo(memory, false);
    const file = memory.try.openFile(sharedBacking(pattern(at(80))), { writable: true });
    const space = memory.try.createSpace();
    const a = space.try.mmap(anonymous(4, { file }));
    space.setUint8(a, 1); // an anon_vma: entries are copied
    space.getUint8(a + at(1));
    await turn();
    const finish = interfere(memory, () => {
      for (let k = 0; k < 20 && space.pagemap(a + at(1), PAGE)[0]!.present; k++) other.try.reclaim(at(64));
      for (let k = 2; k < 62; k++) other.try.read(other.file(file.id), at(k), new Uint8Array(1));
    });
    const child = space.try.fork();
    expect(finish()).toBe(true);
    verify(memory);
    expect(child.getUint8(a + at(1))).toBe(pattern(at(2))[PAGE]);
  });

  test("are copied as write-back left them", async () => {
    const memory = await makeMemory(64, options);
    const other = await attachTo(memory, false);
    const file = memory.try.openFile(sharedBacking(pattern(at(4))), { writable: true });
    const space = memory.try.createSpace();
    const a = space.try.mmap(anonymous(4, { share: "shared", file }));
    space.try.madvise(a, PAGE, "guard-install"); // so that entries are copied
    space.setUint8(a + at(1), 77);
    await turn();
    const finish = interfere(memory, () => other.try.sync(other.file(file.id)));
    const child = space.try.fork();
    expect(finish()).toBe(true);
    verify(memory);
    expect(child.getUint8(a + at(1))).toBe(77);
  });
});

test("an agent that was idle while a space exited goes on", async () => {
  const memory = await makeMemory(64, { mayBlock: false });
  const other = await attachTo(memory, false);
  const [first, second] = [memory.try.createSpace(), memory.try.createSpace()];
  const a = first.try.mmap(anonymous(1));
  const b = second.try.mmap(anonymous(1));
  expect(other.space(first.id).getUint8(a)).toBe(0);
  await new Promise((resolve) => setImmediate(resolve)); // the turns of both end
  await first.exit();
  expect(other.space(second.id).getUint8(b)).toBe(0);
});
