/** A process of a program: runs its operations in an address space, one at a time. */
import { type AddressSpace, type Advice, isMmError, type MappedFile, MmError } from "../../index.ts";
import type { ProcessOperation } from "./parse.ts";
import { pagemapText } from "./state.ts";
import { addressOf, bytesOf, pageOf } from "./window.ts";

/** What an operation came to; structured-clonable. The fields of a result line, without events. */
export interface Outcome {
  readonly result: number | string;
  readonly value?: number | string;
  readonly values?: readonly number[];
  readonly signal?: string;
  readonly code?: string;
  /** Of `fork`: the id of the child's space. */
  readonly child?: number;
}

/** What runs the operations of one process, wherever it lives. */
export interface ProgramProcess {
  /** Must not throw for what Linux would refuse: that is an outcome. */
  perform(operation: ProcessOperation): Promise<Outcome>;
  /** The process is no more, or the program is at its end. */
  end?(): Promise<void>;
}

type Of<Op extends ProcessOperation["op"]> = Extract<ProcessOperation, { op: Op }>;

/** How an access failed, as a signal; undefined for another error. */
export function signalOf(error: unknown): { signal: string; code: string } | undefined {
  if (!isMmError(error)) return undefined;
  const { reason } = error as { reason?: unknown };
  if (typeof reason === "string") return { signal: "SIGSEGV", code: reason };
  return error.name === "BusError" ? { signal: "SIGBUS", code: "BUS_ADRERR" } : undefined;
}

const DONE: Outcome = { result: 0 };
/** Linux's name of an advice without MADV_, as Bifolio writes it; an unknown one is refused there. */
const adviceOf = (advice: string | number): Advice =>
  typeof advice === "number" ? advice : (advice.toLowerCase().replaceAll("_", "-") as Advice);

const SOFT_DIRTY = 4;
const PEAK_RSS = 5;

/** A process whose operations run in this agent. */
export class LocalProcess implements ProgramProcess {
  readonly #space: AddressSpace;
  readonly #files: ReadonlyMap<string, MappedFile>;

  constructor(space: AddressSpace, files: ReadonlyMap<string, MappedFile>) {
    this.#space = space;
    this.#files = files;
  }

  async perform(operation: ProcessOperation): Promise<Outcome> {
    try {
      return await this.#perform(operation);
    } catch (error) {
      if (!isMmError(error)) throw error;
      return { result: `-${error.code}` };
    }
  }

