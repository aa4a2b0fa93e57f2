//! Watching a render while its POST is under way: polls, progress, renewals, and whatever asks it to stop.

use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::StreamExt as _;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::{Envelope, EventSeq, JobMessage, ProgressUpdate, Source, Stage, Status};
use stepcast_shared::rpc::{self, Claim, HeldClaim, RenewOutcome, RenewRequest, Renewed};
use stepcast_shared::subjects::{self, Kind};
use stepcast_shared::trace::{SpanExt as _, TraceContext};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tracing::{Instrument as _, Span, error_span, info, warn};

use crate::a1111::Task;
use crate::context::Shared;
use crate::meter;
use crate::sample::Sample;
use crate::sdnext::{SdNext, Unusable};
use crate::stop::Stop;
use crate::tracker::{Progress, Tracker};

/// When a render is first looked at: what is over by then had nothing to be seen.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// How often a claim is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// When it is renewed first. It is fresh; what the answer may tell is a cancel asked for before its order was heard.
const FIRST_RENEWAL: Duration = Duration::from_millis(500);
/// Longest wait for an answer to a renewal.
const RENEW_TIMEOUT: Duration = Duration::from_secs(3);
/// Unchanged progress is repeated this often, so that whoever comes late knows it too.
const REPEAT_EVERY: Duration = Duration::from_millis(900);
/// How long a stopping process lets a render end by itself.
const LET_FINISH: Duration = Duration::from_secs(5);
/// How long a render may take to stop before its answer is no longer waited for.
const GIVE_UP: Duration = Duration::from_mins(2);
/// How long api may take to tell when a cancel was asked for, once the render has stopped.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
/// How long polls pause after the server's limiter refused one.
const LIMITER_PAUSE: Duration = Duration::from_secs(2);

/// Watches one render.
pub struct Watch<'a> {
    shared: &'a Shared,
    sdnext: &'a SdNext,
    claim: &'a Claim,
    backend: &'a BackendId,
    begun: Instant,
    stop: watch::Sender<Option<Stop>>,
    /// When the cancel was asked for, once that was heard.
    cancel_asked: watch::Sender<Option<Asked>>,
    /// Has the claim renewed at once.
    renew_now: Notify,
    /// Id of the stage that the server showed last.
    stage: Mutex<Option<String>>,
    /// How often the server was looked at, and how often in vain.
    looks: AtomicU32,
    missed: AtomicU32,
    /// The attempt's.
    span: Span,
    /// Where progress says that it comes from.
    trace: Option<TraceContext>,
}

impl<'a> Watch<'a> {
    /// A watch over a render that begins now.
    pub fn new(
        shared: &'a Shared,
        sdnext: &'a SdNext,
        claim: &'a Claim,
        backend: &'a BackendId,
        begun: Instant,
    ) -> Self {
        Self {
            shared,
            sdnext,
            claim,
            backend,
            begun,
            stop: watch::Sender::new(None),
            cancel_asked: watch::Sender::new(None),
            renew_now: Notify::new(),
            stage: Mutex::default(),
            looks: AtomicU32::new(0),
            missed: AtomicU32::new(0),
            span: Span::current(),
            trace: TraceContext::current(),
        }
    }

    /// Why the render was asked to stop, if it was.
    pub fn stop(&self) -> Option<Stop> {
        *self.stop.borrow()
    }

    /// How long a cancelled render went on, if it was cancelled before it `returned`.
    ///
    /// From the first request as api wrote it down: that is told as a time ago, and so brought to our clock, where what
    /// the telling took makes it earlier and never later. Where api does not tell within a second, from when we heard
    /// of it. To be called while the watch holds the claim. Cancel-safe.
    pub async fn stopped_after(&self, returned: Instant) -> Option<Duration> {
        let mut asked = self.cancel_asked.subscribe();
        (*asked.borrow())?;
        // The answer to a renewal may have been lost to the end of the render; the next one is on its way.
        let _ = timeout(TOLD_WITHIN, asked.wait_for(|asked| asked.is_some_and(|asked| asked.told))).await;
        let asked = (*asked.borrow())?;
        Some(returned.saturating_duration_since(asked.at))
    }

    /// Says in the attempt's trace how often the server was looked at.
    pub fn tell_looks(&self) {
        self.span.tell("looks", i64::from(self.looks.load(Ordering::Relaxed)));
        self.span.tell("looks_missed", i64::from(self.missed.load(Ordering::Relaxed)));
    }

    /// Id of the stage that the server showed last while the render was under way.
    pub fn last_stage(&self) -> Option<String> {
        self.lock_stage().clone()
    }

    fn lock_stage(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.stage.lock().expect("no code panics while it holds this lock")
    }

