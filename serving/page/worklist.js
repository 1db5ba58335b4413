/** The worklist: which specimens wait, for whom, and where each stands. It is asked for anew every 20 seconds while it is shown. */

import { addressOf } from "./address.js";
import * as dialogs from "./dialogs.js";
import { moment, number, t } from "./language.js";
import { guarded, notice, say } from "./notices.js";
import * as service from "./service.js";
import { write } from "./tiles.js";
import { progress, status } from "./words.js";

const SHELVES = ["to_do", "incomplete", "final", "amended", "withdrawn", "all", "asked"];
const EVERY = 20_000; // ms
const TYPING = 250; // ms after the last letter
const A_PAGE = 50;

const byId = (id) => document.getElementById(id);
let shelf = "to_do";
let pages = [null]; // what each page begins after; the last one is shown
let asked = 0; // searches, so that an answer that comes late is not shown
let written = ""; // what is shown
let typing = null;
let shown = false;

/** Show the list; false where this service keeps no reports, undefined where it does not answer. */
export async function showWorklist() {
  shown = true;
  return search();
}

/** It is out of sight. */
export function leaveWorklist() {
  shown = false;
  notice("away", "");
}

/** Begin again with everything that is to do. */
export function resetWorklist() {
  shelf = "to_do";
  pages = [null];
  byId("search").reset();
}

function wanted() {
  const [from, to] = [byId("search-from").value, byId("search-to").value];
  return {
    shelf,
    limit: A_PAGE,
    ...(byId("search-number").value.trim() && { specimen: byId("search-number").value.trim() }),
    ...(from && { created_from: midnight(from, 0) }),
    ...(to && { created_before: midnight(to, 1) }),
    ...(dialogs.person() && { person: dialogs.person() }),
    ...(pages.at(-1) && { before: pages.at(-1) }),
  };
}

/** The beginning of a day here, or of one so many days later. */
function midnight(day, later) {
  const [year, month, date] = day.split("-").map(Number);
  return new Date(year, month - 1, date + later).toISOString();
}

async function search() {
  const mine = ++asked;
  const found = await answered(mine);
  if (found === undefined) return undefined;
  if (mine !== asked) return true;
  byId("list").hidden = found === null;
  document.body.classList.toggle("unkept", found === null);
  if (found) draw(found);
  return found !== null;
}

/** What the service answers; undefined where it does not. The page says so for as long as the list is older than it seems. */
async function answered(mine) {
  try {
    const found = await service.search(wanted());
    notice("away", "");
    return found;
  } catch (failure) {
    if (!(failure instanceof service.Failure && failure.unknown)) throw failure;
    if (shown && mine === asked) notice("away", t("report.worklist.away", { why: failure.message }));
    return undefined;
  }
}

function draw({ reports, next, counts }) {
  const onTab = document.activeElement?.dataset.shelf;
  byId("shelves").replaceChildren(...SHELVES.filter((name) => name !== "asked" || dialogs.person()).map((name) => tab(name, counts[name])));
  if (onTab) focusTab(onTab);
  byId("newer").disabled = pages.length === 1;
  byId("older").disabled = !next;
  byId("older").value = next ?? "";
  byId("pages").hidden = pages.length === 1 && !next;
  byId("none").hidden = reports.length > 0;
  const nothing = counts.all ? "on_shelf" : searched() ? "found" : "at_all";
  write(byId("none"), reports.length ? "" : t(`report.worklist.none.${nothing}`));
  write(byId("found"), t("report.worklist.found", { count: counts[shelf] }));
  const now = JSON.stringify(reports);
  if (now === written) return; // what is read, or has the focus, stays as it is
  written = now;
  const focused = document.activeElement?.closest?.("#reports a")?.getAttribute("href");
  byId("reports").replaceChildren(...reports.map(row));
  if (focused) byId("reports").querySelector(`a[href="${focused}"]`)?.focus();
  byId("colleagues").replaceChildren(...colleagues(reports).map((name) => new Option(name)));
}

const searched = () => ["search-number", "search-from", "search-to"].some((id) => byId(id).value !== "");

function colleagues(reports) {
  const names = new Set(reports.flatMap(({ here, asked: of, signed_by: by }) => [...here, ...of, ...(by ? [by] : [])]));
  names.delete(dialogs.person());
  return [...names].sort();
}

function tab(name, count) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "lane-chip";
  button.dataset.shelf = name;
  button.setAttribute("aria-pressed", String(name === shelf));
  const total = document.createElement("b");
  total.textContent = number(count);
  button.append(`${t(`report.worklist.shelf.${name}`)} `, total);
  button.addEventListener("click", () => {
    shelf = name;
    again();
  });
  return button;
}

/** The tabs are drawn anew with each answer: the one that had the focus keeps it. */
const focusTab = (name) => byId("shelves").querySelector(`[data-shelf="${name}"]`)?.focus();

function row(report) {
  const line = document.createElement("tr");
  const link = document.createElement("a");
  link.href = addressOf(report.id);
  link.textContent = report.specimen_id ?? t("report.no_number");
  const heading = cell(link);
  const chip = document.createElement("span");
  chip.className = `chip ${report.withdrawn ? "gone" : report.status === "preliminary" ? "" : "done"}`;
  chip.textContent = report.complete || report.withdrawn ? status(report.status) : t("report.worklist.shelf.incomplete");
  const review = report.status === "preliminary" ? number(report.to_review) : "";
  line.append(heading, cell(chip), cell(number(report.cells) + progress(report)), cell(review), cell(people(report)), cell(moment(report.created_at)));
  line.addEventListener("click", (event) => event.target === link || link.click());
  return line;
}

function cell(content) {
  const made = document.createElement("td");
  made.append(content);
  return made;
}

function people({ signed_by: by, asked: of, comments, here }) {
  const words = [
    by && t("report.worklist.signed_by", { by }),
    of.length && t("report.worklist.asked", { of: of.join(", ") }),
    comments && t("report.worklist.comments", { count: comments }),
    here.length && t("report.others_here", { names: here.join(", ") }),
  ];
  return words.filter(Boolean).join(" · ");
}

/** From the first page on. */
function again() {
  pages = [null];
  void guarded(search);
}

/** Listen to the fields and buttons of the list. */
export function listenToWorklist() {
  byId("search").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("reset", () => setTimeout(again));
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(again, TYPING);
  });
  byId("older").addEventListener("click", () => {
    pages.push(byId("older").value);
    void guarded(search);
  });
  byId("newer").addEventListener("click", () => {
    pages.pop();
    void guarded(search);
  });
  setInterval(() => shown && !document.hidden && void guarded(search), EVERY);
  byId("person").addEventListener("change", () => {
    dialogs.setPerson(byId("person").value);
    say("");
    again();
  });
}
