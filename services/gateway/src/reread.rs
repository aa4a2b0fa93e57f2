//! Reads the recorded events of watched jobs again, so that none is missed for good.
//!
//! Live messages are best effort: NATS drops what it cannot deliver during a reconnect, a change of leader or an
//! overflow. What was recorded stays readable, and outboxes drop what is not new, so reading too often costs little.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State;
use stepcast_shared::health::ReadyCheck;
use stepcast_shared::ids::{JobId, Owner};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::close;
use crate::feed::Feed;
use crate::frame::JobFrame;
use crate::hub::Hub;
use crate::outbox::Round;
use crate::snapshot::{BATCH, Reader};

/// How often it is looked at what is due.
const TICK: Duration = Duration::from_millis(250);
/// How long reading may go on without a look at the connection.
const LONGEST: Duration = Duration::from_secs(1);
/// Jobs that are read at once: while the server gathers their events, what is live waits.
const PORTION: usize = 25;
/// How much longer than a read took nothing is read, so that what is live is seldom behind one.
const REST: u32 = 4;
/// When a read that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How often it is noted how far the stream is.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Most batches that are read after an outage: 5,000 events, as for a client that comes back.
const GAP_BATCHES: usize = 25;

/// How far the stream was when live messages were last known to arrive.
#[derive(Debug, Default)]
struct Heard {
    until: Option<u64>,
    /// How far the stream was at the last look.
    newest: Option<u64>,
    noted: Option<Instant>,
    /// Whether NATS was away since then.
    gap: bool,
}

/// The task that reads again what is due.
#[derive(Debug)]
pub struct Reread {
    /// Who watches what.
    pub hub: Arc<Hub>,
    /// Reads it.
    pub reader: Arc<Reader>,
    /// Tells of reconnects.
    pub feed: Arc<Feed>,
    /// What it is read over.
    pub client: Client,
    /// Told whether NATS is there.
    pub ready: ReadyCheck,
    /// How often a watched job is read.
    pub every: Duration,
}

impl Reread {
    /// Runs until `stopping`.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        stopping.run_until_cancelled(self.watch()).await;
        Ok(())
    }

    async fn watch(&self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connects = self.feed.connects();
        let mut list_at = Instant::now() + self.every;
        let mut heard = Heard::default();
        loop {
            tick.tick().await;
            self.report();
            let now = Instant::now();
            let seen = self.feed.connects();
            if connects != seen {
                // Only behind subscriptions that have taken effect nothing is missed anew.
                if !self.is_connected() || !self.feed.settled().await {
                    continue;
                }
                connects = seen;
                info!("nats is back, watched jobs are read again");
                self.hub.all_due(now);
                list_at = now;
                heard.gap = true;
            }
            if !self.is_connected() {
                continue;
            }
            if heard.gap {
                self.close_gap(&mut heard, connects).await;
            } else if heard.noted.is_none_or(|at| at.elapsed() >= NOTE_EVERY) {
                self.note(&mut heard, connects).await;
            }
            if list_at <= now {
                let whole = self.list().await;
                list_at = Instant::now() + if whole { self.every } else { AGAIN };
            }
            self.read_due().await;
        }
    }

    /// Notes how far the stream is that has been heard of.
    async fn note(&self, heard: &mut Heard, connects: u64) {
        heard.noted = Some(Instant::now());
        match self.reader.newest().await {
            // What was recorded by then counts as heard once the feed has been read up to here, and only a look later,
            // since what the server has stored it may still have to send.
            Ok(newest) if self.feed.settled().await && self.feed.connects() == connects => {
                heard.until = heard.newest.replace(newest).or(Some(newest));
            }
            Ok(_) => {}
            Err(error) => debug!(error = format!("{error:#}"), "the stream does not tell how far it is"),
        }
    }

    /// Passes on what was recorded while NATS was away: a job that began and ended meanwhile is in no list.
    ///
    /// A little of what was heard is read again; the hub knows it.
    async fn close_gap(&self, heard: &mut Heard, connects: u64) {
        let Some(mut until) = heard.until else {
            // It was lost before anything could be noted: what is due is read in any case.
            heard.gap = false;
            self.feed.close_gap(connects);
            return;
        };
        for _ in 0..GAP_BATCHES {
            match self.reader.after(until, BATCH).await {
                Ok((_, reached)) if reached == until => {
                    heard.newest = Some(reached);
                    heard.gap = false;
                    self.feed.close_gap(connects);
                    return;
                }
                Ok((frames, reached)) => {
                    let new = self.deliver(frames.iter().map(|(owner, frame)| (owner, frame)));
                    metrics::counter!("stepcast_gateway_gap_recovered_total").increment(new as u64);
                    until = reached;
                    heard.until = Some(reached);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    warn!(error, "what was missed could not be read, it is tried again");
                    return;
                }
            }
        }
        warn!("too much was recorded while nats was away, clients are asked to come back");
        self.hub.send_away(close::TOO_MUCH);
        *heard = Heard::default();
        self.feed.close_gap(connects);
    }

    /// Looks for jobs that nobody here has heard of, where somebody watches all jobs. False if api did not answer.
    async fn list(&self) -> bool {
        let mut whole = true;
        for owner in self.hub.watched_owners() {
            let active = self.reader.active(&owner).await;
            whole &= !(active.truncated && active.ids.is_empty());
            self.hub.note(&owner, &active.ids, Instant::now());
        }
        whole
    }

    /// Reads portion by portion until nothing is due, or so long that a reconnect should be looked for again.
    async fn read_due(&self) {
        let begun = Instant::now();
        while begun.elapsed() < LONGEST {
            let due = self.hub.due(Instant::now(), PORTION);
            if due.is_empty() {
                return;
            }
            for (owner, ids) in due {
                let asked = Instant::now();
                self.read(&owner, &ids).await;
                sleep(asked.elapsed() * REST).await;
            }
        }
    }

    async fn read(&self, owner: &Owner, ids: &[JobId]) {
        match self.reader.recorded(owner, ids).await {
            Ok(frames) => {
                let new = self.deliver(frames.values().map(|frame| (owner, frame)));
                metrics::counter!("stepcast_gateway_reread_jobs_total").increment(ids.len() as u64);
                metrics::counter!("stepcast_gateway_reread_recovered_total").increment(new as u64);
                self.hub.set_due(owner, ids, Instant::now() + self.every);
            }
            Err(error) => {
                warn!(error = format!("{error:#}"), "watched jobs could not be read, they are tried again");
                self.hub.set_due(owner, ids, Instant::now() + AGAIN);
            }
        }
    }

    /// Hands out what was read, and returns how many had not had it.
    fn deliver<'a>(&self, frames: impl Iterator<Item = (&'a Owner, &'a JobFrame)>) -> usize {
        let mut round = Round::default();
        let new = frames.map(|(owner, frame)| self.hub.deliver(owner, frame, &mut round)).sum();
        round.flush();
        new
    }

    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected && self.feed.is_connected()
    }

    fn report(&self) {
        let state = if self.is_connected() { Ok(()) } else { Err("not connected".to_owned()) };
        self.ready.set("gateway nats", state);
    }
}
