/** Counts that end: references to a page, its mappings, spaces. */
import { expect, test } from "vitest";
import { MAP_SHIFT, MOST_MAPPINGS, MOST_REFS } from "../../../src/memory/layout.ts";
import { MM_SPACE_COUNT, MOST_SPACES } from "../../../src/mm/layout.ts";
import {
  anonymous,
  makeMemory,
  makeRig,
  PAGE,
  pattern,
  sharedBacking,
  thrown,
  verify,
} from "../../lib/mm.ts";

test("a page is held by so many spans, and is as before once they are given back", async () => {
  const { memory, raw } = await makeRig(64, { arena: "8 MiB" });
  const a = raw.sync.mmap(anonymous(2));
  raw.setUint8(a, 1);
  raw.setUint8(a + PAGE, 2);
  let spans = 0;
  const more = (): void => {
    for (const span of raw.spans(a, PAGE, "rw")) spans += span[0]!;
  };
  let error;
  while (!(error = thrown(more))) expect(spans).toBeLessThanOrEqual(MOST_REFS);
  expect([error.code, spans]).toEqual(["ENOMEM", MOST_REFS]);
  // Longer spans end before such a page.
  raw.sync.read(a + PAGE, new Uint8Array(PAGE));
  memory.poll();
  verify(memory);
  const child = raw.sync.fork();
  more();
  raw.setUint8(a, 5);
  expect(child.getUint8(a)).toBe(1);
  memory.poll();
  verify(memory);
});

test("a page of a file is mapped so often; the access that would be one too many is ENOMEM", async () => {
  const { memory, raw } = await makeRig();
  const file = memory.sync.openFile(sharedBacking(pattern(PAGE)), { writable: true });
  const map = (): number => raw.sync.mmap(anonymous(1, { share: "shared", file }));
  const [a, b] = [map(), map()];
  raw.getUint8(a);
  const word = memory.mm.frames.folioAt(file.core.frameOf(0)) + 1;
  const others = (MOST_MAPPINGS - 1) << MAP_SHIFT;
  Atomics.add(memory.agent.words, word, others); // as if they were there
  for (const access of [(): unknown => raw.getUint8(b), (): unknown => raw.setUint8(b, 1)]) {
    expect(thrown(access)?.message).toMatch(/is mapped 8000 times/);
  }
  expect(raw.getUint8(a)).toBe(pattern(1)[0]);
  const child = raw.sync.fork();
  expect(child.pagemap(a, PAGE)[0]!.present).toBe(false);
  Atomics.sub(memory.agent.words, word, others);
  raw.setUint8(b, 3);
  expect([raw.getUint8(a), child.getUint8(a)]).toEqual([3, 3]);
  verify(memory);
  child.sync.exit();
  raw.sync.exit();
  await file.close();
});

test("there are so many spaces, those that fork makes among them", async () => {
  const memory = await makeMemory();
  const space = memory.sync.createSpace();
  const word = memory.mm.header + MM_SPACE_COUNT;
  const others = MOST_SPACES - 2;
  Atomics.add(memory.agent.words, word, others);
  const child = space.sync.fork();
  const { arenaBytes } = memory.stats();
  expect(thrown(() => memory.sync.createSpace())?.code).toBe("ENOMEM");
  expect(thrown(() => space.sync.fork())?.message).toMatch(/8000 spaces already/);
  expect(memory.stats().arenaBytes).toBe(arenaBytes);
  child.sync.exit();
  memory.sync.createSpace().sync.exit();
  Atomics.sub(memory.agent.words, word, others);
  space.sync.exit();
  expect(Atomics.load(memory.agent.words, word)).toBe(0);
});
