// The rules of the notifier contract: each has a test, and a change of the code that makes this test fail.
//   node scripts/rules.mjs [ID...]     makes each change in a copy of the sources, runs its test, prints the table
//   node scripts/rules.mjs --markdown  writes docs/rules.md
// Exits 1 if a change is not noticed, if its text does not stand in its file once, or if a test is not found or fails
// without it.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { stripVTControlCharacters } from "node:util";
import { copySources, occurrences, readJson, root, runTests, withMutation } from "./lib/mutations.mjs";
import { rulesDocument } from "./lib/rulesTable.mjs";

const COPIES = 2;
const LIMIT_MS = 60_000;
const FIRST_LIMIT_MS = 300_000;

/** @type {import("./lib/rulesTable.d.mts").Rules} */
const all = readJson("scripts/rules.json");
const args = process.argv.slice(2);

if (args.includes("--markdown")) {
  const { format, resolveConfig } = await import("prettier");
  const path = join(root, "docs/rules.md");
  const options = await resolveConfig(path);
  writeFileSync(path, await format(rulesDocument(all), { ...options, parser: "markdown" }));
  process.exit(0);
}

const verbose = args.includes("--verbose");
const ids = args.filter((a) => !a.startsWith("--"));
const unknown = ids.filter((id) => !all.rules.some((r) => r.id === id));
if (unknown.length > 0) {
  console.error(`rules: no rule is called ${unknown.join(", ")}`);
  process.exit(2);
}
const rules = all.rules.filter((r) => ids.length === 0 || ids.includes(r.id));
const began = Date.now();
const copies = Array.from({ length: Math.min(COPIES, rules.length) }, copySources);

/** What stands in the way of a rule's check, by its id. */
const wrong = new Map();
const files = [...new Set(rules.map((r) => r.test.file))];
const before = await runTests(copies[0], ["--project", "unit", "--pool=threads", ...files], FIRST_LIMIT_MS);
const statusOf = new Map(before?.tests.map((t) => [t.name, t.status]));
for (const { id, test, mutation } of rules) {
  const times = occurrences(copies[0], mutation);
  const status = statusOf.get(test.name);
  if (times !== 1) wrong.set(id, `NO: its text stands ${times} times in ${mutation.file}`);
  else if (!before) wrong.set(id, "NO: the tests do not end without it");
  else if (status === undefined) wrong.set(id, "NO: no such test");
  else if (status !== "passed") wrong.set(id, `NO: its test is ${status} without it`);
}

/** A regular expression that the full name of one test matches. */
const exactly = (name) => `^${name.replaceAll(/[\\^$.*+?()[\]{}|]/g, "\\$&")}$`;
const short = (message) => stripVTControlCharacters(message.split("\n")[0]).slice(0, 110);

async function check(copy, { test, mutation }) {
  const run = await withMutation(copy, mutation, () =>
    runTests(copy, ["--project", "unit", "--pool=threads", test.file, "-t", exactly(test.name)], LIMIT_MS),
  );
  if (!run) return "yes: it hangs";
  const own = run.tests.find((t) => t.name === test.name);
  if (!own) return `NO: the file does not load: ${short(run.files[0]?.message ?? "")}`;
  if (own.status !== "failed") return "NO";
  if (/SyntaxError|is not defined/.test(own.message))
    return `NO: the change is no program: ${short(own.message)}`;
  return verbose ? `yes: ${short(own.message)}` : "yes";
}

const results = new Map(wrong);
const queue = rules.filter((r) => !wrong.has(r.id));
await Promise.all(
  copies.map(async (copy) => {
    for (let rule = queue.shift(); rule; rule = queue.shift()) {
      const result = await check(copy, rule);
      results.set(rule.id, result);
      if (result.startsWith("NO")) console.error(`${rule.id}: ${result}`);
    }
  }),
);

console.log("id | rule | test | mutation | noticed");
for (const { id, rule, test, mutation } of rules) {
  console.log(`${id} | ${rule} | ${test.name} | ${mutation.what} | ${results.get(id)}`);
}
const noticed = rules.filter((r) => results.get(r.id).startsWith("yes")).length;
console.log(
  `${noticed} of ${rules.length} rules have a test that notices, in ${Math.round((Date.now() - began) / 1000)} s`,
);
process.exitCode = noticed === rules.length ? 0 : 1;
