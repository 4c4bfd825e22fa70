/** mm/: the primary MMU. Address spaces, faults, page cache, reclaim, each agent's TLB. Linux: mm/. */
export type { Span } from "./access.ts";
export type { Pin } from "./pin.ts";
export { type Backing, memoryBacking, registerBacking } from "./backing.ts";
export { MappedFile } from "./mappedFile.ts";
export type { Advice } from "./advice.ts";
export type { Refs } from "./clearRefs.ts";
export type { MoveOptions } from "./mremap.ts";
export type { MsyncFlags } from "./msync.ts";
export type { Prot } from "./ranges.ts";
export {
  attach,
  createMemory,
  type MemoryOptions,
  type MemoryStats,
  type OpenOptions,
  PhysicalMemory,
  type WorkerLike,
} from "./memory.ts";
export {
  AddressSpace,
  type MmapOptions,
  type PagemapEntry,
  type SpaceAtomics,
  type SpaceOperations,
  type Vma,
} from "./space.ts";
export type { WaitResult } from "./waitWord.ts";
// For the rows above.
export {
  createDevice,
  destroyDevice,
  type DeviceCopy,
  type DeviceCore,
  deviceOf,
  type DeviceOps,
} from "./device.ts";
export { releaseExclusive, takeExclusiveOp } from "./exclusive.ts";
export { faultOp } from "./fault.ts";
export {
  detachedOp,
  evictDeviceOp,
  type Moved,
  poisonOp,
  toDeviceOp,
  toMemoryOp,
  waitMovedOp,
} from "./migrate.ts";
export { readingOp, readingPlainOp } from "./ranges.ts";
export { VM_READ, VM_WRITE } from "./layout.ts";
export { findVma, vmaEnd, vmaFlags } from "./vma.ts";
export { unuseSpace, useSpace, usingOp } from "./lifetime.ts";
export {
  isValid,
  kindOfPte,
  pfnOfPte,
  PTE_DEVICE_PRIVATE,
  PTE_GUARD,
  PTE_MIGRATION,
  PTE_POISON,
  PTE_READ,
  PTE_WRITE,
} from "./pte.ts";
export { presentPages } from "./pageTables.ts";
export { WriteTracker } from "./writeTracker.ts";
export { loadPte } from "./pageTables.ts";
export { COPY_DOUBTFUL, COPY_SAFE, COPY_WATCHED, copyHolds, copyWorth } from "./unwritten.ts";
