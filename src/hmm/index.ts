/** hmm/: what drivers of secondary MMUs need of the page tables. Linux: mm/hmm.c. */
export {
  HMM_VALID,
  HMM_WRITE,
  hmmPfn,
  type RangeFault,
  rangeFault,
  rangeFaultOp,
  type RangeFaultVariants,
} from "./rangeFault.ts";
export { frameBytes, NO_FRAME, snapshotPages } from "./snapshotPages.ts";
