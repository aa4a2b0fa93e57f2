//! Cancelling: a waiting job ends at once, a running one is asked to stop.

use async_nats::HeaderMap;
use stepcast_shared::events::LifecycleEvent;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::messages::{Complete, ErrorCode, EventSeq, JobError, JobMessage, Status};
use stepcast_shared::rpc::CancelOutcome;
use stepcast_shared::subjects;
use stepcast_shared::trace::{SpanExt as _, TraceContext};
use tracing::debug_span;

use crate::db::{jobs, outbox, retention};
use crate::error::Error;
use crate::state::AppState;

/// Cancels a job of an owner.
///
/// The row's flag is the truth: whatever is lost on the way, the job's poller reads it with its next renewal.
/// Errors if there is no such job, or if it has ended.
pub async fn cancel(state: &AppState, owner: &Owner, job_id: JobId) -> Result<CancelOutcome, Error> {
    let flagged = flag(state, owner, job_id).await?;
    let recorded = record(state, [&flagged]).await;
    Ok(announce(state, &flagged, recorded).await)
}

/// Cancels many jobs of an owner, and says what became of each. Errors only if something of ours is away.
pub async fn cancel_all(
    state: &AppState,
    owner: &Owner,
    job_ids: &[JobId],
) -> Result<Vec<CancelOutcome>, Error> {
    let mut asked = Vec::with_capacity(job_ids.len());
    for job_id in job_ids.iter().copied() {
        let refused = |status, message: String| CancelOutcome { job_id, success: false, status, message };
        asked.push(match flag(state, owner, job_id).await {
            Ok(flagged) => Ok(flagged),
            Err(Error::WrongState(status)) => Err(refused(Some(status), format!("The job is {status}."))),
            Err(Error::JobNotFound(_) | Error::JobExpired(_)) => {
                Err(refused(None, format!("There is no job {job_id}.")))
            }
            Err(error) => return Err(error),
        });
    }
    // All ends at once: while NATS is away each would be waited for.
    let recorded = record(state, asked.iter().flatten()).await;
    let mut outcomes = Vec::with_capacity(asked.len());
    for asked in asked {
        outcomes.push(match asked {
            Ok(flagged) => announce(state, &flagged, recorded).await,
            Err(refusal) => refusal,
        });
    }
    Ok(outcomes)
}

/// A job whose row says that it is to be cancelled.
struct Flagged {
    job_id: JobId,
    status: Status,
    /// Its end, where nobody holds it, so that nobody else can end it.
    end: Option<LifecycleEvent>,
    /// Where it was asked for, within the job's trace.
    trace: Option<TraceContext>,
}

impl Flagged {
    /// Its end, unless `queued` itself is still on its way: then the sweep publishes both in order.
    fn due(&self) -> Option<&LifecycleEvent> {
        self.end.as_ref().filter(|event| event.expected_last > 0)
    }
}

async fn flag(state: &AppState, owner: &Owner, job_id: JobId) -> Result<Flagged, Error> {
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
    // Part of the job's trace, and asked for from another.
    let span = debug_span!("cancel", otel.kind = "internal", %job_id);
    let span = span.linked(TraceContext::current().as_ref());
    let span = span.continues(TraceContext::from_column(job.trace.as_deref()).as_ref());
    let news = jobs::mark_cancelling(&mut transaction, state.db.dialect, job_id).await?;
    let ends_now = news && job.claimed == 0 && status == Status::Pending;
    let end = ends_now.then(|| {
        let attempt = u32::try_from(job.attempt).unwrap_or(0);
        let last = job.event_seq.and_then(|sequence| u64::try_from(sequence).ok()).unwrap_or(0);
        let message = cancelled(job_id, attempt);
        span.in_scope(|| LifecycleEvent::new(owner.clone(), message, outbox::mint_author(), last))
    });
    if let Some(event) = &end {
        outbox::insert(&mut transaction, state.db.dialect, event).await?;
    }
    transaction.commit().await?;
    Ok(Flagged { job_id, status, end, trace: TraceContext::of(&span) })
}

/// True if every end that is due is recorded by now.
async fn record<'a>(state: &AppState, flagged: impl IntoIterator<Item = &'a Flagged>) -> bool {
    let due: Vec<LifecycleEvent> = flagged.into_iter().filter_map(Flagged::due).cloned().collect();
    due.is_empty() || state.publisher.publish_promptly(due).await
}

async fn announce(state: &AppState, flagged: &Flagged, recorded: bool) -> CancelOutcome {
    if recorded && flagged.due().is_some() {
        return outcome(flagged.job_id, Status::Cancelled, "The job was cancelled before it began.");
    }
    // Best effort, for speed.
    let subject = subjects::control(flagged.job_id);
    let _ = match &flagged.trace {
        None => state.nats.publish(subject, "cancel".into()).await,
        Some(trace) => {
            let mut headers = HeaderMap::new();
            trace.write(&mut headers);
            state.nats.publish_with_headers(subject, headers, "cancel".into()).await
        }
    };
    outcome(flagged.job_id, flagged.status, "The job is being cancelled.")
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
