// What is known about the backends: asked for while somebody looks, or told by the topic.
// One that is not heard of any more is kept as gone: that it is missing is the news.

const BACKENDS_EVERY = 5_000;
// Where the topic tells what they do, this is for what was asked of them, by others.
const BACKENDS_EVERY_BESIDE_TOPIC = 15_000;
const MAX_BACKENDS = 200;

class Fleet {
  /** By id: what was said of it last, and when it was heard of last by this machine's clock. */
  backends = new Map();
  /** Whether an answer has come yet. */
  known = false;
  /** Why the last question had no answer; null if it had. */
  trouble = null;
  #watchers = [];
  #poll;

  constructor() {
    this.#poll = new Poll({
      ask: async () => {
        const answer = await server.backends();
        this.#take(Array.isArray(answer?.backends) ? answer.backends : []);
      },
      every: () => (topics.has("backends") ? BACKENDS_EVERY_BESIDE_TOPIC : BACKENDS_EVERY),
      wanted: () => place.view !== "api",
      failed: (problem) => {
        this.trouble = problem;
        this.#tell();
      },
    });
  }

  watch(told) {
    this.#watchers.push(told);
  }

  /** Asks now. */
  refresh() {
    this.#poll.wake();
  }

  /** Something has begun or ended. */
  nudge() {
    this.#poll.nudge();
  }

  /** In the order of their names, as people count: gpu-2 before gpu-10. */
  ordered() {
    return [...this.backends.values()].sort((a, b) => a.id.localeCompare(b.id, "en", { numeric: true }));
  }

  /** `pause`, `drain` or `resume`; rejects with a `Problem`. */
  async tell(id, what) {
    const { paused, draining, drained } = await server.tellBackend(id, what);
    Object.assign(this.backends.get(id) ?? {}, { paused, draining, drained });
    this.#tell();
    this.nudge();
  }

  /** Takes a message of the topic. */
  receive({ type, data }) {
    if (type === "backend_update") this.#note(data);
    else if (type === "backend_gone" && this.backends.has(data?.id)) this.backends.get(data.id).gone = true;
    else return;
    this.#tell();
  }

  /** Takes what statistics say of what was asked of each. */
  takeModes(modes) {
    for (const { id, paused, draining } of modes) Object.assign(this.backends.get(id) ?? {}, { paused, draining });
    this.#tell();
  }

  #take(states) {
    this.known = true;
    this.trouble = null;
    const listed = new Set(states.map((state) => state?.id));
    for (const backend of this.backends.values()) if (!listed.has(backend.id)) backend.gone = true;
    for (const state of states) this.#note(state);
    this.#tell();
  }

  #note(state) {
    if (typeof state?.id !== "string") return;
    if (!this.backends.has(state.id) && this.backends.size >= MAX_BACKENDS) return;
    this.backends.set(state.id, { ...this.backends.get(state.id), ...state, gone: false, heardAt: Date.now() });
  }

  #tell() {
    for (const told of this.#watchers) told(this);
  }
}

const BACKEND_WORDS = {
  idle: ["Ready", "good"],
  busy: ["Rendering", "busy"],
  foreign: ["In use by others", "warn"],
  starting: ["Starting", "warn"],
  quarantined: ["In quarantine", "bad"],
  drained: ["Drained", "rest"],
  down: ["Down", "bad"],
  gone: ["Not heard of", "bad"],
};

/** The state to show: what was asked of it counts before what it does, unless it cannot work at all. */
function backendState(backend) {
  if (backend.gone) return { word: BACKEND_WORDS.gone[0], tone: "bad" };
  const [word, tone] = BACKEND_WORDS[backend.state] ?? [capitalise(String(backend.state ?? "unknown")), "rest"];
  if (tone === "bad" || backend.state === "drained") return { word, tone };
  if (backend.draining) return { word: backend.drained ? "Drained" : "Draining", tone: backend.drained ? "rest" : "warn" };
  if (backend.paused) return { word: backend.state === "busy" ? "Pausing" : "Paused", tone: "rest" };
  return { word, tone };
}

/** What that means, and what becomes of it. */
function backendSentence(backend) {
  const message = typeof backend.message === "string" && backend.message ? capitalise(backend.message) : "";
  const said = message && !/[.!?]$/.test(message) ? `${message}.` : message;
  if (backend.gone) {
    return `Nothing was heard of it since ${secondFormat.format(backend.heardAt)}. `
      + "Its poller has stopped, or cannot reach NATS; what it rendered is given to others.";
  }
  switch (backend.state) {
    case "down": return `${said || "It cannot be reached."} It is tried again all the time, and takes part again by itself.`;
    case "quarantined": return `${said || "It kept failing."} It gets no jobs; `
      + "a small render tries it now and then, and it returns by itself once that works.";
    case "foreign": return `Its server shows work that is not ours${backend.foreign ? `: ${backend.foreign}` : ""}. `
      + `Jobs wait until that is over; it is never interrupted. ${said}`.trim();
    case "starting": return said || "It takes no jobs yet.";
    default: break;
  }
  if (backend.drained || backend.state === "drained") return "It holds no job and is given none: its server can be shut down.";
  if (backend.draining) return "It finishes what it renders and is given nothing more.";
  if (!backend.paused) return said;
  return backend.state === "busy" ? "It finishes what it renders, then rests." : "It is given no jobs until it is resumed.";
}
