/** Compiles C programs and Promela models of bench/native/ for as long as this process lives. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** What a command said of its failure, in one line. */
function complaint({ error, signal, status, stderr }, command) {
  if (error?.code === "ENOENT") return `${command} is not there`;
  const [line] = String(error?.message ?? stderr)
    .trim()
    .split("\n");
  return line || `${command} ended with ${signal ?? `status ${status}`}`;
}

function temporaryFolder() {
  const folder = mkdtempSync(join(tmpdir(), "bifolio-bench-"));
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));
  return folder;
}

const sourceOf = (file) => fileURLToPath(new URL(`../native/${file}`, import.meta.url));

/** Runs commands one after the other; what the first that fails said of it, undefined if none does. */
function prepare(folder, commands) {
  for (const [command, ...args] of commands) {
    const done = spawnSync(command, args, { cwd: folder, encoding: "utf8" });
    if (done.status !== 0) return complaint(done, command);
  }
  return undefined;
}

/** Returns { run(...args) }, which gives the program's output or throws, or { why } where that cannot be. */
function built(name, commands) {
  const folder = temporaryFolder();
  const why = prepare(folder, commands);
  if (why !== undefined) return { why };
  return {
    run(...args) {
      const done = spawnSync(join(folder, name), args, { cwd: folder, encoding: "utf8" });
      if (done.status !== 0) throw new Error(complaint(done, name));
      return done.stdout;
    },
  };
}

/** A C program. */
export const nativeProgram = (name) => built(name, [["gcc", "-O2", "-o", name, sourceOf(`${name}.c`)]]);

/** The verifier that Spin makes of a model; it needs Spin and a C compiler. */
export const spinVerifier = (name) =>
  built("pan", [
    ["spin", "-a", sourceOf(`${name}.pml`)],
    ["gcc", "-O2", "-DSAFETY", "-o", "pan", "pan.c"],
  ]);
