// Which parts of the page are shown, and where its navigation leads.

const narrow = matchMedia("(width < 960px)");
const isNarrow = () => narrow.matches;
const VIEW_TITLES = { jobs: "Jobs", new: "New image", queue: "Queue", backends: "Backends", statistics: "Statistics", api: "API" };

function showView() {
  // Where there is room for both, the form stands beside the jobs.
  const view = place.view === "new" && !isNarrow() ? "jobs" : place.view;
  document.body.dataset.view = place.view;
  for (const part of document.querySelectorAll("[data-views]")) {
    const views = part.dataset.views.split(" ");
    const here = part.classList.contains("compose") && isNarrow() ? place.view === "new" : views.includes(view);
    setHidden(part, !here);
  }
  for (const link of document.querySelectorAll(".topbar-nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    link.href = place.addressOf(viewChange(link.dataset.view));
  }
  tellTitle();
}

let titleNote = "";

/** The title of the page, with what is under way: it is read off tabs. */
function tellTitle(note = titleNote) {
  titleNote = note;
  const title = place.view === "jobs" ? "Stepcast" : `${VIEW_TITLES[place.view]} – Stepcast`;
  const whole = note ? `(${note}) ${title}` : title;
  if (document.title !== whole) document.title = whole;
}

// Filters are for jobs: they stay from the list to the queue, and back.
const viewChange = (view) => ({ view, job: null });

function startViews() {
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link instanceof HTMLAnchorElement) leadTo(link, () => viewChange(link.dataset.view));
  }
  place.watch((_, before) => {
    showView();
    if (place.view !== before.view) scrollTo(0, 0);
  });
  narrow.addEventListener("change", showView);
  for (const example of document.querySelectorAll("[data-example]")) {
    example.addEventListener("click", () => {
      if (isNarrow()) place.go({ view: "new" });
      submitForm.fill({ prompt: example.textContent });
    });
  }
}
