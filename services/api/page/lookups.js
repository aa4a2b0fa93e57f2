// Jobs that are asked for one by one, to fill in what a message alone does not carry. Few at
// a time: a burst of unknown jobs must not become a burst of requests.

const LOOKUPS_AT_ONCE = 4;
const LOOKUPS_WAITING = 500;

class Lookups {
  #store;
  #waiting = new Set();
  #running = new Set();

  constructor(store) {
    this.#store = store;
  }

  /** Asks for a job. What does not fit is left out: its next message asks again. */
  want(id) {
    if (this.#running.has(id) || this.#waiting.size >= LOOKUPS_WAITING) return;
    this.#waiting.add(id);
    this.#next();
  }

  #next() {
    while (this.#running.size < LOOKUPS_AT_ONCE && this.#waiting.size > 0) {
      const [id] = this.#waiting;
      this.#waiting.delete(id);
      this.#look(id);
    }
  }

  async #look(id) {
    this.#running.add(id);
    try {
      this.#store.applySnapshot(await server.job(id));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (problem.status === 404 || problem.status === 410) this.#store.remove(id);
      // Without a server the others would fail too; the next connection asks anew.
      if (problem.status === 0) this.#waiting.clear();
    } finally {
      this.#running.delete(id);
      this.#next();
    }
  }
}
