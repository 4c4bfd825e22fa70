/** Each rule stands in docs/checking.md, and leads to a heading that exists. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { RULES } from "../../src/check/index.ts";
import { ROOT } from "../lib/sources.ts";

const read = (path: string): string => readFileSync(ROOT + path, "utf8");

const anchorsOf = (text: string): string[] =>
  [...text.matchAll(/^#+ (.*)$/gm)].map((m) =>
    m[1]!
      .toLowerCase()
      .replace(/[^\w\- ]/g, "")
      .replaceAll(" ", "-"),
  );

test.each(Object.entries(RULES))("%s", (rule, { title, link }) => {
  expect(title).not.toBe("");
  expect(read("docs/checking.md")).toContain(`\`${rule}\``);
  const [path, anchor] = link.split("#") as [string, string];
  expect(anchorsOf(read(path))).toContain(anchor);
});
