//! Moving on what nobody else can: claims that lapsed, and waiting jobs that are cancelled, late, or given back too
//! often.

use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State as NatsState;
use sqlx::AnyConnection;
use stepcast_shared::events::LifecycleEvent;
use stepcast_shared::ids::{BackendId, JobId};
use stepcast_shared::messages::{Complete, ErrorCode, EventSeq, JobError, JobMessage, Retrying, Status};
use stepcast_shared::trace::{SpanExt as _, TraceContext};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error_span, field, info, warn};

use crate::cancel::cancelled;
use crate::db::claims::{self, GIVE_BACKS_PER_ATTEMPT, LEASE_SECONDS, UnsettledRow};
use crate::db::silence::in_time;
use crate::db::{Db, outbox};
use crate::outbox::Publisher;

/// How often such jobs are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Jobs settled at once.
const BATCH: u32 = 100;
/// How long a process that is alone leaves to its poller what its earlier life held.
const TAKE_UP: Duration = Duration::from_secs(10);
/// Pause before a job whose poller vanished is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Settles jobs that nobody else can move on.
pub struct Settler {
    pub db: Db,
    pub client: Client,
    pub publisher: Publisher,
    /// How long a job may wait in all.
    pub max_wait: Duration,
    /// Whether whoever held a claim when this process started is gone.
    pub sole_process: bool,
}

impl Settler {
    /// Settles until the process stops.
    ///
    /// A lease says something only if its holder could have renewed it: nothing lapses before this replica has itself
    /// been connected to NATS and the database for one full lease.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let lease = Duration::from_secs(LEASE_SECONDS);
        let started = Instant::now();
        let mut earlier_life = if self.sole_process { Some(self.db.now().await?) } else { None };
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connected_since = Instant::now();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            if self.client.connection_state() != NatsState::Connected {
                connected_since = Instant::now();
                continue;
            }
            let mut leases_count = connected_since.elapsed() >= lease;
            // By then our own poller has taken up again what it could of its earlier life.
            if let Some(since) = earlier_life.take_if(|_| started.elapsed() >= TAKE_UP) {
                leases_count = true;
                if let Err(cause) = in_time(self.end_claims_before(since)).await {
                    warn!(error = %cause, "claims of an earlier life not ended yet");
                    earlier_life = Some(since);
                }
            }
            if let Err(cause) = in_time(self.settle(leases_count)).await {
                warn!(error = %cause, "jobs not settled");
                connected_since = Instant::now();
            }
        }
    }

    async fn end_claims_before(&self, time: i64) -> sqlx::Result<()> {
        let mut transaction = self.db.begin().await?;
        claims::end_before(&mut transaction, time).await?;
        transaction.commit().await
    }

    async fn settle(&self, leases_count: bool) -> sqlx::Result<()> {
        let max_wait_ms = i64::try_from(self.max_wait.as_millis()).unwrap_or(i64::MAX);
        // All active jobs are looked through, mostly for nothing, which must not keep anybody from writing.
        let mut reader = self.db.read().acquire().await?;
        if claims::unsettled(&mut reader, self.db.dialect, max_wait_ms, 1).await?.is_empty() {
            return Ok(());
        }
        drop(reader);
        let mut transaction = self.db.begin().await?;
        let rows = claims::unsettled(&mut transaction, self.db.dialect, max_wait_ms, BATCH).await?;
        let mut events = Vec::new();
        for row in rows.iter().filter(|row| row.lapsed == 0 || leases_count) {
            let job_id: JobId = row.id.parse().expect("the id column holds what JobId writes");
            let span = error_span!("settle", %job_id, trace_id = field::Empty);
            let span = span.continues(TraceContext::from_column(row.trace.as_deref()).as_ref()).named();
            let settling = self.settle_one(&mut transaction, job_id, row).instrument(span);
            events.extend(settling.await?);
        }
        transaction.commit().await?;
        if !events.is_empty() {
            self.publisher.publish_promptly(events).await;
        }
        Ok(())
    }

    /// Writes what becomes of a job, and returns its event if there is one.
    async fn settle_one(
        &self,
        connection: &mut AnyConnection,
        job_id: JobId,
        row: &UnsettledRow,
    ) -> sqlx::Result<Option<LifecycleEvent>> {
        if row.lapsed != 0 {
            metrics::counter!("stepcast_claims_lapsed_total").increment(1);
            warn!(backend = row.claim_backend, "a poller has not been heard of for a full lease");
        }
        let Some(message) = verdict(job_id, row) else {
            claims::clear(connection, job_id).await?;
            return Ok(None);
        };
        info!(outcome = %message.kind(), "settled");
        let owner = row.owner.parse().expect("the owner column holds what Owner writes");
        let last = u64::try_from(row.event_seq).unwrap_or(0);
        let event = LifecycleEvent::new(owner, message, outbox::mint_author(), last);
        outbox::insert(connection, self.db.dialect, &event).await?;
        Ok(Some(event))
    }
}

/// What is said of such a job; `None` if it only waits again.
fn verdict(job_id: JobId, row: &UnsettledRow) -> Option<JobMessage> {
    let attempt = u32::try_from(row.attempt).unwrap_or(0);
    let backend: Option<BackendId> = row.claim_backend.as_deref().and_then(|id| id.parse().ok());
    let waits = row.status == Status::Pending.as_str();
    let failure = |code, message: &str, retryable| JobError {
        code,
        message: message.to_owned(),
        retryable,
        answer: None,
    };
    if row.cancelling != 0 {
        return Some(cancelled(job_id, attempt));
    }
    if row.late != 0 {
        let error = failure(ErrorCode::Deadline, "The job's time was up before it was done.", false);
        return Some(failed(job_id, attempt, backend, error));
    }
    if waits && row.give_backs + row.lapsed < GIVE_BACKS_PER_ATTEMPT {
        return None;
    }
    let (attempt, error) = if waits {
        let words = "Backends took the job and gave it back too often without starting it.";
        (attempt + 1, failure(ErrorCode::BackendUnavailable, words, true))
    } else {
        let words = "The poller that ran this attempt has not been heard of for a full lease.";
        (attempt, failure(ErrorCode::BackendUnavailable, words, true))
    };
    Some(match backend {
        Some(backend) if i64::from(attempt) < row.max_attempts => JobMessage::Retrying(Retrying {
            job_id,
            status: Status::Pending,
            attempt,
            seq: EventSeq::RETRYING,
            reason: error.code,
            next_attempt_in_seconds: RETRY_AFTER.as_secs_f64(),
            error,
            backend,
            timeline: None,
        }),
        backend => failed(job_id, attempt, backend, error),
    })
}

fn failed(job_id: JobId, attempt: u32, backend: Option<BackendId>, error: JobError) -> JobMessage {
    JobMessage::Complete(Complete {
        job_id,
        status: Status::Failed,
        attempt,
        seq: EventSeq::TERMINAL,
        images: Vec::new(),
        error_message: Some(error.message.clone()),
        total_duration: None,
        generation_info: None,
        outputs: Vec::new(),
        error: Some(error),
        backend,
        recovered: false,
        stopped_after_seconds: None,
        timeline: None,
    })
}
