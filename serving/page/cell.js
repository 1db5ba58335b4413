/** The cell that is looked at: large, with what the model thinks of it and why a person should look. */

import { confidence, laneOf, REVIEW, showPicture, UNUSABLE } from "./gallery.js";
import * as service from "./service.js";
import { percent, reasons, rejected } from "./words.js";

const PAUSE = 200; // ms that a cell must be looked at: a heat map costs the service as much as many images
const byId = (id) => document.getElementById(id);
let shown = null;
let heated = false; // the heat map stays on from cell to cell, until it is switched off
let drawsHeat = true; // until the service has answered without one

/** Show a cell; `classes` in the order of their keys, `correct(label)` is called by the buttons. Resolves as `toggleHeat`. */
export async function showCell(cell, classes, correct) {
  shown = cell;
  const { result } = cell;
  const usable = result.status === "ok";
  byId("cell-heading").textContent = `Cell ${cell.index + 1}`;
  showPicture(byId("cell-image").parentElement, byId("cell-image"), cell);
  byId("cell-image").alt = `Cell ${cell.index + 1}`;
  byId("cell-label").textContent = usable ? (cell.label ?? "Not counted") : "Not usable";
  byId("cell-why").replaceChildren(...why(cell));
  byId("cell-why").classList.toggle("attention", laneOf(cell) === REVIEW);
  byId("cell-probabilities").replaceChildren(...(usable ? classes.map((name, index) => choice(cell, name, index, correct)) : []));
  if (usable) byId("cell-probabilities").append(choice(cell, null, -1, correct));
  byId("accept").disabled = !usable;
  byId("heat").hidden = !drawsHeat || !usable || !cell.file;
  hideHeat();
  return heated && !byId("heat").hidden ? showHeat() : "";
}

function why(cell) {
  if (laneOf(cell) === UNUSABLE) return [`This image was left out: ${rejected(cell.result)}.`];
  const { label } = cell.result;
  if (cell.label !== label) return [`Corrected. The model said ${label}, ${percent(confidence(cell))}.`];
  if (laneOf(cell) === REVIEW) return [reasons(cell.result).join(" ")];
  return [cell.seen ? "Accepted." : "Nothing to review."];
}

/** A class with its key, the model's probability as a bar, and a button that corrects the cell to it. */
function choice(cell, name, index, correct) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.tabIndex = -1; // the digits do the same from the gallery
  button.className = "choice";
  button.setAttribute("aria-pressed", String(cell.label === name));
  const key = document.createElement("kbd");
  key.textContent = String(index + 1);
  const text = document.createElement("span");
  text.textContent = name ?? "Do not count";
  button.append(key, text);
  if (name) {
    const share = cell.result.probabilities[name];
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.setProperty("--share", share.toFixed(4));
    const number = document.createElement("span");
    number.textContent = percent(share);
    button.append(bar, number);
  }
  button.addEventListener("click", () => correct(name));
  item.append(button);
  return item;
}

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
    return "This service draws no heat maps.";
  }
  const bytes = Uint8Array.from(atob(cell.heat), (letter) => letter.charCodeAt(0));
  cell.heatUrl ??= URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  if (shown !== cell || !heated) return "";
  byId("cell-heat").src = cell.heatUrl;
  byId("cell-heat").hidden = false;
  return "";
}

