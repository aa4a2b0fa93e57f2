//! The job object, as HTTP clients and `rpc.get` read it: the row, the live progress, and where it waits.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stepcast_shared::ids::JobId;
use stepcast_shared::job::Priority;
use stepcast_shared::messages::{Complete, ErrorCode, JobError, Output, Stage, Status, Timestamp};
use stepcast_shared::rpc::AcceptedUrls;

use crate::db::jobs::{self, AttemptRow, JobRow};
use crate::error::Error;
use crate::state::AppState;
use crate::timeline::{Timeline, has_attempts};
use crate::waiting::{Lookout, WaitingFor};

/// A job.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema, JsonSchema)]
pub struct Job {
    /// Its id.
    pub job_id: JobId,
    /// Where in its life it is.
    pub status: Status,
    /// 0.0 to 1.0.
    pub progress: f64,
    /// What its render is doing.
    pub stage: Option<Stage>,
    /// Steps done.
    pub current_step: Option<u32>,
    /// Steps to do.
    pub total_steps: Option<u32>,
    /// Seconds left, where a rate is known.
    pub eta_seconds: Option<f64>,
    /// The last started attempt; 0 before the first.
    pub attempt: i64,
    /// Where the last attempt ran.
    pub backend: Option<String>,
    /// How urgent.
    pub priority: Priority,
    /// Which backends may take it.
    pub pool: String,
    /// Checkpoint it asks for.
    pub model: Option<String>,
    /// The client's own mark.
    pub label: Option<String>,
    /// Jobs that were submitted together.
    pub batch_id: Option<String>,
    /// The request, as sent.
    #[schema(value_type = Object)]
    #[schemars(with = "Map<String, Value>")]
    pub params: Value,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its last attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Seconds that its last attempt took.
    pub total_duration: Option<f64>,
    /// Seconds from the first request to cancel it to the end of its render, if that was cancelled.
    pub stopped_after_seconds: Option<f64>,
    /// Place among the waiting, from 1.
    pub position: Option<i64>,
    /// Why it waits.
    pub waiting_for: Option<WaitingFor>,
    /// Seconds until its render begins, while it waits and as far as that can be told from what was measured.
    pub estimated_wait_seconds: Option<f64>,
    /// Whether a cancel is under way.
    pub cancelling: bool,
    /// Where its images are; empty unless completed.
    pub images: Vec<String>,
    /// Its images, one by one.
    pub outputs: Vec<Output>,
    /// What SD.Next said of the images.
    #[schema(value_type = Option<Object>)]
    pub generation_info: Option<Value>,
    /// The failure's sentence.
    pub error_message: Option<String>,
    /// The failure in full.
    pub error: Option<JobFailure>,
    /// When it got where.
    pub timeline: Timeline,
    /// Where to go on.
    pub urls: AcceptedUrls,
}

/// Why a job failed, with its attempts.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema, JsonSchema)]
pub struct JobFailure {
    /// The failure.
    #[serde(flatten)]
    pub error: JobError,
    /// Every failed attempt, oldest first.
    pub attempts: Vec<FailedAttempt>,
}

/// A failed attempt.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct FailedAttempt {
    /// From 1.
    pub attempt: i64,
    /// Where it ran.
    pub backend: Option<String>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Which kind.
    pub code: ErrorCode,
    /// One sentence for a person.
    pub message: String,
}

/// Makes the object of a row.
pub async fn job(state: &AppState, row: &JobRow) -> Result<Job, Error> {
    let waits = match row.status() {
        Status::Pending => {
            let position = jobs::position(state.db.read(), row).await?;
            Some(Waits::of(&Lookout::take(state).await?, row, position))
        }
        _ => None,
    };
    assemble(state, row, waits).await
}

