/** What the README shows is run as it stands. Needs a build. */
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
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

test("every relative link leads to a file", async () => {
  const links = [...readme.matchAll(/\]\(([^)#:]+)\)/g)].map((m) => m[1]!);
  expect(links.length).toBeGreaterThan(2);
  for (const link of links) await expect(readFile(join(ROOT, link))).resolves.toBeDefined();
});
