// Questions that are asked again and again, but only while somebody sees the answers: not
// in a hidden tab, not for a view that is closed, and less often while nobody answers.

const POLL_SLOWEST = 60_000;
const NUDGE_AFTER = 500;
// However much happens, it is asked no more than so many times as often as without.
const NUDGED_MORE_OFTEN = 3;

class Poll {
  #ask;
  #every;
  #wanted;
  #failed;
  #timer = 0;
  #nudge = 0;
  #asking = false;
  #again = false;
  #failures = 0;
  #answeredAt = -Infinity; // By `performance.now()`.

  /** `ask` is asked each `every()` milliseconds while `wanted()`; `failed` takes a `Problem`. */
  constructor({ ask, every, wanted, failed = () => {} }) {
    this.#ask = ask;
    this.#every = every;
    this.#wanted = wanted;
    this.#failed = failed;
    document.addEventListener("visibilitychange", () => this.wake());
    place.watch(() => { if (!this.#timer && !this.#asking) this.wake(); });
  }

  /** Asks now, or right after the question that is under way. */
  wake() {
    if (this.#asking) this.#again = true;
    else this.#round();
  }

  /** Something has happened: asks soon. Many such words make one question. */
  nudge() {
    const rest = this.#answeredAt + this.#every() / NUDGED_MORE_OFTEN - performance.now();
    this.#nudge ||= setTimeout(() => {
      this.#nudge = 0;
      // A server that does not answer is not asked more often for that.
      if (this.#failures === 0) this.wake();
    }, Math.max(NUDGE_AFTER, rest));
  }

  async #round() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (document.hidden || !this.#wanted()) return;
    this.#asking = true;
    try {
      await this.#ask();
      this.#failures = 0;
      this.#answeredAt = performance.now();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.#failures += 1;
      this.#failed(problem);
    } finally {
      this.#asking = false;
      const again = this.#again;
      this.#again = false;
      const pause = Math.min(POLL_SLOWEST, this.#every() * 2 ** Math.min(this.#failures, 6));
      this.#timer = setTimeout(() => this.#round(), again && this.#failures === 0 ? 0 : pause);
    }
  }
}
