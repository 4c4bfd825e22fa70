/**
 * Programs run by Bifolio and compared with what the kernel made of them: agreement, and what to look at first.
 * What test/linux/corpus.test.ts and scripts/conformance.mjs have in common.
 */
import { runProgram, type RunProgramOptions } from "../../src/programEntry.ts";
import { type Aspect, type Difference, differences, parse } from "./compare.mjs";
import { readCorpus } from "./corpus.ts";

export { readCorpus };

export interface Case {
  readonly name: string;
  readonly program: string;
  readonly expected: string;
}

export interface Compared {
  readonly name: string;
  /** The operations of the program, as it has them. */
  readonly operations: readonly Operation[];
  readonly differences: readonly Difference[];
  /** Why there is no result. */
  readonly failure: string | undefined;
}

type Operation = Readonly<Record<string, unknown>> & { readonly op: string };

/** What a program must agree in to be called agreeing: all but the kernel's very vmas and page-table entries. */
export const DEFAULT_ASPECTS: readonly Aspect[] = [
  "results",
  "values",
  "events",
  "eventSet",
  "vmas",
  "contents",
  "files",
];
const EXACT_ASPECTS: readonly Aspect[] = ["kernelVmas", "ptes"];
const PER_OPERATION: readonly Aspect[] = ["results", "values", "events", "eventSet"];

const operationsOf = (program: string): Operation[] =>
  program
    .split("\n")
    .filter((line) => line.trim() !== "" && !line.trim().startsWith("//"))
    .slice(1)
    .map((line) => JSON.parse(line) as Operation);

export async function compare(c: Case, options: RunProgramOptions = { debug: true }): Promise<Compared> {
  const operations = operationsOf(c.program);
  let lines: string[];
  try {
    lines = await runProgram(c.program, options);
  } catch (error) {
    return { name: c.name, operations, differences: [], failure: String((error as Error).message) };
  }
  const found = differences(parse(c.expected), parse(lines.join("\n")));
  return { name: c.name, operations, differences: found, failure: undefined };
}

/** The differences that keep a program from agreeing. */
export const counted = (c: Compared): Difference[] =>
  c.differences.filter(({ aspect }) => DEFAULT_ASPECTS.includes(aspect));

export const agrees = (c: Compared): boolean => c.failure === undefined && counted(c).length === 0;

// ---- the report ---------------------------------------------------------------------------------------------------

const percent = (part: number, whole: number): string =>
  `${part}/${whole} (${((100 * part) / Math.max(1, whole)).toFixed(1)} %)`;

/** Agreement per aspect, as `compare.mjs --summary` prints it. */
export function summary(all: readonly Compared[]): string {
  const operations = all.reduce((sum, c) => sum + c.operations.length, 0);
  const failures = all.filter((c) => c.failure !== undefined);
  const lines = [
    `programs that agree: ${percent(all.filter(agrees).length, all.length)}` +
      `, in everything: ${percent(all.filter((c) => agrees(c) && c.differences.length === 0).length, all.length)}` +
      (failures.length > 0 ? `, ${failures.length} without a result` : ""),
  ];
  for (const aspect of [...DEFAULT_ASPECTS, ...EXACT_ASPECTS]) {
    const good = all.filter(
      (c) => c.failure === undefined && c.differences.every((d) => d.aspect !== aspect),
    ).length;
    const wrong = all.reduce(
      (sum, c) =>
        sum +
        (c.failure === undefined
          ? c.differences.filter((d) => d.aspect === aspect).length
          : c.operations.length),
      0,
    );
    const per = PER_OPERATION.includes(aspect)
      ? `   operations ${percent(operations - wrong, operations)}`
      : "";
    lines.push(`  ${aspect.padEnd(11)} ${percent(good, all.length).padEnd(19)}${per}`);
  }
  return lines.join("\n");
}

/** Numbers and names out, so that the same difference in two programs reads the same. */
const shape = (text: string): string =>
  text
    .replaceAll(/\[\d+,\d+\)/g, "[..)")
    .replaceAll(/\bp\d\b/g, "p")
    .replaceAll(/\bf\d\b/g, "f")
    .replaceAll(/shm@\d+/g, "shm");

const eventsOf = (text: string | undefined): string => {
  const processes = JSON.parse(text ?? "[]") as [string, string[]][];
  const named = processes.flatMap(([, events]) => events);
  return named.length === 0 ? "none" : named.join(" ");
};

/** What an operation is, without where it is. */
export function kindOf(o: Operation | undefined): string {
  if (!o) return "?";
  const parts: unknown[] = [o.op];
  if (o["advice"] !== undefined) parts.push(o["advice"]);
  if (o.op === "mmap") parts.push(o["share"] ?? "private", o["file"] === undefined ? "anonymous" : "file");
  if (o.op === "mprotect") parts.push(o["prot"]);
  if (o.op === "clear_refs") parts.push(o["value"]);
  if (o["keepSize"] === true) parts.push("keepSize");
  const flags = o["flags"] as string[] | undefined;
  if (flags && flags.length > 0) parts.push(flags.join("+"));
  if (["at", "len", "to", "newLen", "offset"].some((f) => Number(o[`${f}Bytes`] ?? 0) !== 0))
    parts.push("(bytes)");
  if (["at", "len", "newLen", "offset"].some((f) => Number(o[f] ?? 0) < 0 || Number(o[f] ?? 0) > 2 ** 32))
    parts.push("(out of range)");
  if (o["len"] === 0 && o["lenBytes"] === undefined) parts.push("(length 0)");
  return parts.join(" ");
}

