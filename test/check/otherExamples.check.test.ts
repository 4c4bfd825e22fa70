/** Second examples of the classic mistakes: other bugs of the same classes, each with its repaired twin. */
import { describe, expect, test } from "vitest";
import { MmuNotifier, MmuNotifierEvent } from "../../src/notifier/index.ts";
import {
  type Device,
  explore,
  PAGE,
  type Rule,
  type Scenario,
  scenario,
  type SimInterval,
  type SimSpace,
  type World,
} from "../../src/check/index.ts";
import type { Op as OpOf } from "../../src/sched/index.ts";

type Op = OpOf<void>;

interface Parts {
  readonly space: SimSpace;
  readonly device: Device;
  readonly interval: SimInterval;
}

/** A space with a device and an interval that does what it should. */
function parts(world: World, pages = 1): Parts {
  const space = world.space({ pages });
  const device = world.device(space);
  const interval = space.notifiers.sync.insert(
    {
      invalidate(self, range, curSeq) {
        self.setSeq(curSeq);
        device.unmap(range.start, range.end);
      },
    },
    0,
    pages * PAGE,
  );
  return { space, device, interval };
}

type Example = readonly [name: string, rule: Rule, make: (right: boolean) => Scenario];

const EXAMPLES: readonly Example[] = [
  [
    "C01: the number is taken after the page tables were read",
    "stale-install",
    (right) =>
      scenario({
        setup: (world) => parts(world),
        agents: {
          *driver({ space, device, interval }) {
            for (;;) {
              const early = right ? yield* interval.readBegin() : undefined;
              const translation = yield* space.fault(0, "r");
              const seq = early ?? (yield* interval.readBegin());
              if (interval.readRetry(seq)) continue;
              device.map(0, translation);
              return;
            }
          },
          *mm({ space }) {
            yield* space.dontneed(0, PAGE);
          },
        },
      }),
  ],
  [
    "C01: a worker undoes the invalidation after the callback has returned",
    "stale-read",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          const saved: number[] = [];
          device.map(0, space.entry(0)!);
          space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                self.setSeq(curSeq);
                for (const { pfn } of device.unmap(range.start, range.end)) saved.push(pfn);
              },
            },
            0,
            PAGE,
          );
          return { space, device, saved };
        },
        agents: {
          *mm({ space }) {
            yield* space.migrate(0);
          },
          *worker({ device, saved }, world) {
            yield* world.point("restores what was dropped");
            const pfn = saved.pop();
            if (pfn !== undefined && !right) device.map(0, pfn);
            yield* device.read(0);
          },
        },
      }),
  ],
  [
    "C02: check and install under different holds of the lock",
    "stale-install",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          const lock = world.mutex("table lock");
          const interval = space.notifiers.sync.insert(
            {
              *invalidate(self, range, curSeq) {
                yield* lock.lock();
                self.setSeq(curSeq);
                device.unmap(range.start, range.end);
                lock.unlock();
              },
            },
            0,
            PAGE,
          );
          return { space, device, interval, lock };
        },
        agents: {
          *driver({ space, device, interval, lock }) {
            for (;;) {
              const seq = yield* interval.readBegin();
              const translation = yield* space.fault(0, "r");
              yield* lock.lock();
              const overtaken = interval.readRetry(seq);
              if (!right) {
                lock.unlock();
                yield* lock.lock();
              }
              if (!overtaken) device.map(0, translation);
              lock.unlock();
              if (!overtaken) return;
            }
          },
          *mm({ space }) {
            yield* space.dontneed(0, PAGE);
          },
        },
      }),
  ],
  [
    "C02: the count goes down before the generation moves",
    "stale-install",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          const state = { open: 0, generation: 0, ending: 0 };
          space.notifiers.sync.register(
            new MmuNotifier({
              invalidateRangeStart(_notifier, range) {
                state.open++;
                device.unmap(range.start, range.end);
              },
              invalidateRangeEnd() {
                if (right) state.generation++;
                else state.ending++; // a worker will move it
                state.open--;
              },
            }),
          );
          return { space, device, state };
        },
        agents: {
          *driver({ space, device, state }, world) {
            for (;;) {
              const { generation } = state;
              const translation = yield* space.fault(0, "r");
              if (state.open === 0 && state.generation === generation) {
                device.map(0, translation);
                return;
              }
              yield* world.until(() => state.open === 0, "no open range");
            }
          },
          *mm({ space }) {
            yield* space.dontneed(0, PAGE);
          },
          *worker({ state }, world) {
            yield* world.point("moves the generation");
            state.generation += state.ending;
          },
        },
      }),
  ],
  [
    "C03: a decoded copy is kept beside the table",
    "use-after-free",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          let last: number | undefined;
          space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                self.setSeq(curSeq);
                device.unmap(range.start, range.end);
                if (right) last = undefined;
              },
            },
            0,
            PAGE,
          );
          const lookUp = (): number | undefined => (last ??= space.entry(0)?.pfn);
          lookUp();
          return { space, lookUp };
        },
        agents: {
          *mm({ space }) {
            yield* space.migrate(0);
          },
          *emulator({ space, lookUp }, world) {
            yield* world.point("looks at its last page");
            // Within the invalidation nothing is looked up again: this emulator waits for it to end.
            yield* world.until(() => space.notifiers.opened.length === 0, "no open range");
            const pfn = lookUp();
            if (pfn !== undefined) space.deviceRead(0, pfn, "the emulator");
          },
        },
      }),
  ],
  [
    "C04: the frame is freed before secondary TLBs are told",
    "use-after-free",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space, { walks: true });
          device.readNow(0);
          space.notifiers.sync.register(
            new MmuNotifier({
              archInvalidateSecondaryTlbs: (_notifier, _space, start, end) => device.flushTlb(start, end),
            }),
          );
          return { space, device };
        },
        agents: {
          *zap({ space }, world) {
            yield* world.point("clears the entry");
            const pfn = space.clearEntry(0)!;
            yield* world.point("first");
            if (right) space.notifiers.archInvalidateSecondaryTlbs(0, PAGE);
            else world.frames.free(pfn);
            yield* world.point("second");
            if (right) world.frames.free(pfn);
            else space.notifiers.archInvalidateSecondaryTlbs(0, PAGE);
          },
          *hardware({ device }) {
            yield* device.write(0, 7);
          },
        },
      }),
  ],
  [
    "C05: write permission is taken and nobody hears of it",
    "stale-write",
    (right) =>
      scenario({
        setup(world) {
          const made = parts(world);
          made.device.map(0, made.space.entry(0)!);
          return made;
        },
        agents: {
          *protects({ space }, world) {
            if (right) yield* space.protect(0, PAGE, "r");
            else {
              yield* world.point("changes the entry");
              space.setWritable(0, false);
            }
          },
          *hardware({ device }) {
            yield* device.write(0, 7);
          },
        },
      }),
  ],
  [
    "C06: a second alias of the page stays",
    "use-after-free",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const roots = [world.device(space, { name: "root" }), world.device(space, { name: "nested root" })];
          for (const root of roots) root.map(0, space.entry(0)!);
          space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                self.setSeq(curSeq);
                for (const root of right ? roots : roots.slice(0, 1)) root.unmap(range.start, range.end);
              },
            },
            0,
            PAGE,
          );
          return { space, roots };
        },
        agents: {
          *mm({ space }) {
            yield* space.munmap(0, PAGE);
          },
          *guest({ roots }) {
            yield* roots[1]!.read(0);
          },
        },
      }),
  ],
  [
    "C06: the range is clipped at the wrong page",
    "use-after-free",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space({ pages: 2 });
          const device = world.device(space);
          for (const address of [0, PAGE]) device.map(address, space.entry(address)!);
          space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                self.setSeq(curSeq);
                device.unmap(range.start, right ? range.end : range.end - PAGE);
              },
            },
            0,
            2 * PAGE,
          );
          return { space, device };
        },
        agents: {
          *mm({ space }) {
            yield* space.dontneed(0, 2 * PAGE);
          },
          *hardware({ device }) {
            yield* device.read(PAGE);
          },
        },
      }),
  ],
  [
    "C07: the device's TLB outlives its table",
    "stale-write",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space, { tlb: true });
          device.map(0, space.entry(0)!);
          space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                self.setSeq(curSeq);
                device.unmap(range.start, range.end);
                if (right) device.flushTlb(range.start, range.end);
              },
            },
            0,
            PAGE,
          );
          return { space, device };
        },
        agents: {
          *mm({ space }) {
            yield* space.migrate(0);
          },
          *hardware({ device }) {
            yield* device.write(0, 1);
            yield* device.write(0, 2);
          },
        },
      }),
  ],
  [
    "C08: a refusal of what is not its own",
    "refusal-without-overlap",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space({ pages: 2 });
          const device = world.device(space);
          device.map(0, space.entry(0)!);
          space.notifiers.sync.register(
            new MmuNotifier({
              invalidateRangeStart(_notifier, range) {
                if (!range.blockable) return right && device.entry(range.start) === undefined;
                device.unmap(range.start, range.end);
                return true;
              },
            }),
          );
          return { space };
        },
        agents: {
          *reaper({ space }) {
            yield* space.dontneed(PAGE, PAGE, { blockable: false });
          },
        },
      }),
  ],
  [
    "C08: a lock is waited for where the range is not blockable",
    "sleep-where-not-allowed",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          device.map(0, space.entry(0)!);
          const lock = world.mutex();
          function* dropOp(self: SimInterval, curSeq: number): OpOf<boolean> {
            yield* lock.lock();
            self.setSeq(curSeq);
            device.unmap(0, PAGE);
            lock.unlock();
            return true;
          }
          space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                if (range.blockable || !right) return dropOp(self, curSeq);
                if (!lock.tryLock()) return false;
                self.setSeq(curSeq);
                device.unmap(0, PAGE);
                lock.unlock();
                return true;
              },
            },
            0,
            PAGE,
          );
          return { space, lock };
        },
        agents: {
          *reaper({ space }) {
            yield* space.dontneed(0, PAGE, { blockable: false });
          },
          *driver({ lock }, world) {
            yield* lock.lock();
            yield* world.point("works under the lock");
            lock.unlock();
          },
        },
      }),
  ],
  [
    "C09: an event is skipped at the end but not at the start",
    "deadlock",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const open = world.cell("open", 0);
          space.notifiers.sync.register(
            new MmuNotifier({
              invalidateRangeStart() {
                open.value++;
              },
              invalidateRangeEnd(_notifier, range) {
                if (right || range.event !== MmuNotifierEvent.ProtectionVma) open.value--;
              },
            }),
          );
          return { space, open };
        },
        agents: {
          *mm({ space }) {
            yield* space.protect(0, PAGE, "r");
          },
          *fill({ open }, world) {
            yield* world.until(() => open.value === 0, "no open range");
          },
        },
      }),
  ],
  [
    "C10: the callback waits for a worker who needs the mmap lock",
    "deadlock",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const idle = world.cell("worker idle", true);
          space.notifiers.sync.insert(
            {
              *invalidate(self, _range, curSeq) {
                self.setSeq(curSeq);
                if (!right) yield* world.until(() => idle.value, "the worker");
              },
            },
            0,
            PAGE,
          );
          return { space, idle };
        },
        agents: {
          *worker({ space, idle }) {
            idle.value = false;
            yield* space.mmapLock.readLock();
            space.mmapLock.readUnlock();
            idle.value = true;
          },
          *mm({ space }) {
            yield* space.munmap(0, PAGE);
          },
        },
      }),
  ],
  [
    "C11: a pinned page is written to after a copy-on-write",
    "stale-write",
    (right) =>
      scenario({
        setup: (world) => world.space({ copyOnWrite: true }),
        agents: {
          *driver(space, world) {
            const { pfn } = yield* space.fault(0, right ? "rw" : "r");
            world.frames.get(pfn);
            yield* world.point("DMA");
            space.deviceWrite(0, pfn, 7);
            world.frames.put(pfn);
          },
          *cpu(space) {
            yield* space.write(0, 1);
          },
        },
      }),
  ],
  [
    "C12: what the callback uses is freed at put(), not when it is freed",
    "use-after-free",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const object = world.object("the mirror");
          const notifier = space.notifiers.sync.get({
            *invalidateRangeStart() {
              object.use();
              yield* world.point("drops");
              object.use();
            },
            freeNotifier() {
              if (right) object.free();
            },
          });
          return { space, object, notifier };
        },
        agents: {
          *mm({ space }) {
            yield* space.dontneed(0, PAGE);
          },
          *teardown({ space, object, notifier }, world) {
            yield* world.point("puts");
            space.notifiers.put(notifier);
            if (!right) object.free();
          },
        },
      }),
  ],
  [
    "C12: release leaves the translations where they are",
    "use-after-free",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          device.map(0, space.entry(0)!);
          space.notifiers.sync.register(
            new MmuNotifier({
              release: () => void (right && device.unmap(0, PAGE)),
            }),
          );
          return { space, device };
        },
        agents: {
          *exits({ space }) {
            yield* space.exit();
          },
          *hardware({ device }) {
            yield* device.read(0);
          },
        },
      }),
  ],
  [
    "C13: dirty is marked when the page is filled, not when it is dropped",
    "lost-dirty",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space({ clean: true });
          const device = world.device(space);
          const translation = space.entry(0)!;
          device.map(0, translation);
          space.markDirty(0, translation.pfn);
          space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                self.setSeq(curSeq);
                // A write-back takes write permission only; the broken one leaves its entry as it is.
                if (range.event === MmuNotifierEvent.ProtectionPage && !right) return;
                for (const { pfn, dirty } of device.unmap(range.start, range.end))
                  if (dirty && right) space.markDirty(0, pfn);
              },
            },
            0,
            PAGE,
          );
          return { space, device };
        },
        agents: {
          *hardware({ device }) {
            yield* device.write(0, 7);
          },
          *mm({ space }) {
            yield* space.writeback(0, PAGE);
            yield* space.reclaim(0, PAGE);
          },
        },
      }),
  ],
  [
    "C14: an event is ignored that takes write permission",
    "stale-write",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          device.map(0, space.entry(0)!);
          space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                self.setSeq(curSeq);
                if (right || range.event === MmuNotifierEvent.Unmap) device.unmap(range.start, range.end);
              },
            },
            0,
            PAGE,
          );
          return { space, device };
        },
        agents: {
          *mm({ space }) {
            yield* space.writeback(0, PAGE);
          },
          *hardware({ device }) {
            yield* device.write(0, 7);
          },
        },
      }),
  ],
  [
    "C14: nothing is there, so the sequence is not set",
    "set-seq-missing",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space();
          const device = world.device(space);
          const interval = space.notifiers.sync.insert(
            {
              invalidate(self, range, curSeq) {
                if (!right && device.entry(0) === undefined) return;
                self.setSeq(curSeq);
                device.unmap(range.start, range.end);
              },
            },
            0,
            PAGE,
          );
          return { space, device, interval };
        },
        agents: {
          *driver({ space, device, interval }) {
            for (;;) {
              const seq = yield* interval.readBegin();
              const translation = yield* space.fault(0, "r");
              if (interval.readRetry(seq)) continue;
              device.map(0, translation);
              return;
            }
          },
          *mm({ space }) {
            yield* space.dontneed(0, PAGE);
          },
        },
      }),
  ],
  [
    "C15: a fill begins again for whatever is invalidated anywhere",
    "no-progress",
    (right) =>
      scenario({
        setup(world) {
          const space = world.space({ pages: 2 });
          const anywhere = world.cell("open anywhere", 0);
          const here = world.cell("open here", 0);
          return { space, anywhere, here };
        },
        agents: {
          *fill({ anywhere, here }, world) {
            for (;;) {
              yield* world.point("looks");
              if ((right ? here : anywhere).value === 0) return;
              yield* world.giveWay("begins again");
            }
          },
          one: { daemon: true, run: invalidatesElsewhere },
          two: { daemon: true, run: invalidatesElsewhere },
        },
      }),
  ],
];

/** Somebody who always has some range open, or is about to. */
function* invalidatesElsewhere({ anywhere }: { anywhere: { value: number } }, world: World): Op {
  for (;;) {
    anywhere.value++;
    yield* world.point("has a range open elsewhere");
    yield* world.point("still has");
    anywhere.value--;
    yield* world.point("has none");
  }
}

describe.each(EXAMPLES)("%s", (_, rule, make) => {
  test("is found", async () => {
    const { violations } = await explore(make(false), { schedules: 20_000, depth: 60 });
    expect(violations.map((v) => v.rule)).toContain(rule);
  });

  test("is not found where it is not", async () => {
    const { violations } = await explore(make(true), { schedules: 20_000, depth: 60 });
    expect(violations.map((v) => `${v.rule}: ${v.message} ${v.schedule}`)).toEqual([]);
  });
});
