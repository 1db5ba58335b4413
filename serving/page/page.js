/** The page: from a dropped folder to a signed report. The service counts; this file only asks it and shows what it answers. */

import { showCell, toggleHeat } from "./cell.js";
import * as dialogs from "./dialogs.js";
import { drawDifferential } from "./differential.js";
import { batches, chosen, dropped } from "./files.js";
import { Gallery, laneOf, REVIEW, UNCOUNTED } from "./gallery.js";
import * as service from "./service.js";
import { delivery, listed, moment, status } from "./words.js";

const BATCH = 64; // images a request, so that the first cells show soon
const MOST = 256; // images a request at most; a service that keeps no reports counts one request only

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];
const LOOKS = 20; // at a message that is on its way, LOOK_MS apart
const LOOK_MS = 3000;

const byId = (id) => document.getElementById(id);
const gallery = new Gallery(byId("lanes"), byId("classes"), look, dropOnLane);
let classes = [];
let keepsReports = false;
let ready; // resolves when the service has said what it is
let specimen = empty();
let saving = Promise.resolve(); // corrections are sent one after the other, in the order they were made

function empty() {
  return {
    reportId: null,
    version: 0, // of the report, as last seen
    status: "preliminary",
    signature: null,
    message: null, // the last one to the hospital's system
    differential: null,
    cells: [],
    fields: {}, // specimen number and white cell count, as they were typed
    posted: 0, // how many images the report has
    waiting: [], // batches that are not posted yet
    arrivedAt: null, // the cell that was looked at first
    undo: [],
    amend: false, // whether the person has agreed to amend a signed report
  };
}

// ---------------------------------------------------------------- what is said

function say(text, alarm = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("alarm", alarm);
}

/** Run `work`; where the service refuses, say why. */
async function guarded(work) {
  try {
    return await work();
  } catch (failure) {
    if (!(failure instanceof service.Failure)) throw failure;
    say(failure.message, true);
    return undefined;
  }
}

function notice(id, text) {
  byId(`notice-${id}`)?.remove();
  if (!text) return;
  const line = document.createElement("p");
  line.id = `notice-${id}`;
  line.textContent = text;
  byId("notices").append(line);
}

// ---------------------------------------------------------------- start

async function begin() {
  await guarded(async () => {
    const card = await service.model();
    classes = card.classes;
    byId("model-line").textContent = `Model ${card.version}`;
    byId("help-classes").textContent = `correct the cell to ${listed(classes)}, and on to the next`;
    notice("rendered", card.rendered ? "This model learned from drawn cells. It is for trying out, not for patients." : "");
    await listOpenReports();
  });
}

async function listOpenReports() {
  const open = await service.openReports();
  keepsReports = open !== null;
  const items = (open?.reports ?? []).map((report) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const name = document.createElement("b");
    name.textContent = report.specimen_id ?? "No specimen number";
    const detail = document.createElement("span");
    detail.textContent = `${report.cells} cells, ${report.to_review} to review · ${moment(report.created_at)}`;
    button.append(name, detail);
    button.addEventListener("click", () => guarded(() => reopen(report.id)));
    item.append(button);
    return item;
  });
  byId("open-reports").hidden = !items.length;
  byId("open-reports").querySelector("ul").replaceChildren(...items);
}

function view(name) {
  document.body.dataset.view = name;
  byId("start").hidden = name !== "start";
  byId("work").hidden = name !== "work";
  byId("new").hidden = name !== "work";
}

async function startAgain() {
  await saving;
  for (const cell of specimen.cells) for (const url of [cell.url, cell.heatUrl]) if (url) URL.revokeObjectURL(url);
  specimen = empty();
  gallery.reset(classes);
  byId("specimen-id").value = byId("wbc-count").value = "";
  byId("specimen-line").textContent = "";
  byId("status").hidden = true;
  notice("site", "");
  say("");
  view("start");
  byId("specimen-id").focus();
  await guarded(listOpenReports);
}

