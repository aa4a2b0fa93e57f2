//! The envelopes that clients and services read: `{"type", "timestamp", "data"}`.
//!
//! A contract between deployments: fields and variants are added, never renamed or reused, and readers skip what they
//! do not know. A job's message is encoded once, by its publisher, and reaches WebSocket clients byte for byte.

mod backend;
mod order;
mod stats;
mod timeline;
mod words;

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::ids::{BackendId, JobId, Pool};
use crate::job::Priority;
use crate::subjects::Kind;

pub use self::backend::{BackendCondition, BackendMode, BackendState};
pub use self::order::EventSeq;
pub use self::stats::{
    BackendStats, ErrorCount, OverallStats, QueueDepth, QueueStats, Spread, Stats, StatsWindow, Throughput,
    WindowFigures,
};
pub use self::timeline::Moments;
pub use self::words::{ErrorCode, Source, Stage, Status};

/// A message with the time of its making.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{M}Envelope")]
pub struct Envelope<M> {
    /// What is said.
    #[serde(flatten)]
    pub message: M,
    /// When; RFC 3339, UTC, microseconds.
    pub timestamp: Timestamp,
}

impl<M: Serialize> Envelope<M> {
    /// Wraps a message, stamped now.
    pub fn now(message: M) -> Self {
        Self { message, timestamp: Timestamp::now() }
    }

    /// The wire form.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("messages hold only what JSON can say")
    }
}

/// A time on the wire: RFC 3339, UTC, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, utoipa::ToSchema, JsonSchema)]
#[schema(value_type = String, format = DateTime)]
#[schemars(extend("format" = "date-time"))]
pub struct Timestamp(#[schemars(with = "String")] pub DateTime<Utc>);

impl Timestamp {
    /// The present.
    pub fn now() -> Self {
        Self(Utc::now())
    }

    /// From milliseconds since 1970; out of range reads as 1970.
    pub fn from_millis(millis: i64) -> Self {
        Self(DateTime::from_timestamp_millis(millis).unwrap_or_default())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DateTime::<Utc>::deserialize(deserializer).map(Self)
    }
}

/// A failure, as a client reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct JobError {
    /// Which kind.
    pub code: ErrorCode,
    /// One sentence for a person.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// SD.Next's own answer, shortened, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub answer: Option<Value>,
}

/// What is said about a job, in the order of its life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", content = "data")]
pub enum JobMessage {
    /// Accepted.
    #[serde(rename = "generation_queued")]
    Queued(Queued),
    /// A render begins.
    #[serde(rename = "generation_started")]
    Started(Started),
    /// How far it is.
    #[serde(rename = "progress_update")]
    Progress(ProgressUpdate),
    /// An attempt failed, another follows.
    #[serde(rename = "generation_retrying")]
    Retrying(Retrying),
    /// It ended, one way or another.
    #[serde(rename = "generation_complete")]
    Complete(Complete),
}

impl JobMessage {
    /// The job it speaks of.
    pub fn job_id(&self) -> JobId {
        match self {
            Self::Queued(m) => m.job_id,
            Self::Started(m) => m.job_id,
            Self::Progress(m) => m.job_id,
            Self::Retrying(m) => m.job_id,
            Self::Complete(m) => m.job_id,
        }
    }

    /// Its place in the job's life.
    pub fn seq(&self) -> EventSeq {
        let (attempt, seq) = match self {
            Self::Queued(m) => (m.attempt, m.seq),
            Self::Started(m) => (m.attempt, m.seq),
            Self::Progress(m) => (m.attempt, m.seq),
            Self::Retrying(m) => (m.attempt, m.seq),
            Self::Complete(m) => (m.attempt, m.seq),
        };
        EventSeq { attempt, seq }
    }

    /// The last token of the subject it is published on.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Queued(_) => Kind::Queued,
            Self::Started(_) => Kind::Started,
            Self::Progress(_) => Kind::Progress,
            Self::Retrying(_) => Kind::Retrying,
            Self::Complete(m) => match m.status {
                Status::Completed => Kind::Completed,
                Status::Cancelled => Kind::Cancelled,
                Status::Pending | Status::Running | Status::Failed => Kind::Failed,
            },
        }
    }
}

