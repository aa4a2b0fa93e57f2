//! One attempt at one job: from its claim to its recorded outcome.
//!
//! `started` is recorded just before the POST and counts the attempt; a claim given back earlier costs none. From then
//! on the POST's answer is the only truth, and the event stream decides whether we may still say it.

use std::pin::pin;
use std::time::Duration;

use stepcast_shared::events::{self, LifecycleEvent, RecordError};
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::{
    Complete, ErrorCode, EventSeq, JobError, JobMessage, Started, Status, Timestamp,
};
use stepcast_shared::rpc::{self, Claim, HeldClaim, ReleaseRequest};
use stepcast_shared::subjects::Kind;
use stepcast_shared::trace::SpanExt as _;
use tokio::time::{Instant, sleep};
use tracing::{Instrument as _, error, error_span, field, info, warn};

use crate::a1111::task_id;
use crate::body::{self, Render};
use crate::context::Shared;
use crate::inflight::InFlight;
use crate::known::Known;
use crate::lease::Lease;
use crate::memory::Memory;
use crate::meter;
use crate::moments::Begun;
use crate::outcome::{self, Outcome};
use crate::pace::Pace;
use crate::recover::Note;
use crate::sample::Sample;
use crate::sdnext::{LogEnd, SdNext};
use crate::stop::Stop;
use crate::store;
use crate::tracker::Tracker;
use crate::verifier::{Answer, Evidence, Expected, TransportKind, Verdict, verify};
use crate::watch::Watch;

/// How long a start may take to be recorded before the claim is given back; well within the claim's lease.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Pause before an event is published again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Longest wait for an answer to a release.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// One attempt, and what it works with.
pub struct Attempt<'a> {
    pub shared: &'a Shared,
    pub sdnext: &'a SdNext,
    pub backend: &'a BackendId,
    pub lease: &'a Lease,
    pub claim: Claim,
    /// Checkpoint that is loaded, where known.
    pub model: Option<String>,
    /// Id of work that the server shows and that is not there.
    pub left_over: Option<&'a str>,
    pub known: &'a mut Known,
    pub inflight: &'a mut InFlight,
    pub memory: &'a mut Memory,
    pub pace: &'a mut Pace,
    /// Called once the render begins.
    pub rendering: &'a (dyn Fn() + Sync),
}

