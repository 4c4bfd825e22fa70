// Takes one protective mechanism away at a time, in a copy of the sources, and sees which tests fail: every break
// must be noticed by at least one. `node scripts/breaks.mjs [NAME...]` runs all of them, or those named.
// (Rules of the notifier contract, each with the one test that is about it: rules.mjs.)
import { execFileSync } from "node:child_process";
import { copySources, occurrences, readJson, runTests, withMutation } from "./lib/mutations.mjs";

/** @type {{ name: string, file: string, find: string, replace: string, tests: string[] }[]} */
const BREAKS = readJson("scripts/breaks.json");

const asked = process.argv.slice(2);
const chosen = BREAKS.filter((b) => asked.length === 0 || asked.includes(b.name));
const unknown = asked.filter((name) => !BREAKS.some((b) => b.name === name));
if (unknown.length > 0) {
  console.error(
    `breaks: no break is called ${unknown.join(", ")}; there are ${BREAKS.map((b) => b.name).join(", ")}`,
  );
  process.exit(2);
}

/** Names of the tests that fail in a copy; the files are run until one has a failure. */
async function failures(copy, files) {
  for (const file of files) {
    const run = await runTests(copy, [file], 300_000);
    if (!run) return [`${file}: no end within 300 s`];
    const failed = run.tests.filter((t) => t.status === "failed").map((t) => t.name);
    if (run.tests.length === 0)
      failed.push(...run.files.filter((f) => f.status === "failed").map((f) => f.name));
    if (failed.length > 0) return failed;
  }
  return [];
}

const copy = copySources();
let survivors = 0;
for (const b of chosen) {
  const times = occurrences(copy, b);
  if (times !== 1) {
    console.log(`${b.name}: its text stands ${times} times in ${b.file}, not once`);
    survivors++;
    continue;
  }
  const failed = await withMutation(copy, b, () => {
    execFileSync(process.execPath, ["scripts/build.mjs"], { cwd: copy, stdio: "ignore" });
    return failures(copy, b.tests);
  });
  if (failed.length === 0) survivors++;
  const names = failed
    .slice(0, 3)
    .map((name) => `"${name}"`)
    .join(", ");
  console.log(`${b.name}: ${failed.length === 0 ? "SURVIVED" : `${failed.length} failed, such as ${names}`}`);
}
console.log(`${chosen.length - survivors} of ${chosen.length} breaks noticed`);
process.exitCode = survivors === 0 ? 0 : 1;
