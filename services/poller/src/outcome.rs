//! From a verdict to the message that ends an attempt.
//!
//! What was rendered is worth more than the wait for a store that is full or away: its images are kept in memory and
//! stored once it is back, while the claim is held. Whoever waits like this takes no other job, so an outage costs each
//! server one render and the queue none.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use object_store::ObjectStore;
use rand::Rng as _;
use serde_json::Value;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::{
    Complete, ErrorCode, EventSeq, JobError, JobMessage, Moments, Output, Retrying, Status, Timestamp,
};
use stepcast_shared::rpc::Claim;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::stop::Stop;
use crate::store::store_images;
use crate::verifier::{Failure, Image, Verdict};

/// Pause after a first failure to store images; doubled after each further one.
const STORE_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between these tries.
const STORE_PAUSE_MOST: Duration = Duration::from_secs(5);
/// How long storing is tried where nobody waits for it, or where the claim is not held meanwhile: longer than a restart.
pub const STORE_BRIEFLY: Duration = Duration::from_secs(8);
/// Pause before a second attempt; doubled for each further one.
const RETRY_BASE: Duration = Duration::from_secs(1);
/// Longest pause before a further attempt.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// What an outcome is decided from, beside the verdict.
#[derive(Clone, Copy)]
pub struct Outcome<'a> {
    pub claim: &'a Claim,
    pub backend: &'a BackendId,
    /// From the POST to its answer.
    pub duration: Duration,
    pub stop: Option<Stop>,
    /// From the first request to cancel to the POST's answer, if both came.
    pub stopped_after: Option<Duration>,
    /// When the attempt got where, if that was seen by us.
    pub moments: Option<Moments>,
}

impl Outcome<'_> {
    /// With the moment at which images were stored, if there are any.
    fn stored(&self, outputs: &[Output]) -> Self {
        let now = (!outputs.is_empty()).then(Timestamp::now);
        Self { moments: self.moments.map(|moments| Moments { stored: now, ..moments }), ..*self }
    }
}

/// Stores the images of a verdict, and says how the attempt ended; `None` if the claim was lost over it.
///
/// A store that fails is tried again for `patience`, or until `asked` resolves: then the attempt ends for that reason.
pub async fn decide(
    context: &Outcome<'_>,
    verdict: Verdict,
    store: &dyn ObjectStore,
    patience: Duration,
    asked: impl Future<Output = Stop>,
) -> Option<JobMessage> {
    let unkept = match verdict {
        Verdict::Completed { images, info } => {
            match keep(context, images, false, store, patience, asked).await {
                Ok(outputs) => {
                    let context = context.stored(&outputs);
                    return Some(JobMessage::Complete(completed(&context, outputs, info)));
                }
                Err(unkept) => unkept,
            }
        }
        Verdict::Failed { failure, partial } => {
            // A lost partial image is a loss that nobody asked about.
            let patience = patience.min(STORE_BRIEFLY);
            let outputs = keep(context, partial, true, store, patience, asked).await.unwrap_or_default();
            let Failure { code, message, retryable, answer } = failure;
            let context = context.stored(&outputs);
            return Some(end(&context, JobError { code, message, retryable, answer }, outputs));
        }
    };
    let Unkept { error, stop } = unkept;
    if stop == Some(Stop::Lost) {
        return None;
    }
    metrics::counter!("stepcast_renders_not_stored_total").increment(1);
    let failure = internal(&format!("The images could not be stored: {error}."));
    let code = if stop == Some(Stop::Cancelled) { ErrorCode::Cancelled } else { failure.code };
    let context = Outcome { stop: stop.or(context.stop), ..*context };
    Some(end(&context, JobError { code, retryable: true, ..failure }, Vec::new()))
}

/// Images that are not stored.
struct Unkept {
    error: object_store::Error,
    /// Who asked to try no more.
    stop: Option<Stop>,
}

async fn keep(
    context: &Outcome<'_>,
    images: Vec<Image>,
    partial: bool,
    store: &dyn ObjectStore,
    patience: Duration,
    asked: impl Future<Output = Stop>,
) -> Result<Vec<Output>, Unkept> {
    let Claim { job_id, attempt, token, .. } = context.claim;
    let deadline = Instant::now() + patience;
    let mut pause = STORE_PAUSE;
    let mut asked = pin!(asked);
    loop {
        let error = match store_images(store, *job_id, *attempt, *token, images.clone(), partial).await {
            Ok(outputs) => return Ok(outputs),
            Err(error) if Instant::now() + pause > deadline => return Err(Unkept { error, stop: None }),
            Err(error) => error,
        };
        warn!(error = %error, "images not stored yet");
        tokio::select! {
            () = sleep(pause) => {}
            stop = &mut asked => return Err(Unkept { error, stop: Some(stop) }),
        }
        pause = (pause * 2).min(STORE_PAUSE_MOST);
    }
}

