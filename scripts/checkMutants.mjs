// Changes the notifier core, grace periods and the table mirror, one thing at a time, and explores the unbroken scenarios of
// test/check over each: a mutant is killed if a rule is broken, something throws, or there is no end.
//
//   node scripts/checkMutants.mjs [NAME...]     all mutants, or those whose names begin so, e.g. src/sync/srcu.ts:12
//
// Hand-written mutants and the reasons why others are harmless stand in checkMutants.json; a reason is found by the text of
// the line, and by what is done to it where `what` says so. A hand-written mutant that survives is a failure. A generated one
// that survives without a reason is listed: either a scenario is missing, or a reason. So is a reason that no survivor needs.
//
// A lock that is left out alone is found by its unlock, and the other way round. Both left out together would not be: the explorer
// interrupts no step. That is for test/agents/notifier.test.ts ("locks under real contention", and subscribers that come
// and go while two threads invalidate).
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";

const root = fileURLToPath(new URL("..", import.meta.url));
const SUITE = join(root, "test/check/mutantSuite.ts");
/** A mutant that takes this many times as long as the unbroken sources has no end. */
const LIMIT = 5;
const AT_ONCE = 2;

/** Files, and the text from which on nothing is changed (deaths and dumps, which the scenarios do not have). */
const FILES = {
  "src/notifier/subscriptions.ts": "// ---- death and checks",
  "src/notifier/delivery.ts": undefined,
  "src/notifier/intervalNotifier.ts": undefined,
  "src/sync/srcu.ts": "export function reapSrcu",
  "src/mirrors/tableMirror.ts": "  /** Unsubscribes; afterwards",
};

const { handWritten, harmless } = JSON.parse(readFileSync(join(root, "scripts/checkMutants.json"), "utf8"));

/** A statement of one line that does something: lock, notify, set, count, wait. */
const STATEMENT =
  /^(\s*)(?:(?:if \([^{]*\)|else) )?(?:(?:yield\* )?[\w.#!]+\([^{]*\)|[\w.#]+(?:\+\+|--)|(?:walk|outcome|this|interval|range)\.[\w.#]+ = [^{]*);$/;
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

/** Lines that hold a comparison or count of the protocol's; comparisons of types and options are not its. */
const PROTOCOL =
  /Atomics\.|intervalSeq|isInvalidating|openRanges|readRetry|[oO]wner|INTERVAL_|LIST_|refused|[sS]ection\b|closed|#callbacks|#local|generation|hit |listed|\bresult\b|implemented|error|walk\.|\bnode\b|\bln\b|\bnext\b/;

function generated() {
  const mutants = [];
  for (const [file, until] of Object.entries(FILES)) {
    const text = readFileSync(join(root, file), "utf8");
    const lines = text.split("\n");
    const end = until === undefined ? lines.length : lines.findIndex((line) => line.includes(until));
    for (const [index, line] of lines.slice(0, end).entries()) {
      const trimmed = line.trim();
      if (/^(\*|\/\*|\/\/|import|export \{)/.test(trimmed)) continue;
      const add = (what, replaced) =>
        mutants.push({ name: `${file}:${index + 1}`, file, index, what, line: trimmed, replaced });
      if (STATEMENT.test(line) && !LEFT_ALONE.test(trimmed)) add("left out", leftOut(line, lines[index + 1]));
      if (!PROTOCOL.test(line)) continue;
      for (const [find, replace] of OPERATORS)
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

/**
 * Bundles the suite, with the mutant if there is one, and runs it: what it says, and whether it was killed. Undefined where
 * the mutant does not build: a part of a longer statement.
 */
async function run(mutant, limitMs) {
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
  const child = spawn(process.execPath, [file], { stdio: ["ignore", "pipe", "ignore"] });
  let said = "";
  child.stdout.on("data", (chunk) => (said += chunk));
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill("SIGKILL");
  }, limitMs);
  const code = await new Promise((resolve) => child.on("close", resolve));
  clearTimeout(timer);
  rmSync(file, { force: true });
  if (late) return { killed: true, how: "no end" };
  return { killed: code !== 0, how: said.trim().split("\n")[0] || `exit code ${code}` };
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

const begun = performance.now();
const unbroken = await run(undefined, 600_000);
const limitMs = Math.max(10_000, LIMIT * (performance.now() - begun));
if (unbroken.killed) {
  console.log(`the unbroken sources: ${unbroken.how}`);
  process.exit(1);
}
/** Per file: mutants, and what became of them. */
const counts = new Map();
const failures = [];
const unexplained = [];
const queue = [...mutants];
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    for (let mutant = queue.shift(); mutant; mutant = queue.shift()) {
      const result = await run(mutant, limitMs);
      if (!result) continue;
      const title = mutant.byHand
        ? `${mutant.file}: ${mutant.name}`
        : `${mutant.name}: ${mutant.what}: ${mutant.line}`;
      const count = counts.get(mutant.file) ?? { mutants: 0, killed: 0, excused: 0 };
      counts.set(mutant.file, count);
      count.mutants++;
      if (result.killed) {
        count.killed++;
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
const say = (name, { mutants: all, killed, excused }) =>
  console.log(
    `${name}: ${all} mutants: ${killed} killed, ${excused} survived with a reason, ${all - killed - excused} without`,
  );
const total = { mutants: 0, killed: 0, excused: 0 };
for (const [file, count] of counts) {
  say(file, count);
  for (const key of Object.keys(total)) total[key] += count[key];
}
say("in all", total);
for (const title of unexplained) console.log(`without a reason: ${title}`);
for (const title of failures) console.log(`written by hand, and survived: ${title}`);
process.exitCode = failures.length === 0 ? 0 : 1;
