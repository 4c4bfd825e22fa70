/** Copy-on-write by a store: whom it tells, on the path that waits for nobody and where that hands over. */
import { describe, expect, test } from "vitest";
import { MmuNotifier, type MmuNotifierOps } from "../../../src/notifier/index.ts";
import type { Op } from "../../../src/sched/index.ts";
import { anonymous, attachTo, eventOf, makeMemory, PAGE, record, thrown, verify } from "../../lib/mm.ts";

/** A space with one page that holds 1, shared with a child; `checkUnchanged` after a store that failed. */
async function makeScene(mayBlock = true) {
  const memory = await makeMemory(64, { mayBlock });
  const space = memory.sync.createSpace();
  const a = space.sync.mmap(anonymous(1));
  space.setUint8(a, 1);
  const child = space.sync.fork();
  await Promise.resolve();
  const free = memory.stats().frames.free;
  return {
    memory,
    space,
    child,
    a,
    clear: eventOf("Clear", a, a + PAGE),
    values: () => [space.getUint8(a), child.getUint8(a)],
    checkUnchanged: () => {
      expect(memory.stats().frames.free).toBe(free);
      expect([space.getUint8(a), child.getUint8(a)]).toEqual([1, 1]);
      verify(memory);
      // Nobody has mmapLock any more.
      space.sync.mprotect(a, PAGE, "r");
      space.sync.mprotect(a, PAGE, "rw");
    },
  };
}

/** A callback that answers with an operation, so that it cannot be told in passing. */
function* laterOp(then: () => void): Op<void> {
  yield { kind: "point", what: "a test" };
  then();
}

const startOnly = (start: NonNullable<MmuNotifierOps["invalidateRangeStart"]>): MmuNotifier =>
  new MmuNotifier({ invalidateRangeStart: start });

describe.each([
  ["that may block", true],
  ["that may not", false],
])("in an agent %s", (_which, mayBlock) => {
  test("subscribers hear it once, before the copy and after it", async () => {
    const { memory, space, a, clear, values } = await makeScene(mayBlock);
    const seen: [string, number][] = [];
    const look = (): number => memory.mm.frames.bytesOf(space.peek(a / PAGE, false))[0]!;
    const recorder = record(space, {
      invalidateRangeStart: () => {
        seen.push(["start", look()]);
        return true;
      },
      invalidateRangeEnd: () => void seen.push(["end", look()]),
    });
    let invalidations = 0;
    const interval = space.notifiers.sync.insert({ invalidate: () => ++invalidations > 0 }, a, PAGE);
    space.getUint8(a); // begins the turn
    space.setUint8(a, 2);
    expect([recorder.take(), recorder.open, invalidations]).toEqual([[clear], 0, 1]);
    // The copy has what the page had; the store comes after the end.
    expect(seen).toEqual([
      ["start", 1],
      ["end", 1],
    ]);
    expect(memory.stats().events.CLEAR).toBe(1);
    expect(values()).toEqual([2, 1]);
    space.setUint8(a, 3);
    expect(recorder.take()).toEqual([]);
    interval.sync.remove();
    verify(memory);
  });

  test("a start that throws leaves everything as it was: ECALLBACK", async () => {
    const { space, a, checkUnchanged, values } = await makeScene(mayBlock);
    const boom = new Error("boom");
    let throwing = true;
    const recorder = record(space, {
      invalidateRangeStart: () => {
        if (throwing) throw boom;
        return true;
      },
    });
    expect(thrown(() => space.setUint8(a, 2))).toMatchObject({ code: "ECALLBACK", cause: boom });
    expect(recorder.open).toBe(0);
    throwing = false;
    checkUnchanged();
    space.setUint8(a, 2);
    expect(values()).toEqual([2, 1]);
  });
});

describe("where somebody has to be waited for", () => {
  test.each(["interval", "list"])("the store goes on when the %s notifier has answered", async (kind) => {
    const { memory, space, a, values, checkUnchanged } = await makeScene();
    let failing = true;
    let calls = 0;
    const answer = (): Op<void> =>
      laterOp(() => {
        calls++;
        if (failing) throw new Error("boom");
      });
    if (kind === "interval") space.notifiers.sync.insert({ invalidate: answer }, a, PAGE);
    else space.notifiers.sync.register(startOnly(answer));
    const recorder = record(space);
    expect(thrown(() => space.setUint8(a, 2))?.code).toBe("ECALLBACK");
    expect([calls, recorder.open]).toEqual([1, 0]);
    failing = false;
    checkUnchanged();
    calls = 0;
    recorder.take();
    space.setUint8(a, 2);
    expect([calls, recorder.take().length, recorder.open]).toEqual([1, 1, 0]);
    expect(values()).toEqual([2, 1]);
    verify(memory);
  });

  test("a promise is EDEADLK where the agent may block, and nothing is changed", async () => {
    const { space, a, checkUnchanged } = await makeScene();
    let promises = true;
    space.notifiers.sync.register(startOnly(() => (promises ? Promise.resolve(true) : true)));
    expect(thrown(() => space.setUint8(a, 2))?.code).toBe("EDEADLK");
    promises = false;
    checkUnchanged();
  });

  test("a notifier that cannot now is EAGAIN where the agent may not block", async () => {
    const { memory, space, a, checkUnchanged, values } = await makeScene(false);
    let refusing = true;
    space.notifiers.sync.register(startOnly(() => !refusing));
    expect(thrown(() => space.setUint8(a, 2))?.code).toBe("EAGAIN");
    refusing = false;
    checkUnchanged();
    space.setUint8(a, 2);
    expect(values()).toEqual([2, 1]);
    verify(memory);
  });

  test("an agent that has the page in its TLB: EAGAIN, the range has its end, the page is as it was", async () => {
    const { memory, space, a, clear, values } = await makeScene(false);
    const recorder = record(space);
    const other = await attachTo(memory);
    const there = other.space(space.id);
    there.getUint8(a);
    expect(thrown(() => space.setUint8(a, 2))?.code).toBe("EAGAIN");
    expect([recorder.take(), recorder.open]).toEqual([[clear], 0]);
    expect(there.getUint8(a)).toBe(1);
    verify(memory);
    other.poll();
    space.setUint8(a, 2);
    expect([recorder.take(), recorder.open]).toEqual([[clear], 0]);
    expect([values(), there.getUint8(a)]).toEqual([[2, 1], 2]);
    other.poll();
    verify(memory);
  });

  test("a lock that a callback takes while it waits is its own, not the store's", async () => {
    const { memory, space, a, child, values } = await makeScene();
    space.notifiers.sync.register(startOnly(() => laterOp(() => {})));
    // Inside a span's callback, an access runs within the operation of forEachSpan().
    child.sync.forEachSpan(a, PAGE, "r", () => space.setUint8(a, 2));
    expect(values()).toEqual([2, 1]);
    verify(memory);
  });

  test("an operation of another agent's driver is not blocked: a bulk write in the async form", async () => {
    const { memory, space, a, values } = await makeScene(false);
    let answers = 0;
    space.notifiers.sync.register(
      startOnly(async () => {
        await Promise.resolve();
        answers++;
        return true;
      }),
    );
    await space.write(a, Uint8Array.of(2));
    expect([answers, values()]).toEqual([1, [2, 1]]);
    verify(memory);
  });
});
