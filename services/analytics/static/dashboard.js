// The dashboard: asks for the numbers every few seconds and draws them. No dependencies.
"use strict";

const MINUTE = 60_000, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const RANGES = {
  "1h": { span: HOUR, bucket: "minute", step: MINUTE },
  "6h": { span: 6 * HOUR, bucket: "minute", step: MINUTE },
  "24h": { span: DAY, bucket: "hour", step: HOUR },
  "7d": { span: 7 * DAY, bucket: "hour", step: HOUR },
  "30d": { span: 30 * DAY, bucket: "day", step: DAY },
};
const EVERY_MS = 2_000, SLOWEST_MS = 30_000;
const SVG = "http://www.w3.org/2000/svg";
const FIGURES = ["orders", "gross", "refunded", "net", "average_order", "cancelled", "payment_failed"];
const COUNTS = new Set(["orders", "cancelled", "payment_failed"]);

const choice = document.getElementById("choice");
const state = document.getElementById("state");
let timer = 0, failures = 0, round = 0;

function money(minor, currency) {
  const format = new Intl.NumberFormat(undefined, { style: "currency", currency });
  return format.format(minor / 10 ** format.resolvedOptions().maximumFractionDigits);
}

function count(number) {
  return new Intl.NumberFormat().format(number);
}

function element(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

async function ask(path, parameters) {
  // From the origin, not relative: fetch refuses to follow a page address with the key in it (http://x:key@host/).
  const url = new URL(`${path}?${new URLSearchParams(parameters)}`, location.origin);
  const answer = await fetch(url, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return (await answer.json()).items;
}

async function refresh() {
  clearTimeout(timer);
  const mine = ++round;
  const range = RANGES[choice.range.value];
  // Whole buckets only: a first bucket that shrinks while it is looked at would look like falling sales.
  const end = (Math.floor(Date.now() / range.step) + 1) * range.step;
  const period = { from: new Date(end - range.span).toISOString(), to: new Date(end).toISOString() };
  try {
    const [totals, sales] = await Promise.all([
      ask("/v1/summary", period),
      ask("/v1/sales", { ...period, bucket: range.bucket }),
    ]);
    const currency = pickCurrency(totals);
    const products = await ask("/v1/top-products", { ...period, currency, limit: 10 });
    if (mine !== round) return; // somebody chose something else meanwhile
    document.getElementById("export").href = `/v1/export.csv?${new URLSearchParams(period)}`;
    showFigures(totals.find((one) => one.currency === currency), currency);
    const columns = fill(sales.filter((one) => one.currency === currency), end - range.span, end, range.step);
    draw("gross", columns, (value) => money(value, currency), range);
    draw("orders", columns, count, range);
    showProducts(products, currency);
    failures = 0;
    say(`Up to date at ${new Date().toLocaleTimeString()}.`);
  } catch (error) {
    if (mine !== round) return;
    failures += 1;
    say(`Not up to date: ${error.message}. Trying again.`, true);
  }
  if (!document.hidden) timer = setTimeout(refresh, Math.min(EVERY_MS * 2 ** failures, SLOWEST_MS));
}

function say(text, warn = false) {
  state.classList.toggle("warn", warn);
  // A status that is read out every two seconds helps nobody: only changes between good and bad are announced.
  state.setAttribute("aria-live", warn ? "polite" : "off");
  state.textContent = text;
}

function pickCurrency(totals) {
  const select = choice.currency;
  const known = new Set([...select.options].map((option) => option.value));
  const seen = totals.map((one) => one.currency);
  for (const currency of seen) if (!known.has(currency)) select.add(new Option(currency, currency));
  if (seen.length && !seen.includes(select.value) && !select.dataset.chosen) select.value = seen[0];
  return select.value;
}

function showFigures(totals, currency) {
  for (const name of FIGURES) {
    const value = totals ? totals[name] : 0;
    document.querySelector(`[data-figure="${name}"]`).textContent = COUNTS.has(name) ? count(value) : money(value, currency);
  }
}

function fill(sales, start, end, step) {
  const found = new Map(sales.map((one) => [Date.parse(one.start), one]));
  const columns = [];
  for (let at = start; at < end; at += step) {
    columns.push({ at, gross: found.get(at)?.gross ?? 0, orders: found.get(at)?.orders ?? 0 });
  }
  return columns;
}

function draw(name, columns, format, range) {
  const figure = document.getElementById(`${name}-chart`);
  const svg = figure.querySelector("svg");
  const width = Math.max(svg.clientWidth, 280), height = svg.clientHeight || 208;
  const left = 4, top = 18, bottom = height - 20;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const most = roundUp(Math.max(2, ...columns.map((column) => column[name])));
  const each = (width - left) / columns.length;
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const y = bottom - share * (bottom - top);
    parts.push(element("line", { class: "grid", x1: 0, x2: width, y1: y, y2: y }));
    if (share) parts.push(element("text", { x: 0, y: y - 4 }, format(Math.round(most * share))));
  }
  columns.forEach((column, index) => {
    const tall = (column[name] / most) * (bottom - top);
    const x = left + index * each;
    parts.push(element("rect", { class: "column", x: x + each * 0.1, width: each * 0.8, y: bottom - tall, height: tall }));
  });
  const labels = Math.min(columns.length, Math.max(2, Math.floor(width / 130)));
  for (let label = 0; label < labels; label += 1) {
    const index = Math.floor((label * columns.length) / labels);
    parts.push(element("text", { x: left + index * each, y: height - 4 }, when(columns[index].at, range)));
  }
  const touch = element("rect", { class: "touch", x: 0, y: 0, width, height });
  svg.replaceChildren(...parts, touch);
  figure.columns = columns;
  figure.read = (index) => {
    figure.index = Math.min(Math.max(index, 0), columns.length - 1);
    [...svg.querySelectorAll(".column")].forEach((one, at) => one.classList.toggle("current", at === figure.index));
    const column = columns[figure.index];
    figure.querySelector("figcaption").textContent = `${when(column.at, range)}: ${format(column[name])}`;
  };
  figure.indexAt = (x) => Math.floor((x - left) / each);
  if (figure.index !== undefined) figure.read(figure.index);
}

// The next 1, 2 or 5 with zeros behind it, so that the lines of the chart stand at numbers one can read.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((factor) => factor * power >= value) * power;
}

