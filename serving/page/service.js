/** Calls of the service. A call that fails throws a Failure whose message is meant for the person at the page.
 *
 * A call may be repeated only where a repetition does nothing more: one that reads, or one that carries an Idempotency-Key. Every
 * other one is sent once. So every call that writes has a key: one for each deed, the same however often it is sent.
 */

import { t } from "./language.js";

const KEY = "wbc-api-key";
const PATIENCE = 5; // attempts while the service says that it is busy, or cannot be reached
const AGAIN = 700; // ms until the next attempt where the service has named no time
const PROBLEM = "urn:wbc:problem:";
const BUSY = [429, 502, 503, 504];

export class Failure extends Error {
  /** `status` 0: no answer came. */
  constructor(status, message, problem = {}) {
    super(message);
    this.status = status;
    this.problem = problem;
  }

  /** The kind of the problem document, such as "unreviewed"; empty where there was none. */
  get kind() {
    return (this.problem.type ?? "").replace(PROBLEM, "");
  }

  /** Whether the service may have done it although it did not say so. */
  get unknown() {
    return this.status === 0 || this.status >= 500;
  }
}

let askForKey = async () => null;

/** `ask(refused)` shows a field for the key and resolves to what was typed, or null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Take the key that the address ends with, as `wbc serve` prints it, and take it off the address; tells whether there was one. */
export function keyFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (!given) return false;
  keepKey(given);
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}

export const keepKey = (key) => sessionStorage.setItem(KEY, key);

/** A key for one deed. */
export const deed = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** Why the service refuses: in the words of the page, filled with what the service says of it; in the service's own where the page
 * has none, or not all that they need. */
function said(problem, status) {
  const kind = (problem.type ?? "").replace(PROBLEM, "");
  const ofField = `common.field.${problem.field}`;
  if (kind === "bad-field" && t(ofField) !== ofField) return t(ofField);
  const key = `common.problem.${kind}`;
  const words = t(key, problem);
  return (words === key || /\{\w+\}/.test(words) ? problem.detail : words) || t("common.answered", { status: String(status) });
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The answer to a call; `deed` is needed for every method but GET. */
export async function call(path, { deed, ...options } = {}) {
  const repeatable = !options.method || deed !== undefined;
  let key = sessionStorage.getItem(KEY); // of whoever began: another person's, given meanwhile, is not for this call
  for (let attempt = 1; ; attempt++) {
    const headers = { ...options.headers, ...(key && { "X-API-Key": key }), ...(deed && { "Idempotency-Key": deed }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, redirect: "error", cache: "no-store" });
    } catch {
      if (repeatable && attempt < PATIENCE && navigator.onLine) {
        await pause(AGAIN);
        continue;
      }
      throw new Failure(0, t("common.unreachable"));
    }
    if (response.ok) return response;
    if (response.status === 401) {
      const given = await askForKey(key !== null);
      if (!given) throw new Failure(401, t("common.needs_key"));
      keepKey(given);
      key = given;
      attempt = 0;
      continue;
    }
    const problem = await response.json().catch(() => ({}));
    const failure = new Failure(response.status, said(problem, response.status), problem);
    const later = BUSY.includes(response.status) || failure.kind === "idempotency-key-in-use";
    if (!later || !repeatable || attempt === PATIENCE) throw failure;
    await pause(1000 * Number(response.headers.get("retry-after")) || AGAIN);
  }
}

/** The same, read as JSON. */
export const json = async (path, options) => (await call(path, options)).json();

function images(files, fields = {}) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  for (const file of files) form.append("images", file, "cell"); // the file's name stays here
  return { method: "POST", body: form };
}

/** Whose key it is: its name, the person where it has one, its scopes. */
export const me = () => json("v1/me");

/** Who can be asked for a second opinion: the persons whose keys may review. */
export const people = async () => (await json("v1/people")).people;

/** What the page has to know of the site: its further kinds with their keys, how large a pixel is. */
export const site = () => json("v1/site");

/** The model's card. */
export const model = () => json("v1/model");

/** Classify files of one specimen and count them; with `report_id` among the fields they are added to that report. */
export const differential = (files, fields, deed) => json("v1/differential", { ...images(files, fields), deed });

/** PNG pictures, in base64, of files that browsers do not show; null for one that cannot be read. */
export const previews = async (files) => (await json("v1/preview", { ...images(files), deed: deed() })).previews;

/** The heat map of one file as a base64 PNG, or undefined where the service draws none. */
export async function heatMap(file) {
  const answer = await json("v1/classify?explain=true", { ...images([file]), deed: deed() });
  return answer.results[0].heat_map ?? undefined;
}

const written = (method, path, body, options) =>
  json(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), deed: deed(), ...options });

const reportPath = (id) => `v1/reports/${encodeURIComponent(id)}`;

/** Reports, the newest first, and how many each shelf has; null where the service keeps none. The number of a specimen is in the
 * body: proxies log addresses. */
export async function search(wanted) {
  try {
    return await written("POST", "v1/worklist", wanted);
  } catch (failure) {
    if (failure.kind === "no-store") return null;
    throw failure;
  }
}

/** Whoever changes a report must have seen its latest version; the service refuses others with 412. It answers what has changed.
 * ANY version will do for what rests on none. */
const ANY = "*";

const change = (method, path, version, body, deed) =>
  json(path, {
    method,
    headers: { "Content-Type": "application/json", "If-Match": version === ANY ? ANY : `"${version}"`, Prefer: "return=minimal" },
    body: JSON.stringify(body),
    deed,
  });

export const report = (id) => json(reportPath(id));
export const correct = (id, version, index, body, deed) => change("PUT", `${reportPath(id)}/cells/${index}`, version, body, deed);
export const undo = (id, version, index, body, deed) => change("POST", `${reportPath(id)}/cells/${index}/undo`, version, body, deed);
export const sign = (id, version, body, deed) => change("POST", `${reportPath(id)}/signature`, version, body, deed);
export const amend = (id, version, body, deed) => change("PATCH", reportPath(id), version, body, deed);
export const withdraw = (id, version, body, deed) => change("POST", `${reportPath(id)}/withdrawal`, version, body, deed);
export const reinstate = (id, version, body, deed) => change("DELETE", `${reportPath(id)}/withdrawal`, version, body, deed);
export const comment = (id, _, body, deed) => change("POST", `${reportPath(id)}/comments`, ANY, body, deed);
export const askOpinion = (id, _, body, deed) => change("POST", `${reportPath(id)}/opinions`, ANY, body, deed);
export const answerOpinion = (id, number, body, deed) => change("POST", `${reportPath(id)}/opinions/${number}/answer`, ANY, body, deed);
export const takeOpinionBack = (id, number, body, deed) => change("DELETE", `${reportPath(id)}/opinions/${number}`, ANY, body, deed);

/** Say that the report is looked at, or was `left`; who else looks at it, and its version. */
export const present = (id, body) => written("PUT", `${reportPath(id)}/presence`, body, { keepalive: body.left === true });
export const pdf = async (id) => (await call(`${reportPath(id)}/report.pdf`)).blob();
export const fhir = async (id) => (await call(`${reportPath(id)}/fhir`)).blob();

/** The image of a cell, where it is kept, as PNG. */
export const image = async (id, index) => (await call(`${reportPath(id)}/cells/${index}/image`)).blob();
