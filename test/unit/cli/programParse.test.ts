import { expect, test } from "vitest";
import { parseProgram, ProgramError } from "../../../src/programEntry.ts";

const HEADER = '{"format":"mm-program","version":1,"pages":8}';
const FILE = '{"op":"file","name":"f0","pages":2}';

test("comments and empty lines are skipped, defaults filled in", () => {
  const { header, operations } = parseProgram(`// about\n\n${HEADER}\n  ${FILE}\r\n{"op":"exit"}`);
  expect(header).toMatchObject({ pages: 8, pagetable: "warm" });
  expect(operations.map(({ op }) => op)).toEqual(["file", "exit"]);
});

test("lines may come one by one", () => {
  const lines = function* (): Generator<string> {
    yield HEADER;
    yield '{"op":"load","at":1}';
  };
  expect(parseProgram(lines()).operations).toEqual([{ op: "load", at: 1 }]);
});

test.each([
  ["", 0, /empty/],
  ["// nothing but a comment", 0, /empty/],
  ["{", 1, /not JSON/],
  ["[]", 1, /not a JSON object/],
  ["null", 1, /not a JSON object/],
  ['{"op":"exit"}', 1, /must be the header/],
  ['{"format":"mm-program","version":2,"pages":8}', 1, /version 2/],
  ['{"format":"mm-program","version":1}', 1, /needs "pages"/],
  ['{"format":"mm-program","version":1,"pages":0}', 1, /from 1 to 512, not 0/],
  ['{"format":"mm-program","version":1,"pages":513}', 1, /from 1 to 512/],
  ['{"format":"mm-program","version":1,"pages":"8"}', 1, /"pages".*whole number/],
  ['{"format":"mm-program","version":1,"pages":8,"pagetable":"hot"}', 1, /"warm", "cold", not "hot"/],
  [`${HEADER}\n${HEADER}`, 2, /needs "op"/],
  [`${HEADER}\n\n{"op":"fly"}`, 3, /no operation "fly"/],
  [`${HEADER}\n{"op":"toString"}`, 2, /no operation "toString"/],
  [`${HEADER}\n{"op":"load","at":1.5}`, 2, /"at" of load must be a whole number, not 1.5/],
  [`${HEADER}\n{"op":"load","at":1e300}`, 2, /"at" of load/],
  [`${HEADER}\n{"op":"load","where":1}`, 2, /load has no field "where"/],
  [`${HEADER}\n{"op":"store","at":1}`, 2, /store needs "value"/],
  [`${HEADER}\n{"op":"mmap","at":1,"len":1}`, 2, /mmap needs "prot"/],
  [`${HEADER}\n{"op":"mmap","at":1,"len":1,"prot":"wr"}`, 2, /"prot" of mmap/],
  [`${HEADER}\n{"op":"mmap","at":1,"len":1,"prot":""}`, 2, /"prot" of mmap/],
  [
    `${HEADER}\n{"op":"mmap","at":1,"len":1,"prot":"r","flags":["huge"]}`,
    2,
    /"flags" of mmap must be a list/,
  ],
  [
    `${HEADER}\n{"op":"mmap","at":1,"len":1,"prot":"r","flags":"populate"}`,
    2,
    /"flags" of mmap must be a list/,
  ],
  [`${HEADER}\n{"op":"mmap","at":1,"len":1,"prot":"r","file":"f0"}`, 2, /no file "f0"/],
  [`${HEADER}\n{"op":"madvise","at":1,"len":1,"advice":"PLEASE"}`, 2, /"advice" of madvise/],
  [`${HEADER}\n{"op":"load","in":"p1"}`, 2, /no process "p1"/],
  [`${HEADER}\n{"op":"fork","as":"p0"}`, 2, /two processes "p0"/],
  [`${HEADER}\n{"op":"exit"}\n{"op":"load"}`, 3, /"p0" has exited/],
  [`${HEADER}\n{"op":"load"}\n${FILE}`, 3, /before everything else/],
  [`${HEADER}\n${FILE}\n${FILE}`, 3, /two files "f0"/],
  [`${HEADER}\n{"op":"file","name":"f0","pages":-1}`, 2, /"pages" of file/],
  [`${HEADER}\n{"op":"file","name":"f0","pages":1,"kind":"disk","fill":null}`, 2, /"disk" needs a number/],
  [`${HEADER}\n{"op":"pagemap","at":4,"len":5}`, 2, /inside the window of 8 pages/],
] as const)("%j is refused", (text, line, what) => {
  let error: unknown;
  try {
    parseProgram(text);
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toBeInstanceOf(ProgramError);
  expect((error as ProgramError).line).toBe(line);
  expect((error as ProgramError).message).toMatch(what);
  expect((error as ProgramError).message).not.toContain("\n");
});

test("no more than eight files and eight processes", () => {
  const file = (n: number): string => `{"op":"file","name":"f${n}","pages":1}`;
  const files = Array.from({ length: 9 }, (_, n) => file(n));
  expect(() => parseProgram([HEADER, ...files.slice(0, 8)])).not.toThrow();
  expect(() => parseProgram([HEADER, ...files])).toThrow(/line 10: there are more than 8 files/);
  const forks = Array.from({ length: 8 }, (_, n) => `{"op":"fork","as":"p${n + 1}"}`);
  expect(() => parseProgram([HEADER, ...forks.slice(0, 7)])).not.toThrow();
  expect(() => parseProgram([HEADER, ...forks])).toThrow(/line 9: there are more than 8 processes/);
});
