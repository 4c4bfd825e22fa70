/** The tarball that `npm pack` makes, looked at and used as its users do. Needs a build. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, readdir, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { promisify } from "node:util";
import { publint } from "publint";
import { formatMessage } from "publint/utils";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ROOT } from "../lib/sources.ts";

const run = promisify(execFile);
const npm = process.platform === "win32" ? "npm.cmd" : "npm";

interface PackageJson {
  name: string;
  version: string;
  exports: Record<string, string | { types: string; default: string }>;
  bin: Record<string, string>;
  dependencies?: unknown;
  optionalDependencies?: unknown;
  peerDependencies?: Record<string, string>;
  peerDependenciesMeta?: Record<string, { optional?: boolean }>;
  bundleDependencies?: unknown;
}

/** An empty project which has only the package installed. */
let project = "";
/** Where it is installed there. */
let installed = "";
let tarball = "";
let files: string[] = [];
let manifest: PackageJson;

/** Runs a module in that project; gives back what it prints. */
async function runModule(source: string): Promise<unknown> {
  const { stdout } = await run(process.execPath, ["--input-type=module", "--eval", source], { cwd: project });
  return JSON.parse(stdout) as unknown;
}

beforeAll(async () => {
  if (!existsSync(join(ROOT, "dist/index.js"))) throw new Error("dist/index.js is missing: npm run build");
  project = await mkdtemp(join(tmpdir(), "bifolio-package-"));
  const pack = ["pack", "--ignore-scripts", "--json", "--pack-destination", project];
  const { stdout } = await run(npm, pack, { cwd: ROOT });
  const [packed] = JSON.parse(stdout) as [{ filename: string }];
  tarball = join(project, packed.filename);
  installed = join(project, "node_modules", "bifolio");
  await mkdir(installed, { recursive: true });
  await run("tar", ["-xzf", tarball, "-C", installed, "--strip-components=1"]);
  await writeFile(
    join(project, "package.json"),
    JSON.stringify({ name: "user", private: true, type: "module" }),
  );
  manifest = JSON.parse(await readFile(join(installed, "package.json"), "utf8")) as PackageJson;
  const entries = await readdir(installed, { recursive: true, withFileTypes: true });
  files = entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(installed, join(entry.parentPath, entry.name)).replaceAll("\\", "/"));
});

afterAll(async () => {
  if (project !== "") await rm(project, { recursive: true, force: true });
});

