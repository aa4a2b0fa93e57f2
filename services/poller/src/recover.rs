//! Finding what an earlier holder of a backend left running, and bringing its job on.
//!
//! Before each POST the poller notes what it is about to render. Whoever holds the backend next compares the note with
//! the server's history. Another poller may be alive behind a cut link, so a render is interrupted only where that is
//! impossible; otherwise it is waited for, and its job is retried once it is gone and nobody has ended the attempt. With
//! `adopt` the saved files of the render complete the job, and nothing is rendered twice.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use stepcast_shared::events::{self, LifecycleEvent, RecordError};
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::{ErrorCode, JobError, JobMessage, Timestamp};
use stepcast_shared::nats;
use stepcast_shared::rpc::{self, Claim, HeldClaim, RenewRequest, Renewed};
use stepcast_shared::subjects::Kind;
use stepcast_shared::trace::SpanExt as _;
use tokio::time::sleep;
use tracing::{Instrument as _, error_span, field, info, warn};

use crate::a1111::Task;
use crate::body;
use crate::context::Shared;
use crate::history::{self, Mark, Trace};
use crate::lease::Lease;
use crate::outcome::{self, Outcome};
use crate::sdnext::{SdNext, Unusable};
use crate::verifier::{Answer, Evidence, Verdict, verify};

/// How often a render that was left running is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for an answer to a renewal.
const RENEW_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before an event is published again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What is noted of a render before its POST.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Note {
    /// The job, and the right to speak of it.
    pub claim: Claim,
    /// When it was posted.
    pub posted_at: Timestamp,
    /// Where the server's history stood.
    #[serde(flatten)]
    pub behind: Mark,
}

/// What an earlier holder left, and what it takes to bring it on.
pub struct Recovery<'a> {
    pub shared: &'a Shared,
    pub sdnext: &'a SdNext,
    pub backend: &'a BackendId,
    pub lease: &'a Lease,
}

