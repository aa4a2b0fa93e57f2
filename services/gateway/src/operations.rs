//! What a client's message needs other services for. A connection runs its operations one after another, in the
//! order they were asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use serde_json::Value;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::rpc::{self, CancelAnswer, CancelRequest, SubmitAnswer, SubmitRequest};
use tracing::debug;

use crate::answers::{Answer, Confirmation};
use crate::frame::JobFrame;
use crate::hub::Member;
use crate::outbox::Outbox;
use crate::protocol::Jobs;
use crate::snapshot::{self, Active, Reader};

/// Something to be done for a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Watch jobs, confirm it, and send where they stand.
    Subscribe {
        /// Which.
        jobs: Jobs,
        /// At most so many progress updates a second and job, from now on.
        max_rate: Option<f64>,
        /// What the confirmation says about a `since`.
        recovered: Option<bool>,
        /// The mark of the question.
        request_id: Option<String>,
    },
    /// Watch jobs that were just accepted; the client knows.
    Follow {
        /// Which.
        ids: Vec<JobId>,
    },
    /// Watch jobs no longer.
    Unsubscribe {
        /// Which.
        jobs: Jobs,
        /// What is still watched.
        remaining: Jobs,
        /// The mark of the question.
        request_id: Option<String>,
    },
    /// Have jobs accepted.
    Submit {
        /// Their bodies.
        jobs: Vec<Value>,
        /// The mark of the question.
        request_id: Option<String>,
    },
    /// Have jobs cancelled.
    Cancel {
        /// Which.
        ids: Vec<JobId>,
        /// The mark of the question.
        request_id: Option<String>,
    },
}

/// How an operation ended, with the mark of the question where it is still to be answered.
#[derive(Debug)]
pub enum Outcome {
    /// The client has its answer.
    Answered,
    /// Jobs were accepted.
    Submitted(SubmitAnswer, Option<String>),
    /// Cancels were taken note of.
    Cancelled(CancelAnswer, Option<String>),
    /// Another service said no, or nothing.
    Refused(rpc::Error, Option<String>),
}

/// What the operations of one connection work with.
#[derive(Debug)]
pub struct Workbench {
    /// Whose connection it is.
    pub owner: Owner,
    /// To reach api.
    pub client: Client,
    /// How long to wait for it.
    pub timeout: Duration,
    /// To read where jobs stand.
    pub reader: Arc<Reader>,
    /// The connection's place in the hub.
    pub member: Member,
    /// The connection's outbox.
    pub outbox: Arc<Outbox>,
}

impl Workbench {
    /// Does one thing. Dropping it midway leaves nothing behind once the member is dropped too.
    pub async fn run(self: Arc<Self>, operation: Operation) -> Outcome {
        match operation {
            Operation::Subscribe { jobs, max_rate, recovered, request_id } => {
                self.outbox.set_max_rate(&jobs, max_rate);
                let confirmation = Confirmation { recovered, ..Confirmation::of(&jobs, request_id) };
                self.watch(jobs, Some(confirmation)).await
            }
            Operation::Follow { ids } => self.watch(Jobs::Ids(ids), None).await,
            Operation::Unsubscribe { jobs, remaining, request_id } => {
                self.unwatch(&jobs, &remaining);
                self.outbox
                    .answer(Answer::SubscriptionConfirmed(Confirmation::of(&remaining, request_id)).encode());
                Outcome::Answered
            }
            Operation::Submit { jobs, request_id } => {
                let request = SubmitRequest { owner: self.owner.clone(), jobs };
                match rpc::call(&self.client, rpc::SUBMIT, &request, self.timeout).await {
                    Ok(answer) => Outcome::Submitted(answer, request_id),
                    Err(error) => Outcome::Refused(error, request_id),
                }
            }
            Operation::Cancel { ids, request_id } => {
                let request = CancelRequest { owner: self.owner.clone(), job_ids: ids };
                match rpc::call(&self.client, rpc::CANCEL, &request, self.timeout).await {
                    Ok(answer) => Outcome::Cancelled(answer, request_id),
                    Err(error) => Outcome::Refused(error, request_id),
                }
            }
        }
    }

    /// Subscribes first and reads afterwards, so that nothing falls between; what is live meanwhile is held back.
    async fn watch(&self, jobs: Jobs, confirmation: Option<Confirmation>) -> Outcome {
        self.outbox.hold(&jobs);
        // Without NATS everything takes effect and is read once it is back.
        match &jobs {
            Jobs::All => self.member.watch_all().await,
            Jobs::Ids(ids) => self.member.watch(ids).await,
        };
        match &jobs {
            Jobs::All => self.snapshot_of_all(confirmation).await,
            Jobs::Ids(ids) => self.snapshot_of(ids, confirmation).await,
        }
        self.outbox.release();
        Outcome::Answered
    }

    async fn snapshot_of_all(&self, confirmation: Option<Confirmation>) {
        let Active { ids, truncated } = self.reader.active(&self.owner).await;
        self.member.note(&ids);
        self.confirm(confirmation.map(|it| Confirmation { truncated, ..it }));
        for batch in ids.chunks(snapshot::BATCH) {
            self.outbox.room().await;
            match self.reader.last(&self.owner, batch).await {
                Ok(frames) => self.send(batch, &frames),
                Err(error) => incomplete(&error),
            }
        }
    }

    async fn snapshot_of(&self, ids: &[JobId], confirmation: Option<Confirmation>) {
        self.outbox.forget_finished(ids);
        let mut known = HashMap::with_capacity(ids.len());
        let mut unknown = Vec::new();
        for batch in ids.chunks(snapshot::BATCH) {
            // Without an answer nothing is known to be unknown; these jobs are read again shortly.
            match self.reader.last(&self.owner, batch).await {
                Ok(frames) => {
                    unknown.extend(batch.iter().filter(|id| !frames.contains_key(id)));
                    known.extend(frames);
                }
                Err(error) => incomplete(&error),
            }
        }
        self.confirm(confirmation.map(|it| Confirmation { unknown, ..it }));
        for batch in ids.chunks(snapshot::BATCH) {
            self.outbox.room().await;
            self.send(batch, &known);
        }
    }

    fn confirm(&self, confirmation: Option<Confirmation>) {
        if let Some(confirmation) = confirmation {
            self.outbox.answer(Answer::SubscriptionConfirmed(confirmation).encode());
        }
    }

    /// Sends the frames of these jobs in the order of the jobs, each with the last progress that is known here.
    fn send(&self, ids: &[JobId], frames: &HashMap<JobId, JobFrame>) {
        for id in ids {
            if let Some(event) = frames.get(id) {
                self.outbox.snapshot(event);
            }
            if let Some(progress) = self.member.last_progress(*id) {
                self.outbox.snapshot(&progress);
            }
        }
    }

    fn unwatch(&self, jobs: &Jobs, remaining: &Jobs) {
        match jobs {
            Jobs::All => {
                self.member.unwatch_everything();
                self.outbox.forget(&Jobs::All);
            }
            Jobs::Ids(ids) => {
                self.member.unwatch(ids);
                if *remaining != Jobs::All {
                    self.outbox.forget(jobs);
                }
            }
        }
    }
}

/// What is missing is read again shortly; one line per client would say the same a thousand times.
fn incomplete(error: &anyhow::Error) {
    metrics::counter!("stepcast_gateway_incomplete_snapshots_total", "lacks" => "stream").increment(1);
    debug!(error = format!("{error:#}"), "a snapshot is incomplete for now");
}
