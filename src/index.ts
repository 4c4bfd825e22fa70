/** Entry `bifolio`: shared address spaces for JavaScript agents, and the frames and files behind them. */
export { BusError, isMmError, MmError, type MmErrorCode, SegvError } from "./errors.ts";
export {
  HMM_VALID,
  HMM_WRITE,
  hmmPfn,
  type RangeFault,
  rangeFault,
  type RangeFaultVariants,
} from "./hmm/index.ts";
export type { MemoryHandle } from "./memory/index.ts";
export {
  AddressSpace,
  type Advice,
  attach,
  type Backing,
  createMemory,
  MappedFile,
  memoryBacking,
  type MemoryOptions,
  type MemoryStats,
  type MmapOptions,
  type OpenOptions,
  type PagemapEntry,
  PhysicalMemory,
  type Pin,
  type Prot,
  registerBacking,
  type Span,
  type SpaceAtomics,
  type SpaceOperations,
  type Vma,
  type WaitResult,
  type WorkerLike,
} from "./mm/index.ts";
