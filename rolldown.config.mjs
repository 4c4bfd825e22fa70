// Two builds of the same sources: dist/ is what users get; .test-build/ adds src/testing.ts (internals, for
// tests in worker threads and for benches) and has its own copy of everything, so that within one folder each
// module exists once.
//
// Chunks lie flat beside the entries: `new URL("./mirrorWorker.js", import.meta.url)` is right in each of them.
import { chmodSync, existsSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { builtinModules } from "node:module";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { esmExternalRequirePlugin } from "rolldown/plugins";

const root = fileURLToPath(new URL(".", import.meta.url));
const dist = join(root, "dist");
const testBuild = join(root, ".test-build");

const publishedEntries = {
  index: "src/index.ts",
  notifier: "src/notifierEntry.ts",
  node: "src/node.ts",
  sync: "src/syncEntry.ts",
  program: "src/programEntry.ts",
  check: "src/checkEntry.ts",
  webgpu: "src/webgpuEntry.ts",
  cli: "src/cli/main.ts",
  mirrorWorker: "src/cli/mirrorWorker.ts",
  streamWorker: "src/cli/streamWorker.ts",
  checkWorker: "src/cli/checkWorker.ts",
};
const testEntries = { ...publishedEntries, testing: "src/testing.ts" };

/** The entries whose source is there. */
function present(entries, folder) {
  return Object.fromEntries(
    Object.entries(entries).filter(([name, source]) => {
      const found = existsSync(join(root, source));
      if (!found) console.error(`note: ${source} does not exist, ${folder}/${name}.js is left out`);
      return found;
    }),
  );
}

/** Node's own modules, also where a bundled dependency says "events" for "node:events". */
const external = [/^node:/, ...builtinModules];

/** Keeps the licence texts of what is bundled beside it. */
const bundledLicenses = {
  name: "bundled-licenses",
  generateBundle(_options, bundle) {
    const packages = new Map();
    for (const chunk of Object.values(bundle)) {
      for (const id of chunk.type === "chunk" ? chunk.moduleIds : []) {
        const folder = /^.*[\\/]node_modules[\\/](?:@[^\\/]+[\\/])?[^\\/]+/.exec(id)?.[0];
        if (folder) packages.set(relative(root, folder), folder);
      }
    }
    const byName = [...packages].sort(([a], [b]) => (a < b ? -1 : 1));
    const texts = byName.map(([, folder]) => {
      const { name, version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
      const file = readdirSync(folder).find((f) => /^licen[cs]e/i.test(f));
      if (!file) throw new Error(`${name} is bundled but has no licence file`);
      return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
    });
    if (texts.length > 0) {
      const source = `Bundled into the bifolio command:\n\n${texts.join(`\n${"-".repeat(72)}\n\n`)}`;
      this.emitFile({ type: "asset", fileName: "THIRD-PARTY-LICENSES.txt", source });
    }
  },
};

/** Makes the command executable, and removes what an earlier build wrote and this one did not. */
const finish = {
  name: "finish",
  writeBundle({ dir }, bundle) {
    const written = new Set(Object.keys(bundle));
    for (const file of readdirSync(dir)) {
      if (!written.has(file)) rmSync(join(dir, file), { recursive: true, force: true });
    }
    if (written.has("cli.js")) chmodSync(join(dir, "cli.js"), 0o755);
  },
};

const hasShebang = (source) => existsSync(source) && readFileSync(source, "utf8").startsWith("#!");

function build(folder, entries) {
  const input = present(entries, relative(root, folder));
  if (Object.keys(input).length === 0) return [];
  const shebang = hasShebang(join(root, publishedEntries.cli)) ? "" : "#!/usr/bin/env node";
  return [
    {
      cwd: root,
      input,
      platform: "neutral",
      // The bundled dependencies are written for Node; "neutral" alone looks at none of these fields.
      resolve: { mainFields: ["module", "main"], conditionNames: ["import", "node", "default"] },
      transform: { target: "es2022" },
      // Every named constant at its use, also across chunks and through constants of constants.
      optimization: { inlineConst: { mode: "all", pass: 3 } },
      plugins: [esmExternalRequirePlugin({ external }), bundledLicenses, finish],
      output: {
        dir: folder,
        format: "esm",
        entryFileNames: "[name].js",
        chunkFileNames: "chunk-[name].js",
        minify: false,
        sourcemap: true,
        // No path of a source map leaves the package or says node_modules; the sources are inside the maps.
        sourcemapPathTransform: (source, map) => {
          const path = relative(root, join(dirname(map), source))
            .split(sep)
            .join("/");
          const bundled = path.lastIndexOf("node_modules/");
          return bundled < 0 ? source : `./bundled/${path.slice(bundled + "node_modules/".length)}`;
        },
        banner: (chunk) => (chunk.isEntry && chunk.name === "cli" ? shebang : ""),
      },
    },
  ];
}

export default [...build(dist, publishedEntries), ...build(testBuild, testEntries)];
