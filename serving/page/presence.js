/** Who else looks at the report: the page says every 20 seconds that it is open, and hears who else has said so. */

import * as dialogs from "./dialogs.js";
import { t } from "./language.js";
import * as service from "./service.js";
import { write } from "./tiles.js";

const EVERY = 20_000; // ms; the service forgets after 45 seconds

const byId = (id) => document.getElementById(id);
let open = null; // the id of the report that is looked at
let timer = null;
let changed = () => {};

/** `other(version)` is called with the version that the report is at, whenever the service says it. */
export function onVersion(other) {
  changed = other;
}

/** Look at this report from now on; null: at none. */
export function look(reportId) {
  if (reportId === open) return;
  leave();
  open = reportId;
  write(byId("others"), "");
  clearInterval(timer);
  timer = open && setInterval(tell, EVERY);
  void tell();
}

async function tell() {
  const report = open;
  if (!report || document.hidden) return;
  try {
    const { here, version } = await service.present(report, { by: dialogs.person() || undefined });
    if (report !== open) return;
    write(byId("others"), here.length ? t("report.others_here", { names: here.join(", ") }) : "");
    changed(version);
  } catch (failure) {
    if (!(failure instanceof service.Failure)) throw failure; // the next time, then
  }
}

function leave() {
  if (open) service.present(open, { by: dialogs.person() || undefined, left: true }).catch(() => {}); // it lapses anyway
}

addEventListener("pagehide", leave);
addEventListener("visibilitychange", () => void tell());
