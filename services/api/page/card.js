// One job as a card. The card is built once and then told what changed.

const STAGE_WORDS = {
  loading: "Loading model",
  preparing: "Preparing",
  sampling: "Sampling",
  hires: "Hires pass",
  detailing: "Detailing",
  decoding: "Decoding",
  saving: "Saving",
};

/** What the job is doing, in words. */
function stageText(job) {
  if (job.status === "pending") {
    if (job.cancelling) return "Cancelling";
    if (job.retryAt > performance.now()) return "Will be tried again";
    return job.attempt > 0 ? "Waiting to be tried again" : "Waiting for a backend";
  }
  if (job.status === "running") {
    if (job.cancelling) return "Cancelling";
    if (job.stalled) return "No progress for a while";
    return STAGE_WORDS[job.stage] ?? (job.stage ? capitalise(String(job.stage)) : "Starting");
  }
  return "";
}

class Card {
  #parts = {};
  #shownImages = "";

  /** `actions` has a method for each button, called with the job's id and the card. */
  constructor(id, actions) {
    this.id = id;
    this.root = byId("card-template").content.firstElementChild.cloneNode(true);
    for (const node of this.root.querySelectorAll("[data-part]")) this.#parts[node.dataset.part] = node;
    const parts = this.#parts;
    this.root.dataset.jobId = id;
    parts.prompt.id = `prompt-${id}`;
    this.root.setAttribute("aria-labelledby", parts.prompt.id);
    parts.bar.setAttribute("aria-labelledby", parts.prompt.id);
    setText(parts.id, shortId(id));
    parts.id.title = id;
    parts.cancel.addEventListener("click", () => actions.cancel(id, this));
    parts.reuse.addEventListener("click", () => actions.reuse(id));
    parts.remove.addEventListener("click", () => actions.remove(id, this));
    parts.copy.addEventListener("click", () => copyFrom(parts.copy, id));
  }

  render(job) {
    const parts = this.#parts;
    const terminal = TERMINAL.has(job.status);
    const params = job.params ?? {};
    setAttribute(this.root, "data-status", job.status);
    setAttribute(this.root, "data-attempt", job.attempt);
    setText(parts.status, STATUS_WORDS[job.status] ?? job.status);
    setOptional(parts.label, job.label ?? params.label ?? "");
    const priority = job.priority ?? params.priority ?? "normal";
    setOptional(parts.priority, priority === "normal" ? "" : `${capitalise(String(priority))} priority`);
    setText(parts.prompt, params.prompt ? String(params.prompt) : "(no prompt known)");
    this.#renderActions(job, terminal);
    this.#renderProgress(job, terminal);
    this.#renderError(job);
    this.#renderThumbs(job, params);
    this.#renderMeta(job, params);
    this.tick(job);
  }

  /** What changes with time alone: time left, time spent, age. */
  tick(job) {
    const parts = this.#parts;
    const now = serverClock.now();
    setText(parts.when, formatWhen(job.createdAt, now));
    const running = job.status === "running";
    const counting = running && isNumber(job.etaAt) && !job.stalled && !job.cancelling;
    const guess = counting && job.source && job.source !== "measured" ? "about " : "";
    setOptional(parts.eta, counting ? guess + formatEta((job.etaAt - performance.now()) / 1000) : "");
    let seconds = null;
    if (running && job.startedAt) seconds = (now - job.startedAt) / 1000;
    else if (isNumber(job.total_duration)) seconds = job.total_duration;
    setHidden(parts.elapsedRow, seconds === null);
    if (seconds !== null) {
      setText(parts.elapsedName, running ? "Elapsed" : "Took");
      setText(parts.elapsed, running ? formatWholeSeconds(seconds) : formatDuration(seconds));
    }
  }

