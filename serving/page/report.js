/** The report as a whole: how it stands, its signature, its specimen number, its withdrawal, its documents. */

import * as dialogs from "./dialogs.js";
import { drawBeside, drawDifferential } from "./differential.js";
import { moment, t } from "./language.js";
import { guarded, notice, say } from "./notices.js";
import { clearRecord, showRecord } from "./record.js";
import { saved } from "./review.js";
import * as service from "./service.js";
import { specimen, takeOver } from "./specimen.js";
import { describe, write } from "./tiles.js";
import { cells, delivery, images, status, why } from "./words.js";

const LOOKS = 20; // at a message that is on its way, LOOK_MS apart
const LOOK_MS = 3000;
const byId = (id) => document.getElementById(id);

let drawing = null; // the next drawing of the differential
let drawn = ""; // what the last one has drawn
let deeds = []; // what was asked of the service and may have been done although no answer came: the same deed if asked again

// ---------------------------------------------------------------- how it stands

/** Take over what the service answered: a whole report, or what a change has made of it. */
export function showReport(answer) {
  Object.assign(specimen, {
    version: answer.version,
    status: answer.status,
    state: answer,
    number: answer.specimen_id,
    signature: answer.signatures ? (answer.signatures.at(-1) ?? null) : answer.signature,
    message: answer.messages.at(-1) ?? null,
  });
  keepRecord(answer);
  if (answer.model) write(byId("model-line"), t("report.model", { version: answer.model.version }));
  if (answer.status !== "preliminary") specimen.amend = false;
  takeOver(answer.cells);
  markComments();
  write(byId("specimen-line"), specimen.number ? t("report.specimen", { number: specimen.number }) : "");
  showDifferential(answer.differential);
  if (answer.sent_images > specimen.cells.size && !specimen.posting) void guarded(readAgain); // somebody else has added some
}

/** A whole report has the whole record; the answer to a change has what was added to it. */
function keepRecord(answer) {
  const { record } = specimen;
  const whole = answer.signatures !== undefined;
  if (!whole && !record) return;
  if (whole) specimen.record = { ...answer, cells: undefined };
  else {
    for (const kind of ["corrections", "changes", "comments"]) record[kind].push(...answer[kind]);
    const { signature } = answer;
    if (signature && record.signatures.at(-1)?.at !== signature.at) record.signatures.push(signature);
    Object.assign(record, { opinions: answer.opinions, messages: answer.messages });
  }
  showRecord();
}

/** Mark the tiles of cells that somebody has commented on. */
function markComments() {
  const counts = new Map();
  for (const { index } of specimen.record?.comments ?? []) counts.set(index, (counts.get(index) ?? 0) + 1);
  for (const cell of specimen.cells.values()) {
    const count = counts.get(cell.index) ?? 0;
    if (count === (cell.comments ?? 0)) continue;
    cell.comments = count;
    if (cell.tile) describe(cell);
  }
}

/** Read the whole report: the cells that the page does not know yet, and what others have changed. */
export async function readAgain() {
  const { reportId } = specimen;
  const report = await service.report(reportId);
  // An answer that is late shows no state that the report has left.
  if (specimen.reportId === reportId && report.version >= specimen.version) showReport(report);
}

const unit = () => document.querySelector("input[name=unit]:checked").value;

/** Show a differential; it is drawn once a frame at most. */
export function showDifferential(differential) {
  specimen.differential = differential;
  drawing ??= requestAnimationFrame(() => {
    drawing = null;
    if (specimen.differential) draw(specimen.differential);
  });
  notice("site", differential.site_unknown ? t("report.site_unknown") : "");
  showState();
}

function draw(differential) {
  const what = JSON.stringify([unit(), { ...differential, to_review: 0 }]);
  if (what === drawn) return;
  drawn = what;
  const absolute = Object.values(differential.classes).every((share) => share.absolute);
  byId("unit").hidden = !absolute;
  drawBeside(byId("beside"), differential);
  drawDifferential(byId("differential-table"), differential, absolute ? unit() : "percent");
  const few = differential.kind === "too_few_cells";
  const said = { cells: cells(differential.cells), minimum: differential.minimum_cells };
  byId("differential-note").textContent = few ? t("report.too_few", said) : said.cells;
  byId("differential-note").classList.toggle("attention", few);
}

/** Draw the differential in the other unit. */
export function drawAgain() {
  if (specimen.differential) draw(specimen.differential);
}

/** Nothing is shown of a specimen before. */
export function clear() {
  drawn = "";
  for (const id of ["differential-table", "beside", "differential-note", "report-note", "specimen-line"]) byId(id).replaceChildren();
  byId("unit").hidden = true;
  notice("site", "");
  notice("images", "");
  clearRecord();
  showState();
}

/** What can be done with the report now, and why not the rest. */
export function showState() {
  const { reportId, state, posting, waiting } = specimen;
  const blocks = state?.blocked ?? [];
  const nothing = !specimen.differential?.cells;
  byId("status").hidden = !reportId || !state;
  write(byId("status"), status(specimen.status));
  byId("status").classList.toggle("done", ["final", "amended"].includes(specimen.status));
  write(byId("report-note"), note(blocks));
  const busy = posting || waiting.length > 0;
  byId("sign").disabled = !reportId || busy || !state || blocks.length > 0;
  write(byId("sign"), signWords(blocks));
  byId("sign").hidden = blocks.some(({ kind }) => kind === "signed" || kind === "withdrawn");
  for (const id of ["pdf", "fhir"]) byId(id).disabled = !reportId || posting || nothing;
  byId("pdf").title = byId("fhir").title = nothing ? t("report.note.no_cell") : "";
  for (const id of ["amend", "withdraw"]) byId(id).hidden = !reportId || !state || state.withdrawn;
  byId("reinstate").hidden = !state?.withdrawn;
  byId("amend").disabled = byId("withdraw").disabled = posting;
  showImages(state?.images);
}

