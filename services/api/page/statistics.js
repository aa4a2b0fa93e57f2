// Statistics: how much is done, how fast, how long it waits, and what fails; of all together
// and of each backend. Read while somebody looks, or told by the topic.

const STATS_EVERY = 5_000;
const STATS_EVERY_BESIDE_TOPIC = 30_000;
const HISTORY_EVERY = 60_000;
// A point each answer: some minutes of what is watched here. A young line begins at the right.
const SAMPLES = 120;
const SAMPLES_AT_LEAST = 24;
const OUTCOMES = [
  ["jobs_completed", "Completed", "good"],
  ["jobs_failed", "Failed", "bad"],
  ["jobs_cancelled", "Cancelled", "rest"],
];

// Figures, or a dash where there is none.
const number = (value, maximumFractionDigits = 0) =>
  (isNumber(value) ? value.toLocaleString("en-GB", { maximumFractionDigits }) : "–");
const seconds = (value) => (isNumber(value) ? formatDuration(value) : "–");
const share = (value) => (isNumber(value) ? formatPercent(value) : "–");

class Statistics {
  #panel;
  #fleet;
  #poll;
  #history = new Map(); // Window to the figures of all backends within it.
  #historyAt = -Infinity;
  #samples = { waiting: [], rate: [] };
  #store;