  /** Says why a button of this card did not work. */
  showActionError(text) {
    setOptional(this.#parts.actionError, text);
  }

  #renderActions(job, terminal) {
    const parts = this.#parts;
    const focused = document.activeElement;
    setHidden(parts.cancel, terminal);
    parts.cancel.disabled = Boolean(job.cancelling);
    setText(parts.cancel, job.cancelling ? "Cancelling" : "Cancel");
    setHidden(parts.remove, !terminal);
    setHidden(parts.reuse, !job.params);
    // A button that goes takes the keyboard's place with it: hand that to the card.
    if (this.root.contains(focused) && (focused.hidden || focused.disabled)) this.root.focus({ preventScroll: true });
  }

  #renderProgress(job, terminal) {
    const parts = this.#parts;
    const percent = Math.floor(job.progress * 100 + 1e-9);
    setHidden(parts.meter, terminal);
    setAttribute(parts.bar, "aria-valuenow", percent);
    const stage = stageText(job);
    setAttribute(parts.bar, "aria-valuetext", [`${percent} %`, stage].filter(Boolean).join(", "));
    parts.bar.style.setProperty("--progress", job.progress.toFixed(4));
    setText(parts.percent, job.status === "running" ? `${percent} %` : "");
    setHidden(parts.facts, terminal);
    setOptional(parts.stage, stage);
    parts.stage.classList.toggle("warn", Boolean(job.stalled) && job.status === "running");
    const live = job.status === "running" && !job.cancelling;
    const steps = live && isNumber(job.current_step) && isNumber(job.total_steps) && job.total_steps > 0;
    setOptional(parts.step, steps ? `Step ${job.current_step} of ${job.total_steps}` : "");
    const images = live && isNumber(job.image) && isNumber(job.images_total) && job.images_total > 1;
    setOptional(parts.image, images ? `Image ${job.image} of ${job.images_total}` : "");
    setOptional(parts.speed, live ? formatSpeed(job.steps_per_second) : "");
  }

  #renderError(job) {
    const parts = this.#parts;
    const failed = job.status === "failed";
    setHidden(parts.error, !failed);
    if (!failed) return;
    setOptional(parts.errorCode, job.error?.code ? String(job.error.code) : "");
    setText(parts.errorText, String(job.error?.message ?? job.error_message ?? "No reason was given."));
  }

  #renderThumbs(job, params) {
    const key = job.images.join("\n");
    if (key === this.#shownImages) return;
    this.#shownImages = key;
    const list = this.#parts.thumbs;
    list.replaceChildren();
    job.images.forEach((address, index) => {
      const url = typeof address === "string" ? safeUrl(address) : null;
      if (url === null) return;
      const output = job.outputs[index] ?? {};
      const image = element("img", { alt: `Image ${index + 1} of ${job.images.length}`, decoding: "async" });
      image.dataset.testid = "thumbnail";
      // The size known beforehand keeps the page from jumping when the bytes arrive.
      image.width = output.width ?? params.width ?? 512;
      image.height = output.height ?? params.height ?? 512;
      image.src = url;
      const link = element("a", { href: url, target: "_blank", rel: "noopener" }, image);
      if (isNumber(output.seed)) link.title = `Seed ${output.seed}`;
      list.append(element("li", {}, link));
    });
    setHidden(list, list.childElementCount === 0);
  }

  #renderMeta(job, params) {
    const parts = this.#parts;
    const row = (name, text) => {
      setHidden(parts[`${name}Row`], text === "");
      setText(parts[name], text);
    };
    row("backend", job.backend ? String(job.backend) : "");
    row("attempt", job.attempt > 0 ? String(job.attempt) : "");
    const first = job.outputs[0];
    const width = first?.width ?? params.width;
    const height = first?.height ?? params.height;
    row("size", isNumber(width) && isNumber(height) ? `${width} × ${height}` : "");
    const seed = first?.seed ?? params.seed;
    row("seed", isNumber(seed) && seed >= 0 ? String(seed) : "");
  }
}
