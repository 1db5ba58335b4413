/** The page `/watch`: whether the cells of each site are still as usual, and how right the model is in use. */

import * as dialogs from "./dialogs.js";
import { day, kind, number, offer, percent, t, translate } from "./language.js";
import { guarded, say } from "./notices.js";
import * as service from "./service.js";

const STATES = ["usual", "alarm", "differs", "few", "unknown"];
const byId = (id) => document.getElementById(id);

async function begin() {
  translate(document);
  offer(byId("language"));
  service.onKeyNeeded(dialogs.key);
  service.keyFromAddress();
  const found = await guarded(() => service.json("v1/watch"));
  byId("sites").removeAttribute("aria-busy");
  if (!found) return;
  if (!found.sites.length) say(t("watch.nothing"));
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
  part.append(made("h3", t("watch.in_use.heading")), inUse(found.in_use));
  return part;
}

// ---------------------------------------------------------------- whether cells are as usual

function drift(found) {
  const alarms = found.measures.filter(({ state }) => state === "alarm");
  const verdict = made("p", said(found, alarms), alarms.length ? "verdict alarm" : "verdict");
  const parts = [verdict, made("p", t("watch.how"), "muted")];
  const rows = found.measures.map((one) => [
    t(`watch.measure.${one.measure}`),
    state(one),
    share(one.effect),
    share(one.from_training),
    t("watch.cells", { cells: one.cells, worth: one.effective === null ? "–" : number(Math.round(one.effective)) }),
  ]);
  const columns = ["measure", "state", "effect", "training", "cells"].map((name) => t(`watch.column.${name}`));
  const pictures = made("div", undefined, "pictures");
  pictures.append(...found.pictures.map((name) => picture(found.site, name)));
  return [...parts, table(t("watch.drift"), columns, rows), pictures];
}

function said({ day: last, usual_since: since }, alarms) {
  const judged = t("watch.judged", { day: day(last), since: since ? day(since) : "–" });
  const names = alarms.map((one) => t("watch.since", { measure: t(`watch.measure.${one.measure}`), day: day(one.since) }));
  return [...names, alarms.length ? t("watch.what_to_do") : t("watch.as_usual"), judged].join(" ");
}

function state(one) {
  const word = STATES.includes(one.state) ? t(`watch.state.${one.state}`) : one.state;
  const cell = made("td", word, one.state === "alarm" ? "alarm" : undefined);
  if (one.differed) cell.append(made("span", t("watch.differed", { day: day(one.differed) }), "small"));
  return cell;
}

const share = (value) => (value === null ? "–" : percent(value));

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

function inUse(labels) {
  if (!labels.some(({ cells }) => cells)) return made("p", t("watch.in_use.nothing"), "muted");
  const rows = labels.map((one) => [
    one.label === null ? t("watch.in_use.all") : kind(one.label),
    t("watch.in_use.right", { right: one.right, cells: one.cells }),
    one.cells ? percent(one.right / one.cells) : "–",
    t("watch.in_use.between", { low: percent(one.low), high: percent(one.high) }),
    floor(one),
  ]);
  const columns = ["class", "right", "share", "limits", "floor"].map((name) => t(`watch.in_use.column.${name}`));
  return table(t("watch.in_use.heading"), columns, rows);
}

function floor(one) {
  const words = one.floor === null ? "–" : percent(one.floor);
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
