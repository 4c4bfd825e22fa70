/** A memory on the main thread of a page, which may not block. */
import { expect, test } from "vitest";
import { usePages } from "./lib/browser.ts";

const pages = usePages();

test("accessors read and write anonymous memory", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const space = await memory.createSpace();
    const base = await space.mmap({ length: 4 * 4096, prot: "rw", share: "private" });
    const straddling = base + 4096 - 2;
    const fresh = space.getUint32(base);
    space.setUint8(base, 0xfe);
    space.setInt16(base + 2, -2);
    space.setUint32(straddling, 0xdeadbeef);
    space.setFloat64(base + 8, Math.PI);
    space.setBigInt64(base + 16, -(2n ** 40n));
    await space.write(base + 4096 * 2 - 3, Uint8Array.of(1, 2, 3, 4, 5, 6));
    const back = new Uint8Array(6);
    await space.read(base + 4096 * 2 - 3, back);
    const spans: number[] = [];
    await space.forEachSpan(base, 4 * 4096, "r", (span) => spans.push(span.length));
    const values = [
      fresh,
      space.getInt8(base),
      space.getUint16(base + 2),
      space.getUint32(straddling),
      space.getUint16(base + 4096),
      space.getFloat64(base + 8),
      String(space.getBigUint64(base + 16)),
      space.atomics.add(base + 24, 5),
      space.atomics.compareExchange(base + 24, 5, 7),
      space.atomics.load(base + 24),
      [...back].join(),
      spans.reduce((a, b) => a + b, 0),
    ];
    const invariant = memory.check();
    await memory.close();
    return { values, invariant };
  });
  expect(seen).toEqual({
    values: [
      0,
      -2,
      0xfffe,
      0xdeadbeef,
      0xdead,
      Math.PI,
      String(2n ** 64n - 2n ** 40n),
      0,
      5,
      7,
      "1,2,3,4,5,6",
      4 * 4096,
    ],
    invariant: undefined,
  });
});

test("mappings change, and what they forbid is a SegvError", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const space = await memory.createSpace();
    const base = await space.mmap({ length: 4 * 4096, prot: "rw", share: "private" });
    const outcome = (access: () => unknown): unknown => {
      try {
        return access();
      } catch (error) {
        return error instanceof bifolio.SegvError ? error.reason : String(error);
      }
    };
    for (let k = 0; k < 4; k++) space.setUint32(base + k * 4096, k + 1);
    await space.mprotect(base, 4096, "r");
    await space.munmap(base + 4096, 4096);
    await space.madvise(base + 2 * 4096, 4096, "dontneed");
    const accesses = [
      outcome(() => space.getUint32(base)),
      outcome(() => space.setUint32(base, 9)),
      outcome(() => space.getUint32(base + 4096)),
      outcome(() => space.getUint32(base + 2 * 4096)),
      outcome(() => space.getUint32(base + 3 * 4096)),
    ];
    const vmas = space
      .vmas()
      .map(({ start, end, prot }) => [(start - base) / 4096, (end - base) / 4096, prot]);
    const invariant = memory.check();
    await memory.close();
    return { accesses, vmas, invariant };
  });
  expect(seen).toEqual({
    accesses: [1, "SEGV_ACCERR", "SEGV_MAPERR", 0, 4],
    vmas: [
      [0, 1, "r--"],
      [2, 4, "rw-"],
    ],
    invariant: undefined,
  });
});

test("a memory backing is one file in every mapping of it", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const one = await memory.createSpace();
    const other = await memory.createSpace();
    const file = await memory.openFile(bifolio.memoryBacking(3 * 4096), { name: "shared.bin" });
    const shared = await one.mmap({ length: file.size, prot: "rw", share: "shared", file });
    const again = await other.mmap({ length: 4096, prot: "r", share: "shared", file, offset: 4096 });
    const own = await other.mmap({ length: file.size, prot: "rw", share: "private", file });
    const before = other.getUint32(own + 4096);
    one.setUint32(shared + 4096, 77);
    const through = [other.getUint32(again), other.getUint32(own + 4096)];
    other.setUint32(own + 4096, 88); // copied
    one.setUint32(shared + 4096, 99);
    const bytes = new Uint8Array(4);
    await file.read(4096, bytes);
    const values = [before, through, other.getUint32(own + 4096), other.getUint32(again), bytes[0]];
    const { cow } = memory.stats().faults;
    const invariant = memory.check();
    await memory.close();
    return { values, cow, invariant };
  });
  expect(seen).toEqual({ values: [0, [77, 77], 88, 99, 99], cow: 1, invariant: undefined });
});

