/**
 * mm programs: what a line may say. Format: test/linux/FORMAT.md.
 *
 * A program that gets through here can be run: names are known where they are used, processes are alive, fields have
 * their types. What Linux would refuse (lengths, addresses, flags that do not go together) is no matter of the parser.
 */

/** Its message is one sentence without the file's name, which the parser does not know. */
export class ProgramError extends Error {
  override readonly name: string = "ProgramError";
  /** Counted from 1, comments and empty lines included; 0: the program as a whole. */
  readonly line: number;

  constructor(line: number, sentence: string) {
    super(line === 0 ? sentence : `line ${line}: ${sentence}`);
    this.line = line;
  }
}

export type ProgramProt = string | number;

/** Pages and bytes are added modulo 2^64. */
interface At {
  readonly at?: number;
  readonly atBytes?: number;
}
interface Range extends At {
  readonly len?: number;
  readonly lenBytes?: number;
}
/** `off` is in bytes and may be anything. */
interface Word {
  readonly at?: number;
  readonly off?: number;
}
interface Base {
  /** The process that runs it; default "p0". */
  readonly in?: string;
}

export interface FileOperation {
  readonly op: "file";
  readonly name: string;
  readonly pages: number;
  readonly kind?: "memfd" | "disk";
  readonly fill?: number | null;
  readonly mode?: "rw" | "ro";
}

/** What a process does. */
export type ProcessOperation = Base &
  (
    | ({
        readonly op: "mmap";
        readonly prot: ProgramProt;
        readonly share?: "private" | "shared" | "shared_validate" | "neither";
        readonly file?: string;
        readonly offset?: number;
        readonly offsetBytes?: number;
        readonly flags?: readonly ("noreplace" | "populate" | "locked" | "noreserve")[];
      } & Range)
    | ({ readonly op: "munmap" | "mincore" } & Range)
    | ({ readonly op: "mlock" | "munlock"; readonly flags?: readonly "onfault"[] } & Range)
    | ({ readonly op: "mprotect"; readonly prot: ProgramProt } & Range)
    | ({
        readonly op: "mremap";
        readonly newLen?: number;
        readonly newLenBytes?: number;
        readonly to?: number;
        readonly toBytes?: number;
        readonly flags?: readonly ("maymove" | "fixed" | "dontunmap")[];
      } & Range)
    | ({ readonly op: "madvise"; readonly advice: string | number } & Range)
    | ({ readonly op: "msync"; readonly flags?: readonly ("sync" | "async" | "invalidate")[] } & Range)
    | ({ readonly op: "store"; readonly value: number } & Word)
    | ({ readonly op: "load" } & Word)
    | { readonly op: "fill"; readonly at?: number; readonly len?: number; readonly value: number }
    | { readonly op: "scan"; readonly at?: number; readonly len?: number }
    | { readonly op: "pagemap"; readonly at?: number; readonly len?: number }
    | { readonly op: "fork"; readonly as: string }
    | { readonly op: "exit" }
    | ({ readonly op: "pwrite"; readonly file: string; readonly value: number } & Word)
    | ({ readonly op: "pread"; readonly file: string } & Word)
    | { readonly op: "ftruncate"; readonly file: string; readonly len?: number; readonly lenBytes?: number }
    | ({ readonly op: "punch"; readonly file: string } & Range)
    | ({ readonly op: "allocate"; readonly file: string; readonly keepSize?: boolean } & Range)
    | { readonly op: "fsync"; readonly file: string }
    | { readonly op: "clear_refs"; readonly value: number }
  );

export type ProgramOperation = FileOperation | ProcessOperation;

export interface ProgramHeader {
  /** Of the window. */
  readonly pages: number;
  readonly name?: string;
  readonly about?: string;
  readonly profile?: string;
  readonly seed?: string | number;
  readonly pagetable: "warm" | "cold";
}

export interface Program {
  readonly header: ProgramHeader;
  readonly operations: readonly ProgramOperation[];
}

const MOST_PAGES = 512;
const MOST_FILES = 8;
const MOST_PROCESSES = 8;

/** What a field may be: the words that say so, and the test. */
interface Kind {
  readonly what: string;
  readonly test: (value: unknown) => boolean;
}

