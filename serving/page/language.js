/** The words of the pages: one file for each language, and numbers, dates and lists as that language writes them.
 *
 * The language is that of the address (`?lang=de`), else the one that was chosen on this computer, else the browser's first that
 * there is, else English. A key names a word in words/en.json by its path, such as "report.sign".
 */

const LANGUAGES = { en: "English", de: "Deutsch" };
const KEPT = "wbc-language";

export const language = wanted().find((name) => Object.hasOwn(LANGUAGES, name)) ?? "en";
const region = navigator.languages.find((name) => primary(name) === language) ?? language;
const words = await (await fetch(new URL(`words/${language}.json`, import.meta.url), { cache: "no-cache" })).json();
const plural = new Intl.PluralRules(region);

function wanted() {
  return [new URLSearchParams(location.search).get("lang") ?? "", chosen(), ...navigator.languages].map(primary);
}

function primary(name) {
  return name.split("-")[0].toLowerCase();
}

function chosen() {
  try {
    return localStorage.getItem(KEPT) ?? "";
  } catch {
    return ""; // the browser keeps nothing for pages
  }
}

/** Show the page in another language, now and whenever it is opened on this computer. */
function choose(name) {
  const address = new URL(location);
  address.searchParams.delete("lang"); // it would go before what was chosen
  try {
    localStorage.setItem(KEPT, name);
  } catch {
    address.searchParams.set("lang", name);
  }
  history.replaceState(history.state, "", address);
  location.reload();
}

/** Make `button` the way to the other language. */
export function offer(button) {
  const [other, name] = Object.entries(LANGUAGES).find(([one]) => one !== language);
  Object.assign(button, { hidden: false, lang: other, textContent: name });
  button.addEventListener("click", () => choose(other));
}

/** The words of a key. `{name}` in them is replaced by `values.name`, a number as the language writes it. Where there is a word for
 * one and one for several, `values.count` chooses. */
export function t(key, values = {}) {
  const found = key.split(".").reduce((group, name) => group?.[name], words);
  const text = typeof found === "object" ? (found[plural.select(values.count)] ?? found.other) : found;
  if (typeof text !== "string") return key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? shown(values[name]) : whole));
}

const shown = (value) => (typeof value === "number" ? number(value) : String(value));

/** A class, or one of the site's further kinds: in words where there are any, else by the site's own name. */
export const kind = (name) => words.kinds[name] ?? name;

/** The same for several cells, as a row of a table is called. */
export const kinds = (name) => words.several[name] ?? kind(name);

/** A number, with the `options` of Intl.NumberFormat. */
export const number = (value, options) => formatter(options).format(value);

const formatters = new Map();

function formatter(options) {
  const key = JSON.stringify(options);
  if (!formatters.has(key)) formatters.set(key, new Intl.NumberFormat(region, options));
  return formatters.get(key);
}

/** A share of 1 in whole percent. */
export const percent = (share) => number(share, { style: "percent" });

/** A share that was measured, in whole percent, or with as many decimals as it takes not to look like a mark that it is not: 199 of
 * 200 are not all, and what is under a limit is not written as the limit. */
export function share(value, marks = [0, 1]) {
  const shown = (one, digits) => number(one, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits });
  const others = marks.filter((mark) => mark !== value);
  const tells = (digits) => others.every((mark) => shown(mark, digits) !== shown(value, digits));
  return shown(value, [0, 1, 2, 3].find(tells) ?? 4);
}

/** Day and time of a moment. */
export const moment = (iso) => new Date(iso).toLocaleString(region, { dateStyle: "medium", timeStyle: "short" });

/** The day of a moment, here. */
export const day = (iso) => new Date(iso).toLocaleDateString(region, { dateStyle: "medium" });

/** A day of UTC, such as "2026-11-29". As a moment it would be the day before, west of Greenwich. */
export const dayOfUtc = (iso) => new Date(iso).toLocaleDateString(region, { dateStyle: "medium", timeZone: "UTC" });

/** "a, b or c". */
export const listed = (names) => new Intl.ListFormat(region, { type: "disjunction" }).format(names);

/** Fill the elements below `root` that name a word: `data-t` their text, `data-t-ATTRIBUTE` an attribute. */
export function translate(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("*")) {
    for (const { name, value } of [...element.attributes]) {
      if (name === "data-t") element.textContent = t(value);
      else if (name.startsWith("data-t-")) element.setAttribute(name.slice("data-t-".length), t(value));
    }
    if (element instanceof HTMLTemplateElement) translate(element.content);
  }
}
