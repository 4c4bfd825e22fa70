// Changes the notifier core, the sync row and the table mirror, one thing at a time, and holds each change against the unbroken
// scenarios of test/check, then, if they do not notice, against unit tests. A mutant is killed if a rule is broken, a test fails,
// something throws, or there is no end.
//
//   node scripts/checkMutants.mjs [NAME...]     all mutants, or those whose names begin so, e.g. src/sync/srcu.ts:12
//
// Hand-written mutants and the reasons why others are harmless stand in checkMutants.json; a reason is found by the text of
// the line, and by what is done to it where `what` says so. A hand-written mutant that survives is a failure. A generated one
// that survives without a reason is listed: either a test is missing, or a reason. So is a reason that no survivor needs.
//
// A lock of the notifier core that is left out alone is found by its unlock, and the other way round. Both left out together
// would not be: the explorer interrupts no step of the core. That is for test/agents/notifier.test.ts ("locks under real
// contention", and subscribers that come and go while two threads invalidate). The locks themselves are interrupted at every
// access: see test/check/models/everyAccess.ts.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { build, rolldown } from "rolldown";
import { copySources, endOf, root, runTests, withSource } from "./lib/mutations.mjs";

const SUITE = join(root, "test/check/mutantSuite.ts");
/** A mutant that takes this many times as long as the unbroken sources has no end. */
const LIMIT = 5;
const UNBROKEN_LIMIT_MS = 300_000;
const LEAST_LIMIT_MS = 10_000;
const AT_ONCE = 2;

const NOTIFIER_TESTS = [
  ...["delivery", "contract", "lifetime", "edges"].map((name) => `test/unit/notifier/${name}.test.ts`),
  "test/unit/sync/lockdep.test.ts",
];
const SYNC_TESTS = ["test/unit/sync"];
/** Tests in processes of their own, of a build. */
const PROCESS_TESTS = { file: "test/agents/notifier.test.ts", name: "processes stay as long as they must" };

/**
 * What is changed, by hand only or everywhere; the text from which on it is not (deaths and dumps, which the scenarios do not
 * have); the parts of SUITE and the tests that it is held against.
 */
const FILES = {
  "src/notifier/subscriptions.ts": {
    until: "// ---- death and checks",
    parts: ["core"],
    tests: NOTIFIER_TESTS,
  },
  "src/notifier/delivery.ts": { parts: ["core"], tests: NOTIFIER_TESTS },
  "src/notifier/intervalNotifier.ts": { parts: ["core"], tests: NOTIFIER_TESTS, processes: PROCESS_TESTS },
  "src/sync/spinlock.ts": { parts: ["locks"], tests: SYNC_TESTS },
  "src/sync/mutex.ts": { parts: ["locks"], tests: SYNC_TESTS },
  "src/sync/rwsem.ts": { parts: ["locks"], tests: SYNC_TESTS },
  "src/sync/seqcount.ts": { parts: ["locks"], tests: SYNC_TESTS },
  "src/sync/srcu.ts": { parts: ["locks", "core"], tests: SYNC_TESTS },
  "src/sync/shared.ts": { parts: [], tests: SYNC_TESTS },
  "src/sync/lockOrder.ts": { parts: [], tests: SYNC_TESTS },
  "src/sync/lockdep.ts": { parts: [], tests: SYNC_TESTS },
  "src/sched/drivers.ts": { byHandOnly: true, parts: ["locks"], tests: ["test/unit/sched"] },
  "src/sched/doorbell.ts": { parts: ["locks"], tests: ["test/unit/sched"] },
  "src/mirrors/tableMirror.ts": {
    until: "  /** Unsubscribes; afterwards",
    parts: ["core"],
    tests: ["test/unit/mirrors"],
  },
};

const { handWritten, harmless } = JSON.parse(readFileSync(join(root, "scripts/checkMutants.json"), "utf8"));

