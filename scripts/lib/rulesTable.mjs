// The rules of the notifier contract as a Markdown document: what docs/rules.md is.

const cell = (text) => text.replaceAll("|", "\\|");

/** @param {import("./rulesTable.d.mts").Rules} rules */
export function rulesDocument({ rules, notApplicable }) {
  const row = (...cells) => `| ${cells.map(cell).join(" | ")} |`;
  return `${[
    "# The rules of the notifier contract, and what checks them",
    "",
    "Made by `node scripts/rules.mjs --markdown` from `scripts/rules.json`; do not edit. Numbers are those of the sections of",
    "linux-semantics.md. `npm run rules` makes each change of the last column in a copy of the sources, and sees the test",
    "beside it fail.",
    "",
    row("id", "rule", "test", "without it"),
    row("---", "---", "---", "---"),
    ...rules.map(({ id, rule, test, mutation }) =>
      row(id, rule, `${test.name} (\`${test.file}\`)`, `${mutation.what} (\`${mutation.file}\`)`),
    ),
    "",
    "## Rules of Linux that have no meaning here",
    "",
    row("id", "rule", "why not"),
    row("---", "---", "---"),
    ...notApplicable.map(({ id, rule, why }) => row(id, rule, why)),
  ].join("\n")}\n`;
}

/** The title of a test and of what it stands in, as `source` writes them: undefined if the name does not occur there. */
export function findTitle(source, name) {
  const titles = [
    ...source.matchAll(/\b(?:test|describe)(?:\.\w+)*(?:\([^"`\n]*\))?\(\s*"((?:[^"\\]|\\.)*)"/g),
  ].map((match) => JSON.parse(`"${match[1]}"`));
  return titles.find((title) => {
    if (name === title) return true;
    const outer = name.slice(0, -title.length - 1);
    return name === `${outer} ${title}` && source.includes(JSON.stringify(outer));
  });
}
