/** Page tables that fork shares: which ones, who gets one of his own and when, and that nobody sees the difference. */
import { describe, expect, test } from "vitest";
import type { AddressSpace, PhysicalMemory } from "../../../src/mm/index.ts";
import {
  anonymous,
  attachTo,
  makeRig,
  PAGE,
  pattern,
  record,
  sharedBacking,
  thrown,
  verify,
} from "../../lib/mm.ts";

/** Pages behind one table. */
const TABLE = 1024;
const TABLE_BYTES = 4096;
const at = (page: number): number => page * PAGE;
/** Where the tests map: a whole table and two pages of the next. */
const BASE = at(4 * TABLE);
const PAGES = TABLE + 2;

const arena = (memory: PhysicalMemory): number => memory.stats().arenaBytes;

/** A space with a few pages in each of its two tables, written with their numbers. */
async function populated(
  frames = 128,
): Promise<{ memory: PhysicalMemory; raw: AddressSpace; written: number[] }> {
  const { memory, raw } = await makeRig(frames);
  raw.sync.mmap(anonymous(PAGES, { address: BASE, fixed: true }));
  const written = [0, 1, 2, 500, TABLE - 1, TABLE, TABLE + 1];
  for (const k of written) raw.setUint32(BASE + at(k), k + 1);
  return { memory, raw, written };
}

/** Everything that can be seen of a space. */
function portrait(space: AddressSpace, written: readonly number[]): unknown {
  return [
    space.vmas(),
    written.map((k) => {
      // Looked at first: a load of what is not there would give the space a table of its own.
      const { present, softDirty, guard, zero } = space.pagemap(BASE + at(k), PAGE)[0]!;
      const value = present ? space.getUint32(BASE + at(k)) : undefined;
      return [k, value, softDirty, guard, zero];
    }),
  ];
}

describe("a fork", () => {
  test("takes no table for the child where nothing but private memory is, and the first store takes one", async () => {
    const { memory, raw, written } = await populated();
    const first = raw.sync.fork();
    first.sync.exit();
    const before = arena(memory);
    const a = raw.sync.fork();
    const cost = arena(memory) - before;
    const b = raw.sync.fork();
    expect(arena(memory) - before).toBe(2 * cost);
    expect(memory.stats().frames.anon).toBe(written.length);
    verify(memory);
    const idle = arena(memory);
    a.setUint32(BASE, 7); // also the table of its translations
    const other = arena(memory) - idle;
    a.setUint32(BASE + at(1), 7);
    expect(arena(memory)).toBe(idle + other);
    a.setUint32(BASE + at(TABLE), 7);
    expect(arena(memory)).toBe(idle + other + TABLE_BYTES);
    verify(memory);
    expect([raw, a, b].map((space) => space.getUint32(BASE))).toEqual([1, 7, 1]);
    expect([raw, a, b].map((space) => space.getUint32(BASE + at(2)))).toEqual([3, 3, 3]);
    for (const space of [b, a]) space.sync.exit();
    verify(memory);
  });

  test("leaves the last one a table without a copy", async () => {
    const { memory, raw, written } = await populated();
    const child = raw.sync.fork();
    child.sync.exit();
    const before = arena(memory);
    for (const k of written) raw.setUint32(BASE + at(k), 100 + k);
    expect(arena(memory)).toBe(before);
    expect(memory.stats().faults.cow).toBe(0);
    verify(memory);
    const heir = raw.sync.fork();
    raw.sync.exit();
    for (const k of written) heir.setUint32(BASE + at(k), 200 + k);
    expect(memory.stats().faults.cow).toBe(0);
    expect(memory.stats().frames.anon).toBe(written.length);
    verify(memory);
  });

  test.each([
    [
      "a file",
      (s: AddressSpace, m: PhysicalMemory) => {
        const file = m.sync.openFile(sharedBacking(pattern(at(4))));
        s.sync.mmap(anonymous(4, { address: BASE + at(TABLE + 8), fixed: true, file }));
      },
    ],
    [
      "shared memory",
      (s: AddressSpace) => {
        s.sync.mmap(anonymous(4, { address: BASE + at(TABLE + 8), fixed: true, share: "shared" }));
      },
    ],
    [
      "memory that is not forked",
      (s: AddressSpace) => {
        s.sync.mmap(anonymous(4, { address: BASE + at(TABLE + 8), fixed: true }));
        s.setUint32(BASE + at(TABLE + 8), 1);
        s.sync.madvise(BASE + at(TABLE + 8), at(4), "dontfork");
      },
    ],
    [
      "memory that is wiped",
      (s: AddressSpace) => {
        s.sync.mmap(anonymous(4, { address: BASE + at(TABLE + 8), fixed: true }));
        s.setUint32(BASE + at(TABLE + 8), 1);
        s.sync.madvise(BASE + at(TABLE + 8), at(4), "wipeonfork");
      },
    ],
    [
      "memory without pages of its own",
      (s: AddressSpace) => {
        s.sync.mmap(anonymous(4, { address: BASE + at(TABLE + 8), fixed: true }));
        s.getUint32(BASE + at(TABLE + 8)); // the zero page
      },
    ],
  ])("copies a table in which there is %s, and shares the one beside it", async (_, add) => {
    const { memory, raw, written } = await populated();
    add(raw, memory);
    raw.sync.fork().sync.exit();
    const before = arena(memory);
    const child = raw.sync.fork();
    verify(memory);
    // Written in the first table: a table comes. In the second the child has one of its own already.
    child.setUint32(BASE + at(TABLE), 9);
    const mid = arena(memory);
    child.setUint32(BASE + at(TABLE + 1), 9);
    expect(arena(memory)).toBe(mid);
    child.setUint32(BASE, 9);
    expect(arena(memory)).toBe(mid + TABLE_BYTES);
    expect(mid).toBeGreaterThan(before);
    expect(written.map((k) => raw.getUint32(BASE + at(k)))).toEqual(written.map((k) => k + 1));
    verify(memory);
    child.sync.exit();
    verify(memory);
  });

  test("of a fork, of a fork: each sees its own moment, and all is free at the end", async () => {
    const { memory, raw, written } = await populated(256);
    const line = [raw];
    for (let n = 1; n <= 12; n++) {
      line.push(line[(n * 5) % line.length]!.sync.fork());
      line.at(-1)!.setUint32(BASE + at(n % 3), 1000 + n);
      verify(memory);
    }
    for (const [k, space] of line.entries()) {
      for (const page of written.slice(3)) expect(space.getUint32(BASE + at(page))).toBe(page + 1);
      if (k > 0) expect(space.getUint32(BASE + at(k % 3))).toBe(1000 + k);
    }
    for (const k of [3, 0, 7, 12, 1, 5, 2, 9, 11, 4, 10, 6, 8]) {
      line[k]!.sync.exit();
      verify(memory);
    }
    expect(memory.stats().frames.anon).toBe(0);
  });
});

