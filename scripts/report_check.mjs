// A bundle's report in Chromium: wide and narrow, light and dark, and in print.
//
//   NODE_PATH=node_modules node scripts/report_check.mjs REPORT.html [--screenshots FOLDER]
//
// It fails where axe-core finds a violation, the page is wider than its window, it asks for anything
// but itself, or the console has a word to say. It needs playwright-core and axe-core (npm) and a
// Chromium: CHROMIUM names one that is not at /usr/bin/chromium.
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(import.meta.url); // unlike import, it heeds NODE_PATH
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];
// Of an A4 page, 673 pixels lie between the margins.
const VIEWS = [
  { name: "wide_light", width: 1200, colorScheme: "light" },
  { name: "wide_dark", width: 1200, colorScheme: "dark" },
  { name: "narrow_light", width: 360, colorScheme: "light" },
  { name: "narrow_dark", width: 360, colorScheme: "dark" },
  { name: "print", width: 673, colorScheme: "dark", media: "print" },
];

/** Problems of one page in one view. */
async function check(browser, file, view, screenshots) {
  const context = await browser.newContext({
    viewport: { width: view.width, height: 900 },
    colorScheme: view.colorScheme,
    deviceScaleFactor: 1,
  });
  const page = await context.newPage();
  const problems = [];
  const own = pathToFileURL(path.resolve(file)).href;
  page.on("request", (request) => {
    const url = request.url();
    if (url !== own && !url.startsWith("data:")) problems.push(`asks for ${url}`);
  });
  page.on("console", (message) => problems.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => problems.push(`script: ${error.message}`));
  page.on("dialog", (dialog) => {
    problems.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  await page.goto(own);
  if (view.media) await page.emulateMedia({ media: view.media });
  const widths = await page.evaluate(() => [
    document.documentElement.scrollWidth,
    document.documentElement.clientWidth,
  ]);
  if (widths[0] > widths[1]) problems.push(`${widths[0]} pixels wide in ${widths[1]}`);
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  for (const violation of found.violations)
    for (const node of violation.nodes) problems.push(`${violation.id}: ${node.target} ${node.html}`);
  if (screenshots) {
    mkdirSync(screenshots, { recursive: true });
    // Reports of several bundles have one name, in folders of their own.
    const place = path.relative("", file).replace(/\.html$/, "").replace(/[\\/.]+/g, "_");
    const stem = path.join(screenshots, `${place}_${view.name}`);
    await page.screenshot({ path: `${stem}.png`, fullPage: true });
    if (view.media === "print") await page.pdf({ path: `${stem}.pdf`, format: "A4" });
  }
  await context.close();
  return { problems, passes: found.passes.length };
}

const words = process.argv.slice(2);
const at = words.indexOf("--screenshots");
const screenshots = at < 0 ? null : words.splice(at, 2)[1];
if (words.length === 0) {
  console.error("give the report: node scripts/report_check.mjs REPORT.html");
  process.exit(2);
}
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await chromium.launch({ executablePath, args: FLAGS });
let count = 0;
for (const file of words) {
  for (const view of VIEWS) {
    const { problems, passes } = await check(browser, file, view, screenshots);
    count += problems.length;
    console.log(`${file} ${view.name}: ${passes} rules of axe-core pass, ${problems.length} problems`);
    for (const problem of problems) console.log(`  ${problem}`);
  }
}
await browser.close();
process.exit(count > 0 ? 1 : 0);
