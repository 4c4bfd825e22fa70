/** `bifolio program run`: from paths to result files and an exit code. */
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { CommandError, EXIT_OK, EXIT_USAGE } from "../commandError.ts";
import { print } from "../print.ts";
import { parseProgram, ProgramError } from "./parse.ts";
import { ProgramFailure, runProgram } from "./runProgram.ts";

export interface ProgramRunOptions {
  /** Undefined: the result of the one program goes to standard output. */
  readonly out: string | undefined;
  /** Check invariants in the memory, and all of them after each operation. */
  readonly debug: boolean;
}

const END = ".jsonl";
/** Results, which lie beside programs. */
const RESULT = /\.(expected|actual|result)\.jsonl$/;

const SYSTEM_SENTENCES: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file or directory",
  ENOTDIR: "it is not a directory",
  EEXIST: "it is not a directory",
  EACCES: "permission denied",
  EPERM: "permission denied",
  EROFS: "the file system is read-only",
  ENOSPC: "there is no space left",
  EISDIR: "it is a directory",
};

/** What the operating system refused, as a sentence. */
function refused(path: string, error: unknown): CommandError {
  const code = (error as { code?: string }).code ?? "";
  return new CommandError(`${path}: ${SYSTEM_SENTENCES[code] ?? (code || String(error))}`);
}

function asking<T>(path: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw refused(path, error);
  }
}

/** The programs that the paths stand for. Two of one name would be one result file. */
function programsIn(paths: readonly string[], out: string | undefined): string[] {
  const files = paths.flatMap((path) => {
    const stat = asking(path, () => statSync(path));
    if (!stat.isDirectory()) {
      if (!stat.isFile()) throw new CommandError(`${path}: it is not a regular file`);
      return [path];
    }
    const names = asking(path, () => readdirSync(path)).filter((f) => f.endsWith(END) && !RESULT.test(f));
    if (names.length === 0) throw new CommandError(`${path}: there is no program in it (*${END})`);
    return names.toSorted().map((name) => join(path, name));
  });
  if (out === undefined) {
    if (files.length > 1) {
      throw new CommandError(
        `${files.length} programs need --out, a directory for their results`,
        EXIT_USAGE,
      );
    }
    return files;
  }
  const names = new Map<string, string>();
  for (const file of files) {
    const other = names.get(nameOf(file));
    if (other !== undefined)
      throw new CommandError(
        `${other} and ${file} have the same name, and so would their results`,
        EXIT_USAGE,
      );
    names.set(nameOf(file), file);
  }
  return files;
}

const nameOf = (file: string): string => basename(file, END);

interface Source {
  readonly file: string;
  readonly text: string;
}

/** Reads a program, which is one. */
function sourceOf(file: string): Source {
  const text = asking(file, () => readFileSync(file, "utf8"));
  try {
    parseProgram(text);
  } catch (error) {
    if (!(error instanceof ProgramError)) throw error;
    throw new CommandError(`${file}: ${error.message}`, EXIT_USAGE);
  }
  return { file, text };
}

/** Runs a program; what it fails with becomes a sentence that names the file. */
async function resultOf({ file, text }: Source, debug: boolean): Promise<string> {
  try {
    const lines = await runProgram(text, { debug, check: debug, name: nameOf(file) });
    return `${lines.join("\n")}\n`;
  } catch (error) {
    if (error instanceof ProgramFailure) throw new CommandError(`${file}: ${error.message}`);
    throw error;
  }
}

/** Runs the command; returns its exit code. Errors: CommandError. */
export async function programRunCommand(
  paths: readonly string[],
  options: ProgramRunOptions,
): Promise<number> {
  const { out, debug } = options;
  // All of them before the first one runs: nothing is written where one is no program.
  const sources = programsIn(paths, out).map(sourceOf);
  if (out !== undefined) asking(out, () => mkdirSync(out, { recursive: true }));
  const began = performance.now();
  let operations = 0;
  for (const source of sources) {
    const result = await resultOf(source, debug);
    // The header and the final state are no operations.
    operations += result.trimEnd().split("\n").length - 2;
    if (out === undefined) await print(result, "the result");
    else {
      const path = join(out, `${nameOf(source.file)}.actual${END}`);
      asking(path, () => writeFileSync(path, result));
    }
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  const programs = `${sources.length} ${sources.length === 1 ? "program" : "programs"}`;
  const where = out === undefined ? "" : `, results in ${out}`;
  console.error(`bifolio: ${programs}, ${operations} operations in ${seconds} s${where}`);
  return EXIT_OK;
}
