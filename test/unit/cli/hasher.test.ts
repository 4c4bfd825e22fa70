/** That a hasher finds what is wrong, and nothing else: each promise of the board, kept and broken. */
import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import {
  Board,
  boardBytes,
  ELSEWHERE,
  FOREIGN,
  GAP,
  PAGE_GAP,
  SHOWS_FILE,
  UNKNOWN,
  UNSTEADY,
  WRITTEN,
} from "../../../src/cli/board.ts";
import { driveAsync, driveBlocking } from "../../../src/cli/drive.ts";
import { Hasher, type Need, Stopped, WRITTEN_PAGES } from "../../../src/cli/hasher.ts";
import { STAMP_FOREIGN, STAMP_SCRATCH, STAMP_WRITTEN, stampedPage, tagOf } from "../../../src/cli/stamps.ts";
import { TableMirror } from "../../../src/mirrors/index.ts";
import { arrayBacking, makeMemory, PAGE, pattern, thrown } from "../../lib/mm.ts";

const WINDOW_PAGES = 8;
const SCRATCH_PAGES = 4;
/** Three windows, the last one and its last page not whole. */
const BYTES = (2 * WINDOW_PAGES + 3) * PAGE - 100;
const SHA256 = createHash("sha256").update(pattern(BYTES)).digest("hex");

async function rig({ passes = 1, mayBlock = true } = {}) {
  const memory = await makeMemory(128, { mayBlock });
  const space = await memory.createSpace();
  const backing = arrayBacking(pattern(BYTES));
  const file = await memory.openFile(backing);
  const start = await space.mmap({ length: BYTES, prot: "rw", share: "private", file });
  const scratchStart = await space.mmap({ length: SCRATCH_PAGES * PAGE, prot: "rw", share: "private" });
  const shape = { hashers: 1, windows: 3, scratchPages: SCRATCH_PAGES };
  const board = new Board(memory.allocShared(boardBytes(shape)), shape);
  for (let page = 0; page < SCRATCH_PAGES; page++) {
    await space.write(scratchStart + page * PAGE, stampedPage(PAGE, tagOf(STAMP_SCRATCH, page), 7));
    board.publishPage(page, 7);
  }
  const mirror = new TableMirror({ memory, space, start, length: Math.ceil(BYTES / PAGE) * PAGE });
  const scratch = new TableMirror({ memory, space, start: scratchStart, length: SCRATCH_PAGES * PAGE });
  const hasher = new Hasher({
    index: 0,
    board,
    mirror,
    scratch,
    file: backing,
    windowPages: WINDOW_PAGES,
    passes,
  });
  const at = { memory, space, board };
  const showFile = (window: number): void => {
    const address = start + window * WINDOW_PAGES * PAGE;
    const offset = window * WINDOW_PAGES * PAGE;
    space.sync.mmap({
      address,
      fixed: true,
      length: windowBytes,
      prot: "rw",
      share: "private",
      file,
      offset,
    });
    board.publish(window, SHOWS_FILE);
  };
  const windowBytes = WINDOW_PAGES * PAGE;
  const remove = async (): Promise<void> => {
    await mirror.remove();
    await scratch.remove();
  };
  return { ...at, at, start, scratchStart, mirror, scratch, hasher, showFile, windowBytes, remove };
}
type Rig = Awaited<ReturnType<typeof rig>>;

/** Runs the hasher to its end; when it waits for a window, what that shows is the file again. */
function runToEnd({ hasher, at, mirror, showFile, board }: Rig): { staleBytes: number; sha256: string } {
  const work = hasher.run();
  const waits: Need[] = [];
  const seen = (function* () {
    for (let step = work.next(); ;) {
      if (step.done) return step.value;
      const need = step.value;
      if (need.kind === "wait") {
        waits.push(need);
        if (waits.length > 3) expect.unreachable("the hasher waits for ever");
        for (let window = 0; window < 3; window++) {
          if (board.stateIndex(window) === need.index) showFile(window);
        }
        step = work.next();
        continue;
      }
      let failure: { error: unknown } | undefined;
      try {
        yield need;
      } catch (error) {
        failure = { error };
      }
      step = failure ? work.throw(failure.error) : work.next();
    }
  })();
  const { sha256, staleBytes } = driveBlocking(at, seen);
  expect(mirror.pages).toBeGreaterThan(0);
  return { staleBytes, sha256: sha256[0]! };
}

