/**
 * Every recorded program once more, with each process in a worker thread of its own. What the processes share is the
 * memory alone, and each invalidation is heard in another agent than the one that raises it. Needs a build.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ROOT } from "../lib/sources.ts";
import { compare, counted, details, readCorpus } from "./conformance.ts";
import { WorkerPool } from "./workerPool.ts";

const corpus = readCorpus(ROOT);
/** A program takes some ten milliseconds; nobody waits for longer than this where one hangs. */
const TIMEOUT_MS = 20_000;

describe.each([
  ["that may block", true],
  ["that may not block", false],
])("in workers %s", (_, mayBlock) => {
  let pool: WorkerPool;
  beforeAll(() => (pool = new WorkerPool()));
  afterAll(() => pool.close());

  test.each(corpus)("$name", { timeout: TIMEOUT_MS }, async (program) => {
    const compared = await compare(program, {
      debug: true,
      spaceIn: (place) => pool.start(place, mayBlock),
    });
    expect(compared.failure).toBeUndefined();
    expect(counted(compared), details(compared)).toEqual([]);
  });

  test("each process had a worker of its own, and the workers were used again", () => {
    const most = Math.max(
      ...corpus.map(({ program }) => new Set(program.match(/"(?:in|as)":"p\d+"/g) ?? []).size),
    );
    expect(pool.threads).toBeGreaterThan(1);
    expect(pool.threads).toBeLessThanOrEqual(most + 1);
    expect(pool.processes).toBeGreaterThan(corpus.length);
  });
});
