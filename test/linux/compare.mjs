#!/usr/bin/env node
// Compares mm-program results (see FORMAT.md).
//
//   node compare.mjs EXPECTED.jsonl ACTUAL.jsonl [--program PROGRAM.jsonl]   first difference, with context; exit 1
//   node compare.mjs --summary DIR_A DIR_B [--list]                         agreement over two directories
// Options: --aspects a,b,c restricts the comparison to some aspects; --default excludes the two that need
// an exact model of Linux's VMA merging and page tables (kernelVmas, ptes).
//
// Aspects: results, values (loaded values, signals, si_codes, mincore and pagemap strings), events (per
// process, in order), eventSet (the same, ignoring order), vmas (merged), kernelVmas, ptes, contents, files.
import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";

export const ASPECTS = [
  "results",
  "values",
  "events",
  "eventSet",
  "vmas",
  "kernelVmas",
  "ptes",
  "contents",
  "files",
];

export function parse(text) {
  const lines = text
    .split("\n")
    .filter(Boolean)
    .map((l) => JSON.parse(l));
  const last = lines[lines.length - 1];
  return { header: lines[0], ops: lines.slice(1, -1), final: last.final ?? {}, files: last.files ?? {} };
}

const J = JSON.stringify;
const ev = (e) => `${e.in}:${e.event}[${e.start},${e.end})`;
// Order is compared per process: between processes one operation's events have no defined order.
const perProcess = (list) => {
  const m = {};
  for (const e of list ?? []) (m[e.in] ??= []).push(ev(e));
  return J(Object.entries(m).sort(([a], [b]) => (a < b ? -1 : 1)));
};
const asSet = (list) => J((list ?? []).map(ev).sort());
const vma = (v, flags) =>
  `[${v.start},${v.end}) ${v.perms} ${v.file ?? "anon"}+${v.file === null ? 0 : v.offset}${v.flags
    .filter((f) => flags || (f !== "ac" && f !== "nr"))
    .map((f) => " " + f)
    .join("")}`;
const values = (o) => J([o.value ?? null, o.values ?? null, o.signal ?? null, o.code ?? null]);

// Returns [{ aspect, where, expected, actual }] in program order.
export function differences(a, b) {
  const out = [],
    add = (aspect, where, expected, actual) => {
      if (expected !== actual) out.push({ aspect, where, expected, actual });
    };
  const n = Math.max(a.ops.length, b.ops.length);
  for (let i = 0; i < n; i++) {
    const x = a.ops[i] ?? { result: "missing" },
      y = b.ops[i] ?? { result: "missing" };
    add("results", i, J(x.result), J(y.result));
    add("values", i, values(x), values(y));
    add("events", i, perProcess(x.events), perProcess(y.events));
    add("eventSet", i, asSet(x.events), asSet(y.events));
  }
  for (const p of [...new Set([...Object.keys(a.final), ...Object.keys(b.final)])].sort()) {
    const x = a.final[p],
      y = b.final[p],
      where = `final ${p}`;
    if (!x || !y) {
      add("vmas", where, x ? "alive" : "absent", y ? "alive" : "absent");
      continue;
    }
    add(
      "vmas",
      where,
      x.merged.map((v) => vma(v, false)).join("\n"),
      y.merged.map((v) => vma(v, false)).join("\n"),
    );
    add(
      "kernelVmas",
      where,
      (x.vmas ?? []).map((v) => vma(v, true)).join("\n"),
      (y.vmas ?? []).map((v) => vma(v, true)).join("\n"),
    );
    add("ptes", where, x.ptes, y.ptes);
    for (const k of ["contents", "zero", "faults"]) add("contents", `${where} ${k}`, J(x[k]), J(y[k]));
  }
  for (const f of [...new Set([...Object.keys(a.files), ...Object.keys(b.files)])].sort())
    add("files", f, J(a.files[f]), J(b.files[f]));
  return out;
}

function show(d, a, b, program) {
  const text = [`${d.aspect} differ at ${typeof d.where === "number" ? `operation ${d.where}` : d.where}`];
  if (typeof d.where === "number") {
    for (let k = Math.max(0, d.where - 3); k <= d.where; k++)
      text.push(
        `  ${k === d.where ? ">" : " "} ${k} ${program ? J(program[k]) : ""} expected ${J({ ...a.ops[k], i: undefined, events: (a.ops[k]?.events ?? []).map(ev) })}`,
      );
    text.push(
      `      actual ${J({ ...b.ops[d.where], i: undefined, events: (b.ops[d.where]?.events ?? []).map(ev) })}`,
    );
  } else
    text.push(
      "  expected:",
      ...String(d.expected)
        .split("\n")
        .map((l) => "    " + l),
      "  actual:",
      ...String(d.actual)
        .split("\n")
        .map((l) => "    " + l),
    );
  return text.join("\n");
}

