/** The main thread of a page, which may not block, and module workers, which do, in one memory. */
import type { Page } from "playwright-core";
import { describe, expect, test } from "vitest";
import { usePages } from "./lib/browser.ts";
import type { Mirrored, Stored } from "./pages/roles.ts";

const pages = usePages();

describe("a backing of the main thread", () => {
  test("serves a worker, whose accessors and sync forms block", async () => {
    const page = await pages.open();
    const seen = await page.evaluate(async () => {
      const memory = await bifolio.createMemory({ budget: "2 MiB", arena: "4 MiB", debug: true });
      const space = await memory.createSpace();
      const backing = backings.asyncBacking(300_000);
      const file = await memory.openFile(backing, { writable: true });
      const agent = await startAgent(
        memory,
        (m, { id, fileId }) => {
          const mine = m.space(id);
          const opened = m.file(fileId);
          const base = mine.sync.mmap({ length: opened.size, prot: "rw", share: "shared", file: opened });
          const first = mine.getUint8(base + 123_456); // cold: asks the main thread, sleeps meanwhile
          const bytes = new Uint8Array(opened.size);
          mine.sync.read(base, bytes);
          const wrong = bytes.findIndex((byte, k) => byte !== backings.byteAt(k));
          mine.setUint8(base + 7, 1);
          mine.sync.write(base + 200_000, Uint8Array.of(2, 3));
          mine.sync.msync(base, opened.size);
          const codeOf = (access: () => unknown): unknown => {
            try {
              return access();
            } catch (error) {
              return bifolio.isMmError(error) ? error.code : String(error);
            }
          };
          const beyond = codeOf(() => mine.getUint8(base + 76 * 4096));
          mine.sync.munmap(base, opened.size);
          return { first: first === backings.byteAt(123_456), wrong, beyond };
        },
        { id: space.id, fileId: file.id },
      );
      const worker = await agent.done;
      const written = [7, 200_000, 200_001].map((offset) => backing.bytes[offset]);
      const { counts } = backing;
      const invariant = memory.check();
      await memory.close();
      return { worker, written, asked: counts.reads > 0 && counts.writes > 0, invariant };
    });
    expect(seen).toEqual({
      worker: { first: true, wrong: -1, beyond: "EFAULT" },
      written: [1, 2, 3],
      asked: true,
      invariant: undefined,
    });
  });

  test("whose failure is the worker's BusError", async () => {
    const page = await pages.open();
    const message = await page.evaluate(async () => {
      const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
      const space = await memory.createSpace();
      const backing = backings.asyncBacking(4096);
      backing.broken = true;
      const file = await memory.openFile(backing);
      const base = await space.mmap({ length: 4096, prot: "r", share: "private", file });
      const agent = await startAgent(
        memory,
        (m, { id, address }) => {
          try {
            return String(m.space(id).getUint8(address));
          } catch (error) {
            return error instanceof bifolio.BusError ? error.message : String(error);
          }
        },
        { id: space.id, address: base },
      );
      const text = await agent.done;
      await memory.close();
      return text;
    });
    expect(message).toContain("the network is gone");
  });
});