  async #perform(o: ProcessOperation): Promise<Outcome> {
    const space = this.#space;
    switch (o.op) {
      case "mmap":
        return await this.#mmap(o);
      case "munmap":
        await space.munmap(...rangeOf(o));
        return DONE;
      case "mprotect":
        await space.mprotect(...rangeOf(o), letters(o.prot));
        return DONE;
      case "mremap":
        return await this.#mremap(o);
      case "madvise":
        await space.madvise(...rangeOf(o), adviceOf(o.advice));
        return DONE;
      case "msync":
        return await this.#msync(o);
      case "mlock":
        await space.mlock(...rangeOf(o), { onFault: o.flags?.includes("onfault") ?? false });
        return DONE;
      case "munlock":
        await space.munlock(...rangeOf(o));
        return DONE;
      case "mincore":
        return { result: 0, value: space.mincore(...rangeOf(o)).join("") };
      case "pagemap": {
        const entries = space.pagemap(addressOf(o.at), bytesOf(o.len));
        return { result: 0, value: pagemapText(entries) };
      }
      case "clear_refs":
        return await this.#clearRefs(o.value);
      case "store":
        return await this.#access(addressOf(o.at, o.off), o.value);
      case "load":
        return await this.#access(addressOf(o.at, o.off));
      case "fill":
        return await this.#fill(o);
      case "scan":
        return await this.#scan(o);
      case "fork":
        return { result: 0, child: (await space.fork()).id };
      case "exit":
        await space.exit();
        return DONE;
      default:
        return await this.#onFile(o, this.#files.get(o.file)!);
    }
  }

  // ---- mappings -------------------------------------------------------------------------------------------------

  async #mmap(o: Of<"mmap">): Promise<Outcome> {
    const { flags = [], share = "private" } = o;
    const file = o.file === undefined ? undefined : this.#files.get(o.file);
    const has = (flag: "populate" | "locked" | "noreserve"): boolean => flags.includes(flag);
    const address = await this.#space.mmap({
      address: addressOf(o.at, o.atBytes),
      length: bytesOf(o.len, o.lenBytes),
      fixed: flags.includes("noreplace") ? "noreplace" : true,
      prot: letters(o.prot),
      // MAP_SHARED_VALIDATE is MAP_SHARED for a file and refused for anonymous memory; without a type bit all is refused.
      share: (share === "shared_validate" && file ? "shared" : share) as "private" | "shared",
      ...(file ? { file, offset: bytesOf(o.offset, o.offsetBytes) } : {}),
      ...(has("populate") ? { populate: true } : {}),
      ...(has("locked") ? { locked: true } : {}),
      ...(has("noreserve") ? { noreserve: true } : {}),
    });
    return { result: pageOf(address) };
  }

  async #mremap(o: Of<"mremap">): Promise<Outcome> {
    const space = this.#space;
    const { flags = [] } = o;
    const address = await space.mremap(...rangeOf(o), bytesOf(o.newLen, o.newLenBytes), {
      mayMove: flags.includes("maymove"),
      // Without "fixed" the target is a hint, which these forms have no use for.
      ...(flags.includes("fixed") ? { to: addressOf(o.to, o.toBytes) } : {}),
      ...(flags.includes("dontunmap") ? { dontUnmap: true } : {}),
    });
    return { result: pageOf(address) };
  }

  async #msync(o: Of<"msync">): Promise<Outcome> {
    const { flags = [] } = o;
    const sync = flags.includes("sync");
    // Bifolio has one flag for the two of Linux, which cannot say both.
    if (sync && flags.includes("async"))
      throw new MmError("EINVAL", "msync", "sync and async exclude each other");
    await this.#space.msync(...rangeOf(o), {
      async: !sync,
      ...(flags.includes("invalidate") ? { invalidate: true } : {}),
    });
    return DONE;
  }

  async #clearRefs(value: number): Promise<Outcome> {
    // What the accessed bits of which mappings are is one question here; the peak of the resident set is none.
    if (value < 1 || value > PEAK_RSS) throw new MmError("EINVAL", "clearRefs", "value must be from 1 to 5");
    if (value === PEAK_RSS) return DONE;
    await this.#space.clearRefs(value === SOFT_DIRTY ? "soft-dirty" : "referenced");
    return DONE;
  }

  // ---- accesses -------------------------------------------------------------------------------------------------

  /** Stores a value, or loads where there is none to store. */
  async #access(address: number, value?: number): Promise<Outcome> {
    const space = this.#space;
    try {
      if (value === undefined) return { result: 0, value: await space.run(() => space.getUint32(address)) };
      await space.run(() => space.setUint32(address, value >>> 0));
      return DONE;
    } catch (error) {
      const signal = signalOf(error);
      if (!signal) throw error;
      return { result: "fault", ...signal };
    }
  }

  async #fill(o: Of<"fill">): Promise<Outcome> {
    for (let k = 0; k < (o.len ?? 0); k++) {
      const { signal, code } = await this.#access(addressOf((o.at ?? 0) + k), o.value + k);
      if (signal !== undefined && code !== undefined) return { result: k, signal, code };
    }
    return { result: o.len ?? 0 };
  }

  async #scan(o: Of<"scan">): Promise<Outcome> {
    const values: number[] = [];
    for (let k = 0; k < (o.len ?? 0); k++) {
      const { value, signal, code } = await this.#access(addressOf((o.at ?? 0) + k));
      if (signal !== undefined && code !== undefined) return { result: k, values, signal, code };
      values.push(value as number);
    }
    return { result: values.length, values };
  }

  // ---- files ----------------------------------------------------------------------------------------------------

  async #onFile(
    o: Of<"pwrite" | "pread" | "ftruncate" | "punch" | "allocate" | "fsync">,
    file: MappedFile,
  ): Promise<Outcome> {
    switch (o.op) {
      case "pread": {
        const word = new Uint8Array(4);
        const bytes = await file.read(bytesOf(o.at, o.off), word);
        return bytes < 4
          ? { result: bytes }
          : { result: bytes, value: new DataView(word.buffer).getUint32(0, true) };
      }
      case "pwrite": {
        const word = new Uint8Array(4);
        new DataView(word.buffer).setUint32(0, o.value >>> 0, true);
        return await writing("-EBADF", async () => {
          return { result: await file.write(bytesOf(o.at, o.off), word) };
        });
      }
      case "ftruncate":
        return await writing("-EINVAL", async () => {
          await file.truncate(bytesOf(o.len, o.lenBytes));
          return DONE;
        });
      case "punch":
        return await writing("-EBADF", async () => {
          await file.punchHole(bytesOf(o.at, o.atBytes), bytesOf(o.len, o.lenBytes));
          return DONE;
        });
      case "allocate": {
        const { keepSize = false } = o;
        return await writing("-EBADF", async () => {
          await file.allocate(bytesOf(o.at, o.atBytes), bytesOf(o.len, o.lenBytes), { keepSize });
          return DONE;
        });
      }
      case "fsync":
        await file.sync();
        return DONE;
    }
  }
}

const rangeOf = (o: { at?: number; atBytes?: number; len?: number; lenBytes?: number }): [number, number] => [
  addressOf(o.at, o.atBytes),
  bytesOf(o.len, o.lenBytes),
];

/** Letters as the number that they stand for: combinations that have no name of their own are allowed too. */
function letters(prot: string | number): number {
  if (typeof prot === "number") return prot;
  if (prot === "none") return 0;
  return (prot.includes("r") ? 1 : 0) | (prot.includes("w") ? 2 : 0) | (prot.includes("x") ? 4 : 0);
}

/** An operation that a descriptor opened for reading refuses: EACCES says so here, another code in Linux. */
async function writing(refusal: string, body: () => Promise<Outcome>): Promise<Outcome> {
  try {
    return await body();
  } catch (error) {
    if (isMmError(error, "EACCES")) return { result: refusal };
    throw error;
  }
}
