/** Random programs over several processes: their steps, and a file that every agent opens by itself and that can grow. */
import fc from "fast-check";
import { type Backing, type Prot, registerBacking } from "../../src/mm/index.ts";

/** The first address that mmap and mremap give out: what they choose lies among the pages that the steps choose. */
export const FIRST_PAGE = 16;
/** Pages from there on that steps choose from. */
export const AREA = 40;

export const PROTS: readonly Prot[] = ["none", "r", "rw", "rw", "rw", "rw"];

type Op =
  | "mmap"
  | "munmap"
  | "mprotect"
  | "mremap"
  | "fork"
  | "exit"
  | "mlock"
  | "munlock"
  | "reclaim"
  | "clearRefs"
  | "look"
  | "load"
  | "store"
  | "straddle"
  | "read"
  | "write"
  | "file.read"
  | "file.write"
  | "truncate"
  | "punchHole"
  | "allocate"
  | "sync"
  | "dontneed"
  | "free"
  | "remove"
  | "guard-install"
  | "guard-remove"
  | "dontfork"
  | "dofork"
  | "wipeonfork"
  | "keeponfork"
  | "populate-read"
  | "populate-write"
  | "cold"
  | "pin";

const OPS: readonly Op[] = [
  "mmap",
  "mmap",
  "mmap",
  "munmap",
  "mprotect",
  "mremap",
  "mremap",
  "mremap",
  "fork",
  "fork",
  "exit",
  "mlock",
  "munlock",
  "reclaim",
  "clearRefs",
  "look",
  "load",
  "load",
  "load",
  "store",
  "store",
  "store",
  "store",
  "straddle",
  "read",
  "write",
  "file.read",
  "file.write",
  "file.write",
  "truncate",
  "punchHole",
  "allocate",
  "sync",
  "dontneed",
  "free",
  "remove",
  "guard-install",
  "guard-remove",
  "dontfork",
  "dofork",
  "wipeonfork",
  "keeponfork",
  "populate-read",
  "populate-write",
  "cold",
  "pin",
];

export const stepArb: fc.Arbitrary<Step> = fc.record({
  op: fc.constantFrom(...OPS),
  agent: fc.nat(5),
  process: fc.nat(11),
  page: fc.nat(AREA - 1),
  pages: fc.integer({ min: 1, max: 10 }),
  to: fc.nat(AREA - 1),
  toPages: fc.integer({ min: 1, max: 12 }),
  form: fc.nat(7),
  offset: fc.nat(4095),
  value: fc.nat(0xffff_ffff),
  prot: fc.nat(PROTS.length - 1),
  write: fc.boolean(),
  shared: fc.boolean(),
  /** -1: anonymous memory. */
  file: fc.integer({ min: -1, max: 2 }),
  index: fc.nat(9),
});

export const isAnonymous = ({ file, shared }: Step): boolean => file === -1 && !shared;
export const makeAnonymous = (step: Step): Step => ({ ...step, file: -1, shared: false });
/** Steps that map nothing but private anonymous memory. */
export const anonymousStepArb: fc.Arbitrary<Step> = stepArb.map(makeAnonymous);

export interface Step {
  readonly op: Op;
  readonly agent: number;
  readonly process: number;
  readonly page: number;
  readonly pages: number;
  readonly to: number;
  readonly toPages: number;
  readonly form: number;
  readonly offset: number;
  readonly value: number;
  readonly prot: number;
  readonly write: boolean;
  readonly shared: boolean;
  readonly file: number;
  readonly index: number;
}

const blank: Step = {
  ...{ op: "mmap", agent: 0, process: 0, page: 0, pages: 1, to: 0, toPages: 1, form: 0, offset: 0, value: 0 },
  ...{ prot: 2, write: true, shared: false, file: -1, index: 0 },
};

/** The first steps of a program: most of the first process's pages are mapped, and some are in use. */
export const OPENING: readonly Step[] = [
  ...(
    [
      [0, 8, -1, false, 0],
      [8, 6, 0, true, 0],
      [14, 5, 1, false, 1],
      [19, 5, 1, true, 0],
      [24, 3, -1, true, 0],
      [27, 4, 2, false, 3],
    ] as const
  ).map(([page, pages, file, shared, index]) => ({ ...blank, page, pages, file, shared, index })),
  ...[1, 2, 3, 9, 15, 16, 20, 25, 28].map((page) => ({ ...blank, op: "store" as const, page, value: page })),
];

const contents = new Map<string | number, { bytes: Uint8Array }>();

registerBacking("growing-bytes", (data) => growing(contents.get(data)!));

function growing(content: { bytes: Uint8Array }): Backing {
  const resize = (size: number): void => {
    const next = new Uint8Array(size);
    next.set(content.bytes.subarray(0, size));
    content.bytes = next;
  };
  const readSync = (offset: number, into: Uint8Array): number => {
    const part = content.bytes.subarray(offset, offset + into.length);
    into.set(part);
    return part.length;
  };
  const writeSync = (offset: number, from: Uint8Array): void => {
    if (offset + from.length > content.bytes.length) resize(offset + from.length);
    content.bytes.set(from, offset);
  };
  return {
    size: content.bytes.length,
    readSync,
    writeSync,
    read: async (offset, into) => readSync(offset, into),
    write: async (offset, from) => writeSync(offset, from),
    truncateSync: resize,
    truncate: async (size) => resize(size),
  };
}

/** A backing over bytes that grow and shrink, as a file does; each agent opens it by itself. */
export function growingBacking(content: { bytes: Uint8Array }): Backing {
  const data = contents.size;
  contents.set(data, content);
  return { ...growing(content), descriptor: { kind: "growing-bytes", data } };
}
