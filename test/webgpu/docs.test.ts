/** The snippets of docs/webgpu.md run as they stand. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { mirrorRange, type RangeMirror } from "../../src/mirrors/webgpu/index.ts";
import { createMemory, type PhysicalMemory } from "../../src/mm/index.ts";
import { useGpu } from "../lib/gpu.ts";
import { readBuffer } from "../lib/gpuBuffers.ts";
import { ROOT } from "../lib/sources.ts";

const gpu = useGpu();

/** The JavaScript snippets under a heading, without their imports. */
function snippetsUnder(heading: string): string[] {
  const document = readFileSync(`${ROOT}docs/webgpu.md`, "utf8");
  const section = document.split(/^#+ /m).find((part) => part.startsWith(`${heading}\n`))!;
  return [...section.matchAll(/```js\n(.*?)```/gs)].map((m) => m[1]!.replace(/^import .*\n/gm, ""));
}

function run(body: string, names: object): Promise<Record<string, unknown>> {
  const make = Object.getPrototypeOf(async () => {}).constructor as new (
    ...args: string[]
  ) => (...values: unknown[]) => Promise<Record<string, unknown>>;
  return new make(...Object.keys(names), body)(...Object.values(names));
}

test("a mirrored range, results of the GPU, and another device", async () => {
  const device = await gpu.device();
  const [first] = snippetsUnder("Mirrored ranges");
  const made = await run(`${first}\nreturn { memory, space, base, mirror, entry };`, {
    createMemory,
    mirrorRange,
    device,
  });
  const mirror = made["mirror"] as RangeMirror;
  const memory = made["memory"] as PhysicalMemory;
  expect(made["entry"]).toEqual({ binding: 0, resource: { buffer: mirror.buffer } });
  expect(mirror.counts).toMatchObject({ syncs: 2, pages: 257 });
  const bytes = await readBuffer(device, mirror.buffer);
  expect(new DataView(bytes.buffer).getFloat32(40_000, true)).toBe(1.5);
  await mirror.remove();

  const { space, base } = made;
  const encoder = device.createCommandEncoder();
  const commands = encoder.finish();
  const [second] = snippetsUnder("When the GPU writes");
  const written = await run(`${second}\nreturn { mirror };`, { space, base, device, mirrorRange, commands });
  const writer = written["mirror"] as RangeMirror;
  expect(writer.writtenRanges).toHaveLength(1);
  device.destroy();
  await device.lost;
  const [third] = snippetsUnder("When something fails");
  const recovered = await run(`${third}\nreturn { lost };`, {
    mirror: writer,
    newDevice: await gpu.device(),
  });
  expect(recovered["lost"]).toEqual([{ start: Number(base) + 4096, end: Number(base) + 12288 }]);
  await writer.remove();
  await memory.close();
});
