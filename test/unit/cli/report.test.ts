import { describe, expect, test } from "vitest";
import type { HasherReport } from "../../../src/cli/agent.ts";
import { formatBytes, formatReport, makeReport, type ReportInput } from "../../../src/cli/report.ts";
import type { MemoryStats } from "../../../src/mm/index.ts";

const RIGHT = "a".repeat(64);
const WRONG = "b".repeat(64);

const hasher = (more: Partial<HasherReport> = {}): HasherReport => ({
  name: "main",
  sha256: [RIGHT, RIGHT],
  hits: 1234,
  fills: 5,
  retries: 1,
  invalidations: 2,
  staleBytes: 0,
  ...more,
});

function input(reports: readonly HasherReport[]): ReportInput {
  const stats = {
    pageSize: 4096,
    frames: { total: 256, peak: 200 },
    faults: { minor: 3, major: 2, cow: 1 },
    evictions: 7,
    events: { UNMAP: 4, CLEAR: 0 },
  } as unknown as MemoryStats;
  const results = { reports, seconds: 2, stats, churnOperations: 9 };
  return { file: "data.bin", bytes: 3_000_000, sha256: RIGHT, passes: 2, peakRssBytes: 1e8, results };
}

describe("the report", () => {
  test("has these fields", () => {
    expect(makeReport(input([hasher(), hasher({ name: "worker 1" })]))).toMatchInlineSnapshot(`
      {
        "agents": [
          {
            "fills": 5,
            "hits": 1234,
            "invalidations": 2,
            "name": "main",
            "retries": 1,
            "sha256": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "staleBytes": 0,
          },
          {
            "fills": 5,
            "hits": 1234,
            "invalidations": 2,
            "name": "worker 1",
            "retries": 1,
            "sha256": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "staleBytes": 0,
          },
        ],
        "budgetBytes": 1048576,
        "bytes": 3000000,
        "bytesPerSecond": 6000000,
        "churnOperations": 9,
        "coherent": true,
        "events": {
          "CLEAR": 0,
          "UNMAP": 4,
        },
        "evictions": 7,
        "faults": {
          "cow": 1,
          "major": 2,
          "minor": 3,
        },
        "file": "data.bin",
        "passes": 2,
        "peakFrameBytes": 819200,
        "peakRssBytes": 100000000,
        "seconds": 2,
        "sha256": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
      }
    `);
  });

  test.each([
    ["the hash of the last pass", { sha256: [RIGHT, WRONG] }],
    ["the hash of a pass before that", { sha256: [WRONG, RIGHT] }],
    ["a stale byte", { staleBytes: 1 }],
  ])("is not coherent for %s", (_, more) => {
    const report = makeReport(input([hasher(), hasher(more)]));
    expect(report.coherent).toBe(false);
    expect(report.agents[1]!.sha256).toBe("sha256" in more ? WRONG : RIGHT);
    expect(formatReport(report)).toMatch(/^NOT COHERENT/);
  });

  test("for people", () => {
    expect(formatReport(makeReport(input([hasher(), hasher({ name: "worker 1", hits: 12 })]))))
      .toMatchInlineSnapshot(`
      "coherent: 2 mirrors saw the file's bytes in each of 2 passes

        file        data.bin (2.9 MiB)
        sha256      aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
        speed       5.7 MiB/s by all agents, 2.00 s
        memory      budget 1 MiB, frames at most 800 KiB, process 95.4 MiB
        faults      3 minor, 2 major, 1 copy-on-write
        evictions   7 pages
        churn       9 operations
        events      UNMAP 4

        agent      hash  stale bytes   hits  fills  retries  invalidations
        main      equal            0  1,234      5        1              2
        worker 1  equal            0     12      5        1              2"
    `);
  });
});

test("bytes for people", () => {
  expect(
    [0, 917, 1024, 1536, 64 * 1024 ** 2, 64 * 1024 ** 2 - 1, 123456789, 1.5 * 1024 ** 3].map(formatBytes),
  ).toEqual(["0 B", "917 B", "1 KiB", "1.5 KiB", "64 MiB", "64 MiB", "118 MiB", "1.5 GiB"]);
});
