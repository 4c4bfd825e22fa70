/** What the figures of a run depend on, printed with them. */
import { availableParallelism, cpus, loadavg, release, totalmem } from "node:os";

export function environment() {
  return {
    node: process.version,
    v8: process.versions.v8,
    platform: `${process.platform} ${process.arch} ${release()}`,
    cores: availableParallelism(),
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    memoryBytes: totalmem(),
    // Others at work on this machine widen the spread.
    load: Number(loadavg()[0].toFixed(2)),
  };
}

export function describeEnvironment(e) {
  const gib = (e.memoryBytes / 1024 ** 3).toFixed(0);
  return `node ${e.node} (V8 ${e.v8}), ${e.platform}, ${e.cores} cores, ${e.cpu}, ${gib} GiB, load ${e.load}`;
}
