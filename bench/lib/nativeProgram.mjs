/** Compiles a C program of bench/native/ for as long as this process lives. */
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

/** Returns { run(...args) }, which gives the program's output or throws, or { why } where there is no compiler. */
export function nativeProgram(name) {
  const folder = mkdtempSync(join(tmpdir(), "bifolio-bench-"));
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));
  const source = fileURLToPath(new URL(`../native/${name}.c`, import.meta.url));
  const program = join(folder, name);
  const compiled = spawnSync("gcc", ["-O2", "-o", program, source], { encoding: "utf8" });
  if (compiled.status !== 0) return { why: complaint(compiled, "gcc") };
  return {
    run(...args) {
      const done = spawnSync(program, args, { encoding: "utf8" });
      if (done.status !== 0) throw new Error(complaint(done, name));
      return done.stdout;
    },
  };
}
