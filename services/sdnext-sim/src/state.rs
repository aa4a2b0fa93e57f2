//! The one global state that all progress endpoints read.
//!
//! There is no stack: every stage that begins wipes what the stage around it showed, and every stage that ends leaves
//! an idle-looking state behind, whatever still runs around it. The two flags are wiped by the next begin only, which
//! is why they linger, and why an interrupt just before a stage is lost.

use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::dialect::Dialect;
use crate::history::{History, Row};

/// A stage that has begun, to be handed back when it ends.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    id: String,
    job: &'static str,
    began: i64,
}

#[derive(Debug)]
pub(crate) struct State {
    clock: Clock,
    pub(crate) history: History,
    /// Before the first stage the id is the integer 0.
    virgin: bool,
    id: String,
    job: &'static str,
    job_count: u32,
    job_timestamp: String,
    step: u32,
    steps: u32,
    pub(crate) interrupted: bool,
    pub(crate) skipped: bool,
    /// Where tasks are known, flags outlast the stages of a job.
    pub(crate) dialect: Dialect,
    changed: Option<Instant>,
    /// Stages begun since start.
    total: u64,
    /// Step of the last preview made, 0 for none.
    pub(crate) preview_id: u32,
}

impl State {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            history: History::default(),
            virgin: true,
            id: String::new(),
            job: "",
            job_count: 0,
            job_timestamp: "0".to_owned(),
            step: 0,
            steps: 0,
            interrupted: false,
            skipped: false,
            dialect: Dialect::Sdnext,
            changed: None,
            total: 0,
            preview_id: 0,
        }
    }

    pub(crate) fn begin(&mut self, job: &'static str) -> Stage {
        self.virgin = false;
        self.id = format!("{:015x}", rand::rng().random::<u64>() >> 4);
        self.job = job;
        self.job_count = 1;
        self.job_timestamp = self.clock.compact();
        self.step = 0;
        self.steps = 0;
        if !self.dialect.has_tasks() {
            self.interrupted = false;
            self.skipped = false;
        }
        self.changed = Some(Instant::now());
        self.total += 1;
        self.preview_id = 0;
        let stage = Stage { id: self.id.clone(), job, began: self.clock.micros() };
        self.row(&stage, "begin", None, Vec::new());
        stage
    }

    /// Records a file that `stage` wrote.
    pub(crate) fn output(&mut self, stage: &Stage, file: String) {
        self.row(stage, "output", None, vec![file]);
    }

    /// Ends `stage`: name and id go, step counter and flags stay.
    pub(crate) fn end(&mut self, stage: &Stage) {
        self.id.clear();
        self.job = "";
        self.job_count = 0;
        self.changed = Some(Instant::now());
        let seconds = (self.clock.micros() - stage.began) as f64 / 1e6;
        self.row(stage, "end", Some((seconds * 1000.0).round() / 1000.0), Vec::new());
    }

    /// One more sampling step is done; before the first, both counters read 0.
    pub(crate) fn stepped(&mut self, step: u32, steps: u32) {
        self.step = step;
        self.steps = steps;
    }

    pub(crate) fn job(&self) -> &'static str {
        self.job
    }

    pub(crate) fn step(&self) -> u32 {
        self.step
    }

    pub(crate) fn timestamp(&self) -> &str {
        &self.job_timestamp
    }

    fn row(&mut self, stage: &Stage, op: &'static str, duration: Option<f64>, outputs: Vec<String>) {
        let timestamp = self.clock.micros() as f64 / 1e6;
        let (id, job) = (stage.id.clone(), stage.job.to_lowercase());
        self.history.push(Row { id, job, op, timestamp, duration, outputs });
    }

    fn id(&self) -> Value {
        if self.virgin { json!(0) } else { json!(self.id) }
    }

    fn elapsed(&self) -> Option<f64> {
        self.changed.map(|changed| changed.elapsed().as_secs_f64())
    }

    fn fraction(&self, steps: u32) -> f64 {
        if steps == 0 { 0.0 } else { f64::from(self.step) / f64::from(steps) }
    }

    /// Seconds left if the rest goes like the part since the last change.
    fn eta(&self, fraction: f64) -> Option<f64> {
        (fraction > 0.0).then(|| self.elapsed().unwrap_or(0.0) * (1.0 - fraction) / fraction)
    }

    /// The body of `GET /sdapi/v1/progress`.
    pub(crate) fn progress(&self, image: Option<&str>) -> Value {
        let fraction = self.fraction(self.steps);
        json!({
            "id": self.id(),
            "progress": two_decimals(fraction),
            "eta_relative": self.eta(fraction).unwrap_or(0.0),
            "state": {
                "skipped": self.skipped,
                "interrupted": self.interrupted,
                "job": self.job,
                "job_count": self.job_count,
                "job_timestamp": self.job_timestamp,
                "job_no": 0,
                "sampling_step": self.step,
                "sampling_steps": self.steps,
            },
            "current_image": image,
            "textinfo": null,
        })
    }

    /// The body of `GET /sdapi/v1/status`; unlike the other two it forgets the steps once their stage has ended.
    pub(crate) fn status(&self) -> Value {
        let steps = self.job_count * self.steps;
        let fraction = self.fraction(steps);
        let running = !self.job.is_empty();
        let status = match (self.interrupted, self.skipped, running) {
            (true, _, _) => "interrupted",
            (_, true, _) => "skipped",
            (_, _, true) => "running",
            _ => "idle",
        };
        json!({
            "status": status,
            "task": self.job,
            "timestamp": running.then_some(&self.job_timestamp),
            "current": "",
            "id": self.id(),
            "job": 0,
            "jobs": self.job_count,
            "total": self.total,
            "step": self.step,
            "steps": steps,
            "queued": 0,
            "uptime": self.clock.uptime().as_secs(),
            "elapsed": self.elapsed().map(two_decimals),
            "eta": self.eta(fraction).map(two_decimals),
            "progress": two_decimals(fraction),
        })
    }

    /// The body of `POST /internal/progress`.
    pub(crate) fn internal(&self, live_preview: Option<&str>) -> Value {
        let running = !self.job.is_empty();
        let fraction = self.fraction(self.steps);
        json!({
            "job": self.job,
            "textinfo": (!running).then_some("Waiting..."),
            "active": running,
            "queued": false,
            "paused": false,
            "completed": false,
            "debug": false,
            "step": self.step,
            "steps": self.steps.max(1),
            "batch_no": 0,
            "batch_count": 0,
            "progress": two_decimals(fraction),
            "eta": self.eta(fraction),
            "live_preview": live_preview,
            "id_live_preview": self.preview_id,
        })
    }
}

