/** C12: a remover waits for the sequence, which moves before its node is unlinked. mmu_interval_notifier_remove(), 2022. */
import { type Scenario, scenario } from "../../../src/check/index.ts";

const model = (looksUnderLock: boolean): Scenario =>
  scenario({
    name: `remove that waits ${looksUnderLock ? "with" : "without"} the lock`,
    setup(world) {
      const lock = world.mutex("subscriptions lock");
      const seq = world.cell("seq", 1); // odd: an invalidation is open
      const deferred = world.cell<boolean>("deferred", false);
      const interval = world.object("the interval");
      return { lock, seq, deferred, interval };
    },
    agents: {
      *end({ lock, seq, deferred, interval }, world) {
        yield* lock.lock();
        seq.value++;
        yield* world.point("processes what was deferred");
        if (deferred.value) {
          interval.use(); // unlinks it
          deferred.value = false;
        }
        lock.unlock();
      },
      *remove({ lock, seq, deferred, interval }, world) {
        yield* lock.lock();
        const open = seq.value % 2 === 1;
        const before = seq.value;
        if (open) deferred.value = true;
        lock.unlock();
        if (open)
          yield* world.until(
            () => seq.value !== before && (!looksUnderLock || !lock.locked),
            "the sequence to move",
          );
        interval.free();
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