async function take({ files, others }) {
  if (!files.length) {
    say(others ? `There is no image among these ${others} files.` : "There is no file in this folder.", true);
    return;
  }
  await ready;
  if (!classes.length) await (ready = begin()); // it failed when the page was opened: the key, or the network
  if (!classes.length) return;
  if (!keepsReports && files.length > MOST) {
    say(`These are ${files.length} images. This service keeps no reports and counts at most ${MOST} at once.`, true);
    return;
  }
  specimen = empty();
  const [number, count] = [byId("specimen-id").value.trim(), byId("wbc-count").value.trim().replace(",", ".")];
  specimen.fields = { specimen_id: number, wbc_count: count };
  dialogs.setPerson(byId("person").value);
  byId("specimen-line").textContent = number ? `Specimen ${number}` : "";
  gallery.reset(classes);
  say("");
  view("work");
  specimen.waiting = batches(files, keepsReports ? BATCH : MOST);
  const sent = await guarded(post);
  if (!sent && !specimen.cells.length) {
    view("start");
    return;
  }
  const left = others ? ` ${others} other ${others === 1 ? "file was" : "files were"} left out.` : "";
  if (sent) say(`${specimen.cells.length} images read.${left}`);
}

/** Post the batches that wait. Where one fails, those after it wait for the button; nobody can sign before they are in. */
async function post() {
  byId("new").disabled = true;
  byId("rest").hidden = true;
  try {
    while (specimen.waiting.length) {
      showProgress();
      await breath();
      const [batch] = specimen.waiting;
      const answer = await classified(batch, { ...specimen.fields, report_id: specimen.reportId });
      specimen.waiting.shift();
      await breath();
      addCells(answer.results, batch, answer.differential !== undefined);
      if (answer.differential) {
        specimen.reportId = answer.report_id ?? null;
        showDifferential(answer.differential);
      }
    }
    if (gallery.current === specimen.arrivedAt) gallery.focus(gallery.order()[0]); // nobody has moved meanwhile
    if (!specimen.differential) throw new service.Failure(422, "None of these images could be used.");
    if (specimen.reportId) showReport(await service.report(specimen.reportId));
    return true;
  } finally {
    byId("new").disabled = false;
    byId("rest").hidden = false;
    byId("progress").hidden = !specimen.waiting.length;
  }
}

/** Let the browser draw and hear keys before the next piece of work. */
const breath = () => new Promise((resolve) => setTimeout(resolve));

function showProgress() {
  const [bar, words] = byId("progress").children;
  const there = specimen.cells.length;
  bar.value = there;
  bar.max = there + specimen.waiting.flat().length;
  words.textContent = `${there} of ${bar.max}`;
  byId("progress").hidden = false;
}

/** Go on after a failure. The service may have taken in the batch whose answer was lost: then it is not sent again. */
async function sendRest() {
  const sent = await guarded(async () => {
    const report = specimen.reportId && (await service.report(specimen.reportId));
    if (report && report.cells.length > specimen.posted) {
      const lost = report.cells.slice(specimen.posted).map((cell) => cell.result);
      addCells(lost, specimen.waiting.shift(), true);
    }
    return post();
  });
  if (sent) say(`${specimen.cells.length} images read.`);
}

/** The service's answer for a batch; one in which no image is usable is refused as a whole, but tells why for each. */
async function classified(batch, fields) {
  try {
    return await service.differential(batch, fields);
  } catch (failure) {
    if (failure.problem?.results) return { results: failure.problem.results };
    throw failure;
  }
}

function addCells(results, files, kept) {
  const cells = results.map((result, at) => ({
    index: specimen.cells.length + at, // its number on the page
    position: kept ? specimen.posted + at : null, // its number in the report
    file: files[at],
    url: URL.createObjectURL(files[at]),
    result,
    label: result.status === "ok" ? result.label : null,
    seen: false,
  }));
  if (kept) specimen.posted += results.length;
  show(cells);
}

function show(cells) {
  const first = !specimen.cells.length;
  specimen.cells.push(...cells);
  gallery.add(cells);
  if (!first) return;
  specimen.arrivedAt = gallery.order()[0];
  gallery.focus(specimen.arrivedAt);
}

