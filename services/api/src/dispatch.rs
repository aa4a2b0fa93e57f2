//! Deciding who runs what: claims and their renewal.

use std::collections::BTreeMap;

use serde_json::Value;
use stepcast_shared::ids::{BackendId, ClaimToken};
use stepcast_shared::messages::{BackendCondition, BackendMode};
use stepcast_shared::problem::Problem;
use stepcast_shared::rpc::{Claim, ClaimAnswer, ClaimRequest, ReleaseRequest, RenewRequest, Renewed};
use stepcast_shared::trace::{SpanExt as _, TraceContext};
use tracing::{Instrument as _, debug_span, info};

use crate::db::claims::{self, LEASE_SECONDS, Preferences};
use crate::db::modes::{self, Hold};
use crate::error::Error;
use crate::state::AppState;

/// Why a claim was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another poller holds this backend now.
    #[error("backend {0} has a newer holder")]
    StaleEpoch(BackendId),
    /// The row was written by a newer api.
    #[error("job {0} cannot be read by this version")]
    Unreadable(String),
    /// As for any request.
    #[error(transparent)]
    Other(#[from] Error),
}

impl ClaimError {
    /// What the poller is told.
    pub fn problem(&self) -> Problem {
        match self {
            Self::StaleEpoch(_) => Problem::new(409, "stale-epoch", "The backend has a newer holder"),
            Self::Unreadable(_) => Problem::new(503, "unreadable", "This api is too old for the job"),
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
pub async fn claim(state: &AppState, request: &ClaimRequest) -> Result<ClaimAnswer, ClaimError> {
    if request.pools.is_empty() {
        return Ok(ClaimAnswer::Nothing);
    }
    let token = ClaimToken::mint();
    let mut transaction = state.db.begin().await?;
    modes::hold(&mut transaction, state.db.dialect, &request.backend_id, Hold::Shared).await?;
    if !claims::admit_epoch(&mut transaction, state.db.dialect, request).await? {
        return Err(ClaimError::StaleEpoch(request.backend_id.clone()));
    }
    let modes = modes::modes(&mut *transaction).await?;
    if let Some(&held_back) = modes.get(request.backend_id.as_str()) {
        transaction.commit().await?;
        let told = request.takes_modes.then_some(ClaimAnswer::HeldBack { held_back });
        return Ok(told.unwrap_or(ClaimAnswer::Nothing));
    }
    let preferences = Preferences {
        others: has_others(state, request, &modes),
        affinity_wait_ms: i64::try_from(state.limits.max_affinity_wait.as_millis()).unwrap_or(i64::MAX),
    };
    let row = claims::choose(&mut transaction, state.db.dialect, request, preferences, token).await?;
    let Some(row) = row else {
        transaction.commit().await?;
        return Ok(ClaimAnswer::Nothing);
    };
    let backend = &request.backend_id;
    // A newer replica may have accepted what this one cannot read; then the claim is left to others.
    let request = serde_json::from_str(&row.request).map_err(|_| ClaimError::Unreadable(row.id.clone()))?;
    let (job_id, attempt) = (row.id.as_str(), row.attempt + 1);
    let span = debug_span!("claim", otel.kind = "internal", job_id, attempt, %backend);
    let span = span.continues(TraceContext::from_column(row.trace.as_deref()).as_ref());
    transaction.commit().instrument(span.clone()).await?;
    metrics::counter!("stepcast_claims_total").increment(1);
    Ok(ClaimAnswer::Work(Box::new(Claim {
        job_id: row.id.parse().expect("the id column holds what JobId writes"),
        owner: row.owner.parse().expect("the owner column holds what Owner writes"),
        attempt: u32::try_from(row.attempt).unwrap_or(0) + 1,
        token,
        last_event: u64::try_from(row.event_seq).unwrap_or(0),
        lease_seconds: LEASE_SECONDS,
        request,
        params: serde_json::from_str(&row.params).unwrap_or(Value::Null),
        deadline_in_seconds: row.deadline_in.map(|millis| millis as f64 / 1000.0),
        trace: TraceContext::of(&span),
    })))
}

/// Whether another backend that can be reached, and may work, serves one of these pools.
fn has_others(state: &AppState, request: &ClaimRequest, modes: &BTreeMap<String, BackendMode>) -> bool {
    state.backends.list().into_iter().any(|other| {
        other.id != request.backend_id
            && matches!(other.state, BackendCondition::Idle | BackendCondition::Busy)
            && !modes.contains_key(other.id.as_str())
            && other.pools.iter().any(|pool| request.pools.contains(pool))
    })
}

/// Extends claims, and says what has become of each.
pub async fn renew(state: &AppState, request: &RenewRequest) -> Result<Renewed, Error> {
    let mut transaction = state.db.begin().await?;
    let mut renewed = Renewed { claims: Vec::new(), cancel_asked_ago: Vec::new() };
    for claim in &request.claims {
        let (outcome, asked_ago) = claims::renew(&mut transaction, state.db.dialect, *claim).await?;
        renewed.claims.push(outcome);
        renewed.cancel_asked_ago.push(asked_ago);
    }
    transaction.commit().await?;
    Ok(renewed)
}

/// Takes a claim back that was not started.
pub async fn release(state: &AppState, request: &ReleaseRequest) -> Result<(), Error> {
    info!(job_id = %request.claim.job_id, reason = request.reason, "claim given back");
    let mut transaction = state.db.begin().await?;
    claims::release(&mut transaction, state.db.dialect, request.claim).await?;
    transaction.commit().await?;
    Ok(())
}
