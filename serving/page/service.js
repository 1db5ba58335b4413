/** Calls of the service. A call that fails throws a Failure whose message is meant for the person at the page. */

const KEY = "wbc-api-key";
const PATIENCE = 5; // attempts while the service says that it is busy

export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let askForKey = async () => null;

/** `ask(refused)` shows a field for the key and resolves to what was typed, or null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function call(path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { "X-API-Key": key } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, redirect: "error", cache: "no-store" });
    } catch {
      throw new Failure(0, "The service cannot be reached.");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      const given = await askForKey(key !== null);
      if (given) {
        sessionStorage.setItem(KEY, given);
        attempt = 0;
        continue;
      }
      throw new Failure(401, "The service needs a key.");
    }
    if ((response.status === 429 || response.status === 503) && attempt < PATIENCE) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * Number(response.headers.get("retry-after") || 1)));
      continue;
    }
    const problem = await response.json().catch(() => ({}));
    throw Object.assign(new Failure(response.status, problem.detail || `The service answered ${response.status}.`), { problem });
  }
}

const json = async (path, options) => (await call(path, options)).json();

function images(files, fields = {}) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  for (const file of files) form.append("images", file, "cell"); // the file's name stays here
  return { method: "POST", body: form };
}

/** The model's card. */
export const model = () => json("v1/model");

/** Classify files of one specimen and count them; with `report_id` among the fields they are added to that report. */
export const differential = (files, fields) => json("v1/differential", images(files, fields));

/** The heat map of one file as a base64 PNG, or undefined where the service draws none. */
export async function heatMap(file) {
  const answer = await json("v1/classify?explain=true", images([file]));
  return answer.results[0].heat_map ?? undefined;
}

const reportPath = (id) => `v1/reports/${encodeURIComponent(id)}`;

/** Reports that nobody has signed; null where the service keeps none. */
export async function openReports() {
  try {
    return await json("v1/reports?status=open");
  } catch (failure) {
    if (failure.status === 404) return null;
    throw failure;
  }
}

/** Whoever changes a report must have seen its latest version; the service refuses others with 412. */
const change = (method, path, version, body) =>
  json(path, {
    method,
    headers: { "Content-Type": "application/json", "If-Match": `"${version}"` },
    body: JSON.stringify(body),
  });

export const report = (id) => json(reportPath(id));
export const correct = (id, version, index, label, by, amend) =>
  change("PUT", `${reportPath(id)}/cells/${index}`, version, { label, by, amend });
export const sign = (id, version, by) => change("POST", `${reportPath(id)}/signature`, version, { by });
export const pdf = async (id) => (await call(`${reportPath(id)}/report.pdf`)).blob();
export const fhir = async (id) => (await call(`${reportPath(id)}/fhir`)).blob();

/** The image of a cell, where the site keeps images. */
export const image = async (id, index) => (await call(`${reportPath(id)}/cells/${index}/image`)).blob();
