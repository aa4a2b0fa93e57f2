//! Cancelling: a waiting job ends at once, a running one is asked to stop.

use stepcast_shared::events::LifecycleEvent;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::messages::{Complete, ErrorCode, EventSeq, JobError, JobMessage, Status};
use stepcast_shared::rpc::CancelOutcome;
use stepcast_shared::subjects;

use crate::db::{jobs, outbox, retention};
use crate::error::Error;
use crate::state::AppState;

/// Cancels a job of an owner.
///
/// The row's flag is the truth: whatever is lost on the way, the job's poller reads it with its next renewal.
/// Errors if there is no such job, or if it has ended.
pub async fn cancel(state: &AppState, owner: &Owner, job_id: JobId) -> Result<CancelOutcome, Error> {
    let mut transaction = state.db.begin().await?;
    let job = jobs::lock(&mut transaction, state.db.dialect, job_id).await?;
    let Some(job) = job.filter(|job| job.owner == owner.as_str()) else {
        let expired = retention::is_expired(&mut *transaction, owner, job_id).await?;
        return Err(if expired { Error::JobExpired(job_id) } else { Error::JobNotFound(job_id.to_string()) });
    };
    let status: Status = job.status.parse().expect("the status column holds what Status writes");
    if status.is_terminal() {
        return Err(Error::WrongState(status));
    }
    let news = jobs::mark_cancelling(&mut transaction, state.db.dialect, job_id).await?;
    // Nobody holds it, so nobody else can end it.
    let ends_now = news && job.claimed == 0 && status == Status::Pending;
    let event = ends_now.then(|| {
        let attempt = u32::try_from(job.attempt).unwrap_or(0);
        let last = job.event_seq.and_then(|sequence| u64::try_from(sequence).ok()).unwrap_or(0);
        LifecycleEvent::new(owner.clone(), cancelled(job_id, attempt), outbox::mint_author(), last)
    });
    if let Some(event) = &event {
        outbox::insert(&mut transaction, state.db.dialect, event).await?;
    }
    transaction.commit().await?;
    match event {
        // While `queued` itself is still on its way, the sweep publishes both in order.
        Some(event)
            if event.expected_last > 0 && state.publisher.publish_promptly(vec![event.clone()]).await =>
        {
            Ok(outcome(job_id, Status::Cancelled, "The job was cancelled before it began."))
        }
        _ => {
            // Best effort, for speed.
            let _ = state.nats.publish(subjects::control(job_id), "cancel".into()).await;
            Ok(outcome(job_id, status, "The job is being cancelled."))
        }
    }
}

/// Cancels many jobs of an owner, and says what became of each. Errors only if something of ours is away.
pub async fn cancel_all(
    state: &AppState,
    owner: &Owner,
    job_ids: &[JobId],
) -> Result<Vec<CancelOutcome>, Error> {
    let mut outcomes = Vec::with_capacity(job_ids.len());
    for job_id in job_ids.iter().copied() {
        let refused = |status, message: String| CancelOutcome { job_id, success: false, status, message };
        outcomes.push(match cancel(state, owner, job_id).await {
            Ok(outcome) => outcome,
            Err(Error::WrongState(status)) => refused(Some(status), format!("The job is {status}.")),
            Err(Error::JobNotFound(_) | Error::JobExpired(_)) => {
                refused(None, format!("There is no job {job_id}."))
            }
            Err(error) => return Err(error),
        });
    }
    Ok(outcomes)
}

fn outcome(job_id: JobId, status: Status, message: &str) -> CancelOutcome {
    CancelOutcome { job_id, success: true, status: Some(status), message: message.to_owned() }
}

/// The terminal message of a job that is cancelled before a render, or between two.
pub fn cancelled(job_id: JobId, attempt: u32) -> JobMessage {
    let message = "Cancelled while it waited.".to_owned();
    JobMessage::Complete(Complete {
        job_id,
        status: Status::Cancelled,
        attempt,
        seq: EventSeq::TERMINAL,
        images: Vec::new(),
        error_message: Some(message.clone()),
        total_duration: None,
        generation_info: None,
        outputs: Vec::new(),
        error: Some(JobError { code: ErrorCode::Cancelled, message, retryable: false, answer: None }),
        backend: None,
        recovered: false,
        stopped_after_seconds: None,
        timeline: None,
    })
}
