// What is known about each job. Two sources tell it: live messages, ordered by (attempt, seq),
// and answers over HTTP, which carry no sequence and may be older than what was just heard.

// More than the server lists as active at once, and as the page shows cards.
const MAX_JOBS = 2_000;
const MAX_REMOVED = 200;
const SEQ_TERMINAL = 2147483647;

// Fields that an answer may fill in at any time, since they do not change while a job runs.
const STABLE_FIELDS = ["params", "label", "priority", "model", "batch_id", "pool"];
const LIVE_FIELDS = ["status", "progress", "stage", "current_step", "total_steps", "image", "images_total",
  "steps_per_second", "source", "stalled", "backend", "cancelling", "images", "outputs", "error",
  "error_message", "total_duration", "reason", "position"];

class JobStore {
  jobs = new Map();
  #removed = new Set();
  #watchers = [];

  /** `told(id)` is called whenever a job appeared, changed or went. */
  watch(told) {
    this.#watchers.push(told);
  }

  /** Takes a live message; false if it is not about a job or is older than what is known. */
  applyMessage(message) {
    const data = message.data;
    if (typeof data?.job_id !== "string" || typeof data.status !== "string") return false;
    if (this.#removed.has(data.job_id)) return false;
    const job = this.jobs.get(data.job_id) ?? this.#create(data.job_id);
    const attempt = data.attempt ?? 0;
    const seq = data.seq ?? 0;
    if (attempt < job.attempt || (attempt === job.attempt && seq <= job.seq)) return false;
    const at = parseTime(message.timestamp) ?? serverClock.now();
    const update = { ...data };
    // In `progress_update` the field counts images; in `generation_complete` it lists them.
    if (isNumber(data.images)) {
      update.images_total = data.images;
      delete update.images;
    }
    if (message.type === "generation_started") Object.assign(update, { stage: "", current_step: null, image: null });
    if (message.type === "generation_retrying") job.retryAt = performance.now() + (data.next_attempt_in_seconds ?? 0) * 1000;
    this.#merge(job, attempt, seq, update);
    if (message.type === "generation_started") job.startedAt = at;
    if (TERMINAL.has(job.status)) job.finishedAt ??= at;
    this.#changed(job.job_id);
    return true;
  }

  /** Takes a job object from an HTTP answer. */
  applySnapshot(snapshot) {
    if (typeof snapshot?.job_id !== "string" || this.#removed.has(snapshot.job_id)) return;
    const job = this.jobs.get(snapshot.job_id) ?? this.#create(snapshot.job_id);
    for (const name of STABLE_FIELDS) job[name] = snapshot[name] ?? job[name];
    job.createdAt = parseTime(snapshot.created_at) ?? job.createdAt;
    job.startedAt ??= parseTime(snapshot.started_at);
    job.known = true;
    const attempt = snapshot.attempt ?? 0;
    const terminal = TERMINAL.has(snapshot.status);
    // Live news of the same attempt is at least as fresh, unless the job has ended since.
    const newer = attempt > job.attempt || job.seq < 0 || (terminal && !TERMINAL.has(job.status));
    if (newer && !(TERMINAL.has(job.status) && !terminal)) {
      job.finishedAt = parseTime(snapshot.finished_at) ?? job.finishedAt;
      this.#merge(job, Math.max(attempt, job.attempt), terminal ? SEQ_TERMINAL : -1, snapshot);
    } else {
      job.backend ??= snapshot.backend;
      job.cancelling ||= snapshot.cancelling;
    }
    if (snapshot.status === "pending" && job.status === "pending") this.#noteWait(job, snapshot);
    this.#changed(job.job_id);
  }

  // Where it waits is told over HTTP alone, and is as old as the answer.
  #noteWait(job, snapshot) {
    job.position = snapshot.position ?? job.position;
    if (snapshot.waiting_for === undefined) return;
    job.waiting_for = snapshot.waiting_for;
    job.startsAt = isNumber(snapshot.estimated_wait_seconds) ? performance.now() + snapshot.estimated_wait_seconds * 1000 : null;
  }

  /** Notes what this page itself just asked for, ahead of any answer. */
  patch(id, fields) {
    const job = this.jobs.get(id);
    if (!job) return;
    Object.assign(job, fields);
    this.#changed(id);
  }

  /** Forgets a job for good: a late message does not bring it back. */
  remove(id) {
    this.#removed.add(id);
    if (this.#removed.size > MAX_REMOVED) this.#removed.delete(this.#removed.values().next().value);
    this.#drop(id);
  }

  /** Whether a job was forgotten for good. */
  isRemoved(id) {
    return this.#removed.has(id);
  }

  /** Newest first. UUIDv7 ids sort by the time they were minted. */
  ordered() {
    return [...this.jobs.values()].sort((a, b) => (a.job_id < b.job_id ? 1 : -1));
  }

  /** Forgets ended jobs that are not wanted any more; they can be read again. */
  trim(wanted) {
    for (const job of [...this.jobs.values()]) if (TERMINAL.has(job.status) && !wanted(job)) this.#drop(job.job_id);
  }

  unfinished() {
    return [...this.jobs.values()].filter((job) => !TERMINAL.has(job.status));
  }

  #merge(job, attempt, seq, update) {
    const floor = attempt === job.attempt ? job.progress : 0;
    job.attempt = attempt;
    job.seq = seq;
    for (const name of LIVE_FIELDS) if (update[name] !== undefined) job[name] = update[name];
    for (const name of STABLE_FIELDS) if (update[name] != null) job[name] = update[name];
    job.progress = job.status === "completed" ? 1 : Math.max(floor, isNumber(update.progress) ? Math.min(1, update.progress) : 0);
    if (update.eta_seconds !== undefined) {
      job.etaAt = isNumber(update.eta_seconds) ? performance.now() + update.eta_seconds * 1000 : null;
    }
    if (!Array.isArray(job.images)) job.images = [];
    if (!Array.isArray(job.outputs)) job.outputs = [];
  }

  #create(id) {
    const job = { job_id: id, status: "pending", attempt: 0, seq: -1, progress: 0, images: [], outputs: [],
      createdAt: mintedAt(id) ?? serverClock.now(), startedAt: null, finishedAt: null, etaAt: null,
      waiting_for: null, startsAt: null, known: false };
    this.jobs.set(id, job);
    if (this.jobs.size > MAX_JOBS) this.#evict();
    return job;
  }

  // Finished jobs go first, oldest first: they can be read again from the server. A tenth at
  // once, since each time costs a look at all of them.
  #evict() {
    const rank = (job) => (TERMINAL.has(job.status) ? 0 : job.status === "pending" ? 1 : 2);
    const victims = this.ordered().reverse().sort((a, b) => rank(a) - rank(b)).slice(0, MAX_JOBS / 10);
    for (const job of victims) this.#drop(job.job_id);
  }

  #drop(id) {
    if (this.jobs.delete(id)) this.#changed(id);
  }

  #changed(id) {
    for (const told of this.#watchers) told(id);
  }
}
