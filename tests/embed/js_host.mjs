// node js_host.mjs HOST NODE_MODULES MODULE BUNDLES CHROMIUM: runs js_cases.mjs with the module ohlol.mjs of the folder
// MODULE in HOST, "node" or "chromium". The work comes on stdin, as JSON; the answers go to stdout.
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join } from "node:path";
import { pathToFileURL } from "node:url";

const [host, modules, module, bundles, chromium] = process.argv.slice(2);
const installed = createRequire(join(modules, "package.json"));
const input = readFileSync(0, "utf8");

process.stdout.write(await (host === "node" ? inNode() : inChromium()));

async function inNode() {
  globalThis.reading = { read: async (file) => new Uint8Array(await readFile(file)) };
  const ort = installed("onnxruntime-node");
  const { load } = await import(pathToFileURL(join(module, "ohlol.mjs")));
  const { answers } = await import(pathToFileURL(join(import.meta.dirname, "js_cases.mjs")));
  const given = (source, options = { ort }) => load(source, options);
  return JSON.stringify(await answers(given, JSON.parse(input), (name) => join(bundles, name)));
}

/** The page has nothing but an import map: no bundler, and the runtime found by its name. */
async function inChromium() {
  const roots = {
    cases: import.meta.dirname,
    ohlol: module,
    bundles,
    ort: join(modules, "node_modules/onnxruntime-web/dist"),
    half: join(modules, "node_modules/onnxruntime-web/dist"), // its .wasm is a web page
  };
  const types = {
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".html": "text/html",
    ".json": "application/json",
  };
  const page = (runtime) => `<!doctype html><script type="importmap">
    {"imports": {"ohlol": "/ohlol/ohlol.mjs"${runtime && `, "onnxruntime-web": "${runtime}/ort.wasm.min.mjs"`}}}</script>`;
  const strict = { "content-security-policy": "script-src 'self' 'unsafe-inline'" };
  const pages = { "": page("/ort"), any: page("/ort"), bare: page(""), half: page("/half"), strict: page("/ort") };
  const server = createServer(async ({ url }, response) => {
    const [, root, ...path] = decodeURIComponent(new URL(url, "http://localhost").pathname).split("/");
    try {
      const isPage = root in pages && !url.endsWith(".mjs"); // for other paths too, as hosts of single-page apps do
      const content = isPage ? pages[root] : await readFile(join(roots[root], ...path));
      const type = types[isPage ? ".html" : extname(url)] ?? "application/octet-stream";
      response.writeHead(200, { "content-type": type, ...(root === "strict" && strict) });
      response.end(content);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking";
  const args = `${flags} --disable-component-update --disable-sync`.split(" ");
  const browser = await installed("playwright-core").chromium.launch({ executablePath: chromium, args });
  try {
    const tab = await browser.newPage();
    tab.on("pageerror", (error) => process.stderr.write(`${error}\n`));
    await tab.goto(`http://127.0.0.1:${server.address().port}/`);
    const answers = await tab.evaluate(async (work) => {
      globalThis.reading = { read: async (file) => new Uint8Array(await (await fetch(file)).arrayBuffer()) };
      const { load } = await import("ohlol");
      const { answers } = await import("/cases/js_cases.mjs");
      return await answers(load, JSON.parse(work), (name) => `/bundles/${name}`);
    }, input);
    for (const name of ["bare", "half", "strict"]) {
      await tab.goto(`http://127.0.0.1:${server.address().port}/${name}`);
      answers.refusals[`a page: ${name}`] = await tab.evaluate(async () => {
        const { load } = await import("ohlol");
        return load("/bundles/tag-gru").then(String, (error) => [error.constructor.name, error.message]);
      });
    }
    return JSON.stringify(answers);
  } finally {
    await browser.close();
    server.close();
  }
}
