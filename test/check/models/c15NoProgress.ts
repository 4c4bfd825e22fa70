/** C15: a fill whose own mapping step moves the sequence that it compares. KVM's gfn-to-pfn cache, 2024. */
import { type Scenario, scenario } from "../../../src/check/index.ts";

const model = (mapsOutside: boolean): Scenario =>
  scenario({
    name: `refresh that maps ${mapsOutside ? "outside" : "inside"} its retry loop`,
    setup(world) {
      const space = world.space();
      const seq = world.cell("seq", 0);
      const valid = world.cell("valid", false);
      return { space, seq, valid };
    },
    agents: {
      *refresh({ space, seq, valid }, world) {
        const mapIt = (): void => {
          seq.value += 2; // mapping it invalidates the cache
        };
        if (mapsOutside) mapIt();
        for (;;) {
          const before = seq.value;
          yield* world.point("resolves");
          if (!space.entry(0)) return;
          if (!mapsOutside) mapIt();
          yield* world.point("checks");
          if (seq.value === before) break;
        }
        valid.value = true;
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
