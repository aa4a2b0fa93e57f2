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
    const pause = (job.retryAt - performance.now()) / 1000;
    if (pause > 0) return `Tried again in ${formatWholeSeconds(Math.ceil(pause))}`;
    if (job.waiting_for in WAIT_WORDS && job.waiting_for !== "ahead") return WAIT_WORDS[job.waiting_for][0];
    return job.attempt > 0 ? "Waiting to be tried again" : "Waiting for its turn";
  }
  if (job.status === "running") {
    if (job.cancelling) return "Cancelling";
    if (job.stalled) return "No progress for a while";
    return STAGE_WORDS[job.stage] ?? (job.stage ? capitalise(String(job.stage)) : "Starting");
  }
  return "";
}

/** Whether something must be done before a waiting job can begin. */
const isStuck = (job) => job.status === "pending" && STUCK.has(job.waiting_for) && !job.cancelling;

/** When a waiting job begins, as far as that is known. */
function startText(job) {
  if (job.status !== "pending" || job.cancelling || !isNumber(job.startsAt)) return "";
  return capitalise(formatStart((job.startsAt - performance.now()) / 1000));
}

/** Which step of how many; empty where no step is under way. */
function stepText(job) {
  const known = isNumber(job.current_step) && isNumber(job.total_steps) && job.total_steps > 0;
  return job.status === "running" && !job.cancelling && known ? `Step ${job.current_step} of ${job.total_steps}` : "";
}

/** How a running job's time left reads; empty where it is not known, or not live. */
function etaText(job) {
  const counting = job.status === "running" && isNumber(job.etaAt) && !job.stalled && !job.cancelling && liveness.live;
  if (!counting) return "";
  const left = (job.etaAt - performance.now()) / 1000;
  const guess = job.source && job.source !== "measured" && left >= 1 ? "about " : "";
  return guess + formatEta(left);
}

/** A bar, drawn and told to screen readers. */
function showProgress(bar, job, stage) {
  const percent = Math.floor(job.progress * 100 + 1e-9);
  setAttribute(bar, "aria-valuenow", percent);
  setAttribute(bar, "aria-valuetext", [`${percent} %`, stage].filter(Boolean).join(", "));
  bar.style.setProperty("--progress", job.progress.toFixed(4));
  return percent;
}

/** A small image that opens large; as a link, so that it can be opened elsewhere too. */
function thumbnail(pictures, index) {
  const picture = pictures[index];
  const image = element("img", { alt: picture.alt, decoding: "async", loading: "lazy" });
  image.dataset.testid = "thumbnail";
  // The size known beforehand keeps the page from jumping when the bytes arrive.
  image.width = picture.width;
  image.height = picture.height;
  image.src = picture.url;
  const link = element("a", { href: picture.url, target: "_blank", rel: "noopener", title: picture.note }, image);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    lightbox.open(pictures, index);
  });
  const item = element("li", {}, link);
  if (picture.partial) item.append(element("span", { className: "thumb-note", textContent: "kept from a failed try" }));
  return item;
}

class Card {
  #parts;
  #shownImages = "";

  /** `actions` has a method for each button, called with the job's id and what takes a refusal. */
  constructor(id, actions) {
    this.id = id;
    const { root, parts } = fromTemplate("card-template");
    this.root = root;
    this.#parts = parts;
    this.root.dataset.jobId = id;
    parts.prompt.id = `prompt-${id}`;
    this.root.setAttribute("aria-labelledby", parts.prompt.id);
    parts.bar.setAttribute("aria-labelledby", parts.prompt.id);
    setText(parts.id, shortId(id));
    parts.id.title = `Copy the id ${id}`;
    leadTo(parts.prompt, { job: id });
    parts.label.addEventListener("click", () => place.go({ filters: { ...place.filters, label: parts.label.textContent } }));
    parts.batch.addEventListener("click", () => place.go({ filters: { ...place.filters, batch: parts.batch.dataset.batch } }));
    const fail = (text) => setOptional(parts.actionError, text);
    parts.cancel.addEventListener("click", () => actions.cancel(id, fail));
    parts.reuse.addEventListener("click", () => actions.reuse(id));
    parts.retry.addEventListener("click", () => actions.retry(id, fail));
    parts.remove.addEventListener("click", () => actions.remove(id, fail));
    parts.id.addEventListener("click", () => copyFrom(parts.id, id));
    parts.seed.addEventListener("click", () => copyFrom(parts.seed, parts.seed.dataset.seed));
    parts.raise.addEventListener("click", () => actions.setPriority(id, "high", fail));
  }

