/** The page: from a dropped folder to a signed report. The service counts; the page only asks it and shows what it answers. */

import * as address from "./address.js";
import { makeChoices, makeMicroscope, showCell, showReferences, toggleHeat, toggleZoom } from "./cell.js";
import * as dialogs from "./dialogs.js";
import { chosen, dropped } from "./files.js";
import { day, kind, listed, offer, t, translate } from "./language.js";
import { guarded, notice, say } from "./notices.js";
import { unshowable, want } from "./pictures.js";
import * as presence from "./presence.js";
import { listenToRecord } from "./record.js";
import { forget } from "./references.js";
import * as report from "./report.js";
import { decide, decideSeveral, mayHold, saved, undo } from "./review.js";
import * as service from "./service.js";
import { makeGallery, newSpecimen, parts, specimen, usable } from "./specimen.js";
import { laneOf, REVIEW, UNCOUNTED } from "./tiles.js";
import * as upload from "./upload.js";
import { leaveWorklist, listenToWorklist, resetWorklist, showWorklist } from "./worklist.js";

const LOOK_AGAIN = 10_000; // ms until the page looks again for a model, while there is none
const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

const byId = (id) => document.getElementById(id);
let classes = [];
let further = []; // the site's further kinds: `name`, `key`
let keepsReports = false;
let ready; // resolves when the service has said what it is
let acting = Promise.resolve(); // what the keys ask for is done in the order they were pressed
let several = false; // whether the page has said that several cells are selected
let busy = 0; // how much of it is not done yet

// ---------------------------------------------------------------- begin

async function begin() {
  await guarded(async () => {
    const card = await modelCard();
    classes = card.classes;
    describe(card);
    byId("help-classes").textContent = t("report.help.correct", { classes: listed(classes.map(kind)) });
    const site = await service.site();
    further = site.further_kinds;
    byId("help-further").hidden = !further.length;
    byId("help-further").querySelector("dt").replaceChildren(...further.map(({ key }) => keyOf(key)));
    const me = await service.me();
    dialogs.setOwner(me.person);
    byId("owner").textContent = byId("owner").title = me.person ?? "";
    byId("sign-out").hidden = false;
    byId("to-label").hidden = !me.scopes.includes("label");
    makeMicroscope(site.pixel_um);
    makeChoices(classes, further, choose);
    await go();
  });
}

/** Say which model serves; a report says which has counted it. */
function describe(card) {
  byId("model-line").textContent = t("report.model", { version: card.version });
  notice("rendered", card.rendered ? t("report.rendered") : "");
}

/** The card of the model. While there is none yet, the page says so, and where cells can be named all the same. */
async function modelCard() {
  for (;;) {
    try {
      const card = await service.model();
      notice("no-model", "");
      return card;
    } catch (failure) {
      if (failure.kind !== "not-ready") throw failure;
      notice("no-model", t("report.no_model"));
      byId("to-label").hidden = false;
      await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN));
    }
  }
}

function keyOf(key) {
  const made = document.createElement("kbd");
  made.textContent = key;
  return made;
}

/** Show what the address names: the worklist or a report. */
async function go() {
  const id = address.reportId();
  if (specimen.posting) {
    address.replace(specimen.reportId);
    say(t("report.note.reading"), true);
    return;
  }
  await saved();
  if (id && id === specimen.reportId) return;
  if (!id || !(await opened(id))) await toWorklist();
}

/** Open a report; false where there is none. */
async function opened(id) {
  return (await guarded(async () => (await reopen(id), true))) ?? false;
}

async function toWorklist() {
  if (address.reportId()) address.replace(null); // there is no such report, and the page has said so
  const leaves = document.body.dataset.view === "work";
  if (leaves) {
    newSpecimen(classes);
    clear();
    byId("specimen-id").value = byId("wbc-count").value = "";
    void guarded(async () => describe(await service.model())); // another may serve by now
  }
  view("worklist");
  // Not after the answer of the service: whoever types a number by then would find the rest of it in another field.
  if (leaves) byId("search-number").focus();
  keepsReports = (await guarded(showWorklist)) ?? keepsReports;
}

function view(name) {
  document.body.dataset.view = name;
  byId("worklist").hidden = name !== "worklist";
  byId("work").hidden = name !== "work";
  byId("new").hidden = name !== "work";
  if (name === "work") leaveWorklist();
  else presence.look(null);
}

async function leaveReport() {
  await saved();
  address.show(null);
  say("");
  await go();
}

/** Forget the key and the name of this tab. */
function signOut() {
  presence.look(null);
  sessionStorage.clear();
  forget();
  location.assign(location.pathname + location.search);
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
  const begun = await upload.begin(found, { specimen_id: number, wbc_count: count }, classes, keepsReports);
  if (begun && specimen.reportId) void showReferences([...classes, ...further.map(({ name }) => name)]);
  if (begun) resetWorklist();
  else view("worklist");
}

