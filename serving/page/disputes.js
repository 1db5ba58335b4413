/** Cells on which two readers differ: a third person sees both answers without names, and the model's opinion last.
 *
 * Whoever is unsure, too, says that nobody can name the cell. These cells are a list of their own, and can be named all the same.
 */

import { Ahead } from "./ahead.js";
import * as answers from "./answers.js";
import { flash, makeKinds, showReferences } from "./kinds.js";
import * as labelling from "./labelling.js";
import { kind, percent, t } from "./language.js";
import * as microscope from "./microscope.js";
import { guarded, say } from "./notices.js";
import { answerOf, draw, queue, refreshSilently } from "./queue.js";

const UNSURE = "unsure";
const GONE = [403, 404, 409]; // the status of a refusal after which nothing is to be decided by this person
const byId = (id) => document.getElementById(id);

let ended = () => {};
let given = []; // disputes answered here, the last one at the end
let shown = null;
let here = false; // whether this view is on the screen
let unnamed = false; // whether it shows what nobody could name so far

const ahead = new Ahead({
  ask: async () => labelling.disputes(unnamed),
  load: labelling.disputedPicture,
  answered: (id) => !unnamed && answers.holds(id), // what was said to have no name is looked at once more
  came: (one) => shown === one && (ahead.current === one ? show() : void next()),
});

/** `onEnd(unnamed)` is called when nothing is disputed, or nothing is left that nobody could name. */
export function begin(onEnd) {
  ended = onEnd;
  given = [];
  shown = null;
  ahead.tasks = [];
  answers.listen("adjudicated", { confirmed: (_, { left }) => leftAre(left), refused });
}

/** Show the first dispute; with `ofUnnamed` the first cell that nobody could name. */
export async function enter(ofUnnamed = false) {
  here = true;
  if (unnamed !== ofUnnamed) ahead.tasks = [];
  unnamed = ofUnnamed;
  makeKinds(byId("kinds"), give, queue.kinds.filter(({ answer }) => !unnamed || answer !== UNSURE));
  nameUnsure();
  byId("answer-heading").textContent = t("label.decide");
  byId("last").textContent = "";
  shown = null;
  ahead.again();
  await next();
  await showReferences(byId("kinds"));
}

/** What the service told with a decision: others decide, too. It is of the past while further decisions are on their way. */
function leftAre(left) {
  if (answers.unsaved()) return;
  queue.disputed = left;
  draw();
}

const nameOf = (answer) => (answer === UNSURE ? t("label.unnamed.kind") : kind(answer));

function nameUnsure() {
  const made = byId("kinds").querySelector(`[data-answer="${UNSURE}"]`);
  if (!made) return;
  made.querySelector(".name").textContent = t("label.unnamed.kind");
  made.title = t("label.unnamed.title");
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
  if (here && !ahead.current) ended(unnamed);
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
  one.unnamed = unnamed;
  counted(one, 1);
  flash(byId("kinds"), answer);
  const name = nameOf(answer);
  say(unnamed ? t("label.unnamed.decided", { kind: name }) : t("label.decided", { kind: name, count: queue.disputed }));
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
  counted(one, -1);
  ahead.first(one);
  show();
  say(t("label.back", { kind: nameOf(one.entry.answer) }));
}

/** A cell is decided, or with -1 no longer. */
function counted({ unnamed: was, entry }, decided) {
  if (was) queue.unnamed = Math.max(0, queue.unnamed - decided);
  else queue.disputed = Math.max(0, queue.disputed - decided);
  if (entry.answer === UNSURE) queue.unnamed += decided;
  draw();
}

function refused({ id, answer }, failure) {
  const at = given.findIndex((one) => one.id === id);
  const [one] = at >= 0 ? given.splice(at, 1) : [];
  if (one) counted(one, -1);
  if (GONE.includes(failure.status)) {
    ahead.askAgain(); // others may have left with it
    void refreshSilently();
  } else if (one) ahead.first(one);
  void next();
  say(t("label.refused", { kind: nameOf(answer), why: failure.message }), true);
}

/** What a key does here; undefined for one that does nothing. */
export function actionOf(key) {
  if (key === "u") return undo;
  if (key === "h") return reveal;
  const answer = answerOf(key);
  if (answer && !(unnamed && answer === UNSURE)) return () => give(answer);
  return microscope.actionOf(key);
}
