/** The mirror command as a whole process. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { performance } from "node:perf_hooks";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { interleave, lineOf } from "../lib/interleave.mjs";
import { MIB } from "../lib/memory.mjs";
import { temporaryFile } from "../lib/temporaryFile.mjs";

const BYTES = 1024 * MIB;
const BUDGET_MIB = 64;
const AGENTS = 3;
/** Seconds each, so fewer than elsewhere. */
const REPETITIONS = 3;

const run = promisify(execFile);
const pathOf = (relative) => fileURLToPath(new URL(relative, import.meta.url));

/** Runs a script; returns what it printed, and how long the process took from outside. */
async function timedScript(...args) {
  const begin = performance.now();
  const { stdout } = await run(process.execPath, args, { maxBuffer: 64 * MIB });
  return { report: JSON.parse(stdout), seconds: (performance.now() - begin) / 1000 };
}

export default {
  measures:
    "whole process: bifolio mirror of 1 GiB through 64 MiB in 3 agents, against 3 threads that hash it with plain streams",
  async run({ repetitions }) {
    const cli = pathOf("../../dist/cli.js");
    if (!existsSync(cli)) throw new Error(`${cli} is missing; run npm run build first`);
    const path = temporaryFile(BYTES);
    const rss = { mirror: [], streams: [] };
    const peakFrames = [];
    const bytesHashed = AGENTS * BYTES;
    let expected;
    const mirror = async () => {
      const options = [
        "--budget",
        `${BUDGET_MIB}MiB`,
        "--agents",
        `${AGENTS}`,
        "--passes",
        "1",
        "--churn",
        "0",
      ];
      const { report, seconds } = await timedScript(cli, "mirror", path, ...options, "--json");
      if (!report.coherent) throw new Error("the mirror was not coherent");
      if (expected && report.sha256 !== expected) throw new Error("the mirror's hash is not the file's");
      rss.mirror.push(report.peakRssBytes / MIB);
      peakFrames.push(report.peakFrameBytes / MIB);
      return bytesHashed / seconds / 1e9;
    };
    const streams = async () => {
      const { report, seconds } = await timedScript(pathOf("../lib/hashThreads.mjs"), path, `${AGENTS}`);
      [expected] = report.hashes;
      rss.streams.push(report.peakRssBytes / MIB);
      return bytesHashed / seconds / 1e9;
    };
    const samples = await interleave(
      { streams, mirror },
      { repetitions: Math.min(repetitions, REPETITIONS), warmUps: 0 },
    );
    return {
      lines: [
        lineOf({
          what: "file bytes hashed, all agents",
          unit: "GB/s",
          bifolio: samples.mirror,
          alternative: { name: "streams", samples: samples.streams },
          goal: "at least 0.6 x",
        }),
        lineOf({
          what: "peak resident set",
          unit: "MiB",
          bifolio: rss.mirror,
          alternative: { name: "streams", samples: rss.streams },
          goal: `at most ${BUDGET_MIB} + 200 MiB`,
        }),
        lineOf({ what: "peak frames", unit: "MiB", bifolio: peakFrames, goal: `at most ${BUDGET_MIB} MiB` }),
      ],
    };
  },
};
