/** A mirrored range in Chromium: the page has the GPU, a worker stores to the same space. */
import { expect, test } from "vitest";
import { usePages } from "./lib/browser.ts";

const pages = usePages({ gpu: true });

test("the buffer follows what a worker stores, and the worker reads what the GPU writes", async () => {
  const page = await pages.open();
  const seen = await page.evaluate(async () => {
    const adapter = await navigator.gpu.requestAdapter();
    if (!adapter) return "no adapter";
    const device = await adapter.requestDevice();
    const memory = await bifolio.createMemory({ budget: "1 MiB", arena: "4 MiB", debug: true });
    const space = await memory.createSpace();
    const [PAGE, PAGES] = [4096, 32];
    const base = await space.mmap({ length: PAGES * PAGE, prot: "rw", share: "private" });
    const mirror = await webgpu.mirrorRange(space, device, base, PAGES * PAGE, { access: "rw" });
    const control = new Int32Array(new SharedArrayBuffer(64));

    const read = async (): Promise<Uint8Array> => {
      const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
      const back = device.createBuffer({ size: PAGES * PAGE, usage });
      const encoder = device.createCommandEncoder();
      encoder.copyBufferToBuffer(mirror.buffer, 0, back, 0, PAGES * PAGE);
      device.queue.submit([encoder.finish()]);
      await back.mapAsync(GPUMapMode.READ);
      const bytes = new Uint8Array(back.getMappedRange().slice(0));
      back.destroy();
      return bytes;
    };

    // Rounds of stores, each said in control[0] and taken over by control[1] = round.
    const agent = await startAgent(
      memory,
      async (m, { id, at, words, rounds }) => {
        const mine = m.space(id);
        for (let round = 1; round <= rounds; round++) {
          for (let k = 0; k < 32; k += round) mine.setUint32(at + k * 4096 + 4 * round, round * 1000 + k);
          Atomics.store(words, 0, round);
          await m.wait(words, 1, round - 1);
        }
        // The GPU has added 5 to the first word of each page.
        return Array.from({ length: 32 }, (_, k) => mine.getUint32(at + k * 4096));
      },
      { id: space.id, at: base, words: control, rounds: 5 },
    );
    const missing: string[] = [];
    const uploaded: number[] = [];
    for (let round = 1; round <= 5; round++) {
      while (Atomics.load(control, 0) < round) await new Promise((resolve) => setTimeout(resolve, 1));
      const before = mirror.counts.pages;
      await mirror.sync();
      uploaded.push(mirror.counts.pages - before);
      const words = new Uint32Array((await read()).buffer);
      for (let k = 0; k < PAGES; k += round)
        if (words[(k * PAGE) / 4 + round] !== round * 1000 + k) missing.push(`${round}: ${k}`);
      if (round === 5) {
        const module = device.createShaderModule({
          code: `@group(0) @binding(0) var<storage, read_write> data: array<u32>;
            @compute @workgroup_size(32) fn add(@builtin(local_invocation_id) id: vec3u) { data[id.x * 1024] += 5; }`,
        });
        const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
        const group = device.createBindGroup({
          layout: pipeline.getBindGroupLayout(0),
          entries: [{ binding: 0, resource: { buffer: mirror.buffer } }],
        });
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, group);
        pass.dispatchWorkgroups(1);
        pass.end();
        device.queue.submit([encoder.finish()]);
        await mirror.markWritten(base, PAGES * PAGE);
      }
      Atomics.store(control, 1, round);
      Atomics.notify(control, 1);
    }
    const theirs = await agent.done;
    const before = mirror.counts.pages;
    await mirror.sync();
    const again = mirror.counts.pages - before;
    const bytes = new Uint8Array(PAGES * PAGE);
    await space.read(base, bytes);
    const now = await read();
    const same = bytes.every((byte, k) => byte === now[k]);

    device.destroy();
    await device.lost;
    space.setUint8(base + PAGE, 1);
    const lost = await mirror.sync().then(
      () => "none",
      (error: unknown) => (bifolio.isMmError(error) ? error.code : String(error)),
    );
    const next = await (await navigator.gpu.requestAdapter())!.requestDevice();
    const gone = await mirror.recover(next);
    await mirror.sync();
    await mirror.remove();
    const invariant = memory.check();
    await memory.close();
    return { missing, uploaded, theirs, again, same, lost, gone, invariant };
  });
  expect(seen).toEqual({
    missing: [],
    uploaded: [32, 16, 11, 8, 7],
    theirs: Array.from({ length: 32 }, () => 5),
    again: 0,
    same: true,
    lost: "EIO",
    gone: [],
    invariant: undefined,
  });
});