describe("contents", () => {
  test("there is no runtime dependency", () => {
    expect(manifest.dependencies).toBeUndefined();
    expect(manifest.optionalDependencies).toBeUndefined();
    for (const peer of Object.keys(manifest.peerDependencies ?? {})) {
      expect(manifest.peerDependenciesMeta?.[peer]?.optional, peer).toBe(true);
    }
    expect(manifest.bundleDependencies).toBeUndefined();
  });

  test("only dist/, the manifest and the papers are in it", () => {
    const other = files.filter((file) => !/^(dist\/|package\.json$|README\.md$|LICENSE$)/.test(file));
    expect(other).toEqual([]);
    expect(files.filter((file) => /node_modules|testing|\.test\./.test(file))).toEqual([]);
    expect(files).toContain("LICENSE");
  });

  test("every file that the manifest names is in it", () => {
    const named = [
      ...Object.values(manifest.exports).flatMap((to) => (typeof to === "string" ? [to] : Object.values(to))),
      ...Object.values(manifest.bin),
    ].map((file) => file.replace(/^\.\//, ""));
    expect(named.filter((file) => !files.includes(file))).toEqual([]);
  });

  test("source maps carry their sources and point nowhere outside the package", async () => {
    const maps = files.filter((file) => file.endsWith(".map"));
    expect(maps.length).toBeGreaterThan(0);
    for (const map of maps) {
      const { sources, sourcesContent } = JSON.parse(await readFile(join(installed, map), "utf8")) as {
        sources: string[];
        sourcesContent?: (string | null)[];
      };
      const outside = sources.filter((source) => {
        const path = relative(installed, join(installed, dirname(map), source));
        return /^(\/|[a-z]+:)/i.test(source) || path.startsWith("..") || path.includes("node_modules");
      });
      expect({ map, outside }).toEqual({ map, outside: [] });
      const contents = sources.map((_source, i) => typeof sourcesContent?.[i]);
      expect({ map, contents }).toEqual({ map, contents: sources.map(() => "string") });
    }
  });

  test("no file names the folder it was built in", async () => {
    const found: string[] = [];
    for (const file of files) {
      if ((await readFile(join(installed, file), "utf8")).includes(ROOT)) found.push(file);
    }
    expect(found).toEqual([]);
  });

  test("imports lead to Node's own modules or to files of the package", async () => {
    const strangers: string[] = [];
    for (const file of files.filter((name) => /^dist\/[^/]+\.js$/.test(name))) {
      const text = await readFile(join(installed, file), "utf8");
      for (const [, specifier = ""] of text.matchAll(
        /^(?:import|export)\b[^"'\n]*?["']([^"'\n]+)["'];?$/gm,
      )) {
        const own = specifier.startsWith("./") && files.includes(`dist/${specifier.slice(2)}`);
        const node = (await import("node:module")).isBuiltin(specifier);
        if (!own && !node) strangers.push(`${file}: ${specifier}`);
      }
    }
    expect(strangers).toEqual([]);
  });
});

describe("linters", () => {
  test("publint finds nothing", async () => {
    const bytes = await readFile(tarball);
    const archive = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    const { messages, pkg } = await publint({ pack: { tarball: archive } });
    expect(messages.map((message) => formatMessage(message, pkg, { color: false }))).toEqual([]);
  });

  test("are the types wrong? No", async () => {
    const attw = join(ROOT, "node_modules/@arethetypeswrong/cli/dist/index.js");
    const args = [attw, tarball, "--profile", "esm-only", "--no-definitely-typed", "--format", "ascii"];
    const { code, stdout } = await run(process.execPath, args).then(
      (result) => ({ code: 0, stdout: result.stdout }),
      (error: { code: number; stdout: string }) => error,
    );
    expect(code, stdout).toBe(0);
  });
});

describe("use", () => {
  test("every export is importable by name", async () => {
    const names = Object.keys(manifest.exports)
      .filter((path) => !path.endsWith(".json"))
      .map((path) => path.replace(/^\./, "bifolio"));
    expect(names).toEqual(expect.arrayContaining(["bifolio", "bifolio/notifier"]));
    const counts = await runModule(`
      const counts = {};
      for (const name of ${JSON.stringify(names)}) counts[name] = Object.keys(await import(name)).length;
      console.log(JSON.stringify(counts));
    `);
    expect(Object.keys(counts as object)).toEqual(names);
    expect(Object.values(counts as object)).not.toContain(0);
  });

  test("what two subpaths export under one name is one thing", async () => {
    const twice = await runModule(`
      const [root, notifier] = await Promise.all([import("bifolio"), import("bifolio/notifier")]);
      console.log(JSON.stringify(Object.keys(root).filter((k) => k in notifier && root[k] !== notifier[k])));
    `);
    expect(twice).toEqual([]);
  });

  test("inner files are not importable", async () => {
    const code = await runModule(`
      const code = await import("bifolio/dist/index.js").then(() => "imported", (error) => error.code);
      console.log(JSON.stringify(code));
    `);
    expect(code).toBe("ERR_PACKAGE_PATH_NOT_EXPORTED");
  });

  test("the manifest is importable", async () => {
    const version = await runModule(`
      import { createRequire } from "node:module";
      const require = createRequire(process.cwd() + "/user.js");
      console.log(JSON.stringify(require("bifolio/package.json").version));
    `);
    expect(version).toBe(manifest.version);
  });

  test("the declarations are right for a strict user who checks libraries too", async () => {
    await mkdir(join(project, "node_modules/@types"), { recursive: true });
    for (const types of ["@types/node", "undici-types"]) {
      await symlink(join(ROOT, "node_modules", types), join(project, "node_modules", types), "junction");
    }
    await writeFile(
      join(project, "user.ts"),
      `import * as bifolio from "bifolio";
       import * as notifier from "bifolio/notifier";
       import * as node from "bifolio/node";
       import * as check from "bifolio/check";
       import * as program from "bifolio/program";
       import * as sync from "bifolio/sync";
       export const all: unknown[] = [bifolio, notifier, node, check, program, sync];`,
    );
    const options = {
      target: "ES2022",
      lib: ["ES2024", "ESNext.Disposable", "DOM"],
      module: "NodeNext",
      types: ["node"],
      strict: true,
      exactOptionalPropertyTypes: true,
      skipLibCheck: false,
      noEmit: true,
    };
    await writeFile(
      join(project, "tsconfig.json"),
      JSON.stringify({ compilerOptions: options, files: ["user.ts"] }),
    );
    const tsc = join(ROOT, "node_modules/typescript/bin/tsc");
    const output = await run(process.execPath, [tsc, "-p", project], { cwd: project }).then(
      () => "",
      (error: { stdout: string }) => error.stdout,
    );
    expect(output).toBe("");
  });

  test("the command is executable and says its version", async () => {
    const command = join(installed, manifest.bin["bifolio"] ?? "");
    expect((await readFile(command, "utf8")).startsWith("#!/usr/bin/env node\n")).toBe(true);
    if (process.platform !== "win32") expect((await stat(command)).mode & 0o111).toBe(0o111);
    const { stdout } = await run(process.execPath, [command, "--version"], { cwd: project });
    expect(stdout.trim()).toBe(manifest.version);
  });
});
