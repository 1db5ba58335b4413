/** What the page says: a line for what has just happened, and lines that stay as long as they are true. */

import * as service from "./service.js";

const byId = (id) => document.getElementById(id);

/** Say what has happened; `alarm` where it has not. */
export function say(text, alarm = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("alarm", alarm);
}

/** Run `work`; where the service refuses, say why. */
export async function guarded(work) {
  try {
    return await work();
  } catch (failure) {
    if (!(failure instanceof service.Failure)) throw failure;
    say(failure.message, true);
    return undefined;
  }
}

/** A line that stays until it is called with an empty text. */
export function notice(id, text) {
  const there = byId(`notice-${id}`);
  if (!text) there?.remove();
  if (!text || there?.textContent === text) return;
  const line = there ?? document.createElement("p");
  line.id = `notice-${id}`;
  line.textContent = text;
  if (!there) byId("notices").append(line);
}
