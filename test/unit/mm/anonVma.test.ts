/** The reverse mapping of private pages: that it leads to every entry in every space, what pageout makes of it, and its records. */
import { describe, expect, test } from "vitest";
import { itInsert, itRemove } from "../../../src/memory/index.ts";
import { IT_BALANCE } from "../../../src/memory/intervalTree.ts";
import { anonMappingsOf, rootOf } from "../../../src/mm/anonTree.ts";
import type { AddressSpace, PhysicalMemory } from "../../../src/mm/index.ts";
import { type AnonVma, AV_LOCK, AV_USES, AV_VMAS, VMA_ANON, VMA_ANON_NODE } from "../../../src/mm/layout.ts";
import { pfnOfPte } from "../../../src/mm/pte.ts";
import { radixFind } from "../../../src/mm/radix.ts";
import { releaseMappings } from "../../../src/mm/rmap.ts";
import { findVma } from "../../../src/mm/vma.ts";
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
  verify,
} from "../../lib/mm.ts";

const at = (page: number): number => page * PAGE;

function frameAt(space: AddressSpace, address: number): number {
  const w = space.mm.agent.words;
  return pfnOfPte(Atomics.load(w, radixFind(w, space.pgd, address / PAGE)));
}

/** Where the reverse mapping says that a frame may be: space and address of each place, in its order. */
function found(memory: PhysicalMemory, pfn: number): [number, number][] {
  const { mm } = memory;
  const mappings = anonMappingsOf(mm, pfn);
  const places = mappings.map(({ space, vpn }): [number, number] => [mm.spaceAt(space).id, vpn * PAGE]);
  releaseMappings(mm, mappings);
  return places;
}

describe("the mappings of a private page are found", () => {
  test("in every space that fork gave it to, the oldest first", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(4));
    space.setUint8(a + at(2), 1);
    const child = space.sync.fork();
    const grandchild = child.sync.fork();
    const pfn = frameAt(space, a + at(2));
    const places = [space, child, grandchild].map(({ id }) => [id, a + at(2)]);
    expect(found(memory, pfn)).toEqual(places);
    // Its own copy is looked for where the child may have left it to others: not in the parent.
    child.setUint8(a + at(2), 2);
    expect(found(memory, frameAt(child, a + at(2)))).toEqual(places.slice(1));
    expect(found(memory, pfn)).toEqual(places);
    grandchild.sync.exit();
    expect(found(memory, pfn)).toEqual(places.slice(0, 2));
    verify(memory);
  });

  test("after split, move, growing and merging", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(8, { address: at(100), fixed: true }));
    for (let page = 0; page < 8; page++) space.setUint8(a + at(page), page);
    const child = space.sync.fork();
    const frames = [1, 3, 5].map((page) => frameAt(space, a + at(page)));
    space.sync.mprotect(a + at(3), at(2), "r");
    const moved = space.sync.mremap(a + at(5), at(3), at(3), { mayMove: true, to: at(200) });
    expect(found(memory, frames[2]!)).toEqual([
      [child.id, a + at(5)],
      [space.id, moved],
    ]);
    space.sync.mremap(moved, at(3), at(12), { mayMove: true, to: at(300) });
    expect(found(memory, frames[2]!)).toContainEqual([space.id, at(300)]);
    space.sync.mprotect(a + at(3), at(2), "rw");
    expect(space.vmas()).toHaveLength(2);
    for (const k of [0, 1]) expect(found(memory, frames[k]!)).toContainEqual([space.id, a + at([1, 3][k]!)]);
    verify(memory);
    // Back to where it was: one mapping again.
    space.sync.mremap(at(300), at(12), at(3), { mayMove: true, to: a + at(5) });
    expect(space.vmas()).toHaveLength(1);
    expect(found(memory, frames[2]!)).toContainEqual([space.id, a + at(5)]);
  });

  test("where a merge gives pages to a mapping that had none", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(2, { address: at(100), fixed: true, prot: "r" }));
    const upper = space.sync.mmap(anonymous(2, { address: at(102), fixed: true }));
    space.setUint8(upper, 1);
    space.sync.mprotect(a, at(2), "rw");
    expect(space.vmas()).toHaveLength(1);
    expect(found(memory, frameAt(space, upper))).toEqual([[space.id, upper]]);
  });

  test("in what a move leaves behind, as long as that has some", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(4, { address: at(100), fixed: true }));
    for (let page = 0; page < 4; page++) space.setUint8(a + at(page), page);
    const to = space.sync.mremap(a, at(2), at(2), { mayMove: true, dontUnmap: true });
    expect(found(memory, frameAt(space, to))).toEqual([
      [space.id, a],
      [space.id, to],
    ]);
    const all = space.sync.mremap(a, at(4), at(4), { mayMove: true, dontUnmap: true });
    expect(found(memory, frameAt(space, all + at(3)))).toEqual([[space.id, all + at(3)]]);
  });

  test("of private pages of files, by their page in the file", async () => {
    const { memory, space } = await makeRig();
    const file = memory.sync.openFile(sharedBacking(pattern(at(8))));
    const a = space.sync.mmap(anonymous(4, { file, offset: at(3) }));
    space.setUint8(a + at(1), 1);
    const child = space.sync.fork();
    const pfn = frameAt(space, a + at(1));
    expect(memory.mm.frames.index(pfn)).toBe(4);
    expect(found(memory, pfn)).toEqual([
      [space.id, a + at(1)],
      [child.id, a + at(1)],
    ]);
    await file.close();
  });

  test("of pages that fork copied because they were pinned", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(2));
    for (const span of raw.spans(a, at(2), "rw")) span.fill(1);
    const child = raw.sync.fork();
    expect(found(memory, frameAt(child, a))).toEqual([[child.id, a]]);
    memory.poll();
    verify(memory);
  });

  test("in one space alone, once that may write it in place", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    space.setUint8(a, 1);
    const child = space.sync.fork();
    const pfn = frameAt(child, a);
    space.setUint8(a, 2);
    child.setUint8(a, 3);
    expect(frameAt(child, a)).toBe(pfn);
    expect(found(memory, pfn)).toEqual([[child.id, a]]);
  });

  test("nowhere, once nothing maps it", async () => {
    const { memory, raw } = await makeRig();
    const a = raw.sync.mmap(anonymous(1));
    raw.setUint8(a, 1);
    const pfn = frameAt(raw, a);
    const [span] = raw.spans(a, PAGE);
    raw.sync.munmap(a, PAGE);
    expect(span![0]).toBe(1);
    expect(found(memory, pfn)).toEqual([]);
    memory.poll();
  });
});

