// The list of cards: keeps it in the order of the store, draws at most once a frame, and
// asks the server for what the live messages do not tell.

const LIST_LIMIT = 20;
const MAX_LOOKUPS = 4;

class JobList {
  store = new JobStore((id) => this.#touch(id));
  #cards = new Map();
  #dirty = new Set();
  #frame = 0;
  #cursor = undefined; // Null once the last page has been read.
  #lookups = new Set();
  #reuse;

  /** `reuse` takes the parameters of a job whose settings are wanted again. */
  constructor(reuse) {
    this.#reuse = reuse;
    byId("older").addEventListener("click", () => this.#loadOlder());
    setInterval(() => this.#tick(), 1000);
  }

  /** Takes a live message about a job. */
  receive(message) {
    if (!this.store.applyMessage(message)) return;
    const job = this.store.jobs.get(message.data.job_id);
    if (!job) return; // Older than every job that is kept.
    if (message.type === "generation_complete") this.#announceEnd(job);
    if (!job.params || (TERMINAL.has(job.status) && !job.known)) this.#lookUp(job.job_id);
  }

  /** Reads the recent jobs, and those whose end may have been missed while away. */
  async refresh() {
    try {
      const answer = await server.jobs(LIST_LIMIT);
      const listed = new Set();
      for (const job of answer?.jobs ?? []) {
        listed.add(job.job_id);
        this.store.applySnapshot(job);
      }
      if (this.#cursor === undefined) this.#cursor = answer?.next_cursor ?? null;
      setOptional(byId("jobs-error"), "");
      for (const job of this.store.unfinished()) if (!listed.has(job.job_id)) this.#lookUp(job.job_id);
    } catch (problem) {
      setOptional(byId("jobs-error"), `Recent jobs cannot be listed. ${problem.message}`);
    }
    this.#schedule();
  }

  async #loadOlder() {
    const button = byId("older");
    button.disabled = true;
    try {
      const answer = await server.jobs(LIST_LIMIT, this.#cursor);
      for (const job of answer?.jobs ?? []) this.store.applySnapshot(job);
      this.#cursor = answer?.next_cursor ?? null;
    } catch (problem) {
      setOptional(byId("jobs-error"), problem.message);
    }
    button.disabled = false;
    this.#schedule();
  }

  // Fills in what a message alone does not carry. Few at a time: a burst of unknown jobs
  // must not become a burst of requests; what is skipped is asked for by its next message.
  async #lookUp(id) {
    if (this.#lookups.size >= MAX_LOOKUPS || this.#lookups.has(id)) return;
    this.#lookups.add(id);
    try {
      this.store.applySnapshot(await server.job(id));
    } catch (problem) {
      if (problem.status === 404 || problem.status === 410) this.store.remove(id);
    } finally {
      this.#lookups.delete(id);
    }
  }

  async #cancel(id, card) {
    card.showActionError("");
    this.store.patch(id, { cancelling: true });
    try {
      await server.cancel(id);
    } catch (problem) {
      this.store.patch(id, { cancelling: false });
      if (problem.status === 409) this.#lookUp(id);
      else card.showActionError(`Not cancelled. ${problem.message}`);
    }
  }

  async #remove(id, card) {
    card.showActionError("");
    try {
      await server.remove(id);
    } catch (problem) {
      if (problem.status !== 404 && problem.status !== 410) {
        card.showActionError(`Not deleted. ${problem.message}`);
        return;
      }
    }
    const next = card.root.nextElementSibling ?? card.root.previousElementSibling ?? byId("jobs-heading");
    const held = card.root.contains(document.activeElement);
    this.store.remove(id);
    if (held) next.focus({ preventScroll: true });
    announce("Job deleted");
  }

  #announceEnd(job) {
    announce(`${STATUS_WORDS[job.status] ?? job.status}: ${String(job.params?.prompt ?? "job").slice(0, 80)}`);
  }

  #touch(id) {
    this.#dirty.add(id);
    this.#schedule();
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = 0;
    for (const id of this.#dirty) {
      const job = this.store.jobs.get(id);
      if (job) this.#cardOf(job).render(job);
      else this.#discard(id);
    }
    this.#dirty.clear();
    this.#summarise();
  }

  #cardOf(job) {
    const known = this.#cards.get(job.job_id);
    if (known) return known;
    const card = new Card(job.job_id, {
      cancel: (id, it) => this.#cancel(id, it),
      remove: (id, it) => this.#remove(id, it),
      reuse: (id) => this.#reuse(this.store.jobs.get(id)?.params ?? {}),
    });
    this.#cards.set(job.job_id, card);
    // Newest first: almost always the new card goes on top, so look from there.
    const list = byId("jobs");
    let before = list.firstElementChild;
    while (before && before.dataset.jobId > job.job_id) before = before.nextElementSibling;
    list.insertBefore(card.root, before);
    return card;
  }

  #discard(id) {
    this.#cards.get(id)?.root.remove();
    this.#cards.delete(id);
  }

  #summarise() {
    const jobs = [...this.store.jobs.values()];
    const count = (status) => jobs.filter((job) => job.status === status).length;
    const words = [[count("running"), "running"], [count("pending"), "waiting"]].filter(([number]) => number > 0);
    setText(byId("jobs-summary"), words.map(([number, word]) => `${number} ${word}`).join(", "));
    setHidden(byId("jobs-empty"), jobs.length > 0);
    setHidden(byId("older"), !this.#cursor || jobs.length >= MAX_JOBS);
    document.title = words.length > 0 ? `(${words.map(([number, word]) => `${number} ${word}`).join(", ")}) Stepcast` : "Stepcast";
  }

  #tick() {
    if (document.hidden) return;
    for (const [id, card] of this.#cards) {
      const job = this.store.jobs.get(id);
      if (job) card.tick(job);
    }
  }
}
