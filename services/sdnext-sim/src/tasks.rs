//! What A1111 and Forge keep beside their state: which task runs, which wait, and how far the batches are.
//!
//! Unlike SD.Next's, this state begins once a job and ends once a job. `job_no` counts sampling passes over the whole
//! job, a second pass included; `sampling_step` is the number of the step that was just done, from 0; `job_count` is
//! -1 from the begin of a job until its passes are counted; `sampling_steps` is never cleared.

use std::collections::VecDeque;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::clock::Clock;

/// Ended tasks that are remembered.
const FINISHED: usize = 16;
/// The least that a running job shows, so that nobody divides by zero.
const FLOOR: f64 = 0.01;

#[derive(Debug)]
pub(crate) struct Tasks {
    clock: Clock,
    current: Option<String>,
    pending: Vec<String>,
    finished: VecDeque<String>,
    job: &'static str,
    job_no: u32,
    job_count: i32,
    timestamp: String,
    step: u32,
    steps: u32,
    began: Option<Instant>,
}

/// The flags, which the shared state keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    pub(crate) interrupted: bool,
    pub(crate) skipped: bool,
}

impl Tasks {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            current: None,
            pending: Vec::new(),
            finished: VecDeque::new(),
            job: "",
            job_no: 0,
            job_count: 0,
            timestamp: "0".to_owned(),
            step: 0,
            steps: 0,
            began: None,
        }
    }

    /// A request has arrived, and waits for the lock.
    pub(crate) fn queue(&mut self, id: &str) {
        self.pending.push(id.to_owned());
    }

    /// It has the lock.
    pub(crate) fn begin(&mut self, id: &str, job: &'static str) {
        self.pending.retain(|pending| pending != id);
        self.current = Some(id.to_owned());
        self.job = job;
        self.job_no = 0;
        self.job_count = -1;
        self.timestamp = self.clock.compact();
        self.step = 0;
        self.began = Some(Instant::now());
    }

    /// Its passes are counted.
    pub(crate) fn refine(&mut self, passes: u32) {
        self.job_count = i32::try_from(passes).unwrap_or(i32::MAX);
    }

    /// A sampling pass begins.
    pub(crate) fn launch(&mut self, steps: u32) {
        self.step = 0;
        self.steps = steps;
    }

    /// `done` steps of the pass are done.
    pub(crate) fn stepped(&mut self, done: u32) {
        self.step = done.saturating_sub(1);
    }

    /// A pass is over, its decoding included.
    pub(crate) fn next_job(&mut self) {
        self.job_no += 1;
        self.step = 0;
    }

    /// The job is over; one that raised an exception stays the current task, though nothing runs.
    pub(crate) fn end(&mut self, id: &str, raised: bool) {
        if !raised {
            self.current = None;
            if self.finished.len() == FINISHED {
                self.finished.pop_front();
            }
            self.finished.push_back(id.to_owned());
        }
        self.job = "";
        self.job_count = 0;
    }

    /// The share of all passes that is done.
    fn fraction(&self) -> f64 {
        let count = f64::from(self.job_count);
        let passes = if self.job_count > 0 { f64::from(self.job_no) / count } else { 0.0 };
        let steps = if self.steps > 0 && self.job_count > 0 {
            f64::from(self.step) / f64::from(self.steps) / count
        } else {
            0.0
        };
        passes + steps
    }

    fn eta(&self, fraction: f64) -> f64 {
        let elapsed = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        elapsed / fraction - elapsed
    }

    /// The body of `GET /sdapi/v1/progress`.
    pub(crate) fn progress(&self, flags: Flags, image: Option<&str>) -> Value {
        let idle = self.job_count == 0;
        let fraction = if idle { 0.0 } else { FLOOR + self.fraction() };
        json!({
            "progress": fraction.min(1.0),
            "eta_relative": if idle { 0.0 } else { self.eta(fraction) },
            "state": {
                "skipped": flags.skipped,
                "interrupted": flags.interrupted,
                "stopping_generation": false,
                "job": self.job,
                "job_count": self.job_count,
                "job_timestamp": self.timestamp,
                "job_no": self.job_no,
                "sampling_step": self.step,
                "sampling_steps": self.steps,
            },
            "current_image": image,
            "textinfo": null,
        })
    }

    /// Whether `id` is what runs; where nothing runs, no id is.
    pub(crate) fn is_current(&self, id: Option<&str>) -> bool {
        self.current.as_deref() == id
    }

    /// The body of `POST /internal/progress`; `preview` is a new picture and its number.
    pub(crate) fn internal(&self, id: Option<&str>, known: i64, preview: Option<(String, i64)>) -> Value {
        let active = self.is_current(id);
        let place = self.pending.iter().position(|pending| Some(pending.as_str()) == id);
        let completed = self.finished.iter().any(|finished| Some(finished.as_str()) == id);
        let (progress, eta, textinfo) = if active {
            let fraction = self.fraction().min(1.0);
            (Some(fraction), (fraction > 0.0).then(|| self.eta(fraction)), None)
        } else {
            let text = place.map_or("Waiting...".to_owned(), |place| {
                format!("In queue: {}/{}", place + 1, self.pending.len())
            });
            (None, None, Some(text))
        };
        let (image, number) = preview.filter(|_| active).map_or((None, known), |(image, n)| (Some(image), n));
        json!({
            "active": active,
            "queued": place.is_some(),
            "completed": completed,
            "progress": progress,
            "eta": eta,
            "live_preview": image,
            "id_live_preview": if active { number } else { -1 },
            "textinfo": textinfo,
        })
    }

    /// The body of `GET /internal/pending-tasks`.
    pub(crate) fn pending(&self) -> Value {
        json!({"size": self.pending.len(), "tasks": self.pending})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_FLAGS: Flags = Flags { interrupted: false, skipped: false };

    #[test]
    fn progress_runs_over_all_passes_and_is_nought_only_when_idle() {
        let mut tasks = Tasks::new(Clock::new());
        assert_eq!(tasks.progress(NO_FLAGS, None)["progress"], 0.0);
        tasks.queue("mine");
        tasks.begin("mine", "scripts_txt2img");
        assert_eq!(tasks.progress(NO_FLAGS, None)["state"]["job_count"], -1);
        assert_eq!(tasks.progress(NO_FLAGS, None)["progress"], FLOOR);
        tasks.refine(2);
        tasks.launch(4);
        tasks.stepped(3);
        assert_eq!(tasks.progress(NO_FLAGS, None)["progress"], FLOOR + 0.25);
        tasks.next_job();
        assert_eq!(tasks.internal(Some("mine"), -1, None)["progress"], 0.5);
        tasks.next_job();
        assert_eq!(tasks.progress(NO_FLAGS, None)["progress"], 1.0);
        tasks.end("mine", false);
        assert_eq!(tasks.progress(NO_FLAGS, None)["progress"], 0.0);
    }

    #[test]
    fn a_task_is_queued_then_active_then_completed_and_others_never_are() {
        let mut tasks = Tasks::new(Clock::new());
        let told = |tasks: &Tasks, id: &str| {
            let body = tasks.internal(Some(id), -1, None);
            ["queued", "active", "completed"].map(|name| body[name].as_bool().expect("a flag"))
        };
        tasks.queue("first");
        tasks.queue("second");
        tasks.begin("first", "scripts_txt2img");
        assert_eq!(told(&tasks, "first"), [false, true, false]);
        assert_eq!(told(&tasks, "second"), [true, false, false]);
        assert_eq!(told(&tasks, "third"), [false, false, false]);
        assert_eq!(tasks.internal(Some("second"), -1, None)["textinfo"], "In queue: 1/1");
        assert_eq!(tasks.pending(), json!({"size": 1, "tasks": ["second"]}));
        tasks.end("first", false);
        assert_eq!(told(&tasks, "first"), [false, false, true]);
        tasks.begin("second", "scripts_txt2img");
        tasks.end("second", true);
        assert_eq!(
            told(&tasks, "second"),
            [false, true, false],
            "as read: an exception forgets to finish it"
        );
    }
}
