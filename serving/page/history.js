/** What a person has said so far, the latest first: each answer can be given anew, or be taken back, on any day. */

import * as labelling from "./labelling.js";
import { kind, moment, t } from "./language.js";
import { guarded, say } from "./notices.js";
import { refresh } from "./queue.js";
import * as service from "./service.js";

const byId = (id) => document.getElementById(id);

let again = () => {}; // names a task's cell anew
let decide = () => {}; // shows what is disputed
let following; // where the list goes on

/** `onAgain(task, answer)` shows the cell of a task to be named anew, `onDispute()` what is disputed. */
export function begin(onAgain, onDispute) {
  again = onAgain;
  decide = onDispute;
}

/** Show the list from its beginning. */
export async function enter() {
  byId("said").replaceChildren();
  following = undefined;
  await more();
}

/** Show what follows. */
export async function more() {
  byId("said-coming").hidden = false;
  const found = await guarded(() => labelling.answers(following));
  byId("said-coming").hidden = true;
  if (!found) return;
  following = found.next;
  byId("said").append(...found.answers.map(entry));
  byId("said-more").hidden = following === null;
  byId("said-none").hidden = byId("said").children.length > 0;
}

function entry(one) {
  const item = document.createElement("li");
  const [picture, name, when, buttons] = ["div", "b", "time", "p"].map((element) => document.createElement(element));
  picture.className = "picture";
  name.textContent = one.dispute && one.answer === "unsure" ? t("label.unnamed.kind") : kind(one.answer);
  when.dateTime = one.at;
  when.textContent = moment(one.at);
  buttons.className = "buttons";
  if (one.left) buttons.textContent = t("label.said.left");
  else buttons.append(...actions(one, name.textContent, item));
  item.append(picture, name, when, buttons);
  if (one.image) void look(one, picture);
  else picture.textContent = t("label.said.no_picture");
  return item;
}

function actions(one, name, item) {
  const made = [button(t("label.said.take_back"), name, () => takeBack(one, item))];
  if (one.task && one.image) made.unshift(button(t("label.said.again"), name, () => again(one.task, one.answer)));
  return made;
}

function button(text, about, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", `${text}: ${about}`);
  made.addEventListener("click", action);
  return made;
}

async function look({ task, dispute }, picture) {
  try {
    const image = new Image();
    image.alt = "";
    image.src = URL.createObjectURL(await (task ? labelling.picture(task) : labelling.disputedPicture(dispute)));
    await image.decode();
    picture.replaceChildren(image);
  } catch (failure) {
    if (!(failure instanceof service.Failure || failure instanceof DOMException)) throw failure;
    picture.textContent = t("label.no_picture");
  }
}

/** Take an answer back: its cell is asked again, or is in dispute again. */
async function takeBack({ task, dispute, answer }, item) {
  const done = await guarded(() => (task ? labelling.takeBack(task, service.deed()) : labelling.takeDecisionBack(dispute, service.deed())));
  if (!done) return;
  item.remove();
  await guarded(refresh);
  say(t(task ? "label.back_listed" : "label.back_decided", { kind: kind(answer) }));
  if (dispute) decide();
}

/** What a key does here: nothing. */
export const actionOf = () => undefined;
