// Changes of the sources that tests should notice: a copy of the sources, one change at a time, and what vitest says.
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { execFileSync, spawn } from "node:child_process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../..", import.meta.url));

/** @typedef {{ file: string, find: string, replace: string }} Mutation */

export const readJson = (path) => JSON.parse(readFileSync(join(root, path), "utf8"));

/** How often the text of a mutation stands in its file, in `folder`. */
export const occurrences = (folder, { file, find }) =>
  readFileSync(join(folder, file), "utf8").split(find).length - 1;

const copies = new Set();
process.on("exit", () => {
  for (const copy of copies) rmSync(copy, { recursive: true, force: true });
});
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));

/** A copy of what git tracks or would track, with the same node_modules. Removed when the script ends. */
export function copySources() {
  const copy = mkdtempSync(join(tmpdir(), "bifolio-mutations-"));
  copies.add(copy);
  const listed = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], {
    cwd: root,
    encoding: "utf8",
  });
  // What git ignores: the kernels as the build wrote them, which the sources import.
  for (const file of [...listed.split("\n").filter(Boolean), "src/memory/kernelsWasm.ts"]) {
    try {
      cpSync(join(root, file), join(copy, file));
    } catch (error) {
      if (error.code !== "ENOENT") throw error; // deleted, and not yet committed
    }
  }
  symlinkSync(join(root, "node_modules"), join(copy, "node_modules"), "junction");
  return copy;
}

/**
 * Runs `look` while a mutation is in place in a copy. Its text must stand there once.
 * @template T
 * @param {string} copy
 * @param {Mutation} mutation
 * @param {() => T | Promise<T>} look
 */
export function withMutation(copy, mutation, look) {
  const source = readFileSync(join(copy, mutation.file), "utf8");
  return withSource(
    copy,
    mutation.file,
    source.replace(mutation.find, () => mutation.replace),
    look,
  );
}

/**
 * Runs `look` while a file of a copy has another text.
 * @template T
 * @param {string} copy
 * @param {string} file
 * @param {string} text
 * @param {() => T | Promise<T>} look
 */
export async function withSource(copy, file, text, look) {
  const path = join(copy, file);
  const source = readFileSync(path, "utf8");
  writeFileSync(path, text);
  try {
    return await look();
  } finally {
    writeFileSync(path, source);
  }
}

const LOOK_MS = 200;
const TICKS_A_SECOND = 100;
/** A child that sleeps, or has to share its processor, may take so many times its limit. */
const PATIENCE = 3;

/** Processor time of a process, its threads included; undefined where the host does not tell. */
function processorMs(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return ((Number(fields[11]) + Number(fields[12])) * 1000) / TICKS_A_SECOND;
  } catch {
    return undefined;
  }
}

/**
 * Waits for the end of a child: how much processor time it took, about, and whether it was killed because that came to `limitMs`.
 * Other work on the machine does not make it late.
 * @param {import("node:child_process").ChildProcess} child
 * @param {number} limitMs
 * @param {() => void} kill
 * @returns {Promise<{ late: boolean, tookMs: number, code: number | null }>}
 */
export async function endOf(child, limitMs, kill) {
  const begun = performance.now();
  let [late, tookMs] = [false, 0];
  const timer = setInterval(() => {
    const wallMs = performance.now() - begun;
    tookMs = processorMs(child.pid) ?? wallMs;
    late = tookMs > limitMs || wallMs > PATIENCE * limitMs;
    if (late) kill();
  }, LOOK_MS);
  const code = await new Promise((resolve) => child.on("close", resolve));
  clearInterval(timer);
  return { late, tookMs, code };
}

/**
 * Runs vitest in a copy: every test by its full name, with "passed", "failed" or "skipped" and the first failure's text.
 * undefined: no end within `limitMs` of processor time.
 * @param {string} copy
 * @param {string[]} args
 * @param {number} limitMs
 * @returns {Promise<{ tookMs: number, tests: { name: string, status: string, message: string }[], files: { name: string, status: string, message: string }[] } | undefined>}
 */
export async function runTests(copy, args, limitMs) {
  const child = spawn(
    process.execPath,
    ["node_modules/vitest/vitest.mjs", "run", "--reporter=json", ...args],
    { cwd: copy, stdio: ["ignore", "pipe", "ignore"], detached: true },
  );
  let out = "";
  child.stdout.on("data", (chunk) => (out += chunk));
  // Its workers, too, which may be what hangs.
  const { late, tookMs } = await endOf(child, limitMs, () => process.kill(-child.pid, "SIGKILL"));
  if (late) return undefined;
  const { testResults } = JSON.parse(out.slice(out.indexOf("{")));
  return {
    tookMs,
    tests: testResults.flatMap((file) =>
      file.assertionResults.map((t) => ({
        name: t.fullName,
        status: t.status,
        message: t.failureMessages?.[0] ?? "",
      })),
    ),
    files: testResults.map((file) => ({
      name: file.name.split("/").at(-1),
      status: file.status,
      message: file.message,
    })),
  };
}
