/** Reference cells of each class, to compare with: cells of this site that readers agreed on come first. */

import * as labelling from "./labelling.js";
import { kind } from "./language.js";
import { Failure } from "./service.js";

const OF_EACH = 4;

let found; // a promise: the answers with the pictures of their reference cells

/** The reference cells of each answer that has some: a Map from the answer to addresses of pictures. */
export function references() {
  found ??= load();
  return found;
}

/** Ask for them anew, after somebody else has signed in. */
export function forget() {
  found = undefined;
}

async function load() {
  try {
    const groups = await labelling.references();
    const loaded = groups.map(async ({ answer, images }) => [answer, await Promise.all(images.slice(0, OF_EACH).map(address))]);
    return new Map((await Promise.all(loaded)).filter(([, images]) => images.length));
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    found = undefined; // perhaps the next time
    return new Map();
  }
}

const address = async (id) => URL.createObjectURL(await labelling.referencePicture(id));

/** Small pictures of reference cells in a row, larger under the pointer. What they are is said beside them. */
export function row(addresses) {
  const list = document.createElement("span");
  list.className = "references";
  for (const url of addresses) {
    const image = Object.assign(new Image(), { src: url, alt: "", draggable: false });
    const frame = document.createElement("span");
    frame.append(image);
    list.append(frame);
  }
  return list;
}

/** Fill `root` with the strip: each of `answers` that has reference cells, with its name. It is hidden where there are none. */
export async function strip(root, answers) {
  const all = await references();
  const shown = answers.filter((answer) => all.has(answer));
  root.hidden = !shown.length;
  root.replaceChildren(
    ...shown.map((answer) => {
      const group = document.createElement("figure");
      const name = document.createElement("figcaption");
      name.textContent = kind(answer);
      group.append(row(all.get(answer)), name);
      return group;
    }),
  );
}
