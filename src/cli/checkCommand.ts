/** `bifolio check`: from a module to a report and an exit code. */
import { statSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { Worker } from "node:worker_threads";
import { DEFAULT_DEPTH, type Mode, renderHtml, type Violation } from "../check/index.ts";
import type { Checked, CheckMessage, CheckRequest, Replayed } from "./checkMessages.ts";
import { CommandError, EXIT_FAILED, EXIT_OK, EXIT_USAGE, sentenceOf } from "./commandError.ts";
import { print } from "./print.ts";

export interface CheckOptions {
  readonly mode: Mode;
  readonly schedules: number;
  readonly depth: number;
  readonly preemptions: number | undefined;
  readonly seed: number;
  readonly scenario: string | undefined;
  readonly replay: string | undefined;
  readonly html: string | undefined;
  /** Seconds of silence after which a step counts as endless. */
  readonly timeout: number;
  readonly json: boolean;
}

/** Beside this module's chunk: see rolldown.config.mjs. */
const WORKER_URL = new URL("./checkWorker.js", import.meta.url);

/** Runs the command; returns its exit code. Errors: CommandError. */
export async function checkCommand(name: string, options: CheckOptions): Promise<number> {
  const { scenario, replay, mode, schedules, depth, preemptions, seed, html } = options;
  const module = resolve(name);
  if (!statSync(module, { throwIfNoEntry: false })?.isFile())
    throw new CommandError(`${name}: there is no such file`, EXIT_USAGE);
  const request: CheckRequest = {
    module,
    name,
    scenario,
    replay,
    mode,
    schedules,
    depth,
    preemptions,
    seed,
  };
  const { checked, replayed } = await run(request, options);
  const found = [...checked, ...replayed].some(({ violations }) => violations.length > 0);
  const report = options.json
    ? JSON.stringify({
        module: name,
        found,
        ...(replay === undefined ? { scenarios: checked } : replayed[0]),
      })
    : [
        ...checked.map((result) => textOf(result, name, checked.length > 1 || scenario !== undefined)),
        ...replayed.map((result) => textOfReplay(result)),
      ].join("\n\n");
  if (html !== undefined) {
    try {
      writeFileSync(html, renderHtml(`bifolio check ${name}`, checked));
    } catch (error) {
      throw new CommandError(`${html} cannot be written: ${sentenceOf(error)}`);
    }
  }
  await print(`${report}\n`, "the report");
  return found ? EXIT_FAILED : EXIT_OK;
}

/** Explores in a thread. Errors: CommandError with what is wrong with the module. */
function run(
  request: CheckRequest,
  { timeout, json }: CheckOptions,
): Promise<{ checked: Checked[]; replayed: Replayed[] }> {
  const worker = new Worker(WORKER_URL, { workerData: request, stdout: true, stderr: true });
  // What the module prints is for people, and standard output is the report's.
  worker.stdout.pipe(process.stderr, { end: false });
  worker.stderr.pipe(process.stderr, { end: false });
  const checked: Checked[] = [];
  const replayed: Replayed[] = [];
  const live = !json && process.stderr.isTTY;
  let what = request.name;
  return new Promise((fulfill, reject) => {
    const wrong = (sentence: string): void => {
      clearTimeout(timer);
      void worker.terminate();
      reject(new CommandError(sentence, EXIT_USAGE));
    };
    const silent = (): void =>
      wrong(`${what}: nothing for ${timeout} s: an import, a setup or a step of an agent never ends`);
    let timer = setTimeout(silent, timeout * 1000);
    worker.on("message", (message: CheckMessage) => {
      clearTimeout(timer);
      timer = setTimeout(silent, timeout * 1000);
      if (live) process.stderr.write("\r\u001b[K");
      if (message.kind === "scenario") what = `${request.name}: ${message.name}`;
      else if (message.kind === "progress") {
        if (live) process.stderr.write(`${what}: ${message.schedules.toLocaleString("en")} schedules`);
      } else if (message.kind === "checked") checked.push(message.result);
      else if (message.kind === "replayed") replayed.push(message.result);
      else if (message.kind === "failed") wrong(message.sentence);
      else {
        clearTimeout(timer);
        void worker.terminate();
        fulfill({ checked, replayed });
      }
    });
    worker.once("error", (error) => wrong(`${what}: ${sentenceOf(error).split("\n", 1)[0]}`));
    worker.once("exit", (code) =>
      wrong(
        code === 0
          ? `${what}: an import or a setup awaits something that never comes`
          : `${what}: the module ended the thread (exit code ${code})`,
      ),
    );
  });
}

const count = (n: number, one: string, many = `${one}s`): string =>
  `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

function textOf(result: Checked, module: string, named: boolean): string {
  const { scenario, schedules, redundant, steps, seconds, complete, violations, traces, exportName } = result;
  const rate = seconds > 0 ? `, ${Math.round(steps / seconds).toLocaleString("en")} a second` : "";
  const work = `${count(schedules, "schedule")} (${redundant.toLocaleString("en")} given up as repetitions), ${count(steps, "step")} in ${seconds.toFixed(1)} s${rate}`;
  if (violations.length === 0) {
    const scope = complete
      ? "every schedule that makes a difference has been run"
      : "not every schedule has been run: --schedules and --depth set how many";
    return `✓ ${scenario}: nothing found; ${scope}\n  ${work}`;
  }
  const which = named ? ` --scenario ${exportName}` : "";
  const depth = result.depth === DEFAULT_DEPTH ? "" : ` --depth ${result.depth}`;
  const parts = violations.map(
    (violation, k) =>
      `${ruleText(violation)}\n  replay: bifolio check ${module}${which}${depth} --replay ${violation.schedule || "''"}\n\n${indent(traces[k]!)}`,
  );
  return `✗ ${scenario}: ${count(violations.length, "rule")} broken\n  ${work}\n\n${parts.join("\n\n")}`;
}

const ruleText = ({ rule, title, message, link, agent, steps }: Violation): string =>
  `✗ ${rule}, after ${count(steps, "step")}, by ${agent}\n  ${message}\n  rule: ${title}; see ${link}`;

const indent = (text: string): string => text.replace(/^/gm, "  ");

function textOfReplay({ scenario, violations, trace }: Replayed): string {
  const verdict = violations.length === 0 ? `✓ ${scenario}: nothing found in this schedule` : `✗ ${scenario}`;
  return [verdict, ...violations.map(ruleText), indent(trace)].join("\n\n");
}
