/** The page `/watch`: whether the cells of each site are still as usual, and how right the model is in use. */

import * as dialogs from "./dialogs.js";
import { dayOfUtc, kind, number, offer, percent, share, t, translate } from "./language.js";
import { guarded, say } from "./notices.js";
import * as service from "./service.js";

const STATES = ["usual", "alarm", "differs", "few", "unknown"];
const FLOOR = 0.15; // of the cells lie elsewhere, at least, where it is an alarm
const AGAIN = 3_600_000; // ms: the page is left open, and a night may have passed
const byId = (id) => document.getElementById(id);
let shown = ""; // what the service said last

async function begin() {
  translate(document);
  offer(byId("language"));
  service.onKeyNeeded(dialogs.key);
  service.keyFromAddress();
  await look();
  setInterval(() => document.hidden || void look(), AGAIN);
  document.addEventListener("visibilitychange", () => document.hidden || void look());
}

/** Ask the service; what is read stays as it is where nothing has changed. */
async function look() {
  const found = await guarded(() => service.json("v1/watch"));
  byId("sites").removeAttribute("aria-busy");
  if (!found) return;
  say(found.sites.length ? "" : t("watch.nothing"));
  const now = JSON.stringify(found);
  if (now === shown) return;
  shown = now;
  byId("sites").replaceChildren(...found.sites.map(site));
}

function made(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function site(found) {
  const part = made("section", undefined, "site");
  const heading = made("h2", found.site);
  part.setAttribute("aria-label", found.site);
  part.append(heading, made("p", t("watch.model", { model: found.model }), "muted"));
  if (found.measures.length) part.append(...drift(found));
  part.append(made("h3", t("watch.in_use.heading")), inUse(found));
  return part;
}

// ---------------------------------------------------------------- whether cells are as usual

function drift(found) {
  const parts = [verdict(found), made("p", t("watch.how"), "muted")];
  const rows = found.measures.map((one) => [
    name(one),
    state(one),
    elsewhere(one.effect),
    elsewhere(one.from_training),
    one.effective === null ? number(one.cells) : t("watch.cells", { cells: one.cells, worth: Math.round(one.effective) }),
  ]);
  const columns = ["measure", "state", "effect", "training", "cells"].map((name) => t(`watch.column.${name}`));
  const numbers = table(`${found.site}: ${t("watch.drift")}`, columns, rows);
  if (found.measures.every(({ state: one }) => one === "few")) return [...parts, numbers]; // a picture of no day
  const pictures = made("div", undefined, "pictures");
  pictures.append(...found.pictures.map((measure) => picture(found.site, measure)));
  return [...parts, numbers, made("p", t("watch.pictures"), "muted"), pictures];
}

/** What was found, in a sentence or two. A day of too few cells is not judged: it waits for the next ones. */
function verdict({ measures, usual_since: since }) {
  const judged = measures.filter(({ state }) => state !== "few");
  if (!judged.length) return made("p", t("watch.few", { cells: measures[0].cells }), "verdict open");
  const last = judged.map((one) => one.day).sort().at(-1);
  const [alarms, differs, usual] = ["alarm", "differs", "usual"].map((state) => judged.filter((one) => one.state === state));
  const shown = { day: dayOfUtc(last), ...(since && { since: dayOfUtc(since) }) };
  const words = t(since ? "watch.judged" : "watch.judged_alone", shown);
  if (alarms.length) return made("p", [...alarms.map(sinceWhen), t("watch.what_to_do"), words].join(" "), "verdict alarm");
  if (differs.length) return made("p", `${t("watch.not_made_for", { measures: differs.map(name).join(", ") })} ${words}`, "verdict attention");
  if (!usual.length) return made("p", `${t("watch.unknown")} ${words}`, "verdict open");
  return made("p", `${t("watch.as_usual")} ${words}`, "verdict");
}

const name = ({ measure }) => t(`watch.measure.${measure}`);

const sinceWhen = (one) => t("watch.since", { measure: name(one), day: dayOfUtc(one.since) });

function state(one) {
  const word = STATES.includes(one.state) ? t(`watch.state.${one.state}`) : one.state;
  const cell = made("td", word, one.state === "alarm" ? "alarm" : undefined);
  if (one.differed) cell.append(made("span", t("watch.differed", { day: dayOfUtc(one.differed) }), "small"));
  return cell;
}

const elsewhere = (value) => (value === null ? "–" : share(value, [FLOOR]));

function picture(where, name) {
  const figure = made("figure");
  const image = made("img");
  image.alt = t("watch.picture", { measure: t(`watch.measure.${name}`) });
  figure.append(made("figcaption", t(`watch.measure.${name}`)), image);
  guarded(async () => {
    const answer = await service.call(`v1/watch/${encodeURIComponent(where)}/pictures/${encodeURIComponent(name)}`);
    image.src = URL.createObjectURL(await answer.blob());
  });
  return figure;
}

// ---------------------------------------------------------------- how right it is

function inUse({ site: where, in_use: labels }) {
  if (!labels.some(({ cells }) => cells)) return made("p", t("watch.in_use.nothing"), "muted");
  const rows = labels.map((one) => [
    one.label === null ? t("watch.in_use.all") : kind(one.label),
    t("watch.in_use.right", { right: one.right, cells: one.cells }),
    one.cells ? share(one.right / one.cells) : "–",
    t("watch.in_use.between", { low: percent(one.low), high: share(one.high, one.floor === null ? [] : [one.floor]) }),
    floor(one),
  ]);
  const columns = ["class", "right", "share", "limits", "floor"].map((name) => t(`watch.in_use.column.${name}`));
  return table(`${where}: ${t("watch.in_use.heading")}`, columns, rows);
}

function floor(one) {
  const words = one.floor === null ? "–" : share(one.floor, [one.high]);
  return made("td", one.alarm ? t("watch.in_use.under", { floor: words }) : words, one.alarm ? "alarm" : undefined);
}

function table(caption, columns, rows) {
  const drawn = made("table");
  const head = made("tr");
  for (const column of columns) head.append(Object.assign(made("th", column), { scope: "col" }));
  const header = made("thead");
  header.append(head);
  const body = made("tbody");
  for (const [name, ...cells] of rows) {
    const row = made("tr");
    row.append(Object.assign(made("th", name), { scope: "row" }));
    row.append(...cells.map((content) => (content instanceof Element ? content : made("td", content))));
    body.append(row);
  }
  drawn.append(made("caption", caption, "unseen"), header, body);
  const around = made("div", undefined, "wide");
  around.tabIndex = 0;
  around.setAttribute("role", "region");
  around.setAttribute("aria-label", caption);
  around.append(drawn);
  return around;
}

await begin();
