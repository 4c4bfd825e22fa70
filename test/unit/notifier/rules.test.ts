/** The table of rules, their tests and the changes that make these fail: scripts/rules.json, docs/rules.md, `npm run rules`. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { format, resolveConfig } from "prettier";
import { describe, expect, test } from "vitest";
import { findTitle, type Rules, rulesDocument } from "../../../scripts/lib/rulesTable.mjs";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const read = (path: string): string => readFileSync(`${root}/${path}`, "utf8");
const { rules, notApplicable } = JSON.parse(read("scripts/rules.json")) as Rules;

/** The rows of which `wrong` says something, and what. */
const found = (wrong: (rule: Rules["rules"][0]) => string | undefined): string[] =>
  rules.flatMap((rule) => {
    const what = wrong(rule);
    return what === undefined ? [] : [`${rule.id}: ${what}`];
  });

describe("the table of rules", () => {
  test("has no id twice, and says something in every field", () => {
    const ids = [...rules, ...notApplicable].map((r) => r.id);
    expect(ids.filter((id, k) => ids.indexOf(id) !== k)).toEqual([]);
    expect(rules.length).toBeGreaterThan(100);
    expect(found((r) => (r.rule && r.mutation.what && r.test.name ? undefined : "empty"))).toEqual([]);
    expect(notApplicable.filter((r) => !r.rule || !r.why)).toEqual([]);
  });

  test("names tests that exist, one by its full name in each row", () => {
    expect(
      found(({ test: { file, name } }) => {
        const title = findTitle(read(file), name);
        return title === undefined ? `no test "${name}" in ${file}` : undefined;
      }),
    ).toEqual([]);
  });

  test("changes text that stands once in a file of src", () => {
    expect(
      found(({ mutation: { file, find, replace } }) => {
        const times = read(file).split(find).length - 1;
        if (!file.startsWith("src/") || find === replace) return "changes nothing of the code";
        return times === 1 ? undefined : `its text stands ${times} times in ${file}`;
      }),
    ).toEqual([]);
  });

  test("is what docs/rules.md shows: node scripts/rules.mjs --markdown", async () => {
    const options = await resolveConfig(`${root}/docs/rules.md`);
    const document = await format(rulesDocument({ rules, notApplicable }), {
      ...options,
      parser: "markdown",
    });
    expect(document === read("docs/rules.md")).toBe(true);
  });
});
