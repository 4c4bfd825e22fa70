/** The mirror command as a whole: real workers, a file larger than the budget, mappings that change meanwhile. */
import { createHash } from "node:crypto";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { MirrorReport } from "../../src/cli/report.ts";
import { run, RunFailed, type RunOptions } from "../../src/cli/run.ts";
import { bifolio, type Running, start } from "../lib/command.ts";

const MIB = 1024 ** 2;
/** Neither a whole number of pages nor of windows. */
const BYTES = 6 * MIB + 12_345;

let folder = "";
let file = "";
let sha256 = "";

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "bifolio-mirror-test-"));
  file = join(folder, "noise.bin");
  const words = new Int32Array(Math.ceil(BYTES / 4));
  for (let n = 0, state = 1; n < words.length; n++) {
    state = Math.imul(state, 1664525) + 1013904223;
    words[n] = state;
  }
  const bytes = new Uint8Array(words.buffer, 0, BYTES);
  writeFileSync(file, bytes);
  sha256 = createHash("sha256").update(bytes).digest("hex");
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function mirror(...args: string[]): Promise<MirrorReport> {
  const { code, stdout, stderr } = await bifolio("mirror", file, "--json", ...args);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout.trimEnd()).not.toContain("\n");
  return JSON.parse(stdout) as MirrorReport;
}

function expectCoherent(report: MirrorReport, agents: number): void {
  expect(report).toMatchObject({ file, bytes: BYTES, sha256, coherent: true });
  expect(report.agents).toHaveLength(agents);
  for (const agent of report.agents) expect(agent).toMatchObject({ sha256, staleBytes: 0 });
  expect(report.peakFrameBytes).toBeLessThanOrEqual(report.budgetBytes);
}

/** Resolves once a process has mirrored for a while. */
const aWhile = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1500));

describe("every mirror sees the file's bytes", () => {
  test("while mappings change and pages are evicted", async () => {
    const args = ["--budget", "1MiB", "--agents", "3", "--passes", "4", "--churn", "1000", "--seed", "7"];
    const report = await mirror(...args);
    expectCoherent(report, 3);
    expect(report.agents.map(({ name }) => name)).toEqual(["main", "worker 1", "worker 2"]);
    for (const { hits, fills, retries, invalidations } of report.agents) {
      expect(hits).toBeGreaterThan(4 * fills);
      expect(retries).toBeLessThan(fills);
      expect(invalidations).toBeGreaterThan(0);
    }
    expect(report.passes).toBe(4);
    expect(report.budgetBytes).toBe(MIB);
    expect(report.evictions).toBeGreaterThan(0);
    expect(report.churnOperations).toBeGreaterThan(100);
    expect(report.events["UNMAP"]).toBeGreaterThan(0);
    expect(report.events["CLEAR"]).toBeGreaterThan(0);
    expect(report.events["PROTECTION_VMA"]).toBeGreaterThan(0);
    expect(report.faults.cow).toBeGreaterThan(0);
    expect(report.peakRssBytes).toBeGreaterThan(report.budgetBytes);
    expect(report.bytesPerSecond).toBeGreaterThan(0);
  });

  test("with all checks of the memory on", async () => {
    expectCoherent(await mirror("--budget", "1MiB", "--passes", "1", "--churn", "500", "--debug"), 3);
  });

  test("without churn, in one agent", async () => {
    const report = await mirror("--budget", "2MiB", "--agents", "1", "--churn", "0");
    expectCoherent(report, 1);
    expect(report).toMatchObject({ churnOperations: 0, passes: 2 });
    expect(report.events["UNMAP"]).toBe(0);
  });

  test("through the smallest budget", async () => {
    expectCoherent(await mirror("--budget", "128KiB", "--agents", "2", "--passes", "1"), 2);
  });

  test("where the budget would hold the file, through half of it unless told otherwise", async () => {
    const report = await mirror("--passes", "1");
    expectCoherent(report, 3);
    expect(report.budgetBytes).toBeLessThan(BYTES);
    expect(report.evictions).toBeGreaterThan(0);
    expect((await mirror("--passes", "1", "--budget", "64MiB")).budgetBytes).toBe(64 * MIB);
  });

  test("and the report says so to people", async () => {
    const { code, stdout, stderr } = await bifolio("mirror", file, "--budget", "1MiB", "--passes", "1");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/^coherent: 3 mirrors/);
    expect(stdout).toContain(sha256);
  });
});

describe("the end before the end", () => {
  /** Temporary folders of runs. */
  const leftovers = (): string[] => readdirSync(tmpdir()).filter((name) => /^bifolio-mirror-[^t]/.test(name));

  const endless = (path: string, ...args: string[]): Running =>
    start(["mirror", path, "--budget", "1MiB", "--passes", "1000", ...args]);

  test.skipIf(process.platform === "win32").each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("%s ends it with %i", async (signal, exitCode) => {
    const before = leftovers();
    const running = endless(file, "--json");
    await aWhile();
    running.process.kill(signal);
    expect(await running.ended).toEqual({ code: exitCode, stdout: "", stderr: "bifolio: interrupted\n" });
    expect(leftovers()).toEqual(before);
  });

  test("a file that shrinks gives a BusError", async () => {
    const shrinking = join(folder, "shrinking.bin");
    writeFileSync(shrinking, Buffer.alloc(BYTES, 1));
    for (const args of [[], ["--json"]]) {
      const running = endless(shrinking, ...args);
      await aWhile();
      truncateSync(shrinking, MIB);
      const { code, stdout, stderr } = await running.ended;
      expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
      expect(stderr).toMatch(/^bifolio: [^\n]*shrank from 6303801 to 1048576 bytes[^\n]*BusError[^\n]*\n$/);
      truncateSync(shrinking, BYTES);
    }
  });

  test("a file that changes is not compared", async () => {
    const changing = join(folder, "changing.bin");
    writeFileSync(changing, Buffer.alloc(BYTES, 1));
    const running = start(["mirror", changing, "--budget", "1MiB", "--passes", "40"]);
    // When it opens the file nobody outside can see: change it again and again, so that one change comes after that.
    const fd = openSync(changing, "r+");
    let value = 0;
    const changes = setInterval(() => writeSync(fd, Buffer.alloc(1, ++value), 0, 1, 3 * MIB), 50);
    const ended = await running.ended;
    clearInterval(changes);
    closeSync(fd);
    const { code, stdout, stderr } = ended;
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(/^bifolio: [^\n]*changing.bin changed while it was mirrored[^\n]*\n$/);
  });

  test("a worker that dies ends it with a sentence that says which", async () => {
    const script = join(folder, "dies.mjs");
    writeFileSync(script, "setTimeout(() => process.exit(3), 50);");
    const options: RunOptions = {
      path: file,
      budgetBytes: MIB,
      agents: 2,
      passes: 1,
      churn: 0,
      seed: 1,
      debug: false,
      workerUrl: pathToFileURL(script),
      progress: () => {},
    };
    const error: unknown = await run(options).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(RunFailed);
    expect((error as RunFailed).message).toBe("worker 1 died: its thread ended with exit code 3");
    writeFileSync(script, 'throw new Error("out of luck");');
    await expect(run(options)).rejects.toThrow("worker 1 died: out of luck");
  });
});
