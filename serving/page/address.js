/** The address of the page: `#/` is the worklist, `#/report/ID` a report. What comes after `#` is sent to nobody. */

const REPORT = /^#\/report\/([0-9a-f]{32})$/;

/** The id of the report that the address names; null for the worklist. */
export const reportId = () => REPORT.exec(location.hash)?.[1] ?? null;

/** The address of a report, or of the worklist where `id` is null. */
export const addressOf = (id) => (id ? `#/report/${id}` : "#/");

/** Let the address name a report, or the worklist, as a step that the browser can go back from. */
export function show(id) {
  if (reportId() !== id) history.pushState(null, "", addressOf(id));
}

/** The same in place of the step that is there. */
export const replace = (id) => history.replaceState(null, "", addressOf(id));
