/** C13: a range is asked for, one address is looked at. KVM and the ageing of huge pages, 2014. */
import { MmuNotifier } from "../../../src/notifier/index.ts";
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (wholeRange: boolean): Scenario =>
  scenario({
    name: `ageing that looks at ${wholeRange ? "the range" : "one address"}`,
    setup(world) {
      const space = world.space({ pages: 4 });
      const device = world.device(space);
      for (let k = 0; k < 4; k++) device.map(k * PAGE, space.entry(k * PAGE)!);
      space.notifiers.sync.register(
        new MmuNotifier({
          invalidateRangeStart: (_notifier, range) => void device.unmap(range.start, range.end),
          clearFlushYoung(_notifier, _space, start, end) {
            let young = false;
            for (let at = start; at < (wholeRange ? end : start + PAGE); at += PAGE) {
              const entry = device.entry(at);
              if (!entry) continue;
              young ||= entry.accessed;
              entry.accessed = false;
            }
            return young;
          },
        }),
      );
      return { space, device };
    },
    agents: {
      *guest({ device }) {
        yield* device.read(2 * PAGE);
      },
      *reclaim({ space }) {
        yield* space.reclaim(0, 4 * PAGE);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);

/** The other half of the class: what the device has written is dropped without a word. */
const dirtyModel = (handsOver: boolean): Scenario =>
  scenario({
    name: `callback that ${handsOver ? "hands over" : "drops"} dirty bits`,
    setup(world) {
      const space = world.space({ clean: true });
      const device = world.device(space);
      device.map(0, space.entry(0)!); // writable, and the primary's entry is clean
      space.notifiers.sync.insert(
        {
          invalidate(self, range, curSeq) {
            self.setSeq(curSeq);
            for (const { pfn, dirty } of device.unmap(range.start, range.end))
              if (dirty && handsOver) space.markDirty(0, pfn);
          },
        },
        0,
        PAGE,
      );
      return { space, device };
    },
    agents: {
      *guest({ device }) {
        yield* device.write(0, 7);
      },
      *reclaim({ space }) {
        yield* space.reclaim(0, PAGE);
      },
    },
  });

export const brokenDirty: Scenario = dirtyModel(false);
export const fixedDirty: Scenario = dirtyModel(true);
