/** What a person decides about cells, and how it gets to the service: one after the other, in the order it was decided.
 *
 * Nothing is decided about a cell that is not shown: its picture must have been on the screen, drawn, for a frame. A key that is
 * held down decides too, but only cells that nobody has decided, within the lane where it was pressed, and not faster than a
 * person can see.
 */

import { seen, sightOf, withoutPicture } from "./cell.js";
import * as dialogs from "./dialogs.js";
import { glimpsed } from "./gallery.js";
import { t } from "./language.js";
import { guarded, say } from "./notices.js";
import { readAgain, showReport } from "./report.js";
import * as service from "./service.js";
import { parts, specimen, usable } from "./specimen.js";
import { REVIEW } from "./tiles.js";
import { counted } from "./words.js";

const WAIT = 3000; // ms for a picture that is being drawn
const GLANCE = 100; // ms that a cell of the review lane is in sight at least before a held key decides it

const byId = (id) => document.getElementById(id);
let held = null; // the lane of the last decision: a key that is held down stays in it
let queue = []; // what is not saved yet
let saving = null; // resolves when all of it is saved

/** Resolves when everything that was decided is saved or taken back. */
export const saved = () => saving ?? Promise.resolve();

/** Whether a key that is held down may decide this cell now. */
export function mayHold(cell) {
  const sight = sightOf(cell);
  return !cell.seen && cell.lane === held && sight !== undefined && sight >= (cell.lane === REVIEW ? GLANCE : 0);
}

/** Let `cell` count as `label` (null: not at all) by the person at the page, and go on to the next cell. */
export async function decide(cell, label) {
  if (!usable(cell)) return;
  held = cell.lane;
  if (!(await inView(cell))) return;
  if (!(await mayChange())) {
    parts.gallery.focus(cell);
    return;
  }
  const next = parts.gallery.after(cell);
  if (cell.seen && cell.label === label) {
    parts.gallery.focus(next);
    return;
  }
  const before = { label: cell.label, seen: cell.seen };
  const decision = { cell, before, label, of: null };
  specimen.undo.push(decision);
  change(decision, { label, seen: true });
  parts.gallery.focus(next);
  const said = before.label === label ? "report.said.accepted" : "report.said.corrected";
  say(t(said, { number: cell.index + 1, was: counted(before.label), now: counted(label) }));
}

/** The same for several cells at once, without a `label` as what each of them is. Those that nobody can have seen are left as they
 * are. */
export async function decideSeveral(cells, label) {
  const usables = cells.filter(usable);
  const seenOnes = usables.filter(glimpsed);
  if (!usables.length || !(await mayChange())) return;
  const next = parts.gallery.after(usables.at(-1));
  const group = {}; // they are taken back together
  for (const cell of seenOnes) {
    const now = label === undefined ? cell.label : label;
    if (cell.seen && cell.label === now) continue;
    const decision = { cell, before: { label: cell.label, seen: cell.seen }, label: now, of: null, group };
    specimen.undo.push(decision);
    change(decision, { label: now, seen: true });
  }
  parts.gallery.selection.clear();
  parts.gallery.focus(cells.includes(next) ? parts.gallery.current : next);
  const unseen = usables.length - seenOnes.length;
  const left = unseen ? ` ${t("report.said.unseen", { count: unseen })}` : "";
  const said = label === undefined ? "report.said.several_accepted" : "report.said.several";
  say(t(said, { count: seenOnes.length, now: counted(label ?? null) }) + left, unseen > 0);
}

/** A cell that is looked at, or one that the mouse has taken by its tile, is decided only while its picture can be seen. */
async function inView(cell) {
  const { gallery } = parts;
  if (gallery.dragged === cell && cell.url && cell.image.complete && cell.image.naturalWidth > 0) return true;
  if (gallery.current === cell && (await seen(cell, WAIT))) return true;
  say(t("report.said.not_shown", { number: cell.index + 1, why: withoutPicture(cell) }), true);
  return false;
}

/** Take the last decision back: the cell is where it was, as it was. */
export async function undo() {
  if (!specimen.undo.length) {
    say(t("report.said.nothing_to_undo"));
    return;
  }
  if (!(await mayChange())) return;
  const last = specimen.undo.at(-1);
  const together = last.group ? specimen.undo.filter(({ group }) => group === last.group) : [last];
  for (const one of together.reverse()) {
    specimen.undo.splice(specimen.undo.indexOf(one), 1);
    change({ cell: one.cell, before: { label: one.cell.label, seen: one.cell.seen }, of: one }, one.before);
  }
  const { cell, before } = last;
  parts.gallery.focus(cell);
  parts.look(cell);
  const several = together.length > 1;
  say(several ? t("report.said.back_several", { count: together.length }) : t("report.said.back", { number: cell.index + 1, label: counted(before.label) }));
}

/** Show the change at once and send it; a change that the service refuses is taken back. */
function change(decision, now) {
  const { cell } = decision;
  Object.assign(cell, now);
  cell.unsaved++;
  parts.gallery.place(cell);
  byId("undo").disabled = !specimen.undo.length;
  queue.push(Object.assign(decision, { deed: service.deed(), by: dialogs.person(), reportId: specimen.reportId }));
  saving ??= save().finally(() => (saving = null));
}

async function save() {
  while (queue.length) {
    const [decision] = queue;
    await specimen.saying; // it makes a version that this one rests on
    try {
      const answer = await sent(decision);
      queue.shift();
      decision.cell.unsaved--;
      showReport(answer);
    } catch (failure) {
      if (!(failure instanceof service.Failure)) throw failure;
      await takeBack(failure);
    }
  }
}

function sent({ cell, label, of, by, deed, reportId }) {
  const { version, amend } = specimen;
  const body = { by, ...(amend && { amend }) };
  if (of) return service.undo(reportId, version, cell.index, body, deed);
  return service.correct(reportId, version, cell.index, { ...body, label }, deed);
}

/** Take back what was refused and what was decided after it, the last one first: it rested on a report that is another by now. */
async function takeBack(failure) {
  const refused = queue;
  queue = [];
  for (const { cell, before } of [...refused].reverse()) {
    cell.unsaved--;
    Object.assign(cell, before);
    parts.gallery.place(cell);
  }
  const undone = refused.map((decision) => decision.of).filter(Boolean); // these stand again
  specimen.undo = [...specimen.undo, ...undone.reverse()].filter((decision) => !refused.includes(decision));
  byId("undo").disabled = !specimen.undo.length;
  parts.gallery.focus(refused[0].cell);
  await guarded(readAgain);
  const many = refused.length > 1 ? ` ${t("report.said.not_kept", { count: refused.length })}` : "";
  say(failure.message + many, true);
}

async function mayChange() {
  if (!specimen.reportId) {
    say(t("report.said.no_store"), true);
    return false;
  }
  if (specimen.state?.withdrawn) {
    say(t("report.said.withdrawn"), true);
    return false;
  }
  if (specimen.posting || !specimen.version) {
    say(t("report.said.reading"), true);
    return false;
  }
  if (specimen.status !== "preliminary" && !specimen.amend) {
    const [heading, text, yes] = ["heading", "text", "yes"].map((part) => t(`report.ask.amend.${part}`));
    specimen.amend = await dialogs.ask(heading, text, yes, { name: true });
    return specimen.amend;
  }
  if (dialogs.person()) return true;
  return dialogs.ask(t("report.ask.who.heading"), t("report.ask.who.text"), t("report.ask.who.yes"), { name: true });
}
