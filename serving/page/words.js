/** What the service says in constants, in words. */

import { kind, listed, t } from "./language.js";

/** Why a person must look at a cell: one sentence a reason. */
export function reasons(result) {
  return result.review.reasons.map((reason) => {
    const others = result.prediction_set.filter((name) => name !== result.label).map(kind);
    if (reason === "ambiguous" && !others.length) return t("report.why.no_class");
    return t(`report.why.${reason}`, { others: listed(others), number: (result.twin ?? 0) + 1 });
  });
}

/** Why an image could not be used. */
export function rejected(result) {
  const { reason } = result.problem;
  const again = reason === "duplicate" && Number.isInteger(result.duplicate_of);
  return again ? t("report.rejected.duplicate_of", { number: result.duplicate_of + 1 }) : t(`report.rejected.${reason}`);
}

/** What a cell counts as, in words. */
export const counted = (label) => (label === null ? t("report.not_counted") : kind(label));

const BLOCKED = ["incomplete", "rendered_model", "no_cells"];

/** Why a report cannot be signed. */
export const why = ({ kind: name }, state) =>
  BLOCKED.includes(name)
    ? t(`report.blocked.${name}`, { sent: state.sent_images, count: state.expected_images })
    : t(`common.problem.${name.replace("_", "-")}`);

export const cells = (count) => t("report.count.cells", { count });
export const images = (count) => t("report.count.images", { count });

/** How many images have come, where some are missing. */
export const progress = ({ complete, sent_images: sent, expected_images: expected }) =>
  complete ? "" : t("report.line_progress", { sent, count: expected });

/** A flag in words; empty for a value inside its range. */
export const flag = (name) => (name ? t(`report.flag.${name}`) : "");

/** A class as laboratories shorten it. */
export const short = (name) => t(`report.short.${name}`);

/** The state of a report in words. */
export const status = (name) => t(`report.status.${name}`);

/** How a report's message stands; nothing where there is none. */
export const delivery = (message) => (message ? ` ${t(`report.delivery.${message.state}`)}` : "");
