import { describe, expect, test } from "vitest";
import { fnv1a, mergeVmas } from "../../../src/cli/program/state.ts";
import { addressOf, bytesOf, clip, WINDOW_BASE } from "../../../src/cli/program/window.ts";
import {
  LocalProcess,
  type ProcessOperation,
  ProgramFailure,
  runProgram,
  type RunProgramOptions,
} from "../../../src/programEntry.ts";

const HEADER = '{"format":"mm-program","version":1,"pages":16,"name":"test"}';

interface Line {
  readonly result?: number | string;
  readonly events?: readonly unknown[];
  readonly final?: Readonly<Record<string, Record<string, unknown>>>;
  readonly files?: Readonly<Record<string, unknown>>;
}

async function run(operations: readonly object[], options: RunProgramOptions = {}): Promise<Line[]> {
  const lines = [HEADER, ...operations.map((o) => JSON.stringify(o))];
  const result = await runProgram(lines, { debug: true, check: true, ...options });
  return result.map((line) => JSON.parse(line) as Line);
}

const map = (at: number, len: number, more: object = {}): object => ({
  op: "mmap",
  at,
  len,
  prot: "rw",
  share: "private",
  ...more,
});

describe("the numbers of a program", () => {
  test("are 64 bits wide", () => {
    expect(addressOf(0)).toBe(WINDOW_BASE);
    expect(addressOf(3, -1)).toBe(WINDOW_BASE + 3 * 4096 - 1);
    expect(addressOf(-1)).toBe(WINDOW_BASE - 4096);
    expect(bytesOf(-1)).toBe(2 ** 64 - 4096);
    expect(bytesOf(0, -1)).toBe(2 ** 64);
    expect(bytesOf(2 ** 35)).toBe(2 ** 47);
    expect(bytesOf(1, 5)).toBe(4101);
  });

  test("ranges are clipped to the window", () => {
    const page = (n: number): number => addressOf(n);
    expect(clip(16, page(2), page(4))).toEqual({ start: 2, end: 4 });
    expect(clip(16, 0, Number.MAX_SAFE_INTEGER)).toEqual({ start: 0, end: 16 });
    expect(clip(16, page(16), page(20))).toBeUndefined();
    expect(clip(16, 0, page(0))).toBeUndefined();
  });
});

test("the hash is FNV-1a", () => {
  expect(fnv1a(new Uint8Array())).toBe("811c9dc5");
  expect(fnv1a(new TextEncoder().encode("foobar"))).toBe("bf9cf968");
});

test("mappings are joined where only accounting tells them apart", () => {
  const vma = { start: 0, end: 2, perms: "rw-p", file: null, offset: 0, flags: ["ac"] };
  expect(mergeVmas([vma, { ...vma, start: 2, end: 3, flags: [] }])).toEqual([{ ...vma, end: 3, flags: [] }]);
  expect(mergeVmas([vma, { ...vma, start: 3, end: 4 }])).toHaveLength(2);
  expect(mergeVmas([vma, { ...vma, start: 2, end: 3, flags: ["lo"] }])).toHaveLength(2);
  const file = { ...vma, file: "f0", offset: 5 };
  expect(mergeVmas([file, { ...file, start: 2, end: 3, offset: 7 }])).toHaveLength(1);
  expect(mergeVmas([file, { ...file, start: 2, end: 3, offset: 6 }])).toHaveLength(2);
});

