// Builds the page's parts into a folder: page.js, runtime.wasm, index.html, style.css, licenses.txt.
// usage: node build.mjs DIR
import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import * as esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = process.argv[2];
const options = {
  bundle: true,
  minify: true,
  legalComments: "none",
  format: "iife",
  target: "es2022",
  charset: "ascii",
  logLevel: "error",
  metafile: true,
  write: false,
  // ONNX Runtime asks where it was loaded from; it was not, its parts are handed to it.
  define: { "import.meta.url": '"blob:null"' },
};

const inputs = new Set();

async function bundle(entry, plugins = []) {
  const built = await esbuild.build({ ...options, entryPoints: [entry], plugins });
  for (const input of Object.keys(built.metafile.inputs)) inputs.add(input);
  return built.outputFiles[0].text;
}

// The worker travels in the page as text, so that it starts from disk too.
const workerAsText = {
  name: "worker",
  setup(build) {
    build.onResolve({ filter: /^worker:/ }, ({ path, resolveDir }) => ({
      path: join(resolveDir, path.slice("worker:".length)),
      namespace: "worker",
    }));
    build.onLoad({ filter: /.*/, namespace: "worker" }, async ({ path }) => ({
      contents: await bundle(path),
      loader: "text",
    }));
  },
};

/** Packages that are in the page, each with its license's text. */
async function licenses() {
  const names = new Set(["onnxruntime-web"]);
  for (const input of inputs) {
    const found = input.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//g);
    for (const piece of found ?? []) names.add(piece.slice("node_modules/".length, -1));
  }
  const texts = [];
  for (const name of [...names].sort()) {
    const root = join(here, "node_modules", name);
    const about = JSON.parse(await readFile(join(root, "package.json"), "utf8"));
    const places = ["LICENSE", "LICENSE.md", "LICENSE.txt", "license", "License", "LICENCE"];
    const files = [...places.map((file) => join(root, file)), join(here, "licenses", `${name.replace("/", "__")}.txt`)];
    let text = null;
    for (const file of files) text ??= await readFile(file, "utf8").catch(() => null);
    if (text === null) throw new Error(`${name} has no license file: add one to licenses/`);
    texts.push(`${name} ${about.version} (${about.license})\n\n${text.trim()}\n`);
  }
  return texts.join(`\n${"-".repeat(72)}\n\n`);
}

const page = await bundle(join(here, "src", "page.js"), [workerAsText]);
await mkdir(target, { recursive: true });
await writeFile(join(target, "page.js"), page);
await writeFile(join(target, "licenses.txt"), await licenses());
for (const name of ["index.html", "style.css"]) await copyFile(join(here, "src", name), join(target, name));
await copyFile(
  join(here, "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"),
  join(target, "runtime.wasm"),
);
