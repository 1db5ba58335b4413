/** The cells in lanes: first those to review, then one lane a class, then what is not counted and what could not be used.
 *
 * To the keyboard it is one list: a single tile can be reached by Tab, the arrow keys go on from there.
 *
 * Every cell has its tile in the document. Only those in view and half a screen around it are laid out (the others have the class
 * `off`): what a decision costs does not grow with the number of cells. Rows have one height, so that all places are computed
 * here and the browser is not asked for them.
 */

import { kinds, t } from "./language.js";
import { Selection } from "./selection.js";
import { BESIDE, confidence, describe, laneOf, REVIEW, showPicture, tileOf, UNCOUNTED, UNUSABLE } from "./tiles.js";

// These are in page.css, too.
const HEAD = 38; // height of a lane's heading, and what is free below it
const GAP = 8; // between tiles
const SIDES = 28; // free at both sides of the lanes
const AROUND = 0.5; // screens laid out before and after the one in view
const CAPTION = 20; // a tile is so much higher than wide

/** Whether the picture of a cell is drawn on its tile. */
const drawn = ({ url, image }) => Boolean(url) && image.complete && image.naturalWidth > 0;

/** Whether a person can have seen the cell on its tile: its picture is or was on the screen. */
export const glimpsed = (cell) => (cell.glimpsed ||= cell.onScreen === true && drawn(cell));

