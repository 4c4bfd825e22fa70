/** C11: the driver touches a page before its check has said that it may. Intel xe, 2025. */
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (checksFirst: boolean): Scenario =>
  scenario({
    name: `fill that touches the page ${checksFirst ? "after" : "before"} the check`,
    setup(world) {
      const space = world.space();
      const device = world.device(space);
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
      return { space, device, interval };
    },
    agents: {
      *driver({ space, device, interval }, world) {
        for (;;) {
          const seq = yield* interval.readBegin();
          const translation = space.entry(0);
          if (!translation) return;
          yield* world.point("has looked up the page");
          if (!checksFirst) space.markDirty(0, translation.pfn);
          yield* world.point("takes the lock");
          if (interval.readRetry(seq)) continue;
          device.map(0, translation);
          space.markDirty(0, translation.pfn);
          return;
        }
      },
      *mm({ space }) {
        yield* space.munmap(0, PAGE);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
