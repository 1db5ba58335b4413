/** How far readers agree, what each of them takes which cells for, and who has how much to do. */

import * as labelling from "./labelling.js";
import { kind, number, percent, share, t } from "./language.js";

const SVG = "http://www.w3.org/2000/svg";
const FEW_PAIRS = 3; // so many are shown opened
const MARGIN = 2; // percent of a drawing's width left free at both ends
const TICKS = [-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1];

/** Show the view. */
export const enter = () => show(document.getElementById("agreement"));

/** Ask for the numbers, and fill `root` with them. */
export async function show(root) {
  root.replaceChildren(made("p", t("label.agreement.coming"), "muted"));
  root.setAttribute("aria-busy", "true");
  let found;
  try {
    found = await labelling.agreement();
  } catch (failure) {
    root.replaceChildren();
    throw failure;
  } finally {
    root.removeAttribute("aria-busy");
  }
  root.replaceChildren(pairs(found.pairs), confusions(found), work(found));
}

function made(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function section(name, ...content) {
  const part = made("section", undefined, "agreement");
  const heading = made("h2", t(`label.agreement.${name}.heading`));
  heading.id = `agreement-${name}`;
  part.setAttribute("aria-labelledby", heading.id);
  part.append(heading, made("p", t(`label.agreement.${name}.what`), "muted"), ...content);
  return part;
}

/** A table with a heading for each column and each row; the cells are elements or texts. */
function table(caption, columns, rows) {
  const drawn = made("table");
  drawn.append(made("caption", caption, "unseen"));
  const head = made("tr");
  for (const column of columns) {
    const cell = made("th", column);
    cell.scope = "col";
    head.append(cell);
  }
  const body = made("tbody");
  for (const [name, ...cells] of rows) {
    const row = made("tr");
    const heading = made("th", name);
    heading.scope = "row";
    row.append(heading, ...cells.map((content) => (content instanceof Element ? content : made("td", content))));
    body.append(row);
  }
  const header = made("thead");
  header.append(head);
  drawn.append(header, body);
  const around = made("div", undefined, "wide"); // is scrolled where it does not fit
  around.tabIndex = 0;
  around.setAttribute("role", "region");
  around.setAttribute("aria-label", caption);
  around.append(drawn);
  return around;
}

// ---------------------------------------------------------------- pairs

const kappa = (value) => number(value, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const between = (low, high, text) => t("label.agreement.between", { low: text(low), high: text(high) });

function pairs(all) {
  if (!all.length) return section("pairs", made("p", t("label.agreement.pairs.none")));
  return section("pairs", ...all.map((pair) => pairOf(pair, all.length <= FEW_PAIRS)));
}

function pairOf(pair, open) {
  const name = t("label.agreement.pairs.of", { one: pair.readers[0], other: pair.readers[1] });
  const cells = t("label.agreement.pairs.cells", { count: pair.n });
  if (pair.kappa === null) return about("p", name, `${t("label.agreement.pairs.undefined")} · ${cells}`);
  const details = made("details");
  details.open = open;
  const rows = [{ ...pair, answer: "" }, ...pair.per_class];
  const least = Math.max(-1, Math.min(0, ...rows.map((row) => Math.floor(5 * row.low) / 5)));
  const columns = ["kind", "named", "kappa", "limits", "drawing"].map((column) => t(`label.agreement.pairs.${column}`));
  const drawn = table(name, columns, [...rows.map((row) => line(row, least)), ["", "", "", "", axis(least)]]);
  drawn.querySelector("tbody tr").classList.add("all");
  drawn.querySelector("tbody tr:last-child").setAttribute("aria-hidden", "true");
  details.append(about("summary", name, `κ ${kappa(pair.kappa)}, ${limits(pair)} · ${cells}`), drawn);
  return details;
}

/** A pair's names, and beside them how it stands. */
function about(element, name, text) {
  const whole = made(element, name, "pair");
  whole.append(made("span", text, "muted"));
  return whole;
}

const limits = ({ low, high }) => t("label.agreement.limits", { between: between(low, high, kappa) });

function line(row, least) {
  const cells = row.answer ? row.named : row.n;
  const name = row.answer ? kind(row.answer) : t("label.agreement.pairs.all");
  return [name, number(cells), made("td", kappa(row.kappa), "value"), between(row.low, row.high, kappa), chart(row, least)];
}

function drawing(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, typeof value === "number" ? `${value}%` : value);
  return element;
}

const place = (value, least) => MARGIN + ((100 - 2 * MARGIN) * (value - least)) / (1 - least);

/** The limits as a line with the value as a dot on it; all of it is said in numbers beside. */
function chart({ kappa: value, low, high }, least) {
  const svg = drawing("svg", { class: "strip", "aria-hidden": "true" });
  const at = (one) => place(Math.max(one, least), least);
  svg.append(drawing("rect", { class: "track", x: MARGIN, width: 100 - 2 * MARGIN, y: "8", height: "4", rx: "2" }));
  svg.append(drawing("line", { class: "limits", x1: at(low), x2: at(high), y1: "10", y2: "10" }));
  svg.append(drawing("circle", { class: "value", cx: at(value), cy: "10", r: "5" }));
  return inCell(svg);
}

function axis(least) {
  const svg = drawing("svg", { class: "axis" });
  for (const tick of TICKS.filter((one) => one >= least)) {
    const text = drawing("text", { x: place(tick, least), y: "11", "text-anchor": "middle" });
    text.textContent = number(tick);
    svg.append(text);
  }
  return inCell(svg);
}

function inCell(svg) {
  const cell = made("td", undefined, "plot");
  cell.append(svg);
  return cell;
}

// ---------------------------------------------------------------- what a reader takes cells for

function confusions({ readers: all, needed_for_confusion: needed }) {
  const readers = all.filter((reader) => reader.answered || reader.compared); // whoever only looked has tasks, no answer
  if (!readers.length) return section("confusion", made("p", t("label.agreement.nobody")));
  return section("confusion", ...readers.map((reader) => confusionOf(reader, needed)));
}

function confusionOf({ reader, compared, confusion }, needed) {
  const part = made("div", undefined, "reader");
  part.append(made("h3", reader));
  if (!confusion) {
    const missing = Math.max(0, needed - compared);
    part.append(made("p", t("label.agreement.confusion.missing", { count: missing, compared, needed })));
    return part;
  }
  const columns = [t("label.agreement.confusion.truth"), t("label.agreement.confusion.cells"), ...confusion.answers.map(kind)];
  const rows = confusion.rows.map((row) => [kind(row.truth), number(Math.round(row.cells)), ...heat(row, confusion.answers)]);
  const drawn = table(t("label.agreement.confusion.of", { reader }), columns, rows);
  drawn.querySelector("table").classList.add("heat");
  part.append(made("p", t("label.agreement.confusion.from", { count: compared }), "muted"));
  if (rows.length) part.append(drawn);
  if (confusion.few.length) {
    part.append(made("p", t("label.agreement.confusion.few", { kinds: confusion.few.map(kind).join(", ") }), "muted"));
  }
  return part;
}

/** One cell for each answer: its share with limits, as dark as the share is large. */
function heat({ truth, rates, low, high }, answers) {
  return answers.map((answer, at) => {
    const cell = made("td", share(rates[at]), answer === truth ? "right" : "wrong");
    cell.style.setProperty("--share", Math.sqrt(rates[at]).toFixed(3)); // the root, so that a few percent can be seen
    cell.append(made("span", between(low[at], high[at], percent), "small"));
    return cell;
  });
}

// ---------------------------------------------------------------- work

function work({ readers, disputed, unnamed, lead }) {
  const columns = ["reader", "answered", "left", "twice", ...(lead ? ["known"] : [])];
  const rows = readers.map((one) => [
    one.reader,
    number(one.answered),
    number(one.left),
    hits(one.self_agreement),
    ...(lead ? [hits(one.known)] : []),
  ]);
  const headings = columns.map((column) => t(`label.agreement.work.${column}`));
  const waiting = [made("p", t("label.agreement.work.disputed", { count: disputed }))];
  if (unnamed) waiting.push(nobodyNames(unnamed, lead));
  if (!rows.length) return section("work", ...waiting);
  return section("work", table(t("label.agreement.work.reader"), headings, rows), ...waiting);
}

/** How many cells nobody can name; whoever decides disputes can look at them again. */
function nobodyNames(count, lead) {
  const line = made("p", `${t("label.unnamed.count", { count })} `);
  if (!lead) return line;
  const link = made("a", t("label.unnamed.look"));
  link.href = "#/unnamed";
  line.append(link);
  return line;
}

/** "18 of 20 (95 % limits 68 % to 99 %)", or that nothing was asked. */
function hits(found) {
  if (!found) return t("label.agreement.work.none");
  const { right, asked, low, high } = found;
  return t("label.agreement.work.hits", { right, asked, between: between(low, high, percent) });
}
