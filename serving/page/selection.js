/** Which of several tiles are selected: by click, by Shift to the tile clicked before, by a rectangle drawn over them.
 *
 * It marks them with `aria-selected` or what `mark` does, and holds no opinion of what a selection is for.
 */

const FAR = 5; // px that the mouse must move before it draws

export class Selection {
  /** `tiles()` gives the tiles of `root` in the order they are read; `changed()` is called when the selection is another one;
   * `mark(tile, is)` shows it. With `plain` a click alone selects; without, only one with Ctrl, Command or Shift. `draws(event)`
   * tells whether a rectangle may begin here. */
  constructor(root, { tiles, changed, mark, plain = true, draws = () => true }) {
    Object.assign(this, { root, tiles, changed, mark, plain, draws });
    this.selected = new Set();
    this.anchor = null; // the tile clicked last
    this.start = null; // where the mouse went down
    this.box = null; // the rectangle that is drawn
    root.addEventListener("pointerdown", (event) => this.#down(event));
    root.addEventListener("pointermove", (event) => this.#move(event));
    root.addEventListener("pointerup", (event) => this.#up(event));
    root.addEventListener("pointercancel", () => this.#end());
    root.addEventListener("click", (event) => this.#click(event));
  }

  get size() {
    return this.selected.size;
  }

  has(tile) {
    return this.selected.has(tile);
  }

  /** Select exactly these. */
  set(tiles) {
    const wanted = new Set(tiles);
    for (const tile of [...this.selected]) if (!wanted.has(tile)) this.#one(tile, false);
    for (const tile of wanted) this.#one(tile, true);
    this.changed();
  }

  clear() {
    this.anchor = null;
    this.set([]);
  }

  /** Select this tile, or no longer. */
  toggle(tile) {
    this.anchor = tile;
    this.#one(tile, !this.selected.has(tile));
    this.changed();
  }

  /** Give all tiles from the one clicked last to this one the state of the former. */
  extend(tile) {
    const order = this.tiles();
    const [from, to] = [order.indexOf(this.anchor), order.indexOf(tile)].sort((a, b) => a - b);
    if (from < 0) {
      this.toggle(tile);
      return;
    }
    const is = this.selected.has(this.anchor);
    for (const one of order.slice(from, to + 1)) this.#one(one, is);
    this.changed();
  }

  #one(tile, is) {
    if (is === this.selected.has(tile)) return;
    if (is) this.selected.add(tile);
    else this.selected.delete(tile);
    this.mark(tile, is);
  }

  #tileAt(event) {
    return this.tiles().find((tile) => tile.contains(event.target));
  }

  #click(event) {
    if (this.drew) {
      this.drew = false; // the click that ends a rectangle
      event.stopPropagation();
      return;
    }
    const tile = this.#tileAt(event);
    if (!tile) return;
    if (event.shiftKey) this.extend(tile);
    else if (this.plain || event.ctrlKey || event.metaKey) this.toggle(tile);
  }

  // ---------------------------------------------------------------- rectangle

  #down(event) {
    this.drew = false;
    if (event.button !== 0 || event.pointerType === "touch" || !this.draws(event)) return;
    if (event.shiftKey) event.preventDefault(); // it would select text
    this.start = { x: event.clientX, y: event.clientY, before: new Set(this.selected) };
  }

  #move(event) {
    if (!this.start) return;
    const { x, y } = this.start;
    if (!this.box && Math.hypot(event.clientX - x, event.clientY - y) < FAR) return;
    if (!this.box) {
      this.box = document.createElement("div");
      this.box.className = "rectangle";
      document.body.append(this.box);
      this.root.setPointerCapture(event.pointerId);
    }
    const area = {
      left: Math.min(x, event.clientX),
      top: Math.min(y, event.clientY),
      right: Math.max(x, event.clientX),
      bottom: Math.max(y, event.clientY),
    };
    Object.assign(this.box.style, {
      left: `${area.left}px`,
      top: `${area.top}px`,
      width: `${area.right - area.left}px`,
      height: `${area.bottom - area.top}px`,
    });
    this.set([...this.start.before, ...this.tiles().filter((tile) => touches(tile.getBoundingClientRect(), area))]);
  }

  #up() {
    this.drew = this.box !== null;
    this.#end();
  }

  #end() {
    this.box?.remove();
    this.box = this.start = null;
  }
}

const touches = (tile, area) =>
  tile.width > 0 && tile.left < area.right && tile.right > area.left && tile.top < area.bottom && tile.bottom > area.top;
