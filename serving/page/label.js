/** The page `/label`: people answer what the model asks. It shows one of its views, or says what stands in the way. */

import * as agreement from "./agreement.js";
import * as answers from "./answers.js";
import * as dialogs from "./dialogs.js";
import * as disputes from "./disputes.js";
import * as history from "./history.js";
import { offer, t, translate } from "./language.js";
import * as labelling from "./labelling.js";
import * as microscope from "./microscope.js";
import { guarded, notice, say } from "./notices.js";
import { draw, nextInWords, queue, refresh } from "./queue.js";
import * as reading from "./reading.js";
import * as references from "./references.js";
import * as service from "./service.js";
import * as sweep from "./sweep.js";

const ADJUDICATE = "adjudicate"; // the scope of whoever decides disputes
const LOOK_AGAIN = 60_000; // ms until the page looks for new cells, while it shows none
const byId = (id) => document.getElementById(id);

const unnamed = { ...disputes, enter: () => disputes.enter(true) };
const VIEWS = { read: reading, sweep, disputes: { ...disputes, enter: () => disputes.enter() }, unnamed, agreement, history };
// The part of the document that a view fills.
const MAIN = { read: "one", sweep: "sweep", disputes: "one", unnamed: "one", agreement: "agreement", history: "history" };
const DECIDED = ["disputes", "unnamed"]; // by a third person; it outlives its queue
const LOOKED_AT = ["agreement", "history"]; // whether a queue is open or not

let me = null; // whose key it is
let view = "read";
let signedIn = false; // whether the page is loaded again for another key: what is not sent stays in the tab
let acting = false; // whether a view is on the screen, and keys are its own

// ---------------------------------------------------------------- begin

async function begin() {
  me = null;
  references.forget();
  try {
    me = await service.me();
    byId("reader").textContent = me.person ?? me.key;
    byId("sign-out").hidden = false;
    byId("to-disputes").hidden = !adjudicates();
    for (const link of ["to-read", "to-sweep"]) byId(link).hidden = !labels();
    if (!labels() && !adjudicates()) {
      nothing("scope", { key: me.key, scopes: me.scopes.join(", ") });
      return;
    }
    reading.begin({ ended: () => nothing("done"), stopped });
    disputes.begin((ofUnnamed) => nothing(ofUnnamed ? "unnamed" : "agreed"));
    history.begin(sayAgain, () => (location.hash = "#/disputes"));
    sweep.begin(readOdd);
    answers.begin(me.person ?? me.key, draw);
    await refresh();
    microscope.begin(queue.pixel_um);
    listKeys();
    await go();
  } catch (failure) {
    if (!(failure instanceof service.Failure)) throw failure;
    stopped(failure);
  }
}

const labels = () => me.scopes.includes("label");
const adjudicates = () => me.scopes.includes(ADJUDICATE);

/** Put the keys of the site's further kinds into the help. */
function listKeys() {
  const shown = queue.kinds.filter(({ key }) => /[a-z]/.test(key)).map(({ key }) => {
    const made = document.createElement("kbd");
    made.textContent = key;
    return made;
  });
  byId("help-further").replaceChildren(...shown.flatMap((key) => [key, " "]));
}

function stopped(failure) {
  if (failure.kind === "no-store") nothing("store");
  else if (failure.status === 401) nothing("key");
  else nothing("failed", { why: failure.message });
}

// ---------------------------------------------------------------- views

const ADDRESSES = {
  "#/sweep": "sweep",
  "#/disputes": "disputes",
  "#/unnamed": "unnamed",
  "#/agreement": "agreement",
  "#/answers": "history",
};

