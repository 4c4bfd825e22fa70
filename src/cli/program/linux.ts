/**
 * The address space and the file as programs use them: with every operation of Linux. What this version does not have
 * yet is missing at run time, and the operation's result is -ENOTSUP.
 */
import { type AddressSpace, type MappedFile, MmError } from "../../index.ts";

/** One mapping. */
export interface DescribedVma {
  readonly start: number;
  readonly end: number;
  readonly prot: string;
  readonly share: "private" | "shared";
  readonly file: number | undefined;
  readonly offset: number;
  /** Two letters each, as VmFlags of /proc/PID/smaps. */
  readonly flags?: readonly string[];
}

/** One page. */
export interface DescribedPage {
  readonly present: boolean;
  readonly swapped?: boolean;
  readonly file: boolean;
  readonly zero: boolean;
  readonly guard?: boolean;
  readonly exclusive: boolean;
  /** How many page-table entries map it. */
  readonly mapcount?: number;
}

export interface ProgramSpace {
  readonly id: number;
  readonly notifiers: AddressSpace["notifiers"];
  mmap(m: {
    readonly length: number;
    readonly address: number;
    readonly fixed: true | "noreplace";
    readonly prot: string | number;
    readonly share: string;
    readonly file?: MappedFile;
    readonly offset?: number;
    readonly populate?: boolean;
    readonly locked?: boolean;
    readonly noreserve?: boolean;
  }): Promise<number>;
  munmap(address: number, length: number): Promise<void>;
  mprotect(address: number, length: number, prot: string | number): Promise<void>;
  mremap?(
    address: number,
    oldLength: number,
    newLength: number,
    options: { readonly mayMove?: boolean; readonly to?: number; readonly dontUnmap?: boolean },
  ): Promise<number>;
  madvise(address: number, length: number, advice: string | number): Promise<void>;
  msync(
    address: number,
    length: number,
    flags: { readonly async?: boolean; readonly invalidate?: boolean },
  ): Promise<void>;
  mlock?(address: number, length: number, options: { readonly onFault?: boolean }): Promise<void>;
  munlock?(address: number, length: number): Promise<void>;
  clearRefs?(what: "referenced" | "soft-dirty"): Promise<void>;
  fork?(): Promise<AddressSpace>;
  exit(): Promise<void>;
  vmas(): readonly DescribedVma[];
  mincore(address: number, length: number): Uint8Array;
  pagemap(address: number, length: number): readonly DescribedPage[];
  getUint32(address: number): number;
  setUint32(address: number, value: number): void;
  run<T>(fn: () => T): Promise<T>;
  read(address: number, into: Uint8Array): Promise<void>;
}

export interface ProgramFile {
  readonly id: number;
  readonly size: number;
  read(offset: number, into: Uint8Array): Promise<number>;
  write(offset: number, from: Uint8Array): Promise<unknown>;
  truncate?(size: number): Promise<void>;
  punchHole?(offset: number, length: number): Promise<void>;
  allocate?(offset: number, length: number, options: { readonly keepSize?: boolean }): Promise<void>;
  sync(): Promise<void>;
}

export const asProgramSpace = (space: AddressSpace): ProgramSpace => space as unknown as ProgramSpace;
export const asProgramFile = (file: MappedFile): ProgramFile => file as unknown as ProgramFile;

/** What is thrown where a method is missing. */
export const missing = (operation: string): MmError =>
  new MmError("ENOTSUP", operation, "this version does not have it");