/// Rounds the way the recorded server does: on the exact binary value, so 0.175 becomes 0.17 and 0.225 becomes 0.23.
pub(crate) fn two_decimals(value: f64) -> f64 {
    format!("{value:.2}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::{Clock, State, two_decimals};

    #[test]
    fn rounding_is_the_recorded_one() {
        let rounded = |step: u32, steps: u32| two_decimals(f64::from(step) / f64::from(steps));
        for (step, steps, recorded) in [
            (1, 40, 0.03),
            (3, 40, 0.07),
            (5, 40, 0.12),
            (7, 40, 0.17),
            (9, 40, 0.23),
            (39, 40, 0.97),
            (1, 8, 0.12),
            (3, 8, 0.38),
            (5, 8, 0.62),
            (7, 8, 0.88),
            (29, 30, 0.97),
        ] {
            assert!(
                (rounded(step, steps) - recorded).abs() < 1e-9,
                "{step}/{steps} became {}",
                rounded(step, steps)
            );
        }
    }

    #[test]
    fn inner_stage_wipes_the_outer_one_and_its_flags() {
        let mut state = State::new(Clock::new());
        let outer = state.begin("Base");
        state.interrupted = true;
        let inner = state.begin("Params");
        assert!(!state.interrupted, "an interrupt before a stage is lost");
        state.interrupted = true;
        state.end(&inner);
        assert_eq!(state.job(), "", "the outer stage still runs, and nothing shows it");
        state.end(&outer);
        assert!(state.interrupted, "a flag lingers until the next stage");
        let jobs: Vec<_> =
            state.history.rows(None).into_iter().map(|row| format!("{} {}", row.job, row.op)).collect();
        assert_eq!(jobs, ["base begin", "params begin", "params end", "base end"]);
    }

    #[test]
    fn finished_steps_outlive_their_stage_in_progress_but_not_in_status() {
        let mut state = State::new(Clock::new());
        let inference = state.begin("Inference");
        state.stepped(9, 40);
        state.end(&inference);
        assert_eq!(state.progress(None)["progress"], 0.23);
        assert_eq!(state.status()["progress"], 0.0);
        assert_eq!(state.status()["step"], 9);
        assert_eq!(state.status()["steps"], 0);
    }
}
