// npm run build: the wasm kernels, the bundles, the type declarations. Prints problems only, to standard error.
// Types are checked by `npm run typecheck`, not here.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { build } from "rolldown";

const root = fileURLToPath(new URL("..", import.meta.url));

await import("./buildWasm.mjs");

const { default: configs } = await import("../rolldown.config.mjs");
await build(configs);

const tsc = fileURLToPath(new URL("../bin/tsc", import.meta.resolve("typescript")));
const types = spawnSync(process.execPath, [tsc, "-p", "tsconfig.build.json", "--noCheck"], {
  cwd: root,
  stdio: ["ignore", 2, 2],
});
process.exitCode = types.status ?? 1;
