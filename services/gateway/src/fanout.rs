//! The loop that the gateway exists for: reads what NATS delivers, hands it to whom it concerns, and writes it.
//!
//! One loop on a thread of its own does all three, so a message costs no wake-up of anybody: it goes from the one
//! socket to the others. Connections that are behind are left to their own tasks; one slow reader delays nobody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::ServerAddr;
use rand::seq::SliceRandom as _;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::nats::Servers;
use stepcast_shared::trace;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::deliveries::{Deliveries, Delivery};
use crate::feed::{Feed, Info, Link, Op};
use crate::frame::{Class, JobFrame, NotAFrame};
use crate::hub::Hub;
use crate::meter::Meter;
use crate::outbox::Round;
use crate::pace::Pace;

/// How soon a lost connection is tried again: a watcher should not see more than this of a restart.
const RECONNECT: Duration = Duration::from_millis(250);
/// How often it is measured how far behind the server this loop is, and that the connection still lives.
const LAG_EVERY: Duration = Duration::from_secs(1);
/// How often those who take progress in batches get one.
const BATCH_EVERY: Duration = Duration::from_millis(250);
/// Longest silence of the server after a question; beyond it the connection is given up.
const SILENCE: Duration = Duration::from_secs(10);
/// Deliveries after which the loop looks up from what it has read: a job that thousands watch fills its round soon.
const AT_ONCE: usize = 16_384;

/// What the loop needs.
#[derive(Debug)]
pub struct FanOut {
    /// Where NATS is.
    pub nats: NatsConfig,
    /// What is subscribed to.
    pub feed: Arc<Feed>,
    /// Who wants what.
    pub hub: Arc<Hub>,
}

impl FanOut {
    /// Runs until `stopping`, and connects again whenever the connection is lost.
    ///
    /// Errors if the addresses of NATS cannot be read, or the loop's thread cannot be started or panics.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let servers = Servers::of(&self.nats)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (ended, end) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("fan-out".to_owned())
            .spawn(move || {
                runtime.block_on(stopping.run_until_cancelled(self.forever(&servers)));
                let _ = ended.send(());
            })
            .context("the fan-out thread cannot be started")?;
        end.await.context("the fan-out thread panicked")
    }

    async fn forever(&self, configured: &Servers) {
        let mut others: Vec<ServerAddr> = Vec::new();
        let mut told = false;
        loop {
            match self.connect(configured, &others).await {
                Ok(mut link) => {
                    others = link.others.iter().filter_map(|other| other.parse().ok()).collect();
                    told = false;
                    self.feed.connected();
                    info!("the feed is connected to nats");
                    let end = self.serve(&mut link).await;
                    self.feed.disconnected();
                    if let Err(error) = end {
                        warn!(error = format!("{error:#}"), "the feed has lost nats");
                    }
                }
                // The library's connection tells the same story at its own pace.
                Err(error) if told => debug!(error = format!("{error:#}"), "the feed cannot reach nats"),
                Err(error) => {
                    warn!(error = format!("{error:#}"), "the feed cannot reach nats, it is tried again");
                    told = true;
                }
            }
            sleep(RECONNECT).await;
        }
    }

    /// Connects to any server: those that were named, in any order, then those that the cluster has beside them.
    async fn connect(&self, configured: &Servers, others: &[ServerAddr]) -> anyhow::Result<Link> {
        let mut first = configured.addresses.clone();
        first.shuffle(&mut rand::rng());
        let mut failure = anyhow::anyhow!("no server is named");
        for server in first.iter().chain(others) {
            match Link::connect(server, configured.login.as_ref(), &self.nats).await {
                Ok(link) => return Ok(link),
                Err(error) => {
                    failure = error.context(format!("{}:{}", server.host(), server.port()));
                }
            }
        }
        Err(failure)
    }

    /// Serves one connection until it is lost, or the server asks to go elsewhere.
    async fn serve(&self, link: &mut Link) -> anyhow::Result<()> {
        let mut round = Round::default();
        let mut deliveries = Deliveries::default();
        let mut pace = Pace::new(Instant::now());
        let mut meter = Meter::new();
        let mut tick = interval(LAG_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch_tick = interval(BATCH_EVERY);
        batch_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut more = false;
        loop {
            let due = if round.is_empty() { None } else { Some(pace.due()) };
            tokio::select! {
                biased;
                () = self.feed.changed() => {}
                _ = tick.tick() => {
                    meter.publish();
                    let now = Instant::now();
                    anyhow::ensure!(now - heard < SILENCE, "the server is silent");
                    self.feed.ask_lag(now);
                }
                _ = batch_tick.tick() => self.hub.send_batches(&mut round),
                () = std::future::ready(()), if more => {}
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                filled = link.fill() => {
                    filled?;
                    heard = Instant::now();
                }
            }
            more = self.take(link, &mut round, &mut deliveries, &mut meter)?;
            let words = self.feed.take_outgoing();
            if !words.is_empty() {
                link.say(&words).await?;
            }
            let now = Instant::now();
            if !round.is_empty() && (pace.due() <= now || round.is_full()) {
                let before = processor_time();
                let written = round.flush();
                deliveries.written();
                // Not the time that passed: on a busy machine that counts what others do.
                let took = processor_time().saturating_sub(before);
                pace.wrote(written, took, Instant::now());
                meter.wrote(written, took);
            }
        }
    }

    /// Delivers what was read, and tells whether it stopped before the end.
    fn take(
        &self,
        link: &mut Link,
        round: &mut Round,
        deliveries: &mut Deliveries,
        meter: &mut Meter,
    ) -> anyhow::Result<bool> {
        let mut delivered = 0;
        let has_gap = self.feed.has_gap();
        while delivered < AT_ONCE {
            let Some(op) = link.next()? else { return Ok(false) };
            match op {
                Op::Message { subject, headers, payload } => {
                    match JobFrame::live(subject, headers, payload) {
                        Ok((owner, mut frame)) => {
                            if has_gap {
                                // Its place would say that everything before it has been told.
                                frame.place = 0;
                            }
                            meter.received();
                            let receivers = self.hub.deliver(&owner, &frame, round);
                            delivered += receivers;
                            if trace::is_on() && receivers > 0 && frame.class == Class::Event {
                                let (job_id, seq) = (frame.job_id, frame.seq);
                                deliveries.note(&Delivery { subject, headers, job_id, seq, receivers });
                            }
                        }
                        Err(NotAFrame::Preview) => {}
                        Err(error) => {
                            metrics::counter!("stepcast_gateway_undecodable_total").increment(1);
                            debug!(%error, "a message is not passed on");
                        }
                    }
                }
                Op::Ping => self.feed.pong(),
                Op::Pong => {
                    if let Some(lag) = self.feed.answered(Instant::now()) {
                        meter.lag(lag);
                    }
                }
                Op::Info(json) => {
                    let leaving = serde_json::from_slice::<Info>(json).is_ok_and(|info| info.is_leaving);
                    anyhow::ensure!(!leaving, "the server is about to stop");
                }
                Op::Error(words) => anyhow::bail!("the server says {}", String::from_utf8_lossy(words)),
                Op::Ok => {}
            }
        }
        Ok(true)
    }
}

/// What this thread has used of a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("it only grows from 0")
}