describe("a program", () => {
  test("shows results, values, faults, events and the state at the end", async () => {
    const lines = await run([
      { op: "file", name: "f0", pages: 2, fill: 10 },
      map(0, 4),
      map(8, 3, { share: "shared", file: "f0" }),
      { op: "fill", at: 0, len: 6, value: 1 },
      { op: "scan", at: 8, len: 3 },
      { op: "load", at: 7, off: 0 },
      { op: "munmap", at: 1, len: 2 },
      { op: "pwrite", file: "f0", at: 1, off: 8, value: 99 },
    ]);
    expect(lines.slice(1, -1)).toEqual([
      { i: 0, result: 0, events: [] },
      { i: 1, result: 0, events: [] },
      { i: 2, result: 8, events: [] },
      { i: 3, result: 4, signal: "SIGSEGV", code: "SEGV_MAPERR", events: [] },
      { i: 4, result: 2, values: [10, 11], signal: "SIGBUS", code: "BUS_ADRERR", events: [] },
      { i: 5, result: "fault", signal: "SIGSEGV", code: "SEGV_MAPERR", events: [] },
      { i: 6, result: 0, events: [{ in: "p0", event: "UNMAP", start: 1, end: 3 }] },
      { i: 7, result: 4, events: [] },
    ]);
    const { final, files } = lines.at(-1)!;
    expect(final).toMatchObject({
      p0: {
        merged: [
          { start: 0, end: 1, perms: "rw-p", file: null },
          { start: 3, end: 4, perms: "rw-p", file: null },
          { start: 8, end: 11, perms: "rw-s", file: "f0", offset: 0 },
        ],
        contents: [
          [0, 1, "e9f59dc4"],
          [3, 4, "4306ddc1"],
          [8, 10, expect.any(String)],
          [9, 11, expect.any(String)],
        ],
        zero: [],
        faults: [[10, 11, "SIGBUS"]],
      },
    });
    expect(files).toEqual({
      f0: {
        size: 8192,
        contents: [
          [0, 10, expect.any(String)],
          [1, 11, expect.any(String)],
        ],
      },
    });
  });

  test("has shared anonymous memory named after the operation that made it", async () => {
    const lines = await run([map(0, 1), map(4, 2, { share: "shared" })]);
    expect(lines.at(-1)!.final!["p0"]!["merged"]).toMatchObject([
      { file: null },
      { file: "shm@1", offset: 0 },
    ]);
  });

  test("of nothing but a header has an empty state", async () => {
    const lines = await run([]);
    expect(lines).toHaveLength(2);
    expect(lines[1]!.final!["p0"]).toMatchObject({ vmas: [], ptes: ".".repeat(16), contents: [], zero: [] });
  });

  test("leaves no page of its own in the window of warm page tables", async () => {
    const cold = await runProgram([HEADER.replace("16", '16,"pagetable":"cold"')]);
    expect(JSON.parse(cold[1]!)).toEqual((await run([]))[1]);
  });

  test("reads a disk file that is written back", async () => {
    const lines = await run([
      { op: "file", name: "f0", pages: 2, kind: "disk", fill: 5 },
      map(0, 2, { share: "shared", file: "f0" }),
      { op: "store", at: 0, off: 0, value: 77 },
      { op: "fsync", file: "f0" },
    ]);
    expect(lines[4]!.events).toEqual([{ in: "p0", event: "PROTECTION_PAGE", start: 0, end: 1 }]);
  });

  test("may not write through a descriptor opened for reading", async () => {
    for (const kind of ["memfd", "disk"]) {
      const lines = await run([
        { op: "file", name: "f0", pages: 1, kind, fill: 5, mode: "ro" },
        { op: "pwrite", file: "f0", at: 0, off: 0, value: 1 },
        { op: "pread", file: "f0", at: 0, off: 0 },
      ]);
      expect(lines[2]!.result).toBe("-EBADF");
      expect(lines[3]).toMatchObject({ result: 4, value: 5 });
    }
  });
});

describe("where operations run", () => {
  test("is the caller's choice, process by process", async () => {
    const seen: string[] = [];
    let ended = 0;
    await run([map(0, 1), { op: "store", at: 0, off: 0, value: 1 }], {
      spaceIn: ({ name, space, files }) => {
        const local = new LocalProcess(space, files);
        return {
          perform: (o: ProcessOperation) => {
            seen.push(`${name} ${o.op}`);
            return local.perform(o);
          },
          end: async () => void ended++,
        };
      },
    });
    expect(seen).toEqual(["p0 mmap", "p0 store"]);
    expect(ended).toBe(1);
  });

  test("a failure there names the operation", async () => {
    const broken = run([map(0, 1), { op: "store", at: 0, off: 0, value: 1 }], {
      spaceIn: ({ space, files }) => {
        const local = new LocalProcess(space, files);
        const perform = (o: ProcessOperation): ReturnType<typeof local.perform> =>
          o.op === "store" ? Promise.reject(new Error("out of order")) : local.perform(o);
        return { perform };
      },
    });
    await expect(broken).rejects.toThrow(ProgramFailure);
    await expect(broken).rejects.toThrow("operation 1 (store): out of order");
  });
});
