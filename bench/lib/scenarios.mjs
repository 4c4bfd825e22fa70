/** Scenarios of the row `check`: small enough that the plain search of them comes to its end. */
import { PAGE, scenario } from "../../.test-build/check.js";

/** A driver, a zap, and the device in between, over the real notifier core. */
export const fill = scenario({
  name: "a fill beside a zap",
  tracked: true,
  setup(world) {
    const space = world.space();
    const device = world.device(space);
    const invalidate = (self, range, curSeq) => {
      self.setSeq(curSeq);
      device.unmap(range.start, range.end);
    };
    return { space, device, interval: space.notifiers.sync.insert({ invalidate }, 0, PAGE) };
  },
  agents: {
    *driver({ space, device, interval }) {
      const seq = yield* interval.readBegin();
      const translation = yield* space.fault(0, "r");
      if (!interval.readRetry(seq)) device.map(0, translation);
    },
    *mm({ space }) {
      yield* space.dontneed(0, PAGE);
    },
    *hardware({ device }) {
      yield* device.read(0);
      yield* device.read(0);
    },
  },
});

/** Two operations on two spaces: nothing that one does matters to the other. */
export const apart = scenario({
  name: "two spaces",
  tracked: true,
  setup(world) {
    return [world.space(), world.space()];
  },
  agents: {
    *one([space]) {
      yield* space.dontneed(0, PAGE);
      yield* space.migrate(0);
    },
    *two([, space]) {
      yield* space.dontneed(0, PAGE);
      yield* space.migrate(0);
    },
  },
});

/** A counter under a mutex, and one without: three agents. */
export const locks = scenario({
  name: "three agents and a mutex",
  tracked: true,
  setup(world) {
    return { mutex: world.mutex(), inside: world.cell("inside", 0), outside: world.cell("outside", 0) };
  },
  agents: [0, 1, 2].map((k) => ({
    name: `agent ${k}`,
    *run({ mutex, inside, outside }, world) {
      yield* mutex.lock();
      inside.value++;
      mutex.unlock();
      yield* world.point("adds");
      outside.value++;
    },
  })),
});

export const SCENARIOS = [fill, apart, locks];
