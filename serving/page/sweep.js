/** Alike cells in a grid: the odd ones are marked, one key names the rest, and the odd ones are then read one at a time. */

import { release } from "./ahead.js";
import * as answers from "./answers.js";
import { flash, makeKinds } from "./kinds.js";
import * as labelling from "./labelling.js";
import { kind, t } from "./language.js";
import { guarded, say } from "./notices.js";
import { answerOf, count, ofSeveral, place, progressed } from "./queue.js";
import { Selection } from "./selection.js";
import * as service from "./service.js";

const CELLS = 25;
const GLANCE = 500; // ms that a grid is in sight before a key names it
const byId = (id) => document.getElementById(id);

let handOver = () => {}; // takes the odd ones, to be read one at a time
let grid = []; // tasks with their tiles
let later = []; // the grid that was there when the one before was taken back
let since = null; // when all pictures of the grid had come
let last = null; // the answer given last
let odd = []; // marked, and not read yet
let selection = null;
let asking = false; // whether the next grid is on its way

/** `onOdd(tasks)` reads tasks one at a time. */
export function begin(onOdd) {
  handOver = onOdd;
  [odd, grid, later] = [[], [], []];
  last = null;
  answers.listen("sweep", { confirmed: (_, answer) => progressed(answer), refused });
  selection ??= makeSelection();
}

function makeSelection() {
  const root = byId("grid");
  root.addEventListener("keydown", moved);
  return new Selection(root, {
    tiles: () => grid.map(({ tile }) => tile),
    changed: draw,
    mark: (tile, is) => tile.setAttribute("aria-selected", String(is)),
  });
}

/** Show a grid. */
export async function enter() {
  makeKinds(byId("sweep-kinds"), give, ofSeveral());
  if (grid.length) await show(grid);
  else await next();
}

async function next() {
  if (later.length) {
    await show(later.splice(0));
    return;
  }
  asking = true;
  await show([]);
  await answers.sent(); // the service gives what is not answered yet
  const found = await guarded(() => labelling.alike(CELLS));
  asking = false;
  const known = new Set(odd.map(({ id }) => id));
  await show((found ?? []).filter(({ id }) => !known.has(id)));
}

async function show(tasks) {
  grid = tasks;
  since = null;
  grid.forEach((task, index) => (task.tile = tileOf(task, index)));
  byId("grid").replaceChildren(...grid.map(({ tile }) => tile));
  selection.clear();
  await Promise.all(grid.map(load));
  if (grid === tasks) since = performance.now();
}

function tileOf(task, index) {
  const tile = document.createElement("div");
  tile.className = "swept";
  tile.setAttribute("role", "option");
  tile.setAttribute("aria-selected", "false");
  tile.setAttribute("aria-label", t("label.cell_number", { number: index + 1 }));
  tile.tabIndex = index ? -1 : 0;
  return tile;
}

async function load(task) {
  try {
    task.image ??= await pictureOf(task);
    task.tile.replaceChildren(task.image);
  } catch (failure) {
    if (!(failure instanceof service.Failure || failure instanceof DOMException)) throw failure;
    task.tile.textContent = "?";
    if (!selection.has(task.tile)) selection.toggle(task.tile); // nothing is said of a cell that is not seen
  }
}

async function pictureOf(task) {
  const image = new Image();
  image.alt = "";
  image.draggable = false;
  image.src = task.url = URL.createObjectURL(await labelling.picture(task.id));
  await image.decode();
  return image;
}

const isOdd = (task) => selection.has(task.tile);

/** Name all that are not marked. */
function give(answer) {
  const named = grid.filter((task) => !isOdd(task));
  if (!named.length) {
    odd.push(...grid);
    readOdd();
    return;
  }
  if (since === null || performance.now() - since < GLANCE) {
    say(t("label.too_soon_grid"), true);
    return;
  }
  const seconds = Math.round(performance.now() - since) / 1000;
  const marked = grid.filter(isOdd);
  odd.push(...marked);
  const entry = { way: "sweep", ids: named.map(({ id }) => id), answer, seconds };
  for (const task of last?.tasks ?? []) release(task);
  last = { entry, tasks: named };
  flash(byId("sweep-kinds"), answer);
  count(named.length, seconds / named.length);
  say(t("label.swept", { count: named.length, kind: kind(answer), place: place() }));
  answers.give(entry);
  void next();
}

/** Take the answers of the last grid back, and show it again. */
export function undo() {
  if (!last) {
    say(t("label.nothing_to_undo"));
    return;
  }
  const { entry, tasks } = last;
  last = null;
  answers.takeBack(entry);
  count(-tasks.length);
  later = grid;
  say(t("label.swept_back", { count: tasks.length }));
  void show(tasks);
}

function refused({ ids, answer }, failure) {
  count(-ids.length);
  odd.push(...ids.map((id) => ({ id })));
  last = null;
  say(`${t("label.refused_sweep", { count: ids.length, kind: kind(answer), why: failure.message })}`, true);
  draw();
}

function draw() {
  const marked = grid.filter(isOdd).length;
  byId("sweep-empty").hidden = asking || grid.length > 0;
  byId("grid").hidden = !grid.length;
  byId("sweep-count").textContent = grid.length ? t("label.sweep_count", { count: grid.length - marked, odd: marked }) : "";
  byId("odd").hidden = !odd.length;
  byId("odd").textContent = t("label.read_odd", { count: odd.length });
}

/** Read what was marked, one at a time. */
export function readOdd() {
  const tasks = odd;
  odd = [];
  handOver(tasks);
}

// ---------------------------------------------------------------- keys

const STEPS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -5, ArrowDown: 5 };

/** Arrows move in the grid, Space and Enter mark. */
function moved(event) {
  const at = grid.findIndex(({ tile }) => tile === document.activeElement);
  if (at < 0) return;
  if (event.key === " " || event.key === "Enter") {
    if (event.shiftKey) selection.extend(grid[at].tile);
    else selection.toggle(grid[at].tile);
  } else if (event.key in STEPS) focusTile(at + STEPS[event.key]);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function focusTile(at) {
  const to = grid[at];
  if (!to) return;
  for (const { tile } of grid) tile.tabIndex = tile === to.tile ? 0 : -1;
  to.tile.focus();
}

/** Show the middle of each picture, or all of it. */
export function zoom() {
  byId("sweep-zoom").setAttribute("aria-pressed", String(byId("grid").classList.toggle("closer")));
}

/** What a key does here; undefined for one that does nothing. */
export function actionOf(key) {
  if (key === "u") return undo;
  if (key === "z") return zoom;
  if (key.startsWith("Arrow") && grid.length) return () => focusTile(0);
  const answer = answerOf(key);
  return answer && answer !== "unsure" ? () => give(answer) : undefined;
}