const OPERATIONS: readonly (readonly [string, (space: AddressSpace) => void])[] = [
  ["a store", (s) => s.setUint32(BASE + at(500), 77)],
  ["a store into a new page", (s) => s.setUint32(BASE + at(600), 77)],
  ["a load of a new page", (s) => void s.getUint32(BASE + at(600))],
  ["write()", (s) => s.sync.write(BASE + at(1), pattern(at(2)))],
  ["munmap of a part", (s) => s.sync.munmap(BASE + at(1), at(2))],
  ["munmap of all", (s) => s.sync.munmap(BASE, at(PAGES))],
  ["mmap over it", (s) => void s.sync.mmap(anonymous(2, { address: BASE, fixed: true }))],
  ["mprotect to nothing", (s) => s.sync.mprotect(BASE, at(3), "none")],
  [
    "mprotect to read-only and back",
    (s) => {
      s.sync.mprotect(BASE, at(PAGES), "r");
      s.sync.mprotect(BASE, at(PAGES), "rw");
    },
  ],
  [
    "mremap to another place",
    (s) => void s.sync.mremap(BASE, at(2), at(2), { mayMove: true, to: BASE + at(5 * TABLE) }),
  ],
  [
    "mremap onto it",
    (s) => {
      s.sync.mmap(anonymous(2, { address: BASE + at(8 * TABLE), fixed: true }));
      s.setUint32(BASE + at(8 * TABLE), 5);
      s.sync.mremap(BASE + at(8 * TABLE), at(2), at(2), { mayMove: true, to: BASE });
    },
  ],
  ["clearRefs", (s) => s.sync.clearRefs("soft-dirty")],
  ["clearRefs of accesses", (s) => s.sync.clearRefs("referenced")],
  ["mlock", (s) => s.sync.mlock(BASE, at(3))],
  ["populate", (s) => s.sync.populate(BASE, at(3), "rw")],
  ["a span", (s) => void ([...s.spans(BASE, at(2), "rw")][0]![0] = 9)],
  ["an atomic", (s) => void s.atomics.add(BASE, 1)],
  ["exit", (s) => s.sync.exit()],
  ...(["dontneed", "free", "cold", "pageout", "guard-install", "populate-write", "dontfork"] as const).map(
    (advice) =>
      [`madvise ${advice}`, (s: AddressSpace): void => s.sync.madvise(BASE + at(1), at(2), advice)] as const,
  ),
];

