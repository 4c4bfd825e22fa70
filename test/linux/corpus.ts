/** The corpus: programs with what the kernel made of them. README.md says where it comes from. */
import { readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";

export interface CorpusProgram {
  readonly name: string;
  readonly folder: "scenarios" | "random";
  /** The text of a program, and of its result. */
  readonly program: string;
  readonly expected: string;
}

const FOLDERS = ["scenarios", "random"] as const;

/** `root`: of this package. */
export function readCorpus(root: string): CorpusProgram[] {
  return FOLDERS.flatMap((folder) =>
    gunzipSync(readFileSync(`${root}/test/linux/corpus/${folder}.jsonl.gz`))
      .toString("utf8")
      .trimEnd()
      .split("\n")
      .map((line) => ({ folder, ...(JSON.parse(line) as Omit<CorpusProgram, "folder">) })),
  );
}
