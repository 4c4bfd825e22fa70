/** The state at the end of a program: mappings, page tables, contents, files. */
import { type AddressSpace, isMmError, type MappedFile, type PagemapEntry } from "../../index.ts";
import { addressOf, clip, PAGE_BYTES } from "./window.ts";

export interface ResultVma {
  readonly start: number;
  readonly end: number;
  readonly perms: string;
  /** Null: private anonymous memory. */
  readonly file: string | null;
  readonly offset: number;
  readonly flags: readonly string[];
}

type Content = readonly [page: number, word: number, hash: string];

export interface SpaceState {
  readonly vmas: readonly ResultVma[];
  readonly merged: readonly ResultVma[];
  readonly ptes: string;
  readonly contents: readonly Content[];
  readonly zero: readonly (readonly [number, number])[];
  readonly faults: readonly (readonly [number, number, string])[];
}

export interface FileState {
  readonly size: number;
  readonly contents: readonly Content[];
}

/** VmFlags that results list. */
const FLAGS: readonly string[] = ["ac", "dc", "lf", "lo", "nr", "rr", "sr", "wf"];
/** And those that make no difference between mappings in `merged`. */
const ACCOUNTING: readonly string[] = ["ac", "nr"];

function pageCharacter(page: PagemapEntry): string {
  if (page.guard) return "g";
  if (!page.present) return ".";
  if (page.zero) return "z";
  if (page.file) return "f";
  return page.exclusive ? "a" : "A";
}

/** One character per page. */
export const pagemapText = (pages: readonly PagemapEntry[]): string => pages.map(pageCharacter).join("");

/** 32-bit FNV-1a, 8 hex digits. */
export function fnv1a(bytes: Uint8Array): string {
  let hash = 0x811c9dc5;
  for (let k = 0; k < bytes.length; k++) hash = Math.imul(hash ^ bytes[k]!, 0x01000193);
  return (hash >>> 0).toString(16).padStart(8, "0");
}

/** A page to read into, as bytes and as words. */
class PageBuffer {
  readonly bytes: Uint8Array = new Uint8Array(PAGE_BYTES);
  readonly #view = new DataView(this.bytes.buffer);
  readonly #words = new Uint32Array(this.bytes.buffer);

  get zero(): boolean {
    return this.#words.every((word) => word === 0);
  }

  content(page: number): Content {
    return [page, this.#view.getUint32(0, true), fnv1a(this.bytes)];
  }
}

/** Names of the files that mappings show, by id: those of the program, and shared anonymous memory. */
export type FileNames = ReadonlyMap<number, string>;

function vmasOf(space: AddressSpace, pages: number, names: FileNames): ResultVma[] {
  return space.vmas().flatMap((vma) => {
    const inside = clip(pages, vma.start, vma.end);
    if (!inside) return [];
    const file = vma.file === undefined ? undefined : (names.get(vma.file) ?? `file ${vma.file}`);
    return [
      {
        ...inside,
        perms: vma.prot + (vma.share === "shared" ? "s" : "p"),
        file: file ?? null,
        offset: file === undefined ? 0 : (vma.offset + addressOf(inside.start) - vma.start) / PAGE_BYTES,
        flags: vma.flags.filter((flag) => FLAGS.includes(flag)).toSorted(),
      },
    ];
  });
}

/** Adjacent mappings joined where only accounting tells them apart. */
export function mergeVmas(vmas: readonly ResultVma[]): ResultVma[] {
  const merged: ResultVma[] = [];
  for (const vma of vmas) {
    const flags = vma.flags.filter((flag) => !ACCOUNTING.includes(flag));
    const last = merged.at(-1);
    const joins =
      last !== undefined &&
      last.end === vma.start &&
      last.perms === vma.perms &&
      last.file === vma.file &&
      (vma.file === null || last.offset + last.end - last.start === vma.offset) &&
      last.flags.join() === flags.join();
    if (joins) merged[merged.length - 1] = { ...last, end: vma.end };
    else merged.push({ ...vma, flags });
  }
  return merged;
}

/** Extends the last of the ranges by a page, or begins another one. */
function addPage<T extends [number, number, ...string[]]>(
  ranges: T[],
  page: number,
  ...rest: string[]
): void {
  const last = ranges.at(-1);
  if (last && last[1] === page && last[2] === rest[0]) last[1] = page + 1;
  else ranges.push([page, page + 1, ...rest] as unknown as T);
}

/** Reads every page that its mapping allows to be read. */
export async function spaceState(space: AddressSpace, pages: number, names: FileNames): Promise<SpaceState> {
  const vmas = vmasOf(space, pages, names);
  const ptes = pagemapText(space.pagemap(addressOf(0), pages * PAGE_BYTES));
  const contents: Content[] = [];
  const zero: [number, number][] = [];
  const faults: [number, number, string][] = [];
  const buffer = new PageBuffer();
  for (const vma of vmas) {
    if (!vma.perms.startsWith("r")) continue;
    for (let page = vma.start; page < vma.end; page++) {
      const fault = await readPage(space, page, buffer);
      if (fault !== undefined) addPage(faults, page, fault);
      else if (buffer.zero) addPage(zero, page);
      else contents.push(buffer.content(page));
    }
  }
  return { vmas, merged: mergeVmas(vmas), ptes, contents, zero, faults };
}

/** Returns the signal where the page cannot be read. */
async function readPage(space: AddressSpace, page: number, buffer: PageBuffer): Promise<string | undefined> {
  try {
    await space.read(addressOf(page), buffer.bytes);
    return undefined;
  } catch (error) {
    if (!isMmError(error)) throw error;
    return error.name === "BusError" ? "SIGBUS" : "SIGSEGV";
  }
}

/** Reads a whole file; what lies behind its end in the last page is zero. */
export async function fileState(file: MappedFile): Promise<FileState> {
  const { size } = file;
  const contents: Content[] = [];
  const buffer = new PageBuffer();
  for (let page = 0; page * PAGE_BYTES < size; page++) {
    buffer.bytes.fill(0);
    await file.read(page * PAGE_BYTES, buffer.bytes);
    if (!buffer.zero) contents.push(buffer.content(page));
  }
  return { size, contents };
}

/** Id of the file that is mapped at an address. */
export function fileAt(space: AddressSpace, address: number): number | undefined {
  return space.vmas().find(({ start, end }) => start <= address && address < end)?.file;
}
