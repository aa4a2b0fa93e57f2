// One job in full: what it is for, where it is, what went wrong before, and everything that
// it was asked with.

const DETAIL_EVERY = 10_000;

class JobDetail {
  #dialog = byId("detail");
  #store;
  #actions;
  #poll;
  #id = null;
  #answer = null; // The job as it was last read over HTTP.
  #missing = ""; // Why there is nothing to show.
  #frame = 0;
  #drawn = {}; // What stands in each section, so that only a change is drawn.

  constructor(store, actions) {
    this.#store = store;
    this.#actions = actions;
    this.#poll = new Poll({
      ask: () => this.#ask(),
      every: () => DETAIL_EVERY,
      wanted: () => this.#id !== null && !TERMINAL.has(this.#answer?.status),
      failed: (problem) => {
        if (problem.status === 400 || problem.status === 404) this.#missing = "There is no such job, or it was deleted.";
        else if (problem.status === 410) this.#missing = "This job has ended, and is kept no longer.";
        else if (this.#answer === null) this.#missing = `The job cannot be read now. ${problem.message}`;
        this.#schedule();
      },
    });
    store.watch((id) => { if (id === this.#id) this.#heard(); });
    place.watch(() => this.#follow());
    this.#dialog.addEventListener("close", () => { if (place.job !== null) place.go({ job: null }); });
    closeBeside(this.#dialog, () => this.#dialog.close());
    byId("detail-close").addEventListener("click", () => this.#dialog.close());
    this.#connectButtons();
    setInterval(() => { if (this.#id !== null && !document.hidden) this.#schedule(); }, 1000);
  }

  #connectButtons() {
    const fail = (text) => setOptional(byId("detail-error"), text);
    const on = (name, act) => byId(`detail-${name}`).addEventListener("click", act);
    on("cancel", () => this.#actions.cancel(this.#id, fail));
    on("retry", async () => {
      const id = await this.#actions.retry(this.#id, fail);
      if (id) place.go({ job: id });
    });
    on("reuse", () => {
      const job = this.#job();
      this.#dialog.close();
      this.#actions.reuse(job.job_id, job.params);
    });
    on("remove", async () => {
      const sure = await confirmFirst({
        title: "Delete this job?", text: "Its images are deleted too. This cannot be taken back.", act: "Delete", keep: "Keep it",
      });
      if (sure && await this.#actions.remove(this.#id, fail)) this.#dialog.close();
    });
    on("link", () => copyFrom(byId("detail-link"), location.href));
    const priority = byId("detail-priority");
    priority.addEventListener("change", () => this.#actions.setPriority(this.#id, priority.value, fail));
  }

  // Opens, changes and closes as the address says.
  #follow() {
    if (place.job === this.#id) return;
    this.#id = place.job;
    this.#answer = null;
    this.#missing = "";
    this.#drawn = {};
    setOptional(byId("detail-error"), "");
    if (this.#id === null) {
      this.#dialog.close();
      return;
    }
    this.#draw();
    if (!this.#dialog.open) this.#dialog.showModal();
    byId("detail-scroll").scrollTop = 0;
    this.#poll.wake();
  }

  // A recorded step brings more than its message says: attempts, times, the end's details.
  #heard() {
    const job = this.#store.jobs.get(this.#id);
    if (this.#store.isRemoved(this.#id)) this.#missing = "This job was deleted.";
    // Forgotten for want of room, or because no list shows it: here it is still wanted.
    else if (!job) this.#store.applySnapshot(this.#answer);
    else if (job.status !== this.#answer?.status || job.attempt !== this.#answer?.attempt) this.#poll.nudge();
    this.#schedule();
  }

  async #ask() {
    const id = this.#id;
    const answer = await server.job(id);
    if (id !== this.#id) return;
    this.#answer = answer;
    this.#missing = "";
    this.#store.applySnapshot(answer);
    this.#schedule();
  }

  /** The job as it is now: live news over what was read. */
  #job() {
    const live = this.#store.jobs.get(this.#id);
    if (!live && !this.#answer) return null;
    const { error = live?.error, timeline = live?.timeline } = this.#answer ?? {};
    return { ...this.#answer, ...live, error: error ?? live?.error, timeline };
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#id !== null) this.#draw();
    });
  }

  #draw() {
    const job = this.#missing === "" ? this.#job() : null;
    setOptional(byId("detail-missing"), this.#missing || (job === null ? "Loading…" : ""));
    for (const part of ["detail-body", "detail-foot"]) setHidden(byId(part), job === null);
    setText(byId("detail-status"), job ? (STATUS_WORDS[job.status] ?? job.status) : "");
    setAttribute(this.#dialog, "data-status", job?.status ?? "");
    setHidden(byId("detail-status"), job === null);
    if (job === null) return;
    const params = job.params ?? {};
    setText(byId("detail-prompt"), params.prompt ? String(params.prompt) : "(no prompt known)");
    setOptional(byId("detail-when"), `Queued ${formatWhen(job.createdAt, serverClock.now())}`);
    this.#drawProgress(job);
    this.#drawButtons(job);
    this.#section("detail-images", picturesOf(job).map((it) => it.url), () => this.#images(job));
    this.#section("detail-failure", [job.status, job.error], () => failureNodes(job));
    this.#section("detail-timeline", timelineKey(job), () => timelineNodes(job));
    this.#section("detail-attempts", failedAttempts(job), () => attemptNodes(job));
    this.#section("detail-facts", factsKey(job), () => factNodes(job));
    this.#section("detail-params", params, () => settingNodes(params));
    this.#section("detail-info", job.generation_info ?? this.#answer?.generation_info, (info) => infoNodes(info));
  }

  // Draws a section anew when what it shows has changed: selections and focus survive the rest.
  #section(id, what, draw) {
    const key = JSON.stringify(what ?? null);
    if (this.#drawn[id] === key) return;
    this.#drawn[id] = key;
    const nodes = draw(what);
    byId(id).replaceChildren(...nodes);
    setHidden(byId(id), nodes.length === 0);
  }

  #drawProgress(job) {
    const running = job.status === "running";
    const waits = job.status === "pending";
    const stage = stageText(job);
    setHidden(byId("detail-meter"), !running);
    if (running) setText(byId("detail-percent"), `${showProgress(byId("detail-bar"), job, stage)} %`);
    const inQueue = waits && isNumber(job.position) ? `No. ${job.position} in line` : "";
    const speed = running && liveness.live ? formatSpeed(job.steps_per_second) : "";
    setOptional(byId("detail-stage"), inLine([stage, inQueue, stepText(job), speed, etaText(job) || startText(job)]));
    byId("detail-stage").classList.toggle("warn", isStuck(job) || (running && Boolean(job.stalled)));
    setOptional(byId("detail-hint"), waits && !job.cancelling ? (WAIT_WORDS[job.waiting_for]?.[1] ?? "") : "");
  }

  #drawButtons(job) {
    const ended = TERMINAL.has(job.status);
    const focused = document.activeElement;
    setHidden(byId("detail-cancel"), ended);
    byId("detail-cancel").disabled = Boolean(job.cancelling);
    setText(byId("detail-cancel"), job.cancelling ? "Cancelling" : "Cancel job");
    setHidden(byId("detail-remove"), !ended);
    setHidden(byId("detail-retry"), !ended);
    setText(byId("detail-retry"), job.status === "completed" ? "Render again" : "Retry");
    setHidden(byId("detail-reuse"), !job.params);
    setHidden(byId("detail-priority-field"), job.status !== "pending" || Boolean(job.cancelling));
    const priority = byId("detail-priority");
    if (document.activeElement !== priority) priority.value = job.priority ?? "normal";
    if (this.#dialog.contains(focused) && (focused.hidden || focused.disabled)) byId("detail-close").focus();
  }

  #images(job) {
    const pictures = picturesOf(job);
    return pictures.map((picture, index) => {
      const item = thumbnail(pictures, index);
      const save = element("a", { className: "button tiny", href: picture.url, download: picture.name, textContent: "Download" });
      save.setAttribute("aria-label", `Download image ${index + 1}`);
      const tools = element("div", { className: "image-tools" }, element("span", { textContent: picture.note }), save);
      const seed = String(picture.seed ?? "");
      if (seed) tools.append(copyButton(`the seed of image ${index + 1}`, () => seed, "Copy seed"));
      item.append(tools);
      return item;
    });
  }
}
