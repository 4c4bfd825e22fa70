/** `bifolio mirror`: from options to an exit code. */
import { readFileSync } from "node:fs";
import { MIN_FRAMES } from "../memory/index.ts";
import { CommandError, EXIT_FAILED, EXIT_OK, EXIT_USAGE } from "./commandError.ts";
import { print } from "./print.ts";
import { makeProgress } from "./progress.ts";
import { formatBytes, formatReport, makeReport } from "./report.ts";
import { run, RunFailed, type RunOptions, type RunResults } from "./run.ts";
import { Subject } from "./subject.ts";

export interface MirrorOptions {
  /** Bytes; undefined: DEFAULT_BUDGET, or half the file where that is less. */
  readonly budget: number | undefined;
  readonly agents: number;
  readonly passes: number;
  readonly churn: number;
  readonly seed: number;
  readonly json: boolean;
  readonly debug: boolean;
}

const PAGE_BYTES = 4096;
export const LEAST_BUDGET: number = MIN_FRAMES * PAGE_BYTES;
export const DEFAULT_BUDGET: number = 64 * 1024 ** 2;

/** Beside this module's chunk: see rolldown.config.mjs. */
const WORKER_URL = new URL("./mirrorWorker.js", import.meta.url);

/** Runs the command; returns its exit code. Errors: CommandError. */
export async function mirrorCommand(path: string | undefined, options: MirrorOptions): Promise<number> {
  const file = path ?? process.execPath;
  const subject = new Subject(file);
  const { bytes } = subject;
  const { agents, passes, churn, seed, debug } = options;
  const budgetBytes = budgetFor(options, bytes);
  const progress = makeProgress(!options.json);
  const mirrors = `${agents} ${agents === 1 ? "mirror" : "mirrors"}`;
  let mirrored = false;
  try {
    // Beside the mirrors, which leave some of the processors' time when they wait for each other.
    const plain = subject.sha256((done) => {
      if (mirrored) progress.show("plain stream", done, bytes);
    });
    // Whoever awaits it later hears of a failure.
    plain.catch(() => {});
    const results = await mirror(subject, {
      path: file,
      budgetBytes,
      agents,
      passes,
      churn,
      seed,
      debug,
      workerUrl: WORKER_URL,
      progress: (done, total) => progress.show(mirrors, done, total),
    });
    mirrored = true;
    const sha256 = await plain;
    subject.checkUnchanged();
    progress.end();
    const report = makeReport({ file, bytes, sha256, passes, peakRssBytes: peakRssBytes(), results });
    await print(`${options.json ? JSON.stringify(report) : formatReport(report)}\n`, "the report");
    return report.coherent ? EXIT_OK : EXIT_FAILED;
  } finally {
    progress.end();
    await subject.close();
  }
}

/** The run; what it fails with becomes a sentence. */
async function mirror(subject: Subject, options: RunOptions): Promise<RunResults> {
  try {
    return await run(options);
  } catch (error) {
    if (!(error instanceof RunFailed)) throw error;
    const { failure } = error;
    if (failure.name === "BusError" && subject.bytesNow < subject.bytes)
      throw subject.shrank(failure.message);
    throw new CommandError(failure.message);
  }
}

function budgetFor({ budget }: MirrorOptions, bytes: number): number {
  if (budget === undefined) return Math.max(LEAST_BUDGET, Math.min(DEFAULT_BUDGET, Math.ceil(bytes / 2)));
  if (budget < LEAST_BUDGET) {
    throw new CommandError(
      `--budget must be at least ${formatBytes(LEAST_BUDGET)}, not ${formatBytes(budget)}`,
      EXIT_USAGE,
    );
  }
  return budget;
}

/** The most that the process had resident. Not ru_maxrss, where Linux counts what the parent had when it forked. */
function peakRssBytes(): number {
  try {
    const peak = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"));
    if (peak) return Number(peak[1]) * 1024;
  } catch {
    // Not Linux.
  }
  return process.resourceUsage().maxRSS * 1024;
}
