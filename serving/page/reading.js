/** One cell at a time: a key answers, and the next cell is there. */

import { Ahead, release } from "./ahead.js";
import * as answers from "./answers.js";
import { flash, makeKinds, showReferences } from "./kinds.js";
import * as labelling from "./labelling.js";
import { kind, t } from "./language.js";
import * as microscope from "./microscope.js";
import { say } from "./notices.js";
import { answerOf, count, place, progressed, refreshSilently } from "./queue.js";
import { Failure } from "./service.js";

const AGAIN = 3000; // ms
const BEFORE = 20; // answers that can be taken back without asking for their picture
const GONE = [404, 409]; // the status of a refusal after which the cell is not asked for
const byId = (id) => document.getElementById(id);

let told = {}; // `ended()` when there is nothing left to read, `stopped(failure)` when the service does not let the reader go on
let given = []; // what was answered here: the entry that is sent, its task, and the answer that the task had before (`was`)
let shown = null; // the task that is on the screen
let here = false; // whether this view is
let timer; // until the service is asked again, where it did not answer

const ahead = new Ahead({
  ask: labelling.tasks,
  load: labelling.picture,
  answered: answers.holds,
  came: (task) => shown === task && (ahead.current === task ? show() : void next()),
});

/** Begin with another reader; `ended()` is called when nothing is left to read, `stopped(failure)` where it cannot go on. */
export function begin(whom) {
  told = whom;
  given = [];
  shown = null;
  ahead.tasks = [];
  answers.listen("single", { confirmed: (_, answer) => progressed(answer), refused });
  answers.listen("undo", { confirmed: undone, refused: notUndone });
}

/** Show the cell that is next. */
export async function enter() {
  here = true;
  shown = null;
  makeKinds(byId("kinds"), give);
  byId("dispute").hidden = true;
  ahead.again();
  await next();
  await showReferences(byId("kinds"));
}

/** Another view is shown. What was loaded ahead may be answered there. */
export function leave() {
  if (here) ahead.tasks = [];
  here = false;
}

/** Whether there are cells that somebody wants to name now, be a queue open or not. */
export const waits = () => ahead.tasks.length > 0;

/** Read these tasks before all others. One that has an answer says it (`was`). */
export function readFirst(tasks) {
  for (const task of [...tasks].reverse()) ahead.first(task);
}

async function next() {
  clearTimeout(timer);
  show();
  try {
    await ahead.fill(answers.unsaved());
    if (!ahead.current) {
      await answers.sent(); // what is refused comes back
      ahead.again(); // and there may be more by now
      await ahead.fill();
    }
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    failed(failure);
    return;
  }
  show();
  if (ahead.current) return;
  await refreshSilently(); // who has the rest is of now
  if (here && !ahead.current) told.ended();
}

function failed(failure) {
  if (!here) return;
  if (!failure.unknown) told.stopped(failure);
  else timer = setTimeout(next, AGAIN);
  if (!ahead.current) microscope.show(undefined, "", failure.message);
}

function show() {
  if (!here) return;
  const task = ahead.current;
  drawLast();
  if (!task) {
    shown = null;
    microscope.show(undefined, "", t("label.looking"));
    return;
  }
  byId("answer-heading").textContent = task.was ? t("label.said.was", { kind: kind(task.was) }) : t("label.what");
  if (shown === task && byId("picture").contains(task.image ?? null)) return;
  shown = task;
  const words = task.failure ? `${t("label.no_picture")} ${task.failure.message}` : t("label.picture_coming");
  microscope.show(task.image, t("label.cell", { place: place() }), words);
}

/** Answer the cell that is looked at. */
function give(answer) {
  const task = ahead.current;
  if (!task) return;
  const seconds = microscope.seconds();
  if (seconds === undefined) {
    say(task.image ? t("label.too_soon") : t("label.not_seen"), true);
    return;
  }
  const entry = { way: "single", id: task.id, answer, seconds };
  const { was } = task;
  ahead.shift();
  given.push({ entry, task, was });
  if (given.length > BEFORE) release(given[given.length - 1 - BEFORE].task);
  task.was = undefined;
  if (!was) count(1, seconds);
  show();
  flash(byId("kinds"), answer);
  say(t("label.answered", { kind: kind(answer), place: place() }));
  answers.give(entry);
  void next();
}

/** Take the last answer back, and look at its cell again. */
export function undo() {
  const last = given.pop();
  if (!last) {
    answers.takeBackLast(); // it was given on another day, or on another computer
    return;
  }
  answers.takeBack(last.entry);
  unsaid(last);
  comeBack(last.task);
  say(t("label.back", { kind: kind(last.entry.answer) }));
}

/** An answer does not stand: its cell waits again, or has the answer that it had before. */
function unsaid({ task, was }) {
  task.was = was;
  if (!was) count(-1);
}

/** The service took nothing back: another window has, or the answer is no longer the reader's to change. */
function notUndone(_, failure) {
  void refreshSilently();
  say(failure.message, true);
}

/** An answer was taken back. Where this page did not know which it would be, its cell is looked at now. */
function undone(entry, { task, dispute }) {
  void refreshSilently();
  if (entry.of === (task ?? dispute)) return;
  if (!task) {
    location.hash = "#/disputes"; // it was about a disputed cell
    return;
  }
  comeBack({ id: task });
  say(t("label.back_other"));
}

function refused({ id, answer }, failure) {
  const at = given.findIndex((one) => one.entry.id === id);
  const [known] = at < 0 ? [undefined] : given.splice(at, 1);
  unsaid(known ?? { task: {} });
  const gone = GONE.includes(failure.status);
  if (gone) {
    ahead.askAgain(); // others may have left with it
    void refreshSilently();
  } else comeBack(known?.task ?? { id });
  const words = [t("label.refused", { kind: kind(answer), why: failure.message }), !gone && t("label.refused_back")];
  say(words.filter(Boolean).join(" "), true);
}

function comeBack(task) {
  ahead.first(task);
  ahead.again();
  show();
  void next();
}

function drawLast() {
  const last = given.at(-1);
  byId("last").textContent = last ? t("label.last", { kind: kind(last.entry.answer) }) : "";
}

/** What a key does here; undefined for one that does nothing. */
export function actionOf(key) {
  if (key === "u") return undo;
  const answer = answerOf(key);
  if (answer) return () => give(answer);
  return microscope.actionOf(key);
}
