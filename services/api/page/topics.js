// What the connection tells beside jobs, while a view is open that shows it. A server that
// knows no topics refuses them once; then everything is polled, as it is before they are confirmed.

const TOPIC_QUESTION = "topics";
const TOPIC_VIEWS = { backends: ["jobs", "backends", "statistics"], stats: ["backends", "statistics"] };

class Topics {
  #send = null;
  #asked = new Set();
  #told = new Set();
  #refused = false;

  constructor() {
    place.watch(() => this.#follow());
    document.addEventListener("visibilitychange", () => this.#follow());
  }

  /** Whether a topic tells its news at this moment. */
  has(topic) {
    return this.#told.has(topic);
  }

  /** A new connection, which watches nothing yet; `send` takes a message. */
  connected(send) {
    this.#send = send;
    this.#refused = false;
    this.#asked.clear();
    this.#told.clear();
    this.#follow();
  }

  /** The connection is lost. */
  lost() {
    this.#send = null;
    this.#told.clear();
  }

  /** Takes an answer to a question about topics. */
  answered({ type, data }) {
    if (data?.request_id !== TOPIC_QUESTION) return;
    if (type === "error") this.#refused = true;
    if (type === "subscription_confirmed") this.#told = new Set([...this.#asked].filter((topic) => data.topics?.includes(topic)));
  }

  #follow() {
    if (this.#send === null || this.#refused) return;
    const wanted = document.hidden ? [] : Object.keys(TOPIC_VIEWS).filter((topic) => TOPIC_VIEWS[topic].includes(place.view));
    const fresh = wanted.filter((topic) => !this.#asked.has(topic));
    const over = [...this.#asked].filter((topic) => !wanted.includes(topic));
    this.#asked = new Set(wanted);
    for (const topic of over) this.#told.delete(topic);
    // All that are wanted are named, so that one answer tells of all.
    if (fresh.length > 0) this.#send({ type: "subscribe", topics: wanted, request_id: TOPIC_QUESTION });
    if (over.length > 0) this.#send({ type: "unsubscribe", topics: over });
  }
}
