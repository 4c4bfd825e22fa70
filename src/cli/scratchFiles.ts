/** The two temporary files of a run with churn. Gone when the process ends, however it ends. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { STAMP_FOREIGN, STAMP_SCRATCH, stampedPage, tagOf } from "./stamps.ts";

export interface ScratchFiles {
  /** Stamped pages that are never written. */
  readonly foreign: string;
  /** Every page twice, `pages` apart. */
  readonly scratch: string;
}

export function makeScratchFiles(pageSize: number, foreignPages: number, scratchPages: number): ScratchFiles {
  const folder = mkdtempSync(join(tmpdir(), "bifolio-mirror-"));
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  const write = (name: string, kind: number, pages: number, places: number): string => {
    const path = join(folder, name);
    const stamps = Array.from({ length: pages * places }, (_, n) =>
      stampedPage(pageSize, tagOf(kind, n % pages), 0),
    );
    writeFileSync(path, Buffer.concat(stamps));
    return path;
  };
  return {
    foreign: write("foreign.bin", STAMP_FOREIGN, foreignPages, 1),
    scratch: write("scratch.bin", STAMP_SCRATCH, scratchPages, 2),
  };
}
