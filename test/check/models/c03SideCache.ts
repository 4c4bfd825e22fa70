/** C03: a second copy of the translation that no callback knows of. KVM's steal time, 2021. */
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (sideCache: boolean): Scenario =>
  scenario({
    name: sideCache ? "status through a pinned side cache" : "status through the user address",
    setup(world) {
      const space = world.space();
      const table = world.device(space);
      space.notifiers.sync.insert(
        {
          invalidate(self, range, curSeq) {
            self.setSeq(curSeq);
            table.unmap(range.start, range.end);
          },
        },
        0,
        PAGE,
      );
      return { space };
    },
    agents: {
      *kernel({ space }, world) {
        if (!sideCache) {
          yield* space.write(0, 7);
          return;
        }
        const { pfn } = yield* space.fault(0, "rw");
        world.frames.get(pfn); // pinned: never freed
        yield* world.point("writes the status");
        space.deviceWrite(0, pfn, 7, "the side cache");
        world.frames.put(pfn);
      },
      *mm({ space }) {
        yield* space.migrate(0);
      },
    },
  });

export const broken: Scenario = model(true);
export const fixed: Scenario = model(false);
