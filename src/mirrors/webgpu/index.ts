/** mirrors/webgpu/: a GPU as secondary MMU of an address space. The only part of Bifolio that needs WebGPU's types. */
export { mirrorRange, RangeMirror, type RangeMirrorCounts, type RangeMirrorOptions } from "./rangeMirror.ts";
