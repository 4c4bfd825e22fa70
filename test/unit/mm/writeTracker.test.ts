import { describe, expect, test } from "vitest";
import { type AddressSpace, memoryBacking, WriteTracker } from "../../../src/mm/index.ts";
import { MmuNotifierEvent, type MmuNotifierRange } from "../../../src/notifier/index.ts";
import {
  anonymous,
  arrayBacking,
  attachTo,
  makeRig,
  PAGE,
  pattern,
  rejected,
  type Rig,
  takeReported,
  verify,
} from "../../lib/mm.ts";

const PAGES = 8;
const all = Array.from({ length: PAGES }, (_, k) => k);

/** A tracker, and the interval that its owner has beside it. */
async function track(space: AddressSpace, start: number, pages = PAGES) {
  const tracker = await WriteTracker.create(space, start, pages * PAGE);
  const events: MmuNotifierRange[] = [];
  const home: { bring?: (range: MmuNotifierRange) => boolean } = {};
  const interval = space.notifiers.sync.insert(
    {
      invalidate: (self, range, seq) => {
        self.setSeq(seq);
        events.push(range);
        const first = Math.max(0, (range.start - start) / PAGE);
        const end = Math.min(pages, (range.end - start) / PAGE);
        if (range.owner !== undefined) return true;
        if (tracker.away(first, end).length > 0) {
          if (home.bring && !home.bring(range)) return false;
          tracker.comeHome(first, end);
        }
        const { ProtectionPage, SoftDirty } = MmuNotifierEvent;
        if (range.event !== ProtectionPage && range.event !== SoftDirty) tracker.mark(first, end);
        return true;
      },
    },
    start,
    pages * PAGE,
  );
  return {
    tracker,
    events,
    home,
    written: () => tracker.written(0, pages),
    sendAway: async (which: number[]) => {
      const sent = new Map<number, number>();
      await tracker.sendAway(which, (page, pfn) => sent.set(page, pfn));
      return sent;
    },
    take: () => tracker.take(tracker.written(0, pages)),
    remove: async () => {
      await tracker.remove();
      await interval.remove();
    },
  };
}

async function mapped(more: Partial<Parameters<typeof makeRig>[1]> = {}): Promise<Rig & { start: number }> {
  const rig = await makeRig(64, more);
  const start = rig.space.sync.mmap(anonymous(PAGES));
  rig.space.sync.populate(start, PAGES * PAGE, "rw");
  return { ...rig, start };
}

