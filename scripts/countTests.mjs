// countTests.mjs REPORT...: sums up JSON reports of vitest as "N passed, N failed, N skipped".
// Exits 1 where something failed, or where a report is missing because a step before the tests failed.
import { existsSync, readFileSync } from "node:fs";

const count = { passed: 0, failed: 0, skipped: 0 };

function add(path) {
  if (!existsSync(path)) {
    count.failed++;
    return;
  }
  for (const { status, assertionResults } of JSON.parse(readFileSync(path, "utf8")).testResults) {
    const before = count.failed;
    for (const test of assertionResults) {
      if (test.status === "passed") count.passed++;
      else if (test.status === "failed") count.failed++;
      else count.skipped++;
    }
    // A file that could not be loaded, or whose set-up failed, has no failed test to show for it.
    if (status === "failed" && count.failed === before) count.failed++;
  }
}

for (const path of process.argv.slice(2)) add(path);
console.log(`${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`);
process.exitCode = count.failed > 0 ? 1 : 0;
