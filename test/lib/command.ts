/** Running the built command as a process of its own. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "./sources.ts";

const CLI: string = join(ROOT, "dist/cli.js");

export interface Ended {
  /** Exit code, or the signal that ended it. */
  readonly code: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Running {
  readonly process: ChildProcess;
  readonly ended: Promise<Ended>;
}

/** Starts `bifolio` with these arguments. `uid`: as this user. */
export function start(args: readonly string[], uid?: number): Running {
  if (!existsSync(CLI)) throw new Error("dist/cli.js is missing: npm run build");
  const child = spawn(process.execPath, [CLI, ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    ...(uid === undefined ? {} : { uid, gid: uid }),
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const ended = new Promise<Ended>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, signal) => resolve({ code: code ?? String(signal), stdout, stderr }));
  });
  return { process: child, ended };
}

export const bifolio = (...args: readonly string[]): Promise<Ended> => start(args).ended;
