/**
 * The forgotten `yield*`. A call of an `…Op` function only makes a generator; nothing runs until somebody
 * drives it. Types cannot see a dropped one, this test does: such a call must be `yield*`ed, returned, given to
 * another call (a driver) or assigned.
 */
import { expect, test } from "vitest";
import { isNode, parse, placeOf, sourceFiles, walk } from "../lib/sources.ts";
import type { Node, SourceFile } from "../lib/sources.ts";

/** Ends in "Op" and does not ask a question, as `isOp()` does. */
const OP_NAME = /^(?!is[A-Z]).*Op$/;

/** The name a call goes by: `f()`, `a.f()`, `a?.f()`, `this.#f()`, `f!()`, `f<T>()`. */
function calleeName(node: Node): string | undefined {
  let callee = node["callee"];
  while (isNode(callee) && isWrapper(callee)) callee = callee["expression"];
  if (isNode(callee) && callee.type === "MemberExpression" && callee["computed"] !== true) {
    callee = callee["property"];
  }
  return isNode(callee) && typeof callee["name"] === "string" ? callee["name"] : undefined;
}

/** Nodes whose value is the value of their `expression`. */
const isWrapper = (node: Node): boolean =>
  node.type === "ParenthesizedExpression" ||
  node.type === "TSAsExpression" ||
  node.type === "TSSatisfiesExpression" ||
  node.type === "TSNonNullExpression" ||
  node.type === "TSTypeAssertion" ||
  node.type === "TSInstantiationExpression" ||
  node.type === "ChainExpression";

/** Somebody gets the value of the node in this place. */
function reaches(ancestors: readonly { node: Node; field: string }[]): boolean {
  const place = ancestors.at(-1);
  if (!place) return false;
  const { node, field } = place;
  const onwards = (): boolean => reaches(ancestors.slice(0, -1));
  if (isWrapper(node)) return onwards();
  switch (node.type) {
    case "YieldExpression":
      return node["delegate"] === true;
    case "ReturnStatement":
      return true;
    case "ArrowFunctionExpression":
      return field === "body";
    case "CallExpression":
    case "NewExpression":
      return field === "arguments";
    case "VariableDeclarator":
      return field === "init";
    case "AssignmentExpression":
    case "AssignmentPattern":
      return field === "right";
    case "Property":
    case "PropertyDefinition":
      return field === "value";
    case "ArrayExpression":
      return true;
    case "ConditionalExpression":
      return field !== "test" && onwards();
    case "LogicalExpression":
      return field === "right" && onwards();
    default:
      return false;
  }
}

/** Calls whose operation nobody runs, as "src/mm/fault.ts:12: faultOp()". */
function forgotten(file: SourceFile): string[] {
  const found: string[] = [];
  walk(parse(file), (node, ancestors) => {
    if (node.type !== "CallExpression") return;
    const name = calleeName(node);
    if (name !== undefined && OP_NAME.test(name) && !reaches(ancestors)) {
      found.push(`${placeOf(file, node)}: ${name}()`);
    }
  });
  return found;
}

test("no …Op() call in src/ is dropped", () => {
  const files = sourceFiles();
  expect(files.length).toBeGreaterThan(0);
  expect(files.flatMap(forgotten)).toEqual([]);
});

const inFunction = (statement: string): SourceFile => ({
  path: "src/mm/synthetic.ts",
  text: `class Space { #lockOp() {} async *op(a: A, wait = waitOp(a)) {\n${statement}\n} }`,
});

test.each([
  "yield* faultOp(a);",
  "const page = yield* faultOp(a);",
  "const page = (yield* faultOp(a)) + 1;",
  "return yield* a.faultOp(a);",
  "return faultOp(a);",
  "return a ? faultOp(a) : waitOp(a);",
  "return a && (faultOp(a) as Op<void>);",
  "driver.run(faultOp(a));",
  "await drive(this.#lockOp()!);",
  "new Task(faultOp(a));",
  "const op = faultOp(a);",
  "this.op = a?.faultOp(a);",
  "const start = () => faultOp(a);",
  "const ops = [faultOp(a), { op: waitOp(a) }];",
  "yield* a.busy ? faultOp(a) : waitOp(a);",
  "if (isOp(a)) yield* a;",
  "function* faultOp(a: A) { yield* lockOp(a); }",
  "// faultOp(a);",
  "const text = 'faultOp(a);';",
  "const { faultOp } = a; faultOp;",
])("fine: %s", (statement) => {
  expect(forgotten(inFunction(statement))).toEqual([]);
});

test.each([
  "faultOp(a);",
  "a.faultOp(a);",
  "a?.faultOp(a);",
  "this.#lockOp();",
  "faultOp<A>(a);",
  "yield faultOp(a);",
  "await faultOp(a);",
  "void faultOp(a);",
  "if (faultOp(a)) a.b();",
  "for (;;) faultOp(a);",
  "try { a.b(); } finally { faultOp(a); }",
  "a && faultOp(a);",
  "const n = faultOp(a) ? 1 : 2;",
  "const n = faultOp(a) + 1;",
  "const start = () => { faultOp(a); };",
])("caught: %s", (statement) => {
  expect(forgotten(inFunction(statement))).toEqual([
    expect.stringMatching(/^src\/mm\/synthetic\.ts:2: \S+Op\(\)$/),
  ]);
});
