/** Ways to write a scenario: async functions, list notifiers, several threads, walkers, locks, many subscribers. */
import { describe, expect, test } from "vitest";
import { MmuNotifier } from "../../src/notifier/index.ts";
import type { Op as OpOf } from "../../src/sched/index.ts";
import {
  type Cell,
  type World,
  explore,
  PAGE,
  replay,
  type Scenario,
  scenario,
  type SimSpace,
} from "../../src/check/index.ts";

type Op = OpOf<void>;

const rulesOf = async (of: Scenario): Promise<string[]> =>
  (await explore(of, { schedules: 20_000 })).violations.map(({ rule }) => rule);

/** Explored, and nothing found; to the end unless it is said otherwise. */
async function expectNothing(of: Scenario, options: { complete?: boolean } = {}): Promise<void> {
  const { violations, complete, schedules } = await explore(of, { schedules: 20_000 });
  expect(violations.map((v) => `${v.rule}: ${v.message}: ${v.schedule}`)).toEqual([]);
  expect({ complete, schedules: schedules > 1 }).toEqual({
    complete: options.complete ?? true,
    schedules: true,
  });
}

/** A mirror as somebody writes it for the real library: nothing in it knows of the checker. */
class AsyncMirror {
  readonly #space: SimSpace;
  readonly #bug: string | undefined;
  #pfn: number | undefined;
  readonly #interval;

