import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { interleave } from "../../../bench/lib/interleave.mjs";
import { alignColumns, significant } from "../../../bench/lib/table.mjs";

const bench = fileURLToPath(new URL("../../../bench/", import.meta.url));
const run = (...args: string[]): ReturnType<typeof spawnSync> =>
  spawnSync(process.execPath, [`${bench}run.mjs`, ...args], { encoding: "utf8" });

test("an unknown row is one sentence that names the rows, and exit code 2", () => {
  const { status, stdout, stderr } = run("no-such-row", "--json");
  expect(status).toBe(2);
  expect(stdout).toBe("");
  expect(String(stderr).trim().split("\n")).toHaveLength(1);
  for (const file of readdirSync(`${bench}rows`)) expect(stderr).toContain(file.replace(".mjs", ""));
});

test("an unknown option is exit code 2", () => {
  expect(run("--no-such-option").status).toBe(2);
});

test("every variant runs once per repetition, and warm-ups do not count", async () => {
  const order: string[] = [];
  const samples = await interleave(
    {
      a: () => order.push("a"),
      b: async () => order.push("b"),
    },
    { repetitions: 3, warmUps: 1 },
  );
  expect(order.join("")).toBe("baabbaab");
  expect(samples).toEqual({ a: [3, 6, 7], b: [4, 5, 8] });
});

test("figures keep three digits", () => {
  expect([0, 0.01234, 1.2345, 12.345, 123.45, 12345].map(significant)).toEqual([
    "0",
    "0.0123",
    "1.23",
    "12.3",
    "123",
    "12345",
  ]);
});

test("columns of a table are as wide as their widest cell", () => {
  expect(
    alignColumns([
      ["row", "ratio"],
      ["a long name", "1"],
    ]),
  ).toEqual(["row         | ratio", "------------|------", "a long name | 1"]);
});
