/** The cell that is looked at: large, with what the model thinks of it and why a person should look. */

import { kind, percent, t } from "./language.js";
import { png } from "./pictures.js";
import { strip } from "./references.js";
import * as service from "./service.js";
import { specimen } from "./specimen.js";
import { confidence, laneOf, REVIEW, showPicture, UNUSABLE, write } from "./tiles.js";
import { counted, reasons, rejected } from "./words.js";
import { Zoom } from "./zoom.js";

const PAUSE = 200; // ms that a cell must be looked at: a heat map costs the service as much as many images
const byId = (id) => document.getElementById(id);
let shown = null;
let zoom = null;
let inSight = null; // the cell whose picture has been on the screen for a frame: `cell`, its `url` and `since` when, in ms
let awaited = []; // who waits for a cell to come in sight
let heated = false; // the heat map stays on from cell to cell, until it is switched off
let drawsHeat = true; // until the service has answered without one
let choices = []; // a class each, the last one for none of them
let further = []; // the buttons of the site's further kinds

/** The classes in the order of their keys, each with a button that calls `correct(label)`, one for none of them (null), and one for
 * each of the site's further kinds (`name`, `key`), which are counted beside the differential. */
export function makeChoices(classes, kinds, correct) {
  choices = [...classes, null].map((name, index) => choice(name, name ? index + 1 : 0, correct));
  byId("cell-probabilities").replaceChildren(...choices.map(({ item }) => item));
  further = kinds.map(({ name, key }) => {
    const button = document.createElement("button");
    const letter = document.createElement("kbd");
    letter.textContent = key;
    Object.assign(button, { type: "button", value: name });
    button.setAttribute("aria-keyshortcuts", key);
    button.append(letter, ` ${kind(name)}`);
    button.addEventListener("click", () => correct(name));
    return button;
  });
  byId("cell-further").replaceChildren(...further);
}

/** Let the picture be looked at closer; `pixelUm` is the size of a pixel in micrometres, null where it is not known. */
export function makeMicroscope(pixelUm) {
  zoom ??= new Zoom(byId("cell-picture"), byId("cell-zoom"));
  zoom.pixelUm = pixelUm;
}

/** Closer, or back to all of the picture. */
export const toggleZoom = () => zoom.toggle();

/** Reference cells of each of `answers`, where the service has some. */
export const showReferences = (answers) => strip(byId("cell-references"), answers);

/** Show a cell; `failed` is called where its picture cannot be shown. Resolves as `toggleHeat`. */
export async function showCell(cell, failed) {
  shown = cell;
  const { result } = cell;
  const usable = result.status === "ok";
  write(byId("cell-heading"), t("report.cell", { number: cell.index + 1 }));
  showPicture(byId("cell-image"), cell, failed);
  byId("cell-image").alt = byId("cell-heading").textContent;
  write(byId("cell-label"), usable ? counted(cell.label) : t("report.not_usable"));
  write(byId("cell-why"), why(cell));
  byId("cell-why").classList.toggle("attention", laneOf(cell) === REVIEW || (usable && !cell.url));
  showTwin(result.twin ?? result.duplicate_of);
  showComments(cell);
  showChoices(cell, usable);
  byId("accept").disabled = !usable || !cell.url;
  byId("heat").hidden = !drawsHeat || !usable || !cell.file;
  hideHeat();
  void watch(cell);
  return heated && !byId("heat").hidden ? showHeat() : "";
}

function why(cell) {
  if (laneOf(cell) === UNUSABLE) return t("report.left_out", { why: rejected(cell.result) });
  const { label } = cell.result;
  let words = t(cell.seen ? "report.accepted" : "report.nothing_to_review");
  if (cell.label !== label) words = t("report.corrected", { label: kind(label), share: percent(confidence(cell)) });
  else if (laneOf(cell) === REVIEW) words = reasons(cell.result).join(" ");
  return cell.url ? words : `${words} ${withoutPicture(cell)}`;
}

/** Why nothing can be decided about a cell that has no picture. */
export function withoutPicture(cell) {
  if (cell.coming) return t("report.picture_coming");
  return t(cell.file ? "report.picture_unshowable" : "report.picture_missing");
}

