/**
 * Pages in Chromium for the tests of a file. What stands in `page.evaluate()` runs in the page: it sees the globals of
 * pages/globals.ts and nothing of the test's file.
 */
import { existsSync } from "node:fs";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach, expect } from "vitest";
import { serve, type Site } from "./site.ts";

const CANDIDATES = [
  process.env["CHROMIUM_PATH"] ?? "",
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
];
const executablePath = CANDIDATES.find((path) => path !== "" && existsSync(path));
const MISSING = "Chromium is missing: install it (apt-get install chromium), or set CHROMIUM_PATH";

const ARGUMENTS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** WebGPU on SwiftShader, the GPU in software that Chromium brings. */
const GPU_ARGUMENTS = [
  ...ARGUMENTS.filter((argument) => argument !== "--disable-gpu"),
  "--enable-unsafe-webgpu",
  "--use-webgpu-adapter=swiftshader",
  "--enable-features=Vulkan",
];

export interface Pages {
  /** A page that is loaded and has its globals. Closed after the test, which fails if anything went wrong unheard in it. */
  open(options?: { isolated?: boolean }): Promise<Page>;
  /** Files of dist/ that the pages have loaded. */
  built(): string[];
}

/** Starts Chromium for the tests of this file. They are skipped where there is none, but not in continuous integration. */
export function usePages({ gpu = false }: { gpu?: boolean } = {}): Pages {
  let browser: Browser | undefined;
  const sites = new Map<boolean, Site>();
  const opened: { page: Page; problems: string[] }[] = [];

  beforeAll(async () => {
    if (executablePath)
      browser = await chromium.launch({ executablePath, args: gpu ? GPU_ARGUMENTS : ARGUMENTS });
    else if (process.env["CI"]) throw new Error(MISSING);
  });
  beforeEach((context) => context.skip(!browser, MISSING));
  afterEach(async () => {
    const problems: string[] = [];
    for (const { page, problems: found } of opened.splice(0)) {
      await page.close();
      problems.push(...found);
    }
    expect(problems).toEqual([]);
  });
  afterAll(async () => {
    await browser?.close();
    for (const site of sites.values()) await site.close();
  });

  return {
    async open({ isolated = true } = {}) {
      const site = sites.get(isolated) ?? (await serve(isolated));
      sites.set(isolated, site);
      const page = await browser!.newPage();
      const problems: string[] = [];
      opened.push({ page, problems });
      page.on("pageerror", (error) => problems.push(error.stack ?? error.message));
      page.on("console", (message) => {
        if (message.type() === "error") problems.push(message.text());
      });
      await page.goto(site.url);
      await page.waitForFunction(() => "bifolio" in globalThis);
      return page;
    },
    built: () => [...new Set([...sites.values()].flatMap((site) => [...site.built]))].sort(),
  };
}
