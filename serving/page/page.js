/** The page: from a dropped folder to a signed report. The service counts; the page only asks it and shows what it answers. */

import { makeChoices, showCell, toggleHeat } from "./cell.js";
import * as dialogs from "./dialogs.js";
import { chosen, dropped } from "./files.js";
import { day, kind, listed, offer, t, translate } from "./language.js";
import { guarded, notice, say } from "./notices.js";
import { unshowable, want } from "./pictures.js";
import * as report from "./report.js";
import { decide, mayHold, saved, undo } from "./review.js";
import * as service from "./service.js";
import { makeGallery, newSpecimen, parts, specimen, usable } from "./specimen.js";
import { laneOf, REVIEW, UNCOUNTED } from "./tiles.js";
import * as upload from "./upload.js";
import { images, lineOf } from "./words.js";

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

const byId = (id) => document.getElementById(id);
let classes = [];
let keepsReports = false;
let ready; // resolves when the service has said what it is
let acting = Promise.resolve(); // what the keys ask for is done in the order they were pressed
let busy = 0; // how much of it is not done yet

// ---------------------------------------------------------------- start

async function begin() {
  await guarded(async () => {
    const card = await service.model();
    classes = card.classes;
    byId("model-line").textContent = t("report.model", { version: card.version });
    byId("help-classes").textContent = t("report.help.correct", { classes: listed(classes.map(kind)) });
    notice("rendered", card.rendered ? t("report.rendered") : "");
    makeChoices(classes, (label) => decide(parts.gallery.current, label));
    await listOpenReports();
  });
}

async function listOpenReports() {
  const open = await service.reports("open");
  keepsReports = open !== null;
  listReports(t("report.open"), open ?? []);
}

/** The reports under the number that was typed, signed and withdrawn ones too. */
async function findReports() {
  const number = byId("specimen-id").value.trim();
  if (!number || !keepsReports) return;
  const found = (await service.reports("all", number)).filter((one) => one.specimen_id === number);
  listReports(t("report.reports_of", { number }), found);
  if (!found.length) say(t("report.none_of", { number }));
}

function listReports(heading, found) {
  const items = found.map((one) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const name = document.createElement("b");
    name.textContent = one.specimen_id ?? t("report.no_number");
    const detail = document.createElement("span");
    detail.textContent = lineOf(one);
    button.append(name, detail);
    button.addEventListener("click", () => guarded(() => reopen(one.id)));
    item.append(button);
    return item;
  });
  byId("open-reports").hidden = !items.length;
  byId("open-heading").textContent = heading;
  byId("open-reports").querySelector("ul").replaceChildren(...items);
}

function view(name) {
  document.body.dataset.view = name;
  byId("start").hidden = name !== "start";
  byId("work").hidden = name !== "work";
  byId("new").hidden = name !== "work";
}

async function startAgain() {
  await saved();
  newSpecimen(classes);
  byId("specimen-id").value = byId("wbc-count").value = "";
  clear();
  say("");
  view("start");
  byId("specimen-id").focus();
  await guarded(listOpenReports);
}

/** Forget the key and the name of this tab. */
function signOut() {
  sessionStorage.clear();
  location.reload();
}

function clear() {
  report.clear();
  for (const id of ["recounted", "same"]) notice(id, "");
}

async function take(found) {
  if (!found.files.length) {
    const { others } = found;
    say(others ? t("report.upload.no_image", { count: others }) : t("report.upload.no_file"), true);
    return;
  }
  await ready;
  if (!classes.length) await (ready = begin()); // it failed when the page was opened: the key, or the network
  if (!classes.length) return;
  dialogs.setPerson(byId("person").value);
  clear();
  const [number, count] = [byId("specimen-id").value.trim(), byId("wbc-count").value.trim().replace(",", ".")];
  if (!(await upload.begin(found, { specimen_id: number, wbc_count: count }, classes, keepsReports))) view("start");
}

/** Go on with a report that was begun before. */
async function reopen(id) {
  const whole = await service.report(id);
  dialogs.setPerson(byId("person").value);
  newSpecimen(classes, { reportId: id });
  clear();
  view("work");
  report.showReport(whole);
  const { complete, images: kept, expected_images: expected, sent_images: sent, withdrawn } = whole;
  if (!complete && !withdrawn) say(t("report.upload.incomplete", { sent, images: images(expected) }));
  else if (!kept.kept) say(t("report.upload.see"));
  else say(kept.delete_after ? t("report.images_until", { day: day(kept.delete_after) }) : "");
}

// ---------------------------------------------------------------- keys, mouse, files

const inField = (element) => element.closest?.("input, textarea, select, dialog") && !element.matches("input[type=radio]");

