// The bar of filters, and what passes them. The server knows status, label, batch, backend
// and model; text is looked for here, in what has been read.

const TYPED_FILTERS = ["text", "label", "backend", "model", "batch"];
const FILTER_WORDS = { label: "Label", backend: "Backend", model: "Checkpoint", batch: "Batch", before: "Older than" };
// What the server filters by, and its names for it.
const PARAMETERS = { status: "status", label: "label", batch: "batch_id", backend: "backend", model: "model" };
const TYPING_PAUSE = 300;

/** Whether a job passes. */
function passes(job, filters) {
  if (filters.status && job.status !== filters.status) return false;
  return passesBeyondStatus(job, filters);
}

function passesBeyondStatus(job, filters) {
  if (filters.label && job.label !== filters.label) return false;
  if (filters.batch && job.batch_id !== filters.batch) return false;
  if (filters.backend && job.backend !== filters.backend && job.params?.backend !== filters.backend) return false;
  if (filters.model && job.model !== filters.model && job.params?.model !== filters.model) return false;
  if (filters.before && job.job_id >= filters.before) return false;
  return !filters.text || containsText(job, filters.text.toLowerCase());
}

function containsText(job, wanted) {
  const { params = {} } = job;
  return [job.job_id, params?.prompt, params?.negative_prompt, job.label, job.error?.message]
    .some((text) => typeof text === "string" && text.toLowerCase().includes(wanted));
}

/** What the server is asked for. */
function listQuery(filters) {
  const query = {};
  for (const [name, parameter] of Object.entries(PARAMETERS)) if (filters[name]) query[parameter] = filters[name];
  return query;
}

/** What is filtered for, as a person reads it. */
function filterText(name, value) {
  if (name === "batch") return shortId(value);
  return name === "before" ? momentFormat.format(mintedAt(value) ?? 0) : value;
}

const anyFilter = (filters) => FILTERS.some((name) => filters[name]);

class FilterBar {
  #typing = 0;

  constructor() {
    for (const radio of document.querySelectorAll('input[name="filter-status"]')) {
      radio.addEventListener("change", () => this.#set({ status: radio.value }, true));
    }
    for (const name of TYPED_FILTERS) {
      const field = byId(`filter-${name}`);
      field.addEventListener("input", () => this.#typed());
      // Chosen from a list, or left: at once.
      field.addEventListener("change", () => this.#takeTyped());
    }
    byId("filters").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#takeTyped();
    });
    byId("filters-clear").addEventListener("click", () => {
      place.go({ filters: {} });
      byId("filter-text").focus();
    });
    byId("filters-fold").addEventListener("click", () => this.#fold(!byId("filters-more").hidden));
    addEventListener("keydown", (event) => this.#shortcut(event));
    place.watch(() => this.#show());
    this.#show();
  }

  /** Offers values for the fields that have lists. */
  offer(name, values) {
    const list = byId(`${name}-options`);
    const known = [...list.options].map((option) => option.value);
    if (known.length === values.length && known.every((value, at) => value === values[at])) return;
    list.replaceChildren(...values.slice(0, 100).map((value) => element("option", { value })));
  }

  #fold(hidden) {
    setHidden(byId("filters-more"), hidden);
    setAttribute(byId("filters-fold"), "aria-expanded", !hidden);
    if (!hidden) byId("filter-label").focus();
  }

  #typed() {
    clearTimeout(this.#typing);
    this.#typing = setTimeout(() => this.#takeTyped(), TYPING_PAUSE);
  }

  #takeTyped() {
    clearTimeout(this.#typing);
    const typed = {};
    for (const name of TYPED_FILTERS) typed[name] = byId(`filter-${name}`).value.trim();
    this.#set(typed, false);
  }

  #set(change, step) {
    const filters = { ...place.filters, ...change };
    // Another question begins at the newest again.
    delete filters.before;
    for (const name of FILTERS) if (!filters[name]) delete filters[name];
    if (!sameFilters(filters, place.filters)) place.go({ filters }, { step });
  }

  #show() {
    const { filters } = place;
    for (const radio of document.querySelectorAll('input[name="filter-status"]')) {
      radio.checked = radio.value === (filters.status ?? "");
    }
    for (const name of TYPED_FILTERS) {
      const field = byId(`filter-${name}`);
      if (field.value.trim() !== (filters[name] ?? "")) field.value = filters[name] ?? "";
    }
    // The queue holds waiting and running jobs alone.
    setHidden(byId("filter-statuses"), place.view === "queue");
    const folded = ["label", "backend", "model", "batch"].filter((name) => filters[name]);
    setText(byId("filters-note"), folded.length > 0 ? String(folded.length) : "");
    setHidden(byId("filters-note"), folded.length === 0);
    this.#showChips(filters);
  }

  // What is filtered for must be seen although its field is folded away.
  #showChips(filters) {
    const names = Object.keys(FILTER_WORDS).filter((name) => filters[name]);
    byId("filter-chips").replaceChildren(...names.map((name) => {
      const chip = button(`${FILTER_WORDS[name]}: ${filterText(name, filters[name])}`, "chip-button", () => {
        place.go({ filters: { ...filters, [name]: undefined } });
        byId("filter-text").focus();
      });
      chip.setAttribute("aria-label", `Remove the filter ${chip.textContent}`);
      return element("li", {}, chip);
    }));
    setHidden(byId("filter-chips"), names.length === 0);
    setHidden(byId("filters-clear"), !anyFilter(filters));
  }

  #shortcut(event) {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || byId("filters").hidden) return;
    if (event.target.closest("input, textarea, select, dialog, [contenteditable]")) return;
    event.preventDefault();
    byId("filter-text").focus();
  }
}