    /// Resolves once a render that was asked to stop has not done so for too long.
    pub async fn gave_up(&self) {
        self.asked().await;
        sleep(GIVE_UP).await;
    }

    /// Resolves once the render, or what follows it, was asked to stop. Cancel-safe.
    pub async fn asked(&self) -> Stop {
        let mut stop = self.stop.subscribe();
        let asked = stop.wait_for(Option::is_some).await.expect("the sender lives as long as this borrow");
        asked.expect("it was waited for")
    }

    /// Looks at the render, and says how far it is, until dropped. Cancel-safe: what is lost is at most one look.
    pub async fn follow(&self, tracker: &mut Tracker) -> Infallible {
        self.poll(tracker).instrument(repeated()).await
    }

    /// Holds the claim, and hears who asks to stop, until dropped. Cancel-safe: what is lost is at most one renewal.
    pub async fn hold(&self) -> Infallible {
        tokio::select! {
            never = self.keep_claim().instrument(repeated()) => never,
            never = self.listen() => never,
            never = self.heed_shutdown() => never,
            never = self.heed_deadline() => never,
        }
    }

    fn ask_to_cancel(&self, asked: Asked) {
        self.cancel_asked.send_modify(|known| {
            *known = Some(match *known {
                Some(known) => Asked { at: known.at.min(asked.at), told: known.told || asked.told },
                None => asked,
            });
        });
        self.ask_to_stop(Stop::Cancelled);
    }

    /// The gravest reason stands.
    fn ask_to_stop(&self, reason: Stop) {
        let news = self.stop.send_if_modified(|stop| {
            let news = stop.is_none_or(|known| known < reason);
            if news {
                *stop = Some(reason);
            }
            news
        });
        if news {
            info!(parent: &self.span, ?reason, "the render is to stop");
        }
    }

