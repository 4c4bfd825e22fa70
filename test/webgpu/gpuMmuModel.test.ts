/**
 * A GPU MMU against a plain model: random operations on mappings, by the CPU and by kernels, between dispatches and while
 * they run.
 */
import fc from "fast-check";
import { expect, test } from "vitest";
import type { AddressSpace } from "../../src/mm/index.ts";
import { createGpuMmu, type GpuMmu } from "../../src/mirrors/webgpu/index.ts";
import { pagesFrom, useMmus } from "../lib/gpuMmu.ts";
import { ADD, GATHER, type Kernel, kernelOf } from "../lib/kernels.ts";
import { anonymous, arrayBacking, makeRig, PAGE, takeReported } from "../lib/mm.ts";

const mmus = useMmus();

const PAGES = 24;
const POOL = 6;

/** Pages of a file at the beginning, until something else is mapped there; the others are anonymous. */
const FILE_PAGES = 10;
const fileWord = (k: number): number => 1_000_000 + k;

/** What a page should hold; `gpu` where the GPU's word is newer. */
interface ModelPage {
  mapped: boolean;
  writable: boolean;
  /** What it holds before the first store. */
  clean: number;
  home: number;
  gpu: number | undefined;
}

type Step =
  | { readonly kind: "store"; readonly page: number; readonly value: number }
  | { readonly kind: "load" }
  | { readonly kind: "gather"; readonly pages: number[]; readonly meanwhile: Step[] }
  | {
      readonly kind: "add";
      readonly pages: number[];
      readonly value: number;
      readonly keepDirty: boolean;
      readonly meanwhile: Step[];
    }
  | { readonly kind: "flush" | "fork" | "softDirty" | "reclaim" | "lose" }
  | {
      readonly kind: "munmap" | "mmap" | "readOnly" | "writable" | "dontneed";
      readonly first: number;
      readonly count: number;
      readonly form: "try" | "promise";
    };

const page = fc.nat(PAGES - 1);
const ranged = fc.record({
  kind: fc.constantFrom("munmap", "mmap", "readOnly", "writable", "dontneed"),
  first: page,
  count: fc.integer({ min: 1, max: 6 }),
  form: fc.constantFrom("try", "promise"),
}) as fc.Arbitrary<Step>;
const store = fc.record({ kind: fc.constant("store"), page, value: fc.nat(1e6) }) as fc.Arbitrary<Step>;
const whole = fc.record({ kind: fc.constantFrom("fork", "softDirty", "reclaim") }) as fc.Arbitrary<Step>;
const meanwhile = fc.array(fc.oneof(ranged, store, whole), { maxLength: 3 });
const pages = fc.uniqueArray(page, { minLength: 1, maxLength: PAGES });
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 3, arbitrary: ranged },
  { weight: 3, arbitrary: store },
  { weight: 1, arbitrary: whole },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constantFrom("load", "flush", "lose") }) as fc.Arbitrary<Step>,
  },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constant("gather"), pages, meanwhile }) as fc.Arbitrary<Step>,
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("add"),
      pages,
      value: fc.integer({ min: 1, max: 1000 }),
      keepDirty: fc.boolean(),
      meanwhile,
    }) as fc.Arbitrary<Step>,
  },
);

class World {
  readonly model: ModelPage[] = Array.from({ length: PAGES }, (_, k) => ({
    mapped: true,
    writable: true,
    clean: k < FILE_PAGES ? fileWord(k) : 0,
    home: k < FILE_PAGES ? fileWord(k) : 0,
    gpu: undefined,
  }));
  readonly space: AddressSpace;
  readonly mmu: GpuMmu;
  readonly base: number;
  readonly addresses: number[];
  device: GPUDevice;
  gather!: Kernel;
  add!: Kernel;
  readonly #reclaim: () => Promise<unknown>;

