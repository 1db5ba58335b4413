/** Cells on which two readers differ: a third person sees both answers without names, and the model's opinion last. */

import { Ahead } from "./ahead.js";
import * as answers from "./answers.js";
import { flash, makeKinds, showReferences } from "./kinds.js";
import * as labelling from "./labelling.js";
import { kind, percent, t } from "./language.js";
import * as microscope from "./microscope.js";
import { guarded, say } from "./notices.js";
import { answerOf, draw, queue } from "./queue.js";

const byId = (id) => document.getElementById(id);

let ended = () => {};
let given = []; // disputes answered here, the last one at the end
let shown = null;
let here = false; // whether this view is on the screen

const ahead = new Ahead({
  ask: async () => labelling.disputes(),
  load: labelling.disputedPicture,
  answered: answers.holds,
  came: (one) => shown === one && show(),
});

/** `onEnd()` is called when nothing is disputed. */
export function begin(onEnd) {
  ended = onEnd;
  given = [];
  shown = null;
  ahead.tasks = [];
  answers.listen("adjudicated", { refused });
}

/** Show the first dispute. */
export async function enter() {
  here = true;
  makeKinds(byId("kinds"), give, queue.kinds);
  byId("answer-heading").textContent = t("label.decide");
  byId("last").textContent = "";
  shown = null;
  ahead.again();
  await next();
  await showReferences(byId("kinds"));
}

export function leave() {
  here = false;
}

async function next() {
  show();
  await answers.sent(); // the service lists what is not decided
  await guarded(() => ahead.fill());
  ahead.again(); // it lists a few at a time
  show();
  if (here && !ahead.current) ended();
}

function show() {
  if (!here) return;
  const one = ahead.current;
  byId("dispute").hidden = !one;
  if (!one) return;
  const words = one.failure ? `${t("label.no_picture")} ${one.failure.message}` : t("label.picture_coming");
  if (shown === one && byId("picture").contains(one.image ?? null)) return;
  if (shown !== one) one.revealed = false;
  shown = one;
  microscope.show(one.image, t("label.disputed_cell"), words);
  byId("both").replaceChildren(...one.answers.map((answer, index) => said(answer, index)));
  drawOpinion();
}

function said(answer, index) {
  const item = document.createElement("div");
  const who = document.createElement("dt");
  who.textContent = t(index ? "label.other_reader" : "label.one_reader");
  const what = document.createElement("dd");
  what.textContent = kind(answer);
  item.append(who, what);
  return item;
}

/** Show what the model thinks of it, after the person has. */
export function reveal() {
  if (!ahead.current) return;
  ahead.current.revealed = true;
  drawOpinion();
  say(byId("opinion").textContent);
}

function drawOpinion() {
  const { opinion, revealed } = ahead.current;
  byId("reveal").hidden = Boolean(revealed);
  byId("opinion").textContent = revealed ? inWords(opinion) : "";
}

function inWords(opinion) {
  if (!opinion) return t("label.no_opinion");
  return t("label.opinion", { kind: kind(opinion.label), sure: opinion.probability === null ? "?" : percent(opinion.probability) });
}

function give(answer) {
  const one = ahead.current;
  if (!one) return;
  const seconds = microscope.seconds();
  if (seconds === undefined) {
    say(t(one.image ? "label.too_soon" : "label.not_seen"), true);
    return;
  }
  ahead.shift();
  given.push(one);
  one.entry = { way: "adjudicated", id: one.id, answer, seconds };
  disputed(-1);
  flash(byId("kinds"), answer);
  say(t("label.decided", { kind: kind(answer), count: queue.disputed }));
  answers.give(one.entry);
  void next();
}

/** Take the last decision back, and look at its cell again. */
export function undo() {
  const one = given.pop();
  if (!one) {
    say(t("label.nothing_to_undo"));
    return;
  }
  answers.takeBack(one.entry);
  disputed(1);
  ahead.first(one);
  show();
  say(t("label.back", { kind: kind(one.entry.answer) }));
}

function disputed(more) {
  queue.disputed = Math.max(0, queue.disputed + more);
  draw();
}

function refused({ id, answer }, failure) {
  const at = given.findIndex((one) => one.id === id);
  if (at >= 0 && failure.status !== 404) ahead.first(given.splice(at, 1)[0]);
  disputed(1);
  show();
  say(t("label.refused", { kind: kind(answer), why: failure.message }), true);
}

/** What a key does here; undefined for one that does nothing. */
export function actionOf(key) {
  if (key === "u") return undo;
  if (key === "h") return reveal;
  const answer = answerOf(key);
  if (answer) return () => give(answer);
  return microscope.actionOf(key);
}
