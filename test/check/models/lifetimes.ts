/** Lifetimes over the real core: subscribers that come and go while ranges are open. Nothing here is wrong. */
import {
  PAGE,
  type Scenario,
  scenario,
  type SimSpace,
  type Tracked,
  type World,
} from "../../../src/check/index.ts";
import { MmuNotifier, type MmuNotifierOps } from "../../../src/notifier/index.ts";

/** Ops of a list notifier that uses an object in each callback, and counts. */
function counted(world: World, object: Tracked, name: string, frees: boolean): MmuNotifierOps {
  // Between a start and its end a put is allowed; then no end comes.
  const pairs = frees ? undefined : world.pairing(name);
  return {
    *invalidateRangeStart() {
      object.use();
      pairs?.start();
      yield* world.point(`${name} drops`);
      object.use();
    },
    invalidateRangeEnd() {
      object.use();
      pairs?.end();
    },
    ...(frees ? { freeNotifier: () => object.free() } : {}),
  };
}

const withSpace = <C>(
  name: string,
  setup: (world: World, space: SimSpace) => C,
  agents: Parameters<typeof scenario<C & { space: SimSpace }>>[0]["agents"],
  final?: (context: C) => string | undefined,
): Scenario =>
  scenario<C & { space: SimSpace }>({
    name,
    setup(world) {
      const space = world.space({ pages: 2 });
      return { ...setup(world, space), space };
    },
    agents,
    ...(final ? { final } : {}),
  });

export const LIFETIMES: readonly Scenario[] = [
  withSpace(
    "a list notifier is registered beside an open range of its own thread, and hears no end without its start",
    (world) => ({ ops: counted(world, world.object("the late one"), "late", false) }),
    {
      *registers({ space, ops }) {
        yield* space.notifiers.register(new MmuNotifier(ops));
      },
      *mm({ space }) {
        yield* space.dontneed(0, PAGE);
      },
    },
  ),
  withSpace(
    "a list notifier is registered while a range is open, and hears no end without its start",
    (world) => ({ ops: counted(world, world.object("the late one"), "late", false) }),
    {
      registers: {
        thread: 1,
        *run({ space, ops }) {
          yield* space.notifiers.register(new MmuNotifier(ops));
        },
      },
      *one({ space }) {
        yield* space.dontneed(0, PAGE);
      },
      *two({ space }) {
        yield* space.dontneed(PAGE, PAGE);
      },
    },
  ),
  withSpace(
    "what a callback uses is freed by freeNotifier, after the last put",
    (world, space) => {
      const object = world.object("the mirror");
      return { object, notifier: space.notifiers.sync.get(counted(world, object, "put", true)) };
    },
    {
      *mm({ space }) {
        yield* space.dontneed(0, PAGE);
      },
      elsewhere: {
        thread: 1,
        *run({ space }) {
          yield* space.dontneed(PAGE, PAGE);
        },
      },
      *puts({ space, notifier }, world) {
        yield* world.point("puts");
        space.notifiers.put(notifier);
        yield* space.notifiers.synchronize();
      },
    },
    ({ object }) => (object.freed ? undefined : "it has not been freed"),
  ),
  withSpace(
    "what a callback uses is freed after unregister()",
    (world, space) => {
      const object = world.object("the mirror");
      const pairs = { open: 0 };
      const notifier = new MmuNotifier({
        *invalidateRangeStart() {
          object.use();
          pairs.open++;
          yield* world.point("drops");
          object.use();
        },
        invalidateRangeEnd() {
          object.use();
          pairs.open--;
        },
        release: () => object.use(),
      });
      space.notifiers.sync.register(notifier);
      return { object, notifier };
    },
    {
      mm: {
        thread: 1,
        *run({ space }) {
          yield* space.dontneed(0, PAGE);
        },
      },
      *leaves({ space, notifier, object }) {
        yield* space.notifiers.unregister(notifier);
        object.free();
      },
    },
  ),
  withSpace(
    "what a callback uses is freed after remove()",
    (world, space) => {
      const object = world.object("the mirror");
      const interval = space.notifiers.sync.insert(
        {
          *invalidate(self, _range, curSeq) {
            object.use();
            self.setSeq(curSeq);
            yield* world.point("drops");
            object.use();
          },
        },
        0,
        PAGE,
      );
      return { object, interval };
    },
    {
      mm: {
        thread: 1,
        *run({ space }) {
          yield* space.dontneed(0, PAGE);
        },
      },
      *other({ space }) {
        yield* space.dontneed(0, 2 * PAGE);
      },
      *removes({ interval, object }) {
        yield* interval.remove();
        object.free();
      },
    },
  ),
  withSpace(
    "a refused start is taken back from those who have heard it",
    (world, space) => {
      const object = world.object("K's state");
      const k = counted(world, object, "K", false);
      space.notifiers.sync.register(
        new MmuNotifier({ invalidateRangeStart: (_notifier, range) => range.blockable }),
      );
      space.notifiers.sync.register(
        new MmuNotifier({
          ...k,
          invalidateRangeStart: (notifier, range) => {
            if (range.blockable) return k.invalidateRangeStart!(notifier, range);
            object.use();
            return true;
          },
          invalidateRangeEnd: (notifier, range) => {
            if (range.blockable) k.invalidateRangeEnd!(notifier, range);
          },
        }),
      );
      const device = world.device(space);
      device.map(0, space.entry(0)!);
      return { device };
    },
    {
      *reaper({ space }) {
        yield* space.protect(0, PAGE, "r", { blockable: false });
      },
      *mm({ space }) {
        yield* space.protect(PAGE, PAGE, "r");
      },
    },
  ),
  withSpace(
    "exit, beside an invalidation and a removal",
    (world, space) => {
      const device = world.device(space);
      device.map(0, space.entry(0)!);
      const interval = space.notifiers.sync.insert(
        {
          invalidate(self, range, curSeq) {
            self.setSeq(curSeq);
            device.unmap(range.start, range.end);
          },
        },
        0,
        PAGE,
      );
      let released = 0;
      space.notifiers.sync.register(new MmuNotifier({ release: () => void released++ }));
      return { device, interval, released: () => released };
    },
    {
      *exits({ space }) {
        yield* space.exit();
      },
      elsewhere: {
        thread: 1,
        *run({ space }) {
          yield* space.dontneed(0, PAGE);
        },
      },
      *hardware({ device }) {
        yield* device.read(0);
      },
    },
    ({ released }) => (released() === 1 ? undefined : `release was called ${released()} times`),
  ),
];