function when(at, range) {
  const day = { month: "short", day: "numeric" }, time = { hour: "2-digit", minute: "2-digit" };
  const form = range.step === DAY ? { ...day, timeZone: "UTC" } : range.span > DAY ? { ...day, ...time } : time;
  return new Intl.DateTimeFormat(undefined, form).format(at);
}

function showProducts(products, currency) {
  const body = document.getElementById("products");
  const most = Math.max(1, ...products.map((one) => one.gross));
  body.replaceChildren(...products.map((one) => {
    const row = document.createElement("tr");
    const cells = [one.sku, count(one.orders), count(one.quantity), money(one.gross, currency)];
    cells.forEach((text, index) => {
      const cell = row.insertCell();
      cell.textContent = text;
      cell.className = index ? "number" : "sku";
    });
    const share = row.insertCell();
    share.className = "share";
    const bar = element("svg", { "aria-hidden": "true", viewBox: "0 0 100 10", preserveAspectRatio: "none" });
    bar.append(element("rect", { class: "column", width: (100 * one.gross) / most, height: 10 }));
    share.append(bar);
    return row;
  }));
  if (!products.length) body.insertRow().insertCell().textContent = "Nothing was sold in this time.";
}

function follow(figure) {
  figure.addEventListener("pointermove", (event) => {
    if (figure.read) figure.read(figure.indexAt(event.clientX - figure.querySelector("svg").getBoundingClientRect().left));
  });
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e6, End: 1e6 }[event.key];
    if (step === undefined || !figure.read) return;
    event.preventDefault();
    figure.read((figure.index ?? figure.columns.length - 1) + step);
  });
}

for (const figure of document.querySelectorAll(".chart")) follow(figure);
choice.addEventListener("change", (event) => {
  if (event.target.name === "currency") event.target.dataset.chosen = "yes";
  for (const figure of document.querySelectorAll(".chart")) figure.index = undefined;
  refresh();
});
choice.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
addEventListener("resize", refresh);
refresh();