function resultsIn(dir) {
  const all = readdirSync(dir).filter((f) => f.endsWith(".jsonl"));
  const marked = all.filter((f) => /\.(expected|actual|result)\.jsonl$/.test(f));
  const list = marked.length ? marked : all;
  return new Map(list.map((f) => [f.replace(/(\.(expected|actual|result))?\.jsonl$/, ""), join(dir, f)]));
}

function main() {
  const argv = process.argv.slice(2),
    pos = [];
  let aspects = ASPECTS,
    summary = false,
    list = false,
    program;
  for (let i = 0; i < argv.length; i++) {
    if (argv[i] === "--summary") summary = true;
    else if (argv[i] === "--list") list = true;
    else if (argv[i] === "--aspects") aspects = argv[++i].split(",");
    else if (argv[i] === "--default") aspects = ASPECTS.filter((a) => a !== "kernelVmas" && a !== "ptes");
    else if (argv[i] === "--program")
      program = readFileSync(argv[++i], "utf8")
        .split("\n")
        .filter((l) => l.trim() && !l.trim().startsWith("//"))
        .slice(1)
        .map((l) => JSON.parse(l));
    else pos.push(argv[i]);
  }
  if (pos.length !== 2) {
    console.error(
      "usage: node compare.mjs EXPECTED.jsonl ACTUAL.jsonl [--program PROGRAM.jsonl] | --summary DIR_A DIR_B [--list]   [--aspects a,b | --default]",
    );
    process.exit(64);
  }
  if (!summary) {
    const a = parse(readFileSync(pos[0], "utf8")),
      b = parse(readFileSync(pos[1], "utf8"));
    const all = differences(a, b).filter((d) => aspects.includes(d.aspect));
    if (!all.length) {
      console.log("same");
      return;
    }
    console.log(show(all[0], a, b, program));
    const count = {};
    for (const d of all) count[d.aspect] = (count[d.aspect] ?? 0) + 1;
    console.log(
      `${all.length} differences: ${Object.entries(count)
        .map(([k, v]) => `${k} ${v}`)
        .join(", ")}`,
    );
    process.exit(1);
  }
  const A = resultsIn(pos[0]),
    B = resultsIn(pos[1]);
  let full = 0,
    total = 0;
  const ok = Object.fromEntries(aspects.map((a) => [a, 0])),
    opsOk = Object.fromEntries(ASPECTS.slice(0, 4).map((a) => [a, 0]));
  let ops = 0;
  const missing = [],
    firsts = [];
  for (const [name, path] of [...A].sort(([x], [y]) => (x < y ? -1 : 1))) {
    total++;
    const a = parse(readFileSync(path, "utf8"));
    ops += a.ops.length;
    if (!B.has(name)) {
      missing.push(name);
      continue;
    }
    let all;
    try {
      all = differences(a, parse(readFileSync(B.get(name), "utf8"))).filter((d) =>
        aspects.includes(d.aspect),
      );
    } catch (e) {
      missing.push(`${name} (${e.message})`);
      continue;
    }
    const bad = new Set(all.map((d) => d.aspect));
    for (const k of aspects) if (!bad.has(k)) ok[k]++;
    for (const k of Object.keys(opsOk)) opsOk[k] += a.ops.length - all.filter((d) => d.aspect === k).length;
    if (!bad.size) full++;
    else firsts.push([name, all[0]]);
  }
  const pct = (x, y) => `${x}/${y} (${((100 * x) / Math.max(1, y)).toFixed(1)} %)`;
  console.log(
    `programs that agree fully: ${pct(full, total)}${missing.length ? `, ${missing.length} without a usable result` : ""}`,
  );
  for (const k of aspects)
    console.log(
      `  ${k.padEnd(11)} ${pct(ok[k], total)}${k in opsOk ? `   operations ${pct(opsOk[k], ops)}` : ""}`,
    );
  if (list) {
    for (const [name, d] of firsts) console.log(`${name}: ${d.aspect} at ${d.where}`);
    for (const m of missing) console.log(`${m}: missing`);
  }
  process.exit(full === total ? 0 : 1);
}
if (process.argv[1] && basename(process.argv[1]) === "compare.mjs") main();
