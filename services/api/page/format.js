// How numbers, times and states read.

const STATUS_WORDS = {
  pending: "Waiting",
  running: "Running",
  completed: "Completed",
  failed: "Failed",
  cancelled: "Cancelled",
};

// Why a job waits: a few words for a row, and what can be done about it.
const WAIT_WORDS = {
  ahead: ["Others are served first",
    "It gets its turn by priority and age."],
  model_swap: ["Its checkpoint is not loaded",
    "Jobs for the loaded checkpoint go first for a while; then its own is loaded for it."],
  no_capable_backend: ["No backend serves it",
    "No backend that was heard of lately serves its pool, or is the one it asks for. It waits until one does."],
  paused: ["Backends are paused",
    "Each backend that could take it is paused or draining. It waits until one is resumed."],
  backend_down: ["Backends are down",
    "Each backend that could take it cannot be reached, or is in quarantine. It waits until one is back."],
  foreign_work: ["Backends work for others",
    "Each backend that could take it renders for somebody else. That is never interrupted."],
};
// These do not pass by waiting alone.
const STUCK = new Set(["no_capable_backend", "paused", "backend_down"]);

const TERMINAL = new Set(["completed", "failed", "cancelled"]);

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Seconds as a person says them: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`. */
function formatDuration(seconds) {
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** For what counts while one watches: tenths that tick only distract. */
function formatWholeSeconds(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return whole < 60 ? `${whole} s` : formatDuration(whole);
}

const formatEta = (seconds) => (seconds < 1 ? "almost done" : `${formatWholeSeconds(Math.ceil(seconds))} left`);

/** Steps a second, or seconds a step once that is the more telling number. */
function formatSpeed(stepsPerSecond) {
  if (!isNumber(stepsPerSecond) || stepsPerSecond <= 0) return "";
  return stepsPerSecond >= 1
    ? `${stepsPerSecond.toFixed(1)} steps/s`
    : `${(1 / stepsPerSecond).toFixed(1)} s/step`;
}

/** A guess of seconds, no finer than it is good for. */
function formatAbout(seconds) {
  if (seconds < 3) return "any moment";
  if (seconds < 60) return `about ${seconds < 15 ? Math.round(seconds) : Math.round(seconds / 5) * 5} s`;
  if (seconds < 3600) return `about ${Math.round(seconds / 60)} min`;
  return `about ${formatDuration(seconds)}`;
}

/** When something begins. */
function formatStart(seconds) {
  return seconds < 3 ? "starts any moment" : `starts in ${formatAbout(seconds)}`;
}

/** Bytes as a person says them. */
function formatBytes(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1024 * 1024 ? `${Math.round(bytes / 1024)} KB` : `${(bytes / 1024 / 1024).toFixed(1)} MB`;
}

const formatPercent = (part) => `${(part * 100).toFixed(part > 0 && part < 0.1 ? 1 : 0)} %`;

const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en-GB")} ${count === 1 ? one : many}`;

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const dateFormat = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
const secondFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const momentFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const logFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });

/** `ago` for the last minutes, then the time of day, then the date. */
function formatWhen(milliseconds, now) {
  const age = (now - milliseconds) / 1000;
  if (age < 10) return "just now";
  if (age < 60) return `${Math.floor(age / 10) * 10} s ago`;
  if (age < 3600) return `${Math.floor(age / 60)} min ago`;
  return age < 12 * 3600 ? clockFormat.format(milliseconds) : dateFormat.format(milliseconds);
}

// The server's clock, as far as its messages tell: times in them count from there, and this
// machine's own clock may be minutes off.
const serverClock = {
  offset: 0,
  set(milliseconds) { this.offset = milliseconds - Date.now(); },
  now() { return Date.now() + this.offset; },
};

const capitalise = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** The head of an id: the tail of a UUIDv7 is random, so both ends tell jobs apart. */
const shortId = (id) => (id.length > 14 ? `${id.slice(0, 8)}…${id.slice(-4)}` : id);

/** When a UUIDv7 was minted, in milliseconds, or null for another kind of id. */
function mintedAt(id) {
  if (!/^[0-9a-f]{8}-[0-9a-f]{4}-7/i.test(id)) return null;
  return Number.parseInt(id.slice(0, 8) + id.slice(9, 13), 16);
}

/** Parses an RFC 3339 time to milliseconds, or null. */
function parseTime(text) {
  const milliseconds = Date.parse(text ?? "");
  return Number.isNaN(milliseconds) ? null : milliseconds;
}
