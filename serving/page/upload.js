/** Files on their way to the service, and whether all of them have come.
 *
 * The service is told how many images there will be. A report that has fewer is incomplete, here and everywhere else; the rest can
 * be sent by the button, or at any time later by dropping the folder again: only what the report does not hold is sent.
 */

import * as address from "./address.js";
import * as dialogs from "./dialogs.js";
import { batches } from "./files.js";
import { moment, t } from "./language.js";
import { guarded, notice, say } from "./notices.js";
import * as presence from "./presence.js";
import { readAgain, showDifferential, showReport, showState } from "./report.js";
import * as service from "./service.js";
import { sha256 } from "./sha256.js";
import { give, newSpecimen, parts, specimen, takeInResults } from "./specimen.js";
import { cells, images, status } from "./words.js";

const BATCH = 64; // images a request, so that the first cells show soon
const MOST = 256; // images a request at most; a service that keeps no reports counts one request only
const MOST_KEPT = 4096; // images of one report

const byId = (id) => document.getElementById(id);

/** Begin a report of these files; false where none was begun. */
export async function begin({ files, others }, fields, classes, keepsReports) {
  const most = keepsReports ? MOST_KEPT : MOST;
  if (files.length > most) {
    say(t(keepsReports ? "report.upload.too_many" : "report.upload.too_many_unkept", { images: images(files.length), most }), true);
    return false;
  }
  const earlier = keepsReports && fields.specimen_id ? await guarded(() => sameNumber(fields.specimen_id)) : [];
  if (!earlier || (earlier.length && !(await askSecond(fields.specimen_id, earlier)))) return false;
  newSpecimen(classes, { number: fields.specimen_id || null, fields: { ...fields, expected_images: files.length } });
  byId("specimen-line").textContent = fields.specimen_id ? t("report.specimen", { number: fields.specimen_id }) : "";
  say("");
  parts.view("work");
  specimen.waiting = inBatches(files, keepsReports ? BATCH : MOST);
  const sent = await post(earlier.length);
  if (!sent && !specimen.cells.size && !specimen.waiting.length) return false;
  const left = others ? ` ${t("report.upload.left_out", { count: others })}` : "";
  if (sent) say(t("report.upload.read", { images: images(specimen.cells.size) }) + left);
  return true;
}

const sameNumber = async (number) =>
  (await service.search({ specimen: number })).reports.filter((report) => report.specimen_id === number && !report.withdrawn);

function askSecond(number, earlier) {
  const [last] = earlier;
  const which = { cells: cells(last.cells), at: moment(last.created_at), status: status(last.status) };
  const text = t("report.ask.second.text", { number, reports: t("report.count.reports", { count: earlier.length }), ...which });
  return dialogs.ask(t("report.ask.second.heading"), text, t("report.ask.second.yes"));
}

const inBatches = (files, count) => batches(files, count).map((some) => ({ files: some, deed: service.deed() }));

/** Post the batches that wait. Where one fails, it and those after it wait for the button, with the keys of their deeds. */
async function post(known = 0) {
  const mine = specimen;
  mine.posting = true;
  byId("new").disabled = true;
  byId("rest").hidden = true;
  showState();
  try {
    while (mine.waiting.length) {
      showProgress();
      await breath();
      const [{ files, deed }] = mine.waiting;
      const answer = await service.differential(files, { ...mine.fields, report_id: mine.reportId }, deed);
      mine.waiting.shift();
      await breath();
      took(answer, files, known);
    }
    if (mine.reportId) showReport(await service.report(mine.reportId));
    return true;
  } catch (failure) {
    if (!(failure instanceof service.Failure)) throw failure;
    refused(failure);
    return false;
  } finally {
    mine.posting = false;
    byId("new").disabled = false;
    byId("rest").hidden = false;
    byId("progress").hidden = !mine.waiting.length;
    showState();
  }
}

function took(answer, files, known) {
  const first = specimen.cells.size === 0;
  specimen.reportId = answer.report_id ?? null;
  if (specimen.reportId) {
    address.show(specimen.reportId);
    presence.look(specimen.reportId);
  }
  if (answer.report) Object.assign(specimen, { state: answer.report, version: answer.report.version, status: answer.report.status });
  takeInResults(answer.results, files, answer.positions);
  showDifferential(answer.differential);
  const { recounted, same_specimen: same = [] } = answer;
  if (recounted) {
    notice("recounted", t("report.recounted", { version: recounted.to_version }));
  }
  if (first && same.length > known) notice("same", t("report.same"));
}

/** Without an answer the batch waits, to be sent as the same deed; what the service refuses is refused the next time, too. */
function refused(failure) {
  const [batch] = specimen.waiting;
  if (failure.problem.results) takeInResults(failure.problem.results, batch.files, null);
  if (!specimen.reportId && !failure.unknown) specimen.waiting = [];
  say(failure.kind === "no-usable-image" ? t("report.upload.none_usable") : failure.message, true);
}

/** Let the browser draw and hear keys before the next piece of work. */
const breath = () => new Promise((resolve) => setTimeout(resolve));

function showProgress() {
  const [bar, words] = byId("progress").children;
  const there = specimen.cells.size;
  bar.value = there;
  bar.max = there + specimen.waiting.flatMap(({ files }) => files).length;
  words.textContent = t("report.upload.progress", { sent: there, all: bar.max });
  byId("progress").hidden = false;
}

/** Go on after a failure. A batch that the service has taken in although its answer was lost is answered again, not counted again. */
export async function sendRest() {
  if (!specimen.waiting.length || specimen.posting) return;
  if (await post()) say(t("report.upload.read", { images: images(specimen.cells.size) }));
}

/** A folder was dropped on a report: its images are shown, and those that an incomplete report does not hold are sent. */
export async function again(files) {
  if (specimen.reportId) await guarded(readAgain);
  const { found, missing } = await compared(files);
  const { state } = specimen;
  const room = state && !state.complete && !state.withdrawn ? state.expected_images - state.sent_images : 0;
  const belong = t("report.upload.belong", { found, count: files.length });
  if (!room || !missing.length) {
    say(room ? `${belong} ${t("report.upload.still_missing", { images: images(room) })}` : belong);
    return;
  }
  if (missing.length > room) {
    say(t("report.upload.more_than_missing", { images: images(missing.length), room }), true);
    return;
  }
  const text = t("report.ask.add.text", { images: images(files.length) });
  if (!found && !(await dialogs.ask(t("report.ask.add.heading"), text, t("report.ask.add.yes")))) return;
  specimen.fields = { expected_images: state.expected_images };
  specimen.waiting = inBatches(missing, BATCH);
  if (await post()) say(t("report.upload.added", { images: images(missing.length), all: specimen.cells.size }));
}

/** Give the cells their files, known by their SHA-256: how many belong here, and which files have no cell of their own yet. */
async function compared(files) {
  const free = new Map();
  for (const cell of specimen.cells.values()) free.set(cell.result.sha256, [...(free.get(cell.result.sha256) ?? []), cell]);
  const missing = [];
  for (const file of files) {
    const cell = free.get(await sha256(file))?.shift();
    if (!cell) missing.push(file);
    else if (!cell.file) give(cell, file);
  }
  return { found: files.length - missing.length, missing };
}