const isInteger = (value: unknown): boolean => Number.isSafeInteger(value);
const isString = (value: unknown): boolean => typeof value === "string" && value !== "";
const integer: Kind = { what: "a whole number", test: isInteger };
const text: Kind = { what: "a name", test: isString };
const anything: Kind = { what: "anything", test: () => true };
const truth: Kind = { what: "true or false", test: (value) => typeof value === "boolean" };
const quoted = (words: readonly string[]): string => words.map((w) => `"${w}"`).join(", ");
const oneOf = (...words: readonly string[]): Kind => ({
  what: `one of ${quoted(words)}`,
  test: (value) => typeof value === "string" && words.includes(value),
});
const listOf = (...words: readonly string[]): Kind => ({
  what: `a list of ${quoted(words)}`,
  test: (value) => Array.isArray(value) && value.every((v) => typeof v === "string" && words.includes(v)),
});
const fillValue: Kind = { what: "a whole number or null", test: (v) => v === null || isInteger(v) };
const pageCount: Kind = { what: "a whole number of pages", test: (v) => isInteger(v) && (v as number) >= 0 };
const prot: Kind = {
  what: 'letters of "rwx", "none" or a number',
  test: (v) => isInteger(v) || (typeof v === "string" && /^(none|(?=.)r?w?x?)$/.test(v)),
};

/** Linux's names without MADV_. */
export const ADVICES: readonly string[] = [
  "NORMAL",
  "RANDOM",
  "SEQUENTIAL",
  "WILLNEED",
  "DONTNEED",
  "FREE",
  "REMOVE",
  "DONTFORK",
  "DOFORK",
  "MERGEABLE",
  "UNMERGEABLE",
  "HUGEPAGE",
  "NOHUGEPAGE",
  "DONTDUMP",
  "DODUMP",
  "WIPEONFORK",
  "KEEPONFORK",
  "COLD",
  "PAGEOUT",
  "POPULATE_READ",
  "POPULATE_WRITE",
  "DONTNEED_LOCKED",
  "COLLAPSE",
  "GUARD_INSTALL",
  "GUARD_REMOVE",
];
const advice: Kind = {
  what: "the name of an advice, or a number",
  test: (v) => isInteger(v) || ADVICES.includes(String(v)),
};

type Fields = Readonly<Record<string, Kind>>;
const AT: Fields = { at: integer, atBytes: integer };
const LENGTH: Fields = { len: integer, lenBytes: integer };
const RANGE: Fields = { ...AT, ...LENGTH };
const WORD: Fields = { at: integer, off: integer };
const PAGES: Fields = { at: integer, len: integer };

/** Fields of each operation: those that must be there, and those that may. */
const OPERATIONS: Readonly<Record<string, readonly [must: Fields, may: Fields]>> = {
  file: [
    { name: text, pages: pageCount },
    { kind: oneOf("memfd", "disk"), fill: fillValue, mode: oneOf("rw", "ro") },
  ],
  mmap: [
    { prot },
    {
      ...RANGE,
      share: oneOf("private", "shared", "shared_validate", "neither"),
      file: text,
      offset: integer,
      offsetBytes: integer,
      flags: listOf("noreplace", "populate", "locked", "noreserve"),
    },
  ],
  munmap: [{}, RANGE],
  mprotect: [{ prot }, RANGE],
  mremap: [
    {},
    {
      ...RANGE,
      newLen: integer,
      newLenBytes: integer,
      to: integer,
      toBytes: integer,
      flags: listOf("maymove", "fixed", "dontunmap"),
    },
  ],
  madvise: [{ advice }, RANGE],
  store: [{ value: integer }, WORD],
  load: [{}, WORD],
  fill: [{ value: integer }, PAGES],
  scan: [{}, PAGES],
  fork: [{ as: text }, {}],
  exit: [{}, {}],
  pwrite: [{ file: text, value: integer }, WORD],
  pread: [{ file: text }, WORD],
  ftruncate: [{ file: text }, LENGTH],
  punch: [{ file: text }, RANGE],
  allocate: [{ file: text }, { ...RANGE, keepSize: truth }],
  fsync: [{ file: text }, {}],
  msync: [{}, { ...RANGE, flags: listOf("sync", "async", "invalidate") }],
  mlock: [{}, { ...RANGE, flags: listOf("onfault") }],
  munlock: [{}, { ...RANGE, flags: listOf("onfault") }],
  mincore: [{}, RANGE],
  clear_refs: [{ value: integer }, {}],
  pagemap: [{}, PAGES],
};

const HEADER_MAY: Fields = {
  name: text,
  about: anything,
  profile: anything,
  seed: anything,
  pagetable: oneOf("warm", "cold"),
};

type Json = Readonly<Record<string, unknown>>;

function objectOf(line: string, at: number): Json {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw new ProgramError(at, "it is not JSON");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new ProgramError(at, "it is not a JSON object");
  return value as Json;
}

