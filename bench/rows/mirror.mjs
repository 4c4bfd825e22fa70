/** The mirror command: the mirrors alone, as the command times them, and as a whole process. */
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
    "bifolio mirror of 1 GiB through 64 MiB in 3 agents, against 3 threads that hash it with plain streams",
  async run({ repetitions }) {
    const cli = pathOf("../../dist/cli.js");
    if (!existsSync(cli)) throw new Error(`${cli} is missing; run npm run build first`);
    const path = temporaryFile(BYTES);
    const names = ["mirror", "streams", "largeStreams"];
    const seconds = Object.fromEntries(names.map((name) => [name, []]));
    const rss = Object.fromEntries(names.map((name) => [name, []]));
    const peakFrames = [];
    const bytesHashed = AGENTS * BYTES;
    let expected;
    const note = (name, result) => {
      seconds[name].push(result.seconds);
      rss[name].push(result.report.peakRssBytes / MIB);
      return bytesHashed / result.report.seconds / 1e9;
    };
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
      const result = await timedScript(cli, "mirror", path, ...options, "--json");
      const { report } = result;
      if (!report.coherent) throw new Error("the mirror was not coherent");
      if (expected && report.sha256 !== expected) throw new Error("the mirror's hash is not the file's");
      peakFrames.push(report.peakFrameBytes / MIB);
      return note("mirror", result);
    };
    const hashThreads =
      (name, ...chunkBytes) =>
      async () => {
        const result = await timedScript(pathOf("../lib/hashThreads.mjs"), path, `${AGENTS}`, ...chunkBytes);
        [expected] = result.report.hashes;
        return note(name, result);
      };
    const samples = await interleave(
      {
        streams: hashThreads("streams"),
        largeStreams: hashThreads("largeStreams", `${MIB}`),
        mirror,
      },
      { repetitions: Math.min(repetitions, REPETITIONS), warmUps: 0 },
    );
    const streams = (of) => ({ name: "plain streams", samples: of.streams });
    const largeStreams = (of) => ({ name: "streams of 1 MiB chunks", samples: of.largeStreams });
    return {
      notes: [
        "the command also hashes the file once with a plain stream, to compare; that is in the whole process only, with the start",
      ],
      lines: [
        lineOf({
          what: "file bytes hashed, all agents",
          unit: "GB/s",
          bifolio: samples.mirror,
          alternative: streams(samples),
          goal: "at least 0.6 x",
        }),
        lineOf({
          what: "file bytes hashed, all agents",
          unit: "GB/s",
          bifolio: samples.mirror,
          alternative: largeStreams(samples),
        }),
        lineOf({ what: "whole process", unit: "s", bifolio: seconds.mirror, alternative: streams(seconds) }),
        lineOf({
          what: "whole process",
          unit: "s",
          bifolio: seconds.mirror,
          alternative: largeStreams(seconds),
        }),
        lineOf({
          what: "peak resident set",
          unit: "MiB",
          bifolio: rss.mirror,
          alternative: streams(rss),
          goal: `at most ${BUDGET_MIB} + 200 MiB`,
        }),
        lineOf({ what: "peak frames", unit: "MiB", bifolio: peakFrames, goal: `at most ${BUDGET_MIB} MiB` }),
      ],
    };
  },
};
