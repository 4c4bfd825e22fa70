/** What hashers in workers and the one in the main thread have in common: their mirrors, and what they report. */
import { fileBacking } from "../backing/index.ts";
import { TableMirror } from "../mirrors/index.ts";
import { Hasher, type Findings, type Work } from "./hasher.ts";
import type { Plan, Surroundings } from "./plan.ts";

/** What a hasher found; structured-clonable. */
export interface HasherReport extends Findings {
  readonly name: string;
  readonly hits: number;
  readonly fills: number;
  readonly retries: number;
  readonly invalidations: number;
}

/** The main thread is the first hasher. */
export const hasherName = (index: number): string => (index === 0 ? "main" : `worker ${index}`);

/** A hasher with its mirrors. Give it up with close(). */
export class HasherAgent {
  readonly #name: string;
  readonly #mirrors: readonly TableMirror[];
  readonly #hasher: Hasher;
  readonly #closeFile: () => void;

  constructor({ memory, space, board }: Surroundings, plan: Plan, index: number) {
    const { fillBytes, file, windowPages, passes, churn } = plan;
    const { pageSize } = memory;
    const over = (start: number, length: number): TableMirror =>
      new TableMirror({ memory, space, start, length, fillBytes });
    const mirror = over(file.address, Math.ceil(file.bytes / pageSize) * pageSize);
    const scratch = churn && over(churn.scratch.address, churn.scratch.pages * pageSize);
    this.#name = hasherName(index);
    this.#mirrors = scratch ? [mirror, scratch] : [mirror];
    // Also what makes this agent able to open the files of the space by itself: see backing/fileBacking.ts.
    const backing = fileBacking(file.path);
    this.#closeFile = () => backing.close?.();
    this.#hasher = new Hasher({ index, board, mirror, scratch, file: backing, windowPages, passes });
  }

  run(): Work<Findings> {
    return this.#hasher.run();
  }

  report(findings: Findings): HasherReport {
    const sum = { hits: 0, fills: 0, retries: 0, invalidations: 0 };
    for (const { counts } of this.#mirrors) {
      sum.hits += counts.hits;
      sum.fills += counts.fills;
      sum.retries += counts.retries;
      sum.invalidations += counts.invalidations;
    }
    return { name: this.#name, ...findings, ...sum };
  }

  async close(): Promise<void> {
    for (const mirror of this.#mirrors) await mirror.remove();
    this.#closeFile();
  }
}
