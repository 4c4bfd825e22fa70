/** Where a file's pages come from: the interface, and the registry by which every agent opens its own. */
import { MmError } from "../errors.ts";

/** Offsets and lengths in bytes. */
export interface Backing {
  readonly size: number;
  /** Lets every agent open its own instance; without it the agent that opened the file serves the others. */
  readonly descriptor?: { readonly kind: string; readonly data: string | number };
  /** Fills `into` as far as the backing reaches; returns bytes read. Without it agents that block cannot be the opener. */
  readSync?(offset: number, into: Uint8Array): number;
  read(offset: number, into: Uint8Array): Promise<number>;
  writeSync?(offset: number, from: Uint8Array): void;
  write?(offset: number, from: Uint8Array): Promise<void>;
  flush?(): Promise<void>;
  /** Changes the size. Without it the file keeps its size. */
  truncate?(size: number): Promise<void>;
  /** As truncate(), for agents that block. */
  truncateSync?(size: number): void;
  /** As flush(), for agents that block. */
  flushSync?(): void;
  /** Releases what the instance holds (a descriptor of the operating system). */
  close?(): void;
}

type Open = (data: string | number) => Backing;

const kinds = new Map<string, Open>();

/** Descriptor kind of a backing whose bytes live in frames. */
export const MEMORY_KIND = "memory";

/**
 * Says how a backing with `descriptor.kind` is opened, so that each agent opens its own instance. Call it in every agent,
 * before files of that kind are used there. A second call for the same kind replaces the first.
 */
export function registerBacking(kind: string, open: Open): void {
  kinds.set(kind, open);
}

export function openDescriptor(kind: string, data: string | number): Backing {
  const open = kinds.get(kind);
  if (!open) {
    throw new MmError(
      "ENOTSUP",
      "openFile",
      `this agent does not know backings of kind "${kind}"; import what registers it ("bifolio/node" for files), or call registerBacking()`,
    );
  }
  return open(data);
}

/** A file whose bytes live in frames, as a memfd: `size` bytes, zero at first. It counts against the budget. */
export function memoryBacking(size: number): Backing {
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new MmError("EINVAL", "memoryBacking", "size must be a whole number of bytes, not negative");
  }
  return {
    size,
    descriptor: { kind: MEMORY_KIND, data: size },
    // Never asked: a page that is not in the cache of such a file is a page of zeros.
    read: async () => 0,
  };
}
