//! What a watcher knows of its jobs: messages in, news and an end out. Neither socket nor clock.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::{Complete, EventSeq, JobMessage};

use crate::exit::Exit;

/// Most jobs in one subscription.
const MAX_IDS: usize = 500;

/// The jobs that are watched.
#[derive(Debug)]
pub struct Follow {
    all: bool,
    jobs: BTreeMap<JobId, Job>,
}

#[derive(Debug, Default)]
struct Job {
    seen: Option<EventSeq>,
    end: Option<Complete>,
}

impl Follow {
    /// Watches these jobs until they have ended.
    pub fn jobs(ids: impl IntoIterator<Item = JobId>) -> Self {
        Self { all: false, jobs: ids.into_iter().map(|id| (id, Job::default())).collect() }
    }

    /// Watches all jobs, without an end.
    pub fn all() -> Self {
        Self { all: true, jobs: BTreeMap::new() }
    }

    /// Takes a message; whether it is news. After a reconnect the server repeats itself.
    pub fn note(&mut self, message: &JobMessage) -> bool {
        let job_id = message.job_id();
        let job = match self.jobs.get_mut(&job_id) {
            Some(job) => job,
            None if self.all => self.jobs.entry(job_id).or_default(),
            None => return false,
        };
        let seq = message.seq();
        if job.seen.is_some_and(|seen| seq <= seen) || job.end.is_some() {
            return false;
        }
        job.seen = Some(seq);
        if let JobMessage::Complete(end) = message {
            job.end = Some(end.clone());
        }
        true
    }

    /// Whether all jobs are watched, without an end.
    pub fn is_endless(&self) -> bool {
        self.all
    }

    /// Whether everything that was waited for has happened.
    pub fn is_over(&self) -> bool {
        !self.all && self.jobs.values().all(|job| job.end.is_some())
    }

    /// What the ends amount to.
    pub fn exit(&self) -> Exit {
        Exit::of_jobs(self.ends().map(|end| end.status))
    }

    /// The ends so far.
    pub fn ends(&self) -> impl Iterator<Item = &Complete> {
        self.jobs.values().filter_map(|job| job.end.as_ref())
    }

    /// What to ask for on a fresh connection.
    ///
    /// Whoever watches everything is shown what is active; jobs that ended while the connection was lost are not
    /// among them, so the unfinished ones are asked for by name as well.
    pub fn subscriptions(&self) -> Vec<Value> {
        let unfinished: Vec<JobId> =
            self.jobs.iter().filter(|(_, job)| job.end.is_none()).map(|(id, _)| *id).collect();
        let all = self.all.then(|| json!({ "type": "subscribe", "job_ids": null }));
        let named = unfinished.chunks(MAX_IDS).map(|ids| json!({ "type": "subscribe", "job_ids": ids }));
        all.into_iter().chain(named).collect()
    }

    /// Forgets ended jobs, so that watching everything for a month needs no more memory than for a day.
    pub fn forget_ended(&mut self) {
        if self.all {
            self.jobs.retain(|_, job| job.end.is_none());
        }
    }
}

/// Whether a message ends its job.
pub fn is_end(message: &JobMessage) -> bool {
    matches!(message, JobMessage::Complete(_))
}

#[cfg(test)]
pub mod tests {
    use stepcast_shared::ids::Pool;
    use stepcast_shared::job::Priority;
    use stepcast_shared::messages::{ProgressUpdate, Queued, Source, Stage, Started, Status};

    use super::*;

    pub fn queued(job_id: JobId) -> JobMessage {
        JobMessage::Queued(Queued {
            job_id,
            status: Status::Pending,
            attempt: 0,
            seq: 0,
            params: json!({ "prompt": "x" }),
            position: Some(3),
            priority: Priority::default(),
            pool: Pool::default(),
            label: None,
        })
    }

    pub fn started(job_id: JobId, attempt: u32) -> JobMessage {
        JobMessage::Started(Started {
            job_id,
            status: Status::Running,
            attempt,
            seq: 1,
            params: json!({ "prompt": "x" }),
            estimated_duration: None,
            backend: "gpu".parse().unwrap(),
        })
    }

    pub fn progress(job_id: JobId, seq: u32, progress: f64, stage: Stage) -> JobMessage {
        JobMessage::Progress(ProgressUpdate {
            job_id,
            status: Status::Running,
            attempt: 1,
            seq,
            progress,
            current_step: 7,
            total_steps: 20,
            eta_seconds: Some(4.2),
            preview_image: None,
            error_message: None,
            stage,
            image: 1,
            images: 2,
            steps_per_second: Some(3.12),
            source: Source::Measured,
            stalled: false,
            stalled_seconds: None,
            backend: None,
        })
    }

    pub fn complete(job_id: JobId, status: Status) -> JobMessage {
        let images = match status {
            Status::Completed => vec![format!("/generation/jobs/{job_id}/images/0")],
            _ => Vec::new(),
        };
        JobMessage::Complete(Complete {
            job_id,
            status,
            attempt: 1,
            seq: EventSeq::TERMINAL,
            images,
            error_message: (status == Status::Failed).then(|| "out of memory".to_owned()),
            total_duration: Some(8.12),
            generation_info: None,
            outputs: Vec::new(),
            error: None,
            backend: None,
            recovered: false,
            stopped_after_seconds: None,
            timeline: None,
        })
    }

    #[test]
    fn named_jobs_are_over_once_all_have_ended() {
        let (one, two) = (JobId::mint(), JobId::mint());
        let mut follow = Follow::jobs([one, two]);
        assert!(follow.note(&queued(one)));
        assert!(follow.note(&complete(one, Status::Completed)));
        assert!(!follow.is_over());
        assert!(follow.note(&complete(two, Status::Cancelled)));
        assert!(follow.is_over());
        assert_eq!(follow.exit(), Exit::JobCancelled);
    }

    #[test]
    fn what_was_seen_is_no_news() {
        let id = JobId::mint();
        let mut follow = Follow::jobs([id]);
        assert!(follow.note(&started(id, 1)));
        assert!(follow.note(&progress(id, 5, 0.5, Stage::Sampling)));
        assert!(!follow.note(&progress(id, 5, 0.5, Stage::Sampling)), "repeated");
        assert!(!follow.note(&progress(id, 4, 0.4, Stage::Sampling)), "late");
        assert!(follow.note(&started(id, 2)));
        assert!(!follow.note(&complete(id, Status::Failed)), "of an earlier attempt");
    }

    #[test]
    fn other_jobs_are_nobodys_news_unless_all_are_watched() {
        let id = JobId::mint();
        assert!(!Follow::jobs([JobId::mint()]).note(&queued(id)));
        let mut all = Follow::all();
        assert!(all.note(&queued(id)));
        assert!(all.note(&complete(id, Status::Failed)));
        assert!(!all.is_over());
    }

    #[test]
    fn only_unfinished_jobs_are_asked_for_again() {
        let (one, two) = (JobId::mint(), JobId::mint());
        let mut follow = Follow::jobs([one, two]);
        follow.note(&complete(one, Status::Completed));
        assert_eq!(follow.subscriptions(), [json!({ "type": "subscribe", "job_ids": [two] })]);
        let mut all = Follow::all();
        all.note(&queued(one));
        assert_eq!(
            all.subscriptions(),
            [
                json!({ "type": "subscribe", "job_ids": null }),
                json!({ "type": "subscribe", "job_ids": [one] })
            ]
        );
        assert_eq!(Follow::jobs((0..501).map(|_| JobId::mint())).subscriptions().len(), 2);
    }
}
