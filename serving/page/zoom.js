/** A picture that can be looked at closer: zoom by wheel, key or two fingers, moved by dragging; brightness, contrast, and a scale
 * bar where the size of a pixel is known.
 *
 * It acts on a frame, an element with the class `zoomable` that holds one picture or several on top of each other. What is set
 * stays from picture to picture, but for the place.
 */

import { number, t } from "./language.js";

const CLOSE = 2.5; // what `toggle` goes to
const MOST = 8;
const BAR = 0.3; // of the frame's width that the scale bar takes at most
const LENGTHS = [0.5, 1, 2, 5, 10, 20, 50, 100, 200]; // µm

const SUN = "M8 1v2M8 13v2M1 8h2M13 8h2M3 3l1 1M12 12l1 1M3 13l1-1M12 4l1-1M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6";
const HALF = "M8 2a6 6 0 1 0 0 12ZM8 2a6 6 0 0 1 0 12";

export class Zoom {
  /** `controls` is an empty element for the buttons and sliders. */
  constructor(frame, controls) {
    Object.assign(this, { frame, controls, pixelUm: null, image: null, scale: 1, x: 0, y: 0, pointer: null });
    this.fingers = new Map();
    this.#makeBar();
    this.#makeControls();
    frame.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    frame.addEventListener("dblclick", () => this.toggle());
    frame.addEventListener("pointerdown", (event) => this.#down(event));
    frame.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) frame.addEventListener(end, (event) => this.#up(event));
    new ResizeObserver(() => this.#place()).observe(frame);
  }

  /** Another picture is in the frame. */
  changed(image) {
    this.image = image;
    this.#middle();
    this.#place();
  }

  /** Close to the place under the pointer, or to the middle; or back to all of it. */
  toggle() {
    this.scale > 1 ? this.reset() : this.by(CLOSE, this.pointer ?? undefined);
  }

  reset() {
    Object.assign(this, { scale: 1, x: 0, y: 0 });
    this.#place();
  }

  /** Come closer by a factor; what is `at` this point of the frame stays there. */
  by(factor, at = this.#centre()) {
    const scale = Math.min(MOST, Math.max(1, this.scale * factor));
    const ratio = scale / this.scale;
    this.x = at.x - (at.x - this.x) * ratio;
    this.y = at.y - (at.y - this.y) * ratio;
    this.scale = scale;
    this.#place();
  }

  #centre() {
    return { x: this.frame.clientWidth / 2, y: this.frame.clientHeight / 2 };
  }

  #middle() {
    const { x, y } = this.#centre();
    Object.assign(this, { x: x * (1 - this.scale), y: y * (1 - this.scale) });
  }

  /** Put the picture where it belongs: it covers the frame. */
  #place() {
    const { frame, scale } = this;
    this.x = Math.min(0, Math.max(frame.clientWidth * (1 - scale), this.x));
    this.y = Math.min(0, Math.max(frame.clientHeight * (1 - scale), this.y));
    frame.style.setProperty("--zoom", scale.toFixed(3));
    frame.style.setProperty("--x", `${this.x.toFixed(1)}px`);
    frame.style.setProperty("--y", `${this.y.toFixed(1)}px`);
    frame.classList.toggle("closer", scale > 1);
    this.button.setAttribute("aria-pressed", String(scale > 1));
    this.#measure();
  }

  // ---------------------------------------------------------------- scale bar

  #makeBar() {
    this.bar = document.createElement("span");
    this.bar.className = "scale-bar";
    this.bar.hidden = true;
    this.frame.append(this.bar);
  }

  #measure() {
    const { frame, image, pixelUm } = this;
    this.bar.hidden = !pixelUm || !image?.naturalWidth;
    if (this.bar.hidden) return;
    const fit = Math.min(frame.clientWidth / image.naturalWidth, frame.clientHeight / image.naturalHeight);
    const perUm = (fit * this.scale) / pixelUm; // pixels of the screen
    const length = LENGTHS.findLast((one) => one * perUm <= BAR * frame.clientWidth) ?? LENGTHS[0];
    this.bar.style.width = `${(length * perUm).toFixed(1)}px`;
    this.bar.textContent = `${number(length)} µm`;
  }

  // ---------------------------------------------------------------- controls

  #makeControls() {
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.setAttribute("aria-keyshortcuts", "z");
    const key = document.createElement("kbd");
    key.textContent = "z";
    this.button.append(t("label.zoom"), " ", key);
    this.button.addEventListener("click", () => {
      this.pointer = null;
      this.toggle();
    });
    const brightness = this.#slider("brightness", t("label.brightness"), SUN);
    const contrast = this.#slider("contrast", t("label.contrast"), HALF);
    this.controls.append(this.button, brightness, contrast);
  }

  #slider(property, name, path) {
    const label = document.createElement("label");
    label.className = "slider";
    label.title = name;
    const SVG = "http://www.w3.org/2000/svg";
    const icon = document.createElementNS(SVG, "svg");
    icon.setAttribute("viewBox", "0 0 16 16");
    icon.setAttribute("aria-hidden", "true");
    const drawing = document.createElementNS(SVG, "path");
    drawing.setAttribute("d", path);
    icon.append(drawing);
    const input = document.createElement("input");
    Object.assign(input, { type: "range", min: "40", max: "200", step: "5", value: "100" });
    input.setAttribute("aria-label", name);
    const apply = () => this.frame.style.setProperty(`--${property}`, `${input.value}%`);
    input.addEventListener("input", apply);
    label.addEventListener("dblclick", () => {
      input.value = "100";
      apply();
    });
    label.append(icon, input);
    return label;
  }

  // ---------------------------------------------------------------- wheel, mouse, fingers

  #at(event) {
    const box = this.frame.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  #wheel(event) {
    event.preventDefault();
    const step = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1);
    this.by(Math.exp(-Math.max(-120, Math.min(120, step)) / 300), this.#at(event));
  }

  #down(event) {
    if (event.button !== 0) return;
    this.frame.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, this.#at(event));
  }

  #move(event) {
    const to = this.#at(event);
    this.pointer = to;
    const from = this.fingers.get(event.pointerId);
    if (!from) return;
    const other = [...this.fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
      this.by(apart(to) / apart(from), other);
    } else {
      this.x += to.x - from.x;
      this.y += to.y - from.y;
      this.#place();
    }
    this.fingers.set(event.pointerId, to);
  }

  #up(event) {
    this.fingers.delete(event.pointerId);
    if (event.type === "pointerleave") this.pointer = null;
  }
}
