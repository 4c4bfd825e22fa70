/** Whatever is wrong: one sentence on standard error, nothing on standard output, an exit code, no stack trace. */
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { bifolio, type Ended, start } from "../../lib/command.ts";
import { ROOT } from "../../lib/sources.ts";

const EXIT_FAILED = 1;
const EXIT_USAGE = 2;
/** Some user who is not root, whom no file mode holds back. */
const NOBODY = 65534;

// Each starts a process or two, on a machine that may be busy.
vi.setConfig({ testTimeout: 60_000 });

let folder = "";
const at = (name: string): string => join(folder, name);

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "bifolio-cli-"));
  chmodSync(folder, 0o755);
  writeFileSync(at("data"), "some bytes");
  writeFileSync(at("empty"), "");
  writeFileSync(at("secret"), "some bytes", { mode: 0o000 });
  mkdirSync(at("folder"));
  if (process.platform !== "win32") execFileSync("mkfifo", [at("pipe")]);
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

function expectSentence({ code, stdout, stderr }: Ended, exitCode: number, what: RegExp): void {
  expect(stderr).toMatch(/^bifolio: [^\n]+\n$/);
  expect(stderr).toMatch(what);
  expect(stderr).not.toMatch(/\bat .*:\d+:\d+/);
  expect({ code, stdout }).toEqual({ code: exitCode, stdout: "" });
}

describe.concurrent("FILE that cannot be mirrored", () => {
  test.each([
    ["missing", "nothing", /nothing: there is no such file/],
    ["below a file", "data/nothing", /there is no such file/],
    ["empty", "empty", /empty: it is empty/],
    ["a directory", "folder", /folder: it is a directory/],
  ])("%s", async (_, name, what) => {
    for (const json of [[], ["--json"]]) {
      expectSentence(await bifolio("mirror", at(name), ...json), EXIT_FAILED, what);
    }
  });

  test.skipIf(process.platform === "win32")("a pipe, at which nobody writes", async () => {
    expectSentence(await bifolio("mirror", at("pipe")), EXIT_FAILED, /it is not a regular file/);
  });

  test.skipIf(process.platform === "win32")("unreadable", async () => {
    const uid = process.getuid?.() === 0 ? NOBODY : undefined;
    expectSentence(await start(["mirror", at("secret")], uid).ended, EXIT_FAILED, /permission denied/);
  });
});

describe.concurrent("a budget", () => {
  test("below the minimum", async () => {
    const ended = await bifolio("mirror", at("data"), "--budget", "64KiB");
    expectSentence(ended, EXIT_USAGE, /--budget must be at least 128 KiB/);
  });

  test.each(["60GiB", "1024GiB"])("above what the platform gives: %s", async (budget) => {
    expectSentence(await bifolio("mirror", at("data"), "--budget", budget), EXIT_FAILED, /budget/);
  });

  test.each(["lots", "", "-5MiB", "5 parsecs"])("that is no size: %j", async (budget) => {
    const ended = await bifolio("mirror", at("data"), `--budget=${budget}`);
    expectSentence(ended, EXIT_USAGE, /such as "64MiB"/);
  });
});

describe.concurrent("options and arguments", () => {
  test.each([
    [["--agents", "0"], /--agents.*from 1 to 63/],
    [["--agents", "64"], /--agents.*from 1 to 63/],
    [["--agents", "2.5"], /--agents.*whole number/],
    [["--agents", "many"], /--agents/],
    [["--passes", "0"], /--passes.*from 1 to/],
    [["--churn=-1"], /--churn.*from 0 to/],
    [["--churn", "Infinity"], /--churn/],
    [["--seed", "one"], /--seed.*whole number/],
    [["--agents"], /--agents.*argument missing/],
    [["--what"], /unknown option '--what'/],
    [["another"], /too many arguments/],
  ] as const)("%j", async (args, what) => {
    expectSentence(await bifolio("mirror", at("data"), ...args), EXIT_USAGE, what);
  });

  test("an unknown command", async () => {
    expectSentence(await bifolio("shout"), EXIT_USAGE, /unknown command 'shout'/);
  });
});

describe.concurrent("what is asked for by itself", () => {
  test("version and help are printed", async () => {
    const { version } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as { version: string };
    expect(await bifolio("--version")).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
    const help = await bifolio("mirror", "--help");
    expect(help).toMatchObject({ code: 0, stderr: "" });
    for (const option of ["--budget", "--agents", "--passes", "--churn", "--seed", "--json"])
      expect(help.stdout).toContain(option);
  });

  test("no command at all is told how to use it", async () => {
    const { code, stdout, stderr } = await bifolio();
    expect({ code, stdout }).toEqual({ code: EXIT_USAGE, stdout: "" });
    expect(stderr).toContain("Usage: bifolio");
  });
});
