// npm run soak [SECONDS]: runs `bifolio mirror` again and again, with other budgets, agents, churn rates and seeds each
// time, for 60 s unless told otherwise. Every fourth run has all checks of the memory on. Stops at the first run that is
// not coherent, fails or hangs, and prints the command that repeats it; exits 1 then.
import { spawn } from "node:child_process";
import { createHash, randomInt } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const DEFAULT_SECONDS = 60;
/** A run of these sizes takes seconds. */
const HANG_MS = 180_000;
const MIB = 1024 ** 2;
const FILE_MIB = [3, 12, 40];
const BUDGETS = ["256KiB", "1MiB", "2MiB", "8MiB", "64MiB"];
const AGENTS = [1, 2, 3, 4, 6];
const CHURN = [50, 500, 2000, 10_000, 100_000];
const DEBUG_EVERY = 4;

const cli = fileURLToPath(new URL("../dist/cli.js", import.meta.url));
const seconds = Number(process.argv[2] ?? DEFAULT_SECONDS);
if (!(seconds > 0)) {
  console.error("soak: the argument is a number of seconds above 0");
  process.exit(2);
}

const folder = mkdtempSync(join(tmpdir(), "bifolio-soak-"));
process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));

/** A file of noise, whose length is no multiple of anything. */
function makeFile(mib) {
  const path = join(folder, `${mib}.bin`);
  const words = new Int32Array((mib * MIB) / 4);
  for (let n = 0, state = mib; n < words.length; n++) {
    state = Math.imul(state, 1664525) + 1013904223;
    words[n] = state;
  }
  const bytes = new Uint8Array(words.buffer, 0, words.byteLength - 777);
  writeFileSync(path, bytes);
  return { path, sha256: createHash("sha256").update(bytes).digest("hex") };
}

/** Runs one command; what is wrong with it, and its report. */
function run(args, sha256) {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [cli, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (text) => (stdout += text));
    child.stderr.on("data", (text) => (stderr += text));
    let hung = false;
    const timer = setTimeout(() => {
      hung = true;
      child.kill("SIGKILL");
    }, HANG_MS);
    child.once("close", (code) => {
      clearTimeout(timer);
      if (hung) return resolve({ wrong: `hangs after ${HANG_MS / 1000} s` });
      if (stdout === "") return resolve({ wrong: `exit code ${code}: ${stderr.trim()}` });
      const report = JSON.parse(stdout);
      const over = report.peakFrameBytes > report.budgetBytes;
      const wrong = !report.coherent
        ? "is not coherent"
        : report.sha256 !== sha256
          ? "has another hash"
          : over
            ? "used more frames than its budget"
            : code !== 0
              ? `exit code ${code}`
              : undefined;
      resolve({ wrong, report });
    });
  });
}

const files = FILE_MIB.map(makeFile);
const pick = (from) => from[randomInt(from.length)];
const until = performance.now() + seconds * 1000;
const sums = { runs: 0, pages: 0, churn: 0, evictions: 0, invalidations: 0, retries: 0 };

while (performance.now() < until) {
  const { path, sha256 } = pick(files);
  const options = {
    budget: pick(BUDGETS),
    agents: pick(AGENTS),
    churn: pick(CHURN),
    seed: randomInt(2 ** 31),
  };
  const args = [
    "mirror",
    path,
    "--json",
    ...Object.entries(options).flatMap(([key, value]) => [`--${key}`, `${value}`]),
  ];
  if (sums.runs % DEBUG_EVERY === DEBUG_EVERY - 1) args.push("--debug");
  const { wrong, report } = await run(args, sha256);
  if (wrong !== undefined) {
    console.error(
      `soak: a run ${wrong}\n  node dist/cli.js ${args.join(" ").replace(path, `FILE of ${FILE_MIB[files.findIndex((f) => f.path === path)]} MiB`)}`,
    );
    if (report) console.error(JSON.stringify(report, null, 2));
    process.exit(1);
  }
  sums.runs++;
  sums.churn += report.churnOperations;
  sums.evictions += report.evictions;
  for (const agent of report.agents) {
    sums.pages += agent.hits;
    sums.invalidations += agent.invalidations;
    sums.retries += agent.retries;
  }
}

const n = (count) => count.toLocaleString("en-US");
console.log(
  `${n(sums.runs)} runs, all coherent: ${n(sums.pages)} page accesses, ${n(sums.churn)} changes of mappings, ${n(sums.evictions)} evictions, ${n(sums.invalidations)} invalidations, ${n(sums.retries)} overtaken fills`,
);
