// Pages of `python -m monai_xtiny web` in headless Chromium, as a user meets them.
// usage: node e2e.mjs DIR, which scripts/web_e2e.py prepared: sites, images, and the labels of Python
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { dirname, extname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

import { decode } from "fast-png";
import { chromium } from "playwright-core";

import { readNifti } from "./src/nifti.js";

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(process.argv[2]);
const cases = JSON.parse(await readFile(join(root, "cases.json"), "utf8"));
const LEAST_EQUAL = 0.999;
const PATIENCE = 300_000; // ms, of a machine that does other things too
const TYPES = {
  ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript",
  ".wasm": "application/wasm",
}; // prettier-ignore
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update",
]; // prettier-ignore
const browserPath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(
  (path) => existsSync(path),
);

/** The folder under a path that no page can know beforehand. */
async function serve() {
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://x").pathname);
    const inside = path.replace(/^\/any path\//, "");
    const file = join(root, inside.endsWith("/") ? `${inside}index.html` : inside);
    try {
      const content = await readFile(file);
      response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream" });
      response.end(content);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return { server, origin: `http://127.0.0.1:${server.address().port}` };
}

/** Everything that a page asks for, and everything that goes wrong in it. */
function watch(page) {
  const seen = { requests: [], errors: [] };
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") seen.errors.push(message.text());
  });
  return seen;
}

async function state(page, wanted) {
  await page.waitForFunction((name) => document.body.dataset.state === name, wanted, {
    timeout: PATIENCE,
    polling: 50,
  });
}

async function readLabel(path) {
  const bytes = await readFile(path);
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  if (/\.png$/.test(path)) return decode(new Uint8Array(buffer)).data;
  return readNifti(buffer).values;
}

/** Label an image by the file button, and compare the file that the page hands out. */
async function label(page, item) {
  await page.locator("#file").setInputFiles(item.images);
  await Promise.race([state(page, "done"), state(page, "failed")]);
  assert.equal(await page.locator("#problem").isVisible(), false, await page.textContent("#problem"));
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  const path = join(root, "downloads", download.suggestedFilename());
  await download.saveAs(path);
  const [found, expected] = [await readLabel(path), await readLabel(item.label)];
  assert.equal(found.length, expected.length);
  let [equal, inside] = [0, 0];
  expected.forEach((value, index) => {
    equal += value === found[index] ? 1 : 0;
    inside += value > 0 ? 1 : 0;
  });
  assert.ok(inside > 0, "the expected label is empty: nothing is compared");
  const share = equal / expected.length;
  console.log(`${item.name}: ${(100 * share).toFixed(4)} % as Python; ${await page.textContent("#status")}`);
  assert.ok(share >= LEAST_EQUAL, `${item.name}: ${share}`);
  return found;
}

/** The amounts beside the names of the classes are those of the label. */
async function checkAmounts(page, item, found) {
  const rows = await page.$$eval("#classes tr", (all) =>
    all.map((row) => [row.querySelector("th").textContent, row.querySelector("td").textContent]),
  );
  assert.deepEqual(rows.map(([name]) => name), item.labels.slice(1));
  for (const [index, [, text]] of rows.entries()) {
    const count = found.reduce((sum, value) => sum + (value === index + 1 ? 1 : 0), 0);
    const expected = item.voxel_ml === null ? count : count * item.voxel_ml;
    assert.ok(Math.abs(Number(text.replaceAll(",", "")) - expected) <= 5e-4 * Math.max(1, expected), text);
  }
}

