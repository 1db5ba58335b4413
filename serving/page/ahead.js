/** What is looked at next: tasks with their pictures, loaded and decoded before they are needed.
 *
 * A picture that is decoded is on the screen in the next frame. Of the tasks asked for, the first few have their picture here; the
 * rest are names only.
 */

import * as service from "./service.js";

const PICTURES = 4; // the one that is looked at and the next three
const AT_ONCE = 8; // tasks asked for
const FRESH = 20 * 60 * 1000; // ms: a task that is older may have gone to another reader
const AGAIN = 2000; // ms until a picture that has not come is asked for again
const GONE = 404; // the status of a picture that is kept no more, as of a report that was removed

export class Ahead {
  /** `ask(count)` resolves to the next tasks, each with an `id`; `load(id)` to the picture of one, a Blob; `answered(id)` tells
   * whether it was answered here; `came(task)` is called when a picture has come or failed. A task whose picture is gone is dropped
   * before that: nothing can be said of it. */
  constructor({ ask, load, answered, came }) {
    Object.assign(this, { ask, load, answered, came });
    this.tasks = []; // the first is looked at
    this.asking = null;
    this.dry = false; // the service had fewer than were asked for
    this.asked = 0; // when it was asked
    this.gone = new Set(); // tasks that were dropped
  }

  get current() {
    return this.tasks[0];
  }

  /** Have enough tasks and pictures here. Resolves when the tasks are; pictures come later. */
  async fill(waiting = 0) {
    if (performance.now() - this.asked > FRESH) this.askAgain();
    if (this.tasks.length < PICTURES && !this.dry) {
      this.asking ??= this.#more(this.tasks.length + waiting + AT_ONCE).finally(() => (this.asking = null));
      await this.asking;
    }
    for (const task of this.tasks.slice(0, PICTURES)) void this.#picture(task);
  }

  async #more(count) {
    const found = await this.ask(count);
    this.asked = performance.now();
    const known = new Set(this.tasks.map(({ id }) => id));
    const fresh = found.filter(({ id }) => !known.has(id) && !this.gone.has(id) && !this.answered(id));
    this.dry = found.length < count;
    this.tasks.push(...fresh);
  }

  /** The first is done; returns it. */
  shift() {
    return this.tasks.shift();
  }

  /** Look at this one now. */
  first(task) {
    this.tasks = [task, ...this.tasks.filter(({ id }) => id !== task.id)];
    this.#picture(task);
  }

  /** There may be more than there were. */
  again() {
    this.dry = false;
  }

  /** What was asked for may be asked for no more. The one that is looked at stays: the service says whether it may be answered. */
  askAgain() {
    this.tasks.splice(1);
    this.dry = false;
  }

  #drop(task) {
    this.gone.add(task.id);
    this.tasks = this.tasks.filter((one) => one !== task);
    this.again();
  }

  async #picture(task) {
    if (task.image || task.loading) return;
    task.loading = true;
    try {
      const url = URL.createObjectURL(await this.load(task.id));
      const image = new Image();
      image.draggable = false;
      image.src = url;
      await image.decode();
      Object.assign(task, { image, url, failure: null });
    } catch (failure) {
      if (!(failure instanceof service.Failure || failure instanceof DOMException)) throw failure;
      task.failure = failure;
      if (failure.status === GONE) this.#drop(task);
      if (failure.unknown) setTimeout(() => this.tasks.includes(task) && this.#picture(task), AGAIN);
    } finally {
      task.loading = false;
    }
    this.came(task);
  }
}

/** Let go of the picture of a task that is not shown again. */
export function release(task) {
  if (task.url) URL.revokeObjectURL(task.url);
  task.url = task.image = null;
}
