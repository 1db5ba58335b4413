/** The queue that is read, as the service last told it and as answers have changed it since: progress, pace, time left. */

import * as answers from "./answers.js";
import * as labelling from "./labelling.js";
import { moment, number, t } from "./language.js";
import { Failure } from "./service.js";

const RECENT = 20; // answers that the pace is of
const ENOUGH = 3; // answers given here until their pace is taken
const REFRESH = 10; // answers after which the service is asked again what happens next
const byId = (id) => document.getElementById(id);

/** What `GET /v1/labelling` answered. */
export let queue = { queue: null, kinds: [], done: 0, left: 0, cells: 0, agreed: 0, disputed: 0, unnamed: 0, median_seconds: null };

let paces = []; // seconds of the last answers
let confirmed = 0; // answers since the page was opened

/** Ask the service; the answers that are on their way count already. Whoever decides disputes is told of those that are theirs. */
export async function refresh() {
  const state = await labelling.state();
  if (state.lead) state.disputed = await labelling.disputesLeft();
  queue = state;
  count(answers.unsavedCells());
}

/** What the service told with an answer. It is of the past while others are on their way. */
export function progressed({ done, left, disputed }) {
  if (answers.unsaved()) return;
  Object.assign(queue, { done, left, ...(!queue.lead && { disputed }) });
  draw();
  if (++confirmed % REFRESH === 0) void refreshSilently();
}

/** What the page counts itself may be behind: other readers and other windows answer, too. */
export async function refreshSilently() {
  try {
    await refresh();
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure; // the next time, then
  }
}

/** So many cells are answered, or fewer where it is negative; with the seconds a cell took. */
export function count(cells, seconds) {
  queue.done = Math.max(0, queue.done + cells);
  queue.left = Math.max(0, queue.left - cells);
  if (seconds !== undefined) paces = [...paces, seconds].slice(-RECENT);
  draw();
}

/** Seconds a cell, of this reader; undefined where nothing is known. */
function pace() {
  if (paces.length < ENOUGH) return queue.median_seconds ?? undefined;
  const sorted = [...paces].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

/** "38 of 100": how far the reader is. */
export const place = () => t("label.place", { done: queue.done, all: queue.done + queue.left });

export function draw() {
  const { done, left } = queue;
  byId("done").textContent = t("label.progress", { done, all: done + left });
  byId("bar").max = Math.max(1, done + left);
  byId("bar").value = done;
  byId("pace").textContent = [paceInWords(), timeLeft()].filter(Boolean).join(" · ");
  byId("next-step").textContent = nextInWords();
  byId("gain").textContent = gainInWords(queue.gain);
  drawSaved();
}

/** What happens next, and by whom: by its parts where the retraining gave them, else in its own line. */
export const nextInWords = () => queue.next_parts?.map(partInWords).join("; ") ?? queue.next_step ?? "";

function partInWords({ code, until, readers, more, ...numbers }) {
  if (code === "readers") {
    const named = readers.map(({ name, left }, at) => t(at ? "label.next.reader_too" : "label.next.reader", { name, left }));
    return [...named, ...(more ? [t("label.next.readers_more", { more })] : [])].join(", ");
  }
  return t(`label.next.${code}`, { ...numbers, until: until && moment(until) });
}

/** What the next labels are expected to gain; a gain that the retraining gave without numbers has its own text. */
function gainInWords(gain) {
  if (gain?.points === undefined) return gain?.text ?? "";
  if (gain.expected === null) return t("label.gain.unknown", gain);
  const points = (share) => number(100 * share, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const shown = Object.fromEntries(["expected", "low", "high"].map((name) => [name, points(gain[name])]));
  return t(`label.gain.${gain.may_pause ? "pause" : "on"}`, { labels: gain.labels, ...shown });
}

function paceInWords() {
  const seconds = pace();
  const digits = { minimumFractionDigits: 1, maximumFractionDigits: 1 };
  return seconds === undefined ? "" : t("label.pace", { seconds: number(seconds, digits) });
}

function timeLeft() {
  const seconds = pace();
  if (seconds === undefined || !queue.left) return "";
  const minutes = Math.round((seconds * queue.left) / 60);
  if (minutes < 1) return t("label.left_under");
  return minutes < 90 ? t("label.left_minutes", { count: minutes }) : t("label.left_hours", { count: Math.round(minutes / 60) });
}

/** Whether all answers are with the service. */
function drawSaved() {
  const waiting = answers.unsaved();
  byId("saved").textContent = waiting ? t("label.waiting", { count: waiting }) : queue.done ? t("label.saved") : "";
  byId("saved").classList.toggle("waits", waiting > 0);
  byId("disputed").textContent = queue.disputed ? number(queue.disputed) : "";
}

/** The answers that one key gives for several cells at once: none of them is "unsure". */
export const ofSeveral = () => queue.kinds.filter(({ answer }) => answer !== "unsure");

/** The answer that a key gives; undefined where it gives none. */
export const answerOf = (key) => queue.kinds.find((one) => one.key === key)?.answer;
