/**
 * Write trackers under schedules: agents of one thread whose operations take turns at every lock and every wait, in an order
 * that a seed chooses. What was stored before a round of the owner is in what it copies, and what a device has is what
 * everybody reads.
 */
import fc from "fast-check";
import { expect, test } from "vitest";
import { NO_FRAME, snapshotPages } from "../../src/hmm/index.ts";
import { clearRefsOp } from "../../src/mm/clearRefs.ts";
import {
  type AddressSpace,
  attach,
  createMemory,
  memoryBacking,
  type PhysicalMemory,
  WriteTracker,
} from "../../src/mm/index.ts";
import { madviseOp } from "../../src/mm/madvise.ts";
import { mprotectOp } from "../../src/mm/mprotect.ts";
import { MmuNotifierEvent } from "../../src/notifier/index.ts";
import { CheckerDriver, type Op, seededChooser } from "../../src/sched/index.ts";
import { PAGE } from "../lib/mm.ts";

/** Pages that are stored to; one more is changed by others. */
const PAGES = 3;
const AGENTS = 3;
const ROUNDS = 4;
const MAX_STEPS = 20_000;
const RUNS = Number(process.env["BIFOLIO_RUNS"] ?? 150);

interface World {
  readonly memories: readonly PhysicalMemory[];
  readonly spaces: readonly AddressSpace[];
  readonly base: number;
  /** Where the second agent stores: the same space, or another that maps the same file. */
  readonly elsewhere: { readonly space: AddressSpace; readonly base: number };
  readonly tracker: WriteTracker;
  /** Frames of pages that are away. */
  readonly away: Map<number, number>;
  /** What the device has in the first byte of each page. */
  readonly device: number[];
}

/** Runs a scenario with a schedule. */
async function withWorld(
  seed: number,
  kind: "private" | "file",
  spawn: (world: World, checker: CheckerDriver) => void,
): Promise<void> {
  const first = await createMemory({ budget: 64 * PAGE, arena: "2 MiB", mayBlock: true, debug: true });
  const memories = [first];
  try {
    while (memories.length < AGENTS) memories.push(await attach(first.handle, { mayBlock: true }));
    const space = first.sync.createSpace();
    const length = (PAGES + 1) * PAGE;
    const file = kind === "file" ? first.sync.openFile(memoryBacking(length)) : undefined;
    const mapping = {
      length,
      prot: "rw",
      share: file ? "shared" : "private",
      ...(file && { file }),
    } as const;
    const base = space.sync.mmap(mapping);
    for (let page = 0; page <= PAGES; page++) space.setUint8(base + page * PAGE, 0);
    first.poll();
    const tracker = await WriteTracker.create(space, base, (PAGES + 1) * PAGE);
    const spaces = memories.map((memory) => memory.space(space.id));
    let elsewhere = { space: spaces[1]!, base };
    if (file) {
      const other = memories[1]!.space(first.sync.createSpace().id);
      elsewhere = { space: other, base: other.sync.mmap({ ...mapping, file: memories[1]!.file(file.id) }) };
      memories[1]!.poll();
    }
    const world: World = { memories, spaces, base, elsewhere, tracker, away: new Map(), device: [] };
    const interval = space.notifiers.sync.insert(
      {
        invalidate: (self, range, seq) => {
          if (range.owner === tracker.owner) return true;
          self.setSeq(seq);
          const from = Math.max(0, (range.start - base) / PAGE);
          const to = Math.min(PAGES + 1, (range.end - base) / PAGE);
          for (const [page, pfn] of world.away) {
            if (page < from || page >= to) continue;
            space.memory.frame(pfn)[0] = world.device[page]!;
            world.away.delete(page);
            tracker.comeHome(page, page + 1);
          }
          const { ProtectionPage, SoftDirty } = MmuNotifierEvent;
          if (range.event !== ProtectionPage && range.event !== SoftDirty) tracker.mark(from, to);
          return true;
        },
      },
      base,
      (PAGES + 1) * PAGE,
    );
    const checker = new CheckerDriver(seededChooser(seed));
    for (const { agent } of memories) agent.fastPaths = false;
    spawn(world, checker);
    try {
      checker.run(MAX_STEPS);
    } finally {
      for (const { agent } of memories) {
        agent.simulated = false;
        agent.fastPaths = true;
      }
    }
    for (const memory of memories) memory.poll();
    tracker.comeHome(0, PAGES + 1);
    expect(first.check()).toBeUndefined();
    await tracker.remove();
    await interval.remove();
  } finally {
    for (const memory of memories.slice(1).reverse()) memory.detach();
    await first.close();
  }
}

function* point(what: string): Op<void> {
  yield { kind: "point", what };
}

/** Others that change what concerns nobody. */
function* disturb(space: AddressSpace, base: number): Op<void> {
  const page = base + PAGES * PAGE;
  for (let round = 0; round < ROUNDS; round++) {
    yield* madviseOp(space, page, PAGE, "dontneed");
    yield* clearRefsOp(space, "soft-dirty");
    yield* mprotectOp(space, page, PAGE, "r");
    yield* mprotectOp(space, page, PAGE, "rw");
  }
}

