/** The build that worker threads load, for tests that share a memory with them: the same chunks, the same layout. */
import type * as Testing from "../../src/testing.ts";

export const bifolio: typeof Testing = (await import(
  new URL("../../.test-build/testing.js", import.meta.url).href
)) as typeof Testing;
