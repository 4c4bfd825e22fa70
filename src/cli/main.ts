/** Entry of the `bifolio` command. */
import { readFileSync } from "node:fs";
import { Command, CommanderError, InvalidArgumentError } from "commander";
import { DEFAULT_DEPTH, DEFAULT_SCHEDULES, type Mode, MODES } from "../check/index.ts";
import { parseBytes } from "../units.ts";
import {
  CommandError,
  EXIT_FAILED,
  EXIT_OK,
  EXIT_SIGINT,
  EXIT_SIGTERM,
  EXIT_USAGE,
  sentenceOf,
} from "./commandError.ts";
import { checkCommand, type CheckOptions } from "./checkCommand.ts";
import { mirrorCommand, type MirrorOptions } from "./mirrorCommand.ts";
import { programRunCommand, type ProgramRunOptions } from "./program/programCommand.ts";
import { MOST_AGENTS } from "./run.ts";

const MOST_PASSES = 1000;
const MOST_CHURN = 1_000_000;
const MOST_SEED = 2 ** 32 - 1;
const MOST_SCHEDULES = 1_000_000_000;
const MOST_DEPTH = 100_000;
const MOST_PREEMPTIONS = 1000;
const MOST_TIMEOUT = 86_400;

/** Reads a number within limits. */
const number =
  (least: number, most: number, whole = true) =>
  (text: string): number => {
    const n = /^\d+(\.\d+)?$/.test(text.trim()) ? Number(text) : Number.NaN;
    if (n >= least && n <= most && (!whole || Number.isInteger(n))) return n;
    throw new InvalidArgumentError(`It must be a ${whole ? "whole " : ""}number from ${least} to ${most}.`);
  };

const bytes = (text: string): number => {
  const n = parseBytes(text);
  if (Number.isFinite(n)) return n;
  throw new InvalidArgumentError('It must be bytes, or a size such as "64MiB".');
};

const mode = (text: string): Mode => {
  const known = MODES.find((name) => name === text);
  if (known) return known;
  throw new InvalidArgumentError(`It must be one of ${MODES.join(", ")}.`);
};

function version(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
  return (manifest as { version: string }).version;
}

/** The command line; `exit` hears of the exit code of whatever ran. */
function makeProgram(exit: (code: number) => void): Command {
  const program = new Command("bifolio")
    .description("Virtual memory for JavaScript threads.")
    .version(version(), "-V, --version", "print the version")
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, "bifolio: ")) });
  program
    .command("mirror")
    .description(
      "map FILE through a budget smaller than it, mirror it in several agents while mappings change under them, and check every mirror against the file",
    )
    .argument("[FILE]", "what to mirror (default: the running Node executable)")
    .option("--budget <bytes>", "bytes of frames (default: 64MiB, or half of FILE if that is less)", bytes)
    .option(
      "--agents <n>",
      `mirrors, each in a thread of its own, at most ${MOST_AGENTS}`,
      number(1, MOST_AGENTS),
      3,
    )
    .option("--passes <n>", "how often each agent reads the file", number(1, MOST_PASSES), 2)
    .option("--churn <ops/s>", "changes of mappings a second, 0 for none", number(0, MOST_CHURN, false), 200)
    .option("--seed <n>", "which changes", number(0, MOST_SEED), 1)
    .option("--json", "print one JSON object and no progress", false)
    .option("--debug", "check invariants while it runs, which is slow", false)
    .action(async (file: string | undefined, options: MirrorOptions) => {
      exit(await mirrorCommand(file, options));
    });
  program
    .command("program")
    .description("mm programs: small lists of operations on memory, run here as Linux runs them")
    .command("run")
    .description("run mm programs and write what each operation came to, one result per program")
    .argument("<PATH...>", "programs, or directories with programs (*.jsonl)")
    .option(
      "--out <dir>",
      "where NAME.actual.jsonl is written for each (default: one program's to standard output)",
    )
    .option("--debug", "verify every invariant after each operation, which is slow", false)
    .action(async (paths: readonly string[], options: ProgramRunOptions) => {
      exit(await programRunCommand(paths, options));
    });
  program
    .command("check")
    .description(
      "explore the interleavings of the scenarios that MODULE exports (see docs/checking.md), and print the shortest schedule that breaks a rule",
    )
    .argument("<MODULE>", "a JavaScript module whose exports scenario() of bifolio/check has made")
    .option("--mode <mode>", MODES.join(", "), mode, "exhaustive")
    .option(
      "--schedules <n>",
      "most schedules to run, for each scenario",
      number(1, MOST_SCHEDULES),
      DEFAULT_SCHEDULES,
    )
    .option(
      "--depth <n>",
      "steps of a schedule that are chosen; then everybody runs in turn",
      number(1, MOST_DEPTH),
      DEFAULT_DEPTH,
    )
    .option(
      "--preemptions <n>",
      "only schedules that interrupt an agent at most n times",
      number(0, MOST_PREEMPTIONS),
    )
    .option("--seed <n>", "which schedules, in the modes random and pct", number(0, MOST_SEED), 1)
    .option("--scenario <name>", "only this one")
    .option("--replay <schedule>", "run one schedule, as a report names it")
    .option("--html <file>", "write the report as a page, too")
    .option(
      "--timeout <s>",
      "seconds after which a step counts as endless",
      number(1, MOST_TIMEOUT, false),
      10,
    )
    .option("--json", "print one JSON object", false)
    .action(async (module: string, options: CheckOptions) => {
      exit(await checkCommand(module, options));
    });
  return program;
}

async function main(): Promise<number> {
  let exitCode = EXIT_OK;
  try {
    await makeProgram((code) => (exitCode = code)).parseAsync();
  } catch (error) {
    // Commander has printed what there is to say.
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT_OK : EXIT_USAGE;
    console.error(`bifolio: ${sentenceOf(error)}`);
    return error instanceof CommandError ? error.exitCode : EXIT_FAILED;
  }
  return exitCode;
}

for (const [signal, exitCode] of [
  ["SIGINT", EXIT_SIGINT],
  ["SIGTERM", EXIT_SIGTERM],
] as const) {
  process.on(signal, () => {
    // The process takes its workers along. What must be tidied up hears "exit"; the message comes after the bar is gone.
    process.once("exit", () => console.error("bifolio: interrupted"));
    process.exit(exitCode);
  });
}
process.exit(await main());
