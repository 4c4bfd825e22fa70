/** Serves the built package and the pages of these tests from 127.0.0.1. Types are stripped from TypeScript on the way. */
import { readFile } from "node:fs/promises";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { transform } from "rolldown/utils";
import { ROOT } from "../../lib/sources.ts";

/** What pages name by its source, for the types; they get what users get. */
const BUILT: Readonly<Record<string, string>> = {
  "/src/index.ts": "/dist/index.js",
  "/src/notifier/index.ts": "/dist/notifier.js",
  "/src/syncEntry.ts": "/dist/sync.js",
  "/src/webgpuEntry.ts": "/dist/webgpu.js",
};
const SERVED = /^\/(?:dist|test\/browser\/pages)\/[\w-]+\.(html|js|ts)$/;
const TYPES: Readonly<Record<string, string>> = {
  html: "text/html; charset=utf-8",
  js: "text/javascript",
  ts: "text/javascript",
};
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

export interface Site {
  readonly url: string;
  /** Paths that were answered with a file of dist/. */
  readonly built: ReadonlySet<string>;
  close(): Promise<void>;
}

/** `isolated`: with the headers that make shared memory available. */
export async function serve(isolated: boolean): Promise<Site> {
  const built = new Set<string>();
  const headers = { "Cache-Control": "no-store", ...(isolated ? ISOLATION : {}) };
  const answer = async (path: string, response: ServerResponse): Promise<void> => {
    const target = BUILT[path];
    if (target) {
      response.writeHead(302, { ...headers, Location: target }).end();
      return;
    }
    const extension = SERVED.exec(path)?.[1];
    if (!extension) {
      response.writeHead(path === "/favicon.ico" ? 204 : 404, headers).end();
      return;
    }
    const text = await readFile(ROOT + path.slice(1), "utf8");
    const body = extension === "ts" ? (await transform(path, text)).code : text;
    if (path.startsWith("/dist/")) built.add(path);
    response.writeHead(200, { ...headers, "Content-Type": TYPES[extension]! }).end(body);
  };
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://127.0.0.1");
    answer(pathname, response).catch((error: unknown) => {
      response.writeHead(500, { ...headers, "Content-Type": "text/plain" }).end(String(error));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}/test/browser/pages/page.html`,
    built,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
