/** What a mirror tells its user of a page that rangeFault() could not give it. */
import { BusError, isMmError, SegvError } from "../errors.ts";

/** The error of an access to that page: a SegvError or BusError with its address; others as they are. */
export function asAccess(error: unknown): unknown {
  if (!(isMmError(error, "EFAULT") || isMmError(error, "EPERM")) || !error.range) return error;
  return error.cause instanceof BusError
    ? error.cause
    : new SegvError("fill", error.range.start, "SEGV_ACCERR");
}