describe("what has been written", () => {
  test("begins with everything, and is what was stored to since it was taken", async () => {
    const { space, start } = await mapped();
    const { tracker, written, take, remove } = await track(space, start);
    expect(written()).toEqual(all);
    await take();
    expect(written()).toEqual([]);
    const { changes } = tracker;
    space.setUint8(start + 3 * PAGE + 5, 1);
    space.getUint8(start + 4 * PAGE);
    space.setUint8(start + 3 * PAGE + 6, 2);
    await space.write(start + 6 * PAGE - 1, Uint8Array.of(1, 2));
    expect(tracker.changes - changes).toBe(3);
    expect(written()).toEqual([3, 5, 6]);
    expect(tracker.written(4, 6)).toEqual([5]);
    await take();
    expect(written()).toEqual([]);
    await remove();
  });

  test("is what a take was asked for only", async () => {
    const { space, start } = await mapped();
    const { tracker, written, remove } = await track(space, start);
    await tracker.take([1, 2, 5]);
    expect(written()).toEqual([0, 3, 4, 6, 7]);
    space.setUint8(start + 2 * PAGE, 1);
    expect(written()).toEqual([0, 2, 3, 4, 6, 7]);
    await remove();
  });

  test("is kept apart for several trackers, and from the soft-dirty bits", async () => {
    const { space, start } = await mapped();
    const [a, b] = [await track(space, start), await track(space, start + 2 * PAGE, 4)];
    await a.take();
    await b.take();
    space.setUint8(start + 3 * PAGE, 1);
    await a.take();
    await space.clearRefs("soft-dirty");
    expect(b.written()).toEqual([1]);
    space.setUint8(start + 4 * PAGE, 1);
    expect([a.written(), b.written()]).toEqual([[4], [1, 2]]);
    await b.remove();
    space.setUint8(start + 5 * PAGE, 1);
    expect(a.written()).toEqual([4, 5]);
    await a.take();
    expect(space.pagemap(start + 5 * PAGE, PAGE)[0]).toMatchObject({ softDirty: true, dirty: true });
    await a.remove();
  });

  test("includes a page that copy-on-write replaced, and nothing of what the child of a fork stores", async () => {
    const { space, start } = await mapped();
    const { written, take, remove } = await track(space, start);
    await take();
    const child = await space.fork();
    child.setUint8(start + PAGE, 1);
    expect(written()).toEqual([]);
    space.setUint8(start + 2 * PAGE, 1);
    expect(written()).toEqual([2]);
    await take();
    await child.exit();
    space.setUint8(start + 4 * PAGE, 1);
    space.setUint8(start + 2 * PAGE, 1);
    expect(written()).toEqual([2, 4]);
    await remove();
  });

  test("stays with a page that a view or a pin for writing holds", async () => {
    const { memory, space, raw, start } = await mapped();
    const { written, take, remove } = await track(space, start);
    const pin = await space.pin(start + PAGE, PAGE, "rw");
    const [span] = [...raw.spans(start + 5 * PAGE, PAGE, "rw")];
    const taking = take(); // in the turn of the span
    span![0] = 7;
    await taking;
    expect(written().filter((page) => page !== 5)).toEqual([1]);
    memory.poll();
    await take();
    expect(written()).toEqual([1]);
    pin.spans[0]![0] = 9;
    pin.unpin();
    await take();
    expect(written()).toEqual([]);
    await remove();
  });

  test("includes what other agents store, also through translations they had", async () => {
    const { memory, space, start } = await mapped();
    const other = await attachTo(memory);
    const theirs = other.space(space.id);
    theirs.setUint8(start + PAGE, 1);
    other.poll();
    const { written, take, remove } = await track(space, start);
    await take();
    theirs.setUint8(start + PAGE, 2);
    expect(written()).toEqual([1]);
    other.poll();
    await remove();
  });

  test("leaves alone what is not mapped yet", async () => {
    const { space } = await makeRig();
    const start = space.sync.mmap(anonymous(PAGES));
    const { written, take, remove } = await track(space, start);
    space.getUint8(start + PAGE);
    await take();
    expect(written()).toEqual(all.filter((page) => page !== 1));
    space.setUint8(start + PAGE, 1);
    expect(written()).toEqual(all);
    await remove();
  });

  test("raises PROTECTION_PAGE for what was writable only", async () => {
    const { space, start } = await mapped();
    const { take, events, remove } = await track(space, start);
    await take();
    const seen = events.map(({ event, start: from, end }) => [
      event,
      (from - start) / PAGE,
      (end - start) / PAGE,
    ]);
    expect(seen).toEqual([[MmuNotifierEvent.ProtectionPage, 0, PAGES]]);
    await take();
    expect(events).toHaveLength(1);
    await remove();
  });

  test("a space that exits takes its trackers along", async () => {
    const { space, raw, start } = await mapped();
    const { tracker, take } = await track(space, start);
    await take();
    await space.exit();
    await tracker.remove();
    expect(await rejected(WriteTracker.create(raw, start, PAGE))).toMatchObject({
      code: "ESRCH",
    });
  });

  test("a range that is not pages is refused", async () => {
    const { space, start } = await mapped();
    expect(await rejected(WriteTracker.create(space, start + 1, PAGE))).toMatchObject({ code: "EINVAL" });
  });
});

describe("pages of files", () => {
  async function fileRig(kind: "memory" | "array", share: "private" | "shared") {
    const rig = await makeRig(64);
    const file = await rig.memory.openFile(
      kind === "memory" ? memoryBacking(PAGES * PAGE) : arrayBacking(pattern(PAGES * PAGE)),
      { writable: true },
    );
    const start = rig.space.sync.mmap({ length: PAGES * PAGE, prot: "rw", share, file });
    rig.space.sync.populate(start, PAGES * PAGE, "r");
    const other = rig.memory.sync.createSpace();
    const theirs = other.sync.mmap({ length: PAGES * PAGE, prot: "rw", share: "shared", file });
    return { ...rig, file, start, other, theirs };
  }

  for (const kind of ["memory", "array"] as const) {
    for (const share of ["private", "shared"] as const) {
      test(`${share} mapping of a file of kind ${kind}: stores through another space, and file.write()`, async () => {
        const { memory, space, file, start, other, theirs } = await fileRig(kind, share);
        other.setUint8(theirs + 2 * PAGE, 1);
        const { written, take, remove } = await track(space, start);
        await take();
        expect(written()).toEqual([]);
        verify(memory);
        other.setUint8(theirs + 2 * PAGE, 2);
        expect(written()).toEqual([2]);
        other.setUint8(theirs + 3 * PAGE, 2);
        await file.write(5 * PAGE - 1, Uint8Array.of(1, 2));
        expect(written()).toEqual([2, 3, 4, 5]);
        space.setUint8(start + 6 * PAGE, 1);
        expect(written()).toEqual([2, 3, 4, 5, 6]);
        await take();
        verify(memory);
        await file.write(6 * PAGE, Uint8Array.of(1));
        // Its own copy, which the file's page no longer is.
        expect(written()).toEqual(share === "private" ? [] : [6]);
        await remove();
      });
    }
  }

  test("part of a page that a hole makes zero", async () => {
    const { space, file, start } = await fileRig("memory", "shared");
    const { written, take, remove } = await track(space, start);
    await take();
    await file.punchHole(PAGE + 10, 20);
    expect(written()).toEqual([1]);
    await take();
    await file.punchHole(2 * PAGE + 10, PAGE);
    expect(written()).toEqual([2, 3]);
    await remove();
  });
});

