// Compiles src/memory/kernels.wat into src/memory/kernelsWasm.ts (base64 in a module, so that no loader,
// bundler or file access is needed where the package runs). Writes only what changed.
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const source = fileURLToPath(new URL("../src/memory/kernels.wat", import.meta.url));
const target = fileURLToPath(new URL("../src/memory/kernelsWasm.ts", import.meta.url));
const self = fileURLToPath(import.meta.url);

const modified = (path) => statSync(path).mtimeMs;
const upToDate =
  existsSync(target) && modified(target) >= modified(source) && modified(target) >= modified(self);

if (!upToDate) {
  const { default: initWabt } = await import("wabt");
  const wabt = await initWabt();
  const features = { threads: true, bulk_memory: true, simd: true };
  const parsed = wabt.parseWat("kernels.wat", readFileSync(source, "utf8"), features);
  parsed.validate(features);
  const { buffer } = parsed.toBinary({});
  parsed.destroy();
  if (!WebAssembly.validate(buffer)) throw new Error("kernels.wat compiles to a module this engine rejects");
  const base64 = Buffer.from(buffer).toString("base64");
  writeFileSync(
    target,
    `// Generated from kernels.wat by scripts/buildWasm.mjs; do not edit.\n` +
      `/** The compiled kernels, base64; ${buffer.byteLength} bytes. */\n` +
      `export const KERNELS_WASM: string =\n  "${base64}";\n`,
  );
}
