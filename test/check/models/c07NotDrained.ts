/** C07: a zap over two roots forgets the flush of the first when it yields in the second. KVM's TDP MMU, 2021. */
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";

const model = (carries: boolean): Scenario =>
  scenario({
    name: `zap that ${carries ? "carries" : "forgets"} the pending flush`,
    setup(world) {
      const space = world.space();
      const lock = world.mutex("mmu lock");
      const roots = [0, 1].map((k) => world.device(space, { name: `root ${k}`, tlb: true }));
      for (const root of roots) {
        root.map(0, space.entry(0)!);
        root.readNow(0); // its TLB has it
      }
      const deferred: number[] = [];
      return { space, lock, roots, deferred };
    },
    agents: {
      *zap({ space, lock, roots, deferred }, world) {
        yield* lock.lock();
        let pending = false;
        const flush = (): void => {
          for (const root of roots) root.flushTlb(0, PAGE);
        };
        for (const [k, root] of roots.entries()) {
          if (!carries) pending = false;
          if (k === 1) {
            // Has to let others have the lock.
            if (pending) flush();
            lock.unlock();
            yield* world.point("yields");
            yield* lock.lock();
          }
          pending = root.unmap(0, PAGE).length > 0 || pending;
          if (k === 0) deferred.push(space.clearEntry(0)!);
        }
        flush();
        lock.unlock();
      },
      *worker({ lock, deferred }, world) {
        yield* lock.lock();
        for (const pfn of deferred.splice(0)) world.frames.free(pfn);
        lock.unlock();
      },
      *guest({ roots }, world) {
        yield* world.point("writes through root 0");
        roots[0]!.writeNow(0, 7);
      },
    },
  });

export const broken: Scenario = model(false);
export const fixed: Scenario = model(true);