  constructor(space: SimSpace, bug?: string) {
    this.#space = space;
    this.#bug = bug;
    this.#interval = space.notifiers.sync.insert(
      {
        invalidate: (interval, _range, curSeq) => {
          if (bug !== "no setSeq") interval.setSeq(curSeq);
          if (bug !== "no drop") this.#pfn = undefined;
          return true;
        },
      },
      0,
      PAGE,
    );
  }

  async #flushQueue(): Promise<void> {
    await this.#space.world.sleep("lets the queue run");
  }

  async read(): Promise<number> {
    for (;;) {
      if (this.#pfn !== undefined) return this.#space.deviceRead(0, this.#pfn);
      const seq = await this.#interval.readBegin();
      const { pfn } = await this.#space.fault(0, "r");
      if (this.#bug !== "no retry" && this.#interval.readRetry(seq)) continue;
      if (this.#bug === "await before the install") await this.#flushQueue();
      this.#pfn = pfn;
    }
  }
}

const asyncMirror = (bug?: string, thread = 0): Scenario =>
  scenario({
    setup(world) {
      const space = world.space();
      return { space, mirror: new AsyncMirror(space, bug) };
    },
    agents: {
      async reads({ mirror }, world) {
        await mirror.read();
        await world.sleep("does something else");
        await mirror.read();
      },
      changes: {
        thread,
        run: async ({ space }) => {
          await space.dontneed(0, PAGE);
        },
      },
    },
  });

describe("a mirror of async functions", () => {
  test("is explored as it stands", () => expectNothing(asyncMirror()));

  test.each([
    ["no retry", /stale|use-after-free/],
    ["no drop", /stale|use-after-free/],
    ["no setSeq", /set-seq-missing/],
    ["await before the install", /stale|use-after-free/],
  ])("%s is found", async (bug, rule) => {
    expect((await rulesOf(asyncMirror(bug))).join()).toMatch(rule);
  });

  test("is explored with changes in another thread", () => expectNothing(asyncMirror(undefined, 1)));

  test.each(["no retry", "no drop", "await before the install"])(
    "%s is found with changes in another thread",
    async (bug) => {
      expect((await rulesOf(asyncMirror(bug, 1))).join()).toMatch(/stale|use-after-free/);
    },
  );
});

/** The guest of docs/notifiers.md, over a list notifier. */
const guest = (bug?: string): Scenario =>
  scenario({
    setup(world) {
      const space = world.space();
      const device = world.device(space);
      let open = 0;
      let generation = 0;
      const notifier = new MmuNotifier({
        invalidateRangeStart(_notifier, range) {
          open++;
          device.unmap(range.start, range.end);
          return true;
        },
        invalidateRangeEnd() {
          if (bug !== "no generation") generation++;
          if (bug !== "no end") open--;
        },
      });
      space.notifiers.sync.register(notifier);
      return {
        space,
        device,
        fits: (since: number) => open === 0 && generation === since,
        now: () => generation,
        idle: () => open === 0,
      };
    },
    agents: {
      *fill({ space, device, fits, now, idle }, world) {
        for (;;) {
          const since = now();
          const translation = yield* space.fault(0, "r");
          if (fits(since)) {
            device.map(0, translation);
            break;
          }
          yield* world.until(idle, "no range to be open");
        }
        yield* device.read(0);
      },
      *mm({ space }) {
        yield* space.dontneed(0, PAGE);
      },
    },
  });

describe("a list notifier with a count and a generation", () => {
  test("is explored", () => expectNothing(guest()));
  test("without a generation is found", async () => {
    expect(await rulesOf(guest("no generation"))).toContain("stale-install");
  });
  test("that never counts down is found", async () => {
    expect(await rulesOf(guest("no end"))).toContain("deadlock");
  });
});

/** A device that walks the page tables itself. */
const walker = (bug?: string): Scenario =>
  scenario({
    setup(world) {
      const space = world.space();
      const device = world.device(space, { walks: true });
      space.notifiers.sync.register(
        new MmuNotifier({
          archInvalidateSecondaryTlbs(_notifier, _space, start, end) {
            if (bug !== "no flush") device.flushTlb(start, end);
          },
        }),
      );
      return { space, device };
    },
    agents: {
      *uses({ device }) {
        yield* device.read(0);
        yield* device.write(0, 7);
      },
      *moves({ space }) {
        yield* space.migrate(0);
      },
    },
  });

describe("a device that walks the page tables", () => {
  test("is explored", () => expectNothing(walker()));
  test("whose TLB is not flushed is found", async () => {
    expect(await rulesOf(walker("no flush"))).toContain("use-after-free");
  });
});

describe("transfers that take time", () => {
  const transfers = (drains: boolean): Scenario =>
    scenario({
      setup(world) {
        const space = world.space();
        const device = world.device(space);
        device.map(0, space.entry(0)!);
        space.notifiers.sync.insert(
          {
            *invalidate(interval, range, curSeq) {
              interval.setSeq(curSeq);
              device.unmap(range.start, range.end);
              if (drains) yield* device.drain();
              return true;
            },
          },
          0,
          PAGE,
        );
        return { space, device };
      },
      agents: {
        *dma({ device }) {
          yield* device.transfer("write", 0, 7);
        },
        *mm({ space }) {
          yield* space.munmap(0, PAGE);
        },
      },
    });

  test("are waited for", () => expectNothing(transfers(true)));
  test("are found where they are not", async () => {
    expect(await rulesOf(transfers(false))).toEqual(
      expect.arrayContaining(["use-while-open", "stale-write", "use-after-free"]),
    );
  });
});

describe("locks", () => {
  const locks = (around: boolean): Scenario =>
    scenario({
      setup(world) {
        const space = world.space();
        const mutex = world.mutex("table lock");
        const interval = space.notifiers.sync.insert(
          {
            *invalidate(self, _range, curSeq) {
              self.setSeq(curSeq);
              yield* mutex.lock();
              mutex.unlock();
              return true;
            },
          },
          0,
          PAGE,
        );
        return { space, mutex, interval };
      },
      agents: {
        *fill({ mutex, interval }) {
          if (around) yield* mutex.lock();
          const seq = yield* interval.readBegin();
          if (!around) yield* mutex.lock();
          interval.readRetry(seq);
          mutex.unlock();
        },
        *mm({ space }) {
          yield* space.dontneed(0, PAGE);
        },
      },
    });

  test("that both sides take in the right order", () => expectNothing(locks(false)));
  test("that are held around readBegin()", async () => {
    expect(await rulesOf(locks(true))).toEqual(expect.arrayContaining(["lock-cycle", "deadlock"]));
  });
});

describe("more rules", () => {
  /** One page, one subscriber whose callback is `invalidate`, and somebody who zaps. */
  const zapped = (
    invalidate: (world: { readonly space: SimSpace }, blockable: boolean) => boolean | void,
    blockable = true,
  ): Scenario =>
    scenario({
      setup(world) {
        const space = world.space();
        const device = world.device(space);
        device.map(0, space.entry(0)!);
        const interval = space.notifiers.sync.insert(
          {
            invalidate(self, range, curSeq) {
              self.setSeq(curSeq);
              device.unmap(range.start, range.end);
              return invalidate({ space }, range.blockable);
            },
          },
          0,
          PAGE,
        );
        return { space, interval };
      },
      agents: {
        *mm({ space }) {
          yield* space.dontneed(0, PAGE, { blockable });
        },
      },
    });

  test("a blockable start that is refused", async () => {
    expect(await rulesOf(zapped(() => false))).toContain("blockable-start-refused");
  });

  test("a refusal where it is allowed is none", () => expectNothing(zapped(() => false, false)));

  test("a callback that throws", async () => {
    const throws = (): never => {
      throw new Error("no idea");
    };
    expect(await rulesOf(zapped(throws))).toContain("threw");
  });

  test("a callback that faults", async () => {
    const faulty = scenario({
      setup(world) {
        const space = world.space();
        space.notifiers.sync.insert(
          {
            *invalidate(self, _range, curSeq) {
              self.setSeq(curSeq);
              yield* space.read(0);
            },
          },
          0,
          PAGE,
        );
        return space;
      },
      agents: {
        *mm(space) {
          yield* space.munmap(0, PAGE);
        },
      },
    });
    expect(await rulesOf(faulty)).toContain("waiting-call-in-callback");
  });

  test("a start that refuses and has an end", async () => {
    const both = scenario({
      setup(world) {
        const space = world.space();
        space.notifiers.sync.register(
          new MmuNotifier({
            invalidateRangeStart: (_notifier, { blockable }) => blockable,
            invalidateRangeEnd: () => {},
          }),
        );
        return space;
      },
      agents: {
        *reaper(space) {
          yield* space.dontneed(0, PAGE, { blockable: false });
        },
      },
    });
    expect(await rulesOf(both)).toContain("refuses-with-end");
  });

  test("a range that is never ended", async () => {
    const open = scenario({
      setup: (world) => world.space(),
      agents: {
        *mm(space) {
          yield* space.notifiers.invalidateRangeStart({ start: 0, end: PAGE, event: 1 });
        },
      },
    });
    expect(await rulesOf(open)).toContain("unbalanced-start-end");
  });

  test("a reference kept past the release", async () => {
    const kept = (puts: boolean): Scenario =>
      scenario({
        setup(world) {
          const space = world.space();
          const { pfn } = space.entry(0)!;
          world.frames.get(pfn);
          space.notifiers.sync.register(
            new MmuNotifier({
              release() {
                if (puts) world.frames.put(pfn);
              },
            }),
          );
          return space;
        },
        agents: {
          *exits(space) {
            yield* space.exit();
          },
          *nothing() {},
        },
      });
    expect(await rulesOf(kept(false))).toContain("leak");
    await expectNothing(kept(true));
  });

  test("write permission that is kept", async () => {
    const writes = (drops: boolean): Scenario =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          device.map(0, space.entry(0)!);
          space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                self.setSeq(curSeq);
                if (drops) device.unmap(range.start, range.end);
              },
            },
            0,
            PAGE,
          );
          return { space, device };
        },
        agents: {
          *mm({ space }) {
            yield* space.protect(0, PAGE, "r");
          },
          *hardware({ device }) {
            yield* device.write(0, 7);
          },
        },
      });
    expect(await rulesOf(writes(false))).toContain("stale-write");
    await expectNothing(writes(true));
  });

  test("a double remove", async () => {
    const twice = scenario({
      setup(world) {
        const space = world.space();
        return space.notifiers.sync.insert({ invalidate: (self, _r, seq) => self.setSeq(seq) }, 0, PAGE);
      },
      agents: {
        *one(interval) {
          yield* interval.remove();
        },
        *two(interval) {
          yield* interval.remove();
        },
      },
    });
    expect(await rulesOf(twice)).toContain("double-release");
  });

  test("a check that is apart from the install", async () => {
    const apart = (locked: boolean): Scenario =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          const mutex = world.mutex();
          const interval = space.notifiers.sync.insert(
            {
              *invalidate(self, range, curSeq) {
                yield* mutex.lock();
                self.setSeq(curSeq);
                device.unmap(range.start, range.end);
                mutex.unlock();
              },
            },
            0,
            PAGE,
          );
          return { space, device, mutex, interval };
        },
        agents: {
          *fill({ space, device, mutex, interval }, world) {
            const seq = yield* interval.readBegin();
            const translation = yield* space.fault(0, "r");
            if (locked) yield* mutex.lock();
            const overtaken = interval.readRetry(seq);
            yield* world.point("installs");
            if (!overtaken) device.map(0, translation);
            if (locked) mutex.unlock();
          },
          *mm({ space }) {
            yield* space.dontneed(0, PAGE);
          },
        },
      });
    expect(await rulesOf(apart(false))).toContain("check-apart-from-install");
    await expectNothing(apart(true));
  });

  test("a livelock with somebody who never ends", async () => {
    const starves = (global: boolean): Scenario => {
      const invalidates = {
        daemon: true,
        *run({ open }: { open: Cell<number> }, world: World): Op {
          for (;;) {
            yield* world.point("starts to invalidate something else");
            open.value++;
            yield* world.point("goes on");
            yield* world.point("ends it");
            open.value--;
          }
        },
      };
      return scenario({
        setup: (world) => ({ open: world.cell("open", 0), mine: world.cell("open over my page", 0) }),
        agents: {
          *fill({ open, mine }, world) {
            do yield* world.point("looks");
            while ((global ? open : mine).value > 0);
          },
          one: invalidates,
          two: invalidates,
        },
      });
    };
    expect((await explore(starves(true), { depth: 40 })).violations.map((v) => v.rule)).toContain(
      "no-progress",
    );
    const { violations } = await explore(starves(false), { depth: 40, schedules: 2000 });
    expect(violations).toEqual([]);
  });

  test("an invariant and a final check of the scenario's own", async () => {
    const own = scenario({
      setup: (world) => ({ a: world.cell("a", 0), b: world.cell("b", 0) }),
      agents: {
        *adds({ a, b }, world) {
          yield* world.point("first");
          a.value++;
          yield* world.point("second");
          b.value++;
        },
        *takes({ a, b }, world) {
          yield* world.point("takes");
          if (a.value === 1 && b.value === 0) a.value = 5;
        },
      },
      tracked: true,
      invariant: ({ a, b }) => (a.value > 2 ? `a is ${a.value}, b ${b.value}` : undefined),
      final: ({ a }) => (a.value === 1 ? undefined : `a is ${a.value} at the end`),
    });
    const { violations } = await explore(own);
    expect(violations.map((v) => `${v.rule}: ${v.message}`).toSorted()).toEqual([
      "final: a is 5 at the end",
      "invariant: a is 5, b 0",
    ]);
    for (const { schedule, rule } of violations)
      expect((await replay(own, schedule)).violations.map((v) => v.rule)).toContain(rule);
  });
});

