// The last messages as they came. Bounded in entries and in what each keeps; while paused
// the list stands still and the ring behind it goes on.

const MAX_ENTRIES = 300;
const MAX_TEXT = 4_000;

class MessageLog {
  #entries = [];
  #fresh = []; // Entries that have no row yet.
  #types = new Set();
  #paused = false;
  #frame = 0;
  #type = byId("log-type");
  #filter = byId("log-filter");
  #list = byId("log");
  #scroll = byId("log-scroll");

  constructor() {
    this.#type.addEventListener("change", () => this.#rebuild());
    this.#filter.addEventListener("input", () => this.#rebuild());
    byId("log-clear").addEventListener("click", () => {
      this.#entries = [];
      this.#rebuild();
    });
    byId("log-pause").addEventListener("click", (event) => {
      this.#paused = !this.#paused;
      event.currentTarget.setAttribute("aria-pressed", String(this.#paused));
      event.currentTarget.textContent = this.#paused ? "Resume" : "Pause";
      if (this.#paused) this.#note();
      else this.#rebuild();
    });
    // Out of sight nothing is drawn; who comes back sees all that is kept.
    place.watch((_, before) => {
      if (place.view === "api" && before.view !== "api" && !this.#paused) this.#rebuild();
    });
    this.#note();
  }

  /** Adds a message; `direction` is `in` or `out`. */
  add(direction, message) {
    const jobId = message.data?.job_id;
    const said = direction === "in" ? (message.data ?? {}) : message;
    const entry = {
      job: typeof jobId === "string" ? jobId : "",
      direction,
      type: message.type,
      at: Date.now(),
      // Most entries go unseen, and are never written out.
      get text() {
        Object.defineProperty(this, "text", { value: JSON.stringify(said).slice(0, MAX_TEXT) });
        return this.text;
      },
    };
    this.#entries.push(entry);
    if (this.#entries.length > MAX_ENTRIES) this.#entries.shift();
    this.#offerType(message.type);
    this.#fresh.push(entry);
    if (this.#fresh.length > MAX_ENTRIES) this.#fresh.shift();
    this.#frame ||= requestAnimationFrame(() => this.#flush());
  }

  #offerType(type) {
    if (this.#types.has(type) || this.#types.size >= 50) return;
    this.#types.add(type);
    const after = [...this.#type.options].slice(1).find((option) => option.value > type) ?? null;
    this.#type.insertBefore(element("option", { value: type, textContent: type }), after);
  }

  #matches(entry) {
    if (this.#type.value && entry.type !== this.#type.value) return false;
    const wanted = this.#filter.value.trim().toLowerCase();
    return wanted === "" || `${entry.type} ${entry.text}`.toLowerCase().includes(wanted);
  }

  #flush() {
    this.#frame = 0;
    if (place.view !== "api") return;
    if (!this.#paused) {
      const fresh = this.#fresh.filter((entry) => this.#matches(entry));
      this.#fresh = [];
      this.#append(fresh);
    }
    this.#note();
  }

  #rebuild() {
    this.#fresh = [];
    this.#list.replaceChildren();
    this.#append(this.#entries.filter((entry) => this.#matches(entry)));
    this.#note();
  }

  #append(entries) {
    const atEnd = this.#scroll.scrollHeight - this.#scroll.scrollTop - this.#scroll.clientHeight < 24;
    this.#list.append(...entries.map((entry) => this.#row(entry)));
    while (this.#list.childElementCount > MAX_ENTRIES) this.#list.firstElementChild.remove();
    // Follows the newest unless the reader has scrolled away from it.
    if (atEnd) this.#scroll.scrollTop = this.#scroll.scrollHeight;
    setHidden(byId("log-empty"), this.#list.childElementCount > 0);
  }

  #row(entry) {
    const body = element("pre");
    const row = element("details", {},
      element("summary", {},
        element("time", { textContent: logFormat.format(entry.at) }),
        element("span", { className: "log-type", textContent: `${entry.direction === "out" ? "→ " : ""}${entry.type}` }),
        element("span", { className: "log-text", textContent: this.#brief(entry) })),
      body);
    row.addEventListener("toggle", () => { body.textContent = row.open ? this.#indented(entry.text) : ""; });
    const item = element("li", {}, row);
    item.dataset.testid = "log-entry";
    item.dataset.type = entry.type;
    item.dataset.direction = entry.direction;
    return item;
  }

  // One line: the job first and short, since its whole id would fill the line.
  #brief(entry) {
    if (entry.job === "") return entry.text.slice(0, 400);
    return `${shortId(entry.job)}  ${entry.text.replace(`"job_id":"${entry.job}",`, "").slice(0, 400)}`;
  }

  #indented(text) {
    try {
      return JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      return text; // Cut at the limit, so no longer JSON.
    }
  }

  #note() {
    const shown = this.#list.childElementCount;
    const kept = this.#entries.length;
    const part = shown === kept ? `${kept}` : `${shown} of ${kept}`;
    setText(byId("log-note"), this.#paused ? `${part}, paused` : `${part}, newest last`);
  }
}
