//! What really happens inside, for the tests that compare it with what a client was told.

use serde::{Deserialize, Serialize};

use crate::faults::Fault;

/// The server's inner truth at one moment. Times are Unix microseconds on the server's clock.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Truth {
    /// The server's time when this was read.
    pub now: i64,
    /// The job that holds the lock.
    pub running: Option<Running>,
    /// Posts that wait for the lock.
    pub waiting: u64,
    /// Generation posts received, whatever became of them.
    pub posts_received: u64,
    /// Jobs that took the lock.
    pub renders_started: u64,
    /// Jobs that gave the lock back.
    pub renders_finished: u64,
    /// Calls of the interrupt endpoint.
    pub interrupts_received: u64,
    /// Calls of the skip endpoint.
    pub skips_received: u64,
    /// Calls of the three progress endpoints.
    pub polls_seen: u64,
    /// Previews drawn.
    pub previews_drawn: u64,
    /// Requests refused by the rate limit.
    pub rate_limited: u64,
    /// The loaded model.
    pub model: Option<String>,
    /// Models loaded since start.
    pub loads: u64,
    /// Every job answers without images until a forced reload.
    pub wedged: bool,
    /// Faults that wait for a job, with the number of jobs they are armed for.
    pub faults: Vec<(Fault, u32)>,
    /// Jobs that ended, oldest first; the last 10,000.
    pub finished: Vec<Finished>,
}

/// The job that runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// Counts jobs from 1.
    pub number: u64,
    /// `txt2img` or `img2img`.
    pub kind: String,
    /// Its prompt.
    pub prompt: String,
    /// Seed of its first image.
    pub seed: i64,
    /// The stage that really runs, whatever the state shows.
    pub stage: String,
    /// Sampling pass, counted from 1 over the whole job; 0 before the first.
    pub pass: u32,
    /// Sampling passes of the whole job.
    pub passes: u32,
    /// Steps done in this pass.
    pub step: u32,
    /// Steps of this pass.
    pub steps: u32,
    /// Images done.
    pub images: u32,
    /// When it took the lock.
    pub started_at: i64,
    /// When `pass` or `step` last changed.
    pub step_changed_at: i64,
    /// The fault it suffers from.
    pub fault: Option<Fault>,
}

/// A job that ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Finished {
    /// Counts jobs from 1.
    pub number: u64,
    /// Its prompt.
    pub prompt: String,
    /// Seed of its first image.
    pub seed: i64,
    /// Steps done over all passes.
    pub steps_done: u32,
    /// Images in its answer.
    pub images: u32,
    /// `done`, `interrupted`, `skipped`, `failed`, `exception` or `refused`.
    pub outcome: String,
    /// When it took the lock.
    pub started_at: i64,
    /// When it gave the lock back.
    pub ended_at: i64,
}
