/** hmm/: what drivers of secondary MMUs need of the page tables. Linux: mm/hmm.c, mm/migrate_device.c. */
export {
  createDeviceMemory,
  type DeviceCopy,
  DeviceMemory,
  type DeviceMemoryOptions,
  type DeviceOps,
  type DevicePage,
  type LostRange,
  type MigrateRange,
  type MigrateToDevice,
  migrateToDevice,
  migrateToMemory,
  type Variants,
} from "./deviceMemory.ts";
export {
  ExclusivePage,
  makeDeviceExclusive,
  type MakeExclusive,
  type MakeExclusiveVariants,
} from "./exclusive.ts";
export {
  HMM_DMA_MAPPED,
  HMM_ERROR,
  HMM_P2PDMA,
  HMM_P2PDMA_BUS,
  HMM_REQ_FAULT,
  HMM_REQ_WRITE,
  HMM_VALID,
  HMM_WRITE,
  hmmPfn,
  type RangeFault,
  rangeFault,
  rangeFaultOp,
  type RangeFaultVariants,
} from "./rangeFault.ts";
export { NO_FRAME, snapshotPages } from "./snapshotPages.ts";
