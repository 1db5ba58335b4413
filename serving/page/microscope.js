/** The one picture that is looked at, large: when it came in sight, and for how long a person has looked at it.
 *
 * Nothing is answered about a cell that is not in sight: its picture has been on the screen for a frame, and for a glance, since a
 * key that bounces would answer the next cell unseen.
 */

import { Zoom } from "./zoom.js";

const GLANCE = 120; // ms
const LONGEST = 3_600_000; // ms: whoever looks for longer was not there
const byId = (id) => document.getElementById(id);

let shown = null;
let since = null; // when the picture came in sight; the time that the page was hidden is taken off
let hiddenAt = null;
let zoom = null;

/** Set the microscope up; `pixelUm` is the size of a pixel in micrometres, or null where it is not known. */
export function begin(pixelUm) {
  zoom ??= new Zoom(byId("picture"), byId("zoom"));
  zoom.pixelUm = pixelUm;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = performance.now();
  else if (since !== null && hiddenAt !== null) since += performance.now() - Math.max(hiddenAt, since);
});

/** Show a picture that is decoded, or where it is undefined `words` in its place; `name` is said of it. */
export function show(image, name, words = "") {
  since = null;
  shown = image;
  const frame = byId("picture");
  const layer = frame.querySelector(".layer");
  frame.classList.toggle("no-picture", !image);
  frame.querySelector(".stand-in").textContent = image ? "" : words;
  if (!image) {
    layer.replaceChildren();
    return;
  }
  image.alt = name;
  layer.replaceChildren(image);
  zoom.changed(image);
  requestAnimationFrame(() => requestAnimationFrame((time) => shown === image && (since = time)));
}

/** Seconds that the picture has been in sight; undefined where a glance has not passed. */
export function seconds() {
  if (since === null) return undefined;
  const passed = Math.round(performance.now() - since);
  return passed < GLANCE ? undefined : Math.min(passed, LONGEST) / 1000;
}

/** What a key does to the picture; undefined for a key of another. */
export function actionOf(key) {
  return { z: () => zoom.toggle(), "+": () => zoom.by(1.5), "-": () => zoom.by(1 / 1.5) }[key];
}
