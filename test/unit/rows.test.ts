/**
 * The house of docs/architecture.md as a test: lower rows never import upper rows, and a row is imported
 * through its index.ts only. The linter holds the first rule too, in the editor; the last test here keeps its list
 * equal to this one.
 */
import { readFileSync } from "node:fs";
import { posix } from "node:path";
import { expect, test } from "vitest";
import { ROOT, isNode, parse, placeOf, sourceFiles, walk } from "../lib/sources.ts";
import type { SourceFile } from "../lib/sources.ts";

/** From top to bottom. */
const ROWS = [
  "cli",
  "inspect",
  "check",
  "mirrors",
  "hmm",
  "backing",
  "mm",
  "notifier",
  "memory",
  "sync",
  "sched",
];

/** Files of src/ itself that stand above every row; the other files there (units, errors) stand below. */
const ENTRIES = [
  "index.ts",
  "node.ts",
  "testing.ts",
  "syncEntry.ts",
  "notifierEntry.ts",
  "programEntry.ts",
  "checkEntry.ts",
  "webgpuEntry.ts",
];

interface Import {
  readonly specifier: string;
  readonly place: string;
}

/** Every import of a file: `import`, `export … from`, `import()`, `import("…")` in a type. */
function importsOf(file: SourceFile): Import[] {
  const found: Import[] = [];
  walk(parse(file), (node) => {
    const imports =
      node.type === "ImportDeclaration" ||
      node.type === "ExportNamedDeclaration" ||
      node.type === "ExportAllDeclaration" ||
      node.type === "ImportExpression" ||
      node.type === "TSImportType";
    const { source } = node;
    if (!imports || !isNode(source)) return;
    const specifier = source["value"];
    found.push({
      specifier: typeof specifier === "string" ? specifier : "(computed)",
      place: placeOf(file, node),
    });
  });
  return found;
}

/** The row of a file of src/, or undefined for a file of src/ itself. */
const rowOf = (path: string): string | undefined => /^src\/([^/]+)\//.exec(path)?.[1];

/** What is wrong with the imports of these files, one line each. */
function violations(files: readonly SourceFile[]): string[] {
  return files.flatMap((file) => {
    const row = rowOf(file.path);
    if (row === undefined && ENTRIES.includes(posix.basename(file.path))) return [];
    if (row !== undefined && !ROWS.includes(row)) return [`${file.path}: ${row}/ is not a row`];
    return importsOf(file).flatMap(({ specifier, place }) => {
      if (!specifier.startsWith(".")) return [];
      const target = posix.join(posix.dirname(file.path), specifier);
      const targetRow = rowOf(target);
      const what = violation(row, target, targetRow);
      return what === undefined ? [] : [`${place}: ${specifier}: ${what}`];
    });
  });
}

function violation(
  row: string | undefined,
  target: string,
  targetRow: string | undefined,
): string | undefined {
  if (!target.startsWith("src/")) return "is outside src/";
  if (targetRow === undefined) {
    const entry = ENTRIES.includes(posix.basename(target));
    return entry && row !== "cli" ? "the entry files are above every row but cli/" : undefined;
  }
  if (row === undefined) return "files of src/ that every row imports import no row";
  if (!ROWS.includes(targetRow)) return `${targetRow}/ is not a row`;
  const face = `src/${targetRow}/index.ts`;
  if (row === targetRow) {
    return target === face ? "inside a row import files directly, not its index.ts" : undefined;
  }
  if (ROWS.indexOf(targetRow) < ROWS.indexOf(row)) return `${row}/ is below ${targetRow}/`;
  return target === face ? undefined : `import ${targetRow}/index.ts, not its inner files`;
}

test("lower rows never import upper rows, and other rows only through their index.ts", () => {
  const files = sourceFiles();
  expect(files.length).toBeGreaterThan(0);
  expect(violations(files)).toEqual([]);
});

test("these imports are fine", () => {
  expect(
    violations([
      {
        path: "src/mm/fault.ts",
        text: `
          import { registry } from "../notifier/index.ts";
          import type { Op } from "../sched/index.ts";
          import { vmaAt } from "./vma.ts";
          import { MmError } from "../errors.ts";
          import { readFileSync } from "node:fs";
          type Later = import("../memory/index.ts").Arena;
        `,
      },
      { path: "src/mirrors/webgpu/pages.ts", text: `import { registry } from "../../notifier/index.ts";` },
      { path: "src/cli/main.ts", text: `import { createMemory } from "../index.ts";` },
      { path: "src/testing.ts", text: `export * from "./mm/fault.ts";` },
      { path: "src/sched/op.ts", text: `// import { faultOp } from "../mm/index.ts";` },
    ]),
  ).toEqual([]);
});

test.each([
  ["src/sched/op.ts", `import { f } from "../mm/index.ts";`, "sched/ is below mm/"],
  ["src/sched/op.ts", `import type { F } from "../mm/index.ts";`, "sched/ is below mm/"],
  ["src/sync/mutex.ts", `export * from "../memory/index.ts";`, "sync/ is below memory/"],
  ["src/memory/slab.ts", `const mm = await import("../mm/index.ts");`, "memory/ is below mm/"],
  ["src/memory/slab.ts", `let v: import("../mm/index.ts").Vma;`, "memory/ is below mm/"],
  ["src/mirrors/guest/x.ts", `import { c } from "../../cli/index.ts";`, "mirrors/ is below cli/"],
  ["src/mm/fault.ts", `import { s } from "../sync/mutex.ts";`, "import sync/index.ts, not its inner files"],
  ["src/mm/fault.ts", `import { v } from "./index.ts";`, "inside a row import files directly"],
  ["src/mm/fault.ts", `import { m } from "../index.ts";`, "the entry files are above every row"],
  ["src/mm/fault.ts", `import { t } from "../../test/lib/sources.ts";`, "is outside src/"],
  ["src/errors.ts", `import { s } from "./sched/index.ts";`, "import no row"],
  ["src/utils/x.ts", ``, "utils/ is not a row"],
])("%s with %s is caught", (path, text, message) => {
  expect(violations([{ path, text }])).toEqual([expect.stringContaining(message)]);
});

test("the linter's overrides know the same rows in the same order", () => {
  interface Override {
    files: string[];
    rules: { "no-restricted-imports"?: [string, { patterns: { regex: string }[] }] };
  }
  const config = JSON.parse(readFileSync(ROOT + ".oxlintrc.json", "utf8")) as { overrides: Override[] };
  for (const [depth, row] of ROWS.entries()) {
    const override = config.overrides.find(({ files }) => files.includes(`src/${row}/**`));
    const patterns = override?.rules["no-restricted-imports"]?.[1].patterns.map(
      ({ regex }) => new RegExp(regex),
    );
    const refused = (specifier: string): boolean => patterns?.some((regex) => regex.test(specifier)) ?? false;
    const found = ROWS.filter(
      (other) => refused(`../${other}/index.ts`) && refused(`../../${other}/index.ts`),
    );
    expect({ row, refuses: found }).toEqual({ row, refuses: ROWS.slice(0, depth) });
  }
});
