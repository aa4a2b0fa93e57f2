//! One backend: held by lease, looked at, and given one job at a time.

mod look;

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use futures_util::stream::SelectAll;
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::{BackendCondition, BackendMode, BackendState, ErrorCode};
use stepcast_shared::rpc::{self, Claim, ClaimAnswer, ClaimRequest};
use stepcast_shared::subjects;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument as _, error_span, info, warn};

use crate::attempt::{Attempt, Ended, Remains};
use crate::config::BackendSpec;
use crate::context::Shared;
use crate::inflight::InFlight;
use crate::known::Known;
use crate::lease::Lease;
use crate::memory::Memory;
use crate::pace::Pace;
use crate::plan::{Plan, PlanInput};
use crate::quarantine::Quarantine;
use crate::recover::Recovery;
use crate::report::report;
use crate::sample::{Observation, Sample};
use crate::sdnext::SdNext;
use crate::verifier::{Answer, Evidence, TransportKind, Verdict, verify};

/// How often an idle backend asks for work when nobody wakes it, and one that cannot work is looked at.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often an idle backend is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest wait for a small render; it may have to load a checkpoint first.
const PROBE_TIMEOUT: Duration = Duration::from_mins(3);
/// Longest wait for an answer to a claim.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(3);

/// One backend of a poller.
pub struct Backend {
    shared: Shared,
    spec: BackendSpec,
    sdnext: SdNext,
    state: watch::Sender<Option<BackendState>>,
    pace: Pace,
    memory: Memory,
    known: Known,
    inflight: InFlight,
    /// Work that the server shows and that is not there: its stage's id.
    left_over: Option<String>,
    /// What the server has shown without change, and since when.
    frozen: Option<(Observation, Instant)>,
    /// Idle looks in a row that are still needed before somebody else's work counts as done.
    idle_looks: u32,
    quarantine: Quarantine,
    /// Why it is given no work, if it was told so.
    held_back: Option<BackendMode>,
    /// When the server was first seen without a model.
    modelless_since: Option<Instant>,
}

impl Backend {
    /// A backend that is not held yet.
    pub fn new(shared: Shared, spec: BackendSpec) -> anyhow::Result<Self> {
        let sdnext = SdNext::new(&spec, shared.config.render_timeout)?;
        let memory = Memory::open(shared.config.weights_dir.as_deref(), &spec.id);
        let pace = Pace::new(shared.config.posts_per_minute);
        let inflight = InFlight::new(shared.inflight.clone(), spec.id.clone());
        Ok(Self {
            shared,
            spec,
            sdnext,
            state: watch::Sender::new(None),
            pace,
            memory,
            known: Known::default(),
            inflight,
            left_over: None,
            frozen: None,
            idle_looks: 0,
            quarantine: Quarantine::default(),
            held_back: None,
            modelless_since: None,
        })
    }

    /// Works until the process stops.
    pub async fn run(mut self) -> anyhow::Result<()> {
        // An error's too: a line that does not say which backend is worth little, however little is logged.
        let span = error_span!("backend", backend = %self.spec.id);
        let reporting = report(self.shared.client.clone(), self.spec.id.clone(), self.state.subscribe());
        let working = async {
            tokio::select! {
                () = self.work() => {}
                never = reporting => match never {},
            }
        };
        Box::pin(working.instrument(span)).await;
        Ok(())
    }

    async fn work(&mut self) {
        while !self.shared.stopping.is_cancelled() {
            let Shared { jetstream, leases, poller, config, tasks, .. } = &self.shared;
            match Lease::acquire(jetstream, leases, &self.spec.id, poller, config.sole_holder, tasks).await {
                Ok(Some(lease)) => {
                    info!(epoch = lease.epoch, "backend held");
                    self.known.forget();
                    self.inflight.give_up();
                    self.hold(&lease).await;
                    if !lease.is_lost() {
                        self.inflight.clear().await;
                    }
                    self.state.send_replace(None);
                }
                Ok(None) => {}
                Err(error) => warn!(error = format!("{error:#}"), "no lease"),
            }
            self.pause(ASK_EVERY).await;
        }
    }

