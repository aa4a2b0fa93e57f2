// The queue: what waits, in the order in which it is served, and what is under way.

const QUEUE_EVERY = 4_000;
const QUEUE_ROWS = 100;

class QueueRow {
  #parts;
  #id;
  #fail;

  /** `moved` is called when its priority has changed, `picked` with its id and whether it is selected. */
  constructor(id, actions, picked, moved) {
    this.#id = id;
    const { root, parts } = fromTemplate("queue-row-template");
    this.root = root;
    this.#parts = parts;
    root.dataset.jobId = id;
    parts.prompt.id = `queued-${id}`;
    this.#fail = (text) => setOptional(parts.error, text);
    parts.bar.setAttribute("aria-labelledby", parts.prompt.id);
    for (const name of ["pick", "priority", "cancel"]) parts[name].setAttribute("aria-describedby", parts.prompt.id);
    leadTo(parts.prompt, { job: id });
    parts.pick.addEventListener("change", () => picked(id, parts.pick.checked));
    parts.cancel.addEventListener("click", () => actions.cancel(id, this.#fail));
    parts.priority.addEventListener("change", async () => {
      if (await actions.setPriority(id, parts.priority.value, this.#fail)) moved();
    });
    parts.batch.addEventListener("click", () => place.go({ filters: { ...place.filters, batch: parts.batch.dataset.batch } }));
  }

  fail(text) {
    this.#fail(text);
  }

  render(job, picked, pools) {
    const parts = this.#parts;
    const waits = job.status === "pending";
    setAttribute(this.root, "data-status", job.status);
    parts.pick.checked = picked;
    setText(parts.position, waits ? String(job.position ?? "–") : "");
    setText(parts.prompt, job.params?.prompt ? String(job.params.prompt) : `Job ${shortId(this.#id)}`);
    setOptional(parts.label, job.label ? String(job.label) : "");
    setOptional(parts.pool, pools > 1 ? String(job.pool ?? "") : "");
    setOptional(parts.model, job.model ? String(job.model) : "");
    setHidden(parts.batch, !job.batch_id);
    if (job.batch_id) {
      parts.batch.dataset.batch = job.batch_id;
      setText(parts.batch, `Batch ${shortId(job.batch_id)}`);
    }
    if (waits) setOptional(parts.attempt, job.attempt > 0 ? `Failed ${plural(job.attempt, "time")}` : "");
    else setOptional(parts.attempt, job.attempt > 1 ? `Attempt ${job.attempt}` : "");
    setHidden(parts.priority, !waits);
    const priority = job.priority ?? "normal";
    if (document.activeElement !== parts.priority && parts.priority.value !== priority) parts.priority.value = priority;
    parts.priority.disabled = Boolean(job.cancelling);
    parts.cancel.disabled = Boolean(job.cancelling);
    setText(parts.cancel, job.cancelling ? "Cancelling" : "Cancel");
    setHidden(parts.meter, waits);
    setHidden(parts.why, !waits);
    if (waits) {
      setText(parts.why, stageText(job));
      parts.why.classList.toggle("warn", isStuck(job));
      setAttribute(parts.why, "title", WAIT_WORDS[job.waiting_for]?.[1] ?? "");
    } else {
      const percent = showProgress(parts.bar, job, stageText(job));
      setText(parts.stage, inLine([`${percent} %`, stageText(job), job.backend]));
    }
    this.tick(job);
  }

  tick(job) {
    const parts = this.#parts;
    const waits = job.status === "pending";
    const starts = waits && isNumber(job.startsAt) ? formatAbout((job.startsAt - performance.now()) / 1000) : "";
    setText(parts.time, waits ? (starts ? capitalise(starts) : "Not known") : etaText(job));
    setText(parts.age, `queued ${formatWhen(job.createdAt, serverClock.now())}`);
  }
}

class QueueView {
  #store;
  #actions;
  #poll;
  #order = []; // Ids as the server serves them.
  #rows = new Map();
  #picked = new Set();
  #shown = QUEUE_ROWS;
  #known = false;
  #frame = 0;
  #working = false;

  constructor(store, actions) {
    this.#store = store;
    this.#actions = actions;
    this.#poll = new Poll({
      ask: () => this.#ask(),
      // A long queue is a long answer.
      every: () => QUEUE_EVERY * (this.#order.length > 200 ? 3 : 1),
      wanted: () => place.view === "queue" || this.#cardsWait(),
      failed: (problem) => showTrouble(byId("queue-error"), "The queue cannot be read now.", problem),
    });
    store.watch((id) => { if (this.#rows.has(id)) this.#schedule(); });
    place.watch((_, before) => {
      if (!sameFilters(place.filters, before.filters)) this.#shown = QUEUE_ROWS;
      this.#schedule();
    });
    byId("queue-more").addEventListener("click", () => {
      this.#shown += QUEUE_ROWS;
      this.#schedule();
    });
    byId("pick-all").addEventListener("change", (event) => this.#pickAll(event.currentTarget.checked));
    byId("queue-raise").addEventListener("click", () => this.#setPriority("high", "raised"));
    byId("queue-lower").addEventListener("click", () => this.#setPriority("low", "lowered"));
    byId("queue-cancel").addEventListener("click", () => this.#cancelPicked());
    setInterval(() => this.#tick(), 1000);
  }

  /** Something was queued, has begun or ended. */
  nudge() {
    this.#poll.nudge();
  }

  /** Asks now. */
  refresh() {
    this.#poll.wake();
  }

  // Cards of waiting jobs say where they are in the queue, too.
  #cardsWait() {
    if (place.view !== "jobs") return false;
    for (const job of this.#store.jobs.values()) if (job.status === "pending") return true;
    return false;
  }

  async #ask() {
    const answer = await server.active();
    const jobs = Array.isArray(answer?.jobs) ? answer.jobs : [];
    for (const job of jobs) this.#store.applySnapshot(job);
    this.#order = jobs.map((job) => job.job_id);
    this.#known = true;
    showTrouble(byId("queue-error"));
    this.#schedule();
  }

  /** The unfinished jobs that pass the filters, running first, then as they are served. */
  #visible() {
    const { status, ...filters } = place.filters;
    const jobs = this.#order.map((id) => this.#store.jobs.get(id)).filter((job) => job && !TERMINAL.has(job.status));
    const passing = jobs.filter((job) => passesBeyondStatus(job, filters));
    return [...passing.filter((job) => job.status === "running"), ...passing.filter((job) => job.status === "pending")];
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    const all = this.#order.map((id) => this.#store.jobs.get(id)).filter((job) => job && !TERMINAL.has(job.status));
    this.#drawSummary(all);
    if (place.view !== "queue") return;
    const visible = this.#visible();
    const here = new Set(visible.map((job) => job.job_id));
    for (const id of this.#picked) if (!here.has(id)) this.#picked.delete(id);
    const shown = visible.slice(0, this.#shown);
    const pools = new Set(all.map((job) => job.pool)).size;
    const kept = new Set(shown.map((job) => job.job_id));
    for (const id of this.#rows.keys()) if (!kept.has(id)) this.#rows.delete(id);
    arrange(byId("queue-rows"), shown.map((job) => {
      const id = job.job_id;
      const row = this.#rows.get(id) ?? this.#newRow(id);
      row.render(job, this.#picked.has(id), pools);
      return row.root;
    }));
    setHidden(byId("queue-head"), shown.length === 0);
    setHidden(byId("queue-loading"), this.#known || !byId("queue-error").hidden);
    setHidden(byId("queue-empty"), !this.#known || all.length > 0);
    setHidden(byId("queue-none"), !this.#known || all.length === 0 || visible.length > 0);
    const beyond = visible.length - shown.length;
    setHidden(byId("queue-more"), beyond <= 0);
    setText(byId("queue-more"), `Show ${Math.min(beyond, QUEUE_ROWS)} of ${beyond} more`);
    this.#drawBulk(visible);
  }

  #newRow(id) {
    const row = new QueueRow(id, this.#actions, (it, on) => this.#pick(it, on), () => this.refresh());
    this.#rows.set(id, row);
    return row;
  }

  #drawSummary(all) {
    const running = all.filter((job) => job.status === "running").length;
    const waiting = all.length - running;
    const last = Math.max(...all.map((job) => (job.status === "pending" && isNumber(job.startsAt) ? job.startsAt : -Infinity)));
    const starts = Number.isFinite(last) ? formatStart((last - performance.now()) / 1000) : "";
    const parts = [running > 0 && `${running} running`, waiting > 0 && `${waiting} waiting`, starts && `the last ${starts}`];
    setText(byId("queue-summary"), parts.filter(Boolean).join(", "));
  }

  #drawBulk(visible) {
    const count = this.#picked.size;
    const all = byId("pick-all");
    all.checked = count > 0 && count === visible.length;
    all.indeterminate = count > 0 && count < visible.length;
    setText(byId("pick-note"), count > 0 ? `${count} of ${visible.length} selected` : `Select all ${visible.length}`);
    for (const id of ["queue-raise", "queue-lower"]) {
      byId(id).disabled = this.#working || ![...this.#picked].some((it) => this.#store.jobs.get(it)?.status === "pending");
    }
    byId("queue-cancel").disabled = this.#working || count === 0;
    setText(byId("queue-cancel"), count > 0 ? `Cancel ${count}` : "Cancel");
  }

  #pick(id, on) {
    if (on) this.#picked.add(id);
    else this.#picked.delete(id);
    this.#schedule();
  }

  #pickAll(on) {
    this.#picked = new Set(on ? this.#visible().map((job) => job.job_id) : []);
    this.#schedule();
  }

  async #setPriority(priority, word) {
    const ids = [...this.#picked].filter((id) => this.#store.jobs.get(id)?.status === "pending");
    await this.#bulk(ids, (id, fail) => this.#actions.setPriority(id, priority, fail), `Priority ${word}`);
  }

  async #cancelPicked() {
    const ids = [...this.#picked];
    const jobs = plural(ids.length, "job");
    const sure = ids.length < 2 || await confirmFirst({
      title: `Cancel ${jobs}?`, text: "Those that run are stopped. This cannot be taken back.",
      act: `Cancel ${jobs}`, keep: "Keep them",
    });
    if (sure) await this.#bulk(ids, (id, fail) => this.#actions.cancel(id, fail), "Cancelled");
  }

  async #bulk(ids, act, word) {
    await this.#work(async () => {
      const refused = new Set();
      const done = await forEachOf(ids, (id) => act(id, (text) => {
        if (text) refused.add(text);
        this.#rows.get(id)?.fail(text);
      }));
      for (const id of ids) this.#picked.delete(id);
      const failed = ids.length - done;
      const count = failed === 0 ? plural(done, "job") : `${done} of ${plural(ids.length, "job")}`;
      this.#say([`${word}: ${count}.`, ...[...refused].slice(0, 2)].join(" "));
    });
  }

  async #work(act) {
    this.#working = true;
    this.#say("");
    this.#schedule();
    try {
      await act();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.#say(`That did not work. ${problem.message}`);
    } finally {
      this.#working = false;
      this.refresh();
      this.#schedule();
    }
  }

  #say(text) {
    setText(byId("queue-note"), text);
  }

  #tick() {
    if (document.hidden || place.view !== "queue") return;
    for (const [id, row] of this.#rows) {
      const job = this.#store.jobs.get(id);
      if (job) row.tick(job);
    }
  }
}
