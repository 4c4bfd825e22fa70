/** C06: what goes is a shared table of two pages, what is notified is one. hugetlb's shared page tables, 2018. */
import { MmuNotifierEvent } from "../../../src/notifier/index.ts";
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (wide: boolean): Scenario =>
  scenario({
    name: `unshare that notifies ${wide ? "the whole table" : "one page"}`,
    setup(world) {
      const space = world.space({ pages: 2 });
      const device = world.device(space);
      for (const address of [0, PAGE]) device.map(address, space.entry(address)!);
      space.notifiers.sync.insert(
        {
          invalidate(self, range, curSeq) {
            self.setSeq(curSeq);
            device.unmap(range.start, range.end);
          },
        },
        0,
        2 * PAGE,
      );
      return { space, device, second: space.entry(PAGE)!.pfn };
    },
    agents: {
      *migrate({ space, second }, world) {
        const range = yield* space.notifiers.invalidateRangeStart({
          start: 0,
          end: wide ? 2 * PAGE : PAGE,
          event: MmuNotifierEvent.Clear,
        });
        yield* world.point("unshares the table");
        const first = space.clearEntry(0)!;
        space.clearEntry(PAGE); // the other owner of the table still maps the page
        world.frames.free(first);
        space.notifiers.invalidateRangeEnd(range);
        yield* world.point("the other owner moves the second page");
        world.frames.free(second);
      },
      *hardware({ device }) {
        yield* device.write(PAGE, 7);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
