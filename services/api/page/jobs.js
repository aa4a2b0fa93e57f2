// The list of cards, newest first, through the filters: draws at most once a frame, and asks
// the server for what the live messages do not tell.

const LIST_LIMIT = 20;
// Text is looked for in what was read, so more is read at once, and some pages of it.
const SEARCH_LIMIT = 100;
const SEARCH_PAGES = 5;
const MAX_CARDS = 500;

class JobList {
  #store;
  #actions;
  #cards = new Map();
  #dirty = new Set();
  #frame = 0;
  #cursor; // Undefined before the first page was read, null once the last was.
  #reading = false;
  #turn = Promise.resolve();
  #mine = new Set();

  /** `actions` has a method for each button of a card. */
  constructor(store, actions) {
    this.#store = store;
    this.#actions = { ...actions, remove: (id, fail) => this.#remove(id, fail, actions.remove) };
    store.watch((id) => {
      this.#dirty.add(id);
      this.#schedule();
    });
    byId("older").addEventListener("click", () => this.#older());
    leadTo(byId("older-beyond"), () => ({ filters: { ...place.filters, before: this.#cursor ?? undefined } }));
    place.watch((_, before) => {
      if (!sameFilters(place.filters, before.filters)) this.#startOver();
      this.#schedule();
    });
    setInterval(() => this.#tick(), 1000);
  }

  /** Notes that a job was submitted here: its end is told to screen readers, others' are not. */
  own(id) {
    this.#mine.add(id);
  }

  /** Says the end of a job. */
  ended(job) {
    if (!this.#mine.delete(job.job_id)) return;
    announce(`${STATUS_WORDS[job.status] ?? job.status}: ${String(job.params?.prompt ?? "job").slice(0, 80)}`);
  }

  /** Reads the newest jobs again, as many as are shown. */
  async refresh() {
    await this.#inTurn(() => {
      const shown = Math.min(MAX_CARDS, Math.max(LIST_LIMIT, this.#visible().length));
      return this.#read(shown, place.filters.before);
    });
  }

  // One read after another: each says where the list ends, and one that began before a further
  // page was read would take that page away again.
  #inTurn(read) {
    this.#turn = this.#turn.catch(() => {}).then(read);
    return this.#turn;
  }

  #startOver() {
    this.#cursor = undefined;
    this.#turn = Promise.resolve();
    this.#store.trim((job) => passes(job, place.filters));
    this.refresh();
  }

  async #older() {
    const held = byId("older");
    held.disabled = true;
    try {
      await this.#inTurn(() => this.#read(LIST_LIMIT, this.#cursor));
    } finally {
      held.disabled = false;
    }
    // The button may have moved, or gone with the last page.
    if (document.activeElement === document.body) (held.hidden ? byId("jobs-heading") : held).focus({ preventScroll: true });
  }

  async #read(limit, from) {
    const { filters } = place;
    this.#reading = true;
    try {
      let cursor = from;
      let pages = 0;
      let found = 0;
      do {
        const query = { limit: filters.text ? SEARCH_LIMIT : limit, ...listQuery(filters) };
        const answer = await server.jobs(cursor ? { ...query, cursor } : query);
        // Somebody has filtered for something else meanwhile.
        if (!sameFilters(filters, place.filters)) return;
        const jobs = Array.isArray(answer?.jobs) ? answer.jobs : [];
        for (const job of jobs) {
          this.#store.applySnapshot(job);
          if (passes(this.#store.jobs.get(job.job_id) ?? job, filters)) found += 1;
        }
        cursor = this.#cursor = answer?.next_cursor ?? null;
        pages += 1;
        this.#schedule();
      } while (filters.text && cursor && found < LIST_LIMIT && pages < SEARCH_PAGES);
      showTrouble(byId("jobs-error"));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (sameFilters(filters, place.filters)) showTrouble(byId("jobs-error"), "Jobs cannot be listed.", problem);
    } finally {
      if (sameFilters(filters, place.filters)) this.#reading = false;
      this.#schedule();
    }
  }

  // The keyboard's place goes on to the card beside the one that goes.
  async #remove(id, fail, remove) {
    const card = this.#cards.get(id)?.root;
    const held = card?.contains(document.activeElement);
    const next = card?.nextElementSibling ?? card?.previousElementSibling ?? byId("jobs-heading");
    if (await remove(id, fail) && held) next.focus({ preventScroll: true });
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  // Between the newest and the last page read there is no gap, beyond it there are only jobs
  // that happen to be known: of these, those that have not ended are shown.
  #visible() {
    const { filters } = place;
    const end = this.#cursor;
    const reached = (job) => !end || job.job_id >= end || !TERMINAL.has(job.status);
    return this.#store.ordered().filter((job) => reached(job) && passes(job, filters));
  }

  #draw() {
    this.#frame = 0;
    // Behind another view the cards wait, and are drawn when this one is opened.
    if (byId("jobs").closest("[hidden]")) {
      this.#summarise();
      return;
    }
    const visible = this.#visible();
    const shown = visible.slice(0, MAX_CARDS);
    const ids = new Set(shown.map((job) => job.job_id));
    for (const id of this.#cards.keys()) if (!ids.has(id)) this.#cards.delete(id);
    for (const job of shown) {
      const known = this.#cards.get(job.job_id);
      if (!known) this.#cards.set(job.job_id, new Card(job.job_id, this.#actions));
      if (!known || this.#dirty.has(job.job_id)) this.#cards.get(job.job_id).render(job);
    }
    this.#dirty.clear();
    arrange(byId("jobs"), shown.map((job) => this.#cards.get(job.job_id).root));
    this.#tell(shown.length, visible.length);
  }

  #tell(shown, found) {
    this.#summarise();
    const first = this.#cursor === undefined;
    const filtered = anyFilter(place.filters);
    setHidden(byId("jobs-loading"), !(first && this.#reading && shown === 0));
    setHidden(byId("jobs-empty"), shown > 0 || filtered || first);
    setHidden(byId("jobs-none"), shown > 0 || !filtered || (first && this.#reading));
    const looked = this.#cursor ? `Nothing among the jobs back to ${this.#reach()} matches.` : "No job matches these filters.";
    setText(byId("jobs-none-text"), looked);
    const full = found >= MAX_CARDS;
    setHidden(byId("older"), !this.#cursor || full);
    setText(byId("older"), place.filters.text ? `Search before ${this.#reach()}` : "Show older jobs");
    setHidden(byId("older-beyond"), !this.#cursor || !full);
  }

  #summarise() {
    const counts = { running: 0, pending: 0 };
    for (const { status } of this.#store.jobs.values()) if (status in counts) counts[status] += 1;
    const words = [[counts.running, "running"], [counts.pending, "waiting"]].filter(([count]) => count > 0)
      .map(([count, word]) => `${count.toLocaleString("en-GB")} ${word}`).join(", ");
    setText(byId("jobs-summary"), words);
    setOptional(byId("nav-queue-count"), counts.pending > 0 ? counts.pending.toLocaleString("en-GB") : "");
    tellTitle(words);
  }

  #reach() {
    return momentFormat.format(mintedAt(this.#cursor ?? "") ?? Date.now());
  }

  #tick() {
    if (document.hidden || byId("jobs").closest("[hidden]")) return;
    for (const [id, card] of this.#cards) {
      const job = this.#store.jobs.get(id);
      // What has ended changes by the minute alone.
      if (job && (!TERMINAL.has(job.status) || serverClock.now() - job.createdAt < 3_600_000)) card.tick(job);
    }
  }
}
