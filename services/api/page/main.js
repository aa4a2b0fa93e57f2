// Joins the parts.

startTheme();
showExamples();
startDialogs();

const messageLog = new MessageLog();
const store = new JobStore();
const lookups = new Lookups(store);
const jobActions = new JobActions(store, lookups);
const liveness = new Liveness(() => connection.connect());
const lightbox = new Lightbox();
const filterBar = new FilterBar();
const topics = new Topics();

const submitForm = new SubmitForm((answer, body) => {
  if (!answer?.job_id) return;
  store.applySnapshot({ ...answer, params: body, label: body.label, priority: body.priority });
  jobList.own(answer.job_id);
  // A job that the filters hide would seem to be lost.
  const job = store.jobs.get(answer.job_id);
  const hidden = job && !passes(job, place.filters);
  if (place.view === "new" || hidden) place.go({ view: "jobs", filters: hidden ? {} : place.filters });
});

const cardActions = {
  cancel: (id, fail) => jobActions.cancel(id, fail),
  remove: (id, fail) => jobActions.remove(id, fail),
  setPriority: async (id, priority, fail) => {
    const done = await jobActions.setPriority(id, priority, fail);
    // The others have moved too.
    if (done) queueView.refresh();
    return done;
  },
  retry: async (id, fail) => {
    const again = await jobActions.retry(id, fail);
    if (again) jobList.own(again);
    return again;
  },
  reuse: (id, params = store.jobs.get(id)?.params) => {
    place.go({ view: isNarrow() ? "new" : "jobs", job: null });
    submitForm.fill(params ?? {});
  },
};

const jobList = new JobList(store, cardActions);
const queueView = new QueueView(store, jobActions);
const fleet = new Fleet();
const backendPanel = new BackendPanel(fleet, store);
const statistics = new Statistics(store, backendPanel, fleet);
new BatchBar(refreshAll);
new JobDetail(store, cardActions);

function showConnection(state, text, retryAt) {
  const label = byId("connection-state");
  label.dataset.state = state;
  setText(label, text);
  const idle = state === "disconnected" || state === "refused";
  setText(byId("connect-button"), idle ? "Connect" : "Disconnect");
  if (state !== "connected") topics.lost();
  liveness.changed(state, retryAt);
}

function receive(message) {
  if (!store.applyMessage(message)) return;
  const job = store.jobs.get(message.data.job_id);
  if (!job) return; // Older than every job that is kept.
  if (!job.params || (TERMINAL.has(job.status) && !job.known)) lookups.want(job.job_id);
  if (message.type === "progress_update") return;
  if (message.type === "generation_complete") jobList.ended(job);
  queueView.nudge();
  if (!topics.has("backends")) fleet.nudge();
}

// What is asked for again when the connection is there: it may have changed meanwhile.
function refreshAll() {
  jobList.refresh();
  queueView.refresh();
  fleet.refresh();
  statistics.refresh();
}

const recovery = new Recovery();

const connection = new Connection(`${location.origin.replace(/^http/, "ws")}/ws/progress`, {
  state: showConnection,
  sent: (message) => messageLog.add("out", message),
  message: (message) => {
    messageLog.add("in", message);
    const { type, data } = message;
    if (type === "connected") {
      serverClock.set(parseTime(message.timestamp) ?? Date.now());
      for (const question of recovery.questions()) connection.send(question);
      topics.connected((question) => connection.send(question));
    }
    // Listing after the subscription leaves no gap: what ends in between is told live.
    if (type === "subscription_confirmed" && recovery.confirmed(message)) refreshAll();
    topics.answered(message);
    fleet.receive(message);
    statistics.receive(message);
    const told = type === "progress_batch" && Array.isArray(data?.messages) ? data.messages : [message];
    for (const it of told) {
      recovery.heard(it);
      receive(it);
    }
  },
});

byId("connect-button").addEventListener("click", () => {
  if (connection.wanted) connection.disconnect();
  else connection.connect();
});

startViews();
place.read();
jobList.refresh();
connection.connect();