test("an accessor on a page that a Promise has to bring is EAGAIN, and run() brings it", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const space = await memory.createSpace();
    const backing = backings.asyncBacking(40 * 4096 + 100);
    const file = await memory.openFile(backing);
    const base = await space.mmap({ length: file.size, prot: "r", share: "shared", file });
    const codeOf = (access: () => unknown): unknown => {
      try {
        return access();
      } catch (error) {
        return bifolio.isMmError(error) ? error.code : String(error);
      }
    };
    const right = (offset: number, bytes: Iterable<number>): boolean =>
      [...bytes].every((byte, k) => byte === backings.byteAt(offset + k));

    const cold = [
      codeOf(() => space.getUint8(base)),
      codeOf(() => space.sync.read(base, new Uint8Array(1))),
      codeOf(() => space.try.populate(base, 4096)),
      codeOf(() => [...space.spans(base, 4096)].length),
    ];
    // Pages far apart in one function: it is run again for each that is missing.
    let runs = 0;
    const offsets = [5, 17 * 4096 + 6, 40 * 4096 + 99];
    const got = await space.run(() => {
      runs++;
      return offsets.map((offset) => space.getUint8(base + offset));
    });
    const warm = codeOf(() => space.getUint8(base + 5));
    const bytes = new Uint8Array(30_000);
    await space.read(base + 4096 * 20 + 1, bytes);
    const streamed: boolean[] = [];
    await space.forEachSpan(base, file.size, "r", (span, at) => {
      streamed.push(right(at - base, span));
    });
    const beyond = codeOf(() => space.getUint8(base + 41 * 4096));
    const invariant = memory.check();
    await memory.close();
    return {
      cold,
      again: runs > 1,
      right: offsets.map((offset, k) => right(offset, [got[k]!])),
      warm: warm === backings.byteAt(5),
      read: right(4096 * 20 + 1, bytes),
      streamed: streamed.every(Boolean) && streamed.length > 0,
      beyond,
      invariant,
    };
  });
  expect(seen).toEqual({
    cold: ["EAGAIN", "EAGAIN", "EAGAIN", "EAGAIN"],
    again: true,
    right: [true, true, true],
    warm: true,
    read: true,
    streamed: true,
    beyond: "EFAULT",
    invariant: undefined,
  });
});

test("a file larger than the budget streams through, and comes back written", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "512 KiB", arena: "4 MiB", debug: true });
    const space = await memory.createSpace();
    const backing = backings.asyncBacking(2 * 1024 ** 2);
    const original = backing.bytes.slice();
    const file = await memory.openFile(backing, { writable: true });
    const base = await space.mmap({ length: file.size, prot: "rw", share: "shared", file });
    await space.forEachSpan(base, file.size, "rw", (span) => {
      for (let k = 0; k < span.length; k++) span[k]! ^= 0xff;
    });
    await space.msync(base, file.size);
    const wrong = backing.bytes.findIndex((byte, k) => byte !== (original[k]! ^ 0xff));
    const { frames, evictions } = memory.stats();
    const invariant = memory.check();
    await memory.close();
    return {
      wrong,
      evicted: evictions > 0,
      within: frames.peak <= frames.total,
      flushed: backing.counts.flushes > 0,
      invariant,
    };
  });
  expect(seen).toEqual({ wrong: -1, evicted: true, within: true, flushed: true, invariant: undefined });
});

test("a write-back that would have to wait is EAGAIN, and fails nothing", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "256 KiB", arena: "4 MiB", debug: true });
    const space = await memory.createSpace();
    const reported: string[] = [];
    memory.onError = (error) => reported.push(error.message);
    const backing = backings.asyncBacking(1024 ** 2);
    const file = await memory.openFile(backing, { writable: true });
    const base = await space.mmap({ length: file.size, prot: "rw", share: "shared", file });
    await space.run(() => space.setUint32(base, 1));
    const codeOf = (operation: () => unknown): unknown => {
      try {
        return operation();
      } catch (error) {
        return bifolio.isMmError(error) ? error.code : String(error);
      }
    };
    const codes = [
      codeOf(() => space.sync.msync(base, 4096)),
      codeOf(() => space.try.msync(base, 4096)),
      codeOf(() => memory.sync.sync(file)),
    ];
    const { writes } = backing.counts;
    // Four times the budget, all of it dirty: from some page on each store has to wait for the writing of another.
    let runs = 0;
    const pageCount = file.size / 4096;
    for (let k = 0; k < pageCount; k++) {
      await space.run(() => {
        runs++;
        space.setUint32(base + k * 4096, k + 1);
      });
    }
    await file.sync();
    const words = new Uint32Array(backing.bytes.buffer);
    const wrong = Array.from({ length: pageCount }, (_, k) => words[k * 1024]).findIndex(
      (v, k) => v !== k + 1,
    );
    const invariant = memory.check();
    await memory.close();
    return { codes, writes, waited: runs > pageCount, wrong, reported, invariant };
  });
  expect(seen).toEqual({
    codes: ["EAGAIN", "EAGAIN", "EAGAIN"],
    writes: 0,
    waited: true,
    wrong: -1,
    reported: [],
    invariant: undefined,
  });
});

