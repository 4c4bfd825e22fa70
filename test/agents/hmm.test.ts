/** Pages that move to a device and back, or are a device's own, while real threads use them. */
import { Worker } from "node:worker_threads";
import { afterEach, describe, expect, test } from "vitest";
import { bifolio } from "../lib/testBuild.ts";

const PAGE = 4096;
const PAGES = 24;
const STOP = 0;
const READY = 1;

const cleanups: (() => Promise<unknown> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup();
});

interface Report {
  readonly counted: number;
  readonly wrong?: string;
  readonly mine: number[];
}

type Copies = readonly { readonly page: number; readonly bytes: Uint8Array | undefined }[];

/** A space whose pages `writers` threads count in, with a device of this agent's. `late`: its copies wait. */
async function makeRig(writers: number, late: boolean) {
  const memory = await bifolio.createMemory({ budget: "4 MiB", mayBlock: false, debug: true });
  cleanups.push(() => memory.close());
  const control = memory.allocShared(64);
  const space = await memory.createSpace();
  const base = await space.mmap({ length: PAGES * PAGE, prot: "rw", share: "private" });
  const store = new Uint8Array(32 * PAGE);
  const soon = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  let copiedOut = 0;
  const copyIn = (list: Copies): void => {
    for (const { page, bytes } of list) store.set(bytes ?? new Uint8Array(PAGE), page * PAGE);
  };
  const copyOut = (list: Copies): void => {
    for (const { page, bytes } of list) {
      const here = store.subarray(page * PAGE, (page + 1) * PAGE);
      bytes!.set(here);
      here.fill(0xdd);
      copiedOut++;
    }
  };
  const wait = (copy: (list: Copies) => void) => async (list: Copies) => {
    await soon();
    copy(list);
    await soon();
  };
  const device = bifolio.createDeviceMemory(memory, {
    bytes: store.length,
    around: 4 * PAGE,
    ...(late
      ? { copyIn: wait(copyIn), copyOut: wait(copyOut) }
      : { copyInSync: copyIn, copyOutSync: copyOut }),
  });
  const workers = Array.from({ length: writers }, (_, writer) => {
    const worker = new Worker(new URL("./workers/hmm.mjs", import.meta.url), {
      workerData: {
        ...{ handle: memory.handle, spaceId: space.id, control: control.byteOffset, base, pages: PAGES },
        ...{ writer, seed: 77 + writer },
      },
    });
    memory.adopt(worker);
    cleanups.push(() => worker.terminate());
    return worker;
  });
  const reports = workers.map(
    (worker) =>
      new Promise<Report>((resolve, reject) => {
        worker.once("message", (m: { result?: Report; error?: string }) =>
          m.result ? resolve(m.result) : reject(new Error(m.error)),
        );
        worker.once("error", reject);
      }),
  );
  for (const report of reports) report.catch(() => Atomics.store(control, STOP, 1));
  for (let ready = 0; ready < writers; ready = Atomics.load(control, READY))
    await Promise.race([memory.wait(control, READY, ready), ...reports]);
  const stop = async (): Promise<Report[]> => {
    Atomics.store(control, STOP, 1);
    return Promise.all(reports);
  };
  return { memory, space, base, device, control, workers, stop, copiedOut: () => copiedOut };
}

describe("threads that count in pages", () => {
  test.each([
    [1, false],
    [2, false],
    [2, true],
  ])(
    "find every count of theirs while the pages move (%i threads, copies that wait: %s)",
    async (writers, late) => {
      const { memory, space, base, device, control, stop, copiedOut } = await makeRig(writers, late);
      let moved = 0;
      let exclusive = 0;
      const until = performance.now() + 2500;
      for (let round = 0; performance.now() < until && Atomics.load(control, STOP) === 0; round++) {
        const first = round % PAGES;
        const length = Math.min(PAGES - first, 1 + (round % 7)) * PAGE;
        const range = { start: base + first * PAGE, length };
        moved += (await bifolio.migrateToDevice(device, space, range)).length;
        if (round % 5 === 0) {
          const address = base + ((round * 7) % PAGES) * PAGE;
          const page = await bifolio.makeDeviceExclusive({ memory, space, address });
          // The device counts, too, in a word of its own.
          new DataView(memory.frame(page.pfn).buffer, memory.frame(page.pfn).byteOffset).setInt32(
            PAGE - 4,
            ++exclusive,
            true,
          );
          page.release();
        }
        if (round % 11 === 0) await bifolio.migrateToMemory(device, space, range);
        if (round % 29 === 0) {
          const child = await space.fork();
          await child.run(() => child.getInt32(base));
          await child.exit();
        }
        if (round % 13 === 0) await device.evict();
        await new Promise((resolve) => setImmediate(resolve));
      }
      const reports = await stop();
      expect(reports.map(({ wrong }) => wrong)).toEqual(reports.map(() => undefined));
      for (const { counted } of reports) expect(counted).toBeGreaterThan(100);
      // The test has seen something: pages went, and came back by accesses.
      expect(moved).toBeGreaterThan(20);
      expect(copiedOut()).toBeGreaterThan(20);
      expect(exclusive).toBeGreaterThan(2);
      expect(memory.check()).toBeUndefined();
      for (const [writer, { mine }] of reports.entries()) {
        for (let page = 0; page < PAGES; page++)
          expect(await space.run(() => space.getInt32(base + page * PAGE + 4 * writer))).toBe(mine[page]);
      }
      await device.close();
      expect(memory.check()).toBeUndefined();
    },
  );

  test("a thread that dies in the middle takes nothing with it, or poisons the memory with a clear error", async () => {
    const { memory, space, base, device, workers, control } = await makeRig(2, true);
    memory.onError = () => {};
    for (let round = 0; round < 40; round++) {
      await bifolio
        .migrateToDevice(device, space, { start: base, length: PAGES * PAGE })
        .catch((error: unknown) => {
          if (!bifolio.isMmError(error, "EOWNERDEAD")) throw error;
        });
      if (round === 20) await workers[0]!.terminate();
      await new Promise((resolve) => setImmediate(resolve));
    }
    Atomics.store(control, STOP, 1);
    let poisoned = false;
    try {
      await space.run(() => space.getInt32(base));
    } catch (error) {
      poisoned = bifolio.isMmError(error, "EOWNERDEAD");
      if (!poisoned) throw error;
    }
    if (!poisoned) expect(await device.evict()).toBeGreaterThanOrEqual(0);
  });
});
