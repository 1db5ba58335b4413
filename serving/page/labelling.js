/** Calls of `/v1/labelling`: what is asked of people, and what they answer. The name of a task says nothing of its cell. */

import { call, json } from "./service.js";

const BASE = "v1/labelling";
const MOST = 100; // tasks a call
const part = encodeURIComponent;

/** The queue, the kinds with their keys, and how far the reader is. */
export const state = () => json(BASE);

/** The next tasks of the reader that are not answered. */
export const tasks = (count) => some("tasks", count);

/** Tasks whose cells are alike. */
export const alike = (count) => some("sweep", count);

async function some(which, count) {
  const { tasks: found } = await json(`${BASE}/${which}?count=${Math.min(MOST, count)}`);
  return found.map(({ task }) => ({ id: task }));
}

/** Cells on which two readers differ, or both are unsure; for a third. With `unnamed` those that nobody could name so far. */
export async function disputes(unnamed = false) {
  const found = (await json(`${BASE}/disputes${unnamed ? "?unnamed=true" : ""}`)).disputes;
  return found.map(({ dispute, answers, opinion }) => ({ id: dispute, answers, opinion }));
}

/** How many disputes this person may decide, of queues that have closed as well. */
export const disputesLeft = async () => (await json(`${BASE}/disputes`)).disputes[0]?.left ?? 0;

/** What this person has said, the latest first; `before` is where the list before ended. */
export const answers = (before) => json(`${BASE}/answers${before ? `?before=${before}` : ""}`);

/** How far readers agree, and who has how much to do. */
export const agreement = () => json(`${BASE}/agreement`);

export const references = async () => (await json(`${BASE}/references`)).references;

const blob = async (path) => (await call(path)).blob();
export const picture = (task) => blob(`${BASE}/tasks/${part(task)}/image`);
export const disputedPicture = (dispute) => blob(`${BASE}/disputes/${part(dispute)}/image`);
export const referencePicture = (id) => blob(`${BASE}/references/${id.split("/").map(part).join("/")}`);

const write = (method, path, body, deed) =>
  json(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), deed });

export const answer = (task, body, deed) => write("PUT", `${BASE}/tasks/${part(task)}`, body, deed);
export const answerSeveral = (body, deed) => write("PUT", `${BASE}/tasks`, body, deed);
export const adjudicate = (dispute, body, deed) => write("PUT", `${BASE}/disputes/${part(dispute)}`, body, deed);

/** Take back what this person said of a task, or decided on a dispute, whenever that was. */
export const takeBack = (task, deed) => json(`${BASE}/tasks/${part(task)}`, { method: "DELETE", deed });
export const takeDecisionBack = (dispute, deed) => json(`${BASE}/disputes/${part(dispute)}`, { method: "DELETE", deed });

/** Take back the last answer of this person that stands; resolves to its `task`, or to its `dispute`. */
export const undo = (deed) => json(`${BASE}/undo`, { method: "POST", deed });
