/**
 * Side-by-side benchmarks: node bench/run.mjs [NAME...] [--json] [--repetitions N]
 *
 * Needs a build (npm run bench makes one). Each row runs in a process of its own. Times are medians of interleaved
 * repetitions with the first and last decile behind them; a ratio is the median of the repetitions' ratios, Bifolio's
 * figure over the alternative's. Node options before the script are passed on: node --cpu-prof bench/run.mjs NAME.
 */
import { fork } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { describeEnvironment, environment } from "./lib/environment.mjs";
import { DEFAULT_REPETITIONS } from "./lib/interleave.mjs";
import { renderRows } from "./lib/table.mjs";

const ROWS = [
  "read-hit",
  "spans",
  "bulk-read",
  "fault-anon",
  "fault-file",
  "cow-fault",
  "mmu",
  "fork",
  "program",
  "notifier",
  "intervals",
  "kvm",
  "remote",
  "ack",
  "streaming",
  "mirror",
  "migrate",
  "gpu-mirror",
  "check",
  "gpu-mmu",
];

const pathOf = (relative) => fileURLToPath(new URL(relative, import.meta.url));

class UsageError extends Error {}

function readArguments(args) {
  let parsed;
  try {
    parsed = parseArgs({
      args,
      allowPositionals: true,
      options: { json: { type: "boolean", default: false }, repetitions: { type: "string" } },
    });
  } catch (error) {
    throw new UsageError(error.message);
  }
  const { values, positionals } = parsed;
  const unknown = positionals.find((name) => !ROWS.includes(name));
  if (unknown !== undefined) {
    throw new UsageError(`there is no row "${unknown}"; the rows are ${ROWS.join(", ")}`);
  }
  const repetitions = values.repetitions === undefined ? DEFAULT_REPETITIONS : Number(values.repetitions);
  if (!Number.isInteger(repetitions) || repetitions < 1) {
    throw new UsageError("--repetitions must be a whole number above 0");
  }
  return {
    names: ROWS.filter((name) => positionals.length === 0 || positionals.includes(name)),
    repetitions,
    json: values.json,
  };
}

function runRow(name, repetitions) {
  return new Promise((resolve) => {
    const child = fork(pathOf("./lib/rowProcess.mjs"), [name, String(repetitions)], {
      // Standard output carries the result only; what a row prints is for people.
      stdio: ["ignore", 2, 2, "ipc"],
    });
    let result = { name, error: "the row's process ended without a result" };
    child.once("message", (message) => (result = message));
    child.once("exit", () => resolve(result));
  });
}

async function main() {
  const { names, repetitions, json } = readArguments(process.argv.slice(2));
  const built = pathOf("../.test-build/testing.js");
  if (!existsSync(built)) throw new Error(`${built} is missing; run npm run build first`);
  const env = environment();
  if (env.load > env.cores / 2) {
    process.stderr.write(
      `others are at work on this machine (load ${env.load}): ratios of threads and I/O suffer most\n`,
    );
  }
  const rows = [];
  for (const name of names) {
    const begin = performance.now();
    process.stderr.write(`${name} ...`);
    rows.push(await runRow(name, repetitions));
    process.stderr.write(` ${((performance.now() - begin) / 1000).toFixed(1)} s\n`);
  }
  console.log(
    json ? JSON.stringify({ environment: env, rows }) : `${describeEnvironment(env)}\n\n${renderRows(rows)}`,
  );
  if (rows.some((row) => row.error)) process.exitCode = 1;
}

try {
  await main();
} catch (error) {
  console.error(`bench: ${error.message}`);
  process.exitCode = error instanceof UsageError ? 2 : 1;
}
