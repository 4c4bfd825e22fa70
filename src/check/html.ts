/** What was found as one HTML file that needs nothing else: each schedule a grid of agents and time. */
import type { CheckResult, Violation } from "./explore.ts";
import { columnsOf } from "./trace.ts";

const ENTITIES: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const text = (raw: string): string => raw.replace(/[&<>"]/g, (c) => ENTITIES[c]!);

const STYLE = `
  :root { color-scheme: light dark; --line: #8884; --ran: #7aa2f733; --wrong: #d33; }
  body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
  table { border-collapse: collapse; margin: 1rem 0 2.5rem; }
  th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
  td.ran { background: var(--ran); }
  td.ran.wrong { outline: 2px solid var(--wrong); }
  td.state, code { font: 12px/1.45 ui-monospace, monospace; }
  .wrong b { color: var(--wrong); }
  small { display: block; opacity: .8; }
`;

function trace(violation: Violation): string {
  const { columns, trace: steps } = violation;
  const used = columnsOf(violation);
  const head = used.map((index) => `<th>${text(columns[index]!)}</th>`).join("");
  const rows = steps.map(({ actor, what, notes, state }, step) => {
    const cells = used.map((index) => {
      if (index !== actor) return "<td></td>";
      const wrong = notes.some((note) => note.startsWith("✗"));
      const more = notes
        .map((note) => (note.startsWith("✗") ? `<b>${text(note)}</b>` : `<small>${text(note)}</small>`))
        .join("");
      return `<td class="ran${wrong ? " wrong" : ""}">${text(what)}${more}</td>`;
    });
    return `<tr><td>${step + 1}</td>${cells.join("")}<td class="state">${text(state)}</td></tr>`;
  });
  return `<table><tr><th></th>${head}<th>pages, sequence, devices</th></tr>${rows.join("\n")}</table>`;
}

/** Renders results; a file of its own. */
export function renderHtml(title: string, results: readonly CheckResult[]): string {
  const parts = results.map((result) => {
    const { scenario, violations, schedules, complete } = result;
    const count = `${schedules.toLocaleString("en")} schedules`;
    const verdict =
      violations.length > 0
        ? `${violations.length} ${violations.length === 1 ? "rule" : "rules"} broken, in ${count}`
        : `nothing found in ${count}${complete ? ", which are all that make a difference" : ""}`;
    const found = violations.map(
      (violation) =>
        `<h3>${text(violation.rule)}</h3><p>${text(violation.message)}<br>Rule: ${text(violation.title)} (<code>${text(violation.link)}</code>)<br>Schedule: <code>${text(violation.schedule)}</code></p>${trace(violation)}`,
    );
    return `<h2>${text(scenario)}</h2><p>${text(verdict)}</p>${found.join("\n")}`;
  });
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>${text(title)}</title><style>${STYLE}</style>
<h1>${text(title)}</h1>
${parts.join("\n")}
</html>
`;
}
