// What can be done with a job, wherever its buttons stand. `fail` takes the sentence that
// says why something did not work, and an empty one when it is tried again.

const ACTIONS_AT_ONCE = 4;

class JobActions {
  #store;
  #lookups;

  constructor(store, lookups) {
    this.#store = store;
    this.#lookups = lookups;
  }

  async cancel(id, fail) {
    fail("");
    this.#store.patch(id, { cancelling: true });
    try {
      await server.cancel(id);
      return true;
    } catch (problem) {
      this.#store.patch(id, { cancelling: false });
      // It has ended meanwhile: that is what was wanted, and its card is to say so.
      if (problem.status === 409) this.#lookups.want(id);
      else fail(`Not cancelled. ${problem.message}`);
      return problem.status === 409;
    }
  }

  /** Deletes an ended job and its images. */
  async remove(id, fail) {
    fail("");
    try {
      await server.remove(id);
    } catch (problem) {
      if (problem.status !== 404 && problem.status !== 410) {
        fail(`Not deleted. ${problem.message}`);
        return false;
      }
    }
    this.#store.remove(id);
    notify("The job is deleted.");
    return true;
  }

  /** Submits the same again; the new job's id, or null. */
  async retry(id, fail) {
    fail("");
    try {
      const answer = await server.retry(id);
      const { params, label, priority } = this.#store.jobs.get(id) ?? {};
      this.#store.applySnapshot({ ...answer, params, label, priority });
      notify("Queued again.", { view: "jobs", job: answer.job_id, filters: {} });
      return answer?.job_id ?? null;
    } catch (problem) {
      fail(`Not queued again. ${problem.message}`);
      return null;
    }
  }

  async setPriority(id, priority, fail) {
    fail("");
    try {
      this.#store.applySnapshot(await server.setPriority(id, priority));
      return true;
    } catch (problem) {
      if (problem.status === 409) this.#lookups.want(id);
      fail(problem.status === 409 ? "It no longer waits." : `Priority not changed. ${problem.message}`);
      return false;
    }
  }
}

/** Does `act(id)`, which resolves to whether it worked, for many jobs; resolves to how often it did. */
async function forEachOf(ids, act) {
  const waiting = [...ids];
  let done = 0;
  const worker = async () => {
    while (waiting.length > 0) if (await act(waiting.shift())) done += 1;
  };
  await Promise.all(Array.from({ length: Math.min(ACTIONS_AT_ONCE, waiting.length) }, worker));
  return done;
}
