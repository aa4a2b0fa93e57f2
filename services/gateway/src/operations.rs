//! What a client's message needs other services for. A connection runs its operations one after another, in the
//! order they were asked for.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::nats::Newest;
use stepcast_shared::rpc::{
    self, CancelAnswer, CancelRequest, RetryAnswer, RetryRequest, SubmitAnswer, SubmitRequest,
};
use stepcast_shared::trace::{SpanExt as _, TraceContext};
use tokio::time::sleep;
use tracing::{Instrument as _, Span, debug, debug_span};

use crate::Gateway;
use crate::answers::{Answer, Confirmation};
use crate::frame::JobFrame;
use crate::hub::Member;
use crate::outbox::Outbox;
use crate::protocol::Jobs;
use crate::replay::{Missed, Since};
use crate::snapshot::{self, Active};
use crate::topics::{Seat, Topic};

/// When what was missed is asked for again, if NATS did not answer.
const AGAIN: Duration = Duration::from_millis(500);

/// Something to be done for a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Watch jobs, confirm it, and send where they stand.
    Subscribe {
        /// Which.
        jobs: Jobs,
        /// What is watched beside them, from now on.
        topics: BTreeSet<Topic>,
        /// From when on what was missed is sent first.
        since: Option<Since>,
        /// Whether progress of all jobs may come many in one message.
        batch: bool,
        /// At most so many progress updates a second and job, from now on.
        max_rate: Option<f64>,
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
        /// What is still watched beside jobs.
        topics: BTreeSet<Topic>,
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
    /// Have the requests of jobs submitted again.
    Retry {
        /// Which.
        ids: Vec<JobId>,
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
    /// Requests were submitted again.
    Retried(RetryAnswer, Option<String>),
    /// Cancels were taken note of.
    Cancelled(CancelAnswer, Option<String>),
    /// Another service said no, or nothing.
    Refused(rpc::Error, Option<String>),
}

/// What the operations of one connection work with.
#[derive(Debug)]
pub struct Workbench {
    gateway: Arc<Gateway>,
    /// Whose connection it is.
    owner: Owner,
    /// The connection's place in the hub.
    pub member: Member,
    seat: Seat,
    outbox: Arc<Outbox>,
    /// Where the request stood that the connection began with; boxed, as there is none without traces.
    handshake: Option<Box<TraceContext>>,
}

impl Workbench {
    /// For a connection of this owner.
    pub fn new(
        gateway: &Arc<Gateway>,
        owner: Owner,
        outbox: Arc<Outbox>,
        handshake: Option<Box<TraceContext>>,
    ) -> Self {
        let member = gateway.hub.join(owner.clone(), Arc::clone(&outbox));
        let seat = gateway.board.join(Arc::clone(&outbox));
        Self { gateway: Arc::clone(gateway), owner, member, seat, outbox, handshake }
    }

    /// Does one thing. Dropping it midway leaves nothing behind once the member is dropped too.
    pub async fn run(self: Arc<Self>, operation: Operation) -> Outcome {
        match operation {
            Operation::Subscribe { jobs, topics, since, batch, max_rate, request_id } => {
                self.outbox.set_max_rate(&jobs, max_rate);
                let confirmation = Confirmation { batch, ..Confirmation::of(&jobs, &topics, request_id) };
                if jobs == Jobs::Ids(Vec::new()) && !topics.is_empty() {
                    self.confirm(Some(confirmation));
                } else {
                    self.watch(jobs, since, Some(confirmation)).await;
                }
                self.seat.watch(&topics);
                Outcome::Answered
            }
            Operation::Follow { ids } => {
                self.watch(Jobs::Ids(ids), None, None).await;
                Outcome::Answered
            }
            Operation::Unsubscribe { jobs, remaining, topics, request_id } => {
                self.unwatch(&jobs, &remaining);
                self.seat.watch_only(&topics);
                self.confirm(Some(Confirmation::of(&remaining, &topics, request_id)));
                Outcome::Answered
            }
            Operation::Submit { jobs, request_id } => {
                let request = SubmitRequest { owner: self.owner.clone(), jobs };
                match self.call(rpc::SUBMIT, &request).instrument(self.asked("submit")).await {
                    Ok(answer) => Outcome::Submitted(answer, request_id),
                    Err(error) => Outcome::Refused(error, request_id),
                }
            }
            Operation::Retry { ids, request_id } => {
                let request = RetryRequest { owner: self.owner.clone(), job_ids: ids };
                match self.call(rpc::RETRY, &request).instrument(self.asked("retry")).await {
                    Ok(answer) => Outcome::Retried(answer, request_id),
                    Err(error) => Outcome::Refused(error, request_id),
                }
            }
            Operation::Cancel { ids, request_id } => {
                let request = CancelRequest { owner: self.owner.clone(), job_ids: ids };
                match self.call(rpc::CANCEL, &request).instrument(self.asked("cancel")).await {
                    Ok(answer) => Outcome::Cancelled(answer, request_id),
                    Err(error) => Outcome::Refused(error, request_id),
                }
            }
        }
    }

    /// What a client asks for begins a trace, as a request over HTTP does; a connection lives too long to be one.
    fn asked(&self, what: &'static str) -> Span {
        let span = debug_span!("message", otel.kind = "server", otel.name = what);
        span.linked(self.handshake.as_deref()).continues(None)
    }

    async fn call<A: DeserializeOwned>(&self, name: &str, request: &impl Serialize) -> Result<A, rpc::Error> {
        rpc::call(&self.gateway.client, name, request, self.gateway.limits.request_timeout).await
    }

    /// Subscribes first and reads afterwards, so that nothing falls between; what is live meanwhile is held back.
    async fn watch(&self, jobs: Jobs, since: Option<Since>, confirmation: Option<Confirmation>) {
        self.outbox.hold(&jobs);
        // Without NATS everything takes effect and is read once it is back.
        match &jobs {
            Jobs::All => {
                let batch = confirmation.as_ref().is_some_and(|it| it.batch);
                self.member.watch_all(batch).await
            }
            Jobs::Ids(ids) => self.member.watch(ids).await,
        };
        let newest = self.newest().await;
        let missed = match since {
            Some(since) => Some(self.missed(&jobs, since).await),
            None => None,
        };
        let recovered = since.map(|_| matches!(missed, Some(Missed::Whole(_))));
        let confirmation = confirmation.map(|it| Confirmation { recovered, ..it });
        match (&jobs, missed) {
            (_, Some(Missed::Whole(events))) => self.go_on(&jobs, &events, confirmation).await,
            (Jobs::All, Some(Missed::Latest(events))) => {
                self.snapshot_of_all(confirmation, &events, newest.as_ref()).await;
            }
            (Jobs::All, None) => self.snapshot_of_all(confirmation, &[], newest.as_ref()).await,
            (Jobs::Ids(ids), _) => self.snapshot_of(ids, confirmation, newest.as_ref()).await,
        }
        if let Some(newest) = newest {
            self.outbox.mark(newest.place);
        }
        self.outbox.release();
    }

    /// Up to where in the stream everything is to be told by what is read from now on; only where clients are told
    /// places.
    async fn newest(&self) -> Option<Newest> {
        if self.outbox.socket().is_some() {
            return None;
        }
        loop {
            match self.gateway.reader.newest().await {
                Ok(newest) => return Some(newest),
                Err(error) => incomplete(&error),
            }
            sleep(AGAIN).await;
        }
    }

    /// What was missed. While NATS is away this waits until it is back: the client would never ask again, and there
    /// is nothing live to be had meanwhile.
    async fn missed(&self, jobs: &Jobs, since: Since) -> Missed {
        loop {
            // Only behind a subscription that has taken effect nothing is missed anew.
            if self.member.settled().await {
                match self.gateway.reader.missed(&self.owner, jobs, since).await {
                    Ok(missed) => {
                        let outcome = if matches!(missed, Missed::Whole(_)) { "whole" } else { "too_much" };
                        metrics::counter!("stepcast_gateway_recoveries_total", "outcome" => outcome)
                            .increment(1);
                        return missed;
                    }
                    Err(error) => incomplete(&error),
                }
            }
            metrics::counter!("stepcast_gateway_recoveries_total", "outcome" => "failed").increment(1);
            sleep(AGAIN).await;
        }
    }

    /// Sends every event that was missed, and how far the running jobs are.
    async fn go_on(&self, jobs: &Jobs, events: &[JobFrame], confirmation: Option<Confirmation>) {
        let mut ids = match jobs {
            Jobs::All => {
                let Active { ids, truncated } = self.gateway.reader.active(&self.owner).await;
                self.member.know(&ids);
                self.confirm(confirmation.map(|it| Confirmation { truncated, ..it }));
                ids
            }
            Jobs::Ids(ids) => {
                self.confirm(confirmation);
                ids.clone()
            }
        };
        for event in events {
            self.outbox.room().await;
            self.outbox.snapshot(event);
        }
        let last = snapshot::latest(events.iter().cloned());
        ids.extend(last.keys());
        for ids in ids.chunks(snapshot::BATCH) {
            for progress in self.member.settle(ids, &last).values() {
                self.outbox.snapshot(progress);
            }
        }
    }

    /// Sends where the active jobs stand, and how others have ended that were heard of lately.
    async fn snapshot_of_all(
        &self,
        confirmation: Option<Confirmation>,
        lately: &[JobFrame],
        newest: Option<&Newest>,
    ) {
        let Active { ids, truncated } = self.gateway.reader.active(&self.owner).await;
        self.member.note(&ids);
        let (read, known) = self.stand(&ids, newest).await;
        let truncated = truncated || read.len() < ids.len();
        self.confirm(confirmation.map(|it| Confirmation { truncated, ..it }));
        for batch in read.chunks(snapshot::BATCH) {
            self.send(batch, &known).await;
        }
        let told: HashSet<JobId> = ids.into_iter().collect();
        for events in lately.chunks(snapshot::BATCH) {
            let untold = events.iter().filter(|event| !told.contains(&event.job_id));
            let events: HashMap<JobId, JobFrame> =
                untold.map(|event| (event.job_id, event.clone())).collect();
            let ids: Vec<JobId> = events.keys().copied().collect();
            self.send(&ids, &events).await;
        }
    }

    async fn snapshot_of(&self, ids: &[JobId], confirmation: Option<Confirmation>, newest: Option<&Newest>) {
        self.member.doubt(ids);
        let (read, known) = self.stand(ids, newest).await;
        // Of what was not read nothing is known to be unknown.
        let unknown = read.iter().filter(|id| !known.contains_key(id)).copied().collect();
        let truncated = read.len() < ids.len();
        self.confirm(confirmation.map(|it| Confirmation { unknown, truncated, ..it }));
        for batch in read.chunks(snapshot::BATCH) {
            self.send(batch, &known).await;
        }
    }

    /// Those of these jobs of which it could be read where they stand, and the last event of each that is known. The
    /// others are read again shortly; whoever is told places in the stream waits until all have been, from a replica
    /// that has the newest event.
    async fn stand(&self, ids: &[JobId], newest: Option<&Newest>) -> (Vec<JobId>, HashMap<JobId, JobFrame>) {
        let mut newest = newest.cloned();
        let mut read = Vec::with_capacity(ids.len());
        let mut known = HashMap::with_capacity(ids.len());
        for batch in ids.chunks(snapshot::BATCH) {
            loop {
                match self.gateway.reader.last(&self.owner, batch, newest.as_ref()).await {
                    Ok(frames) => {
                        read.extend_from_slice(batch);
                        known.extend(frames);
                        break;
                    }
                    Err(error) => incomplete(&error),
                }
                if newest.is_none() {
                    break;
                }
                sleep(AGAIN).await;
                // The stream may have let go of the one before.
                newest = self.newest().await;
            }
        }
        (read, known)
    }

    fn confirm(&self, confirmation: Option<Confirmation>) {
        if let Some(confirmation) = confirmation {
            self.outbox.answer(Answer::SubscriptionConfirmed(confirmation).encode());
        }
    }

    /// Sends the frames of these jobs in the order of the jobs, each with the last progress that is known here.
    async fn send(&self, ids: &[JobId], frames: &HashMap<JobId, JobFrame>) {
        let progress = self.member.settle(ids, frames);
        for id in ids {
            self.outbox.room().await;
            for frame in [frames.get(id), progress.get(id)].into_iter().flatten() {
                self.outbox.snapshot(frame);
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
