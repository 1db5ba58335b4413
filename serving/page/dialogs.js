/** The dialogs; each resolves when it is closed. The browser's <dialog> keeps the focus inside and closes on Escape. */

const byId = (id) => document.getElementById(id);
const NAME = "wbc-person";

async function shown(dialog) {
  dialog.returnValue = "cancel";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue === "yes";
}

/** The list of keys. */
export const help = () => (byId("help-dialog").open ? undefined : shown(byId("help-dialog")));

let asking = null;

/** Ask for the API key: what was typed, or null. Calls that fail together ask once. */
export function key(refused) {
  asking ??= (async () => {
    const input = byId("key-input");
    byId("key-refused").hidden = !refused;
    input.value = "";
    const given = (await shown(byId("key-dialog"))) ? input.value.trim() : "";
    input.value = "";
    asking = null;
    return given || null;
  })();
  return asking;
}

let owner = null; // whose key it is; null where it is a system's, and the person at the page gives a name

/** The key is this person's (null: nobody's), who is asked for no name then. */
export function setOwner(name) {
  owner = name;
  for (const input of document.querySelectorAll("input.who")) {
    input.disabled = owned();
    input.closest("label").hidden = owned();
  }
}

/** Whether the key says who is at the page. */
export const owned = () => owner !== null;

/** The name of the person at the page; empty until it was given. */
export const person = () => owner ?? sessionStorage.getItem(NAME) ?? "";

export function setPerson(name) {
  if (owned()) return;
  sessionStorage.setItem(NAME, name.trim());
  byId("person").value = name.trim();
}

/** Ask a question; with `name` also who answers it. True, and the name is known, where the answer was yes. */
export async function ask(heading, text, yes, { name = false } = {}) {
  const input = byId("ask-person");
  byId("ask-heading").textContent = heading;
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = yes;
  byId("ask-text").hidden = text === "";
  byId("ask-name").hidden = !name || owned();
  input.required = name && !owned();
  input.value = person();
  if (!(await shown(byId("ask-dialog")))) return false;
  if (name) setPerson(input.value);
  return !name || person() !== "";
}

/** Ask for a line to be said, with `of` also to whom; the `question` that it answers stands above it. Resolves to `of` and `text`, or
 * null. */
export async function tell({ heading, question = "", line, yes, of = false, needed = false }) {
  for (const [id, text] of Object.entries({ heading, question, what: line, yes })) byId(`say-${id}`).textContent = text;
  byId("say-question").hidden = question === "";
  byId("say-of").hidden = !of;
  byId("say-asked").required = of;
  byId("say-asked").disabled = !of;
  byId("say-text").required = needed;
  byId("say-asked").value = byId("say-text").value = "";
  byId("say-person").value = person();
  if (!(await shown(byId("say-dialog")))) return null;
  setPerson(byId("say-person").value);
  return { of: byId("say-asked").value.trim(), text: byId("say-text").value.trim() };
}

/** Ask for what is right instead of what is `known` of the specimen; `state` says how many images have come. Resolves to the fields
 * that were changed, with the reason, or null. */
export async function amend(known, state, signed) {
  const inputs = { specimen_id: byId("amend-specimen"), wbc_count: byId("amend-count"), expected_images: byId("amend-images") };
  for (const [name, input] of Object.entries(inputs)) input.value = known[name] ?? "";
  byId("amend-images").closest("label").hidden = state.complete;
  byId("amend-images").disabled = state.complete;
  byId("amend-images").min = String(state.sent_images);
  byId("amend-signed").hidden = !signed;
  byId("amend-reason").value = "";
  byId("amend-person").value = person();
  if (!(await shown(byId("amend-dialog")))) return null;
  setPerson(byId("amend-person").value);
  const fields = {};
  for (const name of Object.keys(known)) {
    const text = inputs[name].value.trim().replace(",", ".");
    const given = text === "" ? null : name === "specimen_id" ? inputs[name].value.trim() : Number(text);
    if (given !== known[name]) fields[name] = given;
  }
  return Object.keys(fields).length ? { reason: byId("amend-reason").value.trim(), ...fields } : null;
}

/** Ask why the report is withdrawn; null where it is not. */
export async function withdraw(signed) {
  byId("withdraw-signed").hidden = !signed;
  byId("withdraw-reason").value = "";
  byId("withdraw-person").value = person();
  if (!(await shown(byId("withdraw-dialog")))) return null;
  setPerson(byId("withdraw-person").value);
  return byId("withdraw-reason").value.trim();
}
