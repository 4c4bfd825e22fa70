import { defineConfig } from "vitest/config";
import type { ViteUserConfig } from "vitest/config";

const config: ViteUserConfig = defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: [
            "test/unit/**/*.test.ts",
            "test/property/**/*.test.ts",
            "test/check/**/*.test.ts",
            "test/hmm/**/*.test.ts",
            "test/linux/**/*.test.ts",
          ],
        },
      },
      {
        // Real worker threads; they load .test-build/, so build first.
        test: {
          name: "agents",
          include: ["test/agents/**/*.test.ts"],
          pool: "forks",
          fileParallelism: false,
          testTimeout: 60_000,
          hookTimeout: 60_000,
        },
      },
      {
        // Chromium with the built package, so build first.
        test: {
          name: "browser",
          include: ["test/browser/**/*.test.ts"],
          fileParallelism: false,
          testTimeout: 60_000,
          hookTimeout: 60_000,
        },
      },
      {
        // Dawn, in processes of its own: a crash of the driver takes one file with it.
        test: {
          name: "webgpu",
          include: ["test/webgpu/**/*.test.ts"],
          pool: "forks",
          fileParallelism: false,
          testTimeout: 60_000,
          hookTimeout: 60_000,
        },
      },
      {
        test: {
          name: "package",
          include: ["test/package/**/*.test.ts"],
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});

export default config;