/** Go on with a report that was begun before. Its images are on the user's side: drop the folder again to see them. */
async function reopen(id) {
  const report = await service.report(id);
  specimen = { ...empty(), reportId: id, posted: report.cells.length };
  gallery.reset(classes);
  byId("specimen-line").textContent = report.specimen_id ? `Specimen ${report.specimen_id}` : "";
  view("work");
  show(
    report.cells.map(({ index, result, label, by_person }) => ({
      index,
      position: index,
      file: null,
      url: null,
      result,
      label,
      seen: by_person,
    })),
  );
  showReport(report);
  const kept = report.cells.filter((cell) => cell.has_image);
  if (!kept.length) say("Drop the folder of this specimen to see its images.");
  for (const { index } of kept) {
    const image = await service.image(id, index);
    if (specimen.reportId !== id) return;
    picture(specimen.cells[index], image);
  }
}

function picture(cell, file) {
  cell.file = file;
  cell.url = URL.createObjectURL(file);
  gallery.picture(cell);
  if (gallery.current === cell) look(cell);
}

/** Give the cells of a reopened report the files they were made from, known by their SHA-256. */
async function attach(files) {
  if (!crypto.subtle) {
    say("The browser compares images with a report only where the service is reached by https.", true);
    return;
  }
  let found = 0;
  for (const file of files) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
    const name = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    const cell = specimen.cells.find((one) => !one.file && one.result.sha256 === name);
    if (!cell) continue;
    picture(cell, file);
    found++;
  }
  say(`${found} of ${files.length} images belong to this specimen.`);
}

// ---------------------------------------------------------------- review

function look(cell) {
  return withHeat(() => showCell(cell, classes, (label) => decide(cell, label)));
}

const usable = (cell) => cell?.result.status === "ok";

/** Let `cell` count as `label` (null: not at all) by the person at the page, and go on to the next cell. */
async function decide(cell, label) {
  if (!usable(cell)) return;
  if (!(await mayChange())) {
    gallery.focus(cell);
    return;
  }
  const next = gallery.after(cell);
  if (cell.seen && cell.label === label) {
    gallery.focus(next);
    return;
  }
  const before = { label: cell.label, seen: cell.seen };
  specimen.undo.push({ cell, label: before.label });
  change(cell, label, before);
  gallery.focus(next);
  const number = `Cell ${cell.index + 1}`;
  const now = label ?? "not counted";
  say(before.label === label ? `${number} accepted as ${now}.` : `${number}: ${before.label ?? "not counted"} → ${now}.`);
}

async function undo() {
  const last = specimen.undo.pop();
  if (!last) {
    say("Nothing to undo.");
    return;
  }
  const { cell, label } = last;
  if (cell.label !== label) change(cell, label, { label: cell.label, seen: cell.seen });
  byId("undo").disabled = !specimen.undo.length;
  gallery.focus(cell);
  look(cell);
  say(`Back at cell ${cell.index + 1}: ${label ?? "not counted"}.`);
}

/** Show the change at once and send it; a change that the service refuses is taken back. */
function change(cell, label, before) {
  Object.assign(cell, { label, seen: true, unsaved: (cell.unsaved ?? 0) + 1 });
  gallery.place(cell);
  byId("undo").disabled = !specimen.undo.length;
  const { reportId } = specimen;
  const by = dialogs.person();
  saving = saving.then(async () => {
    if (specimen.reportId !== reportId) return;
    const { version, amend } = specimen;
    const report = await guarded(() => service.correct(reportId, version, cell.position, label, by, amend));
    cell.unsaved--;
    if (report) showReport(report);
    else await takeBack(cell, before);
  });
}

async function takeBack(cell, before) {
  Object.assign(cell, before);
  specimen.undo = specimen.undo.filter((entry) => entry.cell !== cell);
  gallery.place(cell);
  gallery.focus(cell);
  await guarded(readAgain);
}