describe("mirrors under interval notifiers", () => {
  interface Coherence extends Mirrored {
    invariant: string | undefined;
    /** Errors that had no caller. */
    reported: string[];
  }

  /** One agent changes mappings `rounds` times while the other mirrors them. */
  const compete = (page: Page, mirrorIn: "page" | "worker", rounds: number, bug?: "keeps" | "skips") =>
    page.evaluate(
      async (order): Promise<Coherence> => {
        const memory = await bifolio.createMemory({ budget: "24 MiB", arena: "8 MiB", debug: true });
        const plan = await roles.makePlan(memory, order.rounds);
        const reported: string[] = [];
        memory.onError = (error) => reported.push(error.message);
        let result: Mirrored;
        if (order.mirrorIn === "worker") {
          const agent = await startAgent(memory, (m, o) => roles.mirror(m, o.plan, true, o.bug), {
            plan,
            bug: order.bug,
          });
          await roles.churn(memory, plan, order.rounds, false);
          result = await agent.done;
        } else {
          const agent = await startAgent(memory, (m, o) => roles.churn(m, o.plan, o.rounds, true), {
            plan,
            rounds: order.rounds,
          });
          result = await roles.mirror(memory, plan, false, order.bug);
          await agent.done;
        }
        const invariant = memory.check();
        await memory.close();
        return { ...result, invariant, reported };
      },
      { mirrorIn, rounds, bug },
    );

  const ROUNDS = 400;

  test.each(["worker", "page"] as const)("in the %s, no stale byte is read", async (mirrorIn) => {
    const result = await compete(await pages.open(), mirrorIn, ROUNDS);
    expect(result).toMatchObject({ stale: 0, invariant: undefined, reported: [] });
    // They did race.
    expect(result.invalidations).toBeGreaterThan(ROUNDS / 2);
    expect(result.fills).toBeGreaterThan(ROUNDS / 20);
    expect(result.reads).toBeGreaterThan(ROUNDS / 4);
    expect(result.retries).toBeGreaterThan(0);
  });

  test.each([
    ["worker", "keeps"],
    ["page", "keeps"],
    ["worker", "skips"],
    ["page", "skips"],
  ] as const)("in the %s, one that %s is caught", async (mirrorIn, bug) => {
    const result = await compete(await pages.open(), mirrorIn, ROUNDS, bug);
    expect(result.stale).toBeGreaterThan(0);
  });
});

describe("the acknowledgement rule", () => {
  /** A worker forbids stores to a page to which another agent stores in a loop. */
  const forbid = (page: Page, storeIn: "page" | "worker", rounds: number, bug?: "hoards") =>
    page.evaluate(
      async (order): Promise<Stored & { landed: number; invariant: string | undefined }> => {
        const memory = await bifolio.createMemory({ budget: "4 MiB", arena: "4 MiB", debug: true });
        const plan = await roles.makePlan(memory, 1);
        const judge = await startAgent(memory, (m, o) => roles.forbid(m, o.plan, o.rounds), {
          plan,
          rounds: order.rounds,
        });
        let result: Stored;
        if (order.storeIn === "page") result = roles.store(memory, plan, order.bug);
        else {
          const agent = await startAgent(memory, (m, o) => roles.store(m, o.plan, o.bug), {
            plan,
            bug: order.bug,
          });
          result = await agent.done;
        }
        const landed = await judge.done;
        const invariant = memory.check();
        await memory.close();
        return { ...result, landed, invariant };
      },
      { storeIn, rounds, bug },
    );

  test.each(["worker", "page"] as const)(
    "no store of a %s lands once mprotect() has returned",
    async (storeIn) => {
      const rounds = 300;
      const result = await forbid(await pages.open(), storeIn, rounds);
      expect(result).toMatchObject({ landed: 0, invariant: undefined });
      expect(result.stores).toBeGreaterThan(rounds);
      expect(result.refused).toBeGreaterThan(0);
    },
  );

  test("a store through a view that is kept beyond poll() is caught", async () => {
    const result = await forbid(await pages.open(), "worker", 100, "hoards");
    expect(result.landed).toBeGreaterThan(0);
  });
});

