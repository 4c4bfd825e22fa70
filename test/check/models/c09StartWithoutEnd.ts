/** C09: one subscriber refuses, and the one that has heard the start never hears the end. The mmu notifier core, 2021. */
import { type Scenario, scenario } from "../../../src/check/index.ts";

interface Subscriber {
  start(blockable: boolean): boolean;
  end?(): void;
}

const model = (unwinds: boolean): Scenario =>
  scenario({
    name: `non-blocking start that ${unwinds ? "unwinds" : "gives up"}`,
    setup(world) {
      const space = world.space();
      const heard = world.pairing("K");
      const inProgress = world.cell("in progress", 0);
      const k: Subscriber = {
        start() {
          heard.start();
          inProgress.value++;
          return true;
        },
        end() {
          heard.end();
          inProgress.value--;
        },
      };
      const g: Subscriber = { start: (blockable) => blockable };
      return { space, inProgress, subscribers: [k, g] };
    },
    agents: {
      // A core of our own, with the bug.
      *reaper({ subscribers, space }, world) {
        yield* world.point("start, not blockable");
        const told: Subscriber[] = [];
        for (const subscriber of subscribers) {
          if (subscriber.start(false)) told.push(subscriber);
          else {
            if (unwinds) for (const other of told) other.end?.();
            return;
          }
        }
        world.frames.free(space.clearEntry(0)!);
        for (const subscriber of subscribers) subscriber.end?.();
      },
      *fill({ inProgress }, world) {
        yield* world.until(() => inProgress.value === 0, "no invalidation in progress");
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
