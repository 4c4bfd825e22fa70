/** `bifolio program run` as a process: what it writes, and what it says where something is wrong. */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { bifolio, type Ended, start } from "../../lib/command.ts";

const EXIT_FAILED = 1;
const EXIT_USAGE = 2;
/** Some user who is not root, whom no file mode holds back. */
const NOBODY = 65534;

const HEADER = '{"format":"mm-program","version":1,"pages":8}';
const MMAP = '{"op":"mmap","at":0,"len":2,"prot":"rw","share":"private"}';
const STORE = '{"op":"store","at":1,"off":4,"value":7}';
const LOAD = '{"op":"load","at":1,"off":4}';
const PROGRAM = `${[HEADER, "// a comment", "", MMAP, STORE, LOAD].join("\n")}\n`;

// Each starts a process or two, on a machine that may be busy.
vi.setConfig({ testTimeout: 60_000 });

let folder = "";
const at = (name: string): string => join(folder, name);
const run = (...args: string[]): Promise<Ended> => bifolio("program", "run", ...args);

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "bifolio-program-test-"));
  chmodSync(folder, 0o755);
  writeFileSync(at("good.jsonl"), PROGRAM);
  mkdirSync(at("empty"));
  mkdirSync(at("many"));
  for (const name of ["a.jsonl", "b.jsonl"]) writeFileSync(join(at("many"), name), PROGRAM);
  // Neither is a program.
  for (const name of ["a.expected.jsonl", "a.actual.jsonl", "notes.txt"]) {
    writeFileSync(join(at("many"), name), "not a program");
  }
  writeFileSync(at("secret.jsonl"), PROGRAM, { mode: 0o000 });
  mkdirSync(at("locked"), { mode: 0o555 });
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

function expectSentence({ code, stdout, stderr }: Ended, exitCode: number, what: RegExp): void {
  expect(stderr).toMatch(/^bifolio: [^\n]+\n$/);
  expect(stderr).toMatch(what);
  expect(stderr).not.toMatch(/\bat .*:\d+:\d+/);
  expect({ code, stdout }).toEqual({ code: exitCode, stdout: "" });
}

const linesOf = (text: string): Record<string, unknown>[] =>
  text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);

describe.concurrent("results", () => {
  test("of one program go to standard output", async () => {
    const { code, stdout, stderr } = await run(at("good.jsonl"));
    expect(code).toBe(0);
    expect(stderr).toMatch(/^bifolio: 1 program, 3 operations in [\d.]+ s\n$/);
    const lines = linesOf(stdout);
    expect(lines.slice(0, -1)).toEqual([
      { format: "mm-result", version: 1, program: "good", pages: 8, recordedOn: "bifolio" },
      { i: 0, result: 0, events: [] },
      { i: 1, result: 0, events: [] },
      { i: 2, result: 0, value: 7, events: [] },
    ]);
    expect(lines.at(-1)).toMatchObject({
      final: { p0: { merged: [{ start: 0, end: 2, perms: "rw-p", file: null }], ptes: ".a......" } },
      files: {},
    });
  });

  test("of a directory go to another one, one file each", async () => {
    const out = at("results");
    const { code, stdout, stderr } = await run(at("many"), "--out", out, "--debug");
    expect({ code, stdout }).toEqual({ code: 0, stdout: "" });
    expect(stderr).toMatch(/^bifolio: 2 programs, 6 operations in [\d.]+ s, results in [^\n]+\n$/);
    expect(readdirSync(out).toSorted()).toEqual(["a.actual.jsonl", "b.actual.jsonl"]);
    expect(linesOf(readFileSync(join(out, "a.actual.jsonl"), "utf8"))).toHaveLength(5);
  });
});

describe.concurrent("what cannot be run", () => {
  test("a missing file", async () => {
    expectSentence(await run(at("nothing.jsonl")), EXIT_FAILED, /nothing\.jsonl: there is no such file/);
  });

  test("a directory without programs", async () => {
    expectSentence(await run(at("empty")), EXIT_FAILED, /empty: there is no program in it/);
  });

  test("several programs without a place for their results", async () => {
    expectSentence(await run(at("many")), EXIT_USAGE, /2 programs need --out/);
  });

  test("two programs of one name", async () => {
    const twice = [at("good.jsonl"), at("good.jsonl")];
    expectSentence(await run(...twice, "--out", at("twice")), EXIT_USAGE, /have the same name/);
    expect(existsSync(at("twice"))).toBe(false);
  });

  test("no path at all", async () => {
    expectSentence(await run(), EXIT_USAGE, /missing required argument/);
  });

  test("an unknown option", async () => {
    expectSentence(await run(at("good.jsonl"), "--fast"), EXIT_USAGE, /unknown option '--fast'/);
  });

  test("a file in the place of the directory for results", async () => {
    const ended = await run(at("good.jsonl"), "--out", at("good.jsonl"));
    expectSentence(ended, EXIT_FAILED, /good\.jsonl: it is not a directory/);
    const below = await run(at("good.jsonl"), "--out", join(at("good.jsonl"), "below"));
    expectSentence(below, EXIT_FAILED, /it is not a directory/);
  });

  test.skipIf(process.platform === "win32")("what nobody but another may read or write", async () => {
    const uid = process.getuid?.() === 0 ? NOBODY : undefined;
    const asNobody = (...args: string[]): Promise<Ended> => start(["program", "run", ...args], uid).ended;
    expectSentence(await asNobody(at("secret.jsonl")), EXIT_FAILED, /secret\.jsonl: permission denied/);
    const inside = await asNobody(at("good.jsonl"), "--out", at("locked"));
    expectSentence(inside, EXIT_FAILED, /good\.actual\.jsonl: permission denied/);
    const below = await asNobody(at("good.jsonl"), "--out", join(at("locked"), "below"));
    expectSentence(below, EXIT_FAILED, /below: permission denied/);
  });

  test("a program that is none, with file and line, before any other is run", async () => {
    writeFileSync(at("bad.jsonl"), `${HEADER}\n${MMAP}\n{"op":"fly"}\n`);
    const ended = await run(at("good.jsonl"), at("bad.jsonl"), "--out", at("none"));
    expectSentence(ended, EXIT_USAGE, /bad\.jsonl: line 3: there is no operation "fly"/);
    expect(existsSync(at("none"))).toBe(false);
  });
});
