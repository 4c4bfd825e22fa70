/** C02: the check looks at a counter that the callback raises after it has looked at the cache. KVM's gfn-to-pfn cache, 2022. */
import { type Scenario, scenario } from "../../../src/check/index.ts";

const model = (right: boolean): Scenario =>
  scenario({
    name: `cache refresh that checks the ${right ? "early" : "late"} counter`,
    tracked: true,
    setup(world) {
      const space = world.space();
      const active = world.cell("active", 0);
      const count = world.cell("count", 0);
      const seq = world.cell("seq", 0);
      const cache = world.cell<number | undefined>("cache", undefined);
      return { space, active, count, seq, cache };
    },
    agents: {
      // The primary MMU and the callback that it runs.
      *mm({ space, active, count, seq, cache }, world) {
        active.value++;
        yield* world.point("callback: looks at the cache");
        cache.value = undefined;
        yield* world.point("callback: raises the count");
        count.value++;
        yield* world.point("changes the entry");
        const pfn = space.clearEntry(0)!;
        world.frames.free(pfn);
        yield* world.point("end");
        seq.value++;
        count.value--;
        active.value--;
      },
      *refresh({ space, active, count, seq, cache }, world) {
        yield* world.point("snapshot");
        if ((right ? active : count).value > 0) return;
        const before = seq.value;
        yield* world.point("resolves");
        const pfn = space.entry(0)?.pfn;
        if (pfn === undefined) return;
        yield* world.point("checks and marks valid");
        if ((right ? active : count).value > 0 || seq.value !== before) return;
        cache.value = pfn;
      },
      *guest({ space, cache }, world) {
        yield* world.point("uses the cache");
        if (cache.value !== undefined) space.deviceRead(0, cache.value);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