/** What was said of this cell, and the field that asks whether a comment is about it. */
export function showComments(cell = shown) {
  const said = specimen.record?.comments.filter(({ index }) => index === cell?.index) ?? [];
  const items = said.map(({ by, text }) => {
    const item = document.createElement("li");
    item.textContent = t("report.record.comment_by", { by, text });
    return item;
  });
  byId("cell-comments").replaceChildren(...items);
  write(byId("comment-about").querySelector("span"), cell ? t("report.record.about", { number: cell.index + 1 }) : "");
}

function showTwin(index) {
  byId("twin").hidden = index === undefined || index === null;
  write(byId("twin"), byId("twin").hidden ? "" : t("report.show_cell", { number: index + 1 }));
  byId("twin").value = index ?? "";
}

// ---------------------------------------------------------------- in sight

/** Note when the picture of `cell` has been drawn and was on the screen for a frame. */
async function watch(cell) {
  const { url } = cell;
  if (inSight?.cell === cell && inSight.url === url) return;
  inSight = null;
  const image = byId("cell-image");
  if (!url) {
    for (const resolve of awaited.splice(0)) resolve();
    return;
  }
  try {
    await image.decode();
  } catch {
    return; // another cell is looked at by now, or the picture cannot be shown: `failed` sees to that
  }
  await frame();
  await frame();
  if (shown !== cell || cell.url !== url) return;
  zoom.changed(image);
  inSight = { cell, url, since: performance.now() };
  for (const resolve of awaited.splice(0)) resolve();
}

const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));

/** For how many ms the picture of this cell has been on the screen; undefined where it has not. */
export const sightOf = (cell) => (inSight?.cell === cell && inSight.url === cell.url ? performance.now() - inSight.since : undefined);

/** Wait until the cell is in sight; false where it is not within `most` ms. */
export async function seen(cell, most) {
  if (sightOf(cell) !== undefined) return true;
  if (cell.url) await Promise.race([new Promise((resolve) => awaited.push(resolve)), new Promise((resolve) => setTimeout(resolve, most))]);
  return sightOf(cell) !== undefined;
}

// ---------------------------------------------------------------- classes

function choice(name, key, correct) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.tabIndex = -1; // the digits do the same from the gallery
  button.className = "choice";
  const digit = document.createElement("kbd");
  digit.textContent = String(key);
  const text = document.createElement("span");
  text.textContent = name ? kind(name) : t("report.do_not_count");
  button.append(digit, text);
  const [bar, number] = [document.createElement("span"), document.createElement("span")];
  bar.className = "bar";
  if (name) button.append(bar, number);
  button.addEventListener("click", () => correct(name));
  item.append(button);
  return { name, item, button, bar, number };
}

/** The model's probability of each class as a bar; the class that the cell counts as is pressed. */
function showChoices(cell, usable) {
  byId("cell-probabilities").hidden = !usable;
  byId("cell-further").hidden = !usable || !further.length;
  if (!usable) return;
  for (const button of further) {
    button.setAttribute("aria-pressed", String(cell.label === button.value));
    button.disabled = !cell.url;
  }
  for (const { name, button, bar, number } of choices) {
    button.setAttribute("aria-pressed", String(cell.label === name));
    button.disabled = !cell.url;
    if (!name) continue;
    const share = cell.result.probabilities[name];
    bar.style.setProperty("--share", share.toFixed(4));
    write(number, percent(share));
  }
}

// ---------------------------------------------------------------- heat map

function hideHeat() {
  byId("cell-heat").hidden = true;
  byId("heat").setAttribute("aria-pressed", String(heated));
}

/** Switch the heat map on or off; returns a line to say where there is none. */
export async function toggleHeat() {
  if (!shown || byId("heat").hidden) return "";
  heated = !heated;
  hideHeat();
  return heated ? showHeat() : "";
}

async function showHeat() {
  const cell = shown;
  if (!cell.heat) await new Promise((resolve) => setTimeout(resolve, PAUSE));
  if (shown !== cell || !heated) return "";
  cell.heat ??= await service.heatMap(cell.file);
  if (!cell.heat) {
    drawsHeat = heated = false;
    byId("heat").hidden = true;
    return t("report.no_heat_map");
  }
  cell.heatUrl ??= URL.createObjectURL(png(cell.heat));
  if (shown !== cell || !heated) return "";
  byId("cell-heat").src = cell.heatUrl;
  byId("cell-heat").hidden = false;
  return "";
}
