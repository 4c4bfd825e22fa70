/** What comes between the steps of a GPU MMU: operations of the same agent in every gap that an await leaves. */
import { expect, test } from "vitest";
import { numbered, numbers, pagesFrom, useMmus } from "../lib/gpuMmu.ts";
import { GATHER, kernelOf, SCATTER } from "../lib/kernels.ts";
import { PAGE } from "../lib/mm.ts";

const mmus = useMmus();

test("a fill that is overtaken after it has read the page tables installs nothing", async () => {
  let churn = (): Promise<void> => Promise.resolve();
  // A fill begins when an answer has come, and goes on in microtasks: so does what is to come in between.
  const rig = await mmus.make(8, {
    wrap: (device) =>
      new Proxy(device, {
        get(target, name) {
          const value: unknown = Reflect.get(target, name, target);
          if (name !== "createBuffer") return typeof value === "function" ? value.bind(target) : value;
          return (descriptor: GPUBufferDescriptor): GPUBuffer => {
            const buffer = target.createBuffer(descriptor);
            const mapAsync = buffer.mapAsync.bind(buffer);
            buffer.mapAsync = async (...args): Promise<undefined> => {
              await mapAsync(...args);
              void churn();
            };
            return buffer;
          };
        },
      }),
  });
  const base = await numbered(rig, 8);
  const gather = kernelOf(rig.device, rig.mmu, GATHER);
  let changes = 0;
  let ticks = 0;
  /** After so many steps of the fill gives the pages up, once, so that their frames are free, or others'. */
  churn = async (): Promise<void> => {
    for (let k = 0; k < ticks; k++) await Promise.resolve();
    if (ticks < 0) return;
    ticks = -1;
    for (let k = 0; k < 4; k++) {
      rig.raw.try.madvise(base + k * PAGE, PAGE, "dontneed");
      rig.raw.try.madvise(base + (4 + k) * PAGE, PAGE, "dontneed");
      rig.raw.setUint32(base + (4 + k) * PAGE, 2000 + k);
      rig.raw.setUint32(base + k * PAGE, 1000 + k);
    }
    changes++;
  };
  for (let round = 0; round < 120; round++) {
    ticks = round % 40;
    const { words } = await gather(pagesFrom(base, 4));
    expect(words).toEqual(numbers(4));
  }
  expect(changes).toBe(120);
});

test("stores to pages that are on their way home to the same place are not lost", async () => {
  const rig = await mmus.make(8);
  const base = await numbered(rig, 8);
  const scatter = kernelOf(rig.device, rig.mmu, SCATTER);
  for (let round = 0; round < 8; round++) {
    await scatter(pagesFrom(base, 8), numbers(8, round), { keepDirty: true });
    // Two that wait for the same bytes, and a dispatch that wants the pages again meanwhile.
    const [protecting, forking] = [rig.raw.mprotect(base, 8 * PAGE, "r"), rig.raw.fork()];
    const reading = kernelOf(rig.device, rig.mmu, GATHER)(pagesFrom(base, 8));
    expect((await reading).words).toEqual(numbers(8, round));
    await protecting;
    const child = await forking;
    for (let k = 0; k < 8; k++) expect(rig.raw.getUint32(base + k * PAGE)).toBe(round + k);
    await child.exit();
    await rig.raw.mprotect(base, 8 * PAGE, "rw");
  }
});

test("a page that a dispatch may be writing to is waited for, or the change is refused", async () => {
  const rig = await mmus.make(8, { group: 0 });
  const { mmu, device } = rig;
  const base = await numbered(rig, 2);
  const layout = device.createPipelineLayout({ bindGroupLayouts: [mmu.bindGroupLayout] });
  const stores = [0, 1].map((k) => `bifolio_store_u32(${base + k * PAGE}u, ${k + 5}u);`).join(" ");
  const code = `${mmu.wgsl}@compute @workgroup_size(1) fn main() { ${stores} }`;
  const module = device.createShaderModule({ code });
  const pipeline = device.createComputePipeline({ layout, compute: { module } });
  let rounds = 0;
  let refused: unknown;
  let waiting: Promise<void> | undefined;
  await mmu.run(
    (pass) => {
      pass.setPipeline(pipeline);
      pass.dispatchWorkgroups(1);
      if (rounds++ !== 1) return;
      // Once the round is with the device. The pages are there, may be stored to, and nobody knows yet whether they were.
      queueMicrotask(() => {
        try {
          rig.raw.try.madvise(base, PAGE, "dontneed");
        } catch (error) {
          refused = error;
        }
        waiting = rig.raw.mprotect(base + PAGE, PAGE, "r");
      });
    },
    { keepDirty: true },
  );
  expect(refused).toMatchObject({ code: "EAGAIN" });
  await waiting;
  await mmu.flush();
  expect([0, 1].map((k) => rig.raw.getUint32(base + k * PAGE))).toEqual([5, 6]);
});

test("runs of one MMU follow each other", async () => {
  const rig = await mmus.make(4);
  const base = await numbered(rig, 8);
  const scatter = kernelOf(rig.device, rig.mmu, SCATTER);
  const gather = kernelOf(rig.device, rig.mmu, GATHER);
  const all = pagesFrom(base, 8);
  const answers = await Promise.all([
    gather(all),
    scatter(all, numbers(8, 1)),
    gather(all),
    scatter(all, numbers(8, 2)),
    gather(all),
  ]);
  expect([0, 2, 4].map((k) => answers[k]!.words)).toEqual([numbers(8), numbers(8, 1), numbers(8, 2)]);
});