/** A statement of one line that does something: lock, notify, set, count, wait. */
const STATEMENT =
  /^(\s*)(?:(?:if \([^{]*\)|else) )?(?:(?:yield\* )?[\w.#!?]+\([^{]*\)|[\w.#]+(?:\+\+|--)|(?:walk|outcome|this|interval|range)\.[\w.#]+ = [^{]*);$/;
/** What only debug mode does, and constructors: leaving it out does not show, or does not build. */
const LEFT_ALONE = /^(?:return|super)\b|\bdebug\b|lockdep|^this\.#?(\w+) = \1;$/;
/** The line without its statement; a condition stays where the next line is its `else`. */
const leftOut = (line, next) =>
  /^\s*else /.test(line)
    ? "else;"
    : /^\s*else /.test(next)
      ? line.replace(/^(\s*if \(.*?\)) (?=[\w.#!]+[(.]).*/, "$1;")
      : ";";
/** What is weakened within a line: the first of each. */
const OPERATORS = [
  [" === ", " !== "],
  [" !== ", " === "],
  [" & 1)", " & 0)"],
  [" | 1)", " | 0)"],
  [", 1);", ", 0);"],
  ["seq - 1", "seq + 1"],
];
/** In the sync row also these. */
const MORE_OPERATORS = [
  [" && ", " || "],
  [" || ", " && "],
  [" > ", " <= "],
  [" >= ", " < "],
  [" < ", " >= "],
  ["if (!", "if ("],
  [" + 1) & 1", ") & 1"],
];

/** Lines that hold a comparison or count of the protocol's; comparisons of types and options are not its. */
const PROTOCOL =
  /Atomics\.|intervalSeq|isInvalidating|openRanges|readRetry|[oO]wner|INTERVAL_|LIST_|refused|[sS]ection\b|closed|#callbacks|#local|generation|hit |listed|\bresult\b|implemented|error|walk\.|\bnode\b|\bln\b|\bnext\b/;
/** There every line is one. */
const ALL_PROTOCOL = /^src\/(?:sync|sched)\//;

function generated() {
  const mutants = [];
  for (const [file, { until, byHandOnly }] of Object.entries(FILES)) {
    if (byHandOnly) continue;
    const text = readFileSync(join(root, file), "utf8");
    const lines = text.split("\n");
    const end = until === undefined ? lines.length : lines.findIndex((line) => line.includes(until));
    const all = ALL_PROTOCOL.test(file);
    for (const [index, line] of lines.slice(0, end).entries()) {
      const trimmed = line.trim();
      if (/^(\*|\/\*|\/\/|import|export \{)/.test(trimmed)) continue;
      const add = (what, replaced) =>
        mutants.push({ name: `${file}:${index + 1}`, file, index, what, line: trimmed, replaced });
      if (STATEMENT.test(line) && !LEFT_ALONE.test(trimmed)) add("left out", leftOut(line, lines[index + 1]));
      if (!all && !PROTOCOL.test(line)) continue;
      for (const [find, replace] of all ? [...OPERATORS, ...MORE_OPERATORS] : OPERATORS)
        if (line.includes(find)) add(`${find.trim()} is ${replace.trim()}`, line.replace(find, replace));
    }
  }
  return mutants;
}

const sourceOf = ({ file, index, replaced, find, replace }) => {
  const text = readFileSync(join(root, file), "utf8");
  if (find !== undefined) {
    if (text.split(find).length !== 2) throw new Error(`${file}: "${find}" does not stand there once`);
    return text.replace(find, () => replace);
  }
  const lines = text.split("\n");
  lines[index] = replaced;
  return lines.join("\n");
};

const folder = mkdtempSync(join(tmpdir(), "bifolio-mutants-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
let bundles = 0;

/** Bundles the suite, with the mutant if there is one. Undefined where that does not build: a part of a longer statement. */
async function bundleSuite(mutant) {
  const file = join(folder, `${bundles++}.mjs`);
  const load = (id) =>
    mutant && id === join(root, mutant.file) ? { code: sourceOf(mutant), moduleType: "ts" } : null;
  try {
    const bundle = await rolldown({
      cwd: root,
      input: SUITE,
      platform: "node",
      logLevel: "silent",
      plugins: [{ name: "mutant", load }],
    });
    await bundle.write({ file, format: "esm" });
    await bundle.close();
  } catch (error) {
    if (!mutant || mutant.byHand) throw error;
    return undefined;
  }
  return file;
}

/** Runs parts of the suite: what it says, and whether something is wrong. */
async function runSuite(file, parts, limitMs) {
  const child = spawn(process.execPath, [file, ...parts], { stdio: ["ignore", "pipe", "ignore"] });
  let said = "";
  child.stdout.on("data", (chunk) => (said += chunk));
  const { late, tookMs, code } = await endOf(child, limitMs, () => child.kill("SIGKILL"));
  if (late) return { killed: true, how: "no end" };
  return { tookMs, killed: code !== 0, how: said.trim().split("\n")[0] || `exit code ${code}` };
}

/** Runs the tests of a file in a copy of the sources, as they are there. */
async function runFileTests(copy, { tests, processes }, limitMs) {
  const unit = ["--project", "unit", "--pool=threads", ...tests];
  const first = outcome(await runTests(copy, ["--bail=1", ...unit], limitMs));
  if (first.killed || !processes) return first;
  const { default: configs } = await import(pathToFileURL(join(copy, "rolldown.config.mjs")).href);
  await build(configs.filter(({ output }) => output.dir.endsWith(".test-build")));
  const agents = ["--project", "agents", processes.file, "-t", processes.name];
  return outcome(await runTests(copy, ["--bail=1", ...agents], UNBROKEN_LIMIT_MS));
}

function outcome(ran) {
  if (!ran) return { killed: true, byTests: true, how: "tests: no end" };
  const failed =
    ran.tests.find(({ status }) => status === "failed") ??
    ran.files.find(({ status }) => status !== "passed");
  return { tookMs: ran.tookMs, killed: failed !== undefined, byTests: true, how: `test: ${failed?.name}` };
}

/** What becomes of a mutant; undefined where it does not build. */
async function judge(mutant, copy) {
  const { parts, tests, processes } = FILES[mutant.file];
  const file = await bundleSuite(mutant);
  if (file === undefined) return undefined;
  const bySuite = parts.length > 0 ? await runSuite(file, parts, limits.get(`${parts}`)) : { killed: false };
  rmSync(file, { force: true });
  if (bySuite.killed) return bySuite;
  return withSource(copy, mutant.file, sourceOf(mutant), () =>
    runFileTests(copy, { tests, processes }, limits.get(`${tests}`)),
  );
}

const needed = new Set();
function reasonFor({ file, line, what }) {
  const reason = harmless.find(
    (h) =>
      (h.file === undefined || h.file === file) &&
      new RegExp(h.pattern).test(line) &&
      (h.what === undefined || h.what === what),
  );
  needed.add(reason);
  return reason?.why;
}

const asked = process.argv.slice(2);
const mutants = [...handWritten.map((mutant) => ({ ...mutant, byHand: true })), ...generated()].filter(
  ({ name, file }) =>
    asked.length === 0 || asked.some((begin) => name.startsWith(begin) || file.startsWith(begin)),
);
const copies = Array.from({ length: AT_ONCE }, copySources);

/** How long parts of the suite, or tests, may take: by their names. */
const limits = new Map();
/** Measures what passes with the sources as they are; says what does not. */
async function timed(names, run) {
  if (names.length === 0 || limits.has(`${names}`)) return undefined;
  const { killed, how, tookMs } = await run();
  limits.set(`${names}`, Math.max(LEAST_LIMIT_MS, LIMIT * tookMs));
  return killed ? how : undefined;
}

async function checkUnbroken() {
  const suite = await bundleSuite(undefined);
  for (const [file, { parts, tests, processes }] of Object.entries(FILES)) {
    if (mutants.every((mutant) => mutant.file !== file)) continue;
    const wrong =
      (await timed(parts, () => runSuite(suite, parts, UNBROKEN_LIMIT_MS))) ??
      (await timed(tests, () => runFileTests(copies[0], { tests }, UNBROKEN_LIMIT_MS))) ??
      (processes &&
        (await timed([processes.file], () =>
          runFileTests(copies[0], { tests, processes }, UNBROKEN_LIMIT_MS),
        )));
    if (wrong !== undefined) return wrong;
  }
  rmSync(suite, { force: true });
  return undefined;
}
const wrong = await checkUnbroken();
if (wrong !== undefined) {
  console.log(`the unbroken sources: ${wrong}`);
  process.exit(1);
}

/** Per file: mutants, and what became of them. */
const counts = new Map();
const failures = [];
const unexplained = [];
const queue = [...mutants];
await Promise.all(
  copies.map(async (copy) => {
    for (let mutant = queue.shift(); mutant; mutant = queue.shift()) {
      const result = await judge(mutant, copy);
      if (!result) continue;
      const title = mutant.byHand
        ? `${mutant.file}: ${mutant.name}`
        : `${mutant.name}: ${mutant.what}: ${mutant.line}`;
      const count = counts.get(mutant.file) ?? { mutants: 0, byScenarios: 0, byTests: 0, excused: 0 };
      counts.set(mutant.file, count);
      count.mutants++;
      if (result.killed) {
        if (result.byTests) count.byTests++;
        else count.byScenarios++;
        console.log(`killed    ${title} (${result.how})`);
        continue;
      }
      const why = mutant.byHand ? undefined : reasonFor(mutant);
      if (mutant.byHand) failures.push(title);
      else if (why === undefined) unexplained.push(title);
      else count.excused++;
      console.log(`SURVIVED  ${title}${why === undefined ? "" : ` (harmless: ${why})`}`);
    }
  }),
);
if (asked.length === 0)
  for (const { pattern, why } of harmless.filter((reason) => !needed.has(reason)))
    console.log(`no survivor needs the reason for ${pattern} (${why})`);
const say = (name, { mutants: all, byScenarios, byTests, excused }) =>
  console.log(
    `${name}: ${all} mutants: ${byScenarios} killed by scenarios, ${byTests} by tests; ` +
      `${excused} survived with a reason, ${all - byScenarios - byTests - excused} without`,
  );
const total = { mutants: 0, byScenarios: 0, byTests: 0, excused: 0 };
for (const [file, count] of counts) {
  say(file, count);
  for (const key of Object.keys(total)) total[key] += count[key];
}
say("in all", total);
for (const title of unexplained) console.log(`without a reason: ${title}`);
for (const title of failures) console.log(`written by hand, and survived: ${title}`);
process.exitCode = failures.length === 0 ? 0 : 1;