  constructor(
    space: AddressSpace,
    mmu: GpuMmu,
    base: number,
    device: GPUDevice,
    reclaim: () => Promise<unknown>,
  ) {
    this.space = space;
    this.mmu = mmu;
    this.base = base;
    this.addresses = pagesFrom(base, PAGES);
    this.device = device;
    this.#reclaim = reclaim;
    this.compile();
  }

  compile(): void {
    this.gather = kernelOf(this.device, this.mmu, GATHER);
    this.add = kernelOf(this.device, this.mmu, ADD);
  }

  /** Everything that the GPU has written in these pages is in the space. */
  #home(of: readonly ModelPage[]): void {
    for (const each of of) {
      each.home = each.gpu ?? each.home;
      each.gpu = undefined;
    }
  }

  /** `busy`: pages that a dispatch uses; they are left alone. */
  async apply(step: Step, busy: ReadonlySet<number> = new Set()): Promise<void> {
    const { model, space, base } = this;
    switch (step.kind) {
      case "store": {
        const at = model[step.page]!;
        // To a page that a dispatch stores to, too, it would be first or second.
        if (!at.mapped || !at.writable || busy.has(step.page)) return;
        const address = this.addresses[step.page]!;
        await space.run(() => space.setUint32(address, step.value));
        at.home = step.value;
        at.gpu = undefined;
        return;
      }
      case "load":
        for (const [k, at] of model.entries()) {
          if (!at.mapped) continue;
          // What kernels stored to private pages is there for whoever accesses it.
          expect(await space.run(() => space.getUint32(this.addresses[k]!))).toBe(at.gpu ?? at.home);
          this.#home([at]);
        }
        return;
      case "gather":
      case "add":
        return await this.#dispatch(step);
      case "flush":
        await this.mmu.flush();
        return this.#home(model);
      case "fork": {
        const child = await space.fork();
        // A dispatch that runs may store while the child is made; what was there before it is in the child.
        if (busy.size === 0) this.#home(model);
        for (const [k, at] of model.entries()) {
          if (!at.mapped || busy.has(k)) continue;
          this.#home([at]);
          expect(await child.run(() => child.getUint32(this.addresses[k]!))).toBe(at.home);
        }
        return await child.exit();
      }
      case "softDirty":
        await space.clearRefs("soft-dirty");
        return this.#home(model.filter((_, k) => !busy.has(k)));
      case "reclaim":
        await this.#reclaim();
        return;
      case "lose": {
        this.device.destroy();
        await this.device.lost;
        const lost = model.flatMap((at, k) => (at.gpu === undefined ? [] : [this.addresses[k]!]));
        const reported = this.mmu.lost.flatMap(({ start, end }) =>
          this.addresses.filter((address) => address >= start && address < end),
        );
        expect(reported).toEqual(lost);
        takeReported();
        for (const at of model) at.gpu = undefined;
        this.device = await mmus.device();
        await this.mmu.recover(this.device);
        return this.compile();
      }
      default: {
        const touched = Array.from({ length: step.count }, (_, k) => step.first + k).filter((k) => k < PAGES);
        if (touched.some((k) => busy.has(k))) return;
        const at = touched.map((k) => model[k]!);
        const start = base + step.first * PAGE;
        const length = touched.length * PAGE;
        // These need a mapping everywhere.
        if (step.kind !== "munmap" && step.kind !== "mmap" && at.some(({ mapped }) => !mapped)) return;
        const on = step.form === "try" ? space.try : space;
        try {
          if (step.kind === "munmap") await on.munmap(start, length);
          else if (step.kind === "dontneed") await on.madvise(start, length, "dontneed");
          else if (step.kind === "mmap")
            await on.mmap(anonymous(touched.length, { address: start, fixed: true }));
          else await on.mprotect(start, length, step.kind === "writable" ? "rw" : "r");
        } catch (error) {
          // Refused: nothing has changed. mprotect may have done some mappings of several, which the model cannot know.
          expect(error).toMatchObject({ code: "EAGAIN" });
          if (step.kind === "writable" || step.kind === "readOnly" || step.kind === "dontneed")
            return await this.apply({ ...step, form: "promise" });
          return;
        }
        for (const each of at) {
          if (step.kind === "munmap")
            Object.assign(each, { mapped: false, clean: 0, home: 0, gpu: undefined });
          else if (step.kind === "mmap")
            Object.assign(each, { mapped: true, writable: true, clean: 0, home: 0, gpu: undefined });
          else if (step.kind === "dontneed") Object.assign(each, { home: each.clean, gpu: undefined });
          else {
            const changes = each.writable !== (step.kind === "writable");
            each.writable = step.kind === "writable";
            if (changes || each.gpu !== undefined) this.#settle(each, touched);
          }
        }
      }
    }
  }

  /** After mprotect: where the protection was as wanted already nothing was raised, and nothing came home. */
  #settle(at: ModelPage, touched: readonly number[]): void {
    if (at.gpu === undefined) return;
    const k = this.model.indexOf(at);
    expect(touched).toContain(k);
    if (!this.mmu.isResident(this.addresses[k]!)) this.#home([at]);
  }

  async #dispatch(step: Step & { kind: "gather" | "add" }): Promise<void> {
    const { model } = this;
    const usable = step.pages.filter(
      (k) => model[k]!.mapped && (step.kind === "gather" || model[k]!.writable),
    );
    if (usable.length === 0) return;
    const busy = new Set(usable);
    const addresses = usable.map((k) => this.addresses[k]!);
    const before = usable.map((k) => model[k]!.gpu ?? model[k]!.home);
    const keepDirty = step.kind === "gather" || step.keepDirty;
    const running =
      step.kind === "gather"
        ? this.gather(addresses, [], { keepDirty })
        : this.add(addresses, Array<number>(usable.length).fill(step.value), { keepDirty });
    // Left to itself it would be unhandled if a step below fails first.
    running.catch(() => {});
    for (const other of step.meanwhile) await this.apply(other, busy);
    const run = await running;
    expect(run.words).toEqual(before);
    expect(this.mmu.stats().resident).toBeLessThanOrEqual(POOL);
    if (step.kind === "add") usable.forEach((k, n) => (model[k]!.gpu = before[n]! + step.value));
    if (!keepDirty) this.#home(model);
    else this.#adopt();
  }

  /** What was evicted, or came home for another reason, is in the space: the model asks which. */
  #adopt(): void {
    for (const [k, at] of this.model.entries())
      if (at.gpu !== undefined && !this.mmu.isDirty(this.addresses[k]!)) this.#home([at]);
  }
}

