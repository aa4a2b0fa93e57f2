//! When a job got where, from its acceptance to its end.

use schemars::JsonSchema;
use serde::Serialize;
use stepcast_shared::messages::{Complete, ErrorCode, JobError, Moments, Status, Timestamp};

use crate::db::jobs::{AttemptRow, JobRow};

/// When a job got where. Each is null where it was not seen, or has not come to pass.
///
/// Three clocks tell: `queued` is api's, `started` and `recorded` are those of the event stream, and the rest are the
/// poller's.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema, JsonSchema)]
pub struct Timeline {
    /// It was accepted.
    pub queued: Timestamp,
    /// The start of the attempt that runs, or that was the last, was recorded.
    pub started: Option<Timestamp>,
    /// What that attempt's poller saw; told with its end.
    #[serde(flatten)]
    pub moments: Moments,
    /// The job's end was recorded, and in the same moment handed to whoever watches it.
    pub recorded: Option<Timestamp>,
    /// Attempts before that one, oldest first.
    pub earlier: Vec<EarlierAttempt>,
}

/// An attempt that failed and was followed by another.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema, JsonSchema)]
pub struct EarlierAttempt {
    /// From 1.
    pub attempt: i64,
    /// Where it ran.
    pub backend: Option<String>,
    /// Its start was recorded.
    pub started: Option<Timestamp>,
    /// What its poller saw.
    #[serde(flatten)]
    pub moments: Moments,
    /// Its failure was recorded.
    pub recorded: Timestamp,
    /// Which failure.
    pub code: ErrorCode,
}

/// Whether a job's failed attempts are part of what is told of it.
pub fn has_attempts(row: &JobRow) -> bool {
    match row.status() {
        Status::Running | Status::Completed => row.attempt > 1,
        Status::Pending | Status::Failed | Status::Cancelled => row.attempt > 0,
    }
}

impl Timeline {
    /// Puts together what the rows hold.
    pub fn of(row: &JobRow, result: Option<&Complete>, attempts: &[AttemptRow]) -> Self {
        let is_earlier = |it: &&AttemptRow| it.attempt < row.attempt || it.retried == Some(1);
        let earlier: Vec<&AttemptRow> = attempts.iter().filter(is_earlier).collect();
        // Between two attempts, the last one is over as well.
        let between = earlier.iter().any(|it| it.attempt == row.attempt);
        Self {
            queued: Timestamp::from_millis(row.created_at),
            started: row.started_at.filter(|_| !between).map(Timestamp::from_millis),
            moments: result.and_then(|result| result.timeline).unwrap_or_default(),
            recorded: row.finished_at.map(Timestamp::from_millis),
            earlier: earlier.into_iter().filter_map(EarlierAttempt::of).collect(),
        }
    }
}

impl EarlierAttempt {
    fn of(row: &AttemptRow) -> Option<Self> {
        let error: JobError = serde_json::from_str(&row.error).ok()?;
        let moments = row.timeline.as_deref().and_then(|text| serde_json::from_str(text).ok());
        Some(Self {
            attempt: row.attempt,
            backend: row.backend.clone(),
            started: row.started_at.map(Timestamp::from_millis),
            moments: moments.unwrap_or_default(),
            recorded: Timestamp::from_millis(row.ended_at),
            code: error.code,
        })
    }
}
