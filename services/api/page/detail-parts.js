// The sections of a job's details that change seldom: made anew from the job each time.

/** A list of names and values; `copy` is what a button beside the value copies. */
function factList(facts) {
  return element("dl", { className: "facts-list" }, ...facts.map(({ name, value, copy, change, mono }) => {
    const text = element(change ? "a" : "span", { textContent: value, className: mono ? "mono" : "" });
    if (change) leadTo(text, change);
    const cell = element("dd", {}, text);
    if (copy) cell.append(copyButton(name.toLowerCase(), () => copy));
    return element("div", {}, element("dt", { textContent: name }), cell);
  }));
}

function heading(text, ...beside) {
  return element("div", { className: "detail-heading" }, element("h3", { textContent: text }), ...beside);
}

function failureNodes(job) {
  if (job.status !== "failed" && !(job.status === "cancelled" && job.error?.message)) return [];
  const failed = job.status === "failed";
  const message = String(job.error?.message ?? job.error_message ?? "No reason was given.");
  const sentence = element("p", {}, message);
  if (job.error?.code) sentence.prepend(words("code", "", String(job.error.code)), " ");
  const frame = element("div", { className: failed ? "card-error" : "note-box" }, sentence);
  if (failed && job.error?.retryable === false) {
    frame.append(words("p", "hint", "The same request would fail again: change it before you retry."));
  }
  if (job.error?.answer !== undefined) frame.append(jsonDetails("What the server answered", job.error.answer));
  return [frame];
}

function jsonDetails(title, value) {
  const text = JSON.stringify(value, null, 2);
  const code = element("pre", { textContent: text, tabIndex: 0 });
  return element("details", { className: "json" }, words("summary", "", title), code);
}

/** The attempts that failed: with their sentences where the job failed, else with what its timeline tells. */
const failedAttempts = (job) => job.error?.attempts ?? job.timeline?.earlier ?? [];

function attemptNodes(job) {
  const attempts = failedAttempts(job);
  if (!Array.isArray(attempts) || attempts.length === 0) return [];
  const items = attempts.map((it) => {
    const at = parseTime(it.ended_at ?? it.recorded);
    const where = [` on ${it.backend ?? "no backend"}`, at === null ? "" : momentFormat.format(at)].filter(Boolean).join(", ");
    return element("li", {},
      element("p", {}, element("strong", { textContent: `Attempt ${it.attempt}` }), where),
      element("p", { className: "hint" }, element("code", { textContent: String(it.code ?? "") }), ` ${it.message ?? ""}`));
  });
  return [heading("Attempts that failed"), element("ol", { className: "attempts" }, ...items)];
}

const factsKey = (job) => [job.job_id, job.backend, job.attempt, job.pool, job.priority, job.model, job.label, job.batch_id,
  job.createdAt, job.startedAt, job.finishedAt, job.total_duration, job.outputs?.length, job.generation_info?.seed];

function factNodes(job) {
  const params = job.params ?? {};
  const facts = [{ name: "Id", value: job.job_id, copy: job.job_id, mono: true }];
  const add = (name, value, more = {}) => {
    if (value !== null && value !== undefined && value !== "") facts.push({ name, value: String(value), ...more });
  };
  const filtered = (filters) => ({ view: "jobs", job: null, filters });
  const moment = (time) => (isNumber(time) ? momentFormat.format(time) : null);
  const seeds = (job.outputs ?? []).map((output) => output?.seed).filter(isNumber);
  const seed = seeds.length > 0 ? seeds.join(", ") : isNumber(params.seed) && params.seed >= 0 ? String(params.seed) : "";
  add("Seed", seed, { copy: seed, mono: true });
  const size = job.outputs?.[0] ?? params;
  if (isNumber(size.width) && isNumber(size.height)) add("Size", `${size.width} × ${size.height}`);
  const bytes = (job.outputs ?? []).reduce((sum, output) => sum + (isNumber(output?.bytes) ? output.bytes : 0), 0);
  if (bytes > 0) add("Bytes", formatBytes(bytes));
  add("Backend", job.backend, { change: filtered({ backend: job.backend }) });
  add("Attempt", job.attempt > 0 ? job.attempt : null);
  add("Priority", capitalise(String(job.priority ?? "normal")));
  add("Pool", job.pool);
  add("Checkpoint", job.model, { change: filtered({ model: job.model }) });
  add("Label", job.label, { change: filtered({ label: job.label }) });
  if (job.batch_id) {
    add("Batch", shortId(job.batch_id), { copy: job.batch_id, mono: true, change: filtered({ batch: job.batch_id }) });
  }
  add("Queued", moment(job.createdAt));
  add("Started", moment(job.startedAt));
  add("Ended", moment(job.finishedAt));
  if (isNumber(job.total_duration)) add("Took", formatDuration(job.total_duration));
  return [heading("Facts"), factList(facts)];
}

const SETTING_WORDS = {
  sampler_name: "Sampler", cfg_scale: "CFG scale", n_iter: "Images", denoising_strength: "Denoising", model: "Checkpoint",
  init_images: "Start image", max_attempts: "Attempts at most", deadline_seconds: "Deadline in seconds",
  backend: "Asked for backend",
};

/** What it was asked with, as sent. */
function settingNodes(params) {
  const facts = [];
  const put = (name, value, prefix = "") => {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      for (const [inner, it] of Object.entries(value)) put(inner, it, `${prefix}${name}.`);
      return;
    }
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const plain = SETTING_WORDS[name] ?? capitalise(name.replaceAll("_", " "));
    facts.push({ name: prefix ? `${prefix}${name}` : plain, value: text });
  };
  for (const [name, value] of Object.entries(params)) if (name !== "prompt") put(name, value);
  const copy = copyButton("the request as JSON", () => JSON.stringify(params, null, 2), "Copy JSON");
  const none = words("p", "hint", "Nothing but the prompt was set.");
  return [heading("Settings", copy), facts.length > 0 ? factList(facts) : none];
}

/** SD.Next's own description of the images. */
function infoNodes(info) {
  return info ? [jsonDetails("What SD.Next says of the images", info)] : [];
}
