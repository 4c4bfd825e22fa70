/** Every recorded program, run here, does what it did on the kernel. */
import { expect, test } from "vitest";
import { ROOT } from "../lib/sources.ts";
import { compare, type Compared, counted, details, readCorpus } from "./conformance.ts";

const corpus = readCorpus(ROOT);
/** Kept for the last test. */
const done: Compared[] = [];
/** Of the programs, in each aspect that is the kernel's very bookkeeping. */
const EXACT_SHARE = 0.99;

test.each(corpus)("$name", async (program) => {
  const compared = await compare(program, { debug: true, check: true });
  done.push(compared);
  expect(compared.failure).toBeUndefined();
  expect(counted(compared), details(compared)).toEqual([]);
});

test.each(["kernelVmas", "ptes"])("%s agree in nearly all of them", (aspect) => {
  const wrong = done.filter(({ differences }) => differences.some((d) => d.aspect === aspect));
  expect(done.length).toBe(corpus.length);
  expect(wrong.length, wrong.map(details).join("\n")).toBeLessThanOrEqual(corpus.length * (1 - EXACT_SHARE));
});

test("a difference is noticed", async () => {
  const program = corpus.find(({ name }) => name === "munmap-middle")!;
  const expected = program.expected.replace('"event":"UNMAP","start":', '"event":"UNMAP","start":9');
  expect(expected).not.toBe(program.expected);
  const compared = await compare({ ...program, expected });
  expect(counted(compared).map(({ aspect }) => aspect)).toEqual(expect.arrayContaining(["events"]));
});
