// Looks at the documentation in a real browser, and writes what is wrong as JSON.
//
//   node look.cjs CHROMIUM ADDRESS PAGES [SEARCHES [DIRECTORY]]
//
// PAGES is a list in JSON. Each is seen in every width, light and dark, and is saved as a
// picture in DIRECTORY, if there is one. SEARCHES, in JSON too, names for each search the
// page that it should find.

const { chromium } = require("playwright-core");
const axe = require("axe-core");
const path = require("node:path");

const WIDTHS = [390, 768, 1280, 1920];
const THEMES = ["light", "dark"];
// From here on a table has room for all of its columns.
const WIDE = 1280;

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

// Runs in the page.
function measure(wide) {
  const wrong = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    wrong.push(`the page is ${root.scrollWidth} wide, of ${root.clientWidth}`);
  }
  for (const table of document.querySelectorAll("article table")) {
    const name = table.innerText.trim().slice(0, 40).replace(/\s+/g, " ");
    const around = table.closest(".table-wrapper") ?? table.parentElement;
    if (around.scrollWidth > around.clientWidth + 1) {
      const scrolls = /auto|scroll/.test(getComputedStyle(around).overflowX);
      if (wide || !scrolls) wrong.push(`a table is cut: ${name}`);
    }
    const walker = document.createTreeWalker(table, NodeFilter.SHOW_TEXT);
    for (let text = walker.nextNode(); text; text = walker.nextNode()) {
      for (const word of text.data.matchAll(/[\w.]+/g)) {
        const range = document.createRange();
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
        if (lines.size > 1) wrong.push(`a word is broken: ${word[0]}`);
      }
    }
  }
  for (const figure of document.querySelectorAll("article svg[viewBox]")) {
    const room = figure.getBoundingClientRect();
    for (const text of figure.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < room.left - 1 || box.right > room.right + 1 ||
          box.top < room.top - 1 || box.bottom > room.bottom + 1) {
        wrong.push(`a text leaves its figure: ${text.textContent}`);
      }
    }
  }
  return wrong;
}

async function seeAll(browser, theme, { address, pages, directory }) {
  const wrong = [];
  const context = await browser.newContext({ colorScheme: theme });
  const page = await context.newPage();
  for (const name of pages) {
    await page.goto(`${address}/${name}.html`);
    await page.evaluate(axe.source);
    for (const width of WIDTHS) {
      await page.setViewportSize({ width, height: 900 });
      const found = await page.evaluate(measure, width >= WIDE);
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      for (const violation of violations) {
        const nodes = violation.nodes.map((node) => node.target.join(" ")).slice(0, 3);
        found.push(`${violation.id}: ${nodes.join(", ")}`);
      }
      wrong.push(...found.map((what) => `${name}, ${width}, ${theme}: ${what}`));
      if (directory) {
        const file = path.join(directory, `${name.replace("/", "-")}-${width}-${theme}.png`);
        await page.screenshot({ path: file, fullPage: true });
      }
    }
  }
  await context.close();
  return wrong;
}

async function search(browser, searches, { address }) {
  const wrong = [];
  const page = await browser.newPage();
  for (const [words, expected] of Object.entries(searches)) {
    await page.goto(`${address}/search.html?q=${encodeURIComponent(words)}`);
    const result = page.locator(`#search-results li a[href*="${expected}.html"]`).first();
    await result.waitFor({ timeout: 20000 }).catch(() => {
      wrong.push(`the search for '${words}' does not find ${expected}`);
    });
  }
  return wrong;
}

async function look() {
  const [executablePath, address, pages, searches, directory] = process.argv.slice(2);
  const site = { address, pages: JSON.parse(pages), directory };
  const browser = await chromium.launch({ executablePath, args: FLAGS });
  const seen = await Promise.all(THEMES.map((theme) => seeAll(browser, theme, site)));
  const found = await search(browser, JSON.parse(searches ?? "{}"), site);
  await browser.close();
  const looks = site.pages.length * WIDTHS.length * THEMES.length;
  process.stdout.write(JSON.stringify({ looks, wrong: [...seen.flat(), ...found] }));
}

look();
