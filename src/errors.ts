/**
 * The one error class of Bifolio and its guards.
 *
 * Outcomes that happen in normal running (contended, not present) are sentinels inside the rows; an MmError
 * is thrown where the operation is already lost. Errors cross agents, so guards look at fields.
 */

/** Errno-style codes. See each operation for those it can give. */
export type MmErrorCode =
  | "ENOMEM"
  | "EINVAL"
  | "EAGAIN"
  | "EFAULT"
  | "EACCES"
  | "EBUSY"
  | "EDEADLK"
  | "ESRCH"
  | "EEXIST"
  | "EIO"
  | "EPERM"
  | "EOVERFLOW"
  | "EFBIG"
  | "ENOTSUP"
  | "EOWNERDEAD"
  | "ECALLBACK"
  | "ENOENT"
  | "EISDIR"
  | "ETIMEDOUT";

export interface MmErrorDetails {
  /** Bytes, end exclusive. */
  readonly range?: { readonly start: number; readonly end: number };
  readonly cause?: unknown;
}

const hex = (n: number): string => (Number.isInteger(n) ? `0x${n.toString(16)}` : String(n));

/** What every operation of Bifolio throws: a code, the operation, the range, and a sentence that says what to do. */
export class MmError extends Error {
  override readonly name: string = "MmError";
  readonly code: string;
  readonly operation: string;
  readonly range?: { start: number; end: number };

  constructor(code: MmErrorCode, operation: string, sentence: string, details: MmErrorDetails = {}) {
    const where = details.range ? ` [${hex(details.range.start)}, ${hex(details.range.end)})` : "";
    super(
      `${code} ${operation}${where}: ${sentence}`,
      details.cause === undefined ? undefined : { cause: details.cause },
    );
    this.code = code;
    this.operation = operation;
    if (details.range) this.range = { ...details.range };
  }
}

/** An access that no mapping allows. Linux: SIGSEGV. */
export class SegvError extends MmError {
  override readonly name: string = "SegvError";
  readonly address: number;
  /** SEGV_MAPERR: nothing is mapped there. SEGV_ACCERR: the mapping does not allow this access. */
  readonly reason: "SEGV_MAPERR" | "SEGV_ACCERR";

  constructor(operation: string, address: number, reason: "SEGV_MAPERR" | "SEGV_ACCERR") {
    super(
      reason === "SEGV_MAPERR" ? "EFAULT" : "EACCES",
      operation,
      reason === "SEGV_MAPERR"
        ? `no mapping covers address ${hex(address)}`
        : `the mapping at address ${hex(address)} does not allow this access`,
    );
    this.address = address;
    this.reason = reason;
  }
}

/** An access to a mapped page that its file does not have, or could not deliver. Linux: SIGBUS. */
export class BusError extends MmError {
  override readonly name: string = "BusError";
  readonly address: number;

  constructor(operation: string, address: number, sentence: string, cause?: unknown) {
    super("EIO", operation, `${sentence} (address ${hex(address)})`, { cause });
    this.address = address;
  }
}

/** True for an error of Bifolio, of this copy of the package or another, and of the given code if one is given. */
export function isMmError(error: unknown, code?: string): error is MmError {
  if (typeof error !== "object" || error === null) return false;
  const fields = error as { code?: unknown; operation?: unknown };
  return (
    typeof fields.code === "string" &&
    typeof fields.operation === "string" &&
    (code === undefined || fields.code === code)
  );
}

/** A broken invariant: a bug in Bifolio, not a condition a caller can meet. */
export class InvariantError extends Error {
  override readonly name: string = "InvariantError";
}

export function panic(what: string): never {
  throw new InvariantError(`bifolio invariant broken: ${what}`);
}

/** For whatever finds no room for a record. */
export const arenaFull = (operation: string): MmError =>
  new MmError("ENOMEM", operation, "the arena is full; create the memory with a larger arena");
