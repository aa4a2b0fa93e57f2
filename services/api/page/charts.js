// Small drawings. Each is a picture for the eye with one sentence for screen readers; the
// exact figures stand in tables beside them.

/** A line over time, from the oldest value to the newest; nulls are gaps. `words` says what it shows. */
function sparkline(values, words, { width = 240, height = 48 } = {}) {
  const picture = drawing("svg", { class: "sparkline", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": words });
  const known = values.filter(isNumber);
  const top = Math.max(...known, 0) || 1;
  const step = values.length > 1 ? width / (values.length - 1) : width;
  const point = (value, index) => [(index * step).toFixed(1), (height - 2 - (value / top) * (height - 6)).toFixed(1)];
  picture.append(drawing("line", { class: "axis", x1: 0, x2: width, y1: height - 1, y2: height - 1 }));
  for (const run of runsOf(values)) {
    const points = run.map(([value, index]) => point(value, index));
    const line = points.map(([x, y]) => `${x},${y}`).join(" ");
    const [first] = points;
    const last = points.at(-1);
    if (points.length > 1) picture.append(drawing("polygon", { class: "area", points: `${first[0]},${height - 1} ${line} ${last[0]},${height - 1}` }));
    picture.append(drawing("polyline", { class: "line", points: points.length > 1 ? line : `${line} ${line}` }));
  }
  return picture;
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
  const picture = drawing("svg", { class: "share", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": words });
  let at = 0;
  for (const { value, tone } of parts) {
    const width = (value / total) * 1000;
    if (value > 0) picture.append(drawing("rect", { class: `tone-${tone}`, x: at.toFixed(1), y: 0, width: Math.max(3, width).toFixed(1), height: 10 }));
    at += width;
  }
  return picture;
}

/** How durations lie, on a common scale up to `top` seconds: to the median, to nine of ten, and the longest. */
function spreadBar(spread, top, words) {
  const picture = drawing("svg", { class: "spread", viewBox: "0 0 1000 14", preserveAspectRatio: "none", role: "img", "aria-label": words });
  const x = (seconds) => Math.min(1000, Math.max(0, (seconds / top) * 1000)).toFixed(1);
  picture.append(
    drawing("line", { class: "axis", x1: 0, x2: x(spread.max), y1: 7, y2: 7 }),
    drawing("rect", { class: "spread-p90", x: 0, y: 3, width: x(spread.p90), height: 8 }),
    drawing("rect", { class: "spread-p50", x: 0, y: 3, width: x(spread.p50), height: 8 }),
    drawing("line", { class: "spread-max", x1: x(spread.max), x2: x(spread.max), y1: 1, y2: 13 }));
  return picture;
}

/** Columns side by side, `{ value, other, name, words }`; `other` stands on top in the tone of a failure. */
function columnChart(columns, words) {
  const top = Math.max(...columns.map(({ value, other }) => value + other), 0) || 1;
  const width = 100 / columns.length;
  const height = 100;
  const picture = drawing("svg", { class: "columns", viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": words });
  columns.forEach(({ value, other, words: title }, index) => {
    const x = (index * width + width * 0.14).toFixed(2);
    const wide = (width * 0.72).toFixed(2);
    const low = (value / top) * (height - 2);
    const high = (other / top) * (height - 2);
    const column = drawing("g", {}, drawing("title", {}, title));
    column.append(drawing("rect", { class: "column-ground", x, y: 0, width: wide, height }));
    if (value > 0) column.append(drawing("rect", { class: "tone-main", x, y: (height - low).toFixed(2), width: wide, height: low.toFixed(2) }));
    if (other > 0) column.append(drawing("rect", { class: "tone-bad", x, y: (height - low - high).toFixed(2), width: wide, height: high.toFixed(2) }));
    picture.append(column);
  });
  const names = element("div", { className: "column-names" }, ...columns.map(({ name }) => element("span", { textContent: name })));
  names.setAttribute("aria-hidden", "true");
  return element("div", { className: "column-chart" }, picture, names);
}
