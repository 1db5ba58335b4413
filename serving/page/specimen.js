/** The specimen that the page shows: what it knows of the report, and its cells.
 *
 * The tiles are always the cells of the report: each has the number that it has there, and whenever the report holds more than
 * the page knows (somebody else added some, an answer was lost) the page takes them in.
 */

import { Gallery } from "./gallery.js";
import { keptPicture, onPicture, ownPicture, release, unshowable, want } from "./pictures.js";

const byId = (id) => document.getElementById(id);

/** What is known; a new one for each specimen. */
export let specimen = empty();

function empty() {
  return {
    reportId: null,
    number: null, // of the specimen, as the laboratory writes it
    version: 0, // of the report, as last seen
    status: "preliminary",
    state: null, // how far the report is, as the service last said
    signature: null, // the last one
    message: null, // the last one to the hospital's system
    differential: null,
    record: null, // what people did and said, whole
    saying: null, // resolves when what was said has its answer
    cells: new Map(), // by their index in the report
    fields: {}, // specimen number, white cell count and number of images, as they are sent
    waiting: [], // batches that are not posted yet: their files, and the key of their deed
    posting: false,
    undo: [], // decisions, the last one at the end
    amend: false, // whether the person has agreed to amend a signed report
  };
}

/** What a specimen is shown in: the gallery, `look(cell)` for the cell that is looked at, `view(name)` for "start" or "work". */
export const parts = { gallery: null, look: null, view: null };

/** Make the gallery, with `look(cell)` for the cell that is looked at, `onDrop(cell, lane)` and `onSelect(count)`. */
export function makeGallery(look, onDrop, onSelect) {
  const handlers = { onFocus: look, onDrop, onShow: want, onFailed: unshowable, onSelect };
  parts.gallery = new Gallery(byId("lanes"), byId("classes"), handlers);
  parts.look = look;
  onPicture((cell) => {
    if (specimen.cells.get(cell.index) !== cell) return; // of a specimen before
    parts.gallery.picture(cell);
    if (parts.gallery.current === cell) look(cell);
  });
}

/** Begin with another specimen. */
export function newSpecimen(classes, known = {}) {
  release(specimen.cells.values());
  specimen = { ...empty(), ...known };
  parts.gallery.reset(classes);
}

/** Whether a result can count as a cell. */
export const usable = (cell) => cell?.result.status === "ok";

/** Take in the results of these files, at their `positions` in the report; without a report they follow those that are there. */
export function takeInResults(results, files, positions) {
  const next = specimen.cells.size;
  const added = [];
  results.forEach((result, at) => {
    const index = positions?.[at] ?? next + at;
    const known = specimen.cells.get(index);
    if (known) {
      if (!known.file) give(known, files[at]);
      return;
    }
    const cell = newCell(index, result, result.status === "ok" ? result.label : null, false);
    ownPicture(cell, files[at]);
    added.push(cell);
  });
  show(added);
}

/** Take over what the service said of cells: the whole report's, or those that a change was about. */
export function takeOver(cells) {
  const added = [];
  for (const kept of cells) {
    const cell = specimen.cells.get(kept.index);
    if (!cell) {
      const made = newCell(kept.index, kept.result, kept.label, kept.by_person);
      keptPicture(made, kept.has_image);
      added.push(made);
    } else if (!cell.unsaved) update(cell, kept);
  }
  show(added);
}

/** Give a cell its file, and show it. */
export function give(cell, file) {
  ownPicture(cell, file);
  parts.gallery.picture(cell);
  if (parts.gallery.current === cell) parts.look(cell);
}

function newCell(index, result, label, seen) {
  return { index, reportId: specimen.reportId, result, label, seen, file: null, url: null, kept: false, unsaved: 0 };
}

function update(cell, kept) {
  const { label, by_person: seen, result } = kept;
  cell.kept = kept.has_image;
  const same = cell.label === label && cell.seen === seen && JSON.stringify(cell.result) === JSON.stringify(result);
  if (same) return;
  Object.assign(cell, { label, seen, result });
  parts.gallery.place(cell);
  if (parts.gallery.current === cell) parts.look(cell);
}

function show(cells) {
  if (!cells.length) return;
  const first = !specimen.cells.size;
  for (const cell of cells) specimen.cells.set(cell.index, cell);
  parts.gallery.add(cells);
  if (first) parts.gallery.focus(parts.gallery.order()[0]);
}
