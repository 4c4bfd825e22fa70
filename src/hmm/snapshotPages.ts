/**
 * Looking pages up that need not follow each other, without bringing any in. Linux: hmm_range_fault() where neither
 * default_flags nor pfn_flags_mask ask for faults.
 *
 * As after rangeFault(), what comes back is good only if interval.readRetry(seq) says no, under the lock that invalidate() takes.
 */
import {
  type AddressSpace,
  isValid,
  loadPte,
  pfnOfPte,
  PTE_READ,
  unuseSpace,
  useSpace,
} from "../mm/index.ts";

/** Frame numbers of pages that cannot be read as they are. */
export const NO_FRAME = -1;

/**
 * Notes in `frames[k]` the frame of page `first + pages[k]` of the space, NO_FRAME where a read takes a fault; returns how
 * many have none. Never waits. Errors: ESRCH.
 */
export function snapshotPages(
  space: AddressSpace,
  first: number,
  pages: readonly number[],
  frames: Int32Array,
): number {
  let missing = 0;
  useSpace(space, "snapshotPages");
  try {
    for (let k = 0; k < pages.length; k++) {
      const pte = loadPte(space, first + pages[k]!);
      const readable = isValid(pte) && (pte & PTE_READ) !== 0;
      frames[k] = readable ? pfnOfPte(pte) : NO_FRAME;
      if (!readable) missing++;
    }
    return missing;
  } finally {
    unuseSpace(space);
  }
}
