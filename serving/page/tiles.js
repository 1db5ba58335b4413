/** The tile of a cell: its picture, and what is said of it. */

import { kind, percent, t } from "./language.js";
import { counted, reasons, rejected, short } from "./words.js";

export const REVIEW = "review";
export const UNCOUNTED = "uncounted";
export const BESIDE = "beside"; // counted beside the differential, as one of the site's further kinds
export const UNUSABLE = "unusable";

/** The lane a cell belongs to. */
export function laneOf(cell) {
  if (cell.result.status !== "ok") return UNUSABLE;
  if (cell.label === null) return UNCOUNTED;
  if (cell.result.review.required && !cell.seen) return REVIEW;
  return Object.hasOwn(cell.result.probabilities, cell.label) ? cell.label : BESIDE;
}

/** The probability that the model gave its own answer. */
export const confidence = (cell) => (cell.result.status === "ok" ? cell.result.probabilities[cell.result.label] : 0);

/** Write `text` into an element where it is not there already: what stays the same is not laid out again. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A tile for `cell`, without its picture: `showPicture` brings it when the tile comes into view. */
export function tileOf(cell) {
  const tile = document.getElementById("tile").content.firstElementChild.cloneNode(true);
  tile.id = `cell-${cell.index}`;
  cell.tile = tile;
  cell.image = tile.querySelector("img");
  cell.caption = tile.querySelector(".caption");
  describe(cell);
  return tile;
}

/** Write on the tile what its cell is now. */
export function describe(cell) {
  const { tile, caption, result } = cell;
  const lane = laneOf(cell);
  tile.classList.toggle("to-review", lane === REVIEW);
  tile.classList.toggle("commented", Boolean(cell.comments));
  tile.draggable = lane !== UNUSABLE;
  const name = t("report.cell", { number: cell.index + 1 });
  const number = cell.comments ? t("report.spoken.commented", { cell: name, count: cell.comments }) : name;
  if (lane === UNUSABLE) {
    write(caption, name);
    tile.setAttribute("aria-label", t("report.spoken.unusable", { cell: number, why: rejected(result) }));
    return;
  }
  const corrected = cell.label !== result.label;
  const sure = percent(confidence(cell));
  const words = lane === BESIDE ? kind(cell.label) : corrected ? t("report.caption.was", { label: short(result.label) }) : lane === REVIEW ? `${short(result.label)} ${sure}` : sure;
  write(caption, cell.seen && !corrected ? `${words} ✓` : words);
  const how = corrected ? "corrected" : lane === REVIEW ? "review" : cell.seen ? "accepted" : "untouched";
  // What is to be read on the tile is part of its name, for whoever says aloud what to press.
  const spoken = { cell: number, label: counted(cell.label), was: kind(result.label), caption: words, why: reasons(result).join(" ") };
  tile.setAttribute("aria-label", t(`report.spoken.${how}`, spoken));
}

/** Show the cell's picture in `image`; where there is none, say in its frame why. `failed` is called where it cannot be shown. */
export function showPicture(image, cell, failed) {
  const frame = image.parentElement;
  const standIn = frame.querySelector(".stand-in");
  const { url } = cell;
  frame.classList.toggle("no-picture", !url);
  write(standIn, url ? "" : (cell.without ?? ""));
  if (!url) {
    image.removeAttribute("src");
    return;
  }
  image.onerror = () => failed(cell, url);
  if (image.getAttribute("src") !== url) image.src = url;
}
