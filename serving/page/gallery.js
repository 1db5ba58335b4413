/** The cells in lanes: first those to review, then one lane a class, then what is not counted and what could not be used.
 *
 * To the keyboard it is one list: a single tile can be reached by Tab, the arrow keys go on from there.
 */

import { percent, reasons, rejected, short } from "./words.js";

export const REVIEW = "review";
export const UNCOUNTED = "uncounted";
export const UNUSABLE = "unusable";

/** The lane a cell belongs to. */
export function laneOf(cell) {
  if (cell.result.status !== "ok") return UNUSABLE;
  if (cell.label === null) return UNCOUNTED;
  return cell.result.review.required && !cell.seen ? REVIEW : cell.label;
}

/** The probability that the model gave its own answer. */
export const confidence = (cell) => (cell.result.status === "ok" ? cell.result.probabilities[cell.result.label] : 0);

export class Gallery {
  /** `onFocus(cell)` when another cell is looked at, `onDrop(cell, lane)` when one was dragged to a lane. */
  constructor(root, nav, onFocus, onDrop) {
    this.root = root;
    this.nav = nav;
    this.onFocus = onFocus;
    this.onDrop = onDrop;
    this.lanes = new Map();
    this.cellOf = new WeakMap(); // from a tile to its cell
    this.current = null;
    this.dragged = null;
    this.columns = 0;
    new ResizeObserver(() => (this.columns = 0)).observe(root);
    root.addEventListener("focusin", (event) => this.#focused(event.target.closest(".tile")));
    root.addEventListener("dragstart", (event) => this.#dragStarted(event));
    root.addEventListener("dragend", () => this.#dragEnded());
  }

  /** Empty lanes for these classes. */
  reset(classes) {
    this.classes = classes;
    this.current = null;
    this.lanes.clear();
    this.root.replaceChildren();
    this.nav.replaceChildren();
    this.#lane(REVIEW, "To review", "r");
    classes.forEach((name, index) => this.#lane(name, name, String(index + 1)));
    this.#lane(UNCOUNTED, "Not counted", "0");
    this.#lane(UNUSABLE, "Not usable", "");
    this.#recount();
  }

  #lane(id, title, key) {
    const section = document.getElementById("lane").content.firstElementChild.cloneNode(true);
    section.id = `lane-${id}`;
    section.setAttribute("aria-label", title);
    section.querySelector("kbd").textContent = key;
    section.querySelector("kbd").hidden = !key;
    section.querySelector(".name").textContent = title;
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "lane-chip";
    chip.textContent = title;
    const total = document.createElement("b");
    chip.append(" ", total);
    const [tiles, count] = [section.querySelector(".tiles"), section.querySelector(".count")];
    const lane = { id, section, chip, tiles, total, count, cells: [] };
    chip.addEventListener("click", () => this.#jump(lane));
    if (id !== REVIEW && id !== UNUSABLE) for (const target of [section, chip]) this.#dropTarget(target, lane);
    this.lanes.set(id, lane);
    this.nav.append(chip);
    this.root.append(section);
  }

  /** Put new cells in; each gets its tile. */
  add(cells) {
    for (const cell of cells) {
      cell.tile = this.#tile(cell);
      cell.lane = laneOf(cell);
      this.lanes.get(cell.lane).cells.push(cell);
    }
    for (const lane of this.lanes.values()) {
      lane.cells.sort((a, b) => this.#compare(a, b));
      let next = lane.tiles.firstElementChild;
      for (const { tile } of lane.cells) {
        if (tile === next) next = next.nextElementSibling;
        else lane.tiles.insertBefore(tile, next);
      }
    }
    if (!this.current) this.#rove(this.order()[0]);
    this.#recount();
  }

  /** Move a cell to where it belongs after a change. */
  place(cell) {
    const old = this.lanes.get(cell.lane).cells;
    old.splice(old.indexOf(cell), 1);
    cell.lane = laneOf(cell);
    const lane = this.lanes.get(cell.lane);
    const found = lane.cells.findIndex((other) => this.#compare(cell, other) < 0);
    const at = found < 0 ? lane.cells.length : found;
    lane.tiles.insertBefore(cell.tile, lane.cells[at]?.tile ?? null);
    lane.cells.splice(at, 0, cell);
    this.#describe(cell);
    this.#recount();
  }

  /** All cells as they are read, lane after lane. */
  order() {
    return [...this.lanes.values()].flatMap((lane) => lane.cells);
  }

  /** Look at a cell. */
  focus(cell) {
    cell?.tile.focus({ preventScroll: true });
    cell?.tile.scrollIntoView({ block: "nearest" });
  }

  /** Where an action on `cell` leads: the next of its lane, else the one before, else the first of all. Ask before it moves. */
  after(cell) {
    const { cells } = this.lanes.get(cell.lane);
    const at = cells.indexOf(cell);
    return cells[at + 1] ?? cells[at - 1] ?? this.order().find((other) => other !== cell) ?? cell;
  }

  /** Move by an arrow key, Home or End. */
  move(key) {
    const order = this.order();
    const at = Math.max(0, order.indexOf(this.current));
    let to;
    if (key === "ArrowRight") to = order[at + 1];
    else if (key === "ArrowLeft") to = order[at - 1];
    else if (key === "Home") to = order[0];
    else if (key === "End") to = order.at(-1);
    else if (key === "ArrowDown") to = this.#vertically(1);
    else if (key === "ArrowUp") to = this.#vertically(-1);
    this.focus(to ?? this.current);
  }

  #vertically(step) {
    const lanes = [...this.lanes.values()].filter((lane) => lane.cells.length);
    const here = lanes.findIndex((lane) => lane.id === this.current?.lane);
    if (here < 0) return undefined;
    const columns = this.#columnCount();
    const { cells } = lanes[here];
    const at = cells.indexOf(this.current);
    const column = at % columns;
    const last = (count) => Math.floor((count - 1) / columns);
    const row = Math.floor(at / columns) + step;
    if (row >= 0 && row <= last(cells.length)) return cells[Math.min(row * columns + column, cells.length - 1)];
    const beyond = lanes[here + step]?.cells;
    if (!beyond) return undefined;
    return beyond[Math.min((step > 0 ? 0 : last(beyond.length)) * columns + column, beyond.length - 1)];
  }

  #columnCount() {
    const lane = this.lanes.get(this.current.lane);
    this.columns ||= getComputedStyle(lane.tiles).gridTemplateColumns.split(" ").length;
    return this.columns;
  }

  #compare(a, b) {
    return (
      this.classes.indexOf(a.label) - this.classes.indexOf(b.label) || // in the review lane: sorted by class
      Number(a.seen) - Number(b.seen) ||
      confidence(a) - confidence(b) ||
      a.index - b.index
    );
  }

  #tile(cell) {
    const tile = document.getElementById("tile").content.firstElementChild.cloneNode(true);
    tile.id = `cell-${cell.index}`;
    cell.tile = tile;
    this.cellOf.set(tile, cell);
    this.picture(cell);
    this.#describe(cell);
    return tile;
  }

  /** Show the cell's file on its tile. */
  picture({ tile, ...cell }) {
    showPicture(tile.querySelector(".picture"), tile.querySelector("img"), cell);
  }

  #describe(cell) {
    const { tile, result } = cell;
    const lane = laneOf(cell);
    const caption = tile.querySelector(".caption");
    tile.classList.toggle("to-review", lane === REVIEW);
    tile.classList.toggle("seen", cell.seen);
    tile.draggable = lane !== UNUSABLE;
    const number = `Cell ${cell.index + 1}`;
    if (lane === UNUSABLE) {
      caption.textContent = `no. ${cell.index + 1}`;
      tile.setAttribute("aria-label", `${number}, not usable: ${rejected(result)}`);
      return;
    }
    const corrected = cell.label !== result.label;
    const sure = percent(confidence(cell));
    caption.textContent = corrected ? `was ${short(result.label)}` : lane === REVIEW ? `${short(result.label)} ${sure}` : sure;
    if (cell.seen && !corrected) caption.textContent += " ✓";
    const state = corrected ? `corrected, the model said ${result.label}` : `${sure}${cell.seen ? ", accepted" : ""}`;
    const why = lane === REVIEW ? `. To review: ${reasons(result).join(" ")}` : "";
    tile.setAttribute("aria-label", `${number}, ${cell.label ?? "not counted"}, ${state}${why}`);
  }

  /** Show how many cells a lane holds; a class also counts its cells that wait in the review lane. */
  #recount() {
    const waiting = new Map(this.classes.map((name) => [name, 0]));
    for (const { label } of this.lanes.get(REVIEW).cells) waiting.set(label, waiting.get(label) + 1);
    for (const { id, section, chip, total, count, cells } of this.lanes.values()) {
      const more = waiting.get(id) ?? 0;
      total.textContent = String(cells.length + more);
      count.textContent = more ? `${cells.length}, ${more} more to review` : String(cells.length);
      const away = !cells.length && (id === REVIEW || id === UNCOUNTED || id === UNUSABLE);
      section.classList.toggle("away", away);
      section.classList.toggle("empty", !cells.length);
      chip.classList.toggle("away", away && id !== UNCOUNTED);
    }
  }