/** The button says what is left to do before it can be pressed. */
function signWords(blocks) {
  const left = blocks.find(({ kind }) => kind === "unreviewed") ? specimen.state.to_review : 0;
  return left ? t("report.sign_left", { count: left }) : t("report.sign");
}

function note(blocks) {
  const { reportId, state, signature, message, waiting, posting, cells: tiles } = specimen;
  if (posting) return t("report.note.reading");
  if (waiting.length) return t("report.note.waiting", { images: images(waiting.flatMap(({ files }) => files).length) });
  if (!reportId && !specimen.differential) return tiles.size ? t("report.note.unusable") : "";
  if (!reportId) return t("report.note.no_store");
  if (!state) return "";
  if (state.withdrawn) return t("report.note.withdrawn");
  if (specimen.status !== "preliminary") return t("report.note.signed", { by: signature.by, at: moment(signature.at) }) + delivery(message);
  const left = state.to_review ? t("report.note.left", { cells: cells(state.to_review) }) : t("report.note.none_left");
  const others = blocks.filter(({ kind }) => kind !== "unreviewed").map((block) => why(block, state));
  const again = signature ? t("report.note.changed") : "";
  return [...others, left, again].filter(Boolean).join(" ");
}

/** Whether the report still has its images. */
function showImages(kept) {
  const unseen = kept?.deleted_at && [...specimen.cells.values()].some((cell) => !cell.file && !cell.kept);
  notice("images", unseen ? t("report.images_deleted", { at: moment(kept.deleted_at) }) : "");
}

// ---------------------------------------------------------------- deeds

/** Do something with the report as it was seen, once: asked again after a lost answer, it is the same deed. */
async function once(what, call, body) {
  const asked = JSON.stringify([what, specimen.reportId, specimen.version, body]);
  const known = deeds.find((one) => one.asked === asked) ?? { asked, key: service.deed() };
  deeds = [known];
  try {
    const answer = await call(specimen.reportId, specimen.version, body, known.key);
    deeds = [];
    showReport(answer);
    return true;
  } catch (failure) {
    if (!(failure instanceof service.Failure)) throw failure;
    if (!failure.unknown) deeds = [];
    if (failure.status === 412) await guarded(readAgain);
    say(failure.message, true);
    return false;
  }
}

/** Sign the report as it is. */
export async function sign() {
  await saved();
  if (byId("sign").disabled) return; // something was refused meanwhile
  const { differential } = specimen;
  const open = specimen.state.to_review ? ` ${t("report.ask.sign.open", { count: specimen.state.to_review })}` : "";
  const few = differential.kind === "too_few_cells" ? ` ${t("report.ask.sign.few")}` : "";
  const asked = specimen.record?.opinions.filter(({ state }) => state === "open").map(({ of }) => of) ?? [];
  const opinion = asked.length ? ` ${t("report.ask.sign.opinion", { of: asked.join(", ") })}` : "";
  const text = t("report.ask.sign.text", { cells: cells(differential.cells) }) + open + few + opinion;
  if (!(await dialogs.ask(t("report.ask.sign.heading"), text, t("report.sign"), { name: true }))) return;
  if (!(await once("sign", service.sign, { by: dialogs.person() }))) return;
  say(t("report.said.signed"));
  await guarded(() => watchDelivery(specimen.reportId));
}

/** Put specimen number, white cell count or number of images right. */
export async function amend() {
  await saved();
  const { number, differential, state } = specimen;
  const known = { specimen_id: number, wbc_count: differential?.wbc_count ?? null };
  if (!state.complete) known.expected_images = state.expected_images;
  const given = await dialogs.amend(known, state, signedOnce());
  if (!given) return;
  const { reason, ...fields } = given;
  const body = { reason, by: dialogs.person(), ...(signedOnce() && { amend: true }), ...fields };
  if (await once("amend", service.amend, body)) say(t(signedOnce() ? "report.said.put_right_signed" : "report.said.put_right"));
}

/** Withdraw the report: it counts no more. */
export async function withdraw() {
  await saved();
  const reason = await dialogs.withdraw(signedOnce());
  if (!reason) return;
  const body = { reason, by: dialogs.person(), ...(signedOnce() && { amend: true }) };
  if (await once("withdraw", service.withdraw, body)) say(t("report.said.is_withdrawn"));
}

/** Take the withdrawal back: the report is open for a signature again. */
export async function reinstate() {
  const heading = t("report.reinstate");
  const given = await dialogs.tell({ heading, line: t("common.reason"), yes: heading, needed: true });
  if (given && (await once("reinstate", service.reinstate, { reason: given.text, by: dialogs.person() }))) say(t("report.said.reinstated"));
}

const signedOnce = () => specimen.signature !== null;

/** Look after a signed report's message until the hospital's system has answered, or for a minute. */
async function watchDelivery(reportId) {
  for (let look = 0; look < LOOKS; look++) {
    if (specimen.message?.state !== "pending") return;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    if (specimen.reportId !== reportId || specimen.status === "preliminary") return;
    await readAgain();
  }
}

/** Save a document of the report. */
export async function download(get, name) {
  await saved();
  await guarded(async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await get(specimen.reportId));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}
