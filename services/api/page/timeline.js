// Where a job's time went: moments in their order, and what lies between them as a bar.

// Each moment after the queue, and what the time up to it was spent on.
const MOMENTS = [
  ["dispatched", "Given to a backend", "wait"],
  ["started", "Started", "wait"],
  ["posted", "Sent to SD.Next", "prepare"],
  ["model_loaded", "Checkpoint loaded", "load"],
  ["first_step", "First step done", "prepare"],
  ["sampled", "Sampled", "sample"],
  ["decoded", "Decoded", "decode"],
  ["rendered", "Answer arrived", "decode"],
  ["stored", "Images stored", "store"],
  ["recorded", "Ended", "store"],
];
const SPAN_WORDS = {
  wait: "Waiting", prepare: "Preparing", load: "Loading", sample: "Sampling", decode: "Decoding", store: "Storing",
  render: "Rendering", failed: "Failed attempts",
};

/** Milliseconds between two moments: of these even short ones tell something. */
const formatSpan = (span) => (span < 1000 ? `${Math.round(span)} ms` : formatDuration(span / 1000));

/** The moments that are known, each with its name, time in milliseconds, and what the time before it was spent on. */
function momentsOf(job) {
  const told = job.timeline ?? {};
  const moments = [];
  const add = (key, name, span, at) => { if (isNumber(at)) moments.push({ key, name, span, at }); };
  const times = { queued: job.createdAt, started: job.startedAt, recorded: job.finishedAt };
  const at = (key) => parseTime(told[key]) ?? (job.timeline ? null : times[key]);
  add("queued", "Queued", null, at("queued"));
  for (const earlier of Array.isArray(told.earlier) ? told.earlier : []) {
    add("failed-start", `Attempt ${earlier.attempt} started`, "wait", parseTime(earlier.started));
    add("failed", `Attempt ${earlier.attempt} failed: ${earlier.code}`, "failed", parseTime(earlier.recorded));
  }
  for (const [key, name, span] of MOMENTS) add(key, name, span, at(key));
  // Several clocks: what seems to be out of order is shown in the order of life, at no distance.
  for (let index = 1; index < moments.length; index += 1) moments[index].at = Math.max(moments[index].at, moments[index - 1].at);
  return moments;
}

const timelineKey = (job) => [job.timeline, job.createdAt, job.startedAt, job.finishedAt, job.status];

function timelineNodes(job) {
  const moments = momentsOf(job);
  if (moments.length < 2) return [];
  const first = moments[0].at;
  const total = moments.at(-1).at - first;
  const nodes = [heading("Timeline", words("span", "hint", total > 0 ? formatSpan(total) : ""))];
  if (total > 0) nodes.push(timelineBar(moments, total));
  const items = moments.map(({ name, at }, index) => {
    const since = index === 0 ? "" : `+${formatSpan(at - moments[index - 1].at)}`;
    const time = element("time", { textContent: secondFormat.format(at), title: momentFormat.format(at) });
    return element("li", {}, words("span", "", name), time, words("span", "hint", since));
  });
  nodes.push(element("ol", { className: "moments" }, ...items));
  const late = job.timeline?.resolution_seconds;
  if (isNumber(late) && late > 0) {
    nodes.push(words("p", "hint", `From the checkpoint to decoding: read off SD.Next's progress, so up to ${formatDuration(late)} late.`));
  }
  return nodes;
}

/** One bar of spans, with a legend of those that can be seen. */
function timelineBar(moments, total) {
  const spans = new Map();
  const bar = drawing("svg", { class: "spans", viewBox: "0 0 1000 12", preserveAspectRatio: "none", "aria-hidden": "true" });
  const rendered = moments.some(({ key }) => key === "sampled" || key === "posted");
  for (let index = 1; index < moments.length; index += 1) {
    const { at, span, key } = moments[index];
    // Without the moments in between, start to end is all that is known of a render.
    const kind = key === "recorded" && !rendered && moments.some((it) => it.key === "started") ? "render" : span;
    const from = (moments[index - 1].at - moments[0].at) / total;
    const width = (at - moments[index - 1].at) / total;
    spans.set(kind, (spans.get(kind) ?? 0) + at - moments[index - 1].at);
    if (width > 0) bar.append(box(`span-${kind}`, from * 1000, 0, Math.max(1.5, width * 1000), 12));
  }
  const legend = element("ul", { className: "legend" }, ...[...spans].filter(([, time]) => time > 0).map(([kind, time]) =>
    element("li", { className: `key-${kind}` }, `${SPAN_WORDS[kind]} ${formatSpan(time)}`)));
  return element("div", { className: "timeline-bar" }, bar, legend);
}