  /** `panel` takes the figures of each backend too, `fleet` what was asked of them. */
  constructor(store, panel, fleet) {
    this.#store = store;
    this.#panel = panel;
    this.#fleet = fleet;
    this.#poll = new Poll({
      ask: () => this.#ask(),
      every: () => (this.#isTold() ? STATS_EVERY_BESIDE_TOPIC : STATS_EVERY),
      wanted: () => place.view === "statistics" || place.view === "backends",
      failed: (problem) => showTrouble(byId("stats-error"), "Statistics cannot be read now.", problem),
    });
    for (const radio of document.querySelectorAll('input[name="stats-window"]')) {
      radio.addEventListener("change", () => place.go({ window: radio.value }, { step: false }));
    }
    place.watch((_, before) => {
      this.#showWindow();
      if (place.window !== before.window) this.#poll.wake();
    });
    this.#showWindow();
  }

  /** Asks now. */
  refresh() {
    this.#poll.wake();
  }

  /** Takes a message of the topic, which is about one window alone. */
  receive({ type, data }) {
    if (type === "stats" && data?.window === place.window) this.#take(data);
  }

  #isTold() {
    return topics.has("stats") && place.window === DEFAULT_WINDOW;
  }

  #showWindow() {
    for (const radio of document.querySelectorAll('input[name="stats-window"]')) radio.checked = radio.value === place.window;
  }

  async #ask() {
    const { window } = place;
    const stats = await server.statistics(window);
    if (window !== place.window) return;
    this.#take(stats);
    await this.#readHistory();
  }

  /** Takes statistics of the chosen window. */
  #take(stats) {
    if (!isNumber(stats?.window_seconds) || !stats.overall || !stats.queue) return;
    this.#panel.takeStats(stats);
    this.#fleet.takeModes(stats.backends ?? []);
    this.#sample(stats);
    showTrouble(byId("stats-error"));
    setHidden(byId("stats-loading"), true);
    setHidden(byId("stats-body"), false);
    if (place.view === "statistics") this.#draw(stats);
  }

  // Windows that end now lie within each other: the difference of two is what lies between.
  async #readHistory() {
    if (place.view !== "statistics" || performance.now() - this.#historyAt < HISTORY_EVERY) return;
    this.#historyAt = performance.now();
    for (const window of Object.keys(WINDOWS)) this.#history.set(window, await server.statistics(window));
    this.#drawHistory();
  }

  #sample(stats) {
    this.#push("waiting", stats.queue.pending);
    this.#push("rate", this.#stepsPerSecond());
  }

  /** Of all that renders now; null while that is not known. */
  #stepsPerSecond() {
    const running = [...this.#store.jobs.values()].filter((job) => job.status === "running");
    const rates = running.filter((job) => !job.stalled && isNumber(job.steps_per_second)).map((job) => job.steps_per_second);
    if (!liveness.live || (running.length > 0 && rates.length === 0)) return null;
    return rates.reduce((sum, rate) => sum + rate, 0);
  }

  #push(name, value) {
    const samples = this.#samples[name];
    samples.push(value);
    if (samples.length > SAMPLES) samples.shift();
  }

  #draw(stats) {
    const { overall, queue } = stats;
    this.#drawTiles(stats);
    this.#drawSamples();
    this.#drawOutcomes(overall);
    this.#drawErrors(overall);
    this.#drawBackends(stats);
    this.#drawDepths(queue);
    const short = overall.counted_seconds < stats.window_seconds - 1;
    const counted = formatDuration(overall.counted_seconds);
    setOptional(byId("stats-note"), short ? `Counted over the last ${counted}: so many jobs ended that no more are looked at.` : "");
  }

  #drawTiles({ overall, queue, throughput, backends }) {
    const oldest = queue.oldest_pending_seconds;
    const oldestText = isNumber(oldest) ? `, the oldest for ${formatDuration(oldest)}` : "";
    this.#tile("now", number(queue.running), `${plural(queue.pending, "job")} waiting${oldestText}`);
    const lately = throughput?.find((it) => it?.window === "5m");
    const latelyText = lately ? `; ${number(lately.jobs_per_hour, 1)} an hour in the last 5 min` : "";
    this.#tile("throughput", number(overall.jobs_per_minute * 60, 1),
      `jobs an hour; ${number(overall.images_completed)} images in all${latelyText}`);
    this.#tile("speed", number(overall.steps_per_second, 1),
      `steps a second while rendering; ${number(overall.steps_completed)} steps`);
    this.#tile("busy", share(overall.utilisation_ratio), `of the time of ${plural(backends?.length ?? 0, "backend")}`);
    const wait = overall.wait_seconds;
    this.#tile("wait", seconds(wait?.p50),
      wait ? `wait of the median job; nine of ten below ${formatDuration(wait.p90)}` : "no job was started yet");
    this.#tile("failed", share(overall.failure_ratio),
      `${plural(overall.jobs_failed, "job")} failed, ${plural(overall.retries, "attempt")} tried again`);
    byId("stats-failed").dataset.tone = overall.failure_ratio > 0.1 ? "bad" : "";
  }

  #tile(name, value, note) {
    setText(byId(`stats-${name}-value`), value);
    setText(byId(`stats-${name}-note`), note);
  }

  #drawSamples() {
    const { waiting, rate } = this.#samples;
    const latest = (values) => values.filter(isNumber).at(-1) ?? 0;
    const padded = (values) => [...Array(Math.max(0, SAMPLES_AT_LEAST - values.length)).fill(null), ...values];
    const most = Math.max(0, ...waiting.filter(isNumber));
    byId("chart-waiting").replaceChildren(sparkline(padded(waiting), `Jobs waiting, now ${latest(waiting)}, at most ${most}`));
    byId("chart-rate").replaceChildren(sparkline(padded(rate), `Steps a second, now ${number(latest(rate), 1)}`));
    setText(byId("chart-waiting-now"), number(latest(waiting)));
    setText(byId("chart-rate-now"), number(latest(rate), 1));
  }

  #drawHistory() {
    const columns = [];
    let inner = { jobs_completed: 0, jobs_failed: 0, seconds: 0, name: "now" };
    for (const [window, name] of Object.entries(WINDOWS)) {
      const stats = this.#history.get(window);
      const { overall } = stats ?? {};
      // Counted in part: what lies before is not known.
      if (!overall || overall.counted_seconds < stats.window_seconds - 1) break;
      const hours = (stats.window_seconds - inner.seconds) / 3600;
      const value = Math.max(0, overall.jobs_completed - inner.jobs_completed) / hours;
      const other = Math.max(0, overall.jobs_failed - inner.jobs_failed) / hours;
      const span = inner.name === "now" ? `the last ${name}` : `${name} to ${inner.name} ago`;
      const figures = `${number(value, 1)} completed and ${number(other, 1)} failed an hour`;
      columns.unshift({ value, other, name, words: `${capitalise(span)}: ${figures}` });
      inner = { ...overall, seconds: stats.window_seconds, name };
    }
    const top = Math.max(0, ...columns.map(({ value, other }) => value + other));
    byId("chart-history").replaceChildren(columnChart(columns, columns.map(({ words }) => words).join(". ")));
    setText(byId("chart-history-top"), `up to ${number(top, top < 10 ? 1 : 0)} an hour`);
  }

  #drawOutcomes(overall) {
    const parts = OUTCOMES.map(([field, name, tone]) => ({ value: overall[field] ?? 0, name, tone }));
    const bar = shareBar(parts, parts.map(({ value, name }) => `${value} ${name.toLowerCase()}`).join(", "));
    const legend = parts.map(({ value, name, tone }) => words("li", `key-${tone}`, `${name} ${number(value)}`));
    byId("chart-outcomes").replaceChildren(...(bar ? [bar] : []), element("ul", { className: "legend" }, ...legend));
  }

  #drawErrors(overall) {
    const errors = [...(overall.errors ?? [])].sort((a, b) => b.jobs_failed + b.retries - a.jobs_failed - a.retries);
    setHidden(byId("errors-none"), errors.length > 0);
    setHidden(byId("errors-table"), errors.length === 0);
    byId("errors-rows").replaceChildren(...errors.map((it) =>
      tableRow(words("code", "", String(it.code)), number(it.jobs_failed), number(it.retries))));
  }

  #drawBackends(stats) {
    const backends = [...(stats.backends ?? [])].sort((a, b) => a.id.localeCompare(b.id, "en", { numeric: true }));
    const all = { id: "All", ...stats.overall };
    const rows = backends.length > 1 ? [...backends, all] : backends;
    const top = Math.max(0.001, ...rows.map((it) => it.render_seconds?.max ?? 0));
    setHidden(byId("stats-backends-none"), rows.length > 0);
    setHidden(byId("stats-backends-table"), rows.length === 0);
    byId("stats-backends-rows").replaceChildren(...rows.map((it) => this.#backendRow(it, it === all, top)));
  }

  #backendRow(it, isAll, top) {
    const render = it.render_seconds;
    const time = element("div", { className: "render-cell" }, words("span", "", seconds(render?.p50)));
    if (render) {
      const [p50, p90, max] = [render.p50, render.p90, render.max].map(formatDuration);
      time.title = `Median ${p50}, nine of ten below ${p90}, longest ${max}`;
      time.append(spreadBar(render, top, time.title));
    }
    const busy = element("div", { className: "busy-cell" }, element("span", { textContent: share(it.utilisation_ratio) }));
    const fill = element("span", { className: "bar" }, element("span", { className: "bar-fill" }));
    fill.style.setProperty("--progress", Math.min(1, it.utilisation_ratio ?? 0).toFixed(3));
    busy.append(fill);
    const row = tableRow(it.id, number(it.jobs_completed), number(it.jobs_per_minute * 60, 1), number(it.steps_per_second, 1),
      busy, time, seconds(it.wait_seconds?.p50), share(it.failure_ratio));
    row.classList.toggle("total", isAll);
    row.dataset.testid = "stats-backend";
    row.lastElementChild.classList.toggle("bad", it.failure_ratio > 0.1);
    return row;
  }

  #drawDepths(queue) {
    const depths = queue.by_pool_and_priority ?? [];
    setHidden(byId("depths"), depths.length === 0);
    byId("depths-rows").replaceChildren(...depths.map((it) => tableRow(it.pool, capitalise(String(it.priority)),
      number(it.pending), number(it.running), seconds(it.oldest_pending_seconds))));
  }
}

/** A row of a table: the first cell names it. Cells are texts or nodes. */
function tableRow(name, ...cells) {
  const head = element("th", {}, name);
  head.scope = "row";
  return element("tr", {}, head, ...cells.map((cell) => element("td", {}, cell)));
}
