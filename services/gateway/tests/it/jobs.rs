//! A job as api and a poller would tell of it: recorded events, and progress beside them.

use async_nats::{Client, HeaderMap, jetstream};
use serde_json::json;
use stepcast_shared::events::{self, LifecycleEvent};
use stepcast_shared::ids::{BackendId, JobId, Owner, Pool};
use stepcast_shared::job::Priority;
use stepcast_shared::messages::{
    Complete, Envelope, ErrorCode, EventSeq, JobError, JobMessage, ProgressUpdate, Queued, Retrying, Source,
    Stage, Started, Status,
};
use stepcast_shared::subjects;

pub struct Job {
    pub id: JobId,
    owner: Owner,
    client: Client,
    context: jetstream::Context,
    /// Stream sequence of its last event.
    last: u64,
    attempt: u32,
    seq: u32,
}

impl Job {
    pub fn new(client: Client, context: jetstream::Context) -> Self {
        Self { id: JobId::mint(), owner: Owner::anonymous(), client, context, last: 0, attempt: 0, seq: 0 }
    }

    /// The same job, told of under an id that was given out elsewhere.
    pub fn with_id(self, id: JobId) -> Self {
        Self { id, ..self }
    }

    /// The same job, as another owner's.
    pub fn of(self, owner: &str) -> Self {
        Self { owner: owner.parse().unwrap(), ..self }
    }

    /// The same job as a poller knows it that is frozen now.
    pub fn frozen(&self) -> Self {
        Self {
            id: self.id,
            owner: self.owner.clone(),
            client: self.client.clone(),
            context: self.context.clone(),
            last: self.last,
            attempt: self.attempt,
            seq: self.seq,
        }
    }

    /// Stream sequence of its last event.
    pub fn place(&self) -> u64 {
        self.last
    }

    pub async fn queued(&mut self) {
        let queued = Queued {
            job_id: self.id,
            status: Status::Pending,
            attempt: 0,
            seq: EventSeq::QUEUED,
            params: json!({"prompt": "a cat"}),
            position: Some(1),
            priority: Priority::Normal,
            pool: Pool::default(),
            label: None,
        };
        self.record(JobMessage::Queued(queued)).await;
    }

    pub async fn started(&mut self) {
        self.attempt += 1;
        self.seq = EventSeq::STARTED;
        let started = Started {
            job_id: self.id,
            status: Status::Running,
            attempt: self.attempt,
            seq: self.seq,
            params: json!({"prompt": "a cat"}),
            estimated_duration: None,
            backend: backend(),
        };
        self.record(JobMessage::Started(started)).await;
    }

    /// Publishes the next progress, and returns its payload.
    pub async fn progress(&mut self) -> String {
        self.seq += 1;
        let progress = JobMessage::Progress(ProgressUpdate {
            job_id: self.id,
            status: Status::Running,
            attempt: self.attempt,
            seq: self.seq,
            progress: 0.25,
            current_step: self.seq,
            total_steps: 100_000,
            eta_seconds: None,
            preview_image: None,
            error_message: None,
            stage: Stage::Sampling,
            image: 1,
            images: 1,
            steps_per_second: None,
            source: Source::Measured,
            stalled: false,
            stalled_seconds: None,
            backend: Some(backend()),
        });
        let mut headers = HeaderMap::new();
        headers.insert(EventSeq::HEADER, progress.seq().to_string().as_str());
        let subject = subjects::job(&self.owner, self.id, progress.kind());
        let payload = Envelope::now(progress).to_json();
        self.client.publish_with_headers(subject, headers, payload.clone().into()).await.unwrap();
        String::from_utf8(payload).unwrap()
    }

    pub async fn retrying(&mut self) {
        let error = JobError {
            code: ErrorCode::BackendUnavailable,
            message: "the backend went away".to_owned(),
            retryable: true,
            answer: None,
        };
        let retrying = Retrying {
            job_id: self.id,
            status: Status::Pending,
            attempt: self.attempt,
            seq: EventSeq::RETRYING,
            reason: error.code,
            next_attempt_in_seconds: 1.0,
            error,
            backend: backend(),
            timeline: None,
        };
        self.record(JobMessage::Retrying(retrying)).await;
    }

    pub async fn completed(&mut self) {
        self.record(self.terminal()).await;
    }

    /// The envelope of its end, for an api that alone remembers it.
    pub fn stored_end(&self) -> (String, String) {
        let terminal = self.terminal();
        let seq = terminal.seq().to_string();
        (seq, String::from_utf8(Envelope::now(terminal).to_json()).unwrap())
    }

    fn terminal(&self) -> JobMessage {
        JobMessage::Complete(Complete {
            job_id: self.id,
            status: Status::Completed,
            attempt: self.attempt,
            seq: EventSeq::TERMINAL,
            images: vec![format!("/generation/jobs/{}/images/0", self.id)],
            error_message: None,
            total_duration: Some(1.0),
            generation_info: None,
            outputs: Vec::new(),
            error: None,
            backend: Some(backend()),
            recovered: false,
            stopped_after_seconds: None,
            timeline: None,
        })
    }

    async fn record(&mut self, message: JobMessage) {
        let event = LifecycleEvent::new(self.owner.clone(), message, "test".to_owned(), self.last);
        let deadline = tokio::time::Instant::now() + crate::stage::PATIENCE;
        loop {
            match events::record(&self.context, &event).await {
                Ok(sequence) => {
                    self.last = sequence;
                    return;
                }
                Err(events::RecordError::Unavailable(_)) if tokio::time::Instant::now() < deadline => {}
                Err(error) => panic!("not recorded: {error:?}"),
            }
        }
    }
}

fn backend() -> BackendId {
    "gpu-0".parse().unwrap()
}
