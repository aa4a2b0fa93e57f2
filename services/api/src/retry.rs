//! Submitting jobs again: new jobs with the same requests, whatever became of the first.

use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::rpc::{Accepted, RetryOutcome};

use crate::accept::{self, Draft};
use crate::error::{self, Error};
use crate::fresh;
use crate::state::AppState;

/// Submits a job of an owner again. An error means that nothing was stored.
///
/// Errors if there is no such job, or if its request would not be accepted today: a limit may have been lowered, an
/// input image have gone.
pub async fn retry(state: &AppState, owner: &Owner, job_id: JobId) -> Result<Accepted, Error> {
    let draft = draft(state, owner, job_id).await?;
    Ok(accept::store(state, owner, vec![draft], None, None).await?.jobs.remove(0))
}

/// Submits many jobs of an owner again, and says what became of each.
///
/// Those that can be are accepted together. An error means that nothing was stored.
pub async fn retry_all(
    state: &AppState,
    owner: &Owner,
    job_ids: &[JobId],
) -> Result<Vec<RetryOutcome>, Error> {
    let mut drafts = Vec::new();
    let mut refusals = Vec::with_capacity(job_ids.len());
    for job_id in job_ids.iter().copied() {
        refusals.push(match draft(state, owner, job_id).await {
            Ok(draft) => {
                drafts.push(draft);
                None
            }
            Err(Error::JobNotFound(_) | Error::JobExpired(_)) => Some(format!("There is no job {job_id}.")),
            Err(Error::Invalid(faults)) => {
                Some(format!("Its request would not be accepted today: {}.", error::all(&faults)))
            }
            Err(error) => return Err(error),
        });
    }
    let accepted = if drafts.is_empty() {
        Vec::new()
    } else {
        accept::store(state, owner, drafts, None, None).await?.jobs
    };
    let mut accepted = accepted.into_iter();
    let outcomes = job_ids.iter().zip(refusals).map(|(&job_id, refusal)| {
        let job = if refusal.is_none() { accepted.next() } else { None };
        let message = refusal.unwrap_or_else(|| "Its request was accepted again, as a new job.".to_owned());
        RetryOutcome { job_id, success: job.is_some(), message, job }
    });
    Ok(outcomes.collect())
}

async fn draft(state: &AppState, owner: &Owner, job_id: JobId) -> Result<Draft, Error> {
    let row = fresh::as_noted(state, owner, job_id).await?;
    accept::draft(state, owner, "", serde_json::from_str(&row.params).unwrap_or_default()).await
}