/// `generation_queued`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Queued {
    /// Which job.
    pub job_id: JobId,
    /// `pending`.
    pub status: Status,
    /// 0.
    pub attempt: u32,
    /// 0.
    pub seq: u32,
    /// The request, as sent.
    #[schemars(with = "Map<String, Value>")]
    pub params: Value,
    /// Jobs ahead of it at that moment, itself included; absent where it was not counted.
    pub position: Option<u64>,
    /// How urgent.
    #[serde(default)]
    pub priority: Priority,
    /// Which backends may take it.
    #[serde(default)]
    pub pool: Pool,
    /// The client's own mark.
    #[serde(default)]
    pub label: Option<String>,
}

/// `generation_started`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// Which job.
    pub job_id: JobId,
    /// `running`.
    pub status: Status,
    /// Counts renders, from 1.
    pub attempt: u32,
    /// 1.
    pub seq: u32,
    /// The request, as sent.
    #[schemars(with = "Map<String, Value>")]
    pub params: Value,
    /// Seconds that this backend's earlier timings suggest.
    pub estimated_duration: Option<f64>,
    /// Where it renders.
    pub backend: BackendId,
}

/// `progress_update`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgressUpdate {
    /// Which job.
    pub job_id: JobId,
    /// `running`.
    pub status: Status,
    /// Which render.
    pub attempt: u32,
    /// From 2, growing.
    pub seq: u32,
    /// 0.0 to below 1.0, never falling within an attempt.
    pub progress: f64,
    /// Steps done, over the whole job.
    pub current_step: u32,
    /// Steps to do, over the whole job.
    pub total_steps: u32,
    /// Seconds left, where a rate is known.
    pub eta_seconds: Option<f64>,
    /// Base64 preview; always absent here, since previews travel by themselves.
    pub preview_image: Option<String>,
    /// Always absent while it runs.
    pub error_message: Option<String>,
    /// What it is doing.
    pub stage: Stage,
    /// Which image, from 1.
    pub image: u32,
    /// Of how many.
    pub images: u32,
    /// Measured rate.
    pub steps_per_second: Option<f64>,
    /// What the figure rests on.
    pub source: Source,
    /// Whether nothing has changed for too long.
    pub stalled: bool,
    /// Age of the last change in seconds, once `stalled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled_seconds: Option<f64>,
    /// Where it renders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendId>,
}

/// `generation_retrying`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Retrying {
    /// Which job.
    pub job_id: JobId,
    /// `pending`.
    pub status: Status,
    /// The attempt that failed.
    pub attempt: u32,
    /// 2147483646.
    pub seq: u32,
    /// Why it failed.
    pub reason: ErrorCode,
    /// The pause before the next attempt.
    pub next_attempt_in_seconds: f64,
    /// The failure in full.
    pub error: JobError,
    /// Where it failed.
    pub backend: BackendId,
    /// When the attempt got where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Moments>,
}

/// `generation_complete`: the one terminal message, whatever the outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Complete {
    /// Which job.
    pub job_id: JobId,
    /// `completed`, `failed` or `cancelled`.
    pub status: Status,
    /// The last started attempt; 0 if none was.
    pub attempt: u32,
    /// 2147483647.
    pub seq: u32,
    /// Where the images are; empty unless completed.
    pub images: Vec<String>,
    /// The failure's sentence.
    pub error_message: Option<String>,
    /// Seconds from `started` of this attempt; absent if none was.
    pub total_duration: Option<f64>,
    /// What SD.Next said of the images (its `info`).
    pub generation_info: Option<Value>,
    /// The images, one by one; `partial` ones stand here alone.
    pub outputs: Vec<Output>,
    /// The failure in full.
    pub error: Option<JobError>,
    /// Where it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendId>,
    /// Whether an orphaned render was adopted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovered: bool,
    /// Seconds from the first request to cancel, as api wrote it down, to the return of the render's POST. Only on a
    /// cancelled job whose render was under way and has been seen to return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_after_seconds: Option<f64>,
    /// When the attempt got where; absent if none was begun, and where its poller vanished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Moments>,
}

/// One image of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct Output {
    /// Where it is served.
    pub url: String,
    /// As read from its bytes.
    pub content_type: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Size of the file.
    pub bytes: u64,
    /// The seed it was made from, where SD.Next said so.
    pub seed: Option<i64>,
    /// Key in the object store.
    pub key: String,
    /// Whether it is left from an attempt that did not complete.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// URL of the n-th image of a job, on the one origin.
pub fn image_url(job_id: JobId, index: usize) -> String {
    format!("/generation/jobs/{job_id}/images/{index}")
}
