import { describe, expect, test } from "vitest";
import { anonymous, makeRig, thrown, verify } from "../../lib/mm.ts";
import { PAGE } from "../../lib/mm.ts";

describe("atomics on mapped words", () => {
  test("and, or, xor, exchange answer what was there", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    space.atomics.store(a, 0b1100);
    expect(space.atomics.and(a, 0b0110)).toBe(0b1100);
    expect(space.atomics.or(a, 0b0001)).toBe(0b0100);
    expect(space.atomics.xor(a, 0b0111)).toBe(0b0101);
    expect(space.atomics.exchange(a, -1)).toBe(0b0010);
    expect(space.atomics.load(a)).toBe(-1);
  });
});

describe("atomics.wait and notify", () => {
  test("another value is no wait; nobody who waits is nobody who is woken", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    space.getUint8(a); // makes the tables
    const before = memory.stats().arenaBytes;
    expect(await space.atomics.wait(a, 1)).toBe("not-equal");
    expect(space.atomics.notify(a)).toBe(0);
    expect(await space.atomics.wait(a, 0, 1)).toBe("timed-out");
    expect(space.atomics.notify(a)).toBe(0);
    expect(memory.stats().arenaBytes).toBe(before);
    verify(memory);
  });

  test("those who came first are woken first, no more than count, and of no other word", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    const order: string[] = [];
    const wait = async (name: string, address: number): Promise<void> => {
      expect(await space.atomics.wait(address, 0)).toBe("ok");
      order.push(name);
    };
    const waits = [wait("first", a), wait("second", a), wait("third", a), wait("other", a + 4)];
    await Promise.resolve();
    expect(space.atomics.notify(a, 2)).toBe(2);
    await Promise.all(waits.slice(0, 2));
    expect(order.toSorted()).toEqual(["first", "second"]);
    expect(space.atomics.notify(a)).toBe(1);
    expect(space.atomics.notify(a + 4)).toBe(1);
    await Promise.all(waits);
    verify(memory);
  });

  test("a shared page is one word in every mapping and space, whatever its frame", async () => {
    const { memory, space } = await makeRig(64);
    const a = space.sync.mmap(anonymous(2, { share: "shared" }));
    const b = space.sync.mremap(a, 0, 2 * PAGE, { mayMove: true });
    const child = space.sync.fork();
    expect(b).not.toBe(a);
    const waits = [
      space.atomics.wait(a + PAGE, 0),
      space.atomics.wait(b + PAGE, 0),
      child.atomics.wait(a + PAGE, 0),
    ];
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(child.atomics.notify(b + PAGE)).toBe(3);
    expect(await Promise.all(waits)).toEqual(["ok", "ok", "ok"]);
    await child.exit();
    verify(memory);
  });

  test("a private page is another word in each space, and stays the same when it is copied", async () => {
    const { memory, space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    space.setUint32(a + 4, 1);
    const child = space.sync.fork();
    const wait = space.atomics.wait(a, 0);
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(child.atomics.notify(a)).toBe(0);
    space.setUint32(a + 4, 2);
    expect(space.atomics.notify(a)).toBe(1);
    expect(await wait).toBe("ok");
    await child.exit();
    verify(memory);
  });

  test("bad words and counts are refused, as accesses are", async () => {
    const { space } = await makeRig();
    const a = space.sync.mmap(anonymous(1));
    await expect(space.atomics.wait(a + 2, 0)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(space.atomics.wait(a + PAGE, 0)).rejects.toMatchObject({ reason: "SEGV_MAPERR" });
    expect(thrown(() => space.atomics.notify(a + 1))?.code).toBe("EINVAL");
    expect(thrown(() => space.atomics.notify(a, -1))?.code).toBe("EINVAL");
  });
});
