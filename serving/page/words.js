/** What the service says in constants, in words. */

const REJECTED = {
  undecodable: "cannot be read as an image",
  truncated: "the file is cut off",
  too_large: "the image is too large",
  too_small: "the image is too small",
  duplicate: "the same file was sent before",
};

const FLAGS = { low: "low ▼", normal: "", high: "high ▲", critical_low: "critical ▼", critical_high: "critical ▲" };

const SHORT = { Basophil: "Baso", Eosinophil: "Eos", Lymphocyte: "Lymph", Monocyte: "Mono", Neutrophil: "Neut" };

const DELIVERY = {
  pending: " On its way to the hospital's system.",
  delivered: " The hospital's system has it.",
  failed: " The hospital's system has refused it.",
  retired: " A later one has taken its place.",
};

const STATUS = { preliminary: "Not signed", final: "Signed", amended: "Signed, amended", withdrawn: "Withdrawn" };

/** Why a report cannot be signed; a constant that is not here is said in the service's words. */
const BLOCKED = {
  incomplete: (state) => `${state.sent_images} of ${images(state.expected_images)} have come. Drop the folder again to send the rest.`,
  rendered_model: () => "Not to be signed: its model learned from drawn cells.",
  no_cells: () => "No image counts as a cell: there is nothing to sign.",
};

/** Why a person must look at a cell: one sentence a reason. */
export function reasons(result) {
  return result.review.reasons.map((reason) => {
    const others = result.prediction_set.filter((name) => name !== result.label);
    switch (reason) {
      case "ambiguous":
        return others.length ? `Could also be ${listed(others)}.` : "No class is likely enough.";
      case "not_a_leukocyte":
        return "May not be a white cell.";
      case "site_unknown":
        return "Looks unlike the images the model was set up for.";
      case "near_duplicate":
        return `Looks like cell ${result.twin + 1} once more.`;
      case "high_predicted_loss":
        return "The model expects to be wrong here.";
      default:
        return `${capital(reason.replaceAll("_", " "))}.`;
    }
  });
}

/** Why an image could not be used. */
export const rejected = (result) =>
  (result.problem.reason === "duplicate" ? `${REJECTED.duplicate}, as cell ${result.duplicate_of + 1}` : undefined) ??
  REJECTED[result.problem.reason] ??
  result.problem.title;

/** Why a report cannot be signed. */
export const why = ({ kind, detail }, state) => BLOCKED[kind]?.(state) ?? detail;

const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;
export const cells = (count) => counted(count, "cell", "cells");
export const images = (count) => counted(count, "image", "images");

/** How many images have come, where some are missing. */
export const progress = ({ complete, sent_images: sent, expected_images: expected }) =>
  complete ? "" : `, ${sent} of ${images(expected)}`;

/** A flag in words; empty for a value inside its range. */
export const flag = (name) => (name ? (FLAGS[name] ?? name.replaceAll("_", " ")) : "");

/** A class as laboratories shorten it. */
export const short = (name) => SHORT[name] ?? name;

/** The state of a report in words. */
export const status = (name) => STATUS[name] ?? capital(name);

/** How a report's message stands; nothing where there is none. */
export const delivery = (message) => (message ? DELIVERY[message.state] : "");

/** "a", "a or b", "a, b or c". */
export const listed = (names) => names.join(", ").replace(/, ([^,]*)$/, " or $1");

export const percent = (share) => `${Math.round(100 * share)} %`;

export const moment = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

export const day = (text) => new Date(text).toLocaleDateString([], { dateStyle: "medium" });

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
