// Where the reader is: which view, through which filters, with which job opened. All of it
// stands in the address, so that a link shows the same and the browser's own Back goes back.

const VIEWS = ["jobs", "new", "queue", "backends", "statistics", "api"];
const FILTERS = ["status", "text", "label", "batch", "backend", "model", "before"];
const MAX_FILTER_TEXT = 200;
// How far back statistics go, as the server offers it.
const WINDOWS = { "5m": "5 min", "15m": "15 min", "1h": "1 hour", "6h": "6 hours", "24h": "24 hours", "7d": "7 days" };
const DEFAULT_WINDOW = "1h";

const place = {
  view: "jobs",
  job: null,
  filters: {},
  window: DEFAULT_WINDOW,
  watchers: [],

  /** `told(place, before)` is called after each change, with what was before. */
  watch(told) {
    this.watchers.push(told);
  },

  /** Goes elsewhere; what is not named stays. `step` makes a step that Back undoes. */
  go(change, { step = true } = {}) {
    const address = this.addressOf(change);
    if (address === location.pathname + location.search) return;
    history[step ? "pushState" : "replaceState"](null, "", address);
    this.read();
  },

  /** The address of here with a change, for links. */
  addressOf(change) {
    const to = { view: this.view, job: this.job, filters: this.filters, window: this.window, ...change };
    const query = new URLSearchParams();
    if (to.view !== "jobs") query.set("view", to.view);
    for (const name of FILTERS) if (to.filters[name]) query.set(name, to.filters[name]);
    if (to.window !== DEFAULT_WINDOW) query.set("window", to.window);
    if (to.job) query.set("job", to.job);
    const text = query.toString();
    return location.pathname + (text ? `?${text}` : "");
  },

  /** Takes over what the address says; what makes no sense there is as if it were not. */
  read() {
    const before = { view: this.view, job: this.job, filters: this.filters, window: this.window };
    const query = new URLSearchParams(location.search);
    const said = (name) => (query.get(name) ?? "").slice(0, MAX_FILTER_TEXT);
    this.view = VIEWS.includes(said("view")) ? said("view") : "jobs";
    this.job = said("job") || null;
    this.window = Object.hasOwn(WINDOWS, said("window")) ? said("window") : DEFAULT_WINDOW;
    this.filters = {};
    for (const name of FILTERS) if (said(name)) this.filters[name] = said(name);
    for (const told of this.watchers) told(this, before);
  },
};

addEventListener("popstate", () => place.read());

const sameFilters = (a, b) => FILTERS.every((name) => a[name] === b[name]);

/** Makes `link` go to `change` without loading the page anew, unless a new tab is wanted. */
function leadTo(link, change) {
  const wanted = () => (typeof change === "function" ? change() : change);
  const refresh = () => { link.href = place.addressOf(wanted()); };
  refresh();
  // What the address is made of may have changed since.
  link.addEventListener("pointerenter", refresh);
  link.addEventListener("focus", refresh);
  link.addEventListener("click", (event) => {
    if (event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    place.go(wanted());
  });
  return link;
}
