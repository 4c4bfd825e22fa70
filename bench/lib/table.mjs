/** Results of rows as text for people. */

/** Three digits, as plain decimals. */
export function significant(n) {
  if (!Number.isFinite(n)) return String(n);
  if (n !== 0 && Math.abs(n) < 0.001) return n.toExponential(1);
  const digits = n === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(Math.abs(n))));
  return n.toFixed(Math.min(digits, 5));
}

const figure = (summary, unit) =>
  `${significant(summary.median)} ${unit} (${significant(summary.p10)}..${significant(summary.p90)})`;

/** Lines of cells as columns of equal width; the first line is the head. */
export function alignColumns(lines) {
  const widths = lines[0].map((_, column) => Math.max(...lines.map((cells) => cells[column].length)));
  const text = (cells) =>
    cells
      .map((cell, column) => cell.padEnd(widths[column]))
      .join(" | ")
      .trimEnd();
  const [head, ...body] = lines;
  return [text(head), widths.map((width) => "-".repeat(width)).join("-|-"), ...body.map(text)];
}

/** Everything that `npm run bench` says of the rows: for each what it measures, then one table. */
export function renderRows(rows) {
  const cells = [["row", "Bifolio", "alternative", "ratio", "goal"]];
  for (const row of rows) {
    if (row.error) cells.push([row.name, "failed, see above", "", "", ""]);
    for (const line of row.lines ?? []) {
      const { alternative, ratio } = line;
      cells.push([
        `${row.name}: ${line.what}`,
        figure(line.bifolio, line.unit),
        alternative ? `${alternative.name}: ${figure(alternative, line.unit)}` : "",
        ratio ? `${significant(ratio.median)} x` : "",
        line.goal ?? "",
      ]);
    }
  }
  const notes = rows.flatMap((row) => [
    `${row.name}: ${row.measures ?? "failed"}`,
    ...(row.notes ?? []).map((note) => `  ${note}`),
    ...(row.error ? [`  failed: ${row.error}`] : []),
  ]);
  return [...notes, "", ...alignColumns(cells)].join("\n");
}
