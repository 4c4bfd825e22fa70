/** Every example, run as its README says, and what it is there to show. Needs a build. */
import { execFile } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, beforeEach, describe, expect, test } from "vitest";
import { ROOT } from "../lib/sources.ts";

interface Ended {
  readonly code: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

/** An example's command, in the folder that the README's paths start from. */
function run(script: string, cwd: string = ROOT, options: readonly string[] = []): Promise<Ended> {
  // Drivers of GPUs complain where there is none.
  const env = { XDG_RUNTIME_DIR: tmpdir(), ...process.env };
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [script, ...options],
      { cwd, env, encoding: "utf8" },
      (error, stdout, stderr) =>
        resolve({ code: error ? (error.code ?? String(error.signal)) : 0, stdout, stderr }),
    );
  });
}

const scriptOf = (name: string): string => `examples/${name}/run.mjs`;
const readExample = (path: string): Promise<string> => readFile(join(ROOT, "examples", path), "utf8");
const blocksOf = (markdown: string, language: string): string[] =>
  [...markdown.matchAll(/^```(\w+)\n(.*?)^```$/gms)].filter((m) => m[1] === language).map((m) => m[2]!);

/** What follows the script in the command that the README shows. */
const optionsOf = async (name: string): Promise<string> =>
  new RegExp(`node ${scriptOf(name)}(.*)\n`).exec(
    blocksOf(await readExample(`${name}/README.md`), "sh").join(""),
  )?.[1] ?? "";

const NO_GPU = /^no GPU adapter.*/m;

