// One WebSocket that comes back by itself. What a close code asks for decides whether and
// when: some say come back, some say later, some say stay away until something changes.

const STAY_AWAY = new Map([
  [1008, "Refused by the server"],
  [4401, "Credentials needed"],
  [4403, "Not allowed"],
]);
// Milliseconds to wait at least, where the server is asking for room.
const COME_BACK_LATER = new Map([[1013, 5_000], [4429, 10_000]]);
const BACKOFF_FIRST = 500;
const BACKOFF_LAST = 30_000;
const OPEN_TIMEOUT = 10_000;

class Connection {
  #url;
  #on;
  #socket = null;
  #retryTimer = 0;
  #openTimer = 0;
  #heartbeat = 0;
  #failures = 0;
  #quietBeats = 0;
  #returnAfter = null;

  /** `on.state` is called with (state, words, when it is tried again), `on.message` with each message. */
  constructor(url, on) {
    this.#url = url;
    this.#on = on;
    // A network that returns should not wait for the rest of a long backoff.
    addEventListener("online", () => { if (this.#retryTimer) this.connect(); });
  }

  get wanted() {
    return this.#socket !== null || this.#retryTimer !== 0;
  }

  connect() {
    this.#drop();
    this.#on.state("connecting", "Connecting…");
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#openTimer = setTimeout(() => this.#lost(socket, 0), OPEN_TIMEOUT);
    socket.addEventListener("message", (event) => this.#receive(socket, event));
    // An error is always followed by a close, which says more.
    socket.addEventListener("close", (event) => this.#lost(socket, event.code));
  }

  disconnect() {
    this.#drop();
    this.#failures = 0;
    this.#on.state("disconnected", "Disconnected");
  }

  send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#socket.send(JSON.stringify(message));
    this.#on.sent(message);
  }

  #receive(socket, event) {
    if (socket !== this.#socket || typeof event.data !== "string") return;
    this.#quietBeats = 0;
    let message;
    try {
      message = JSON.parse(event.data);
    } catch {
      return;
    }
    if (message === null || typeof message !== "object" || typeof message.type !== "string") return;
    if (message.type === "connected") this.#opened(message.data ?? {});
    if (message.type === "going_away") {
      const after = message.data?.reconnect_after_ms;
      this.#returnAfter = isNumber(after) && after >= 0 ? Math.min(after, 60_000) : null;
    }
    this.#on.message(message);
  }

  #opened(data) {
    clearTimeout(this.#openTimer);
    this.#failures = 0;
    this.#on.state("connected", "Connected");
    const seconds = isNumber(data.heartbeat_seconds) && data.heartbeat_seconds >= 1 ? data.heartbeat_seconds : 25;
    clearInterval(this.#heartbeat);
    this.#heartbeat = setInterval(() => this.#beat(), seconds * 1000);
  }

  // Counting beats rather than comparing clocks stays right while a background tab's timers
  // are slowed: a beat that comes late cannot by itself look like silence.
  #beat() {
    this.#quietBeats += 1;
    if (this.#quietBeats > 2) this.#lost(this.#socket, 0);
    else this.send({ type: "ping" });
  }

  #lost(socket, code) {
    if (socket !== this.#socket) return;
    const returnAfter = this.#returnAfter;
    this.#drop();
    if (STAY_AWAY.has(code)) {
      this.#on.state("refused", STAY_AWAY.get(code));
      return;
    }
    const delay = returnAfter ?? this.#backoff(code);
    this.#failures += 1;
    this.#retryTimer = setTimeout(() => this.connect(), delay);
    this.#on.state("reconnecting", "Reconnecting…", performance.now() + delay);
  }

  // Half fixed, half random: clients that lost the same server do not return as one.
  #backoff(code) {
    const ceiling = Math.min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** Math.min(this.#failures, 10));
    return (COME_BACK_LATER.get(code) ?? 0) + ceiling * (0.5 + Math.random() / 2);
  }

  #drop() {
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#openTimer);
    clearInterval(this.#heartbeat);
    this.#retryTimer = 0;
    this.#quietBeats = 0;
    this.#returnAfter = null;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }
}
