import { test } from "vitest";
import { createMemory } from "../../../src/mm/index.ts";
test("probe", async () => {
  for (const arena of ["4 MiB", undefined] as const) {
    const t0 = performance.now();
    const m = await createMemory({ budget: 64 * 4096, mayBlock: true, debug: true, ...(arena ? { arena } : {}) });
    const t1 = performance.now();
    const s = m.sync.createSpace();
    const a = s.sync.mmap({ length: 8 * 4096, prot: "rw", share: "private" });
    for (let k = 0; k < 8; k++) s.setUint32(a + k * 4096, k);
    const t2 = performance.now();
    let c;
    for (let k = 0; k < 20; k++) c = m.check();
    const t3 = performance.now();
    console.log(arena, t1 - t0, t2 - t1, (t3 - t2) / 20, c);
    s.sync.exit();
    console.log(m.check());
  }
});