  #focused(tile) {
    const cell = tile && this.cellOf.get(tile);
    if (!cell) return;
    this.#rove(cell);
    this.onFocus(cell);
  }

  #rove(cell) {
    if (!cell) return;
    for (const [one, is] of [
      [this.current, false],
      [cell, true],
    ]) {
      if (!one) continue;
      one.tile.tabIndex = is ? 0 : -1;
      one.tile.setAttribute("aria-selected", String(is));
    }
    this.current = cell;
  }

  #jump(lane) {
    lane.cells[0]?.tile.focus({ preventScroll: true });
    this.root.scrollTop = lane.section.offsetTop;
  }

  #dragStarted(event) {
    this.dragged = this.cellOf.get(event.target.closest(".tile"));
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", `cell ${this.dragged.index + 1}`);
    document.body.classList.add("dragging");
  }

  #dragEnded() {
    this.dragged = null;
    document.body.classList.remove("dragging");
  }

  #dropTarget(element, lane) {
    element.addEventListener("dragover", (event) => {
      if (!this.dragged) return;
      event.preventDefault();
      element.classList.add("target");
    });
    element.addEventListener("dragleave", (event) => {
      if (!element.contains(event.relatedTarget)) element.classList.remove("target");
    });
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      element.classList.remove("target");
      if (this.dragged) this.onDrop(this.dragged, lane.id);
    });
  }
}

/** Show the cell's own file in `image`; where there is none, or the browser cannot show it (TIFF), its kind in words. */
export function showPicture(frame, image, cell) {
  const standIn = frame.querySelector(".stand-in");
  const missing = () => {
    frame.classList.add("no-picture");
    standIn.textContent = cell.file ? /[^.]*$/.exec(cell.file.name)[0].toUpperCase().slice(0, 5) : "no image";
  };
  frame.classList.remove("no-picture");
  standIn.textContent = "";
  image.onerror = missing;
  if (cell.url) image.src = cell.url;
  else {
    image.removeAttribute("src");
    missing();
  }
}
