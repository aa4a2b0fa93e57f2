// The strip of backends, asked for every few seconds while somebody is looking.

const BACKENDS_EVERY = 5_000;
const BACKENDS_SLOWEST = 60_000;

class BackendStrip {
  #delay = BACKENDS_EVERY;
  #timer = 0;
  #running = false;

  start() {
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#poll(); });
    this.#poll();
  }

  async #poll() {
    if (this.#running) return;
    clearTimeout(this.#timer);
    // A hidden tab asks nothing; becoming visible starts it again.
    if (document.hidden) return;
    this.#running = true;
    try {
      const answer = await server.backends();
      this.#show(Array.isArray(answer?.backends) ? answer.backends : []);
      this.#delay = BACKENDS_EVERY;
    } catch {
      this.#show([]);
      this.#delay = Math.min(BACKENDS_SLOWEST, this.#delay * 2);
    }
    this.#running = false;
    this.#timer = setTimeout(() => this.#poll(), this.#delay);
  }

  #show(backends) {
    const known = backends.filter((backend) => backend !== null && typeof backend === "object");
    byId("backends-list").replaceChildren(...known.slice(0, 64).map((backend) => this.#item(backend)));
    setHidden(byId("backends"), known.length === 0);
    const models = [...new Set(known.map((backend) => backend.model).filter((model) => typeof model === "string" && model))];
    byId("models").replaceChildren(...models.map((value) => element("option", { value })));
  }

  #item(backend) {
    const state = String(backend.state ?? "unknown");
    const item = element("li", { className: "backend" },
      element("span", { className: "backend-name", textContent: String(backend.id ?? "backend") }),
      element("span", { className: "backend-state", textContent: state }));
    item.dataset.testid = "backend";
    item.dataset.state = state;
    if (typeof backend.model === "string" && backend.model) {
      item.append(element("span", { className: "backend-model", textContent: backend.model, title: backend.model }));
    }
    if (typeof backend.job_id === "string") item.title = `Job ${backend.job_id}`;
    return item;
  }
}