export class Gallery {
  /** `onFocus(cell)` when another cell is looked at, `onDrop(cell, lane)` when one was dragged to a lane, `onShow(cell)` when a
   * tile comes into view for which there is no picture yet, `onFailed(cell, url)` when a picture cannot be shown,
   * `onSelect(count)` when another number of cells is selected. */
  constructor(root, nav, { onFocus, onDrop, onShow, onFailed, onSelect }) {
    Object.assign(this, { root, nav, onFocus, onDrop, onShow, onFailed });
    this.lanes = new Map();
    this.cellOf = new WeakMap(); // from a tile to its cell
    this.current = null;
    this.dragged = null;
    Object.assign(this, { columns: 1, row: 1, height: 0, top: 0 }); // in pixels; `top` is how far it is scrolled
    new ResizeObserver(() => this.#measure()).observe(root);
    root.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    root.addEventListener("focusin", (event) => this.#focused(event.target.closest(".tile")));
    root.addEventListener("dragstart", (event) => this.#dragStarted(event));
    root.addEventListener("dragend", () => this.#dragEnded());
    root.addEventListener("click", (event) => this.#clicked(event), true); // before the selection hears of it
    this.selection = new Selection(root, {
      tiles: () => this.order().map(({ tile }) => tile),
      changed: () => onSelect(this.selection.size),
      mark: (tile, is) => this.#mark(tile, is),
      plain: false,
      draws: (event) => !event.target.closest(".tile") && event.offsetX < root.clientWidth,
    });
    this.inView = new IntersectionObserver((entries) => this.#came(entries), { root, threshold: 0.6 });
  }

  /** Empty lanes for these classes. */
  reset(classes) {
    this.classes = classes;
    this.waiting = new Map(); // how many cells of a class are in the review lane
    this.current = null;
    this.plain = null; // the tile that was clicked last without a key
    this.inView.disconnect();
    this.selection.clear();
    this.lanes.clear();
    this.root.replaceChildren();
    this.nav.replaceChildren();
    this.#lane(REVIEW, t("report.lane.review"), "r");
    classes.forEach((name, index) => this.#lane(name, kinds(name), String(index + 1)));
    this.#lane(BESIDE, t("report.lane.beside"), "");
    this.#lane(UNCOUNTED, t("report.lane.uncounted"), "0");
    this.#lane(UNUSABLE, t("report.lane.unusable"), "");
    this.#arrange();
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
    const lane = { id, section, chip, tiles, total, count, cells: [], shown: new Set(), top: 0, written: null };
    chip.addEventListener("click", () => this.#jump(lane));
    if (id !== REVIEW && id !== UNUSABLE && id !== BESIDE) for (const target of [section, chip]) this.#dropTarget(target, lane);
    this.lanes.set(id, lane);
    this.nav.append(chip);
    this.root.append(section);
  }

  /** Put new cells in; each gets its tile. */
  add(cells) {
    for (const cell of cells) {
      this.cellOf.set(tileOf(cell), cell);
      cell.tile.classList.add("off");
      this.inView.observe(cell.tile);
      this.#enter(cell, null);
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
    this.#arrange();
  }

  /** Move a cell to where it belongs after a change. */
  place(cell) {
    const old = this.lanes.get(cell.lane);
    old.cells.splice(old.cells.indexOf(cell), 1);
    old.shown.delete(cell);
    if (cell.lane === REVIEW) this.waiting.set(cell.waitsAs, this.waiting.get(cell.waitsAs) - 1);
    const lane = this.lanes.get(laneOf(cell));
    const at = this.#placeIn(lane.cells, cell);
    lane.tiles.insertBefore(cell.tile, lane.cells[at]?.tile ?? null);
    if (!cell.tile.classList.contains("off")) lane.shown.add(cell);
    this.#enter(cell, at);
    describe(cell);
    this.#arrange();
  }

  #enter(cell, at) {
    cell.lane = laneOf(cell);
    const { cells } = this.lanes.get(cell.lane);
    cells.splice(at ?? cells.length, 0, cell);
    if (cell.lane !== REVIEW) return;
    cell.waitsAs = cell.label;
    this.waiting.set(cell.label, (this.waiting.get(cell.label) ?? 0) + 1);
  }

  #placeIn(cells, cell) {
    let [from, to] = [0, cells.length];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.#compare(cells[middle], cell) < 0) from = middle + 1;
      else to = middle;
    }
    return from;
  }

  /** All cells as they are read, lane after lane. */
  order() {
    return [...this.lanes.values()].flatMap((lane) => lane.cells);
  }

  /** Look at a cell. */
  focus(cell) {
    if (!cell) return;
    this.#rove(cell);
    this.#reveal(cell);
    cell.tile.focus({ preventScroll: true });
  }

  /** Where an action on `cell` leads: the next of its lane, else the one before, else the first of all. Ask before it moves. */
  after(cell) {
    const { cells } = this.lanes.get(cell.lane);
    const at = cells.indexOf(cell);
    return cells[at + 1] ?? cells[at - 1] ?? this.order().find((other) => other !== cell) ?? cell;
  }

  /** Move by an arrow key, Home or End; with `extend` all cells on the way are selected. */
  move(key, extend = false) {
    const from = this.current;
    this.#go(key);
    if (!extend || !from) return;
    if (!this.selection.size) this.selection.toggle(from.tile); // where the selection begins
    const order = this.order();
    const ends = [order.indexOf(this.cellOf.get(this.selection.anchor)), order.indexOf(this.current)].sort((a, b) => a - b);
    this.selection.set(order.slice(ends[0], ends[1] + 1).map(({ tile }) => tile));
  }

  #go(key) {
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
    const { columns } = this;
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

  #compare(a, b) {
    return (
      this.classes.indexOf(a.label) - this.classes.indexOf(b.label) || // in the review lane: sorted by class
      Number(a.seen) - Number(b.seen) ||
      confidence(a) - confidence(b) ||
      a.index - b.index
    );
  }

  /** Show the cell's picture on its tile. */
  picture(cell) {
    if (!cell.tile.classList.contains("off")) this.#draw(cell);
  }

  #draw(cell) {
    showPicture(cell.image, cell, this.onFailed);
    if (!cell.url) this.onShow(cell);
  }

  // ---------------------------------------------------------------- places

  #measure() {
    this.height = this.root.clientHeight;
    const width = this.root.clientWidth - SIDES;
    if (width <= 0) return;
    const least = parseFloat(getComputedStyle(this.root).getPropertyValue("--tile"));
    this.columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
    const tile = (width - (this.columns - 1) * GAP) / this.columns;
    this.row = Math.round(tile) + CAPTION + GAP;
    this.root.style.setProperty("--columns", this.columns);
    this.root.style.setProperty("--row", `${this.row - GAP}px`);
    if (this.lanes.size) this.#arrange();
    if (this.current && document.activeElement === this.current.tile) this.#reveal(this.current);
  }

  #scrolled() {
    this.top = this.root.scrollTop;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.#window();
    });
  }