describe("away", () => {
  test("an access has the page brought home first, and waits for it", async () => {
    const { memory, space, raw, start } = await mapped({ mayBlock: false });
    const { tracker, home, written, take, sendAway, events, remove } = await track(raw, start);
    await take();
    await space.clearRefs("soft-dirty");
    const sent = await sendAway([1, 2, 5]);
    expect([...sent.keys()]).toEqual([1, 2, 5]);
    verify(memory);
    home.bring = (range) => {
      const page = (range.start - start) / PAGE;
      memory.frame(sent.get(page)!)[7] = 40 + page;
      return true;
    };
    expect(events.at(-1)).toMatchObject({ event: MmuNotifierEvent.Exclusive });
    expect(space.getUint8(start + 2 * PAGE + 7)).toBe(42);
    expect(tracker.away(0, PAGES)).toEqual([1, 5]);
    space.setUint8(start + 5 * PAGE, 1);
    expect(space.getUint8(start + 5 * PAGE + 7)).toBe(45);
    expect(written()).toEqual([5]); // what was read only is the same here and there
    expect(space.pagemap(start, 4 * PAGE).map(({ softDirty }) => softDirty)).toEqual([
      false,
      true,
      true,
      false,
    ]);
    const bytes = new Uint8Array(PAGE);
    await space.read(start + PAGE, bytes);
    expect(bytes[7]).toBe(41);
    await remove();
  });

  test("a refusal is EAGAIN, and nothing has changed", async () => {
    const { space, raw, start } = await mapped({ mayBlock: false });
    const { tracker, home, sendAway, remove } = await track(raw, start);
    await sendAway([1]);
    home.bring = (range) => range.blockable;
    expect(() => space.getUint8(start + PAGE)).toThrow(/EAGAIN/);
    expect(() => space.try.munmap(start + PAGE, PAGE)).toThrow(/EAGAIN/);
    expect(tracker.away(0, PAGES)).toEqual([1]);
    expect(await space.run(() => space.getUint8(start + PAGE))).toBe(0);
    expect(tracker.away(0, PAGES)).toEqual([]);
    await remove();
  });

  test("a callback that throws fails the access, and not the exit", async () => {
    const { raw, start } = await mapped();
    const { home, sendAway } = await track(raw, start);
    await sendAway([1]);
    home.bring = () => {
      throw new Error("lost");
    };
    expect(() => raw.getUint8(start + PAGE)).toThrow(/ECALLBACK/);
    await raw.exit();
    expect(takeReported().every(({ code }) => code === "ECALLBACK")).toBe(true);
  });

  test("an owner that brings nothing home: BusError", async () => {
    const { space, raw, start } = await mapped();
    const tracker = await WriteTracker.create(raw, start, PAGE);
    await tracker.sendAway([0], () => {});
    expect(() => space.getUint8(start)).toThrow(/device whose agent has ended/);
    tracker.comeHome(0, 1);
    expect(space.getUint8(start)).toBe(0);
    await tracker.remove();
  });

  test("not for the zero page, pages of files, pages that are shared or held", async () => {
    const { space, raw, start } = await mapped();
    const { tracker, sendAway, remove } = await track(raw, start);
    const pin = await space.pin(start + PAGE, PAGE, "r");
    await space.madvise(start + 2 * PAGE, PAGE, "dontneed");
    space.getUint8(start + 2 * PAGE);
    const child = await space.fork();
    space.setUint8(start, 1);
    expect([...(await sendAway([0, 1, 2, 3])).keys()]).toEqual([0]);
    tracker.comeHome(0, PAGES);
    pin.unpin();
    await child.exit();
    await remove();
  });
});