fn completed(context: &Outcome<'_>, outputs: Vec<Output>, info: Value) -> Complete {
    Complete {
        job_id: context.claim.job_id,
        status: Status::Completed,
        attempt: context.claim.attempt,
        seq: EventSeq::TERMINAL,
        images: outputs.iter().map(|output| output.url.clone()).collect(),
        error_message: None,
        total_duration: Some(seconds(context.duration)),
        generation_info: Some(info),
        outputs,
        error: None,
        backend: Some(context.backend.clone()),
        recovered: false,
        stopped_after_seconds: None,
        timeline: context.moments,
    }
}

/// A failure, a cancel, or another attempt.
pub fn end(context: &Outcome<'_>, error: JobError, outputs: Vec<Output>) -> JobMessage {
    let Outcome { claim, backend, .. } = context;
    // A stopped poller is no fault of the job: it does not use up the last attempt.
    if context.stop == Some(Stop::Shutdown) {
        let message = "The poller was stopped while it rendered.".to_owned();
        let error = JobError { code: ErrorCode::BackendUnavailable, message, retryable: true, answer: None };
        return retrying(context, error, Duration::ZERO);
    }
    let error = match context.stop {
        Some(Stop::Stalled) => JobError {
            code: ErrorCode::Stalled,
            message: "The render showed no change for too long and was interrupted.".to_owned(),
            retryable: true,
            ..error
        },
        Some(Stop::Deadline) => JobError {
            code: ErrorCode::Deadline,
            message: "The job's time was up before its render was done.".to_owned(),
            retryable: false,
            ..error
        },
        _ => error,
    };
    if error.code == ErrorCode::Cancelled {
        let message =
            format!("Cancelled; the render stopped {:.1} s after it began.", seconds(context.duration));
        let error = JobError { message, answer: None, ..error };
        let failed = failed(claim, backend, error, Some(context.duration));
        let stopped_after_seconds = context.stopped_after.map(seconds);
        return JobMessage::Complete(Complete {
            status: Status::Cancelled,
            outputs,
            stopped_after_seconds,
            timeline: context.moments,
            ..failed
        });
    }
    if error.retryable && claim.attempt < claim.request.max_attempts {
        return retrying(context, error, pause_before(claim.attempt + 1));
    }
    let failed = failed(claim, backend, error, Some(context.duration));
    JobMessage::Complete(Complete { outputs, timeline: context.moments, ..failed })
}

/// The message of a render that was adopted after its poller was lost.
pub fn recovered(message: JobMessage) -> JobMessage {
    match message {
        JobMessage::Complete(complete) => JobMessage::Complete(Complete { recovered: true, ..complete }),
        other => other,
    }
}

fn retrying(context: &Outcome<'_>, error: JobError, pause: Duration) -> JobMessage {
    JobMessage::Retrying(Retrying {
        job_id: context.claim.job_id,
        status: Status::Pending,
        attempt: context.claim.attempt,
        seq: EventSeq::RETRYING,
        reason: error.code,
        next_attempt_in_seconds: seconds(pause),
        error,
        backend: context.backend.clone(),
        timeline: context.moments,
    })
}

/// The terminal message of a job that has failed for good.
pub fn failed(claim: &Claim, backend: &BackendId, error: JobError, duration: Option<Duration>) -> Complete {
    Complete {
        job_id: claim.job_id,
        status: Status::Failed,
        attempt: claim.attempt,
        seq: EventSeq::TERMINAL,
        images: Vec::new(),
        error_message: Some(error.message.clone()),
        total_duration: duration.map(seconds),
        generation_info: None,
        outputs: Vec::new(),
        error: Some(error),
        backend: Some(backend.clone()),
        recovered: false,
        stopped_after_seconds: None,
        timeline: None,
    }
}

/// A failure of ours.
pub fn internal(message: &str) -> JobError {
    JobError { code: ErrorCode::Internal, message: message.to_owned(), retryable: false, answer: None }
}

/// The message without what only the curious need; `None` if it has nothing of that.
pub fn shorten(message: JobMessage) -> Option<JobMessage> {
    match message {
        JobMessage::Complete(complete) => {
            let error = complete.error.map(|error| JobError { answer: None, ..error });
            Some(JobMessage::Complete(Complete { generation_info: None, error, ..complete }))
        }
        JobMessage::Retrying(retrying) => {
            let error = JobError { answer: None, ..retrying.error };
            Some(JobMessage::Retrying(Retrying { error, ..retrying }))
        }
        JobMessage::Queued(_) | JobMessage::Started(_) | JobMessage::Progress(_) => None,
    }
}

/// Doubling and jittered, so that jobs that failed together do not come back together.
fn pause_before(attempt: u32) -> Duration {
    let doubled = RETRY_BASE.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(2)));
    doubled.min(RETRY_MOST).mul_f64(rand::rng().random_range(0.5..1.5))
}

/// Seconds, to the millisecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
