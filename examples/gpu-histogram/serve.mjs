/**
 * The same in the browser: node examples/gpu-histogram/serve.mjs [PORT], then open the address that it prints.
 *
 * Pages with shared memory need two headers; and names of packages become addresses here, because workers know no
 * import map.
 */
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

const HERE = "/examples/gpu-histogram/";
const ROOT = new URL("../..", import.meta.url);
const SERVED = /^\/(?:dist|examples\/gpu-histogram)\/[\w-]+\.(html|js|mjs)$/;
const TYPES = { html: "text/html; charset=utf-8", js: "text/javascript", mjs: "text/javascript" };
const HEADERS = {
  "Cache-Control": "no-store",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

async function answer(url, response) {
  const { pathname } = new URL(url, "http://localhost");
  const extension = SERVED.exec(pathname)?.[1];
  if (!extension) {
    response.writeHead(pathname === "/favicon.ico" ? 204 : 404, HEADERS).end();
    return;
  }
  let text = await readFile(new URL(`.${pathname}`, ROOT), "utf8");
  if (extension === "mjs") {
    text = text.replaceAll('from "bifolio"', 'from "/dist/index.js"');
    text = text.replaceAll('from "bifolio/webgpu"', 'from "/dist/webgpu.js"');
  }
  response.writeHead(200, { ...HEADERS, "Content-Type": TYPES[extension] }).end(text);
}

/** Returns { url, close() }. */
export async function serve(port = 0) {
  const server = createServer((request, response) => {
    answer(request.url, response).catch((error) => response.writeHead(500, HEADERS).end(String(error)));
  });
  await new Promise((resolve, reject) => server.once("error", reject).listen(port, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}${HERE}page.html`,
    close: () => {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(() => resolve()));
    },
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const port = process.argv[2] ?? "8080";
  try {
    if (!/^\d{1,5}$/.test(port) || Number(port) > 65535) throw new Error(`${port} is no port`);
    const { url } = await serve(Number(port));
    console.log(url);
  } catch (error) {
    console.error(error.message);
    process.exitCode = 2;
  }
}
