/** What the README and the documents show is run as it stands. Needs a build. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ROOT } from "../lib/sources.ts";

const run = promisify(execFile);
let project = "";
let readme = "";

beforeAll(async () => {
  readme = await readFile(join(ROOT, "README.md"), "utf8");
  project = await mkdtemp(join(tmpdir(), "bifolio-readme-"));
  await mkdir(join(project, "node_modules"));
  await symlink(ROOT, join(project, "node_modules", "bifolio"), "junction");
});

afterAll(() => rm(project, { recursive: true, force: true }));

test("the API in one screen runs, and reads the file's first byte through the mirror", async () => {
  const snippets = [...readme.matchAll(/```js\n(.*?)```/gs)].map((m) => m[1]!);
  expect(snippets).toHaveLength(1);
  const file = join(project, "snippet.mjs");
  await writeFile(file, snippets[0]!);
  const { stdout, stderr } = await run(process.execPath, [file], { cwd: project });
  expect(stderr).toBe("");
  const firstByte = (await readFile(process.execPath)).readUInt8(0);
  expect(stdout.trim()).toBe(String(firstByte));
});

/** A snippet of a document, by the heading above it. */
async function snippetUnder(heading: string, document = "docs/notifiers.md"): Promise<string> {
  const text = await readFile(join(ROOT, document), "utf8");
  const section = text.split(/^#+ /m).find((part) => part.startsWith(`${heading}\n`));
  const snippet = /```js\n(.*?)```/s.exec(section ?? "")?.[1];
  if (snippet === undefined) throw new Error(`no snippet under "${heading}"`);
  return snippet;
}

test("the complete secondary MMU of docs/notifiers.md reads no stale byte; without the line that drops it does", async () => {
  const snippet = await snippetUnder("A complete secondary MMU");
  const stale = async (name: string, source: string): Promise<number> => {
    const file = join(project, name);
    await writeFile(file, source);
    const { stdout, stderr } = await run(process.execPath, [file], { cwd: project });
    expect(stderr).toBe("");
    return Number(/stale: (\d+)/.exec(stdout)?.[1]);
  };
  expect(await stale("mirror.mjs", snippet)).toBe(0);
  const drops = /^ *this\.entries\.fill\(0, .*\n/m;
  expect(snippet).toMatch(drops);
  expect(await stale("broken.mjs", snippet.replace(drops, ""))).toBeGreaterThan(0);
});

test("the kernel of docs/gpu-mmu.md counts the zero bytes of the file", async (context) => {
  const text = await readFile(join(ROOT, "docs/gpu-mmu.md"), "utf8");
  const file = join(project, "zeros.mjs");
  await writeFile(file, /```js\n(.*?)```/s.exec(text)![1]!);
  await symlink(join(ROOT, "node_modules/webgpu"), join(project, "node_modules/webgpu"), "junction");
  const swiftShader = "/usr/lib/chromium/vk_swiftshader_icd.json";
  const driver = existsSync(swiftShader) ? { VK_ICD_FILENAMES: swiftShader } : {};
  const env = { ...driver, XDG_RUNTIME_DIR: tmpdir(), ...process.env };
  const outcome = await run(process.execPath, [file], { cwd: project, env }).catch(
    (error: unknown) => error as Error,
  );
  if (outcome instanceof Error) {
    // Without a GPU there is no adapter, which the snippet does not ask.
    context.skip(/requestDevice/.test(outcome.message) && !process.env["CI"], "no GPU adapter");
    throw outcome;
  }
  const bytes = await readFile(process.execPath);
  const pages = 4096;
  let zeros = 0;
  for (let k = 0; k < pages * 4096; k++) if (bytes[k] === 0) zeros++;
  expect(outcome.stdout).toContain(`${zeros} zero bytes in ${pages} pages`);
});

test.each(["With a lock", "With a list notifier"])(
  "the snippet %j of docs/notifiers.md is JavaScript",
  async (heading) => {
    const file = join(project, "syntax.mjs");
    await writeFile(file, await snippetUnder(heading));
    await expect(run(process.execPath, ["--check", file])).resolves.toMatchObject({ stderr: "" });
  },
);

test("the example of docs/checking.md is broken as it says, and right once it asks", async () => {
  const cli = join(ROOT, "dist/cli.js");
  const snippet = await snippetUnder("An example", "docs/checking.md");
  const check = async (name: string, source: string): Promise<{ code: number; stdout: string }> => {
    const file = join(project, name);
    await writeFile(file, source);
    return run(process.execPath, [cli, "check", file]).then(
      ({ stdout }) => ({ code: 0, stdout }),
      (error: { code: number; stdout: string }) => error,
    );
  };
  const broken = await check("forgets.mjs", snippet);
  expect(broken.code).toBe(1);
  expect(broken.stdout).toContain("4 rules broken");
  expect(broken.stdout).toContain("✗ use-after-free, after 15 steps, by hardware");
  const line = "      device.map(0, translation); // and nobody asks interval.readRetry(seq)\n";
  expect(snippet).toContain(line);
  const asking = [
    "      for (;;) {",
    "        const seq = await interval.readBegin();",
    '        const translation = await space.fault(0, "r");',
    "        if (interval.readRetry(seq)) continue;",
    "        device.map(0, translation);",
    "        return;",
    "      }",
    "",
  ].join("\n");
  const filling = snippet.slice(
    snippet.indexOf("      const seq = await interval.readBegin();"),
    snippet.indexOf(line) + line.length,
  );
  const right = await check("asks.mjs", snippet.replace(filling, asking));
  expect(right.stdout).toContain("nothing found; every schedule that makes a difference has been run");
  expect(right.code).toBe(0);
}, 60_000);

test("every relative link of the README and the documents leads to a file, and to a heading there", async () => {
  const anchorsOf = (text: string): string[] =>
    [...text.matchAll(/^#+ (.*)$/gm)].map((m) =>
      m[1]!
        .toLowerCase()
        .replace(/[^\w\- ]/g, "")
        .replaceAll(" ", "-"),
    );
  const documents = ["architecture", "checking", "conformance", "linux-names", "notifiers", "webgpu"].map(
    (name) => `docs/${name}.md`,
  );
  for (const file of ["README.md", ...documents]) {
    const text = await readFile(join(ROOT, file), "utf8");
    const links = [...text.matchAll(/\]\(([^):]+)\)/g)].map((m) => m[1]!);
    for (const link of links) {
      const [path, anchor] = link.split("#") as [string, string?];
      const target = path === "" ? file : join(dirname(file), path);
      const found = await readFile(join(ROOT, target), "utf8");
      if (anchor !== undefined) expect(anchorsOf(found), `${link} in ${file}`).toContain(anchor);
    }
  }
});
