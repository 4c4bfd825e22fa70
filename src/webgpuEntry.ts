/**
 * Entry `bifolio/webgpu`: mirrors of an address space in the memory of a GPU. The caller brings the GPUDevice: a
 * browser's, or that of the npm package `webgpu` in Node.
 */
/// <reference types="@webgpu/types" />
export {
  createGpuMmu,
  type GpuDispatch,
  GpuMmu,
  type GpuMmuOptions,
  type GpuMmuStats,
  type GpuRange,
  type GpuRun,
  type GpuRunOptions,
  mirrorRange,
  type RangeMirror,
  type RangeMirrorCounts,
  type RangeMirrorOptions,
} from "./mirrors/webgpu/index.ts";
