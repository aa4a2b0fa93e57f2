// Going on where a connection was cut off: the server tells again what was recorded since
// the last message that was heard, so that no end of a job is missed.

const ALL_JOBS = "all-jobs";
const END_OF_SNAPSHOT = "end-of-snapshot";

class Recovery {
  #since = null; // What was heard up to here, and all before it.
  #latest = null; // The same of this connection, once its snapshot has been told.
  #whole = false; // Whether all that there was to tell has been told.
  #truncated = false;

  /** What to send on a new connection. */
  questions() {
    this.#whole = false;
    this.#truncated = false;
    this.#latest = null;
    const subscribe = { type: "subscribe", job_ids: null, batch: true, request_id: ALL_JOBS };
    if (this.#since !== null) subscribe.since = this.#since;
    // Requests are answered in order: the answer to the second says that the snapshot has ended.
    return [subscribe, { type: "unsubscribe", job_ids: [], request_id: END_OF_SNAPSHOT }];
  }

  /** Takes a `subscription_confirmed`; whether it is the one of all jobs. */
  confirmed({ data }) {
    // Who was not told all comes back with the time of before.
    if (data?.truncated === true) this.#truncated = true;
    if (data?.request_id === END_OF_SNAPSHOT && !this.#truncated) {
      this.#whole = true;
      this.#since = this.#latest ?? this.#since;
    }
    return data?.request_id === ALL_JOBS;
  }

  /** Takes a message; those about jobs carry the time to go on from. */
  heard({ data, timestamp }) {
    if (typeof data?.job_id !== "string" || parseTime(timestamp) === null) return;
    this.#latest = timestamp;
    if (this.#whole) this.#since = timestamp;
  }
}