function checkFields(o: Json, at: number, who: string, must: Fields, may: Fields): void {
  for (const field of Object.keys(must))
    if (o[field] === undefined) throw new ProgramError(at, `${who} needs "${field}"`);
  for (const [field, value] of Object.entries(o)) {
    const kind = must[field] ?? may[field];
    if (!kind) throw new ProgramError(at, `${who} has no field "${field}"`);
    if (!kind.test(value)) {
      throw new ProgramError(at, `"${field}" of ${who} must be ${kind.what}, not ${JSON.stringify(value)}`);
    }
  }
}

function headerOf(o: Json, at: number): ProgramHeader {
  if (o["format"] !== "mm-program") {
    throw new ProgramError(
      at,
      'the first line must be the header {"format":"mm-program","version":1,"pages":N}',
    );
  }
  if (o["version"] !== 1) {
    throw new ProgramError(at, `version ${JSON.stringify(o["version"])} of the format is unknown, only 1 is`);
  }
  checkFields(o, at, "the header", { format: anything, version: anything, pages: integer }, HEADER_MAY);
  const pages = o["pages"] as number;
  if (pages < 1 || pages > MOST_PAGES) {
    throw new ProgramError(at, `"pages" of the header must be from 1 to ${MOST_PAGES}, not ${pages}`);
  }
  return { pagetable: "warm", ...o } as unknown as ProgramHeader;
}

/** The names that a program may use at some point of it. */
class Names {
  readonly #files = new Set<string>();
  readonly #processes = new Map<string, "alive" | "gone">([["p0", "alive"]]);
  #begun = false;

  add(o: ProgramOperation, at: number): void {
    if (o.op === "file") return this.#addFile(o.name, at);
    this.#begun = true;
    const name = o.in ?? "p0";
    const state = this.#processes.get(name);
    if (state === undefined) throw new ProgramError(at, `there is no process "${name}"`);
    if (state === "gone") throw new ProgramError(at, `process "${name}" has exited`);
    if (o.op === "exit") this.#processes.set(name, "gone");
    if (o.op === "fork") this.#addProcess(o.as, at);
    if ("file" in o && o.file !== undefined && !this.#files.has(o.file))
      throw new ProgramError(at, `there is no file "${o.file}"`);
  }

  #addFile(name: string, at: number): void {
    if (this.#begun) throw new ProgramError(at, "files must come before everything else");
    if (this.#files.has(name)) throw new ProgramError(at, `there are two files "${name}"`);
    if (this.#files.size === MOST_FILES) {
      throw new ProgramError(at, `there are more than ${MOST_FILES} files`);
    }
    this.#files.add(name);
  }

  #addProcess(name: string, at: number): void {
    if (this.#processes.has(name)) throw new ProgramError(at, `there are two processes "${name}"`);
    if (this.#processes.size === MOST_PROCESSES) {
      throw new ProgramError(at, `there are more than ${MOST_PROCESSES} processes`);
    }
    this.#processes.set(name, "alive");
  }
}

function operationOf(o: Json, at: number): ProgramOperation {
  const { op } = o;
  if (typeof op !== "string") throw new ProgramError(at, 'an operation needs "op", its name');
  const fields = Object.hasOwn(OPERATIONS, op) ? OPERATIONS[op] : undefined;
  if (!fields) throw new ProgramError(at, `there is no operation "${op}"`);
  const [must, may] = fields;
  const common: Fields = op === "file" ? { op: text } : { op: text, in: text };
  checkFields(o, at, op, must, { ...may, ...common });
  if (op === "file" && o["kind"] === "disk" && o["fill"] === null)
    throw new ProgramError(at, 'a file of kind "disk" needs a number to be filled with');
  return o as unknown as ProgramOperation;
}

/** What is looked at page by page, not by a call that checks the range itself. */
function checkInside(o: { readonly at?: number; readonly len?: number }, pages: number, at: number): void {
  const { at: first = 0, len = 0 } = o;
  if (first < 0 || len < 0 || first + len > pages)
    throw new ProgramError(at, `pagemap must stay inside the window of ${pages} pages`);
}

/** Reads a program: its text, or its lines. Errors: ProgramError. */
export function parseProgram(program: string | Iterable<string>): Program {
  const lines = typeof program === "string" ? program.split("\n") : program;
  const operations: ProgramOperation[] = [];
  const names = new Names();
  let header: ProgramHeader | undefined;
  let at = 0;
  for (const line of lines) {
    at++;
    const trimmed = line.trim();
    if (trimmed === "" || trimmed.startsWith("//")) continue;
    const o = objectOf(trimmed, at);
    if (!header) {
      header = headerOf(o, at);
      continue;
    }
    const operation = operationOf(o, at);
    names.add(operation, at);
    if (operation.op === "pagemap") checkInside(operation, header.pages, at);
    operations.push(operation);
  }
  if (!header) throw new ProgramError(0, "it is empty, without even a header");
  return { header, operations };
}