/** Spawns a copier, a writer and a disturber. `copyFirst`: the order that loses stores. */
function copies(copyFirst: boolean) {
  return ({ spaces, base, elsewhere, tracker }: World, checker: CheckerDriver): void => {
    const said = Array.from({ length: PAGES }, () => 0);
    const copy = new Uint8Array(PAGES + 1);
    const [mine, , third] = spaces as [AddressSpace, AddressSpace, AddressSpace];
    const { space: theirs, base: theirBase } = elsewhere;
    const copyPages = (pages: readonly number[]): void => {
      const frames = new Int32Array(pages.length);
      snapshotPages(mine, base / PAGE, pages, frames);
      pages.forEach((page, k) => {
        if (frames[k] !== NO_FRAME) copy[page] = mine.memory.frame(frames[k]!)[0]!;
      });
    };
    checker.spawn(
      mine.agent,
      "copier",
      (function* (): Op<void> {
        for (let round = 0; round < 2 * ROUNDS; round++) {
          const before = [...said];
          const pages = tracker.written(0, PAGES + 1);
          if (copyFirst) copyPages(pages);
          yield* tracker.takeOp(pages);
          if (!copyFirst) copyPages(pages);
          for (let page = 0; page < PAGES; page++)
            if (copy[page]! < before[page]!)
              throw new Error(`page ${page} is stale: ${copy[page]}, ${before[page]} was stored before`);
          yield* point("the next round");
        }
      })(),
    );
    checker.spawn(
      theirs.agent,
      "writer",
      (function* (): Op<void> {
        for (let v = 1; v <= 2 * ROUNDS; v++) {
          for (let page = 0; page < PAGES; page++) {
            const address = theirBase + page * PAGE;
            // Through a translation that it has: no safepoint, so only the acknowledgement tells that it is over.
            if (theirs.active && theirs.lookup(address / PAGE, true) >= 0) {
              theirs.setUint8(address, v);
              hits++;
            } else yield* theirs.copyOp("write", address, Uint8Array.of(v), true);
            said[page] = v;
            yield* point("the next store");
          }
        }
      })(),
    );
    checker.spawn(third.agent, "others", disturb(third, base));
  };
}

/** Stores through a translation that was there. */
let hits = 0;

test.each(["private", "file"] as const)("no schedule loses a store: %s", async (kind) => {
  hits = 0;
  await fc.assert(
    fc.asyncProperty(fc.nat(), (seed) => withWorld(seed, kind, copies(false))),
    { numRuns: RUNS },
  );
  expect(hits).toBeGreaterThan(0);
});

test.each(["private", "file"] as const)(
  "to copy before the take does, and that is noticed: %s",
  async (kind) => {
    const search = fc.assert(
      fc.asyncProperty(fc.nat(), (seed) => withWorld(seed, kind, copies(true))),
      { numRuns: 150, endOnFailure: true },
    );
    await expect(search).rejects.toMatchObject({ cause: { message: expect.stringMatching(/is stale/) } });
  },
);

test("no schedule shows old bytes of a page that a device has", async () => {
  let met = 0;
  await fc.assert(
    fc.asyncProperty(fc.nat(), (seed) =>
      withWorld(seed, "private", ({ spaces, base, tracker, away, device }, checker) => {
        const said = Array.from({ length: PAGES }, () => 0);
        const [mine, theirs, third] = spaces as [AddressSpace, AddressSpace, AddressSpace];
        for (let page = 0; page < PAGES; page++) device[page] = 0;
        checker.spawn(
          mine.agent,
          "device",
          (function* (): Op<void> {
            for (let round = 1; round <= 2 * ROUNDS; round++) {
              for (let page = 0; page < PAGES; page++) {
                if (!away.has(page)) yield* tracker.sendAwayOp([page], (at, pfn) => away.set(at, pfn));
                if (!away.has(page)) continue; // somebody has it again already
                device[page] = round;
                said[page] = round;
                yield* point("the next page");
              }
            }
          })(),
        );
        const reader = function* (space: AddressSpace): Op<void> {
          const byte = new Uint8Array(1);
          for (let n = 0; n < 4 * ROUNDS; n++) {
            const page = n % PAGES;
            const before = said[page]!;
            if (away.has(page)) met++;
            yield* space.copyOp("read", base + page * PAGE, byte, false);
            if (byte[0]! < before)
              throw new Error(`page ${page} is stale: ${byte[0]}, the device had ${before}`);
            yield* point("the next load");
          }
        };
        checker.spawn(theirs.agent, "reader", reader(theirs));
        checker.spawn(third.agent, "others", disturb(third, base));
      }),
    ),
    { numRuns: RUNS },
  );
  expect(met).toBeGreaterThan(0);
});
