//! Reads the recorded events of watched jobs again, so that none is missed for good.
//!
//! Live messages are best effort: NATS drops what it cannot deliver during a reconnect, a change of leader or an
//! overflow. What was recorded stays readable, and the hub drops what is not new, so reading too often costs little.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stepcast_shared::ids::{JobId, Owner};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::feed::Feed;
use crate::hub::Hub;
use crate::snapshot::Reader;

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

/// The task that reads again what is due.
#[derive(Debug)]
pub struct Reread {
    /// Who watches what.
    pub hub: Arc<Hub>,
    /// Reads it.
    pub reader: Arc<Reader>,
    /// Tells of reconnects.
    pub feed: Arc<Feed>,
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
        loop {
            tick.tick().await;
            if !self.reader.is_connected() || !self.feed.is_connected() {
                continue;
            }
            let seen = self.feed.connects();
            if connects != seen {
                // Only behind subscriptions that have taken effect nothing is missed anew.
                if !self.feed.settled().await {
                    continue;
                }
                connects = seen;
                list_at = Instant::now();
                self.hub.all_due(list_at);
            }
            if list_at <= Instant::now() {
                let whole = self.list().await;
                list_at = Instant::now() + if whole { self.every } else { AGAIN };
            }
            self.read_due().await;
        }
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
                sleep((asked.elapsed() * REST).min(LONGEST)).await;
            }
        }
    }

    async fn read(&self, owner: &Owner, ids: &[JobId]) {
        match self.reader.recorded(owner, ids, None).await {
            Ok(frames) => {
                let new = self.hub.deliver_all(frames.values().map(|frame| (owner, frame)));
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
}