function resultsOf({ expected, actual }: Difference, op: string | undefined): string {
  // Which page or how many is another matter in each program.
  const many = op === "mmap" || op === "mremap" || op === "fill" || op === "scan";
  const [a, b] = [expected, actual].map((text) =>
    many && /^-?\d/.test(text ?? "") ? "a number" : (text ?? "nothing"),
  );
  return a === b ? "another number" : `expected ${a}, got ${b}`;
}

/** Two strings of pages: the characters where they differ, "expected>actual" each once. */
function charactersOf(expected: string, actual: string): string {
  const pairs = new Set<string>();
  for (let k = 0; k < Math.max(expected.length, actual.length); k++)
    if (expected[k] !== actual[k]) pairs.add(`${expected[k] ?? ""}>${actual[k] ?? ""}`);
  return [...pairs].sort().join(" ");
}

function valuesOf(d: Difference): string {
  type Values = readonly [unknown, unknown, string | null, string | null];
  const [a, b] = [d.expected, d.actual].map((text) => JSON.parse(text ?? "[]") as Values) as [Values, Values];
  if (a[2] !== b[2] || a[3] !== b[3]) {
    const fault = (v: Values): string => (v[2] === null ? "no fault" : `${v[2]} ${v[3]}`);
    return `expected ${fault(a)}, got ${fault(b)}`;
  }
  if (typeof a[0] === "string" && typeof b[0] === "string") return `pages ${charactersOf(a[0], b[0])}`;
  return a[0] === 0 || b[0] === 0 || a[1] !== b[1] ? "another value loaded" : "another value";
}

/** How two lists of mappings differ: the first line, the flags only, or the number. */
function vmasOf(d: Difference): string {
  const [a, b] = [d.expected, d.actual].map((text) => (text ?? "").split("\n")) as [string[], string[]];
  const k = a.findIndex((line, n) => line !== b[n]);
  if (a.length !== b.length)
    return a.length > b.length ? "mappings missing or merged" : "mappings too many or not merged";
  const [x, y] = [a[k] ?? "", b[k] ?? ""];
  const rest = (line: string): string => line.replace(/^\S+ /, "");
  return rest(x) === rest(y) ? "another range" : `expected "${shape(rest(x))}", got "${shape(rest(y))}"`;
}

/** What a difference is about, alike for alike differences. */
export function describe(d: Difference, operations: readonly Operation[]): string {
  const where = typeof d.where === "number" ? kindOf(operations[d.where]) : "at the end";
  let what: string;
  if (d.aspect === "results")
    what = resultsOf(d, typeof d.where === "number" ? operations[d.where]?.op : undefined);
  else if (d.aspect === "events" || d.aspect === "eventSet") {
    const [x, y] = [d.expected, d.actual].map((text) => eventsOf(text)) as [string, string];
    what = `expected ${shape(x)}, got ${shape(y)}${shape(x) === shape(y) ? " (other ranges)" : ""}`;
  } else if (d.aspect === "values") what = valuesOf(d);
  else if (d.aspect === "vmas" || d.aspect === "kernelVmas") what = vmasOf(d);
  else if (d.aspect === "ptes") what = `pages ${charactersOf(d.expected ?? "", d.actual ?? "")}`;
  else what = `${String(d.where).replace(/^final \S+ /, "")} differ`;
  return `${d.aspect} | ${where} | ${what.length > 150 ? `${what.slice(0, 150)}…` : what}`;
}

/** The first differences of the programs, the most frequent kinds first: `count  description  (programs)`. */
export function firstDifferences(all: readonly Compared[], most: number): string {
  const kinds = new Map<string, string[]>();
  for (const c of all) {
    if (agrees(c)) continue;
    const [first] = counted(c);
    const text = first
      ? describe(first, c.operations)
      : `no result | ${shape(c.failure ?? "")
          .replace(/^operation \d+ /, "operation ")
          .slice(0, 200)}`;
    const at = first ? `${c.name}:${first.where}` : c.name;
    kinds.set(text, [...(kinds.get(text) ?? []), at]);
  }
  return [...kinds]
    .sort(([, a], [, b]) => b.length - a.length)
    .slice(0, most)
    .map(
      ([text, at]) =>
        `${String(at.length).padStart(4)}  ${text}   (${at.slice(0, 3).join(", ")}${at.length > 3 ? ", …" : ""})`,
    )
    .join("\n");
}

/** One program in detail: every difference, with its operation. */
export function details(c: Compared): string {
  const lines = [`${c.name}: ${c.failure ?? `${c.differences.length} differences`}`];
  for (const d of c.differences) {
    const operation = typeof d.where === "number" ? ` ${JSON.stringify(c.operations[d.where])}` : "";
    lines.push(`  ${d.aspect} at ${d.where}${operation}`);
    lines.push(`    expected ${(d.expected ?? "nothing").replaceAll("\n", "\n             ")}`);
    lines.push(`    actual   ${(d.actual ?? "nothing").replaceAll("\n", "\n             ")}`);
  }
  return lines.join("\n");
}
