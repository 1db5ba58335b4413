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

/** The name of the person at the page; empty until it was given. */
export const person = () => sessionStorage.getItem(NAME) ?? "";

export function setPerson(name) {
  sessionStorage.setItem(NAME, name.trim());
  byId("person").value = name.trim();
}

/** Ask a question; with `name` also who answers it. True, and the name is known, where the answer was yes. */
export async function ask(heading, text, yes, { name = false } = {}) {
  const input = byId("ask-person");
  byId("ask-heading").textContent = heading;
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = yes;
  byId("ask-name").hidden = !name;
  input.required = name;
  input.value = person();
  if (!(await shown(byId("ask-dialog")))) return false;
  if (name) setPerson(input.value);
  return !name || person() !== "";
}