describe("what one space does to a shared table no other sees", () => {
  test.each(OPERATIONS)("%s", async (_, operation) => {
    for (const actor of [0, 1, 2]) {
      const { memory, raw, written } = await populated(192);
      raw.sync.madvise(BASE + at(700), PAGE, "guard-install");
      const pages = [...written, 600, 700];
      const child = raw.sync.fork();
      const family = [raw, child, child.sync.fork()];
      const before = family.map((space) => portrait(space, pages));
      operation(family[actor]!);
      memory.poll();
      verify(memory);
      family.forEach((space, k) => {
        if (k !== actor) expect(portrait(space, pages)).toEqual(before[k]);
      });
      // The others write afterwards as if nothing had been.
      for (const [k, space] of family.entries()) {
        if (k === actor) continue;
        for (const page of written) space.setUint32(BASE + at(page), 10_000 * k + page);
      }
      for (const [k, space] of family.entries()) {
        if (k === actor) continue;
        expect(written.map((page) => space.getUint32(BASE + at(page)))).toEqual(
          written.map((page) => 10_000 * k + page),
        );
        space.sync.exit();
        verify(memory);
      }
    }
  });

  test("and only who writes hears of it", async () => {
    const { memory, raw } = await populated();
    const child = raw.sync.fork();
    const [ofParent, ofChild] = [record(raw), record(child)];
    child.setUint32(BASE, 5);
    expect([ofParent.take(), ofChild.take()]).toEqual([
      [],
      [`Clear ${BASE.toString(16)}-${(BASE + PAGE).toString(16)}`],
    ]);
    // The old page is the parent's alone by now: no copy.
    raw.setUint32(BASE, 6);
    expect([ofParent.take(), ofChild.take()]).toEqual([[], []]);
    verify(memory);
  });
});

describe("another agent", () => {
  test.each([
    ["is replaced", false],
    ["is replaced and freed", true],
  ])("that looks a page up while its table %s does not keep what it found", async (_, freed) => {
    const { memory, raw } = await populated();
    const other = await attachTo(memory);
    const there = other.space(raw.id);
    const child = raw.sync.fork();
    // Between its look at the table and its last look at the entry, the page gets another frame.
    const { frames } = other.mm;
    const segmentOf = frames.segmentOf.bind(frames);
    let done = false;
    frames.segmentOf = (pfn) => {
      if (!done) {
        done = true;
        raw.setUint32(BASE, 42);
        if (freed) child.sync.exit(); // and the table that it was in goes
      }
      return segmentOf(pfn);
    };
    expect(there.getUint32(BASE)).toBe(42);
    expect(done).toBe(true);
    frames.segmentOf = segmentOf;
    await Promise.resolve();
    verify(memory);
    verify(other);
  });

  test("nor does one that takes references to what lies together", async () => {
    const { memory, raw } = await populated();
    raw.sync.mmap(anonymous(16, { address: BASE, fixed: true }));
    for (let k = 0; k < 16; k++) raw.setUint32(BASE + at(k), 1);
    const other = await attachTo(memory);
    const there = other.space(raw.id);
    raw.sync.fork();
    there.getUint32(BASE);
    const { frames } = other.mm;
    const getMapped = frames.getMapped.bind(frames);
    let done = false;
    frames.getMapped = (...args) => {
      if (!done) {
        done = true;
        for (let k = 1; k < 16; k++) raw.setUint32(BASE + at(k), 2);
      }
      return getMapped(...args);
    };
    const into = new Uint8Array(at(16));
    there.sync.read(BASE, into);
    expect(done).toBe(true);
    expect(Array.from({ length: 15 }, (_, k) => into[at(k + 1)])).toEqual(
      Array.from({ length: 15 }, () => 2),
    );
    frames.getMapped = getMapped;
    await Promise.resolve();
    verify(memory);
    verify(other);
  });

  test("that died with an entry half changed: what forks and writes goes on", async () => {
    const { memory, raw, written } = await populated();
    const w = memory.mm.agent.words;
    const other = await attachTo(memory);
    // As an agent leaves it that dies in the middle of a copy-on-write.
    const { entry, pte } = entryOf(memory, raw, 4 * TABLE + 1);
    Atomics.store(w, entry, (pte & ~0xff) | 0x2 | (other.mm.agent.slot << 2));
    const child = raw.sync.fork();
    child.setUint32(BASE, 5); // copies the table
    expect(child.getUint32(BASE + at(1))).toBe(2);
    Atomics.store(w, entry, pte); // as the reaper
    expect(written.map((k) => raw.getUint32(BASE + at(k)))).toEqual(written.map((k) => k + 1));
    child.sync.exit();
    verify(memory);
  });
});