/** Take over what others have changed in this report. */
async function readAgain() {
  const report = await service.report(specimen.reportId);
  for (const cell of specimen.cells) {
    const { label, by_person: seen } = report.cells[cell.position] ?? {};
    if (cell.unsaved || cell.position === null || (cell.label === label && cell.seen === seen)) continue;
    Object.assign(cell, { label, seen });
    gallery.place(cell);
  }
  showReport(report);
}

/** Whether all images are in the report, and its version has been seen. */
const complete = () => !specimen.waiting.length && specimen.version > 0;

async function mayChange() {
  if (!specimen.reportId) {
    say("This service keeps no reports, so that cells cannot be corrected here.", true);
    return false;
  }
  if (!complete()) {
    say("Cells can be corrected when all images are read.", true);
    return false;
  }
  if (specimen.status !== "preliminary" && !specimen.amend) {
    const text = "A correction makes an amended report, which must be signed again.";
    specimen.amend = await dialogs.ask("This report is signed", text, "Amend", { name: true });
    return specimen.amend;
  }
  if (dialogs.person()) return true;
  return dialogs.ask("Who corrects?", "Every correction is kept with a name.", "Go on", { name: true });
}

function dropOnLane(cell, lane) {
  return decide(cell, lane === UNCOUNTED ? null : lane);
}

// ---------------------------------------------------------------- differential and report

const unit = () => document.querySelector("input[name=unit]:checked").value;

function showDifferential(differential) {
  specimen.differential = differential;
  const warning = "These images look unlike those of any site that the model was set up for. Look at every cell before you sign.";
  notice("site", differential.site_unknown ? warning : "");
  const absolute = Object.values(differential.classes).every((share) => share.absolute);
  byId("unit").hidden = !absolute;
  drawDifferential(byId("differential-table"), differential, absolute ? unit() : "percent");
  const few = differential.kind === "too_few_cells";
  byId("differential-note").textContent = few
    ? `${differential.cells} cells: too few. A differential needs ${differential.minimum_cells}.`
    : `${differential.cells} cells`;
  byId("differential-note").classList.toggle("attention", few);
  showState();
}

function showReport(report) {
  specimen.version = report.version;
  specimen.status = report.status;
  specimen.signature = report.signatures.at(-1) ?? null;
  specimen.message = report.messages.at(-1) ?? null;
  if (report.status !== "preliminary") specimen.amend = false;
  showDifferential(report.differential);
}

function showState() {
  const { reportId } = specimen;
  const signed = specimen.status !== "preliminary";
  byId("status").hidden = !reportId;
  byId("status").textContent = status(specimen.status);
  byId("status").classList.toggle("done", signed);
  byId("report-note").textContent = reportNote(signed);
  for (const id of ["pdf", "fhir"]) byId(id).hidden = !reportId;
  byId("sign").hidden = !reportId || signed;
  byId("sign").disabled = !complete();
}

function reportNote(signed) {
  const { reportId, signature, message, differential, waiting } = specimen;
  if (!reportId) return "This service keeps no reports: nothing can be signed here.";
  if (signed) return `Signed by ${signature.by}, ${moment(signature.at)}.${delivery(message)}`;
  if (waiting.length) return `${waiting.flat().length} images are not sent yet.`;
  const left = differential.to_review;
  const open = left ? `${left} ${left === 1 ? "cell" : "cells"} to review.` : "No cell left to review.";
  return signature ? `${open} Changed since it was signed.` : open;
}

async function sign() {
  await saving;
  const { differential } = specimen;
  const open = differential.to_review ? ` ${differential.to_review} of them were not reviewed.` : "";
  const few = differential.kind === "too_few_cells" ? " They are too few for a differential." : "";
  if (!(await dialogs.ask("Sign this report?", `${differential.cells} cells.${open}${few}`, "Sign", { name: true }))) return;
  const report = await guarded(() => service.sign(specimen.reportId, specimen.version, dialogs.person()));
  if (!report) {
    await guarded(readAgain);
    return;
  }
  showReport(report);
  say("Signed.");
  await guarded(() => watchDelivery(specimen.reportId));
}