/** Show the view that the address names. */
async function go() {
  VIEWS[view].leave?.();
  view = ADDRESSES[location.hash] ?? "read";
  if (me && !labels() && ["read", "sweep"].includes(view)) view = "disputes"; // all that such a key can do here
  for (const link of byId("views").querySelectorAll("a")) {
    if (link.dataset.view === (view === "unnamed" ? "disputes" : view)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!me) return;
  say("");
  if (DECIDED.includes(view) && !adjudicates()) {
    nothing("view", { scope: ADJUDICATE, key: me.key });
    return;
  }
  if (!queue.queue && ![...LOOKED_AT, ...DECIDED].includes(view) && !(view === "read" && reading.waits())) {
    nothing("queue");
    return;
  }
  show(MAIN[view]);
  await guarded(VIEWS[view].enter);
}

function show(main) {
  for (const each of document.querySelectorAll("main")) each.hidden = each.id !== main;
  document.body.dataset.view = main === "nothing" ? "nothing" : view;
  acting = main !== "nothing";
  byId("round").hidden = !queue.queue || !(queue.done + queue.left) || [...DECIDED, ...LOOKED_AT].includes(view);
}

/** Name the cell of a task anew. */
function sayAgain(id, was) {
  reading.readFirst([{ id, was }]);
  location.hash = "#/";
}

function readOdd(tasks) {
  reading.readFirst(tasks);
  location.hash = "#/";
}

/** Say why there is nothing to do, and what can be done. */
function nothing(why, values = {}) {
  const there = document.body.dataset.view === "nothing";
  show("nothing");
  const { disputed, done, left, unnamed: nameless } = queue;
  const next = nextInWords();
  const words = why === "done" && left > 0 ? "others" : why === "done" && !done ? "none" : why; // who has the rest
  byId("nothing-heading").textContent = t(`label.nothing.${words}.heading`, values);
  byId("nothing-text").textContent = t(`label.nothing.${words}.text`, { count: left, ...values });
  byId("nothing-next").textContent = ["done", "agreed", "queue"].includes(why) && next ? t("label.nothing.next", { next }) : "";
  byId("nothing-disputes").hidden = !(why === "done" && disputed && me && adjudicates());
  byId("nothing-unnamed").hidden = !(why === "agreed" && nameless);
  byId("nothing-key").hidden = !["key", "scope", "view"].includes(why);
  byId("nothing-again").hidden = !["failed", "store", "queue", "done", "agreed", "unnamed"].includes(why);
  byId("nothing-undo").hidden = why !== "done" || !queue.done;
  if (!there) byId("nothing-heading").focus();
}

/** Look whether there is something to do by now; `quietly` where nobody has asked for it. */
async function lookAgain({ quietly = false } = {}) {
  if (!me || (!labels() && !adjudicates())) {
    await begin();
    return;
  }
  try {
    await refresh();
    if (!quietly || (await somethingToDo())) await go();
  } catch (failure) {
    if (!(failure instanceof service.Failure)) throw failure;
    stopped(failure);
  }
}

async function somethingToDo() {
  if (!queue.queue && !DECIDED.includes(view)) return false;
  const found = await (DECIDED.includes(view) ? labelling.disputes(view === "unnamed") : labelling.tasks(1));
  return found.length > 0;
}

// ---------------------------------------------------------------- keys, buttons

const inField = (element) => element.closest?.("input:not([type=range], [type=radio]), textarea, select, dialog");

function pressed(event) {
  if (event.key === "F1") {
    event.preventDefault();
    void dialogs.help();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || inField(event.target)) return;
  const action = actionOf(event.key.length === 1 ? event.key.toLowerCase() : event.key, event.target);
  if (!action) return;
  event.preventDefault();
  if (!event.repeat || "+-".includes(event.key)) action();
}

/** A control that has the focus keeps its arrows. */
function actionOf(key, target) {
  if (key.startsWith("Arrow") && target.closest("button, a, input")) return undefined;
  if (!acting) return key === "u" && !byId("nothing-undo").hidden ? takeBack : undefined;
  return VIEWS[view].actionOf?.(key);
}

/** Take the last answer back, where all is read. */
function takeBack() {
  show("one");
  reading.undo();
}

async function signOut() {
  const text = t("label.leave.text", { count: answers.unsaved() });
  if (answers.unsaved() && !(await dialogs.ask(t("label.leave.heading"), text, t("common.sign_out")))) return;
  answers.forget();
  sessionStorage.clear();
  location.reload();
}

function leaving(event) {
  if (answers.unsaved() && !signedIn) event.preventDefault();
}

function listen() {
  document.addEventListener("keydown", pressed);
  window.addEventListener("beforeunload", leaving);
  window.addEventListener("hashchange", () => {
    if (service.keyFromAddress()) void begin();
    else void go();
  });
  for (const kind of ["unhandledrejection", "error"]) window.addEventListener(kind, failed);
  const clicks = {
    help: dialogs.help,
    "sign-out": signOut,
    undo: () => VIEWS[view].undo(),
    reveal: disputes.reveal,
    odd: sweep.readOdd,
    "said-more": history.more,
    "sweep-undo": sweep.undo,
    "sweep-zoom": sweep.zoom,
    "nothing-key": askForKey,
    "nothing-again": () => lookAgain(),
    "nothing-undo": takeBack,
  };
  for (const [id, action] of Object.entries(clicks)) byId(id).addEventListener("click", () => void action());
  setInterval(() => !document.hidden && !byId("nothing").hidden && me && void lookAgain({ quietly: true }), LOOK_AGAIN);
}

async function askForKey() {
  const given = await dialogs.key(false);
  if (!given) return;
  service.keepKey(given);
  signedIn = true;
  location.reload();
}

/** A key that is asked for in the middle may be another person's: the page begins anew. */
async function newKey(refused) {
  const given = await dialogs.key(refused);
  if (!given || !me) return given;
  service.keepKey(given);
  signedIn = true;
  location.reload();
  return new Promise(() => {});
}

function failed(event) {
  console.error(event.reason ?? event.error);
  say(t("common.failed"), true);
}

translate(document);
offer(byId("language"));
service.keyFromAddress();
service.onKeyNeeded(newKey);
listen();
notice("unsent", "");
void begin();
