/** The answers a reader can give, as buttons with their keys: the classes with their reference cells, the site's further kinds, and
 * the two that name none.
 */

import { kind, t } from "./language.js";
import { queue } from "./queue.js";
import { references, row } from "./references.js";

const UNSURE = "unsure";

/** Fill `root`; `give(answer)` is called with what is pressed, `kinds` are the answers. */
export function makeKinds(root, give, kinds = queue.kinds) {
  const groups = { classes: [], further: [], none: [] };
  for (const one of kinds) groups[groupOf(one)].push(button(one, give));
  root.replaceChildren(
    ...Object.entries(groups)
      .filter(([, buttons]) => buttons.length)
      .map(([name, buttons]) => {
        const group = document.createElement("div");
        group.className = name;
        group.setAttribute("role", "group");
        group.setAttribute("aria-label", t(`label.group.${name}`));
        group.append(...buttons);
        return group;
      }),
  );
}

function groupOf({ key }) {
  if ("12345".includes(key)) return "classes";
  return "0?".includes(key) ? "none" : "further";
}

function button({ answer, key }, give) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "kind";
  made.dataset.answer = answer;
  made.setAttribute("aria-keyshortcuts", key);
  const keyShown = document.createElement("kbd");
  keyShown.textContent = key;
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = kind(answer);
  made.append(keyShown, name);
  if (answer === UNSURE) made.title = t("label.help.unsure");
  made.addEventListener("click", () => give(answer));
  return made;
}

/** Put the reference cells beside their answers, when they are here. */
export async function showReferences(root) {
  const all = await references();
  for (const made of root.querySelectorAll(".kind")) {
    made.querySelector(".references")?.remove();
    const { answer } = made.dataset;
    if (all.has(answer)) made.append(row(all.get(answer)));
  }
  root.classList.toggle("with-references", all.size > 0);
}

/** Light the button of an answer up for a moment: a key has given it. */
export function flash(root, answer) {
  for (const made of root.querySelectorAll(".kind.given")) made.classList.remove("given");
  const made = root.querySelector(`.kind[data-answer="${CSS.escape(answer)}"]`);
  requestAnimationFrame(() => made?.classList.add("given")); // after a frame without it, so that it begins anew
}
