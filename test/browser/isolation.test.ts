/** What a page gets with and without cross-origin isolation. */
import { expect, test } from "vitest";
import { usePages } from "./lib/browser.ts";

const pages = usePages();

test("the entries load in a page, with nothing of Node's", async () => {
  const page = await pages.open();
  const exported = await page.evaluate(() =>
    [bifolio, notifier, sync].map((entry) => Object.keys(entry).length),
  );
  expect(Math.min(...exported)).toBeGreaterThan(0);
  // A static import of "node:…" would have failed; the entries and chunks that were asked for are these.
  expect(pages.built()).toEqual(
    expect.arrayContaining(["/dist/index.js", "/dist/notifier.js", "/dist/sync.js"]),
  );
  expect(pages.built()).not.toContain("/dist/node.js");
});

test("with the two headers there is shared memory, which reaches workers", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const space = await memory.createSpace();
    const base = await space.mmap({ length: 4096, prot: "rw", share: "private" });
    space.setUint32(base, 4711);
    const agent = await startAgent(memory, (m, arg) => m.space(arg.id).getUint32(arg.base), {
      id: space.id,
      base,
    });
    const value = await agent.done;
    await memory.close();
    return { isolated: crossOriginIsolated, value };
  });
  expect(seen).toEqual({ isolated: true, value: 4711 });
});

test("without them createMemory() is ENOTSUP and names them", async () => {
  const page = await pages.open({ isolated: false });
  const seen = await page.evaluate(async () => {
    const error = await bifolio.createMemory({ budget: "1 MiB" }).then(
      () => undefined,
      (e: unknown) => e,
    );
    return {
      isolated: crossOriginIsolated,
      known: bifolio.isMmError(error, "ENOTSUP"),
      message: String(error),
    };
  });
  expect(seen).toMatchObject({ isolated: false, known: true });
  expect(seen.message).toContain("Cross-Origin-Opener-Policy: same-origin");
  expect(seen.message).toContain("Cross-Origin-Embedder-Policy: require-corp");
});

test("without them createNotifiers() serves somebody else's primary MMU", async () => {
  const page = await pages.open({ isolated: false });
  const seen = await page.evaluate(async () => {
    const { createNotifiers, MmuNotifier, MmuNotifierEvent } = notifier;
    const log: string[] = [];
    const notifiers = createNotifiers({ debug: true });
    const mirror = new Map([[0x1000, "old"]]);
    const interval = await notifiers.insert(
      {
        async invalidate(self, range, curSeq) {
          self.setSeq(curSeq);
          await new Promise((resolve) => setTimeout(resolve, 1)); // a device that answers later
          mirror.delete(0x1000);
          log.push(`interval [${range.start}, ${range.end})`);
          return true;
        },
      },
      0x1000,
      0x1000,
    );
    const listed = new MmuNotifier({
      invalidateRangeStart: () => void log.push("start"),
      invalidateRangeEnd: () => void log.push("end"),
      release: () => void log.push("release"),
    });
    await notifiers.register(listed);

    const seq = await interval.readBegin();
    const range = { start: 0x1800, end: 0x2800, event: MmuNotifierEvent.Unmap };
    const change = notifiers.invalidate(range, () => {
      log.push(`change, mirror ${mirror.size}`);
    });
    const begun = interval.readBegin().then((later) => log.push(`read ${later !== seq}`));
    await change;
    await begun;
    const retry = interval.readRetry(seq);
    const elsewhere = { start: 0x5000, end: 0x6000, event: MmuNotifierEvent.Clear };
    notifiers.sync.invalidate(elsewhere, () => void log.push("elsewhere"));
    await interval.remove();
    await notifiers.release();
    return { retry, log, shared: typeof SharedArrayBuffer };
  });
  expect(seen).toEqual({
    retry: true,
    log: [
      "interval [6144, 10240)",
      "start",
      "change, mirror 0",
      "end",
      "read true",
      "start",
      "elsewhere",
      "end",
      "release",
    ],
    shared: "undefined",
  });
});