/** Keys work everywhere but in fields and dialogs. */
function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || inField(event.target)) return;
  const action = actionOf(event.key, event.target.closest("button, a, label, input") !== null);
  if (!action) return;
  event.preventDefault();
  if (event.repeat && (busy || !mayRepeat(event.key))) return;
  busy++;
  acting = acting
    .then(action)
    .catch((reason) => failed({ reason }))
    .finally(() => busy--);
}

const decides = (key) => key === "Enter" || /^[0-9]$/.test(key);
const mayRepeat = (key) => MOVES.includes(key) || (decides(key) && mayHold(parts.gallery.current));

/** What a key does; undefined for one that is the browser's. A control that has the focus keeps Enter and the arrows. */
function actionOf(key, onControl) {
  const { gallery } = parts;
  if (key === "F1") return () => void dialogs.help();
  if (document.body.dataset.view !== "work" || !gallery.current) return undefined;
  if (/^[1-9]$/.test(key)) return classes[key - 1] && (() => decide(gallery.current, classes[key - 1]));
  if (!onControl && MOVES.includes(key)) return () => gallery.move(key);
  if (!onControl && key === "Enter") return () => decide(gallery.current, gallery.current.label);
  return { 0: () => decide(gallery.current, null), u: undo, h: heat, r: toReview }[key.toLowerCase()];
}

function look(cell) {
  want(cell, true);
  return withHeat(() => showCell(cell, unshowable));
}

async function withHeat(show) {
  const words = await guarded(show);
  if (words) say(words);
}

const heat = () => void withHeat(toggleHeat);

/** The next cell of the review lane; where it is empty and the service still wants some looked at, the next one not decided. */
function toReview() {
  const { gallery } = parts;
  const order = gallery.order();
  const here = order.indexOf(gallery.current);
  const following = [...order.slice(here + 1), ...order.slice(0, here + 1)];
  const open = specimen.state?.to_review ? following.find((cell) => usable(cell) && !cell.seen) : undefined;
  const next = following.find((cell) => laneOf(cell) === REVIEW) ?? open;
  if (next) gallery.focus(next);
  else say(t("report.note.none_left"));
}

async function filesDropped(event) {
  document.body.classList.remove("over");
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const found = await dropped(event.dataTransfer);
  if (document.body.dataset.view === "start") await take(found);
  else if (specimen.reportId && !specimen.posting) await upload.again(found.files);
  else say(t("report.upload.finish_first"), true);
}

/** Something that this page did not foresee, such as a folder that cannot be read. */
function failed(event) {
  const reason = event.reason ?? event.error;
  const unread = reason instanceof DOMException;
  if (!unread) console.error(reason);
  say(unread ? t("common.unreadable", { why: reason.message }) : t("common.failed"), true);
}

/** Ask before the page is left while something is on its way to the service. */
function leaving(event) {
  if (specimen.waiting.length || [...specimen.cells.values()].some((cell) => cell.unsaved)) event.preventDefault();
}

function listenToFiles() {
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
  document.addEventListener("drop", filesDropped);
  for (const [button, input] of [
    ["choose-folder", "folder-input"],
    ["choose-images", "images-input"],
  ]) {
    byId(button).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", async () => {
      const found = chosen(byId(input));
      byId(input).value = "";
      await take(found);
    });
  }
}

function listen() {
  document.addEventListener("keydown", pressed);
  window.addEventListener("unhandledrejection", failed);
  window.addEventListener("error", failed);
  window.addEventListener("beforeunload", leaving);
  const clicks = {
    help: dialogs.help,
    "sign-out": signOut,
    new: startAgain,
    rest: upload.sendRest,
    accept: () => decide(parts.gallery.current, parts.gallery.current.label),
    undo,
    heat,
    twin: () => parts.gallery.focus(specimen.cells.get(Number(byId("twin").value))),
    sign: report.sign,
    amend: report.amend,
    withdraw: report.withdraw,
    pdf: () => report.download(service.pdf, "differential.pdf"),
    fhir: () => report.download(service.fhir, "differential.fhir.json"),
  };
  for (const [id, action] of Object.entries(clicks)) byId(id).addEventListener("click", action);
  byId("unit").addEventListener("change", report.drawAgain);
  byId("details").addEventListener("submit", (event) => {
    event.preventDefault();
    void guarded(findReports);
  });
}

translate(document);
offer(byId("language"));
service.keyFromAddress();
byId("person").value = dialogs.person();
service.onKeyNeeded(dialogs.key);
parts.view = view;
makeGallery(look, (cell, lane) => decide(cell, lane === UNCOUNTED ? null : lane));
listen();
listenToFiles();
ready = begin();
window.addEventListener("hashchange", () => {
  service.keyFromAddress();
  if (!classes.length) ready = begin();
});