test("any operations, between dispatches and while they run", { timeout: 300_000 }, async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 4, maxLength: 24 }), async (steps) => {
      const rig = await makeRig(96, { mayBlock: false });
      const device = await mmus.device();
      const base = await rig.raw.mmap(anonymous(PAGES));
      const bytes = new Uint8Array(FILE_PAGES * PAGE);
      for (let k = 0; k < FILE_PAGES; k++) new DataView(bytes.buffer).setUint32(k * PAGE, fileWord(k), true);
      const file = await rig.memory.openFile(arrayBacking(bytes));
      const part = { length: bytes.length, address: base, fixed: true } as const;
      await rig.raw.mmap({ ...part, prot: "rw", share: "private", file });
      const bounds = { start: base, length: PAGES * PAGE };
      const mmu = await createGpuMmu(rig.raw, device, { budget: POOL * PAGE, ...bounds });
      const world = new World(rig.raw, mmu, base, device, () => rig.memory.reclaim(4 * PAGE));
      try {
        for (const each of steps) {
          await world.apply(each);
          expect(mmu.check()).toBeUndefined();
          expect(rig.memory.check()).toBeUndefined();
        }
        await world.apply({ kind: "flush" });
        await world.apply({ kind: "load" });
      } finally {
        await mmu.remove();
        world.device.destroy();
        await rig.raw.exit();
        await file.close();
      }
    }),
    { numRuns: 40, ...(process.env["SEED"] && { seed: Number(process.env["SEED"]) }) },
  );
});
