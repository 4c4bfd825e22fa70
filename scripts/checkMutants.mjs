// Changes the notifier core, grace periods and the table mirror, one thing at a time, and explores the unbroken scenarios of
// test/check over each: a mutant is killed if a rule is broken, something throws, or there is no end.
//
//   node scripts/checkMutants.mjs [NAME...]     all mutants, or those whose names begin so, e.g. src/sync/srcu.ts:12
//
// Hand-written mutants and the reasons why others are harmless stand in checkMutants.json. A hand-written one that survives
// is a failure. A generated one that survives without a reason is listed: either a scenario is missing, or a reason.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";

const root = fileURLToPath(new URL("..", import.meta.url));
const SUITE = join(root, "test/check/mutantSuite.ts");
/** The whole suite takes some seconds; a mutant that takes this long has no end. */
const LIMIT_MS = 60_000;
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
  /^(\s*)(?:if \([^{]*\) )?((?:yield\* )?(?:Atomics\.(?:store|add|sub|or|exchange)|lockSpin|unlockSpin|wakeQueue|it(?:Insert|Remove)|end(?:Range|OpenRange|WithList)|closeEpoch(?:Locked)?|abandon|leaveSection|leaveCallback|srcuRead(?:Lock|Unlock)|callEnd|refuse|fail|releaseListedOp|callListOp|waitForEpochOp|unlinkDeferredLocked|freeInterval|dropUse|countSecondaryTlbLocked|interval\.setSeq|this\.#drop|this\.#memory\.poll|agent\.(?:sendTo|promiseMessage|finishMessage))\([^{]*\);)$/;
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
  /Atomics\.|intervalSeq|isInvalidating|openRanges|readRetry|owner|INTERVAL_|LIST_|refused|\bsection\b/;

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
      if (STATEMENT.test(line)) add("left out", line.replace(STATEMENT, "$1;"));
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

/** Bundles the suite, with the mutant if there is one, and runs it: what it says, and whether it was killed. */
async function run(mutant) {
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
    return { killed: true, how: `does not build: ${String(error.message).split("\n")[0]}` };
  }
  const child = spawn(process.execPath, [file], { stdio: ["ignore", "pipe", "ignore"] });
  let said = "";
  child.stdout.on("data", (chunk) => (said += chunk));
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill("SIGKILL");
  }, LIMIT_MS);
  const code = await new Promise((resolve) => child.on("close", resolve));
  clearTimeout(timer);
  rmSync(file, { force: true });
  if (late) return { killed: true, how: "no end" };
  return { killed: code !== 0, how: said.trim().split("\n")[0] || `exit code ${code}` };
}

const reasonFor = ({ file, line }) =>
  harmless.find((h) => (h.file === undefined || h.file === file) && new RegExp(h.pattern).test(line))?.why;

const asked = process.argv.slice(2);
const mutants = [
  ...handWritten.map((mutant) => ({ ...mutant, byHand: true, what: mutant.name, line: "" })),
  ...generated(),
].filter(({ name }) => asked.length === 0 || asked.some((begin) => name.startsWith(begin)));

const unbroken = await run(undefined);
if (unbroken.killed) {
  console.log(`the unbroken sources: ${unbroken.how}`);
  process.exit(1);
}
let killed = 0;
let excused = 0;
const failures = [];
let unexplained = 0;
const queue = [...mutants];
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    for (let mutant = queue.shift(); mutant; mutant = queue.shift()) {
      const result = await run(mutant);
      const title = `${mutant.name}: ${mutant.what}${mutant.line ? `: ${mutant.line}` : ""}`;
      if (result.killed) {
        killed++;
        console.log(`killed    ${title} (${result.how})`);
        continue;
      }
      const why = mutant.byHand ? undefined : reasonFor(mutant);
      if (mutant.byHand) failures.push(title);
      else if (why === undefined) unexplained++;
      else excused++;
      console.log(`SURVIVED  ${title}${why === undefined ? "" : ` (harmless: ${why})`}`);
    }
  }),
);
console.log(
  `${mutants.length} mutants: ${killed} killed, ${excused} harmless, ${unexplained} survived without a reason, ${failures.length} written by hand survived`,
);
process.exitCode = failures.length === 0 ? 0 : 1;
