import { describe, expect, test } from "vitest";
import { HMM_VALID, HMM_WRITE, hmmPfn, rangeFault } from "../../../src/hmm/index.ts";
import type { IntervalNotifier } from "../../../src/notifier/index.ts";
import type { AddressSpace } from "../../../src/mm/index.ts";
import {
  anonymous,
  arrayBacking,
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
const BASE = 0x100000;
const fixed = (page: number, pages: number, more = {}) =>
  anonymous(pages, { address: BASE + at(page), fixed: true, ...more });

/** A subscription that counts its invalidations. */
function subscribe(space: AddressSpace, pages: number): { interval: IntervalNotifier; hits: () => number } {
  let hits = 0;
  const ops = {
    invalidate: (own: IntervalNotifier, _: unknown, seq: number) => {
      hits++;
      own.setSeq(seq);
      return true;
    },
  };
  return { interval: space.notifiers.sync.insert(ops, BASE, at(pages)), hits: () => hits };
}

describe("rangeFault", () => {
  test("gives the frame and the rights of every page, faulting in what is missing", async () => {
    const { memory, raw } = await makeRig();
    const bytes = pattern(at(2));
    const file = memory.sync.openFile(arrayBacking(bytes.slice()), { writable: true });
    raw.sync.mmap(fixed(0, 2));
    raw.sync.mmap(fixed(2, 1, { file, share: "shared" }));
    raw.sync.mmap(fixed(3, 1, { file, offset: at(1) }));
    raw.setUint32(BASE, 0xabcd);
    const { interval, hits } = subscribe(raw, 4);
    const entries = new Int32Array(4);
    const seq = interval.sync.readBegin();
    rangeFault.sync(interval, { memory, space: raw, seq, start: BASE, length: at(4), entries });
    expect(interval.readRetry(seq)).toBe(false);
    expect(hits()).toBe(0);
    expect([...entries].map((e) => e & (HMM_VALID | HMM_WRITE))).toEqual([
      HMM_VALID | HMM_WRITE,
      HMM_VALID,
      HMM_VALID,
      HMM_VALID,
    ]);
    expect(hmmPfn(entries[1]!)).toBe(0); // the zero page
    const view = (k: number) => new DataView(memory.frame(hmmPfn(entries[k]!)).slice().buffer);
    expect(view(0).getUint32(0, true)).toBe(0xabcd);
    expect(view(2).getUint8(9)).toBe(bytes[9]);
    expect(view(3).getUint8(9)).toBe(bytes[PAGE + 9]);
    interval.sync.remove();
    verify(memory);
  });

  test("for writing gives writable frames: copies of private ones, dirty pages of shared files", async () => {
    const { memory, raw } = await makeRig();
    const backing = arrayBacking(pattern(at(2)));
    const file = memory.sync.openFile(backing, { writable: true });
    raw.sync.mmap(fixed(0, 2));
    raw.sync.mmap(fixed(2, 2, { file, share: "shared" }));
    const { interval } = subscribe(raw, 4);
    const entries = new Int32Array(5).fill(-1);
    const range = { memory, space: raw, start: BASE, length: at(4), entries, access: "rw" as const };
    await rangeFault(interval, { ...range, seq: await interval.readBegin() });
    expect([...entries].map((e) => e & (HMM_VALID | HMM_WRITE))).toEqual([3, 3, 3, 3, 3]);
    expect(entries[4]).toBe(-1);
    memory.frame(hmmPfn(entries[0]!))[7] = 42;
    memory.frame(hmmPfn(entries[2]!))[7] = 43;
    expect([raw.getUint8(BASE + 7), raw.getUint8(BASE + at(2) + 7)]).toEqual([42, 43]);
    memory.sync.sync(file);
    expect(backing.bytes[7]).toBe(43);
    interval.sync.remove();
    verify(memory);
  });

  test("is EBUSY once the interval was invalidated, before and in the middle", async () => {
    const { memory, raw } = await makeRig();
    raw.sync.mmap(fixed(0, 4));
    const { interval, hits } = subscribe(raw, 4);
    const range = { memory, space: raw, start: BASE, length: at(4), entries: new Int32Array(4) };
    raw.setUint8(BASE, 1); // else there is no page table, and nobody to tell
    const seq = interval.sync.readBegin();
    raw.sync.mprotect(BASE, PAGE, "r");
    expect(hits()).toBe(1);
    expect(interval.readRetry(seq)).toBe(true);
    expect(thrown(() => rangeFault.sync(interval, { ...range, seq }))).toMatchObject({
      code: "EBUSY",
      range: { start: BASE, end: BASE + at(4) },
    });
    const again = interval.sync.readBegin();
    rangeFault.sync(interval, { ...range, seq: again });
    expect(interval.readRetry(again)).toBe(false);
    // A device that writes where the page must be copied is overtaken by its own copy.
    raw.sync.mprotect(BASE, PAGE, "rw");
    raw.sync.madvise(BASE, at(4), "dontneed");
    for (let k = 0; k < 4; k++) raw.getUint8(BASE + at(k));
    const third = interval.sync.readBegin();
    expect(thrown(() => rangeFault.sync(interval, { ...range, seq: third, access: "rw" }))?.code).toBe(
      "EBUSY",
    );
    interval.sync.remove();
    verify(memory);
  });

  test("a fill loop ends, and what it installed is what is there", async () => {
    const { memory, raw } = await makeRig();
    raw.sync.mmap(fixed(0, 4));
    for (let k = 0; k < 4; k++) raw.getUint8(BASE + at(k));
    const { interval } = subscribe(raw, 4);
    const entries = new Int32Array(4);
    let rounds = 0;
    for (;;) {
      rounds++;
      const seq = interval.sync.readBegin();
      const range = { memory, space: raw, seq, start: BASE, length: at(4), entries, access: "rw" as const };
      const error = thrown(() => rangeFault.sync(interval, range));
      if (error && error.code !== "EBUSY") throw error;
      if (!error && !interval.readRetry(seq)) break;
    }
    expect(rounds).toBe(2); // all pages are copied in the first
    raw.setUint8(BASE + at(3), 9);
    expect(memory.frame(hmmPfn(entries[3]!))[0]).toBe(9);
    interval.sync.remove();
    verify(memory);
  });

  test.each([
    ["start not aligned", { start: BASE + 1 }],
    ["start NaN", { start: Number.NaN }],
    ["length not aligned", { length: PAGE + 1 }],
    ["length 0", { length: 0 }],
    ["length negative", { length: -PAGE }],
    ["length NaN", { length: Number.NaN }],
    ["below the interval", { start: BASE - PAGE, length: PAGE }],
    ["beyond the interval", { start: BASE, length: at(5) }],
    ["entries too short", { entries: new Int32Array(3) }],
  ])("%s is EINVAL", async (_, wrong) => {
    const { memory, raw } = await makeRig();
    raw.sync.mmap(fixed(0, 8));
    const { interval } = subscribe(raw, 4);
    const seq = interval.sync.readBegin();
    const range = {
      memory,
      space: raw,
      seq,
      start: BASE,
      length: at(4),
      entries: new Int32Array(4),
      ...wrong,
    };
    expect(thrown(() => rangeFault.sync(interval, range))?.code).toBe("EINVAL");
    expect((await rejected(rangeFault(interval, range)))?.code).toBe("EINVAL");
    interval.sync.remove();
    verify(memory);
  });

  test("fails where an access would; after exit it is ESRCH", async () => {
    const { memory, raw } = await makeRig();
    const file = memory.sync.openFile(arrayBacking(pattern(PAGE)));
    raw.sync.mmap(fixed(0, 1, { prot: "r" }));
    raw.sync.mmap(fixed(1, 2, { prot: "r", file }));
    const { interval } = subscribe(raw, 4);
    const entries = new Int32Array(4);
    const seq = interval.sync.readBegin();
    const fault = (page: number, access: "r" | "rw" = "r") =>
      thrown(() =>
        rangeFault.sync(interval, {
          memory,
          space: raw,
          seq,
          start: BASE + at(page),
          length: PAGE,
          entries,
          access,
        }),
      );
    expect(fault(3)).toMatchObject({ reason: "SEGV_MAPERR", address: BASE + at(3) });
    expect(fault(0, "rw")).toMatchObject({ code: "EPERM", range: { start: BASE, end: BASE + PAGE } });
    expect(fault(2)).toMatchObject({ code: "EFAULT", cause: { name: "BusError" } });
    expect(fault(1)).toBeUndefined();
    raw.sync.exit();
    expect(["EBUSY", "ESRCH"]).toContain(fault(1)?.code);
    interval.sync.remove();
    verify(memory);
  });

  test("try is EAGAIN where a page must be read by another agent or an acknowledgement awaited", async () => {
    const memory = await makeMemory(64, { faultAround: PAGE });
    const other = await attachTo(memory);
    const raw = memory.sync.createSpace();
    const slow = memory.sync.openFile(arrayBacking(pattern(PAGE), "async"));
    const fast = memory.sync.openFile(sharedBacking(pattern(PAGE)));
    raw.sync.mmap(fixed(0, 1, { file: slow }));
    raw.sync.mmap(fixed(1, 1, { file: fast }));
    const { interval } = subscribe(raw, 2);
    const entries = new Int32Array(2);
    const fault = (page: number, access: "r" | "rw") => {
      const seq = interval.sync.readBegin();
      return thrown(() =>
        rangeFault.try(interval, {
          memory,
          space: raw,
          seq,
          start: BASE + at(page),
          length: PAGE,
          entries,
          access,
        }),
      )?.code;
    };
    expect(fault(0, "r")).toBe("EAGAIN");
    expect(fault(1, "r")).toBeUndefined();
    other.space(raw.id).getUint8(BASE + at(1)); // in its TLB, in its turn
    expect(fault(1, "rw")).toBe("EAGAIN");
    other.poll();
    expect(fault(1, "rw")).toBe("EBUSY"); // the copy invalidated the interval; now it is there
    expect(fault(1, "rw")).toBeUndefined();
    await rangeFault(interval, {
      memory,
      space: raw,
      seq: await interval.readBegin(),
      start: BASE,
      length: at(2),
      entries,
    });
    expect(memory.frame(hmmPfn(entries[0]!))[5]).toBe(pattern(PAGE)[5]);
    interval.sync.remove();
    verify(memory);
  });
});