/// Makes the objects of many rows.
pub async fn jobs(state: &AppState, rows: &[JobRow]) -> Result<Vec<Job>, Error> {
    let waiting = rows.iter().any(|row| row.status() == Status::Pending);
    let (positions, lookout) = if waiting {
        (jobs::positions(state.db.read()).await?, Some(Lookout::take(state).await?))
    } else {
        (HashMap::new(), None)
    };
    let mut jobs = Vec::with_capacity(rows.len());
    for row in rows {
        let position = positions.get(&row.id).copied().filter(|_| row.status() == Status::Pending);
        let waits = lookout.as_ref().zip(position).map(|(lookout, place)| Waits::of(lookout, row, place));
        jobs.push(assemble(state, row, waits).await?);
    }
    Ok(jobs)
}

/// What is said of a job that waits.
struct Waits {
    position: i64,
    reason: WaitingFor,
    seconds: Option<f64>,
}

impl Waits {
    fn of(lookout: &Lookout, row: &JobRow, position: i64) -> Self {
        let reason = lookout.reason(row, position);
        Self { position, reason, seconds: lookout.seconds(row, position, reason) }
    }
}

async fn assemble(state: &AppState, row: &JobRow, waits: Option<Waits>) -> Result<Job, Error> {
    let (job_id, status) = (row.job_id(), row.status());
    let result: Option<Complete> = row.result.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let live = match status {
        Status::Running => state.progress.get(job_id, u32::try_from(row.attempt).unwrap_or(0)),
        _ => None,
    };
    let failed = result.as_ref().is_some_and(|result| result.error.is_some());
    let attempts = if failed || has_attempts(row) {
        jobs::attempts(state.db.read(), &row.id).await?
    } else {
        Vec::new()
    };
    let timeline = Timeline::of(row, result.as_ref(), &attempts);
    let error = result.as_ref().and_then(|result| result.error.clone());
    let error = error.map(|error| JobFailure { error, attempts: failed_attempts(attempts) });
    let progress = match status {
        Status::Completed => 1.0,
        _ => live.as_ref().map_or(0.0, |update| update.progress),
    };
    Ok(Job {
        job_id,
        status,
        progress,
        stage: live.as_ref().map(|update| update.stage),
        current_step: live.as_ref().map(|update| update.current_step),
        total_steps: live.as_ref().map(|update| update.total_steps),
        eta_seconds: live.as_ref().and_then(|update| update.eta_seconds),
        attempt: row.attempt,
        backend: row.backend.clone(),
        priority: jobs::priority(row.priority),
        pool: row.pool.clone(),
        model: row.model.clone(),
        label: row.label.clone(),
        batch_id: row.batch_id.clone(),
        params: serde_json::from_str(&row.params).unwrap_or_default(),
        created_at: Timestamp::from_millis(row.created_at),
        started_at: row.started_at.map(Timestamp::from_millis),
        finished_at: row.finished_at.map(Timestamp::from_millis),
        total_duration: result.as_ref().and_then(|result| result.total_duration),
        stopped_after_seconds: result.as_ref().and_then(|result| result.stopped_after_seconds),
        position: waits.as_ref().map(|waits| waits.position),
        waiting_for: waits.as_ref().map(|waits| waits.reason),
        estimated_wait_seconds: waits.as_ref().and_then(|waits| waits.seconds),
        cancelling: row.cancelling != 0 && !status.is_terminal(),
        images: result.as_ref().map(|result| result.images.clone()).unwrap_or_default(),
        outputs: result.as_ref().map(|result| result.outputs.clone()).unwrap_or_default(),
        generation_info: result.as_ref().and_then(|result| result.generation_info.clone()),
        error_message: result.and_then(|result| result.error_message),
        error,
        timeline,
        urls: AcceptedUrls::of(job_id),
    })
}

fn failed_attempts(rows: Vec<AttemptRow>) -> Vec<FailedAttempt> {
    rows.into_iter()
        .filter_map(|row| {
            let error: JobError = serde_json::from_str(&row.error).ok()?;
            let ended_at = Timestamp::from_millis(row.ended_at);
            let JobError { code, message, .. } = error;
            Some(FailedAttempt { attempt: row.attempt, backend: row.backend, ended_at, code, message })
        })
        .collect()
}