  render(job) {
    const parts = this.#parts;
    const terminal = TERMINAL.has(job.status);
    const params = job.params ?? {};
    setAttribute(this.root, "data-status", job.status);
    setAttribute(this.root, "data-attempt", job.attempt);
    setText(parts.status, STATUS_WORDS[job.status] ?? job.status);
    const label = String(job.label ?? params.label ?? "");
    setHidden(parts.label, label === "");
    if (label) setText(parts.label, label);
    setHidden(parts.batch, !job.batch_id);
    if (job.batch_id) parts.batch.dataset.batch = job.batch_id;
    const priority = job.priority ?? params.priority ?? "normal";
    setOptional(parts.priority, priority === "normal" ? "" : `${capitalise(String(priority))} priority`);
    setText(parts.prompt, params.prompt ? String(params.prompt) : "(no prompt known)");
    this.#renderActions(job, terminal);
    this.#renderProgress(job, terminal);
    this.#renderError(job);
    this.#renderThumbs(job);
    this.#renderMeta(job, params);
    this.tick(job);
  }

  /** What changes with time alone: time left, time spent, age. */
  tick(job) {
    const parts = this.#parts;
    const now = serverClock.now();
    setText(parts.when, formatWhen(job.createdAt, now));
    const running = job.status === "running";
    setOptional(parts.eta, etaText(job) || startText(job));
    if (job.status === "pending") setOptional(parts.stage, stageText(job));
    let seconds = null;
    if (running && job.startedAt) seconds = liveness.live ? (now - job.startedAt) / 1000 : null;
    else if (isNumber(job.total_duration)) seconds = job.total_duration;
    setHidden(parts.elapsedRow, seconds === null);
    if (seconds !== null) {
      setText(parts.elapsedName, running ? "Elapsed" : "Took");
      setText(parts.elapsed, running ? formatWholeSeconds(seconds) : formatDuration(seconds));
    }
  }

  #renderActions(job, terminal) {
    const parts = this.#parts;
    const focused = document.activeElement;
    setHidden(parts.cancel, terminal);
    parts.cancel.disabled = Boolean(job.cancelling);
    setText(parts.cancel, job.cancelling ? "Cancelling" : "Cancel");
    setHidden(parts.remove, !terminal);
    setHidden(parts.reuse, !job.params);
    setHidden(parts.retry, job.status !== "failed" && job.status !== "cancelled");
    const priority = job.priority ?? job.params?.priority ?? "normal";
    setHidden(parts.raise, job.status !== "pending" || job.cancelling || priority === "high");
    // A button that goes takes the keyboard's place with it: hand that to the card.
    if (this.root.contains(focused) && (focused.hidden || focused.disabled)) this.root.focus({ preventScroll: true });
  }

  #renderProgress(job, terminal) {
    const parts = this.#parts;
    setHidden(parts.meter, job.status !== "running");
    const stage = stageText(job);
    const percent = showProgress(parts.bar, job, stage);
    setText(parts.percent, job.status === "running" ? `${percent} %` : "");
    setHidden(parts.facts, terminal);
    setOptional(parts.stage, stage);
    parts.stage.classList.toggle("warn", (Boolean(job.stalled) && job.status === "running") || isStuck(job));
    const queued = job.status === "pending" && isNumber(job.position) && !job.cancelling;
    setOptional(parts.place, queued ? `No. ${job.position} in line` : "");
    const live = job.status === "running" && !job.cancelling;
    setOptional(parts.step, stepText(job));
    const images = live && isNumber(job.image) && isNumber(job.images_total) && job.images_total > 1;
    setOptional(parts.image, images ? `Image ${job.image} of ${job.images_total}` : "");
    setOptional(parts.speed, live && liveness.live ? formatSpeed(job.steps_per_second) : "");
  }

  #renderError(job) {
    const parts = this.#parts;
    const failed = job.status === "failed";
    setHidden(parts.error, !failed);
    if (!failed) return;
    setOptional(parts.errorCode, job.error?.code ? String(job.error.code) : "");
    setText(parts.errorText, String(job.error?.message ?? job.error_message ?? "No reason was given."));
  }

  #renderThumbs(job) {
    const pictures = picturesOf(job);
    const key = pictures.map((picture) => picture.url).join("\n");
    if (key === this.#shownImages) return;
    this.#shownImages = key;
    this.#parts.thumbs.replaceChildren(...pictures.map((_, index) => thumbnail(pictures, index)));
    setHidden(this.#parts.thumbs, pictures.length === 0);
    this.#parts.thumbs.dataset.columns = pictures.length > 4 ? "3" : pictures.length > 1 ? "2" : "1";
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
    const drawn = isNumber(seed) && seed >= 0;
    setHidden(parts.seedRow, !drawn);
    if (drawn && parts.seed.dataset.seed !== String(seed)) {
      parts.seed.dataset.seed = String(seed);
      setText(parts.seed, String(seed));
    }
  }
}