  /** Heights and counts of all lanes, then which tiles are in view; a class also counts its cells that wait in the review lane. */
  #arrange() {
    let top = 0;
    for (const lane of this.lanes.values()) {
      const { id, section, chip, tiles, total, count, cells } = lane;
      const more = id === REVIEW ? 0 : (this.waiting.get(id) ?? 0);
      const rows = Math.ceil(cells.length / this.columns);
      const away = !cells.length && [REVIEW, BESIDE, UNCOUNTED, UNUSABLE].includes(id);
      lane.top = top + (away ? 0 : HEAD);
      top = lane.top + rows * this.row;
      const written = `${cells.length} ${more} ${rows * this.row}`;
      if (written === lane.written) continue; // what stays the same is not written again
      lane.written = written;
      total.textContent = String(cells.length + more);
      count.textContent = more ? t("report.lane.more", { number: cells.length, more }) : String(cells.length);
      tiles.style.height = `${rows * this.row}px`;
      section.classList.toggle("away", away);
      section.classList.toggle("empty", !cells.length);
      chip.classList.toggle("away", away && id !== UNCOUNTED);
    }
    this.#window();
  }

  /** Lay out the tiles in view and around it, and the one that has the focus. */
  #window() {
    const [from, to] = [this.top - AROUND * this.height, this.top + (1 + AROUND) * this.height];
    const keep = [this.current, this.dragged];
    for (const lane of this.lanes.values()) {
      const [first, last] = [from, to].map((y) => Math.max(0, Math.floor((y - lane.top) / this.row)));
      const shown = new Set(to > lane.top ? lane.cells.slice(first * this.columns, (last + 1) * this.columns) : []);
      const apart = new Set(keep.filter((cell) => cell?.lane === lane.id && !shown.has(cell)));
      for (const cell of lane.shown) if (!shown.has(cell) && !apart.has(cell)) cell.tile.classList.add("off");
      for (const cell of [...shown, ...apart]) this.#layOut(cell, apart.has(cell));
      lane.shown = new Set([...shown, ...apart]);
      const before = shown.size ? `${first * this.row}px` : "0";
      if (lane.before !== before) lane.tiles.style.paddingTop = lane.before = before;
    }
  }

  /** A tile that is out of view but must not lose the focus stands `apart`: at its place, outside the grid. */
  #layOut(cell, apart) {
    const { tile } = cell;
    if (apart) {
      const at = this.lanes.get(cell.lane).cells.indexOf(cell);
      tile.style.top = `${Math.floor(at / this.columns) * this.row}px`;
    }
    if (apart !== tile.classList.contains("apart")) tile.classList.toggle("apart", apart);
    if (!tile.classList.contains("off")) return;
    tile.classList.remove("off");
    this.#draw(cell);
  }

  #reveal(cell) {
    const lane = this.lanes.get(cell.lane);
    const at = lane.cells.indexOf(cell);
    const y = lane.top + Math.floor(at / this.columns) * this.row;
    cell.tile.setAttribute("aria-posinset", at + 1);
    cell.tile.setAttribute("aria-setsize", lane.cells.length);
    let { top } = this;
    if (y - HEAD < top) top = y - HEAD;
    else if (y + this.row > top + this.height) top = y + this.row - this.height + GAP;
    if (top !== this.top) {
      this.root.scrollTop = top;
      this.top = this.root.scrollTop;
    }
    this.#window();
  }

  // ---------------------------------------------------------------- focus, mouse

  /** The cells that are selected, in the order they are read; none where it is one only that is looked at. */
  selected() {
    return this.selection.size ? this.order().filter(({ tile }) => this.selection.has(tile)) : [];
  }

  /** Select all cells of the lane that is looked at. */
  selectLane() {
    if (this.current) this.selection.set(this.lanes.get(this.current.lane).cells.map(({ tile }) => tile));
  }

  /** A click alone looks at one cell; with a key it adds to that one. */
  #clicked(event) {
    const tile = event.target.closest(".tile");
    if (this.selection.drew || !tile) return;
    const { selection, plain } = this;
    if (!event.shiftKey && !event.ctrlKey && !event.metaKey) {
      if (selection.size) selection.clear();
      this.plain = tile;
    } else if (!selection.size && plain && plain !== tile) selection.toggle(plain);
  }

  #mark(tile, is) {
    tile.classList.toggle("chosen", is);
    tile.setAttribute("aria-selected", String(is || tile === this.current?.tile));
  }

  /** Tiles whose picture is on the screen: the cells have been seen here, if not large. */
  #came(entries) {
    for (const { target, isIntersecting } of entries) {
      const cell = this.cellOf.get(target);
      cell.onScreen = isIntersecting;
      cell.glimpsed ||= isIntersecting && drawn(cell);
    }
  }

  #focused(tile) {
    const cell = tile && this.cellOf.get(tile);
    if (!cell) return;
    this.#rove(cell);
    this.onFocus(cell);
  }

  #rove(cell) {
    if (!cell || cell === this.current) return;
    for (const [one, is] of [
      [this.current, false],
      [cell, true],
    ]) {
      if (!one) continue;
      one.tile.tabIndex = is ? 0 : -1;
      one.tile.setAttribute("aria-selected", String(is || this.selection.has(one.tile)));
    }
    this.current = cell;
  }

  #jump(lane) {
    this.root.scrollTop = lane.top - HEAD;
    this.top = this.root.scrollTop;
    this.focus(lane.cells[0]);
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
