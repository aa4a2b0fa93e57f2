// The backends: a strip above the jobs, and a panel with what each does and its switches.

const BACKEND_KINDS = { sdnext: "SD.Next", a1111: "A1111", forge: "Forge" };
const STRIP_MOST = 24;
const MODE_SAID = { pause: "paused", drain: "draining", resume: "resumed" };

/** The job that a backend renders, as far as it is known; null if it renders none of ours. */
function jobOf(backend, store) {
  if (typeof backend.job_id !== "string" || backend.gone) return null;
  return store.jobs.get(backend.job_id) ?? null;
}

/** One backend in the panel. */
class BackendCard {
  #parts;
  #id;
  #jobId = null;
  #telling = false;
  #fleet;

  constructor(id, fleet) {
    this.#id = id;
    this.#fleet = fleet;
    const { root, parts } = fromTemplate("backend-template");
    this.root = root;
    this.#parts = parts;
    root.dataset.backendId = id;
    setText(parts.name, id);
    parts.name.id = `backend-${id}`;
    root.setAttribute("aria-labelledby", parts.name.id);
    parts.bar.setAttribute("aria-labelledby", parts.name.id);
    for (const what of ["pause", "drain", "resume"]) {
      parts[what].addEventListener("click", () => this.#tell(what));
      parts[what].setAttribute("aria-describedby", parts.name.id);
    }
    leadTo(parts.prompt, () => ({ job: this.#jobId }));
    leadTo(parts.jobs, () => ({ view: "jobs", filters: { backend: id } }));
  }

  render(backend, job) {
    const parts = this.#parts;
    const { word, tone } = backendState(backend);
    setAttribute(this.root, "data-tone", tone);
    setAttribute(this.root, "data-state", backend.gone ? "gone" : String(backend.state));
    setText(parts.state, word);
    setOptional(parts.model, typeof backend.model === "string" ? backend.model : "");
    setOptional(parts.sentence, backendSentence(backend));
    this.#renderJob(backend, job);
    const kept = Boolean(backend.paused || backend.draining);
    const focused = document.activeElement;
    setHidden(parts.pause, kept);
    setHidden(parts.drain, Boolean(backend.draining));
    setHidden(parts.resume, !kept);
    if (this.root.contains(focused) && focused.hidden) [parts.resume, parts.pause].find((it) => !it.hidden)?.focus();
    setText(parts.url, String(backend.url ?? ""));
    setText(parts.kind, BACKEND_KINDS[backend.dialect] ?? String(backend.dialect ?? ""));
    setText(parts.pools, Array.isArray(backend.pools) ? backend.pools.join(", ") : "");
  }

  /** Its figures of the chosen window; null where there are none. */
  renderFigures(figures, window) {
    const parts = this.#parts;
    setHidden(parts.figures, figures === null);
    if (figures === null) return;
    setText(parts.done, figures.jobs_completed.toLocaleString("en-GB"));
    setText(parts.busy, isNumber(figures.utilisation_ratio) ? formatPercent(figures.utilisation_ratio) : "–");
    setText(parts.failed, isNumber(figures.failure_ratio) ? formatPercent(figures.failure_ratio) : "–");
    setText(parts.speed, isNumber(figures.steps_per_second) ? figures.steps_per_second.toFixed(1) : "–");
    setText(parts.window, `last ${WINDOWS[window] ?? window}`);
  }

  #renderJob(backend, job) {
    const parts = this.#parts;
    const works = typeof backend.job_id === "string" && !backend.gone;
    setHidden(parts.job, !works);
    if (!works) return;
    this.#jobId = backend.job_id;
    setText(parts.prompt, job?.params?.prompt ? String(job.params.prompt) : `Job ${shortId(backend.job_id)}`);
    const running = job?.status === "running";
    setHidden(parts.meter, !running);
    setOptional(parts.stage, running ? inLine([stageText(job), stepText(job), etaText(job)]) : "");
    if (running) setText(parts.percent, `${showProgress(parts.bar, job, stageText(job))} %`);
  }

  async #tell(what) {
    const parts = this.#parts;
    // Not by disabling the buttons: that would take the keyboard's place away.
    if (this.#telling) return;
    this.#telling = true;
    setOptional(parts.error, "");
    try {
      await this.#fleet.tell(this.#id, what);
      announce(`${this.#id}: ${MODE_SAID[what]}`);
    } catch (problem) {
      setOptional(parts.error, `That did not work. ${problem.message}`);
    } finally {
      this.#telling = false;
    }
  }
}

class BackendPanel {
  #fleet;
  #store;
  #cards = new Map();
  #chips = new Map();
  #frame = 0;
  #figures = null;

  constructor(fleet, store) {
    this.#fleet = fleet;
    this.#store = store;
    fleet.watch(() => this.#schedule());
    place.watch(() => this.#schedule());
    store.watch((id) => {
      const renders = [...fleet.backends.values()].some((backend) => backend.job_id === id);
      if (renders) this.#schedule();
    });
    setInterval(() => { if (!document.hidden && place.view === "backends") this.#schedule(); }, 1000);
  }

  /** Takes statistics, for the figures of each. */
  takeStats(stats) {
    this.#figures = stats;
    this.#schedule();
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (place.view === "backends") this.#drawPanel();
      else this.#drawStrip();
      this.#drawSigns();
    });
  }

  #drawPanel() {
    const backends = this.#fleet.ordered();
    arrange(byId("backend-cards"), backends.map((backend) => {
      if (!this.#cards.has(backend.id)) this.#cards.set(backend.id, new BackendCard(backend.id, this.#fleet));
      const card = this.#cards.get(backend.id);
      card.render(backend, jobOf(backend, this.#store));
      const figures = this.#figures?.backends?.find((it) => it?.id === backend.id) ?? null;
      card.renderFigures(figures, this.#figures?.window);
      return card.root;
    }));
    const { known, trouble } = this.#fleet;
    setHidden(byId("backends-empty"), backends.length > 0 || !known || trouble !== null);
    setHidden(byId("backends-loading"), known || trouble !== null);
    showTrouble(byId("backends-error"), "What the backends do cannot be read now.", trouble);
    setText(byId("backends-summary"), this.#summary(backends));
  }

  #summary(backends) {
    const counts = new Map();
    for (const backend of backends) {
      const { word } = backendState(backend);
      counts.set(word, (counts.get(word) ?? 0) + 1);
    }
    return [...counts].map(([word, count]) => `${count} ${word.toLowerCase()}`).join(", ");
  }

  #drawStrip() {
    const backends = this.#fleet.ordered();
    arrange(byId("backend-strip"), backends.slice(0, STRIP_MOST).map((backend) => this.#chip(backend)));
    setHidden(byId("strip"), backends.length === 0);
    const beyond = backends.length - STRIP_MOST;
    setOptional(byId("strip-more"), beyond > 0 ? `and ${beyond} more` : "");
  }

  #chip(backend) {
    if (!this.#chips.has(backend.id)) {
      const { root, parts } = fromTemplate("chip-template");
      leadTo(parts.link, { view: "backends", filters: {} });
      this.#chips.set(backend.id, { root, parts });
    }
    const { root, parts } = this.#chips.get(backend.id);
    const { word, tone } = backendState(backend);
    const job = jobOf(backend, this.#store);
    const running = job?.status === "running";
    setAttribute(root, "data-tone", tone);
    setAttribute(root, "data-state", backend.gone ? "gone" : String(backend.state));
    setText(parts.name, backend.id);
    setText(parts.state, running && word === "Rendering" ? `${Math.floor(job.progress * 100 + 1e-9)} %` : word);
    setHidden(parts.track, !running);
    if (running) parts.track.style.setProperty("--progress", job.progress.toFixed(4));
    const what = running ? String(job.params?.prompt ?? "") : backend.model;
    setAttribute(parts.link, "title", [word, what].filter(Boolean).join(": "));
    return root;
  }

  // The mark in the navigation, the word above the jobs, and what the form offers.
  #drawSigns() {
    const backends = this.#fleet.ordered();
    const bad = backends.filter((backend) => backendState(backend).tone === "bad").length;
    setHidden(byId("nav-backends-mark"), bad === 0);
    setText(byId("nav-backends-mark"), bad > 0 ? `${bad}` : "");
    setAttribute(byId("nav-backends-mark"), "aria-label", `${plural(bad, "backend")} in trouble`);
    const none = this.#fleet.known && this.#fleet.trouble === null && backends.length === 0;
    const allBad = backends.length > 0 && bad === backends.length;
    let note = "";
    if (none) note = "No backend is there yet: what you queue waits until one is.";
    else if (allBad) note = "No backend works now: what is queued waits until one is back.";
    setOptional(byId("strip-note"), note);
    const models = [...new Set(backends.map((backend) => backend.model).filter((model) => typeof model === "string" && model))];
    filterBar.offer("backend", backends.map((backend) => backend.id));
    filterBar.offer("model", models);
  }
}