/** Look after a signed report's message until the hospital's system has answered, or for a minute. */
async function watchDelivery(reportId) {
  for (let look = 0; look < LOOKS; look++) {
    if (specimen.message?.state !== "pending") return;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    if (specimen.reportId !== reportId || specimen.status === "preliminary") return;
    showReport(await service.report(reportId));
  }
}

async function download(get, name) {
  await saving;
  await guarded(async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await get(specimen.reportId));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

// ---------------------------------------------------------------- keys, mouse, files

const inField = (element) => element.closest?.("input, textarea, select, dialog") && !element.matches("input[type=radio]");

/** Keys work everywhere but in fields and dialogs. A key that is held down moves, but decides nothing: nobody has looked. */
async function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || inField(event.target)) return;
  const action = actionOf(event.key, event.target.closest("button, a, label, input") !== null);
  if (!action) return;
  event.preventDefault();
  if (!event.repeat || MOVES.includes(event.key)) await action();
}

/** What a key does; undefined for one that is the browser's. A control that has the focus keeps Enter and the arrows. */
function actionOf(key, onControl) {
  if (key === "?") return dialogs.help;
  const cell = gallery.current;
  if (document.body.dataset.view !== "work" || !cell) return undefined;
  if (/^[1-9]$/.test(key)) return classes[key - 1] && (() => decide(cell, classes[key - 1]));
  if (!onControl && MOVES.includes(key)) return () => gallery.move(key);
  if (!onControl && key === "Enter") return () => decide(cell, cell.label);
  return { 0: () => decide(cell, null), u: undo, h: heat, r: toReview }[key.toLowerCase()];
}

async function withHeat(show) {
  const words = await guarded(show);
  if (words) say(words);
}

const heat = () => withHeat(toggleHeat);

function toReview() {
  const cells = gallery.order().filter((cell) => laneOf(cell) === REVIEW);
  const next = cells[(cells.indexOf(gallery.current) + 1) % cells.length];
  if (next) gallery.focus(next);
  else say("No cell left to review.");
}

async function filesDropped(event) {
  document.body.classList.remove("over");
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const found = await dropped(event.dataTransfer);
  if (document.body.dataset.view === "start") await take(found);
  else if (specimen.cells.some((cell) => !cell.file)) await attach(found.files);
  else say("Finish this specimen first, then choose New specimen.", true);
}

/** Something that this page did not foresee, such as a folder that cannot be read. */
function failed(event) {
  const reason = event.reason ?? event.error;
  const unread = reason instanceof DOMException;
  say(unread ? `The files cannot be read: ${reason.message}` : "The page has failed; load it again.", true);
}

/** Ask before the page is left while something is on its way to the service. */
function leaving(event) {
  if (specimen.waiting.length || specimen.cells.some((cell) => cell.unsaved)) event.preventDefault();
}

function listen() {
  document.addEventListener("keydown", (event) => void pressed(event));
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
  document.addEventListener("drop", filesDropped);
  window.addEventListener("unhandledrejection", failed);
  window.addEventListener("error", failed);
  window.addEventListener("beforeunload", leaving);
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
  byId("details").addEventListener("submit", (event) => event.preventDefault());
  byId("help").addEventListener("click", () => dialogs.help());
  byId("new").addEventListener("click", startAgain);
  byId("rest").addEventListener("click", sendRest);
  byId("accept").addEventListener("click", () => decide(gallery.current, gallery.current.label));
  byId("undo").addEventListener("click", undo);
  byId("heat").addEventListener("click", heat);
  byId("sign").addEventListener("click", sign);
  byId("pdf").addEventListener("click", () => download(service.pdf, "differential.pdf"));
  byId("fhir").addEventListener("click", () => download(service.fhir, "differential.fhir.json"));
  byId("unit").addEventListener("change", () => showDifferential(specimen.differential));
}

byId("person").value = dialogs.person();
service.onKeyNeeded(dialogs.key);
listen();
ready = begin();
