// Takes one protective mechanism away at a time, in a copy of the sources, and sees which tests fail: every break
// must be noticed by at least one. `node scripts/breaks.mjs [NAME...]` runs all of them, or those named.
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { execFileSync, spawnSync } from "node:child_process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

/** @type {{ name: string, file: string, find: string, replace: string, tests: string[] }[]} */
const BREAKS = JSON.parse(readFileSync(join(root, "scripts/breaks.json"), "utf8"));

const asked = process.argv.slice(2);
const chosen = BREAKS.filter((b) => asked.length === 0 || asked.includes(b.name));
const unknown = asked.filter((name) => !BREAKS.some((b) => b.name === name));
if (unknown.length > 0) {
  console.error(
    `breaks: no break is called ${unknown.join(", ")}; there are ${BREAKS.map((b) => b.name).join(", ")}`,
  );
  process.exit(2);
}

/** A copy of what git tracks or would track, with the same node_modules. */
function copySources() {
  const copy = mkdtempSync(join(tmpdir(), "bifolio-breaks-"));
  const listed = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], {
    cwd: root,
    encoding: "utf8",
  });
  for (const file of listed.split("\n").filter(Boolean)) {
    try {
      cpSync(join(root, file), join(copy, file));
    } catch (error) {
      if (error.code !== "ENOENT") throw error; // deleted, and not yet committed
    }
  }
  symlinkSync(join(root, "node_modules"), join(copy, "node_modules"), "junction");
  return copy;
}

let survivors = 0;
for (const b of chosen) {
  const copy = copySources();
  const file = join(copy, b.file);
  const source = readFileSync(file, "utf8");
  if (source.split(b.find).length !== 2) {
    console.log(`${b.name}: its text stands ${source.split(b.find).length - 1} times in ${b.file}, not once`);
    survivors++;
    rmSync(copy, { recursive: true, force: true });
    continue;
  }
  writeFileSync(
    file,
    source.replace(b.find, () => b.replace),
  );
  execFileSync(process.execPath, ["scripts/build.mjs"], { cwd: copy, stdio: "ignore" });
  const failed = new Set();
  for (const test of b.tests) {
    const run = spawnSync(
      process.execPath,
      ["node_modules/vitest/vitest.mjs", "run", "--reporter=json", test],
      {
        cwd: copy,
        encoding: "utf8",
        timeout: 300_000,
      },
    );
    try {
      const report = JSON.parse(run.stdout.slice(run.stdout.indexOf("{")));
      for (const suite of report.testResults) {
        for (const t of suite.assertionResults) if (t.status === "failed") failed.add(t.fullName);
        if (suite.status === "failed" && suite.assertionResults.length === 0)
          failed.add(suite.name.split("/").at(-1));
      }
    } catch {
      failed.add(`${test}: no end within 300 s`);
    }
    if (failed.size > 0) break;
  }
  if (failed.size === 0) survivors++;
  const names = [...failed]
    .slice(0, 3)
    .map((name) => `"${name}"`)
    .join(", ");
  console.log(`${b.name}: ${failed.size === 0 ? "SURVIVED" : `${failed.size} failed, such as ${names}`}`);
  rmSync(copy, { recursive: true, force: true });
}
console.log(`${chosen.length - survivors} of ${chosen.length} breaks noticed`);
process.exitCode = survivors === 0 ? 0 : 1;