/** Go on with a report that was begun before. */
async function reopen(id) {
  const whole = await service.report(id);
  dialogs.setPerson(byId("person").value);
  newSpecimen(classes, { reportId: id });
  clear();
  view("work");
  presence.look(id);
  report.showReport(whole);
  void showReferences([...classes, ...further.map(({ name }) => name)]);
  const { complete, images: kept, expected_images: expected, sent_images: sent, withdrawn } = whole;
  if (!complete && !withdrawn) say(t("report.upload.incomplete", { sent, count: expected }));
  else if (!kept.kept) say(t("report.upload.see"));
  else say(kept.delete_after ? t("report.images_until", { day: day(kept.delete_after) }) : "");
}

/** Somebody else has changed the report that is looked at. */
function catchUp(version) {
  const unsaved = [...specimen.cells.values()].some((cell) => cell.unsaved);
  if (specimen.version && version > specimen.version && !unsaved && !specimen.posting) void guarded(report.readAgain);
}

// ---------------------------------------------------------------- keys, mouse, files

const inField = (element) => element.closest?.("input, textarea, select, dialog") && !element.matches("input[type=radio]");

/** Keys work everywhere but in fields and dialogs. */
function pressed(event) {
  if (event.altKey || document.querySelector("dialog[open]") || (inField(event.target) && event.key !== "F1")) return;
  const action = event.ctrlKey || event.metaKey ? withControl(event) : actionOf(event, event.target.closest("button, a, label, input") !== null);
  if (!action) return;
  event.preventDefault();
  if (event.repeat && (busy || !mayRepeat(event.key))) return;
  busy++;
  acting = acting
    .then(action)
    .catch((reason) => failed({ reason }))
    .finally(() => busy--);
}

const decides = (key) => key === "Enter" || /^[0-9]$/.test(key) || further.some((one) => one.key === key);
const mayRepeat = (key) => MOVES.includes(key) || (decides(key) && !parts.gallery.selected().length && mayHold(parts.gallery.current));

/** Let the cell that is looked at, or all that are selected, count as `label`. */
function choose(label) {
  const { gallery } = parts;
  const selected = gallery.selected();
  return selected.length ? decideSeveral(selected, label) : decide(gallery.current, label);
}

/** Accept what is looked at, or selected, as it is. */
async function accept() {
  const { gallery } = parts;
  const selected = gallery.selected();
  if (!selected.length) return decide(gallery.current, gallery.current.label);
  return decideSeveral(selected);
}

/** With Control, `a` selects the lane; everything else is the browser's. */
function withControl({ key, target }) {
  const here = key.toLowerCase() === "a" && target.closest("#lanes") && parts.gallery.current;
  return here ? () => parts.gallery.selectLane() : undefined;
}

/** What a key does; undefined for one that is the browser's. A control that has the focus keeps Enter and the arrows. */
function actionOf({ key, shiftKey }, onControl) {
  const { gallery } = parts;
  if (key === "F1") return () => void dialogs.help();
  if (document.body.dataset.view !== "work" || !gallery.current) return undefined;
  if (/^[1-9]$/.test(key)) return classes[key - 1] && (() => choose(classes[key - 1]));
  if (!onControl && MOVES.includes(key)) return () => move(key, shiftKey);
  if (!onControl && key === "Enter") return accept;
  if (key === "Escape" && gallery.selected().length) return () => gallery.selection.clear();
  const other = further.find((one) => one.key === key.toLowerCase());
  if (other) return () => choose(other.name);
  return { 0: () => choose(null), u: undo, h: heat, r: toReview, z: toggleZoom }[key.toLowerCase()];
}

function move(key, extend) {
  const { gallery } = parts;
  if (!extend && gallery.selected().length) gallery.selection.clear();
  gallery.move(key, extend);
}

/** Where several cells are selected, the page says how many, and what a key would do. */
function selected(count) {
  if (count > 1) say(t("report.selected", { count }));
  else if (several) say("");
  several = count > 1;
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

/** A tile was dragged to a lane; where it is one of those that are selected, all of them were. */
function drop(cell, lane) {
  const label = lane === UNCOUNTED ? null : lane;
  const all = parts.gallery.selected();
  return all.includes(cell) ? decideSeveral(all, label) : decide(cell, label);
}

async function filesDropped(event) {
  document.body.classList.remove("over");
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const found = await dropped(event.dataTransfer);
  if (document.body.dataset.view === "worklist") await take(found);
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
    new: leaveReport,
    rest: upload.sendRest,
    accept,
    undo,
    heat,
    twin: () => parts.gallery.focus(specimen.cells.get(Number(byId("twin").value))),
    sign: report.sign,
    amend: report.amend,
    withdraw: report.withdraw,
    reinstate: report.reinstate,
    pdf: () => report.download(service.pdf, "differential.pdf"),
    fhir: () => report.download(service.fhir, "differential.fhir.json"),
  };
  for (const [id, action] of Object.entries(clicks)) byId(id).addEventListener("click", action);
  byId("unit").addEventListener("change", report.drawAgain);
  byId("details").addEventListener("submit", (event) => event.preventDefault());
  listenToWorklist();
  listenToRecord();
}

translate(document);
offer(byId("language"));
service.keyFromAddress();
byId("person").value = dialogs.person();
service.onKeyNeeded(dialogs.key);
presence.onVersion(catchUp);
parts.view = view;
makeGallery(look, drop, selected);
listen();
listenToFiles();
ready = begin();
window.addEventListener("hashchange", () => {
  if (service.keyFromAddress() || !classes.length) ready = begin();
  else void go();
});
