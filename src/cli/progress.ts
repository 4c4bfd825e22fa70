/** The progress bar: on standard error, and only where that is a terminal. */
import { SingleBar } from "cli-progress";
import { formatBytes } from "./report.ts";

export interface Progress {
  /** Shows what is being done now, and how many bytes of how many. */
  show(what: string, done: number, total: number): void;
  /** Takes the bar away; the cursor is as it was. */
  end(): void;
}

const SILENT: Progress = { show: () => {}, end: () => {} };
const UPDATES_PER_SECOND = 10;

export function makeProgress(wanted: boolean): Progress {
  if (!wanted || !process.stderr.isTTY) return SILENT;
  const bar = new SingleBar({
    format: "{what} |{bar}| {percentage} %  {done} of {all}  {speed}/s",
    stream: process.stderr,
    fps: UPDATES_PER_SECOND,
    hideCursor: true,
    clearOnComplete: true,
    barCompleteChar: "█",
    barIncompleteChar: "░",
    barsize: 30,
  });
  let shown: string | undefined;
  let began = 0;
  // Also where a signal ends the process: it would leave a terminal without a cursor.
  process.once("exit", () => bar.stop());
  return {
    show(what, done, total) {
      if (what !== shown) {
        if (shown !== undefined) bar.stop();
        began = performance.now();
        bar.start(total, 0, { what, done: "", all: formatBytes(total), speed: "" });
        shown = what;
      }
      const seconds = (performance.now() - began) / 1000;
      bar.update(done, { done: formatBytes(done), speed: formatBytes(seconds > 0 ? done / seconds : 0) });
    },
    end() {
      if (shown !== undefined) bar.stop();
      shown = undefined;
    },
  };
}
