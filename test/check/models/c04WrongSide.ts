/** C04: the secondary is told after the new page is in use. The mm core's copy-on-write, 2012. */
import { type Scenario, scenario } from "../../../src/check/index.ts";

const model = (tellsFirst: boolean): Scenario =>
  scenario({
    name: `copy-on-write that tells ${tellsFirst ? "first" : "afterwards"}`,
    tracked: true,
    setup(world) {
      const space = world.space();
      const secondary = world.device(space);
      secondary.map(0, space.entry(0)!);
      return { space, secondary };
    },
    agents: {
      *copy({ space, secondary }, world) {
        yield* world.point("copies");
        const old = space.entry(0)!.pfn;
        const pfn = space.allocFrame(0);
        space.copyFrame(old, pfn);
        if (tellsFirst) secondary.unmap(0, 4096);
        else {
          space.setEntry(0, pfn, { write: true });
          yield* world.point("tells the secondary");
          secondary.map(0, pfn);
        }
        yield* world.point("sets the entry");
        if (tellsFirst) space.setEntry(0, pfn, { write: true });
        world.frames.free(old);
      },
      *cpu({ space }, world) {
        yield* world.point("stores");
        space.store(0, 1);
      },
      *hardware({ secondary }) {
        yield* secondary.read(0);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