impl Attempt<'_> {
    /// Runs it to its end. Never fails: what goes wrong becomes the job's outcome, or gives the claim back.
    ///
    /// Returns how it ended, if it was posted at all.
    pub async fn run(mut self) -> Option<Ended> {
        let Claim { job_id, attempt, trace, .. } = &self.claim;
        // An error's too: a line without its job's id is worth little, however little is logged.
        let span = error_span!("attempt", %job_id, attempt, trace_id = field::Empty);
        let span = span.continues(trace.as_ref()).named();
        span.tell("backend", self.backend.to_string());
        let ended = self.run_in_span().instrument(span.clone()).await;
        let failure = ended.as_ref().and_then(|ended| ended.failure.as_ref());
        // A cancel does what was asked for.
        if let Some(failure) = failure.filter(|failure| failure.code != ErrorCode::Cancelled) {
            span.fail(failure.code.as_str());
        }
        ended
    }

    async fn run_in_span(&mut self) -> Option<Ended> {
        let dispatched = Timestamp::now();
        let render = match self.prepare().await {
            Ok(render) => render,
            Err(Unready::GiveBack(reason)) => {
                self.release(&reason).await;
                return None;
            }
            Err(Unready::InputGone(reason)) => {
                self.fail_unstarted(&reason).await;
                return None;
            }
        };
        let baseline = match self.baseline().await {
            Ok(baseline) => baseline,
            Err(reason) => {
                self.release(&reason).await;
                return None;
            }
        };
        let started = self.start(&render).await?;
        (self.rendering)();
        info!("render started");
        meter::model_swaps(self.backend, render.plan.model);
        self.pace.note(Instant::now());

        let plan = render.plan.clone();
        let mut tracker = Tracker::new(plan, &self.memory.weights, Some(&baseline));
        let log_end = self.known.log_end(self.sdnext).await;
        self.note_inflight().await;
        let begun = Instant::now();
        let clock = Begun { dispatched, posted: Timestamp::now() };
        let watch = Watch::new(self.shared, self.sdnext, &self.claim, self.backend, begun);
        let expected = render.plan.expected(render.images_sent);
        let post = self.sdnext.render(render.path, render.body);
        // The claim is kept alive until the outcome is recorded, images that wait for their store included.
        let mut holding = pin!(watch.hold());
        let (answer, returned) = tokio::select! {
            answer = post => (answer, Some(Instant::now())),
            never = watch.follow(&mut tracker) => match never {},
            never = &mut holding => match never {},
            () = watch.gave_up() => (Answer::Transport {
                kind: TransportKind::TimedOut,
                message: "it did not stop when it was interrupted".to_owned(),
            }, None),
        };
        let duration = begun.elapsed();
        watch.tell_looks();
        let stop = watch.stop();
        let remains = match &answer {
            Answer::Http { status: 500.., .. } => Remains::AnyStage,
            Answer::Http { .. } => watch.last_stage().map_or(Remains::Nothing, Remains::Stage),
            // The render goes on without us, and is somebody's until it ends.
            Answer::Transport { .. } => Remains::Nothing,
        };
        if stop == Some(Stop::Lost) {
            self.known.forget();
            warn!("the claim is somebody else's; nothing more is said of this attempt");
            let failure = Some(outcome::internal("The claim was lost."));
            return Some(Ended { remains, failure, rendered: false });
        }
        let moments = clock.moments(&tracker.seen(), returned.map(|_| duration));
        let verdict = self.judge(&expected, answer, &mut tracker, stop, log_end).await;
        let rendered = matches!(verdict, Verdict::Completed { .. });
        if rendered {
            let timings = tracker.finish(duration);
            meter::stages(self.backend, &timings);
            self.memory.learn(&timings);
            self.known.rendered();
        } else {
            self.known.forget();
        }
        let ending = Outcome {
            claim: &self.claim,
            backend: self.backend,
            duration,
            stop,
            stopped_after: None,
            moments: Some(moments),
        };
        let concluding = async {
            let stopped_after = match returned {
                Some(returned) if stop == Some(Stop::Cancelled) => watch.stopped_after(returned).await,
                _ => None,
            };
            self.conclude(verdict, Outcome { stopped_after, ..ending }, started, &watch).await
        };
        let failure = tokio::select! {
            failure = concluding => failure,
            never = &mut holding => match never {},
        };
        Some(Ended { remains, failure, rendered })
    }

    async fn prepare(&self) -> Result<Render, Unready> {
        let Self { claim, model, shared, .. } = self;
        let task_id = task_id(claim.job_id, claim.attempt);
        let target = (self.sdnext.dialect(), task_id.as_str());
        match body::render(&claim.request, model.as_deref(), shared.config.adopt, target, &*shared.images)
            .await
        {
            Ok(render) => Ok(render),
            // A store without anything is not the one that the image was put into: its volume is not there.
            Err(object_store::Error::NotFound { .. }) if store::is_empty(&*shared.images).await => {
                Err(Unready::GiveBack("the image store is empty: is its volume mounted?".to_owned()))
            }
            Err(object_store::Error::NotFound { path, .. }) => {
                Err(Unready::InputGone(format!("The input image {path} is no longer there.")))
            }
            Err(error) => Err(Unready::GiveBack(format!("input images cannot be read: {error}"))),
        }
    }

    /// What the server shows just before the POST. An error says why this is no time for one.
    async fn baseline(&self) -> Result<Sample, String> {
        let sample = self.known.sample(self.sdnext).await.map_err(|error| error.to_string())?;
        let Sample::Seen(seen) = &sample else {
            return Err("the server answers, and not as SD.Next does".to_owned());
        };
        if seen.is_active() && (self.left_over.is_none() || seen.id.as_deref() != self.left_over) {
            return Err("the server works for somebody else".to_owned());
        }
        if !self.lease.is_fresh() {
            return Err("the backend's lease was not renewed in time".to_owned());
        }
        Ok(sample)
    }

    /// Records the start, and returns its stream sequence; `None` if the attempt is not to go on.
    async fn start(&self, render: &Render) -> Option<u64> {
        let message = JobMessage::Started(Started {
            job_id: self.claim.job_id,
            status: Status::Running,
            attempt: self.claim.attempt,
            seq: EventSeq::STARTED,
            params: self.claim.params.clone(),
            estimated_duration: Some(self.memory.weights.estimate(&render.plan).as_secs_f64()),
            backend: self.backend.clone(),
        });
        let event = self.event(message, self.claim.last_event);
        self.record_start(&event).instrument(event.publishing()).await
    }

    async fn record_start(&self, event: &LifecycleEvent) -> Option<u64> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match events::record(&self.shared.jetstream, event).await {
                Ok(sequence) if self.lease.is_fresh() => return Some(sequence),
                Ok(_) => {
                    // Recorded too late to post: the lapse of the claim's lease makes it a retry.
                    warn!("the start was recorded after the backend's lease had gone stale");
                    return None;
                }
                Err(RecordError::Fenced(_)) => {
                    info!("the job is no longer ours to start");
                    return None;
                }
                Err(RecordError::TooLarge(bytes)) => {
                    error!(bytes, "the start is too large to be recorded");
                    self.fail_unstarted("The request is too large to be announced.").await;
                    return None;
                }
                Err(RecordError::Unavailable(cause)) if Instant::now() >= deadline => {
                    self.release(&format!("the event stream cannot be reached: {cause}")).await;
                    return None;
                }
                Err(RecordError::Unavailable(_)) => sleep(AGAIN_AFTER).await,
            }
        }
    }

    /// What the answer is worth. Only a failure that nobody asked for is worth a second look at the server.
    async fn judge(
        &self,
        expected: &Expected,
        answer: Answer,
        tracker: &mut Tracker,
        stop: Option<Stop>,
        log_end: Option<LogEnd>,
    ) -> Verdict {
        let mut evidence = Evidence {
            interrupted_by_us: stop == Some(Stop::Cancelled),
            interrupted_seen: tracker.interrupted_seen(),
            log_says_out_of_memory: Some(false),
        };
        let dialect = self.sdnext.dialect();
        let mut expected = expected.clone();
        if dialect.cut_looks_whole() {
            if let Ok(Sample::Seen(seen)) = self.sdnext.sample().await {
                evidence.interrupted_seen |= seen.interrupted || seen.skipped;
            }
            if evidence.interrupted_seen {
                // No size tells a whole picture from an unfinished one.
                expected.sizes.clear();
            }
        }
        let verdict = verify(&expected, answer.clone(), &evidence);
        let answered = matches!(answer, Answer::Http { .. });
        if matches!(verdict, Verdict::Completed { .. }) || evidence.interrupted_by_us || !answered {
            return verdict;
        }
        // The flag lingers after the job, so a render too short to be seen with it still shows it now.
        if let Ok(Sample::Seen(seen)) = self.sdnext.sample().await {
            evidence.interrupted_seen |= seen.interrupted;
        }
        evidence.log_says_out_of_memory = match log_end {
            Some(end) => self.sdnext.log_says_out_of_memory(end).await,
            None if dialect.raises_out_of_memory() => Some(false),
            None => None,
        };
        verify(&expected, answer, &evidence)
    }

    /// Stores what came, and records the outcome. Returns the failure, if it was one.
    async fn conclude(
        &self,
        verdict: Verdict,
        context: Outcome<'_>,
        started: u64,
        watch: &Watch<'_>,
    ) -> Option<JobError> {
        let (store, patience) = (&*self.shared.images, self.shared.config.store_patience);
        let judged = Instant::now();
        let decided = outcome::decide(&context, verdict, store, patience, watch.asked()).await;
        let Some(message) = decided else {
            warn!("the claim was lost before the images were stored; nothing more is said of this attempt");
            return Some(outcome::internal("The claim was lost."));
        };
        let kind = message.kind();
        let failure = match &message {
            JobMessage::Complete(complete) => complete.error.clone(),
            JobMessage::Retrying(retrying) => Some(retrying.error.clone()),
            JobMessage::Queued(_) | JobMessage::Started(_) | JobMessage::Progress(_) => None,
        };
        let decided_at = Instant::now();
        self.record(message, started).await;
        if kind == Kind::Completed {
            meter::stage(self.backend, "storing", decided_at - judged);
            meter::stage(self.backend, "recording", decided_at.elapsed());
        }
        meter::attempt(self.backend, kind, failure.as_ref().map(|error| error.code), context.duration);
        info!(outcome = %kind, seconds = context.duration.as_secs_f64(), "render ended");
        failure
    }

    /// Records an event however long it takes, until another's fences us off or the process ends.
    async fn record(&self, message: JobMessage, expected_last: u64) {
        let event = self.event(message.clone(), expected_last);
        let span = event.publishing();
        self.record_event(message, event).instrument(span).await;
    }

    async fn record_event(&self, message: JobMessage, mut event: LifecycleEvent) {
        let expected_last = event.expected_last;
        loop {
            match events::record(&self.shared.jetstream, &event).await {
                Ok(_) => return,
                Err(RecordError::Fenced(_)) => {
                    return warn!("the outcome was decided elsewhere; ours does not count");
                }
                Err(RecordError::TooLarge(bytes)) => {
                    warn!(bytes, "the outcome is too large; the server's description is left out");
                    match outcome::shorten(message.clone()) {
                        Some(shorter) if event.payload.len() > events::MAX_EVENT_BYTES => {
                            event = self.event(shorter, expected_last);
                            if event.payload.len() > events::MAX_EVENT_BYTES {
                                return error!("the outcome cannot be recorded");
                            }
                        }
                        _ => return error!("the outcome cannot be recorded"),
                    }
                }
                Err(RecordError::Unavailable(cause)) => {
                    warn!(error = %cause, "outcome not recorded yet");
                    sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    /// Ends a job that cannot be tried at all.
    async fn fail_unstarted(&self, reason: &str) {
        let attempt = self.claim.attempt - 1;
        let message = JobMessage::Complete(Complete {
            attempt,
            ..outcome::failed(&self.claim, self.backend, outcome::internal(reason), None)
        });
        self.record(message, self.claim.last_event).await;
    }

    fn event(&self, message: JobMessage, expected_last: u64) -> LifecycleEvent {
        LifecycleEvent::new(self.claim.owner.clone(), message, self.claim.token.to_string(), expected_last)
    }

    async fn release(&self, reason: &str) {
        info!(reason, "claim given back");
        let claim = HeldClaim { job_id: self.claim.job_id, token: self.claim.token };
        let request = ReleaseRequest { claim, reason: reason.to_owned() };
        let released: Result<(), _> =
            rpc::call(&self.shared.client, rpc::RELEASE, &request, RELEASE_TIMEOUT).await;
        if let Err(error) = released {
            warn!(error = %error, "claim not given back; its lease will lapse");
        }
    }

    /// Tells a later holder of this backend what is being rendered.
    async fn note_inflight(&mut self) {
        match self.known.mark(self.sdnext).await {
            Ok(behind) => {
                let note = Note { claim: self.claim.clone(), posted_at: Timestamp::now(), behind };
                self.inflight.note(&note).await;
            }
            Err(error) => warn!(error = %error, "render not noted"),
        }
    }
}

/// How a posted attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// What the server may still show of it.
    pub remains: Remains,
    /// Why it was no success.
    pub failure: Option<JobError>,
    /// Whether the server rendered all that it was asked for.
    pub rendered: bool,
}

/// What a server may go on showing of an attempt that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remains {
    /// Nothing: what it shows is somebody's work.
    Nothing,
    /// The stage of this id.
    Stage(String),
    /// Any: it failed in a way that leaves its stage standing, perhaps too fast to be seen.
    AnyStage,
}

/// Why a render cannot be prepared.
enum Unready {
    /// For now; somebody else may.
    GiveBack(String),
    /// For good.
    InputGone(String),
}
