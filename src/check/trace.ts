/** A schedule as a table: agents are columns, time goes down, the state of pages and sequence stands at the right. */
import type { TraceStep } from "./run.ts";

interface Traced {
  readonly columns: readonly string[];
  readonly trace: readonly TraceStep[];
}

const WIDEST = 40;

/** Breaks a text into lines of at most `width`. */
function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line);
      line = "";
    }
    line = line === "" ? word : `${line} ${word}`;
  }
  lines.push(line);
  return lines;
}

/** The columns that take part, in order. */
export function columnsOf({ columns, trace }: Traced): number[] {
  return columns.map((_, index) => index).filter((index) => trace.some(({ actor }) => actor === index));
}

export function renderTrace(traced: Traced): string {
  const { columns, trace } = traced;
  const used = columnsOf(traced);
  const cells = trace.map(({ what, notes }) => [what, ...notes].flatMap((text) => wrap(text, WIDEST)));
  const widths = used.map((index) =>
    Math.max(
      columns[index]!.length,
      ...trace.map(({ actor }, step) =>
        actor === index ? Math.max(...cells[step]!.map((line) => line.length)) : 0,
      ),
    ),
  );
  const row = (step: string, texts: readonly string[], state: string): string =>
    `${step.padStart(4)}  ${texts.map((text, k) => text.padEnd(widths[k]!)).join("  ")}  ${state}`.trimEnd();
  const lines = [
    row(
      "",
      used.map((index) => columns[index]!),
      "pages, sequence, devices",
    ),
  ];
  lines.push(
    row(
      "",
      widths.map((width) => "-".repeat(width)),
      "-".repeat(24),
    ),
  );
  for (const [step, { actor, what, notes, state }] of trace.entries()) {
    // Nothing to see: the agent has come to its first point.
    if (what === "begins" && notes.length === 0 && state === (trace[step - 1]?.state ?? state)) continue;
    for (const [k, text] of cells[step]!.entries())
      lines.push(
        row(
          k === 0 ? String(step + 1) : "",
          used.map((index) => (index === actor ? text : "")),
          k === 0 ? state : "",
        ),
      );
  }
  return lines.join("\n");
}
