/** The sources of src/ for the tests that hold rules over them: a list of files, and their syntax trees. */
import { readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseSync } from "rolldown/utils";

export const ROOT: string = fileURLToPath(new URL("../../", import.meta.url));

export interface SourceFile {
  /** Relative to the repository, with "/": "src/mm/fault.ts". */
  readonly path: string;
  readonly text: string;
}

/** Every TypeScript file below src/, in a fixed order. */
export function sourceFiles(): SourceFile[] {
  return readdirSync(ROOT + "src", { recursive: true, encoding: "utf8" })
    .map((file) => "src/" + file.replaceAll("\\", "/"))
    .filter((path) => path.endsWith(".ts"))
    .sort()
    .map((path) => ({ path, text: readFileSync(ROOT + path, "utf8") }));
}

/** A node of the syntax tree (ESTree with TypeScript). */
export interface Node {
  readonly type: string;
  readonly start: number;
  readonly end: number;
  readonly [field: string]: unknown;
}

export const isNode = (value: unknown): value is Node =>
  typeof value === "object" && value !== null && typeof (value as { type?: unknown }).type === "string";

export function parse(file: SourceFile): Node {
  const { program, errors } = parseSync(file.path, file.text, { lang: "ts" });
  const [error] = errors;
  if (error) throw new SyntaxError(`${file.path}: ${error.message}`);
  return program as unknown as Node;
}

/** Calls `visit` for each node, parents first; `field` is the one of `parent` that holds the node. */
export function walk(
  node: Node,
  visit: (node: Node, ancestors: readonly { node: Node; field: string }[]) => void,
  ancestors: readonly { node: Node; field: string }[] = [],
): void {
  visit(node, ancestors);
  for (const [field, value] of Object.entries(node)) {
    const below = [...ancestors, { node, field }];
    for (const child of Array.isArray(value) ? value : [value]) if (isNode(child)) walk(child, visit, below);
  }
}

/** "src/mm/fault.ts:12", as terminals and editors link it. */
export const placeOf = (file: SourceFile, node: Node): string =>
  `${file.path}:${file.text.slice(0, node.start).split("\n").length}`;
