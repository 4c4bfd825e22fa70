/** C14: a translation of one space under a subscription to another. hfi1, 2020. */
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (compares: boolean): Scenario =>
  scenario({
    name: `fill that ${compares ? "compares spaces" : "takes whatever space is current"}`,
    setup(world) {
      const a = world.space({ name: "A" });
      const b = world.space({ name: "B" });
      const table = new Map<number, number>();
      a.notifiers.sync.insert(
        {
          invalidate(self, _range, curSeq) {
            self.setSeq(curSeq);
            table.clear();
          },
        },
        0,
        PAGE,
      );
      return { a, b, table };
    },
    agents: {
      // Runs in a process of space B, which has inherited the file descriptor.
      *ioctl({ a, b, table }, world) {
        const current = b;
        if (compares && current !== a) return;
        const { pfn } = yield* current.fault(0);
        world.frames.get(pfn); // pinned
        table.set(0, pfn);
        yield* world.point("the device writes");
        const target = table.get(0);
        if (target !== undefined) b.deviceWrite(0, target, 7);
        world.frames.put(pfn);
      },
      *mm({ b }) {
        yield* b.munmap(0, PAGE);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