impl Recovery<'_> {
    /// Brings on what the note tells of. An error says why it must be tried again later; the note stays until then.
    pub async fn run(&self) -> anyhow::Result<()> {
        let held = nats::held(&self.shared.jetstream, &self.shared.inflight, self.backend.as_str()).await?;
        let Some((note, _)) = held else { return Ok(()) };
        let Ok(note) = serde_json::from_slice::<Note>(&note) else { return self.forget().await };
        let Claim { job_id, attempt, .. } = &note.claim;
        let span = error_span!("recovery", %job_id, attempt);
        self.bring_on(&note).instrument(span).await
    }

    async fn bring_on(&self, note: &Note) -> anyhow::Result<()> {
        let trace = self.follow(note).await?;
        let claim = &note.claim;
        let last = events::last_event(&self.shared.jetstream, &claim.owner, claim.job_id).await?;
        let open = last.filter(|last| {
            last.kind == Kind::Started && last.author.as_deref() == Some(claim.token.to_string().as_str())
        });
        if let Some(started) = open {
            // Only what is done once is part of the trace: until here all is tried again and again.
            let span =
                error_span!("recover", trace_id = field::Empty).continues(claim.trace.as_ref()).named();
            span.tell("job_id", claim.job_id.to_string());
            span.tell("attempt", i64::from(claim.attempt));
            let settling = async {
                let message = self.conclude(note, trace).await;
                info!(outcome = %message.kind(), "an earlier holder's render was settled");
                self.record(claim, message, started.sequence).await;
            };
            settling.instrument(span).await;
        }
        self.forget().await
    }

    /// Waits until the noted render is gone.
    async fn follow(&self, note: &Note) -> anyhow::Result<Trace> {
        let posted_at = note.posted_at.0.timestamp_micros() as f64 / 1e6;
        let Claim { job_id, attempt, .. } = note.claim;
        let task = Task::new(self.sdnext.family(), job_id, attempt);
        loop {
            let trace = self.trace(note, &task, posted_at).await?;
            if trace != Trace::Open {
                return Ok(trace);
            }
            anyhow::ensure!(
                !self.lease.is_lost() && !self.shared.stopping.is_cancelled(),
                "no longer ours to settle"
            );
            let config = &self.shared.config;
            if config.sole_holder && !config.adopt {
                // Nobody else can have posted it, and nobody can use it any more.
                self.sdnext.interrupt_task(&task).await?;
            }
            self.renew(&note.claim).await;
            sleep(LOOK_EVERY).await;
        }
    }

    /// What the server knows of the noted render now.
    async fn trace(&self, note: &Note, task: &Task, posted_at: f64) -> Result<Trace, Unusable> {
        if let Some(there) = self.sdnext.has_task(task).await? {
            return Ok(if there { Trace::Open } else { Trace::None });
        }
        match self.sdnext.history().await {
            Ok(rows) => Ok(history::trace(&rows, note.behind, posted_at)),
            // A server without a history tells nothing, now or later.
            Err(Unusable::Odd(_)) => Ok(Trace::None),
            Err(error) => Err(error),
        }
    }

    /// Keeps the attempt alive while its render is waited for: its outcome is still ours to tell.
    async fn renew(&self, claim: &Claim) {
        let claims = vec![HeldClaim { job_id: claim.job_id, token: claim.token }];
        let renewed: Result<Renewed, _> =
            rpc::call(&self.shared.client, rpc::RENEW, &RenewRequest { claims }, RENEW_TIMEOUT).await;
        if let Err(error) = renewed {
            warn!(error = %error, "claim of an earlier holder not renewed");
        }
    }

    /// The outcome of the attempt: its saved files where they may be adopted, otherwise another attempt.
    async fn conclude(&self, note: &Note, trace: Trace) -> JobMessage {
        let duration = (Timestamp::now().0 - note.posted_at.0).to_std().unwrap_or_default();
        let context = Outcome {
            claim: &note.claim,
            backend: self.backend,
            duration,
            stop: None,
            stopped_after: None,
            moments: None,
        };
        if let Trace::Ended(files) = trace
            && self.shared.config.adopt
            && let Some(verdict) = self.adopt(&note.claim, &files).await
        {
            // Nobody renews the claim here, so a store that is away is not waited for long.
            let (store, patience) = (&*self.shared.images, outcome::STORE_BRIEFLY);
            let decided = outcome::decide(&context, verdict, store, patience, std::future::pending()).await;
            return outcome::recovered(decided.expect("only who is asked to stop loses a claim"));
        }
        let message = "The poller that ran this attempt was lost, and its render with it.".to_owned();
        let error = JobError { code: ErrorCode::BackendUnavailable, message, retryable: true, answer: None };
        outcome::end(&context, error, Vec::new())
    }

    /// The saved images of a render, judged like those of an answer; `None` if they are not all there and all right.
    async fn adopt(&self, claim: &Claim, files: &[String]) -> Option<Verdict> {
        let render =
            body::render(&claim.request, None, true, (self.sdnext.dialect(), ""), &*self.shared.images)
                .await
                .ok()?;
        let mut saved = Vec::with_capacity(files.len());
        for file in files {
            saved.push(STANDARD.encode(self.sdnext.saved_file(file).await?));
        }
        let body = serde_json::json!({"images": saved, "info": "{}"}).to_string().into();
        let verdict =
            verify(&render.plan.expected(true), Answer::Http { status: 200, body }, &Evidence::default());
        matches!(verdict, Verdict::Completed { .. }).then_some(verdict)
    }

    async fn record(&self, claim: &Claim, message: JobMessage, expected_last: u64) {
        let event = LifecycleEvent::new(claim.owner.clone(), message, claim.token.to_string(), expected_last);
        self.record_event(&event).instrument(event.publishing()).await;
    }

    async fn record_event(&self, event: &LifecycleEvent) {
        loop {
            match events::record(&self.shared.jetstream, event).await {
                Err(RecordError::Unavailable(cause)) if !self.shared.stopping.is_cancelled() => {
                    warn!(error = %cause, "outcome not recorded yet");
                    sleep(AGAIN_AFTER).await;
                }
                Err(error) => return warn!(error = %error, "the outcome was not recorded"),
                Ok(_) => return,
            }
        }
    }

    async fn forget(&self) -> anyhow::Result<()> {
        Ok(self.shared.inflight.delete(self.backend.as_str()).await?)
    }
}
