/** mirrors/webgpu/: a GPU as secondary MMU of an address space. The only part of Bifolio that needs WebGPU's types. */
export {
  createGpuMmu,
  type GpuDispatch,
  GpuMmu,
  type GpuMmuOptions,
  type GpuMmuStats,
  type GpuRange,
  type GpuRun,
  type GpuRunOptions,
} from "./gpuMmu.ts";
export { mirrorRange, RangeMirror, type RangeMirrorCounts, type RangeMirrorOptions } from "./rangeMirror.ts";
