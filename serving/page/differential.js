/** The differential as a table with a chart: a line of numbers and a line of drawing for each class.
 *
 * The scale is a square root, so that 1 % basophils and 60 % neutrophils can be read on the same axis.
 */

import { kinds, number, t } from "./language.js";
import { flag } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = 2; // percent of the width left free at both ends
const PERCENT_TICKS = [0, 1, 5, 10, 20, 40, 60, 80, 100];
const ABSOLUTE_TICKS = [0, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500];

const position = (value, top) => MARGIN + (100 - 2 * MARGIN) * Math.sqrt(Math.min(value, top) / top);

function drawn(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, typeof value === "number" ? `${value}%` : value);
  }
  return element;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** What a row shows: percent, or 10^9/L. */
function rows(differential, unit) {
  return Object.entries(differential.classes).map(([name, share]) => {
    const shown = unit === "absolute" ? share.absolute : { ...share, value: share.percent };
    return { name, count: share.count, ...shown };
  });
}

function digits(value, unit) {
  return decimals(value, unit === "absolute" ? 2 : 1);
}

const decimals = (value, count) => number(value, { minimumFractionDigits: count, maximumFractionDigits: count, useGrouping: false });

/** What the service has printed, with the digit that decides its flag, as the language writes it. */
const rewritten = (printed) => decimals(Number(printed), printed.split(".")[1]?.length ?? 0);

function chart(row, top) {
  const svg = drawn("svg", { class: row.flag && row.flag !== "normal" ? "strip outside" : "strip", "aria-hidden": "true" });
  const at = (value) => position(value, top);
  const band = { x: at(row.reference.low), width: at(row.reference.high) - at(row.reference.low) };
  svg.append(drawn("rect", { class: "track", x: MARGIN, width: 100 - 2 * MARGIN, y: "8", height: "4", rx: "2" }));
  svg.append(drawn("rect", { class: "reference", ...band, y: "2", height: "16", rx: "3" }));
  if (row.corrected) {
    svg.append(drawn("line", { class: "corrected", x1: at(row.corrected.low), x2: at(row.corrected.high), y1: "16", y2: "16" }));
  }
  svg.append(drawn("line", { class: "limits", x1: at(row.interval.low), x2: at(row.interval.high), y1: "10", y2: "10" }));
  svg.append(drawn("circle", { class: "value", cx: at(row.value), cy: "10", r: "5" }));
  return svg;
}

function axis(top, ticks) {
  const svg = drawn("svg", { class: "axis", "aria-hidden": "true" });
  for (const tick of ticks.filter((value) => value <= top)) {
    const text = drawn("text", { x: position(tick, top), y: "11", "text-anchor": "middle" });
    text.textContent = number(tick);
    svg.append(text);
  }
  return svg;
}

const plain = (value) => number(value, { maximumFractionDigits: 12, useGrouping: false });

function line(row, unit) {
  const numbers = element("tr");
  const limits = `${digits(row.interval.low, unit)} – ${digits(row.interval.high, unit)}`;
  const heading = element("th", kinds(row.name));
  heading.scope = "row";
  const words = flag(row.flag);
  const mark = element("td", words, `flag ${row.flag ?? ""}`);
  numbers.append(
    heading,
    element("td", String(row.count)),
    element("td", rewritten(row.printed), "value"),
    element("td", limits),
    element("td", `${plain(row.reference.low)} – ${plain(row.reference.high)}`),
    mark,
  );
  return numbers;
}

/** What is flagged in the unit that is not shown: nobody has to look for it there. */
function flaggedElsewhere(differential, unit) {
  const other = unit === "absolute" ? "percent" : "absolute";
  const flagged = rows(differential, other).filter((row) => flag(row.flag));
  const flags = flagged.map((row) => `${kinds(row.name)} ${flag(row.flag)}`).join(", ");
  const line = element("p", flags && t("report.table.elsewhere", { unit: t(`report.table.${unitName(other)}`), flags }), "alarm small");
  line.hidden = !flags;
  return line;
}

const unitName = (unit) => (unit === "absolute" ? "giga" : "percent");

function legend(differential) {
  const list = element("ul", undefined, "legend");
  const entry = (className, text, title) => {
    const item = element("li");
    const svg = drawn("svg", { class: "strip sample", "aria-hidden": "true" });
    const band = { class: className, x: 0, width: 100, y: "2", height: "12", rx: "3" };
    const stroke = { class: className, x1: 4, x2: 96, y1: "8", y2: "8" };
    svg.append(className === "reference" ? drawn("rect", band) : drawn("line", stroke));
    item.append(svg, element("span", text));
    if (title) item.title = title;
    list.append(item);
  };
  entry("limits", t("report.table.limits"));
  if (differential.correction?.applied) entry("corrected", t("report.table.corrected"), differential.correction.explanation);
  entry("reference", t("report.table.range"), differential.reference_source);
  return list;
}

/** Draw `differential` into `container`; `unit` is "percent" or "absolute". */
export function drawDifferential(container, differential, unit) {
  const shown = rows(differential, unit);
  const highest = Math.max(...shown.flatMap((row) => [row.value, row.interval.high, row.reference.high, row.corrected?.high ?? 0]));
  const ticks = unit === "absolute" ? ABSOLUTE_TICKS : PERCENT_TICKS;
  const top = unit === "absolute" ? (ticks.find((tick) => tick > 0.5 && tick >= highest) ?? highest) : 100;
  const table = element("table");
  const head = element("tr");
  const columns = ["class", "cells", unitName(unit), "limits", "reference"];
  for (const text of [...columns.map((name) => t(`report.table.${name}`)), ""]) {
    const cell = element("th", text);
    cell.scope = "col";
    head.append(cell);
  }
  head.lastElementChild.append(element("span", t("report.table.flag"), "unseen"));
  const body = element("tbody");
  const wide = (content) => {
    const row = element("tr", undefined, "drawing");
    row.setAttribute("aria-hidden", "true");
    const cell = element("td");
    cell.colSpan = 6;
    cell.append(content);
    row.append(cell);
    return row;
  };
  for (const row of shown) body.append(line(row, unit), wide(chart(row, top)));
  body.append(wide(axis(top, ticks)));
  const header = element("thead");
  header.append(head);
  table.append(header, body);
  container.replaceChildren(table, flaggedElsewhere(differential, unit), legend(differential));
}

/** Show in `container` what was counted beside the differential: each kind, how many, and for each 100 leukocytes. */
export function drawBeside(container, { further, leukocytes }) {
  const names = Object.keys(further);
  if (!names.length) {
    container.replaceChildren();
    return;
  }
  const heading = element("h3", t("report.further.heading"));
  const table = element("table");
  const head = element("tr");
  for (const name of ["kind", "cells", "per_100"]) {
    const cell = element("th", t(`report.further.${name}`, { leukocytes }));
    cell.scope = "col";
    head.append(cell);
  }
  const header = element("thead");
  header.append(head);
  const body = element("tbody");
  for (const name of names) {
    const { count, printed } = further[name];
    const line = element("tr");
    const title = element("th", kinds(name));
    title.scope = "row";
    line.append(title, element("td", String(count)), element("td", printed && rewritten(printed), "value"));
    body.append(line);
  }
  table.append(header, body);
  container.replaceChildren(heading, table);
}
