/** C05: the mm takes a page away and tells nobody. khugepaged over files, 2022. */
import { MmuNotifierEvent } from "../../../src/notifier/index.ts";
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (notifies: boolean): Scenario =>
  scenario({
    name: `collapse that ${notifies ? "notifies" : "is silent"}`,
    setup(world) {
      const space = world.space({ pages: 2 });
      const device = world.device(space);
      const interval = space.notifiers.sync.insert(
        {
          invalidate(self, range, curSeq) {
            self.setSeq(curSeq);
            device.unmap(range.start, range.end);
          },
        },
        0,
        2 * PAGE,
      );
      return { space, device, interval };
    },
    agents: {
      *driver({ space, device, interval }) {
        for (;;) {
          const seq = yield* interval.readBegin();
          const translation = space.entry(PAGE);
          if (!translation) return;
          if (interval.readRetry(seq)) continue;
          device.map(PAGE, translation);
          break;
        }
        yield* device.write(PAGE, 7);
      },
      *collapse({ space }, world) {
        const range = notifies
          ? yield* space.notifiers.invalidateRangeStart({
              start: 0,
              end: 2 * PAGE,
              event: MmuNotifierEvent.Clear,
            })
          : undefined;
        yield* world.point("retracts the page table");
        const gone = [0, PAGE].map((address) => space.clearEntry(address)!);
        yield* world.point("frees");
        for (const pfn of gone) world.frames.free(pfn);
        if (range) space.notifiers.invalidateRangeEnd(range);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
