/** `bifolio check` as a process of its own. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { bifolio } from "../../lib/command.ts";
import { ROOT } from "../../lib/sources.ts";

const EXIT_FOUND = 1;
const EXIT_USAGE = 2;

vi.setConfig({ testTimeout: 60_000 });

let folder = "";

/** Writes a module that imports scenario() and says the rest; gives its path. */
function module(name: string, body: string): string {
  const path = join(folder, `${name}.mjs`);
  const check = pathToFileURL(join(ROOT, "dist/check.js")).href;
  writeFileSync(path, `import { PAGE, scenario } from ${JSON.stringify(check)};\n${body}\n`);
  return path;
}

const MODELS = `
const model = (asks) => scenario({
  name: asks ? "right" : "wrong",
  setup(world) {
    const space = world.space();
    const device = world.device(space);
    const invalidate = (self, range, curSeq) => {
      self.setSeq(curSeq);
      device.unmap(range.start, range.end);
    };
    return { space, device, interval: space.notifiers.sync.insert({ invalidate }, 0, PAGE) };
  },
  agents: {
    async driver({ space, device, interval }) {
      for (;;) {
        const seq = await interval.readBegin();
        const translation = await space.fault(0, "r");
        if (asks && interval.readRetry(seq)) continue;
        device.map(0, translation);
        return;
      }
    },
    async mm({ space }) {
      console.log("a module may print");
      await space.dontneed(0, PAGE);
    },
  },
});
export const wrong = model(false);
export const right = model(true);
`;

let models = "";

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "bifolio-check-"));
  models = module("models", MODELS);
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Report {
  found: boolean;
  scenarios: {
    scenario: string;
    complete: boolean;
    violations: { rule: string; schedule: string; link: string; trace: unknown[] }[];
  }[];
}

async function json(...args: string[]): Promise<{ code: number | string; report: Report }> {
  const { code, stdout } = await bifolio("check", ...args, "--json");
  return { code, report: JSON.parse(stdout) as Report };
}

describe.concurrent("a module with a wrong scenario and a right one", () => {
  test("exits with 1 and prints the schedule", async () => {
    const { code, stdout } = await bifolio("check", models);
    expect(code).toBe(EXIT_FOUND);
    expect(stdout).toContain("✓ right: nothing found; every schedule that makes a difference has been run");
    expect(stdout).toMatch(/✗ wrong: \d rules broken/);
    expect(stdout).toContain("docs/notifiers.md#make-nothing-while-a-range-is-open");
    expect(stdout).toMatch(/ driver +mm +pages, sequence, devices/);
    expect(stdout).not.toContain("a module may print");
  });

  test("exits with 0 where only the right one is explored", async () => {
    const { code, report } = await json(models, "--scenario", "right");
    expect(code).toBe(0);
    expect(report.found).toBe(false);
    expect(report.scenarios.map(({ scenario, complete }) => [scenario, complete])).toEqual([["right", true]]);
  });

  test("says how to replay, and that works", async () => {
    const { stdout } = await bifolio("check", models, "--scenario", "wrong", "--depth", "100");
    const [, line] = /replay: bifolio (.*)$/m.exec(stdout)!;
    expect(line).toContain("--scenario wrong --depth 100 --replay ");
    const again = await bifolio(...line!.split(" "));
    expect(again.code).toBe(EXIT_FOUND);
  });

  test("replays what it has found", async () => {
    const { report } = await json(models, "--scenario", "wrong");
    const { rule, schedule, trace } = report.scenarios[0]!.violations[0]!;
    expect(trace.length).toBeGreaterThan(0);
    const again = await bifolio("check", models, "--scenario", "wrong", "--replay", schedule);
    expect(again.code).toBe(EXIT_FOUND);
    expect(again.stdout).toContain(`✗ ${rule}`);
  });

  test.each(["plain", "reduced", "random", "pct"])("finds it in mode %s", async (mode) => {
    const { code, report } = await json(models, "--scenario", "wrong", "--mode", mode);
    expect(code).toBe(EXIT_FOUND);
    expect(report.scenarios[0]!.violations.length).toBeGreaterThan(0);
  });

  test("the same seed gives the same report", async () => {
    const seeded = async (): Promise<unknown> =>
      (await json(models, "--scenario", "wrong", "--mode", "random", "--seed", "7")).report.scenarios[0]!
        .violations;
    expect(await seeded()).toEqual(await seeded());
  });

  test("writes a page", async () => {
    const page = join(folder, "report.html");
    await bifolio("check", models, "--html", page);
    const html = readFileSync(page, "utf8");
    expect(html).toContain("<h2>wrong</h2>");
    expect(html).toContain("install-while-open");
    expect(html).not.toMatch(/<script|https?:/);
  });
});

describe.concurrent("bad input", () => {
  test.each([
    ["no scenario", "export const x = 1;", /exports no scenario/],
    ["syntax", "this is no module", /cannot be imported/],
    ["a throw at import", `throw new Error("no luck");`, /cannot be imported: no luck/],
    [
      "a throw in setup",
      `export default scenario({ setup() { throw new Error("no disk"); }, agents: [function* a() {}] });`,
      /setup threw: no disk/,
    ],
    [
      "an endless step",
      `export default scenario({ setup() {}, agents: [function* a() { for (;;); }] });`,
      /nothing for 2 s: an import, a setup or a step of an agent never ends/,
    ],
    [
      "a setup that never ends",
      `export default scenario({ setup: () => new Promise(() => {}), agents: [function* a() {}] });`,
      /awaits something that never comes/,
    ],
    [
      "chance",
      `let n = 0;
       export default scenario({
         setup: () => n++,
         agents: [function* a(most, world) { for (let k = 0; k < most; k++) yield* world.point(); }],
       });`,
      /it is not deterministic: its first schedule, run twice/,
    ],
    [
      "a call that is left alone",
      `export default scenario({
         setup: (world) => world.space(),
         agents: [function* a(space) { space.munmap(0, PAGE); }],
       });`,
      /munmap\(\) was called, and neither awaited nor given to yield\*/,
    ],
    ["no agents", `export default scenario({ setup() {}, agents: [] });`, /it needs 1 to 12 agents/],
    ["an end of its own", `process.exit(3);`, /ended the thread \(exit code 3\)/],
  ])("%s", async (name, body, sentence) => {
    const { code, stdout, stderr } = await bifolio(
      "check",
      module(name.replaceAll(" ", "-"), body),
      "--timeout",
      "2",
    );
    expect(stderr).toMatch(/^bifolio: [^\n]+\n$/);
    expect(stderr).toMatch(sentence);
    expect({ code, stdout }).toEqual({ code: EXIT_USAGE, stdout: "" });
  });

  test.each([
    [["nothing.mjs"], /there is no such file/],
    [["--schedules", "0"], /must be a whole number/],
    [["--mode", "fast"], /must be one of exhaustive/],
    [["--scenario", "what"], /has no scenario "what"; it has right, wrong|it has wrong, right/],
    [["--replay", "0*"], /--replay needs --scenario/],
    [["--scenario", "wrong", "--replay", "0*"], /is no schedule/],
    [["--scenario", "wrong", "--replay", "zz"], /the schedule does not fit/],
  ])("%s", async (args, sentence) => {
    const { code, stdout, stderr } = await bifolio(
      "check",
      ...(args[0] === "nothing.mjs" ? [] : [models]),
      ...args,
    );
    expect(stderr).toMatch(sentence);
    expect(stderr).not.toMatch(/\bat .*:\d+:\d+/);
    expect({ code, stdout }).toEqual({ code: EXIT_USAGE, stdout: "" });
  });
});