describe("loops that poll", () => {
  const polls = (gives: boolean): Scenario =>
    scenario({
      setup: (world) => ({ done: world.cell("done", false) }),
      agents: {
        *waits({ done }, world) {
          while (!done.value) yield* gives ? world.giveWay() : world.point("looks again");
        },
        *works({ done }, world) {
          for (let k = 0; k < 3; k++) yield* world.point(`works ${k}`);
          done.value = true;
        },
      },
    });

  test("are explored to the end where they give way", () => expectNothing(polls(true)));

  test("are no livelock where they do not, and end by the bounds", async () => {
    const { violations, steps } = await explore(polls(false), { schedules: 1000, depth: 50 });
    expect(violations).toEqual([]);
    expect(steps).toBeLessThan(50_000);
  });

  test("alone are a livelock", async () => {
    const alone = scenario({
      setup: (world) => world.cell("never", false),
      agents: {
        *waits(never, world) {
          while (!never.value) yield* world.giveWay();
        },
      },
    });
    expect(await rulesOf(alone)).toEqual(["no-progress"]);
  });
});

describe("questions of age", () => {
  const asks = (honest: boolean): Scenario =>
    scenario({
      setup(world) {
        const space = world.space();
        const device = world.device(space);
        device.map(0, space.entry(0)!);
        const ops = {
          testYoung: (_notifier: unknown, _space: unknown, address: number) =>
            honest && device.entry(address)?.accessed === true,
        };
        space.notifiers.sync.register(new MmuNotifier(ops));
        return { space, device };
      },
      agents: {
        *uses({ device }) {
          yield* device.read(0);
        },
        *asks({ space }, world) {
          yield* world.point("asks");
          space.notifiers.testYoung(0);
        },
      },
    });

  test("that are answered honestly", () => expectNothing(asks(true)));
  test("that are not", async () => {
    expect(await rulesOf(asks(false))).toEqual(["wrong-age"]);
  });
});

