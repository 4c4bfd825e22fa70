/** C10: the callback waits for users of a page who wait for the operation that called it. Xen's gntdev with i915, 2022. */
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (defers: boolean): Scenario =>
  scenario({
    name: `callback that ${defers ? "leaves the wait to a worker" : "waits for users"}`,
    setup(world) {
      const space = world.space();
      const users = world.cell("users", 1);
      const unmapped = world.cell("unmapped", false);
      const marked = world.cell("marked", false);
      space.notifiers.sync.insert(
        {
          *invalidate(self, _range, curSeq) {
            self.setSeq(curSeq);
            if (defers) marked.value = true;
            else yield* world.until(() => users.value === 0, "the last user of the page");
            return true;
          },
        },
        0,
        PAGE,
      );
      return { space, users, unmapped, marked };
    },
    agents: {
      *mm({ space, unmapped }) {
        yield* space.munmap(0, PAGE);
        unmapped.value = true;
      },
      *holder({ users, unmapped }, world) {
        yield* world.until(() => unmapped.value, "the invalidation to finish");
        users.value--;
      },
      *worker({ users, marked }, world) {
        if (!defers) return;
        yield* world.until(() => marked.value, "work");
        yield* world.until(() => users.value === 0, "the last user of the page");
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
