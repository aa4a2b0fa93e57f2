// What can be done with a whole batch, while one is filtered for.

class BatchBar {
  #working = false;
  #changed;

  /** `changed` is called once something was done. */
  constructor(changed) {
    this.#changed = changed;
    byId("batch-cancel").addEventListener("click", () => this.#cancel());
    byId("batch-retry").addEventListener("click", () => this.#retry());
    place.watch((_, before) => {
      setHidden(byId("batch-bar"), !place.filters.batch);
      if (place.filters.batch !== before.filters.batch) this.#say("");
    });
  }

  async #cancel() {
    const { batch } = place.filters;
    const sure = await confirmFirst({
      title: "Cancel this batch?", text: "All of its jobs that wait or run end. This cannot be taken back.",
      act: "Cancel the batch", keep: "Keep it",
    });
    if (!sure) return;
    await this.#work(async () => {
      const { message } = await server.cancelBatch(batch);
      this.#say(message ?? "The batch is being cancelled.");
    });
  }

  // What failed and what was cancelled becomes a batch of its own: that is then shown.
  async #retry() {
    await this.#work(async () => {
      const { batch_id: again, jobs } = await server.retryBatch(place.filters.batch);
      place.go({ filters: { batch: again } });
      this.#say(`Queued again: ${plural(jobs?.length ?? 0, "job")}, as this batch.`);
    });
  }

  async #work(act) {
    if (this.#working) return;
    this.#working = true;
    this.#say("");
    try {
      await act();
      this.#changed();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.#say(`That did not work. ${problem.message}`);
    } finally {
      this.#working = false;
    }
  }

  #say(text) {
    setText(byId("batch-note"), text);
  }
}