    async fn poll(&self, tracker: &mut Tracker) -> Infallible {
        let interval = self.shared.config.poll_interval;
        let mut ticks = interval_at(self.begun + interval.min(FIRST_LOOK), interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said: Option<(Instant, Said)> = None;
        let mut seq = EventSeq::FIRST_PROGRESS;
        let mut shown: Option<Stage> = None;
        let mut stopping = self.stop.subscribe();
        let mut task = Task::new(self.sdnext.family(), self.claim.job_id, self.claim.attempt);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = stopping.changed() => {}
            }
            let stop = self.stop();
            // Whoever's work still runs before ours is left alone; the flag is raised once ours has begun.
            if stop.is_some()
                && !tracker.is_foreign()
                && let Err(error) = self.sdnext.interrupt_task(&task).await
            {
                // The flag is wiped by the next stage anyhow; it is raised again with the next tick.
                warn!(error = %error, "interrupt not delivered");
            }
            let asked = Instant::now();
            let sample = match self.sdnext.sample_task(&mut task).await {
                Ok(sample) => {
                    meter::poll(self.backend, asked.elapsed());
                    sample
                }
                Err(Unusable::RateLimited) => {
                    metrics::counter!("stepcast_polls_refused_total").increment(1);
                    sleep(LIMITER_PAUSE).await;
                    Sample::Missed
                }
                Err(_) => {
                    metrics::counter!("stepcast_polls_missed_total").increment(1);
                    Sample::Missed
                }
            };
            self.looks.fetch_add(1, Ordering::Relaxed);
            self.missed.fetch_add(u32::from(matches!(sample, Sample::Missed)), Ordering::Relaxed);
            if let Sample::Seen(seen) = &sample
                && seen.is_active()
            {
                self.lock_stage().clone_from(&seen.id);
            }
            // One moment for both, or what was just measured would count as an estimate.
            let now = self.begun.elapsed();
            tracker.observe(now, &sample);
            if stop == Some(Stop::Lost) {
                continue;
            }
            let progress = tracker.progress(now);
            if shown.replace(progress.stage) != Some(progress.stage) {
                self.span.note("stage", "stage", progress.stage.as_str());
            }
            if progress.stalled.is_some_and(|age| age >= self.shared.config.stall_timeout) {
                self.ask_to_stop(Stop::Stalled);
            }
            let saying = Said::from(&progress);
            let due =
                said.as_ref().is_none_or(|(at, known)| *known != saying || at.elapsed() >= REPEAT_EVERY);
            if due {
                self.publish(&progress, seq).await;
                said = Some((Instant::now(), saying));
                seq += 1;
            }
        }
    }

    async fn publish(&self, progress: &Progress, seq: u32) {
        let Claim { job_id, attempt, owner, .. } = self.claim;
        let message = JobMessage::Progress(ProgressUpdate {
            job_id: *job_id,
            status: Status::Running,
            attempt: *attempt,
            seq,
            progress: round(progress.fraction, 4),
            current_step: progress.step,
            total_steps: progress.steps,
            eta_seconds: progress.eta.map(|eta| round(eta.as_secs_f64(), 2)),
            preview_image: None,
            error_message: None,
            stage: progress.stage,
            image: progress.image,
            images: progress.images,
            steps_per_second: progress.steps_per_second.map(|rate| round(rate, 3)),
            source: progress.source,
            stalled: progress.stalled.is_some(),
            stalled_seconds: progress.stalled.map(|age| round(age.as_secs_f64(), 1)),
            backend: Some(self.backend.clone()),
        });
        let mut headers = HeaderMap::new();
        headers.insert(EventSeq::HEADER, message.seq().to_string().as_str());
        headers.insert("Content-Type", "application/json");
        if let Some(trace) = &self.trace {
            trace.write(&mut headers);
        }
        let payload = Envelope::now(message).to_json();
        let subject = subjects::job(owner, *job_id, Kind::Progress);
        // Live only: the next one makes up for it.
        let _ = self.shared.client.publish_with_headers(subject, headers, payload.into()).await;
    }

    /// Renews the claim until dropped, and hears with the answer what has become of the job.
    async fn keep_claim(&self) -> Infallible {
        let claim = HeldClaim { job_id: self.claim.job_id, token: self.claim.token };
        let request = RenewRequest { claims: vec![claim] };
        let mut ticks = interval_at(self.begun + FIRST_RENEWAL, RENEW_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.renew_now.notified() => {}
            }
            let sent = Instant::now();
            let renewed: Result<Renewed, _> =
                rpc::call(&self.shared.client, rpc::RENEW, &request, RENEW_TIMEOUT).await;
            let renewed = match renewed {
                Ok(renewed) => renewed,
                Err(error) => {
                    warn!(error = %error, "claim not renewed");
                    continue;
                }
            };
            match renewed.claims.first() {
                Some(RenewOutcome::Lost) => self.ask_to_stop(Stop::Lost),
                Some(RenewOutcome::Cancel) => {
                    let ago = renewed.cancel_asked_ago.first().copied().flatten();
                    let ago = ago.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                    let at = sent.checked_sub(ago.unwrap_or_default()).unwrap_or(sent);
                    self.ask_to_cancel(Asked { at, told: true });
                }
                Some(RenewOutcome::Held) | None => {}
            }
        }
    }

    /// Hears of a cancel at once, where the message arrives. It may have been long on its way, so api is asked since when.
    async fn listen(&self) -> Infallible {
        if let Ok(mut orders) = self.shared.client.subscribe(subjects::control(self.claim.job_id)).await {
            while let Some(order) = orders.next().await {
                let _ = self.span.clone().linked(TraceContext::of_message(order.headers.as_ref()).as_ref());
                self.ask_to_cancel(Asked { at: Instant::now(), told: false });
                self.renew_now.notify_one();
            }
        }
        std::future::pending().await
    }

    async fn heed_deadline(&self) -> Infallible {
        let left = self.claim.deadline_in_seconds.map(Duration::try_from_secs_f64);
        if let Some(end) = left.and_then(|left| self.begun.checked_add(left.unwrap_or_default())) {
            sleep_until(end).await;
            self.ask_to_stop(Stop::Deadline);
        }
        std::future::pending().await
    }

    async fn heed_shutdown(&self) -> Infallible {
        self.shared.stopping.cancelled().await;
        sleep(LET_FINISH).await;
        self.ask_to_stop(Stop::Shutdown);
        std::future::pending().await
    }
}

/// What is done again and again, as long as a render lasts, is no part of its trace: a span of none covers it, and log
/// lines within it are the attempt's as ever.
fn repeated() -> Span {
    error_span!("watch")
}

/// A request to cancel.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    /// Whether api told when, or the order was only heard.
    told: bool,
}

/// What a reader would notice; while it stays the same, nothing is said but the repeats.
#[derive(PartialEq)]
struct Said {
    fraction: f64,
    stage: Stage,
    step: u32,
    image: u32,
    source: Source,
    stalled: bool,
}

impl From<&Progress> for Said {
    fn from(progress: &Progress) -> Self {
        Self {
            fraction: round(progress.fraction, 3),
            stage: progress.stage,
            step: progress.step,
            image: progress.image,
            source: progress.source,
            stalled: progress.stalled.is_some(),
        }
    }
}

/// Rounds down: a progress just below 1.0 must not read as 1.0.
fn round(value: f64, digits: i32) -> f64 {
    let factor = 10_f64.powi(digits);
    (value * factor).floor() / factor
}
