/** The mirror of `bifolio mirror`, over a real memory, while another thread changes what it mirrors. */
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";
import { TableMirror } from "../../../src/mirrors/index.ts";
import { expect } from "./steps.ts";

type Change = "dontneed" | "munmap" | "mprotect";

export const tableMirror = (change: Change): Scenario =>
  scenario({
    name: `a table mirror beside ${change}`,
    setup(world) {
      const memory = world.memory();
      const space = memory.sync.createSpace();
      const start = space.sync.mmap({ length: PAGE, prot: "rw", share: "private", populate: true });
      space.setInt32(start, 41);
      const mirror = new TableMirror({ memory, space, start, length: PAGE });
      return { space, start, mirror, id: space.id };
    },
    agents: {
      fill: async ({ mirror }) => {
        try {
          await mirror.fill(0);
        } catch {
          return; // the page may be gone
        }
        const { fills, retries } = mirror.counts;
        if (fills - retries !== 1) throw new Error(`${fills} fills and ${retries} retries gave one entry`);
      },
      reads: async ({ mirror, space, start }, world) => {
        await world.point("reads through the mirror");
        mirror.read(0, 1, (bytes) => {
          const frames = world.memory();
          for (let pfn = 0; pfn < 32; pfn++)
            if (frames.frame(pfn, 1).byteOffset === bytes.byteOffset) world.deviceAccess(space, start, pfn);
        });
      },
      changes: {
        thread: 1,
        run: async ({ id, start }, world) => {
          const space = world.memory().space(id);
          if (change === "mprotect") await space.mprotect(start, PAGE, "r");
          else if (change === "munmap") await space.munmap(start, PAGE);
          else await space.madvise(start, PAGE, "dontneed");
        },
      },
    },
  });

/** A fill that does not wait, beside a change: what it counts. */
export const tableMirrorTries: Scenario = scenario({
  name: "a table mirror that tries",
  setup(world) {
    const memory = world.memory();
    const space = memory.sync.createSpace();
    const start = space.sync.mmap({ length: PAGE, prot: "rw", share: "private", populate: true });
    return { start, mirror: new TableMirror({ memory, space, start, length: PAGE }), id: space.id };
  },
  agents: {
    tries: async ({ mirror }, world) => {
      await world.point("tries");
      const filled = mirror.tryFill(0);
      const { fills, retries } = mirror.counts;
      if (fills - retries !== (filled ? 1 : 0))
        throw new Error(`${fills} fills and ${retries} retries ${filled ? "gave" : "did not give"} an entry`);
    },
    changes: {
      thread: 1,
      run: async ({ id, start }, world) => {
        await world.memory().space(id).mprotect(start, PAGE, "r");
      },
    },
  },
});

/** The mirror by itself: what it counts, and its fills that do not wait. */
export const tableMirrorAlone: Scenario = scenario({
  name: "a table mirror by itself",
  setup(world) {
    const memory = world.memory();
    const space = memory.sync.createSpace();
    const start = space.sync.mmap({ length: 3 * PAGE, prot: "rw", share: "private", populate: true });
    for (let page = 0; page < 3; page++) space.setInt32(start + page * PAGE, 41 + page);
    space.sync.munmap(start + 2 * PAGE, PAGE);
    return { space, start, mirror: new TableMirror({ memory, space, start, length: 3 * PAGE }) };
  },
  agents: {
    checks: ({ mirror, space, start }) => {
      const read = (): string => {
        const found: string[] = [];
        mirror.read(0, 3, (bytes, page) => {
          for (let at = 0; at < bytes.length; at += PAGE) found.push(`${page + at / PAGE}: ${bytes[at]}`);
        });
        return found.join();
      };
      const counts = (): string => Object.entries(mirror.counts).join(" ");
      expect("an empty mirror", read(), "");
      expect("counts", counts(), "hits,-1 fills,0 retries,0 invalidations,0");
      mirror.fillSync(0); // once more, without the page that cannot be had
      expect("a mirror", read(), "0: 41,1: 42");
      expect("counts", counts(), "hits,1 fills,2 retries,0 invalidations,0");
      space.sync.madvise(start, PAGE, "dontneed");
      expect("a mirror without its first page", read(), "");
      expect("the second page", mirror.present(1, 2), 1);
      expect("counts", counts(), "hits,0 fills,2 retries,0 invalidations,1");
      expect("what is not resident", mirror.tryFill(0), false);
      space.setInt32(start, 51);
      expect("what is resident", mirror.tryFill(0), true);
      expect("a mirror", read(), "0: 51,1: 42");
      expect("counts", counts(), "hits,2 fills,3 retries,0 invalidations,1");
    },
  },
});