const examples: string[] = readdirSync(join(ROOT, "examples"), { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map((entry) => entry.name);
const outcomes = new Map<string, Ended>();

beforeAll(async () => {
  if (!existsSync(join(ROOT, "dist/notifier.js")))
    throw new Error("dist/notifier.js is missing: npm run build");
  for (const name of examples) {
    const options = (await optionsOf(name)).split(" ").filter((option) => option !== "");
    outcomes.set(name, await run(scriptOf(name), ROOT, options));
  }
});

test("there are examples", () => {
  expect(examples).toEqual(expect.arrayContaining(["gpu-histogram", "snapshot", "stale-cache"]));
});

describe.each(examples)("%s", (name) => {
  beforeEach((context) => {
    const { stderr } = outcomes.get(name)!;
    context.skip(NO_GPU.test(stderr) && !process.env["CI"], NO_GPU.exec(stderr)?.[0]);
  });

  test("ends well, with no word to standard error", () => {
    const { code, stderr } = outcomes.get(name)!;
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  });

  test("its README names the command and shows what it prints", async () => {
    const readme = await readExample(`${name}/README.md`);
    expect(blocksOf(readme, "sh").join("")).toContain(`node ${scriptOf(name)}${await optionsOf(name)}\n`);
    expect(blocksOf(readme, "text")).toEqual([outcomes.get(name)!.stdout]);
  });

  test("every relative link of its README leads to a file", async () => {
    const readme = await readExample(`${name}/README.md`);
    for (const [, link] of readme.matchAll(/\]\(([^)#:]+)\)/g)) {
      await expect(readExample(`${name}/${link}`)).resolves.toBeDefined();
    }
  });
});

/** A copy of the examples in which `line` of a file reads otherwise, run in a project that has the package. */
async function runChanged(
  name: string,
  file: string,
  line: string,
  other: string,
  options: readonly string[] = [],
): Promise<Ended> {
  const project = await mkdtemp(join(tmpdir(), "bifolio-examples-"));
  try {
    await mkdir(join(project, "node_modules"));
    await symlink(ROOT, join(project, "node_modules", "bifolio"), "junction");
    await symlink(join(ROOT, "node_modules", "webgpu"), join(project, "node_modules", "webgpu"), "junction");
    await cp(join(ROOT, "examples"), join(project, "examples"), { recursive: true });
    const source = await readExample(`${name}/${file}`);
    expect(source.split(line)).toHaveLength(2);
    await writeFile(join(project, "examples", name, file), source.replace(line, other));
    return await run(scriptOf(name), project, options);
  } finally {
    await rm(project, { recursive: true, force: true });
  }
}

describe("stale-cache", () => {
  /** Stale reads and entries of the last lines, by cache. */
  const staleOf = (stdout: string): Record<string, { reads: number; entries: number }> =>
    Object.fromEntries(
      [
        ...stdout.matchAll(/^(\w+): (\d+) of \d+ reads gave a stale value, (\d+) of \d+ entries are stale/gm),
      ].map(([, cache, reads, entries]) => [cache!, { reads: Number(reads), entries: Number(entries) }]),
    );

  test("the wrong cache gives stale values and keeps some, the right one never", () => {
    const { stdout } = outcomes.get("stale-cache")!;
    expect(stdout).toMatch(/^20 ms .*get\(7\) gave "old", a stale value .*get\(7\) gave "new"$/m);
    const { wrong, right } = staleOf(stdout);
    expect(wrong!.reads).toBeGreaterThan(0);
    expect(wrong!.entries).toBeGreaterThan(0);
    expect(right).toEqual({ reads: 0, entries: 0 });
  });

  test("the README's diff is the one between the two files", async () => {
    const [diff] = blocksOf(await readExample("stale-cache/README.md"), "diff");
    /** The lines of one side: those of both, and those with its sign. */
    const side = (sign: string): string =>
      diff!
        .split("\n")
        .filter((line) => line === "" || line.startsWith(" ") || line.startsWith(sign))
        .map((line) => line.slice(1))
        .join("\n");
    /** Without the comment that says what the file is. */
    const codeOf = async (file: string): Promise<string> =>
      (await readExample(`stale-cache/${file}`)).replace(/^\/\*\*.*?\*\/\n+/s, "");
    expect(side("-")).toBe(await codeOf("wrong.mjs"));
    expect(side("+")).toBe(await codeOf("right.mjs"));
  });

  test.each([["interval.setSeq(curSeq);"], ["if (interval.readRetry(seq)) return get(key);"]])(
    "without %s in right.mjs: stale values, and the command fails",
    async (line) => {
      const { code, stdout } = await runChanged("stale-cache", "right.mjs", line, "");
      expect(code).toBe(1);
      expect(staleOf(stdout)["right"]!.reads).toBeGreaterThan(0);
    },
  );
});

describe("snapshot", () => {
  const half = "sums.snapshot += await sumOf(snapshot,";

  test("sums over the live space are wrong, over a snapshot never", () => {
    const { stdout } = outcomes.get("snapshot")!;
    expect(stdout).toMatch(/^live: +10 of 10 sums are wrong$/m);
    expect(stdout).toMatch(/^snapshot: +0 of 10 sums are wrong$/m);
  });

  test("with half of it read from the live space the command fails", async () => {
    const changed = half.replace("(snapshot,", "(live,");
    const { code, stdout } = await runChanged("snapshot", "auditor.mjs", half, changed);
    expect(code).toBe(1);
    expect(stdout).toMatch(/^snapshot: +10 of 10 sums are wrong$/m);
  });
});

describe("gpu-histogram", () => {
  beforeEach((context) => {
    const { stderr } = outcomes.get("gpu-histogram")!;
    context.skip(NO_GPU.test(stderr) && !process.env["CI"], NO_GPU.exec(stderr)?.[0]);
  });

  test("where the GPU counts another byte than the CPU the command fails", async () => {
    const line = "let byte = (words[k] >> n) & 0xffu;";
    const other = "let byte = (words[k] >> n) & 0xfeu;";
    const { code, stdout } = await runChanged("gpu-histogram", "histogram.mjs", line, other, [
      "--size",
      "1MiB",
    ]);
    expect(code).toBe(1);
    expect(stdout).toContain("WRONG");
  });
});
