/** The record of a report as people read it: who did what and when, what they said, and whom they have asked. */

import { showComments } from "./cell.js";
import * as dialogs from "./dialogs.js";
import { moment, number, t } from "./language.js";
import { guarded, say } from "./notices.js";
import { showReport } from "./report.js";
import { saved } from "./review.js";
import * as service from "./service.js";
import { parts, specimen } from "./specimen.js";
import { counted, delivery } from "./words.js";

const MOST = 60; // entries that are shown at once
const CALM = 150; // ms after the last change: a decision that is made by key does not wait for the record

const byId = (id) => document.getElementById(id);
let waiting = null;
let all = false; // whether all entries are shown

/** Show the record as it is now, when there is time. */
export function showRecord() {
  waiting ??= setTimeout(() => {
    waiting = null;
    draw();
  }, CALM);
}

/** Nothing is shown of a specimen before. */
export function clearRecord() {
  all = false;
  for (const id of ["history", "opinions"]) byId(id).replaceChildren();
  byId("comment-text").value = "";
  byId("record").hidden = true;
}

function draw() {
  const { record, reportId } = specimen;
  byId("record").hidden = !reportId || !record;
  if (!record) return;
  const entries = history(record).reverse();
  const shown = all ? entries : entries.slice(0, MOST);
  showComments();
  byId("history").replaceChildren(...shown.map(entry));
  byId("history-all").hidden = shown.length === entries.length;
  byId("history-all").textContent = t("report.record.all", { count: entries.length });
  byId("opinions").replaceChildren(...record.opinions.filter(({ state }) => state !== "taken_back").map(opinion));
}

// ---------------------------------------------------------------- what has happened

/** All that people did, the first first: `at`, `by`, `text`. Cells that one person accepts one after the other are one entry. */
function history(record) {
  const happened = [
    { at: record.created_at, by: null, text: t("report.record.made", { version: record.model.version }) },
    ...record.corrections.map(corrected),
    ...record.changes.map((one) => ({ ...one, text: changed(one) })),
    ...record.signatures.map((one) => ({ ...one, text: t(`report.record.signed.${one.status}`) })),
    ...record.comments.map((one) => ({ ...one, said: true, text: comment(one) })),
    ...record.opinions.flatMap((one) => one.steps.map((step) => ({ ...step, said: step.text !== "", text: stepOf(one, step) }))),
    ...record.messages.map((one) => ({ at: one.finished_at ?? one.created_at, by: null, text: delivery(one).trim() })),
  ];
  happened.sort((a, b) => a.at.localeCompare(b.at));
  const entries = [];
  for (const one of happened) {
    const last = entries.at(-1);
    if (one.accepts && last?.accepts && last.by === one.by) Object.assign(last, { at: one.at, accepts: last.accepts + 1 });
    else entries.push({ ...one });
  }
  return entries.map((one) => (one.accepts > 1 ? { ...one, text: t("report.record.accepted", { count: one.accepts }) } : one));
}

function corrected({ at, by, index, from_label: was, to_label: now, undo }) {
  const said = { number: index + 1, was: counted(was), now: counted(now) };
  if (undo) return { at, by, text: t("report.record.undone", said) };
  if (was === now) return { at, by, accepts: 1, text: t("report.said.accepted", said) };
  return { at, by, text: t("report.said.corrected", said) };
}

function changed({ what, from_value: from, to_value: to, reason }) {
  if (what === "withdrawal") return t(to === "withdrawn" ? "report.record.withdrawn" : "report.record.reinstated", { reason });
  if (what === "model") return t("report.recounted", { version: to });
  const value = (one) => (one === null ? t("report.record.nothing") : typeof one === "number" ? number(one) : one);
  return t("report.record.changed", { what: t(`report.record.field.${what}`), from: value(from), to: value(to), reason });
}

const comment = ({ index, text }) => (index === null ? text : t("report.record.of_cell", { number: index + 1, text }));

const stepOf = ({ of }, { step, text }) => t(`report.opinion.step.${step}`, { of, text: text || "–" });