test("a backing that fails is a BusError, and works again afterwards", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const space = await memory.createSpace();
    const backing = backings.asyncBacking(64 * 1024);
    const file = await memory.openFile(backing);
    const base = await space.mmap({ length: file.size, prot: "r", share: "private", file });
    backing.broken = true;
    const failed = await space
      .run(() => space.getUint8(base))
      .then(String, (error: unknown) => (error instanceof bifolio.BusError ? error.message : String(error)));
    backing.broken = false;
    const value = await space.run(() => space.getUint8(base));
    const invariant = memory.check();
    await memory.close();
    return { failed, value: value === backings.byteAt(0), invariant };
  });
  expect(seen).toEqual({
    failed: expect.stringContaining("the network is gone"),
    value: true,
    invariant: undefined,
  });
});

test("wait() sleeps until a worker notifies, while the page goes on", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const words = memory.allocShared(8);
    const sync = ((): unknown => {
      try {
        return memory.sync.wait(words, 0, 0, 10);
      } catch (error) {
        return bifolio.isMmError(error) ? error.code : String(error);
      }
    })();
    const different = memory.sync.wait(words, 0, 5, 10);
    const timedOut = await memory.wait(words, 0, 0, 5);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 5);
    const agent = await startAgent(
      memory,
      (m, byteOffset) => {
        const shared = new Int32Array(m.handle.memories[0]!.buffer, byteOffset, 2);
        m.sync.wait(shared, 1, 0, 100); // nobody wakes it
        Atomics.store(shared, 0, 1);
        Atomics.notify(shared, 0);
      },
      words.byteOffset,
    );
    const woken = await memory.wait(words, 0, 0);
    clearInterval(timer);
    await agent.done;
    await memory.close();
    return { sync, different, timedOut, woken, wentOn: ticks > 3 };
  });
  expect(seen).toEqual({
    sync: "EAGAIN",
    different: "not-equal",
    timedOut: "timed-out",
    woken: "ok",
    wentOn: true,
  });
});

test("mayBlock: true is refused where the platform forbids it", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const codeOf = (promise: Promise<unknown>): Promise<string> =>
      promise.then(
        () => "no error",
        (error: unknown) => (bifolio.isMmError(error) ? error.message : String(error)),
      );
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const created = await codeOf(bifolio.createMemory({ budget: "1 MiB", mayBlock: true }));
    const attached = await codeOf(bifolio.attach(memory.handle, { mayBlock: true }));
    const agents = memory.stats().agents.length;
    await memory.close();
    return { created, attached, agents };
  });
  expect(seen).toEqual({
    created: expect.stringMatching(/^ENOTSUP createMemory: .*block/),
    attached: expect.stringMatching(/^ENOTSUP attach: .*block/),
    agents: 1,
  });
});

test("while a worker holds a page, try and sync are EAGAIN with nothing half done, and the page goes on", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const space = await memory.createSpace();
    const base = await space.mmap({ length: 4096, prot: "rw", share: "private" });
    space.setUint32(base, 42);
    const control = new Int32Array(new SharedArrayBuffer(4));
    const agent = await startAgent(
      memory,
      (m, { id, base: address, control: words }) => {
        m.space(id).setUint32(address, 43);
        Atomics.store(words, 0, 1);
        const end = performance.now() + 400;
        while (performance.now() < end); // a long computation without poll()
      },
      { id: space.id, base, control },
    );
    while (Atomics.load(control, 0) === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    const codeOf = (operation: () => unknown): unknown => {
      try {
        return operation();
      } catch (error) {
        return bifolio.isMmError(error) ? error.code : String(error);
      }
    };
    const codes = [
      codeOf(() => space.try.munmap(base, 4096)),
      codeOf(() => space.sync.munmap(base, 4096)),
      codeOf(() => space.sync.mprotect(base, 4096, "r")),
      codeOf(() => space.sync.madvise(base, 4096, "dontneed")),
    ];
    space.setUint32(base, 44); // still mapped, still writable
    let ticks = 0;
    const timer = setInterval(() => ticks++, 10);
    await space.munmap(base, 4096);
    clearInterval(timer);
    await agent.done;
    const mapped = space.vmas().length;
    const invariant = memory.check();
    await memory.close();
    return { codes, wentOn: ticks > 3, mapped, invariant };
  });
  expect(seen).toEqual({
    codes: ["EAGAIN", "EAGAIN", "EAGAIN", "EAGAIN"],
    wentOn: true,
    mapped: 0,
    invariant: undefined,
  });
});