describe("pageout of pages that were given up", () => {
  test("tells those who have nothing there, if they come first", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(4));
    for (const page of [0, 1]) space.setUint8(a + at(page), 1);
    const child = space.sync.fork();
    const events = { parent: record(space), child: record(child) };
    const take = (): string[][] => [events.parent.take(), events.child.take()];
    const clear = (page: number): string => eventOf("Clear", a + at(page), a + at(page + 1));
    space.sync.madvise(a, at(4), "dontneed");
    child.setUint8(a + at(1), 2); // its own again
    child.setUint8(a + at(2), 2); // never was another's
    child.sync.madvise(a, at(4), "free");
    take();
    child.sync.madvise(a, at(4), "pageout");
    expect(take()).toEqual([[clear(0)], [clear(0), clear(1), clear(2)]]);
    expect(memory.stats().frames.anon).toBe(0);
    expect(child.getUint8(a)).toBe(0);
    // Of the parent's pages the child does not hear: it comes after the one that maps them.
    space.setUint8(a, 3);
    space.sync.madvise(a, PAGE, "free");
    take();
    space.sync.madvise(a, PAGE, "pageout");
    expect(take()).toEqual([[clear(0)], []]);
  });

  test("leaves those that were written, or that somebody looks at", async () => {
    const { memory, space, raw } = await makeRig();
    const a = space.sync.mmap(anonymous(2));
    for (const page of [0, 1]) space.setUint8(a + at(page), page + 1);
    space.sync.madvise(a, at(2), "free");
    space.setUint8(a, 3);
    const [span] = raw.spans(a + PAGE, PAGE);
    space.sync.madvise(a, at(2), "pageout");
    expect(space.pagemap(a, at(2)).map(({ present }) => present)).toEqual([true, true]);
    expect([space.getUint8(a), span![0]]).toEqual([3, 2]);
    memory.poll();
    space.sync.madvise(a, at(2), "pageout");
    expect(memory.stats().frames.anon).toBe(1);
    expect([space.getUint8(a), space.getUint8(a + PAGE)]).toEqual([3, 0]);
  });

  test("waits for the agents of the other spaces as for any", async () => {
    const memory = await makeMemory(64, { mayBlock: false });
    const space = memory.sync.createSpace();
    const a = space.sync.mmap(anonymous(1));
    space.setUint8(a, 1);
    const child = space.sync.fork();
    space.sync.madvise(a, PAGE, "dontneed");
    const other = await attachTo(memory, false);
    const told = record(other.space(space.id));
    child.sync.madvise(a, PAGE, "free");
    expect((await rejected(Promise.resolve().then(() => child.try.madvise(a, PAGE, "pageout"))))?.code).toBe(
      "EAGAIN",
    );
    expect(memory.stats().frames.anon).toBe(1);
    await child.madvise(a, PAGE, "pageout");
    expect(told.take()).toEqual([eventOf("Clear", a, a + PAGE)]);
    expect(memory.stats().frames.anon).toBe(0);
    verify(memory);
    await other.space(space.id).notifiers.unregister(told.notifier);
  });
});

