// Whether what stands here is still true. A page that goes on looking busy after its server
// has gone tells lies, so everything that moves is dimmed, and a line says since when.

class Liveness {
  #state = "connecting";
  #retryAt = null;
  #liveUntil = null; // When the connection was lost, by this machine's clock.
  #everLive = false;
  #failedOnce = false;
  #act;

  /** `act` is what the line's button does: connecting now. */
  constructor(act) {
    this.#act = act;
    byId("banner-act").addEventListener("click", () => this.#act());
    setInterval(() => this.#tick(), 1000);
  }

  /** Whether messages come in. */
  get live() {
    return this.#state === "connected";
  }

  /** Takes a state of the connection; `retryAt` says when it is tried again, by `performance.now()`. */
  changed(state, retryAt = null) {
    if (this.#state === "connected" && state !== "connected") this.#liveUntil = Date.now();
    if (state === "connected") this.#everLive = true;
    if (state === "reconnecting") this.#failedOnce = true;
    this.#state = state;
    this.#retryAt = retryAt;
    document.body.dataset.live = this.live ? "yes" : "no";
    this.#show();
  }

  #show() {
    const text = this.#sentence();
    setText(byId("banner-text"), text);
    setHidden(byId("banner"), text === "");
    setText(byId("banner-act"), this.#state === "disconnected" || this.#state === "refused" ? "Connect" : "Try now");
    this.#tick();
  }

  // Without the seconds: screen readers are told each change of this text.
  #sentence() {
    if (this.live) return "";
    const since = this.#liveUntil === null ? "" : ` since ${secondFormat.format(this.#liveUntil)}`;
    if (this.#state === "disconnected") return `Not live${since}: you disconnected. What is shown may be out of date.`;
    if (this.#state === "refused") return `Not live${since}: the server refuses the connection. What is shown may be out of date.`;
    // The first moments of a page are no failure.
    if (!this.#everLive) return this.#failedOnce ? "The server cannot be reached, so nothing here is live." : "";
    return `Not live${since}: the connection was lost. What is shown may be out of date.`;
  }

  #tick() {
    const waits = this.#state === "reconnecting" && this.#retryAt !== null;
    const seconds = waits ? Math.max(0, Math.ceil((this.#retryAt - performance.now()) / 1000)) : 0;
    setOptional(byId("banner-note"), waits && seconds > 1 ? `Next try in ${seconds} s` : "");
  }
}