    /// Serves the backend while the lease is ours.
    async fn hold(&mut self, lease: &Lease) {
        let mut model = None;
        let mut looked: Option<Instant> = None;
        let mut wakes = SelectAll::new();
        let mut recovered = false;
        while !lease.is_lost() && !self.shared.stopping.is_cancelled() {
            if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                let condition = self.look().await;
                let fit = matches!(condition, BackendCondition::Idle | BackendCondition::Drained);
                looked = fit.then(Instant::now);
                // A server that is down may come back with what it was rendering.
                if !recovered && condition != BackendCondition::Down {
                    recovered = self.recover(lease).await;
                    looked = None;
                    continue;
                }
                model = self.state.borrow().as_ref().and_then(|state| state.model.clone());
                if condition == BackendCondition::Quarantined {
                    self.probe(lease).await;
                }
                if !fit {
                    self.inflight.clear().await;
                    // What cannot take work must not swallow what would wake an idle backend.
                    wakes = SelectAll::new();
                    self.pause(ASK_EVERY).await;
                    continue;
                }
            }
            let wait = self.pace.wait(Instant::now());
            if !wait.is_zero() {
                self.rest().await;
                self.pause(wait.min(ASK_EVERY)).await;
                continue;
            }
            if wakes.is_empty() && self.held_back.is_none() {
                wakes = self.wakes().await;
            }
            match self.claim(lease, model.clone()).await {
                ClaimAnswer::Work(claim) => {
                    wakes = SelectAll::new();
                    self.run_claim(lease, *claim).await;
                    looked = None;
                }
                ClaimAnswer::HeldBack { .. } => {
                    self.inflight.clear().await;
                    wakes = SelectAll::new();
                    self.pause(ASK_EVERY).await;
                }
                ClaimAnswer::Nothing => {
                    self.rest().await;
                    tokio::select! {
                        () = self.pause(ASK_EVERY) => {}
                        Some(_) = wakes.next() => {}
                    }
                }
            }
        }
    }

    async fn run_claim(&mut self, lease: &Lease, claim: Claim) {
        let (job_id, model) =
            (claim.job_id, self.state.borrow().as_ref().and_then(|state| state.model.clone()));
        let may_load = claim.request.model.is_some() || !claim.request.sdnext.is_empty();
        let attempt = Attempt {
            shared: &self.shared,
            sdnext: &self.sdnext,
            backend: &self.spec.id,
            lease,
            claim,
            model,
            left_over: self.left_over.as_deref(),
            known: &mut self.known,
            inflight: &mut self.inflight,
            memory: &mut self.memory,
            pace: &mut self.pace,
            rendering: &|| say(&self.state, BackendCondition::Busy, Some(job_id)),
        };
        let Some(Ended { remains, failure, rendered }) = attempt.run().await else { return };
        if !rendered {
            self.inflight.clear().await;
        }
        if may_load || !rendered {
            self.sdnext.may_have_loaded();
        }
        let failure = failure.as_ref().map(|error| (error.code, error.message.as_str()));
        self.quarantine.note(failure, Instant::now());
        if remains == Remains::Nothing {
            return;
        }
        // The answer is there, so what still shows the same stage shows nothing that runs. A new stage is new work.
        if let Ok(Sample::Seen(seen)) = self.sdnext.sample().await
            && seen.is_active()
            && (remains == Remains::AnyStage || seen.id.clone().map(Remains::Stage) == Some(remains))
        {
            self.left_over = seen.id;
        }
    }

    /// Settles what an earlier holder left; false if that must be tried again.
    async fn recover(&self, lease: &Lease) -> bool {
        let Self { shared, sdnext, spec, .. } = self;
        let outcome = Recovery { shared, sdnext, backend: &spec.id, lease }.run().await;
        if let Err(error) = &outcome {
            warn!(error = format!("{error:#}"), "an earlier holder's render is not settled yet");
            self.pause(ASK_EVERY).await;
        }
        outcome.is_ok()
    }

    /// Tries a server that is out of service with a small render of our own, once its rest is over.
    ///
    /// Only an idle server is tried, under our lease, as any job would be. One that answers success without images may
    /// be wedged, which only a forced reload of its checkpoint mends; recorded, and harmless while nothing runs.
    async fn probe(&mut self, lease: &Lease) {
        if !self.quarantine.is_probe_due(Instant::now()) || !lease.is_fresh() {
            return;
        }
        self.known.forget();
        let mut verdict = self.probe_once().await;
        let wedged = |verdict: &Verdict| matches!(verdict, Verdict::Failed { failure, .. } if failure.code == ErrorCode::NoImages);
        if wedged(&verdict) {
            warn!("success without images; the checkpoint is reloaded");
            match self.sdnext.reload_checkpoint().await {
                Ok(()) => verdict = self.probe_once().await,
                Err(error) => warn!(error = %error, "checkpoint not reloaded"),
            }
        }
        let succeeded = matches!(verdict, Verdict::Completed { .. });
        info!(succeeded, "backend out of service was tried");
        self.quarantine.probed(succeeded, Instant::now());
    }

    async fn probe_once(&mut self) -> Verdict {
        self.pace.note(Instant::now());
        let body = serde_json::json!({"prompt": "probe", "steps": 1, "width": 64, "height": 64});
        let plan = Plan::new(&PlanInput::from_body(&body, false));
        let answer =
            timeout(PROBE_TIMEOUT, self.sdnext.render("/sdapi/v1/txt2img", body.to_string().into())).await;
        let answer = answer.unwrap_or_else(|_| Answer::Transport {
            kind: TransportKind::TimedOut,
            message: "it did not answer a small render in time".to_owned(),
        });
        verify(&plan.expected(true), answer, &Evidence::default())
    }

    /// Asks for work. Without an answer there is none, and what the backend was told before still holds.
    async fn claim(&mut self, lease: &Lease, loaded_model: Option<String>) -> ClaimAnswer {
        if !lease.is_fresh() {
            return ClaimAnswer::Nothing;
        }
        let request = ClaimRequest {
            backend_id: self.spec.id.clone(),
            epoch: lease.epoch,
            pools: self.shared.config.pools.clone(),
            loaded_model,
            takes_modes: true,
        };
        let claimed: Result<ClaimAnswer, _> =
            rpc::call(&self.shared.client, rpc::CLAIM, &request, CLAIM_TIMEOUT).await;
        let state = claimed.as_ref().map(drop).map_err(ToString::to_string);
        self.shared.ready.set("api", state);
        match claimed {
            Ok(answer) => {
                self.heed(&answer);
                answer
            }
            Err(error) => {
                warn!(error = %error, "no claim");
                ClaimAnswer::Nothing
            }
        }
    }

    /// Says that there is nothing to do.
    async fn rest(&mut self) {
        let busy = self.state.borrow().as_ref().is_some_and(|state| state.state == BackendCondition::Busy);
        if busy {
            say(&self.state, BackendCondition::Idle, None);
        }
        self.inflight.clear().await;
    }

    /// Says that the backend is empty once it was told that it is to be, until it may work again.
    ///
    /// It asks only while it renders nothing, so from then on nothing of ours runs on it.
    fn heed(&mut self, answer: &ClaimAnswer) {
        let held_back = match answer {
            ClaimAnswer::HeldBack { held_back } => Some(*held_back),
            ClaimAnswer::Work(_) | ClaimAnswer::Nothing => None,
        };
        if self.held_back == held_back {
            return;
        }
        info!(?held_back, "backend held back, or no more");
        self.held_back = held_back;
        let draining = held_back == Some(BackendMode::Draining);
        say(&self.state, if draining { BackendCondition::Drained } else { BackendCondition::Idle }, None);
    }

    async fn wakes(&self) -> SelectAll<Subscriber> {
        let mut all = SelectAll::new();
        for pool in &self.shared.config.pools {
            // Without it work is found within a second all the same.
            if let Ok(wakes) =
                self.shared.client.queue_subscribe(subjects::wake(pool), "idle-backends".to_owned()).await
            {
                all.push(wakes);
            }
        }
        all
    }

    /// Waits, or until the process stops.
    async fn pause(&self, duration: Duration) {
        let _ = timeout(duration, self.shared.stopping.cancelled()).await;
        if self.shared.stopping.is_cancelled() {
            // Callers loop; a stopped process must not spin until they look.
            sleep(Duration::from_millis(1)).await;
        }
    }
}

fn say(state: &watch::Sender<Option<BackendState>>, condition: BackendCondition, job_id: Option<JobId>) {
    state.send_modify(|state| {
        if let Some(state) = state {
            state.state = condition;
            state.job_id = job_id;
            state.foreign = None;
            state.message = None;
        }
    });
}