describe("the main thread in contention", () => {
  test("every immediate form is done or EAGAIN, never a TypeError", async () => {
    const page = await pages.open();
    const seen = await page.evaluate(async () => {
      const rounds = 400;
      const memory = await bifolio.createMemory({ budget: "24 MiB", arena: "8 MiB", debug: true });
      const plan = await roles.makePlan(memory, rounds);
      const { base } = plan;
      const space = memory.space(plan.space);
      const words = memory.allocShared(sync.Mutex.BYTES);
      const mutex = new sync.Mutex(memory, words);
      const interval = await space.notifiers.insert(
        {
          invalidate(self, _range, curSeq) {
            self.setSeq(curSeq);
            return true;
          },
        },
        base,
        4096,
      );
      const entries = new Int32Array(1);
      const control = new Int32Array(new SharedArrayBuffer(4));
      const other = await startAgent(
        memory,
        async (m, o) => {
          const theirs = new sync.Mutex(m, new Int32Array(m.handle.memories[0]!.buffer, o.mutex, o.length));
          const mine = m.space(o.plan.space);
          while (Atomics.load(o.control, 0) === 0) {
            theirs.sync.lock();
            try {
              mine.setUint32(o.plan.base, 1);
            } catch (error) {
              if (!bifolio.isMmError(error)) throw error;
            }
            theirs.unlock();
            m.poll();
          }
        },
        { plan, control, mutex: words.byteOffset, length: words.length },
      );
      const agent = await startAgent(memory, (m, o) => roles.churn(m, o.plan, o.rounds, true), {
        plan,
        rounds,
      });
      Atomics.store(plan.control, roles.BEGUN, 1);

      const bytes = new Uint8Array(100);
      const forms: Record<string, () => unknown> = {
        get: () => space.getUint32(base),
        set: () => space.setUint32(base + 4096, 1),
        straddle: () => space.getFloat64(base + 4092),
        add: () => space.atomics.add(base, 1),
        spans: () => [...space.spans(base, 2 * 4096)].length,
        read: () => space.sync.read(base + 4090, bytes),
        write: () => space.sync.write(base + 4090, bytes),
        populate: () => space.sync.populate(base, 4 * 4096),
        dontneed: () => space.sync.madvise(base, 4096, "dontneed"),
        mprotect: () => space.sync.mprotect(base + 3 * 4096, 4096, "rw"),
        msync: () => space.sync.msync(base, 4096),
        mapAndUnmap: () => {
          const at = 2 ** 31; // far from the holes that churn() makes
          space.sync.mmap({ address: at, fixed: true, length: 4096, prot: "rw", share: "private" });
          for (;;) {
            try {
              return space.sync.munmap(at, 4096);
            } catch (error) {
              if (!bifolio.isMmError(error, "EAGAIN")) throw error;
            }
          }
        },
        reclaim: () => memory.sync.reclaim(4096),
        wait: () => memory.sync.wait(words, 0, 0, 1),
        readBegin: () => interval.sync.readBegin(),
        rangeFault: () =>
          bifolio.rangeFault.sync(interval, {
            memory,
            space,
            seq: interval.sync.readBegin(),
            start: base,
            length: 4096,
            entries,
          }),
        mutex: () => {
          mutex.sync.lock();
          mutex.unlock();
        },
      };
      const outcomes: Record<string, Record<string, number>> = {};
      while (Atomics.load(plan.control, roles.STOP) === 0) {
        for (const [name, form] of Object.entries(forms)) {
          let outcome = "done";
          try {
            form();
          } catch (error) {
            outcome = bifolio.isMmError(error) ? error.code : String(error);
          }
          const of = (outcomes[name] ??= {});
          of[outcome] = (of[outcome] ?? 0) + 1;
        }
        await roles.turn();
      }
      await agent.done;
      Atomics.store(control, 0, 1);
      await other.done;
      await interval.remove();
      const invariant = memory.check();
      await memory.close();
      return { outcomes, invariant };
    });
    expect(seen.invariant).toBeUndefined();
    const codes = new Set(Object.values(seen.outcomes).flatMap((of) => Object.keys(of)));
    // Holes and forbidden pages are the churn's doing; ENOMEM is madvise() at a hole, EBUSY a range that was overtaken.
    const allowed = new Set(["done", "EAGAIN", "EFAULT", "EACCES", "EBUSY", "ENOMEM"]);
    expect([...codes].filter((code) => !allowed.has(code))).toEqual([]);
    expect(codes).toContain("EAGAIN");
    expect(codes).toContain("done");
  });
});