describe("small things", () => {
  test("setup may be async", async () => {
    const made = scenario({
      async setup(world) {
        const space = world.space();
        const device = world.device(space);
        await Promise.resolve();
        const interval = await space.notifiers.insert(
          {
            invalidate(self, range, curSeq) {
              self.setSeq(curSeq);
              device.unmap(range.start, range.end);
            },
          },
          0,
          PAGE,
        );
        await space.notifiers.register(new MmuNotifier({}));
        return { space, device, interval };
      },
      agents: {
        async fill({ space, device, interval }) {
          const seq = await interval.readBegin();
          const translation = await space.fault(0, "r");
          if (!interval.readRetry(seq)) device.map(0, translation);
        },
        async mm({ space }) {
          await space.munmap(0, PAGE);
        },
      },
    });
    await expectNothing(made);
  });

  test("an access to what is not mapped any more ends its agent, and breaks no rule", async () => {
    await expectNothing(
      scenario({
        setup: (world) => world.space(),
        agents: {
          *mm(space) {
            yield* space.munmap(0, PAGE);
          },
          *cpu(space) {
            yield* space.read(0);
          },
        },
      }),
    );
  });

  test("an invariant that is false is broken", async () => {
    const wrong = (which: "invariant" | "final"): Scenario =>
      scenario({
        setup: (world) => world.cell("n", 0),
        agents: {
          *adds(n, world) {
            yield* world.point("adds");
            n.value++;
          },
        },
        [which]: (n: Cell<number>) => n.value === 0,
      });
    expect(await rulesOf(wrong("invariant"))).toEqual(["invariant"]);
    expect(await rulesOf(wrong("final"))).toEqual(["final"]);
  });
});
