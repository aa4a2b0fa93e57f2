//! Reading a job no older than what its watchers have been told.
//!
//! A watcher hears of an event as soon as the stream has stored it, and may ask for the job, or for its images, before
//! the projector has come to it. So whoever reads one unfinished job looks at the stream's last event too, and moves
//! the row along where it is behind.

use stepcast_shared::events::{self, StoredEvent};
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::messages::{Envelope, EventSeq, JobMessage};
use tracing::debug;

use crate::db::jobs::{self, JobRow};
use crate::db::projection::{self, RecordedEvent};
use crate::db::retention;
use crate::error::Error;
use crate::meter;
use crate::state::AppState;

/// One job of an owner, as new as its events. Where the stream does not answer, as new as the row.
pub async fn job(state: &AppState, owner: &Owner, job_id: JobId) -> Result<JobRow, Error> {
    let row = as_noted(state, owner, job_id).await?;
    if row.status().is_terminal() {
        return Ok(row);
    }
    match events::last_event(&state.jetstream, owner, job_id).await {
        Ok(Some(last)) if last.seq > known(&row) => {
            apply(state, &last).await?;
            as_noted(state, owner, job_id).await
        }
        Ok(_) => Ok(row),
        Err(error) => {
            debug!(error = %error, "the row stands for itself");
            Ok(row)
        }
    }
}

/// One job of an owner, as its row says: what never changes of it is true, its state may be older than its events.
pub async fn as_noted(state: &AppState, owner: &Owner, job_id: JobId) -> Result<JobRow, Error> {
    if let Some(row) = jobs::find(state.db.read(), owner, job_id).await? {
        return Ok(row);
    }
    let expired = retention::is_expired(state.db.read(), owner, job_id).await?;
    Err(if expired { Error::JobExpired(job_id) } else { Error::JobNotFound(job_id.to_string()) })
}

fn known(row: &JobRow) -> EventSeq {
    EventSeq { attempt: u32::try_from(row.attempt).unwrap_or(0), seq: u32::try_from(row.seq).unwrap_or(0) }
}

/// Idempotent: the projector will come to the same event and change nothing.
async fn apply(state: &AppState, last: &StoredEvent) -> Result<(), Error> {
    let Ok(envelope) = std::str::from_utf8(&last.payload) else { return Ok(()) };
    let Ok(Envelope { message, .. }) = serde_json::from_str::<Envelope<JobMessage>>(envelope) else {
        return Ok(());
    };
    let event =
        RecordedEvent { sequence: last.sequence, stored_at: last.stored_at, message: &message, envelope };
    let mut transaction = state.db.begin().await?;
    let moved = projection::apply(&mut transaction, state.db.dialect, &event).await?;
    transaction.commit().await?;
    if let Some(moved) = moved {
        meter::moved(&moved, &message, last.stored_at);
    }
    Ok(())
}