function entry({ at, by, text, said }) {
  const item = document.createElement("li");
  item.classList.toggle("said", said === true);
  const [when, who, what] = ["time", "b", "span"].map((name) => document.createElement(name));
  when.dateTime = at;
  when.textContent = moment(at);
  who.textContent = by ?? t("report.record.service");
  what.textContent = text;
  item.append(when, " ", who, " ", what);
  return item;
}

// ---------------------------------------------------------------- second opinions

function opinion(one) {
  const item = document.createElement("li");
  const text = document.createElement("p");
  const [first] = one.steps;
  const last = one.steps.at(-1);
  const words = { by: first.by, of: one.of, note: first.text, answer: last.text };
  const which = one.state === "answered" ? "answered" : first.text ? "open_note" : "open";
  text.textContent = t(`report.opinion.card.${which}`, words);
  item.className = one.state;
  const buttons = document.createElement("span");
  buttons.className = "buttons";
  if (mayAnswer(one)) buttons.append(button(t("report.opinion.answer_more"), () => answer(one)));
  if (one.state === "open") buttons.append(button(t("report.opinion.take_back"), () => takeBack(one)));
  item.append(text, buttons);
  return item;
}

/** Whoever has the key of a system may say that they are the one who was asked; the key of a person says who it is. */
const mayAnswer = ({ of }) => dialogs.person() === of || (!dialogs.owned() && !dialogs.person());

function button(name, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = name;
  made.addEventListener("click", action);
  return made;
}

/** Ask somebody for a second opinion: whoever may review is offered by name, and another name can be given. */
export async function askOpinion() {
  const seen = [...byId("colleagues").options].map(({ value }) => value); // in the worklist
  const names = new Set([...((await guarded(service.people)) ?? []), ...seen]);
  names.delete(dialogs.person());
  byId("colleagues").replaceChildren(...[...names].sort().map((name) => new Option(name)));
  const given = await dialogs.tell({ heading: t("report.opinion.ask"), line: t("report.opinion.note"), yes: t("report.opinion.ask"), of: true });
  if (!given) return;
  const body = { of: given.of, note: given.text, ...by() };
  if (await send(service.askOpinion, body)) say(t("report.opinion.asked", { of: given.of }));
}

async function answer({ id, steps: [first] }) {
  const question = t("report.opinion.question", { by: first.by, note: first.text || "–" });
  const yes = t("report.opinion.answer");
  const given = await dialogs.tell({ heading: t("report.opinion.heading"), question, line: yes, yes, needed: true });
  if (given && (await send(service.answerOpinion, { text: given.text, ...by() }, id))) say(t("report.opinion.answered"));
}

async function takeBack({ id, of }) {
  if (!(await named(t("report.opinion.take_back_question", { of }), t("report.opinion.take_back")))) return;
  if (await send(service.takeOpinionBack, by(), id)) say(t("report.opinion.taken_back"));
}

/** Say something of the report, or of the cell that is looked at. */
async function sendComment() {
  const text = byId("comment-text").value.trim();
  if (!text || !specimen.reportId) return;
  if (!dialogs.person() && !(await named(t("report.record.who"), t("report.record.send")))) return;
  const about = byId("comment-cell").checked ? { index: parts.gallery.current?.index } : {};
  if (!(await send(service.comment, { text, ...about, ...by() }))) return;
  byId("comment-text").value = "";
  say(t("report.record.sent"));
}

const named = (heading, yes) => dialogs.ask(heading, "", yes, { name: !dialogs.person() });

const by = () => (dialogs.person() ? { by: dialogs.person() } : {});

/** Send what was said. It rests on no version of the report: what others do meanwhile does not stand in its way. */
async function send(call, body, id) {
  await saved();
  const said = guarded(() => call(specimen.reportId, id, body, service.deed()));
  specimen.saying = said.then((answered) => answered && showReport(answered));
  return (await said) !== undefined;
}

/** Listen to the fields and buttons of the record. */
export function listenToRecord() {
  byId("ask-opinion").addEventListener("click", askOpinion);
  byId("comment").addEventListener("submit", (event) => {
    event.preventDefault();
    void sendComment();
  });
  byId("history-all").addEventListener("click", () => {
    all = true;
    draw();
  });
}
