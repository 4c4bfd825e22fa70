/** C01: a fill that never asks whether it was overtaken. As in KVM on PowerPC, 2013. */
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (asks: boolean): Scenario =>
  scenario({
    name: `fill ${asks ? "with" : "without"} retry`,
    setup(world) {
      const space = world.space();
      const device = world.device(space);
      const interval = space.notifiers.sync.insert(
        {
          invalidate(self, range, curSeq) {
            self.setSeq(curSeq);
            device.unmap(range.start, range.end);
            return true;
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
          if (asks && interval.readRetry(seq)) continue;
          device.map(0, translation);
          return;
        }
      },
      *mm({ space }) {
        yield* space.dontneed(0, PAGE);
      },
      *hardware({ device }) {
        yield* device.read(0);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
