/** Where the picture of a cell comes from: the user's own file; the service's PNG of it, where the browser does not show its kind
 * (TIFF); for a cell whose file is not here, the image that the service keeps.
 *
 * A cell has `url` when its picture is there, else `without`: a word that says why it has none.
 */

import { t } from "./language.js";
import * as service from "./service.js";

const PREVIEWS = 16; // files a request
const PREVIEW_BYTES = 24 * 2 ** 20;
const AT_ONCE = 4; // requests
const FOREIGN = /\.tiff?$/i;
const LOADING = "…";
const ABSENT = t("report.no_image");

let wanted = []; // cells whose picture the service has to give, those wanted last first
let running = 0;
let changed = () => {};

/** `shown(cell)` is called when the picture of a cell has come, or is known not to come. */
export function onPicture(shown) {
  changed = shown;
}

/** Give a cell the file that it was made from. */
export function ownPicture(cell, file) {
  forget(cell);
  cell.file = file;
  if (FOREIGN.test(file.name)) cell.without = kindOf(file);
  else cell.url = URL.createObjectURL(file);
}

/** A cell whose file is not here. */
export function keptPicture(cell, kept) {
  cell.kept = kept;
  cell.without = kept ? LOADING : ABSENT;
}

const kindOf = (file) => /[^.]*$/.exec(file.name)[0].toUpperCase().slice(0, 5);

/** Ask the service for the picture of a cell that has none: once, and `again` only where no answer came. */
export function want(cell, again = false) {
  if (cell.url || (cell.asked && !(again && cell.missed)) || !(cell.file ? previewed(cell) : cell.kept)) return;
  Object.assign(cell, { asked: true, coming: true, missed: false });
  wanted.unshift(cell);
  setTimeout(work); // what comes into view together is asked for together
}

// What the service could not read has no picture; a second copy of another file has one.
const previewed = ({ result }) => result.status === "ok" || result.problem.reason === "duplicate";

/** The browser cannot show the file: the service may. */
export function unshowable(cell, url) {
  if (cell.url !== url) return;
  URL.revokeObjectURL(url);
  cell.url = null;
  cell.without = cell.file ? kindOf(cell.file) : ABSENT;
  if (cell.file) want(cell);
  changed(cell);
}

/** Forget all that is asked for, and the pictures of these cells. */
export function release(cells) {
  wanted = [];
  for (const cell of cells) forget(cell);
}

function forget(cell) {
  if (cell.coming) wanted = wanted.filter((one) => one !== cell);
  for (const url of [cell.url, cell.heatUrl]) if (url) URL.revokeObjectURL(url);
  Object.assign(cell, { url: null, heatUrl: null, heat: null, asked: false, coming: false, missed: false });
}

function work() {
  while (wanted.length && running < AT_ONCE) {
    const [first] = wanted;
    const batch = first.file ? someFiles() : [first];
    wanted = wanted.filter((cell) => !batch.includes(cell));
    running++;
    void (first.file ? preview(batch) : load(first)).finally(() => {
      running--;
      work();
    });
  }
}

function someFiles() {
  let bytes = 0;
  const fits = (cell) => cell.file && (bytes === 0 || bytes + cell.file.size <= PREVIEW_BYTES) && (bytes += cell.file.size);
  return wanted.filter(fits).slice(0, PREVIEWS);
}

async function preview(cells) {
  const pictures = await silently(service.previews(cells.map((cell) => cell.file)));
  cells.forEach((cell, at) => came(cell, pictures && pictures[at] && png(pictures[at])));
}

const load = async (cell) => came(cell, await silently(service.image(cell.reportId, cell.index)));

/** `picture` is null where there is none, undefined where no answer came. */
function came(cell, picture) {
  if (!cell.coming) return; // meanwhile its file was dropped, or another specimen begun
  cell.coming = false;
  if (picture) cell.url = URL.createObjectURL(picture);
  else if (!cell.file) cell.without = ABSENT;
  cell.missed = picture === undefined;
  changed(cell);
}

/** What the service answers; null where it has no such picture, undefined where it does not answer. The cell says so. */
async function silently(answer) {
  try {
    return await answer;
  } catch (failure) {
    if (!(failure instanceof service.Failure)) throw failure;
    return failure.unknown ? undefined : null;
  }
}

/** A PNG that came in base64. */
export const png = (base64) => new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