describe("the file", () => {
  test("is hashed as node:crypto hashes it, in every pass, by both drivers", async () => {
    for (const mayBlock of [true, false]) {
      const made = await rig({ passes: 2, mayBlock });
      const work = made.hasher.run();
      const findings = mayBlock ? driveBlocking(made.at, work) : await driveAsync(made.at, work);
      expect(findings).toEqual({ sha256: [SHA256, SHA256], staleBytes: 0 });
      expect(made.board.progress(0)).toBe(2 * made.mirror.pages);
      await made.remove();
    }
  });

  test("is not what a window that shows other bytes gives", async () => {
    const made = await rig();
    await made.space.write(made.start + made.windowBytes + 5, Uint8Array.of(1, 2, 3));
    expect(runToEnd(made).sha256).not.toBe(SHA256);
    await made.remove();
  });

  test("is hashed on while its window is unsteady, and after a fault there", async () => {
    const made = await rig();
    made.board.publish(0, UNSTEADY);
    made.board.publish(1, UNSTEADY);
    made.space.sync.munmap(made.start + made.windowBytes, made.windowBytes);
    expect(runToEnd(made)).toEqual({ sha256: SHA256, staleBytes: 0 });
    await made.remove();
  });

  test("must be accessible where its window is said to show it", async () => {
    const made = await rig();
    made.space.sync.munmap(made.start + made.windowBytes, PAGE);
    expect(thrown(() => runToEnd(made))).toMatchObject({ name: "SegvError" });
    await made.remove();
  });

  test("is given up when the board says stop", async () => {
    const made = await rig();
    made.board.stop();
    expect(thrown(() => runToEnd(made))).toBeInstanceOf(Stopped);
    await made.remove();
  });
});

describe("a window that shows something else", () => {
  /** Makes window 1 show `bytes` (by default stamps of the foreign file), and says that it shows `shows`. */
  async function shown(shows: number, detail: number, page: (n: number) => Uint8Array) {
    const made = await rig();
    const address = made.start + made.windowBytes;
    for (let n = 0; n < WINDOW_PAGES; n++) await made.space.write(address + n * PAGE, page(n));
    made.board.publish(1, shows, detail);
    return made;
  }
  const foreign = (n: number): Uint8Array => stampedPage(PAGE, tagOf(STAMP_FOREIGN, 40 + n), 0);
  const written = (n: number): Uint8Array =>
    stampedPage(PAGE, tagOf(STAMP_WRITTEN, 0), n < WRITTEN_PAGES ? 9 : 0);
  const elsewhere = (n: number): Uint8Array => pattern(BYTES).slice((3 + n) * PAGE, (4 + n) * PAGE);
  const cases = [
    ["the other file", FOREIGN, 40, foreign],
    ["the file from another page on", ELSEWHERE, 3, elsewhere],
    ["private copies", WRITTEN, 9, written],
  ] as const;

  test.each(cases)("%s: is looked at and left out of the hash", async (_, shows, detail, page) => {
    const made = await shown(shows, detail, page);
    expect(runToEnd(made)).toEqual({ sha256: SHA256, staleBytes: 0 });
    await made.remove();
  });

  test.each(cases)("%s: other bytes are stale", async (_, shows, detail, page) => {
    const made = await shown(shows, detail + 1, page);
    const { sha256, staleBytes } = runToEnd(made);
    expect(sha256).toBe(SHA256);
    expect(staleBytes).toBeGreaterThan(0);
    expect(staleBytes % PAGE).toBe(0);
    await made.remove();
  });

  test("nobody knows what: is left alone", async () => {
    const made = await shown(UNKNOWN, 0, foreign);
    expect(runToEnd(made)).toEqual({ sha256: SHA256, staleBytes: 0 });
    await made.remove();
  });

  test("nothing: an entry for it is stale", async () => {
    for (const unmapped of [true, false]) {
      const made = await rig();
      made.mirror.fillSync(WINDOW_PAGES);
      const entries = made.mirror.present(WINDOW_PAGES, WINDOW_PAGES);
      if (unmapped) made.space.sync.munmap(made.start + made.windowBytes, made.windowBytes);
      made.board.publish(1, GAP);
      expect(runToEnd(made)).toEqual({ sha256: SHA256, staleBytes: unmapped ? 0 : entries * PAGE });
      await made.remove();
    }
  });
});

describe("a scratch page", () => {
  test("may be newer than what was published", async () => {
    const made = await rig();
    await made.space.write(made.scratchStart, stampedPage(PAGE, tagOf(STAMP_SCRATCH, 0), 8));
    expect(runToEnd(made)).toEqual({ sha256: SHA256, staleBytes: 0 });
    await made.remove();
  });

  test("older than what was published is stale", async () => {
    const made = await rig();
    made.board.publishPage(2, 8);
    expect(runToEnd(made).staleBytes).toBeGreaterThan(0);
    await made.remove();
  });

  test("that shows another page is stale, even in one word", async () => {
    const made = await rig();
    const stamp = stampedPage(PAGE, tagOf(STAMP_SCRATCH, 1), 7);
    new Int32Array(stamp.buffer)[PAGE / 4 - 2] = tagOf(STAMP_SCRATCH, 2);
    await made.space.write(made.scratchStart + PAGE, stamp);
    expect(runToEnd(made).staleBytes).toBeGreaterThan(0);
    await made.remove();
  });

  test("that cannot be accessed has no entry", async () => {
    for (const unmapped of [true, false]) {
      const made = await rig();
      made.scratch.fillSync(0);
      if (unmapped) made.space.sync.munmap(made.scratchStart + PAGE, PAGE);
      made.board.publishPage(1, 7, PAGE_GAP);
      const { staleBytes } = runToEnd(made);
      if (unmapped) expect(staleBytes).toBe(0);
      else expect(staleBytes).toBeGreaterThan(0);
      await made.remove();
    }
  });
});
