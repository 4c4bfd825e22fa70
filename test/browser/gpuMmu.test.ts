/** A GPU that pages on demand in Chromium: WebGPU of the browser, and the example as a page. */
import { afterAll, expect, test } from "vitest";
import type * as webgpu from "../../src/webgpuEntry.ts";
import { usePages } from "./lib/browser.ts";
import { ROOT } from "../lib/sources.ts";

const pages = usePages({ gpu: true });

interface ExampleSite {
  readonly url: string;
  close(): Promise<void>;
}
let site: ExampleSite | undefined;
afterAll(() => site?.close());

async function openExample(): Promise<string> {
  const path = `${ROOT}examples/gpu-histogram/serve.mjs`;
  const { serve } = (await import(path)) as { serve(): Promise<ExampleSite> };
  site ??= await serve();
  return site.url;
}

test("loads and stores by address, a range four times the pool", async () => {
  const page = await pages.open();
  const content = 'import * as webgpu from "/dist/webgpu.js"; globalThis.gpuEntry = webgpu;';
  await page.addScriptTag({ type: "module", content });
  await page.waitForFunction(() => "gpuEntry" in globalThis);
  const answer = await page.evaluate(async () => {
    const { createGpuMmu } = (globalThis as unknown as { gpuEntry: typeof webgpu }).gpuEntry;
    const device = await (await navigator.gpu.requestAdapter())!.requestDevice();
    const memory = await bifolio.createMemory({ budget: "4 MiB" });
    const space = await memory.createSpace();
    const count = 64;
    const base = await space.mmap({ length: count * 4096, prot: "rw", share: "private" });
    await space.populate(base, count * 4096, "rw");
    for (let k = 0; k < count; k++) space.setUint32(base + k * 4096, k);
    const mmu = await createGpuMmu(space, device, { budget: "64 KiB", start: base, length: count * 4096 });
    const code = `${mmu.wgsl}
      @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
        if (!bifolio_begin(id.x)) { return; }
        let at = ${base}u + id.x * 4096u;
        let word = bifolio_load_u32(at);
        _ = bifolio_prepare_store(at + 4u);
        if (bifolio_finish()) { bifolio_store_u32(at + 4u, word * 3u); }
      }`;
    const module = device.createShaderModule({ code });
    const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
    const run = await mmu.dispatch({ pipeline, workgroups: 1, invocations: count });
    const { dirty, resident } = mmu.stats();
    const words = Array.from({ length: count }, (_, k) => space.getUint32(base + k * 4096 + 4));
    await mmu.remove();
    await memory.close();
    return { run, words, dirty, resident };
  });
  expect(answer.words).toEqual(Array.from({ length: 64 }, (_, k) => 3 * k));
  expect(answer).toMatchObject({ dirty: 0, resident: 16, run: { writtenBack: 64 } });
});

test("the example's page: a picture and a histogram that are those of the CPU", async () => {
  const page = await pages.open();
  await page.goto(await openExample());
  await page.fill("#size", "16");
  await page.click("button");
  await page.waitForFunction(() => "outcome" in globalThis, undefined, { timeout: 50_000 });
  const outcome = await page.evaluate(() => (globalThis as unknown as { outcome: object }).outcome);
  expect(outcome).toMatchObject({ pages: 4096, equal: true, wrong: 0 });
  expect(await page.textContent("#status")).toBe("Done.");
  expect(await page.textContent("#facts")).toContain("The CPU's answerthe same");
  if (process.env["SCREENSHOT"]) await page.screenshot({ path: process.env["SCREENSHOT"], fullPage: true });
});