/** The entry of a page in the table, and its value. */
function entryOf(memory: PhysicalMemory, space: AddressSpace, vpn: number): { entry: number; pte: number } {
  const w = memory.mm.agent.words;
  const middle = w[space.pgd + (vpn >>> 20)]!;
  const entry = (w[middle + ((vpn >>> 10) & 1023)]! & ~1) + (vpn & 1023);
  return { entry, pte: w[entry]! };
}

describe("where the arena is full", () => {
  test("what needs a table of its own is ENOMEM and changes nothing, and exit goes", async () => {
    const { memory, raw, written } = await populated(256);
    const child = raw.sync.fork();
    child.getUint32(BASE);
    const blocks: number[] = [];
    while (!thrown(() => void blocks.push(memory.mm.alloc(1024, "the test"))));
    const before = [raw, child].map((space) => portrait(space, written));
    const refused: ((space: AddressSpace) => void)[] = [
      (s) => s.setUint32(BASE, 1),
      (s) => s.sync.munmap(BASE, PAGE),
      (s) => s.sync.mprotect(BASE, PAGE, "r"),
      (s) => s.sync.madvise(BASE, PAGE, "dontneed"),
      (s) => s.sync.madvise(BASE, PAGE, "guard-install"),
      (s) => s.sync.clearRefs("soft-dirty"),
      (s) => void s.sync.mremap(BASE, PAGE, PAGE, { mayMove: true, to: BASE + at(TABLE) }),
    ];
    for (const operation of refused) {
      for (const space of [raw, child]) expect(thrown(() => operation(space))?.code).toBe("ENOMEM");
      verify(memory);
    }
    expect([raw, child].map((space) => portrait(space, written))).toEqual(before);
    child.sync.exit();
    verify(memory);
    raw.setUint32(BASE, 9); // it is the last that has the table
    expect(raw.getUint32(BASE)).toBe(9);
    for (const block of blocks) memory.mm.free(block, 1024);
    verify(memory);
  });
});

describe("a pin", () => {
  test.each(["r", "rw"] as const)(
    "for %s keeps the very page of the parent's mapping over a fork, and no other table from being shared",
    async (access) => {
      const { memory, raw } = await populated();
      raw.sync.fork().sync.exit();
      raw.setUint32(BASE, 1);
      raw.setUint32(BASE + at(TABLE), TABLE + 1);
      const before = arena(memory);
      raw.sync.fork().sync.exit();
      raw.setUint32(BASE, 1);
      raw.setUint32(BASE + at(TABLE), TABLE + 1);
      expect(arena(memory)).toBe(before);
      const pin = raw.sync.pin(BASE, PAGE, access);
      const pinned = arena(memory);
      const child = raw.sync.fork();
      const cost = arena(memory) - pinned;
      raw.setUint8(BASE, 7);
      expect([pin.spans[0]![0], child.getUint8(BASE)]).toEqual([7, 1]);
      verify(memory);
      pin.unpin();
      child.sync.exit();
      raw.setUint32(BASE + at(TABLE), TABLE + 1);
      const without = arena(memory);
      const other = raw.sync.fork();
      // One table more, and not two.
      expect(cost - (arena(memory) - without)).toBe(TABLE_BYTES);
      expect(other.getUint8(BASE)).toBe(7);
      verify(memory);
    },
  );
});

describe("a span for writing", () => {
  test("keeps the table of its page from being shared, until it is gone", async () => {
    const { memory, raw } = await populated();
    raw.sync.fork().sync.exit();
    raw.setUint32(BASE + at(1), 2);
    raw.setUint32(BASE + at(TABLE), TABLE + 1);
    const before = arena(memory);
    const [span] = raw.spans(BASE, PAGE, "rw");
    const child = raw.sync.fork();
    const copied = arena(memory) - before;
    span![0] = 99; // without an entry
    expect([raw.getUint8(BASE), child.getUint8(BASE)]).toEqual([99, 1]);
    memory.poll();
    verify(memory);
    child.sync.exit();
    expect(arena(memory)).toBe(before);
    const other = raw.sync.fork();
    // Its record and the tables above, but none that has entries.
    expect(copied - (arena(memory) - before)).toBeGreaterThanOrEqual(TABLE_BYTES);
    raw.setUint8(BASE, 5);
    expect(other.getUint8(BASE)).toBe(99);
    verify(memory);
  });
});
