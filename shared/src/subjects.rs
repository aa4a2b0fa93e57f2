//! NATS subjects, built and parsed here alone.
//!
//! Lifecycle events are published on `stepcast.v1.event.…` into the stream, which republishes what it stored on
//! `stepcast.v1.job.…`. Everybody subscribes to the latter: what is live is then what was recorded.

use std::fmt;
use std::str::FromStr;

use crate::ids::{BackendId, JobId, Owner, Pool};

/// Stream of every lifecycle event.
pub const EVENTS_STREAM: &str = "STEPCAST_EVENTS";
/// Stream that keeps the last state of each backend.
pub const BACKENDS_STREAM: &str = "STEPCAST_BACKENDS";
/// Stream of what could not be decoded.
pub const DEAD_STREAM: &str = "STEPCAST_DEAD";
/// Bucket that says who holds a backend.
pub const LEASES_BUCKET: &str = "stepcast_leases";
/// Bucket that says what a backend is rendering.
pub const INFLIGHT_BUCKET: &str = "stepcast_inflight";
/// Every lifecycle event, as published.
pub const ALL_EVENTS: &str = "stepcast.v1.event.>";
/// Where the stream republishes from, as a subject transform.
pub const REPUBLISH_SOURCE: &str = "stepcast.v1.event.*.*.*";
/// Where the stream republishes to, as a subject transform.
pub const REPUBLISH_DESTINATION: &str = "stepcast.v1.job.{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}";
/// Every backend's state.
pub const ALL_BACKENDS: &str = "stepcast.v1.backend.*";
/// Copies of undecodable events.
pub const ALL_DEAD: &str = "stepcast.v1.dead.>";
/// Prefix of the requests that api answers.
pub const RPC_PREFIX: &str = "stepcast.v1.rpc";

const EVENT: &str = "stepcast.v1.event";
const JOB: &str = "stepcast.v1.job";

/// The last token of a job's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Accepted.
    Queued,
    /// A render begins.
    Started,
    /// An attempt failed, another follows.
    Retrying,
    /// Ended with its images.
    Completed,
    /// Ended without.
    Failed,
    /// Ended on request.
    Cancelled,
    /// Live progress; never recorded.
    Progress,
    /// A live preview; never recorded.
    Preview,
}

impl Kind {
    /// The token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Started => "started",
            Self::Retrying => "retrying",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Progress => "progress",
            Self::Preview => "preview",
        }
    }

    /// Whether the event stream keeps it.
    pub fn is_lifecycle(self) -> bool {
        !matches!(self, Self::Progress | Self::Preview)
    }

    /// Whether nothing follows it.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(token: &str) -> Result<Self, ()> {
        Ok(match token {
            "queued" => Self::Queued,
            "started" => Self::Started,
            "retrying" => Self::Retrying,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            "cancelled" => Self::Cancelled,
            "progress" => Self::Progress,
            "preview" => Self::Preview,
            _ => return Err(()),
        })
    }
}

/// A job's subject, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSubject {
    /// Whose job.
    pub owner: Owner,
    /// Which job.
    pub job_id: JobId,
    /// What about it.
    pub kind: Kind,
}

/// Where a lifecycle event is published, to be recorded.
pub fn event(owner: &Owner, job_id: JobId, kind: Kind) -> String {
    debug_assert!(kind.is_lifecycle(), "progress is never recorded");
    format!("{EVENT}.{owner}.{job_id}.{kind}")
}

/// All lifecycle events of a job, as recorded.
pub fn events_of_job(owner: &Owner, job_id: JobId) -> String {
    format!("{EVENT}.{owner}.{job_id}.*")
}

/// All lifecycle events of all jobs of one owner, as recorded.
pub fn events_of_owner(owner: &Owner) -> String {
    format!("{EVENT}.{owner}.*.*")
}

/// Where a job's live messages are found.
pub fn job(owner: &Owner, job_id: JobId, kind: Kind) -> String {
    format!("{JOB}.{owner}.{job_id}.{kind}")
}

/// Everything live of one job.
pub fn all_of_job(owner: &Owner, job_id: JobId) -> String {
    format!("{JOB}.{owner}.{job_id}.*")
}

/// Everything live of all jobs of one owner.
pub fn all_of_owner(owner: &Owner) -> String {
    format!("{JOB}.{owner}.*.*")
}

/// Everything live of one kind, over all owners.
pub fn all_of_kind(kind: Kind) -> String {
    format!("{JOB}.*.*.{kind}")
}

/// Takes a subject of `stepcast.v1.job.…` or `stepcast.v1.event.…` apart; `None` for any other.
pub fn parse_job(subject: &str) -> Option<JobSubject> {
    let rest = subject.strip_prefix(JOB).or_else(|| subject.strip_prefix(EVENT))?.strip_prefix('.')?;
    let mut tokens = rest.split('.');
    let owner = tokens.next()?.parse().ok()?;
    let job_id = tokens.next()?.parse().ok()?;
    let kind = tokens.next()?.parse().ok()?;
    tokens.next().is_none().then_some(JobSubject { owner, job_id, kind })
}

/// Tells idle backends of a pool that work exists.
pub fn wake(pool: &Pool) -> String {
    format!("stepcast.v1.wake.{pool}")
}

/// Fast path of a cancel to the job's poller.
pub fn control(job_id: JobId) -> String {
    format!("stepcast.v1.control.{job_id}")
}

/// Says that somebody watches a job's previews.
pub fn demand(job_id: JobId) -> String {
    format!("stepcast.v1.demand.{job_id}")
}

/// State of a backend.
pub fn backend(id: &BackendId) -> String {
    format!("stepcast.v1.backend.{id}")
}

/// Where an undecodable event is copied to.
pub fn dead(subject: &str) -> String {
    format!("stepcast.v1.dead.{subject}")
}

/// A request that api answers.
pub fn rpc(name: &str) -> String {
    format!("{RPC_PREFIX}.{name}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_built_subject_parses_back() {
        let (owner, job_id) = (Owner::anonymous(), JobId::mint());
        let expected = JobSubject { owner: owner.clone(), job_id, kind: Kind::Started };
        assert_eq!(parse_job(&event(&owner, job_id, Kind::Started)), Some(expected.clone()));
        assert_eq!(parse_job(&job(&owner, job_id, Kind::Started)), Some(expected));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic(text in ".{0,120}") {
            let _ = parse_job(&text);
            let _ = parse_job(&format!("stepcast.v1.job.{text}"));
        }
    }
}
