// Small drawings. Each is a picture for the eye with one sentence for screen readers; the
// exact figures stand in tables beside them.

/** An empty picture that fills its place, and says `words` to who cannot see it. */
function picture(kind, viewBox, words) {
  return drawing("svg", { class: kind, viewBox, preserveAspectRatio: "none", role: "img", "aria-label": words });
}

const box = (kind, x, y, width, height) =>
  drawing("rect", { class: kind, x: x.toFixed(2), y: y.toFixed(2), width: width.toFixed(2), height: height.toFixed(2) });

/** A line over time, from the oldest value to the newest; nulls are gaps. `words` says what it shows. */
function sparkline(values, words, { width = 240, height = 48 } = {}) {
  const chart = picture("sparkline", `0 0 ${width} ${height}`, words);
  const known = values.filter(isNumber);
  const top = Math.max(...known, 0) || 1;
  const step = values.length > 1 ? width / (values.length - 1) : width;
  const point = (value, index) => [(index * step).toFixed(1), (height - 2 - (value / top) * (height - 6)).toFixed(1)];
  chart.append(drawing("line", { class: "axis", x1: 0, x2: width, y1: height - 1, y2: height - 1 }));
  for (const run of runsOf(values)) {
    const points = run.map(([value, index]) => point(value, index));
    const line = points.map(([x, y]) => `${x},${y}`).join(" ");
    const [from] = points[0];
    const [to] = points.at(-1);
    if (points.length > 1) {
      chart.append(drawing("polygon", { class: "area", points: `${from},${height - 1} ${line} ${to},${height - 1}` }));
    }
    chart.append(drawing("polyline", { class: "line", points: points.length > 1 ? line : `${line} ${line}` }));
  }
  return chart;
}

/** The stretches of `values` without a gap, as pairs of value and index. */
function runsOf(values) {
  const runs = [];
  let run = null;
  values.forEach((value, index) => {
    if (!isNumber(value)) run = null;
    else if (run) run.push([value, index]);
    else runs.push((run = [[value, index]]));
  });
  return runs;
}

/** One bar of several parts, `{ value, tone, name }`, that fill it together; null if there is nothing. */
function shareBar(parts, words) {
  const total = parts.reduce((sum, { value }) => sum + value, 0);
  if (total <= 0) return null;
  const chart = picture("share", "0 0 1000 10", words);
  let at = 0;
  for (const { value, tone } of parts) {
    const width = (value / total) * 1000;
    if (value > 0) chart.append(box(`tone-${tone}`, at, 0, Math.max(3, width), 10));
    at += width;
  }
  return chart;
}

/** How durations lie, on a common scale up to `top` seconds: to the median, to nine of ten, and the longest. */
function spreadBar(spread, top, words) {
  const chart = picture("spread", "0 0 1000 14", words);
  const x = (seconds) => Math.min(1000, Math.max(0, (seconds / top) * 1000));
  chart.append(
    drawing("line", { class: "axis", x1: 0, x2: x(spread.max), y1: 7, y2: 7 }),
    box("spread-p90", 0, 3, x(spread.p90), 8),
    box("spread-p50", 0, 3, x(spread.p50), 8),
    drawing("line", { class: "spread-max", x1: x(spread.max), x2: x(spread.max), y1: 1, y2: 13 }));
  return chart;
}

/** Columns side by side, `{ value, other, name, words }`; `other` stands on top in the tone of a failure. */
function columnChart(columns, words) {
  const top = Math.max(...columns.map(({ value, other }) => value + other), 0) || 1;
  const width = 100 / columns.length;
  const height = 100;
  const chart = picture("columns", `0 0 100 ${height}`, words);
  columns.forEach(({ value, other, words: title }, index) => {
    const x = index * width + width * 0.14;
    const wide = width * 0.72;
    const low = (value / top) * (height - 2);
    const high = (other / top) * (height - 2);
    const column = drawing("g", {}, drawing("title", {}, title), box("column-ground", x, 0, wide, height));
    if (value > 0) column.append(box("tone-main", x, height - low, wide, low));
    if (other > 0) column.append(box("tone-bad", x, height - low - high, wide, high));
    chart.append(column);
  });
  const names = columns.map(({ name }) => element("span", { textContent: name }));
  const legend = element("div", { className: "column-names" }, ...names);
  legend.setAttribute("aria-hidden", "true");
  return element("div", {}, chart, legend);
}
