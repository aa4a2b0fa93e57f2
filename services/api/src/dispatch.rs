//! Deciding who runs what: claims, their renewal, and what becomes of those that lapse.

use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State as NatsState;
use serde_json::Value;
use stepcast_shared::events::LifecycleEvent;
use stepcast_shared::ids::{BackendId, ClaimToken, JobId};
use stepcast_shared::messages::{Complete, ErrorCode, EventSeq, JobError, JobMessage, Retrying, Status};
use stepcast_shared::problem::Problem;
use stepcast_shared::rpc::{Claim, ClaimRequest, ReleaseRequest, RenewRequest, Renewed};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cancel::cancelled;
use crate::db::claims::{self, LEASE_SECONDS, LapsedRow};
use crate::db::{Db, outbox};
use crate::error::Error;
use crate::outbox::Publisher;
use crate::state::AppState;

/// How often lapsed claims are looked for.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// Lapsed claims settled at once.
const REAP_BATCH: u32 = 100;
/// Pause before a job whose poller vanished is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why a claim was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another poller holds this backend now.
    #[error("backend {0} has a newer holder")]
    StaleEpoch(BackendId),
    /// As for any request.
    #[error(transparent)]
    Other(#[from] Error),
}

impl ClaimError {
    /// What the poller is told.
    pub fn problem(&self) -> Problem {
        match self {
            Self::StaleEpoch(_) => Problem::new(409, "stale-epoch", "The backend has a newer holder"),
            Self::Other(error) => error.problem(),
        }
    }
}

impl From<sqlx::Error> for ClaimError {
    fn from(error: sqlx::Error) -> Self {
        Self::Other(error.into())
    }
}

/// Hands a waiting job to a backend, if there is one for it.
pub async fn claim(state: &AppState, request: &ClaimRequest) -> Result<Option<Claim>, ClaimError> {
    if request.pools.is_empty() {
        return Ok(None);
    }
    let token = ClaimToken::mint();
    let mut transaction = state.db.begin().await?;
    if !claims::admit_epoch(&mut transaction, state.db.dialect, request).await? {
        return Err(ClaimError::StaleEpoch(request.backend_id.clone()));
    }
    let row = claims::choose(&mut transaction, state.db.dialect, request, token).await?;
    transaction.commit().await?;
    let Some(row) = row else { return Ok(None) };
    metrics::counter!("stepcast_claims_total").increment(1);
    Ok(Some(Claim {
        job_id: row.id.parse().expect("the id column holds what JobId writes"),
        owner: row.owner.parse().expect("the owner column holds what Owner writes"),
        attempt: u32::try_from(row.attempt).unwrap_or(0) + 1,
        token,
        last_event: u64::try_from(row.event_seq).unwrap_or(0),
        lease_seconds: LEASE_SECONDS,
        request: serde_json::from_str(&row.request).expect("the request column holds what accept writes"),
        params: serde_json::from_str(&row.params).unwrap_or(Value::Null),
        deadline_in_seconds: row.deadline_in.map(|millis| millis as f64 / 1000.0),
    }))
}

/// Extends claims, and says what has become of each.
pub async fn renew(state: &AppState, request: &RenewRequest) -> Result<Renewed, Error> {
    let mut transaction = state.db.begin().await?;
    let mut outcomes = Vec::with_capacity(request.claims.len());
    for claim in &request.claims {
        outcomes.push(claims::renew(&mut transaction, state.db.dialect, *claim).await?);
    }
    transaction.commit().await?;
    Ok(Renewed { claims: outcomes })
}

/// Takes a claim back that was not started.
pub async fn release(state: &AppState, request: &ReleaseRequest) -> Result<(), Error> {
    info!(job_id = %request.claim.job_id, reason = request.reason, "claim given back");
    let mut transaction = state.db.begin().await?;
    claims::release(&mut transaction, state.db.dialect, request.claim).await?;
    transaction.commit().await?;
    Ok(())
}

/// Settles claims whose pollers have not been heard of for a full lease, until the process stops.
///
/// A lease says something only if its holder could have renewed it: nothing lapses before this replica has itself
/// been connected to NATS and the database for one full lease. A `sole_process` knows that whoever held a claim when
/// it started is gone.
pub async fn reap(
    db: Db,
    client: Client,
    publisher: Publisher,
    sole_process: bool,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    if sole_process {
        let mut transaction = db.begin().await?;
        claims::end_all(&mut transaction).await?;
        transaction.commit().await?;
        reap_once(&db, &publisher).await?;
    }
    let mut ticks = interval(REAP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connected_since = Instant::now();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        if client.connection_state() != NatsState::Connected {
            connected_since = Instant::now();
        } else if connected_since.elapsed() >= Duration::from_secs(LEASE_SECONDS)
            && let Err(cause) = reap_once(&db, &publisher).await
        {
            warn!(error = %cause, "lapsed claims not settled");
            connected_since = Instant::now();
        }
    }
}

async fn reap_once(db: &Db, publisher: &Publisher) -> sqlx::Result<()> {
    let mut transaction = db.begin().await?;
    let lapsed = claims::lapsed(&mut transaction, db.dialect, REAP_BATCH).await?;
    let mut events = Vec::new();
    for row in lapsed {
        let job_id: JobId = row.id.parse().expect("the id column holds what JobId writes");
        match verdict(job_id, &row) {
            Some(message) => {
                let owner = row.owner.parse().expect("the owner column holds what Owner writes");
                let last = u64::try_from(row.event_seq).unwrap_or(0);
                let event = LifecycleEvent::new(owner, message, outbox::mint_author(), last);
                outbox::insert(&mut transaction, db.dialect, &event).await?;
                events.push(event);
            }
            None => claims::clear(&mut transaction, job_id).await?,
        }
        metrics::counter!("stepcast_claims_lapsed_total").increment(1);
        warn!(%job_id, backend = row.claim_backend, "a poller has not been heard of for a full lease");
    }
    transaction.commit().await?;
    publisher.publish_promptly(events).await;
    Ok(())
}

/// What is said of a job whose poller has vanished; `None` if it only waits again.
fn verdict(job_id: JobId, row: &LapsedRow) -> Option<JobMessage> {
    let attempt = u32::try_from(row.attempt).unwrap_or(0);
    let waits = row.status == Status::Pending.as_str();
    if row.cancelling != 0 {
        return Some(cancelled(job_id, attempt));
    }
    if waits {
        return None;
    }
    let error = JobError {
        code: ErrorCode::BackendUnavailable,
        message: "The poller that ran this attempt has not been heard of for a full lease.".to_owned(),
        retryable: true,
        answer: None,
    };
    let backend: Option<BackendId> = row.claim_backend.as_deref().and_then(|id| id.parse().ok());
    Some(match backend {
        Some(backend) if row.attempt < row.max_attempts => JobMessage::Retrying(Retrying {
            job_id,
            status: Status::Pending,
            attempt,
            seq: EventSeq::RETRYING,
            reason: error.code,
            next_attempt_in_seconds: RETRY_AFTER.as_secs_f64(),
            error,
            backend,
        }),
        backend => JobMessage::Complete(Complete {
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
        }),
    })
}
