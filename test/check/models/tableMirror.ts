/** The mirror of `bifolio mirror`, over a real memory, while another thread changes what it mirrors. */
import { PAGE, type Scenario, scenario } from "../../../src/check/index.ts";
import { TableMirror } from "../../../src/mirrors/index.ts";

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
          // The page may be gone.
        }
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