describe("the records", () => {
  test("go with the last mapping that has them", async () => {
    const { memory, raw } = await makeRig(128);
    const start = raw.sync.mmap(anonymous(1));
    raw.setUint8(start, 1); // its tables stay
    const before = memory.stats().arenaBytes;
    for (let round = 0; round < 3; round++) {
      const a = raw.sync.mmap(anonymous(9));
      for (let page = 0; page < 9; page++) raw.setUint8(a + at(page), 1);
      raw.sync.mprotect(a + at(3), at(3), "r");
      const child = raw.sync.fork();
      raw.sync.munmap(a, at(4));
      const second = child.sync.fork();
      raw.sync.munmap(a, at(9));
      child.sync.exit();
      verify(memory);
      second.sync.exit();
      verify(memory);
      expect(memory.stats().arenaBytes).toBe(before);
    }
  });

  test("do not pile up where each forks once and goes", async () => {
    const { memory, raw } = await makeRig(128);
    const a = raw.sync.mmap(anonymous(2));
    raw.setUint8(a, 1);
    let last = raw;
    const bytes: number[] = [];
    const frames: number[] = [];
    for (let n = 0; n < 24; n++) {
      const child = last.sync.fork();
      child.setUint8(a + PAGE, n);
      frames.push(frameAt(child, a + PAGE));
      if (last !== raw) last.sync.exit();
      verify(memory);
      expect(found(memory, frames[n]!)).toContainEqual([child.id, a + PAGE]);
      last = child;
      bytes.push(memory.stats().arenaBytes);
    }
    expect(bytes[23]).toBe(bytes[12]);
    expect(found(memory, frameAt(last, a))).toEqual([
      [raw.id, a],
      [last.id, a],
    ]);
  });

  test("that do not fit are ENOMEM, and nothing has changed", async () => {
    const { memory, raw } = await makeRig(64, { arena: "1 MiB" });
    const a = raw.sync.mmap(anonymous(2));
    raw.getUint8(a); // its tables
    const blocks: number[] = [];
    const { mm } = memory;
    const fill = (words: number): void => {
      try {
        for (;;) blocks.push(words, mm.alloc(words, "test"));
      } catch {
        blocks.pop();
      }
    };
    for (const words of [1024, 512, 64, 8]) fill(words);
    const refused = await rejected(raw.write(a, new Uint8Array(1)));
    expect(refused?.code).toBe("ENOMEM");
    expect(memory.stats().frames.anon).toBe(0);
    for (let k = 0; k < blocks.length; k += 2) mm.free(blocks[k + 1]!, blocks[k]!);
    verify(memory);
    raw.setUint8(a, 1);
    verify(memory);
  });
});

test("memory.check() names what does not lead to where a private page is", async () => {
  const { memory, raw } = await makeRig();
  const { agent, frames } = memory.mm;
  const w = agent.words;
  const a = raw.sync.mmap(anonymous(2));
  const other = raw.sync.mmap(anonymous(2, { prot: "rwx" }));
  for (const address of [a, other]) raw.setUint8(address, 1);
  const child = raw.sync.fork();
  child.setUint8(a, 2);
  verify(memory);
  const pfn = frameAt(raw, a);
  const vma = findVma(raw, a);
  const anon = w[vma + VMA_ANON]! as AnonVma;
  const root = rootOf(memory.mm, anon);
  const [mapping, index] = [frames.mapping(pfn), frames.index(pfn)];
  /** Changes a word, and puts it back. */
  const withWord = (word: number, value: number): string | undefined => {
    const before = w[word]!;
    w[word] = value;
    const wrong = memory.check();
    w[word] = before;
    verify(memory);
    return wrong;
  };
  frames.setMapping(pfn, mapping, index + 1);
  expect(memory.check()).toMatch(/offset .*A2/);
  frames.setMapping(pfn, frames.mapping(frameAt(raw, other)), index);
  expect(memory.check()).toMatch(/anon_vma .*A2/);
  frames.setMapping(pfn, frames.mapping(frameAt(child, a)), index);
  expect(memory.check()).toMatch(/anon_vma .*A2/);
  frames.setMapping(pfn, mapping, index);
  verify(memory);
  expect(withWord(vma + VMA_ANON, 0)).toMatch(/A1: .* has no anon_vma and is in a tree|without anon_vma/);
  expect(withWord(anon + AV_USES, w[anon + AV_USES]! + 1)).toMatch(/A3: .*counted/);
  expect(withWord(root + AV_LOCK, agent.ownerId)).toMatch(/lock of family/);
  expect(withWord(vma + VMA_ANON_NODE + IT_BALANCE, 1)).toMatch(/the tree of family .*T3/);
  itRemove(agent, root + AV_VMAS, vma + VMA_ANON_NODE);
  expect(memory.check()).toMatch(/A1: .* is in no tree/);
  itInsert(agent, root + AV_VMAS, vma + VMA_ANON_NODE);
  verify(memory);
});
