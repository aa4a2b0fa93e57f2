// Joins the parts.

startTheme();
showExamples();

const messageLog = new MessageLog();
let submitForm;
const jobList = new JobList((params) => submitForm.fill(params));
submitForm = new SubmitForm((answer, body) => {
  if (!answer?.job_id) return;
  jobList.store.applySnapshot({ ...answer, params: body, label: body.label, priority: body.priority });
});

function showConnection(state, text) {
  const label = byId("connection-state");
  label.dataset.state = state;
  setText(label, text);
  const idle = state === "disconnected" || state === "refused";
  setText(byId("connect-button"), idle ? "Connect" : "Disconnect");
}

const connection = new Connection(`${location.origin.replace(/^http/, "ws")}/ws/progress`, {
  state: showConnection,
  sent: (message) => messageLog.add("out", message),
  message: (message) => {
    messageLog.add("in", message);
    if (message.type === "connected") {
      serverClock.set(parseTime(message.timestamp) ?? Date.now());
      connection.send({ type: "subscribe", job_ids: null });
    }
    // Listing after the subscription leaves no gap: what ends in between is told live.
    if (message.type === "subscription_confirmed") jobList.refresh();
    jobList.receive(message);
  },
});

byId("connect-button").addEventListener("click", () => {
  if (connection.wanted) connection.disconnect();
  else connection.connect();
});

jobList.refresh();
new BackendStrip().start();
connection.connect();
