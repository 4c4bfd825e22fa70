/** mirrors/: secondary MMUs. Each uses notifier/, hmm/ and the space's public face only. */
export { type MirrorCounts, TableMirror, type TableMirrorOptions } from "./tableMirror.ts";
