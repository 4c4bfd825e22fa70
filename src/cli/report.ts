/** What `bifolio mirror` tells: as an object, and as text for people. */
import type { HasherReport } from "./agent.ts";
import type { RunResults } from "./run.ts";

/** The object of `mirror --json`. */
export interface MirrorReport {
  readonly file: string;
  readonly bytes: number;
  /** Of the file, through a plain stream. */
  readonly sha256: string;
  /** Every agent saw these bytes, in each pass, and nothing stale anywhere. */
  readonly coherent: boolean;
  readonly budgetBytes: number;
  readonly peakFrameBytes: number;
  /** Of the whole process. */
  readonly peakRssBytes: number;
  /** From the moment when all agents are there to the last hash. */
  readonly seconds: number;
  /** Bytes of the file hashed by all agents together. */
  readonly bytesPerSecond: number;
  readonly passes: number;
  readonly agents: readonly AgentReport[];
  /** Invalidations raised, by event. */
  readonly events: Readonly<Record<string, number>>;
  readonly faults: { readonly minor: number; readonly major: number; readonly cow: number };
  readonly evictions: number;
  readonly churnOperations: number;
}

interface AgentReport {
  readonly name: string;
  /** Of the first pass that differs from the file, else of all. */
  readonly sha256: string;
  readonly hits: number;
  readonly fills: number;
  readonly retries: number;
  readonly invalidations: number;
  readonly staleBytes: number;
}

export interface ReportInput {
  readonly file: string;
  readonly bytes: number;
  readonly sha256: string;
  readonly passes: number;
  readonly peakRssBytes: number;
  readonly results: RunResults;
}

export function makeReport({
  file,
  bytes,
  sha256,
  passes,
  peakRssBytes,
  results,
}: ReportInput): MirrorReport {
  const { reports, seconds, stats, churnOperations } = results;
  const agents = reports.map((report) => agentReport(report, sha256));
  return {
    file,
    bytes,
    sha256,
    coherent: agents.every((agent) => agent.sha256 === sha256 && agent.staleBytes === 0),
    budgetBytes: stats.frames.total * stats.pageSize,
    peakFrameBytes: stats.frames.peak * stats.pageSize,
    peakRssBytes,
    seconds,
    bytesPerSecond: Math.round((bytes * passes * agents.length) / seconds),
    passes,
    agents,
    events: stats.events,
    faults: stats.faults,
    evictions: stats.evictions,
    churnOperations,
  };
}

function agentReport(report: HasherReport, expected: string): AgentReport {
  const { name, sha256, hits, fills, retries, invalidations, staleBytes } = report;
  const shown = sha256.find((hash) => hash !== expected) ?? expected;
  return { name, sha256: shown, hits, fills, retries, invalidations, staleBytes };
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** "64 MiB", "1.5 GiB", "917 B". */
export function formatBytes(bytes: number): string {
  let unit = 0;
  let n = bytes;
  for (; n >= 1024 && unit < UNITS.length - 1; unit++) n /= 1024;
  const digits = n >= 100 || Math.round(n * 10) % 10 === 0 ? 0 : 1;
  return `${n.toFixed(digits)} ${UNITS[unit]}`;
}

const formatCount = (n: number): string => n.toLocaleString("en-US");

/** Columns, the first to the left, the others to the right. */
function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join("  ")
      .trimEnd(),
  );
}

/** The report for people, without a final newline. */
export function formatReport(report: MirrorReport): string {
  const { agents, coherent, faults } = report;
  const verdict = coherent
    ? `coherent: ${agents.length} ${agents.length === 1 ? "mirror" : "mirrors"} saw the file's bytes in each of ${passesOf(report)}`
    : "NOT COHERENT: a mirror saw bytes that are not the file's";
  const events = Object.entries(report.events).filter(([, count]) => count > 0);
  const facts = [
    ["file", `${report.file} (${formatBytes(report.bytes)})`],
    ["sha256", report.sha256],
    ["speed", `${formatBytes(report.bytesPerSecond)}/s by all agents, ${report.seconds.toFixed(2)} s`],
    [
      "memory",
      `budget ${formatBytes(report.budgetBytes)}, frames at most ${formatBytes(report.peakFrameBytes)}, process ${formatBytes(report.peakRssBytes)}`,
    ],
    [
      "faults",
      `${formatCount(faults.minor)} minor, ${formatCount(faults.major)} major, ${formatCount(faults.cow)} copy-on-write`,
    ],
    ["evictions", `${formatCount(report.evictions)} pages`],
    ["churn", `${formatCount(report.churnOperations)} operations`],
    ["events", events.map(([name, count]) => `${name} ${formatCount(count)}`).join(", ") || "none"],
  ] as const;
  const lines = facts.map(([name, value]) => `  ${name.padEnd(10)}  ${value}`);
  const rows = agents.map((agent) => [
    agent.name,
    agent.sha256 === report.sha256 ? "equal" : "DIFFERS",
    formatCount(agent.staleBytes),
    formatCount(agent.hits),
    formatCount(agent.fills),
    formatCount(agent.retries),
    formatCount(agent.invalidations),
  ]);
  const head = ["agent", "hash", "stale bytes", "hits", "fills", "retries", "invalidations"];
  return [verdict, "", ...lines, "", ...table([head, ...rows]).map((line) => `  ${line}`)].join("\n");
}

const passesOf = ({ passes }: MirrorReport): string => (passes === 1 ? "one pass" : `${passes} passes`);
