/** C08: a callback that yields at every directory, whatever its range allows. KVM on arm64, 2020. */
import { MmuNotifier } from "../../../src/notifier/index.ts";
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (looks: boolean): Scenario =>
  scenario({
    name: `callback that ${looks ? "looks at" : "ignores"} blockable`,
    setup(world) {
      const space = world.space({ pages: 2 });
      const device = world.device(space);
      for (const address of [0, PAGE]) device.map(address, space.entry(address)!);
      space.notifiers.sync.register(
        new MmuNotifier({
          invalidateRangeStart(_notifier, range) {
            for (let at = range.start; at < range.end; at += PAGE) {
              device.unmap(at, at + PAGE); // one directory
              if (!looks || range.blockable) world.maySleep("reschedules");
            }
          },
        }),
      );
      return { space };
    },
    agents: {
      *reaper({ space }) {
        yield* space.dontneed(0, 2 * PAGE, { blockable: false });
      },
      *user({ space }) {
        yield* space.dontneed(0, PAGE);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
