/** Answers on their way to the service: one after the other, in the order they were given, each until the service has it.
 *
 * The reader does not wait for them. What is not confirmed is kept in the tab with the key of its deed: after a reload it is sent
 * again, and counts once. An answer that the service refuses is told to the view that gave it, which comes back to its cell.
 */

import * as labelling from "./labelling.js";
import { notice } from "./notices.js";
import * as service from "./service.js";
import { t } from "./language.js";

const KEPT = "wbc-label-answers";
const PATIENCE = [1000, 2000, 4000, 8000, 15000]; // ms until what could not be sent is sent again

const CALLS = {
  single: ({ id, answer, seconds, deed }) => labelling.answer(id, { answer, seconds, way: "single" }, deed),
  sweep: ({ ids, answer, seconds, deed }) =>
    labelling.answerSeveral({ answers: ids.map((task) => ({ task, answer })), seconds, way: "sweep" }, deed),
  adjudicated: ({ id, answer, seconds, deed }) => labelling.adjudicate(id, { answer, seconds }, deed),
  undo: ({ of, decided, deed }) => (of === null ? labelling.undo(deed) : decided ? labelling.takeDecisionBack(of, deed) : labelling.takeBack(of, deed)),
};

const answered = new Set(); // tasks and disputes that were answered here, and whose answer stands
let reader = "";
let waiting = [];
let others = []; // what other readers of this tab could not send; it waits for them
let trouble = ""; // why the last one could not be sent
let sending = null; // resolves when nothing waits
let wake = () => {}; // ends the pause before what could not be sent is sent again
const views = {}; // who is told, by the way an answer was given
let changed = () => {};

/** `confirmed(entry, answer)` and `refused(entry, failure)` are told of what was given in this `way`. */
export function listen(way, told) {
  views[way] = told;
}

/** Send for this reader, first what a reload has left over; `onChange` is called whenever something waits or has arrived. */
export function begin(name, onChange) {
  reader = name;
  changed = onChange;
  waiting = kept().filter((entry) => entry.reader === reader);
  others = kept().filter((entry) => entry.reader !== reader);
  for (const entry of waiting) if (entry.way !== "undo") note(entry);
  if (waiting.length) start();
}

window.addEventListener("online", () => wake());

const idsOf = ({ id, ids }) => ids ?? [id];

/** How many calls the service has not confirmed. */
export const unsaved = () => waiting.length;

/** How many cells they answer; those that are taken back count against it. */
export const unsavedCells = () => waiting.reduce((sum, entry) => sum + (entry.way === "undo" ? -1 : idsOf(entry).length), 0);

/** Whether this task was answered here, whatever the service said of it meanwhile: it may have been asked before it knew. */
export const holds = (id) => answered.has(id);

/** Resolves when everything is sent, or refused. */
export const sent = () => sending ?? Promise.resolve();

/** Send an answer: its `way`, its task or dispute `id` (or `ids`), its `answer`, and the `seconds` it took. It gets a deed. */
export function give(entry) {
  Object.assign(entry, { reader, deed: service.deed() });
  waiting.push(entry);
  note(entry);
  start();
}

function note(entry) {
  for (const id of idsOf(entry)) answered.add(id);
}

function unnote(ids) {
  for (const id of ids) answered.delete(id);
}

/** Take an answer back: it is not sent at all where it has not left, else the service undoes it. It is told which: what the reader
 * said last may be another answer, given in another window. */
export function takeBack(given) {
  unnote(idsOf(given));
  const unsent = waiting.find((one) => one.deed === given.deed && !one.tried);
  if (unsent) waiting = waiting.filter((one) => one !== unsent);
  else for (const id of idsOf(given)) waiting.push({ way: "undo", of: id, decided: given.way === "adjudicated", reader, deed: service.deed() });
  start();
}

/** Take back the last answer that the service has of this person, of any day and computer; `confirmed` tells which it was. */
export function takeBackLast() {
  waiting.push({ way: "undo", of: null, reader, deed: service.deed() });
  start();
}

/** Forget what is not sent. */
export function forget() {
  waiting = [];
  answered.clear();
  keep();
}

function start() {
  keep();
  sending ??= send().finally(() => {
    sending = null;
    changed();
  });
}

async function send() {
  let failures = 0;
  while (waiting.length) {
    const [entry] = waiting;
    entry.tried = true;
    try {
      const answer = await CALLS[entry.way](entry);
      failures = 0;
      trouble = "";
      done(entry);
      if (entry.way === "undo") unnote([answer.task, answer.dispute].filter((id) => !again(id)));
      views[entry.way]?.confirmed?.(entry, answer);
    } catch (failure) {
      if (!(failure instanceof service.Failure)) throw failure;
      if (mayYetBe(failure)) await pause(failure, failures++);
      else refuse(entry, failure);
    }
  }
}

/** Whether what is taken back was answered again meanwhile. */
const again = (id) => waiting.some((entry) => entry.way !== "undo" && idsOf(entry).includes(id));

/** Whether the same call may succeed at another time. */
const mayYetBe = ({ unknown, status, kind }) => unknown || [401, 429].includes(status) || kind === "idempotency-key-in-use";

async function pause(failure, failures) {
  trouble = failure.message;
  tell();
  await new Promise((resolve) => {
    wake = resolve;
    if (failure.status !== 401) setTimeout(resolve, PATIENCE[Math.min(failures, PATIENCE.length - 1)]); // else when there is a key
  });
}

function refuse(entry, failure) {
  const ids = idsOf(entry);
  unnote(ids);
  trouble = "";
  done(entry);
  waiting = waiting.filter((one) => !(one.way === "undo" && ids.includes(one.of))); // there is nothing to take back
  keep();
  views[entry.way]?.refused?.(entry, failure);
}

function done(entry) {
  waiting = waiting.filter((one) => one !== entry);
  keep();
}

function keep() {
  const all = [...others, ...waiting];
  if (all.length) sessionStorage.setItem(KEPT, JSON.stringify(all));
  else sessionStorage.removeItem(KEPT);
  tell();
  changed();
}

/** Say how many are not saved, for as long as that is so. */
function tell() {
  notice("unsent", trouble && waiting.length ? t("label.unsent", { count: waiting.length, why: trouble }) : "");
}

const kept = () => JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