async function checkAccess(page, name) {
  await page.evaluate(await readFile(join(here, "node_modules/axe-core/axe.min.js"), "utf8"));
  const found = await page.evaluate(() => globalThis.axe.run());
  const faults = found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((n) => n.html).join(" ")}`);
  assert.deepEqual(faults, [], `${name}: axe-core`);
  assert.ok(found.passes.length > 10);
}

/** From the top by Tab alone: the button, the label's switch, its opacity, the download. */
async function checkKeyboard(page) {
  await page.evaluate(() => document.activeElement.blur());
  const reached = [];
  for (let press = 0; press < 8; press++) {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => document.activeElement.id));
  }
  for (const id of ["choose", "visible", "opacity", "download"]) assert.ok(reached.includes(id), `${id}: ${reached}`);
  const before = await colors(page);
  await page.focus("#visible");
  await page.keyboard.press("Space");
  await page.waitForTimeout(300);
  assert.notEqual(await colors(page), before, "the label is still there");
  await page.keyboard.press("Space");
  await page.focus("#opacity");
  await page.keyboard.press("End");
  await page.waitForTimeout(300);
  assert.equal((await page.textContent("#opacity-value")).trim(), "100 %");
  assert.notEqual(await colors(page), before, "the opacity stays");
  const [chooser] = await Promise.all([
    page.waitForEvent("filechooser"),
    page.focus("#choose").then(() => page.keyboard.press("Enter")),
  ]);
  assert.ok(chooser.isMultiple());
}

async function checkCrosshair(page) {
  const before = await colors(page);
  await page.focus("#image-3d");
  for (const key of ["PageUp", "ArrowLeft", "ArrowUp"]) await page.keyboard.press(key);
  await page.waitForTimeout(500);
  assert.notEqual(await colors(page), before, "the crosshair stays");
}

/** The image as it is on the screen. */
async function colors(page) {
  return (await page.locator(".view canvas:visible").screenshot()).toString("base64");
}

/** A file that is none gets a sentence, and the page goes on. */
async function checkRefusals(page, item) {
  for (const { file, says } of item.refused) {
    await page.locator("#file").setInputFiles(file);
    await state(page, "failed");
    const text = await page.textContent("#problem");
    assert.match(text, new RegExp(says), `${file}: ${text}`);
    assert.ok(text.length < 250 && !text.includes("undefined"), text);
    console.log(`refused: ${text}`);
  }
}

/** A drop on the page, as a browser hands it over. */
async function drop(page, path) {
  const content = (await readFile(path)).toString("base64");
  const transfer = await page.evaluateHandle(
    ([text, name]) => {
      const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      const held = new DataTransfer();
      held.items.add(new File([bytes], name));
      return held;
    },
    [content, path.split("/").at(-1)],
  );
  await page.dispatchEvent("body", "dragover", { dataTransfer: transfer });
  await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
}

async function screens(page, name) {
  for (const [width, scheme] of [[1280, "light"], [1280, "dark"], [390, "light"], [390, "dark"]]) {
    await page.setViewportSize({ width, height: 900 });
    await page.emulateMedia({ colorScheme: scheme });
    await page.waitForTimeout(400);
    await page.screenshot({ path: join(root, "screens", `${name}_${width}_${scheme}.png`), fullPage: true });
    await checkAccess(page, `${name} ${width} ${scheme}`);
  }
  await page.setViewportSize({ width: 1280, height: 900 });
}

/** One kind of page, served or from disk, from opening it to its last refusal. */
async function checkPage(context, item, url, isServed) {
  const page = await context.newPage();
  const seen = watch(page);
  await page.goto(url);
  await Promise.race([state(page, "ready"), state(page, "failed")]);
  assert.equal(await page.locator("#problem").isVisible(), false, await page.textContent("#problem"));
  if (isServed) await checkAccess(page, `${item.name}, empty`);
  const found = await label(page, item);
  await checkAmounts(page, item, found);
  if (isServed && !item.brief) {
    await screens(page, item.name);
    await checkKeyboard(page);
    if (item.voxel_ml !== null) await checkCrosshair(page);
    await checkRefusals(page, item);
    await checkAccess(page, `${item.name}, refused`);
    await drop(page, item.images[0]);
    await state(page, "done");
    await measureTime(page, item);
  }
  if (isServed) {
    for (const [index, other] of item.others.entries()) {
      await label(page, { ...item, ...other, name: `${item.name}, other ${index}` });
    }
  }
  const base = isServed ? new URL(url).href : url;
  const outside = seen.requests.filter((asked) => !/^(blob:|data:)/.test(asked) && !asked.startsWith(base));
  assert.deepEqual(outside, [], "requests outside of the page");
  assert.deepEqual(seen.errors, [], "errors in the console");
  await page.close();
}

/** The same image again: the session is warm. */
async function measureTime(page, item) {
  const times = [];
  for (let turn = 0; turn < 3; turn++) {
    await page.evaluate(() => (document.body.dataset.state = "again"));
    await page.locator("#file").setInputFiles(item.images);
    await state(page, "done");
    times.push(await page.textContent("#status"));
  }
  console.log(`${item.name}, again: ${times.at(-1)}`);
}

/** Pages of several files that were opened from disk, or lost one, say so. */
async function checkBroken(context, item, origin) {
  const page = await context.newPage();
  await page.goto(pathToFileURL(join(root, item.site, "index.html")).href);
  await state(page, "failed");
  assert.match(await page.textContent("#problem"), /--single_file/);
  await page.route("**/model.onnx", (route) => route.fulfill({ status: 404 }));
  await page.goto(`${origin}/any path/${item.site}/`);
  await state(page, "failed");
  assert.match(await page.textContent("#problem"), /model\.onnx: 404/);
  await page.close();
}

/** The file that stands alone, in the browser: raw pixels in, Python's label out. */
async function checkStandalone(context, item, origin) {
  const page = await context.newPage();
  await page.goto(`${origin}/any path/standalone/`);
  const image = decode(await readFile(item.images[0]));
  const found = await page.evaluate(
    async ([pixels, width, height]) => {
      const ort = await import("./ort.wasm.bundle.min.mjs");
      ort.env.wasm.numThreads = 1;
      const session = await ort.InferenceSession.create("./model_standalone.onnx");
      const data = new ort.Tensor("uint8", Uint8Array.from(pixels), [1, height, width, 1]);
      const { label, probability } = await session.run({ image: data });
      return { label: [...label.data], dims: label.dims, shares: probability.dims };
    },
    [[...image.data], image.width, image.height],
  );
  assert.deepEqual(found.dims, [1, image.height, image.width]);
  assert.deepEqual(found.shares, [1, image.height, image.width, item.labels.length]);
  const expected = await readLabel(item.label);
  const equal = expected.reduce((sum, value, index) => sum + (value === found.label[index] ? 1 : 0), 0);
  console.log(`model_standalone.onnx: ${((100 * equal) / expected.length).toFixed(4)} % as Python`);
  assert.ok(equal / expected.length >= LEAST_EQUAL);
  await page.close();
}

assert.ok(browserPath, "no Chromium: install chromium");
for (const folder of ["downloads", "screens"]) await mkdir(join(root, folder), { recursive: true });
const { server, origin } = await serve();
const profile = await mkdtemp(join(tmpdir(), "xtiny-chromium-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: browserPath,
  headless: true,
  args: FLAGS,
});
context.setDefaultTimeout(PATIENCE);
try {
  for (const item of cases) {
    console.log(`== ${item.name}`);
    await checkPage(context, item, `${origin}/any%20path/${item.site}/`, true);
    if (item.brief) continue; // the same page, and another network
    await checkPage(context, item, pathToFileURL(join(root, item.single_file)).href, false);
    if (item.standalone) await checkStandalone(context, item, origin);
  }
  await checkBroken(context, cases[0], origin);
  console.log("every page labels as Python does, and asks nothing of elsewhere");
} finally {
  await context.close();
  server.close();
  await rm(profile, { recursive: true, force: true });
}
