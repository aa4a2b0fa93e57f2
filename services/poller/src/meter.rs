//! What a poller counts.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::{BackendCondition, ErrorCode};
use stepcast_shared::meter::{self, Kind};
use stepcast_shared::subjects;

use crate::plan::ModelChange;
use crate::weights::Timings;

/// Says what each metric is.
pub fn declare() {
    meter::declare_shared();
    meter::declare(&[
        (Kind::Counters, "stepcast_attempts_total", "Attempts that ended, by backend and outcome"),
        (
            Kind::Counters,
            "stepcast_attempt_failures_total",
            "Attempts that failed, by backend and error code",
        ),
        (
            Kind::Histogram,
            "stepcast_attempt_seconds",
            "From the request to SD.Next to its answer, by backend and outcome",
        ),
        (
            Kind::Histogram,
            "stepcast_stage_seconds",
            "What each stage of a completed job took in all, by backend: as polls showed it for those of SD.Next, \
             measured for storing and recording",
        ),
        (Kind::Counters, "stepcast_model_swaps_total", "Checkpoints that jobs had a backend load"),
        (
            Kind::Gauge,
            "stepcast_backend_state",
            "1 for the state that a backend is in, 0 for the others; from the one poller that holds it, so take the \
             sum over pollers",
        ),
        (Kind::Histogram, "stepcast_poll_seconds", "How long SD.Next takes to say how far it is, by backend"),
        (Kind::Counter, "stepcast_polls_refused_total", "Polls that the limiter of SD.Next turned away"),
        (Kind::Counter, "stepcast_polls_missed_total", "Polls that got no answer that could be read"),
        (Kind::Counter, "stepcast_renders_not_stored_total", "Renders whose images could not be stored"),
    ]);
}

/// Counts an attempt that has ended.
pub fn attempt(backend: &BackendId, outcome: subjects::Kind, failure: Option<ErrorCode>, took: Duration) {
    let backend = || backend.to_string();
    counter!("stepcast_attempts_total", "backend" => backend(), "outcome" => outcome.as_str()).increment(1);
    histogram!("stepcast_attempt_seconds", "backend" => backend(), "outcome" => outcome.as_str())
        .record(took);
    if let Some(code) = failure {
        counter!("stepcast_attempt_failures_total", "backend" => backend(), "code" => code.as_str())
            .increment(1);
    }
}

/// Counts what the stages of a completed job took on its server.
pub fn stages(backend: &BackendId, timings: &Timings) {
    for (cost, took) in timings.totals() {
        stage(backend, cost.name(), took);
    }
}

/// Counts what one stage took.
pub fn stage(backend: &BackendId, stage: &'static str, took: Duration) {
    histogram!("stepcast_stage_seconds", "backend" => backend.to_string(), "stage" => stage).record(took);
}

/// Counts the checkpoints that a job has a server load.
pub fn model_swaps(backend: &BackendId, change: ModelChange) {
    let swaps = match change {
        ModelChange::None => 0,
        ModelChange::Loads => 1,
        ModelChange::LoadsAndRestores => 2,
    };
    counter!("stepcast_model_swaps_total", "backend" => backend.to_string()).increment(swaps);
}

/// Says what a backend is doing; nothing once it is another poller's.
pub fn state(backend: &BackendId, state: Option<BackendCondition>) {
    for (condition, word) in [
        (BackendCondition::Idle, "idle"),
        (BackendCondition::Busy, "busy"),
        (BackendCondition::Foreign, "foreign"),
        (BackendCondition::Starting, "starting"),
        (BackendCondition::Quarantined, "quarantined"),
        (BackendCondition::Drained, "drained"),
        (BackendCondition::Down, "down"),
    ] {
        let here = if state == Some(condition) { 1.0 } else { 0.0 };
        gauge!("stepcast_backend_state", "backend" => backend.to_string(), "state" => word).set(here);
    }
}

/// Counts how long a server took to answer a poll.
pub fn poll(backend: &BackendId, took: Duration) {
    histogram!("stepcast_poll_seconds", "backend" => backend.to_string()).record(took);
}
